"""Language and vision checkpoints that are nearly right: what their files lack is taken from the model's configuration, or the start fails
and names file and field; a model that is ready reads pictures, and a picture that it cannot read fails alone.
"""

import asyncio
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image as Pillow

from actors.engines.language.checkpoint_check import complete_processor
from actors.engines.language.requests import GenerationRequest, TextModelOptions, VlmOptions, VlmRequest
from actors.engines.language.text_model import TextModelEngine, open_text_model
from actors.engines.language.vision_model import VlmEngine, open_engine
from actors.engines.process.executor import open_executor
from actors.engines.process.protocol import EngineSpec, Failed, Finished
from actors.engines.settings import ExecutorSettings
from ops.local.tiny_models import make_tiny_models
from tests.support.engine_fixture import silent_host

pytestmark = [
    pytest.mark.models, pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]  # fmt: skip

Change = Callable[[dict[str, Any]], Any]
PROCESSOR = "processor_config.json"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_tiny_models(tmp_path_factory.mktemp("models"))


def changed(source: Path, folder: Path, file: str, change: Change) -> Path:
    """A copy of a checkpoint with another JSON file."""
    if source != folder:
        shutil.copytree(source, folder)
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))
    return folder


def png(size: tuple[int, int] = (64, 48)) -> bytes:
    file = io.BytesIO()
    Pillow.linear_gradient("L").resize(size).convert("RGB").save(file, "PNG")
    return file.getvalue()


# -- vision models


def open_vision(folder: Path) -> VlmEngine:
    opened = open_engine(VlmOptions(str(folder), window_seconds=0, threads=1), silent_host(folder))
    opened.self_test()
    return opened


def answer(engine: VlmEngine | TextModelEngine, *requests: Any) -> list[Any]:
    """The result of each request, or its failure."""
    for number, request in enumerate(requests, start=1):
        engine.submit(number, request)
    outcomes: dict[int, Any] = {}
    while engine.idle_seconds() is not None:
        outcomes |= {event.request_id: event for event in engine.tick() if isinstance(event, Finished | Failed)}
    return [event.result if isinstance(event := outcomes[number], Finished) else event for number in sorted(outcomes)]


def remove(*fields: str) -> Change:
    return lambda content: [content.pop(field, None) for field in fields]


QUESTION = VlmRequest("What is this?", images=(png(),), max_new_tokens=6)
INCOMPLETE = {
    "nothing but the image token: huggingface/transformers #36002": (
        "patch_size",
        "vision_feature_select_strategy",
        "num_additional_image_tokens",
    ),
    "patch size: huggingface/transformers #30962": ("patch_size",),
    "strategy: hiyouga/LlamaFactory #8434": ("vision_feature_select_strategy",),
    "class token: unslothai/unsloth #3783": ("num_additional_image_tokens",),
}


@pytest.mark.parametrize("fields", INCOMPLETE.values(), ids=INCOMPLETE)
def test_what_an_old_processor_lacks_is_taken_from_the_model(models: dict[str, Path], tmp_path: Path, fields: tuple[str, ...]) -> None:
    """The answer is that of the whole checkpoint."""
    whole = answer(open_vision(models["tiny-llava"]), QUESTION)[0].text
    engine = open_vision(changed(models["tiny-llava"], tmp_path / "old", PROCESSOR, remove(*fields)))
    assert [response.text for response in answer(engine, QUESTION)] == [whole]


def set_fields(**fields: Any) -> Change:
    return lambda content: content.update(fields)


WRONG = {
    "one feature too many: huggingface/transformers #36054": (
        set_fields(num_additional_image_tokens=0),
        "8 image tokens in the prompt and 9",
    ),
    "one token too many: huggingface/transformers #34447": (
        set_fields(vision_feature_select_strategy="full"),
        "10 image tokens in the prompt",
    ),
    "other patches: unslothai/unsloth #2225": (set_fields(patch_size=15), "patch_size (now 15)"),
}


