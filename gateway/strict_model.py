"""The models of bodies: a base class, and contracts as request bodies.

Those have the same fields, but unknown ones are rejected, so that a misspelt field is reported instead of ignored.
"""

from copy import copy
from functools import cache
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, create_model, model_validator
from pydantic.fields import FieldInfo

from contracts.wire_model import WireModel


class HttpModel(BaseModel):
    """A model whose validator is built when it is first needed: a gateway serves more APIs than most installations use.

    The body of a request that FastAPI validates is a BaseModel instead: built later, it would warn of the alias that FastAPI gives it.
    """

    model_config = ConfigDict(defer_build=True)


@cache
def strict_model(model: type[BaseModel], *, without: tuple[str, ...] = (), optional: bool = False) -> type[BaseModel]:
    """A copy of the contract whose models, at every depth, forbid unknown fields. `optional`: no field of the outermost one is required.

    Its model validators of the mode `after` are those of the contract; a contract with other ones is refused by an assertion.
    """
    decorators = model.__pydantic_decorators__
    others = {name for name, decorator in decorators.model_validators.items() if decorator.info.mode != "after"}
    others |= decorators.field_validators.keys()
    assert not others, f"{model.__name__} has the validators {others}, which a copy would lack"
    validators: dict[str, Any] = {
        name: model_validator(mode="after")(decorator.func) for name, decorator in decorators.model_validators.items()
    }
    fields: dict[str, Any] = {
        name: (_strict_annotation(field.annotation), _optional_field(field) if optional else field)
        for name, field in model.model_fields.items()
        if name not in without
    }
    name = f"{model.__name__}{'Arguments' if optional else 'Fields'}"
    config = ConfigDict(extra="forbid", frozen=True, defer_build=True)
    return create_model(name, __config__=config, __doc__=model.__doc__, __validators__=validators, **fields)


def _strict_annotation(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, WireModel):
        return strict_model(annotation)
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return Annotated[(_strict_annotation(parts[0]), *parts[1:])]
    if origin in (list, tuple, dict):
        return origin[tuple(_strict_annotation(part) for part in parts)]
    if any(_contains_model(part) for part in parts):
        union = _strict_annotation(parts[0])
        for part in parts[1:]:
            union |= _strict_annotation(part)
        return union
    return annotation


def _contains_model(part: Any) -> bool:
    return (isinstance(part, type) and issubclass(part, WireModel)) or any(_contains_model(inner) for inner in get_args(part))


def _optional_field(field: FieldInfo) -> FieldInfo:
    """The field with its constraints, but not required."""
    optional = copy(field)
    optional.default, optional.default_factory = None, None
    return optional
