"""The rules of the house, as code that reads code. Each rule yields the breaches of one file."""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOMS = ("contracts", "bus", "actors", "gateway", "ops")

MAY_IMPORT: dict[str, frozenset[str]] = {
    "contracts": frozenset(),
    "bus": frozenset({"contracts"}),
    "actors": frozenset({"bus", "contracts"}),
    "gateway": frozenset({"bus", "contracts"}),
    "ops": frozenset({"actors", "gateway", "bus", "contracts"}),
}
"""Imports go one way: ops > (gateway | actors) > bus > contracts."""

POST = frozenset({"faststream", "aio_pika", "aiormq", "pika", "aioboto3", "aiobotocore", "boto3", "botocore"})
"""Only the bus speaks AMQP and S3."""

ENGINES = frozenset({
    "torch", "torchvision", "transformers", "diffusers", "peft", "accelerate", "bitsandbytes", "xgrammar", "safetensors", "vllm",
})  # fmt: skip
"""Only actors/engines, and only inside a function."""

OPENS_POOLS = frozenset({"create_pool", "connect"})
SHARED_CRAFT = frozenset({"engines", "settings"})
"""Parts of the workshop that every actor may use."""

AVOIDED = ("manager", "helper", "util", "common", "base", "misc")
MOST_LINES = 400


@dataclass(frozen=True)
class Source:
    """One Python file; `path` is relative to the root of the checkout."""

    path: Path
    text: str

    @property
    def room(self) -> str:
        return self.path.parts[0]

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)


@dataclass(frozen=True)
class Imported:
    """One imported name: `from bus import errors` is `bus.errors`. `deep`: inside a function."""

    name: str
    line: int
    deep: bool

    @property
    def top(self) -> str:
        return self.name.partition(".")[0]


Rule = Callable[[Source], Iterator[str]]


def breaches(root: Path, rules: tuple[Rule, ...] | None = None) -> list[str]:
    """Every breach in the rooms below `root`, as `file: what is wrong`."""
    return [f"{source.path}: {breach}" for source in sources(root) for rule in rules or RULES for breach in rule(source)]


def sources(root: Path) -> Iterator[Source]:
    for room in ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            yield Source(path.relative_to(root), path.read_text())


def imports(tree: ast.Module) -> Iterator[Imported]:
    deep = {
        node for function in ast.walk(tree) if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield Imported(alias.name, node.lineno, node in deep)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                for alias in names:
                    yield Imported(f"{module}.{alias.name}", node.lineno, node in deep)


def one_way(source: Source) -> Iterator[str]:
    for found in imports(source.tree):
        if found.top in ROOMS and found.top != source.room and found.top not in MAY_IMPORT[source.room]:
            yield f"line {found.line}: {source.room} must not import {found.name}; imports go ops > (gateway | actors) > bus > contracts"


def no_relative_import(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield f"line {node.lineno}: a relative import hides its room"


def actors_apart(source: Source) -> Iterator[str]:
    """An actor may import crafts (packages that are no actors), never another actor."""
    if source.room != "actors" or source.path.parts[1] in SHARED_CRAFT:
        return
    own = source.path.parts[1].removesuffix(".py")
    for found in imports(source.tree):
        other = found.name.split(".")[1:2]
        if found.top == "actors" and other and other[0] != own and other[0] in ACTORS:
            yield f"line {found.line}: the actor {own} must not know the actor {other[0]}"


def only_the_bus_posts(source: Source) -> Iterator[str]:
    """A bench holds the libraries themselves against us."""
    if source.room == "bus" or source.path.parts[:2] == ("ops", "bench"):
        return
    for found in imports(source.tree):
        if found.top in POST:
            yield f"line {found.line}: only the bus imports {found.top}"


def only_the_bus_opens_pools(source: Source) -> Iterator[str]:
    if source.room == "bus":
        return
    for node in ast.walk(source.tree):
        match node:
            case ast.Attribute(value=ast.Name(id="asyncpg"), attr=name) if name in OPENS_POOLS:
                yield f"line {node.lineno}: only the bus opens the database (asyncpg.{name})"
            case ast.ImportFrom(module="asyncpg", names=names) if OPENS_POOLS & {alias.name for alias in names}:
                yield f"line {node.lineno}: only the bus opens the database"


HEAVY_ROOMS = {("actors", "engines"), ("ops", "tiny")}


def torch_stays_inside(source: Source) -> Iterator[str]:
    allowed = source.path.parts[:2] in HEAVY_ROOMS
    for found in imports(source.tree):
        if found.top in ENGINES and not allowed:
            yield f"line {found.line}: only actors/engines and ops/tiny import {found.top}"
        elif found.top in ENGINES and not found.deep and not for_types(source.tree, found.line):
            yield f"line {found.line}: {found.top} is imported only inside a function that opens an engine or trains one"


def for_types(tree: ast.Module, line: int) -> bool:
    """Under `if TYPE_CHECKING:` nothing is imported when the program runs."""
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")]
    return any(block.lineno < line <= (block.end_lineno or block.lineno) for block in blocks)


def environment_in_settings(source: Source) -> Iterator[str]:
    if source.path.stem == "settings" or source.path.stem.endswith("_settings"):
        return
    for node in ast.walk(source.tree):
        match node:
            case ast.Attribute(value=ast.Name(id="os"), attr="environ" | "getenv" | "putenv"):
                yield f"line {node.lineno}: the environment is read in a settings file"
            case ast.ImportFrom(module="os", names=names) if {"environ", "getenv"} & {alias.name for alias in names}:
                yield f"line {node.lineno}: the environment is read in a settings file"


def not_too_long(source: Source) -> Iterator[str]:
    if (lines := len(source.text.splitlines())) > MOST_LINES:
        yield f"{lines} lines; look for the second noun (at most {MOST_LINES})"


def a_name_that_says_something(source: Source) -> Iterator[str]:
    for part in source.path.with_suffix("").parts:
        for word in part.split("_"):
            if word in AVOIDED or word.removesuffix("s") in AVOIDED:
                yield f"the word {word!r} says nothing; name the thing"


def a_door_plate(source: Source) -> Iterator[str]:
    if source.text.strip() and not ast.get_docstring(source.tree):
        yield "no docstring that says what the file is"


ACTORS = frozenset({
    "consult", "validate", "judge", "text", "conversations", "image", "watermark", "upload", "webhook",
    "ledger", "overlay", "adapters",
})  # fmt: skip

RULES: tuple[Rule, ...] = (
    one_way,
    no_relative_import,
    actors_apart,
    only_the_bus_posts,
    only_the_bus_opens_pools,
    torch_stays_inside,
    environment_in_settings,
    not_too_long,
    a_name_that_says_something,
    a_door_plate,
)
