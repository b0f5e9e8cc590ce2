"""The LLaVA families: 1.5 with a prompt template of its own, NeXT and OneVision with tiles of high resolution."""

from actors.engines.language.families.family import IMAGE_PROCESSOR, PROCESSOR_FILE, VisionFamily
from actors.engines.language.requests import VlmOptions


class Llava(VisionFamily):
    """LLaVA-1.5. Its prompt template is a setting, since checkpoints of that age have no chat template, or another one."""

    name, model_type, processor_class = "LLaVA-1.5", "llava", "LlavaProcessor"
    completes_processor = True

    def __init__(self, options: VlmOptions) -> None:
        self._template = options.prompt_template
        super().__init__(options)

    def _check_template(self) -> None:
        """The setting always has one."""

    def prompt(self, text: str, picture_count: int) -> str:
        return self._template.format(image=f"{self.image_token}\n" * picture_count, text=text)

    def describe_sizes(self) -> str:
        processor = self.processor
        return (
            f"Correct {PROCESSOR_FILE}: patch_size (now {processor.patch_size}) and vision_feature_select_strategy "
            f"(now {processor.vision_feature_select_strategy!r}) must be those of config.json; "
            f"num_additional_image_tokens (now {processor.num_additional_image_tokens}) is 1 for CLIP and 0 for SigLIP"
        )


class LlavaNext(Llava):
    """A picture is read as a whole and in tiles. The processor chooses the grid that fits its size best, so that a smaller picture has
    fewer tiles.
    """

    name, model_type, processor_class = "LLaVA-NeXT", "llava_next", "LlavaNextProcessor"
    feature_inputs = ("pixel_values", "image_sizes")
    completes_processor = False
    _check_template, prompt = VisionFamily._check_template, VisionFamily.prompt

    def describe_sizes(self) -> str:
        grids = self.processor.image_processor.image_grid_pinpoints
        return f"{super().describe_sizes()}; image_grid_pinpoints (now {grids}) of {IMAGE_PROCESSOR}, must be those of config.json"


class LlavaOneVision(VisionFamily):
    """As LLaVA-NeXT; several pictures in one prompt are read without tiles."""

    name, model_type, processor_class = "LLaVA-OneVision", "llava_onevision", "LlavaOnevisionProcessor"
    feature_inputs = ("pixel_values", "image_sizes", "batch_num_images")

    def describe_sizes(self) -> str:
        processor = self.processor
        return (
            f"Correct {PROCESSOR_FILE}: num_image_tokens (now {processor.num_image_tokens}) is (image_size / patch_size)² of vision_config "
            f"in config.json, and vision_feature_select_strategy (now {processor.vision_feature_select_strategy!r}) and "
            f"image_grid_pinpoints of {IMAGE_PROCESSOR}, must be those of config.json"
        )
