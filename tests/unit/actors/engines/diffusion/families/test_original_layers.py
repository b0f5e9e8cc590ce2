"""The names of layers in the first implementations: of a checkpoint in those names, diffusers makes the layers that had them."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    ZImageTransformer2DModel,
)
from diffusers.loaders import single_file_utils

from actors.engines.diffusion.families.family import Family, LayerAlias
from actors.engines.diffusion.families.flux import Flux
from actors.engines.diffusion.families.pixart_sigma import PixArtSigma
from actors.engines.diffusion.families.qwen_image import QwenImage
from actors.engines.diffusion.families.stable_diffusion_3 import StableDiffusion3
from actors.engines.diffusion.families.z_image import ZImage
from actors.engines.diffusion.lora.layers import LayerTable
from bus.errors import PermanentError

pytestmark = pytest.mark.models
OTHER_ORDER = "norm_out.linear"
"""Scale and shift are swapped in the first implementation, so that no slice of rows is this layer's."""


class LenientState(dict[str, torch.Tensor]):
    """A state dict that has zeros for biases and norms that nobody put in."""

    def pop(self, key: str, *default: Any) -> torch.Tensor:  # type: ignore[override]
        found: torch.Tensor = super().pop(key, None)
        return torch.zeros(3 * 3072 + 4 * 3072) if found is None else found


def family_of(kind: type[Family], transformer: Any) -> Family:
    return kind(SimpleNamespace(transformer=transformer, vae_scale_factor=8))


def build_sd3() -> Any:
    return SD3Transformer2DModel(
        num_layers=3, attention_head_dim=8, num_attention_heads=4, joint_attention_dim=24, caption_projection_dim=32,
        pooled_projection_dim=20, pos_embed_max_size=4, sample_size=4, dual_attention_layers=(0, 1), qk_norm="rms_norm",
    )  # fmt: skip


def build_flux() -> Any:
    """As wide as the real one, since diffusers converts no other."""
    return FluxTransformer2DModel(num_layers=2, num_single_layers=2, joint_attention_dim=24, pooled_projection_dim=20, guidance_embeds=True)


def build_z_image() -> Any:
    return ZImageTransformer2DModel(dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=24, axes_dims=[4, 6, 6])


def build_qwen_image() -> Any:
    return QwenImageTransformer2DModel(
        num_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=24, axes_dims_rope=(4, 6, 6)
    )


def build_pixart() -> Any:
    return PixArtTransformer2DModel(num_attention_heads=2, attention_head_dim=16, num_layers=1, cross_attention_dim=32, caption_channels=24)


def linear_layers(transformer: Any) -> dict[str, int]:
    """Name → outputs."""
    return {name: module.out_features for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)}


@pytest.mark.parametrize(
    ("kind", "build", "convert", "unnamed"),
    [
        (StableDiffusion3, build_sd3, "convert_sd3_transformer_checkpoint_to_diffusers",
         {OTHER_ORDER, "context_embedder", "transformer_blocks.2.norm1_context.linear"}),
        (Flux, build_flux, "convert_flux_transformer_checkpoint_to_diffusers", {OTHER_ORDER}),
        (ZImage, build_z_image, "convert_z_image_transformer_checkpoint_to_diffusers", None),
    ],
)  # fmt: skip
def test_diffusers_finds_each_layer_under_the_name_and_the_rows_that_the_family_gives(
    kind: type[Family], build: Any, convert: str, unnamed: set[str] | None
) -> None:
    with torch.device("meta"):
        transformer = build()
    family, layers = family_of(kind, transformer), linear_layers(transformer)
    aliases = {layer: list(family.lora_aliases("transformer", layer)) for layer in layers}
    weights = {layer: (torch.arange(outputs) + 100_000 * number)[:, None] for number, (layer, outputs) in enumerate(layers.items())}

    converted = getattr(single_file_utils, convert)(original_checkpoint(weights, aliases))

    named = [layer for layer in layers if aliases[layer]]
    assert [layer for layer in named if not torch.equal(converted[f"{layer}.weight"], weights[layer])] == []
    if unnamed is not None:
        assert set(layers) - set(named) == unnamed
    else:
        assert {layer.rpartition(".")[2] for layer in set(layers) - set(named)}.isdisjoint({"to_q", "to_k", "to_v", "2-1"})


def original_checkpoint(weights: dict[str, torch.Tensor], aliases: dict[str, list[LayerAlias]]) -> LenientState:
    """The weights in the names of the first implementation; a layer without another name stays as it is."""
    parts: dict[str, list[tuple[int, torch.Tensor]]] = defaultdict(list)
    for layer, weight in weights.items():
        for alias in aliases[layer] or [LayerAlias(layer)]:
            parts[alias.name].append((alias.rows[0] if alias.rows else 0, weight))
    state = LenientState()
    for name, pieces in parts.items():
        state[f"{name}.weight"] = torch.cat([piece for _, piece in sorted(pieces, key=lambda piece: piece[0])])
        state[f"{name}.bias"] = state[f"{name}.weight"][:, 0]
    return state


