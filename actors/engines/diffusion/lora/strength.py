"""How strongly an adapter is applied: the scaling of each layer, alpha by rank, as PEFT and LyCORIS compute it.

It is known from the weights (kohya's alpha of each layer, or the configuration in the header that diffusers writes) or from the
`adapter_config.json` beside them. Otherwise the order or a setting names alpha; without either it is assumed to be the rank.
"""

import json
import math
import time
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from bus.errors import PermanentError, TemporaryError, validation_problems
from contracts.image import AlphaSource

Method = Literal["LoRA", "DoRA", "LoHa", "LoKr"]
COMPONENTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
"""The parts of pipelines that have a configuration of their own in a header."""
PEFT_TYPES: dict[Method, str] = {"LoRA": "LORA", "DoRA": "LORA", "LoHa": "LOHA", "LoKr": "LOKR"}
ADAPTER_CONFIG = "adapter_config.json"
MAX_CONFIG_BYTES = 256 << 10
MAX_HEADER_CONFIG_CHARACTERS = 1 << 20
"""Of the configurations in a header, of several components together."""
MAX_PATTERNS = 2000
PATTERN_SECONDS = 1.0
"""The processor time for all patterns of a LoRA, which may be written so that matching them takes for ever."""
HEADER_KEY = "lora_adapter_metadata"
"""Of the safetensors header: the configurations of all components, whose keys begin with the component's name."""

LayerPattern = Annotated[str, Field(max_length=256, pattern=r"^(?:[\w.^$|)\[\]*+?\\-]|\((?:[^?]|$))*$")]
"""A layer's name or its end, or a regular expression of that, without counts and groups of a special kind."""
Alpha = Annotated[float, Field(allow_inf_nan=False)]


def to_pairs(value: Any) -> Any:
    return tuple(value.items()) if isinstance(value, dict) else value or ()


def to_flag(value: Any) -> Any:
    return value or False


