"""The settings of the embed actor. Durations are seconds."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from actors.engines.embedding.requests import EmbeddingOptions, Pooling
from bus.secrets import HeaderSecret, ServerUrl

UNCONFIGURED = (
    "No embedding model is served: set EMBEDDING_SERVER_URL, the address of a server with /v1/embeddings, or EMBEDDING_MODEL, "
    "a folder or a hub id, and run `atelier run embed`."
)


class EmbeddingSettings(BaseSettings):
    """With a server its model is used, else the model is loaded in a process of the worker; without either there are no embeddings."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, env_prefix="EMBEDDING_", protected_namespaces=())

    model: str | None = Field(
        None, description="A model of the server; default: its first. Without a server a folder or a hub id, which needs `models`."
    )
    server_url: ServerUrl | None = Field(None, description="Address of a server with `/v1/embeddings`, with `/v1`.")
    api_key: HeaderSecret | None = Field(None, description="Sent to the server.")
    server_seconds: float = Field(60.0, gt=0, description="How long the server may take for a request.")
    pooling: Pooling | None = Field(
        None, description="How a loaded model's vectors of tokens become one. None: as its `1_Pooling/config.json` says."
    )
    dimensions: tuple[int, ...] = Field(
        (),
        description="JSON, the sizes to which a loaded model's vectors may be cut: those of its Matryoshka training, such as [256, 512].",
    )
    device: str = Field("auto", description="Of a loaded model: `auto`, `cpu`, `cuda:0` …; auto: the first CUDA device, else the CPU.")
    threads: int | None = Field(None, ge=1, description="CPU threads of a loaded model. None: torch's own choice.")
    max_tokens: int | None = Field(
        None,
        ge=1,
        description="The most tokens of an input of a loaded model. None: the model's own limit. In any case those of a batch.",
    )
    batch_tokens: int = Field(
        16_384, ge=1, description="The most tokens of one batch of a loaded model, with those that fill it up, and so of one input."
    )

    def model_options(self) -> EmbeddingOptions:
        assert self.model is not None
        return EmbeddingOptions(
            model=self.model,
            pooling=self.pooling,
            dimensions=self.dimensions,
            device="cuda:0" if self.device == "cuda" else self.device,
            threads=self.threads,
            max_tokens=self.max_tokens,
            batch_tokens=self.batch_tokens,
        )
