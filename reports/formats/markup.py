"""Tables in formats for other programs, and the verdicts of a gate for continuous integration.

In order: the verdicts as a comment for a pull request and as JUnit XML; tables as HTML fragments, which are plain
<table> elements without style or script for a page of one's own; tables as Markdown; tables as tidy CSV, with one line
for each value in full precision.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from xml.etree import ElementTree

from tabulate import tabulate

from bench.records.quantity import MISSING
from bench.regression.gate import Verdict
from reports.tables import verdicts as tables
from reports.tables.table import Column, Row, Table, TableCell, cell_text, footnotes_of, legend_of, protocol_of
from reports.text import escape_markdown, to_printable


def comment_of_verdicts(verdicts: Sequence[Verdict], *, strict: bool = False) -> str:
    """Return Markdown for a pull request: the outcome, the verdicts that led to it, and all figures folded away."""
    parts = [f"### prunebench: {escape_markdown(tables.summarise_verdicts(verdicts, strict=strict))}"]
    notable = tables.table_of_notable(verdicts)
    if notable.rows:
        parts += [grid_to_markdown(notable), bullets_to_markdown(notable.notes)]
    details = render_markdown(tables.tables_of_gate(verdicts, strict=strict), level=4).rstrip()
    parts += ["<details><summary>all figures</summary>", details, "</details>"]
    return "\n\n".join(filter(None, parts)) + "\n"


def to_junit(verdicts: Sequence[Verdict], *, strict: bool = False) -> str:
    """Return JUnit XML with a test case for each metric: worse is a failure; missing, failed, incomparable are errors.

    Inconclusive is skipped, or an error if `strict`. A verdict that does not count always passes, with its text.
    """
    suite = ElementTree.Element("testsuite", name="prunebench")
    kinds: Counter[str] = Counter()
    for v in verdicts:
        case = ElementTree.SubElement(suite, "testcase", classname=to_printable(v.cell), name=to_printable(v.metric))
        kind = _junit_kind(v, strict)
        kinds[kind] += 1
        text = to_printable(tables.sentence_of(v))
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


def render_html(tables: Sequence[Table]) -> str:
    """Return a <table> with a caption for each group of columns, the notes behind it, and the footnotes at the end."""
    parts = []
    for table in tables:
        parts += [*map(grid_to_html, table.groups()), bullets_to_html([*table.notes, *legend_of([table])])]
    lines = [*footnotes_of(tables), *map(": ".join, protocol_of(tables))]
    return "\n".join(filter(None, [*parts, bullets_to_html(lines)])) + "\n"


def grid_to_html(table: Table) -> str:
    """Return one <table>. A data element holds the raw value of a cell, so that a script can sort by it."""
    import pandas as pd

    caption = "; ".join(filter(None, [table.model, table.title or "dense model", *table.conditions]))
    heads = [_escape(column.head) for column in table.columns]
    frame = pd.DataFrame([_cells(row, len(heads)) for row in table.rows], columns=heads)
    frame.index = pd.Index([_escape(row.label) for row in table.rows])
    frame.columns.name = _escape(table.head)
    text = frame.style.set_caption(_escape(caption)).to_html(exclude_styles=True).replace("<td >", "<td>").rstrip()
    head, body = text.split("<tbody>")
    return head.replace("<th >", '<th scope="col">') + "<tbody>" + body.replace("<th >", '<th scope="row">')


def _cells(row: Row, count: int) -> list[str]:
    """Return the cells of a row; the first cell of a failed row is its status, the rest are empty."""
    return [_escape(row.failure), *[""] * (count - 1)] if row.failure else [_html_cell(cell) for cell in row.cells]


def _html_cell(cell: TableCell) -> str:
    text = _escape(cell_text(cell))
    if isinstance(cell.value, int | float):
        text = f'<data value="{cell.value!r}">{text}</data>'
    return f"<strong>{text}</strong>" if "best" in cell.marks else text


def bullets_to_html(sentences: Iterable[str]) -> str:
    """Return sentences as a <ul>; empty without any."""
    items = "".join(f"<li>{_escape(sentence)}</li>" for sentence in sentences)
    return f"<ul>{items}</ul>" if items else ""


def _escape(text: str) -> str:
    return escape(to_printable(text))


def render_markdown(tables: Sequence[Table], level: int = 2, title: str = "") -> str:
    """Return a section for each table with its notes, and the footnotes at the end."""
    parts = [f"# {escape_markdown(title)}" if title else ""]
    parts += [part for table in tables for part in section_of_table(table, level)]
    parts += [bullets_to_markdown(footnotes_of(tables)), protocol_to_markdown(protocol_of(tables))]
    return "\n\n".join(filter(None, parts)) + "\n"


def section_of_table(table: Table, level: int = 2) -> list[str]:
    """Return the heading at `level`, the conditions, a grid for each group of columns, and the notes."""
    return [
        f"{'#' * level} {escape_markdown(table.heading)}" if table.heading else "",
        escape_markdown(", ".join(filter(None, [table.model, *table.conditions]))),
        *(grid_to_markdown(part) for part in table.groups()),
        bullets_to_markdown([*table.notes, *legend_of([table])]),
    ]


def grid_to_markdown(table: Table) -> str:
    """Return the columns and rows alone; a failed row has its status in the first column of values."""
    sides = ["left" if column.words else "right" for column in table.columns]
    heads = [table.head] + [column.head for column in table.columns]
    return tabulate(
        [[escape_markdown(row.label), *_markdown_cells(row, len(sides))] for row in table.rows],
        headers=list(map(escape_markdown, heads)),
        tablefmt="pipe",
        colalign=("left", *sides),
        disable_numparse=True,
    )


def _markdown_cells(row: Row, count: int) -> list[str]:
    return [row.failure, *[""] * (count - 1)] if row.failure else [_markdown_cell(cell) for cell in row.cells]


def _markdown_cell(cell: TableCell) -> str:
    text = escape_markdown(cell_text(cell))
    return f"**{text}**" if "best" in cell.marks else text


def bullets_to_markdown(sentences: Iterable[str]) -> str:
    """Return the sentences as a list in Markdown."""
    return "\n".join(f"- {escape_markdown(sentence)}" for sentence in sentences)


def protocol_to_markdown(protocol: Sequence[tuple[str, str]]) -> str:
    """Return the protocol as a table of two columns; empty without rows."""
    rows = [tuple(map(escape_markdown, row)) for row in protocol]
    heads = ("quantity", "how it was measured")
    return tabulate(rows, headers=heads, tablefmt="pipe", disable_numparse=True) if rows else ""


COLUMNS = (
    *("table", "model", "conditions", "label", "method", "requested_ratio", "ratio_of", "failure"),
    *("measure", "value", "low", "high", "stderr", "shown", "marks"),
)
FORMULA = ("=", "+", "-", "@")  # begin a formula; so does a tab, which to_printable replaces


def csv_of_lines(heads: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Return CSV with these headings. None is an empty field, and control characters of a text are escaped, as in \\n.

    A text that a spreadsheet would compute has a ' in front.
    """
    import pandas as pd

    frame = pd.DataFrame(list(lines), columns=range(len(heads)), dtype=object)
    return frame.map(_text).to_csv(header=[_text(head) for head in heads], index=False, lineterminator="\n")


