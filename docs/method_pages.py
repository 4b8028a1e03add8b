"""Writes the page of each method, the index of all, and the table of comparisons with the authors' code.

A page of a method is made of the docstring at the head of its module and of its card (`methods.cards_of_methods`), so
that it is written once. docs/generate.py adds the pages to the site.
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import equations  # noqa: E402

from methods import cards as authors_code  # noqa: E402
from methods import registry  # noqa: E402  # of this checkout, whatever is installed
from methods.cards import Card, CodeComparison, cards_of_module, words_of_timing  # noqa: E402

HEADINGS = r"(Departures from (?:the authors' code|the paper)|Cost|Families|Measured)\. "


class MethodPage:
    """A module of methods/ with the cards of the methods or compensations that it registers."""

    def __init__(self, module: str, cards: Sequence[Card], plus: str) -> None:
        self.folder, _, self.stem = module.rpartition(".")
        self.cards, self.plus = cards, plus
        self.path = f"methods/{module.replace('.', '/')}.py"
        self.head = ast.get_docstring(ast.parse((ROOT / self.path).read_text(encoding="utf-8"))) or ""

    @property
    def names(self) -> str:
        """The title with every name as code."""
        return self._as_code([card.name for card in self.cards])

    @property
    def checked(self) -> str:
        """The names as code of those whose runs were compared with other code."""
        return self._as_code(authors_code.read_comparisons()[self.stem].methods)

    def _as_code(self, names: Iterable[str]) -> str:
        return ", ".join(f"`{self.plus}{name}`" for name in names)

    @property
    def title(self) -> str:
        """The names under which the module's methods are called."""
        return ", ".join(self.plus + card.name for card in self.cards)

    def markdown(self) -> str:
        """Return the page: what it does, its sources, the equations, departures, parameters, cost."""
        summary, _, body = self.head.partition("\n")
        facts = [("File", f"`{self.path}`"), ("Command", f"`{self._command()}`")]
        for label, attribute in (("Looks at", "needs"), ("Cost", "cost"), ("Its authors read", "paper_reads")):
            facts += [(label, said)] if (said := self._said(attribute)) else []
        without = sorted({family for card in self.cards for family in card.without})
        if not self.plus:
            facts.append(("Cannot serve", ", ".join(without) or "none: every family is served"))
        lines = [f"# {self.title}", summary, "", "| | |", "| --- | --- |", *(f"| {a} | {b} |" for a, b in facts), ""]
        lines += [markdown(body), "", *self._check(), "## Parameters", "", *self._parameters(), ""]
        return "\n".join(lines)

    def _said(self, attribute: str) -> str:
        """Return what the cards say: once where they agree, otherwise each behind its name."""
        said = {card.name: value for card in self.cards if (value := getattr(card, attribute))}
        if len(set(said.values())) <= 1:
            return next(iter(said.values()), "")
        return "; ".join(f"`{name}`: {value}" for name, value in said.items())

    def _check(self) -> list[str]:
        """Return how the module was held against its authors' code."""
        check = authors_code.read_comparisons().get(self.stem)
        if not check:
            return []
        whose = "the authors' code" if check.by_the_authors else "other people's code"
        whom = "" if len(check.methods) == len(self.cards) else f"{self.checked}: "
        said = [
            f"{whom}Compared with runs of {whose} ({_places(check)}; {check.runs}): {escaped(check.compared)}.",
            f"The largest [differences](../checks.md): {check.apart}.",
        ]
        if check.put_in:
            said.append("For the comparison the code's choice is put in: " + escaped(" ".join(check.put_in)))
        timed = [f"| {one.work} | {one.theirs:.2f} | {one.ours:.2f} | {one.times} |" for one in check.speed]
        head = ["| work | theirs, s | ours, s | times as fast |", "| --- | --- | --- | --- |"]
        table = [*head, *timed, "", f"Seconds: {escaped(words_of_timing())}.", ""] if timed else []
        return ["## Checked against the authors' code", "", *said, "", *table]

    def _command(self) -> str:
        name = self.cards[0].name
        if name == "drop":
            name = "drop:layers=20-24"
        elif self.plus:
            name = f"{'flap' if name == 'refit' else 'shortgpt'}+{name}"
        return f"python -m bench run --methods {name}" + ("" if "=" in name else " --ratio 0.2")

    def _parameters(self) -> list[str]:
        several = len(self.cards) > 1
        first = {name: (default, meaning) for name, default, meaning in self.cards[0].parameters}
        rows = [
            (f"`{card.name}` | " if several else "") + f"`{name}` | `{default}` | {meaning}"
            for card in self.cards
            for name, default, meaning in card.parameters
            if card is self.cards[0] or first.get(name) != (default, meaning)
        ]
        if not rows:
            return ["There are none."]
        head = ("method | " if several else "") + "name | default | meaning"
        given = "with the compensation's name in front" if self.plus else "behind the method's name or with `--set`"
        example = next(iter(self.cards[0].parameters or self.cards[-1].parameters))[0]
        one = f"{self.cards[0].name}.{example}" if self.plus else f"--set {self.cards[0].name}.{example}"
        use = f"Parameters are given {given}, as in `{one}=...`."
        return [use, "", f"| {head} |", "| " + "--- | " * (4 if several else 3), *(f"| {row} |" for row in rows)]


