"""The error that the command line shows to its user."""


class SetupError(Exception):
    """Something on this machine is missing or broken. The message names the cause and the remedy; it is shown without a traceback."""
