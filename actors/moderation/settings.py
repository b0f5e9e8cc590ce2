"""The settings of the moderate step. Without any of its checkers it knows only what the image step has found."""

from importlib.util import find_spec
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from actors.engines.moderation.engine import CheckOptions
from actors.engines.moderation.nudenet import LABELS

DEFAULT_THRESHOLDS = {
    "female-genitalia-exposed": 0.4,
    "male-genitalia-exposed": 0.4,
    "anus-exposed": 0.4,
    "female-breast-exposed": 0.4,
    "buttocks-exposed": 0.4,
}
"""The labels of NudeNet that are reported, each with the score from which it is flagged."""


class ModerationSettings(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, env_prefix="MODERATION_")

    words: Path | None = Field(None, description="The word list, a text file: `[category]`, then one word or phrase a line.")
    nudenet: bool = Field(False, description="Show pictures to NudeNet; needs the extra `moderation`.")
    checker: Path | None = Field(
        None,
        description="Show pictures to a Stable Diffusion safety checker: its folder, or that of a checkpoint that has one. Needs `models`.",
    )
    thresholds: dict[str, float] = Field(
        default_factory=dict,
        description="JSON, label of NudeNet → score from 0 to 1 from which it is flagged, beside the defaults: "
        + ", ".join(f"{label} {threshold:g}" for label, threshold in DEFAULT_THRESHOLDS.items()),
    )
    device: str = Field("cpu", description="Of the safety checker: `cpu`, `cuda:0` …; NudeNet always runs on the CPU.")
    threads: int = Field(1, ge=1, description="CPU threads of the models.")
    max_bytes: int = Field(32 << 20, ge=1, description="A larger picture is refused before it is read.")
    max_pixels: int = Field(25_000_000, ge=1, description="A picture with more is refused before it is decoded.")

    @field_validator("thresholds")
    @classmethod
    def check_thresholds(cls, thresholds: dict[str, float]) -> dict[str, float]:
        if unknown := sorted(thresholds.keys() - set(LABELS)):
            raise ValueError(f"NudeNet has no label {', '.join(unknown)}; it has {', '.join(LABELS)}")
        if outside := sorted(label for label, threshold in thresholds.items() if not 0 <= threshold <= 1):
            raise ValueError(f"a threshold is a score from 0 to 1: {', '.join(outside)}")
        return thresholds

    @model_validator(mode="after")
    def require_libraries(self) -> Self:
        """What is configured and not installed stops the worker at its start: pictures must not pass unchecked."""
        if self.nudenet and (missing := [name for name in ("nudenet", "onnxruntime", "numpy") if find_spec(name) is None]):
            raise ValueError(f"MODERATION_NUDENET needs {', '.join(missing)}: install the extra `moderation`, or leave it off")
        if self.checker and (missing := [name for name in ("torch", "diffusers", "transformers") if find_spec(name) is None]):
            raise ValueError(f"MODERATION_CHECKER needs {', '.join(missing)}: install the extra `models`, or leave it empty")
        return self

    @property
    def label_thresholds(self) -> dict[str, float]:
        return DEFAULT_THRESHOLDS | self.thresholds

    @property
    def check_options(self) -> CheckOptions:
        return CheckOptions(self.nudenet, self.checker, self.device, self.threads)
