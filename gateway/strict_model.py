"""Contracts at the front door: the same fields, but what we do not know is refused, since a misspelt field is better told than ignored."""

from copy import copy
from functools import cache
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, create_model
from pydantic.fields import FieldInfo

from contracts.wire_model import WireModel


@cache
def strict_model(model: type[BaseModel], *, without: tuple[str, ...] = (), optional: bool = False) -> type[BaseModel]:
    """A contract whose models, at every depth, forbid unknown fields. `optional`: no field of the outermost need be given."""
    decorators = model.__pydantic_decorators__
    lost = {*decorators.field_validators, *decorators.model_validators}
    assert not lost, f"{model.__name__} checks {lost} in validators, which would be lost here"
    fields: dict[str, Any] = {
        name: (_strict_annotation(field.annotation), _optional_field(field) if optional else field)
        for name, field in model.model_fields.items()
        if name not in without
    }
    name = f"{model.__name__}{'Arguments' if optional else 'Fields'}"
    return create_model(name, __config__=ConfigDict(extra="forbid", frozen=True), __doc__=model.__doc__, **fields)


def _strict_annotation(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, WireModel):
        return strict_model(annotation)
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return Annotated[(_strict_annotation(parts[0]), *parts[1:])]
    if origin in (list, tuple, dict):
        return origin[tuple(_strict_annotation(part) for part in parts)]
    if any(_contains_model(part) for part in parts):
        united = _strict_annotation(parts[0])
        for part in parts[1:]:
            united |= _strict_annotation(part)
        return united
    return annotation


def _contains_model(part: Any) -> bool:
    return (isinstance(part, type) and issubclass(part, WireModel)) or any(_contains_model(inner) for inner in get_args(part))


def _optional_field(field: FieldInfo) -> FieldInfo:
    """The field with its limits, but not required."""
    loose = copy(field)
    loose.default, loose.default_factory = None, None
    return loose
