"""Compares published figures with measured ones: both, their difference, and why they are not the same figure.

papers (reports.published.papers), records -> for each pair of a printed row and a cell a table, with a row for each
measure

A difference is shown only if both were measured in the same way. Otherwise a note names the conditions that differ or
are not known. Orders of removal need no such agreement, since they are compared as sets.

A printed row and a cell are a pair if they have the same model and method, and ratios within CLOSE of each other. A
cell without a requested ratio, whose parameters alone decide, fits any printed ratio. Beside each figure stands its
share of the figure of its own dense model, which differs least between two ways to ask the same question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from statistics import fmean
from typing import Any

from bench.data.task_sources import VALIDATION
from bench.records import frame
from bench.records.comparability import find_dense_peer, group_by_setup
from bench.records.frame import column_of_task
from bench.records.measured import TaskScore
from bench.records.quantities import quantity_of_column
from bench.records.quantity import format_percent, shorten_name
from bench.records.record import Record, name_of_model
from methods.errors import UserError
from reports import groups, legend, protocol
from reports.groups import name_with_ratio, seeds_of, suffixes_of_draws
from reports.published.papers import Paper, Printed, PublishedProtocol
from reports.removed import join_decisions
from reports.tables.table import Column, Row, Table, TableCell, cell_of

CALIBRATION = ("calibration", "calibration_sequences", "calibration_length")


def differences_of_perplexity(published: PublishedProtocol, record: Record, text: str) -> list[str]:
    """Return why a perplexity of the record is not the same figure as the printed one; empty if it is."""
    measured = record.measured.text_scores[text]
    reasons = list(_difference_of_setting("the window", "windows of {} tokens", published.window, measured.window))
    if published.window is not None and measured.stride != measured.window:
        reasons.append(f"windows that do not overlap published, a stride of {measured.stride} here")
    if measured.drawn:
        reasons.append("windows one behind the other published, drawn from the text here")
    every = measured.whole and record.cell.protocol.windows == 0
    windows = 0 if every else measured.windows
    if published.windows != windows:
        words = {None: "how many windows not known", 0: "the whole text"}
        theirs, ours = (words.get(count, f"{count} windows") for count in (published.windows, windows))
        reasons.append(f"{theirs}{' published' * (published.windows is not None)}, {ours} here")
    return [
        *reasons,
        *_difference_of_setting("BOS", "BOS {}", published.bos, measured.bos),
        *_common_differences(published, record),
    ]


def differences_of_tasks(published: PublishedProtocol, record: Record, tasks: Sequence[str]) -> list[str]:
    """Return why the accuracies of tasks cannot be compared with the printed ones; empty if they can."""
    measured = {name: record.measured.task_scores[name] for name in tasks}
    version = record.environment.get("versions", {}).get("lm_eval")
    reasons = list(_difference_of_setting("the version of lm-eval", "lm-eval {}", published.lm_eval, version))
    few = [f"{name} {task.documents:,} of {task.available:,}" for name, task in measured.items() if _is_part(task)]
    if few:
        reasons.append(f"all documents published, {', '.join(few)} here")
    local = {task for task, *_ in record.cell.protocol.task_data}
    if validation := [name for name in tasks if name in VALIDATION and name not in local]:
        reasons.append(f"the validation sets of {', '.join(validation)} here")
    shots = sorted({task.fewshot for task in measured.values()})
    reasons += _difference_of_setting(
        "the number of examples", "{} examples", published.fewshot, shots[0] if len(shots) == 1 else shots
    )
    metrics = {_metric(published.metric, task) for task in measured.values()}
    if record.cell.protocol.chat:
        reasons.append("prompts in a chat template here")
    if published.metric is None:
        reasons.append("which metrics not known of the published")
    elif metrics != {True}:
        mains = sorted({task.main for task in measured.values()})
        reasons.append(f"{published.metric} published, {' and '.join(mains)} here")
    return [*reasons, *_common_differences(published, record)]


def _is_part(task: TaskScore) -> bool:
    return task.documents < task.available


def _metric(published: str | None, task: TaskScore) -> bool:
    """Say whether a task's main metric is the printed one."""
    if published == "acc_norm or acc":
        return task.main == ("acc_norm" if "acc_norm" in task.metrics else "acc")
    return task.main == published


def _common_differences(published: PublishedProtocol, record: Record) -> Iterator[str]:
    """Yield the differences that concern every figure: dtype, earlier stages, healing and calibration."""
    yield from _difference_of_setting("the dtype", "{}", published.dtype, record.cell.dtype)
    if record.cell.earlier:
        yield "pruned in several steps here"
    if groups.recipe_of_cell(record.cell):
        yield "healed here"
    if record.cell.method == "dense":
        return
    protocol = record.cell.protocol
    ours = [getattr(protocol, name) for name in CALIBRATION]
    theirs = [getattr(published, name) for name in CALIBRATION]
    if theirs[0] is None:
        yield "the calibration not known of the published"
    elif theirs[0] not in ours[0] or any(a not in (None, b) for a, b in zip(theirs[1:], ours[1:], strict=True)):
        yield f"calibrated on {_words_of_calibration(theirs)} published, on {_words_of_calibration(ours)} here"


