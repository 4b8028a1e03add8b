"""The command report: records as tables and figures."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cli import OK, say_next
from bench.plan.fields import split_names
from methods.console import say
from methods.errors import UserError

if TYPE_CHECKING:
    from bench.records.run_folder import Merged
    from reports.tables.table import Table


VIEWS = (
    *("main", "per-task", "positions", "needle", "by-ratio", "grid", "speed", "cost", "recovery", "decisions"),
    *("ablation", "calibration", "seeds", "signal", "skills", "models", "served"),
)
SORTED = ("main", "per-task", "speed", "cost", "decisions", "skills", "all")  # views that --sort orders
FORMATS = ("terminal", "markdown", "csv", "latex", "html")


def add(commands: Any) -> None:
    """Add the command and its options."""
    report = commands.add_parser(
        "report",
        help="draw the tables and figures of finished runs",
        description=(
            "Draw what the records of one or several runs say. Runs that can be compared share their tables. The view "
            "main as markdown is the whole report; as csv it has a line for each cell, the other views one for each "
            "figure."
        ),
    )
    _add_selection(report)
    report.add_argument("--sort", metavar="COLUMN", default="", help="order rows by this column of --format csv")
    report.add_argument("--view", choices=(*VIEWS, "all"), help="by default main")
    report.add_argument("--format", choices=FORMATS, help="by default terminal")
    report.add_argument(
        "--reference", metavar="METHOD", help="mark what differs from it, by paired tests on the samples"
    )
    report.add_argument(
        "--pair",
        nargs=2,
        metavar="METHOD",
        help="with --out: whose skills one chart sets side by side; by default the best of two families",
    )
    report.add_argument(
        "--against", metavar="NAME|FILE", help="published figures beside these; published for all that are known"
    )
    report.add_argument(
        "--above-guessing",
        action="store_true",
        help="leave out tasks in which the dense model is not shown to be better than guesses",
    )
    report.add_argument("--explain", action="store_true", help="print all notes, and how to read the tables")
    report.add_argument("--standalone", action="store_true", help="LaTeX as a whole document and not as a fragment")
    report.add_argument("--out", type=Path, metavar="DIR", help="write report.html, .md, .csv, *.tex, figures there")
    report.set_defaults(command=_report)
    site = commands.add_parser(
        "site",
        help="write a page on which methods are compared",
        description=(
            "Write DIR/index.html: one file on finished runs that needs no server and requests nothing. It has a "
            "picture of quality against cost, a table in which methods that are not shown to differ share a letter, "
            "the test of any two methods, and a card of each."
        ),
    )
    _add_selection(site)
    site.add_argument("--title", default="", metavar="TEXT", help="of the page; by default the models")
    site.add_argument("--out", type=Path, required=True, metavar="DIR", help="write index.html there")
    site.set_defaults(command=_site)


def _add_selection(command: argparse.ArgumentParser) -> None:
    """Add the runs, and the options that choose from their cells."""
    add = command.add_argument
    which = "a run folder, as in results/2026-01-31-laco, or one of the Hugging Face hub, as hf://datasets/ORG/NAME"
    add("runs", nargs="+", type=Path, metavar="RUN", help=which)
    add("--methods", type=split_names, default=(), metavar="LIST", help="these methods or labels alone")
    add("--ratio", default=(), metavar="LIST", help="these ratios alone")
    add("--model", type=split_names, default=(), metavar="LIST", help="these models alone")


def _load(arguments: argparse.Namespace) -> Merged:
    """Return the chosen cells of the runs as one. Raises UserError."""
    from bench.plan.fields import parse_ratios
    from bench.records import run_folder
    from bench.records.selection import Selection

    if any(str(run).startswith("hf:/") for run in arguments.runs):
        from bench.export.hub import fetch_run

        arguments.runs = [fetch_run(run) for run in arguments.runs]
    selection = Selection(arguments.methods, parse_ratios(arguments.ratio), arguments.model)
    return run_folder.load_runs(arguments.runs, selection)


def _site(arguments: argparse.Namespace) -> int:
    from methods.cards import needs_of_methods
    from methods.files import write_atomically
    from reports.page import page

    merged = _load(arguments)
    for remark in merged.left_out:
        say(remark)
    extras: dict[str, Any] = {"samples": merged.samples, "remarks": merged.notes, "served": merged.served}
    html = page.render_page(merged.records, arguments.title, needs=needs_of_methods(), **extras)
    write_atomically(arguments.out / "index.html", html)
    say(f"{arguments.out / 'index.html'}: {len(html.encode()) / 1e6:.1f} MB, opens in any browser")
    return OK


def _report(arguments: argparse.Namespace) -> int:
    if arguments.standalone and not (arguments.out or arguments.format == "latex"):
        raise UserError("--standalone is about LaTeX: add --format latex or --out DIR")
    if arguments.out and (arguments.view or arguments.format):
        raise UserError("--out writes every view and format: leave --view and --format out")
    if arguments.against and (arguments.view or arguments.out or arguments.reference):
        raise UserError("--against is a table of its own: leave --view, --reference and --out out")
    if arguments.sort and (arguments.against or (arguments.view or "main") not in SORTED):
        raise UserError(f"--sort orders the views {', '.join(SORTED)}; others have an order of their own")
    if arguments.pair and not arguments.out:
        raise UserError("--pair is about a figure: add --out DIR")
    arguments.view = arguments.view or ("against" if arguments.against else "main")
    arguments.format = arguments.format or "terminal"
    merged = _load(arguments)
    if arguments.above_guessing:
        from bench.records.frame import drop_guessed_tasks

        records, remarks = drop_guessed_tasks(merged.records)
        merged = dataclasses.replace(merged, records=records, remarks=[*merged.remarks, *remarks])
    apart = merged.remarks if arguments.view != "models" else ()  # these remarks say that models stand apart
    output = "" if arguments.out else _render(arguments, merged, _tables_of_arguments(arguments, merged))
    for remark in (*merged.left_out, *apart):
        say(remark)
    if arguments.out:
        _write(arguments, merged)
    print(output, end="")
    if output and arguments.view == "main" and arguments.format == "terminal":
        say_next(*arguments.runs)
    return OK


def _tables_of_arguments(arguments: argparse.Namespace, merged: Merged) -> dict[str, list[Table]]:
    """Return the tables that go to stdout, by view."""
    if arguments.against:
        from reports.published import against
        from reports.published.papers import read_published

        papers = read_published(arguments.against)
        return {"against": against.tables_of_published(merged.records, papers)}
    tables = _tables(merged, VIEWS if arguments.view == "all" else (arguments.view,), arguments)
    if arguments.view == "ablation" and not tables["ablation"]:
        raise UserError("no method of these runs has cells that differ in a parameter, in calibration or in the seed")
    if arguments.view == "seeds" and not tables["seeds"]:
        raise UserError("no two methods of these runs have several calibration seeds; run them with --seed 0,1,2")
    if arguments.view == "signal" and not tables["signal"]:
        raise UserError("no four methods of these runs answered the same documents at one ratio, with samples of them")
    if arguments.view == "skills" and not tables["skills"]:
        raise UserError("no samples of these runs are of tasks by skill; run a method with --tasks skills")
    if arguments.view == "models" and not tables["models"]:
        from bench.records.record import name_of_model

        names = list(dict.fromkeys(map(name_of_model, merged.records)))
        why = f"these cells are of {names[0]} alone" if len(names) == 1 else f"{' and '.join(names)} share no ratio"
        raise UserError(
            f"{why}, and the view models is of several that were measured alike at one ratio; give their runs too, as "
            "in `report RUN OTHER --view models`"
        )
    if arguments.view == "served" and not tables["served"]:
        raise UserError("no model of these runs was served; see `serve-speed --help`")
    if arguments.view == "grid" and not tables["grid"]:
        raise UserError("no method of these runs has a compensation; run one with it, as in --methods shortgpt+ghost")
    if not any(tables.values()):
        raise UserError(f"the view {arguments.view} has nothing to show of these cells")
    return tables


def _tables(merged: Merged, names: tuple[str, ...], arguments: argparse.Namespace) -> dict[str, list[Table]]:
    from methods.cards import needs_of_methods
    from reports.tables.views import build_views

    more: dict[str, Any] = {"served": merged.served, "sort": arguments.sort}
    return build_views(names, merged.records, arguments.reference, merged.samples, needs_of_methods(), **more)


def _render(arguments: argparse.Namespace, merged: Merged, tables: dict[str, list[Table]]) -> str:
    """Return the output for stdout."""
    from reports import report as report_text
    from reports.formats import latex, markup, terminal

    flat = [table for several in tables.values() for table in several]
    whole = arguments.view == "main"
    if arguments.format == "terminal":
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        filled = [several for several in tables.values() if several]
        return "\n".join(terminal.render(several, colour=colour, explain=arguments.explain) for several in filled)
    renderers: dict[str, Callable[[], str]] = {
        "markdown": lambda: (
            report_text.to_markdown(merged.records, flat, merged.notes) if whole else markup.render_markdown(flat)
        ),
        "csv": lambda: report_text.to_csv(merged.records, merged.samples) if whole else markup.render_csv(flat),
        "latex": lambda: latex.render(flat, standalone=arguments.standalone),
        "html": lambda: markup.render_html(flat),
    }
    return renderers[arguments.format]()


def _write(arguments: argparse.Namespace, merged: Merged) -> None:
    """Write into --out the page, the report, the frame, LaTeX of every table, and all figures."""
    from methods.cards import needs_of_methods
    from methods.files import write_atomically
    from reports import report as report_text
    from reports.figures.catalogue import Gallery, figures_of_report
    from reports.formats import latex
    from reports.page import page

    folder, reference = arguments.out, arguments.reference
    drawn = figures_of_report(
        *(merged.records, merged.samples, reference or "", merged.served),
        needs=needs_of_methods(),
        pair=arguments.pair or (),
    )
    tables = _tables(merged, VIEWS, arguments)
    gallery = Gallery(drawn, folder / "figures")
    write_atomically(folder / "report.md", report_text.to_markdown(merged.records, tables["main"], merged.notes))
    write_atomically(folder / "report.csv", report_text.to_csv(merged.records, merged.samples))
    for table in chain(*tables.values()):
        write_atomically(folder / f"{table.name}.tex", latex.render([table], standalone=arguments.standalone))
    extras: dict[str, Any] = {"samples": merged.samples, "remarks": merged.notes, "served": merged.served}
    html = page.render_page(merged.records, tables=tables, **extras)
    gallery.end()
    write_atomically(folder / "report.html", html)
    say(f"{folder}: report.html, report.md, report.csv, *.tex and {len(drawn)} figures")
