"""Every key form of every family: the same layers change by the same weights as with the loader of diffusers, in double precision.

Where diffusers loads nothing of a form, or another part than the file says, the expected change is written out here.
"""

import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from actors.engines.diffusion.families.family import Family
from actors.engines.diffusion.lora.changes import LowRank
from actors.engines.diffusion.lora.layers import LayerTable, changeable_layers
from actors.engines.diffusion.lora.tensors import read_changes
from actors.engines.diffusion.requests import LoraFile
from bus.errors import PermanentError
from tests.support.family_rows import load_family

pytestmark = [
    pytest.mark.models, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]  # fmt: skip

Tensors = dict[str, torch.Tensor]
Weights = dict[tuple[str, str], torch.Tensor]
family_of = cache(load_family)
ALPHA = 1.5
"""Half the rank, so that a forgotten alpha shows."""
FORMS: dict[str, dict[str, str]] = {
    "tiny-sd15": {
        "diffusers": "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        "PEFT": "base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        "kohya": "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k",
        "kohya, convolution": "lora_unet_down_blocks_0_resnets_0_conv1",
        "kohya, original": "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_v",
        "kohya, text": "lora_te_text_model_encoder_layers_0_self_attn_out_proj",
        "diffusers, text": "text_encoder.text_model.encoder.layers.1.self_attn.out_proj",
    },
    "tiny-sdxl": {
        "diffusers": "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
        "kohya": "lora_unet_up_blocks_0_attentions_0_transformer_blocks_0_ff_net_0_proj",
        "kohya, original, down": "lora_unet_input_blocks_3_1_transformer_blocks_0_attn2_to_k",
        "kohya, original, up": "lora_unet_output_blocks_1_1_proj_out",
        "kohya, first text": "lora_te1_text_model_encoder_layers_0_self_attn_out_proj",
        "kohya, second text": "lora_te2_text_model_encoder_layers_1_mlp_fc2",
        "diffusers, second text": "text_encoder_2.text_model.encoder.layers.0.self_attn.v_proj",
    },
    "tiny-sd3": {
        "diffusers": "transformer.transformer_blocks.0.attn.to_q",
        "PEFT": "base_model.model.transformer_blocks.1.attn.add_k_proj",
        "diffusers, text": "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
        "diffusers, second text": "text_encoder_2.text_model.encoder.layers.1.self_attn.k_proj",
        "kohya, joint blocks": "lora_unet_joint_blocks_0_x_block_attn_qkv",
        "kohya, context": "lora_unet_joint_blocks_0_context_block_mlp_fc1",
    },
    "tiny-flux": {
        "diffusers": "transformer.transformer_blocks.0.attn.to_q",
        "PEFT": "base_model.model.single_transformer_blocks.0.proj_mlp",
        "kohya": "lora_unet_double_blocks_0_img_attn_qkv",
        "kohya, mlp": "lora_unet_double_blocks_0_txt_mlp_2",
        "kohya, single": "lora_unet_single_blocks_0_linear1",
        "kohya, single out": "lora_unet_single_blocks_0_linear2",
        "OneTrainer": "lora_transformer_transformer_blocks_0_attn_to_k",
        "BFL": "diffusion_model.double_blocks.0.img_attn.qkv",
        "BFL, single": "diffusion_model.single_blocks.0.linear1",
        "BFL, bare": "double_blocks.0.txt_attn.proj",
        "kohya, text": "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        "diffusers, text": "text_encoder.text_model.encoder.layers.0.self_attn.out_proj",
    },
    "tiny-qwen-image": {
        "diffusers": "transformer.transformer_blocks.0.attn.to_q",
        "PEFT": "base_model.model.transformer_blocks.0.attn.to_add_out",
        "original": "diffusion_model.transformer_blocks.1.img_mod.1",
        "kohya": "lora_unet_transformer_blocks_1_img_mlp_net_0_proj",
        "bare": "transformer_blocks.0.attn.add_q_proj",
    },
    "tiny-z-image": {
        "diffusers": "transformer.layers.0.attention.to_q",
        "original": "diffusion_model.layers.1.feed_forward.w1",
        "original, fused": "diffusion_model.layers.0.attention.qkv",
        "kohya": "lora_unet_layers_0_attention_to_k",
    },
    "tiny-pixart-sigma": {
        "diffusers": "transformer.transformer_blocks.0.attn1.to_q",
        "PEFT": "base_model.model.transformer_blocks.1.attn2.to_k",
        "OneTrainer": "lora_transformer_transformer_blocks_0_ff_net_0_proj",
    },
}  # fmt: skip
NOT_LOADED = {
    "tiny-sd15: PEFT", "tiny-sd15: kohya, original", "tiny-sd3: PEFT", "tiny-sd3: kohya, joint blocks", "tiny-sd3: kohya, context",
    "tiny-flux: PEFT", "tiny-flux: kohya, single", "tiny-flux: BFL", "tiny-flux: BFL, bare", "tiny-flux: BFL, single",
    "tiny-qwen-image: PEFT", "tiny-qwen-image: bare", "tiny-z-image: original, fused",
    *(f"tiny-pixart-sigma: {form}" for form in FORMS["tiny-pixart-sigma"]),
}  # fmt: skip
"""Forms of which the loader of diffusers reads nothing or breaks off, some of them with checkpoints of another size alone."""
CASES = [(checkpoint, form) for checkpoint, forms in FORMS.items() for form in forms]


