r"""Tables as LaTeX: booktabs, the best figure in bold, the second underlined, a dagger at a tested difference.

A fragment is a `table` environment for each group of columns, and needs \usepackage{booktabs,graphicx}. What is written
is ASCII alone, so that it compiles with every engine and input encoding.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import zip_longest

from reports.tables import Cell, Column, Row, Table
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
ACCENTS = {"\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": "."} | {
    "\u0308": '"',
    "\u030a": "r",
    "\u030b": "H",
    "\u030c": "v",
    "\u0327": "c",
}
GREEK = {
    "α": "alpha",
    "β": "beta",
    "γ": "gamma",
    "δ": "delta",
    "ε": "epsilon",
    "η": "eta",
    "θ": "theta",
    "κ": "kappa",
    "λ": "lambda",
    "μ": "mu",
    "ρ": "rho",
    "σ": "sigma",
    "τ": "tau",
    "ω": "omega",
}  # that parameters are likely to be called
LEGENDS = {
    "best": "Bold: the best of the methods that removed enough.",
    "second": "Underlined: the second best.",
}


def escaped(text: str) -> str:
    """`text` so that LaTeX prints it as it is, in ASCII; what plain LaTeX cannot print is written as its code."""
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
    """The tables one below the other; with `standalone` as a whole document."""
    body = "\n".join(fragment(part, first=at == 0) for table in tables for at, part in enumerate(table.groups()))
    return f"{PREAMBLE}{body}{END}" if standalone else body


def fragment(table: Table, *, first: bool = True) -> str:
    """One `table` environment, shrunk where it is wider than the text; the notes stand below the first of a table."""
    columns = [_Aligned(column, [row.cells[at] for row in table.rows]) for at, column in enumerate(table.columns)]
    heads = " & ".join([escaped(table.head), *(column.head() for column in columns)])
    lines = [" & ".join([_label(row.label), *_cells(row, columns, at)]) + r" \\" for at, row in enumerate(table.rows)]
    rules = [at for at, row in enumerate(table.rows[:-1], start=1) if row.method == "dense"][
        -1:
    ]  # below the dense rows
    for at in rules:
        lines.insert(at, r"\midrule")
    said = [*(table.notes if first else ()), *_legend(table), *(table.protocol if first else ())]
    label = re.sub(r"[^A-Za-z0-9:.-]+", "-", f"tab:{table.name}{'' if first else f'-{table.columns[0].group}'}")
    return "\n".join(
        [
            r"\begin{table}[tbp]",
            r"\centering",
            rf"\caption{{{_caption(table)}}}",
            rf"\label{{{label}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{l{''.join(column.spec for column in columns)}}}",
            r"\toprule",
            rf"{heads} \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}}",
            *([r"\par\smallskip\raggedright\footnotesize"] if said else []),
            *(f"{escaped(sentence)}\\par" for sentence in said),
            r"\end{table}",
            "",
        ]
    )


def _label(text: str) -> str:
    """A method's name; a star or bracket at the start of a line would belong to the line break before it."""
    return ("{}" if text.startswith(("*", "[")) else "") + escaped(text)


def _caption(table: Table) -> str:
    parts = [table.model, table.title or "dense model", ", ".join(table.conditions)]
    return f"{escaped('; '.join(part for part in parts if part))}."


def _legend(table: Table) -> list[str]:
    found = table.marks()
    return [sentence for mark, sentence in LEGENDS.items() if mark in found]


class _Aligned:
    """A column whose figures end at one line and whose spreads begin at it; words are aligned on the left."""

    def __init__(self, column: Column, cells: Sequence[Cell]) -> None:
        self.column, self.cells = column, cells
        self.split = not column.words and any(re.search(r" [±\[]", cell.text) for cell in cells)
        self.spec = "l" if column.words else "r@{}l" if self.split else "r"

    def head(self) -> str:
        text = escaped(self.column.head)
        return rf"\multicolumn{{2}}{{c}}{{{text}}}" if self.split else text

    def cell(self, at: int) -> str:
        cell = self.cells[at]
        figure, spread = re.fullmatch(r"(.*?)((?: [±\[].*)?)", cell.text, re.DOTALL).groups()  # type: ignore[union-attr]
        dagger = SPECIAL["†"] * ("differs" in cell.marks)
        shown = _emphasised(_figure(figure), cell)
        rest = f"\\,{_figure(spread.strip())}" if spread else ""
        return f"{shown} & {rest}{dagger}" if self.split else f"{shown}{rest}{dagger}"


def _figure(text: str) -> str:
    """A figure, powers of ten as such: 3.4e8 -> 3.4 x 10^8."""
    parts = re.split(r"(?<![\w.])(\d\.\d)e(\d+)(?!\w)", text)
    shown = [escaped(part) for part in parts[::3]]
    powers = [
        rf"${mantissa}{{\times}}10^{{{exponent}}}$" for mantissa, exponent in zip(parts[1::3], parts[2::3], strict=True)
    ]
    return "".join(piece for pair in zip_longest(shown, powers, fillvalue="") for piece in pair)


def _emphasised(text: str, cell: Cell) -> str:
    if "best" in cell.marks:
        return rf"\textbf{{\boldmath {text}}}"
    return rf"\underline{{{text}}}" if "second" in cell.marks else text


def _cells(row: Row, columns: Sequence[_Aligned], at: int) -> list[str]:
    """The figures of a row; of a failed cell its status word, across all columns."""
    if row.failure:
        width = sum(2 if column.split else 1 for column in columns)
        return [rf"\multicolumn{{{width}}}{{l}}{{\emph{{{escaped(row.failure)}}}}}"]
    return [column.cell(at) for column in columns]
