"""The `transformers` engine for LLaVA-architecture models: takes questions, answers them in a batch that rows join and leave at any token.

Every question is read alone before it joins, so that a bad one fails alone. Greedy. The answer is cut from the prompt by tokens.
"""

import io
import time
from collections.abc import Sequence
from typing import Any

from PIL import Image

from actors.engines.language.batch import ContinuousBatch, TokenRow
from actors.engines.language.grammar import GrammarCache
from actors.engines.language.loading import LoadedModel, free_memory, load_model, used_memory_bytes
from actors.engines.language.requests import VlmOptions, VlmRequest, VlmResponse
from actors.engines.process.gpu import DeviceMeter
from actors.engines.process.protocol import EngineEvent, EngineHost, EngineMetrics, Failed, Finished, MemoryExhausted, Progressed, Started
from bus.errors import PermanentError

PROGRESS_EVERY_TOKENS = 16
"""Tokens between two reports of progress."""


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
        """Say one word."""
        self.submit(0, VlmRequest("?", max_new_tokens=1))
        self._batch_due_at = 0.0
        if not any(isinstance(event, Finished) for event in self.tick()):
            raise RuntimeError("the model does not answer")
        self._counters = dict.fromkeys(self._counters, 0.0)

    def submit(self, request_id: int, request: VlmRequest) -> None:
        """Read one question. Raises PermanentError("prompt-too-long" · "image-unreadable" · "schema-refused" · "token-limit-too-small")."""
        ids, pixels = self._preprocess(request)
        if len(ids) + request.max_new_tokens > self._max_model_len:
            message = f"{len(ids)} tokens of prompt and {request.max_new_tokens} of answer are more than the {self._max_model_len} that the model holds."
            raise PermanentError("prompt-too-long", message)
        speech = self._grammars.start(request.schema, request.max_new_tokens) if request.schema else None
        if not self._waiting:
            self._batch_due_at = time.monotonic() + self._options.window_seconds
        self._waiting.append(TokenRow(request_id, request, ids, pixels, speech))
        if len(self._waiting) >= self._max_rows:
            self._batch_due_at = 0.0

    def _preprocess(self, request: VlmRequest) -> tuple[Any, Any]:
        """The prompt's tokens, and the picture's pixels if there is one."""
        token = self._loaded.processor.image_token
        prompt = self._options.prompt_template.format(
            image=f"{token}\n" if request.image else "", text=strip_special_tokens(request.text, self._special_tokens)
        )
        try:
            picture = [Image.open(io.BytesIO(request.image)).convert("RGB")] if request.image else None
            read = self._loaded.processor(images=picture, text=[prompt], return_tensors="pt")
        except Exception as error:
            raise PermanentError(
                "image-unreadable" if request.image else "prompt-unreadable", f"the model cannot read the question: {error}"
            ) from error
        return read["input_ids"][0], read.get("pixel_values")

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
        """Take in who waits, or say one more token for everybody."""
        import torch

        rows = [*self._batch.rows, *self._waiting]
        try:
            with torch.inference_mode():
                return self._advance()
        except torch.OutOfMemoryError as error:
            shortage = str(error)
        return self._restart_with_smaller_batch(rows, shortage)

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
        """What has ended, and how far the others have come."""
        ended = [row for row in self._batch.rows if row.finish_reason]
        events: list[EngineEvent] = [Finished(row.request_id, self._build_response(row)) for row in ended]
        going = [row for row in self._batch.rows if not row.finish_reason and len(row.output_ids) % PROGRESS_EVERY_TOKENS == 0]
        events.extend(Progressed(row.request_id, len(row.output_ids), row.request.max_new_tokens) for row in going)
        if ended:
            self._batch.remove(ended)
            self._counters["questions"] += len(ended)
            events.append(self._metrics())
        return events

    def _build_response(self, row: TokenRow) -> VlmResponse:
        text = self._loaded.processor.tokenizer.decode(row.output_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        constrained = row.grammar is not None
        finish = "stop" if row.finish_reason == "stop" else "length"
        model = str(self.info["model"])
        return VlmResponse(text.strip(), finish, model, len(row.prompt_ids), len(row.output_ids), constrained, row.batch_size)  # type: ignore[arg-type]

    def _metrics(self) -> EngineMetrics:
        levels = {name: float(self.info[name]) for name in ("memory_before_bytes", "memory_after_bytes", "model_bytes")}
        now = {
            "memory_now_bytes": float(used_memory_bytes(self._loaded.device)),
            "rows": float(len(self._batch.rows)),
            "largest_batch": float(self._largest_batch),
        }
        return EngineMetrics(dict(self._counters), levels | now | self._meter.gauges())

    def _restart_with_smaller_batch(self, rows: list[TokenRow], message: str) -> list[EngineEvent]:
        """The device is full: begin again with half as many rows at once. Greedy answers come out the same."""
        self._batch = self._new_batch()
        free_memory(self._loaded.device)
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
        free_memory(self._loaded.device)


def stop_token_ids(loaded: LoadedModel) -> list[int]:
    """Whatever the model or its tokenizer calls an end."""
    said = [loaded.model.generation_config.eos_token_id, loaded.processor.tokenizer.eos_token_id]
    return sorted({token for entry in said if entry is not None for token in (entry if isinstance(entry, list) else [entry])})


def strip_special_tokens(text: str, special_tokens: Sequence[str]) -> str:
    """Text without the model's control tokens. Again and again: what is left of `<ima<image>ge>` is one."""
    before = None
    while before != text:
        before = text
        for word in special_tokens:
            text = text.replace(word, "")
    return text
