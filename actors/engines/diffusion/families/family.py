"""What each family of diffusion models does in its own way: encoding, schedule, latents, denoising, guidance, decoding, LoRA keys.

A family is a subclass of `Family`, and all that differs from this class is in its module. The engine knows no family.
R is the number of halves in one call: a guided row has two, the negative one first. Tensors of one row have a leading axis of 1.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from actors.engines.diffusion.batching import Condition, DiffusionRow
from actors.engines.diffusion.requests import EditSource, InputPicture, ResolvedRequest
from actors.engines.diffusion.schedulers import build_scheduler

EditKind = Literal["img2img", "inpaint", "control"]


@dataclass(frozen=True)
class Defaults:
    """What an order gets that does not say it. `side`: pixels of both sides."""

    side: int = 512
    steps: int = 50
    guidance_scale: float = 7.5
    scheduler: str = "dpm++"


@dataclass(frozen=True)
class LayerAlias:
    """Another name that trainers give a layer. `rows`: which rows of a fused layer's output are this layer's; None: all."""

    name: str
    rows: tuple[int, int] | None = None


class Family(ABC):
    """One model in memory, through the eyes of its family. `pipeline`: the one of diffusers, in its dtype and on its device.

    A request that a family gets has all its parameters: `width`, `height`, `steps`, `guidance_scale`, `scheduler`.
    """

    name: ClassVar[str]
    indexes: ClassVar[tuple[str, ...]]
    """`_class_name`s of model_index.json that belong to the family."""
    loader: ClassVar[str]
    """The class of diffusers that loads the checkpoint."""
    parts: ClassVar[tuple[str, ...]]
    """The parts that model_index.json must name; the weights of each are read when it is loaded."""
    optional_parts: ClassVar[tuple[str, ...]] = ()
    """Parts that model_index.json may leave out."""
    has_safety_checker: ClassVar[bool] = False
    """Whether its pipelines have an optional safety checker."""
    denoiser_part: ClassVar[str] = "transformer"
    lora_prefixes: ClassVar[Mapping[str, str]] = {"transformer.": "transformer", "base_model.model.": "transformer"}
    """What LoRA keys begin with → the part that they change."""
    schedulers: ClassVar[tuple[str, ...]] = ("euler",)
    """Names of `contracts.image.SchedulerName` that an order may give."""
    defaults: Defaults = Defaults()
    """Of the class; a checkpoint that has others sets them when it is loaded."""
    prompt_tokens: ClassVar[int]
    """The longest prompt that is read; a longer one is refused."""
    side_multiple: ClassVar[int] = 8
    edits: ClassVar[frozenset[EditKind]] = frozenset({"img2img", "inpaint"})
    latent_channels: ClassVar[int] = 4
    patch: ClassVar[int] = 1
    """Latents on each side of a square that the denoiser reads as one token."""
    takes_true_cfg: ClassVar[bool] = False
    """Whether an order may have a `true_cfg_scale`."""
    cached_blocks: ClassVar[tuple[str, ...]] = ()
    """The denoiser's lists of blocks, in the order of a call, of which `block_cache` may leave out all but the first; none: it cannot."""
    has_inpainting_checkpoints: ClassVar[bool] = False
    """Whether there are checkpoints of it whose denoiser reads a mask."""
    mask_beside: bool = False
    """Whether the denoiser reads mask and masked picture beside the latents; such checkpoints draw nothing but inpaintings."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self.vae_scale: int = pipeline.vae_scale_factor
        scale = self.vae_scale * self.patch
        self._pictures = VaeImageProcessor(vae_scale_factor=scale)
        self._hints = VaeImageProcessor(vae_scale_factor=scale, do_convert_rgb=True, do_normalize=False)
        self._masks = VaeImageProcessor(vae_scale_factor=scale, do_normalize=False, do_binarize=True, do_convert_grayscale=True)

    @property
    def denoiser(self) -> Any:
        return getattr(self.pipeline, self.denoiser_part)

    @property
    def dtype(self) -> torch.dtype:
        return self.denoiser.dtype

    @property
    def device(self) -> torch.device:
        return self.denoiser.device

    @property
    def text_device(self) -> torch.device:
        """Where prompts are encoded; the text encoders need not be where the denoiser is."""
        return self.pipeline.text_encoder.device

    # -- a checkpoint

    @classmethod
    def download(cls, name: str) -> Path:
        """The folder in the hub's cache with all files of a hub id that its pipeline needs."""
        import diffusers

        return Path(getattr(diffusers, cls.loader).download(name))

    @classmethod
    def load(cls, source: str, dtype: torch.dtype, **parts: Any) -> Any:
        """The pipeline of a folder or hub id. `parts`: those that are already loaded, None for one that is left out."""
        import diffusers

        return getattr(diffusers, cls.loader).from_pretrained(source, dtype=dtype, **parts)

    @classmethod
    def vae_dtype(cls, config: Mapping[str, Any], dtype: torch.dtype) -> torch.dtype:
        """The dtype that the VAE is kept in, by its config.json, when the model is in `dtype`."""
        return dtype

    @property
    def own_side(self) -> int:
        """Pixels of both sides of the checkpoint's own size."""
        latents = getattr(self.pipeline, "default_sample_size", None) or self.denoiser.config.get("sample_size")
        return latents * self.vae_scale if isinstance(latents, int) else self.defaults.side

    def check(self) -> None:  # noqa: B027 - not every family has more to check
        """Raises ValueError for parts that are of different models. That no weight is missing is verified for all families."""

    # -- one order

    def group(self, request: ResolvedRequest, conditions: Sequence[Condition]) -> Hashable:
        """Beside model and size: rows with equal groups may share a call."""
        return None

    def check_request(self, request: ResolvedRequest) -> None:  # noqa: B027 - not every checkpoint has such limits
        """Raises PermanentError for what this checkpoint cannot do, beyond what the class attributes say."""

    def is_guided(self, request: ResolvedRequest) -> bool:
        """Whether a row has a negative half."""
        return request.guidance_scale > 1

    @abstractmethod
    def encode(self, request: ResolvedRequest) -> list[Condition]:
        """What each half is drawn after: [negative, positive], or [positive]. Raises PermanentError("prompt-too-long") with the count."""

    def build_schedule(self, request: ResolvedRequest) -> Any:
        """A new scheduler of one row, its timesteps set."""
        scheduler = build_scheduler(request.scheduler, self.pipeline.scheduler.config)
        scheduler.set_timesteps(request.steps, device=self.device)
        return scheduler

    def latent_size(self, request: ResolvedRequest) -> tuple[int, int]:
        """Height and width of the unpacked latents; where the scale does not divide a side, the picture is cropped after decoding."""
        scale = self.vae_scale * self.patch
        return self.patch * -(-request.height // scale), self.patch * -(-request.width // scale)

    def count_tokens(self, request: ResolvedRequest) -> int:
        """The tokens of the picture."""
        height, width = self.latent_size(request)
        return (height // 2) * (width // 2)

    def draw_noise(self, request: ResolvedRequest, generator: torch.Generator) -> torch.Tensor:
        """From the row's generator, which is on the CPU so that the noise is the same on every device. 1 × C × h × w."""
        shape = (1, self.latent_channels, *self.latent_size(request))
        return torch.randn(shape, generator=generator, dtype=self.dtype).to(self.device)

    def pack(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents as the denoiser and the scheduler take them: unchanged, or 1 × tokens × 4C."""
        return latents

    def unpack(self, request: ResolvedRequest, latents: torch.Tensor) -> torch.Tensor:
        return latents

    # -- edits

    def first_step(self, request: ResolvedRequest, edit: EditSource) -> int:
        """The step at which an order with a picture starts. Pipelines of flow matching round nothing before the subtraction."""
        return int(max(request.steps - min(request.steps * edit.strength, request.steps), 0))

    def starts_from_noise(self, edit: EditSource) -> bool:
        """Whether an order with a mask begins with noise alone, as at strength 1."""
        return edit.strength == 1.0

    def encode_picture(self, request: ResolvedRequest, image: InputPicture, mask: InputPicture | None = None) -> Any:
        """What the VAE makes of a picture; with a mask, of what is outside of it. Called in the VAE's own thread."""
        picture = self._pictures.preprocess(to_pil(image), height=request.height, width=request.width).to(torch.float32)
        if mask:
            picture = picture * (self._masks.preprocess(to_pil(mask), height=request.height, width=request.width) < 0.5)
        vae = self.pipeline.vae
        return vae.encode(self.to_frame(picture).to(device=vae.device, dtype=vae.dtype))

    def sample_latents(self, encoded: Any, generator: torch.Generator) -> torch.Tensor:
        """The latents of an encoded picture, scaled. An AutoencoderTiny gives latents in place of a distribution."""
        latents = encoded.latent_dist.sample(generator) if hasattr(encoded, "latent_dist") else encoded.latents
        return self.scale_latents(latents).to(self.dtype)

    def to_frame(self, picture: torch.Tensor) -> torch.Tensor:
        """1 × 3 × H × W as the VAE reads it."""
        return picture

    def latent_mask(self, request: ResolvedRequest, mask: InputPicture) -> torch.Tensor:
        """A mask in the shape of the order's latents, packed; 1 is drawn anew."""
        pixels = self._masks.preprocess(to_pil(mask), height=request.height, width=request.width)
        return torch.nn.functional.interpolate(pixels, size=self.latent_size(request)).to(device=self.device, dtype=self.dtype)

    def control_hint(self, request: ResolvedRequest, picture: InputPicture) -> torch.Tensor:
        """The picture that a ControlNet follows, 1 × 3 × H × W."""
        pixels = self._hints.preprocess(to_pil(picture), height=request.height, width=request.width)
        return pixels.to(device=self.device, dtype=self.dtype)

    def resized_picture(self, request: ResolvedRequest, picture: InputPicture) -> Any:
        """The picture in the order's size, as the VAE reads it: H × W × 3 bytes, or H × W of a mask."""
        import numpy

        return numpy.asarray(self._pictures.resize(to_pil(picture), request.height, request.width))

    # -- a step

    @abstractmethod
    def denoise(self, x: torch.Tensor, t: torch.Tensor, conditions: Sequence[Condition], rows: Sequence[DiffusionRow]) -> torch.Tensor:
        """One call of the denoiser. `x`: R × …; `t`: R; `conditions` and `rows`: one for each half. Returns R × …"""

    def guide(self, row: DiffusionRow, predictions: torch.Tensor) -> torch.Tensor:
        """The prediction of a row from those of its halves: 1 or 2 × … → 1 × …"""
        if len(predictions) == 1:
            return predictions
        negative, positive = predictions[:1], predictions[1:]
        return negative + row.request.guidance_scale * (positive - negative)

    # -- latents to a picture

    def scale_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """From the VAE's range to the denoiser's."""
        config = self.pipeline.vae.config
        return (latents - (config.get("shift_factor") or 0.0)) * config.scaling_factor

    def unscale_latents(self, latents: torch.Tensor) -> torch.Tensor:
        config = self.pipeline.vae.config
        return latents / config.scaling_factor + (config.get("shift_factor") or 0.0)

    def decode(self, request: ResolvedRequest, latents: torch.Tensor) -> torch.Tensor:
        """H × W × 3, in -1…1. `latents`: as the scheduler gave them. Called in the VAE's own thread."""
        vae = self.pipeline.vae
        unpacked = self.unpack(request, latents).to(device=vae.device, dtype=vae.dtype)
        return vae.decode(self.unscale_latents(unpacked), return_dict=False)[0][0].permute(1, 2, 0)

    # -- LoRA

    def lora_aliases(self, part: str, layer: str) -> Iterator[LayerAlias]:
        """Other names of a layer, without a prefix. A name with underscores in place of dots need not be among them."""
        return iter(())

    def lora_excluded(self, part: str, layer: str) -> bool:
        """Whether a layer reads the tokens of all rows in one axis, so that it cannot be changed for one row alone."""
        return False


def to_pil(picture: InputPicture) -> Image.Image:
    return Image.frombytes(picture.mode, (picture.width, picture.height), picture.pixels)


def stack(conditions: Sequence[Condition], name: str) -> torch.Tensor:
    """R × … of conditions of equal length."""
    return torch.cat([condition[name] for condition in conditions])
