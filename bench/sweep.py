"""Sweeps: lists of settings, multiplied into the variants of a run.

--set laco.C=2,3 --set laco.T=0.45,0.65    four sets of parameters for every mention of laco
--calibration c4,wiki --seed 0,1,2         six ways to look at text; every method is measured under each
"""

from __future__ import annotations

import argparse
import difflib
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import flags
from bench.errors import UserError

LOOK = ("calibration", "calibration_sequences", "calibration_length", "seed")  # flags that take lists

Chosen = list[tuple[str, dict[str, Any]]]  # methods, each with the parameters that were given
Stage = tuple[str, dict[str, Any], float]  # of --then: a method, the parameters that were given, the ratio


def settings(texts: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """['laco.C=2,3', 'laco.T=0.7'] -> {'laco': {'C': ['2', '3'], 'T': ['0.7']}}; of one name the last counts."""
    found: dict[str, dict[str, list[str]]] = {}
    for text in texts:
        left, equals, right = text.partition("=")
        method, dot, name = left.partition(".")
        values = [value.strip() for value in right.split(",")] if "," in right else [right]
        if not (equals and dot and all(values)):
            raise UserError(f"--set is written METHOD.NAME=VALUE, as in laco.T=0.7 or laco.C=2,3,4; got {text!r}")
        found.setdefault(method, {})[name] = list(dict.fromkeys(values))
    return found


def methods(chosen: Chosen, texts: Sequence[str], most: int, then: Sequence[str] = ()) -> Chosen:
    """Apply each --set METHOD.NAME=VALUES to every mention of METHOD that does not say otherwise itself.

    A mention becomes one for each combination of values. `then` are the methods of --then, of which --set may speak as
    well (`stages`). Raises UserError where it speaks of others, and where there are more than `most` combinations.
    """
    wanted = settings(texts)
    names = [*(known for known, _ in chosen), *then]
    for method, given in wanted.items():
        if method not in names:
            near = difflib.get_close_matches(method, names, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            where = f"--set {method}.{next(iter(given))}"
            raise UserError(f"{where} speaks of {method}, which --methods does not name{hint}")
    swept = [
        (method, given, {name: values for name, values in wanted.get(method, {}).items() if name not in given})
        for method, given in chosen
    ]
    count = sum(math.prod(map(len, values.values())) for _, _, values in swept)
    if count > len(chosen):
        refuse_more_than(most, count, at_least=True)
    return [
        (method, given | dict(zip(values, combination, strict=True)))
        for method, given, values in swept
        for combination in itertools.product(*values.values())
    ]


def stages(found: Sequence[Stage], texts: Sequence[str]) -> list[Stage]:
    """The stages of --then with what --set gives their methods and they do not say themselves.

    Raises UserError for several values, which would multiply along a chain.
    """
    wanted, then = settings(texts), list[Stage]()
    for method, given, ratio in found:
        values = {name: values for name, values in wanted.get(method, {}).items() if name not in given}
        for name, several in values.items():
            if len(several) > 1:
                raise UserError(
                    f"--set {method}.{name} sweeps, and --then {method} takes one value; say which, as in "
                    f"--then {method}:ratio={ratio:g},{name}={several[0]}"
                )
        then.append((method, {name: one for name, (one,) in values.items()} | given, ratio))
    return then


def is_one(arguments: argparse.Namespace) -> bool:
    """Whether the arguments ask for several values of anything but methods and ratios."""
    several = [values for given in settings(arguments.set).values() for values in given.values()]
    several += [list(_values(name, getattr(arguments, name))) for name in LOOK]
    return any(len(values) > 1 for values in several)


def looks(arguments: argparse.Namespace) -> list[argparse.Namespace]:
    """The arguments once for each combination of what methods look at, with one value for each flag of LOOK."""
    lists = {name: _values(name, getattr(arguments, name)) for name in LOOK}
    return [
        argparse.Namespace(**vars(arguments) | dict(zip(lists, combination, strict=True)))
        for combination in itertools.product(*lists.values())
    ]


def _values(name: str, given: Any) -> Sequence[Any]:
    """What a flag was given, as a list; [None] where it was not. A file's name may hold commas."""
    if given is None:
        return [None]
    found = given if isinstance(given, tuple) else (given,) if Path(given).is_file() else flags.names(given)
    if not found:
        raise UserError(f"--{name.replace('_', '-')} is given nothing; name one value or several, as in 1,2")
    return found


def refuse_more_than(most: int, count: int, *, at_least: bool) -> None:
    """Raises UserError where a sweep has more cells than `most`, the value of --max-cells."""
    if most < 1:
        raise UserError(f"--max-cells is a positive number; got {most}")
    if count > most:
        more = " or more" if at_least else ""
        raise UserError(f"the sweep multiplies to {count:,}{more} cells, and --max-cells allows {most:,}")
