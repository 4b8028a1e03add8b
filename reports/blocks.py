"""Groups records into tables: cells of one setup and one ratio, with the dense model on top; draws share a row.

A draw is the choice of a random method, or the calibration that a seed draws, with the documents of the tasks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from bench.records import columns
from bench.records.comparability import apart, identity, setups
from bench.records.drawn_cells import draws
from bench.records.record import Record, label, ratio_of, requested_ratio, share
from bench.stats.draws import draw_stderr, exponential, mean_interval
from reports import healing_notes
from reports.metrics import finite

HIGHEST = ("prune_memory_bytes", "peak_memory_bytes")  # figures of which several draws have the highest, not the mean


@dataclass(frozen=True)
class TableGroup:
    """Hold rows that are compared: one setup, one ratio, the dense model on top; several draws share a row.

    ratio    as it was asked for, of what `ratio_of` says
    records  the record of each row, of several draws the first
    rows     its figures, of several draws their means
    numbers  for each row the places of its records among all records
    drawn    for each row its records, one where there is one cell;  each  their figures
    apart    what the setup has otherwise than the others in the report: "documents 200"
    beside   the records of the whole setup, at every ratio, from which a name has to tell a row
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
        """Return the method's name, with what sets its cell apart, and the seeds where others have more."""
        record, mine = self.records[place], seeds_of(self.drawn[place])
        every = seeds_of([other for drawn in self.drawn for other in drawn])
        fewer = mine != every and record.cell["method"] != "dense"
        which = f" ({seeds_named(mine)})" if fewer else ""
        return name_beside(record, self.beside or self.records) + which

    def models(self, place: int) -> list[dict[int, int]]:
        """Return the models of a row, each as {seed: the place of its record among all records}.

        A method is one model, drawn anew by each seed of the calibration; a random method is one for each choice.
        """
        found: dict[int, list[int]] = {}
        for number, record in zip(self.numbers[place], self.drawn[place], strict=True):
            found.setdefault(record.cell["seed"], []).append(number)
        most = max(map(len, found.values()))
        return [{seed: several[at] for seed, several in found.items() if at < len(several)} for at in range(most)]

    def is_drawn(self, place: int) -> bool:
        """Say whether a row is of several random choices at one seed, beside whose mean stands their spread."""
        return len(seeds_of(self.drawn[place])) == 1 < len(self.drawn[place])

    def removed_too_little(self, place: int) -> bool:
        """Say whether any cell of a row removed so much less than its budget that it flatters the row's figures."""
        return any(map(columns.removed_too_little, self.drawn[place]))

    def spoken_of(self) -> list[Record]:
        """Return the measured records of the rows, and one of what failed.

        Of several draws at one seed it is the first, and where they miss their budget otherwise than it all that do.
        """
        found = list[Record]()
        for record, drawn in zip(self.records, self.drawn, strict=True):
            by_seed: dict[int, list[Record]] = {}
            for one in drawn if record.status == "ok" else [record]:
                by_seed.setdefault(one.cell["seed"], []).append(one)
            for first, *others in by_seed.values():
                misses = [columns.missed_by(one.measured) for one in (first, *others)]
                apart = others if len(set(misses)) > 1 else ()
                found += [first, *(one for one in apart if columns.missed(one))]
        return found

    def tied(self, one: int, other: int, name: str) -> bool:
        """Say whether two rows change places in the column `name` from one seed to another: neither is the better.

        So they do where the mean over more seeds has another order than the seeds that both have.
        """
        a, b = (_by_seed(self.each[place], name) for place in (one, other))
        orders = {a[seed] > b[seed] for seed in a if seed in b and a[seed] != b[seed]}
        mean, other_mean = (self.rows[place].get(name) for place in (one, other))
        if a.keys() != b.keys() and mean is not None and other_mean is not None:
            orders.add(bool(mean > other_mean))
        return len(orders) > 1


