"""Names are those of docs/glossary.md: none is a forbidden word, and a public function begins with a verb."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("bench", "methods", "reports")
STORED = {  # keys of files that users have
    "bench/doctor/finding.py": {"found"},
    "bench/records/served.py": {"asked"},
}


def read_words(title: str) -> frozenset[str]:
    """Return the words in code type of a section of the glossary."""
    glossary = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    section = glossary.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return frozenset(re.findall(r"`(\w+)`", section))


FORBIDDEN = read_words("Forbidden words")
VERBS = read_words("Verbs")
NOUNS = read_words("Functions that are named by what they return")
BETWEEN = read_words("Words between two nouns")
PREFIXES = {"is", "has", "may", "to", "with", "without"}


@functools.cache
def parse_sources() -> list[tuple[str, ast.Module]]:
    """Return the path and the syntax tree of every file of the packages."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return [(path.relative_to(ROOT).as_posix(), ast.parse(path.read_bytes())) for path in paths]


def bound_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the name of each function, class, parameter, variable and attribute that a tree names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((node.lineno, name.asname) for name in node.names if name.asname)
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            yield node.lineno, node.name


def lefts_without_right(tree: ast.AST) -> Iterator[int]:
    """Yield the line of each function, and 1 for a file, that has a name `left` and no name `right`."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for scope in (*functions, tree):
        names = {name.strip("_").lower() for _, name in bound_names(scope)}
        if "left" in names and "right" not in names:
            yield getattr(scope, "lineno", 1)


def has_good_name(function: str) -> bool:
    """Say whether the name of a public function begins with a verb, or is one of the other forms of the glossary."""
    first, *rest = function.split("_")
    if function in NOUNS or first in VERBS:
        return True
    return bool(rest) and (first in PREFIXES or not BETWEEN.isdisjoint(rest))


def forbidden_names(path: str, tree: ast.Module) -> list[str]:
    """Return the places of a file at which a forbidden word is a name."""
    forbidden = FORBIDDEN - STORED.get(path, set())
    return [f"{path}:{line} {name}" for line, name in bound_names(tree) if name.strip("_").lower() in forbidden]


def public_functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Yield the functions of a module without a leading underscore."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node


def test_no_name_is_a_forbidden_word():
    assert len(FORBIDDEN) >= 23
    wrong = [place for path, tree in parse_sources() for place in forbidden_names(path, tree)]
    assert not wrong, f"{len(wrong)} names are forbidden by docs/glossary.md:\n" + "\n".join(wrong)


def test_left_is_only_the_direction():
    wrong = [f"{path}:{line}" for path, tree in parse_sources() for line in lefts_without_right(tree)]
    assert not wrong, "something is named `left` that does not stand beside `right`:\n" + "\n".join(wrong)


def test_every_public_function_begins_with_a_verb():
    wrong = [
        f"{path}:{function.lineno} {function.name}"
        for path, tree in parse_sources()
        for function in public_functions(tree)
        if not has_good_name(function.name)
    ]
    assert not wrong, f"{len(wrong)} functions have no verb of docs/glossary.md:\n" + "\n".join(wrong)


def test_every_word_of_the_glossary_is_used():
    functions = {function.name for _, tree in parse_sources() for function in public_functions(tree)}
    first_words = {function.split("_")[0] for function in functions - NOUNS}
    assert not NOUNS - functions, "the glossary names functions that there are not"
    assert not VERBS - first_words, "the glossary lists verbs that no function begins with"


def test_the_docstring_of_a_public_function_begins_with_a_verb():
    """Of properties too, which ruff's D401 leaves out."""
    nouns = {"The", "A", "An", "Where", "Whether", "How", "What", "Its", "All", "One"}
    wrong = []
    for path, tree in parse_sources():
        for node in ast.walk(tree):
            text = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
            if text and not node.name.startswith("_") and text.split()[0] in nouns:
                wrong.append(f"{path}:{node.lineno} {text.splitlines()[0]}")
    assert not wrong, "\n".join(wrong)


def test_names_are_told_apart():
    assert all(map(has_good_name, ("load_tokenizer", "is_close", "dtype_of_weights", "to_slug", "write", "kendall")))
    assert not any(map(has_good_name, ("judged", "tokenizer", "of_run", "to", "shared", "thing")))
    tree = ast.parse("def f(found):\n    for one in found:\n        _said = x.told\n    self.GONE = 1\n")
    assert {place.split()[1] for place in forbidden_names("", tree)} == {"found", "one", "_said", "GONE"}
    assert list(lefts_without_right(ast.parse("def f():\n    left, right = 1, 2\n"))) == []
    assert list(lefts_without_right(ast.parse("right = 1\ndef f(_left):\n    pass\n"))) == [2]
    assert list(lefts_without_right(ast.parse("class A:\n    left: int\n"))) == [1]
