r"""Tables as LaTeX: booktabs, the best figure in bold, a dagger at a tested difference.

A fragment has a `table` environment for each group of columns, and needs \usepackage{booktabs,graphicx}. All text is
ASCII, so that every engine and input encoding compiles it. pandas writes the grids.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import chain, takewhile
from textwrap import wrap

from reports.tables.table import Column, Table, TableCell, legend_of, signs_of
from reports.text import to_printable

PREAMBLE = r"""\documentclass{article}
\usepackage[a4paper,margin=2cm]{geometry}
\usepackage{booktabs,graphicx}
\begin{document}
"""
END = "\n\\end{document}\n"
SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "`": r"\textasciigrave{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"{\ttfamily\symbol{34}}",
    "±": r"$\pm$",
    "†": r"$^{\dagger}$",
    "‡": r"$^{\ddagger}$",
    "×": r"$\times$",
    "…": r"\ldots{}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "–": r"\textendash{}",
    "ß": r"\ss{}",
    "æ": r"\ae{}",
    "ø": r"\o{}",
    "å": r"\aa{}",
    "ł": r"\l{}",
    "ı": r"\i{}",
    **{letter: f"\\{letter}" for letter in "#$%&_"},
}
ACCENTS = dict(  # combining characters, by the letter of their command
    zip("\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327", "`'^~=u.\"rHvc", strict=True)
)
LETTERS = ("alpha", "beta", "gamma", "delta", "epsilon", "eta", "theta", "kappa", "lambda", "mu", "rho", "sigma", "tau")
GREEK = dict(zip("αβγδεηθκλμρστω", (*LETTERS, "omega"), strict=True))  # names of parameters
ROWS, PAGE = 40, 50  # rows of one environment; rows of a page, on which notes count by their height
LINE = 95  # characters of a note in a line of wide letters
FLOATS = 15  # LaTeX loses count of some 50 tables without a word of text between them
CLEAR = "\n\\clearpage\n"
WORDS = 24  # characters of a cell of words; the column of a longer one breaks lines


def escape(text: str) -> str:
    """Return `text` in ASCII such that LaTeX prints it unchanged; a character that it cannot print becomes its code."""
    return re.sub(r"([-',])(?=\1)", r"\1{}", "".join(map(_character, to_printable(text))))  # no dashes and quotes


def _character(c: str) -> str:
    if c in SPECIAL:
        return SPECIAL[c]
    if c in GREEK:
        return f"$\\{GREEK[c]}$"
    if c.isascii():
        return c
    base, *accents = list(unicodedata.normalize("NFD", c))
    if base.isascii() and base.isalpha() and len(accents) == 1 and accents[0] in ACCENTS:
        return f"\\{ACCENTS[accents[0]]}{{{base}}}"
    return f"[U+{ord(c):04X}]"


def render(tables: Sequence[Table], *, standalone: bool = False) -> str:
    """Return the tables one below the other; with `standalone` as a whole document."""
    parts = [environment for table in tables for environment in environments_of(table)]
    if not standalone:
        return "\n".join(parts)
    sheets = ["\n".join(parts[start : start + FLOATS]) for start in range(0, len(parts), FLOATS)]
    return f"{PREAMBLE}{CLEAR.join(sheets)}{END}"


def environments_of(table: Table) -> Iterator[str]:
    """Yield a `table` environment for each group of columns, and further ones for the rows that a page has no room for.

    The notes stand below the first grid; notes that do not fit there have environments of their own.
    """
    caption = "; ".join(filter(None, [table.model, table.title or "dense model", ", ".join(table.conditions)]))
    notes, footnotes = table.notes, (*table.footnotes, *map(": ".join, table.protocol))
    for part in table.groups():
        group = part.columns[0].group
        name = f"tab:{table.name}" + (f"-{group}" if group != table.columns[0].group else "")
        lines = [*notes, *legend_of([part]), *footnotes]
        grids = [_grid(part, start) for start in range(0, max(1, len(part.rows)), ROWS)]
        height = min(len(part.rows), ROWS)
        if height + _height(lines) <= PAGE:
            grids[0] += _paragraphs(lines)
            lines = []
        for number, grid in enumerate(grids, start=1):
            yield _environment(f"{caption}.", name, number, grid)
        for number, page in enumerate(_pages(lines), start=len(grids) + 1):
            yield _environment(f"Notes. {caption}.", name, number, _paragraphs(page))
        notes = footnotes = ()


def _height(notes: Sequence[str]) -> float:
    """Return the least height of notes, in rows of a table."""
    return sum(0.8 * math.ceil(len(note) / LINE) for note in notes)


def _pages(notes: Sequence[str]) -> Iterator[list[str]]:
    """Yield the notes of each page; a note that is longer than a page goes on on the next one."""
    page: list[str] = []
    for note in chain.from_iterable(wrap(note, LINE * PAGE) for note in notes):
        if page and _height([*page, note]) > PAGE:
            yield page
            page = []
        page.append(note)
    if page:
        yield page


def _paragraphs(notes: Sequence[str]) -> str:
    lines = "".join(f"{escape(note)}\\par\n" for note in notes)
    return f"\\par\\smallskip\\raggedright\\footnotesize\n{lines}" if notes else ""


def _environment(caption: str, name: str, number: int, body: str) -> str:
    """Return one `table` environment. From `number` 2 on it is marked as continued and its label ends in the number."""
    label = re.sub(r"[^A-Za-z0-9:.-]+", "-", f"{name}-{number}" if number > 1 else name)
    caption = escape(caption) + (" (continued)" if number > 1 else "")
    head = f"\\begin{{table}}[tbp]\n\\centering\n\\caption{{{caption}}}\n\\label{{{label}}}\n"
    return f"{head}{body}\\end{{table}}\n"


def _grid(table: Table, start: int) -> str:
    """Return the grid of the rows from `start` on, as many as a page holds. A grid wider than the text is shrunk."""
    import pandas as pd

    rows = table.rows[start : start + ROWS]
    labels = [_label(row.label) for row in rows]
    dense = len(list(takewhile(lambda row: row.method == "dense", rows)))
    if 0 < dense < len(rows):
        labels[dense] = "\\midrule\n" + labels[dense]
    form, texts = "l", dict[tuple[int, str, int], list[str]]()
    for number, column in enumerate(table.columns):
        cells = [TableCell("") if row.failure else row.cells[number] for row in rows]
        spec, halves = _column(column, cells)
        form += spec
        texts |= {(number, escape(column.head), half): lines for half, lines in enumerate(halves)}
    first = next(iter(texts.values()))  # the column that holds the status of failed cells
    for place, row in enumerate(rows):
        if row.failure:
            first[place] = rf"\multicolumn{{1}}{{l}}{{\emph{{{escape(row.failure)}}}}}"
    frame = pd.DataFrame(texts, index=labels)
    frame.columns = pd.MultiIndex.from_tuples(texts, names=[None, escape(table.head), None])
    style = frame.style.hide(axis="columns", level=[0, 2])
    grid = style.to_latex(column_format=form, hrules=True, multicol_align="c")
    return f"\\resizebox{{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}}{{!}}{{%\n{grid.rstrip()}}}\n"


def _column(column: Column, cells: Sequence[TableCell]) -> tuple[str, list[list[str]]]:
    """Return the alignment of a column, and its cells; as two parts if they have spreads, which begin at one line."""
    if column.words:
        is_long = any(len(cell.text) > WORDS for cell in cells)
        form = r"{{\raggedright {}\par}}" if is_long else "{}"
        return "p{34mm}" if is_long else "l", [[form.format(escape(cell.text)) for cell in cells]]
    figures, spreads = [], []
    for cell in cells:
        figure, _, spread = re.sub(r" (?=[±\[])", "\n", cell.text, count=1).partition("\n")
        figures.append(rf"\textbf{{\boldmath {_powers(figure)}}}" if "best" in cell.marks else _powers(figure))
        spreads.append((rf"\,{_powers(spread)}" if spread else "") + escape(signs_of(cell)))
    if any(re.search(r" [±\[]", cell.text) for cell in cells):
        return "r@{}l", [figures, spreads]
    return "r", [["".join(halves) for halves in zip(figures, spreads, strict=True)]]


def _powers(text: str) -> str:
    """Return a value as LaTeX, with powers of ten: 3.4e8 becomes 3.4 x 10^8."""
    parts = re.split(r"(?<![\w.])(\d\.\d)e(\d+)(?!\w)", text)
    pieces = [escape(parts[0])]
    for mantissa, exponent, rest in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        pieces += [rf"${mantissa}{{\times}}10^{{{exponent}}}$", escape(rest)]
    return "".join(pieces)


def _label(text: str) -> str:
    """Return a method's name. A star or bracket has {} in front, or LaTeX would read it with the line break before."""
    return ("{}" if text.startswith(("*", "[")) else "") + escape(text)