def name_beside(record: Record, records: Sequence[Record]) -> str:
    """Return a cell's label, with what others have otherwise that no label holds: 'laco (match exact)'.

    That is the recipe by which it was healed, and how a ratio is met.
    """
    ways = {other.cell["match"] for other in records if other.cell["ratio"] is not None and "match" in other.cell}
    how = f" (match {record.cell['match']})" if len(ways) > 1 and record.cell["ratio"] is not None else ""
    return label(record.cell) + healing_notes.apart(record.cell, [other.cell for other in records]) + how


def named_beside(record: Record, records: Sequence[Record]) -> str:
    """Write a cell as sentences call it, with what others have otherwise: 'laco (match exact) at 0.2'."""
    asked = share(requested_ratio(record), ratio_of(record.cell))
    return name_beside(record, records) + (f" at {asked}" if asked else "")


def seeds_of(records: Sequence[Record]) -> list[int]:
    """Return the seeds of some cells, rising."""
    return sorted({record.cell["seed"] for record in records})


def draws_apart(records: Sequence[Record]) -> list[str]:
    """Return for each record what its name needs behind it where its label has several seeds or draws.

    It is ' (seed 1)', ' (draw 2)', ' (seed 1, draw 2)', or ''; a draw goes by the seed of the random choice.
    """
    cells = [identity(record) for record in records]
    found: dict[tuple[str, str], set[Any]] = {}
    for record, cell in zip(records, cells, strict=True):
        for kind in ("seed", "draw"):
            found.setdefault((label(record.cell), kind), set()).add(cell.get(kind))
    named = []
    for record, cell in zip(records, cells, strict=True):
        kinds = [kind for kind in ("seed", "draw") if kind in cell and len(found[label(record.cell), kind]) > 1]
        which = ", ".join(f"{kind} {cell[kind]}" for kind in kinds)
        named.append(f" ({which})" if which and record.cell["method"] != "dense" else "")
    return named


def draws_named(records: Sequence[Record]) -> list[str]:
    """Name the draws that share a row: 'draw 1', or where they are of several seeds 'seed 0', 'seed 0, draw 1'.

    A draw goes by the seed of the random choice, as everywhere.
    """
    counts = [f"draw {identity(record).get('draw', number)}" for number, record in enumerate(records)]
    every = [f"seed {record.cell['seed']}" for record in records]
    if len(set(every)) == 1:
        return counts
    return every if len(set(every)) == len(every) else [", ".join(both) for both in zip(every, counts, strict=True)]


def seeds_named(several: Sequence[int]) -> str:
    """Say 'seed 0' or 'seeds 0, 1, 2'."""
    return f"seed{'s' * (len(several) > 1)} {', '.join(map(str, several))}"


def blocks(records: Sequence[Record]) -> list[list[TableGroup]]:
    """Return for each setup a group for each ratio, rising, methods of a fixed ratio last, dense on top of each."""
    rows, different = columns.rows(records), apart(records)
    groups: dict[str, list[int]] = {}
    for number, key in enumerate(setups(records)):
        groups.setdefault(key, []).append(number)
    return [list(_of_setup(records, rows, cells, different[key])) for key, cells in groups.items()]


def _of_setup(
    records: Sequence[Record], rows: Sequence[dict[str, Any]], cells: Sequence[int], different: tuple[str, ...]
) -> Iterator[TableGroup]:
    """Give the groups of the records at the places `cells`."""
    dense = [number for number in cells if records[number].cell["method"] == "dense"]
    pruned = [number for number in cells if records[number].cell["method"] != "dense"]
    asked = {number: (requested_ratio(records[number]), ratio_of(records[number].cell)) for number in pruned}
    ratios = sorted(set(asked.values()), key=lambda one: (one[0] is None, one[1] != "all", one[1], one[0] or 0))
    for ratio, of in ratios or [(None, "all")]:
        block = [*dense, *(number for number in pruned if asked[number] == (ratio, of))]
        shared = [[block[place] for place in places] for places in draws([records[number] for number in block])]
        together = [[rows[number] for number in numbers] for numbers in shared]
        yield TableGroup(
            [records[numbers[0]] for numbers in shared],
            [pooled(several) if len(several) > 1 else several[0] for several in together],
            shared,
            ratio,
            of,
            [[records[number] for number in numbers] for numbers in shared],
            together,
            different,
            [records[number] for number in cells],
        )


