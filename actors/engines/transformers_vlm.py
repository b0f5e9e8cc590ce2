"""The `transformers` engine for LLaVA-architecture models: takes questions, answers them in a batch that rows join and leave at any token.

Every question is read alone before it joins, so that a bad one fails alone. Greedy. The answer is cut from the prompt by tokens.
"""

import io
import time
from collections.abc import Sequence
from typing import Any

from PIL import Image

from actors.engines.gpu_watch import DeviceMeter
from actors.engines.protocol import Advanced, Event, Failed, Finished, Gauges, Lifeline, MemoryExhausted, Started
from actors.engines.vlm import Answer, Question, VlmOptions
from actors.engines.vlm_batch import Batch, Row
from actors.engines.vlm_grammar import Grammars
from actors.engines.vlm_loading import Loaded, load, memory_bytes, release
from bus.errors import PermanentError

TELL_EVERY = 16
"""Tokens between two reports of progress."""


def open_engine(options: VlmOptions, lifeline: Lifeline) -> "VlmEngine":
    return VlmEngine(load(options, lifeline), options)


class VlmEngine:
    """Owns one model on one device. Called from one thread."""

    def __init__(self, loaded: Loaded, options: VlmOptions) -> None:
        self.info = loaded.info
        self._loaded, self._options = loaded, options
        config = loaded.model.config
        tokenizer = loaded.processor.tokenizer
        self._vocabulary = config.text_config.vocab_size
        self._longest = config.text_config.max_position_embeddings
        self._stop = stop_tokens(loaded)
        self._special = sorted(
            {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab(), loaded.processor.image_token}, key=len, reverse=True
        )
        self._grammars = Grammars(tokenizer, self._vocabulary, self._stop)
        self._batch = self._empty()
        self._waiting: list[Row] = []
        self._due = 0.0
        self._room = options.max_rows
        self._counters = {"questions": 0.0, "batches": 0.0, "tokens": 0.0, "memory_shortages": 0.0}
        self._largest = 0
        self._meter = DeviceMeter(loaded.device)

    def _empty(self) -> Batch:
        return Batch(self._loaded.model, self._grammars, self._stop, self._vocabulary)

    def self_test(self) -> None:
        """Say one word."""
        self.submit(0, Question("?", max_new_tokens=1))
        self._due = 0.0
        if not any(isinstance(event, Finished) for event in self.tick()):
            raise RuntimeError("the model does not answer")
        self._counters = dict.fromkeys(self._counters, 0.0)

    def submit(self, ticket: int, work: Question) -> None:
        """Read one question. Raises PermanentError("prompt-too-long" · "image-unreadable" · "schema-refused" · "token-limit-too-small")."""
        ids, pixels = self._read(work)
        if len(ids) + work.max_new_tokens > self._longest:
            message = (
                f"{len(ids)} tokens of prompt and {work.max_new_tokens} of answer are more than the {self._longest} that the model holds."
            )
            raise PermanentError("prompt-too-long", message)
        speech = self._grammars.begin(work.schema, work.max_new_tokens) if work.schema else None
        if not self._waiting:
            self._due = time.monotonic() + self._options.window_seconds
        self._waiting.append(Row(ticket, work, ids, pixels, speech))
        if len(self._waiting) >= self._room:
            self._due = 0.0

    def _read(self, work: Question) -> tuple[Any, Any]:
        """The prompt's tokens, and the picture's pixels if there is one."""
        token = self._loaded.processor.image_token
        prompt = self._options.frame.format(image=f"{token}\n" if work.image else "", text=plain(work.text, self._special))
        try:
            picture = [Image.open(io.BytesIO(work.image)).convert("RGB")] if work.image else None
            read = self._loaded.processor(images=picture, text=[prompt], return_tensors="pt")
        except Exception as error:
            raise PermanentError(
                "image-unreadable" if work.image else "prompt-unreadable", f"the model cannot read the question: {error}"
            ) from error
        return read["input_ids"][0], read.get("pixel_values")

    def cancel(self, ticket: int) -> bool:
        waiting = [row for row in self._waiting if row.ticket == ticket]
        running = [row for row in self._batch.rows if row.ticket == ticket]
        self._waiting = [row for row in self._waiting if row not in waiting]
        if running:
            self._batch.take_out(running)
        return bool(waiting or running)

    def idle_seconds(self) -> float | None:
        if self._batch.rows:
            return 0.0
        return max(0.0, self._due - time.monotonic()) if self._waiting else None

    def tick(self) -> Sequence[Event]:
        """Take in who waits, or say one more token for everybody."""
        import torch

        rows = [*self._batch.rows, *self._waiting]
        try:
            with torch.inference_mode():
                return self._advance()
        except torch.OutOfMemoryError as error:
            shortage = str(error)
        return self._fewer(rows, shortage)

    def _advance(self) -> list[Event]:
        joining = self._waiting[: self._room - len(self._batch.rows)] if time.monotonic() >= self._due else []
        if joining:
            self._batch.join(joining)
            self._waiting = self._waiting[len(joining) :]
            self._counters["batches"] += 1
            self._largest = max(self._largest, len(joining))
        elif self._batch.rows:
            self._batch.step()
        self._counters["tokens"] += len(joining or self._batch.rows)
        return [*(Started(row.ticket) for row in joining), *self._tell()]

    def _tell(self) -> list[Event]:
        """What has ended, and how far the others have come."""
        ended = [row for row in self._batch.rows if row.finish]
        events: list[Event] = [Finished(row.ticket, self._answer(row)) for row in ended]
        going = [row for row in self._batch.rows if not row.finish and len(row.tokens) % TELL_EVERY == 0]
        events.extend(Advanced(row.ticket, len(row.tokens), row.question.max_new_tokens) for row in going)
        if ended:
            self._batch.take_out(ended)
            self._counters["questions"] += len(ended)
            events.append(self._gauges())
        return events

    def _answer(self, row: Row) -> Answer:
        text = self._loaded.processor.tokenizer.decode(row.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        constrained = row.speech is not None
        finish = "stop" if row.finish == "stop" else "length"
        model = str(self.info["model"])
        return Answer(text.strip(), finish, model, len(row.ids), len(row.tokens), constrained, row.together)  # type: ignore[arg-type]

    def _gauges(self) -> Gauges:
        levels = {name: float(self.info[name]) for name in ("memory_before_bytes", "memory_after_bytes", "model_bytes")}
        now = {
            "memory_now_bytes": float(memory_bytes(self._loaded.device)),
            "rows": float(len(self._batch.rows)),
            "largest_batch": float(self._largest),
        }
        return Gauges(dict(self._counters), levels | now | self._meter.levels())

    def _fewer(self, rows: list[Row], shortage: str) -> list[Event]:
        """The device is full: begin again with half as many rows at once. Greedy answers come out the same."""
        self._batch = self._empty()
        release(self._loaded.device)
        self._counters["memory_shortages"] += 1
        if len(rows) == 1 or self._room == 1:
            raise MemoryExhausted(shortage)
        self._room = max(1, min(self._room, len(rows)) // 2)
        self._waiting = []
        events: list[Event] = []
        for row in rows:
            try:
                self.submit(row.ticket, row.question)
            except PermanentError as error:
                events.append(Failed(row.ticket, "permanent", error.code, str(error)))
        self._due = 0.0
        return events

    def close(self) -> None:
        self._batch = self._empty()
        release(self._loaded.device)


def stop_tokens(loaded: Loaded) -> list[int]:
    """Whatever the model or its tokenizer calls an end."""
    said = [loaded.model.generation_config.eos_token_id, loaded.processor.tokenizer.eos_token_id]
    return sorted({token for entry in said if entry is not None for token in (entry if isinstance(entry, list) else [entry])})


def plain(text: str, special: Sequence[str]) -> str:
    """Text without the model's control tokens. Again and again: what is left of `<ima<image>ge>` is one."""
    before = None
    while before != text:
        before = text
        for word in special:
            text = text.replace(word, "")
    return text
