"""Reads what is typed as one word of a command line: lists of names, ratios, methods with their parameters."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from methods.errors import UserError


class Mention(NamedTuple):
    """A method that a run asks for, with the parameters that were given, as text.

    by_name  whether it was named itself, and not by `all`
    """

    method: str
    given: dict[str, Any]
    by_name: bool = True


def names(text: str) -> tuple[str, ...]:
    """Return the names of a list: 'a, b,a' -> ('a', 'b'); 'none' -> ()."""
    found = tuple(dict.fromkeys(filter(None, (piece.strip() for piece in text.split(",")))))
    return () if found == ("none",) else found


def listed(value: Any) -> tuple[Any, ...]:
    """Return a list that was given as text with commas, as one value, or as a list."""
    if isinstance(value, str):
        return names(value)
    return tuple(value) if isinstance(value, Iterable) else (value,)


def near(name: str, known: Iterable[str]) -> str:
    """Return a hint at the known name that is like `name`, or nothing: '; did you mean laco?'."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""


def word(value: Any) -> str:
    """Return a value as it is typed: None -> 'none', True -> 'true'."""
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def parse_ratios(asked: Any) -> list[float]:
    """Return the ratios of a text, a number or a list: '0.1,0.2' -> [0.1, 0.2].

    A ratio is the share of all stored parameters to remove. Raises UserError for one that is not in [0, 1).
    """
    ratios = []
    for piece in asked.split(",") if isinstance(asked, str) else listed(asked):
        try:
            ratio = float(piece)
        except (TypeError, ValueError):
            raise UserError(f"a ratio is a number in [0, 1), such as 0.3; got {str(piece).strip()!r}") from None
        if not (math.isfinite(ratio) and 0 <= ratio < 1):
            raise UserError(f"a ratio is the share of parameters to remove, in [0, 1); got {str(piece).strip()}")
        ratios.append(ratio)
    return list(dict.fromkeys(ratios))


def parse_budget(asked: Iterable[str]) -> tuple[list[float], str]:
    """Return the shares that go and the quantity that they are of: 'macs=0.8,0.6' -> ([0.2, 0.4], 'macs').

    Raises UserError for what is no quantity, for a share that is not in (0, 1], and for a second quantity.
    """
    from methods.counted import QUANTITIES

    form = f"a budget is NAME=SHARE, NAME one of {', '.join(QUANTITIES)}, as in macs=0.8 or macs=0.8,0.6"
    gone, of = list[float](), ""
    for piece in asked:
        name, _, text = piece.rpartition("=")
        name = name.strip()
        if name and of and name != of:
            raise UserError(f"a run has budgets of one quantity; got {of} and {name}")
        of = of or name
        if of not in QUANTITIES:
            raise UserError(f"{form}; got {piece!r}{near(of, QUANTITIES)}")
        try:
            share = float(text)
        except ValueError:
            raise UserError(f"{form}; got {piece!r}") from None
        if not 0 < share <= 1:
            raise UserError(f"a budget is the share of the dense model that may stay, in (0, 1]; got {text.strip()}")
        gone.append(round(1 - share, 12))
    return list(dict.fromkeys(gone)), of


def parse_methods(asked: str | Iterable[str]) -> list[Mention]:
    """Return the methods of a text, or of a list of texts, with their parameters.

    'laco:C=3,T=0.7,slicegpt' -> [('laco', {'C': '3', 'T': '0.7'}), ('slicegpt', {})]; 'all' is every built-in method
    that takes a ratio. A comma separates methods; a piece that is only `name=value` belongs to the method before it.
    Raises UserError where no method is named, and for a parameter that is none or is given twice.
    """
    found: list[Mention] = []
    for piece in ",".join([asked] if isinstance(asked, str) else asked).split(","):
        head, colon, rest = piece.strip().partition(":")
        if not head and not colon:
            continue
        if colon or "=" not in head:
            found.append(Mention(head.strip(), {}))
        elif found:
            rest = head
        else:
            raise UserError(f"{piece.strip()!r} is a parameter without a method; write METHOD:{piece.strip()}")
        if rest:
            name, equals, value = rest.partition("=")
            method, given = found[-1].method, found[-1].given
            if not equals or not name.strip() or not value.strip():
                raise UserError(f"a parameter is written NAME=VALUE, as in laco:C=3,T=0.7; got {rest!r}")
            if name.strip() in given:
                both = f"{given[name.strip()]},{value.strip()}"
                raise UserError(
                    f"{method}:{name.strip()} is given twice, as {both.replace(',', ' and ')}; give one, or for a run "
                    f"of each --set {method}.{name.strip()}={both}"
                )
            given[name.strip()] = value.strip()
    if ("all", {}, True) in found:
        from methods.listed.cards import catalogue

        named = [mention for mention in found if mention != ("all", {}, True)]
        every = [card.name for card in catalogue() if not card.fixed]
        found = [*(Mention(name, {}, by_name=(name, {}, True) in named) for name in every), *named]
    if not found:
        raise UserError("no method was named; `python -m bench list methods` shows them")
    return found
