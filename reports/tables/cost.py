"""Two views of what a method did: what pruning cost, and what it decided."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import chain

from bench.records.record import Record, display_name, requested_ratio
from reports import healing_notes, notes
from reports.blocks import TableGroup
from reports.removed import WENT, went
from reports.tables.rows import RowSamples, conditions, missed, starred
from reports.tables.table import Column, Entry, Row, Table, column, figure, text, words

READS = ("sentences", "sequences", "tokens", "steps")  # parameters by which methods read less than the whole block
FIGURES = ("ratio", "prune_seconds", "heal_seconds", "heal_tokens", "peak_memory_bytes")
COST = (
    "pruned in: the search and the removal, without loading, measuring and saving.",
    "peak memory: the highest of the whole process so far, not of pruning alone.",
    "calibration: the tokens on offer; reads: the parameters by which a method takes less of them.",
)
HEALED = "healed in: training alone, over all attempts, without the search and the removal."
WORDS = (
    "Layers, attentions and MLPs are named by their numbers in the dense model, from 0; KV heads and channels are "
    "counted over the layers of the dense model.",
    "threshold: of the similarity, above which layers are merged.",
)


def cost(_records: Sequence[Record], setups: Sequence[Sequence[TableGroup]], evidence: RowSamples) -> list[Table]:
    """Seconds, memory, calibration tokens, gradients."""
    return [_cost(block, evidence) for block in chain(*setups)]


def _cost(block: TableGroup, evidence: RowSamples) -> Table:
    healed = any("heal_seconds" in row for row in block.rows)
    figures = [column(name) for name in FIGURES if healed or not name.startswith("heal_")]
    looks = [words("calibration"), words("reads"), words("gradients")]
    rows = []
    for place, (record, row) in enumerate(zip(block.records, block.rows, strict=True)):
        cells = [figure(row, one.name) for one in figures]
        told = [starred(cells[0]) if missed(row) else cells[0], *cells[1:], *_looks(record, evidence)]
        rows.append(_row(block.label(place), record, told))
    protocol = (
        (*COST[:1], HEALED, *COST[1:], *healing_notes.notes([record.cell for record in block.records]))
        if healed
        else COST
    )
    return of_block("cost", block, [*figures, *looks], rows, protocol)


def _looks(record: Record, evidence: RowSamples) -> list[Entry]:
    """What a method was offered, what it took of it, and whether it asked for gradients, where that is known."""
    method, asked = record.cell["method"], record.cell["protocol"]
    needs = evidence.needs.get(method, "nothing" if method == "dense" else "")
    offered = asked["calibration_sequences"] * asked["calibration_length"]
    parameters = record.cell["parameters"]
    reads = " ".join(f"{name}={parameters[name]}" for name in READS if name in parameters)
    if needs == "nothing":
        return [text("none"), text(None), text("no")]
    tokens = Entry(f"{offered:,} tokens", value=offered)
    if not needs:  # a method that nobody speaks for
        return [tokens, text(reads or None), text(None)]
    return [tokens, text(reads or "all"), text("yes" if "gradients" in needs else "no")]


def decisions(_records: Sequence[Record], setups: Sequence[Sequence[TableGroup]], _evidence: RowSamples) -> list[Table]:
    """Which layers, attentions, MLPs, heads and channels went; of a random method a row for each draw."""
    tables = []
    for block in chain(*setups):
        cells = [
            (_name(block, place, record), record, row)
            for place, drawn in enumerate(block.drawn)
            for record, row in zip(drawn, block.each[place], strict=True)
        ]
        found = [went(record) for _, record, _ in cells]
        present = [name for name in WENT if any(name in one for one in found)]
        if not present:
            continue
        rows = []
        for (name, record, row), one in zip(cells, found, strict=True):
            ratio = figure(row, "ratio")
            told = [starred(ratio) if missed(row) else ratio, *(text(one.get(part)) for part in present)]
            rows.append(_row(name, record, told))
        said = WORDS if "threshold" in present else WORDS[:1]
        tables.append(of_block("decisions", block, [column("ratio"), *map(words, present)], rows, said))
    return tables


def _name(block: TableGroup, place: int, record: Record) -> str:
    """The row's name, and which draw it is where there are several."""
    several = len(block.numbers[place]) > 1
    return block.label(place) + (f" (draw {record.cell['parameters']['seed']})" if several else "")


def _row(name: str, record: Record, cells: Sequence[Entry]) -> Row:
    failure = None if record.status == "ok" else notes.status(record)
    return Row(name, record.cell["method"], requested_ratio(record), tuple(cells), failure)


def of_block(
    view: str,
    block: TableGroup,
    columns: Sequence[Column],
    rows: Sequence[Row],
    protocol: tuple[str, ...],
    *,
    stages: Collection[str] = (),
    said: Sequence[str] = (),
) -> Table:
    """The table of a view for one block.

    stages  of generation whose speed it shows;  said  notes beside those of the block's exceptions
    """
    return Table(
        name=f"{view}-{'fixed' if block.ratio is None else f'{block.ratio:g}'}",
        view=view,
        model=display_name(block.records[0]),
        title=notes.ratio(block.records),
        conditions=conditions(block),
        columns=tuple(columns),
        rows=tuple(rows),
        notes=(*notes.exceptions(block.records, stages), *said),
        protocol=protocol,
    )
