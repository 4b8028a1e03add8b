"""The commands compare, baseline, gate and history: what differs, what got worse, and since when."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench import cli
from bench.cli import OK
from methods.console import say, to_printable
from methods.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.plan.trust import Trust
    from bench.regression.gate import Margins, Verdict
    from bench.regression.results import CellResults


NO_COMPARISON = 4  # exit code: what was asked to be compared is not comparable, or there is no baseline


def add(commands: Any) -> None:
    """Add the commands compare, baseline, gate and history."""
    _add_compare(commands)
    _add_baseline(commands)
    _add_gate(commands)
    _add_history(commands)


def _add_compare(commands: Any) -> None:
    compare = commands.add_parser(
        "compare",
        help="what differs between two runs or cells, or two outputs of lm-eval or Inspect",
        description=(
            "Compare two runs cell by cell, two cells, or what lm-eval or Inspect has written of two models, on the "
            "same documents and windows: difference, interval, verdict. Exit code 4 where they were measured under "
            "different conditions."
        ),
    )
    for side in ("a", "b"):
        compare.add_argument(
            side,
            metavar=side.upper(),
            help="a run folder, RUN/CELL by key, start of one, or label, a results_*.json, or a log of Inspect",
        )
    compare.add_argument(
        "--samples",
        nargs=2,
        type=Path,
        default=(None, None),
        metavar=("A", "B"),
        help="folders or files with the samples of two outputs of lm-eval, where they do not lie beside them",
    )
    compare.add_argument("--allow", default="", metavar="LIST", help="conditions that may differ, as in torch,cpu")
    compare.add_argument("--format", choices=("terminal", "markdown", "csv"), default="terminal")
    compare.set_defaults(command=_compare)


def _add_baseline(commands: Any) -> None:
    parser = commands.add_parser("baseline", help="accept a run as the baseline of a gate")
    accept = parser.add_subparsers(required=True, metavar="accept", parser_class=type(parser)).add_parser(
        "accept", description="Pack a run into a folder, for review and for `gate`, and print what changes."
    )
    accept.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    accept.add_argument("--out", type=Path, required=True, metavar="DIR", help="where it goes, as in baseline")
    accept.add_argument("--allow-failed", action="store_true", help="accept failed cells as failed")
    accept.add_argument("--replace", action="store_true", help="overwrite DIR, and print what changes")
    accept.set_defaults(command=_accept)


def _add_gate(commands: Any) -> None:
    gate = commands.add_parser(
        "gate",
        help="fail where a run is worse than its baseline",
        description=(
            "Judge each metric of a run against its baseline. Exit codes: 0 no regression, 1 regression, 2 usage, "
            "3 missing or failed cells, 4 not comparable or no baseline."
        ),
    )
    gate.add_argument("run", type=Path, metavar="RUN", help="a run folder, a results_*.json, or a log of Inspect")
    gate.add_argument(
        "--baseline", type=Path, required=True, metavar="DIR", help="of `baseline accept`, any run, or another output"
    )
    gate.add_argument(
        "--margins", type=Path, metavar="FILE", help="YAML; by default 1 point, 0.01 bits, 1 %%, 5 %%, sizes exact"
    )
    gate.add_argument("--map", action="append", default=[], metavar="NEW=BASE", help="judge label NEW by label BASE")
    gate.add_argument(
        "--partial",
        action="store_true",
        help="cells that only the baseline has do not count; every record of RUN has to be readable",
    )
    gate.add_argument("--strict", action="store_true", help="inconclusive is exit code 3")
    gate.add_argument("--no-confirm", action="store_true", help="do not measure a suspected regression again")
    gate.add_argument("--plugin", action="append", default=[], metavar="FILE", help="methods to measure again with")
    cli.add_trust(gate)
    gate.add_argument("--format", choices=("terminal", "markdown", "junit"), default="terminal")
    gate.add_argument("--out", type=Path, metavar="FILE", help="write the format there, and print the table")
    gate.set_defaults(command=_gate)


def _add_history(commands: Any) -> None:
    history = commands.add_parser(
        "history",
        help="a metric over many runs",
        description="Show a metric of the same cell over runs, by date, with the commits and where its level changed.",
    )
    history.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    history.add_argument("--metric", required=True, metavar="NAME", help="a column of report.csv, as perplexity_wiki")
    history.add_argument("--model", metavar="NAME", help="as in the report, where a run has several")
    history.add_argument("--label", metavar="LABEL", help="of the method, as in the report")
    history.add_argument("--ratio", type=float, metavar="R", help="as it was asked for")
    history.add_argument("--format", choices=("terminal", "markdown", "csv"), default="terminal")
    history.add_argument("--plot", type=Path, metavar="FILE", help="also draw it, as .svg, .png or .pdf")
    history.set_defaults(command=_history)


def _compare(arguments: argparse.Namespace) -> int:
    from bench.regression import gate as compare
    from bench.regression.compare import compare_cells, parse_allowed
    from bench.regression.gate import pair_cells, reason_for_refusal
    from reports.formats import markup, terminal
    from reports.tables import verdicts

    allowed = parse_allowed(arguments.allow)
    pairs = {}
    for name, before, after in pair_cells(arguments.a, arguments.b, arguments.samples):
        if before.status == after.status == "ok":
            pairs[name] = compare_cells(before, after, allowed)
        else:
            say(f"{name}: {before.status} in A, {after.status} in B; left out")
    if not pairs:
        raise UserError("every cell that A and B share has failed in one of them")
    if reason := reason_for_refusal(pairs):
        say(f"prunebench: {reason}")
        return NO_COMPARISON
    judged = compare.judge_rows(pairs)
    render = {
        "terminal": lambda: terminal.render(verdicts.tables_of_comparison(judged)),
        "markdown": lambda: markup.render_markdown(verdicts.tables_of_comparison(judged), level=4),
        "csv": lambda: markup.csv_of_lines(*verdicts.csv_of_comparison(judged)),
    }
    print(render[arguments.format](), end="")
    return OK


def _accept(arguments: argparse.Namespace) -> int:
    from bench.regression import baseline

    options = {"allow_failed": arguments.allow_failed, "replace": arguments.replace}
    print("\n".join(map(to_printable, baseline.accept(arguments.run, arguments.out, **options))))
    return OK


def _gate(arguments: argparse.Namespace) -> int:
    from bench.regression import baseline, gate
    from bench.regression.gate import read_margins
    from bench.regression.other_output import OUTPUT, is_other_output, read_other_output
    from bench.regression.results import results_of_run
    from methods.files import write_atomically
    from reports.formats import markup, terminal
    from reports.tables import verdicts

    may_lose = read_margins(arguments.margins)
    is_output = is_other_output(arguments.run)
    try:
        path = arguments.baseline
        base = {OUTPUT: read_other_output(path)} if is_output else baseline.read_baseline(path)
    except baseline.NoBaseline as error:
        say(f"prunebench: {error}")
        return NO_COMPARISON
    warn = _refuse_record if arguments.partial else say
    run = {OUTPUT: read_other_output(arguments.run)} if is_output else results_of_run(arguments.run, warn)
    labels = [cell.identity["label"] for cell in run.values()]
    mapping = gate.parse_mapping(arguments.map, labels, [cell.identity["label"] for cell in base.values()])
    base = gate.keep_shared_cells(base, run, mapping) if arguments.partial else base
    verdict_list = gate.judge(base, run, may_lose, mapping)
    if not arguments.no_confirm and not is_output:  # what others have scored, this suite cannot measure again
        verdict_list = _confirm(
            verdict_list, base, run, _Options(cli.trust_of(arguments), arguments.plugin, may_lose, mapping)
        )
    table = terminal.render(verdicts.tables_of_gate(verdict_list, strict=arguments.strict))
    renderers = {"markdown": markup.comment_of_verdicts, "junit": markup.to_junit}
    text = (
        table if arguments.format == "terminal" else renderers[arguments.format](verdict_list, strict=arguments.strict)
    )
    if arguments.out:
        write_atomically(arguments.out, text)
    print(table if arguments.out else text, end="")
    return gate.exit_code_of(verdict_list, strict=arguments.strict)


def _refuse_record(line: str) -> None:
    """Raise UserError for a record that cannot be read, by the line that says what is wrong with it."""
    from bench.records.record import LEFT_OUT

    raise UserError(f"{line.removesuffix(f'; {LEFT_OUT}')}; --partial takes no run with such a record")


class _Options(NamedTuple):
    """Holds what a second judgement shares with the first, and what measuring again takes."""

    trust: Trust
    plugins: list[str]
    margins: Margins
    mapping: dict[str, str]


def _confirm(
    first: list[Verdict], base: Mapping[str, CellResults], run: Mapping[str, CellResults], options: _Options
) -> list[Verdict]:
    """Return the verdicts once the cells with a suspected regression have been measured a second time."""
    from bench.regression import gate

    names = {title: new.name for title, _, new, _ in gate.pair_runs(base, run, options.mapping) if new is not None}
    suspects = gate.find_suspects(first)
    if not suspects:
        return first
    import methods
    from bench.regression.results import add_flips
    from bench.runs import reproduce

    try:
        methods.load(options.plugins)
    except ValueError as error:
        raise UserError(str(error)) from None
    second, place = dict(run), options.trust.run
    suspected = reproduce.find_measurable_cells(place, [names[title] for title in suspects], options.trust)
    for title in suspects:
        say(f"{title}: looks worse; measuring it again")
        second[names[title]] = reproduce.measure_again(place, names[title], *suspected[names[title]])
    verdicts = gate.judge(base, add_flips(second), options.margins, options.mapping)
    return gate.keep_confirmed(first, {(v.cell, v.metric): v for v in verdicts if v.cell in suspects})


def _history(arguments: argparse.Namespace) -> int:
    from reports import history
    from reports import history as history_points
    from reports import history as history_table
    from reports.formats import markup, terminal
    from reports.history import FigureChoice

    if arguments.plot and arguments.plot.suffix not in (".svg", ".png", ".pdf"):
        raise UserError(f"--plot names an .svg, .png or .pdf file; got {arguments.plot}")
    choice = FigureChoice(arguments.metric, arguments.model, arguments.label, arguments.ratio)
    points = history.series_of_points(history_points.points_of(arguments.runs, choice))
    if arguments.plot:
        ratio = "" if arguments.ratio is None else f" at {arguments.ratio:g}"
        history_table.draw_history(points, arguments.metric, f"{arguments.label or ''}{ratio}", arguments.plot)
    if arguments.format == "csv":
        print(markup.csv_of_lines(*history_table.csv_of_history(points, arguments.metric)), end="")
    else:
        render = markup.render_markdown if arguments.format == "markdown" else terminal.render
        print(render([history_table.table_of_history(points, arguments.metric)]), end="")
    return OK
