"""Verdicts as tables: of two cells (the command compare) and of a run against its baseline (the command gate)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import TypeVar

from bench.records import quantity as forms
from bench.records.quantity import MISSING
from bench.regression.compare import BITS, ComparedRow
from bench.regression.gate import CELL, INCOMPARABLE, INCOMPLETE, REGRESSION, JudgedRow, Verdict, exit_code_of
from reports.tables.table import Column, Row, Table, cell_of_text

OUTCOMES = {
    0: "no regression",
    REGRESSION: "regression",
    INCOMPLETE: "incomplete",
    INCOMPARABLE: "not comparable with the baseline",
}
PAIRED = "intervals: 95 %, of accuracies on the same documents and of perplexities on the same windows."
TIMED = "speed: times as fast as the dense model, as each run measured it; prompt or context in tokens."
P = "p: of no difference, adjusted for the number of tests in this table (Holm)."
DETECTABLE = (
    "detectable: the smallest true difference that this table finds in 80 % of cases, for its number of tests, given "
    "what changed here."
)
FINDABLE = (
    "detectable: the smallest true loss that this gate finds in 80 % of cases, at its margins and for its number of "
    "tests, given what changed here."
)
BITS_NOTE = "answer bpb: bits per byte of the right answer; lower is better."
FLIPS_NOTE = "flips: answers that are right where the dense model's are wrong, or the reverse; lower is better."
MARGIN = "margin: the loss that is tolerated. (word): shown, but does not count."
COMPARE_HEADS = ("metric", "A", "B", "change", "95 % interval", "p", "verdict", "lost, gained", "detectable")
GATE_HEADS = ("metric", "baseline", "now", "change", "95 % interval", "margin", "verdict", "detectable")
FIGURES = tuple(head for head in GATE_HEADS if head not in ("metric", "verdict"))
WORDS = ("metric", "verdict")  # columns whose cells are words
CSV_COLUMNS = (
    *("cells", "kind", "metric", "a", "b", "difference", "low", "high", "p", "p_adjusted", "verdict"),
    *("lost", "gained", "documents", "detectable"),
)
Item = TypeVar("Item", JudgedRow, Verdict)


def tables_of_comparison(judged: Sequence[JudgedRow]) -> list[Table]:
    """Return a table for each pair of cells, with a row for each metric."""
    footnotes = _footnotes(judged, P, DETECTABLE)
    return [
        _table("compare", cells, COMPARE_HEADS, list(map(_texts_of_comparison, rows)), footnotes=footnotes)
        for cells, rows in _group_by_name(judged, lambda row: row.cells)
    ]


def csv_of_comparison(judged: Sequence[JudgedRow]) -> tuple[Sequence[str], list[list[object]]]:
    """Return the headings, and a line of values for each metric.

    A difference is a share for accuracies, a ratio for perplexities and speed-ups, and in bits for bits per byte.
    """
    lines: list[list[object]] = []
    for judged_row in judged:
        row, contrast = judged_row.row, judged_row.row.contrast
        change = [contrast.estimate, contrast.low, contrast.high] if contrast else [None] * 3
        p = contrast.p if contrast and not math.isnan(contrast.p) and row.kind != "flips" else None
        line = [
            judged_row.cells,
            row.kind,
            row.metric,
            row.before,
            row.after,
            *change,
            p,
            judged_row.p,
            judged_row.verdict,
        ]
        lines.append([*line, *_lost_and_gained(row), row.count or None, _detectable(judged_row)])
    return CSV_COLUMNS, lines


def tables_of_gate(verdicts: Sequence[Verdict], *, strict: bool = False) -> list[Table]:
    """Return a table for each cell, with a row for each metric; the first footnote is the outcome."""
    footnotes = (summarise_verdicts(verdicts, strict=strict), *_footnotes(verdicts, MARGIN, FINDABLE))
    return [
        _table("gate", cell, GATE_HEADS, list(map(_texts_of_gate, rows)), notes=_reasons(rows), footnotes=footnotes)
        for cell, rows in _group_by_name(_merge_sizes(verdicts), lambda verdict: verdict.cell)
    ]


def table_of_notable(verdicts: Sequence[Verdict]) -> Table:
    """Return one table of the verdicts that count and are neither "not worse" nor "new", with the reasons as notes."""
    notable = [v for v in verdicts if v.gates and v.word not in ("not worse", "new")]
    reasons = [f"{v.cell}, {v.metric}: {v.reason}" for v in notable if v.reason]
    return _table("gate", "", ("cell", *GATE_HEADS), [[v.cell, *_texts_of_gate(v)] for v in notable], notes=reasons)


def sentence_of(v: Verdict) -> str:
    """Return a verdict with its values and its reason in a line."""
    cells = dict(zip(GATE_HEADS, _texts_of_gate(v), strict=True))
    figures = ", ".join(f"{name} {cells[name]}" for name in FIGURES if cells[name] != MISSING)
    return ": ".join(part for part in (cells["verdict"], figures, v.reason) if part)


def _group_by_name(items: Iterable[Item], name: Callable[[Item], str]) -> list[tuple[str, list[Item]]]:
    """Return (name, items) for neighbouring items of one name."""
    return [(key, list(group)) for key, group in groupby(items, name)]


def _footnotes(rows: Sequence[JudgedRow] | Sequence[Verdict], *more: str) -> tuple[str, ...]:
    """Return the meaning of the columns, for the kinds of rows that occur; `more` comes last."""
    kinds = {judged.row.kind for judged in rows if judged.row is not None}
    notes = [*[BITS_NOTE] * ("bits" in kinds), *[FLIPS_NOTE] * ("flips" in kinds)]
    return (PAIRED, *notes, *[TIMED] * ("speed" in kinds), *more)


def _reasons(verdicts: Iterable[Verdict]) -> list[str]:
    return [v.reason if v.metric == CELL else f"{v.metric}: {v.reason}" for v in verdicts if v.reason]


def _table(
    view: str,
    title: str,
    heads: Sequence[str],
    lines: Sequence[Sequence[str]],
    *,
    notes: Sequence[str] = (),
    footnotes: Sequence[str] = (),
) -> Table:
    """Return a table of texts without empty columns; the first column holds the rows' labels."""
    filled = {at for line in lines for at, text in enumerate(line) if text != MISSING}
    used = sorted(filled - {0})
    rows = []
    for line in lines:
        rows.append(Row(line[0], "", None, tuple(cell_of_text(line[at]) for at in used)))
    return Table(
        name=view,
        view=view,
        model="",
        title=title,
        conditions=(),
        columns=tuple(Column(heads[at], heads[at], words=heads[at] in WORDS) for at in used),
        rows=tuple(rows),
        notes=tuple(notes),
        footnotes=tuple(footnotes),
        head=heads[0],
    )


