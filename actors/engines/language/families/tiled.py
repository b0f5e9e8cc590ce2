"""Families with a fixed number of tokens for each tile of a picture, or for the whole picture."""

from actors.engines.language.families.family import PROCESSOR_FILE, VisionFamily


class Gemma3(VisionFamily):
    """A picture has the same number of tokens whatever its size; they attend to each other in both directions."""

    name, model_type, processor_class = "Gemma3", "gemma3", "Gemma3Processor"

    @property
    def image_token(self) -> str:
        """`image_token` of the processor is the begin of a picture here."""
        return str(self.tokenizer.image_token)

    def describe_sizes(self) -> str:
        length = self.processor.image_seq_length
        return f"Correct {PROCESSOR_FILE}: image_seq_length (now {length}) must be mm_tokens_per_image of config.json"


class InternVl(VisionFamily):
    """A picture is read in up to `max_patches` tiles of one size, whatever its own size, and as a whole."""

    name, model_type, processor_class = "InternVL", "internvl", "InternVLProcessor"

    def limit_pixels(self, max_pixels: int) -> None:
        """Of all tiles together."""
        images = self.processor.image_processor
        tile = images.size["height"] * images.size["width"]
        images.max_patches = max(1, min(images.max_patches, max_pixels // tile))
        images.min_patches = min(images.min_patches, images.max_patches)

    def describe_sizes(self) -> str:
        length, side = self.processor.image_seq_length, self.processor.image_processor.size["height"]
        return (
            f"Correct {PROCESSOR_FILE}: image_seq_length (now {length}) is (image_size / patch_size)² · downsample_ratio² of config.json, "
            f"and the size of its tiles (now {side}) is image_size of vision_config"
        )


class Idefics3(VisionFamily):
    """A picture is scaled to one longest side, also a smaller one, and read in square tiles and as a whole."""

    name, model_type, processor_class = "Idefics3, SmolVLM 1", "idefics3", "Idefics3Processor"
    feature_inputs = ("pixel_values", "pixel_attention_mask")

    def limit_pixels(self, max_pixels: int) -> None:
        """Of all tiles together, when the picture is square."""
        images = self.processor.image_processor
        tile = images.max_image_size["longest_edge"]
        side = max(1, int(max_pixels**0.5) // tile) * tile
        images.size = {"longest_edge": min(images.size["longest_edge"], side)}

    def describe_sizes(self) -> str:
        length, side = self.processor.image_seq_len, self.processor.image_processor.max_image_size["longest_edge"]
        return (
            f"Correct {PROCESSOR_FILE}: image_seq_len (now {length}) is (image_size / patch_size)² / scale_factor² of config.json, "
            f"and max_image_size (now {side}) is image_size of vision_config"
        )


class SmolVlm(Idefics3):
    """The second version, whose pictures are those of Idefics3; its own processor reads videos too, and needs more packages for them."""

    name, model_type = "SmolVLM 2", "smolvlm"
