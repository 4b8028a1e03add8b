"""The command report: what records say."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bench.commands import OK
from bench.errors import UserError


def add(commands: Any) -> None:
    report = commands.add_parser("report", help="draw the tables of finished runs")
    report.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, as in results/2026-01-31-laco-model")
    report.add_argument("--format", choices=("terminal", "markdown", "csv"), default="terminal")
    report.set_defaults(command=_report)


def _report(arguments: argparse.Namespace) -> int:
    from bench.record import InvalidRecord, load_run
    from reports import table

    records = []
    for run in arguments.runs:
        try:
            found = load_run(Path(run))
        except InvalidRecord as error:
            raise UserError(str(error)) from None
        if not found:
            raise UserError(f"{run} is no run folder: it has no cells/*.json")
        records += found
    renderers = {"terminal": table.terminal, "markdown": table.markdown, "csv": table.csv}
    print(renderers[arguments.format](records), end="")
    return OK
