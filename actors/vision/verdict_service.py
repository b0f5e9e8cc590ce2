"""What `validate` and `judge` share: a verdict from the model, the claim or variant that a command names, and the trace of the verdict."""

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic

import structlog
from asyncpg import Connection
from PIL import Image

from actors.engines.language.requests import VlmRequest
from actors.vision.image_loader import ImageLoader
from actors.vision.prompts import AGAIN_INSTRUCTION
from actors.vision.schema_limits import max_json_bytes
from actors.vision.settings import VisionSettings, VlmSettings
from actors.vision.variant_repository import Stage, VariantRef, VariantRepository, VlmTrace, derive_trace_id
from actors.vision.verdict_parser import VerdictT, parse_verdict, readable_text
from actors.vision.vlm_client import VlmClient, open_vlm_client
from bus.actor import Context, Handler, OpenHandler, Resources, Transactional
from bus.errors import PermanentError, TemporaryError
from contracts.claim import Claim
from contracts.verdict import VerdictSchema
from contracts.wire import Result

log = structlog.get_logger()
ANSWERS = 3
"""How often the model is asked before its verdict is the default one."""
UNREADABLE_ISSUE = "JSON 파싱 실패"


@dataclass(frozen=True)
class Verdict(Generic[VerdictT]):
    """`opinion`: the verdict's fields. `repaired`: the answer did not match the schema and was repaired.

    `default_fields`: replace the fields of an opinion that no answer held.
    """

    opinion: VerdictT | None
    repaired: bool
    model_name: str
    default_fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class VerdictService:
    """Asks the model for verdicts."""

    client: VlmClient
    image_loader: ImageLoader
    settings: VisionSettings

    async def evaluate(
        self,
        accepted: type[VerdictT],
        prompt: str,
        picture: Image.Image,
        context: Context,
        *,
        schema: type[VerdictSchema] | None = None,
        default: dict[str, Any] | None = None,
    ) -> Verdict[VerdictT]:
        """A verdict in `schema` (default: `accepted`), or at least in `accepted`. Raises TemporaryError when the answer holds none.

        With `default` the model is asked up to ANSWERS times; then the verdict has these fields, and the last answer as its analysis.
        """
        schema = schema or accepted
        max_bytes = max_json_bytes(schema)
        request = VlmRequest(
            text=prompt,
            images=(await self.image_loader.encode_for_model(picture),),
            max_new_tokens=min(self.settings.verdict_max_new_tokens, max_bytes),
            schema=json.dumps(schema.model_json_schema()),
            max_answer_bytes=max_bytes,
        )
        for _ in range(ANSWERS):
            response = await self.client.generate(request, tenant=context.tenant, deadline=context.deadline)
            try:
                opinion, repaired = parse_verdict(response, accepted, schema)
                return Verdict(opinion, repaired, response.model)
            except TemporaryError:
                if default is None:
                    raise
            request = replace(request, text=f"{prompt}\n{AGAIN_INSTRUCTION}")
        log.warning("verdict.defaulted", answers=ANSWERS, job_id=context.job_id)
        return Verdict(None, False, response.model, (default or {}) | {"analysis": readable_text(response.text)})


IMAGE_DEFAULT = {
    "is_valid": False,
    "image_quality_ok": False,
    "relevance_score": 0.0,
    "issues": [UNREADABLE_ISSUE],
    "recommendations": [],
}
AD_DEFAULT = {"on_brief": False, "occlusion": False, "contrast_ok": False, "cta_present": False, "issues": [UNREADABLE_ISSUE]}
"""The source system's verdicts for an answer that it cannot parse."""


def with_verdicts(step: str, handler: Callable[..., Coroutine[Any, Any, Result | Transactional]]) -> OpenHandler:
    """Opens `handler` with the keyword arguments `verdicts` and `repository`, which is None without a database."""

    @asynccontextmanager
    async def open_handler(resources: Resources) -> AsyncIterator[Handler]:
        settings = VisionSettings()
        async with open_vlm_client(VlmSettings.for_step(step), resources.shared, resources.set_unready) as client:
            resources.register_engine(client.engine)
            verdicts = VerdictService(client, ImageLoader(resources.claims, settings), settings)
            yield partial(handler, verdicts=verdicts, repository=await VariantRepository.open(resources))

    return open_handler


def require_repository(repository: VariantRepository | None, alternative: str) -> VariantRepository:
    if repository is None:
        raise PermanentError("database-missing", f"a variant is looked up in Postgres: set DATABASE_URL, or send {alternative}")
    return repository


def select_claim(image: Claim | None, images: Sequence[Claim]) -> Claim:
    """`image`, else the first of `images`. Raises PermanentError("invalid-message") when there is neither."""
    claim = image or next(iter(images), None)
    if claim is None:
        raise PermanentError("invalid-message", "neither ids nor a picture: send job_variants_id, job_id and tenant_id, or image")
    return claim


async def evaluate_variant(
    evaluation: Awaitable[dict[str, Any]],
    request: dict[str, Any],
    result: type[Result],
    *,
    repository: VariantRepository,
    stage: Stage,
    ref: VariantRef,
    context: Context,
) -> Transactional:
    """Await the verdict's fields; return them as `result`, with a write that stores the trace and marks the variant done."""
    started = time.perf_counter()
    fields = await evaluation
    trace = VlmTrace(request, fields, round((time.perf_counter() - started) * 1000, 1))

    async def write(connection: Connection) -> None:
        await repository.mark_done(connection, stage, ref, context, trace)

    ids = {"job_id": ref.job_id, "vlm_trace_id": derive_trace_id(context.keyed_id)}
    return Transactional(result.model_validate(ids | fields), write)


def verdict_fields(verdict: Verdict[VerdictT]) -> dict[str, Any]:
    """The fields that a verdict contributes to the step's result."""
    fields = verdict.opinion.model_dump(mode="json") if verdict.opinion else verdict.default_fields
    return fields | {"repaired": verdict.repaired, "defaulted": verdict.opinion is None, "seen_by": verdict.model_name}


@contextmanager
def translate_image_errors(url: str) -> Iterator[None]:
    """Replaces the errors of a missing picture and of an unreadable one by the source system's."""
    try:
        yield
    except PermanentError as error:
        if error.code == "asset-missing":
            raise PermanentError("image-file-missing", f"Image file not found: {url}") from error
        raise PermanentError("image-load-failed", f"Failed to load image: {error}") from error
