"""ControlNets of IMAGE_CONTROLNETS: whether one fits a model is known from its configuration, before its weights are read.

Each is loaded at the first order that names it and kept beside the models, within their memory budget.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import torch

from actors.engines.diffusion.checkpoint import find_checkpoint
from actors.engines.diffusion.families.family import Family
from actors.engines.process.failures import describe_error, is_device_failure
from actors.engines.process.gpu import free_memory
from actors.engines.process.model_cache import describe_missing
from actors.engines.process.protocol import EngineHost
from bus.errors import PermanentError, TemporaryError

log = structlog.get_logger()

KIND, CONFIG = "ControlNetModel", "config.json"
PREFIX = "controlnet:"
"""Of the names of ControlNets in the cache of models."""
LOAD_TIMEOUT_SECONDS = 600.0
ADDED_CONDITIONS = ("addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim")
"""What the U-Net of SDXL and its ControlNets read beside the text."""


@dataclass(eq=False)
class LoadedControlNet:
    """`net`: of diffusers, in the models' dtype and on their device."""

    name: str
    net: Any


def cache_name(controlnet: str) -> str:
    return PREFIX + controlnet


def controlnet_of(name: str) -> str | None:
    """The ControlNet of a name in the cache; None: it is a checkpoint."""
    return name.removeprefix(PREFIX) if name.startswith(PREFIX) else None


class ControlNets:
    """Those that orders may name: name → folder or hub id."""

    def __init__(self, sources: dict[str, str], device: str, dtype: str, host: EngineHost) -> None:
        self.sources, self.device, self.dtype, self.host = sources, device, getattr(torch, dtype), host
        self._outlines: dict[str, Any] = {}

    def check_name(self, name: str) -> None:
        if name not in self.sources:
            known = ", ".join(self.sources) or "none"
            raise PermanentError("control-unknown", f"{name!r} is not in IMAGE_CONTROLNETS: {known}")

    def check_fit(self, name: str, family: Family) -> None:
        """Raises PermanentError("control-unfit"), TemporaryError("model-unusable")."""
        check_fit(name, self.outline(name).config, family)

    def size_bytes(self, name: str) -> int:
        """The memory that its weights take."""
        return sum(tensor.numel() * self.dtype.itemsize for tensor in self.outline(name).parameters())

    def outline(self, name: str) -> Any:
        """The ControlNet without its weights. Raises TemporaryError("model-unusable")."""
        if name not in self._outlines:
            try:
                self._outlines[name] = read_outline(self.sources[name])
            except Exception as error:
                raise self._unusable(name, error) from error
        return self._outlines[name]

    def load(self, name: str) -> LoadedControlNet:
        """Raises TemporaryError("model-unusable") with the cause: another worker may have a whole one, and this one after a repair."""
        self.host.report_load_progress(f"loading the ControlNet {name}", LOAD_TIMEOUT_SECONDS, None)
        try:
            return LoadedControlNet(name, load_weights(self.sources[name], self.dtype).to(self.device))
        except Exception as error:
            if is_device_failure(error):
                raise
            raise self._unusable(name, error) from error

    def _unusable(self, name: str, error: Exception) -> TemporaryError:
        log.error("controlnet.unusable", controlnet=name, exc_info=error)
        return TemporaryError(f"the ControlNet {name} cannot be used: {describe_error(error, 600)}", code="model-unusable")


def read_outline(source: str) -> Any:
    """A ControlNet without weights, for its configuration and its size. `source`: a folder or a hub id. Raises ValueError."""
    import diffusers

    try:
        config = diffusers.ControlNetModel.load_config(local_source(source))
    except OSError as error:
        raise ValueError(f"it has no config.json that can be read ({type(error).__name__}): name the folder of a ControlNet") from error
    if config.get("_class_name") != KIND:
        raise ValueError(f"it is a {str(config.get('_class_name'))[:100]} (config.json), not a {KIND}")
    with torch.device("meta"):
        return diffusers.ControlNetModel.from_config(config)


def check_fit(name: str, config: Any, family: Family) -> None:
    """Whether a ControlNet, by its configuration, is for this model. Raises PermanentError("control-unfit") with what differs."""
    unet = family.denoiser.config
    wanted = {
        "in_channels": unet.out_channels,
        "cross_attention_dim": unet.cross_attention_dim,
        "block_out_channels": tuple(unet.block_out_channels),
        "layers_per_block": unet.layers_per_block,
        "conditioning_channels": 3,
        "class_embed_type": None,
    }
    if config.addition_embed_type is not None:
        wanted |= {key: unet.get(key) for key in ADDED_CONDITIONS}
    for key, value in wanted.items():
        given = tuple(config[key]) if isinstance(value, tuple) else config[key]
        if given != value:
            raise unfit(name, f"its {key} is {given}, that of this {family.name} is {value}")
    scale = 2 ** (len(config.conditioning_embedding_out_channels) - 1)
    if scale != family.vae_scale:
        raise unfit(name, f"it scales pictures by {scale}, the VAE by {family.vae_scale}")


def unfit(name: str, difference: str) -> PermanentError:
    return PermanentError("control-unfit", f"the ControlNet {name!r} is for another model: {difference}")


def load_weights(source: str, dtype: torch.dtype) -> Any:
    """A ControlNet in `dtype`, on the CPU. Raises ValueError when its files lack weights."""
    import diffusers

    # A hub id goes to the library, which downloads what the cache lacks: the outline needed the configuration alone.
    place = str(Path(source).expanduser()) if Path(source).expanduser().is_dir() else source
    net = diffusers.ControlNetModel.from_pretrained(place, dtype=dtype)
    if lacking := [key for key, tensor in net.named_parameters() if tensor.is_meta]:
        raise ValueError(describe_missing(source, lacking))
    return net.eval()


def local_source(source: str) -> str:
    """The folder of a ControlNet that is on this disk, else the hub id as it is."""
    return str(find_checkpoint(source, CONFIG) or source)


def unload_controlnet(loaded: LoadedControlNet) -> None:
    loaded.net = None
    free_memory()
