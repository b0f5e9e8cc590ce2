"""Ask for a verdict and read it; and say the failures of pictures in the source system's words."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from PIL import Image
from pydantic import BaseModel

from actors.engines.vlm import Question
from actors.seeing.answers import read_verdict
from actors.seeing.bounds import longest_bytes
from actors.seeing.pictures import Pictures
from actors.seeing.settings import SeeingSettings
from actors.seeing.sight import Sight
from bus.actor import Context
from bus.errors import PermanentError

Opinion = TypeVar("Opinion", bound=BaseModel)


@dataclass(frozen=True)
class Verdict(Generic[Opinion]):
    opinion: Opinion
    repaired: bool
    seen_by: str


@dataclass(frozen=True)
class Critic:
    """Everything that a verdict needs."""

    sight: Sight
    pictures: Pictures
    settings: SeeingSettings

    async def verdict(self, model: type[Opinion], text: str, picture: Image.Image, context: Context) -> Verdict[Opinion]:
        """Ask, held to the model's schema. Raises TemporaryError when the answer is no verdict."""
        longest = longest_bytes(model)
        question = Question(
            text=text,
            image=await self.pictures.shown(picture),
            max_new_tokens=min(self.settings.verdict_max_new_tokens, longest),
            schema=json.dumps(model.model_json_schema()),
            longest_bytes=longest,
        )
        answer = await self.sight.look(question, tenant=context.tenant, deadline=context.deadline)
        opinion, repaired = read_verdict(answer, model)
        return Verdict(opinion, repaired, answer.model)


def fields_of(verdict: Verdict[Opinion]) -> dict[str, Any]:
    """The opinion's fields, and how they came about."""
    return verdict.opinion.model_dump(mode="json") | {"repaired": verdict.repaired, "seen_by": verdict.seen_by}


@contextmanager
def in_source_words(url: str) -> Iterator[None]:
    """A picture that is not there, and one that cannot be read, are told apart as the source system does."""
    try:
        yield
    except PermanentError as error:
        if error.code == "asset-missing":
            raise PermanentError("image-file-missing", f"Image file not found: {url}") from error
        raise PermanentError("image-load-failed", f"Failed to load image: {error}") from error
