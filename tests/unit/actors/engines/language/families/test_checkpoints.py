"""Checkpoints of vision models: which are served, how processors load, quantized weights, limits of pixels, those nearly right."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from actors.engines.language import loading
from actors.engines.language.families.family import VisionFamily
from actors.engines.language.families.registry import BY_MODEL_TYPE, FAMILIES, find_family
from actors.engines.language.requests import VlmOptions, VlmRequest
from actors.engines.language.tiny_vision import VIDEO_PROCESSORS
from tests.support.vision_families import FAMILY_NAMES, generate, open_family, picture

pytestmark = [
    pytest.mark.models,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"),
]

PROCESSOR, IMAGES = "processor_config.json", "preprocessor_config.json"
PHOTO = (4000, 3000)
Change = Callable[[dict[str, Any]], object]


def open_parts(folder: Path, **changes: Any) -> VisionFamily:
    """The family of a checkpoint with its processor, without weights."""
    options = VlmOptions(str(folder), **changes)
    return find_family(options)(options)


def changed(source: Path, folder: Path, file: str, change: Change) -> Path:
    """A copy of a checkpoint with another JSON file."""
    shutil.copytree(source, folder)
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))
    return folder


# -- which are served


def test_each_family_has_its_model_type(checkpoints: dict[str, Path]) -> None:
    found = {json.loads((folder / "config.json").read_text())["model_type"] for folder in checkpoints.values()}
    assert found == set(BY_MODEL_TYPE)
    assert len(FAMILIES) == len(FAMILY_NAMES) == len(BY_MODEL_TYPE)


@pytest.mark.parametrize("model_type", ["mllama", "paligemma", "llama", "no-such-type", None, ["llava"]])
def test_another_model_type_is_refused_by_name_before_weights(tmp_path: Path, model_type: Any) -> None:
    """The folder has config.json alone, and the message names the type, those that are served, and the cure."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(
        ValueError, match=r"is not served by the vision engine, which serves llava, llava_next, .*VLM_ENGINE=openai"
    ) as error:
        open_family(tmp_path)
    assert repr(str(model_type)) in str(error.value)


def test_hub_id_of_another_type_is_refused_after_its_config_alone(tmp_path: Path) -> None:
    """The hub's cache has config.json alone."""
    folder = tmp_path / "models--someone--other"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "config.json").write_text('{"model_type": "mllama"}')
    with pytest.raises(ValueError, match="someone/other: the model_type 'mllama'"):
        find_family(VlmOptions("someone/other", cache_dir=tmp_path))


# -- processors


def test_torchvision_is_not_installed() -> None:
    """Otherwise the tests of processors would show nothing."""
    assert importlib.util.find_spec("torchvision") is None


def spell_legacy(folder: Path, suffix: str) -> None:
    """As checkpoints before transformers 5: the image processor in a file of its own, under the name of its class, also with `Fast`."""
    content = json.loads((folder / PROCESSOR).read_text())
    images = content.pop("image_processor")
    images["image_processor_type"] = images["image_processor_type"].removesuffix("Fast") + suffix
    (folder / IMAGES).write_text(json.dumps(images | {"processor_class": content["processor_class"]}))
    (folder / PROCESSOR).write_text(json.dumps(content))


@pytest.mark.parametrize("suffix", ["", "Fast"])
@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_processors_load_as_published(checkpoints: dict[str, Path], tmp_path: Path, name: str, suffix: str) -> None:
    """With the names of processors that need torchvision, and without a processor of videos. The tokens are the same."""
    folder = Path(shutil.copytree(checkpoints[name], tmp_path / "legacy"))
    spell_legacy(folder, suffix)
    legacy, current = open_parts(folder), open_parts(checkpoints[name])
    assert not hasattr(legacy.processor, "video_processor")
    assert (name in VIDEO_PROCESSORS) == ("video_processor" in json.loads((folder / PROCESSOR).read_text()))
    image = Image.linear_gradient("L").resize((120, 80)).convert("RGB")
    made = [family.read(family.prompt("?", 2), [image, image]) for family in (legacy, current)]
    assert made[0].ids.tolist() == made[1].ids.tolist()
    assert torch.equal(made[0].inputs["pixel_values"], made[1].inputs["pixel_values"])


