"""Log probabilities belong to the content of an answer, however its tokens arrive."""

import pytest

from actors.engines.language.content_logprobs import ContentLogprobs
from contracts.text import TokenLogprob

Piece = tuple[str, str, bool]
"""The tokens that arrive, separated by `|`; the content that they add; whether they add something else."""
HALVES = [TokenLogprob(text="�", logprob=-1.0, bytes=list(half)) for half in (b"\xec\x95", b"\x88")]
ANSWERS: dict[str, tuple[list[Piece], str]] = {
    "a text": ([("one| two", "one two", False), ("<eos>", "", False)], "one| two|<eos>"),
    "a held character": ([("ab<", "ab", False), ("c", "<c", False)], "ab<|c"),
    "reasoning before it": (
        [("<think>", "", False), ("hm|so", "", True), ("</think>|\n\n", "", False), ("Yes| so", "Yes so", False)],
        "Yes| so",
    ),
    "its end with the reasoning": ([("hm", "", True), ("so|</think>|so|, yes", "so, yes", True), ("!", "!", False)], "so|, yes|!"),
    "a token of both": ([("hm", "", True), ("</think>\nYes| so", "Yes so", False)], "</think>\nYes| so"),
    "a call behind it": ([("I|call", "Icall", False), ("<tool", "", False), ("_call>|{", "", True), ("}|<eos>", "", True)], "I|call"),
    "a call in the same piece": ([("I|call|<tool_call>|{}", "Icall", True), ("<eos>", "", False)], "I|call|<eos>"),
    "a call alone": ([("<tool_call>", "", False), ("{}", "", True), ("<eos>", "", False)], ""),
    "text between calls": ([("{}", "", True), ("</tool_call>|and", "and", False), ("{}", "", True)], "and"),
    "nothing": ([("<eos>", "", False)], "<eos>"),
    "tokens that are spelled otherwise": ([("hm", "", True), ("▁Yes|▁so", "Yes so", False)], "▁Yes|▁so"),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_only_tokens_of_the_content_are_picked(kind: str) -> None:
    pieces, expected = ANSWERS[kind]
    picker, picked = ContentLogprobs(), list[TokenLogprob]()
    for tokens, content, is_other in pieces:
        new = tuple(TokenLogprob(text=text, logprob=-1.0) for text in tokens.split("|"))
        picked += picker.push(new, content, is_other=is_other)
    picked += picker.push((), "", is_other=False, ends=True)
    assert "|".join(token.text for token in picked) == expected


def test_half_a_character_waits_for_the_other_half() -> None:
    picker = ContentLogprobs()
    assert picker.push(tuple(HALVES[:1]), "", is_other=False) == ()
    assert picker.push(tuple(HALVES[1:]), "안", is_other=False) == tuple(HALVES)


def test_characters_in_halves_are_found_behind_a_reasoning() -> None:
    end = TokenLogprob(text="</think>", logprob=-1.0)
    picker = ContentLogprobs()
    picker.push((), "", is_other=True)
    assert picker.push((end, *HALVES), "안", is_other=False) == tuple(HALVES)
