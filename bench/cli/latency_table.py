"""The command latency-table: how long a generated token takes by the sizes of a model's parts, on this machine."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bench.cli import OK, options
from bench.plan.run_spec import flags, from_flags

PLACE = [flags()[name] for name in ("device", "dtype", "threads")]
DEPTH, ROUNDS = 64, 12  # as the profile quick has them


def add(commands: Any) -> None:
    command = commands.add_parser(
        "latency-table",
        help="measure what parts of a model take, for --budget latency",
        description=(
            "Time a model in turns with copies that have lost heads, channels, attentions or MLPs, and write what a "
            "part of each size takes of the milliseconds per generated token: `run --budget latency=0.8 "
            "--latency-table FILE` prunes by it. Nothing else should work on the machine."
        ),
    )
    model = flags()["model"].default
    command.add_argument("model", nargs="?", default=model, metavar="MODEL", help="by default %(default)s")
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="a new file for the table, JSON")
    command.add_argument(
        "--decode", type=int, default=DEPTH, metavar="TOKENS", help="of context, by default %(default)s"
    )
    command.add_argument("--speed-rounds", type=int, default=ROUNDS, metavar="N", help="by default %(default)s")
    options.add(command, PLACE)
    command.set_defaults(command=_measure)


def _measure(arguments: argparse.Namespace) -> int:
    spec = from_flags({"methods": "dense", "model": arguments.model} | options.given(arguments, PLACE))
    from bench.plan import validate
    from bench.plan.protocol import MIN_ROUNDS
    from bench.speed import latency
    from methods.errors import UserError
    from methods.files import write_atomically
    from reports.formats import terminal
    from reports.tables.speed import latency as tables

    if arguments.out.exists():
        raise UserError(f"--out {arguments.out} exists; name a new file")
    if arguments.speed_rounds < MIN_ROUNDS:
        raise UserError(f"--speed-rounds is at least {MIN_ROUNDS}; got {arguments.speed_rounds}")
    if arguments.decode < 1:
        raise UserError(f"--decode is at least 1 token of context; got {arguments.decode}")
    validate.check_folder(arguments.out.parent)
    target = validate.target_without_cells(spec, arguments.model, [])
    table = latency.measure(arguments.model, target.device, target.dtype, arguments.decode, arguments.speed_rounds)
    write_atomically(arguments.out, f"{json.dumps(table, indent=1, allow_nan=False)}\n")
    print(terminal.render([tables.table(table)]), end="")
    return OK
