"""Every regular expression and every decoder of the product gets hostile inputs, and ends within its budget of time and memory."""

import re

import pytest

from contracts.verdict import AdVerdictSchema, ImageVerdictSchema
from tests.support.decoder_budgets import DECODERS, MEMORY_BYTES, WALL_SECONDS, Budget, run_budget, trusted_reader
from tests.support.decoder_calls import collect_decoders
from tests.support.hostile_patterns import PYDANTIC, ROOT, PatternUse, collect_patterns, find_superlinear
from tests.support.killable import call_each

PATTERN_SECONDS = 120.0
KNOWN_AT_RUN_TIME = {
    ("contracts/verdict.py", "f'^[^\\\\x00-\\\\x1f\\\\x22\\\\x5c\\\\x7f]{{{min_length},{max_length}}}$'"),
    ("actors/decoding/json_schemas.py", "pattern"),
    ("actors/engines/remote/refusals.py", "f'(?<![A-Za-z_])(?:{plain})(?![A-Za-z_])'"),
    ("actors/engines/language/control_words.py", "'[' + ''.join(sorted({re.escape(word[-1]) for word in self.words})) + ']'"),
    ("actors/vision/ocr_evidence.py", "'(?<!\\\\S)' + re.escape(phrase).replace('\\\\ ', ' ?') + end"),
    ("actors/vision/verdict_parser.py", "pattern"),
    ("bus/masking.py", "pattern"),
    ("bus/masking.py", "_BEFORE_WORD + _escaped_pattern(value) + _AFTER_WORD"),
    ("ops/docgen/asyncapi/message_examples.py", "pattern"),
}
"""Patterns of the verdicts' schemas, which `schema_patterns` collects, and of our own contracts; those of a caller's JSON schema, which run
in a process that is killed; and a choice between fixed words, such as the names of parameters and the secrets of the settings."""
SUPERLINEAR = [
    (r"(?:\s*ASSISTANT:\s*)+$", 0, "search"),
    (r"^(?:\s*USER:\s*)+x", 0, "match"),
    (r"(://[^:/@\s]+:)[^@\s]+(@)", 0, "sub"),
    (r'^ *File "(?P<file>[^"\n]+)", line \d+, in (?P<function>.+?) *$', re.MULTILINE, "finditer"),
    (r"^\s*//.*$|/\*.*?\*/", re.MULTILINE | re.DOTALL, "sub"),
    (r"^```\w*\s*\n(.*?)\n?```\s*$", re.DOTALL, "match"),
]
"""Patterns that were in the product: quadratic and exponential ones."""


def schema_patterns() -> list[PatternUse]:
    schema = str((AdVerdictSchema.model_json_schema(), ImageVerdictSchema.model_json_schema()))
    patterns = sorted({str(eval(text)) for text in re.findall(r"'pattern': ('[^']*')", schema)})
    return [PatternUse("contracts/verdict.py", pattern, 0, function) for pattern in patterns for function in ("fullmatch", PYDANTIC)]


def test_every_pattern_is_linear_for_hostile_text() -> None:
    found, unknown = collect_patterns()
    assert {(pattern.place, pattern.expression) for pattern in unknown} == KNOWN_AT_RUN_TIME
    verdicts = schema_patterns()
    assert len(found) > 60
    assert len(verdicts) > 4
    uses = [*found, *verdicts]
    results = call_each(find_superlinear, [use[1:] for use in uses], seconds=PATTERN_SECONDS)
    assert [f"{use}: {result}" for use, result in zip(uses, results, strict=True) if result] == []


def test_superlinear_pattern_is_found() -> None:
    results = call_each(find_superlinear, SUPERLINEAR, seconds=PATTERN_SECONDS)
    assert [pattern for pattern, result in zip(SUPERLINEAR, results, strict=True) if not isinstance(result, str)] == []


def test_database_matches_no_pattern_of_its_own() -> None:
    """Postgres' patterns would need the same test."""
    queries = {path: path.read_text() for package in ("bus", "actors", "gateway") for path in (ROOT / package).rglob("*.sql")}
    assert queries
    assert [path for path, text in queries.items() if re.search(r"(?i)!?~\*? |similar to|regexp_", text)] == []


def test_every_decoder_has_budget_or_trusted_source() -> None:
    """A call of a decoding function that the table lacks fails here: say what hostile inputs it gets, or who wrote what it reads."""
    found = {place for place in collect_decoders() if not trusted_reader(place[0])}
    assert len(found) > 50
    assert sorted(found - set(DECODERS)) == []
    assert sorted(set(DECODERS) - found) == []


@pytest.mark.parametrize("place", {budget: place for place, budget in DECODERS.items() if isinstance(budget, Budget)}.values())
def test_decoder_ends_within_budget_for_hostile_input(place: tuple[str, str]) -> None:
    assert list(call_each(run_budget, [place], seconds=WALL_SECONDS, memory_bytes=MEMORY_BYTES)) == [[]]


@pytest.mark.parametrize(
    ("function", "arguments"), [(re.match, (r"(?:\s*ASSISTANT:\s*)+x", ("         ASSISTANT:" * 20))), (bytes, (1 << 40,))]
)
def test_killable_process_reports_call_that_never_ends_or_takes_too_much_memory(function: object, arguments: tuple[object, ...]) -> None:
    results = list(call_each(function, [arguments, (b"a", b"a")], seconds=-19, memory_bytes=MEMORY_BYTES))  # type: ignore[arg-type]
    assert isinstance(results[0], TimeoutError | MemoryError)
    assert len(results) == 2
