"""The unmodified pipelines of diffusers for every family, one order at a time: what the engine's pictures are compared with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image as Pillow

from actors.engines.diffusion.requests import DiffusionRequest, InputPicture, LoraFile
from actors.engines.diffusion.schedulers import build_scheduler

CONTROL_PIPELINES = {
    "StableDiffusionPipeline": "StableDiffusionControlNetPipeline",
    "StableDiffusionXLPipeline": "StableDiffusionXLControlNetPipeline",
}
FLOW_MATCHING = "FlowMatchEulerDiscreteScheduler"


@dataclass(frozen=True)
class StockPicture:
    """`pixels`: H × W × 3, 0…255; `latents`: after the last step, as the scheduler gave them."""

    pixels: Any
    latents: Any


class StockFamily:
    """The pipelines of one checkpoint. `controlnets`: name → folder. A LoRA stays loaded, and is active for the orders that name it."""

    def __init__(self, checkpoint: Path, dtype: torch.dtype = torch.float32, controlnets: dict[str, Path] | None = None) -> None:
        import diffusers

        kind = diffusers.AutoPipelineForInpainting if checkpoint.name.endswith("inpaint") else diffusers.AutoPipelineForText2Image
        self.pipeline = kind.from_pretrained(checkpoint).to(dtype)
        if dtype == torch.float64:
            keep_double_precision(self.pipeline)
        self.controlnets = {
            name: diffusers.ControlNetModel.from_pretrained(folder).to(dtype) for name, folder in (controlnets or {}).items()
        }
        self._config = self.pipeline.scheduler.config
        self._adapters: dict[str, str] = {}
        """The names of the loaded LoRAs, by the sum of their files."""

    def draw(self, request: DiffusionRequest, **changes: Any) -> StockPicture:
        """One picture; `changes` replace arguments of the pipeline."""
        if self.pipeline.scheduler.__class__.__name__ != FLOW_MATCHING:
            self.pipeline.scheduler = build_scheduler(request.scheduler or "", self._config)
        self._activate(request.loras)
        return self._call(request, changes)

    def _activate(self, loras: tuple[LoraFile, ...]) -> None:
        for lora in loras:
            if lora.sha256 not in self._adapters:
                self._adapters[lora.sha256] = f"adapter{len(self._adapters)}"
                self.pipeline.load_lora_weights(lora.path, adapter_name=self._adapters[lora.sha256])
                for part in self.pipeline.components.values():
                    if isinstance(part, torch.nn.Module):
                        part.to(self.pipeline.dtype)
        if loras:
            self.pipeline.enable_lora()
            self.pipeline.set_adapters([self._adapters[lora.sha256] for lora in loras], [lora.scale for lora in loras])
        elif self._adapters:
            self.pipeline.disable_lora()

    def _call(self, request: DiffusionRequest, changes: dict[str, Any]) -> StockPicture:
        pipeline, latents = self._pipeline_of(request), {}
        pipeline.set_progress_bar_config(disable=True)

        def remember(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            latents.update(tensors)
            return {}

        options = common_options(request) | edit_options(request) | self._family_options(request) | changes
        if pipeline.__class__.__name__ == "PixArtSigmaPipeline":
            options["callback"] = lambda step, timestep, tensor: latents.update(latents=tensor)
        else:
            options["callback_on_step_end"] = remember
        pixels = pipeline(**options, output_type="np").images[0]
        if pipeline.__class__.__name__ == "StableDiffusion3InpaintPipeline":  # it decodes without shift_factor
            pixels = decode_sd3(pipeline, latents["latents"])
        return StockPicture((pixels * 255).round().astype(int), latents["latents"])

    def _pipeline_of(self, request: DiffusionRequest) -> Any:
        import diffusers

        kind = self.pipeline.__class__.__name__
        if request.control:
            options = {"requires_safety_checker": False} if "XL" not in kind else {"add_watermarker": False}
            net = self.controlnets[request.control.model]
            return getattr(diffusers, CONTROL_PIPELINES[kind])(**self.pipeline.components, controlnet=net, **options)
        if request.edit and request.edit.mask:
            return diffusers.AutoPipelineForInpainting.from_pipe(self.pipeline)
        if request.edit:
            return diffusers.AutoPipelineForImage2Image.from_pipe(self.pipeline)
        return self.pipeline

    def _family_options(self, request: DiffusionRequest) -> dict[str, Any]:
        """What the call of this family's pipelines names in its own way."""
        kind, size = self.pipeline.__class__.__name__, {"height": request.height, "width": request.width}
        if kind.startswith("StableDiffusion") and not kind.startswith("StableDiffusion3") and request.edit and not request.edit.mask:
            return {"guidance_scale": request.guidance_scale}  # these take the size from the picture
        if kind.startswith("QwenImage"):  # its documentation recommends a space where there is no negative prompt
            return size | {"true_cfg_scale": request.guidance_scale, "negative_prompt": request.negative_prompt or " "}
        if kind.startswith("Flux"):
            return size | {"guidance_scale": request.guidance_scale or 0.0, "true_cfg_scale": request.true_cfg_scale or 1.0}
        if kind.startswith("PixArt"):
            plain = {"use_resolution_binning": False, "clean_caption": False, "negative_prompt": request.negative_prompt}
            return size | plain | {"guidance_scale": request.guidance_scale}
        if kind.startswith("ZImage") and request.edit:  # these do not resize the picture
            picture = pillow_image(request.edit.image).resize((request.width, request.height), Pillow.Resampling.LANCZOS)
            return size | {"guidance_scale": request.guidance_scale, "image": picture}
        return size | {"guidance_scale": request.guidance_scale}


def keep_double_precision(pipeline: Any) -> None:
    """Stock pipelines whose VAE has `force_upcast` encode pictures in FP32, also when everything else is in FP64."""
    if pipeline.vae.config.get("force_upcast"):
        pipeline.vae.register_to_config(force_upcast=False)


def common_options(request: DiffusionRequest) -> dict[str, Any]:
    return {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt or None,
        "num_inference_steps": request.steps,
        "generator": torch.Generator().manual_seed(request.seed),
    }


def edit_options(request: DiffusionRequest) -> dict[str, Any]:
    if request.control:
        return {"image": pillow_image(request.control.image), "controlnet_conditioning_scale": request.control.scale}
    if not request.edit:
        return {}
    mask = {"mask_image": pillow_image(request.edit.mask)} if request.edit.mask else {}
    return {"image": pillow_image(request.edit.image), "strength": request.edit.strength} | mask


def pillow_image(picture: InputPicture) -> Pillow.Image:
    return Pillow.frombytes(picture.mode, (picture.width, picture.height), picture.pixels)


def decode_sd3(pipeline: Any, latents: Any) -> Any:
    with torch.inference_mode():
        config = pipeline.vae.config
        decoded = pipeline.vae.decode(latents / config.scaling_factor + config.shift_factor, return_dict=False)[0]
    return pipeline.image_processor.postprocess(decoded, output_type="np")[0]
