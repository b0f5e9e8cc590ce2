"""Moderate: finds what an installation does not allow in texts and pictures.

Reads texts, claims on pictures and what the image step found in them; returns the findings, and whether none is flagged. Texts are compared
with the word list; pictures are decoded in a decoder process, and each of their frames is shown to the models of
`actors/engines/moderation/` in a model process.
An input that no checker is configured for is refused.
"""

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from itertools import chain

from anyio import to_thread

from actors.engines.moderation.engine import ENGINE_FACTORY, Scores
from actors.engines.moderation.safety_checker import UNSAFE
from actors.engines.process.executor import Executor, open_executor
from actors.engines.process.protocol import EngineSpec
from actors.engines.settings import ExecutorSettings
from actors.imaging.image_decoding import IMAGE_TOO_LARGE
from actors.moderation.picture_frames import FrameReader
from actors.moderation.settings import ModerationSettings
from actors.moderation.word_list import WordList, read_word_list
from bus.actor import Actor, Context, Handler, Resources
from bus.errors import PermanentError
from bus.storage.claim_store import ClaimStore
from contracts.claim import Claim
from contracts.moderate import CheckerName, Finding, InputName, Moderate, ModerateDone
from contracts.wire import Step

PREFETCH = 4
MIN_SCORE = 0.05
"""Lower scores are not reported, unless the label's threshold is lower: a model gives every label some."""


@dataclass(frozen=True)
class Checks:
    """The configured checkers. `models`: with the reader of their pictures; None where no picture is shown to one."""

    settings: ModerationSettings
    words: WordList | None = None
    models: tuple[FrameReader, Executor] | None = None


@dataclass(frozen=True)
class Input:
    """One input of a command: the field that has it, its place there, and the text, the claim or the address."""

    field: InputName
    index: int
    content: str | Claim


@asynccontextmanager
async def open_moderate(resources: Resources) -> AsyncIterator[Handler]:
    """Raises ValueError and OSError for a word list that cannot be read."""
    settings = ModerationSettings()
    words = await to_thread.run_sync(read_word_list, settings.words) if settings.words else None
    async with AsyncExitStack() as stack:
        models = None
        if not settings.check_options.is_empty:
            spec = EngineSpec(ENGINE_FACTORY, settings.check_options)
            opening = open_executor(spec, ExecutorSettings(), max_in_flight=PREFETCH, capacity=1, set_unready=resources.set_unready)
            executor = await stack.enter_async_context(opening)
            resources.register_engine(executor)
            models = stack.enter_context(closing(FrameReader(settings.max_pixels))), executor
        yield partial(moderate, claims=resources.claims, checks=Checks(settings, words, models))


ACTOR = Actor(
    step=Step.MODERATE,
    command=Moderate,
    result=ModerateDone,
    open=open_moderate,
    timeout_seconds=300,
    prefetch=PREFETCH,
    description="Finds in texts and pictures what an installation does not allow.",
)


async def moderate(command: Moderate, context: Context, *, claims: ClaimStore, checks: Checks) -> ModerateDone:
    """Raises PermanentError.

    Its codes: "moderation-empty", "moderation-unconfigured", "image-unreadable", "image-too-large", "image-too-costly", and those of
    `read_picture`.
    """
    texts, pictures = list(text_inputs(command)), list(picture_inputs(command))
    require_checkers(command, texts, pictures, checks)
    findings, checked_by = list[Finding](), dict[str, list[str]]()
    if texts and checks.words:
        checked_by["word-list"] = checks.words.categories
        for text in texts:
            findings += await find_words(text, checks.words)
    if pictures and checks.models:
        for picture in pictures:
            scores = await show_to_models(picture, context, claims, checks)
            checked_by |= {model: reported_labels(model, checks.settings) for model in scores}
            findings += score_findings(picture, scores, checks.settings)
    if command.flagged and command.images:
        checked_by["image-step"] = [UNSAFE]
        findings += image_step_findings(command)
    return ModerateDone(allowed=not any(finding.flagged for finding in findings), moderation=findings, checked_by=checked_by)


def text_inputs(command: Moderate) -> Iterator[Input]:
    if command.prompt is not None:
        yield Input("prompt", 0, command.prompt)
    if command.text is not None:
        yield Input("text", 0, command.text)
    for index, text in enumerate(command.texts):
        yield Input("texts", index, text)


