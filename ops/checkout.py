"""Commands that exist in a checkout only: `benchmarks/` and `training/` are not part of the installed package."""

import sys
from argparse import Namespace
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

from ops.errors import SetupError
from ops.settings import extend_python_path

CHECKOUT = Path(__file__).resolve().parents[1]
COMMANDS = {"benchmarks": "atelier bench", "training": "atelier models train-tiny"}
"""Package and the command that needs it."""


def is_in_checkout(package: str) -> bool:
    """Whether `package` stands beside this file's package. An unrelated package of that name in site-packages does not count."""
    return (CHECKOUT / "pyproject.toml").is_file() and (CHECKOUT / package / "__init__.py").is_file()


def import_from_checkout(module: str) -> ModuleType:
    """Import a module of the checkout; an editable install exposes only the installed packages. Raises SetupError outside of a checkout."""
    package = module.partition(".")[0]
    if not is_in_checkout(package):
        raise SetupError(
            f"`{COMMANDS[package]}` needs the folder {package}/, which the installed package does not contain. Run it in a checkout: "
            f"clone the repository, run `make venv` in it, then `.venv/bin/{COMMANDS[package]}`."
        )
    if str(CHECKOUT) not in sys.path:
        sys.path.insert(0, str(CHECKOUT))
    return import_module(module)


def checkout_command(module: str, name: str) -> Callable[[Namespace], int]:
    """A command that is imported from the checkout when it is called; the processes that it starts find the checkout too."""

    def call(arguments: Namespace) -> int:
        function = getattr(import_from_checkout(module), name)
        extend_python_path(CHECKOUT)
        return int(function(arguments))

    return call
