"""The settings of the text actor. Names are those of the source systems where they have one. Durations are seconds."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from actors.engines.remote.parameters import checked_profile
from bus.secrets import HeaderSecret, ServerUrl

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Of the embedded engine."""


class TextSettings(BaseSettings):
    """The text engine, and the defaults and limits of a request."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", env_ignore_empty=True, env_prefix="TEXT_", populate_by_name=True, protected_namespaces=()
    )

    engine: Literal["auto", "embedded", "openai", "vllm"] = Field(
        "auto",
        description="`openai`: a server. `embedded`: a model in a process of the worker. `vllm`: vLLM in the worker, which needs it "
        "installed. `auto`: `openai` where VLLM_SERVER_URL is set, else `embedded`.",
    )
    server_url: ServerUrl | None = Field(
        None, validation_alias="VLLM_SERVER_URL", description="Address of an OpenAI-compatible server, with `/v1`."
    )
    model: str | None = Field(
        None,
        validation_alias=AliasChoices("VLLM_MODEL", "MODEL_NAME"),
        description="A model of the server; default, and where it is not served: its first. For the other engines a folder or a hub id; "
        f"`embedded` also reads a `.gguf` file, and defaults to `{DEFAULT_MODEL}`.",
    )
    api_key: HeaderSecret | None = Field(
        None, validation_alias=AliasChoices("VLLM_API_KEY", "OPENAI_API_KEY"), description="Sent to the server."
    )
    server_parameters: Annotated[str, AfterValidator(checked_profile)] = Field(
        "",
        description="What the server does not take, comma-separated: `max_tokens=max_completion_tokens` renames, `repetition_penalty` "
        "leaves out. Empty: it is learned from the server's refusals.",
    )
    patience_seconds: float = Field(60.0, gt=0, description="How long a request to a server may take, with all its retries.")
    max_tokens_cap: int = Field(512, ge=1, validation_alias="MAX_TOKENS_CAP", description="The most tokens of an answer.")
    temperature: float = Field(0.7, ge=0, le=2, description="Where the request has none.")
    top_p: float = Field(0.9, gt=0, le=1, description="Where the request has none.")
    repetition_penalty: float = Field(1.05, gt=0, le=2, description="Where the request has none; 1: off, for servers that do not know it.")
    default_lora_adapter: str | None = Field(None, validation_alias="DEFAULT_LORA_ADAPTER", description="Where the request names none.")
    loras: dict[str, str] = Field(default_factory=dict, description="LoRA adapters for `embedded` and `vllm`, as JSON: name and folder.")
    prefix_cache_bytes: int = Field(
        256 << 20,
        ge=0,
        description="Of `embedded`: memory for the key-value caches of prompts and answers, from which the next ones that begin alike go "
        "on; each tenant's are its own. On the model's device. 0: none are kept.",
    )
    device: str = Field("auto", description="Of `embedded`: `auto`, `cpu`, `cuda:0` …; auto: the first CUDA device, else the CPU.")
    threads: int | None = Field(None, ge=1, description="CPU threads of `embedded`. None: torch's own choice.")
    stall_seconds: float = Field(
        120.0, gt=0, description="An engine with running requests that has produced no token for so long counts as stalled."
    )


class VllmSettings(BaseSettings):
    """Engine arguments of vLLM in the worker, with the defaults of the CloudLLM server. Those without one are left to vLLM."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", env_ignore_empty=True, env_prefix="VLLM_", populate_by_name=True, protected_namespaces=()
    )

    max_model_len: int = Field(2048, ge=1, description="Tokens of prompt and answer together, at most the model's own limit.")
    max_num_seqs: int = Field(16, ge=1, description="Requests in one batch.")
    block_size: int | None = Field(None, ge=1, description="Tokens in a block of the cache. None: 16 on a GPU, vLLM's own on a CPU.")
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1, description="Share of the GPU's memory. None: 0.9.")
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs that share the model.")
    dtype: str | None = Field(None, description="Such as `auto` or `bfloat16`.")
    quantization: str | None = Field(None, description="Such as `awq`.")
    kv_cache_dtype: str | None = Field(None, description="Such as `fp8`.")
    enforce_eager: bool | None = Field(None, description="Without compiled graphs: slower, but ready sooner.")
    trust_remote_code: bool | None = Field(None, description="Run code that comes with the model.")

    def engine_args(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True)