def summarise_verdicts(verdicts: Sequence[Verdict], *, strict: bool = False) -> str:
    """Return the outcome in a line: 'regression: 1 worse, 7 not worse; 5 more are shown and do not count'."""
    counts = Counter(v.word for v in verdicts if v.gates)
    uncounted = sum(not v.gates for v in verdicts)
    more = (
        f"; {uncounted} more {'is' if uncounted == 1 else 'are'} shown and do{'es' * (uncounted == 1)} not count"
        if uncounted
        else ""
    )
    return (
        f"{OUTCOMES[exit_code_of(verdicts, strict=strict)]}: " + ", ".join(f"{n} {w}" for w, n in counts.items()) + more
    )


def _texts_of_comparison(judged: JudgedRow) -> list[str]:
    """Return the texts of a row of a comparison, by COMPARE_HEADS."""
    row = judged.row
    lost, gained = _lost_and_gained(row)
    counts = MISSING if lost is None else f"{lost:,}, {gained:,} of {row.count:,}"
    detectable = _detectable(judged)
    loss = MISSING if detectable is None else _loss(row, detectable)
    p = MISSING if judged.p is None else "<0.001" if judged.p < 0.001 else f"{judged.p:.3f}"
    return [row.metric, *_figures(row, rounded=True), p, judged.verdict, counts, loss]


def _lost_and_gained(row: ComparedRow) -> tuple[int | None, int | None]:
    """Return the answers that only the first, only the second cell has right; None where the row counts none."""
    contrast = row.contrast if row.kind != "flips" else None
    return (contrast.lost, contrast.gained) if contrast else (None, None)


