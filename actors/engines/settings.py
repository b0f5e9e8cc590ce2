"""Limits of the executor and choices of the image engine. Durations are seconds, sizes are bytes."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

Seconds = Annotated[float, Field(gt=0)]
GIBIBYTE = 1 << 30


class ExecutorSettings(BaseSettings):
    """Read from variables that begin with `ENGINE_`."""

    model_config = SettingsConfigDict(env_prefix="ENGINE_", frozen=True, extra="ignore")

    step_seconds: Seconds | None = Field(None, description="A busy process that is silent for longer is killed. None: as its engine says.")
    load_seconds: Seconds = Field(900.0, description="The same while it loads a model.")
    stop_seconds: Seconds = Field(5.0, description="How long a process may take to leave when asked.")
    failures_before_open: int = Field(5, ge=1, description="Deaths in a row, nothing finished between; then the breaker opens.")
    first_wait_seconds: Seconds = Field(1.0, description="Before the second restart in a row; then it doubles.")
    longest_wait_seconds: Seconds = Field(30.0, description="Also the time that the breaker stays open before it tries once more.")
    memory_limit_bytes: int | None = Field(None, description="Address space of the process; not for CUDA, which maps far more.")


class ImageSettings(BaseSettings):
    """Read from variables that begin with `IMAGE_`, but for those that bear a name of the source system."""

    model_config = SettingsConfigDict(env_prefix="IMAGE_", frozen=True, extra="ignore", populate_by_name=True)

    model: str = Field("stable-diffusion-v1-5/stable-diffusion-v1-5", description="A folder or a hub id.")
    models: dict[str, str] = Field(default_factory=dict, description="Further models that an order may name: name → folder or hub id.")
    device: str = Field("auto", description="`auto`, `cpu`, `cuda:0` …; auto takes the first CUDA device, else the CPU.")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field("auto", description="auto: float16 on CUDA, float32 on a CPU.")
    threads: int | None = Field(None, ge=1, description="Of the CPU. None: as torch chooses.")
    max_concurrent_generations: int = Field(10, ge=1, le=200, validation_alias="MAX_CONCURRENT_GENERATIONS", description="Orders in hand.")
    max_rows: int = Field(10, ge=1, le=64, description="Pictures that advance together.")
    order_seconds: Seconds = Field(1500.0, description="One order may take so long; keep it below the broker's consumer_timeout.")
    decode_seconds: Seconds = Field(120.0, description="Decoding one order's pictures may take so long.")
    preview_seconds: Seconds = Field(1.0, description="At most one preview of an order in so many seconds.")
    warm: bool = Field(True, description="Load the model at start; False: at the first order.")
    memory_budget_bytes: int = Field(12 * GIBIBYTE, description="Of resident models. The least recently used leaves first.")
    pinned: bool = Field(True, description="IMAGE_MODEL never leaves.")
    local_cache: Path = Field(Path("~/.cache/atelier"), description="LoRAs, and copies of weights from a network disk.")
    copy_weights: Literal["auto", "always", "never"] = Field("auto", description="auto: a folder on a network disk is copied first.")
    lora_slots: int = Field(8, ge=1, le=64, description="LoRAs in the model's memory at once.")
    lora_max_bytes: int = Field(512 << 20, ge=1, description="A larger LoRA file is refused.")
    lora_max_rank: int = Field(256, ge=1, description="A LoRA of a higher rank is refused.")
    lora_cache_bytes: int = Field(8 * GIBIBYTE, description="On disk; the least recently used leaves first.")
    safety_checker: bool = Field(False, description="Flag pictures with the checkpoint's own checker; never paint them black.")
    hash_weights: bool = Field(True, description="Put the sha256 of the weights into the result. Costs a read of the files at load.")
