"""Optional ways to make steps faster: compiled blocks and the layout `channels_last`. Each says why, where it cannot be used."""

from collections.abc import Callable
from typing import Any

import structlog
import torch

from actors.engines.diffusion.families.family import Family
from actors.engines.process.failures import is_device_failure

log = structlog.get_logger()


def compile_blocks(family: Family, draw_picture: Callable[[], None]) -> str | None:
    """Compile the kinds of block that the denoiser repeats, and draw a picture with them. The result is the cause when it fails, and then
    the blocks run as they did before.
    """
    try:
        family.denoiser.compile_repeated_blocks(dynamic=True)
        draw_picture()
    except Exception as error:
        if is_device_failure(error):
            raise
        for module in family.denoiser.modules():
            module._compiled_call_impl = None
        log.warning("model.not_compiled", family=family.name, exc_info=error)
        return f"IMAGE_COMPILE cannot be used with {family.name} here ({type(error).__name__}): its blocks are not compiled"
    return None


def use_channels_last(family: Family) -> str | None:
    """A U-Net and the VAE in the layout that tensor cores read. The result is the cause where their convolutions have three axes."""
    modules = {"VAE": family.pipeline.vae} | ({"U-Net": family.denoiser} if family.denoiser_part == "unet" else {})
    unfit = [name for name, module in modules.items() if not has_planes_only(module)]
    for name, module in modules.items():
        if name not in unfit:
            module.to(memory_format=torch.channels_last)
    if not unfit:
        return None
    log.warning("model.not_channels_last", family=family.name, parts=unfit)
    return f"IMAGE_CHANNELS_LAST cannot be used with the {' and '.join(unfit)} of {family.name}: its convolutions have three axes"


def has_planes_only(module: Any) -> bool:
    """Whether no weight is one of a convolution of three axes, which the layout does not know."""
    return all(weight.dim() != 5 for weight in module.parameters())