def _text(value: object) -> str:
    """Return a value as the text of a field, numbers in full precision."""
    if value is None or not isinstance(value, str):
        return "" if value is None else str(value)
    text = to_printable(value)
    is_formula = text.startswith(FORMULA) and any(map(str.isalnum, text)) and not _is_number(text)
    return f"'{text}" if is_formula else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def render_csv(tables: Sequence[Table]) -> str:
    """Return all values of all tables as CSV. A place of a grid without a cell has no line."""
    lines = []
    for table in tables:
        for row in table.rows:
            cells = zip(table.columns, row.cells, strict=True)
            lines += [_line(table, row, column, cell) for column, cell in cells if table.view != "grid" or cell.of]
    return csv_of_lines(COLUMNS, lines)


def _line(table: Table, row: Row, column: Column, cell: TableCell) -> list[object]:
    label, method = cell.of or (row.label, row.method)
    ratio, of = column.ratio_and_base or (row.ratio, row.ratio_of)
    failed = (column.ratio_and_base or cell.of) and cell.value is None and cell.text != MISSING
    return [
        table.name,
        table.model,
        ", ".join(table.conditions),
        label if table.head == "method" else f"{table.head}={label}",
        method,
        ratio,
        None if ratio is None else of,
        cell.text if failed else row.failure,
        column.name,
        *(cell.value, cell.low, cell.high, cell.stderr),
        cell.text,
        " ".join(cell.marks),
    ]