@pytest.mark.parametrize("name", [name for name in FAMILY_NAMES if name != "tiny-llava"])
def test_checkpoint_without_chat_template_is_refused(checkpoints: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(checkpoints[name], tmp_path / "bare"))
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"has no chat template: add chat_template\.jinja"):
        open_family(folder)


# -- quantized weights


@pytest.mark.parametrize(("bits", "layer"), [("8bit", "Linear8bitLt"), ("4bit", "Linear4bit")])
@pytest.mark.parametrize("name", [name for name in FAMILY_NAMES if name != "tiny-llava"])
def test_quantized_weights_answer(checkpoints: dict[str, Path], name: str, bits: str, layer: str) -> None:
    """Verified by a picture and a text, in no family by falling back. LLaVA-1.5 is in test_language_engine.py."""
    engine = open_family(checkpoints[name], quantization=bits)
    assert (engine.info["quantization"], engine.info.get("fallback")) == (bits, None)
    assert layer in {type(module).__name__ for module in engine._model.modules()}
    assert engine.info["model_bytes"] < open_family(checkpoints[name]).info["model_bytes"]
    assert len(generate(engine, [VlmRequest("?", (picture(1), picture(2)), 4)])[0]) <= 4


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_failure_of_quantized_kernels_at_a_picture_falls_back(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The part that reads pictures fails, at its first call; with text alone it would not be called."""
    real_load = loading._load

    def load(options: VlmOptions, device: str, quantization: Any) -> Any:
        model = real_load(options, device, "none")
        if quantization != "none":

            def fail(*_: object, **__: object) -> None:
                raise RuntimeError("no kernel for this layer")

            vision = getattr(model.model, "visual", None) or getattr(model.model, "vision_tower", None) or model.model.vision_model
            vision.register_forward_pre_hook(fail)
        return model

    monkeypatch.setattr(loading, "_load", load)
    engine = open_family(checkpoints[name], quantization="8bit")
    assert engine.info["quantization"] == "none"
    assert "no kernel for this layer" in engine.info["fallback"]


def test_quantized_weights_without_numbers_fall_back(checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    real_load = loading._load

    def load(options: VlmOptions, device: str, quantization: Any) -> Any:
        model = real_load(options, device, "none")
        if quantization != "none":
            model.lm_head.weight.data.fill_(float("nan"))
        return model

    monkeypatch.setattr(loading, "_load", load)
    engine = open_family(checkpoints["tiny-qwen2.5-vl"], quantization="4bit")
    assert "not a number" in engine.info["fallback"]


# -- pixels


def count_tokens(family: VisionFamily, size: tuple[int, int]) -> int:
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    return len(family.read(family.prompt("", 1), [image]).ids)


@pytest.mark.parametrize(
    ("name", "max_pixels"),
    [
        ("tiny-llava-next", 1800), ("tiny-llava-onevision", 1800), ("tiny-qwen2.5-vl", 20_000), ("tiny-qwen3-vl", 20_000),
        ("tiny-internvl", 7000), ("tiny-idefics3", 17_000), ("tiny-smolvlm", 17_000),
    ],
)  # fmt: skip
def test_fewer_pixels_are_fewer_tokens(checkpoints: dict[str, Path], name: str, max_pixels: int) -> None:
    """Also a small picture that the family scales up has no more than the limit; the model answers."""
    engine = open_family(checkpoints[name], max_pixels=max_pixels)
    free, limited = open_parts(checkpoints[name]), engine._family
    assert count_tokens(limited, (126, 84)) < count_tokens(free, (400, 300))
    assert count_tokens(limited, (400, 300)) < count_tokens(free, (400, 300))
    assert generate(engine, [VlmRequest("?", (picture(1, (400, 300)), picture(2)), 4)])


@pytest.mark.parametrize("name", ["tiny-llava", "tiny-gemma3"])
def test_families_with_as_many_tokens_for_each_picture_ignore_the_limit(checkpoints: dict[str, Path], name: str) -> None:
    assert count_tokens(open_parts(checkpoints[name], max_pixels=4096), (400, 300)) == count_tokens(open_parts(checkpoints[name]), (40, 30))


def test_a_large_photo_of_qwen_is_capped(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """With the sizes of the published processor a photo of 4000 × 3000 has 15,301 tokens; with a million pixels it has 1,230."""

    def publish(content: dict[str, Any]) -> None:
        content["image_processor"]["size"] = {"shortest_edge": 3136, "longest_edge": 12_845_056}

    folder = changed(checkpoints["tiny-qwen2.5-vl"], tmp_path / "published", PROCESSOR, publish)
    images = open_parts(folder).processor.image_processor
    assert images.get_number_of_image_patches(PHOTO[1], PHOTO[0], {}) // 4 == 15_301
    assert count_tokens(open_parts(folder, max_pixels=1_000_000), PHOTO) - count_tokens(open_parts(folder), (56, 56)) + 4 == 1230


# -- nearly right


def image_field(**fields: Any) -> Change:
    return lambda content: content["image_processor"].update(fields)


def field(**fields: Any) -> Change:
    return lambda content: content.update(fields)


NEARLY = {
    "patches of NeXT": ("tiny-llava-next", PROCESSOR, field(patch_size=7), "patch_size (now 7)"),
    "grids of NeXT": ("tiny-llava-next", PROCESSOR, image_field(image_grid_pinpoints=[[126, 126]]), "image_grid_pinpoints"),
    "tokens of OneVision": ("tiny-llava-onevision", PROCESSOR, field(num_image_tokens=16), "num_image_tokens (now 16)"),
    "patches of Qwen2.5": ("tiny-qwen2.5-vl", PROCESSOR, image_field(patch_size=16), "patch_size (now 16)"),
    "merged patches of Qwen3": ("tiny-qwen3-vl", PROCESSOR, image_field(merge_size=1), "merge_size (now 1)"),
    "tokens of InternVL": ("tiny-internvl", PROCESSOR, field(image_seq_length=16), "image_seq_length (now 16)"),
    "tokens of Gemma3": ("tiny-gemma3", PROCESSOR, field(image_seq_length=16), "image_seq_length (now 16)"),
    "tokens of Idefics3": ("tiny-idefics3", PROCESSOR, field(image_seq_len=9), "image_seq_len (now 9)"),
    "tokens of SmolVLM": ("tiny-smolvlm", PROCESSOR, field(image_seq_len=9), "image_seq_len (now 9)"),
}


@pytest.mark.parametrize(("name", "file", "change", "words"), NEARLY.values(), ids=NEARLY)
def test_nearly_right_checkpoint_is_refused(
    checkpoints: dict[str, Path], tmp_path: Path, name: str, file: str, change: Change, words: str
) -> None:
    """With the file, the field and the cure, before the engine is ready."""
    with pytest.raises(ValueError, match=r"Correct (image_processor of )?processor_config\.json") as error:
        open_family(changed(checkpoints[name], tmp_path / "nearly", file, change))
    assert words in str(error.value)
    assert "config.json" in str(error.value).partition("Correct")[2]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_image_token_of_another_tokenizer_is_refused(checkpoints: dict[str, Path], tmp_path: Path, name: str) -> None:
    def change(content: dict[str, Any]) -> None:
        content["image_token_index" if "image_token_index" in content else "image_token_id"] = 250

    with pytest.raises(ValueError, match=r"in config\.json is 250: set it to the tokenizer's"):
        open_family(changed(checkpoints[name], tmp_path / "token", "config.json", change))
