"""Adds the command pack: a finished run in few files, as it goes into a repository, and back again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bench.cli import OK
from methods.errors import UserError


def add(commands: Any) -> None:
    pack = commands.add_parser(
        "pack",
        help="put a finished run into few files",
        description=(
            "Write all records of a run to records.jsonl and its samples to one Parquet file for each task or text, as "
            "suits a repository. Every command that reads runs reads packed ones. Saved models stay where they are."
        ),
    )
    pack.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    pack.add_argument("--out", type=Path, metavar="DIR", help="a new folder for the packed run; by default RUN itself")
    pack.add_argument("--unpack", action="store_true", help="give RUN a file for each cell again, so that it can go on")
    pack.set_defaults(command=_pack)


def _pack(arguments: argparse.Namespace) -> int:
    from bench.records import packed_run, run_folder

    run, target = arguments.run, arguments.out or arguments.run
    if arguments.unpack and arguments.out:
        raise UserError("--unpack writes into RUN itself: leave --out out")
    if arguments.unpack:
        print(f"{run}: {packed_run.unpack(run)} cells, a file for each")
        return OK
    if arguments.out or packed_run.is_packed(run) or not run_folder.files(run):  # or pack says what is wrong
        cells = packed_run.pack(run, target)
    else:
        from bench.run import lock

        with lock.held(run):  # no run may go on in it meanwhile
            cells = packed_run.pack(run, target)
    packed = packed_run.files(target)
    size = sum(path.stat().st_size for path in packed)
    print(f"{target}: {cells} cells in {len(packed)} files, {size / 1e6:.1f} MB")
    return OK
