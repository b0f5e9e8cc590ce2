"""What survives: real parts of its own are killed, cut and stalled under load, and an oracle says what became of every confirmed order."""