def form_file(checkpoint: str, form: str, folder: Path) -> tuple[LoraFile, Tensors]:
    """A file in this form on one layer of the file, with alpha where the form has it, and its tensors. A file that changes a text encoder
    changes the denoiser, too, since the stock loaders tell the form by that.
    """
    names = [FORMS[checkpoint][form]]
    if "text" in form and "context" not in form:
        names.append(FORMS[checkpoint]["diffusers" if "diffusers" in form else "kohya"])
    tensors = {key: tensor for name in names for key, tensor in layer_tensors(LayerTable(family_of(checkpoint)), name).items()}
    path = folder / "form.safetensors"
    save_file(tensors, path)
    return LoraFile(path, hashlib.sha256(path.read_bytes()).hexdigest(), 1.0, path.name), tensors


def layer_tensors(table: LayerTable, name: str, rank: int = 3) -> Tensors:
    targets = table.find(name, "o")
    outputs = max(target.rows[1] if target.rows else target.shape[0] for target in targets)
    generator, kernel = torch.Generator().manual_seed(5), targets[0].shape[2:]
    kohya = name.startswith("lora_")
    down, up = ("lora_down", "lora_up") if kohya else ("lora_A", "lora_B")
    halves = {
        f"{name}.{down}.weight": torch.randn((rank, targets[0].shape[1], *kernel), generator=generator),
        f"{name}.{up}.weight": torch.randn((outputs, rank, *(1 for _ in kernel)), generator=generator),
    }
    return halves | ({f"{name}.alpha": torch.tensor(ALPHA)} if kohya else {})


def our_weights(family: Family, lora: LoraFile) -> Weights:
    """(part, layer) → the change of its weight."""
    changes = read_changes(lora, family.pipeline, LayerTable(family))
    return {key: change.strength * change.delta.weight() for key, change in changes.items() if isinstance(change.delta, LowRank)}


def stock_weights(family: Family, lora: LoraFile) -> Weights:
    """The same with the loader of diffusers, nothing where it breaks off; the pipeline is as before afterwards."""
    pipeline = family.pipeline
    if not hasattr(pipeline, "load_lora_weights"):
        return {}
    try:
        pipeline.load_lora_weights(lora.path, adapter_name="only")
        return {
            (part, name): module.get_delta_weight("only").double()
            for part in pipeline.components
            for name, module in lora_layers(getattr(pipeline, part))
        }
    except (ValueError, AssertionError, KeyError):
        return {}
    finally:
        pipeline.unload_lora_weights()


def lora_layers(part: Any) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    for name, module in part.named_modules() if isinstance(part, torch.nn.Module) else ():
        if isinstance(module, LoraLayer):
            yield name, module


def written_weights(table: LayerTable, tensors: Tensors) -> Weights:
    """up · down · alpha / rank, of a fused layer the rows of each of its layers, one behind the other."""
    weights: Weights = {}
    for key, down in tensors.items():
        name, half, _ = key.partition(".lora_down" if ".lora_down" in key else ".lora_A")
        if not half:
            continue
        up = tensors[key.replace("lora_down", "lora_up").replace("lora_A", "lora_B")].double()
        weight = (up.flatten(1) @ down.double().flatten(1)) * (ALPHA / len(down) if f"{name}.alpha" in tensors else 1)
        begin = 0
        for target in sorted(table.find(name, "o"), key=lambda target: target.rows or (0, 0)):
            weights[target.key] = weight[begin : begin + target.shape[0]].reshape(target.shape)
            begin += target.shape[0]
        assert begin == len(weight), "the layers of a fused one are its whole output"
    return weights


@pytest.mark.parametrize(("checkpoint", "form"), CASES, ids=[": ".join(case) for case in CASES])
def test_form_changes_the_layers_that_the_stock_loader_changes(checkpoint: str, form: str, tmp_path: Path) -> None:
    family = family_of(checkpoint)
    lora, tensors = form_file(checkpoint, form, tmp_path)
    ours = our_weights(family, lora)
    assert same(ours, written_weights(LayerTable(family), tensors))
    assert same(ours, stock_weights(family, lora)) == (f"{checkpoint}: {form}" not in NOT_LOADED)


