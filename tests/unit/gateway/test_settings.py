"""Settings of the gateway that it shares with the workers."""

import pytest
from pydantic import ValidationError

from gateway.settings import GatewaySettings

FIELDS = {"IMAGE_MODELS": "image_models", "IMAGE_LORAS": "image_loras", "IMAGE_CONTROLNETS": "image_controlnets"}


@pytest.mark.parametrize(("variable", "field"), FIELDS.items())
def test_names_are_taken_from_the_object_of_the_workers(monkeypatch: pytest.MonkeyPatch, variable: str, field: str) -> None:
    monkeypatch.setenv(variable, '{"ink": "s3://styles/ink.safetensors", "oil": "s3://styles/oil.safetensors"}')
    settings = GatewaySettings()
    assert getattr(settings, field) == ("ink", "oil")
    assert GatewaySettings.model_validate({field: ("ink",)}).model_dump()[field] == ("ink",)


@pytest.mark.parametrize("value", ["5", '"abc"', '["s3://styles/ink.safetensors"]', "true"])
@pytest.mark.parametrize("variable", FIELDS)
def test_other_values_are_refused_by_the_name_of_the_variable(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    """A text is not taken for its characters, nor a list of addresses for names."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValidationError, match="a JSON object from names to addresses is expected") as raised:
        GatewaySettings()
    assert raised.value.errors()[0]["loc"] == (variable,)


def test_names_are_none_without_the_variables() -> None:
    settings = GatewaySettings()
    assert (settings.image_models, settings.image_loras, settings.image_controlnets) == ((), (), ())
