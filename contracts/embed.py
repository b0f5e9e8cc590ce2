"""Embeddings: texts become vectors whose directions are close when the texts mean the same."""

from typing import Annotated, Any, Literal

from pydantic import Field

from contracts.wire import Command, Result

MAX_INPUTS = 32
"""Of one command: its vectors fit into a message, also those of 4096 numbers."""
MAX_INPUT_CHARS = 400_000
DEFAULT_EMBEDDING_MODEL = "embedding"
"""The name by which a client may request whatever embedding model is served."""
InputText = Annotated[str, Field(min_length=1, max_length=MAX_INPUT_CHARS)]


class Embed(Command):
    """Make a vector of each text."""

    inputs: list[InputText] = Field(min_length=1, max_length=MAX_INPUTS)
    model: str | None = Field(None, max_length=255, description="The served model, or `embedding`. None: whatever is served.")
    dimensions: int | None = Field(None, ge=1, le=65_536, description="Numbers of a vector, where the model has several sizes.")


class EmbedDone(Result):
    """`vectors`: in the order of the inputs, each the base64 of its numbers as little-endian float32."""

    vectors: list[str]
    model_name: str
    prompt_tokens: int = Field(description="Of all inputs.")
    device_seconds: float | None = Field(None, ge=0, description="Busy time of the device for this request; None: not known.")


class GetEmbedStatus(Command):
    """Ask which embedding model is served. The reply is a fault while there is none: `loading`, or `embeddings-unconfigured`."""


class EmbedStatus(Result):
    """The served model. Values are None where a model server does not report them."""

    model_name: str
    engine: Literal["embedded", "openai"] = Field(description="`openai` for a server.")
    dimensions: int | None = None
    max_model_len: int | None = Field(None, description="Tokens of an input.")
    engine_config: dict[str, Any] = Field(default_factory=dict)
