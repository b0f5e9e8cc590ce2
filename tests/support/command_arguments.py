"""The arguments of a command model: each place in it that a client can fill, and a command that fills one of them."""

from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from contracts.claim import Claim

PLACEHOLDERS: Mapping[type, Any] = {str: "x", int: 1, float: 0.5, bool: False}


def argument_paths(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type]]:
    """Each argument with its type: `signature.image_uri`, `messages[].content[].text`. A claim is one argument; so is a free object."""
    for name, field in model.model_fields.items():
        if name != "slip":
            yield from _paths(field.annotation, f"{prefix}{name}")


def _paths(annotation: Any, path: str) -> Iterator[tuple[str, type]]:
    for option in _options(annotation):
        if get_origin(option) is list:
            yield from _paths(get_args(option)[0], f"{path}[]")
        elif isinstance(option, type) and issubclass(option, BaseModel) and option is not Claim:
            yield from argument_paths(option, f"{path}.")
        else:
            yield path, _plain_type(option)


def _options(annotation: Any) -> list[Any]:
    """The members of a union without None; annotations are left out."""
    if get_origin(annotation) is Annotated:
        return _options(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [option for member in get_args(annotation) if member is not NoneType for option in _options(member)]
    return [annotation]


def _plain_type(annotation: Any) -> type:
    if get_origin(annotation) is Literal:
        return type(get_args(annotation)[0])
    return dict if get_origin(annotation) is dict or annotation in (object, Any) else annotation


def command_with(model: type[BaseModel], path: str, value: Any, base: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the argument at `path` set to `value`. What the nested models on the way require is as in `base`, else a placeholder."""
    head, *rest = path.split(".")
    name, is_list = head.removesuffix("[]"), head.endswith("[]")
    if rest:
        nested = _nested_model(model.model_fields[name].annotation)
        required = {field: _placeholder(info.annotation) for field, info in nested.model_fields.items() if info.is_required()}
        given = base.get(name)
        given = given[0] if isinstance(given, list) and given else given
        value = command_with(nested, ".".join(rest), value, required | (given if isinstance(given, dict) else {}))
    return {**base, name: [value] if is_list else value}


def _nested_model(annotation: Any) -> type[BaseModel]:
    for option in _options(annotation):
        if get_origin(option) is list:
            return _nested_model(get_args(option)[0])
        if isinstance(option, type) and issubclass(option, BaseModel) and option is not Claim:
            return option
    raise AssertionError(f"{annotation} has no model inside")


def _placeholder(annotation: Any) -> Any:
    option = _options(annotation)[0]
    if get_origin(option) is Literal:
        return get_args(option)[0]
    return [] if get_origin(option) is list else {} if _plain_type(option) is dict else PLACEHOLDERS.get(option, "x")
