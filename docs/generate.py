"""Write the pages of the site that follow from the code: methods, command line, layout of a record.

mkdocs imports this file as a hook and calls the functions that begin with `on_`; tests call `pages`. The pages of the
methods are those of docs/method_pages.py. The explorer is the page that `python -m bench site` writes of the grid.
`python docs/generate.py` writes the JSON schemas of the records and the page of quantities, which are files of docs/,
what `list methods` says of measured costs, the table of formats, and what the doctor knows of every method.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import method_pages  # noqa: E402
from method_pages import escaped  # noqa: E402

from bench.records.quantities import list_quantities  # noqa: E402
from bench.records.schema import FILES, schema_of_layout, sections_of_layout  # noqa: E402  # of this checkout, whatever is installed

GRID, SERVED = "grid", "served"  # of docs/results: all methods, and the models that engines served
ENDINGS = ("quantis", "optimis", "minimis", "maximis", "normalis", "initialis", "regularis", "summaris", "standardis")
AMERICAN = {word: f"{word[:-1]}z" for word in (*ENDINGS, "tokenis", "factoris", "serialis", "penalis", "unrecognis")}
AMERICAN |= {
    "behaviour": "behavior",
    "colour": "color",
    "neighbour": "neighbor",
    "centre": "center",
    "licence": "license",
}
OUTSIDE = re.compile(r"""(?:src|srcset)=["']?(?:https?:)?//|<link[^>]+href=["']?(?:https?:)?//|url\(["']?https?:""")


def pages() -> dict[str, str]:
    """Return the Markdown of every generated page by its path below docs/."""
    found = {f"methods/{page.stem}.md": page.markdown() for page in method_pages.PAGES}
    return found | {
        "methods/index.md": method_pages.index(),
        "commands.md": _commands(),
        "flags.md": _flags(),
        "record.md": _record(),
    }


def _commands() -> str:
    """Return every command with its flags, from what `--help` prints."""
    _, groups = _help()
    names = {name.split()[0]: text for title, rows in groups if "positional" in title for name, text in rows}
    names.pop("COMMAND", None)
    lines = [
        "# Commands",
        "",
        "This page is made of what `python -m bench COMMAND --help` prints. [Runs](reference/runs.md#how-a-cell-ends)",
        "explains the exit codes.",
        "",
        "| command | does |",
        "| --- | --- |",
        *(f"| [`{name}`](#{name}) | {escaped(text)} |" for name, text in names.items()),
    ]
    for name in names:
        asked = ("baseline", "accept") if name == "baseline" else (name,)
        about, groups = _help(*asked)
        lines += ["", f"## {name}", "", escaped(about), "", f"`python -m bench {' '.join(asked)}`"]
        for title, rows in groups:
            kept = [(flag, text) for flag, text in rows if not flag.startswith("-h, ")]
            if kept:
                lines += ["", f"**{escaped(title)}**", "", "| flag | meaning |", "| --- | --- |"]
                lines += [f"| `{flag}` | {escaped(text)} |" for flag, text in kept]
    return "\n".join([*lines, ""])


def _help(*command: str) -> tuple[str, list[tuple[str, list[tuple[str, str]]]]]:
    """Return what a command says of itself: its description, and the rows (flag, meaning) of each group."""
    from bench.cli.main import main

    printed = io.StringIO()
    with patch.dict(os.environ, COLUMNS="1000"), contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*command, "--help"])
    _, *paragraphs = printed.getvalue().strip().split("\n\n")
    about = paragraphs.pop(0) if paragraphs and not paragraphs[0].split("\n")[0].endswith(":") else ""
    groups: list[tuple[str, list[tuple[str, str]]]] = []
    for paragraph in paragraphs:
        title, *lines = paragraph.split("\n")
        rows: list[tuple[str, str]] = []
        for line in lines:
            flag, _, meaning = line.strip().partition("  ")
            if len(line) - len(line.lstrip()) > 8:
                rows[-1] = (rows[-1][0], f"{rows[-1][1]} {line.strip()}".strip())
            else:
                rows.append((flag, meaning.strip()))
        groups.append((title.rstrip(":"), rows))
    return about, groups


def _flags() -> str:
    """Return every flag with its mark and its sentence, and every line on how to read columns."""
    from reports.legend import FLAGS, READING

    lines = [
        "# Flags",
        "",
        "A flag is a fixed word for a doubt about a cell, or for something that a reader must know about a row. The",
        "legend under a table has a line for each flag that occurs in it: the word, its sentence, and the cells with",
        "their values in brackets. `report` shows eight lines under a table, the first of this list first;",
        "`report --explain`, `report.md` and the page of a run have all of them.",
        "",
        "| mark | flag | meaning |",
        "| --- | --- | --- |",
        *(f"| {escaped(flag.mark)} | {flag.word.replace('_', ' ')} | {escaped(flag.sentence)} |" for flag in FLAGS),
        "",
        "## How to read columns",
        "",
        "These lines stand below the flags, as far as a table has what they are about.",
        "",
        *(f"- {escaped(sentence)}" for sentence in READING.values()),
        "",
    ]
    return "\n".join(lines)


def _record() -> str:
    """Return the layout of a record: the docstring of bench/records/record.py, then a table for each object in it."""
    source = (ROOT / "bench/records/record.py").read_text(encoding="utf-8")
    record, served = schemas()
    lines = [
        "# The record",
        "",
        escaped(ast.get_docstring(ast.parse(source)) or "").replace("&lt;", "<"),
        "",
        f"This page is made of the models that validate a record when it is read. [{record}]({record}) and",
        f"[{served}]({served}) say the same as JSON schemas, with `unit` and `source` of each field. A field that",
        "is not marked as needed is absent where there is nothing to say, and never null unless its type says so.",
        "Fields that are not listed are left alone, since later versions write more. A record that does not fit is",
        "said in one line with the path of the field, and every command goes on with the others.",
        "",
    ]
    for name in schemas():
        layout = FILES[name]
        for section in sections_of_layout(layout):
            title = section.path or f"{'served.jsonl: a served record' if name == served else 'A record'}"
            depth = "##" if not section.path else "###"
            shown = f"`{section.path}`" if section.path else title
            lines += [f"{depth} {shown}", "", escaped(section.about), "", "| field | type | unit | meaning | from |"]
            lines.append("| --- | --- | --- | --- | --- |")
            for row in section.rows:
                needed = ", needed" if row.needed else ""
                cells = (row.kind + needed, row.unit, row.meaning)
                lines.append(f"| `{row.name}` | {' | '.join(map(escaped, cells))} | `{row.source}` |")
            lines.append("")
    return "\n".join(lines)


AVERAGES = {"mean": "mean", "log mean": "mean of logarithms", "highest": "highest"}
SPREADS = {"interval": "95 % interval", "stderr": "standard error", None: ""}


def quantities_page() -> str:
    """Return the page of all quantities, a row for each, as bench/records/quantities.py has them."""
    lines = [
        "# Quantities",
        "",
        "Every quantity is a column of `report.csv` and of `bench.read`; NAME stands for that of a text or task. Its "
        "spread is in columns that end in `_low` and `_high`, or in `_stderr`. The last column says how several draws "
        "or seeds become one row. `python docs/generate.py` writes this page. Its rows are declared by "
        "`declare_quantity` in `bench/records/measured.py`, or stand in `bench/records/quantities.py`.",
        "",
        "| column | heading | unit | meaning | better | spread | over draws |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for quantity in list_quantities():
        heading = quantity.heading.replace("{}", "NAME")
        words = (heading, quantity.unit, quantity.meaning, quantity.better or "", SPREADS[quantity.spread])
        cells = [f"`{quantity.name.replace('{}', 'NAME')}`", *map(escaped, words), AVERAGES[quantity.average]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def schemas() -> dict[str, str]:
    """Return the JSON schemas of the records by their names below docs/."""
    return {name: json.dumps(schema_of_layout(layout), indent=1) + "\n" for name, layout in FILES.items()}


def on_config(config: Any) -> Any:
    """Put the pages of the methods into the navigation."""
    section: list[Any] = ["methods/index.md"]
    for folder, of_folder in method_pages.by_folder().items():
        section.append({folder.capitalize(): [{page.title: f"methods/{page.stem}.md"} for page in of_folder]})
    config.nav = [{"Methods": section} if "Methods" in entry else entry for entry in config.nav]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to those of the folder."""
    from mkdocs.structure.files import File

    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    files.append(File.generated(config, "explorer.html", content=_explorer()))
    return files


