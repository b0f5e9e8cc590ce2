"""Requests and results of the diffusion engine. Plain data: importable without torch."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path

from actors.engines.diffusion.lora.strength import AdapterConfig
from contracts.image import AlphaSource


@dataclass(frozen=True)
class LoraFile:
    """LoRA weights on the local disk. `origin` is their address, for messages.

    `config`: that beside the weights. `assumed_alpha`: for layers of which neither it nor the weights say alpha; None: the rank.
    """

    path: Path
    sha256: str
    scale: float
    origin: str
    config: AdapterConfig | None = None
    assumed_alpha: float | None = None
    assumed_from: AlphaSource = "assumed"

    @property
    def slot_key(self) -> Hashable:
        return self.sha256, self.scale, self.config, self.assumed_alpha, self.assumed_from


@dataclass(frozen=True)
class DiffusionRequest:
    """One order. Image i has the seed `seed` + i. `png_metadata` goes into each PNG beside the engine's own.

    `deterministic`: each image in UNet calls of its own, so that it is bit-identical in any batch.
    """

    prompt: str
    seed: int
    negative_prompt: str = ""
    width: int = 512
    height: int = 512
    steps: int = 50
    guidance_scale: float = 7.5
    scheduler: str = "dpm++"
    count: int = 1
    model: str = ""
    lora: LoraFile | None = None
    deterministic: bool = False
    preview: bool = False
    png_metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DiffusionResult:
    """How the images were made; the images are the output files, PNG, in the order of their seeds.

    `oom_fallbacks`: those that were applied. `largest_batch`: the most images in one step with this order's, including its own.
    `prompt_tokens_left_out`: at the end of each prompt, beyond the text encoder's limit.
    """

    seeds: tuple[int, ...]
    png_metadata: dict[str, str]
    oom_fallbacks: tuple[str, ...]
    largest_batch: int
    flagged: tuple[bool, ...] = ()
    prompt_tokens_left_out: int = 0
    negative_prompt_tokens_left_out: int = 0
