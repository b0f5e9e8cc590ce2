"""The vision engine, in the model process: a vision-language model on the continuous batch."""

import io
from typing import Any

from PIL import Image

from actors.engines.language.batch import TokenRow
from actors.engines.language.checkpoint_check import PROCESSOR_FILE, check_image_tokens, sample_picture
from actors.engines.language.control_words import ControlWords
from actors.engines.language.engine import LanguageEngine
from actors.engines.language.loading import LoadedModel, load_model
from actors.engines.language.requests import VisionFinishReason, VlmOptions, VlmRequest, VlmResponse
from actors.engines.language.sampling import Sampling
from actors.engines.process.protocol import EngineHost
from bus.errors import PermanentError


def open_engine(options: VlmOptions, host: EngineHost) -> "VlmEngine":
    return VlmEngine(load_model(options, host), options)


class VlmEngine(LanguageEngine):
    """Answers a question about an image, greedily."""

    def __init__(self, loaded: LoadedModel, options: VlmOptions) -> None:
        tokenizer = loaded.processor.tokenizer
        super().__init__(
            loaded.model, tokenizer, loaded.info, device=loaded.device,
            max_rows=options.max_rows, window_seconds=options.window_seconds, part_tokens=None,
        )  # fmt: skip
        self._loaded, self._options = loaded, options
        self._control_words = ControlWords.of_tokenizer(tokenizer, loaded.processor.image_token)

    def _test_request(self) -> VlmRequest:
        return VlmRequest("?", images=(sample_picture(),), max_new_tokens=1)

    def self_test(self) -> None:
        """Read one picture and generate one token. Raises ValueError for processor files that do not fit the model, RuntimeError."""
        try:
            ids, inputs = self._preprocess(self._test_request())
        except PermanentError as error:
            files = f"check config.json and {PROCESSOR_FILE} of {self._options.model}"
            raise ValueError(f"the test picture could not be read: {error}; {files}") from error
        check_image_tokens(self._model, self._loaded.processor, ids, inputs["pixel_values"], self._options.model)
        super().self_test()

    def _read_request(self, request_id: int, request: VlmRequest) -> TokenRow:
        ids, inputs = self._preprocess(request)
        if len(ids) + request.max_new_tokens > self._max_model_len:
            tokens = f"{len(ids)} tokens of prompt and {request.max_new_tokens} of answer"
            raise PermanentError("prompt-too-long", f"{tokens} exceed the model's context of {self._max_model_len}.")
        grammar = self._grammars.start(request.schema, request.max_new_tokens) if request.schema else None
        sampling = Sampling(repetition_penalty=request.repetition_penalty)
        return TokenRow(request_id, request, ids, inputs, grammar, request.max_new_tokens, sampling)

    def _preprocess(self, request: VlmRequest) -> tuple[Any, dict[str, Any]]:
        """The token ids of the prompt, and the model's inputs beside them, which are those of the pictures."""
        token = self._loaded.processor.image_token
        prompt = self._options.prompt_template.format(
            image=f"{token}\n" * len(request.images), text=self._control_words.remove_from(request.text)
        )
        try:
            images = [Image.open(io.BytesIO(image), formats=("PNG",)).convert("RGB") for image in request.images]
            inputs = self._loaded.processor(images=images or None, text=[prompt], return_tensors="pt")
        except Exception as error:
            code = "image-unreadable" if request.images else "prompt-unreadable"
            raise PermanentError(code, f"the model's processor rejects the request: {error}") from error
        others = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
        return inputs["input_ids"][0], others

    def _build_response(self, row: TokenRow) -> VlmResponse:
        text = self._tokenizer.decode(row.output_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        constrained = row.grammar is not None
        finish_reason: VisionFinishReason = "stop" if row.finish_reason == "stop" else "length"
        model = str(self.info["model"])
        return VlmResponse(text.strip(), finish_reason, model, len(row.prompt_ids), len(row.output_ids), constrained, row.batch_size)
