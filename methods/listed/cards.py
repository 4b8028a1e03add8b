"""Reads what lists say of methods and compensations from their sources, so that a list costs no import of torch."""

from __future__ import annotations

import ast
import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from methods.model.architectures import FAMILIES
from methods.registry import BUILT_IN, COMPENSATIONS

METHODS = Path(__file__).parents[1]
SAID = ("fixed", "needs", "cost", "axes")  # constants of a class that its card shows


@dataclass(frozen=True)
class Card:
    """Holds what `list methods` says of a method. Four of them are constants of its class.

    parameters  name, default, meaning
    fixed       whether the parameters alone decide what goes, so that no ratio is asked for
    needs       what it looks at: nothing, calibration, or calibration and gradients
    cost        in forwards over the tokens that it reads
    axes        along which it cuts with its usual parameters
    module      where it is, as in BUILT_IN or COMPENSATIONS
    """

    name: str
    summary: str
    parameters: tuple[tuple[str, str, str], ...]
    fixed: bool = False
    needs: str = ""
    cost: str = ""
    axes: tuple[str, ...] = ("layers",)
    module: str = ""

    @property
    def without(self) -> tuple[str, ...]:
        """Return the families of which it can serve no model, since they cannot be cut along one of its axes."""
        return tuple(name for name, family in FAMILIES.items() if any(map(family.never, self.axes)))


def catalogue() -> list[Card]:
    """Return a card of every built-in method, read from its source, in the order of BUILT_IN."""
    return [card for name in BUILT_IN for card in of_module(name, "register")]


def needs() -> dict[str, str]:
    """Return what each built-in method looks at, by its name, such as "calibration, gradients"."""
    return {card.name: card.needs for card in catalogue()}


def compensations() -> list[Card]:
    """Return a card of every compensation, read from its source."""
    return [card for name in COMPENSATIONS for card in of_module(name, "compensation")]


def of_module(name: str, decorator: str) -> list[Card]:
    """Return a card of every class in a module, such as "depth.sleb", that `decorator` registers."""
    return [dataclasses.replace(card, module=name) for card in _cards(source(name), decorator)]


def source(module: str) -> str:
    """Return the source of a module of this package, such as "depth.sleb"."""
    return METHODS.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")


@functools.cache
def _cards(text: str, decorator_name: str) -> tuple[Card, ...]:
    lines = text.splitlines()
    fields: dict[str, dict[str, tuple[str, str, str]]] = {}
    constants: dict[str, dict[str, Any]] = {}
    cards = []
    for node in ast.parse(text).body:
        if not isinstance(node, ast.ClassDef):
            continue
        bases = [ast.unparse(base) for base in node.bases]
        own = {name: entry for base in bases for name, entry in fields.get(base, {}).items()}
        said = {name: value for base in bases for name, value in constants.get(base, {}).items()}
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.value is not None:
                said_here = "\n".join(lines[item.lineno - 1 : item.end_lineno]).partition("  # ")[2]
                meaning = said_here.partition("\n")[0].strip() or own.get(item.target.id, ("", "", ""))[2]
                own[item.target.id] = (item.target.id, ast.unparse(item.value), meaning)
            elif isinstance(item, ast.Assign) and ast.unparse(item.targets[0]) in SAID:
                said[ast.unparse(item.targets[0])] = ast.literal_eval(item.value)
        fields[node.name], constants[node.name] = own, said
        for decorator in node.decorator_list:
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == decorator_name:
                summary = (ast.get_docstring(node) or "").partition("\n")[0]
                cards.append(Card(ast.literal_eval(decorator.args[0]), summary, tuple(own.values()), **said))
    return tuple(cards)
