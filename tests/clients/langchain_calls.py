"""The calls of langchain-openai."""

from typing import Any, Literal

from calls import TOOL, Calls
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel

calls = Calls("langchain-openai")


class Weather(BaseModel):
    """The weather of a city."""

    city: Literal["Seoul", "Paris"]
    is_warm: bool


def chat(server: dict[str, Any], **options: Any) -> ChatOpenAI:
    return ChatOpenAI(**{"model": "text", "max_tokens": 256} | server | options)


@calls.add("chat")
def invoke(server: dict[str, Any]) -> None:
    assert chat(server, max_tokens=8).invoke("Hello").usage_metadata["output_tokens"] > 0


@calls.add("chat, streamed")
def stream(server: dict[str, Any]) -> None:
    assert list(chat(server, max_tokens=8).stream("Hello"))


@calls.add("chat, in a batch")
def batch(server: dict[str, Any]) -> None:
    assert len(chat(server, max_tokens=8).batch(["Hello", "Goodbye"])) == 2


@calls.add("chat, `n`")
def several_answers(server: dict[str, Any]) -> None:
    assert len(chat(server, max_tokens=8, n=2).generate([[HumanMessage("Hello")]]).generations[0]) == 2


@calls.add("chat, `logprobs`")
def logprobs(server: dict[str, Any]) -> None:
    answer = chat(server, max_tokens=4).bind(logprobs=True, top_logprobs=2).invoke("Hello")
    assert answer.response_metadata["logprobs"]["content"]


@calls.add("chat, tools")
def tools(server: dict[str, Any]) -> None:
    (call, *_) = chat(server).bind_tools([TOOL], tool_choice="required").invoke("Weather?").tool_calls
    assert call["name"] == "get_weather"
    assert call["args"]["city"] in {"Seoul", "Paris"}


@calls.add("chat, structured output")
def json_schema(server: dict[str, Any]) -> None:
    assert isinstance(chat(server).with_structured_output(Weather, method="json_schema").invoke("Weather?"), Weather)


@calls.add("chat, structured output by tools")
def function_calling(server: dict[str, Any]) -> None:
    assert isinstance(chat(server).with_structured_output(Weather, method="function_calling").invoke("Weather?"), Weather)


@calls.add("chat, JSON object")
def json_mode(server: dict[str, Any]) -> None:
    model = chat(server).bind(response_format={"type": "json_object"})
    assert str(model.invoke("A JSON object.").content).lstrip().startswith("{")


@calls.add("responses")
def responses(server: dict[str, Any]) -> None:
    assert chat(server, use_responses_api=True).invoke("Hello").response_metadata["id"]


@calls.add("responses, tools")
def response_tools(server: dict[str, Any]) -> None:
    (call, *_) = chat(server, use_responses_api=True).bind_tools([TOOL], tool_choice="required").invoke("Weather?").tool_calls
    assert call["name"] == "get_weather"


@calls.add("completions")
def completion(server: dict[str, Any]) -> None:
    assert isinstance(OpenAI(**{"model": "text", "max_tokens": 8} | server).invoke("Once upon a time"), str)


@calls.add("embeddings")
def embeddings(server: dict[str, Any]) -> None:
    """Texts are sent as texts: the tokens that the client would count are those of OpenAI's own models."""
    vectors = OpenAIEmbeddings(**{"model": "embedding", "check_embedding_ctx_length": False} | server).embed_documents(["one", "two"])
    assert len(vectors) == 2


def run(url: str) -> None:
    calls.run({"base_url": f"{url}/v1", "api_key": "any", "max_retries": 0})