def _detectable(judged: JudgedRow) -> float | None:
    """Return the detectable difference on the scale of the row's difference: a ratio for a perplexity."""
    return (
        math.exp(judged.detectable)
        if judged.detectable is not None and judged.row.kind == "text"
        else judged.detectable
    )


def _texts_of_gate(v: Verdict) -> list[str]:
    """Return the texts of a row of a gate, by GATE_HEADS."""
    word = v.word if v.gates else f"({v.word})"
    if v.row is None:
        return [v.metric, *[MISSING] * 5, word, MISSING]
    margin = MISSING if v.margin is None or not v.gates else _margin(v.row, v.margin)
    loss = MISSING if v.findable is None else _margin(v.row, v.findable, rounded=True)
    return [v.metric, *_figures(v.row), "exact" if v.row.kind == "size" and v.gates else margin, word, loss]


def _figures(row: ComparedRow, *, rounded: bool = False) -> list[str]:
    """Return [before, after, change, interval] as text; sizes to the last digit unless `rounded`."""
    if row.kind == "size":
        write = forms.format_count if rounded else "{:,.0f}".format
        sides = [MISSING if figure is None else write(figure) for figure in (row.before, row.after)]
        if row.before is None or row.after is None:
            return [*sides, MISSING, MISSING]
        change = row.after - row.before
        return [*sides, "0" if not change else f"{'-' if change < 0 else '+'}{write(abs(change))}", MISSING]
    sides = [MISSING if figure is None else _figure(row, figure) for figure in (row.before, row.after)]
    if row.contrast is None:
        return [*sides, MISSING, MISSING]
    low, high = _change(row, row.contrast.low), _change(row, row.contrast.high)
    return [*sides, _change(row, row.contrast.estimate) + _unit(row), f"[{low}, {high}]"]


def _figure(row: ComparedRow, figure: float) -> str:
    if row.kind == "text":
        return forms.format_perplexity(figure, figure)
    if row.kind == "speed":
        return f"{forms.format_speed(figure, figure)}x"
    if row.kind in BITS:
        return forms.format_bits(figure)
    return f"{forms.format_percent(figure)} %" if _in_points(row) else forms.format_significant(figure)


def _in_points(row: ComparedRow) -> bool:
    return row.kind == "accuracy" or row.is_accuracy


def _change(row: ComparedRow, change: float) -> str:
    """Return a change as text: points of an accuracy, percent of a perplexity or speed-up, a factor from 100 on."""
    if row.kind in ("text", "speed"):
        return f"{100 * (change - 1):+z.1f}" if change < 100 else f"x{forms.format_perplexity(change, change)}"
    if row.kind in BITS:
        return f"{change:+z.3f}"
    return f"{100 * change:+z.1f}" if _in_points(row) else f"{change:+.3g}"


def _unit(row: ComparedRow) -> str:
    if row.kind in ("text", "speed"):
        return "" if row.contrast and row.contrast.estimate >= 100 else " %"
    return " pt" if _in_points(row) else ""


def _loss(row: ComparedRow, detectable: float) -> str:
    text = _change(row, detectable)
    return text.lstrip("+") + ("" if text.startswith("x") else " %" if row.kind == "text" else " pt" * _in_points(row))


def _margin(row: ComparedRow, margin: float, *, rounded: bool = False) -> str:
    """Return a loss as text, with all its digits, or rounded like a change."""
    if row.kind in BITS:
        return forms.format_bits(margin) if rounded else f"{margin:g}"
    percent = {"text": math.expm1(margin), "speed": -math.expm1(-margin)}.get(row.kind, margin)
    written = f"{100 * percent:.1f}" if rounded else f"{100 * percent:g}"
    return f"{written} {'%' if row.kind in ('text', 'speed') else 'pt'}"


def _merge_sizes(verdicts: Sequence[Verdict]) -> Iterator[Verdict]:
    """Yield the verdicts, with a single one for the sizes of a cell if all are as in the baseline."""
    for (_, is_size), group in groupby(verdicts, lambda v: (v.cell, v.row is not None and v.row.kind == "size")):
        rows = list(group)
        if is_size and len(rows) > 1 and all(v.word == "not worse" for v in rows):
            first = rows[0]
            yield Verdict(first.cell, f"{len(rows)} sizes", first.word, first.gates, reason="each as in the baseline")
        else:
            yield from rows
