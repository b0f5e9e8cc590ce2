"""Requests and results of the diffusion engine. Plain data: importable without torch."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from actors.engines.diffusion.lora.strength import AdapterConfig
from contracts.claim import ImageFormat
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
        """What the weights in memory depend on: orders with another scale share them."""
        return self.sha256, self.config, self.assumed_alpha, self.assumed_from


@dataclass(frozen=True)
class InputPicture:
    """Decoded pixels: `mode` RGB (three bytes a pixel) or L (one), row by row."""

    mode: Literal["RGB", "L"]
    width: int
    height: int
    pixels: bytes


@dataclass(frozen=True)
class EditSource:
    """`mask`: mode L, of the size of `image`; values of 128 and more are drawn anew. None: the whole picture is."""

    image: InputPicture
    mask: InputPicture | None = None
    strength: float = 0.8


@dataclass(frozen=True)
class ControlSource:
    """`model`: a name from IMAGE_CONTROLNETS."""

    image: InputPicture
    model: str
    scale: float = 1.0


@dataclass(frozen=True)
class DiffusionRequest:
    """One order. Image i has the seed `seed` + i. `metadata` goes into each file beside the engine's own.

    What is None is the family's default. `deterministic`: each image in calls of its own, so that it is bit-identical in any batch.
    """

    prompt: str
    seed: int
    negative_prompt: str = ""
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    scheduler: str | None = None
    count: int = 1
    model: str = ""
    loras: tuple[LoraFile, ...] = ()
    edit: EditSource | None = None
    control: ControlSource | None = None
    deterministic: bool = False
    preview: bool = False
    output_format: ImageFormat = "png"
    quality: int | None = None
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ResolvedRequest(DiffusionRequest):
    """An order with every parameter that its model's family decides; see `request_check.resolve_request`."""

    width: int = 0
    height: int = 0
    steps: int = 0
    guidance_scale: float = 0.0
    scheduler: str = ""


@dataclass(frozen=True)
class DiffusionResult:
    """How the images were made; the images are the output files, in the order of their seeds.

    `oom_fallbacks`: those that were applied. `largest_batch`: the most images in one step with this order's, including its own.
    """

    seeds: tuple[int, ...]
    metadata: dict[str, str]
    oom_fallbacks: tuple[str, ...]
    largest_batch: int
    family: str
    width: int
    height: int
    steps: int
    guidance_scale: float
    flagged: tuple[bool, ...] = ()
