"""Runs requests on a language engine in this process, and writes tiny checkpoints: causal models of any type, templates, adapters."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.engines.language.engine import LanguageEngine
from actors.engines.language.requests import GenerationRequest, TextModelOptions, TextResponse
from actors.engines.language.text_model import TextModelEngine, open_text_model
from actors.engines.language.tiny_llama import CHAT_TEMPLATE, TURN_TOKEN, byte_tokenizer, write_tiny_llama
from actors.engines.process.protocol import Failed, Finished, Progressed
from tests.support.engine_fixture import silent_host

HERMES_TEMPLATE = (
    "{% if tools %}<|turn|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}</s>{% endif %}"
    "{% for message in messages %}<|turn|>{{ message['role'] }}\n"
    "{% if message['role'] == 'tool' %}<tool_response>{{ message['content'] }}</tool_response>{% else %}{{ message['content'] }}{% endif %}"
    '{% for call in message.tool_calls or [] %}<tool_call>\n{"name": "{{ call.function.name }}", "arguments": '
    "{{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
"""As those of Hermes and Qwen."""
THINKING_TEMPLATE = CHAT_TEMPLATE.replace(
    "<|turn|>assistant\n",
    "<|turn|>assistant\n{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}",
)
REASONING_TEMPLATE = CHAT_TEMPLATE.replace("<|turn|>assistant\n", "<|turn|>assistant\n<think>\n{# </think> #}")
"""It begins the reasoning itself."""


def chat(text: str, max_tokens: int = 24, **options: Any) -> GenerationRequest:
    return replace(GenerationRequest([{"role": "user", "content": text}], max_tokens, temperature=0, top_p=1), **options)


def open_engine(folder: Path, *, template: str | None = None, **options: Any) -> TextModelEngine:
    """A tested engine of a folder, where a tiny Llama is written if there is no model. One thread, parts of 64 tokens."""
    if not (folder / "config.json").exists():
        write_tiny_llama(folder)
    if template is not None:
        byte_tokenizer(TURN_TOKEN, chat_template=template).save_pretrained(folder)
    defaults: dict[str, Any] = {"max_model_len": 600, "window_seconds": 0, "threads": 1, "part_tokens": 64}
    engine = open_text_model(TextModelOptions(str(folder), **defaults | options), silent_host(folder))
    engine.self_test()
    return engine


def run(engine: LanguageEngine, requests: Sequence[Any], *, ticks_between: int = 0) -> tuple[list[Any], dict[int, list[Progressed]]]:
    """The responses, and what was reported of each request before. So many ticks are between one request and the next.

    Raises AssertionError for a request that fails.
    """
    responses: dict[int, Any] = {}
    reports: dict[int, list[Progressed]] = {number: [] for number in range(len(requests))}

    def tick() -> None:
        for event in engine.tick():
            assert not isinstance(event, Failed), event
            if isinstance(event, Progressed):
                reports[event.request_id].append(event)
            elif isinstance(event, Finished):
                responses[event.request_id] = event.result

    for number, request in enumerate(requests):
        engine.submit(number, request)
        for _ in range(ticks_between):
            tick()
    while engine.idle_seconds() is not None:
        tick()
    return [responses[number] for number in range(len(requests))], reports


def generate(engine: TextModelEngine, *requests: GenerationRequest) -> list[TextResponse]:
    return run(engine, requests)[0]


def texts(engine: TextModelEngine, *requests: GenerationRequest) -> list[str]:
    return [response.text for response in generate(engine, *requests)]


def write_causal_model(folder: Path, model_type: str, **config: Any) -> None:
    """A tiny model of random weights in the classes of one type."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = byte_tokenizer(TURN_TOKEN, chat_template=CHAT_TEMPLATE)
    sizes = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "vocab_size": len(tokenizer), "max_position_embeddings": 1024,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes | config)).eval()
        for parameter in model.parameters():
            parameter.data = torch.randn_like(parameter) * 0.15  # what the types' own random weights write is too monotonous
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def write_adapter(model_folder: Path, folder: Path, *, seed: int = 0, **config: Any) -> str:
    """A LoRA adapter of random weights for the model of a folder; its folder as settings name it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):  # PEFT reads a deprecated name of transformers
        torch.manual_seed(seed)
        options = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM"} | config
        get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), LoraConfig(**options)).save_pretrained(folder)
    return str(folder)
