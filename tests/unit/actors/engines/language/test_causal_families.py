"""Each causal model type of the allow-list: the answers of a mixed batch are those of transformers' `generate`, alone and in company."""

from pathlib import Path
from typing import Any

import pytest

from actors.engines.language.causal_families import CAUSAL_TYPES
from actors.engines.language.requests import TextModelOptions
from actors.engines.language.text_model import TextModelEngine, open_text_model
from tests.support.engine_fixture import silent_host
from tests.support.text_runs import chat, open_engine, run, texts, write_causal_model

pytestmark = pytest.mark.models
WINDOW = 24
SPECIAL: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": WINDOW},
    "gemma2": {"sliding_window": WINDOW, "query_pre_attn_scalar": 16},
    "gemma3_text": {"sliding_window": WINDOW, "query_pre_attn_scalar": 16},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
    "phi3": {"sliding_window": WINDOW},
    "smollm3": {"no_rope_layer_interval": 2},
}
"""Windows that are shorter than the prompts, and layers of two kinds, so that a mistake in either changes the answers."""
REQUESTS = [chat("x" * 100, 24), chat("ab", 30), chat("why? " * 8, 12), chat("왜" * 40, 20)]


def expected_text(engine: TextModelEngine, request: Any) -> str:
    ids = engine._tokenizer.apply_chat_template(request.messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokens = engine._model.generate(**ids, do_sample=False, max_new_tokens=request.max_tokens)
    return str(engine._tokenizer.decode(tokens[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))


@pytest.mark.parametrize("model_type", CAUSAL_TYPES)
def test_answers_are_those_of_generate_alone_and_mixed(model_type: str, tmp_path: Path) -> None:
    """Also of prompts that are read in parts while the others go on, and of those that are read from the prefix cache on."""
    write_causal_model(tmp_path, model_type, **SPECIAL.get(model_type, {}))
    engine = open_engine(tmp_path)
    expected = [expected_text(engine, request) for request in REQUESTS]
    assert len(set(expected)) == len(expected)
    assert [texts(engine, request)[0] for request in REQUESTS] == expected
    engine._prefixes.clear()
    for ticks_between in (0, 3):
        responses, _ = run(engine, REQUESTS, ticks_between=ticks_between)
        assert [response.text for response in responses] == expected
    assert responses[0].cached_tokens > WINDOW


def test_other_types_are_refused_before_their_weights_are_read(tmp_path: Path) -> None:
    write_causal_model(tmp_path, "olmo2")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"'olmo2', which is not proven .* smollm3"):
        open_text_model(TextModelOptions(str(tmp_path)), silent_host(tmp_path))


def test_context_ends_where_positions_would_change_for_the_whole_batch(tmp_path: Path) -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 256, **factors}
    write_causal_model(tmp_path, "phi3", rope_parameters=rope, original_max_position_embeddings=256)
    assert open_engine(tmp_path).info["max_model_len"] == 256