class AdapterConfig(BaseModel):
    """What PEFT's `adapter_config.json` says about strength; the defaults are PEFT's. Later patterns yield to earlier ones.

    `lora_alpha` is called `alpha` in the configurations of LoHa and LoKr.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    peft_type: Literal["LORA", "LOHA", "LOKR"] = "LORA"
    r: int = Field(8, ge=1, le=1 << 20)
    lora_alpha: Alpha = 8.0
    use_rslora: Annotated[bool, BeforeValidator(to_flag)] = False
    use_dora: Annotated[bool, BeforeValidator(to_flag)] = False
    rank_pattern: Annotated[tuple[tuple[LayerPattern, Annotated[int, Field(ge=1)]], ...], BeforeValidator(to_pairs)] = Field(
        (), max_length=MAX_PATTERNS
    )
    alpha_pattern: Annotated[tuple[tuple[LayerPattern, Alpha], ...], BeforeValidator(to_pairs)] = Field((), max_length=MAX_PATTERNS)

    @model_validator(mode="before")
    @classmethod
    def _rename_alpha(cls, data: Any) -> Any:
        return {"lora_alpha": data["alpha"], **data} if isinstance(data, dict) and "alpha" in data else data


def invalid_lora(origin: str, reason: str) -> PermanentError:
    return PermanentError("lora-invalid", f"the LoRA {origin} cannot be used: {reason}")


def lora_is_gone(origin: str) -> TemporaryError:
    return TemporaryError(f"the LoRA {origin} was evicted from the cache on disk: make IMAGE_LORA_CACHE_BYTES larger", code="lora-gone")


def parse_adapter_config(data: bytes, origin: str) -> AdapterConfig:
    """Raises PermanentError("lora-invalid")."""
    try:
        return AdapterConfig.model_validate_json(data)
    except ValidationError as error:
        raise invalid_lora(origin, f"{ADAPTER_CONFIG} beside it: {validation_problems(error, limit=3, root='file')}") from None


def header_configs(metadata: Any, origin: str) -> dict[str, AdapterConfig]:
    """Component → configuration, from the `__metadata__` of the header. Raises PermanentError("lora-invalid")."""
    if not isinstance(metadata, dict) or HEADER_KEY not in metadata:
        return {}
    if isinstance(metadata[HEADER_KEY], str) and len(metadata[HEADER_KEY]) > MAX_HEADER_CONFIG_CHARACTERS:
        raise invalid_lora(origin, f"{HEADER_KEY} in its header is longer than {MAX_HEADER_CONFIG_CHARACTERS} characters")
    try:
        entries = [(*name.partition(".")[::2], value) for name, value in json.loads(metadata[HEADER_KEY]).items()]
        fields = {component: {name: value for first, name, value in entries if first == component} for component in COMPONENTS}
        return {component: AdapterConfig.model_validate(values) for component, values in fields.items() if values}
    except ValidationError as error:
        raise invalid_lora(origin, f"its header: {validation_problems(error, limit=3, root=HEADER_KEY)}") from None
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise invalid_lora(origin, f"{HEADER_KEY} in its header is no JSON object") from None


class LayerScalings:
    """The scaling of each layer of one adapter. `assumed`: alpha where nothing else is known, None for the rank, and its source."""

    def __init__(
        self, origin: str, config: AdapterConfig | None, header: Mapping[str, AdapterConfig], assumed: tuple[float | None, AlphaSource]
    ) -> None:
        self._origin, self._config, self._header, self._assumed = origin, config, header, assumed
        self._patterns: dict[str, Any] = {}
        self._seconds_left = PATTERN_SECONDS

    def scaling(
        self, component: str, layer: str, rank: int | None, alpha: float | None, method: Method = "LoRA"
    ) -> tuple[float, AlphaSource]:
        """The factor of the layer's change, and where it is known from. `alpha`: that of the layer in the weights. `rank`: None for a
        LoKr of two whole matrices, whose rank only a configuration can say; without one LyCORIS applies it as it is.

        Raises PermanentError("lora-invalid") when a configuration names another rank or method, or its patterns cannot be matched.
        """
        if config := self._header.get(component):
            return self._configured(config, layer, rank, method), "weights"
        if alpha is not None:
            return alpha / rank if rank else 1.0, "weights"
        if self._config:
            return self._configured(self._config, layer, rank, method), "adapter_config"
        assumed_alpha, source = self._assumed
        return 1.0 if rank is None or assumed_alpha is None else assumed_alpha / rank, source

    def _configured(self, config: AdapterConfig, layer: str, rank: int | None, method: Method) -> float:
        named: Method | str = "DoRA" if config.use_dora else config.peft_type
        if PEFT_TYPES[method] != config.peft_type or config.use_dora != (method == "DoRA"):
            raise invalid_lora(self._origin, f"its configuration is one of {named}, its weights for {layer!r} are {method}")
        configured_rank = self._match(config.rank_pattern, layer, config.r)
        if rank is not None and configured_rank != rank:
            raise invalid_lora(self._origin, f"its configuration gives {layer!r} the rank {configured_rank:g}, its weights have {rank}")
        alpha = self._match(config.alpha_pattern, layer, config.lora_alpha)
        return alpha / (math.sqrt(configured_rank) if config.use_rslora else configured_rank)

    def _match(self, patterns: tuple[tuple[str, Any], ...], layer: str, default: float) -> float:
        """The value of the first pattern that matches the layer's name or its end."""
        return next((float(value) for pattern, value in patterns if self._matches(pattern, layer)), default)

    def _matches(self, pattern: str, layer: str) -> bool:
        import regex

        start = time.thread_time()
        try:
            if self._seconds_left <= 0:
                raise TimeoutError
            if pattern not in self._patterns:
                self._patterns[pattern] = regex.compile(rf"(.*\.)?({pattern})$")
            return bool(self._patterns[pattern].match(layer, timeout=self._seconds_left))
        except TimeoutError:
            raise invalid_lora(self._origin, f"matching its rank_pattern and alpha_pattern takes over {PATTERN_SECONDS:g} s") from None
        except regex.error:
            raise invalid_lora(self._origin, f"the pattern {pattern!r} of its configuration is no regular expression") from None
        finally:
            self._seconds_left -= time.thread_time() - start


def describe_strength(scalings: Mapping[Any, tuple[float, AlphaSource]]) -> dict[str, str]:
    """`lora_scaling`, a value or the least and the greatest, and `lora_alpha_from`, the least certain source of any layer."""
    values = sorted({value for value, _ in scalings.values()})
    sources = {source for _, source in scalings.values()}
    scaling = "–".join(f"{value:g}" for value in dict.fromkeys((values[0], values[-1])))
    return {"lora_scaling": scaling, "lora_alpha_from": least_certain(sources)}


def least_certain(sources: Iterable[str]) -> AlphaSource:
    """Of one or more sources of alpha."""
    found = set(sources)
    return next(source for source in get_args(AlphaSource) if source in found)
