"""Which model draws, sees and writes in `atelier up` and `atelier demo`: the one that a setting names, else one that ships with Atelier."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from pydantic import AliasChoices

from actors.llm.settings import TextSettings
from actors.vision.settings import VlmSettings
from bus.masking import mask_text
from bus.net.addresses import redact_uri
from ops.errors import SetupError
from ops.local.smollm2 import PACKAGE, SMOLLM2, fetch_smollm2, find_smollm2
from ops.local.tiny_models import TINY_DIFFUSION, TINY_LLM, TINY_VLM
from ops.registry import PROCESS_GROUPS
from ops.settings import inherited_environment

TOY = "a toy of Atelier's own"
QUANTIZATION_SETTINGS = {"VLM_QUANTIZATION", "USE_QUANTIZATION"}
SERVED_FIRST = "the server's first model"


@dataclass(frozen=True)
class ModelChoice:
    """`use`: image, text, vision, or the vision steps that have a model of their own. `source`: which setting names the model.

    `environment`: what the actors' processes get so that they use it; empty where the settings name it. `is_toy`: it ships with Atelier.
    `is_remote`: a server runs it.
    """

    use: str
    model: str
    source: str
    environment: Mapping[str, str] = field(default_factory=dict)
    is_toy: bool = False
    is_remote: bool = False

    def to_json(self) -> dict[str, str]:
        return {"use": self.use, "model": self.model, "source": self.source}


def choose_models(steps: Iterable[str], tiny_models: Mapping[str, Path]) -> list[ModelChoice]:
    """The choices for those of `steps` that need a model. Settings are read from this process's environment, as the actors read them."""
    served = set(steps)
    choices = [choose_image_model(tiny_models[TINY_DIFFUSION])] if "image" in served else []
    choices += choose_vision_models([step for step in PROCESS_GROUPS["vision"] if step in served], tiny_models[TINY_VLM])
    return [*choices, choose_text_model(tiny_models[TINY_LLM])] if "text" in served else choices


def choose_image_model(toy: Path) -> ModelChoice:
    if named := inherited_environment().get("IMAGE_MODEL"):
        return ModelChoice("image", named, "IMAGE_MODEL")
    return ModelChoice("image", toy.name, f"{TOY}; IMAGE_MODEL names another", {"IMAGE_MODEL": str(toy)}, is_toy=True)


def choose_vision_models(steps: Sequence[str], toy: Path) -> list[ModelChoice]:
    """One choice for all steps with the same model; a step may have its own, such as JUDGE_MODEL."""
    named: dict[tuple[str, str, bool], list[str]] = {}
    toy_steps: list[str] = []
    for step in steps:
        settings = VlmSettings.for_step(step)
        variable = naming_variable(step)
        if variable is None and settings.engine != "openai":
            toy_steps.append(step)
        else:
            model, is_remote = settings.model if variable else SERVED_FIRST, settings.engine == "openai"
            named.setdefault((model, describe_vision_source(settings, variable), is_remote), []).append(step)
    made = [
        ModelChoice(name_steps(served, steps), model, source, is_remote=is_remote) for (model, source, is_remote), served in named.items()
    ]
    if not toy_steps:
        return made
    environment = {"VLM_MODEL": str(toy)}
    if not made and not QUANTIZATION_SETTINGS & inherited_environment().keys():
        environment["VLM_QUANTIZATION"] = "none"  # a toy gains nothing from 8 bits, the default on CUDA, and was measured without
    source = f"{TOY}; VLM_MODEL names another"
    return [*made, ModelChoice(name_steps(toy_steps, steps), toy.name, source, environment, is_toy=True)]


def naming_variable(step: str) -> str | None:
    """The variable that names the model of a vision step."""
    alias = VlmSettings.model_fields["model"].validation_alias
    assert isinstance(alias, AliasChoices)
    environment = inherited_environment()
    return next((str(name) for name in (f"{step.upper()}_MODEL", *alias.choices) if environment.get(str(name))), None)


def describe_vision_source(settings: VlmSettings, variable: str | None) -> str:
    if settings.engine == "openai":
        return f"{mask_text(redact_uri(settings.base_url)) if settings.base_url else 'no VLM_BASE_URL'}, a server"
    return str(variable)


def name_steps(steps: Sequence[str], all_steps: Sequence[str]) -> str:
    return "vision" if list(steps) == list(all_steps) else " ".join(steps)


def choose_text_model(toy: Path) -> ModelChoice:
    """The small model where it is at hand, else the toy, which is in the same folder."""
    settings = TextSettings()
    if settings.server_url and settings.engine in {"auto", "openai"}:
        return ModelChoice(
            "text", settings.model or SERVED_FIRST, f"{mask_text(redact_uri(settings.server_url))}, VLLM_SERVER_URL", is_remote=True
        )
    if settings.engine == "openai":
        return ModelChoice("text", settings.model or SERVED_FIRST, "no VLLM_SERVER_URL, a server", is_remote=True)
    if not needs_text_model(settings):
        return ModelChoice("text", settings.model or "none is named", f"VLLM_MODEL, TEXT_ENGINE={settings.engine}")
    if small := find_smollm2(toy.parent):
        return ModelChoice("text", SMOLLM2, f"the package {PACKAGE}; VLLM_MODEL names another", {"VLLM_MODEL": str(small)})
    environment = {"VLLM_MODEL": str(toy), "TEXT_REPETITION_PENALTY": "1"}  # it was trained without a penalty
    return ModelChoice("text", TINY_LLM, f"{TOY}; VLLM_MODEL or VLLM_SERVER_URL names another", environment, is_toy=True)


def needs_text_model(settings: TextSettings) -> bool:
    """Whether neither a server nor a model is named for the text step."""
    server = settings.server_url and settings.engine in {"auto", "openai"}
    return not server and not settings.model and settings.engine in {"auto", "embedded"}


async def fetch_missing_models(steps: Iterable[str], models: Path, *, may_install: bool) -> None:
    """Fetch the small language model into the folder `models` where it is needed, not at hand, and may be fetched."""
    if "text" in set(steps) and may_install and find_spec("torch") and needs_text_model(TextSettings()) and not find_smollm2(models):
        await fetch_smollm2(models)


def require_libraries(choices: Iterable[ModelChoice]) -> None:
    """Raises SetupError when a model is to run here and the extra `models` is not installed."""
    local = [choice.use for choice in choices if not choice.is_remote]
    if local and find_spec("torch") is None:
        message = "pip install -e '.[models]' --constraint constraints.txt, or name a server (VLLM_SERVER_URL; VLM_ENGINE=openai)"
        raise SetupError(f"The models for {', '.join(local)} need torch, which the extra `models` installs: {message}")


def merged_environment(environment: Mapping[str, str], choices: Iterable[ModelChoice], models: Path) -> dict[str, str]:
    """`environment` with the choices. Toy LoRAs, in the folder `models`, may be fetched where no other folders are named."""
    merged = {"ASSET_ROOTS": str(models)} | dict(environment)
    for choice in choices:
        merged |= choice.environment
    return merged


def format_choices(choices: Sequence[ModelChoice]) -> str:
    """One line for each."""
    width = max((len(choice.use) for choice in choices), default=0)
    return "\n".join(f"  {choice.use:<{width}}  {choice.model}  ({choice.source})" for choice in choices)
