"""Bodies of OpenAI's requests: unknown fields are refused, null means what an absent field means."""

from collections.abc import Collection, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from gateway.problems import HttpProblem
from gateway.strict_model import HttpModel

NoEffect = Annotated[Any, Field(description="Accepted; it changes nothing of the answer.")]


class StrictBody(HttpModel):
    """A body, or a part of one. An unknown field is an error, unless it is null."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def drop_nulls(cls, value: Any) -> Any:
        return {name: field for name, field in value.items() if field is not None} if isinstance(value, dict) else value


def unsupported(hint: str, *neutral: Any) -> Any:
    """The type of a field that is not served. Its values are null and `neutral`, which ask for nothing; `hint`: what to do instead."""

    def check(value: Any) -> None:
        if value is not None and value not in neutral:
            raise ValueError(f"not supported: {hint}")

    return Annotated[None, BeforeValidator(check), Field(description=f"Not supported: {hint}.")]


def texts_only(reason: str) -> BeforeValidator:
    """Of a field that is a text, or a list of texts: token ids in the list are an error with the reason."""

    def check(value: Any) -> Any:
        if isinstance(value, list) and any(not isinstance(text, str) for text in value):
            raise ValueError(reason)
        return value

    return BeforeValidator(check)


def check_fields_of_type(body: BaseModel, types: Mapping[str, Collection[str]], location: str, kind: str = "type") -> None:
    """`types`: which types (values of the field `kind`) have a field. Raises HttpProblem(400) for one that has a value, and no effect."""
    value = getattr(body, kind)
    for name, allowed in types.items():
        if value not in allowed and getattr(body, name):
            field = type(body).model_fields[name].alias or name
            detail = f"{field} has no effect where the {kind} is {value}: leave it out"
            raise HttpProblem(400, "invalid-request", detail, param=f"{location}.{field}")
