"""What the vision steps share: prompts, images, verdicts and evidence."""
