"""Messaging, persistence and storage. The only package that uses AMQP, S3 and the database; it decides the outcome of each delivery."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ConfigDict


@contextmanager
def hidden_package(name: str) -> Iterator[None]:
    """A library that is imported inside the block, and takes `name` where it is installed, does without it in this whole process.

    No effect where `name` is imported already.
    """
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment] # an import of it fails, as where it is not installed
    try:
        yield
    finally:
        sys.modules.pop(name, None)


class _EmptyModule(ModuleType):
    """A module with an empty class for every name, which may be a base class or stand in an `except` clause, but has no instances."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(*_: Any, **__: Any) -> None:
            raise RuntimeError(f"{name} of {self.__name__} is not loaded in this process (decision 22)")

        return type(name, (Exception,), {"__new__": refuse})


@contextmanager
def empty_modules(*names: str) -> Iterator[None]:
    """A library that is imported inside the block gets empty classes from these modules, for functions of it that this process never calls.

    No effect for modules that are imported already; whoever imports them after the block gets the real ones.
    """
    empty = {name: _EmptyModule(name) for name in names if name not in sys.modules}
    sys.modules |= empty
    try:
        yield
    finally:
        for name in empty:
            del sys.modules[name]


@contextmanager
def deferred_models() -> Iterator[None]:
    """Models of a library that is imported inside the block wait for their first use, also those that the library builds at its end."""

    def rebuild_when_used(cls: type[BaseModel], /, **options: Any) -> bool | None:
        return rebuild.__func__(cls, **options) if options else None  # a first use has options, `Model.model_rebuild()` has none

    config, rebuild = BaseModel.model_config, BaseModel.__dict__["model_rebuild"]
    BaseModel.model_config = ConfigDict(defer_build=True)  # models inherit it
    BaseModel.model_rebuild = classmethod(rebuild_when_used)  # type: ignore[assignment]
    try:
        yield
    finally:
        BaseModel.model_config = config
        BaseModel.model_rebuild = rebuild  # type: ignore[method-assign]


with hidden_package("rich"):  # structlog takes it for tracebacks that show local variables, which ours never show: 4 MB in every process
    import structlog  # noqa: F401

sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type] # its command line, which nothing here uses, takes 5 MB with rich and click
