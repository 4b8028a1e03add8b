"""Changes a line of the project for as long as a test lasts, to see whether the test notices."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]


@contextmanager
def mutated(file: str, fragment: str, instead: str) -> Iterator[None]:
    """Let the functions of `file` be those of a text with `instead` for its one `fragment`.

    Raises AssertionError where the fragment is not there once, or stands in no function.
    """
    text = (ROOT / file).read_text(encoding="utf-8")
    assert text.count(fragment) == 1, f"{file} has {fragment!r} {text.count(fragment)} times; name a line that it has"
    codes = dict(_codes(compile(text.replace(fragment, instead), str(ROOT / file), "exec", dont_inherit=True)))
    changed = []
    for function in _functions(importlib.import_module(file.removesuffix(".py").replace("/", "."))):
        code = codes.get(_name(function.__code__))
        if code is not None and _does(code) != _does(function.__code__):
            changed.append((function, function.__code__))
            function.__code__ = code
    try:
        assert changed, f"{fragment!r} of {file} is in no function"
        yield
    finally:
        for function, code in changed:
            function.__code__ = code


def _name(code: CodeType) -> tuple[str, int]:
    """Return what tells a function from the others of its file, also a property's two."""
    return code.co_qualname, code.co_argcount


def _codes(code: CodeType) -> Iterator[tuple[tuple[str, int], CodeType]]:
    """Yield the code of every function in `code` by its name."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield _name(constant), constant
            yield from _codes(constant)


def _does(code: CodeType) -> tuple[Any, ...]:
    """Return what a function does, whatever lines it stands on."""
    constants = [_does(one) if isinstance(one, CodeType) else one for one in code.co_consts]
    return code.co_code, code.co_names, code.co_varnames, constants


def _functions(module: ModuleType) -> Iterator[FunctionType]:
    """Yield the functions that the module defines, also in its classes and below decorators."""
    for thing in vars(module).values():
        for one in vars(thing).values() if inspect.isclass(thing) else [thing]:
            inner = getattr(one, "fget", None) or getattr(one, "func", None) or getattr(one, "__func__", one)
            inner = inspect.unwrap(inner) if callable(inner) else inner
            if isinstance(inner, FunctionType) and inner.__module__ == module.__name__:
                yield inner
