"""Configurations of LoRAs: what PEFT's fields mean, what is refused, and that no pattern takes long."""

import json
import time
from typing import Any

import pytest

from actors.engines.diffusion.lora.strength import (
    HEADER_KEY,
    PATTERN_SECONDS,
    AdapterConfig,
    LayerScalings,
    describe_strength,
    header_configs,
    least_certain,
    parse_adapter_config,
)
from bus.errors import PermanentError


def parse(**fields: Any) -> AdapterConfig:
    return parse_adapter_config(json.dumps(fields).encode(), "s3://b/style")


def scaling(config: AdapterConfig, layer: str, rank: int = 8) -> float:
    return LayerScalings("s3://b/style", config, {}, (None, "assumed")).scaling("unet", layer, rank, None)[0]


def test_scaling_is_alpha_by_rank_of_the_layer() -> None:
    config = parse(r=8, lora_alpha=32, rank_pattern={"mid.to_q": 2, "to_q": 4}, alpha_pattern={"^up.*": 16, r"down\.\d+.to_[kv]": 64})
    assert scaling(config, "mid.to_k") == 4
    assert scaling(config, "mid.to_q", 2) == 16, "the first pattern that matches"
    assert scaling(config, "down.mid.to_q", 2) == 16, "a pattern is the end of a name"
    assert scaling(config, "amid.to_q", 4) == 8, "it begins at a dot"
    assert scaling(config, "up.to_k") == 2
    assert scaling(config, "mid.up.to_k") == 4
    assert (scaling(config, "down.12.to_k"), scaling(config, "down.x.to_k")) == (8, 4)
    assert scaling(parse(r=16, lora_alpha=8, use_rslora=True), "to_k", 16) == 2
    assert scaling(parse(lora_alpha=16, rank_pattern=None, alpha_pattern=None, use_dora=None), "to_k") == 2, "r is 8 in PEFT by default"


def test_what_the_weights_say_comes_first() -> None:
    config, header = parse(r=8, lora_alpha=32), {"unet": parse(r=8, lora_alpha=16)}
    scalings = LayerScalings("o", config, header, (2.0, "order"))
    assert scalings.scaling("unet", "to_q", 8, 8.0) == (2, "weights")
    assert scalings.scaling("text_encoder", "q_proj", 8, 8.0) == (1, "weights")
    assert scalings.scaling("text_encoder", "q_proj", 8, None) == (4, "adapter_config")
    assert LayerScalings("o", None, {}, (2.0, "order")).scaling("unet", "to_q", 8, None) == (0.25, "order")
    assert LayerScalings("o", None, {}, (None, "assumed")).scaling("unet", "to_q", 8, None) == (1, "assumed")


def test_description_names_the_least_certain_layer() -> None:
    assert describe_strength({1: (4.0, "weights"), 2: (0.5, "order"), 3: (1.0, "adapter_config")}) == {
        "lora_scaling": "0.5–4",
        "lora_alpha_from": "order",
    }


def test_configurations_of_lycoris_call_alpha_by_its_short_name() -> None:
    config = parse(peft_type="LOKR", r=8, alpha=4, alpha_pattern={"to_k": 2})
    scalings = LayerScalings("o", config, {}, (None, "assumed"))
    assert scalings.scaling("unet", "to_q", 8, None, "LoKr") == (0.5, "adapter_config")
    assert scalings.scaling("unet", "to_k", None, None, "LoKr") == (0.25, "adapter_config"), "whole matrices have no rank of their own"


def test_lokr_of_whole_matrices_is_as_strong_as_in_lycoris_without_a_configuration() -> None:
    """Its alpha in the weights is then the rank, which the file does not say."""
    scalings = LayerScalings("o", None, {}, (2.0, "order"))
    assert scalings.scaling("unet", "to_q", None, 32.0, "LoKr") == (1.0, "weights")
    assert scalings.scaling("unet", "to_q", None, None, "LoKr") == (1.0, "order")


def test_least_certain_source_of_several_is_named() -> None:
    assert least_certain(["weights", "setting", "adapter_config"]) == "setting"


INVALID = {
    "no JSON": b"<html>not found</html>",
    "empty": b"",
    "a list": b"[]",
    "not Unicode": b"\xff\xfe",
    "deep": b'{"r":' + b"[" * 100_000,
    "no number": b'{"r": "eight"}',
    "no rank": b'{"r": 0}',
    "huge rank": b'{"r": 1' + b"0" * 4000 + b"}",
    "alpha is no number": b'{"lora_alpha": NaN}',
    "alpha is endless": b'{"lora_alpha": 1e999}',
    "another method": b'{"peft_type": "OFT", "r": 8}',
    "pattern of no rank": b'{"rank_pattern": {"to_q": -1}}',
    "pattern with a count": b'{"rank_pattern": {"(a{1,60000}){1,60000}": 1}}',
    "pattern with a special group": b'{"alpha_pattern": {"(?R)": 1}}',
    "long pattern": json.dumps({"alpha_pattern": {"a" * 257: 1}}).encode(),
    "many patterns": json.dumps({"alpha_pattern": {f"a{number}": 1 for number in range(2001)}}).encode(),
}


@pytest.mark.parametrize("data", INVALID.values(), ids=INVALID)
def test_invalid_configuration_is_refused(data: bytes) -> None:
    start = time.process_time()
    with pytest.raises(PermanentError) as raised:
        parse_adapter_config(data, "s3://b/style")
    assert raised.value.code == "lora-invalid"
    assert "s3://b/style" in str(raised.value)
    assert "adapter_config.json" in str(raised.value)
    assert len(str(raised.value)) < 1500
    assert time.process_time() - start < 1


@pytest.mark.parametrize("number", [1, 2000])
def test_patterns_of_a_configuration_take_bounded_time(number: int) -> None:
    """The first would take longer than the age of the universe, the many would take minutes for all layers."""
    pattern = r"(\w|\w)*[XZ]" if number == 1 else ".*.*.*[XZ]"
    scalings = LayerScalings(
        "s3://b/style", parse(alpha_pattern={f"{pattern}{index}": 1 for index in range(number)}), {}, (None, "assumed")
    )
    layers = [f"{'abcdefghijklmnopqrstuvwxyz' * 4}{index}" for index in range(300)]
    start = time.process_time()
    with pytest.raises(PermanentError, match="alpha_pattern takes over 1 s") as raised:
        [scalings.scaling("unet", layer, 8, None) for layer in layers]
    assert raised.value.code == "lora-invalid"
    assert time.process_time() - start < PATTERN_SECONDS + 1


def test_pattern_that_is_no_expression_is_named() -> None:
    with pytest.raises(PermanentError, match=r"'\(' of its configuration"):
        scaling(parse(alpha_pattern={"(": 1}), "to_q")


def test_header_has_a_configuration_of_each_component() -> None:
    fields = {"unet.r": 8, "unet.lora_alpha": 32, "text_encoder.r": 4, "text_encoder.lora_alpha": 4}
    configs = header_configs({HEADER_KEY: json.dumps(fields)}, "o")
    assert {name: config.lora_alpha for name, config in configs.items()} == {"unet": 32, "text_encoder": 4}
    for metadata in ({"format": "pt"}, {HEADER_KEY: '{"vae.r": 8}'}, None, 5, "x", [HEADER_KEY]):
        assert header_configs(metadata, "o") == {}
    for broken in ("[]", "{", "3", '"x"', "[" * 100_000, '{"unet.r": "x"}', 5):
        with pytest.raises(PermanentError) as raised:
            header_configs({HEADER_KEY: broken}, "o")
        assert raised.value.code == "lora-invalid", broken
