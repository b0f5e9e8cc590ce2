"""Texts that are drawn on pictures: one that no font can draw is refused when its order arrives, before anything is done for it.

The gateway knows the characters of the bundled fonts (contracts/drawn_characters.py). With further fonts set the workers alone know.
"""

from collections.abc import Iterator
from typing import Any

from contracts.drawn_characters import is_drawable
from contracts.drawn_text import find_missing, prepare_text
from contracts.wire import Step
from gateway.jobs.orders import Itinerary, JobOrder
from gateway.problems import HttpProblem
from gateway.settings import GatewaySettings

CURE = "Write it in other characters, or sign with a picture. If a font of the workers has it, set {} at the gateway too."
NOTHING_DRAWN = "nothing of it is drawn: it is blank, or emoji alone."
FONT_SETTINGS = {Step.WATERMARK: "WATERMARK_FONTS", Step.OVERLAY: "OVERLAY_FONTS"}


def check_drawn_texts(order: JobOrder, settings: GatewaySettings) -> None:
    """Raises HttpProblem(422, "glyph-missing" · "text-empty") for the first text that cannot be drawn; `param` names it."""
    for name, problem in find_drawing_problems(order, settings).items():
        code = "text-empty" if problem == NOTHING_DRAWN else "glyph-missing"
        raise HttpProblem(422, code, f"{name}: {problem}", param=name)


def find_drawing_problems(order: JobOrder, settings: GatewaySettings) -> dict[str, str]:
    """The field → what is wrong with its text. Emoji are no problem: they are left out, and a signature of nothing else is not drawn."""
    further_fonts = {Step.WATERMARK: settings.watermark_fonts, Step.OVERLAY: settings.overlay_fonts}
    problems = {}
    for name, step, text in find_texts(order):
        if further_fonts[step]:
            continue
        prepared = prepare_text(text, is_drawable)
        if missing := find_missing(prepared.text, is_drawable):
            problems[name] = f"{missing}. {CURE.format(FONT_SETTINGS[step])}"
        elif not prepared.text and step == Step.OVERLAY:
            problems[name] = NOTHING_DRAWN
    return problems


def find_texts(order: JobOrder) -> Iterator[tuple[str, Step, str]]:
    """Field, the step that draws its text, and the text. One behind a step that may write another is not known yet."""
    if isinstance(order, Itinerary):
        for number, stop in enumerate(order.stops):
            place = f"stops.{number}.arguments"
            if stop.step == Step.OVERLAY and isinstance(text := stop.arguments.get("text"), str):
                yield f"{place}.text", Step.OVERLAY, text
            if stop.step == Step.WATERMARK and (text := signature_text((order.variables | stop.arguments).get("signature"))):
                yield f"{place}.signature", Step.WATERMARK, text
        return
    if order.signature and (text := signature_text(order.signature.model_dump())):
        yield "signature", Step.WATERMARK, text
    if text := getattr(order, "text", None):
        yield "text", Step.OVERLAY, text


def signature_text(signature: Any) -> str | None:
    """The text that is drawn: none where a picture is the signature."""
    if not isinstance(signature, dict) or signature.get("image_uri"):
        return None
    text = signature.get("text")
    return text if isinstance(text, str) else None
