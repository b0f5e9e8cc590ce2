"""What a process takes for a Stable Diffusion checkpoint that is stored in float16 and loaded in float32, beside what the budget counts.

`python -m tests.support.process_memory` measures a small one, `… real` one of the real size of Stable Diffusion 1.5.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch

from actors.engines.diffusion.engine import DiffusionEngine
from actors.engines.diffusion.requests import DiffusionRequest
from actors.engines.diffusion.tiny_families import write_tiny_family
from actors.engines.diffusion.tiny_stable_diffusion import byte_tokenizer, default_scheduler
from actors.engines.settings import ImageSettings
from tests.support.engine_fixture import silent_host

SIZES: dict[str, dict[str, Any]] = {
    "medium": {"unet": (128, 256, 512, 512), "vae": (64, 128, 256, 256), "width": 512, "layers": 6},
    "real": {"unet": (320, 640, 1280, 1280), "vae": (128, 256, 512, 512), "width": 768, "layers": 12},
}


def write_checkpoint(folder: Path, size: str) -> None:
    """A checkpoint in float16 whose weights are all alike: only their number matters."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    sizes = SIZES[size]
    width, layers = sizes["width"], sizes["layers"]
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=width, block_out_channels=sizes["unet"])
        vae = AutoencoderKL(
            block_out_channels=sizes["vae"], layers_per_block=2, latent_channels=4, sample_size=512,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
        text = CLIPTextConfig(
            hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=8, vocab_size=49408,
            bos_token_id=512, eos_token_id=513, pad_token_id=513,
        )  # fmt: skip
        encoder = CLIPTextModel(text)
    for module in (unet, vae, encoder):
        module.half().to_empty(device="cpu")
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data.fill_(0) if tensor.dtype == torch.int64 else tensor.data.fill_(0.001)
    StableDiffusionPipeline(
        vae=vae, text_encoder=encoder, tokenizer=byte_tokenizer(), unet=unet, scheduler=default_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip


def measure(folder: Path, size: str) -> dict[str, float]:
    """Bytes: of the process before, of the files, what the budget counts before and after loading, and what the process grows by.

    A tiny model is loaded before, so that libraries are not counted.
    """
    checkpoint, tiny = folder / size, folder / "tiny"
    write_tiny_family("tiny-sd15", tiny)
    models = {size: str(checkpoint)}
    settings = ImageSettings(model=str(tiny), models=models, dtype="float32", threads=1, measure_seconds=0.0, hash_weights=False)
    engine = DiffusionEngine(settings, silent_host(folder))
    engine.models.default()
    before, counted = psutil.Process().memory_info().rss, engine.models.cache.used_bytes
    expected = engine.models._expected_bytes(str(checkpoint))
    engine.models.get(DiffusionRequest("a cat", seed=1, model=size))
    grown = psutil.Process().memory_info().rss - before
    counted = engine.models.cache.used_bytes - counted
    engine.close()
    files = sum(file.stat().st_size for file in checkpoint.rglob("*.safetensors"))
    return {"before": before, "files": files, "expected": expected, "counted": counted, "grown": grown}


def main(size: str, folder: str, action: str) -> None:
    """Written in one process and measured in another, whose memory the writing did not touch."""
    import subprocess

    if action == "write":
        write_checkpoint(Path(folder) / size, size)
    elif action == "measure":
        sys.stdout.write(f"{json.dumps(measure(Path(folder), size))}\n")
    else:
        with TemporaryDirectory(prefix="process-memory-") as temporary:
            for step in ("write", "measure"):
                subprocess.run([sys.executable, "-m", "tests.support.process_memory", size, temporary, step], check=True)


if __name__ == "__main__":
    main(*(sys.argv[1:] + ["medium", "", ""][len(sys.argv) - 1 :])[:3])
