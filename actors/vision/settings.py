"""The settings of the vision actors. Names are those of the source systems where they have one. Durations are seconds."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from actors.engines.language.requests import Quantization, VlmOptions
from actors.engines.remote.parameters import checked_profile
from bus.secrets import HeaderSecret, ServerUrl

Seconds = Annotated[float, Field(gt=0)]
EngineName = Literal["transformers", "openai"]


class StepOverrides(BaseSettings):
    """Settings of one step, such as JUDGE_ENGINE and JUDGE_MODEL, which override those of VLM_…."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    PREFIXES: ClassVar = ("CONSULT_", "VALIDATE_", "JUDGE_")

    engine: EngineName | None = Field(None, description="Overrides VLM_ENGINE for this step.")
    model: str | None = Field(None, description="Overrides VLM_MODEL for this step.")
    base_url: ServerUrl | None = Field(None, description="Overrides VLM_BASE_URL for this step.")


class VlmSettings(BaseSettings):
    """The engine and the model of the vision steps."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", env_ignore_empty=True, env_prefix="VLM_", populate_by_name=True, protected_namespaces=()
    )

    engine: EngineName = Field("transformers", description="transformers: the model runs in the worker. openai: a server is called.")
    model: str = Field(
        "llava-hf/llava-1.5-7b-hf",
        validation_alias=AliasChoices("VLM_MODEL", "AIP_STORAGE_URI", "LLAVA_MODEL_NAME"),
        description="A folder, a hub id, or an `s3://…` or `gs://…` prefix, copied once; for `openai` a model that the server serves.",
    )
    model_dir: Path = Field(
        Path("~/.cache/atelier/models"), validation_alias="MODEL_DIR", description="The folder for copied models, and the hub's cache."
    )
    device: str = Field("auto", validation_alias=AliasChoices("VLM_DEVICE", "DEVICE_TYPE"), description="`auto`, `cpu`, `cuda`, `cuda:1` …")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field("auto", description="auto: float16 on CUDA, float32 on a CPU.")
    quantization: Quantization = Field(
        "auto", description="`none`, `8bit`, `4bit` or auto: 8 bits on CUDA, none on a CPU and none on Vertex AI (AIP_MODE)."
    )
    use_quantization: bool | None = Field(
        None,
        validation_alias="USE_QUANTIZATION",
        description="true: as auto, never on a CPU. false: none. Used where VLM_QUANTIZATION is auto.",
    )
    vertex_mode: str | None = Field(None, validation_alias="AIP_MODE", description="Set by Vertex AI only.")
    warm: bool = Field(True, description="Load the model at start; false: at the first request, until which the step counts as ready.")
    max_memory_bytes: int | None = Field(
        None,
        ge=1,
        description="Of the device, for weights that are not quantized; the rest stays in main memory. None: what is free.",
    )
    max_rows: int = Field(8, ge=1, le=64, description="Requests in one batch.")
    window_seconds: float = Field(0.005, ge=0, description="How long the first request of a batch waits for others.")
    threads: int | None = Field(None, ge=1, description="CPU threads. None: torch's default.")
    frame: str = Field(
        "USER: {image}{text}\nASSISTANT:",
        description="The prompt template of LLaVA-1.5 models. All others have their chat template in their files.",
    )
    max_pixels: int | None = Field(
        None,
        ge=4096,
        description="Of one picture that the model reads, for families with more tokens for more pixels. A larger picture is scaled down "
        "once more. None: the processor's own limit. VLM_MAX_IMAGE_SIDE holds before it.",
    )
    base_url: ServerUrl | None = Field(
        None,
        validation_alias=AliasChoices("VLM_BASE_URL", "OPENAI_BASE_URL"),
        description="The address of an OpenAI-compatible server, with `/v1`.",
    )
    api_key: HeaderSecret | None = Field(
        None, validation_alias=AliasChoices("VLM_API_KEY", "OPENAI_API_KEY"), description="Sent to an OpenAI-compatible server."
    )
    server_parameters: Annotated[str, AfterValidator(checked_profile)] = Field(
        "",
        description="What the server does not take, comma-separated: `max_tokens=max_completion_tokens` renames, `repetition_penalty` "
        "leaves out. Empty: it is learned from the server's refusals.",
    )
    request_seconds: Seconds = Field(300.0, description="Time limit of one call of such a server.")

    @classmethod
    def for_step(cls, step: str) -> Self:
        """The settings of one step: its overrides before the common ones."""
        overrides = StepOverrides(_env_prefix=f"{step.upper()}_")
        return cls().model_copy(update=overrides.model_dump(exclude_none=True))

    def build_options(self, model: str) -> VlmOptions:
        """For the transformers engine. `model`: the local folder, or a hub id."""
        return VlmOptions(
            model=model, cache_dir=self.model_dir.expanduser(), device="cuda:0" if self.device == "cuda" else self.device,
            dtype=self.dtype, quantization=self._resolve_quantization(), max_rows=self.max_rows, window_seconds=self.window_seconds,
            threads=self.threads, prompt_template=self.frame, max_pixels=self.max_pixels, max_memory_bytes=self.max_memory_bytes,
        )  # fmt: skip

    def _resolve_quantization(self) -> Quantization:
        """`auto` is resolved in the model process, which knows the device. On Vertex AI the default is none."""
        wanted = not self.vertex_mode if self.use_quantization is None else self.use_quantization
        return self.quantization if self.quantization != "auto" or wanted else "none"


class VisionSettings(BaseSettings):
    """Limits of the pictures, the answers and the readiness query."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, populate_by_name=True)

    assets_dir: Path | None = Field(None, description="The folder of `/assets/…`.")
    max_image_bytes: int = Field(
        10 << 20,
        ge=1,
        validation_alias=AliasChoices("VLM_MAX_IMAGE_BYTES", "MAX_UPLOAD_BYTES"),
        description="A larger picture is rejected before it is read.",
    )
    max_image_pixels: int = Field(
        25_000_000, ge=1, validation_alias="VLM_MAX_IMAGE_PIXELS", description="A picture with more is rejected before it is decoded."
    )
    max_image_side: int = Field(
        1280,
        ge=32,
        validation_alias=AliasChoices("VLM_MAX_IMAGE_SIDE", "MAX_IMAGE_SIDE"),
        description="Pixels. A longer picture is scaled down.",
    )
    consult_max_new_tokens: int = Field(1024, ge=1, le=4096, description="The most tokens of a consult answer, where the request has none.")
    consult_repetition_penalty: float = Field(1.1, ge=1, le=2, description="Above 1, consult repeats itself less.")
    verdict_max_new_tokens: int = Field(
        512, ge=1, le=8192, validation_alias="VLM_VERDICT_MAX_NEW_TOKENS", description="The most tokens of a verdict."
    )
    warm_seconds: Seconds = Field(
        2.0, validation_alias="VLM_WARM_SECONDS", description="How long the readiness query waits for the engine."
    )
