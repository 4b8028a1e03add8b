"""Writes verdicts in words and figures: of two cells (compare) and of a run against its baseline (gate).

Terminal, Markdown and CSV for a comparison; terminal, Markdown and JUnit XML for a gate.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from xml.etree import ElementTree

from tabulate import tabulate

from bench.regression.compare import ComparedRow, Judged
from bench.regression.gate import CELL, INCOMPARABLE, INCOMPLETE, REGRESSION, Verdict, exit_code
from reports import metrics
from reports.text import markdown_escaped, printable, width, wrap

LINE = 100  # columns of a terminal
NONE = "-"
OUTCOMES = {
    0: "no regression",
    REGRESSION: "regression",
    INCOMPLETE: "incomplete",
    INCOMPARABLE: "not comparable with the baseline",
}
PAIRED = "intervals: 95 %, of accuracies on the same documents and of perplexities on the same windows."
TIMED = "speed: times as fast as the dense model, as each run measured it; prompt or context in tokens."
P = "p: of no difference, adjusted for the number of tests in this table (Holm)."
DETECTABLE = "detectable: the smallest true difference that the test finds in 80 % of cases, given the flips seen here."
MARGIN = "margin: the loss that is tolerated. (word): shown, but does not count."


def comparison_terminal(judged: Sequence[Judged]) -> str:
    return _blocks(judged, lambda one: one.cells, _compared, terminal=True, notes=_notes(judged, P, DETECTABLE))


def comparison_markdown(judged: Sequence[Judged]) -> str:
    return _blocks(judged, lambda one: one.cells, _compared, terminal=False, notes=_notes(judged, P, DETECTABLE))


def _notes(rows: Sequence[Judged] | Sequence[Verdict], *more: str) -> tuple[str, ...]:
    """What the columns mean, as far as there are rows for it."""
    kinds = {one.row.kind for one in rows if one.row is not None}
    return (PAIRED, *[TIMED] * ("speed" in kinds), *more)


def comparison_csv(judged: Sequence[Judged]) -> str:
    """One line per metric, in full precision; a difference is a share for accuracies, a ratio for the rest."""
    out = io.StringIO()
    heads = ("cells", "kind", "metric", "a", "b", "difference", "low", "high", "p", "p_adjusted", "verdict")
    table = csv.writer(out, lineterminator="\n")
    table.writerow([*heads, "lost", "gained", "documents", "detectable"])
    for one in judged:
        row, found = one.row, one.row.difference
        figures = (
            [found.estimate, found.low, found.high, None if math.isnan(found.p) else found.p] if found else [None] * 4
        )
        line = [
            printable(one.cells),
            row.kind,
            printable(row.metric),
            row.before,
            row.after,
            *figures,
            one.p,
            one.verdict,
        ]
        table.writerow([*line, row.lost, row.gained, row.count or None, found.detectable if found else None])
    return out.getvalue()


def gate_terminal(verdicts: Sequence[Verdict], *, strict: bool = False) -> str:
    notes = (summary(verdicts, strict=strict), *_notes(verdicts, MARGIN))
    return _blocks(_merged(verdicts), lambda one: one.cell, _gated, terminal=True, notes=notes)


def gate_markdown(verdicts: Sequence[Verdict], *, strict: bool = False) -> str:
    """For a pull request: the outcome, what led to it, and all figures folded away."""
    found = [f"### prunebench: {markdown_escaped(summary(verdicts, strict=strict))}"]
    if notable := [v for v in verdicts if v.gates and v.word not in ("not worse", "new")]:
        found.append(_pipes([["cell", *GATE_HEADS], *([v.cell, *_gated(v)] for v in notable)]))
        found.append(_bullets([f"{v.cell}, {v.metric}: {v.reason}" for v in notable if v.reason]))
    details = _blocks(_merged(verdicts), lambda one: one.cell, _gated, terminal=False, notes=_notes(verdicts, MARGIN))
    return (
        "\n\n".join([*filter(None, found), "<details><summary>all figures</summary>", details.rstrip(), "</details>"])
        + "\n"
    )


def summary(verdicts: Sequence[Verdict], *, strict: bool = False) -> str:
    """'regression: 1 worse, 7 not worse; 5 more are shown and do not count'."""
    counts = Counter(v.word for v in verdicts if v.gates)
    shown = sum(not v.gates for v in verdicts)
    more = (
        f"; {shown} more {'is' if shown == 1 else 'are'} shown and do{'es' * (shown == 1)} not count" if shown else ""
    )
    return f"{OUTCOMES[exit_code(verdicts, strict=strict)]}: " + ", ".join(f"{n} {w}" for w, n in counts.items()) + more


def junit(verdicts: Sequence[Verdict], *, strict: bool = False) -> str:
    """A test case for each metric of each cell: worse is a failure; missing, failed and incomparable are errors.

    Inconclusive is skipped, and an error if `strict`; what does not count always passes and says so.
    """
    suite = ElementTree.Element("testsuite", name="prunebench")
    kinds: Counter[str] = Counter()
    for v in verdicts:
        case = ElementTree.SubElement(suite, "testcase", classname=_xml(v.cell), name=_xml(v.metric))
        kind = _junit_kind(v, strict)
        kinds[kind] += 1
        text = _xml(_sentence(v))
        if kind == "system-out":
            ElementTree.SubElement(case, kind).text = text
        else:
            ElementTree.SubElement(case, kind, {"message": text, "type": v.word})
    suite.attrib |= {"tests": str(len(verdicts)), "failures": str(kinds["failure"]), "errors": str(kinds["error"])}
    suite.set("skipped", str(kinds["skipped"]))
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def _junit_kind(v: Verdict, strict: bool) -> str:
    if not v.gates:
        return "system-out"
    if v.word == "worse":
        return "failure"
    if v.word in ("failed", "missing", "incomparable") or (strict and v.word == "inconclusive"):
        return "error"
    return "skipped" if v.word == "inconclusive" else "system-out"


def _xml(text: str) -> str:
    """ElementTree escapes the markup; control characters have no place in XML at all."""
    return printable(text)


def _sentence(v: Verdict) -> str:
    cells = dict(zip(GATE_HEADS, _gated(v), strict=True))
    figures = ", ".join(f"{name} {cells[name]}" for name in GATE_HEADS[1:-1] if cells[name] != NONE)
    return ": ".join(part for part in (cells["verdict"], figures, v.reason) if part)


COMPARE_HEADS = ("metric", "A", "B", "change", "95 % interval", "p", "verdict", "lost, gained", "detectable")
GATE_HEADS = ("metric", "baseline", "now", "change", "95 % interval", "margin", "verdict")


def _compared(one: Judged) -> list[str]:
    row = one.row
    flips = NONE if row.lost is None else f"{row.lost:,}, {row.gained:,} of {row.count:,}"
    detectable = row.difference.detectable if row.difference else None
    p = NONE if one.p is None else "<0.001" if one.p < 0.001 else f"{one.p:.3f}"
    return [
        row.metric,
        *_figures(row, rounded=True),
        p,
        one.verdict,
        flips,
        NONE if detectable is None else _loss(row, detectable),
    ]


def _gated(v: Verdict) -> list[str]:
    word = v.word if v.gates else f"({v.word})"
    if v.row is None:
        return [v.metric, *[NONE] * 5, word]
    margin = NONE if v.margin is None or not v.gates else _margin(v.row, v.margin)
    return [v.metric, *_figures(v.row), "exact" if v.row.kind == "size" and v.gates else margin, word]


def _figures(row: ComparedRow, *, rounded: bool = False) -> list[str]:
    """[before, after, change, interval] as text; sizes to the last digit unless `rounded`."""
    if row.kind == "size":
        write = metrics.count if rounded else "{:,.0f}".format
        sides = [NONE if figure is None else write(figure) for figure in (row.before, row.after)]
        if row.before is None or row.after is None:
            return [*sides, NONE, NONE]
        change = row.after - row.before
        return [*sides, "0" if not change else f"{'-' if change < 0 else '+'}{write(abs(change))}", NONE]
    sides = [NONE if figure is None else _figure(row, figure) for figure in (row.before, row.after)]
    if row.difference is None:
        return [*sides, NONE, NONE]
    found = row.difference
    low, high = _change(row, found.low), _change(row, found.high)
    return [*sides, _change(row, found.estimate) + _unit(row), f"[{low}, {high}]"]


def _figure(row: ComparedRow, figure: float) -> str:
    if row.kind == "text":
        return metrics.perplexity(figure, figure)
    if row.kind == "speed":
        return f"{metrics.speed(figure, figure)}x"
    return f"{metrics.percent(figure)} %" if _in_points(row) else metrics.significant(figure)


def _in_points(row: ComparedRow) -> bool:
    return row.kind == "accuracy" or row.right_or_wrong


def _change(row: ComparedRow, change: float) -> str:
    """Points of an accuracy, percent of a perplexity or speed-up, from a hundredfold on a factor."""
    if row.kind in ("text", "speed"):
        return f"{100 * (change - 1):+z.1f}" if change < 100 else f"x{metrics.perplexity(change, change)}"
    return f"{100 * change:+z.1f}" if _in_points(row) else f"{change:+.3g}"


def _unit(row: ComparedRow) -> str:
    if row.kind in ("text", "speed"):
        return "" if row.difference and row.difference.estimate >= 100 else " %"
    return " pt" if _in_points(row) else ""


def _loss(row: ComparedRow, detectable: float) -> str:
    text = _change(row, detectable)
    return text.lstrip("+") + ("" if text.startswith("x") else " %" if row.kind == "text" else " pt" * _in_points(row))


def _margin(row: ComparedRow, margin: float) -> str:
    if row.kind == "text":
        return f"{100 * math.expm1(margin):g} %"
    return f"{-100 * math.expm1(-margin):g} %" if row.kind == "speed" else f"{100 * margin:g} pt"


def _merged(verdicts: Sequence[Verdict]) -> Iterator[Verdict]:
    """With one row for all sizes of a cell where they are the baseline's."""
    for (_, is_size), group in groupby(verdicts, lambda v: (v.cell, v.row is not None and v.row.kind == "size")):
        rows = list(group)
        if is_size and len(rows) > 1 and all(v.word == "not worse" for v in rows):
            first = rows[0]
            yield Verdict(first.cell, f"{len(rows)} sizes", first.word, first.gates, reason="each as in the baseline")
        else:
            yield from rows


