"""The embedded text engine, in the model process: a causal language model with its chat template on the continuous batch."""

import json
from functools import partial
from typing import Any

from actors.engines.language.answer_text import AnswerText
from actors.engines.language.batch import TokenRow
from actors.engines.language.causal_families import batched_context_length, choose_attention, locate_weights, model_name
from actors.engines.language.chat_format import ChatFormat, texts_of
from actors.engines.language.compilation import Constraint
from actors.engines.language.control_words import ControlWords
from actors.engines.language.engine import LanguageEngine
from actors.engines.language.grammar import SHOWN_WORDS
from actors.engines.language.loading import used_memory_bytes
from actors.engines.language.logprobs import describe_tokens
from actors.engines.language.lora_adapters import load_adapters
from actors.engines.language.requests import GenerationRequest, PromptTooLong, TextModelOptions, TextResponse
from actors.engines.language.sampling import Sampling
from actors.engines.language.tool_calls import CALL, THINK, THINK_END, forces_call, offered_tools, stop_sequences, structural_tag
from actors.engines.process.gpu import choose_device, choose_dtype
from actors.engines.process.model_cache import load_complete
from actors.engines.process.protocol import EngineHost, Progressed
from bus.errors import PermanentError
from contracts.text import TokenLogprob

PART_TOKENS = {"cuda": 2048, "cpu": 128}
"""Tokens of a long prompt that are read between two steps; they take some seconds at most."""
STEP_SECONDS = {"cuda": 60.0, "cpu": 240.0}
"""The longest time without a heartbeat, which is one part of a prompt and one step."""
MIN_BYTES_PER_TOKEN = 16
"""Of the longest token of a vocabulary, at least: control words, which are removed, are no longer."""
CHARS_PER_TOKEN, SLICE_CHARS, SLICE_TOKENS = 4, 8192, 16
"""A prompt with more characters per token of the context is counted in slices first, each of which may add so many tokens by its cuts."""


