"""Spans of calls of models, with the attributes of OpenTelemetry's conventions for generative AI.

Prompts, pictures and answers are in no span, and neither are stop sequences, which are texts of the client.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from bus.masking import mask_text
from bus.observability import tracing

OwnProvider = Literal["atelier", "vllm"]
"""Providers of models that run here, beside those that the conventions name."""
Provider = OwnProvider | Literal["openai"]
"""`openai`: a server with OpenAI's API."""
Operation = Literal["chat", "text_completion", "generate_content", "embeddings"]
INT64 = range(-(2**63), 2**63)


@dataclass(eq=False)
class ModelCall:
    """One call. `span`: None without tracing."""

    span: Any = None

    def record(self, **attributes: Any) -> None:
        """Attributes of the answer, such as `response_model` and `usage_input_tokens`; see ATTRIBUTES. What is None is left out."""
        if self.span is not None:
            self.span.set_attributes(to_attributes(attributes))


ATTRIBUTES = {
    "choice_count": "gen_ai.request.choice.count",
    "conversation_id": "gen_ai.conversation.id",
    "dimensions": "gen_ai.embeddings.dimension.count",
    "encoding_formats": "gen_ai.request.encoding_formats",
    "finish_reasons": "gen_ai.response.finish_reasons",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "max_tokens": "gen_ai.request.max_tokens",
    "output_type": "gen_ai.output.type",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "request_model": "gen_ai.request.model",
    "response_model": "gen_ai.response.model",
    "seed": "gen_ai.request.seed",
    "stream": "gen_ai.request.stream",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "usage_cached_tokens": "gen_ai.usage.cache_read.input_tokens",
    "usage_input_tokens": "gen_ai.usage.input_tokens",
    "usage_output_tokens": "gen_ai.usage.output_tokens",
    "usage_reasoning_tokens": "gen_ai.usage.reasoning.output_tokens",
    "device_seconds": "atelier.device_seconds",
}
"""The names of the conventions by ours."""


def to_attributes(values: dict[str, Any]) -> dict[str, Any]:
    """Without secrets, which the address of a model may have. An integer that a span cannot hold is left out, too: it would take the
    other spans of its batch with it.
    """
    fits = {name: value for name, value in values.items() if value is not None and not (isinstance(value, int) and value not in INT64)}
    return {ATTRIBUTES[name]: mask_text(value) if isinstance(value, str) else value for name, value in fits.items()}


@contextmanager
def trace_model_call(operation: Operation, provider: Provider, model: str | None, **request: Any) -> Iterator[ModelCall]:
    """A span of the block, a child of the current one. `request`: attributes of the request; see ATTRIBUTES."""
    if not tracing.is_enabled():
        yield ModelCall()
        return
    attributes = {"gen_ai.operation.name": operation, "gen_ai.provider.name": provider}
    attributes |= to_attributes({"request_model": model or None} | request)
    with tracing.trace_call(f"{operation} {model}" if model else operation, attributes) as span:
        yield ModelCall(span)