def picture_inputs(command: Moderate) -> Iterator[Input]:
    if command.image is not None:
        yield Input("image", 0, command.image)
    for index, claim in enumerate(command.images):
        yield Input("images", index, claim)
    for index, url in enumerate(command.image_urls):
        yield Input("image_urls", index, url)


def require_checkers(command: Moderate, texts: Sequence[Input], pictures: Sequence[Input], checks: Checks) -> None:
    """Raises PermanentError("moderation-empty" · "moderation-unconfigured")."""
    if not texts and not pictures:
        raise PermanentError("moderation-empty", "There is nothing to check: give a text, a prompt, an image, or pictures on the slip.")
    if texts and checks.words is None:
        fields = ", ".join(dict.fromkeys(text.field for text in texts))
        cure = "set MODERATION_WORDS at the worker, or give null as an argument to leave it out"
        raise PermanentError("moderation-unconfigured", f"Nothing checks texts here ({fields}): {cure}.")
    seen = min(len(command.flagged), len(command.images))
    if checks.models is None and len(pictures) > seen:
        cure = "set MODERATION_NUDENET or MODERATION_CHECKER at the worker, or IMAGE_SAFETY_CHECKER at that of the image step"
        raise PermanentError("moderation-unconfigured", f"Nothing checks {len(pictures) - seen} of {len(pictures)} pictures: {cure}.")


async def find_words(text: Input, words: WordList) -> list[Finding]:
    assert isinstance(text.content, str)
    return [
        Finding(input=text.field, index=text.index, label=category, score=1, flagged=True, checker="word-list")
        for category in await to_thread.run_sync(words.find, text.content)
    ]


async def show_to_models(picture: Input, context: Context, claims: ClaimStore, checks: Checks) -> Scores:
    """What each model sees in a picture that the delivery's tenant may read: the highest score of each label over all frames."""
    assert checks.models is not None
    frames, executor = checks.models
    data = await read_picture(picture.content, context.tenant, claims, checks.settings.max_bytes)
    label = picture.content.uri if isinstance(picture.content, Claim) else picture.content
    highest: Scores = {}
    for frame in await frames.read(data, label):
        answer = await executor.run(frame, tenant=context.tenant or "", deadline=context.deadline)
        for model, scores in answer.result.items():
            known = highest.setdefault(model, {})
            known |= {name: max(score, known.get(name, 0.0)) for name, score in scores.items()}
    return highest


async def read_picture(source: str | Claim, tenant: str | None, claims: ClaimStore, max_bytes: int) -> bytes:
    """Raises PermanentError("image-too-large" · "asset-refused" · "asset-forbidden" · "asset-missing" · "asset-too-large")."""
    if isinstance(source, str):
        return await claims.fetch(source, tenant=tenant, max_bytes=max_bytes)
    if source.size > max_bytes:
        raise PermanentError(IMAGE_TOO_LARGE, f"{source.uri} has {source.size} bytes, more than MODERATION_MAX_BYTES, {max_bytes}.")
    return await claims.read(source, tenant=tenant)


def reported_labels(model: str, settings: ModerationSettings) -> list[str]:
    """The labels that a model can find; of NudeNet those with a threshold, because the others are of no concern here, such as faces."""
    return sorted(settings.label_thresholds) if model == "nudenet" else [UNSAFE]


def score_findings(picture: Input, scores: Scores, settings: ModerationSettings) -> Iterable[Finding]:
    """A finding for each reported label that the models see, most likely first."""
    return chain.from_iterable(model_findings(picture, checker, labels, settings) for checker, labels in scores.items())  # type: ignore[arg-type]


def model_findings(picture: Input, checker: CheckerName, labels: dict[str, float], settings: ModerationSettings) -> list[Finding]:
    thresholds = settings.label_thresholds if checker == "nudenet" else {UNSAFE: 1.0}
    return [
        Finding(
            input=picture.field,
            index=picture.index,
            label=label,
            score=round(min(score, 1.0), 4),
            flagged=score >= thresholds[label],
            checker=checker,
        )
        for label, score in sorted(labels.items(), key=lambda item: -item[1])
        if label in thresholds and score >= min(MIN_SCORE, thresholds[label])
    ]


def image_step_findings(command: Moderate) -> list[Finding]:
    return [
        Finding(input="images", index=index, label=UNSAFE, score=1, flagged=True, checker="image-step")
        for index, flagged in enumerate(command.flagged[: len(command.images)])
        if flagged
    ]
