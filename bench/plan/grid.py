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
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.plan import parse
from bench.plan.cell import Cell
from methods.errors import UserError

if TYPE_CHECKING:
    from methods.base import Pruner
    from methods.model.decoder import Decoder

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
    found = given if isinstance(given, tuple) else (given,) if Path(given).is_file() else parse.names(given)
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


def cells(
    methods_and_parameters: list[tuple[str, dict[str, Any]]],
    ratios: list[float],
    decoder: Decoder,
    common: dict[str, Any],
) -> list[Cell]:
    """The grid: the dense model, then for each ratio each method; a method that needs no ratio once, at the end.

    decoder  the model without weights, so that what no method can reach is refused here and not hours later
    common   the fields of Cell that all have in common
    """
    import methods

    found, fixed = [_cell("dense", {}, None, common)], list[Cell]()
    for name, given in methods_and_parameters:
        try:
            pruner = methods.make(name, given)
        except ValueError as error:
            raise UserError(str(error)) from None
        if name == "dense":
            continue
        if not pruner.fixed and not ratios:
            raise UserError(f"{name} needs a ratio: the share of parameters to remove, as in --ratio 0.3")
        for ratio in [None] if pruner.fixed else ratios:
            cell = _cell(name, given, ratio, common)
            _refuse_unless_reachable(pruner, cell, decoder)
            (fixed if pruner.fixed else found).extend(_draws(pruner, cell))
    order = {ratio: index for index, ratio in enumerate([None, *ratios])}
    found.sort(key=lambda cell: order[cell.ratio])
    return list({cell.key: cell for cell in found + fixed}.values())


def _draws(pruner: Pruner, cell: Cell) -> list[Cell]:
    """The cell, or of a method that draws at random (fields `draws`, `seed`) one for each draw, of one label."""
    count = getattr(pruner, "draws", 1)
    if count == 1 or getattr(pruner, "seed", None) is not None:
        return [cell]
    return [replace(cell, parameters=cell.parameters | {"seed": cell.seed + draw}) for draw in range(count)]


def _cell(name: str, given: dict[str, Any], ratio: float | None, common: dict[str, Any]) -> Cell:
    import methods

    parameters = methods.hyperparameters(methods.make(name, given))
    return Cell(method=name, parameters=parameters, given=tuple(given), ratio=ratio, **common)


def _refuse_unless_reachable(pruner: Any, cell: Cell, decoder: Decoder) -> None:
    """Raise UserError for a ratio that the method cannot meet; an unsupported model is an outcome of its own."""
    import methods

    try:
        ratio = budget(cell, decoder)
        pruner.plan(decoder, ratio)
    except methods.OutOfReach as error:
        raise UserError(f"{cell.label}: {error}") from None
    except methods.Unsupported:
        return
    if cell.ratio and not ratio:
        raise UserError(
            f"ratio {cell.ratio:g} is less than half a layer of this model, so that nothing would go; "
            "ask for more, or say --match exact"
        )


def budget(cell: Cell, decoder: Decoder) -> float:
    """The ratio that the cell has to meet: the request, rounded to whole layers unless it is to be matched exactly."""
    from methods.budget import matched_ratio

    if cell.ratio is None:
        return 0.0
    return matched_ratio(decoder, cell.ratio) if cell.match == "layers" else cell.ratio