def _blocks(
    items: Iterable[Judged] | Iterable[Verdict],
    name: Callable[..., str],
    cells: Callable[..., list[str]],
    *,
    terminal: bool,
    notes: Sequence[str],
) -> str:
    """A table under the name of each cell or pair, what is to be said of its rows, and the notes."""
    heads = COMPARE_HEADS if cells is _compared else GATE_HEADS
    parts = []
    for title, group in groupby(items, name):
        rows = list(group)
        lines = [cells(row) for row in rows]
        used = [n for n, _ in enumerate(heads) if n == 0 or any(line[n] != NONE for line in lines)]
        reasons = [f"{r.metric}: {r.reason}" if r.metric != CELL else r.reason for r in _with_reason(rows)]
        table = [[heads[n] for n in used], *([line[n] for n in used] for line in lines)]
        if terminal:
            parts += [printable(title), _grid(table)]
            parts.append("\n".join(line for text in reasons for line in wrap(printable(text), LINE, indent="  ")))
        else:
            parts += [f"#### {markdown_escaped(title)}", _pipes(table), _bullets(reasons)]
    tail = "\n".join(line for note in notes for line in wrap(note, LINE, indent="  ")) if terminal else _bullets(notes)
    return "\n\n".join(part for part in [*parts, tail] if part) + "\n"


