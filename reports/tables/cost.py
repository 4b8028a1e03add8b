"""Two views of a method's work: the cost of pruning, and the decisions."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from bench.records.frame import columns_with_values
from bench.records.record import Record
from reports import legend, protocol
from reports.groups import TableGroup, seeds_of
from reports.removed import WENT, removals_of
from reports.tables import rows as order
from reports.tables.rows import ReportData, mark_missed, row_of, sort_rows, table_of_group
from reports.tables.table import Column, Table, TableCell, cell_of, cell_of_text, column_of, column_of_words

READS = ("sentences", "sequences", "tokens", "steps")  # parameters by which methods read less than all the calibration
FIGURES = ("ratio", "prune_seconds", "heal_seconds", "heal_tokens", "prune_memory_bytes", "peak_memory_bytes")
WHERE_KNOWN = ("heal_seconds", "heal_tokens", "prune_memory_bytes")  # columns that are left out if no row has a value
BY = "prune_seconds"  # orders the rows of the cost
PRUNED = "pruned in: the search and the removal, without loading, measuring and saving."
HEALED = "healed in: training alone, over all attempts, without the search and the removal."
TO_PRUNE = "memory to prune: the highest while the method worked, with the model."
CELLS = "cells"  # the column that is left out if no row is a mean
MEANS = "cells: how many a row is the mean of, over seeds and draws; of memory it has the highest."
OFFERED = (
    "peak memory: the highest of all stages, not of pruning alone; allocated on a GPU, of the whole process on a CPU.",
    "calibration: the tokens on offer; reads: the parameters by which a method takes less of them.",
)
NUMBERED = (
    "Layers, attentions and MLPs are named by their numbers in the dense model, from 0; KV heads and channels are "
    "counted over the layers of the dense model."
)
THRESHOLD = "threshold: of the similarity, above which layers are merged."


def tables_of_cost(data: ReportData) -> list[Table]:
    """Return a table for each group: seconds, memory, calibration tokens and gradients."""
    return [_cost(sort_rows(group, data.sorting_quantity(group, BY)), data) for group in data.groups]


def _cost(group: TableGroup, data: ReportData) -> Table:
    with_values = columns_with_values(group.rows, FIGURES)
    names = [name for name in FIGURES if name not in WHERE_KNOWN or name in with_values]
    healed = "heal_seconds" in names
    has_means = any(len(drawn) > 1 for drawn in group.drawn)
    rows = []
    for place, (record, row) in enumerate(zip(group.records, group.rows, strict=True)):
        share, *rest = (cell_of(row, name) for name in names)
        cells = [mark_missed(share, row), *rest, *_looks(record, data.needs.get(record.cell.method))]
        count = len(group.drawn[place])
        cells += [TableCell(str(count), value=count)] * has_means
        rows.append(row_of(record, group.label(place), cells))
    columns = [*map(column_of, names), *map(column_of_words, ("calibration", "reads", "gradients"))]
    columns += [Column(CELLS, CELLS)] * has_means
    words = (*[HEALED] * healed, *[TO_PRUNE] * ("prune_memory_bytes" in names))
    then = [legend.READING["then"]] * any(record.cell.earlier for record in group.records)
    footnotes = (
        PRUNED,
        *words,
        *OFFERED,
        *then,
        *[MEANS] * has_means,
        *order.sorting_note(group, data.sorting_quantity(group, BY)),
    )
    measured = protocol.protocol_of_records(list(chain(*group.drawn)), ())
    return table_of_group("cost", group, columns, rows, footnotes, measured=measured)


def _looks(record: Record, needs: str | None) -> list[TableCell]:
    """Return the cells of the calibration on offer, of the part that a method reads, and of whether it needs gradients.

    needs  what the method looks at; None if that is not known
    """
    protocol, parameters = record.cell.protocol, record.cell.parameters
    if needs == "nothing" or record.cell.method == "dense":
        return [cell_of_text("none"), cell_of_text(None), cell_of_text("no")]
    offered = protocol.calibration_sequences * protocol.calibration_length
    reads = " ".join(f"{name}={parameters[name]}" for name in READS if parameters.get(name) is not None)
    tokens = TableCell(f"{offered:,} tokens", value=offered)
    if not needs:
        return [tokens, cell_of_text(reads or None), cell_of_text(None)]
    return [tokens, cell_of_text(reads or "all"), cell_of_text("yes" if "gradients" in needs else "no")]


def tables_of_decisions(data: ReportData) -> list[Table]:
    """Return a table for each group with the removed layers, attentions, MLPs, heads and channels of each draw."""
    tables = []
    for group in data.groups:
        draws = list(_shown_draws(group))
        removals = [removals_of(record) for _, record, _ in draws]
        present = [name for name in WENT if name in set(chain(*removals))]
        if not present:
            continue
        rows = []
        for (name, record, row), removed in zip(draws, removals, strict=True):
            texts = [cell_of_text(removed.get(column)) for column in present]
            rows.append(row_of(record, name, [mark_missed(cell_of(row, "ratio"), row), *texts]))
        threshold = [THRESHOLD] * ("threshold" in present)
        footnotes = (NUMBERED, *threshold, *order.sorting_note(group, data.sorting_quantity(group)))
        columns = [column_of("ratio"), *map(column_of_words, present)]
        tables.append(table_of_group("decisions", group, columns, rows, footnotes))
    return tables


def _shown_draws(group: TableGroup) -> Iterator[tuple[str, Record, dict[str, Any]]]:
    """Yield the name, the record and the row of each draw; of the dense model, which removes nothing, of the first."""
    for place, drawn in enumerate(group.drawn):
        count = 1 if group.records[place].cell.method == "dense" else len(drawn)
        for record, row in list(zip(drawn, group.each[place], strict=True))[:count]:
            yield _name(group, place, record), record, row


def _name(group: TableGroup, place: int, record: Record) -> str:
    """Return the row's label, with the seed and the draw if there are several."""
    seeds = len(seeds_of(group.drawn[place]))
    which = []
    if seeds > 1 and record.cell.method != "dense":
        which.append(f"seed {record.cell.seed}")
    if len(group.numbers[place]) > seeds:
        which.append(f"draw {record.cell.draw}")
    return group.label(place) + (f" ({', '.join(which)})" if which else "")
