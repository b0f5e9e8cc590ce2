"""LoRA adapters of the text engine: rows of several adapters share a step, and what does not fit is refused at start."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from actors.engines.language.lora_adapters import BASE, load_adapters
from actors.engines.language.requests import TextModelOptions
from actors.engines.language.text_model import TextModelEngine, open_text_model
from actors.engines.language.tiny_llama import write_tiny_llama
from bus.errors import PermanentError
from tests.support.engine_fixture import silent_host
from tests.support.text_runs import chat, generate, open_engine, run, texts, write_adapter

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama, with the adapters `brand` and `all.layers` for it."""
    write_tiny_llama(folder := tmp_path_factory.mktemp("tiny-llama"))
    write_adapter(folder, folder / "brand", seed=1)
    write_adapter(folder, folder / "all.layers", seed=2, r=8, target_modules="all-linear")
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> TextModelEngine:
    return open_engine(folder, loras={"brand": str(folder / "brand"), "all.layers": str(folder / "all.layers")})


MIXED = [chat(text, 20, lora=lora) for text in ("why?", "y" * 150) for lora in (None, "brand", "all.layers")]


def test_rows_of_several_adapters_share_steps(engine: TextModelEngine) -> None:
    """Each has the tokens that it has alone; also a long prompt, and rows that join later."""
    alone = [texts(engine, request)[0] for request in MIXED]
    assert len(set(alone)) == len(alone)
    for ticks_between in (0, 2):
        engine._prefixes.clear()
        together, _ = run(engine, MIXED, ticks_between=ticks_between)
        assert [response.text for response in together] == alone


def test_row_without_adapter_is_the_model_itself(engine: TextModelEngine, folder: Path) -> None:
    plain = open_engine(folder)
    assert texts(engine, *MIXED[::3]) == texts(plain, *MIXED[::3])


def test_adapter_gives_the_answer_of_peft(engine: TextModelEngine, folder: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings(action="ignore"):  # PEFT reads a deprecated name of transformers
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), folder / "brand").merge_and_unload()
    ids = engine._tokenizer.apply_chat_template(MIXED[1].messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokens = model.generate(**ids, do_sample=False, max_new_tokens=20)
    assert texts(engine, MIXED[1]) == [engine._tokenizer.decode(tokens[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)]


def test_unknown_adapter_is_refused_with_the_known_ones(engine: TextModelEngine) -> None:
    with pytest.raises(PermanentError, match=r"no adapter 'loud'; TEXT_LORAS names brand, all\.layers") as raised:
        engine.submit(1, chat("x", lora="loud"))
    assert raised.value.code == "lora-unknown"


def test_rows_start_again_with_their_adapters_when_memory_runs_out(engine: TextModelEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prefix cache is given back first; the second time the batch becomes smaller."""
    import torch

    expected = texts(engine, *MIXED)
    assert engine._prefixes.size
    failures = [3, 5]
    decode, rows = engine._batch.decode_step, engine._max_rows
    steps = 0

    def decode_step(batch: object) -> None:
        nonlocal steps
        steps += 1
        if steps in failures:
            raise torch.OutOfMemoryError("CUDA out of memory")
        decode.__func__(batch)  # type: ignore[attr-defined]

    monkeypatch.setattr(type(engine._batch), "decode_step", decode_step)
    assert texts(engine, *MIXED) == expected
    assert engine._counters["memory_shortages"] == 2
    assert engine._max_rows <= rows


@pytest.mark.parametrize(
    "config",
    [
        {"init_lora_weights": "gaussian"}, {"use_rslora": True}, {"lora_bias": True}, {"rank_pattern": {"q_proj": 2}},
        {"modules_to_save": ["lm_head"]}, {"layers_to_transform": [0]}, {"target_modules": "all-linear"},
    ],
    ids=str,
)  # fmt: skip
def test_adapters_leave_the_model_as_it_is(folder: Path, tmp_path: Path, config: dict[str, Any]) -> None:
    """Rows without an adapter have the logits that they have in a model without adapters."""
    import torch
    from transformers import AutoModelForCausalLM

    ids = torch.arange(3, 40)[None]
    with torch.inference_mode(), warnings.catch_warnings(action="ignore"):
        adapter = write_adapter(folder, tmp_path / "adapter", seed=3, **config)
        expected = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
        model, names = load_adapters(AutoModelForCausalLM.from_pretrained(folder).eval(), {"mine": adapter})
        own, base = model(ids.expand(2, -1), adapter_names=[names["mine"], BASE]).logits
    assert (base - expected[0]).abs().max() < 1e-5
    assert (own - base).abs().max() > 1e-3 or config.get("init_lora_weights") == "gaussian"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "has the type 'IA3'; only LORA"),
        ({"use_dora": True}, "uses use_dora = True, which would change the answers of others or cannot share a batch: merge it"),
        ({"alora_invocation_tokens": [1, 2]}, "uses alora_invocation_tokens"),
        ({"bias": "all"}, "uses bias = 'all'"),
        ({"bias": "lora_only"}, "uses bias = 'lora_only'"),
        ({"init_lora_weights": "pissa"}, "uses init_lora_weights = 'pissa'"),
        ({"init_lora_weights": "olora"}, "uses init_lora_weights = 'olora'"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "uses layer_replication"),
        ({"use_lora_of_tomorrow": True}, "uses use_lora_of_tomorrow"),
        ({"r": 3}, "does not fit the model: .*size mismatch"),
        ({"target_modules": ["q_proj"]}, "does not fit the model: .*v_proj"),
        ({"target_modules": ["nowhere"]}, "does not fit the model: Target modules"),
    ],
)
def test_adapter_that_does_not_fit_is_refused_at_start(folder: Path, tmp_path: Path, change: dict[str, object], message: str) -> None:
    for file in (folder / "brand").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=rf"(?s)the adapter 'mine' of TEXT_LORAS \(.*\).*{message}"):
        open_text_model(TextModelOptions(str(folder), loras={"mine": str(tmp_path)}), silent_host(tmp_path))


def test_folder_without_adapter_is_refused_at_start(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no adapter_config\.json: name a folder"):
        open_text_model(TextModelOptions(str(folder), loras={"mine": str(tmp_path)}), silent_host(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="is no JSON"):
        open_text_model(TextModelOptions(str(folder), loras={"mine": str(tmp_path)}), silent_host(tmp_path))


def test_generated_tokens_are_reported_of_each_row(engine: TextModelEngine) -> None:
    assert [response.completion_tokens for response in generate(engine, *MIXED)] == [20] * len(MIXED)