def _words_of_calibration(values: Sequence[Any]) -> str:
    text, sequences, length = values
    return text if None in (sequences, length) else f"{sequences} sequences of {length:,} tokens of {text}"


def _difference_of_setting(what: str, words: str, theirs: Any, ours: Any) -> Iterator[str]:
    """Yield a sentence if two settings differ, or if the published one is not known."""
    if theirs is None:
        yield f"{what} not known of the published"
    elif theirs != ours:
        texts = [f"{value:,}" if isinstance(value, int) else str(value) for value in (theirs, ours)]
        yield f"{words.format(texts[0])} published, {words.format(texts[1])} here"


CLOSE = 0.03  # the most between the printed ratio and the ratio of a cell beside it
APART = 0.005  # a larger difference of ratios is named in a note
KINDS = ("perplexity", "tasks")
SHOWABLE = ("perplexity_", "task_")  # beginnings of the columns that a table can show
COLUMNS = (
    Column("published", "published"),
    Column("here", "here"),
    Column("difference", "difference"),
    Column("published_of_dense", "published, of dense"),
    Column("here_of_dense", "here, of dense"),
)


@dataclass(frozen=True)
class PublishedPair:
    """A printed row and a cell of the same model, the same method and a near ratio, each with its dense model.

    row  the cell's row of the frame
    """

    paper: Paper
    printed: Printed
    printed_dense: Printed
    record: Record
    row: Mapping[str, Any]
    dense: Record | None

    @property
    def protocol(self) -> PublishedProtocol:
        """Return the protocol of the printed row."""
        return self.paper.protocol.with_own(self.printed.protocol)


def tables_of_published(records: Sequence[Record], papers: Sequence[Paper]) -> list[Table]:
    """Return a table for each pair. Raises UserError if no cell is of a published model and method."""
    pairs = list(_pairs(records, papers))
    of_pairs = {id(pair.record) for pair in pairs}
    measured = [record for record in records if id(record) in of_pairs]
    showable = []
    for pair in pairs:
        showable.append({name: value for name, value in pair.row.items() if name.startswith(SHOWABLE)})
    reading = legend.describe_columns(measured, showable, KINDS, seeds=False) if measured else []
    names = _names(measured)
    tables = [_table(pair, number, names[id(pair.record)], reading) for number, pair in enumerate(pairs, start=1)]
    if not tables:
        published = ", ".join(dict.fromkeys(model for paper in papers for model in paper.models))
        models = ", ".join(dict.fromkeys(name_of_model(record) for record in records))
        raise UserError(f"no cell of these runs has a published row: there are {published}; the runs have {models}")
    return tables


def _names(records: Sequence[Record]) -> dict[int, str]:
    """Return {id of a record: its name in a title}; with the seed if there are several: 'laco at 0.3 (seed 1)'."""
    several = len(seeds_of([record for record in records if record.cell.method == "dense"])) > 1
    return {
        id(record): name_with_ratio(record, records)
        + (f" (seed {record.cell.seed})" if several and record.cell.method == "dense" else which)
        for record, which in zip(records, suffixes_of_draws(records), strict=True)
    }


def _pairs(records: Sequence[Record], papers: Sequence[Paper]) -> Iterator[PublishedPair]:
    rows = frame.rows_of_records(records)
    peers = {id(record): group for group in group_by_setup(records).values() for record in group}
    for paper in papers:
        for model in paper.models.values():
            dense = next((row for row in model.rows if "dense" in row.methods), Printed(method=("dense",)))
            for printed in model.rows:
                for record, row in zip(records, rows, strict=True):
                    pair = PublishedPair(paper, printed, dense, record, row, find_dense_peer(record, peers[id(record)]))
                    if _is_of(record, model.names, printed) and _both(pair):
                        yield pair


def _is_of(record: Record, names: Sequence[str], printed: Printed) -> bool:
    own_names = {name_of_model(record), PurePath(record.cell.model).name}
    if record.status != "ok" or not own_names & {*names, *(PurePath(name).name for name in names)}:
        return False
    if record.cell.method not in printed.methods:
        return False
    requested = record.cell.ratio
    return requested is None or printed.ratio is None or abs((record.measured.ratio or 0.0) - printed.ratio) <= CLOSE


def _both(pair: PublishedPair) -> bool:
    """Say whether any value but the size is both printed and measured."""
    rows = (*_removed_in_order(pair), *_perplexities(pair), *_accuracies(pair))
    return any(row.cells[1].value is not None for row in rows)


