"""The message for invalid settings. Pydantic's own quotes the values, and so the secrets among them."""

from pydantic import ValidationError
from pydantic_settings import BaseSettings

from ops.docgen.settings_catalog import subclasses


def describe_settings_error(error: ValueError) -> str | None:
    """One line for each wrong variable, with its name and without its value; None for any other error."""
    if not isinstance(error, ValidationError):
        return None
    settings = next((cls for cls in subclasses(BaseSettings) if cls.__name__ == error.title), None)
    if settings is None:
        return None
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    lines = [f"{variable_name(settings, problem['loc'])}: {problem['msg'].removeprefix('Value error, ')}" for problem in problems]
    return "\n".join(["The settings are not valid; `atelier settings` describes each.", *lines])


def variable_name(settings: type[BaseSettings], location: tuple[int | str, ...]) -> str:
    """The environment variable of an error's location; the class where the error is of several variables."""
    if not location:
        return settings.__name__
    name = str(location[0])
    prefix = settings.model_config.get("env_prefix", "") if name in settings.model_fields else ""
    return f"{prefix}{name}".upper()