def same(ours: Weights, theirs: Weights) -> bool:
    """The stock loader keeps its matrices in float32."""
    return ours.keys() == theirs.keys() and all(torch.allclose(ours[key], theirs[key], rtol=1e-6, atol=1e-6) for key in ours)


@pytest.mark.parametrize("checkpoint", FORMS)
def test_every_name_means_one_layer_or_all_rows_of_a_fused_one(checkpoint: str) -> None:
    """Also with underscores in place of dots. Each layer is found under its own name."""
    family = family_of(checkpoint)
    table = LayerTable(family)
    fused = 0
    for (part, _), targets in table.targets.items():
        if targets[0].rows is None:
            assert len(targets) == 1, targets
            continue
        rows = sorted(target.rows for target in targets if target.rows)
        assert [stop for _, stop in rows[:-1]] == [start for start, _ in rows[1:]], (part, targets)
        assert rows[0][0] == 0
        fused += 1
    names = [(part, name) for part in set(table.prefixes.values()) for name, _ in changeable_layers(getattr(family.pipeline, part, None))]
    assert len(names) > 20
    assert all((part, name.replace(".", "_")) in table.targets for part, name in names)
    assert bool(fused) == (checkpoint in ("tiny-sd3", "tiny-flux", "tiny-z-image"))


EXCLUDED = ("cap_embedder.1", "all_x_embedder.2-1")


@pytest.mark.parametrize("layer", EXCLUDED)
def test_layer_without_an_axis_of_rows_is_refused_by_name(layer: str) -> None:
    shapes = {f"transformer.{layer}.lora_A.weight": (2, 32), f"transformer.{layer}.lora_B.weight": (32, 2)}
    with pytest.raises(PermanentError, match=f"{layer}' of Z-Image cannot be changed row by row") as raised:
        LayerTable(family_of("tiny-z-image")).plan(shapes, "s3://b/style")
    assert raised.value.code == "lora-invalid"


OTHER_FAMILIES = {
    "lora_unet_double_blocks_0_img_attn_qkv": "Flux",
    "transformer.single_transformer_blocks.7.attn.to_q": "Flux",
    "lora_unet_joint_blocks_3_x_block_attn_qkv": "Stable Diffusion 3",
    "lora_te2_text_model_encoder_layers_0_mlp_fc1": "Stable Diffusion XL",
    "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q": "Stable Diffusion XL",
    "transformer.transformer_blocks.0.img_mod.1": "Qwen-Image",
    "diffusion_model.layers.0.attention.qkv": "Z-Image",
    "diffusion_model.blocks.0.self_attn.q": "Wan",
}


@pytest.mark.parametrize(("layer", "family"), OTHER_FAMILIES.items())
def test_file_for_another_family_says_which(layer: str, family: str) -> None:
    with pytest.raises(PermanentError, match=f"any of its 1 layers: '{layer}.* it seems to be for {family}") as raised:
        LayerTable(family_of("tiny-sd15")).plan({f"{layer}.lora_A.weight": (2, 8), f"{layer}.lora_B.weight": (8, 2)}, "s3://b/style")
    assert raised.value.code == "lora-invalid"


def test_width_of_the_text_tells_versions_of_stable_diffusion_apart() -> None:
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    for width, name in ((2048, "Stable Diffusion XL"), (1024, "Stable Diffusion 2"), (768, "Stable Diffusion 1")):
        with pytest.raises(PermanentError, match=f"for another model than this Stable Diffusion.*it seems to be for {name}"):
            LayerTable(family_of("tiny-sd15")).plan({f"{layer}.lora_A.weight": (2, width), f"{layer}.lora_B.weight": (16, 2)}, "o")


def test_keys_that_are_not_understood_are_named_up_to_three_and_counted() -> None:
    table = LayerTable(family_of("tiny-sd15"))
    halves = (("lora_A", (2, 16)), ("lora_B", (16, 2)))
    good = {f"unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.{half}.weight": shape for half, shape in halves}
    odd = {f"unet.odd.{number}.{half}.weight": shape for number in range(5) for half, shape in halves}
    with pytest.raises(PermanentError, match=r"no layer for any of its 5 layers: 'unet.odd.0.*unet.odd.2.lora_A.weight' and 2 more"):
        table.plan(odd, "o")
    with pytest.raises(PermanentError, match=r"no layer for 5 of its 6 layers"):
        table.plan(good | odd, "o")
    assert list(table.plan(good, "o")) == [("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q")]
