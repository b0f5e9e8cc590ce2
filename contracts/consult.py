"""The consult step: a question about a picture, or without one, answered in a chain of thought and an answer."""

from typing import Literal

from pydantic import Field

from contracts.claim import Claim
from contracts.wire import Command, Result


class Consult(Command):
    """Ask. A picture comes as a claim, or small ones inside the message as base64; the claim outranks."""

    prompt: str = Field("", max_length=20_000)
    image: str | None = Field(None, description="base64, with or without a `data:` prefix. A message holds 1 MiB: send a claim for more.")
    picture: Claim | None = None
    max_new_tokens: int | None = Field(None, ge=1, le=4096, description="None: as the worker is set, 1024.")


class ConsultDone(Result):
    prediction: str
    finish: Literal["stop", "length"] = Field("stop", description="`length`: the answer was cut at its token limit.")
    tokens: int = Field(0, ge=0, description="Made by the model.")
    seen_by: str = Field("", description="The model.")


class IsConsultReady(Command):
    """Would a question be answered now? While the model loads the answer is the fault `loading`."""


class ConsultReady(Result):
    model: str