def open_text_model(options: TextModelOptions, host: EngineHost) -> "TextModelEngine":
    """Load the tokenizer, the model and its adapters. Raises what transformers raises, and ValueError for a model without a chat template,
    one that is not proven, and an adapter that does not fit.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    if options.threads:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    host.report_load_progress(f"loading {options.model}", options.load_seconds, None)
    source, arguments = locate_weights(options.model)
    attention = choose_attention(AutoConfig.from_pretrained(source, **arguments), options.model)
    tokenizer = AutoTokenizer.from_pretrained(source, **arguments)
    if not tokenizer.chat_template:
        raise ValueError(f"{options.model} has no chat template: name an instruction-tuned model in VLLM_MODEL")
    before = used_memory_bytes(device)
    dtype = getattr(torch, choose_dtype(options.dtype, device))
    model = load_complete(AutoModelForCausalLM.from_pretrained, source, dtype=dtype, attn_implementation=attention, **arguments)
    model, adapters = load_adapters(model.to(device).eval(), options.loras)
    kind = "cuda" if device.startswith("cuda") else "cpu"
    info = {
        "model": model_name(options.model), "device": device, "dtype": str(model.dtype).removeprefix("torch."),
        "step_seconds": STEP_SECONDS[kind], "memory_before_bytes": before, "memory_after_bytes": used_memory_bytes(device),
        "model_bytes": model.get_memory_footprint(),
    }  # fmt: skip
    return TextModelEngine(model, tokenizer, info, options, options.part_tokens or PART_TOKENS[kind], adapters)


class TextModelEngine(LanguageEngine):
    """Continues chats and texts: sampled or greedy, streamed, with stop sequences, and with a grammar for JSON and for calls of tools.

    `adapters`: the names of the LoRA adapters, with those in PEFT.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        info: dict[str, Any],
        options: TextModelOptions,
        part_tokens: int,
        adapters: dict[str, str] | None = None,
    ) -> None:
        super().__init__(
            model, tokenizer, info, device=info["device"],
            max_rows=options.max_rows, window_seconds=options.window_seconds, part_tokens=part_tokens,
            prefix_cache_bytes=options.prefix_cache_bytes,
        )  # fmt: skip
        self._adapters = adapters or {}
        self._format = ChatFormat.of_tokenizer(tokenizer)
        self._shown_ids = frozenset(tokenizer.get_added_vocab()[word] for word in SHOWN_WORDS if word in tokenizer.get_added_vocab())
        length = batched_context_length(model.config, self._max_model_len)
        self._max_model_len = min(length, options.max_model_len or length)
        self._control_words = ControlWords.of_tokenizer(tokenizer)
        self._max_token_bytes = max(MIN_BYTES_PER_TOKEN, self._grammars.longest_token_bytes)
        self.info |= {"max_model_len": self._max_model_len, "thinks": self._format.thinks} | self._meter.gauges()

    def _test_request(self) -> GenerationRequest:
        return GenerationRequest([{"role": "user", "content": "?"}], max_tokens=1, temperature=0, top_p=1)

    def _read_request(self, request_id: int, request: GenerationRequest) -> TokenRow:
        if request.lora and request.lora not in self._adapters:
            known = ", ".join(self._adapters) or "none"
            raise PermanentError("lora-unknown", f"there is no adapter {request.lora[:255]!r}; TEXT_LORAS names {known}")
        ids, in_reasoning = self._tokenize(request)
        if len(ids) + request.max_tokens > self._max_model_len:
            raise PromptTooLong(len(ids), self._max_model_len)
        grammar = compilation = None
        if constraint := self._constraint(request, in_reasoning=in_reasoning):
            compilation = self._grammars.compile_in_thread(constraint)
            grammar = None if compilation else self._grammars.start(constraint, request.max_tokens)
        sampling = Sampling(
            temperature=request.temperature, top_p=request.top_p, repetition_penalty=request.repetition_penalty,
            presence_penalty=request.presence_penalty, frequency_penalty=request.frequency_penalty, seed=request.seed or 0,
        )  # fmt: skip
        until = CALL if offered_tools(request) else ""
        stop = stop_sequences(request)
        answer = AnswerText(self._tokenizer, stop, until=until, begin=THINK if in_reasoning else "", shown=self._shown_ids)
        adapter = self._adapters[request.lora] if request.lora else None
        return TokenRow(
            request_id, request, ids, {}, grammar, request.max_tokens, sampling, answer, compilation, adapter,
            owner=(request.tenant, adapter), logprobs=request.logprobs,
        )  # fmt: skip

    def _constraint(self, request: GenerationRequest, *, in_reasoning: bool) -> Constraint | None:
        """What the answer must be: calls of the offered tools, or JSON; None: any text."""
        if tools := offered_tools(request):
            choice = [request.tool_choice, request.tool_name, request.parallel_tool_calls, in_reasoning, request.schema]
            write = partial(structural_tag, request, in_reasoning=in_reasoning, thinks=self._format.thinks)
            is_optional = not forces_call(request) and request.schema is None
            key = json.dumps([*choice, [[tool["name"], tool.get("parameters")] for tool in tools]])
            return Constraint(key, write, optional=is_optional)
        return None if request.schema is None else Constraint(json.dumps(request.schema, sort_keys=False))

    def _tokenize(self, request: GenerationRequest) -> tuple[Any, bool]:
        """The token ids of the prompt, and whether the model's reasoning has begun in it. Raises PermanentError."""
        import torch

        size = sum(len(text.encode(errors="surrogatepass")) for text in texts_of(request))
        if size > self._max_token_bytes * self._max_model_len:
            raise PromptTooLong(size // self._max_token_bytes, self._max_model_len)
        clean = self._format.clean(request, self._control_words, self.info["model"])
        self._count_slices(texts_of(clean))
        prompt = self._format.render_clean(self._tokenizer, clean, self.info["model"])
        return torch.tensor(prompt.ids, dtype=torch.long), prompt.in_reasoning

    def _count_slices(self, texts: list[str]) -> None:
        """Raises PromptTooLong as soon as the first slices have more tokens than the context; a tokenizer needs a second for a megabyte."""
        chars = sum(map(len, texts))
        if chars <= CHARS_PER_TOKEN * self._max_model_len:
            return
        read_chars = tokens = 0
        for text in texts:
            for start in range(0, len(text), SLICE_CHARS):
                part = text[start : start + SLICE_CHARS]
                tokens += max(0, len(self._tokenizer.encode(part, add_special_tokens=False)) - SLICE_TOKENS)
                read_chars += len(part)
                if tokens > self._max_model_len:
                    raise PromptTooLong(tokens * chars // read_chars, self._max_model_len)

    def _progress(self, row: TokenRow) -> list[Progressed]:
        """A streamed answer reports each text, another one every few tokens that it goes on."""
        if not row.request.stream or row.answer is None:
            return super()._progress(row)
        start, text = row.answer.take_new()
        if not text:
            return []
        first = row.answer.tokens_before(start)
        return [
            Progressed(
                row.request_id, len(row.output_ids), row.max_tokens,
                text=text, text_start=start, logprobs=self._logprobs(row, first), logprobs_start=first,
            )
        ]  # fmt: skip

    def _logprobs(self, row: TokenRow, first: int = 0) -> tuple[TokenLogprob, ...]:
        """Of the tokens of the text, from number `first` on."""
        assert row.answer is not None
        return describe_tokens(row.measured[first : row.answer.tokens_before(len(row.answer.text))], self._spell)

    def _spell(self, token: int) -> bytes:
        return self._grammars.vocabulary[token] or str(self._tokenizer.convert_ids_to_tokens(token)).encode()

    def _reasoning_tokens(self, row: TokenRow) -> int:
        """Those up to the end of the reasoning with which the answer begins."""
        text = row.answer.text if row.answer else ""
        if not self._format.thinks or row.request.prompt is not None or not text.lstrip().startswith(THINK):
            return 0
        assert row.answer is not None
        end = text.find(THINK_END)
        return row.answer.tokens_before(end + len(THINK_END) if end >= 0 else len(text))

    def _build_response(self, row: TokenRow) -> TextResponse:
        assert row.answer is not None
        finish_reason: Any = "stop" if row.finish_reason == "stop" else "length"
        return TextResponse(
            row.answer.text, finish_reason, len(row.prompt_ids), len(row.output_ids),
            cached_tokens=row.cached_tokens, logprobs=self._logprobs(row), reasoning_tokens=self._reasoning_tokens(row),
        )  # fmt: skip