def _table(pair: PublishedPair, number: int, name: str, reading: Sequence[str]) -> Table:
    """Return the table of a pair.

    name     the name of its cell
    reading  sentences on how to read the values of these runs
    """
    rows = (*_sizes(pair), *_removed_in_order(pair), *_perplexities(pair), *_accuracies(pair))
    table = Table(
        name=f"against-{pair.paper.name}-{number}",
        view="against",
        model=name_of_model(pair.record),
        title=f"{name}, published ({pair.paper.name}) and here",
        conditions=tuple(protocol.conditions_of([pair.record])),
        columns=COLUMNS,
        rows=tuple(replace(row, method=pair.record.cell.method) for row in rows),
        notes=tuple(_notes(pair)),
        footnotes=(
            *(f"{pair.paper.name}: {sentence}" for sentence in (f"{pair.paper.source}.", *pair.paper.notes)),
            *reading,
        ),
        head="measure",
        protocol=tuple(protocol.protocol_of_records([pair.record], KINDS)),
    )
    filled = {at for row in rows for at, cell in enumerate(row.cells) if cell.value is not None}
    return table.only(sorted(filled))


def _sizes(pair: PublishedPair) -> Iterator[Row]:
    """Yield the rows of size and of the seconds of pruning. Seconds have no difference, since machines differ."""
    for name in ("ratio", "layers", "prune_seconds"):
        printed = getattr(pair.printed, name)
        if printed is not None:
            cell, alike = cell_of(pair.row, name), name != "prune_seconds"
            yield _row(quantity_of_column(name).heading, printed, cell, quantity_of_column(name).show, alike=alike)


def _perplexities(pair: PublishedPair) -> Iterator[Row]:
    """Yield a row for each printed perplexity."""
    for word, printed in pair.printed.perplexity.items():
        text = _text(pair.record, word)
        cell = TableCell() if text is None else cell_of(pair.row, f"perplexity_{text}")
        measured = pair.dense.measured.text_scores if pair.dense else {}
        dense = measured[text].perplexity if text in measured else None
        dense_figures = pair.printed_dense.perplexity.get(word), dense
        alike = text is not None and not [
            *differences_of_perplexity(pair.protocol, pair.record, text),
            *_words_of_ratio_difference(pair),
        ]
        yield _row(
            f"ppl {word}", printed, cell, quantity_of_column("perplexity_").show, dense=dense_figures, alike=alike
        )


def _text(record: Record, word: str) -> str | None:
    """Return the first measured text whose name holds the printed word."""
    return next((name for name in record.measured.text_scores if word in name), None)


def _accuracies(pair: PublishedPair) -> Iterator[Row]:
    """Yield a row for each printed task, and one for the printed average."""
    shares, dense = (_right(record) if record else {} for record in (pair.record, pair.dense))
    for name, printed in pair.printed.tasks.items():
        column = column_of_task(name, pair.record.measured.task_scores[name]) if name in shares else ""
        cell = cell_of(pair.row, column) if column else _share(_mean(shares, [name]))
        dense_figures = pair.printed_dense.tasks.get(name), _mean(dense, [name])
        yield _row(
            shorten_name(name),
            printed,
            cell,
            format_percent,
            dense=dense_figures,
            alike=_is_measured_alike(pair, [name]),
        )
    if pair.printed.average:
        over, printed = pair.printed.average.of, pair.printed.average.value
        theirs = pair.printed_dense.average
        dense_figures = theirs.value if theirs and theirs.of == over else None, _mean(dense, over)
        label = f"average of {', '.join(map(shorten_name, over))}"
        alike = _is_measured_alike(pair, over)
        yield _row(label, printed, _share(_mean(shares, over)), format_percent, dense=dense_figures, alike=alike)


def _is_measured_alike(pair: PublishedPair, names: Sequence[str]) -> bool:
    """Say whether tasks, or the tasks of groups, were measured in the same way as the printed ones."""
    own = _own_tasks(pair.record, names)
    return bool(own) and not [*differences_of_tasks(pair.protocol, pair.record, own), *_words_of_ratio_difference(pair)]


def _own_tasks(record: Record, names: Sequence[str]) -> list[str]:
    """Return the record's tasks with these names; the name of a group, such as mmlu, stands for all its tasks."""
    return [task for task in _right(record) for name in names if task == name or task.startswith(f"{name}_")]


def _removed_in_order(pair: PublishedPair) -> Iterator[Row]:
    """Yield the row of how many removed layers are among as many first ones of the printed order; none without both."""
    removed, order = join_decisions(pair.record).get("removed_layers", []), pair.printed.order
    if order and 0 < len(removed) <= len(order):
        shared = len({*removed} & {*order[: len(removed)]})
        cell = TableCell(str(shared), value=shared)
        yield _row(f"layers among the first {len(removed)} to go", len(removed), cell, "{:.0f}".format)


