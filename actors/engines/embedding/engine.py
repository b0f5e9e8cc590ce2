"""The embedding engine: batches the inputs of all waiting requests, one batch a tick."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from actors.engines.embedding.checkpoint import LoadedEmbeddingModel, load_checkpoint
from actors.engines.embedding.requests import EmbeddingOptions, EmbeddingRequest, EmbeddingResponse
from actors.engines.process.device_time import DeviceTime
from actors.engines.process.failures import fail_request, is_device_failure
from actors.engines.process.protocol import EngineEvent, EngineHost, Failed, Finished, Started
from bus.errors import PermanentError

log = structlog.get_logger()

STEP_SECONDS = {"cuda": 60.0, "cpu": 600.0}
"""The longest time without a heartbeat: that of one batch."""


@dataclass
class WaitingRequest:
    """`token_ids`: of each input. `vectors`: of the first inputs, whose batches are done. `alone`: after a batch with others failed."""

    token_ids: list[list[int]]
    dimensions: int
    vectors: list[bytes] = field(default_factory=list)
    alone: bool = False


@dataclass(frozen=True)
class Row:
    request_id: int
    request: WaitingRequest
    token_ids: list[int]


class EmbeddingEngine:
    """Rows are taken in the order of their arrival, as many as `batch_tokens` allow; a single one never has more.

    A batch that fails is embedded again, each of its requests alone, so that one whose vectors cannot be computed fails no other.
    """

    def __init__(self, loaded: LoadedEmbeddingModel, options: EmbeddingOptions) -> None:
        self._loaded, self._options = loaded, options
        self._waiting = OrderedDict[int, WaitingRequest]()
        self._vocabulary_size: int = loaded.model.get_input_embeddings().num_embeddings
        self.device_time = DeviceTime(loaded.device)
        self.info: dict[str, Any] = {
            "model": model_name(options.model), "device": loaded.device, "dtype": loaded.dtype, "pooling": loaded.pooling,
            "dimensions": loaded.size, "max_model_len": loaded.max_tokens,
            "step_seconds": STEP_SECONDS["cuda" if loaded.device.startswith("cuda") else "cpu"],
        }  # fmt: skip

    def self_test(self) -> None:
        """Raises ValueError for a model whose vectors are not numbers."""
        self._embed([self._tokenize("?", 0)])

    def submit(self, request_id: int, request: EmbeddingRequest) -> None:
        """Raises PermanentError("prompt-too-long" · "dimensions-unsupported" · "engine-failed")."""
        dimensions = self._check_dimensions(request.dimensions)
        token_ids = [self._tokenize(text, index) for index, text in enumerate(request.inputs)]
        self._waiting[request_id] = WaitingRequest(token_ids, dimensions)

    def _check_dimensions(self, wanted: int | None) -> int:
        sizes = sorted({size for size in self._options.dimensions if size < self._loaded.size} | {self._loaded.size})
        if wanted is not None and wanted not in sizes:
            detail = f"the model's vectors have {', '.join(map(str, sizes))} dimensions, {wanted} were requested"
            raise PermanentError("dimensions-unsupported", f"{detail}; EMBEDDING_DIMENSIONS names the sizes to which they may be cut")
        return wanted or self._loaded.size

    def _tokenize(self, text: str, index: int) -> list[int]:
        ids: list[int] = self._loaded.tokenizer(text, truncation=False, verbose=False)["input_ids"]
        if len(ids) > self._loaded.max_tokens:
            detail = f"input {index} has {len(ids)} tokens, {self._loaded.max_tokens} are allowed: divide it"
            raise PermanentError("prompt-too-long", detail)
        if unknown := [token for token in ids if token >= self._vocabulary_size]:  # on a GPU, they would end the process
            detail = f"input {index} has the token {unknown[0]}, the model knows {self._vocabulary_size}: its tokenizer is another model's"
            raise PermanentError("engine-failed", detail)
        return ids or [self._padding_id]

    def cancel(self, request_id: int) -> bool:
        return self._waiting.pop(request_id, None) is not None

    def idle_seconds(self) -> float | None:
        return 0 if self._waiting else None

    def tick(self) -> Sequence[EngineEvent]:
        rows = self._next_rows()
        if not rows:
            return ()
        started = [Started(row.request_id) for row in rows if not row.request.vectors]
        return [*dict.fromkeys(started), *self._embed_rows(rows), *self._finish()]

    def _embed_rows(self, rows: list[Row]) -> list[Failed]:
        """Add the vectors of the rows to their requests. Raises the errors of the device."""
        shares = dict.fromkeys((row.request_id for row in rows), 0.0)
        for row in rows:
            shares[row.request_id] += len(row.token_ids)
        try:
            with self.device_time.work(shares):
                vectors = self._embed([row.token_ids for row in rows])
        except Exception as error:
            if is_device_failure(error):
                raise
            return self._after_error(rows, error)
        for row, vector in zip(rows, vectors, strict=True):
            row.request.vectors.append(to_bytes(vector, row.request.dimensions))
        return []

    def _after_error(self, rows: list[Row], error: Exception) -> list[Failed]:
        """The only request of the rows fails; of several, each runs alone in the next ticks."""
        request_ids = {row.request_id for row in rows}
        if len(request_ids) == 1:
            return [fail_request(request_id, error) for request_id in request_ids if self.cancel(request_id)]
        log.warning("engine.batch_failed", requests=len(request_ids), cause=type(error).__name__)
        for row in rows:
            row.request.alone = True
        return []

    def _next_rows(self) -> list[Row]:
        rows, longest = list[Row](), 0
        for request_id, request in self._waiting.items():
            if rows and (request.alone or rows[0].request.alone):
                return rows
            for token_ids in request.token_ids[len(request.vectors) :]:
                longest = max(longest, len(token_ids))
                if rows and longest * (len(rows) + 1) > self._options.batch_tokens:
                    return rows
                rows.append(Row(request_id, request, token_ids))
        return rows

    def _finish(self) -> list[Finished]:
        done = [(number, request) for number, request in self._waiting.items() if len(request.vectors) == len(request.token_ids)]
        for number, _ in done:
            del self._waiting[number]
        return [Finished(number, EmbeddingResponse(tuple(request.vectors), sum(map(len, request.token_ids)))) for number, request in done]

    @property
    def _padding_id(self) -> int:
        """That of the model's configuration: some families count positions from it. It may be -1 there, for none."""
        known = (self._loaded.model.config.pad_token_id, self._loaded.tokenizer.pad_token_id)
        return next((token for token in known if token is not None and 0 <= token < self._vocabulary_size), 0)

    def _embed(self, rows: list[list[int]]) -> Any:
        """Vectors of unit length, (rows, size) in float32 on the CPU. Raises ValueError for what is no number."""
        import torch

        longest = max(map(len, rows))
        ids = torch.tensor([row + [self._padding_id] * (longest - len(row)) for row in rows], device=self._loaded.device)
        lengths = torch.tensor([len(row) for row in rows], device=self._loaded.device)
        mask = (torch.arange(longest, device=self._loaded.device)[None] < lengths[:, None]).long()
        with torch.inference_mode():
            states = self._loaded.model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
            vectors = torch.nn.functional.normalize(self._pool(states, mask, lengths), dim=-1).cpu()
        if not vectors.isfinite().all():
            raise ValueError(f"{self._options.model}: its vectors are not numbers: download the checkpoint again")
        return vectors

    def _pool(self, states: Any, mask: Any, lengths: Any) -> Any:
        """`states`: (rows, tokens, size). Returns (rows, size)."""
        match self._loaded.pooling:
            case "cls":
                return states[:, 0]
            case "last":
                return states[range(len(lengths)), lengths - 1]
            case "mean":
                return (states * mask[:, :, None]).sum(1) / lengths[:, None]

    def close(self) -> None:
        self._waiting.clear()


def to_bytes(vector: Any, dimensions: int) -> bytes:
    """The first `dimensions` numbers, again of unit length, as little-endian float32."""
    import torch

    cut = vector if dimensions == len(vector) else torch.nn.functional.normalize(vector[:dimensions], dim=-1)
    data: bytes = cut.numpy().astype("<f4").tobytes()
    return data


def model_name(source: str) -> str:
    """The name by which clients know the model: that of its folder, or the hub id."""
    path = Path(source).expanduser()
    return path.name if path.exists() else source


def open_embedding_model(options: EmbeddingOptions, host: EngineHost) -> EmbeddingEngine:
    """Raises what a model that cannot be loaded raises."""
    host.report_load_progress(f"loading {options.model}", options.load_seconds, None)
    return EmbeddingEngine(load_checkpoint(options), options)
