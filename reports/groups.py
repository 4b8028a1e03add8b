"""Groups records into tables: cells of one setup and one ratio, with the dense model on top. Draws share a row.

A draw is the choice of a random method, or the calibration that a seed draws, with the documents of the tasks. Behind
the groups stand the labels of rows, the pooling of draws, and the recipes that tell healed cells apart.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import Any

from bench.plan.cell import Cell, words_of_ratio
from bench.plan.kinds import to_plain
from bench.plan.protocol import Recipe
from bench.records import frame
from bench.records.comparability import (
    FIGURES,
    differences_of_setups,
    flatten,
    group_draws,
    is_condition_of,
    setups_of_records,
    shorten_value,
    values_of_fields,
)
from bench.records.quantities import quantity_of_column
from bench.records.quantity import is_finite
from bench.records.record import Record
from bench.records.samples import Samples
from bench.stats.draws import draw_stderr, exp_of_log, mean_interval


@dataclass(frozen=True)
class TableGroup:
    """Holds rows that are compared: one setup, one ratio, the dense model on top. Several draws share a row.

    ratio    the requested ratio, as a share of `ratio_of`
    records  the record of each row, the first of several draws
    rows     the values of each row, the means of several draws
    numbers  for each row the places of its records among all records
    drawn    for each row its records, one or several draws
    each     for each row the values of its records
    apart    the conditions in which the setup differs from others in the report: "documents 200"
    beside   the records of the whole setup, at every ratio; labels tell a row from all of them
    """

    records: list[Record]
    rows: list[dict[str, Any]]
    numbers: list[list[int]]
    ratio: float | None
    ratio_of: str
    drawn: list[list[Record]]
    each: list[list[dict[str, Any]]]
    apart: tuple[str, ...] = ()
    beside: Sequence[Record] = ()

    def label(self, place: int) -> str:
        """Return the label of a row: the method with everything that sets its cell apart.

        It has the seeds if other rows have more seeds, and the draw if the cell has no figures and so shares no row.
        One dense row stands for every seed.
        """
        return self._labels[place]

    @cached_property
    def _labels(self) -> list[str]:
        """Return the label of each row. It is kept, since each is compared with all cells of the setup."""
        return [self._label_of(place) for place in range(len(self.records))]

    def _label_of(self, place: int) -> str:
        record, mine = self.records[place], seeds_of(self.drawn[place])
        every = seeds_of([draw for drawn in self.drawn for draw in drawn])
        alone = [peer.cell.method for peer in self.records].count("dense") == 1
        which = [names_of_seeds(mine)] if mine != every and not (alone and record.cell.method == "dense") else []
        if record.status != "ok" and record.cell.draw is not None:
            which.append(f"draw {record.cell.draw}")
        return label_with_differences(record, self.beside or self.records) + (f" ({', '.join(which)})" if which else "")

    def models(self, place: int) -> list[dict[int, int]]:
        """Return the models of a row, each as {seed: the place of its record among all records}.

        A method is one model, which each seed of the calibration draws anew. A random method is one for each choice.
        """
        numbers_by_seed: dict[int, list[int]] = {}
        for number, record in zip(self.numbers[place], self.drawn[place], strict=True):
            numbers_by_seed.setdefault(record.cell.seed, []).append(number)
        models: list[dict[int, int]] = [{} for _ in max(numbers_by_seed.values(), key=len)]
        for seed, several in numbers_by_seed.items():
            for model, number in zip(models, several, strict=False):
                model[seed] = number
        return models

    def is_drawn(self, place: int) -> bool:
        """Say whether a row is the mean of several random choices at one seed."""
        return len(seeds_of(self.drawn[place])) == 1 < len(self.drawn[place])

    def removes_too_little(self, place: int) -> bool:
        """Say whether any cell of a row misses its budget by so much that the row looks better than it is."""
        return any(map(frame.removes_too_little, self.drawn[place]))

    def records_with_notes(self) -> list[Record]:
        """Return the records that notes name: the first of a failed row, and of each seed of a measured row.

        If the misses of a seed's draws differ, each draw that misses its budget is returned too.
        """
        chosen = list[Record]()
        for record, drawn in zip(self.records, self.drawn, strict=True):
            by_seed: dict[int, list[Record]] = {}
            for draw in drawn if record.status == "ok" else [record]:
                by_seed.setdefault(draw.cell.seed, []).append(draw)
            for first, *rest in by_seed.values():
                misses = [frame.budget_miss(draw.measured) for draw in (first, *rest)]
                apart = rest if len(set(misses)) > 1 else ()
                chosen += [first, *(draw for draw in apart if frame.misses_budget(draw))]
        return chosen

    def order_depends_on_seed(self, first: int, second: int, name: str) -> bool:
        """Say whether seeds disagree on which of two rows has more of the column `name`.

        This includes the order of the means, since one row may have seeds that the other lacks.
        """
        a, b = (_by_seed(self.each[place], name) for place in (first, second))
        orders = {a[seed] > b[seed] for seed in a if seed in b and a[seed] != b[seed]}
        mean, other_mean = (self.rows[place].get(name) for place in (first, second))
        if a.keys() != b.keys() and mean is not None and other_mean is not None:
            orders.add(bool(mean > other_mean))
        return len(orders) > 1


def label_with_differences(record: Record, records: Sequence[Record]) -> str:
    """Return a cell's label with the differences to `records` that no label holds: 'laco (match exact)'.

    They are the recipe of its healing, how its ratio is met, and anything else that two cells of one label differ in.
    """
    ways = {peer.cell.match for peer in records if peer.cell.ratio is not None}
    how = f" (match {record.cell.match})" if len(ways) > 1 and record.cell.ratio is not None else ""
    cells = [peer.cell for peer in records]
    return (
        record.cell.label
        + words_of_recipe_differences(record.cell, cells)
        + how
        + _words_of_differences(record.cell, cells)
    )


def _words_of_differences(cell: Cell, cells: Sequence[Cell]) -> str:
    """Return the fields that tell a cell from others of its name, such as ' (torch 2.13.0)'; empty without others.

    Cells of one name have one label, ratio and seed in one setup. They differ in fields that are no condition of a
    table, such as versions. A label that needs the fields at one ratio has them at every ratio.
    """
    alike = [peer for peer in cells if peer.method == cell.method and peer.model == cell.model]
    alike = [peer for peer in alike if peer.protocol == cell.protocol]
    sharing: dict[tuple[Any, ...], list[Cell]] = {}
    for peer in (peer for peer in alike if peer.label == cell.label):
        shared = (
            peer.ratio,
            peer.ratio_of,
            peer.seed,
            peer.match if peer.ratio is not None else "",
            recipe_of_cell(peer),
        )
        sharing.setdefault(shared, []).append(peer)
    beyond = [list(map(_beyond_tables, group)) for group in sharing.values() if len(group) > 1]
    several = [list(map(_fields_with_values, group)) for group in beyond if group.count(group[0]) < len(group)]
    names = dict.fromkeys(name for group in several for fields in group for name in fields)
    telling = list[str]()
    for name in sorted(names, key=lambda name: name.endswith(("sha256", "parent"))):
        if _distinct(several, [*telling, name]) > _distinct(several, telling):
            telling.append(name)
    mine = _fields_with_values(_beyond_tables(cell)) if telling else {}
    words = [
        f"{name.rpartition('.')[2].replace('_', ' ')} {shorten_value(mine[name])}" for name in telling if name in mine
    ]
    return f" ({', '.join(words)})".replace('"', "") if words else ""


def _beyond_tables(cell: Cell) -> dict[str, Any]:
    """Return the fields of a cell and its inputs, without the conditions of tables and the choice of a draw."""
    inputs = to_plain(cell.inputs) or {}
    beyond = {
        name: value for name, value in inputs.items() if not is_condition_of(f"inputs.{name}", *FIGURES, "columns")
    }
    plain = cell.without_draws.plain() | {"inputs": beyond}
    own = {name: value for name, value in plain.items() if name not in ("earlier", "protocol")}
    return {"own": own, **{str(number): stage for number, stage in enumerate(plain["earlier"])}}


def _fields_with_values(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that have a value."""
    return {name: value for name, value in flatten(cell).items() if value not in (None, {}, [])}


