"""The views: from records to tables as data, which every renderer (terminal, Markdown, CSV, LaTeX, HTML) is given.

records -> frame -> blocks (one per setup and ratio, the dense model on top) -> [Table]

    main         a table per ratio: size, perplexity, divergence, tasks, average, speed; then checks and cost
    per-task     a table per ratio: the main metric of each task with its standard error
    by-ratio     a table per measure: methods by ratios
    grid         a table per ratio and measure: methods by compensations
    speed        everything that was timed, and the sizes that explain it
    cost         what pruning took: seconds, memory, tokens, gradients
    decisions    which layers, attentions, MLPs, heads and channels went
    ablation     one factor against another among the cells of one method
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from bench.records.columns import STAGES, task_columns, texts
from bench.records.record import Record, display_name, label
from bench.records.samples import Samples
from reports import notes
from reports.blocks import TableGroup, blocks
from reports.tables import ablation, cost, grid, speed
from reports.tables.rows import COST, RowSamples, compared, conditions, kind, missed, starred
from reports.tables.table import Column, Entry, Row, Table, column

SUMMARY = ("average", "kept", "prefill_speed", "decode_speed", "prune_seconds")
CHECKS = ("agreement", "copying", "counting", "repetition", "distinct_2")
BRIEF = ("task_", "score_", "kl", "prefill_", "decode_")  # no room for their spread beside the others on a terminal


def views(
    names: Iterable[str],
    records: Sequence[Record],
    reference: str | None = None,
    samples: Samples | None = None,
    needs: Mapping[str, str] | None = None,
) -> dict[str, list[Table]]:
    """The tables of each view. Raises ValueError for an unknown view and for a reference that no record has.

    reference    a method's label, as in "laco" or "laco:C=3": differences to it are tested, where there are samples
    samples      those of the records
    needs        what each method looks at, by its name: "calibration, gradients"
    """
    labels = list(dict.fromkeys(label(record.cell) for record in records))
    if reference and reference not in labels:
        raise ValueError(f"no method {reference!r} to refer to; there are {', '.join(labels)}")
    evidence = RowSamples(reference or "", samples or Samples(), needs or {})
    setups, found = blocks(records), {}
    for name in names:
        if name not in VIEWS:
            raise ValueError(f"no view {name!r}; there are {', '.join(VIEWS)}")
        found[name] = _named_apart(VIEWS[name](records, setups, evidence))
    return found


def view(name: str, records: Sequence[Record], *more: Any, **named: Any) -> list[Table]:
    """The tables of one view; arguments as for `views`."""
    return views((name,), records, *more, **named)[name]


def _named_apart(tables: list[Table]) -> list[Table]:
    """Tables of several setups have names of their own."""
    seen: dict[str, int] = {}
    apart = []
    for table in tables:
        seen[table.name] = seen.get(table.name, 0) + 1
        apart.append(replace(table, name=f"{table.name}-{seen[table.name]}") if seen[table.name] > 1 else table)
    return apart


Setups = Sequence[Sequence[TableGroup]]  # the blocks of each setup


def _main(records: Sequence[Record], setups: Setups, evidence: RowSamples) -> list[Table]:
    return _by_block("main", records, setups, evidence, columns=_main_columns, about=notes.EVERYTHING)


def _main_columns(block: TableGroup) -> list[Column]:
    names = ["ratio", "parameters", *(f"perplexity_{name}" for name in texts(block.records)), "kl"]
    return [
        *(column(name, "quality", brief=name.startswith(BRIEF)) for name in names),
        *(column(name, "tasks", brief=True) for name in task_columns(block.records)),
        *(column(name, "quality", brief=name.startswith(BRIEF)) for name in SUMMARY),
        *(column(name, "checks", detail=True) for name in CHECKS),
        *(column(name, "cost", detail=True) for name in COST),
    ]


def _per_task(records: Sequence[Record], setups: Setups, evidence: RowSamples) -> list[Table]:
    return _by_block("per-task", records, setups, evidence, columns=_task_columns, about=("tasks",))


def _task_columns(block: TableGroup) -> list[Column]:
    return [column(name) for name in (*task_columns(block.records), "average", "kept")]


def _by_block(
    name: str,
    records: Sequence[Record],
    setups: Setups,
    evidence: RowSamples,
    *,
    columns: Callable[[TableGroup], list[Column]],
    about: Collection[str],
) -> list[Table]:
    """A table per block with those of its columns that have a figure in any row."""
    protocol = tuple(notes.protocol(records, _all_rows(setups), about))
    tables = []
    for block in chain(*setups):
        present = [one for one in columns(block) if any(row.get(one.name) is not None for row in block.rows)]
        rows, said = compared(block, present, evidence)
        stages = tuple(STAGES) if "speed" in about else ()
        tables.append(cost.of_block(name, block, present, rows, protocol, stages=stages, said=said))
    return tables


def _all_rows(setups: Setups) -> list[dict[str, Any]]:
    """The figures of every record."""
    return [row for block in chain(*setups) for each in block.each for row in each]


def _by_ratio(_records: Sequence[Record], setups: Setups, evidence: RowSamples) -> list[Table]:
    """For each setup a table per measure; the dense model's figure is repeated in each column."""
    tables, rows = [], _all_rows(setups)
    for found in setups:
        everything = [record for block in found for record in chain(*block.drawn)]
        for name in [*(f"perplexity_{name}" for name in texts(everything)), "kl", *SUMMARY]:
            if any(row.get(name) is not None for block in found for row in block.rows):
                protocol = tuple(notes.protocol(everything, rows, (kind(name),)))
                tables.append(replace(_of_measure(column(name), found, evidence), protocol=protocol))
    return tables


