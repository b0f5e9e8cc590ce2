"""Every setting, read from the settings classes: its name, default, unit, description and package."""

import re
import types
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import AliasChoices, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings

ROOT = Path(__file__).parents[2]
PACKAGES = ("bus", "actors", "gateway", "ops")
UNIT_BY_SUFFIX = {
    "seconds": "seconds", "delay": "seconds", "days": "days", "bytes": "bytes", "pixels": "pixels", "side": "pixels", "port": "port",
    "ports": "ports", "url": "URL", "threads": "threads",
}  # fmt: skip
UNIT_BY_TYPE: dict[Any, str] = {bool: "true or false", int: "number", float: "number", Path: "path", str: "text", SecretStr: "secret"}


@dataclass(frozen=True)
class Setting:
    """`names`: the variable, then its aliases. `default`: as the value of the variable; None where there is none."""

    package: str
    settings_class: str
    names: tuple[str, ...]
    default: str | None
    required: bool
    unit: str
    description: str

    @property
    def name(self) -> str:
        return self.names[0]

    def to_json(self) -> dict[str, Any]:
        """`room` and `book` are the released names of `package` and `settings_class`."""
        return {"room": self.package, "book": self.settings_class} | asdict(self) | {"names": list(self.names)}


def all_settings() -> list[Setting]:
    """Each variable once, with its first description: several classes may read the same variable."""
    settings: dict[str, Setting] = {}
    for setting in (setting for cls in settings_classes() for setting in settings_of(cls)):
        if setting.name not in settings or (setting.description and not settings[setting.name].description):
            settings[setting.name] = setting
    return list(settings.values())


def settings_classes() -> list[type[BaseSettings]]:
    """All settings classes of our packages, in the order of PACKAGES; the modules that define one are imported."""
    import_settings_modules()
    ours = [cls for cls in subclasses(BaseSettings) if cls.__module__.partition(".")[0] in PACKAGES]
    return sorted(ours, key=lambda cls: (PACKAGES.index(cls.__module__.partition(".")[0]), cls.__module__, cls.__name__))


@cache
def import_settings_modules() -> None:
    for path in (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))):
        if re.search(r"^class \w+\(\w*Settings\)", path.read_text(), re.MULTILINE):
            import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))


def subclasses(cls: type[BaseSettings]) -> Iterator[type[BaseSettings]]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from subclasses(subclass)


def settings_of(cls: type[BaseSettings]) -> Iterator[Setting]:
    """The settings that a class defines itself; once per prefix for a class with PREFIXES."""
    inherited = {
        name for ancestor in cls.__mro__[1:] if ancestor in settings_ancestors(cls) for name in getattr(ancestor, "model_fields", ())
    }
    for prefix in getattr(cls, "PREFIXES", (cls.model_config.get("env_prefix") or "",)):
        for name, field in cls.model_fields.items():
            if name not in inherited:
                yield make_setting(cls, prefix, name, field)


def settings_ancestors(cls: type[BaseSettings]) -> set[type]:
    return {ancestor for ancestor in cls.__mro__[1:] if issubclass(ancestor, BaseSettings) and ancestor is not BaseSettings}


def make_setting(cls: type[BaseSettings], prefix: str, name: str, field: FieldInfo) -> Setting:
    return Setting(
        cls.__module__.partition(".")[0], cls.__name__, variable_names(prefix, name, field), default_text(field), field.is_required(),
        unit_of(name, field.annotation), field.description or "",
    )  # fmt: skip


def variable_names(prefix: str, name: str, field: FieldInfo) -> tuple[str, ...]:
    """The environment variable of a field and its aliases."""
    match field.validation_alias:
        case str(alias):
            return (alias.upper(),)
        case AliasChoices(choices=choices):
            return tuple(str(choice).upper() for choice in choices)
    return (f"{prefix}{name}".upper(),)


def default_text(field: FieldInfo) -> str | None:
    """The default as the value of a variable. None for one that is made at run time, since it differs between machines."""
    value = {} if field.default_factory is dict else field.default
    match value:
        case None:
            return None
        case SecretStr():
            return value.get_secret_value()
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}" if value < 1e6 else str(int(value))
        case tuple() | list():
            return ",".join(f"{part:g}" if isinstance(part, float) else str(part) for part in value)
        case dict():
            return "{}"
    return None if value is PydanticUndefined else str(value).encode("unicode_escape").decode()


def unit_of(name: str, annotation: Any) -> str:
    """The unit by the last word of the name, else by the type."""
    kind, _ = unwrap_type(annotation)
    if get_origin(kind) is Literal:
        return " | ".join(str(choice) for choice in get_args(kind))
    if get_origin(kind) is tuple:
        inner = unit_of(name, get_args(kind)[0])
        return f"{inner}, comma-separated"
    if get_origin(kind) is dict:
        return "JSON object"
    unit = UNIT_BY_SUFFIX.get(name.rpartition("_")[2])
    return unit if unit and kind is not bool and kind is not SecretStr else UNIT_BY_TYPE.get(kind, "text")


def unwrap_type(annotation: Any) -> tuple[Any, list[Any]]:
    """The type inside `Annotated` and `| None`, and the metadata of each `Annotated`."""
    metadata: list[Any] = []
    while hasattr(annotation, "__metadata__") or get_origin(annotation) in {Union, types.UnionType}:
        if hasattr(annotation, "__metadata__"):
            metadata += annotation.__metadata__
            annotation = annotation.__origin__
        else:
            annotation = next(part for part in get_args(annotation) if part is not type(None))
    return annotation, metadata