def _distinct(groups: Sequence[Sequence[Mapping[str, Any]]], names: Sequence[str]) -> int:
    """Return how many cells the fields tell apart within each group, summed over the groups."""
    count = 0
    for group in groups:
        values = [values_of_fields(cell, names) for cell in group]
        count += len(set(map(json.dumps, values)))
    return count


def name_with_ratio(record: Record, records: Sequence[Record]) -> str:
    """Return the name of a cell in a sentence, with its differences to `records`: 'laco (match exact) at 0.2'."""
    ratio = words_of_ratio(record.cell.ratio, record.cell.ratio_of)
    return label_with_differences(record, records) + (f" at {ratio}" if ratio else "")


def seeds_of(records: Sequence[Record]) -> list[int]:
    """Return the seeds of cells, each once, rising."""
    return sorted({record.cell.seed for record in records})


def suffixes_of_draws(records: Sequence[Record]) -> list[str]:
    """Return for each record the suffix that its label needs if several seeds or draws have the label.

    It is ' (seed 1)', ' (draw 2)', ' (seed 1, draw 2)', or ''. The number of a draw is the seed of its random choice.
    """
    cells = [record.cell for record in records]
    values_by_name: dict[tuple[str, str], set[Any]] = {}
    for cell in cells:
        for kind, value in (("seed", cell.seed), ("draw", cell.draw)):
            values_by_name.setdefault((cell.label, kind), set()).add(value)
    named = []
    for cell in cells:
        values = {"seed": cell.seed, "draw": cell.draw}
        kinds = [kind for kind in values if values[kind] is not None and len(values_by_name[cell.label, kind]) > 1]
        which = ", ".join(f"{kind} {values[kind]}" for kind in kinds)
        named.append(f" ({which})" if which and cell.method != "dense" else "")
    return named


