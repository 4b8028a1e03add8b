"""Turns the equations at the head of a method's module, which are plain text, into TeX for the site.

They are written once, to be read in the source: `theta*_l = theta_l + sum_{k=1..m} (theta_{l+k} - theta_l)`. Words of
two letters or more are text, names of functions and Greek letters are what they are called, and `_` and `^` hold for
what follows without a space. Two spaces or more part columns. equations.js lets KaTeX draw them.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable

GREEK = {"theta", "mu", "sigma", "Sigma", "alpha", "pi"}
FUNCTIONS = {"cos", "arccos", "log", "min", "max"}
LIMITS = {"argmin": r"\operatorname*{arg\,min}", "argmax": r"\operatorname*{arg\,max}"}
DIFFERENTIALS = {"dL", "dw", "dW"}
SIGNS = {"<-": r"\leftarrow ", ">=": r"\ge ", "<=": r"\le ", "...": r"\dots ", "~": r"\sim ", "{": r"\{", "}": r"\}"}
COLUMNS = re.compile(r" {2,}")
NAMED = "|".join([*GREEK, *FUNCTIONS, *LIMITS])
TOKENS = re.compile(
    r"(?P<code>`[^`]*`|[A-Za-z]+(?:-[a-z]{2,}[a-z0-9]*)+)"
    r"|(?P<sum>sum_\{(\w+)=(\w+)\.\.(\w+)\}|sum_(\w+))"
    r"|(?P<index>_\{(?P<braced>[^}]*)\}|_(?P<bare>[A-Za-z0-9:<]+))"
    r"|(?P<power>\^\((?P<round>(?:[^()]|\([^()]*\))*)\)|\^(?P<plain>-?\w+))"
    r"|(?P<star>(?<=[A-Za-z])\*)"
    r"|(?P<divider>(?<= )\|\|(?= )|(?<= )\|(?= ))|(?P<norm>\|\|)|(?P<bar>\|)"
    r"|(?P<sign><-|>=|<=|\.\.\.|~|\{|\}|(?<= )\*(?= )|\btimes\b)"
    rf"|(?P<word>[A-Za-z]{{2,}}\d*(?:'s)?"
    rf"(?:[ ](?!(?:{NAMED})\b)(?:[A-Za-z]{{2,}}(?:'s)?(?![A-Za-z(_*])|a(?=[ ][a-z]{{2}})))*)"
    r"|(?P<rest>.)"
)


def is_equation(block: str) -> bool:
    """Say whether an indented block is mathematics, and no list of values or shapes."""
    return re.search(r" = |<-|\||\^", block) is not None


def render_block(block: str) -> str:
    """Return an indented block as HTML: its plain text, with the TeX that a script draws in its place."""
    lines = [line.strip() for line in block.splitlines()]
    tex = html.escape(to_tex(lines), quote=True).replace("\n", " ")
    return f'<pre class="equation" data-tex="{tex}">{html.escape(chr(10).join(lines))}</pre>'


def to_tex(lines: list[str]) -> str:
    """Return lines as TeX: one as it is, several as the rows of an array."""
    if len(lines) == 1:
        return r"\qquad ".join(_column_to_tex(column) for column in re.split(r" {3,}", lines[0]))
    rows = [[_column_to_tex(column) for column in COLUMNS.split(re.sub(" +<-", " <-", line))] for line in lines]
    body = r" \\ ".join(" & ".join(row) for row in rows)
    return rf"\begin{{array}}{{{'l' * max(map(len, rows))}}} {body} \end{{array}}"


def _column_to_tex(column: str) -> str:
    """Return a piece of an equation as TeX; norms and bars open and close in turns."""
    open_signs = {"norm": False, "bar": False}
    pieces = []
    for token in TOKENS.finditer(column):
        kind = str(token.lastgroup) if token.lastgroup not in ("braced", "bare", "round", "plain") else ""
        kind = kind or ("index" if token["index"] else "power")
        if kind in open_signs:
            open_signs[kind] = not open_signs[kind]
            side = "l" if open_signs[kind] else "r"
            pieces.append(rf"\{side}{'Vert' if kind == 'norm' else 'vert'} ")
        else:
            pieces.append(FORMS[kind](token))
    return re.sub(r"^\\text\{ ", r"\\text{", "".join(pieces))


def _sum(token: re.Match[str]) -> str:
    inner = re.fullmatch(r"sum_\{(\w+)=(\w+)\.\.(\w+)\}", token[0])
    return rf"\sum_{{{inner[1]}={inner[2]}}}^{{{inner[3]}}}" if inner else rf"\sum_{{{token[0][4:]}}}"


def _index(token: re.Match[str]) -> str:
    inner = token["bare"] or token["braced"]
    return rf"_{{\text{{{inner}}}}}" if re.fullmatch(r"[a-z]{4,}", inner) else f"_{{{_column_to_tex_of_index(inner)}}}"


def _column_to_tex_of_index(inner: str) -> str:
    """Return an index, in which letters beside each other are so many indices."""
    return re.sub(r"(?<=\w)\*", "^{*}", inner).replace("..", r"\dots ")


def _word(token: re.Match[str]) -> str:
    """Return words as text, and single ones by what they name."""
    first, space, more = token[0].partition(" ")
    follows = token.string[token.end() : token.end() + 1]
    if first in GREEK or first in FUNCTIONS:
        named = rf"\{first} "
    elif first in LIMITS:
        named = LIMITS[first] + " "
    elif first in DIFFERENTIALS:
        named = first
    elif not space and follows == "(":
        return rf"\operatorname{{{first}}}"
    elif not space and first.isupper():
        return rf"\mathrm{{{first}}}"
    else:
        return rf"\text{{ {token[0]}{'' if follows in '_,.;)' and follows else ' '}}}"
    return named + (rf"\text{{ {more} }}" if more else "")


FORMS: dict[str, Callable[[re.Match[str]], str]] = {
    "code": lambda token: rf"\texttt{{{token[0].strip('`')}}}".replace("_", r"\_"),
    "sum": _sum,
    "index": _index,
    "power": lambda token: f"^{{{_column_to_tex(token['round'] or token['plain'])}}}",
    "star": lambda _: "^{*}",
    "divider": lambda token: r"\,\Vert\," if token[0] == "||" else r"\mid ",
    "sign": lambda token: {"*": r"\cdot ", "times": r"\times "}.get(token[0]) or SIGNS[token[0]],
    "word": _word,
    "rest": lambda token: token[0].replace("%", r"\%").replace("#", r"\#").replace("&", r"\&"),
}
