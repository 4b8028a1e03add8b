"""Hashes the code that a method's decisions depend on, so that a record is served only while that code is the same.

A hash is over the syntax trees of modules, without imports, docstrings, comments and the modules' names and places:
moving or renaming a file, or writing its docstrings better, makes no record old; another constant or operator does.

The modules are the method's own (and its compensation's), those that say how much goes, and those that all of these
import, directly or not, at the top or inside functions. Left out are imports for type checkers alone, installed
packages (their versions are inputs of their own) and UNDECIDED, on which no decision depends. What a plugin imports
through the `methods` package counts as the module that defines it.

`earlier_sources.json` says which hashes of earlier code stand for what a method does today, since its decisions on the
golden models are equal to the last bit:

    {method, or "healing": {"now": today's hash, "earlier": [hashes of earlier code that decides the same]}}

An entry counts while "now" is the method's hash. After a change that alters no decision, `python -m
bench.run.source_hash` moves the old "now" to "earlier"; after one that does, give that method's name as well, and its
entry is dropped: `python -m bench.run.source_hash laco`.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import methods

HEALING = (  # the modules that train, below bench/
    *("healing/training.py", "healing/text.py", "healing/dense_predictions.py"),
    "plan/recipe.py",
)
AMOUNTS = ("methods.budget", "methods.counted")  # which turn a request into what a method is to remove
UNDECIDED = (
    "methods",  # passes names on; they are followed to where they are defined
    "methods.base",  # the registry and the interface
    "methods.registry",  # finds methods by name and checks their parameters, whose values a cell holds
    "methods.listed.cards",  # what lists say of methods
    "methods.ranges",  # which values of parameters are right
    "methods.errors",  # exceptions and their words
    "methods.model.layer_store",  # moves weights, whose values stay
    "methods.progress",  # bars on stderr
)
INSTALLED = frozenset({"site-packages", "dist-packages"})  # folders in which every installer puts packages
TABLE = Path(__file__).with_name("earlier_sources.json")


def method_sha256(name: str) -> str:
    """Return the hash of a method's code, such as `shortgpt` or `shortgpt+ghost`, plugins included."""
    return code_sha256(sources([*methods.modules(name), *AMOUNTS]))


def healing_sha256() -> str:
    """Return the hash of the code that trains a pruned model."""
    return code_sha256(Path(__file__).parents[1] / name for name in HEALING)


def as_of_today(name: str, sha256: str) -> str:
    """Return today's hash of a method, or of "healing", whose code of `sha256` did the same; else `sha256` itself.

    The entry of that name alone counts: methods of one module share hashes, and one of them may decide otherwise today.
    """
    return _earlier().get(name, {}).get(sha256, sha256)


@functools.cache
def _earlier() -> dict[str, dict[str, str]]:
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    return {name: dict.fromkeys(entry["earlier"], entry["now"]) for name, entry in table.items()}


def code_sha256(files: Iterable[Path]) -> str:
    """Return one hash over the code of several files, whatever their names and order."""
    trees = {_code(path.read_bytes()) for path in files} - {""}
    return hashlib.sha256("".join(sorted(trees)).encode()).hexdigest()


def sources(start: Iterable[str]) -> list[Path]:
    """Return the files of the modules `start` and of all that their code depends on; see the head of this file."""
    waiting, found = list(start), dict[str, Path]()
    package = waiting[0].partition(".")[0]
    while waiting:
        name = waiting.pop()
        path = _source(name)
        if name in UNDECIDED or name in found or path is None or path.suffix != ".py":
            continue
        if name.partition(".")[0] not in (package, "methods") and _is_installed(path):
            continue
        found[name] = path
        waiting += _imports(path.read_bytes(), name if path.name == "__init__.py" else name.rpartition(".")[0])
    return list(found.values())


def _source(name: str) -> Path | None:
    """Return the file of a module that is imported, or of one of `methods` that may be later: all processes agree."""
    own = Path(methods.__file__).parent.joinpath(*name.split(".")[1:]).with_suffix(".py")
    if name.startswith("methods.") and own.is_file():
        return own
    return Path(getattr(sys.modules[name], "__file__", None) or "") if name in sys.modules else None


@functools.cache
def _imports(source: bytes, package: str) -> tuple[str, ...]:
    """Return the modules that a file of `package` may import, and names that may be modules, wherever that stands."""
    found = list[str]()
    for node in ast.walk(_Typeless().visit(ast.parse(source))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
            if base == "methods":
                found += [getattr(getattr(methods, alias.name, None), "__module__", "") for alias in node.names]
    return tuple(found)


class _Typeless(ast.NodeTransformer):
    """Removes `if TYPE_CHECKING:`, whose imports no code runs."""

    def visit_If(self, node: ast.If) -> Any:
        typing_alone = ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING") and not node.orelse
        return None if typing_alone else self.generic_visit(node)


class _Bare(_Typeless):
    """Removes imports and docstrings too."""

    def visit_Import(self, node: ast.Import) -> None:
        return None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        return None

    def generic_visit(self, node: ast.AST) -> ast.AST:
        described = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if described and ast.get_docstring(node, clean=False) is not None:  # type: ignore[arg-type]
            del node.body[0]  # type: ignore[attr-defined]
        return super().generic_visit(node)


@functools.cache
def _code(source: bytes) -> str:
    """Return the hash of a file's code, or nothing for a file that only imports."""
    tree = _Bare().visit(ast.parse(source))
    return hashlib.sha256(json.dumps(_plain(tree), sort_keys=True).encode()).hexdigest() if tree.body else ""


def _plain(node: Any) -> Any:
    """Return a syntax tree as lists and dicts, without what Python's versions store differently.

    That is what is absent, and the empty ends of f-strings.
    """
    if isinstance(node, list):
        return [_plain(one) for one in node]
    if isinstance(node, ast.AST):
        if isinstance(node, ast.JoinedStr):
            node.values = [value for value in node.values if not (isinstance(value, ast.Constant) and not value.value)]
        fields = {name: value for name, value in ast.iter_fields(node) if value is not None and value != []}
        return [type(node).__name__, {name: _plain(value) for name, value in fields.items() if name != "kind"}]
    return repr(node)


def _is_installed(path: Path) -> bool:
    """Return whether the file belongs to Python itself or to an installed package, of whichever environment.

    Packages need not lie in the folders of this environment: one made with --system-site-packages finds those of the
    Python below it, and so it is with packages of the user and with a folder that a .pth file names.
    """
    there = path.resolve()
    return not INSTALLED.isdisjoint(there.parts) or any(there.is_relative_to(place) for place in _places())


@functools.cache
def _places() -> tuple[Path, ...]:
    return tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib"))


def renewed(table: Mapping[str, Any], changed: Iterable[str] = ()) -> dict[str, Any]:
    """Return the table after a change of code that alters no decision but those of the methods `changed`."""
    found = dict[str, Any]()
    for name in sorted(set(table) - set(changed)):
        now = healing_sha256() if name == "healing" else method_sha256(name)
        earlier = {*table[name]["earlier"], table[name]["now"]} - {now}
        found[name] = {"now": now, "earlier": sorted(earlier)}
    return found


if __name__ == "__main__":
    new = renewed(json.loads(TABLE.read_text(encoding="utf-8")), sys.argv[1:])
    TABLE.write_text(json.dumps(new, indent=1) + "\n", encoding="utf-8")
