"""The plan of a run as tables: the time and memory of each cell, the end of each slot, and the cells with a record."""

from __future__ import annotations

from pathlib import Path

from bench.plan.cell import words_of_ratio
from bench.plan.run_spec import RunSpec
from bench.runs.plan import Plan, PlannedCell, summarise_plan
from bench.schedule.data_sheets import DATA_SHEETS, SHARE, STREAM
from bench.schedule.estimate import ESTIMATED, STAGES, format_duration
from bench.schedule.memory_needs import ALONE, to_gib
from reports.tables.table import Column, Row, Table, TableCell, cell_of_text, column_of_words

TAKES = "takes: the sum of the stages; starts: from the beginning of the run, which reads its texts and tasks first."
BASES = (
    "measured: by records of this machine in the run's folder and beside it, scaled by what is computed; estimated: by "
    "multiply-accumulates and the rate that this machine has just shown, to one digit."
)
ELSEWHERE = (
    "Cells run on other machines, and their time is estimated by the rate of this one. How much memory those have is "
    "not known: models are planned to lie in it as a whole unless --memory or --device-memory says what cells may take."
)
DATA_SHEET = (
    f"On one {{card}}, and not measured: by {SHARE:.0%} of the arithmetic and {STREAM:.0%} of the bandwidth of its "
    "data sheet. How much memory the host has is not known."
)
FILES = (
    "+ files: weights lie in files, since the cell would take more than --memory, or on a GPU than --device-memory, "
    "with all of them in memory."
)
OFFLOADED = "offloaded: states that wait between layers, in files of the folder of --offload; not part of host."
ONE_SLOT = "--slots is not given, so that the plan is for one cell at a time."


def tables_of_plan(plan: Plan, spec: RunSpec, card: str | None = None) -> list[Table]:
    """Return the table of the cells, and a table of the slots if there are several.

    card  of bench.schedule.data_sheets, for which the run was planned; None: the machine or engine of the spec
    """
    tables = [_cells(plan, spec, card)]
    if len(plan.slots) > 1:
        ends = [_time(end, plan.is_coarse) for end in plan.slots]
        rows = tuple(Row(f"slot {at}", "", None, (end,)) for at, end in enumerate(ends, start=1))
        tables.append(Table("slots", "plan", "", "", (), (Column("end", "ends after"),), rows, head="slot"))
    return tables


def _cells(plan: Plan, spec: RunSpec, card: str | None) -> Table:
    unmeasured = [planned for planned in plan.cells if not planned.done]
    estimates = [planned.estimate for planned in unmeasured if planned.estimate]
    stages = {name for estimate in estimates for name, seconds in estimate.stages.items() if seconds}
    on_gpu = any(planned.needs.device for planned in unmeasured)
    offloads, waits = any(each.needs.offloaded for each in unmeasured), any(each.after for each in unmeasured)
    possible = [
        (Column("model", "model", words=True, key=True), len(spec.models) > 1),
        (Column("ratio", "ratio"), True),
        (Column("seconds", "takes"), True),
        (Column("begin", "starts"), bool(unmeasured)),
        (Column("slot", "slot"), len(plan.slots) > 1),
        (Column("device", "device"), on_gpu),
        (Column("host", "host"), True),
        (Column("offloaded", "offloaded"), offloads),
        *[(Column(name, name, group="stages"), name in stages) for name in STAGES],
        (column_of_words("basis"), True),
        (column_of_words("waits for"), waits),
    ]
    columns = [column for column, is_shown in possible if is_shown]
    rows = tuple(_row(planned, columns, plan.is_coarse) for planned in plan.cells)
    elsewhere = spec.engine != "local"
    notes = [f"{summarise_plan(plan)}.", *[ELSEWHERE] * elsewhere, *[ONE_SLOT] * (elsewhere and not spec.slots)]
    notes += [FILES] * any(planned.needs.in_files for planned in unmeasured)
    notes += [f"alone: {ALONE}."] * any(planned.needs.alone for planned in unmeasured)
    notes += [OFFLOADED] * offloads
    if card:
        notes.append(DATA_SHEET.format(card=DATA_SHEETS[card].title))
    return Table("plan", "plan", "", "", (), tuple(columns), rows, tuple(notes), (TAKES, *[BASES] * (not card)))


def _row(planned: PlannedCell, columns: list[Column], is_coarse: bool) -> Row:
    cell, needs, estimate = planned.cell, planned.needs, planned.estimate
    cells = {"model": cell_of_text(Path(cell.model).name)}
    if cell.ratio is not None:
        cells["ratio"] = TableCell(words_of_ratio(cell.ratio, cell.ratio_of), value=cell.ratio)
    if estimate is None:
        cells["basis"] = TableCell(f"has a record: {planned.done}")
    else:
        times = estimate.stages | {"seconds": estimate.seconds}
        cells |= {name: _time(seconds, estimate.basis == ESTIMATED) for name, seconds in times.items()}
        cells |= {"begin": _time(planned.begin, is_coarse), "basis": cell_of_text(estimate.basis)}
        cells |= {"slot": TableCell(str(planned.slot + 1), value=planned.slot + 1)}
        cells |= {"waits for": cell_of_text(planned.after), "device": _size(needs.device)}
        cells |= {"host": _host(planned), "offloaded": _size(needs.offloaded)}
    filled = tuple(cells.get(column.name, TableCell()) for column in columns)
    return Row(cell.label, cell.method, cell.ratio, filled, ratio_of=cell.ratio_of)


def _size(count: int) -> TableCell:
    return TableCell(to_gib(count), value=count)


def _host(planned: PlannedCell) -> TableCell:
    needs, timed = planned.needs, ", not timed" if planned.cell.method == "dense" else ", alone"
    return TableCell(f"{to_gib(needs.host)}{' + files' * needs.in_files}{timed * needs.alone}", value=needs.host)


def _time(seconds: float, is_coarse: bool) -> TableCell:
    return TableCell(format_duration(seconds, is_coarse=is_coarse), value=seconds)
