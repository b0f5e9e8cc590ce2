"""The architecture rules, as code that reads code. Each rule yields the violations of one file."""

import ast
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.support.layout import FILES_AT_TOP, SHORT_MODULES, SUB_PACKAGES
from tests.support.vocabulary import find_retired_words

PRODUCT = ("contracts", "bus", "actors", "gateway", "ops")
PACKAGES = (*PRODUCT, "benchmarks", "examples", "training", "tests")

MAY_IMPORT: dict[str, frozenset[str]] = {
    "contracts": frozenset(),
    "bus": frozenset({"contracts"}),
    "actors": frozenset({"bus", "contracts"}),
    "gateway": frozenset({"bus", "contracts"}),
    "ops": frozenset({"actors", "gateway", "bus", "contracts"}),
    "benchmarks": frozenset(PRODUCT),
    "examples": frozenset(),
    "training": frozenset(PRODUCT),
    "tests": frozenset(PACKAGES),
}
"""Imports go one way: ops > (gateway | actors) > bus > contracts. Benchmarks and training stand above them, in no wheel.

Examples use the product from outside."""

EXAMPLE_LIBRARIES = frozenset({"examples", "httpx", "openai", "pydantic"})
"""What an application beside the product needs: a client of its HTTP API. All else is Python's own."""

BROKER_AND_STORE_LIBRARIES = frozenset({"faststream", "aio_pika", "aiormq", "pika", "aioboto3", "aiobotocore", "boto3", "botocore"})
"""Only the bus speaks AMQP and S3; a benchmark measures the libraries beside it."""

MODEL_LIBRARIES = frozenset({
    "torch", "torchvision", "transformers", "diffusers", "peft", "accelerate", "bitsandbytes", "xgrammar", "safetensors", "vllm",
})  # fmt: skip
"""Only actors/engines, training and benchmarks import them; at the top only modules of MODEL_PROCESS, others inside a function."""

MODEL_PROCESS = frozenset({f"actors/engines/diffusion/{name}" for name in (
    "families", "acceleration.py", "block_cache.py", "controlnets.py", "preview.py", "quantization.py", "text_encoders.py",
)})  # fmt: skip
"""Modules and folders that a model process imports, and no worker."""

POOL_FUNCTIONS = frozenset({"create_pool", "connect"})
MEANINGLESS_WORDS = ("manager", "helper", "util", "common", "base", "misc")
MAX_LINES = 400
MIN_LINES = 30


@dataclass(frozen=True)
class SourceFile:
    """One Python file; `path` is relative to the root of the checkout."""

    root: Path
    path: Path
    text: str

    @property
    def package(self) -> str:
        return self.path.parts[0]

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """All of the tree, for all rules alike: to walk it takes longer than to parse it."""
        return list(ast.walk(self.tree))

    @cached_property
    def imports(self) -> list["ImportedName"]:
        return list(imported_names(self.nodes))


@dataclass(frozen=True)
class ImportedName:
    """One imported name: `from bus import errors` is `bus.errors`. `is_local`: inside a function."""

    name: str
    line: int
    is_local: bool

    @property
    def top_level_package(self) -> str:
        return self.name.partition(".")[0]


Rule = Callable[[SourceFile], Iterator[str]]


def find_violations(root: Path) -> list[str]:
    """Every violation in the packages below `root`, as `file: what is wrong`. Tests obey the rules of form alone."""
    return [
        f"{source.path}: {violation}"
        for source in source_files(root)
        for rule in (RULES_OF_FORM if source.package == "tests" else (*RULES_OF_FORM, *RULES))
        for violation in rule(source)
    ]


def source_files(root: Path) -> Iterator[SourceFile]:
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            yield SourceFile(root, path.relative_to(root), path.read_text())


def imported_names(nodes: list[ast.AST]) -> Iterator[ImportedName]:
    local = {node for function in nodes if isinstance(function, FUNCTIONS) for node in ast.walk(function)}
    for node in nodes:
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield ImportedName(alias.name, node.lineno, node in local)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                for alias in names:
                    yield ImportedName(f"{module}.{alias.name}", node.lineno, node in local)


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def check_import_direction(source: SourceFile) -> Iterator[str]:
    for found in source.imports:
        if found.top_level_package in PACKAGES and found.top_level_package not in MAY_IMPORT[source.package] | {source.package}:
            yield f"line {found.line}: {source.package} must not import {found.name}; imports go ops > (gateway | actors) > bus > contracts"


def check_no_relative_import(source: SourceFile) -> Iterator[str]:
    for node in source.nodes:
        if isinstance(node, ast.ImportFrom) and node.level:
            yield f"line {node.lineno}: a relative import hides its package"


def check_actor_isolation(source: SourceFile) -> Iterator[str]:
    """An actor may import packages that are no actors, never another actor. Every module directly in actors/ but settings is one."""
    if source.package != "actors":
        return
    own = source.path.parts[1].removesuffix(".py")
    actors = {path.stem for path in (source.root / "actors").glob("*.py")} - {"__init__", "settings"} | {"adapters"}
    for found in source.imports:
        other = found.name.split(".")[1:2]
        if own in actors and found.top_level_package == "actors" and other and other[0] != own and other[0] in actors:
            yield f"line {found.line}: the actor {own} must not import the actor {other[0]}"


def check_broker_imports(source: SourceFile) -> Iterator[str]:
    if source.package in {"bus", "benchmarks"}:
        return
    for found in source.imports:
        if found.top_level_package in BROKER_AND_STORE_LIBRARIES:
            yield f"line {found.line}: only the bus imports {found.top_level_package}"


