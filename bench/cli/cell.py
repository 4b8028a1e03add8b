"""Adds the command cell: one cell of a run, measured into a part, as the engines of other machines have it done."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from bench.cli import FAILED_CELLS, OK
from methods.errors import UserError


def add(commands: Any) -> None:
    cell = commands.add_parser(
        "cell",
        help="measure one cell that a run has written down",
        description=(
            "Measure the cell of a job, as `run --engine slurm` writes it, into a run folder of its own, unless its "
            "record is there. `merge` joins such parts. A job holds the code of its plugins, and what it names is "
            "loaded as its run allowed it: measure none that you would not run."
        ),
    )
    cell.add_argument("job", type=Path, metavar="JOB.json", help="a job of a run")
    cell.add_argument("--out", required=True, type=Path, metavar="PART", help="the folder of the part")
    cell.set_defaults(command=_cell)


def _cell(arguments: argparse.Namespace) -> int:
    from bench.engines.engine import Job
    from bench.records.record import FAILED
    from bench.run import part, store
    from bench.system import interrupt

    try:
        asked = Job.from_json(arguments.job.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{arguments.job} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    with interrupt.prompt(leave=partial(store.leave, arguments.out)):
        record = part.measured(asked, arguments.out)
    print(f"{arguments.out}: {asked.key}, {record.status}")
    return FAILED_CELLS if record.status in FAILED else OK
