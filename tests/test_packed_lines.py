"""No line is packed: no comprehension in a comprehension, few parts in a statement, `:=` only after if and while."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("bench", "methods", "reports")
MOST_PARTS = 25  # names, calls, operators and subscripts of a statement
PARTS = (ast.Name, ast.Call, ast.Subscript, ast.BinOp, ast.BoolOp, ast.UnaryOp, ast.Compare)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
BODIES = ("body", "orelse", "finalbody", "handlers", "cases", "decorator_list")


def expressions_of(statement: ast.stmt) -> list[ast.AST]:
    """Return the expressions of a statement without the statements inside it."""
    inside = [value for name, value in ast.iter_fields(statement) if name not in BODIES]
    nodes: list[ast.AST] = []
    for value in inside:
        nodes += [node for node in (value if isinstance(value, list) else [value]) if isinstance(node, ast.AST)]
    return nodes


def entries_of(statement: ast.stmt) -> list[list[ast.AST]]:
    """Return the expressions of a statement that are counted together; of a table each entry is for itself."""
    table = getattr(statement, "value", None)
    if isinstance(table, ast.Tuple | ast.List | ast.Set):
        return [[entry] for entry in table.elts]
    return [expressions_of(statement)]


def walk_all(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    for node in nodes:
        yield from ast.walk(node)


def has_nested_comprehension(nodes: Iterable[ast.AST]) -> bool:
    outer = [node for node in walk_all(nodes) if isinstance(node, COMPREHENSIONS)]
    return any(isinstance(inner, COMPREHENSIONS) for node in outer for inner in ast.walk(node) if inner is not node)


def count_parts(nodes: Iterable[ast.AST]) -> int:
    """Return the parts of expressions. An entry of a dictionary and a keyword count on their own: the most counts."""
    counts, waiting = [0], list(nodes)
    while waiting:
        node = waiting.pop()
        counts[0] += isinstance(node, PARTS)
        for child in ast.iter_child_nodes(node):
            if isinstance(node, ast.Dict) or isinstance(child, ast.keyword):
                counts.append(count_parts([child.value if isinstance(child, ast.keyword) else child]))
            else:
                waiting.append(child)
    return max(counts)


def packed_statements(source: str) -> list[str]:
    """Return the line and the fault of each packed statement of a file."""
    faults = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.stmt) or isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        nodes = expressions_of(node)
        if has_nested_comprehension(nodes):
            faults.append(f"{node.lineno} a comprehension within a comprehension")
        parts = max(map(count_parts, entries_of(node)), default=0)
        if parts > MOST_PARTS:
            faults.append(f"{node.lineno} {parts} parts")
        names_on_the_way = any(isinstance(inner, ast.NamedExpr) for inner in walk_all(nodes))
        if names_on_the_way and not isinstance(node, ast.If | ast.While):
            faults.append(f"{node.lineno} := outside the head of an if or a while")
    return faults


@pytest.mark.parametrize("package", PACKAGES)
def test_no_statement_is_packed(package):
    paths = sorted((ROOT / package).rglob("*.py"))
    assert paths
    faults = {path.relative_to(ROOT).as_posix(): packed_statements(path.read_text(encoding="utf-8")) for path in paths}
    assert [f"{path}:{fault}" for path, several in faults.items() for fault in several] == []


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("x = [[b for b in a] for a in y]", "1 a comprehension within a comprehension"),
        ("for x in (sum(b for b in a) for a in y):\n    pass", "1 a comprehension within a comprehension"),
        (f"x = {' + '.join('a' * 14)}", "1 28 parts"),
        (f"x = f(a={' + '.join('a' * 14)})", "1 27 parts"),
        ("if y:\n    x = (z := 3)", "2 := outside the head of an if or a while"),
    ],
)
def test_packed_statements_are_found(source, fault):
    assert packed_statements(source) == [fault]


def test_plain_statements_are_not_packed():
    assert packed_statements(f"x = {{{', '.join(f'{number}: f(a) + b' for number in range(30))}}}") == []
    assert packed_statements(f"x = ({', '.join(['f(a) + b'] * 30)})") == []
    assert packed_statements("while x := f(y):\n    z = [a for a in b]\n    w = [a for a in c]") == []
