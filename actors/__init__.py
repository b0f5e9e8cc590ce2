"""The workshop: one file a step. An actor knows its craft, not its neighbours, and not the post."""
