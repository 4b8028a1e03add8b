"""Adds the command doctor: whether this machine gives right numbers."""

from __future__ import annotations

import argparse
import json
from typing import Any

from bench.cli import NOT_AS_SAID, OK
from bench.doctor import CHECKS
from methods.errors import UserError


def add(commands: Any) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="say whether this machine gives right numbers",
        description=(
            "Look at this machine: its speed, every method on a tiny model beside stored results, the scorer beside "
            "lm-eval's, a model timed against itself, saved models, and on a GPU its memory and its copies. Prints one "
            "table; the exit code is 1 where something is wrong. Nothing is fetched, and nothing is left behind."
        ),
    )
    doctor.add_argument("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda or cuda:N")
    doctor.add_argument("--only", default="", metavar="LIST", help=f"of {', '.join(CHECKS)}; by default all")
    doctor.add_argument("--json", action="store_true", help="print JSON for a bug report instead of the table")
    doctor.set_defaults(command=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from bench.data import pretrained
    from bench.doctor import examination, finding, machine
    from bench.system.console import say

    device = pretrained.resolve_device(arguments.device)
    only = [name for name in arguments.only.split(",") if name]
    if arguments.only and not only:
        raise UserError(f"--only is given nothing; name one of {', '.join(CHECKS)} or several")
    found = examination.examine(device, only)
    if arguments.json:
        print(json.dumps(finding.document(found, machine.describe(device)), indent=1, allow_nan=False))
    else:
        print(finding.table(found))
    wrong = examination.wrong(found)
    say(f"wrong on this machine: {'; '.join(wrong)}" if wrong else "nothing is wrong on this machine")
    return NOT_AS_SAID if wrong else OK
