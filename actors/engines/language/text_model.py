"""The embedded text engine, in the model process: a causal language model with its chat template on the continuous batch."""

import json
from pathlib import Path
from typing import Any

from actors.engines.language.answer_text import AnswerText
from actors.engines.language.batch import TokenRow
from actors.engines.language.control_words import ControlWords
from actors.engines.language.engine import LanguageEngine
from actors.engines.language.loading import used_memory_bytes
from actors.engines.language.requests import GenerationRequest, PromptTooLong, TextModelOptions, TextResponse
from actors.engines.language.sampling import Sampling
from actors.engines.process.gpu import choose_device, choose_dtype
from actors.engines.process.model_cache import load_complete
from actors.engines.process.protocol import EngineHost, Progressed
from bus.errors import PermanentError

PART_TOKENS = {"cuda": 2048, "cpu": 128}
"""Tokens of a long prompt that are read between two steps; they take some seconds at most."""
STEP_SECONDS = {"cuda": 60.0, "cpu": 240.0}
"""The longest time without a heartbeat, which is one part of a prompt and one step."""
MIN_BYTES_PER_TOKEN = 16
"""Of the longest token of a vocabulary, at least: control words, which are removed, are no longer."""
CHARS_PER_TOKEN, SLICE_CHARS, SLICE_TOKENS = 4, 8192, 16
"""A prompt with more characters per token of the context is counted in slices first, each of which may add so many tokens by its cuts."""


def open_text_model(options: TextModelOptions, host: EngineHost) -> "TextModelEngine":
    """Load the tokenizer and the model. Raises what transformers raises, and ValueError for a model without a chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if options.threads:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    host.report_load_progress(f"loading {options.model}", options.load_seconds, None)
    source, arguments = locate_weights(options.model)
    tokenizer = AutoTokenizer.from_pretrained(source, **arguments)
    if not tokenizer.chat_template:
        raise ValueError(f"{options.model} has no chat template: name an instruction-tuned model in VLLM_MODEL")
    before = used_memory_bytes(device)
    dtype = getattr(torch, choose_dtype(options.dtype, device))
    model = load_complete(AutoModelForCausalLM.from_pretrained, source, dtype=dtype, attn_implementation="sdpa", **arguments)
    model = model.to(device).eval()
    kind = "cuda" if device.startswith("cuda") else "cpu"
    info = {
        "model": model_name(options.model), "device": device, "dtype": str(model.dtype).removeprefix("torch."),
        "step_seconds": STEP_SECONDS[kind], "memory_before_bytes": before, "memory_after_bytes": used_memory_bytes(device),
        "model_bytes": model.get_memory_footprint(),
    }  # fmt: skip
    return TextModelEngine(model, tokenizer, info, options, options.part_tokens or PART_TOKENS[kind])


def locate_weights(model: str) -> tuple[str, dict[str, str]]:
    """The folder or hub id, and the arguments that its format needs: a `.gguf` file, or a folder with one and no config.json."""
    path = Path(model).expanduser()
    if path.suffix == ".gguf":
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir() and not (path / "config.json").exists() and len(files := list(path.glob("*.gguf"))) == 1:
        return str(path), {"gguf_file": files[0].name}
    return (str(path) if path.is_dir() else model), {}


def model_name(model: str) -> str:
    """The name in answers: that of the folder, or the hub id."""
    path = Path(model).expanduser()
    return path.name.removesuffix(".gguf") if path.exists() else model


class TextModelEngine(LanguageEngine):
    """Continues chats: sampled or greedy, streamed, with stop sequences, and with a grammar where JSON is requested."""

    def __init__(self, model: Any, tokenizer: Any, info: dict[str, Any], options: TextModelOptions, part_tokens: int) -> None:
        super().__init__(
            model, tokenizer, info, device=info["device"],
            max_rows=options.max_rows, window_seconds=options.window_seconds, part_tokens=part_tokens,
        )  # fmt: skip
        self._max_model_len = min(self._max_model_len, options.max_model_len or self._max_model_len)
        self._control_words = ControlWords.of_tokenizer(tokenizer)
        self._max_token_bytes = max(MIN_BYTES_PER_TOKEN, self._grammars.longest_token_bytes)
        self.info |= {"max_model_len": self._max_model_len} | self._meter.gauges()

    def _test_request(self) -> GenerationRequest:
        return GenerationRequest([{"role": "user", "content": "?"}], max_tokens=1, temperature=0, top_p=1)

    def _read_request(self, request_id: int, request: GenerationRequest) -> TokenRow:
        if request.lora:
            raise PermanentError("lora-unknown", f"there is no adapter {request.lora!r}: the embedded text engine has none")
        ids = self._tokenize(request.messages)
        if len(ids) + request.max_tokens > self._max_model_len:
            raise PromptTooLong(len(ids), self._max_model_len)
        grammar = compilation = None
        if request.schema is not None:
            schema = json.dumps(request.schema, sort_keys=False)
            compilation = self._grammars.compile_in_thread(schema)
            grammar = None if compilation else self._grammars.start(schema, request.max_tokens)
        sampling = Sampling(
            temperature=request.temperature, top_p=request.top_p, repetition_penalty=request.repetition_penalty,
            presence_penalty=request.presence_penalty, frequency_penalty=request.frequency_penalty, seed=request.seed or 0,
        )  # fmt: skip
        stop = () if request.schema is not None else request.stop  # a stop sequence would cut the JSON
        answer = AnswerText(self._tokenizer, stop)
        return TokenRow(request_id, request, ids, {}, grammar, request.max_tokens, sampling, answer, compilation)

    def _tokenize(self, messages: list[dict[str, Any]]) -> Any:
        """The token ids of the chat. Raises PermanentError."""
        import torch

        if any(not isinstance(message["content"], str) for message in messages):
            raise PermanentError("vision-unsupported", f"{self.info['model']} reads no images: name a vision model, or send text only")
        size = sum(len(message["content"].encode(errors="surrogatepass")) for message in messages)
        if size > self._max_token_bytes * self._max_model_len:
            raise PromptTooLong(size // self._max_token_bytes, self._max_model_len)
        clean = [message | {"content": self._control_words.remove_from(message["content"])} for message in messages]
        try:
            self._count_slices([message["content"] for message in clean])
            ids = self._tokenizer.apply_chat_template(clean, add_generation_prompt=True, tokenize=True, return_dict=False)
        except PromptTooLong:
            raise
        except Exception as error:
            raise PermanentError("prompt-unreadable", f"the model's chat template rejects the messages: {error}") from error
        return torch.tensor(ids, dtype=torch.long)

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
        return [Progressed(row.request_id, len(row.output_ids), row.max_tokens, text=text, text_start=start)] if text else []

    def _build_response(self, row: TokenRow) -> TextResponse:
        assert row.answer is not None
        finish_reason: Any = "stop" if row.finish_reason == "stop" else "length"
        return TextResponse(row.answer.text, finish_reason, len(row.prompt_ids), len(row.output_ids))
