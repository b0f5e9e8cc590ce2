"""`atelier models train-tiny`: trains the tiny models from scratch, on the CPU. Run again, it resumes an interrupted training."""

import json
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from bus.observability.logs import configure_logging
from ops.errors import SetupError
from training import autoencoder, grounding, style_loras, tiny_critic, tiny_shapes, tiny_writer
from training.evaluate_critic import evaluate_critic
from training.evaluate_shapes import evaluate_shapes
from training.evaluate_writer import evaluate_writer
from training.model_cards import critic_card, shapes_card, writer_card
from training.poster_dataset import DATASET_SIZE, PosterDataset
from training.trainer import TrainingRun, train

STATE_FOLDER = ".training"


def train_tiny(arguments: Namespace) -> int:
    """Writes the models, their style LoRAs and their model cards under the folder."""
    configure_logging("INFO")
    if unknown := set(arguments.models) - set(TRAINERS):
        raise SetupError(f"No tiny model is called {', '.join(sorted(unknown))}; there are {', '.join(TRAINERS)}.")
    folder, report = arguments.folder.resolve(), {}
    for name in arguments.models or TRAINERS:
        began = time.monotonic()
        figures = TRAINERS[name](folder, arguments.share, arguments.pictures)
        report[name] = {"folder": str(folder / name), "seconds": round(time.monotonic() - began, 1), "figures": figures}
    sys.stdout.write(json.dumps(report, indent=None if arguments.json else 2) + "\n")
    return 0


def train_shapes(folder: Path, step_share: float, sample_count: int) -> dict[str, Any]:
    import torch

    torch.manual_seed(0)
    pipeline, model_folder = tiny_shapes.build_pipeline(), folder / "tiny-shapes"
    train(scale_steps(autoencoder.autoencoder_run(pipeline.vae), step_share), folder / STATE_FOLDER)
    for run in tiny_shapes.training_runs(pipeline):
        train(scale_steps(run, step_share), folder / STATE_FOLDER)
    pipeline.to(dtype=torch.float16).save_pretrained(model_folder, safe_serialization=True)
    styles = {name: folder / "loras" / f"tiny-{name}.safetensors" for name in style_loras.STYLES}
    for name, file in styles.items():
        styled = tiny_shapes.load_pipeline(model_folder)
        train(scale_steps(style_loras.add_style_adapter(styled, name), step_share), folder / STATE_FOLDER)
        style_loras.save_lora(styled, name, file)
    figures = evaluate_shapes(model_folder, styles, sample_count)
    (model_folder / "README.md").write_text(shapes_card(figures))
    return figures


def train_critic(folder: Path, step_share: float, sample_count: int) -> dict[str, Any]:
    import torch

    torch.manual_seed(0)
    (critic, processor), model_folder = tiny_critic.build_critic(), folder / "tiny-critic"
    dataset = PosterDataset(processor, max(32, round(step_share * DATASET_SIZE)), seed=0)
    head = grounding.GroundingHead(tiny_critic.LANGUAGE_WIDTH)
    train(scale_steps(tiny_critic.vision_run(critic, dataset), step_share), folder / STATE_FOLDER)
    train(scale_steps(grounding.grounding_run(critic, processor.tokenizer, dataset, head), step_share), folder / STATE_FOLDER)
    train(scale_steps(tiny_critic.language_run(critic, processor, dataset, head), step_share), folder / STATE_FOLDER)
    critic.eval().to(dtype=torch.float16).save_pretrained(model_folder, safe_serialization=True)
    processor.save_pretrained(model_folder)
    figures = evaluate_critic(model_folder, sample_count) | {"parameters": sum(weight.numel() for weight in critic.parameters())}
    (model_folder / "README.md").write_text(critic_card(figures))
    return figures


def train_writer(folder: Path, step_share: float, sample_count: int) -> dict[str, Any]:
    import torch

    torch.manual_seed(0)
    (writer, tokenizer), model_folder = tiny_writer.build_writer(), folder / "tiny-writer"
    train(scale_steps(tiny_writer.writer_run(writer, tokenizer), step_share), folder / STATE_FOLDER)
    writer.eval().to(dtype=torch.float16).save_pretrained(model_folder, safe_serialization=True)
    tokenizer.save_pretrained(model_folder)
    figures = evaluate_writer(model_folder, sample_count) | {"parameters": sum(weight.numel() for weight in writer.parameters())}
    (model_folder / "README.md").write_text(writer_card(figures))
    return figures


TRAINERS = {"tiny-shapes": train_shapes, "tiny-critic": train_critic, "tiny-writer": train_writer}


def scale_steps(run: TrainingRun, share: float) -> TrainingRun:
    """The same run with a share of its steps."""
    return TrainingRun(**(vars(run) | {"steps": max(1, round(run.steps * share))}))
