r"""Tables as LaTeX: booktabs, the best figure in bold, a dagger at a tested difference.

A fragment is a `table` environment for each group of columns, and needs \usepackage{booktabs,graphicx}. What is written
is ASCII alone, so that it compiles with every engine and input encoding.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile, zip_longest

from reports.tables.table import Column, Row, Table, TableCell, legend, signs
from reports.text import printable

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
GREEK = dict(zip("αβγδεηθκλμρστω", (*LETTERS, "omega"), strict=True))  # that parameters are likely to be called
ROWS, PAGE = 40, 50  # rows of one environment, and of a page of paper with the lines of notes that take as much room
LINE = 95  # characters of a note in a line, where letters are wide
FLOATS = 15  # tables that LaTeX is given at once; of some 50 without a word of text it loses count
CLEAR = "\n\\clearpage\n"
WORDS = 24  # characters of a cell of words, beyond which its column is broken


def escaped(text: str) -> str:
    """Write `text` so that LaTeX prints it as it is, in ASCII; what plain LaTeX cannot print becomes its code."""
    return re.sub(r"([-',])(?=\1)", r"\1{}", "".join(_character(c) for c in printable(text)))  # no dashes and quotes


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
    found = [environment for table in tables for environment in environments(table)]
    if not standalone:
        return "\n".join(found)
    sheets = ["\n".join(found[start : start + FLOATS]) for start in range(0, len(found), FLOATS)]
    return f"{PREAMBLE}{CLEAR.join(sheets)}{END}"


def environments(table: Table) -> Iterator[str]:
    """Yield a `table` environment for each group of columns, and a further one for what is longer than a page.

    The notes stand below the first; notes that would not fit there have environments of their own.
    """
    for part, group in zip(table.groups(), dict.fromkeys(column.group for column in table.columns), strict=True):
        first = group == table.columns[0].group
        said = [*(table.notes if first else ()), *legend([part]), *(table.footnotes if first else ())]
        chunks = [part.rows[start : start + ROWS] for start in range(0, max(1, len(part.rows)), ROWS)]
        below = said if len(chunks[0]) + _rows_of(said) <= PAGE else []
        name = f"tab:{table.name}{'' if first else f'-{group}'}"
        for number, rows in enumerate(chunks, start=1):
            body = _shrunk(replace(part, rows=rows))
            yield _environment(_caption(table), name, number, [*body, *_notes(below if number == 1 else [])])
        for number, rest in enumerate(_paged([] if below else said), start=len(chunks) + 1):
            yield _environment(f"Notes. {_caption(table)}", name, number, _notes(rest))


def _rows_of(sentences: Iterable[str]) -> float:
    """Return how many rows of a table notes take up, at the least."""
    return sum(0.8 * math.ceil(len(sentence) / LINE) for sentence in sentences)


def _paged(sentences: Sequence[str]) -> Iterator[list[str]]:
    """Yield the notes by the page."""
    page: list[str] = []
    for sentence in sentences:
        if page and _rows_of([*page, sentence]) > PAGE:
            yield page
            page = []
        page.append(sentence)
    if page:
        yield page


def _environment(caption: str, name: str, number: int, body: Sequence[str]) -> str:
    """Return one `table` environment; what goes on from another one says so and has a label of its own."""
    label = re.sub(r"[^A-Za-z0-9:.-]+", "-", name + (f"-{number}" if number > 1 else ""))
    caption += " (continued)" if number > 1 else ""
    head = [r"\begin{table}[tbp]", r"\centering", rf"\caption{{{caption}}}", rf"\label{{{label}}}"]
    return "\n".join([*head, *body, r"\end{table}", ""])


def _shrunk(table: Table) -> list[str]:
    """Return the grid, shrunk where it is wider than the text."""
    columns = [_Aligned(column, [row.cells[at] for row in table.rows]) for at, column in enumerate(table.columns)]
    heads = " & ".join([escaped(table.head), *(column.head() for column in columns)])
    lines = [" & ".join([_label(row.label), *_cells(row, columns, at)]) + r" \\" for at, row in enumerate(table.rows)]
    on_top = len([*takewhile(lambda row: row.method == "dense", table.rows)])
    if 0 < on_top < len(lines):
        lines.insert(on_top, r"\midrule")
    return [
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{l{''.join(column.spec for column in columns)}}}",
        r"\toprule",
        rf"{heads} \\",
        r"\midrule",
        *lines,
        r"\bottomrule",
        r"\end{tabular}}",
    ]


def _notes(sentences: Sequence[str]) -> list[str]:
    opening = [r"\par\smallskip\raggedright\footnotesize"] if sentences else []
    return [*opening, *(f"{escaped(sentence)}\\par" for sentence in sentences)]


def _label(text: str) -> str:
    """Write a method's name; a star or bracket that begins a line would belong to the line break before it."""
    return ("{}" if text.startswith(("*", "[")) else "") + escaped(text)


def _caption(table: Table) -> str:
    parts = [table.model, table.title or "dense model", ", ".join(table.conditions)]
    return f"{escaped('; '.join(part for part in parts if part))}."


class _Aligned:
    """A column whose figures end at one line and whose spreads begin at it; words are on the left, long ones broken."""

    def __init__(self, column: Column, cells: Sequence[TableCell]) -> None:
        self.column, self.cells = column, cells
        self.split = not column.words and any(re.search(r" [±\[]", cell.text) for cell in cells)
        self.broken = column.words and any(len(cell.text) > WORDS for cell in cells)
        self.spec = "p{34mm}" if self.broken else "l" if column.words else "r@{}l" if self.split else "r"

    def head(self) -> str:
        text = escaped(self.column.head)
        return rf"\multicolumn{{2}}{{c}}{{{text}}}" if self.split else text

    def cell(self, at: int) -> str:
        cell = self.cells[at]
        if self.broken:
            return rf"{{\raggedright {escaped(cell.text)}\par}}"
        figure, spread = re.fullmatch(r"(.*?)((?: [±\[].*)?)", cell.text, re.DOTALL).groups()  # type: ignore[union-attr]
        dagger = escaped(signs(cell))
        shown = _emphasised(_figure(figure), cell)
        rest = f"\\,{_figure(spread.strip())}" if spread else ""
        return f"{shown} & {rest}{dagger}" if self.split else f"{shown}{rest}{dagger}"


def _figure(text: str) -> str:
    """Write a figure, powers of ten as such: 3.4e8 -> 3.4 x 10^8."""
    parts = re.split(r"(?<![\w.])(\d\.\d)e(\d+)(?!\w)", text)
    shown = [escaped(part) for part in parts[::3]]
    powers = [
        rf"${mantissa}{{\times}}10^{{{exponent}}}$" for mantissa, exponent in zip(parts[1::3], parts[2::3], strict=True)
    ]
    return "".join(piece for pair in zip_longest(shown, powers, fillvalue="") for piece in pair)


def _emphasised(text: str, cell: TableCell) -> str:
    return rf"\textbf{{\boldmath {text}}}" if "best" in cell.marks else text


def _cells(row: Row, columns: Sequence[_Aligned], at: int) -> list[str]:
    """Return the figures of a row; of a failed cell its status word, across all columns."""
    if row.failure:
        width = sum(2 if column.split else 1 for column in columns)
        return [rf"\multicolumn{{{width}}}{{l}}{{\emph{{{escaped(row.failure)}}}}}"]
    return [column.cell(at) for column in columns]