def pooled(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one row for several draws: the mean of each figure, of a perplexity by its logarithm; of memory the most.

    Draws of a random choice at one seed have the standard deviation between them beside it, since they lie orders of
    magnitude apart; cells of several seeds an interval and a standard error that include the draw of the calibration
    (bench.stats.draws). Flags are those that any draw has. What else is no number is the first draw's, and so is what
    one of several choices lacks, such as a speed; a mean over seeds is missing where a seed has no figure.
    """
    row, seeds = dict(rows[0]), {one.get("seed") for one in rows}
    if any(one.get("flags") for one in rows):
        row["flags"] = " ".join(dict.fromkeys(" ".join(one.get("flags") or "" for one in rows).split()))
    for name in rows[0]:
        if name in ("seed", "draw") or name.endswith(("_low", "_high", "_stderr")):
            continue
        known = [one for one in rows if isinstance(one.get(name), int | float) and math.isfinite(one[name])]
        beside = [column for column in (f"{name}_low", f"{name}_high", f"{name}_stderr") if column in row]
        if len(seeds) > 1 and known and len({one["seed"] for one in known}) < len(seeds):
            row |= dict.fromkeys([name, *beside])
        elif known and (len(seeds) > 1 or len(known) == len(rows)):
            write = exponential if _is_logarithmic(name) else float
            middle, low, high, spread = (_over_seeds if len(seeds) > 1 else _over_choices)(known, name)
            found = {f"{name}_low": write(low), f"{name}_high": write(high), f"{name}_stderr": spread}
            row |= {name: write(middle)} | {column: found[column] for column in beside}
    for name in HIGHEST:
        if finite(row.get(name)):
            row[name] = max(one[name] for one in rows if finite(one.get(name)))
    return row


def _is_logarithmic(name: str) -> bool:
    """Say whether a figure's mean is that of its logarithm, since draws lie orders of magnitude apart."""
    return "perplexity_" in name


def _by_seed(rows: Sequence[Mapping[str, Any]], name: str, end: str = "") -> dict[int, float]:
    """Return the mean of a figure, or of an end of its interval where all have one, at each seed, of some by logarithm.

    A cell without a finite figure is left out.
    """
    beside = f"{name}{end}" if all(finite(row.get(f"{name}{end}")) for row in rows) else name
    found: dict[int, list[float]] = {}
    for row in rows:
        if finite(row.get(beside)):
            value = math.log(row[beside]) if _is_logarithmic(name) else row[beside]
            found.setdefault(row["seed"], []).append(value)
    return {seed: fmean(several) for seed, several in found.items()}


def _over_seeds(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[float, float, float, float]:
    """Return mean, low, high and standard error over seeds, on the scale of the mean."""
    values, lows, highs = (list(_by_seed(rows, name, end).values()) for end in ("", "_low", "_high"))
    own = fmean(row.get(f"{name}_stderr") or 0.0 for row in rows)
    return fmean(values), *mean_interval(values, lows, highs), math.hypot(draw_stderr(values), own)


def _over_choices(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[float, float, float, float]:
    """Return mean, the ends of one standard deviation around it, and that, on the scale of the mean."""
    numbers = [math.log(row[name]) if _is_logarithmic(name) else row[name] for row in rows]
    middle, spread = fmean(numbers), stdev(numbers)
    return middle, middle - spread, middle + spread, spread
