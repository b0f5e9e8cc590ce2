"""The HTTP APIs of the source systems."""
