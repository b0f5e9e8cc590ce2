"""Finds every call of a decoding function in the product: JSON, base64, pickles, archives, pictures, documents, weights, forms, streams."""

import ast
from collections.abc import Iterator

from tests.support.hostile_patterns import parsed_files

FUNCTIONS = frozenset({
    "json.loads", "json.load", "json.JSONDecoder", "pydantic_core.from_json",
    "base64.b64decode", "base64.urlsafe_b64decode", "base64.standard_b64decode", "base64.decodebytes", "binascii.a2b_base64",
    "pickle.loads", "pickle.load", "marshal.loads", "ast.literal_eval",
    "zipfile.ZipFile", "tarfile.open", "zlib.decompress", "zlib.decompressobj", "gzip.decompress", "gzip.open", "bz2.decompress",
    "lzma.decompress", "yaml.load", "yaml.safe_load", "tomllib.load", "tomllib.loads", "csv.reader", "csv.DictReader",
    "struct.unpack", "struct.unpack_from", "urllib.parse.parse_qs", "urllib.parse.parse_qsl", "unicodedata.normalize",
    "PIL.Image.open", "PIL.Image.frombytes", "PIL.ImageFont.truetype", "numpy.load", "torch.load", "pypdf.PdfReader",
    "safetensors.torch.load_file", "safetensors.safe_open", "html.unescape", "email.message_from_bytes", "c2pa.Builder", "c2pa.Reader",
})  # fmt: skip
MODULES = ("xml.", "defusedxml.", "html.parser.", "plistlib.", "configparser.", "lxml.")
"""Any call into these."""
METHODS = frozenset({"model_validate_json", "validate_json", "raw_decode", "form", "json", "aiter_lines", "stream_form"})
"""Of any object: Pydantic's models, a JSON decoder, the requests of Starlette, the responses of httpx."""


def collect_decoders() -> set[tuple[str, str]]:
    """(file, decoding function) of every call."""
    return {(path, name) for path, tree in parsed_files().items() for name in _decoders(tree)}


def _decoders(tree: ast.Module) -> Iterator[str]:
    imported = dict(_imported_names(tree))
    for node in ast.walk(tree):
        name = _dotted_name(node, imported)
        if name in FUNCTIONS or (name.startswith(MODULES) and isinstance(node, ast.Call)):
            yield name
        elif isinstance(node, ast.Attribute) and node.attr in METHODS and name != "structlog.processors.json":
            yield f".{node.attr}"


def _imported_names(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """The local name → its dotted name."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield alias.asname or alias.name.partition(".")[0], alias.name if alias.asname else alias.name.partition(".")[0]
            case ast.ImportFrom(module=str(module), names=names):
                yield from ((alias.asname or alias.name, f"{module}.{alias.name}") for alias in names)


def _dotted_name(node: ast.AST, imported: dict[str, str]) -> str:
    """The full name of a function that is called or passed on; empty for anything else."""
    if isinstance(node, ast.Call):
        node = node.func
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.insert(0, node.attr)
        node = node.value
    return ".".join([imported[node.id], *parts]) if isinstance(node, ast.Name) and node.id in imported else ""