@pytest.mark.parametrize(
    ("kind", "build", "key", "block", "layers"),
    [
        (Flux, build_flux, "lora_unet_double_blocks_1_img_attn_qkv", "transformer_blocks.1.attn", ["to_q", "to_k", "to_v"]),
        (Flux, build_flux, "diffusion_model.double_blocks.1.txt_attn.qkv", "transformer_blocks.1.attn",
         ["add_q_proj", "add_k_proj", "add_v_proj"]),
        (Flux, build_flux, "double_blocks.0.img_mlp.0", "transformer_blocks.0", ["ff.net.0.proj"]),
        (Flux, build_flux, "lora_unet_single_blocks_1_linear1", "single_transformer_blocks.1",
         ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"]),
        (Flux, build_flux, "lora_transformer_single_transformer_blocks_0_proj_mlp", "single_transformer_blocks.0", ["proj_mlp"]),
        (Flux, build_flux, "transformer.single_transformer_blocks.0.proj_out", "single_transformer_blocks.0", ["proj_out"]),
        (Flux, build_flux, "base_model.model.transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn", ["to_q"]),
        (StableDiffusion3, build_sd3, "lora_unet_joint_blocks_0_x_block_attn_qkv", "transformer_blocks.0.attn", ["to_q", "to_k", "to_v"]),
        (StableDiffusion3, build_sd3, "lora_unet_joint_blocks_1_x_block_attn2_proj", "transformer_blocks.1.attn2", ["to_out.0"]),
        (StableDiffusion3, build_sd3, "transformer.transformer_blocks.1.ff.net.0.proj", "transformer_blocks.1.ff", ["net.0.proj"]),
        (ZImage, build_z_image, "diffusion_model.layers.0.attention.qkv", "layers.0.attention", ["to_q", "to_k", "to_v"]),
        (ZImage, build_z_image, "lora_unet_noise_refiner_0_attention_out", "noise_refiner.0.attention", ["to_out.0"]),
        (ZImage, build_z_image, "transformer.layers.0.feed_forward.w1", "layers.0", ["feed_forward.w1"]),
        (ZImage, build_z_image, "layers.1.attention.to_k", "layers.1.attention", ["to_k"]),
        (QwenImage, build_qwen_image, "transformer.transformer_blocks.0.img_mod.1", "transformer_blocks.0", ["img_mod.1"]),
        (QwenImage, build_qwen_image, "diffusion_model.transformer_blocks.0.attn.add_q_proj", "transformer_blocks.0.attn", ["add_q_proj"]),
        (QwenImage, build_qwen_image, "transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn", ["to_q"]),
        (QwenImage, build_qwen_image, "lora_unet_transformer_blocks_0_img_mlp_net_0_proj", "transformer_blocks.0", ["img_mlp.net.0.proj"]),
        (PixArtSigma, build_pixart, "base_model.model.transformer_blocks.0.attn2.to_k", "transformer_blocks.0.attn2", ["to_k"]),
    ],
)  # fmt: skip
def test_a_file_may_name_a_layer_as_any_trainer_does(kind: type[Family], build: Any, key: str, block: str, layers: list[str]) -> None:
    with torch.device("meta"):
        family = family_of(kind, build())
    names = {f"{block}.{layer}" for layer in layers}
    modules = [family.denoiser.get_submodule(name) for name in names]
    outputs = sum(module.out_features for module in modules)

    plan = LayerTable(family).plan({f"{key}.lora_A.weight": (2, modules[0].in_features), f"{key}.lora_B.weight": (outputs, 2)}, "file")

    assert {layer for _, layer in plan} == names


@pytest.mark.parametrize("layer", ["all_x_embedder.2-1", "x_embedder", "cap_embedder.1"])
def test_layers_of_z_image_that_see_all_rows_as_one_are_refused_by_name(layer: str) -> None:
    with torch.device("meta"):
        family = family_of(ZImage, build_z_image())

    with pytest.raises(PermanentError, match=rf"'{layer}' of Z-Image cannot be changed row by row"):
        LayerTable(family).plan({f"{layer}.lora_A.weight": (2, 24), f"{layer}.lora_B.weight": (32, 2)}, "file")


@pytest.mark.parametrize(("kind", "build"), [(StableDiffusion3, build_sd3), (Flux, build_flux)])
def test_the_text_encoder_has_its_layers_with_and_without_the_first_name(kind: type[Family], build: Any) -> None:
    with torch.device("meta"):
        family = family_of(kind, build())

    names = {alias.name for alias in family.lora_aliases("text_encoder", "encoder.layers.0.mlp.fc1")}

    assert names == {"encoder.layers.0.mlp.fc1", "text_model.encoder.layers.0.mlp.fc1"}
    assert family.lora_prefixes["lora_te1_"] == "text_encoder"
    assert list(family.lora_aliases("text_encoder_3", "encoder.block.0")) == []