def _right(record: Record) -> dict[str, float]:
    """Return {task: its accuracy by its main metric}."""
    tasks = record.measured.task_scores
    return {name: task.main_metric.value for name, task in tasks.items() if task.is_accuracy}


def _mean(right: Mapping[str, float], names: Sequence[str]) -> float | None:
    """Return the mean over tasks; a group such as mmlu is the mean of its tasks. None unless each was measured."""
    values = []
    for name in names:
        own = (
            [right[name]] if name in right else [value for task, value in right.items() if task.startswith(f"{name}_")]
        )
        if not own:
            return None
        values.append(fmean(own))
    return fmean(values)


def _share(value: float | None) -> TableCell:
    return TableCell() if value is None else TableCell(format_percent(value), value=value)


def _row(
    name: str,
    printed: float,
    cell: TableCell,
    show: Callable[[float], str],
    *,
    dense: tuple[float | None, float | None] = (None, None),
    alike: bool = True,
) -> Row:
    """Return the row of a measure.

    dense  the printed and the measured figure of the dense model
    alike  whether both were measured in the same way, so that their difference is shown
    """
    difference = TableCell()
    if alike and isinstance(cell.value, int | float):
        apart = float(cell.value) - printed
        difference = TableCell(f"{'+' if apart >= 0 else '-'}{show(abs(apart))}", value=apart)
    kept = [_cell_of_kept(figure, beside) for figure, beside in zip((printed, cell.value), dense, strict=True)]
    return Row(name, "", None, (TableCell(show(printed), value=printed), cell, difference, *kept))


def _cell_of_kept(value: Any, dense: float | None) -> TableCell:
    """Return the share of the dense model's figure: '80 %', or '2.55x' from 150 % on, as perplexities have."""
    if not isinstance(value, int | float) or not dense:
        return TableCell()
    share = value / dense
    return TableCell(f"{100 * share:.0f} %" if share < 1.5 else f"{share:.3g}x", value=share)


def _notes(pair: PublishedPair) -> Iterator[str]:
    """Yield the known differences between the cell and the printed row."""
    removed, printed = pair.record.measured.ratio or 0.0, pair.printed.ratio
    if printed is not None and _words_of_ratio_difference(pair):
        show = quantity_of_column("ratio").show
        yield f"another ratio: {show(printed)} published, {show(removed)} here."
    layers = pair.record.measured.layers
    if pair.printed.layers not in (None, layers):
        yield (f"another depth: {pair.printed.layers} layers are published, {pair.record.cell.label} leaves {layers}.")
    yield from _words_of_dense_difference(pair)
    yield from _no_difference(pair)
    missing = [name for name in pair.printed.tasks if _mean(_right(pair.record), [name]) is None]
    if missing:
        yield f"not measured here: {', '.join(missing)}."


def _words_of_ratio_difference(pair: PublishedPair) -> list[str]:
    """Return a sentence if the cell and the printed row have different ratios; otherwise nothing."""
    removed, printed = pair.record.measured.ratio or 0.0, pair.printed.ratio
    return [] if printed is None or abs(removed - printed) <= APART else ["another ratio"]


def _no_difference(pair: PublishedPair) -> Iterator[str]:
    """Yield why a table shows no difference of perplexities or of accuracies."""
    every = {_text(pair.record, word) for word in pair.printed.perplexity}
    texts = sorted(text for text in every if text)
    reasons = [reason for text in texts for reason in differences_of_perplexity(pair.protocol, pair.record, text)]
    if reasons:
        yield f"no difference of perplexities: {'; '.join(dict.fromkeys(reasons))}."
    average = pair.printed.average.of if pair.printed.average else ()
    own = _own_tasks(pair.record, [*pair.printed.tasks, *average])
    if own and (reasons := differences_of_tasks(pair.protocol, pair.record, list(dict.fromkeys(own)))):
        yield f"no difference of accuracies: {'; '.join(dict.fromkeys(reasons))}."


def _words_of_dense_difference(pair: PublishedPair) -> Iterator[str]:
    """Yield by how much the dense models differ, which shows the effect of the protocol alone."""
    right = _right(pair.dense) if pair.dense else {}
    means = {name: _mean(right, [name]) for name in pair.printed_dense.tasks}
    gaps = {
        name: 100 * abs(value - pair.printed_dense.tasks[name]) for name, value in means.items() if value is not None
    }
    if gaps:
        most = max(gaps, key=lambda name: gaps[name])
        yield (
            f"another way to ask: already the dense models differ by up to {gaps[most]:.1f} points "
            f"({shorten_name(most)}), "
            f"{fmean(gaps.values()):.1f} on average over {len(gaps)} tasks."
        )
