"""Adds what follows a pruned cell: the same cell healed, and cells that go on from it.

    a cell -> itself, itself healed, and behind each of the two what --then names, one behind the other

A chained cell asks for a ratio of the dense model, as any cell does, and starts from the model of the cell before it,
its parent, as that was measured (bench.run.store). A pruned cell is pruned further; a healed one is pruned further,
and once more healed by the same recipe, from where the next one goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from bench.plan.cell import Cell, Stage
from bench.plan.grid import budget, first_draw
from bench.records import drawn_cells
from methods.errors import OutOfReach, UserError

if TYPE_CHECKING:
    from bench.plan.recipe import Recipe
    from methods.model.decoder import Decoder


def extended(
    cells: Sequence[Cell],
    recipe: Recipe | None,
    stages: Sequence[list[Cell]],
    decoder: Decoder,
) -> list[Cell]:
    """Return the cells with what follows each, every parent in front of those that go on from it.

    stages   what goes on from them, one behind the other, as a cell that starts from the dense model; several cells
             where the method draws at random
    decoder  the dense model without weights

    Raises UserError where there is nothing to heal or to go on from, and where a stage would remove nothing.
    """
    for flag, wanted in (("--heal", recipe is not None), ("--then", bool(stages))):
        if wanted and all(cell.method == "dense" for cell in cells):
            raise UserError(f"{flag} is for pruned models, and --methods names none")
    found = []
    for cell in cells:
        if cell.method == "dense":
            found.append(cell)
            continue
        for start in (cell, *([replace(cell, healing=recipe)] if recipe else [])):
            found += [start, *_further(start, stages, decoder)]
    return found


def _further(parent: Cell, stages: Sequence[list[Cell]], decoder: Decoder) -> Iterator[Cell]:
    """Yield the cells behind `parent`, by the stages that are left."""
    for asked_for in _same_draw(parent, stages[0]) if stages else ():
        _refuse_unless_above(parent, asked_for, decoder)
        last = replace(asked_for, earlier=(*parent.earlier, stage_of(parent)))
        yield last
        if parent.healing:
            last = replace(last, healing=parent.healing)
            yield last
        yield from _further(last, stages[1:], decoder)


def _same_draw(parent: Cell, stage: list[Cell]) -> list[Cell]:
    """Return of several draws the one of the parent's seed, where the parent is a draw itself."""
    same = [cell for cell in stage if is_draw(parent) and cell.parameters.get("seed") == parent.parameters["seed"]]
    return same or stage


def is_draw(cell: Cell | Stage) -> bool:
    """Return whether a cell, or a stage of one, is one of several draws of a random method."""
    return drawn_cells.is_drawn(cell.parameters, cell.given)


def is_timed(cell: Cell) -> bool:
    """Return whether the cell is timed: of several draws the first is. The others differ in what went, not how much."""
    stages: list[Cell | Stage] = [*cell.earlier, cell]
    first = (None, first_draw(cell.seed))
    later = any(is_draw(stage) and stage.parameters.get("seed") not in first for stage in stages)
    return cell.protocol.speed_rounds > 0 and not later


def _refuse_unless_above(parent: Cell, cell: Cell, decoder: Decoder) -> None:
    """Raise UserError where the budgets, as far as they are known before any work, leave nothing to remove.

    One that is out of reach is the outcome of its cell, and not refused here.
    """
    if parent.ratio is None:
        return
    try:
        is_above = budget(cell, decoder) > budget(parent, decoder)
    except OutOfReach:
        return
    if not is_above:
        rounded = "" if cell.ratio is None or cell.ratio <= parent.ratio else ", and both round to the same layers"
        raise UserError(
            f"--then {cell.method}:ratio={cell.ratio:g} would remove nothing behind {parent.label} at {parent.ratio:g}"
            f"{rounded}; its ratio counts of the dense model in total, so give a higher one"
        )


def stage_of(cell: Cell) -> Stage:
    """Return a cell as what was done before those that go on from it."""
    return Stage(cell.method, cell.parameters, cell.ratio, cell.given, cell.healing)


def parent_of(cell: Cell) -> Cell:
    """Return the cell that a chained one goes on from, without inputs."""
    *earlier, last = cell.earlier
    stage = {name: getattr(last, name) for name in ("method", "parameters", "ratio", "given", "healing")}
    return replace(cell, **stage, earlier=tuple(earlier), inputs={})


def ancestors(cell: Cell) -> list[Cell]:
    """Return all cells that come before a chained one, the first of them first."""
    return [*ancestors(parent_of(cell)), parent_of(cell)] if cell.earlier else []


def parent_key(cell: Cell, keys: Mapping[str, str]) -> str:
    """Return the key of a chained cell's parent among `keys`, {question: key}. Raises UserError where it is missing."""
    parent = parent_of(cell)
    if (key := keys.get(parent.question)) is None:
        raise UserError(f"{cell.label} goes on from {parent.label}, which is no cell in front of it")
    return key
