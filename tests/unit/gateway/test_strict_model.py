"""Strict copies of contracts: unknown fields are rejected at every depth, everything else is the contract's."""

from typing import Annotated, Any, Self

import pytest
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from contracts.wire_model import WireModel
from gateway.strict_model import strict_model


class Inner(WireModel):
    size: int = Field(ge=1)


class Outer(WireModel):
    name: str
    one: Inner | None = None
    many: list[Inner] = Field(default_factory=list)
    by_name: dict[str, Annotated[Inner, Field(description="x")]] = Field(default_factory=dict)
    slip: str = ""


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "x"},
        {"name": "x", "one": None},
        {"name": "x", "one": {"size": 1}, "many": [{"size": 2}], "by_name": {"a": {"size": 3}}},
    ],
)
def test_known_fields_are_accepted(fields: dict[str, Any]) -> None:
    assert strict_model(Outer).model_validate(fields).model_dump(exclude_unset=True) == fields


@pytest.mark.parametrize(
    ("fields", "location"),
    [
        ({"name": "x", "nmae": "y"}, ("nmae",)),
        ({"name": "x", "one": {"size": 1, "sise": 2}}, ("one", "sise")),
        ({"name": "x", "many": [{"size": 1}, {"size": 1, "sise": 2}]}, ("many", 1, "sise")),
        ({"name": "x", "by_name": {"a": {"size": 1, "sise": 2}}}, ("by_name", "a", "sise")),
        ({"name": "x", "one": {"size": 0}}, ("one", "size")),
        ({}, ("name",)),
    ],
)
def test_unknown_and_invalid_fields_are_rejected(fields: dict[str, Any], location: tuple[str | int, ...]) -> None:
    with pytest.raises(ValidationError) as raised:
        strict_model(Outer).model_validate(fields)
    assert [error["loc"] for error in raised.value.errors()] == [location]


def test_omitted_field_is_unknown() -> None:
    with pytest.raises(ValidationError, match="slip"):
        strict_model(Outer, without=("slip",)).model_validate({"name": "x", "slip": "y"})


def test_optional_model_requires_no_field_but_keeps_constraints() -> None:
    model = strict_model(Inner, optional=True)
    assert model.model_validate({}).model_dump(exclude_unset=True) == {}
    with pytest.raises(ValidationError):
        model.model_validate({"size": 0})


class Range(WireModel):
    first: int = 0
    last: int | None = None

    @model_validator(mode="after")
    def check_order(self) -> Self:
        if self.last is not None and self.last < self.first:
            raise ValueError("the last is before the first")
        return self


class Ranges(WireModel):
    ranges: list[Range]


def test_model_validators_apply_at_every_depth() -> None:
    for model, fields in ((strict_model(Range), {"first": 2, "last": 1}), (strict_model(Ranges), {"ranges": [{"first": 2, "last": 1}]})):
        with pytest.raises(ValidationError, match="the last is before the first"):
            model.model_validate(fields)
    assert strict_model(Ranges).model_validate({"ranges": [{"last": 3}]}).model_dump(exclude_unset=True) == {"ranges": [{"last": 3}]}
    assert strict_model(Range, optional=True).model_validate({}).model_dump(exclude_unset=True) == {}


def test_model_with_field_validators_is_refused() -> None:
    """A copy would not run them."""

    class Checked(BaseModel):
        name: str

        @field_validator("name")
        @classmethod
        def check_name(cls, name: str) -> str:
            return name

    with pytest.raises(AssertionError, match="check_name"):
        strict_model(Checked)
