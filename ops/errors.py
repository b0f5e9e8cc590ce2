"""What the caretaker may have to tell the person at the terminal."""


class SetupError(Exception):
    """Something on this machine is missing or broken. The message names the cause and the cure; it is shown without a stack."""
