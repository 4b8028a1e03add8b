"""The views: from records to tables as data for every renderer (terminal, Markdown, CSV, LaTeX, HTML).

records -> frame -> groups of cells (one per setup and ratio, the dense model on top) -> [Table]

    main         a table per ratio: size, perplexity, divergence, tasks, average, speed; then checks and cost
    positions    two tables per ratio and text: perplexity by position in long windows, and times the dense model's
    needle       a table per ratio and context: how often a code is found, by depth
    per-task     a table per ratio: the main metric of each task, the bits per byte of its right answers, and the
                 answers that flipped, with their standard errors, and those that are chosen and written right
    by-ratio     a table per measure: methods by ratios
    grid         a table per ratio and measure: methods by compensations
    speed        everything that was timed, and the sizes that explain it
    cost         what pruning took: seconds, memory, tokens, gradients
    recovery     two tables per ratio and measure: quality by the tokens of healing, and the tokens, work and time in
                 which a method comes near the dense model
    decisions    which layers, attentions, MLPs, heads and channels were removed
    ablation     one factor against another among the cells of one method
    calibration  quality by the number of calibration tokens, and how many suffice
    seeds        how much of a perplexity is the method, the calibration's text and seed, and the windows
    served       models in an inference engine: quality, size and speed, by the type of their weights
    signal       how well each task and each of its figures tells the methods of a ratio apart
    skills       what each method loses of each skill, as a share of what the dense model has of it
    models       what a method does to each of several models, its places there, and how far orders agree
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from bench.plan.fields import hint_of_similar_name
from bench.records.frame import (
    STAGES,
    column_of_amount,
    columns_of_quantity,
    columns_of_rows,
    columns_of_tasks,
    columns_with_values,
    keep_shown_tasks,
    tasks_of_records,
)
from bench.records.quantities import list_quantities
from bench.records.record import Record
from bench.records.samples import Samples
from bench.records.served import ServedRecord
from bench.records.skill_losses import SKILLS, SkillColumn
from methods.errors import UserError
from reports import legend, protocol
from reports.groups import TableGroup
from reports.tables import (
    ablation,
    calibration,
    cost,
    models,
    needle,
    pivots,
    positions,
    recovery,
    seeds,
    skills,
    speed,
)
from reports.tables import rows as order
from reports.tables.rows import ReportData, compare_rows, sort_rows, table_of_group
from reports.tables.table import Column, Table, column_of
from reports.tables.ties import Ties
from reports.text import names_of_files


def build_views(
    names: Iterable[str],
    records: Sequence[Record],
    reference: str | None = None,
    samples: Samples | None = None,
    needs: Mapping[str, str] | None = None,
    *,
    served: Sequence[ServedRecord] = (),
    sort: str = "",
) -> dict[str, list[Table]]:
    """Return the tables of each view.

    reference    a method's label, as in "laco" or "laco:C=3", or a row's whole label if several rows have that of the
                 method, as in "laco (match exact)"; differences to it are tested if there are samples
    samples      the samples of the records
    needs        what each method looks at, by its name: "calibration, gradients"
    served       the served records of the models
    sort         the column of the frame that orders rows in views without an order of their own; empty for none

    Raises UserError for an unknown view, for a reference that no record has, and for a column without a number.
    """
    labels = list(dict.fromkeys(record.cell.label for record in records))
    names = tuple(names)
    has_answers = not WITH_ANSWERS.isdisjoint(names)
    data = ReportData(records, reference or "", samples or Samples(), needs or {}, served, has_answers, sort)
    if sort:
        _refuse_unsortable(sort, data)
    if reference and reference not in labels:
        labels_of_rows = dict.fromkeys(
            [*labels, *(group.label(at) for group in data.groups for at in range(len(group.rows)))]
        )
        if reference not in labels_of_rows:
            raise UserError(f"no method {reference!r} to refer to; there are {', '.join(labels_of_rows)}")
    tables_by_view = {}
    for name in names:
        if name not in VIEWS:
            raise UserError(f"no view {name!r}; there are {', '.join(VIEWS)}")
        tables_by_view[name] = _number_names(VIEWS[name](data))
    return tables_by_view


def _refuse_unsortable(name: str, data: ReportData) -> None:
    rows = list(chain.from_iterable(group.rows for group in data.groups))
    numeric = {column for row in rows for column, value in row.items() if order.is_number(value)}
    numbers = [column for column in columns_of_rows(rows) if column in numeric]
    if name not in numbers:
        usual = ", ".join(column for column in ("average", "answer_bpb", "parameters") if column in numbers)
        hint = hint_of_similar_name(name, numbers) or f"; `report --format csv` has the columns, such as {usual}"
        raise UserError(f"no column {name!r} has numbers to sort by{hint}")


def build_view(name: str, records: Sequence[Record], *more: Any, **named: Any) -> list[Table]:
    """Return the tables of one view; arguments as for `build_views`."""
    return build_views((name,), records, *more, **named)[name]


def _number_names(tables: list[Table]) -> list[Table]:
    """Return the tables with names for their files; names that tables of several setups share are numbered."""
    names = names_of_files(table.name for table in tables)
    return [replace(table, name=name) for table, name in zip(tables, names, strict=True)]


def _main(data: ReportData) -> list[Table]:
    def columns(group: TableGroup) -> list[Column]:
        return [
            *(column_of(name, "quality") for name in (*ratio_columns(group), *size_columns(group))),
            *_columns_of("quality", group),
            column_of("flips", "quality", detail=True),
            *(column_of(name, "tasks", brief=True) for name in _columns_of_main_tasks(group)),
            *(replace(column, group="quality") for column in _columns_of("summary", group)),
            *(replace(column, detail=True) for column in _columns_of("checks", group)),
            *(replace(column, detail=True) for column in _columns_of("cost", group)),
        ]

    return _by_group("main", data, columns, (*protocol.KINDS, "flips"))


def _columns_of_main_tasks(group: TableGroup) -> list[str]:
    """Return a column for each task; where those by skill are many, one for each skill in their place."""
    tasks = keep_shown_tasks(group.records)
    losses = [SkillColumn("loss", skill).name for skill in SKILLS]
    is_folded = len(tasks) < len(tasks_of_records(group.records))
    return [*columns_of_tasks(group.records, tasks), *(losses if is_folded else [])]


def _columns_of(kind: str, group: TableGroup) -> list[Column]:
    """Return the columns of the quantities that stand together in the main or per-task view."""
    return [
        column_of(name, kind, brief=not quantity.is_wide)
        for quantity in list_quantities()
        if quantity.columns == kind
        for name in columns_of_quantity(quantity, group.records)
    ]


def ratio_columns(group: TableGroup) -> list[str]:
    """Return the columns of the shares that were removed: of a budget's quantity, of all parameters, of the decoder.

    The decoder's share is shown if it was requested, or if it is more than a third larger than that of all parameters.
    """
    shows_decoder = group.ratio_of in ("decoder", "layers")
    for row in group.rows:
        of_all, of_decoder = row.get("ratio") or 0.0, row.get("ratio_without_embeddings") or 0.0
        shows_decoder = shows_decoder or of_decoder > of_all * 4 / 3 > 0
    columns = [column_of_amount(group.ratio_of), "ratio", *["ratio_without_embeddings"] * shows_decoder]
    return list(dict.fromkeys(columns))


def size_columns(group: TableGroup) -> list[str]:
    """Return the columns of parameters, and of active parameters if a token is computed with fewer than all."""
    both = [(row.get("parameters"), row.get("active_parameters")) for row in group.rows]
    return ["parameters", *["active_parameters"] * any(active not in (None, stored) for stored, active in both)]


def _per_task(data: ReportData) -> list[Table]:
    def columns(group: TableGroup) -> list[Column]:
        tasks = columns_of_tasks(group.records)
        means = [quantity.name for quantity in list_quantities() if quantity.over_tasks and not quantity.is_each]
        return [
            *(column_of(name) for name in (*tasks, "average", "kept")),
            *(column for column in _columns_of("answers", group) if column.name not in tasks),
            *(column_of(name, "answers", brief=True) for name in means),
            *_columns_of("flips", group),
            *_columns_of("written", group),
        ]

    return _by_group("per-task", data, columns, ("tasks", "answers", "flips", "written"), "average")


def _by_group(
    name: str, data: ReportData, columns: Callable[[TableGroup], list[Column]], about: Collection[str], *preferred: str
) -> list[Table]:
    """Return a table for each group, with the columns in which any row has a value, or else the first column.

    preferred  columns that order the rows, see reports.tables.rows.sorting_quantity
    """
    stages = tuple(STAGES) if "speed" in about else ()
    tables = []
    for group in data.groups:
        offered = columns(group)
        filled = columns_with_values(group.rows, [column.name for column in offered])
        present = [column for column in offered if column.name in filled] or offered[:1]
        by = data.sorting_quantity(group, *preferred)
        sorted_group = sort_rows(group, by)
        rows, tests = compare_rows(sorted_group, present, data)
        flags = legend.flags_of_records(sorted_group.records_with_notes(), stages, sorted_group.beside)
        records = list(chain(*sorted_group.drawn))
        footnotes = legend.describe_columns(records, list(chain(*sorted_group.each)), about)
        footnotes += [FOLDED] * any(column.name.startswith(SKILL_LOSS) for column in present)
        ties = Ties(order.GroupTests(sorted_group, data.samples), by)
        leads = ties.sentences() if name == "main" and by else ()
        tables.append(
            table_of_group(
                name,
                sorted_group,
                present,
                rows,
                [*footnotes, *order.sorting_note(sorted_group, by)],
                remarks=legend.describe_flags([*flags, *tests]),
                measured=protocol.protocol_of_records(records, about),
                lead=leads,
            )
        )
    return tables


SKILL_LOSS = SkillColumn("loss", "").name
FOLDED = (
    "X lost: what is lost of a skill's accuracy above guesses, in place of its many tasks; the views skills and "
    "per-task have more."
)
WITH_ANSWERS = {"main", "per-task", "skills"}
VIEWS: dict[str, Callable[[ReportData], list[Table]]] = {
    "main": _main,
    "per-task": _per_task,
    "positions": positions.tables_of_positions,
    "needle": needle.tables_of_needles,
    "by-ratio": pivots.tables_by_ratio,
    "grid": pivots.grids_of_compensations,
    "speed": speed.tables_of_speed,
    "cost": cost.tables_of_cost,
    "recovery": recovery.tables_of_recovery,
    "decisions": cost.tables_of_decisions,
    "ablation": ablation.tables_of_studies,
    "calibration": calibration.tables_of_calibrations,
    "seeds": seeds.tables_of_seeds,
    "models": models.tables_of_models,
    "signal": seeds.tables_of_signal,
    "skills": skills.tables_of_skills,
    "served": lambda data: speed.tables_of_served(data.served),
}
