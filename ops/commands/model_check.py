"""`atelier models check`: what a model folder is, what it takes in memory and which LoRAs fit it, before anything is served."""

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from actors.engines.settings import ImageSettings
from bus.masking import mask_text
from ops.commands.work_limits import limited_work
from ops.errors import SetupError

LIMIT_SECONDS = 120.0
LIMIT_BYTES = 8 << 30
"""Of the time and the memory that a folder may take; libraries are imported before."""
MAX_LORA_FILES = 1000
GIBIBYTE = 1 << 30


def check_model(arguments: Namespace) -> int:
    """0: the checkpoint can be served, and every LoRA file fits. 1: it cannot, or one of them does not fit."""
    loras = find_lora_files(arguments.loras) if arguments.loras else []
    report = examine_model(arguments.model, loras)
    sys.stdout.write(json.dumps(report, indent=2) + "\n" if arguments.json else format_report(report))
    return 0 if report["fits"] and all(lora["fits"] for lora in report.get("loras", [])) else 1


def find_lora_files(path: Path) -> list[Path]:
    """A file, or the safetensors files in a folder and in the adapter folders in it. Raises SetupError for none and for too many."""
    if not path.is_dir():
        return [path]
    files = sorted(file for pattern in ("*.safetensors", "*/adapter_model.safetensors") for file in path.glob(pattern) if file.is_file())
    if not files:
        raise SetupError(f"{path} has no LoRA file: neither *.safetensors nor */adapter_model.safetensors is in it.")
    if len(files) > MAX_LORA_FILES:
        raise SetupError(f"{path} has {len(files)} LoRA files; name a folder with at most {MAX_LORA_FILES}.")
    return files


def examine_model(folder: Path, lora_files: list[Path]) -> dict[str, Any]:
    """The report, as JSON. `problem`: why no engine can serve the folder."""
    from actors.engines.diffusion.empty_model import silence_libraries
    from ops.commands.model_report import report_model

    silence_libraries()
    report: dict[str, Any] = {"folder": str(folder), "fits": False, "problem": None}
    settings = ImageSettings()
    try:
        with limited_work(LIMIT_SECONDS, LIMIT_BYTES):
            described, family = report_model(folder, settings)
            report |= described | {"fits": True}
            if lora_files and family is None:
                raise SetupError(f"{folder} is a {described['kind']}: the LoRAs that --loras names are for image models.")
            if family:
                report["loras"] = examine_loras(lora_files, family, settings)
    except SetupError:
        raise
    except Exception as error:  # a folder of unknown origin: libraries raise any kind
        report |= {"fits": False, "problem": mask_text(describe_problem(error))}
    return report


def examine_loras(files: list[Path], family: Any, settings: ImageSettings) -> list[dict[str, Any]]:
    """Raises SetupError when they take longer than what is left of the limit: nothing is known of the model's faults from that."""
    from ops.commands.model_report import report_loras

    try:
        return report_loras(files, family, settings)
    except TimeoutError as error:
        raise SetupError(f"{error} to examine the model and {len(files)} LoRA files: name fewer of them with --loras.") from None


def describe_problem(error: Exception) -> str:
    """In one line. What a library raises has the kind of the error before it."""
    text = mask_text(" ".join(str(error).split()))[:1000]
    if isinstance(error, ValueError | OSError) and text:
        return text
    return f"it cannot be examined ({type(error).__name__}{': ' if text else ''}{text})"


def format_report(report: dict[str, Any]) -> str:
    if report["problem"]:
        return f"{report['folder']}: cannot be served: {report['problem']}\n"
    lines = [f"{report['folder']}: {report['family']}, {report['kind']} ({report['class']})"]
    lines += [f"  {name:<11} {text}" for name, text in describe_model(report)]
    if report.get("loras"):
        lines.append(f"  {'LoRAs':<11} {sum(lora['fits'] for lora in report['loras'])} of {len(report['loras'])} fit")
        lines += [f"    {lora['file']}: {describe_lora(lora)}" for lora in report["loras"]]
    return "\n".join(lines) + "\n"


def describe_model(report: dict[str, Any]) -> list[tuple[str, str]]:
    """What it is, by title."""
    lines = [("parts", ", ".join(f"{part} {name}" for part, name in report["parts"].items()))] if "parts" in report else []
    for dtype, parts in report["memory_bytes"].items():
        shares = ", ".join(f"{part} {format_bytes(size)}" for part, size in parts.items() if part != "total")
        lines.append((dtype, format_bytes(parts["total"]) + (f" ({shares})" if shares else "")))
    if "context_tokens" in report:
        lines += [("context", f"{report['context_tokens']} tokens"), ("quantized", ", ".join(report["quantization"]) or "no bitsandbytes")]
    if defaults := report.get("defaults"):
        sizes = report["sizes"]
        size = f"{defaults['width']}×{defaults['height']}"
        lines += [
            ("defaults", f"{size}, {defaults['steps']} steps, guidance {defaults['guidance_scale']:g}, {defaults['scheduler']}"),
            ("sizes", f"{sizes['shortest']} to {sizes['longest']} pixels, multiples of {sizes['multiple_of']}"),
            ("edits", ", ".join(report["edits"]) + ("" if report["text_to_image"] else "; it draws nothing from a prompt alone")),
            ("schedulers", ", ".join(report["schedulers"])),
        ]
    return lines


def describe_lora(lora: dict[str, Any]) -> str:
    return (
        f"fits: {', '.join(lora['methods'])} of rank {lora['rank']} on {lora['layers']} layers"
        if lora["fits"]
        else f"does not fit: {lora['problem']}"
    )


def format_bytes(size: int) -> str:
    return f"{size / GIBIBYTE:.3g} GiB" if size >= GIBIBYTE else f"{size / (1 << 20):.3g} MiB"
