"""Reads what is typed as one word of a command line: lists of names and sizes, ratios, methods with parameters."""

from __future__ import annotations

import math

from methods.errors import UserError


def names(text: str) -> tuple[str, ...]:
    """'a, b,a' -> ('a', 'b'); 'none' -> ()."""
    found = tuple(dict.fromkeys(filter(None, (piece.strip() for piece in text.split(",")))))
    return () if found == ("none",) else found


def sizes(text: str) -> tuple[int, ...]:
    """'128,1024' -> (128, 1024); 'none' -> (). argparse makes its own message of a ValueError, with the name below."""
    return tuple(int(name) for name in names(text))


def parse_ratios(text: str) -> list[float]:
    """'0.1,0.2' -> [0.1, 0.2]. A ratio is the share of all stored parameters to remove, in [0, 1)."""
    ratios = []
    for piece in text.split(","):
        try:
            ratio = float(piece)
        except ValueError:
            raise UserError(f"a ratio is a number in [0, 1), such as 0.3; got {piece.strip()!r}") from None
        if not (math.isfinite(ratio) and 0 <= ratio < 1):
            raise UserError(f"a ratio is the share of parameters to remove, in [0, 1); got {piece.strip()}")
        ratios.append(ratio)
    return list(dict.fromkeys(ratios))


def parse_methods(text: str) -> list[tuple[str, dict[str, str]]]:
    """'laco:C=3,T=0.7,slicegpt' -> [('laco', {'C': '3', 'T': '0.7'}), ('slicegpt', {})].

    A comma separates methods; a piece that is only `name=value` belongs to the method before it.
    """
    methods: list[tuple[str, dict[str, str]]] = []
    for piece in (piece.strip() for piece in text.split(",")):
        if not piece:
            continue
        head, colon, rest = piece.partition(":")
        if colon or "=" not in head:
            methods.append((head.strip(), {}))
        elif methods:
            rest = head
        else:
            raise UserError(f"{piece!r} is a parameter without a method; write METHOD:{piece}")
        if rest:
            name, equals, value = rest.partition("=")
            if not equals or not name.strip() or not value.strip():
                raise UserError(f"a parameter is written NAME=VALUE, as in laco:C=3,T=0.7; got {rest!r}")
            methods[-1][1][name.strip()] = value.strip()
    if ("all", {}) in methods:
        methods = [*_all(), *(pair for pair in methods if pair != ("all", {}))]
    if not methods:
        raise UserError("no method was named; `python -m bench list methods` shows them")
    return methods


def _all() -> list[tuple[str, dict[str, str]]]:
    """Every built-in method that takes a ratio."""
    from methods.registry import catalogue

    return [(card.name, {}) for card in catalogue() if not card.fixed]
