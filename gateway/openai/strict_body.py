"""Bodies of OpenAI's requests: unknown fields are refused, null means what an absent field means."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

NoEffect = Annotated[Any, Field(description="Accepted; it changes nothing of the answer.")]


class StrictBody(BaseModel):
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
