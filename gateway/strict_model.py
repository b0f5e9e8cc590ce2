"""The models of bodies: a base class, contracts as request bodies, and validators that are built when a request needs them.

Contracts as bodies have the same fields, but unknown ones are rejected, so that a misspelt field is reported instead of ignored.
"""

import warnings
from copy import copy
from functools import cache
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, TypeAdapter, create_model, model_validator
from pydantic.fields import FieldInfo
from pydantic.warnings import UnsupportedFieldAttributeWarning

from contracts.wire_model import WireModel


class HttpModel(BaseModel):
    """A model whose validator is built when it is first needed: a gateway serves more APIs than most installations use.

    FastAPI's own validators wait too: see `defer_adapters`.
    """

    model_config = ConfigDict(defer_build=True)


class LazyTypeAdapter:
    """Stands for a TypeAdapter of FastAPI, and builds it for the first attribute that is read: 300 of them take 3 MB."""

    def __init__(self, type_: Any, *, config: ConfigDict | None = None) -> None:
        self._type, self._config = type_, config

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # `copy` and `pickle` ask an object for these before it has its arguments
            raise AttributeError(name)
        with warnings.catch_warnings():  # FastAPI ignores it too: the alias of a parameter means something to FastAPI alone
            warnings.simplefilter("ignore", UnsupportedFieldAttributeWarning)
            adapter: TypeAdapter[Any] = TypeAdapter(self._type, config=self._config)
            adapter.rebuild()  # now: that of a model which waits for its first use would wait, too, and warn then
        self.validate_python, self.dump_python, self.dump_json = adapter.validate_python, adapter.dump_python, adapter.dump_json
        self.core_schema = adapter.core_schema
        return getattr(adapter, name)


def defer_adapters() -> None:
    """Parameters, bodies and responses of routes that are declared after this call are validated by such adapters."""
    try:
        from fastapi._compat import v2
    except ImportError:  # the name is private; without it, validators are built at the start
        return
    v2.TypeAdapter = LazyTypeAdapter  # type: ignore[attr-defined,assignment]


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