def _of_measure(measure: Column, found: Sequence[TableGroup], evidence: RowSamples) -> Table:
    """Methods by ratios. A cell that missed its ratio has a star, one without figures says why."""
    lines: dict[str, dict[int, Entry]] = {}
    methods: dict[str, str] = {}
    said: dict[str, None] = {}
    for number, block in enumerate(found):
        rows, tests = compared(block, [measure], evidence)
        for row, figures in zip(rows, block.rows, strict=True):
            cell = row.cells[0] if row.failure is None else Entry(row.failure)
            lines.setdefault(row.label, {})[number] = starred(cell) if missed(figures) else cell
            methods[row.label] = row.method
        said |= dict.fromkeys([*_exceptions(block, measure), *tests])
    columns = [replace(measure, label=_ratio(block), unit="", better=None) for block in found]
    rows = [
        Row(name, methods[name], None, tuple(cells.get(number, Entry()) for number in range(len(found))))
        for name, cells in lines.items()
    ]
    records = found[0].records
    return Table(
        name=f"by-ratio-{measure.name}",
        view="by-ratio",
        model=display_name(records[0]),
        title=f"{measure.head}, by ratio",
        conditions=conditions(found[0]),
        columns=tuple(columns),
        rows=tuple(rows),
        notes=tuple(said),
    )


def _ratio(block: TableGroup) -> str:
    """The heading of a ratio's column."""
    only_dense = all(record.cell["method"] == "dense" for record in block.records)
    return "dense" if only_dense else "fixed" if block.ratio is None else f"{block.ratio:g}"


def _exceptions(block: TableGroup, measure: Column) -> Iterator[str]:
    """What must be said of a ratio's cells in a table of one measure, with the ratio."""
    stages = [stage for stage in STAGES if measure.name == f"{stage}_speed"]
    for sentence in notes.exceptions(block.records, stages):
        yield sentence if block.ratio is None else f"at {block.ratio:g}: {sentence}"


VIEWS: dict[str, Callable[[Sequence[Record], Setups, RowSamples], list[Table]]] = {
    "main": _main,
    "per-task": _per_task,
    "by-ratio": _by_ratio,
    "grid": grid.tables,
    "speed": speed.tables,
    "cost": cost.cost,
    "decisions": cost.decisions,
    "ablation": ablation.tables,
}