def _explorer() -> str:
    """Return the page of the grid, with the models that engines served, as `python -m bench site` writes it."""
    from bench.records import run_folder, served
    from methods.cards import needs_of_methods
    from reports.page.page import render_page

    grid = run_folder.load_runs([ROOT / "docs" / "results" / GRID])
    models = served.load(ROOT / "docs" / "results" / SERVED)
    words: dict[str, Any] = {"needs": needs_of_methods(), "remarks": grid.notes, "home": "index.html"}
    return render_page(grid.records, samples=grid.samples, served=models, **words)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Show links into the records, which are not on the site, as paths, and keep a figure and its ± in one line."""
    markdown = re.sub(r"\[([^\]]*)\]\((?:\.\./)*results/[^)]*\)", r"`\1`", markdown)
    return re.sub(r"(?<=\d) (?=[±\[])|(?<=±) (?=\d)", "\u00a0", markdown)


def on_post_page(output: str, page: Any, config: Mapping[str, Any]) -> str:
    """Refuse a page that would load a font, a script, a style or a picture from elsewhere."""
    from mkdocs.exceptions import PluginError

    if outside := OUTSIDE.search(output):
        raise PluginError(f"{page.file.src_path} asks for something outside: {output[outside.start() :][:120]}")
    return output


def on_post_build(config: Mapping[str, Any]) -> None:
    """Let the search find words that are spelt otherwise in Britain and in America by both spellings."""
    path = Path(config["site_dir"]) / "search" / "search_index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    for entry in index["docs"]:
        if more := other_spellings(f"{entry['title']} {entry['text']}"):
            entry["text"] += f" <p>{' '.join(more)}</p>"
    path.write_text(json.dumps(index, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


def other_spellings(text: str) -> list[str]:
    """Return the second spellings of words of a text, as quantize for quantise, but for those that it has too."""
    words = {word.lower() for word in re.findall(r"\w+", text)}
    pairs = [*AMERICAN.items(), *((american, british) for british, american in AMERICAN.items())]
    return sorted({word.replace(*pair) for word in words for pair in pairs if pair[0] in word} - words)


def measured_costs() -> str:
    """Return what pruning took in the records of GRID, as bench/schedule/measured_costs.json has it.

    Of the first draw on the default model at 0.2, by one thread.
    """
    lines = (ROOT / "docs" / "results" / GRID / "records.jsonl").read_text(encoding="utf-8").splitlines()
    costs: dict[str, dict[str, float]] = {}
    for record in sorted(map(json.loads, lines), key=lambda record: record["cell"]["method"]):
        cell, measured = record["cell"], record["measured"]
        plain = cell["label"] == cell["method"] and "+" not in cell["method"]  # no parameters, no compensation
        where = (cell["model"], cell["ratio"], cell["seed"], record["environment"]["threads"])
        if plain and where == ("smollm2-135m", 0.2, 0, 1) and record["status"] == "ok":
            peak, seconds = measured["peak_memory"]["prune"]["anonymous_bytes"] / 2**30, measured["prune_seconds"]
            if seconds >= 0.1:  # those that look at nothing take none
                costs[cell["method"]] = {"seconds": round(seconds, 1), "gib": round(peak, 1)}
    (cpu,) = {json.loads(line)["environment"]["cpu"] for line in lines}
    return json.dumps({"records": f"docs/results/{GRID}", "cpu": cpu, "methods": costs}, indent=1) + "\n"


def with_formats(guide: str) -> str:
    """Return docs/reference/formats.md with the table of formats as bench.export.write has it."""
    from bench.export import formats

    heading, *rows = (f"| {' | '.join(row)} |" for row in formats.table_of_formats())
    start = guide.index(heading)
    end = guide.index("\n\n", start)
    return (
        guide[:start] + "\n".join([heading, "| --- " * len(formats.table_of_formats()[0]) + "|", *rows]) + guide[end:]
    )


if __name__ == "__main__":
    for file, schema in schemas().items():
        (ROOT / "docs" / file).write_text(schema, encoding="utf-8")
    (ROOT / "docs" / "quantities.md").write_text(quantities_page(), encoding="utf-8")
    (ROOT / "bench" / "schedule" / "measured_costs.json").write_text(measured_costs(), encoding="utf-8")
    guide = ROOT / "docs" / "reference" / "formats.md"
    guide.write_text(with_formats(guide.read_text(encoding="utf-8")), encoding="utf-8")
    from bench.doctor import pruning

    pruning.write_answers()
