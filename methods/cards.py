"""Reads from sources and data what lists show of methods and compensations, so that a list imports no torch.

A comparison says how a method was compared with its authors' code. The tests write authors_code.json, which has the
commit and the largest differences, and check it. A departure from that code is a sentence at the head of the method's
module.

A card has the attributes of the class, those of the classes that it inherits from, and the defaults that stand in the
text of the base class.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from methods.base import Look
from methods.model.architectures import FAMILIES
from methods.registry import find_compensation_modules, find_method_modules

DATA = Path(__file__).with_name("authors_code.json")


@dataclass(frozen=True)
class Speed:
    """Holds the CPU seconds of the authors' code and of ours for the same work."""

    work: str
    theirs: float
    ours: float

    @property
    def times(self) -> str:
        """Return the authors' seconds divided by ours."""
        return f"{self.theirs / self.ours:.1f}"


@dataclass(frozen=True)
class CodeComparison:
    """Says how a module was compared with other code of its method.

    methods         the methods or compensations of the module whose runs were compared
    code            repositories, and the commit of each where it was noted
    by_the_authors  whether the code is the authors' own; else it is somebody's port
    compared        what was compared, in words
    put_in          departures that were undone for the comparison, one sentence each
    runs            runs of the code that the tests repeat
    largest         "scores" and "logits" -> the largest difference of all runs
    speed           both codes' seconds, where they were measured
    """

    methods: tuple[str, ...]
    code: tuple[tuple[str, str | None], ...]
    by_the_authors: bool
    compared: str
    put_in: tuple[str, ...]
    runs: int
    largest: dict[str, float]
    speed: tuple[Speed, ...]

    @property
    def apart(self) -> str:
        """Say how far the runs are apart at most."""
        return " and ".join(f"{kind} by {value:.1e}" for kind, value in self.largest.items())


def read_comparisons() -> dict[str, CodeComparison]:
    """Return the comparison of every module that was compared with other code, by the last part of its name."""
    return {name: _to_comparison(comparison) for name, comparison in _data()["methods"].items()}


def _to_comparison(plain: dict[str, Any]) -> CodeComparison:
    """Return an entry of the file as its type."""
    return CodeComparison(
        methods=tuple(plain["methods"]),
        code=tuple((source["repository"], source["commit"]) for source in plain["code"]),
        by_the_authors=plain["by_the_authors"],
        compared=plain["compared"],
        put_in=tuple(plain["put_in"]),
        runs=plain["runs"],
        largest={kind: entry["difference"] for kind, entry in plain["largest"].items()},
        speed=tuple(Speed(**seconds) for seconds in plain["speed"]),
    )


def words_of_timing() -> str:
    """Return how the seconds of both codes were measured."""
    return str(_data()["speed"])


def departures_of(module: str) -> list[str]:
    """Return the departures that the head of a module ("depth.sleb") states, one sentence each."""
    head = ast.get_docstring(ast.parse(source_of(module))) or ""
    match = re.search(r"^Departures from [\w' ]+\. (.*?)(?:\n\n|\Z)", head, re.MULTILINE | re.DOTALL)
    return re.split(r"(?<=\.) (?=[A-Z0-9`])", " ".join(match[1].split())) if match else []


@dataclass(frozen=True)
class Head:
    """Holds the parts of a module's head: what it does, authors with title and address, and the line of an equation."""

    summary: str
    source: str
    equation: str


def head_of(module: str) -> Head:
    """Return the parts of the head of a module ("depth.sleb"); the equation is its first indented line, or empty."""
    head = ast.get_docstring(ast.parse(source_of(module))) or ""
    summary, source, *_ = [" ".join(part.split()) for part in re.split(r"\n{2,}", head)] + [""]
    equation = re.search(r"^    (.*)", head, re.MULTILINE)
    return Head(summary, source, " ".join(equation[1].split()) if equation else "")


def _data() -> Any:
    return json.loads(DATA.read_text(encoding="utf-8"))


METHODS = Path(__file__).parent
FAMILY_BY_SHAPE = {
    **{"layers": "depth", "attentions": "sublayer", "mlps": "sublayer", "heads": "width", "channels": "width"},
    "head widths": "width",
    **{"equal widths": "width", "residual": "residual", "ranks": "low-rank", "experts": "experts"},
}
WORDS = {"gradients": "calibration, gradients"}  # how a list shows `looks_at`; all other values are shown unchanged


@dataclass(frozen=True)
class Card:
    """Holds what lists say of a method or a compensation. The fields from `looks_at` on are attributes of its class.

    parameters  name, default, meaning
    module      the module that defines it, such as "depth.sleb"
    """

    name: str
    summary: str
    parameters: tuple[tuple[str, str, str], ...]
    module: str
    looks_at: str = ""
    cost: str = ""
    takes_ratio: bool = True
    axes: tuple[str, ...] = ()
    takes_first: bool = False
    needs_mlps: bool = False
    leaves: tuple[str, ...] = ()
    paper_ratio: str = ""
    paper_reads: str = ""
    look: Look | None = None
    follows: str = ""
    tiny: str = ""

    @property
    def needs(self) -> str:
        """Return what it looks at, in words: "calibration, gradients"."""
        return WORDS.get(self.looks_at, self.looks_at)

    @property
    def fixed(self) -> bool:
        """Say whether its parameters alone decide what goes, so that no ratio is asked for."""
        return not self.takes_ratio

    @property
    def tiny_parameters(self) -> dict[str, str]:
        """Return the parameters, as text, with which it prunes a tiny model within a second."""
        return dict(pair.split("=") for pair in self.tiny.split(",") if pair)

    @property
    def family(self) -> str:
        """Return what it removes, in a word of FAMILY_BY_SHAPE, or "mixed" for several; empty where nothing says it."""
        families = {FAMILY_BY_SHAPE[shape] for shape in self.leaves if shape in FAMILY_BY_SHAPE}
        families = {"experts"} if "experts" in self.axes else families
        return families.pop() if len(families) == 1 else "mixed" * bool(families)

    @property
    def without(self) -> tuple[str, ...]:
        """Return the families whose models it cannot serve: one axis is uncut, or a layer is fixed or has no MLP."""
        lacking = {name for name, family in FAMILIES.items() if self.takes_first and family.added}
        lacking |= {name for name, family in FAMILIES.items() if self.needs_mlps and family.alone}
        return tuple(name for name, family in FAMILIES.items() if name in lacking or any(map(family.never, self.axes)))


