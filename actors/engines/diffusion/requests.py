"""What the image engine is asked and what it answers. Plain data: importable without torch."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class LoraFile:
    """LoRA weights on the local disk. `origin` names them to people."""

    path: Path
    sha256: str
    scale: float
    origin: str

    @property
    def slot_key(self) -> tuple[str, float]:
        return self.sha256, self.scale


@dataclass(frozen=True)
class DiffusionRequest:
    """One order. Picture i is drawn with `seed` + i. `texts` go into each PNG beside what the engine writes itself."""

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
    """How the pictures were made; the pictures are the parcels, PNG, in the order of their seeds.

    `rungs`: what was done for want of memory. `largest_batch`: how many pictures shared a step with this order's, its own among them.
    """

    seeds: tuple[int, ...]
    png_metadata: dict[str, str]
    oom_fallbacks: tuple[str, ...]
    largest_batch: int
    flagged: tuple[bool, ...] = ()
