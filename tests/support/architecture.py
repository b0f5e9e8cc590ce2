"""The rules of the house, as code that reads code. Each rule yields the breaches of one file."""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("contracts", "bus", "actors", "gateway", "ops")

MAY_IMPORT: dict[str, frozenset[str]] = {
    "contracts": frozenset(),
    "bus": frozenset({"contracts"}),
    "actors": frozenset({"bus", "contracts"}),
    "gateway": frozenset({"bus", "contracts"}),
    "ops": frozenset({"actors", "gateway", "bus", "contracts"}),
}
"""Imports go one way: ops > (gateway | actors) > bus > contracts."""

BROKER_AND_STORE_LIBRARIES = frozenset({"faststream", "aio_pika", "aiormq", "pika", "aioboto3", "aiobotocore", "boto3", "botocore"})
"""Only the bus speaks AMQP and S3."""

MODEL_LIBRARIES = frozenset({
    "torch", "torchvision", "transformers", "diffusers", "peft", "accelerate", "bitsandbytes", "xgrammar", "safetensors", "vllm",
})  # fmt: skip
"""Only actors/engines, and only inside a function."""

POOL_FUNCTIONS = frozenset({"create_pool", "connect"})
SHARED_ACTOR_PACKAGES = frozenset({"engines", "settings"})
"""Parts of the workshop that every actor may use."""

EMPTY_WORDS = ("manager", "helper", "util", "common", "base", "misc")
MAX_LINES = 400


@dataclass(frozen=True)
class SourceFile:
    """One Python file; `path` is relative to the root of the checkout."""

    path: Path
    text: str

    @property
    def package(self) -> str:
        return self.path.parts[0]

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)


@dataclass(frozen=True)
class ImportedName:
    """One imported name: `from bus import errors` is `bus.errors`. `deep`: inside a function."""

    name: str
    line: int
    is_local: bool

    @property
    def top_level_package(self) -> str:
        return self.name.partition(".")[0]


Rule = Callable[[SourceFile], Iterator[str]]


def find_violations(root: Path, rules: tuple[Rule, ...] | None = None) -> list[str]:
    """Every breach in the rooms below `root`, as `file: what is wrong`."""
    return [f"{source.path}: {breach}" for source in source_files(root) for rule in rules or RULES for breach in rule(source)]


def source_files(root: Path) -> Iterator[SourceFile]:
    for room in PACKAGES:
        for path in sorted((root / room).rglob("*.py")):
            yield SourceFile(path.relative_to(root), path.read_text())


def imported_names(tree: ast.Module) -> Iterator[ImportedName]:
    deep = {
        node for function in ast.walk(tree) if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield ImportedName(alias.name, node.lineno, node in deep)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                for alias in names:
                    yield ImportedName(f"{module}.{alias.name}", node.lineno, node in deep)


def check_import_direction(source: SourceFile) -> Iterator[str]:
    for found in imported_names(source.tree):
        if (
            found.top_level_package in PACKAGES
            and found.top_level_package != source.package
            and found.top_level_package not in MAY_IMPORT[source.package]
        ):
            yield f"line {found.line}: {source.package} must not import {found.name}; imports go ops > (gateway | actors) > bus > contracts"


def check_no_relative_import(source: SourceFile) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield f"line {node.lineno}: a relative import hides its room"


def check_actor_isolation(source: SourceFile) -> Iterator[str]:
    """An actor may import crafts (packages that are no actors), never another actor."""
    if source.package != "actors" or source.path.parts[1] in SHARED_ACTOR_PACKAGES:
        return
    own = source.path.parts[1].removesuffix(".py")
    for found in imported_names(source.tree):
        other = found.name.split(".")[1:2]
        if found.top_level_package == "actors" and other and other[0] != own and other[0] in ACTORS:
            yield f"line {found.line}: the actor {own} must not know the actor {other[0]}"


def check_broker_imports(source: SourceFile) -> Iterator[str]:
    """A bench holds the libraries themselves against us."""
    if source.package == "bus" or source.path.parts[:2] == ("ops", "bench"):
        return
    for found in imported_names(source.tree):
        if found.top_level_package in BROKER_AND_STORE_LIBRARIES:
            yield f"line {found.line}: only the bus imports {found.top_level_package}"


def check_database_imports(source: SourceFile) -> Iterator[str]:
    if source.package == "bus":
        return
    for node in ast.walk(source.tree):
        match node:
            case ast.Attribute(value=ast.Name(id="asyncpg"), attr=name) if name in POOL_FUNCTIONS:
                yield f"line {node.lineno}: only the bus opens the database (asyncpg.{name})"
            case ast.ImportFrom(module="asyncpg", names=names) if POOL_FUNCTIONS & {alias.name for alias in names}:
                yield f"line {node.lineno}: only the bus opens the database"


MODEL_PACKAGES = {("actors", "engines"), ("ops", "tiny")}


def check_model_imports(source: SourceFile) -> Iterator[str]:
    allowed = source.path.parts[:2] in MODEL_PACKAGES
    for found in imported_names(source.tree):
        if found.top_level_package in MODEL_LIBRARIES and not allowed:
            yield f"line {found.line}: only actors/engines and training import {found.top_level_package}"
        elif found.top_level_package in MODEL_LIBRARIES and not found.is_local and not is_type_checking_import(source.tree, found.line):
            yield f"line {found.line}: {found.top_level_package} is imported only inside a function that opens an engine or trains one"


def is_type_checking_import(tree: ast.Module, line: int) -> bool:
    """Under `if TYPE_CHECKING:` nothing is imported when the program runs."""
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")]
    return any(block.lineno < line <= (block.end_lineno or block.lineno) for block in blocks)


def check_environment_reads(source: SourceFile) -> Iterator[str]:
    if source.path.stem == "settings" or source.path.stem.endswith("_settings"):
        return
    for node in ast.walk(source.tree):
        match node:
            case ast.Attribute(value=ast.Name(id="os"), attr="environ" | "getenv" | "putenv"):
                yield f"line {node.lineno}: the environment is read in a settings file"
            case ast.ImportFrom(module="os", names=names) if {"environ", "getenv"} & {alias.name for alias in names}:
                yield f"line {node.lineno}: the environment is read in a settings file"


def check_file_length(source: SourceFile) -> Iterator[str]:
    if (lines := len(source.text.splitlines())) > MAX_LINES:
        yield f"{lines} lines; look for the second noun (at most {MAX_LINES})"


def check_module_names(source: SourceFile) -> Iterator[str]:
    for part in source.path.with_suffix("").parts:
        for word in part.split("_"):
            if word in EMPTY_WORDS or word.removesuffix("s") in EMPTY_WORDS:
                yield f"the word {word!r} says nothing; name the thing"


def check_module_docstring(source: SourceFile) -> Iterator[str]:
    if source.text.strip() and not ast.get_docstring(source.tree):
        yield "no docstring that says what the file is"


ACTORS = frozenset({
    "consult", "validate", "judge", "text", "conversations", "image", "watermark", "upload", "webhook",
    "ledger", "overlay", "adapters",
})  # fmt: skip

RULES: tuple[Rule, ...] = (
    check_import_direction,
    check_no_relative_import,
    check_actor_isolation,
    check_broker_imports,
    check_database_imports,
    check_model_imports,
    check_environment_reads,
    check_file_length,
    check_module_names,
    check_module_docstring,
)