@pytest.mark.parametrize(("change", "words"), WRONG.values(), ids=WRONG)
def test_wrong_number_of_image_tokens_is_found_at_start(models: dict[str, Path], tmp_path: Path, change: Change, words: str) -> None:
    with pytest.raises(ValueError, match=PROCESSOR.replace(".", r"\.")) as raised:
        open_vision(changed(models["tiny-llava"], tmp_path / "wrong", PROCESSOR, change))
    assert words in str(raised.value)
    assert "num_additional_image_tokens" in str(raised.value)
    assert "\n" not in str(raised.value), "the readiness message has its last line"


def test_other_image_token_is_found_at_start(models: dict[str, Path], tmp_path: Path) -> None:
    """fpgaminer/joycaption #28: a tokenizer from another model, whose image token has another id."""
    folder = changed(models["tiny-llava"], tmp_path / "token", "config.json", set_fields(image_token_index=9, image_token_id=9))
    with pytest.raises(ValueError, match=r"image_token_index in config\.json is 9"):
        open_vision(folder)


def test_image_token_beyond_the_vocabulary_is_found_at_start(models: dict[str, Path], tmp_path: Path) -> None:
    """kongds/E5-V #7: the id of the image token is the size of the vocabulary, so that its embedding does not exist."""
    from safetensors.torch import load_file, save_file

    def shrink(content: dict[str, Any]) -> None:
        content["text_config"]["vocab_size"] = content["image_token_index" if "image_token_index" in content else "image_token_id"]

    folder = changed(models["tiny-llava"], tmp_path / "small", "config.json", shrink)
    size = json.loads((folder / "config.json").read_text())["text_config"]["vocab_size"]
    weights = load_file(folder / "model.safetensors")
    cut = {key: tensor[:size].clone() if "embed_tokens" in key or "lm_head" in key else tensor for key, tensor in weights.items()}
    save_file(cut, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(Exception, match=f"the model has {size}"):
        open_vision(folder)


def test_processor_that_does_not_crop_is_found_at_start(models: dict[str, Path], tmp_path: Path) -> None:
    """open-compass/VLMEvalKit #710: most pictures are not square, and a square one would have passed."""

    def keep_shape(content: dict[str, Any]) -> None:
        content.get("image_processor", content)["do_center_crop"] = False

    with pytest.raises(ValueError, match="image size"):
        open_vision(changed(models["tiny-llava"], tmp_path / "uncropped", PROCESSOR, keep_shape))


@pytest.mark.parametrize("part", ["lm_head", "vision_tower"])
def test_model_that_computes_no_numbers_is_found_at_start(models: dict[str, Path], tmp_path: Path, part: str) -> None:
    """haotian-liu/LLaVA #886 and #780: half precision overflows. Without the check such a model answers the first token for ever."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(models["tiny-llava"], tmp_path / part)
    weights = load_file(folder / "model.safetensors")
    key = next(name for name in weights if part in name and name.endswith("weight"))
    save_file(weights | {key: torch.full_like(weights[key], float("nan"))}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="VLM_DTYPE"):
        open_vision(folder)


def without_weight(source: Path, folder: Path, part: str) -> Path:
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    weights.pop(next(name for name in weights if part in name))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("part", ["multi_modal_projector", "layers.0.self_attn.q_proj", "vision_tower"])
def test_vision_model_without_a_weight_is_found_at_start(models: dict[str, Path], tmp_path: Path, part: str) -> None:
    """Without the check the library fills it with random numbers, and each start answers otherwise."""
    with pytest.raises(ValueError, match=f"the files lack the weights .*{part}.*download the checkpoint again"):
        open_vision(without_weight(models["tiny-llava"], tmp_path / "lacking", part))


@pytest.mark.parametrize("change", [set_fields(patch_size=0), set_fields(patch_size="16")])
def test_test_picture_that_cannot_be_read_names_the_files(models: dict[str, Path], tmp_path: Path, change: Change) -> None:
    with pytest.raises(ValueError, match=r"the test picture could not be read: .*check config\.json and processor_config\.json of"):
        open_vision(changed(models["tiny-llava"], tmp_path / "wrong", PROCESSOR, change))


def fake_processor(**fields: Any) -> Any:
    return SimpleNamespace(**({"patch_size": None, "vision_feature_select_strategy": None, "num_additional_image_tokens": 0} | fields))


@pytest.mark.parametrize(
    ("vision", "additional"),
    [({"model_type": "clip_vision_model", "patch_size": 14}, 1), ({"model_type": "siglip_vision_model", "patch_size": 14}, 0)],
)
def test_class_token_depends_on_the_vision_model(tmp_path: Path, vision: dict[str, Any], additional: int) -> None:
    """huggingface/transformers #34447: SigLIP has no class token, CLIP has one."""
    processor = fake_processor()
    config = SimpleNamespace(vision_config=SimpleNamespace(**vision), vision_feature_select_strategy="full")
    complete_processor(processor, config, VlmOptions(str(tmp_path)))
    assert vars(processor) == {"patch_size": 14, "vision_feature_select_strategy": "full", "num_additional_image_tokens": additional}


def test_what_is_not_certain_is_asked_for(tmp_path: Path) -> None:
    """unslothai/unsloth #2225: another vision model, such as Pixtral's. The message names file, field and cure."""
    config = SimpleNamespace(vision_config=SimpleNamespace(model_type="pixtral", patch_size=14), vision_feature_select_strategy="full")
    with pytest.raises(ValueError, match=r"processor_config\.json has no 'num_additional_image_tokens'.*add the value"):
        complete_processor(fake_processor(), config, VlmOptions(str(tmp_path)))


def test_picture_that_the_model_cannot_read_fails_alone(models: dict[str, Path]) -> None:
    """huggingface/transformers #35775: some pictures have other numbers of tokens and features. Neighbours are answered as alone."""
    engine = open_vision(models["tiny-llava"])
    others = [VlmRequest(f"question {number}", (png((80, 50 + number)),), max_new_tokens=5) for number in range(3)]
    alone = [answer(engine, request)[0].text for request in others]
    ids, pixels = engine._preprocess(QUESTION)
    engine._preprocess = lambda request: (ids[:-3], pixels) if request.text == "broken" else VlmEngine._preprocess(engine, request)  # type: ignore[method-assign]
    token = engine._model.config.image_token_id
    ids = torch.cat([torch.tensor([token]), ids])
    first, failed, *rest = answer(engine, others[0], VlmRequest("broken", (png(),), max_new_tokens=5), *others[1:])
    assert isinstance(failed, Failed)
    assert (failed.kind, failed.code) == ("permanent", "engine-failed")
    assert "features" not in failed.message, "the text of an unknown error stays in the log"
    assert [response.text for response in (first, *rest)] == alone
    assert answer(engine, others[0])[0].text == alone[0], "the engine goes on"


async def test_worker_reports_what_is_wrong_instead_of_ready(models: dict[str, Path], tmp_path: Path) -> None:
    """huggingface/transformers #36002: the model process is never ready, and the reason names file, field and cure."""
    folder = changed(models["tiny-llava"], tmp_path / "wrong", PROCESSOR, set_fields(num_additional_image_tokens=0))
    reasons: asyncio.Queue[str | None] = asyncio.Queue()
    spec = EngineSpec("actors.engines.language.vision_model:open_engine", VlmOptions(str(folder), threads=1))
    settings = ExecutorSettings(failures_before_open=1)
    async with open_executor(spec, settings, max_in_flight=2, capacity=2, set_unready=reasons.put_nowait) as executor:
        reason = await asyncio.wait_for(reasons.get(), 240) or ""
        assert not executor.healthy
        assert "num_additional_image_tokens (now 0) is 1 for CLIP" in reason
        assert PROCESSOR in reason


# -- text models


def open_text(folder: Path) -> TextModelEngine:
    opened = open_text_model(TextModelOptions(str(folder), window_seconds=0, threads=1), silent_host(folder))
    opened.self_test()
    return opened


def chat(text: str) -> GenerationRequest:
    return GenerationRequest([{"role": "user", "content": text}], max_tokens=4, temperature=0, top_p=1)


def test_tokenizer_with_more_tokens_than_the_model_fails_only_their_requests(models: dict[str, Path], tmp_path: Path) -> None:
    """meta-llama/llama-cookbook #189, EuroEval/EuroEval #52: an added token has no embedding. On a GPU reading it loses the device."""
    from transformers import AutoTokenizer

    folder = shutil.copytree(models["tiny-llama"], tmp_path / "added")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(folder)
    engine = open_text(folder)
    assert answer(engine, chat("a horse"))[0].completion_tokens == 4
    with pytest.raises(Exception, match="their files are of different models") as raised:
        engine.submit(1, chat("a zebra"))
    assert getattr(raised.value, "code", "") == "prompt-unreadable"


def test_text_model_without_a_weight_is_found_at_start(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the files lack the weights .*layers\.0\.mlp\.down_proj"):
        open_text(without_weight(models["tiny-llama"], tmp_path / "lacking", "layers.0.mlp.down_proj"))


def test_model_without_end_token_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    """huggingface/open-r1 #663, huggingface/lighteval #115: without one every answer runs to its limit."""
    folder = shutil.copytree(models["tiny-llama"], tmp_path / "endless")
    for name, fields in (
        ("config.json", ["eos_token_id"]),
        ("generation_config.json", ["eos_token_id"]),
        ("tokenizer_config.json", ["eos_token"]),
    ):
        changed(folder, folder, name, lambda content, fields=fields: content.update(dict.fromkeys(fields)))  # type: ignore[misc]
    with pytest.raises(ValueError, match=r"eos_token_id in generation_config\.json"):
        open_text(folder)


@pytest.mark.parametrize("ends", [[2], [2, 99_999], 2])
def test_end_tokens_may_be_a_list_with_unknown_ones(models: dict[str, Path], tmp_path: Path, ends: Any) -> None:
    """Blaizzy/mlx-vlm #2112, huggingface/transformers #38330: several end tokens, and ids of another model among them."""
    folder = changed(models["tiny-llama"], tmp_path / "ends", "generation_config.json", set_fields(eos_token_id=ends))
    assert open_text(folder)._stop_token_ids == [2]


def test_model_without_chat_template_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    """hiyouga/LlamaFactory #7454: a base model is no chat model."""
    folder = shutil.copytree(models["tiny-llama"], tmp_path / "base")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    changed(folder, folder, "tokenizer_config.json", remove("chat_template"))
    with pytest.raises(ValueError, match="no chat template: name an instruction-tuned model"):
        open_text(folder)


def test_error_in_a_shared_step_fails_only_the_request_that_causes_it(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """DAMO-NLP-SG/VCD #1: one answer's probabilities are no numbers in a batch, and all answers of the batch died of it."""
    engine = open_text(models["tiny-llama"])
    alone = [answer(engine, chat(text))[0].text for text in ("one", "three")]
    forward, marked = engine._model.forward, ord("Z")

    def no_numbers_for_marked(*, input_ids: Any, **options: Any) -> Any:
        output = forward(input_ids=input_ids, **options)
        rows = (input_ids == int(engine._tokenizer.convert_tokens_to_ids(chr(marked)))).any(-1)
        output.logits[rows] = float("nan")
        return output

    monkeypatch.setattr(engine._model, "forward", no_numbers_for_marked)
    steps: list[int] = []
    advance = engine._advance
    monkeypatch.setattr(engine, "_advance", lambda: steps.append(1) or advance())  # type: ignore[func-returns-value]
    first, failed, third = answer(engine, chat("one"), chat("Z"), chat("three"))
    assert isinstance(failed, Failed)
    assert (failed.kind, failed.code) == ("permanent", "engine-failed")
    assert [first.text, third.text] == alone
    assert len(steps) == 4, "the others go on; they do not begin again"
