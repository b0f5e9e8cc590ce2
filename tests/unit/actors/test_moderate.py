"""The moderate step: what is checked, by which checker, and what is refused; with the real detector in its process."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image
from pydantic import ValidationError

from actors.moderate import Input, model_findings, open_moderate
from actors.moderation.picture_frames import MAX_FRAMES
from actors.moderation.settings import ModerationSettings
from bus.actor import Context, Handler, Resources
from bus.errors import PermanentError
from bus.storage.claim_store import ClaimStore
from contracts.image import ImageDone
from contracts.moderate import Moderate, ModerateDone
from contracts.steps import COMMANDS, RESULTS
from tests.support.actor_context import make_context
from tests.support.moderated_pictures import as_png, draw_harmless_picture, draw_suspicious_picture
from tests.support.picture_files import encode

OpenModerate = Callable[..., AbstractAsyncContextManager[Handler]]


@pytest.fixture
def moderation(claims: ClaimStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OpenModerate:
    """Opens the step with settings, by default with a list of two words and without a checker of pictures."""

    def open_step(**settings: str) -> AbstractAsyncContextManager[Handler]:
        (tmp_path / "words.txt").write_text("[violence]\nkill yourself\n[house-rules]\n도박\n")
        for name, value in ({"words": str(tmp_path / "words.txt")} | settings).items():
            monkeypatch.setenv(f"MODERATION_{name.upper()}", value)
        return open_moderate(Resources(claims=claims))

    return open_step


async def run(handle: Handler, context: Context | None = None, **command: Any) -> ModerateDone:
    done = await handle(Moderate.model_validate(command), context or make_context())
    assert isinstance(done, ModerateDone)
    return done


def summary(done: ModerateDone) -> list[tuple[str, int, str, bool, str]]:
    return [(found.input, found.index, found.label, found.flagged, found.checker) for found in done.moderation]


@contextmanager
def refused(code: str, text: str = ".") -> Iterator[None]:
    with pytest.raises(PermanentError, match=text) as caught:
        yield
    assert caught.value.code == code


async def test_each_text_is_compared_with_the_word_list(moderation: OpenModerate) -> None:
    async with moderation() as handle:
        done = await run(handle, prompt="a fox", text="Kill yourself", texts=["도박은", "fine", "kill yourself, 도박"])
        allowed = await run(handle, prompt="a fox", texts=["", "skill yourself"])
    assert summary(done) == [
        ("text", 0, "violence", True, "word-list"),
        ("texts", 0, "house-rules", True, "word-list"),
        ("texts", 2, "house-rules", True, "word-list"),
        ("texts", 2, "violence", True, "word-list"),
    ]
    assert (done.allowed, done.checked_by) == (False, {"word-list": ["house-rules", "violence"]})
    assert (allowed.allowed, allowed.moderation, allowed.checked_by) == (True, [], done.checked_by)
    assert {found.score for found in done.moderation} == {1.0}


async def test_pictures_are_shown_to_the_detector_of_the_package(moderation: OpenModerate, claims: ClaimStore) -> None:
    """Each by itself, in a process of its own; labels without a threshold are not reported."""
    bad, good = [
        (await claims.write(as_png(picture), tenant="shop", media_type="image/png")).model_dump()
        for picture in (draw_suspicious_picture(), draw_harmless_picture())
    ]
    context = make_context(tenant="shop")
    async with moderation(nudenet="on", thresholds='{"face-male": 0.9}') as handle:
        done = await run(handle, context, images=[good, bad], image=bad)
        both = await asyncio.gather(run(handle, context, image=good), run(handle, context, image=bad, prompt="도박"))
    flagged = [found for found in done.moderation if found.flagged]
    assert [(found.input, found.index, found.label) for found in flagged] == [
        ("image", 0, "buttocks-exposed"),
        ("images", 1, "buttocks-exposed"),
    ]
    assert all(0.6 < found.score < 0.9 for found in flagged)
    assert "face-male" in done.checked_by["nudenet"]
    assert "face-female" not in done.checked_by["nudenet"]
    assert [result.allowed for result in both] == [True, False]
    assert list(both[1].checked_by) == ["word-list", "nudenet"]


async def test_threshold_decides_what_is_flagged(moderation: OpenModerate, claims: ClaimStore) -> None:
    claim = (await claims.write(as_png(draw_suspicious_picture()), tenant=None, media_type="image/png")).model_dump()
    async with moderation(nudenet="on", thresholds='{"buttocks-exposed": 0.95}') as handle:
        done = await run(handle, image=claim)
    assert done.allowed
    assert ("image", 0, "buttocks-exposed", False, "nudenet") in summary(done)


async def test_finding_of_the_image_step_is_read_from_the_slip(moderation: OpenModerate, claims: ClaimStore) -> None:
    """Nothing but that finding is needed; a picture that the image step has not seen is unchecked, and refused."""
    claim = (await claims.write(as_png(draw_harmless_picture()), tenant=None, media_type="image/png")).model_dump()
    async with moderation() as handle:
        done = await run(handle, images=[claim, claim], flagged=[False, True])
        assert summary(done) == [("images", 1, "unsafe", True, "image-step")]
        assert (done.allowed, done.checked_by) == (False, {"image-step": ["unsafe"]})
        assert (await run(handle, images=[claim], flagged=[False, True])).allowed, "overlay leaves the first picture"
        with refused("moderation-unconfigured", "1 of 3 pictures"):
            await run(handle, images=[claim, claim, claim], flagged=[False, False])
        with refused("moderation-unconfigured", "1 of 2 pictures"):
            await run(handle, images=[claim], image=claim, flagged=[False])


async def test_input_that_nothing_checks_is_refused(moderation: OpenModerate, claims: ClaimStore) -> None:
    claim = (await claims.write(as_png(draw_harmless_picture()), tenant=None, media_type="image/png")).model_dump()
    async with moderation() as handle:
        with refused("moderation-empty"):
            await run(handle)
        with refused("moderation-unconfigured", "MODERATION_NUDENET"):
            await run(handle, image=claim)
        with refused("moderation-unconfigured", "MODERATION_NUDENET"):
            await run(handle, image_urls=["https://example.com/a.png"])
    async with moderation(words="") as handle:
        with refused("moderation-unconfigured", r"\(prompt, text\).*MODERATION_WORDS"):
            await run(handle, prompt="a", text="b")


async def test_hostile_pictures_are_refused_and_the_next_one_is_checked(moderation: OpenModerate, claims: ClaimStore) -> None:
    async def write(data: bytes) -> dict[str, Any]:
        return (await claims.write(data, tenant=None, media_type="image/png")).model_dump()

    good = as_png(draw_harmless_picture())
    async with moderation(nudenet="on", max_pixels="80000", max_bytes="1000000") as handle:
        for data, code in (
            (b"no picture", "image-unreadable"),
            (good[: len(good) // 2], "image-unreadable"),
            (b"\0" * 1_000_001, "image-too-large"),
        ):
            with refused(code):
                await run(handle, image=await write(data))
        with refused("image-too-large", "80000 pixels"):
            await run(handle, image=await write(as_png(draw_suspicious_picture())))
        assert (await run(handle, image=await write(good))).allowed


async def test_pictures_of_other_tenants_are_refused(moderation: OpenModerate, claims: ClaimStore) -> None:
    foreign = (await claims.write(as_png(draw_harmless_picture()), tenant="shop", media_type="image/png")).model_dump()
    async with moderation(nudenet="on") as handle:
        with refused("claim-refused"):
            await run(handle, make_context(tenant="office"), images=[foreign])
        with refused("asset-refused"):
            await run(handle, make_context(tenant="office"), image_urls=[foreign["uri"]])
        assert (await run(handle, make_context(tenant="shop"), images=[foreign])).allowed


async def test_word_list_that_cannot_be_read_stops_the_worker(moderation: OpenModerate, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        async with moderation(words=str(tmp_path / "missing.txt")):
            pass


@pytest.mark.parametrize(("setting", "package", "extra"), [("nudenet", "onnxruntime", "moderation"), ("checker", "torch", "models")])
def test_configured_checker_whose_libraries_are_missing_stops_the_worker(
    monkeypatch: pytest.MonkeyPatch, setting: str, package: str, extra: str
) -> None:
    monkeypatch.setattr("actors.moderation.settings.find_spec", lambda name: None if name == package else find_spec(name))
    ModerationSettings()
    with pytest.raises(ValidationError, match=f"MODERATION_{setting.upper()} needs {package}: install the extra `{extra}`"):
        ModerationSettings.model_validate({setting: "1"})


@pytest.mark.parametrize(
    ("thresholds", "problem"), [('{"knees": 0.5}', "no label knees; it has female"), ('{"anus-exposed": 1.5}', "from 0 to 1")]
)
def test_threshold_of_unknown_label_or_range_stops_the_worker(monkeypatch: pytest.MonkeyPatch, thresholds: str, problem: str) -> None:
    monkeypatch.setenv("MODERATION_THRESHOLDS", thresholds)
    with pytest.raises(ValidationError, match=problem):
        ModerationSettings()


def test_result_replaces_no_argument_of_another_step() -> None:
    """Its fields become variables of the slip, as those of the image step do, of which one is read here. Every result may have device
    seconds, which no command reads."""
    arguments = {name for step, command in COMMANDS.items() for name in command.model_fields}
    results = {name for step, result in RESULTS.items() if step != "moderate" for name in result.model_fields}
    assert ModerateDone.model_fields.keys() & (arguments | results) == {"device_seconds"}
    assert "device_seconds" not in arguments
    assert ImageDone.model_fields["flagged"].annotation == Moderate.model_fields["flagged"].annotation


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP"])
@pytest.mark.parametrize("place", [0, 1, 6])
async def test_every_frame_of_an_animation_is_checked(moderation: OpenModerate, claims: ClaimStore, image_format: str, place: int) -> None:
    """The frame that is seen, or that hides, anywhere; of one picture there is one finding for a label."""
    frames = [draw_harmless_picture().resize((320, 320)).rotate(90 * index) for index in range(7)]
    frames[place] = draw_suspicious_picture()
    claim = await write_animation(claims, frames, image_format)
    async with moderation(nudenet="on") as handle:
        done = await run(handle, image=claim)
        frames[place] = draw_harmless_picture().resize((320, 320))
        assert (await run(handle, image=await write_animation(claims, frames, image_format))).allowed
    assert summary(done) == [("image", 0, "buttocks-exposed", True, "nudenet")]


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP"])
async def test_animation_of_more_frames_or_pixels_than_are_checked_is_refused(
    moderation: OpenModerate, claims: ClaimStore, image_format: str
) -> None:
    """None is left out: a picture of which a part is unchecked must not pass."""
    frames = [Image.effect_noise((64, 64), 50).convert("RGB") for _ in range(MAX_FRAMES + 1)]
    async with moderation(nudenet="on", max_pixels=str(64 * 64 * MAX_FRAMES)) as handle:
        with refused("image-too-costly", f"has 51 frames; at most {MAX_FRAMES} are checked"):
            await run(handle, image=await write_animation(claims, frames, image_format))
        assert (await run(handle, image=await write_animation(claims, frames[1:], image_format))).allowed
        larger = [frame.resize((65, 64)) for frame in frames[1:]]
        with refused("image-too-large", "65×64 with 50 frames"):
            await run(handle, image=await write_animation(claims, larger, image_format))


async def write_animation(claims: ClaimStore, frames: list[Image.Image], image_format: str) -> dict[str, Any]:
    data = encode(frames[0], image_format, save_all=True, append_images=frames[1:], duration=10)
    return (await claims.write(data, tenant=None, media_type=f"image/{image_format.lower()}")).model_dump()


async def test_label_with_a_low_threshold_is_flagged_below_the_score_that_others_are_reported_from() -> None:
    picture = Input("image", 0, "https://example.com/a.png")
    settings = ModerationSettings(thresholds={"belly-exposed": 0.02, "belly-covered": 0.9})
    scores = {"belly-exposed": 0.03, "belly-covered": 0.04, "face-male": 0.9}
    assert [(found.label, found.flagged) for found in model_findings(picture, "nudenet", scores, settings)] == [("belly-exposed", True)]


@pytest.mark.parametrize("threshold", [0.0, 0.01, 0.05, 0.5, 1.0])
async def test_score_that_reaches_the_threshold_is_always_reported_as_flagged(threshold: float) -> None:
    settings = ModerationSettings(thresholds={"belly-exposed": threshold})
    for score in (threshold, min(1.0, threshold + 0.001)):
        (found,) = model_findings(Input("image", 0, "x"), "nudenet", {"belly-exposed": score}, settings)
        assert found.flagged


async def test_pictures_at_once_take_one_decoder_and_little_memory(moderation: OpenModerate, claims: ClaimStore) -> None:
    """Four pictures as large as is allowed have 400 MB of pixels; the worker gets them reduced, one after the other."""
    data = encode(Image.new("RGBA", (5000, 5000), (200, 30, 30, 128)), "PNG")
    claim = (await claims.write(data, tenant=None, media_type="image/png")).model_dump()
    this = psutil.Process()
    async with moderation(nudenet="on") as handle:
        before, decoders, most = this.memory_info().rss, decoder_processes(), 0
        runs = asyncio.gather(*(run(handle, image=claim) for _ in range(4)))
        while not runs.done():
            most = max(most, this.memory_info().rss - before)
            assert len(decoder_processes() - decoders) <= 1
            await asyncio.sleep(0.01)
        assert all(done.allowed for done in await runs)
    assert most < 60 << 20


def decoder_processes() -> set[int]:
    return {child.pid for child in psutil.Process().children() if "actors.decoding.process" in child.cmdline()}
