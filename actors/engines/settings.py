"""Settings of the executor and of the image engine. Durations are seconds, sizes are bytes."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

Seconds = Annotated[float, Field(gt=0)]
GIBIBYTE = 1 << 30


class ExecutorSettings(BaseSettings):
    """Environment variables that begin with `ENGINE_`."""

    model_config = SettingsConfigDict(env_prefix="ENGINE_", frozen=True, extra="ignore")

    step_seconds: Seconds | None = Field(
        None, description="A busy process without a heartbeat for so long is killed. None: as its engine says."
    )
    load_seconds: Seconds = Field(900.0, description="The same while a model is loaded.")
    stop_seconds: Seconds = Field(5.0, description="How long a process may take to exit when requested to stop.")
    failures_before_open: int = Field(5, ge=1, description="Process exits in a row, no request finished between; opens the breaker.")
    first_wait_seconds: Seconds = Field(1.0, description="Delay before the second restart in a row; then it doubles.")
    longest_wait_seconds: Seconds = Field(30.0, description="The longest restart delay; also the one while the breaker is open.")
    memory_limit_bytes: int | None = Field(None, description="Limit of the process's address space; not for CUDA, which maps far more.")


class ImageSettings(BaseSettings):
    """Environment variables that begin with `IMAGE_`, except those that have a name of the source system."""

    model_config = SettingsConfigDict(env_prefix="IMAGE_", frozen=True, extra="ignore", populate_by_name=True)

    model: str = Field("stable-diffusion-v1-5/stable-diffusion-v1-5", description="A folder or a hub id.")
    models: dict[str, str] = Field(default_factory=dict, description="Further models that a request may name: name → folder or hub id.")
    families: list[str] = Field(
        default_factory=list, description="Model families beside those of the product: `package.module:Class`, subclasses of Family."
    )
    loras: dict[str, str] = Field(default_factory=dict, description="LoRAs that an order may name: name → address.")
    controlnets: dict[str, str] = Field(default_factory=dict, description="ControlNets that an order may name: name → folder or hub id.")
    device: str = Field("auto", description="`auto`, `cpu`, `cuda:0` …; auto: the first CUDA device, else the CPU.")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field("auto", description="auto: float16 on CUDA, float32 on a CPU.")
    threads: int | None = Field(None, ge=1, description="CPU threads of torch. None: torch's own choice.")
    max_concurrent_generations: int = Field(
        10, ge=1, le=200, validation_alias="MAX_CONCURRENT_GENERATIONS", description="Requests in flight: the prefetch."
    )
    max_rows: int = Field(10, ge=1, le=64, description="Images that share a denoising step.")
    measure_seconds: float = Field(
        10.0,
        ge=0,
        description="How long a model that was loaded may take to measure with how many rows a step pays; 0: no limit but IMAGE_MAX_ROWS.",
    )
    order_seconds: Seconds = Field(1500.0, description="Timeout of one request; keep it below the broker's consumer_timeout.")
    decode_seconds: Seconds = Field(120.0, description="Timeout for encoding the pictures of one request, and for decoding its images.")
    preview_seconds: float = Field(1.0, ge=0, description="The shortest time between two previews of a request; 0: no previews.")
    warm: bool = Field(True, description="Load the model at start; False: at the first request.")
    memory_budget_bytes: int = Field(12 * GIBIBYTE, description="Of the models in memory. The least recently used is evicted first.")
    pinned: bool = Field(True, description="IMAGE_MODEL is never evicted.")
    local_cache: Path = Field(Path("~/.cache/atelier"), description="Folder for LoRA files and for copies of weights from a network disk.")
    copy_weights: Literal["auto", "always", "never"] = Field("auto", description="auto: a folder on a network disk is copied first.")
    input_max_bytes: int = Field(32 << 20, ge=1, description="A larger picture of `edit` or `control` is refused before it is read.")
    input_max_pixels: int = Field(25_000_000, ge=1, description="The same for one with more pixels, before it is decoded.")
    lora_slots: int = Field(8, ge=1, le=64, description="LoRAs in the memory of one model.")
    lora_max_bytes: int = Field(512 << 20, ge=1, description="A larger LoRA file is refused.")
    lora_max_rank: int = Field(256, ge=1, description="A LoRA of a higher rank is refused.")
    lora_alpha: float | None = Field(
        None,
        gt=0,
        description="Alpha of LoRAs of which neither the weights nor `adapter_config.json` nor the order says it. Empty: the rank.",
    )
    lora_cache_bytes: int = Field(8 * GIBIBYTE, description="Size of the LoRA files on disk; the least recently used is deleted first.")
    prompt_cache_bytes: int = Field(
        64 << 20, ge=0, description="Encoded prompts that a model keeps, so that orders with the same prompt encode it once. 0: off."
    )
    offload_text_encoders: Literal["auto", "always", "never"] = Field(
        "auto", description="Keep the text encoders in the main memory while nothing is encoded. auto: on CUDA where memory is short."
    )
    quantize: Literal["none", "int8", "nf4", "fp8"] = Field(
        "none", description="Of the blocks of the U-Net or transformer: bitsandbytes (int8, nf4) or float8 as storage (fp8)."
    )
    channels_last: bool = Field(False, description="U-Net and VAE in the layout that tensor cores read.")
    compile: bool = Field(False, description="Compile the repeated blocks of the U-Net or transformer when a model is loaded.")
    block_cache_threshold: float = Field(
        0.0,
        ge=0,
        description="First-block caching: a row whose first block changed by less, relative to its mean, leaves out the others. 0: off.",
    )
    safety_checker: bool = Field(False, description="Flag images with the checkpoint's own checker; they are never painted black.")
    hash_weights: bool = Field(True, description="Put the sha256 of the weights into the result; the files are read once at load.")
