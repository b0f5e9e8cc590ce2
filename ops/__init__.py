"""The caretaker: one command line, `atelier`, that starts, watches and mends the rooms."""