def cards_of_methods() -> list[Card]:
    """Return a card of every built-in method, read from its source: `dense`, then folder by folder, by name."""
    return [card for module in find_method_modules() for card in cards_of_module(module, "register")]


def needs_of_methods() -> dict[str, str]:
    """Return what each built-in method looks at, by its name, such as "calibration, gradients"."""
    return {card.name: card.needs for card in cards_of_methods()}


def cards_of_compensations() -> list[Card]:
    """Return a card of every compensation, read from its source."""
    return [card for module in find_compensation_modules() for card in cards_of_module(module, "register_compensation")]


@functools.cache
def cards_of_module(module: str, decorator: str) -> tuple[Card, ...]:
    """Return a card of every class in a module, such as "depth.sleb", that `decorator` registers."""
    cards = []
    for class_ in read_classes(module).values():
        if name := class_.registered.get(decorator):
            inherited = list(class_.lineage())
            parameters, attributes = dict[str, tuple[str, str, str]](), dict[str, Any]()
            for ancestor in reversed(inherited):
                for parameter, (default, meaning) in ancestor.parameters.items():
                    earlier_meaning = parameters.get(parameter, ("", "", ""))[2]
                    parameters[parameter] = (parameter, default, meaning or earlier_meaning)
                attributes |= ancestor.attributes
            cards.append(Card(name, class_.summary, tuple(parameters.values()), module, **attributes))
    return tuple(cards)


def source_of(module: str) -> str:
    """Return the source of a module of this package, such as "depth.sleb"."""
    return METHODS.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")


@dataclass(frozen=True)
class ClassText:
    """Holds what the text of a class says.

    bases       its base classes within this package
    registered  the name that each decorator gives it
    parameters  default and meaning of each field
    attributes  its literals that are fields of Card
    """

    summary: str
    bases: tuple[ClassText, ...]
    registered: dict[str, str]
    parameters: dict[str, tuple[str, str]]
    attributes: dict[str, Any]

    def lineage(self) -> Iterator[ClassText]:
        """Yield the class and its bases, in the order in which Python looks up their attributes."""
        line = [self, *(ancestor for base in self.bases for ancestor in base.lineage())]
        for position, class_ in enumerate(line):
            if not any(later is class_ for later in line[position + 1 :]):
                yield class_


@functools.cache
def read_classes(module: str) -> dict[str, ClassText]:
    """Return the text of each class in a module of this package, by the names of the classes."""
    text = source_of(module)
    imported, classes = dict[str, str](), dict[str, ClassText]()
    for node in ast.parse(text).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("methods."):
            imported |= {alias.name: str(node.module).removeprefix("methods.") for alias in node.names}
        if isinstance(node, ast.ClassDef):
            bases = []
            for base in map(ast.unparse, node.bases):
                if base in classes:
                    bases.append(classes[base])
                elif base in imported:
                    bases.append(read_classes(imported[base])[base])
            classes[node.name] = _read_class(node, tuple(bases), text.splitlines())
    return classes


def _read_class(node: ast.ClassDef, bases: tuple[ClassText, ...], lines: list[str]) -> ClassText:
    names = {field.name for field in dataclasses.fields(Card)}
    parameters, attributes, registered = dict[str, tuple[str, str]](), dict[str, Any](), dict[str, str]()
    has_fields = any(ast.unparse(decorator).startswith("dataclass") for decorator in node.decorator_list)
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and item.value is not None and isinstance(item.target, ast.Name):
            name = item.target.id
            if has_fields and not ast.unparse(item.annotation).startswith("ClassVar"):
                comment = "\n".join(lines[item.lineno - 1 : item.end_lineno]).partition("  # ")[2]
                parameters[name] = (ast.unparse(item.value), comment.partition("\n")[0].strip())
            elif name in names - {"name"}:
                attributes[name] = _literal(item.value)
        elif isinstance(item, ast.Assign) and ast.unparse(item.targets[0]) in names:
            attributes[ast.unparse(item.targets[0])] = _literal(item.value)
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and decorator.args:
            registered[ast.unparse(decorator.func)] = ast.literal_eval(decorator.args[0])
    summary = (ast.get_docstring(node) or "").partition("\n")[0]
    return ClassText(summary, bases, registered, parameters, attributes)


def _literal(node: ast.expr) -> Any:
    """Return the value of a literal, or of a Look of literals."""
    if isinstance(node, ast.Call):
        return Look(*map(ast.literal_eval, node.args))
    return ast.literal_eval(node)
