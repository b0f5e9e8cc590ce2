"""What differs between families of vision models: the prompt, what the processor makes of it, and the positions of its tokens.

The batch, its grammars and its penalties know no family.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from PIL import Image

from actors.engines.language.families.processors import load_processor
from actors.engines.language.requests import VlmOptions

if TYPE_CHECKING:
    import torch

PROCESSOR_FILE = "processor_config.json"
IMAGE_PROCESSOR = f"image_processor of {PROCESSOR_FILE}, or preprocessor_config.json"
"""Where the fields of an image processor are: in the first since transformers 5."""
IDS_AND_MASK = ("input_ids", "attention_mask")


class ReadPrompt(NamedTuple):
    """`ids`: (tokens,). `inputs`: what the model takes of this prompt beside them, as a batch of one; empty without pictures."""

    ids: "torch.Tensor"
    inputs: dict[str, "torch.Tensor"]


class VisionFamily:
    """A family whose prompt is made by the chat template of its processor and whose positions count the tokens.

    `name`: in texts for people. `model_type`: in config.json. `feature_inputs`: of the inputs, those that become image features.
    `completes_processor`: what processor files of before 2025 lack is taken from config.json.
    """

    name: ClassVar[str]
    model_type: ClassVar[str]
    processor_class: ClassVar[str]
    feature_inputs: ClassVar[tuple[str, ...]] = ("pixel_values",)
    completes_processor: ClassVar[bool] = False

    def __init__(self, options: VlmOptions) -> None:
        """Load the processor. Raises ValueError, and what transformers raises."""
        self.source, self.processor = options.model, load_processor(self.processor_class, options)
        self.tokenizer = self.processor.tokenizer
        self.tokenizer.padding_side = "left"
        self._max_pixels: int | None = None
        self._check_template()
        if options.max_pixels:
            self.limit_pixels(options.max_pixels)

    @property
    def image_token(self) -> str:
        """The token that stands for one feature of a picture."""
        return str(self.processor.image_token)

    def describe_sizes(self) -> str:
        """What decides how many tokens a picture has, with the cure, for errors."""
        return f"{PROCESSOR_FILE} and preprocessor_config.json must be those of the model from which this one was made"

    def _check_template(self) -> None:
        self.processor.chat_template = self.processor.chat_template or self.tokenizer.chat_template
        if not self.processor.chat_template:
            raise ValueError(f"{self.source} has no chat template: add chat_template.jinja of the model from which this one was made")

    def limit_pixels(self, max_pixels: int) -> None:
        """Pictures with more pixels are scaled down before they are read."""
        self._max_pixels = max_pixels

    def prompt(self, text: str, picture_count: int) -> str:
        """The prompt of one user turn: its pictures, then its text. Raises what the template raises."""
        content = [*({"type": "image"} for _ in range(picture_count)), {"type": "text", "text": text}]
        conversation = [{"role": "user", "content": content}]
        return str(self.processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False))

    def read(self, prompt: str, pictures: Sequence[Image.Image]) -> ReadPrompt:
        """The tokens and the model's inputs of a prompt with its pictures, RGB. Raises what the processor raises.

        A prompt that begins with the BOS gets no second one.
        """
        begins_with_bos = bool(self.tokenizer.bos_token) and prompt.startswith(self.tokenizer.bos_token)
        images = [[self._scale(picture) for picture in pictures]] if pictures else None
        made = self.processor(images=images, text=[prompt], return_tensors="pt", add_special_tokens=not begins_with_bos)
        others = {name: value for name, value in made.items() if name not in IDS_AND_MASK and hasattr(value, "shape")}
        return ReadPrompt(made["input_ids"][0], others if pictures else {})

    def _scale(self, picture: Image.Image) -> Image.Image:
        if self._max_pixels is None or picture.width * picture.height <= self._max_pixels:
            return picture
        factor = (self._max_pixels / (picture.width * picture.height)) ** 0.5
        size = (max(1, int(picture.width * factor)), max(1, int(picture.height * factor)))
        return picture.resize(size, Image.Resampling.LANCZOS)

    def positions(
        self, model: Any, ids: "torch.Tensor", mask: "torch.Tensor", inputs: dict[str, "torch.Tensor"]
    ) -> tuple["torch.Tensor", int]:
        """The positions of a prompt with pictures, (1, tokens) or (3, 1, tokens), and how far the position after it is from its count of
        tokens. `ids`, `mask`: (1, tokens). Rows without pictures count their tokens in every family.
        """
        return mask.cumsum(-1) - 1, 0
