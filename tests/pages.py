"""Read the documentation and the records behind it; shared by several test files."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import re
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


MEASURES = {
    "perplexity wiki": "perplexity_wiki",
    "perplexity c4": "perplexity_c4",
    "points of the average": "gain_average",
    "average of five tasks, %": "average",
    "answer bpb": "answer_bpb",
    "decode": "decode_speed",
    "KL": "kl",
    "pruned in": "prune_seconds",
}


def load_program(name: str) -> ModuleType:
    """Return a program of the documents, named from their folder, as a module that no other test has."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, DOCS / name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def generator() -> ModuleType:
    """Return the module that writes the pages which follow from the code."""
    return load_program("generate.py")


def text(page: str) -> str:
    """Return the Markdown of a page, named from the root of the checkout."""
    return (ROOT / page).read_text(encoding="utf-8")


def tables(markdown: str) -> list[list[list[str]]]:
    """Return every table of a page that has a head, as rows of cells, the heads first, without backticks."""
    found: list[list[list[str]]] = [[]]
    for line in markdown.splitlines():
        if not line.startswith("|"):
            found.append([])
        elif "---" not in line:
            found[-1].append([cell.strip().strip("`") for cell in line.strip().strip("|").split(" | ")])
    return [table for table in found if table and any(table[0])]


def sentences(markdown: str) -> list[str]:
    """Return the sentences of a page without its tables and blocks of code; code within a line is one word."""
    prose = re.sub(r"^ *```.*?^ *```|^ *\|[^\n]*$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"`[^`]*`", "CODE", re.sub(r"\]\([^)]*\)", "]", prose))
    paragraphs = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", prose)
    return [
        sentence
        for paragraph in paragraphs
        for sentence in re.split(r"(?<=[.:;?!])[*\")]*\s+(?=[A-Z0-9*\[±])", " ".join(paragraph.split()))
    ]


@cache
def pages() -> dict[str, str]:
    """Return the pages that follow from the code; half a second."""
    return generator().pages()


@cache
def rows() -> list[tuple[str, ...]]:
    """Return every row of every table of the methods' pages."""
    methods = [page for path, page in pages().items() if path.startswith("methods/")]
    return [tuple(row) for page in methods for table in tables(page) for row in table]


@cache
def report(*runs: str, view: str, reference: str = "", model: str = "") -> list[dict[str, str]]:
    """Return what `report` prints as CSV of runs in docs/results; `shown` ends with a dagger where it differs.

    model  alone; "" for all
    """
    from bench.cli.main import main

    asked = ["report", *(str(DOCS / "results" / run) for run in runs), "--view", view, "--format", "csv"]
    asked += (["--reference", reference] if reference else []) + (["--model", model] if model else [])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(asked) == 0
    lines = list(csv.DictReader(io.StringIO(printed.getvalue())))
    return [line | {"shown": line["shown"] + "†" * ("differs" in line["marks"])} for line in lines]


def measure(head: str) -> str:
    """Return the name in records of what the head of a column or table says."""
    plain = head.replace("`", "")
    return MEASURES.get(plain, plain)
