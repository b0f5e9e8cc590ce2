"""The text step: a language model answers, with `message` in a stored conversation, with `messages` without one.

With `stream` and a reply queue the text is sent as `text.delta.v1` replies, numbered from 0, before the final `text.done.v1`.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from contracts.claim import Claim
from contracts.wire import Command, Result
from contracts.wire_model import WireModel

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "content_filter", "tool_calls"]
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]


class Picture(WireModel):
    """An image for the model; exactly one field is set. A message is limited to 1 MiB: send a claim for all but small images."""

    claim: Claim | None = None
    data: str | None = Field(None, description="base64, with or without a `data:` prefix.")
    url: str | None = Field(None, max_length=2048, description="`https://…`; the worker fetches it, from public addresses only.")


class Document(WireModel):
    """A file whose text the model reads; exactly one of `claim` and `data` is set. Its type is detected from its content."""

    claim: Claim | None = None
    data: str | None = Field(None, description="base64.")
    name: str | None = Field(None, max_length=255, description="The file name that the user gave.")


class Part(WireModel):
    """A part of a message: a text or an image."""

    text: str | None = None
    picture: Picture | None = None


class Tool(WireModel):
    """A function that the model may call. `parameters`: JSON schema of its arguments; None: it has none."""

    name: ToolName
    description: str | None = Field(None, max_length=20_000)
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(None, description="Passed to servers. Engines that constrain their output always obey the schema.")


class ToolCall(WireModel):
    """A function that the model calls. `arguments`: JSON."""

    id: str = Field(max_length=256)
    name: str = Field(max_length=256)
    arguments: str


class Message(WireModel):
    """One message of a chat."""

    role: Role
    content: str | list[Part] = ""
    tool_calls: list[ToolCall] = Field(default_factory=list, max_length=128, description="Of the role `assistant`.")
    tool_call_id: str | None = Field(None, max_length=256, description="Of the role `tool`: the call whose result `content` is.")
    name: str | None = Field(None, max_length=256, description="Of the role `tool`: the function.")
    reasoning: str | None = Field(None, description="Of the role `assistant`: what it thought before. Passed to servers.")


class Text(Command):
    """Generate a text: with `message` (the user's next message in a conversation), `messages` (a whole chat, which is not stored) or
    `raw_prompt` (a text that the model continues, without a chat template). Exactly one of the three is set.
    """

    message: str | None = Field(None, min_length=1, max_length=400_000)
    messages: list[Message] | None = Field(None, min_length=1, max_length=1000)
    raw_prompt: str | None = Field(
        None, max_length=400_000, description="Not called `prompt`, which is a variable of image orders on a routing slip."
    )
    system: str | None = Field(None, max_length=20_000, description="The system prompt, before all messages.")
    conversation_id: str | None = Field(None, max_length=255, description="None or an unknown id: a new conversation.")
    pictures: list[Picture] = Field(default_factory=list, max_length=16, description="Used with `message`.")
    documents: list[Document] = Field(default_factory=list, max_length=8, description="With `message`: their text is put before it.")
    max_tokens: int | None = Field(None, ge=1, description="None: the worker's default. At most the worker's MAX_TOKENS_CAP is used.")
    temperature: float | None = Field(None, ge=0, le=2, description="None: 0.7.")
    top_p: float | None = Field(None, gt=0, le=1, description="None: 0.9.")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=2, description="None: 1.05.")
    stop: list[str] = Field(default_factory=list, max_length=4, description="Stop sequences: the answer ends before the first of these.")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    lora_adapter: str | None = Field(
        None, max_length=255, description="The name of an adapter of the worker or its server. None: DEFAULT_LORA_ADAPTER."
    )
    tools: list[Tool] = Field(default_factory=list, max_length=128, description="Used with `messages`.")
    tool_choice: Literal["none", "auto", "required"] = Field("auto", description="`required`: the answer is at least one call.")
    tool_name: ToolName | None = Field(None, description="The answer is a call of this tool.")
    parallel_tool_calls: bool = Field(True, description="Whether one answer may hold several calls.")
    n: int = Field(1, ge=1, le=16, description="Answers to generate. With a seed, answer k has the seed plus k.")
    with_logprobs: bool = Field(
        False,
        description="Return the log probability of each token of the text; reasoning and tool calls have none. Not called `logprobs`, "
        "which is a field of the result, and so a variable on a routing slip.",
    )
    top_logprobs: int = Field(0, ge=0, le=20, description="With `with_logprobs`: also of so many likeliest tokens at each place.")
    reasoning_effort: ReasoningEffort | None = Field(None, description="For models that reason; passed to servers and chat templates.")
    json_only: bool = Field(False, description="Constrain decoding to a JSON object.")
    json_schema: dict[str, Any] | None = Field(None, description="Constrain decoding to this JSON schema.")
    stream: bool = Field(False, description="Send deltas while the text is generated.")


class Alternative(WireModel):
    """A token that was possible at one place. `text` may be part of a character; `bytes`: its UTF-8 bytes, where they are known."""

    text: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(Alternative):
    """A generated token, with the likeliest tokens at its place. Log probabilities are the model's, before temperature and penalties."""

    top: list[Alternative] = Field(default_factory=list)


class ToolCallDelta(WireModel):
    """A part of a tool call. `index`: its place among the answer's calls. `id` and `name` are in its first part."""

    index: int = Field(ge=0)
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class TextDelta(WireModel):
    """The text generated since the last delta. A gap in `sequence` means that a delta was lost."""

    sequence: int = Field(ge=0)
    delta: str
    tokens: int = Field(0, ge=0, description="Tokens generated so far.")
    choice: int = Field(0, ge=0, description="The answer that it belongs to, when `n` is more than 1.")
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = Field(default_factory=list)
    logprobs: list[TokenLogprob] = Field(default_factory=list)


class Timings(WireModel):
    """Measured times. Milliseconds with one decimal, as in the source system."""

    generation_ms: float = Field(description="In the engine: from the submission of the prompt to the last token.")
    total_ms: float = Field(description="In the worker: from the receipt of the message to the result.")
    endpoint_total_ms: float = Field(0.0, description="In the endpoint: equal to `total_ms` here; the gateway sets its own time.")
    json_parse_ms: float = 0.0
    first_token_ms: float | None = Field(None, description="From the submission of the prompt to the first token.")
    tokens_generated: int
    tokens_per_second: float


class ModelInfo(WireModel):
    """The model and its parameters. `engine`: `vLLM`; with images `vLLM+Vision`, with documents `vLLM+Multimodal`."""

    engine: str = "vLLM"
    model_name: str
    max_tokens: int = Field(description="The limit that was applied.")
    temperature: float
    lora_adapter: str = "base"
    left_out: list[str] | None = Field(None, description="Parameters of the request that the model's server does not take.")
    timings: Timings


class Usage(WireModel):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int = Field(0, description="Of the prompt: those that were read before and not computed again.")
    reasoning_tokens: int = Field(0, description="Of the completion: those of its reasoning.")


class Answer(WireModel):
    """One of several answers. Fields as in `TextDone`."""

    response: str
    finish_reason: FinishReason = "stop"
    tool_calls: list[ToolCall] = Field(default_factory=list)
    reasoning: str | None = None
    logprobs: list[TokenLogprob] | None = None


class TextDone(Result):
    """The generated text."""

    response: str
    tool_calls: list[ToolCall] = Field(default_factory=list, description="The functions that the model calls.")
    reasoning: str | None = Field(None, description="What the model thought before its answer, where its server says it.")
    logprobs: list[TokenLogprob] | None = None
    answers: list[Answer] = Field(
        default_factory=list, description="All answers when `n` is more than 1; the fields beside are those of the first."
    )
    device_seconds: float | None = Field(None, ge=0, description="Busy time of the device for this request; None: not known.")
    conversation_id: str | None = Field(None, description="None when the chat is not stored.")
    generation_time: float = Field(description="Seconds, with two decimals.")
    model_info: ModelInfo
    response_json: dict[str, Any] | None = None
    response_is_json: bool = False
    finish_reason: FinishReason = Field(
        "stop",
        description="`length`: cut at max_tokens or at the end of the model's context; `content_filter`: the model's server stopped or "
        "refused the answer; `tool_calls`: the answer ends with calls.",
    )
    usage: Usage
    deltas: int | None = Field(None, description="The number of deltas sent before this result; None when it was not streamed.")
    text: str | None = Field(None, description="On a routing slip: the response in one line, under the name that the overlay step reads.")
    ad_copy_text: str | None = Field(None, description="The same, under the name that the validate step reads.")


class GetTextStatus(Command):
    """Ask for the status of the text worker. While the model loads the reply is the fault `loading`."""


class TextStatus(Result):
    """The status of the text worker. `engine_config`: model, tensor_parallel_size, max_model_len …; a server reports fewer of them."""

    model_name: str
    engine: str = Field(description="`vllm` in the worker, or `openai` for a server.")
    engine_status: Literal["running", "stalled"] = Field(
        description="`stalled`: requests are running, and no token was generated for too long."
    )
    running_requests: int = Field(description="Requests in the batch.")
    pending_requests: int = Field(description="Requests that wait for a place in the batch.")
    tokens_generated: int = Field(description="Since the worker started; it grows while the engine makes progress.")
    last_token_at: float | None = Field(None, description="Unix time in seconds.")
    max_model_len: int | None = None
    vision: bool | None = Field(None, description="Whether the model reads images. None: unknown, because its server did not answer.")
    lora_adapters: list[str] = Field(default_factory=list)
    device: str | None = None
    gpu_count: int | None = Field(None, description="GPUs of the engine. 0: it runs on a CPU; None: unknown, as with most servers.")
    gpu_memory_used: float | None = Field(None, description="GB on all GPUs of the engine; None: no GPU, or unknown.")
    gpu_memory_total: float | None = None
    gpu_utilization: float | None = Field(None, description="Percent, the mean of the GPUs.")
    cache_utilization: float | None = Field(None, description="Percent of the key-value cache that running requests occupy.")
    engine_config: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict, description="The versions of vllm, torch and python, when known.")
