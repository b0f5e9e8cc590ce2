"""The errors that the command line shows to its user: of the machine, and of the settings."""


class SetupError(Exception):
    """Something on this machine is missing or broken. The message names the cause and the remedy; it is shown without a traceback."""


def describe_start_error(error: Exception) -> str | None:
    """Cause and cure of an error that ends a command, in one line unless settings are wrong; None for a fault of the program."""
    from bus.errors import PermanentError

    if isinstance(error, PermanentError):
        return " ".join(str(error).split())
    return describe_settings_error(error) if isinstance(error, ValueError) else None


def describe_settings_error(error: ValueError) -> str | None:
    """One line for each wrong variable, with its name and without its value; None for an error that is not of settings.

    Pydantic's own message quotes the values, and so the secrets among them.
    """
    from pydantic import ValidationError
    from pydantic_settings import BaseSettings

    from ops.docgen.settings_catalog import subclasses

    if not isinstance(error, ValidationError):
        return None
    settings = next((cls for cls in subclasses(BaseSettings) if cls.__name__ == error.title), None)
    if settings is None:
        return None
    prefix = str(settings.model_config.get("env_prefix", ""))
    lines = []
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        name = str(problem["loc"][0]) if problem["loc"] else settings.__name__
        variable = f"{prefix}{name}" if name in settings.model_fields else name
        lines.append(f"{variable.upper() if problem['loc'] else name}: {problem['msg'].removeprefix('Value error, ')}")
    return "\n".join(["The settings are not valid; `atelier settings` describes each.", *lines])
