"""The text step: a language model writes. With `message` in a conversation that is kept, with `messages` once and for itself.

With `stream` and a reply queue, what is written comes as `text.delta.v1` replies first, numbered from 0; then `text.done.v1` as always.
"""

from typing import Any, Literal

from pydantic import Field

from contracts.claim import Claim
from contracts.wire import Command, Result
from contracts.wire_model import WireModel

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]
FileType = Literal["pdf", "docx", "txt"]


class Picture(WireModel):
    """A picture shown to the model: exactly one of these. A message holds 1 MiB: send a claim for more than a little."""

    claim: Claim | None = None
    data: str | None = Field(None, description="base64, with or without a `data:` prefix.")
    url: str | None = Field(None, max_length=2048, description="`https://…`: fetched by the worker, from public addresses only.")


class Document(WireModel):
    """A file whose words the model reads: exactly one of `claim` and `data`. What it is is seen by its content."""

    claim: Claim | None = None
    data: str | None = Field(None, description="base64.")
    name: str | None = Field(None, max_length=255, description="As the user calls it.")


class Part(WireModel):
    """A part of a message: words, or a picture."""

    text: str | None = None
    picture: Picture | None = None


class Message(WireModel):
    role: Role
    content: str | list[Part]


class Text(Command):
    """Write. Either `message` (a user's next turn in a conversation) or `messages` (the whole of a talk that nobody keeps)."""

    message: str | None = Field(None, min_length=1, max_length=400_000)
    messages: list[Message] | None = Field(None, min_length=1, max_length=1000)
    system: str | None = Field(None, max_length=20_000, description="How the model should behave, before all turns.")
    conversation_id: str | None = Field(None, max_length=255, description="None, or one that is unknown: a new conversation.")
    pictures: list[Picture] = Field(default_factory=list, max_length=16, description="With `message`.")
    documents: list[Document] = Field(default_factory=list, max_length=8, description="With `message`: their words go before it.")
    max_tokens: int | None = Field(None, ge=1, description="None: as the worker is set. The worker cuts it to its MAX_TOKENS_CAP.")
    temperature: float | None = Field(None, ge=0, le=2, description="None: 0.7.")
    top_p: float | None = Field(None, gt=0, le=1, description="None: 0.9.")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=2, description="None: 1.05.")
    stop: list[str] = Field(default_factory=list, max_length=4, description="The answer ends before the first of these.")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    lora_adapter: str | None = Field(None, max_length=255, description="As the worker or its server names it. None: DEFAULT_LORA_ADAPTER.")
    json_only: bool = Field(False, description="The answer is a JSON object; the decoder can say nothing else.")
    json_schema: dict[str, Any] | None = Field(None, description="The answer satisfies this JSON schema; the decoder can say nothing else.")
    stream: bool = Field(False, description="Say what is written while it is written.")


class TextDelta(WireModel):
    """What was written since the last delta. A number that is left out means that something is lost."""

    sequence: int = Field(ge=0)
    delta: str
    tokens: int = Field(0, ge=0, description="Written so far.")


class Timings(WireModel):
    """Measured, never reckoned. Milliseconds with one decimal, as in the source system."""

    generation_ms: float = Field(description="The engine: from the prompt handed over to the last token.")
    total_ms: float = Field(description="The worker: from the message taken up to the result.")
    endpoint_total_ms: float = Field(0.0, description="The endpoint: as `total_ms` here; the gateway sets its own.")
    json_parse_ms: float = 0.0
    first_token_ms: float | None = Field(None, description="From the prompt handed over to the first token.")
    tokens_generated: int
    tokens_per_second: float


class ModelInfo(WireModel):
    """`engine`: `vLLM`, with pictures `vLLM+Vision`, with documents `vLLM+Multimodal`."""

    engine: str = "vLLM"
    model_name: str
    max_tokens: int = Field(description="The limit that counted.")
    temperature: float
    lora_adapter: str = "base"
    timings: Timings


class Usage(WireModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TextDone(Result):
    response: str
    conversation_id: str | None = Field(None, description="None when nobody keeps the talk.")
    generation_time: float = Field(description="Seconds, two decimals.")
    model_info: ModelInfo
    response_json: dict[str, Any] | None = None
    response_is_json: bool = False
    finish_reason: FinishReason = Field("stop", description="`length`: cut at max_tokens or at the end of the model's context.")
    usage: Usage
    deltas: int | None = Field(None, description="How many deltas were said before this, when it was streamed.")
    text: str | None = Field(None, description="Along a slip: the response in one line, under the name by which an overlay takes it.")
    ad_copy_text: str | None = Field(None, description="The same, under the name by which a validation takes it.")


class GetTextStatus(Command):
    """How is the writing worker? While the model loads the answer is the fault `loading`."""


class TextStatus(Result):
    """`engine_config`: model, tensor_parallel_size, max_model_len … as far as they are known; a server tells less than an engine here."""

    model_name: str
    engine: str = Field(description="`vllm` in the worker, or `openai` for a server.")
    engine_status: Literal["running", "stalled"] = Field(description="`stalled`: there is work, and no token has come for too long.")
    running_requests: int = Field(description="In the batch.")
    pending_requests: int = Field(description="Waiting for a place in it.")
    tokens_generated: int = Field(description="Since the worker began: the sign of forward progress.")
    last_token_at: float | None = Field(None, description="Unix time.")
    max_model_len: int | None = None
    vision: bool | None = Field(None, description="None: not known.")
    lora_adapters: list[str] = Field(default_factory=list)
    device: str | None = None
    gpu_memory_used: float | None = Field(None, description="GB.")
    gpu_memory_total: float | None = None
    engine_config: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict, description="Of vllm, torch and python, where they are known.")
