"""Adds the command merge: run folders of several machines as one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bench.cli import OK
from bench.system.console import say


def add(commands: Any) -> None:
    merge = commands.add_parser(
        "merge",
        help="join the parts of a run that several machines have measured",
        description=(
            "Write the cells of all parts, packed or not, with their samples and saved models to a new run folder. Two "
            "different records of one cell are refused. Cells that cannot be compared stand in tables of their own, as "
            "in a report of several runs."
        ),
    )
    merge.add_argument("parts", nargs="+", type=Path, metavar="PART", help="a run folder")
    merge.add_argument("--out", required=True, type=Path, metavar="RUN", help="a new folder for the whole run")
    merge.set_defaults(command=_merge)


def _merge(arguments: argparse.Namespace) -> int:
    from bench.records import merge as joined
    from bench.records import run_folder
    from reports import report

    notes = run_folder.load_runs(arguments.parts).notes
    records = joined.merge(arguments.parts, arguments.out)
    report.write(arguments.out, list(records.values()))
    for remark in notes:
        say(remark)
    print(f"{arguments.out}: {len(records)} cells of {len(arguments.parts)} parts")
    return OK
