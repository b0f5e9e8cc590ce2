"""Contracts at the front door: the same fields, but what we do not know is refused, since a misspelt field is better told than ignored."""

from copy import copy
from functools import cache
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, create_model
from pydantic.fields import FieldInfo

from contracts.carried import Carried


@cache
def strict(model: type[BaseModel], *, without: tuple[str, ...] = (), optional: bool = False) -> type[BaseModel]:
    """A contract whose models, at every depth, forbid unknown fields. `optional`: no field of the outermost need be given."""
    decorators = model.__pydantic_decorators__
    lost = {*decorators.field_validators, *decorators.model_validators}
    assert not lost, f"{model.__name__} checks {lost} in validators, which would be lost here"
    fields: dict[str, Any] = {
        name: (_strict(field.annotation), _loosened(field) if optional else field)
        for name, field in model.model_fields.items()
        if name not in without
    }
    name = f"{model.__name__}{'Arguments' if optional else 'Fields'}"
    return create_model(name, __config__=ConfigDict(extra="forbid", frozen=True), __doc__=model.__doc__, **fields)


def _strict(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, Carried):
        return strict(annotation)
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return Annotated[(_strict(parts[0]), *parts[1:])]
    if origin in (list, tuple, dict):
        return origin[tuple(_strict(part) for part in parts)]
    if any(_holds_model(part) for part in parts):
        united = _strict(parts[0])
        for part in parts[1:]:
            united |= _strict(part)
        return united
    return annotation


def _holds_model(part: Any) -> bool:
    return (isinstance(part, type) and issubclass(part, Carried)) or any(_holds_model(inner) for inner in get_args(part))


def _loosened(field: FieldInfo) -> FieldInfo:
    """The field with its limits, but not required."""
    loose = copy(field)
    loose.default, loose.default_factory = None, None
    return loose
