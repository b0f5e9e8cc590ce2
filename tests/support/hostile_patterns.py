"""Collects the regular expressions of the product, and makes hostile inputs from a pattern's own parse tree.

For each repeat of a pattern: texts that the repeated part matches, many times over, then a character with which the whole match fails.
"""

import ast
import importlib
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic_core import SchemaValidator, core_schema

ROOT = Path(__file__).parents[2]
PACKAGES = ("contracts", "bus", "actors", "gateway", "ops")
FUNCTIONS = frozenset({"match", "fullmatch", "search", "sub", "subn", "split", "findall", "finditer"})
PYDANTIC = "pydantic"
CANDIDATES = " \t\nax0_-.,:;\"'/\\@=*{}[]()<>|\x00\xff\uac00"
"""Characters that are tried beside the pattern's own."""
INNER_REPEATS = (1, 9)
TAILS = ("", "\x00", "x")
SMALL, LARGE = 2_000, 16_000
"""Characters of an input; the time is compared between the two."""
SLOW_SECONDS, MAX_GROWTH, ABORT_SECONDS = 0.03, 20, 0.5
"""A pattern is superlinear when LARGE takes SLOW_SECONDS and MAX_GROWTH times as long as SMALL (8 is linear, 64 quadratic)."""


class PatternUse(NamedTuple):
    """A pattern and one function that is called with it. `place`: file and line."""

    place: str
    pattern: str
    flags: int
    function: str


@dataclass(frozen=True)
class UnknownPattern:
    """A pattern that is known only when the program runs."""

    place: str
    expression: str


@cache
def parsed_files() -> dict[str, ast.Module]:
    files = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    return {file.relative_to(ROOT).as_posix(): ast.parse(file.read_text()) for file in files}


def collect_patterns() -> tuple[list[PatternUse], list[UnknownPattern]]:
    """Every pattern of the product: `re.compile`, the functions of `re`, and `pattern=` of Pydantic and FastAPI."""
    found: list[PatternUse] = []
    unknown: list[UnknownPattern] = []
    methods = _called_methods()
    for path, tree in parsed_files().items():
        names = {id(node.value): target for node in ast.walk(tree) for target in _assigned_names(node)}
        for node in ast.walk(tree):
            for expression, flags, functions in _patterns_of_call(node, names, methods):
                place = f"{path}:{node.lineno}"  # type: ignore[attr-defined]
                try:
                    pattern, flag = _evaluate(path, expression), int(_evaluate(path, flags) if flags else 0)
                except NameError:
                    unknown.append(UnknownPattern(path, ast.unparse(expression)))
                    continue
                found += [PatternUse(place, pattern, flag, function) for function in sorted(functions)]
    return found, unknown


def _assigned_names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Assign):
        yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def _called_methods() -> dict[str, set[str]]:
    """The name of a compiled pattern → the methods that are called on it, such as `LABEL.match` and `module.LABEL.match`."""
    methods: dict[str, set[str]] = {}
    for tree in parsed_files().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in FUNCTIONS:
                owner = node.value
                name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
                methods.setdefault(name, set()).add(node.attr)
    return methods


def _patterns_of_call(
    node: ast.AST, names: dict[int, str], methods: dict[str, set[str]]
) -> Iterator[tuple[ast.expr, ast.expr | None, set[str]]]:
    """The pattern, its flags and the functions that use it."""
    if not isinstance(node, ast.Call):
        return
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    match node.func:
        case ast.Attribute(value=ast.Name(id="re"), attr="compile"):
            flags = keywords.get("flags", node.args[1] if len(node.args) > 1 else None)
            yield node.args[0], flags, methods.get(names.get(id(node), ""), {"search"})
        case ast.Attribute(value=ast.Name(id="re"), attr=function) if function in FUNCTIONS:
            position = 3 if function not in {"sub", "subn"} else 4
            flags = keywords.get("flags") or next((value for value in node.args[position - 1 :] if "re." in ast.unparse(value)), None)
            yield node.args[0], flags, {function}
        case _ if "pattern" in keywords:
            yield keywords["pattern"], None, {PYDANTIC}


def _evaluate(path: str, expression: ast.expr) -> Any:
    """The value of an expression in its module. Raises NameError for one that needs the variables of a function."""
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    return eval(compile(ast.Expression(expression), path, "eval"), vars(module))


