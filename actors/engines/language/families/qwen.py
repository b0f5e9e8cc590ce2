"""The Qwen-VL families: tokens as the pixels of a picture ask for, and rotary positions in three dimensions (M-RoPE)."""

from typing import TYPE_CHECKING, Any

from actors.engines.language.families.family import IMAGE_PROCESSOR, VisionFamily

if TYPE_CHECKING:
    import torch


class Qwen25Vl(VisionFamily):
    name, model_type, processor_class = "Qwen2.5-VL", "qwen2_5_vl", "Qwen2_5_VLProcessor"
    feature_inputs = ("pixel_values", "image_grid_thw")

    def limit_pixels(self, max_pixels: int) -> None:
        """The processor scales pictures itself."""
        images = self.processor.image_processor
        shortest, longest = images.size["shortest_edge"], min(images.size["longest_edge"], max_pixels)
        images.size = {"shortest_edge": min(shortest, longest), "longest_edge": longest}

    def describe_sizes(self) -> str:
        images = self.processor.image_processor
        return (
            f"Correct {IMAGE_PROCESSOR}: patch_size (now {images.patch_size}), temporal_patch_size (now {images.temporal_patch_size}) "
            f"and merge_size (now {images.merge_size}) must be patch_size, temporal_patch_size and spatial_merge_size of vision_config in "
            "config.json"
        )

    def positions(
        self, model: Any, ids: "torch.Tensor", mask: "torch.Tensor", inputs: dict[str, "torch.Tensor"]
    ) -> tuple["torch.Tensor", int]:
        """A picture takes fewer positions than it has tokens: its rows and columns are positions of their own.

        The model would keep the difference for the next step as its own state, which all rows of a batch share: it is not used.
        """
        kinds = inputs["mm_token_type_ids"].to(ids.device)
        positions, deltas = model.model.get_rope_index(
            ids, mm_token_type_ids=kinds, image_grid_thw=inputs["image_grid_thw"].to(ids.device), attention_mask=mask
        )
        return positions, int(deltas)


class Qwen3Vl(Qwen25Vl):
    name, model_type, processor_class = "Qwen3-VL", "qwen3_vl", "Qwen3VLProcessor"
