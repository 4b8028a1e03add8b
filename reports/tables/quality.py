"""The quality of one model as a table: a row for each value, with its interval and what it is over."""

from __future__ import annotations

from bench.records import quantity as forms
from bench.records.frame import interval_of_answers
from bench.records.measured import ANSWER_BPB, Measured, RangeScore, TaskMetric, TaskScore, TextScore
from bench.stats.intervals import NORMAL_95
from reports.tables.table import Column, Row, Table, TableCell, cell_of_text

NOTE = "intervals: of perplexities over windows; of accuracies Wilson's, of other means 1.96 standard errors."
Ends = tuple[float | None, float | None]


def table_of_quality(name: str, measured: Measured) -> Table:
    """Return a table of the perplexities and the answers of one model, which is called `name`."""
    rows = [_row_of_windows(text, score) for text, score in measured.scores_of_windows.items()]
    for task, score in measured.task_scores.items():
        rows += _rows_of_task(task, score)
    return Table(
        name="quality",
        view="quality",
        model=name,
        title=f"{forms.format_count(measured.parameters or 0)} parameters",
        conditions=(),
        columns=tuple(Column(head, head) for head in ("value", "95 % interval", "over")),
        rows=tuple(rows),
        footnotes=(NOTE,),
        head="metric",
    )


def _row_of_windows(name: str, score: TextScore | RangeScore) -> Row:
    value, ends = score.perplexity, (score.perplexity_low, score.perplexity_high)
    figures = [None if figure is None else forms.format_perplexity(figure, value) for figure in (value, *ends)]
    return _row(f"perplexity {forms.shorten_name(name)}", (value, ends), figures, f"{score.windows:,} windows")


def _rows_of_task(name: str, score: TaskScore) -> list[Row]:
    """Return a row for the main metric of a task, and one for the bits per byte of its right answers."""
    main = score.main_metric
    ends: Ends = interval_of_answers(score) or _ends_of_mean(main)
    metrics = {score.main: (main, ends)}
    if score.answer_bpb:
        metrics[ANSWER_BPB] = score.answer_bpb, _ends_of_mean(score.answer_bpb)
    rows, over = [], f"{score.documents:,} of {score.available:,} documents"
    for metric, (each, ends_of_metric) in metrics.items():
        is_share = metric == score.main and score.is_accuracy
        write = forms.format_percent if is_share else forms.format_bits
        texts = [None if figure is None else write(figure) for figure in (each.value, *ends_of_metric)]
        label = f"{forms.shorten_name(name)} {'bpb' if metric == ANSWER_BPB else metric}{' (%)' if is_share else ''}"
        rows.append(_row(label, (each.value, ends_of_metric), texts, over))
    return rows


def _ends_of_mean(metric: TaskMetric) -> Ends:
    if metric.stderr is None:
        return None, None
    return metric.value - NORMAL_95 * metric.stderr, metric.value + NORMAL_95 * metric.stderr


def _row(label: str, figures: tuple[float, Ends], texts: list[str | None], over: str) -> Row:
    (value, (low, high)), (text, *ends) = figures, texts
    interval = None if None in ends else f"[{ends[0]}, {ends[1]}]"
    return Row(
        label,
        "",
        None,
        (TableCell(text or forms.MISSING, value=value, low=low, high=high), cell_of_text(interval), cell_of_text(over)),
    )