def check_example_imports(source: SourceFile) -> Iterator[str]:
    if source.package != "examples":
        return
    for found in source.imports:
        if found.top_level_package not in EXAMPLE_LIBRARIES | sys.stdlib_module_names | set(PACKAGES):
            yield f"line {found.line}: an example imports {', '.join(sorted(EXAMPLE_LIBRARIES))} and not {found.top_level_package}"


def check_database_imports(source: SourceFile) -> Iterator[str]:
    if source.package == "bus":
        return
    for node in source.nodes:
        match node:
            case ast.Attribute(value=ast.Name(id="asyncpg"), attr=name) if name in POOL_FUNCTIONS:
                yield f"line {node.lineno}: only the bus opens the database (asyncpg.{name})"
            case ast.ImportFrom(module="asyncpg", names=names) if POOL_FUNCTIONS & {alias.name for alias in names}:
                yield f"line {node.lineno}: only the bus opens the database"


def check_model_imports(source: SourceFile) -> Iterator[str]:
    allowed = source.path.parts[:2] == ("actors", "engines") or source.package in {"training", "benchmarks"}
    for found in source.imports:
        if found.top_level_package in MODEL_LIBRARIES and not allowed:
            yield f"line {found.line}: only actors/engines, training and benchmarks import {found.top_level_package}"
        elif found.top_level_package not in MODEL_LIBRARIES or found.is_local or is_type_checking_only(source.tree, found.line):
            continue
        elif not {source.path.as_posix(), source.path.parent.as_posix()} & MODEL_PROCESS:
            yield f"line {found.line}: {found.top_level_package} is imported only inside a function that opens an engine or trains one"


def is_type_checking_only(tree: ast.Module, line: int) -> bool:
    """Under `if TYPE_CHECKING:` nothing is imported when the program runs."""
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")]
    return any(block.lineno < line <= (block.end_lineno or block.lineno) for block in blocks)


def check_environment_reads(source: SourceFile) -> Iterator[str]:
    if source.path.stem.endswith("settings"):
        return
    for node in source.nodes:
        match node:
            case ast.Attribute(value=ast.Name(id="os"), attr="environ" | "getenv" | "putenv"):
                yield f"line {node.lineno}: the environment is read in a settings module"
            case ast.ImportFrom(module="os", names=names) if {"environ", "getenv"} & {alias.name for alias in names}:
                yield f"line {node.lineno}: the environment is read in a settings module"


def check_settings_at_import(source: SourceFile) -> Iterator[str]:
    """Settings are read when a process starts, so that a test or a second process in one program can have its own."""
    for node in evaluated_at_import(source.tree):
        match node:
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name.endswith("Settings"):
                yield f"line {node.lineno}: {name} is read when the module is imported; read it when the process starts"


def evaluated_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """What Python evaluates while it imports the module: all but the bodies of functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(node, FUNCTIONS) and child in (node.body if isinstance(node.body, list) else [node.body]):
            continue
        yield child
        yield from evaluated_at_import(child)


def check_layout(source: SourceFile) -> Iterator[str]:
    """Each package has named sub-packages, and few modules beside them: a new module goes where its subject is."""
    allowed, package = SUB_PACKAGES, source.path.parent.as_posix()
    if package in allowed or source.package == "contracts":
        if package in FILES_AT_TOP and source.path.stem not in FILES_AT_TOP[package] | {"__init__", "__main__"}:
            yield f"{package}/ has no place for {source.path.name}: put it into a sub-package, or add it to tests/support/layout.py"
    elif source.package in PRODUCT:
        yield f"{package}/ is outside the layout: add it to tests/support/layout.py"


def check_file_length(source: SourceFile) -> Iterator[str]:
    lines = len(source.text.splitlines())
    if lines > MAX_LINES:
        yield f"{lines} lines; look for the second noun (at most {MAX_LINES})"


def check_short_modules(source: SourceFile) -> Iterator[str]:
    """A module of a few lines belongs to its neighbour, unless it is a contract or the whole of its subject."""
    lines = len(source.text.splitlines())
    exempt = source.package == "contracts" or source.path.stem in {"__init__", "__main__"} or source.path.as_posix() in SHORT_MODULES
    if lines < MIN_LINES and not exempt:
        yield f"{lines} lines; merge it into its neighbour, or add it to tests/support/layout.py"


def check_module_names(source: SourceFile) -> Iterator[str]:
    for part in source.path.with_suffix("").parts:
        for word in part.split("_"):
            if word in MEANINGLESS_WORDS or word.removesuffix("s") in MEANINGLESS_WORDS:
                yield f"the word {word!r} says nothing; name the subject"


def check_module_docstring(source: SourceFile) -> Iterator[str]:
    if source.text.strip() and not ast.get_docstring(source.tree):
        yield "no docstring that says what the file is"


def check_vocabulary(source: SourceFile) -> Iterator[str]:
    yield from find_retired_words(source.path, source.text)


RULES_OF_FORM: tuple[Rule, ...] = (
    check_no_relative_import,
    check_file_length,
    check_module_names,
    check_module_docstring,
    check_vocabulary,
)

RULES: tuple[Rule, ...] = (
    check_import_direction,
    check_actor_isolation,
    check_broker_imports,
    check_example_imports,
    check_database_imports,
    check_model_imports,
    check_environment_reads,
    check_settings_at_import,
    check_layout,
    check_short_modules,
)
