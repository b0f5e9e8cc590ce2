"""What the settings make of a model that was loaded: quantized, in another layout, compiled, on its device, with its blocks cached.

What cannot be done with a model is left out, with a warning that says so. What cannot be done right is refused.
"""

from functools import partial

from actors.engines.diffusion.acceleration import compile_blocks, use_channels_last
from actors.engines.diffusion.block_cache import BlockCache
from actors.engines.diffusion.checkpoint_check import draw_test_picture
from actors.engines.diffusion.families.family import Family
from actors.engines.diffusion.lora.slots import LoraSlots
from actors.engines.diffusion.quantization import quantize_denoiser
from actors.engines.diffusion.text_encoders import TextEncoders
from actors.engines.settings import ImageSettings


def prepare_model(family: Family, loras: LoraSlots, device: str, settings: ImageSettings) -> tuple[TextEncoders, tuple[str, ...]]:
    """Its text encoders, and the warnings. Raises PermanentError("block-cache-unsupported"), and what moving it to the device raises."""
    warnings = [quantize_denoiser(family, settings.quantize, device)]
    if settings.channels_last:
        warnings.append(use_channels_last(family))
    text_encoders = TextEncoders(family, device, settings.offload_text_encoders)
    text_encoders.place()
    text_encoders.offload_if_short(partial(draw_test_picture, family, full_size=True))
    if settings.block_cache_threshold:
        BlockCache(family, settings.block_cache_threshold, loras.set_row_adapters)
    if settings.compile and settings.block_cache_threshold:
        warnings.append("IMAGE_COMPILE has no effect while IMAGE_BLOCK_CACHE_THRESHOLD is set")
    elif settings.compile:
        loras.keep_out_of_compiled_code()
        warnings.append(compile_blocks(family, partial(draw_test_picture, family)))
    return text_encoders, tuple(filter(None, warnings))
