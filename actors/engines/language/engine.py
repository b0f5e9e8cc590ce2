"""What the engines of language models share: requests on one continuous batch.

Each request is preprocessed alone before it joins the batch, so that an invalid one fails alone.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from actors.engines.language.batch import ContinuousBatch, LongPrompt, TokenRow
from actors.engines.language.checkpoint_check import context_length, stop_token_ids
from actors.engines.language.grammar import GrammarCache
from actors.engines.language.loading import used_memory_bytes
from actors.engines.language.prefix_cache import PrefixCache, common_tokens
from actors.engines.process.device_time import DeviceTime
from actors.engines.process.failures import fail_request, is_device_failure
from actors.engines.process.gpu import DeviceMeter, free_memory
from actors.engines.process.protocol import EngineEvent, EngineMetrics, Failed, Finished, MemoryExhausted, Progressed, Started
from bus.errors import PermanentError, TemporaryError

PROGRESS_EVERY_TOKENS = 16
"""Tokens between two progress events."""
COMPILE_POLL_SECONDS = 0.005
MIN_SHARED_TOKENS = 64
"""A row waits until so long a begin of its prompt, or a longer one, was read for another row."""


class LanguageEngine(ABC):
    """Owns one model on one device. Called from one thread. A subclass reads its kind of request and builds its kind of response.

    `part_tokens`: a longer prompt is read in parts, and so many tokens of prompts are read between two steps; None: no limit, for prompts
    with images, which are read at once. `prefix_cache_bytes`: of prompts and answers that are kept for rows with an owner; 0: none.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        info: dict[str, Any],
        *,
        device: str,
        max_rows: int,
        window_seconds: float,
        part_tokens: int | None,
        prefix_cache_bytes: int = 0,
    ) -> None:
        self.info, self._model, self._tokenizer, self._device = info, model, tokenizer, device
        config = model.config.get_text_config()
        self._vocab_size = config.vocab_size
        self._max_model_len = context_length(config, info["model"])
        self._stop_token_ids = stop_token_ids(model, tokenizer, self._vocab_size, info["model"])
        self._grammars = GrammarCache(tokenizer, self._vocab_size, self._stop_token_ids)
        self._batch = self._new_batch()
        self._waiting: list[TokenRow] = []
        self._compiling: list[TokenRow] = []
        self._reading: LongPrompt | None = None
        self._alone: set[int] = set()
        self._is_tested = False
        self._window_seconds, self._batch_due_at = window_seconds, 0.0
        self._max_rows, self._part_tokens = max_rows, part_tokens
        self._counters = {"questions": 0.0, "batches": 0.0, "tokens": 0.0, "memory_shortages": 0.0, "prompt_tokens": 0.0}
        self._prefixes = PrefixCache(prefix_cache_bytes)
        self._largest_batch = 0
        self._meter = DeviceMeter(device)
        self.device_time = DeviceTime(device)

    @abstractmethod
    def _read_request(self, request_id: int, request: Any) -> TokenRow:
        """The row of a request. Raises PermanentError."""

    @abstractmethod
    def _build_response(self, row: TokenRow) -> Any:
        """The result of a finished row."""

    @abstractmethod
    def _test_request(self) -> Any:
        """A request for one token."""

    def _new_batch(self) -> ContinuousBatch:
        return ContinuousBatch(self._model, self._grammars, self._stop_token_ids, self._vocab_size)

    def self_test(self) -> None:
        """Generate one token. Raises RuntimeError, and what the model raises."""
        self.submit(0, self._test_request())
        self._batch_due_at = 0.0
        if not any(isinstance(event, Finished) for event in self.tick()):
            raise RuntimeError("the model generates no token")
        self._is_tested = True
        self._prefixes.clear()
        self._counters = dict.fromkeys(self._counters, 0.0)

    def submit(self, request_id: int, request: Any) -> None:
        """Queue one request. Raises PermanentError; a schema that is compiled meanwhile may fail later.

        Its codes: "prompt-too-long", "prompt-unreadable", "image-unreadable", "schema-refused", "token-limit-too-small",
        "vision-unsupported", "lora-unknown".
        """
        row = self._read_request(request_id, request)
        self._check_tokens(row)
        if row.compilation:
            self._compiling.append(row)
        else:
            self._enqueue(row)

    def _check_tokens(self, row: TokenRow) -> None:
        highest = int(row.prompt_ids.max()) if len(row.prompt_ids) else -1
        if highest >= self._vocab_size:
            cause = f"the tokenizer gives the token {highest}, the model has {self._vocab_size}: their files are of different models"
            raise PermanentError("prompt-unreadable", cause)
        if highest < 0:
            raise PermanentError("prompt-unreadable", "the prompt has no token")

    def _enqueue(self, row: TokenRow) -> None:
        if not self._waiting:
            self._batch_due_at = time.monotonic() + self._window_seconds
        self._waiting.append(row)
        if len(self._waiting) >= self._max_rows:
            self._batch_due_at = 0.0

    def cancel(self, request_id: int) -> bool:
        waiting = [row for row in (*self._waiting, *self._compiling) if row.request_id == request_id]
        running = [row for row in self._batch.rows if row.request_id == request_id]
        reading = self._reading is not None and self._reading.row.request_id == request_id
        self._waiting = [row for row in self._waiting if row not in waiting]
        self._compiling = [row for row in self._compiling if row not in waiting]
        for row in waiting:
            leave_compilation(row)
        if reading:
            self._reading = None
        if running:
            self._batch.remove(running)
        self._alone.discard(request_id)
        return bool(waiting or running or reading)

    def idle_seconds(self) -> float | None:
        if self._batch.rows or self._reading or any(row.compilation and row.compilation.is_due() for row in self._compiling):
            return 0.0
        waits = [max(0.0, self._batch_due_at - time.monotonic())] if self._waiting else []
        return min([*waits, *([COMPILE_POLL_SECONDS] if self._compiling else [])], default=None)

    def tick(self) -> Sequence[EngineEvent]:
        """Prefill waiting requests, or decode one token of every row; in between read a part of a long prompt."""
        with self.device_time.work_equally([row.request_id for row in self._active_rows() or (*self._waiting, *self._compiling)]):
            return self._tick()

    def _active_rows(self) -> list[TokenRow]:
        return [*self._batch.rows, *([self._reading.row] if self._reading else [])]

    def _tick(self) -> Sequence[EngineEvent]:
        import torch

        refused = self._take_compiled()
        rows = [*self._active_rows(), *self._waiting]
        try:
            with torch.inference_mode():
                return [*refused, *self._advance()]
        except torch.OutOfMemoryError as error:
            message = str(error)
        except Exception as error:
            if is_device_failure(error) or not self._is_tested:
                raise
            return [*refused, *self._isolate([row for row in rows if row not in self._waiting], error)]
        # Outside the except block, since the traceback would keep tensors alive.
        return [*refused, *self._restart_with_smaller_batch(rows, message)]

    def _take_compiled(self) -> list[Failed]:
        """Rows whose schema is compiled wait for the batch; the failures of the others."""
        failures = []
        for row in [row for row in self._compiling if row.compilation and row.compilation.is_due()]:
            self._compiling.remove(row)
            assert row.compilation
            try:
                row.grammar = self._grammars.start(row.compilation.constraint, row.max_tokens, row.compilation)
            except (PermanentError, TemporaryError) as error:
                self._alone.discard(row.request_id)
                failures.append(fail_request(row.request_id, error))
            else:
                self._enqueue(row)
            finally:
                leave_compilation(row)
        return failures

    def _advance(self) -> list[EngineEvent]:
        joining = self._take_joining() if time.monotonic() >= self._batch_due_at else []
        started = [row for row in joining if not self._is_long(row)]
        if started:
            with self.device_time.work({row.request_id: row.unread_tokens for row in started}):
                self._batch.add(started)
                self._keep_prefixes([row for row in started if not row.finish_reason])
            self._counters["batches"] += 1
            self._largest_batch = max(self._largest_batch, len(started))
        elif self._batch.rows:
            with self.device_time.work_equally([row.request_id for row in self._batch.rows]):
                self._batch.decode_step()
        self._counters["tokens"] += len(started or self._batch.rows)
        if self._reading and self._read_part(self._reading):
            self._keep_prefixes([self._reading.row])
            self._reading = None
            self._counters["tokens"] += 1
        return [*(Started(row.request_id) for row in joining), *self._collect_events()]

    def _read_part(self, prompt: LongPrompt) -> bool:
        with self.device_time.work_equally([prompt.row.request_id]):
            return self._batch.read_part(prompt, self._part_tokens or len(prompt.row.prompt_ids))

    def _is_long(self, row: TokenRow) -> bool:
        return self._part_tokens is not None and not row.inputs and row.unread_tokens > self._part_tokens

    def _take_joining(self) -> list[TokenRow]:
        """The waiting rows that begin now: those of short prompts together, one of a long prompt to be read in parts."""
        room = self._max_rows - len(self._batch.rows) - (self._reading is not None)
        budget = self._part_tokens
        joining: list[TokenRow] = []
        waiting = list(self._waiting)
        if self._alone:
            is_idle = not self._batch.rows and not self._reading
            waiting = [row for row in waiting if row.request_id in self._alone][:1] if is_idle else []
        for row in waiting:
            if len(joining) >= room or (budget is not None and budget <= 0):
                break
            row.prefix = None if row.owner is None else self._prefixes.find(row.owner, row.prompt_ids)
            row.cached_tokens = row.prefix.tokens if row.prefix else 0
            if (self._is_long(row) and self._reading) or self._waits_for_prefix(row, joining):
                row.prefix = None
                continue
            if self._is_long(row):
                self._reading = LongPrompt(row)
            elif budget is not None:
                budget -= row.unread_tokens
            self._counters["prompt_tokens"] += len(row.prompt_ids)
            self._prefixes.hit_tokens += row.cached_tokens
            joining.append(row)
            self._waiting.remove(row)
        return joining

    def _waits_for_prefix(self, row: TokenRow, joining: list[TokenRow]) -> bool:
        """Whether most of what is to be read of a prompt is being read for another row; it is found in the prefix cache then."""
        if row.owner is None or not self._prefixes.max_bytes or row.request_id in self._alone:
            return False
        active = [*joining, *([self._reading.row] if self._reading else [])]
        reading = [other for other in active if self._prefixes.fits(len(other.prompt_ids))]
        shared = max((common_tokens(row.prompt_ids, other.prompt_ids) for other in reading if other.owner == row.owner), default=0)
        return shared - row.cached_tokens >= max(MIN_SHARED_TOKENS, row.unread_tokens // 2)

    def _keep_prefixes(self, rows: list[TokenRow]) -> None:
        """Keep the caches of rows in the batch, as far as they were read. Where memory runs out nothing is kept, and the rows go on."""
        import torch

        try:
            for row in rows:
                if row.owner is not None and self._prefixes.max_bytes and not row.error:
                    ids = row.read_ids
                    if self._prefixes.fits(len(ids)) and not self._prefixes.holds(row.owner, ids):
                        self._prefixes.keep(row.owner, ids, self._batch.copy_cache(row, len(ids)))
        except torch.OutOfMemoryError:
            self._counters["memory_shortages"] += 1
            self._prefixes.give_back()

    def _collect_events(self) -> list[EngineEvent]:
        """The results of finished rows, which leave the batch, and the progress of others."""
        finished = [row for row in self._batch.rows if row.finish_reason]
        events: list[EngineEvent] = [self._end(row) for row in finished]
        events.extend(event for row in self._batch.rows if not row.finish_reason for event in self._progress(row))
        if finished:
            self._keep_prefixes(finished)
            self._batch.remove(finished)
            self._alone -= {row.request_id for row in finished}
            self._counters["questions"] += len(finished)
            events.append(self._metrics())
        return events

    def _end(self, row: TokenRow) -> Finished | Failed:
        """The result of a row, or its error, such as a schema that cannot be satisfied, or output that is no number."""
        if row.grammar and row.grammar.error:
            return failed(row.request_id, row.grammar.error)
        if row.error:
            if not self._is_tested:
                raise row.error
            return fail_request(row.request_id, row.error)
        return Finished(row.request_id, self._build_response(row))

    def _progress(self, row: TokenRow) -> list[Progressed]:
        due = len(row.output_ids) % PROGRESS_EVERY_TOKENS == 0
        return [Progressed(row.request_id, len(row.output_ids), row.max_tokens)] if due else []

    def _metrics(self) -> EngineMetrics:
        load_gauges = {name: float(self.info[name]) for name in ("memory_before_bytes", "memory_after_bytes", "model_bytes")}
        current = {
            "memory_now_bytes": float(used_memory_bytes(self._device)),
            "rows": float(len(self._batch.rows)),
            "largest_batch": float(self._largest_batch),
            "prefix_cache_bytes": float(self._prefixes.size),
        }
        counters = self._counters | {"prefix_hit_tokens": float(self._prefixes.hit_tokens)}
        return EngineMetrics(counters, load_gauges | current | self._meter.gauges())

    def _restart_with_smaller_batch(self, rows: list[TokenRow], message: str) -> list[EngineEvent]:
        """Memory ran out: start all rows again, half as many at once as were active. The answers do not change. The memory of the prefix
        cache is given back first, and it stays smaller; where there was some, as many rows are tried again.
        """
        active = len(rows) - len(self._waiting)
        held_bytes = self._prefixes.size
        if held_bytes:
            self._prefixes.give_back()
        self._batch, self._reading = self._new_batch(), None
        for row in rows:
            row.prefix = None
        free_memory()
        self._counters["memory_shortages"] += 1
        if held_bytes:
            self._waiting = []
            return self._start_again(rows)
        if active <= 1 or self._max_rows == 1:
            raise MemoryExhausted(message)
        self._max_rows = max(1, min(self._max_rows, active) // 2)
        self._waiting = []
        return self._start_again(rows)

    def _isolate(self, rows: list[TokenRow], error: Exception) -> list[EngineEvent]:
        """A step failed. The row that was alone in it fails; several start again, each alone, so that only those at fault fail."""
        if not rows:
            raise error
        self._batch, self._reading = self._new_batch(), None
        if len(rows) == 1:
            self._alone.discard(rows[0].request_id)
            return [fail_request(rows[0].request_id, error)]
        self._alone |= {row.request_id for row in rows}
        return self._start_again(rows)

    def _start_again(self, rows: list[TokenRow]) -> list[EngineEvent]:
        events: list[EngineEvent] = []
        for row in rows:
            try:
                self.submit(row.request_id, row.request)
            except PermanentError as error:
                self._alone.discard(row.request_id)
                events.append(failed(row.request_id, error))
        self._batch_due_at = 0.0
        return events

    def close(self) -> None:
        for row in self._compiling:
            leave_compilation(row)
        self._batch, self._reading, self._compiling = self._new_batch(), None, []
        free_memory()


def leave_compilation(row: TokenRow) -> None:
    """The row does not wait for its grammar any more."""
    if row.compilation:
        row.compilation.leave()
        row.compilation = None


def failed(request_id: int, error: PermanentError) -> Failed:
    return Failed(request_id, "permanent", error.code, str(error), error)
