"""The `transformers` engine for LLaVA-architecture models: greedy decoding in one continuous batch.

Each request is preprocessed alone before it joins the batch, so that an invalid one fails alone.
"""

import io
import time
from collections.abc import Sequence
from typing import Any

from PIL import Image

from actors.engines.language.batch import ContinuousBatch, TokenRow
from actors.engines.language.grammar import GrammarCache
from actors.engines.language.loading import LoadedModel, load_model, used_memory_bytes
from actors.engines.language.requests import FinishReason, VlmOptions, VlmRequest, VlmResponse
from actors.engines.process.gpu import DeviceMeter, free_memory
from actors.engines.process.protocol import EngineEvent, EngineHost, EngineMetrics, Failed, Finished, MemoryExhausted, Progressed, Started
from bus.errors import PermanentError

PROGRESS_EVERY_TOKENS = 16
"""Tokens between two progress events."""


def open_engine(options: VlmOptions, host: EngineHost) -> "VlmEngine":
    return VlmEngine(load_model(options, host), options)


class VlmEngine:
    """Owns one model on one device. Called from one thread."""

    def __init__(self, loaded: LoadedModel, options: VlmOptions) -> None:
        self.info = loaded.info
        self._loaded, self._options = loaded, options
        config = loaded.model.config
        tokenizer = loaded.processor.tokenizer
        self._vocab_size = config.text_config.vocab_size
        self._max_model_len = config.text_config.max_position_embeddings
        self._stop_token_ids = stop_token_ids(loaded)
        self._special_tokens = sorted(
            {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab(), loaded.processor.image_token}, key=len, reverse=True
        )
        self._grammars = GrammarCache(tokenizer, self._vocab_size, self._stop_token_ids)
        self._batch = self._new_batch()
        self._waiting: list[TokenRow] = []
        self._batch_due_at = 0.0
        self._max_rows = options.max_rows
        self._counters = {"questions": 0.0, "batches": 0.0, "tokens": 0.0, "memory_shortages": 0.0}
        self._largest_batch = 0
        self._meter = DeviceMeter(loaded.device)

    def _new_batch(self) -> ContinuousBatch:
        return ContinuousBatch(self._loaded.model, self._grammars, self._stop_token_ids, self._vocab_size)

    def self_test(self) -> None:
        """Generate one token. Raises RuntimeError."""
        self.submit(0, VlmRequest("?", max_new_tokens=1))
        self._batch_due_at = 0.0
        if not any(isinstance(event, Finished) for event in self.tick()):
            raise RuntimeError("the model generates no token")
        self._counters = dict.fromkeys(self._counters, 0.0)

    def submit(self, request_id: int, request: VlmRequest) -> None:
        """Queue one request. Raises PermanentError.

        Its codes: "prompt-too-long", "prompt-unreadable", "image-unreadable", "schema-refused", "token-limit-too-small".
        """
        ids, pixels = self._preprocess(request)
        if len(ids) + request.max_new_tokens > self._max_model_len:
            tokens = f"{len(ids)} tokens of prompt and {request.max_new_tokens} of answer"
            raise PermanentError("prompt-too-long", f"{tokens} exceed the model's context of {self._max_model_len}.")
        grammar = self._grammars.start(request.schema, request.max_new_tokens) if request.schema else None
        if not self._waiting:
            self._batch_due_at = time.monotonic() + self._options.window_seconds
        self._waiting.append(TokenRow(request_id, request, ids, pixels, grammar))
        if len(self._waiting) >= self._max_rows:
            self._batch_due_at = 0.0

    def _preprocess(self, request: VlmRequest) -> tuple[Any, Any]:
        """The token ids of the prompt, and the pixel values of the image if there is one."""
        token = self._loaded.processor.image_token
        prompt = self._options.prompt_template.format(
            image=f"{token}\n" if request.image else "", text=strip_special_tokens(request.text, self._special_tokens)
        )
        try:
            images = [Image.open(io.BytesIO(request.image), formats=("PNG",)).convert("RGB")] if request.image else None
            inputs = self._loaded.processor(images=images, text=[prompt], return_tensors="pt")
        except Exception as error:
            code = "image-unreadable" if request.image else "prompt-unreadable"
            raise PermanentError(code, f"the model's processor rejects the request: {error}") from error
        return inputs["input_ids"][0], inputs.get("pixel_values")

    def cancel(self, request_id: int) -> bool:
        waiting = [row for row in self._waiting if row.request_id == request_id]
        running = [row for row in self._batch.rows if row.request_id == request_id]
        self._waiting = [row for row in self._waiting if row not in waiting]
        if running:
            self._batch.remove(running)
        return bool(waiting or running)

    def idle_seconds(self) -> float | None:
        if self._batch.rows:
            return 0.0
        return max(0.0, self._batch_due_at - time.monotonic()) if self._waiting else None

    def tick(self) -> Sequence[EngineEvent]:
        """Prefill waiting requests, or decode one token of every row."""
        import torch

        rows = [*self._batch.rows, *self._waiting]
        try:
            with torch.inference_mode():
                return self._advance()
        except torch.OutOfMemoryError as error:
            message = str(error)
        return self._restart_with_smaller_batch(rows, message)  # outside the except block: the traceback would keep tensors alive

    def _advance(self) -> list[EngineEvent]:
        joining = self._waiting[: self._max_rows - len(self._batch.rows)] if time.monotonic() >= self._batch_due_at else []
        if joining:
            self._batch.add(joining)
            self._waiting = self._waiting[len(joining) :]
            self._counters["batches"] += 1
            self._largest_batch = max(self._largest_batch, len(joining))
        elif self._batch.rows:
            self._batch.decode_step()
        self._counters["tokens"] += len(joining or self._batch.rows)
        return [*(Started(row.request_id) for row in joining), *self._collect_events()]

    def _collect_events(self) -> list[EngineEvent]:
        """The results of finished rows, which leave the batch, and the progress of others."""
        finished = [row for row in self._batch.rows if row.finish_reason]
        events: list[EngineEvent] = [Finished(row.request_id, self._build_response(row)) for row in finished]
        due = [row for row in self._batch.rows if not row.finish_reason and len(row.output_ids) % PROGRESS_EVERY_TOKENS == 0]
        events.extend(Progressed(row.request_id, len(row.output_ids), row.request.max_new_tokens) for row in due)
        if finished:
            self._batch.remove(finished)
            self._counters["questions"] += len(finished)
            events.append(self._metrics())
        return events

    def _build_response(self, row: TokenRow) -> VlmResponse:
        text = self._loaded.processor.tokenizer.decode(row.output_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        constrained = row.grammar is not None
        finish_reason: FinishReason = "stop" if row.finish_reason == "stop" else "length"
        model = str(self.info["model"])
        return VlmResponse(text.strip(), finish_reason, model, len(row.prompt_ids), len(row.output_ids), constrained, row.batch_size)

    def _metrics(self) -> EngineMetrics:
        load_gauges = {name: float(self.info[name]) for name in ("memory_before_bytes", "memory_after_bytes", "model_bytes")}
        current = {
            "memory_now_bytes": float(used_memory_bytes(self._loaded.device)),
            "rows": float(len(self._batch.rows)),
            "largest_batch": float(self._largest_batch),
        }
        return EngineMetrics(dict(self._counters), load_gauges | current | self._meter.gauges())

    def _restart_with_smaller_batch(self, rows: list[TokenRow], message: str) -> list[EngineEvent]:
        """Memory ran out: start all rows again, half as many at once. Greedy answers do not change."""
        self._batch = self._new_batch()
        free_memory()
        self._counters["memory_shortages"] += 1
        if len(rows) == 1 or self._max_rows == 1:
            raise MemoryExhausted(message)
        self._max_rows = max(1, min(self._max_rows, len(rows)) // 2)
        self._waiting = []
        events: list[EngineEvent] = []
        for row in rows:
            try:
                self.submit(row.request_id, row.request)
            except PermanentError as error:
                events.append(Failed(row.request_id, "permanent", error.code, str(error)))
        self._batch_due_at = 0.0
        return events

    def close(self) -> None:
        self._batch = self._new_batch()
        free_memory()


def stop_token_ids(loaded: LoadedModel) -> list[int]:
    """The end tokens of the model's generation config and of its tokenizer."""
    entries = [loaded.model.generation_config.eos_token_id, loaded.processor.tokenizer.eos_token_id]
    return sorted({token for entry in entries if entry is not None for token in (entry if isinstance(entry, list) else [entry])})


def strip_special_tokens(text: str, special_tokens: Sequence[str]) -> str:
    """Text without the model's special tokens. Repeated, since removing one from `<ima<image>ge>` leaves another."""
    before = None
    while before != text:
        before = text
        for token in special_tokens:
            text = text.replace(token, "")
    return text