def names_of_draws(records: Sequence[Record]) -> list[str]:
    """Return the names of draws that share a row: 'draw 1', or of several seeds 'seed 0' or 'seed 0, draw 1'.

    The number of a draw is the seed of its random choice.
    """
    draws = [record.cell.draw for record in records]
    counts = [f"draw {number if draw is None else draw}" for number, draw in enumerate(draws)]
    every = [f"seed {record.cell.seed}" for record in records]
    if len(set(every)) == 1:
        return counts
    return every if len(set(every)) == len(every) else [", ".join(both) for both in zip(every, counts, strict=True)]


def names_of_seeds(several: Sequence[int]) -> str:
    """Return 'seed 0' or 'seeds 0, 1, 2'."""
    return f"seed{'s' * (len(several) > 1)} {', '.join(map(str, several))}"


def group_records(records: Sequence[Record], samples: Samples | None = None) -> list[list[TableGroup]]:
    """Return for each setup a group for each ratio, rising; methods with a fixed ratio are the last group.

    The dense model is on top of each group.

    samples  of the records, in their order; without them no row has flips
    """
    rows, different = frame.rows_of_records(records, samples), differences_of_setups(records)
    groups: dict[str, list[int]] = {}
    for number, key in enumerate(setups_of_records(records)):
        groups.setdefault(key, []).append(number)
    return [list(_of_setup(records, rows, cells, different[key])) for key, cells in groups.items()]


def _of_setup(
    records: Sequence[Record], rows: Sequence[dict[str, Any]], cells: Sequence[int], different: tuple[str, ...]
) -> Iterator[TableGroup]:
    """Yield the groups of one setup, whose records are at the places `cells`."""
    dense = [number for number in cells if records[number].cell.method == "dense"]
    pruned = [number for number in cells if records[number].cell.method != "dense"]
    ratio_by_number = {number: (records[number].cell.ratio, records[number].cell.ratio_of) for number in pruned}
    ratios = sorted(
        set(ratio_by_number.values()), key=lambda ratio: (ratio[0] is None, ratio[1] != "all", ratio[1], ratio[0] or 0)
    )
    for ratio, of in ratios or [(None, "all")]:
        members = [*dense, *(number for number in pruned if ratio_by_number[number] == (ratio, of))]
        numbers, drawn, together = list[list[int]](), list[list[Record]](), list[list[dict[str, Any]]]()
        for places in group_draws([records[number] for number in members]):
            numbers.append([members[place] for place in places])
            drawn.append([records[number] for number in numbers[-1]])
            together.append([rows[number] for number in numbers[-1]])
        firsts = [several[0] for several in drawn]
        pooled = [pool_draws(several) if len(several) > 1 else several[0] for several in together]
        beside = [records[number] for number in cells]
        yield TableGroup(firsts, pooled, numbers, ratio, of, drawn, together, different, beside)