def hostile_texts(pattern: str, flags: int, length: int) -> Iterator[str]:
    """Texts of about `length` characters: repeats of what each part matches, of all beginnings of the pattern, and of single characters."""
    parsed = re._parser.parse(pattern, flags).data  # type: ignore[attr-defined]
    chars = {char for char in _alphabet(pattern) for items in _repeated(parsed) if _matches_one(items, char)}
    seeds = {("", char) for char in chars}
    for inner in INNER_REPEATS:
        found = set(_seeds(parsed, "", inner))
        seeds |= found | {(prefix, char) for prefix, _ in found for char in chars & set(CANDIDATES)}
    for prefix, pump in sorted(seeds):
        for tail in TAILS:
            yield prefix + pump * (length // max(1, len(pump))) + tail


def _alphabet(pattern: str) -> set[str]:
    return {char for char in pattern if char.isprintable()} | set(CANDIDATES)


def _repeated(items: Any) -> Iterator[Any]:
    """What each repeat repeats."""
    for operator, argument in items:
        for part in _children(str(operator), argument):
            if "REPEAT" in str(operator):
                yield part
            yield from _repeated(part)


def _matches_one(items: Any, char: str) -> bool:
    """Whether a character is matched by one of the items."""
    return any(_compile_item(item).match(char) for item in items if str(item[0]) in {"IN", "LITERAL", "NOT_LITERAL", "ANY"})


def _seeds(items: Any, prefix: str, inner: int) -> Iterator[tuple[str, str]]:
    """(what precedes, what is repeated) for each repeat of a parsed pattern, and for each beginning of it."""
    for item in items:
        operator, argument = str(item[0]), item[1]
        for part in _children(operator, argument):
            yield from _seeds(part, prefix, inner)
        text = "".join(_example([item], inner))
        if text and operator != "LITERAL":
            yield prefix, text
            yield "", prefix + text
        prefix += text
    if prefix:
        yield "", prefix


def _children(operator: str, argument: Any) -> list[Any]:
    match operator:
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            return [argument[2]]
        case "SUBPATTERN":
            return [argument[3]]
        case "ATOMIC_GROUP":
            return [argument]
        case "BRANCH":
            return list(argument[1])
        case "ASSERT":
            return [argument[1]]
    return []


def _example(items: Any, inner: int) -> Iterator[str]:
    """A text that the items match, with `inner` rounds of every repeat."""
    for operator, argument in items:
        match str(operator):
            case "LITERAL":
                yield chr(argument)
            case "NOT_LITERAL" | "ANY":
                yield next(char for char in "x 0" if ord(char) != argument)
            case "IN":
                yield _member(argument)
            case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
                yield "".join(_example(argument[2], inner)) * min(max(argument[0], inner), argument[1])
            case "BRANCH":
                yield "".join(_example(argument[1][0], inner))
            case name:
                yield from (text for part in _children(name, argument) if name != "ASSERT" for text in _example(part, inner))


def _member(charset: Any) -> str:
    """A character of a set; blanks first, since sets of blanks are what adjacent repeats have in common."""
    matcher = _compile_item((re._constants.IN, charset))  # type: ignore[attr-defined]
    return next((char for char in CANDIDATES + "bc12" if matcher.match(char)), "x")


def _compile_item(item: Any) -> re.Pattern[str]:
    state = re._parser.State()  # type: ignore[attr-defined]
    state.str = ""
    parsed = re._parser.SubPattern(state)  # type: ignore[attr-defined]
    parsed.append(item)
    compiled: re.Pattern[str] = re._compiler.compile(parsed)  # type: ignore[attr-defined]
    return compiled


def find_superlinear(pattern: str | bytes, flags: int, function: str) -> str | None:
    """The input for which the pattern takes more than linear time, and the seconds of CPU; None when there is none.

    A pattern of bytes is tried as the same one of text.
    """
    pattern = pattern.decode("latin-1") if isinstance(pattern, bytes) else pattern
    run = _runner(pattern, flags, function)
    signal.signal(signal.SIGVTALRM, _raise_timeout)
    for small, large in zip(hostile_texts(pattern, flags, SMALL), hostile_texts(pattern, flags, LARGE), strict=True):
        if growth := _measure(run, small, large):
            return f"{large[:60]!r}… ({len(large)} characters): {growth}"
    return None


def _measure(run: Any, small: str, large: str) -> str | None:
    for _ in range(3):
        seconds = _cpu_seconds(run, large)
        if seconds < SLOW_SECONDS:
            return None
        before = max(_cpu_seconds(run, small), _cpu_seconds(run, small), 1e-4)
        if seconds < ABORT_SECONDS and seconds < MAX_GROWTH * before:
            return None
    return f"{seconds:.2f} s, and {before:.4f} s for an eighth of it"


def _cpu_seconds(run: Any, text: str) -> float:
    started = time.process_time()
    signal.setitimer(signal.ITIMER_VIRTUAL, ABORT_SECONDS)
    try:
        run(text)
    except TimeoutError:
        return ABORT_SECONDS
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return time.process_time() - started


def _raise_timeout(*_: Any) -> None:
    raise TimeoutError


def _runner(pattern: str, flags: int, function: str) -> Any:
    if function == PYDANTIC:
        validator = SchemaValidator(core_schema.str_schema(pattern=pattern))
        return lambda text: validator.isinstance_python(text)
    compiled = re.compile(pattern, flags)
    if function in {"sub", "subn"}:
        return lambda text: getattr(compiled, function)("", text)
    if function == "finditer":
        return lambda text: list(compiled.finditer(text))
    return getattr(compiled, function)
