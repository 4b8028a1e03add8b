"""Tables and whole cells for a terminal, in lines of at most 100 columns.

Tables are wrapped and never shortened; colour is optional. A whole cell is the tree of reports.tables.whole_cell.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import zip_longest

from bench.records.quantity import MISSING
from bench.records.record import Record
from reports.tables.table import Column, Row, Table, TableCell, cell_text, footnotes_of, legend_of, protocol_of
from reports.tables.whole_cell import Fact, facts_of, title_of_cell
from reports.text import to_printable, width_of, wrap

LINE = 100  # columns of a terminal
LABEL = 28  # columns of a method's name; a longer one goes on in the next line
WORDS = 34  # columns of a cell of words; a longer one goes on in the next line
GAP = "  "
LEGEND = 8  # lines under a table, unless all are to be explained
COLOURS = {"missed": "33", "doubtful": "33", "best": "1"}  # escape codes by mark, the last one wins
FAILED = "31"

Column_ = list[list[str]]  # a heading and a cell for each row, of one or more lines each, all equally wide


def render(tables: Sequence[Table], *, colour: bool = False, explain: bool = True) -> str:
    """Return the tables one below the other with their notes, and the footnotes at the end.

    Columns that do not fit stand in a grid below.

    colour   whether escape codes show the best values
    explain  whether all notes and footnotes are shown; otherwise a table has at most LEGEND lines of them below it, and
             one more line counts the rest
    """
    parts, left_out, room = list[list[str]](), 0, LEGEND
    for table in tables:
        parts.append(_heading(table))
        parts.append(_bullets(table.lead))
        parts += _pages(table, colour)
        lines, count = (_bullets(table.notes), 0) if explain else _fit_lines(table.notes, LEGEND)
        parts.append(lines)
        left_out, room = left_out + count, LEGEND - len(lines)
    footer = [*(legend_of(tables) if colour else ()), *footnotes_of(tables), *_left_out(tables)]
    protocol = protocol_of(tables)
    lines, count = (_bullets(footer), 0) if explain else _fit_lines(footer, room)
    if not explain and (left_out := left_out + count + len(protocol)):
        lines += _bullets([f"more lines, with `report --explain`: {left_out}."])
    parts.append(lines)
    if explain and protocol:
        parts.append(_protocol_lines(protocol))
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def lines_of_grid(table: Table) -> list[str]:
    """Return the lines of the columns and rows alone, as one grid of any width."""
    names = [wrap(to_printable(row.label), LABEL, breaks=",", indent=GAP) for row in table.rows]
    columns = [_column(table.rows, at, column, colour=False) for at, column in enumerate(table.columns)]
    return _grid(to_printable(table.head), table.rows, names, columns, colour=False)


def _heading(table: Table) -> list[str]:
    """Return one line if it fits; otherwise lines for model and title, then for the conditions."""
    halves = [to_printable("   ".join(filter(None, half))) for half in ((table.model, table.title), table.conditions)]
    line = "   ".join(filter(None, halves))
    lines = [line] if width_of(line) <= LINE else [line for half in halves for line in wrap(half, LINE)]
    return lines if line else []


def _left_out(tables: Sequence[Table]) -> Iterator[str]:
    """Yield sentences that name the spreads and columns that only other formats show."""
    columns = [(column, at, table) for table in tables for at, column in enumerate(table.columns)]
    spreads = dict[str, None]()
    for column, at, table in columns:
        if column.brief and any(row.cells[at].short != row.cells[at].text for row in table.rows):
            is_task = column.name.startswith(("task_", "score_", "answer_bpb_", "flips_", "written_"))
            spreads["the tasks" if is_task else column.label] = None
    details = dict.fromkeys(column.label for column, _, _ in columns if column.detail)
    if spreads:
        yield f"the ± of {', '.join(spreads)} stands in the Markdown report."
    if details:
        yield f"the Markdown report also has: {', '.join(details)}."


def _bullets(sentences: Iterable[str]) -> list[str]:
    return [line for sentence in sentences for line in wrap(to_printable(sentence), LINE, indent=GAP)]


def _fit_lines(sentences: Sequence[str], room: int) -> tuple[list[str], int]:
    """Return the lines of the sentences that fit, and how many do not; of a first one that is longer its start."""
    lines = list[str]()
    for number, sentence in enumerate(sentences):
        wrapped = _bullets([sentence])
        if len(lines) + len(wrapped) > room:
            start = [*wrapped[: room - 1], f"{wrapped[room - 1][: LINE - 4]} ..."] if room > 1 and not lines else []
            return [*lines, *start], len(sentences) - number
        lines += wrapped
    return lines, 0


def _protocol_lines(protocol: Sequence[tuple[str, str]]) -> list[str]:
    """Return the protocol in two columns: the quantities, and how each was measured."""
    names = [wrap(to_printable(quantity), LABEL, indent=GAP) for quantity, _ in protocol]
    room = LINE - _wide(names) - len(GAP)
    words = [wrap(to_printable(text), room) for _, text in protocol]
    rows = zip(names, words, strict=True)
    return [
        f"{left:<{_wide(names)}}{GAP}{right}".rstrip()
        for row in rows
        for left, right in zip_longest(*row, fillvalue="")
    ]


def _pages(table: Table, colour: bool) -> Iterator[list[str]]:
    """Yield the table as one grid if it fits; otherwise as several, by groups of columns, each with the rows' labels.

    A grid below the first leaves out rows that are empty in its columns.
    """
    kept = table.only([number for number, column in enumerate(table.columns) if not column.detail])
    names = [wrap(to_printable(row.label), LABEL, breaks=",", indent=GAP) for row in kept.rows]
    head = to_printable(table.head)
    room = LINE - _wide([[head], *names])
    columns = [_column(kept.rows, number, column, colour) for number, column in enumerate(kept.columns)]
    if _total(columns) <= room:
        yield _grid(head, kept.rows, names, columns, colour)
        return
    groups = list(dict.fromkeys(column.group for column in kept.columns))
    order = sorted(range(len(columns)), key=lambda number: groups.index(kept.columns[number].group))
    keys = [number for number in order if kept.columns[number].key]
    rest = [number for number in order if not kept.columns[number].key]
    beside = room - _total([columns[at] for at in keys])
    for page in _fill_pages(rest, columns, beside):
        places = [at for at, row in enumerate(kept.rows) if page[0] == rest[0] or row.failure or _stands(row, page)]
        lines_kept = [0, *(at + 1 for at in places)]
        cells = [list(map(columns[n].__getitem__, lines_kept)) for n in (*keys, *page)]
        yield _grid(head, [kept.rows[at] for at in places], [names[at] for at in places], cells, colour)


def _stands(row: Row, page: Sequence[int]) -> bool:
    """Say whether a row has anything in the columns of these numbers."""
    return any(row.cells[number].text != MISSING for number in page)


def _fill_pages(numbers: Sequence[int], columns: Sequence[Column_], room: int) -> Iterator[list[int]]:
    """Yield the numbers of the columns of each page: as many as fit into `room`, and at least one."""
    page: list[int] = []
    for number in numbers:
        if page and _total([columns[at] for at in (*page, number)]) > room:
            yield page
            page = []
        page.append(number)
    yield page


def _total(columns: Sequence[Column_]) -> int:
    return sum(len(GAP) + _wide(column) for column in columns)


def _wide(cells: Iterable[Sequence[str]]) -> int:
    return max(width_of(_plain(line)) for lines in cells for line in lines)


def _column(rows: Sequence[Row], number: int, column: Column, colour: bool) -> Column_:
    """Return the lines of a column. Values end at one place, and unit, ± or star begin there.

    Words are on the left and wrapped.
    """
    cells = [row.cells[number] for row in rows]
    texts = [to_printable(cell_text(cell, brief=column.brief)) for cell in cells]
    head = to_printable(column.label)
    if column.words:
        lines = [wrap(text, WORDS) for text in texts]
        wide = max(width_of(head), _wide([[""], *lines]))
        return [list(map(partial(_pad, wide=wide), each)) for each in ([head], *lines)]
    parts = [re.match(r"([-+<]?[\d.,e]+x?)(.*)", text) for text in texts]
    left = max((width_of(part[1]) for part in parts if part), default=0)
    right = max((width_of(part[2]) for part in parts if part), default=0)
    wide = max(left + right, width_of(head), *map(width_of, texts))
    aligned = [head.rjust(wide + len(head) - width_of(head))]
    for text, part in zip(texts, parts, strict=True):
        figure, behind = (part[1], part[2]) if part else (text, "")
        behind = _pad(behind, right) if part or width_of(text) <= left else ""  # a word takes all the room
        aligned.append((" " * (wide - width_of(figure) - width_of(behind))) + figure + behind)
    return [[aligned[0]], *([_style(text, cell, colour)] for text, cell in zip(aligned[1:], cells, strict=True))]


def _pad(text: str, wide: int) -> str:
    return text + " " * (wide - width_of(text))


def _style(text: str, cell: TableCell, colour: bool) -> str:
    """Return the text with the escape code of its most important mark around all but the spaces at its ends."""
    codes = [code for mark, code in COLOURS.items() if mark in cell.marks]
    return _colour(text, codes[-1]) if colour and codes else text


def _colour(text: str, code: str) -> str:
    core = text.strip()
    return text.replace(core, f"\x1b[{code}m{core}\x1b[0m", 1)


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[\d*m", "", text)


def _grid(head: str, rows: Sequence[Row], names: list[list[str]], columns: list[Column_], colour: bool) -> list[str]:
    """Return the lines of one grid; a failed row has its status in place of values."""
    first = _wide([[head], *names])
    lines = [GAP.join([_pad(head, first), *(column[0][0] for column in columns)]).rstrip()]
    for number, (row, name) in enumerate(zip(rows, names, strict=True), start=1):
        failed = _colour(row.failure, FAILED) if row.failure and colour else row.failure
        cells = [[failed]] if failed else [column[number] for column in columns]
        blank = [" " * _wide(each) for each in cells]
        for line in zip_longest(name, *cells):
            texts = [blank[at] if text is None else text for at, text in enumerate(line[1:])]
            lines.append(GAP.join([_pad(line[0] or "", first), *texts]).rstrip())
    return lines


NAME = 30  # columns of a name; the value of a longer one is not aligned with the rest
INDENT = "  "


def text_of_cell(record: Record, key: str, more: Sequence[Fact] = ()) -> str:
    """Return everything about a cell in lines of at most 100 columns; `key` is the name of its file.

    more  facts that stand behind those of the record

    A table that is wider stands row by row.
    """
    lines = [*wrap(to_printable(title_of_cell(record)), LINE, indent=INDENT), *wrap(to_printable(key), LINE), ""]
    for block in (*facts_of(record), *more):
        lines += [block.name.upper(), *_lines(block, 1), ""]
    return "\n".join(lines[:-1]) + "\n"


def _lines(block: Fact, depth: int) -> Iterator[str]:
    """Yield the lines of the facts inside `block`: names in one column, values beside them."""
    margin = INDENT * depth
    column = min(NAME, max((width_of(to_printable(fact.name)) for fact in block.inside), default=0))
    for fact in block.inside:
        name = to_printable(fact.name)
        if fact.inside:
            yield from wrap(margin + name, LINE, indent=margin + INDENT)
            yield from _lines(fact, depth + 1)
        elif fact.table:
            yield from wrap(f"{margin}{name}", LINE, indent=margin + INDENT)
            yield from _table_lines(fact.table, margin + INDENT)
        else:
            beside = margin + name + " " * max(0, column - width_of(name)) + INDENT
            behind = " " * width_of(beside) if width_of(beside) < LINE // 2 else margin + INDENT * 2
            first, *more = fact.value.splitlines() or [""]
            yield from wrap(beside + to_printable(first), LINE, indent=behind)
            for line in more:
                yield from wrap(behind + to_printable(line), LINE, indent=behind + INDENT)


def _table_lines(table: Table, margin: str) -> Iterator[str]:
    """Yield the table as one grid if it fits; otherwise each row as one wrapped line of 'name value' pairs."""
    lines = lines_of_grid(table)
    if width_of(margin) + max(map(width_of, lines)) <= LINE:
        yield from (margin + line for line in lines)
        return
    for row in table.rows:
        names, values = (
            (table.head, *(column.label for column in table.columns)),
            (row.label, *(c.text for c in row.cells)),
        )
        pairs = ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True) if value)
        yield from wrap(to_printable(f"{margin}{pairs}"), LINE, indent=margin + INDENT)