def method_pages() -> Iterator[MethodPage]:
    """Yield one page for each module that registers methods or compensations, in the order of lists."""
    kinds = (
        (registry.find_method_modules(), "register", ""),
        (registry.find_compensation_modules(), "register_compensation", "+"),
    )
    for modules, decorator, plus in kinds:
        for module in modules:
            if module != "dense":
                yield MethodPage(module, cards_of_module(module, decorator), plus)


def _places(check: CodeComparison) -> str:
    """Return links to the code that a module was held against, at its commit where that was noted."""
    return ", ".join(
        f"[{name}](https://github.com/{name}/tree/{commit}) at {commit[:7]}"
        if commit
        else f"[{name}](https://github.com/{name}), commit not noted"
        for name, commit in check.code
    )


def checked() -> str:
    """Return the table of docs/checks.md on authors' code: what was compared, and how far both are apart."""
    checks = authors_code.read_comparisons()
    pages = [page for page in method_pages() if page.stem in checks]
    lines = [
        "| method | code | runs | compared | scores | logits |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for page in pages:
        check = checks[page.stem]
        port = "" if check.by_the_authors else "; not by the paper's authors"
        apart = [f"{check.largest[kind]:.1e}" if kind in check.largest else "-" for kind in ("scores", "logits")]
        compared = escaped(check.compared)
        lines.append(f"| {page.checked} | {_places(check)}{port} | {check.runs} | {compared} | {' | '.join(apart)} |")
    return "\n".join(lines)


def markdown(docstring: str) -> str:
    """Return a docstring as Markdown: equations are set, known openings become headings, sources become links."""
    blocks = []
    for block in re.split(r"\n{2,}", docstring.strip("\n")):
        if block.startswith("    "):
            blocks.append(equations.render_block(block) if equations.is_equation(block) else block)
            continue
        opening = re.match(HEADINGS, block)
        blocks += [f"## {opening[1]}"] if opening else []
        blocks.append(_linked(escaped(block[opening.end() if opening else 0 :])))
    return "\n\n".join(blocks)


def escaped(text: str) -> str:
    """Return text in which nothing outside of backticks has a meaning for Markdown."""
    pieces = re.split(r"(`[^`]*`)", text)
    plain = [re.sub(r"([*_{}\[\]|])", r"\\\1", piece.replace("<", "&lt;")) for piece in pieces[::2]]
    pieces[::2] = plain
    return "".join(pieces)


def _linked(text: str) -> str:
    """Return text with links to arXiv, to the authors' repositories and to the pages of other methods."""
    known = {page.path: page.stem for page in PAGES}
    text = re.sub(r"arXiv\s(\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)
    text = re.sub(r"((?:Code|code): )([\w.-]+/[\w\\.-]*\w)", r"\1[\2](https://github.com/\2)", text)
    text = re.sub(r"https://github.com/\S*", lambda found: found[0].replace("\\", ""), text)
    text = re.sub(r"docs/(studies/[\w-]+)\.md", r"[\1](../\1.md)", text)
    return re.sub(
        r"methods/\w+/(?:\w|\\_)+\.py",
        lambda found: f"[{found[0]}]({stem}.md)" if (stem := known.get(found[0].replace("\\", ""))) else found[0],
        text,
    )


def by_folder() -> dict[str, list[MethodPage]]:
    """Return the pages by the folder of methods/ that their modules lie in, each in the order of lists."""
    folders: dict[str, list[MethodPage]] = {}
    for page in PAGES:
        folders.setdefault(page.folder, []).append(page)
    return folders


def index() -> str:
    """Return the index of all methods, one table for each folder."""
    lines = [
        "# Methods",
        "",
        "Each method is one file, named after it, whose head states the equation, its source, and how it differs from",
        "the authors' code; the pages of this section are made of them. `dense`, the whole model, is in every run.",
        "`python -m bench list methods --verbose` prints the same names, costs and parameters.",
        "",
    ]
    for folder, pages in by_folder().items():
        package = ast.parse((ROOT / "methods" / folder / "__init__.py").read_text(encoding="utf-8"))
        lines += [f"## {folder.capitalize()}", "", escaped(ast.get_docstring(package) or ""), ""]
        lines += ["| name | what it does | cost |", "| --- | --- | --- |"]
        lines += [
            f"| [{page.plus}{card.name}]({page.stem}.md) | {escaped(card.summary)} | {card.cost or '-'} |"
            for page in pages
            for card in page.cards
        ]
        lines.append("")
    return "\n".join(lines)


def listed(block: str) -> str:
    """Return a list of names and meanings in columns as a table; a deeper line continues the one before."""
    rows: list[tuple[int, str, str]] = []
    for line in textwrap.dedent(block).split("\n"):
        depth, text = len(line) - len(line.lstrip()), line.strip()
        name, _, meaning = (part.strip() for part in re.split(r"(\s{2,}|$)", text, maxsplit=1))
        above = rows[-1][0] if rows else 0
        if rows and (depth > 4 + 4 * (above >= 4) or (not meaning and depth > above + 4)):
            rows[-1] = (above, rows[-1][1], f"{rows[-1][2]} {re.sub(r'  +', ' ', text)}")
        else:
            rows.append((depth, name, meaning))
    shown = [f"| {'&emsp;' * (depth >= 4)}`{name}` | {escaped(meaning)} |" for depth, name, meaning in rows]
    return "\n".join(["| name | meaning |", "| --- | --- |", *shown])


PAGES = list(method_pages())
