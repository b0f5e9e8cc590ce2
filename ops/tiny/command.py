"""`atelier models train-tiny`: the tiny models from nothing, on this machine's processor. Asked again, it goes on where it was left."""

import json
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from bus.logs import open_logs
from ops.errors import SetupError
from ops.tiny import critic, developer, grounding, painter, style, writer
from ops.tiny.card import critic_card, painter_card, writer_card
from ops.tiny.examining import examined
from ops.tiny.gallery import POOL, Gallery
from ops.tiny.measuring import measured
from ops.tiny.proofreading import proofread
from ops.tiny.training import Course, train

STATES = ".training"


def train_tiny(arguments: Namespace) -> int:
    """Writes the models, their styles and their cards under the folder."""
    open_logs("INFO")
    if unknown := set(arguments.models) - set(MAKERS):
        raise SetupError(f"No tiny model is called {', '.join(sorted(unknown))}; there are {', '.join(MAKERS)}.")
    folder, told = arguments.folder.resolve(), {}
    for name in arguments.models or MAKERS:
        began = time.monotonic()
        figures = MAKERS[name](folder, arguments.share, arguments.pictures)
        told[name] = {"folder": str(folder / name), "seconds": round(time.monotonic() - began, 1), "figures": figures}
    sys.stdout.write(json.dumps(told, indent=None if arguments.json else 2) + "\n")
    return 0


def make_painter(folder: Path, share: float, pictures: int) -> dict[str, Any]:
    import torch

    torch.manual_seed(0)
    pipeline, model = painter.build_painter(), folder / "tiny-shapes"
    train(shortened(developer.course(pipeline.vae), share), folder / STATES)
    for course in painter.courses(pipeline):
        train(shortened(course, share), folder / STATES)
    pipeline.to(dtype=torch.float16).save_pretrained(model, safe_serialization=True)
    styles = {name: folder / "loras" / f"tiny-{name}.safetensors" for name in style.STYLES}
    for name, file in styles.items():
        styled = painter.load_painter(model)
        train(shortened(style.learn(styled, name), share), folder / STATES)
        style.write_style(styled, name, file)
    figures = measured(model, styles, pictures)
    (model / "README.md").write_text(painter_card(figures))
    return figures


def make_critic(folder: Path, share: float, pictures: int) -> dict[str, Any]:
    import torch

    torch.manual_seed(0)
    (built, processor), model = critic.build_critic(), folder / "tiny-critic"
    gallery = Gallery(processor, max(32, round(share * POOL)), seed=0)
    head = grounding.Head(critic.TONGUE)
    train(shortened(critic.eye_course(built, gallery), share), folder / STATES)
    train(shortened(grounding.course(built, processor.tokenizer, gallery, head), share), folder / STATES)
    train(shortened(critic.course(built, processor, gallery, head), share), folder / STATES)
    built.eval().to(dtype=torch.float16).save_pretrained(model, safe_serialization=True)
    processor.save_pretrained(model)
    figures = examined(model, pictures) | {"parameters": sum(weight.numel() for weight in built.parameters())}
    (model / "README.md").write_text(critic_card(figures))
    return figures


def make_writer(folder: Path, share: float, pictures: int) -> dict[str, Any]:
    import torch

    torch.manual_seed(0)
    (built, tokenizer), model = writer.build_writer(), folder / "tiny-writer"
    train(shortened(writer.course(built, tokenizer), share), folder / STATES)
    built.eval().to(dtype=torch.float16).save_pretrained(model, safe_serialization=True)
    tokenizer.save_pretrained(model)
    figures = proofread(model, pictures) | {"parameters": sum(weight.numel() for weight in built.parameters())}
    (model / "README.md").write_text(writer_card(figures))
    return figures


MAKERS = {"tiny-shapes": make_painter, "tiny-critic": make_critic, "tiny-writer": make_writer}


def shortened(course: Course, share: float) -> Course:
    """The same with fewer steps, to try the way."""
    return Course(**(vars(course) | {"steps": max(1, round(course.steps * share))}))
