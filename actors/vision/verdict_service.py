"""Ask for a verdict and read it; and say the failures of pictures in the source system's words."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from PIL import Image
from pydantic import BaseModel

from actors.engines.language.requests import VlmRequest
from actors.vision.image_loader import ImageLoader
from actors.vision.schema_limits import max_json_bytes
from actors.vision.settings import VisionSettings
from actors.vision.verdict_parser import parse_verdict
from actors.vision.vlm_client import VlmClient
from bus.actor import Context
from bus.errors import PermanentError

VerdictT = TypeVar("VerdictT", bound=BaseModel)


@dataclass(frozen=True)
class Verdict(Generic[VerdictT]):
    opinion: VerdictT
    repaired: bool
    model_name: str


@dataclass(frozen=True)
class VerdictService:
    """Everything that a verdict needs."""

    client: VlmClient
    image_loader: ImageLoader
    settings: VisionSettings

    async def evaluate(self, model: type[VerdictT], prompt: str, picture: Image.Image, context: Context) -> Verdict[VerdictT]:
        """Ask, held to the model's schema. Raises TemporaryError when the answer is no verdict."""
        longest = max_json_bytes(model)
        question = VlmRequest(
            text=prompt,
            image=await self.image_loader.encode_for_model(picture),
            max_new_tokens=min(self.settings.verdict_max_new_tokens, longest),
            schema=json.dumps(model.model_json_schema()),
            max_answer_bytes=longest,
        )
        answer = await self.client.generate(question, tenant=context.tenant, deadline=context.deadline)
        opinion, repaired = parse_verdict(answer, model)
        return Verdict(opinion, repaired, answer.model)


def verdict_fields(verdict: Verdict[VerdictT]) -> dict[str, Any]:
    """The opinion's fields, and how they came about."""
    return verdict.opinion.model_dump(mode="json") | {"repaired": verdict.repaired, "seen_by": verdict.model_name}


@contextmanager
def translate_image_errors(url: str) -> Iterator[None]:
    """A picture that is not there, and one that cannot be read, are told apart as the source system does."""
    try:
        yield
    except PermanentError as error:
        if error.code == "asset-missing":
            raise PermanentError("image-file-missing", f"Image file not found: {url}") from error
        raise PermanentError("image-load-failed", f"Failed to load image: {error}") from error