def _with_reason(rows: Sequence[object]) -> list[Verdict]:
    return [row for row in rows if isinstance(row, Verdict) and row.reason]


def _grid(table: Sequence[Sequence[str]]) -> str:
    """Columns under their heads, words to the left, figures to the right; what does not fit goes on in a grid below."""
    columns = [[printable(line[n]) for line in table] for n in range(len(table[0]))]
    first, *rest = [_aligned(column, words=n == 0 or column[0] == "verdict") for n, column in enumerate(columns)]
    grids = [[first]]
    for column in rest:
        used = sum(width(known[0]) + 2 for known in grids[-1])
        if used + width(column[0]) > LINE and len(grids[-1]) > 1:
            grids.append([first])
        grids[-1].append(column)
    texts = []
    for number, grid in enumerate(grids):
        lines = list(zip(*grid, strict=True))
        if number:
            lines = [line for line in lines if any(cell.strip() != NONE for cell in line[1:])]
        texts.append("\n".join("  ".join(line).rstrip() for line in lines))
    return "\n\n".join(texts)


def _aligned(column: Sequence[str], *, words: bool) -> list[str]:
    wide = max(width(cell) for cell in column)
    gaps = [" " * (wide - width(cell)) for cell in column]
    return [cell + gap if words else gap + cell for cell, gap in zip(column, gaps, strict=True)]


def _pipes(table: Sequence[Sequence[str]]) -> str:
    clean = [[markdown_escaped(cell) for cell in line] for line in table]
    return tabulate(clean[1:], headers=clean[0], tablefmt="pipe", disable_numparse=True)


def _bullets(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {markdown_escaped(sentence)}" for sentence in sentences)
