"""The bounded executor: a child process per device, its protocol and its admission."""
