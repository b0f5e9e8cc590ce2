"""The clean-up of prompts is linear, and removes what the patterns of earlier releases removed."""

import random
import re
import time

import pytest

from actors.vision.prompts import build_consult_prompt, remove_control_tokens, remove_template

FORMER_PREFIX = re.compile(r"^(?:\s*USER:\s*(?:<image>\s*)?)+")
FORMER_SUFFIX = re.compile(r"(?:\s*ASSISTANT:\s*)+$")
FORMER_TOKENS = re.compile(r"<\|[^<>|]{1,40}\|>|</?s>|<image>|<pad>|<unk>|\[/?INST\]|<</?SYS>>", re.IGNORECASE)


def remove_tokens_repeatedly(text: str) -> str:
    previous = None
    while previous != text:
        previous, text = text, FORMER_TOKENS.sub("", text)
    return text


def random_texts(parts: list[str], count: int = 20_000) -> list[str]:
    numbers = random.Random(18)
    return ["".join(numbers.choices(parts, k=numbers.randint(0, 12))) for _ in range(count)]


@pytest.mark.parametrize(
    "prompt",
    [
        "USER: ASSISTANT:" + (" " * 9 + "ASSISTANT:") * 8 + "x",
        "USER: " + " " * 19_000 + "x",
        "USER:" * 4000,
        "<im" * 3000 + "age>" * 3000,
        "<|a" + ">" * 19_000,
        "[" * 10_000 + "]" * 10_000,
    ],
)
def test_hostile_prompt_takes_milliseconds(prompt: str) -> None:
    started = time.process_time()
    build_consult_prompt(prompt)
    assert time.process_time() - started < 0.5


def test_template_is_removed_as_before() -> None:
    for text in random_texts(["USER:", "ASSISTANT:", "<image>", " ", "\n", "x", "\t"]):
        assert remove_template(text) == FORMER_SUFFIX.sub("", FORMER_PREFIX.sub("", text))


def test_control_tokens_are_removed_as_before() -> None:
    for text in random_texts(["<", "|", "<|", "|>", ">", "s", "</s>", "<image>", "age>", "<im", "<<SYS>>", "<<", "SYS>", "/", "a"]):
        assert remove_control_tokens(text) == remove_tokens_repeatedly(text)


def test_no_control_token_is_left_when_invisible_characters_hide_it() -> None:
    for text in random_texts(["<im\0age>", "<|[INST]a|>", "[IN\u200bST]", "<", "|>", "[INST]", "]"]):
        assert not FORMER_TOKENS.search(build_consult_prompt(text))
