"""The vision engine, in the model process: a vision-language model on the continuous batch."""

import io
from collections.abc import Sequence
from functools import partial

from PIL import Image

from actors.engines.language.batch import ContinuousBatch, TokenRow
from actors.engines.language.checkpoint_check import MAX_CAUSE_CHARS, check_image_tokens, read_sample, sample_picture
from actors.engines.language.compilation import Constraint
from actors.engines.language.control_words import ControlWords
from actors.engines.language.engine import LanguageEngine
from actors.engines.language.families.family import ReadPrompt
from actors.engines.language.loading import LoadedModel, load_model
from actors.engines.language.requests import VisionFinishReason, VlmOptions, VlmRequest, VlmResponse
from actors.engines.language.sampling import Sampling
from actors.engines.process.failures import describe_error
from actors.engines.process.protocol import EngineHost
from bus.errors import PermanentError

MAX_PICTURES = 9
"""In one question, as in the contract of consult. Each takes memory before it is known how many tokens it has."""


def open_engine(options: VlmOptions, host: EngineHost) -> "VlmEngine":
    return VlmEngine(load_model(options, host), options)


class VlmEngine(LanguageEngine):
    """Answers a question about pictures, greedily. The family says what the prompt is and where its tokens stand."""

    def __init__(self, loaded: LoadedModel, options: VlmOptions) -> None:
        self._family, tokenizer = loaded.family, loaded.family.tokenizer
        super().__init__(
            loaded.model, tokenizer, loaded.info, device=loaded.device,
            max_rows=options.max_rows, window_seconds=options.window_seconds, part_tokens=None,
        )  # fmt: skip
        self._control_words = ControlWords.of_tokenizer(tokenizer, loaded.family.image_token)

    def _new_batch(self) -> ContinuousBatch:
        positions = partial(self._family.positions, self._model)
        return ContinuousBatch(self._model, self._grammars, self._stop_token_ids, self._vocab_size, positions)

    def _test_request(self) -> VlmRequest:
        return VlmRequest("?", images=(sample_picture(),), max_new_tokens=1)

    def self_test(self) -> None:
        """Read one picture and generate one token. Raises ValueError for processor files that do not fit the model, RuntimeError."""
        check_image_tokens(self._model, self._family, read_sample(self._family))
        super().self_test()

    def _read_request(self, request_id: int, request: VlmRequest) -> TokenRow:
        ids, inputs = self._preprocess(request)
        if len(ids) + request.max_new_tokens > self._max_model_len:
            tokens = f"{len(ids)} tokens of prompt and {request.max_new_tokens} of answer"
            raise PermanentError("prompt-too-long", f"{tokens} exceed the model's context of {self._max_model_len}.")
        grammar = self._grammars.start(Constraint(request.schema), request.max_new_tokens) if request.schema else None
        sampling = Sampling(repetition_penalty=request.repetition_penalty)
        return TokenRow(request_id, request, ids, inputs, grammar, request.max_new_tokens, sampling)

    def _preprocess(self, request: VlmRequest) -> ReadPrompt:
        """The tokens of the prompt with its pictures. Raises PermanentError."""
        if len(request.images) > MAX_PICTURES:
            raise PermanentError("too-many-pictures", f"{len(request.images)} pictures are more than the {MAX_PICTURES} of one question.")
        text, pictures = self._control_words.remove_from(request.text), decode_pictures(request.images)
        try:
            return self._family.read(self._family.prompt(text, len(pictures)), pictures)
        except Exception as error:
            code = "image-unreadable" if request.images else "prompt-unreadable"
            cause = describe_error(error, MAX_CAUSE_CHARS)
            raise PermanentError(code, f"the model's processor rejects the request: {cause}") from error

    def _build_response(self, row: TokenRow) -> VlmResponse:
        text = self._tokenizer.decode(row.output_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        constrained = row.grammar is not None
        finish_reason: VisionFinishReason = "stop" if row.finish_reason == "stop" else "length"
        model = str(self.info["model"])
        return VlmResponse(text.strip(), finish_reason, model, len(row.prompt_ids), len(row.output_ids), constrained, row.batch_size)


def decode_pictures(images: Sequence[bytes]) -> list[Image.Image]:
    """RGB. Raises PermanentError that says which is no PNG."""
    pictures = []
    for number, data in enumerate(images, start=1):
        try:
            with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
                pictures.append(picture.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise PermanentError("image-unreadable", f"picture {number} of {len(images)} is no PNG that can be read") from error
    return pictures