def pool_draws(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one row for several draws: the mean of each column, by the logarithm for a perplexity, the highest memory.

    Draws of a random choice at one seed have the standard deviation between them beside the mean, since they can lie
    orders of magnitude apart. Cells of several seeds have an interval and a standard error that include the draw of the
    calibration (bench.stats.draws). The row has the flags of all draws, and everything else that is no number from the
    first draw. Speed is the first draw's if not every choice was timed. Any other mean is missing if a choice or a seed
    has no value.
    """
    row, seeds = dict(rows[0]), {draw.get("seed") for draw in rows}
    if any(draw.get("flags") for draw in rows):
        row["flags"] = " ".join(dict.fromkeys(" ".join(draw.get("flags") or "" for draw in rows).split()))
    for name in rows[0]:
        if name in ("seed", "draw") or name.endswith(("_low", "_high", "_stderr")):
            continue
        with_value = [draw for draw in rows if isinstance(draw.get(name), int | float) and math.isfinite(draw[name])]
        beside = [column for column in (f"{name}_low", f"{name}_high", f"{name}_stderr") if column in row]
        every = len({draw["seed"] for draw in with_value}) == len(seeds) > 1 or len(with_value) == len(rows)
        if with_value and not every:
            of_one = len(seeds) == 1 and name.partition("_")[0] in frame.STAGES  # one choice alone is timed
            row |= {} if of_one else dict.fromkeys([name, *beside])
        elif with_value:
            write = exp_of_log if quantity_of_column(name).is_logarithmic else float
            middle, low, high, spread = (_over_seeds if len(seeds) > 1 else _over_choices)(with_value, name)
            ends = {f"{name}_low": write(low), f"{name}_high": write(high), f"{name}_stderr": spread}
            row |= {name: write(middle)} | {column: ends[column] for column in beside}
        if quantity_of_column(name).average == "highest" and is_finite(row.get(name)):
            row[name] = max(draw[name] for draw in rows if is_finite(draw.get(name)))
    return row


def _by_seed(rows: Sequence[Mapping[str, Any]], name: str, end: str = "") -> dict[int, float]:
    """Return {seed: mean of a column}, by the logarithm for a perplexity. Cells without a finite value are left out.

    end  of the interval, such as "_low", whose mean is returned if all rows have it
    """
    beside = f"{name}{end}" if all(is_finite(row.get(f"{name}{end}")) for row in rows) else name
    values_by_seed: dict[int, list[float]] = {}
    for row in rows:
        if is_finite(row.get(beside)):
            value = math.log(row[beside]) if quantity_of_column(name).is_logarithmic else row[beside]
            values_by_seed.setdefault(row["seed"], []).append(value)
    return {seed: fmean(several) for seed, several in values_by_seed.items()}


def _over_seeds(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[float, float, float, float]:
    """Return mean, low, high and standard error over seeds, as logarithms for a perplexity."""
    values, lows, highs = (list(_by_seed(rows, name, end).values()) for end in ("", "_low", "_high"))
    own = fmean(row.get(f"{name}_stderr") or 0.0 for row in rows)
    return fmean(values), *mean_interval(values, lows, highs), math.hypot(draw_stderr(values), own)


def _over_choices(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[float, float, float, float]:
    """Return mean, mean minus and plus one standard deviation, and that deviation; as logarithms for a perplexity."""
    is_logarithmic = quantity_of_column(name).is_logarithmic
    numbers = [math.log(row[name]) if is_logarithmic else row[name] for row in rows]
    middle, spread = fmean(numbers), stdev(numbers)
    return middle, middle - spread, middle + spread, spread


def recipe_of_cell(cell: Cell) -> Recipe | None:
    """Return the recipe of a cell: its own, or that of the last stage that was healed; None without healing."""
    recipes = [stage.healing for stage in cell.stages if stage.healing]
    return recipes[-1] if recipes else None


def words_of_recipe_differences(cell: Cell, cells: Iterable[Cell]) -> str:
    """Return the fields in which a cell's recipe differs from those of `cells`: ' (loss kl)'; empty if none does."""
    mine, recipes = recipe_of_cell(cell), [recipe for recipe in map(recipe_of_cell, cells) if recipe]
    if mine is None:
        return ""

    def is_differing(name: str) -> bool:
        return any(getattr(recipe, name) != getattr(mine, name) for recipe in recipes)

    differing = filter(is_differing, vars(mine))
    words = ", ".join(f"{name.replace('_', ' ')} {getattr(mine, name)}" for name in differing)
    return f" ({words})" if words else ""
