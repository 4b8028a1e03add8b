"""The commands on run folders: merge, pack, show and serve.

merge   run folders of several machines as one
pack    a finished run in few files, as it goes into a repository, and back again
show    one cell whole
serve   the page of a run while it grows
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from bench.cli import NOT_AS_SAID, OK
from methods.console import say
from methods.errors import UserError


def add_merge(commands: Any) -> None:
    """Add the command merge."""
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
    from bench.records import run_folder
    from bench.records import run_folder as joined
    from reports import report

    notes = run_folder.load_runs(arguments.parts).notes
    records = joined.merge_runs(arguments.parts, arguments.out)
    report.write_report(arguments.out, list(records.values()))
    for remark in notes:
        say(remark)
    print(f"{arguments.out}: {len(records)} cells of {len(arguments.parts)} parts")
    return OK


def add_pack(commands: Any) -> None:
    """Add the command pack."""
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
    push = (
        "push the packed run to the Hugging Face hub as a dataset repository, which `report hf://datasets/ORG/NAME` "
        "reads; a new one is private. Records hold the names and paths that the run was given"
    )
    pack.add_argument("--push", metavar="ORG/NAME", help=push)
    public = "a new repository of --push can be seen by all; one that exists stays as it is"
    pack.add_argument("--public", action="store_true", help=public)
    pack.set_defaults(command=_pack)


def _pack(arguments: argparse.Namespace) -> int:
    from bench.records import packed_run

    run, target = arguments.run, arguments.out or arguments.run
    if arguments.unpack and (arguments.out or arguments.push):
        raise UserError(f"--unpack writes into RUN itself: leave {'--out' if arguments.out else '--push'} out")
    if arguments.public and not arguments.push:
        raise UserError("--public is about --push, which is not asked for; leave it out")
    if arguments.unpack:
        print(f"{run}: {packed_run.unpack_run(run)} cells, a file for each")
        return OK
    if arguments.push:
        return _pack_and_push(arguments)
    _pack_into(run, target, arguments)
    return OK


def _pack_and_push(arguments: argparse.Namespace) -> int:
    """Pack a run that is not packed yet, push it, and return the exit code."""
    from bench.export import hub
    from bench.records import packed_run

    hub.check_push(arguments.push)
    run, target = arguments.run, arguments.out or arguments.run
    if arguments.out or not packed_run.is_packed(run):
        _pack_into(run, target, arguments)
    try:
        print(hub.push_run(target, arguments.push, public=arguments.public))
    except hub.NotPushed as error:
        say(str(error))
        return NOT_AS_SAID
    return OK


def _pack_into(run: Path, target: Path, arguments: argparse.Namespace) -> None:
    """Pack a run into a folder, and print a line on it."""
    from bench.records import packed_run, run_folder

    if arguments.out or packed_run.is_packed(run) or not run_folder.files_of_records(run):  # or pack says what is wrong
        cells = packed_run.pack_run(run, target)
    else:
        from bench.runs import store

        with store.lock_folder(run):  # no run may go on in it meanwhile
            cells = packed_run.pack_run(run, target)
    packed = packed_run.files_of_packed_run(target)
    size = sum(path.stat().st_size for path in packed)
    print(f"{target}: {cells} cells in {len(packed)} files, {size / 1e6:.1f} MB")


PORT = 8765
RESULTS = Path("results")


def add_show(commands: Any) -> None:
    """Add the commands show and serve."""
    show = commands.add_parser(
        "show",
        help="print one cell whole",
        description=(
            "Print everything that was asked, decided and measured of one cell, and where; what its model wrote beside "
            "the dense one, and the answers that changed."
        ),
    )
    show.add_argument("run", metavar="RUN", help="a run folder, or RUN/CELL in one word")
    show.add_argument("cell", nargs="?", metavar="CELL", help="the key of a cell, its start, or a label")
    show.add_argument(
        "--all-answers",
        action="store_true",
        help="all continuations and changed answers; by default three of each kind",
    )
    show.set_defaults(command=_show)
    serve = commands.add_parser(
        "serve",
        help="show the page of a run in a browser",
        description="Serve the page of a run on this machine alone; it renews itself while the run goes on.",
    )
    serve.add_argument("run", nargs="?", type=Path, metavar="RUN", help="by default the newest run under results/")
    serve.add_argument("--port", type=int, default=PORT, metavar="N", help="by default %(default)s; 0 for any free one")
    serve.set_defaults(command=_serve)


def _show(arguments: argparse.Namespace) -> int:
    from bench.records import run_folder
    from bench.records.changed_answers import find_beside
    from bench.records.record import InvalidRecord
    from reports.formats import terminal
    from reports.tables.answers_beside import list_facts_beside

    named = (Path(arguments.run), arguments.cell) if arguments.cell else run_folder.split_name(arguments.run)
    if named is None:
        raise UserError(
            f"{arguments.run!r} names no cell; say RUN/CELL, as in results/2026-01-31-laco-model/laco--0.3, or RUN CELL"
        )
    key, record = run_folder.find_cell(*named)
    try:
        more = list_facts_beside(find_beside(named[0], key, record), record.cell.label, every=arguments.all_answers)
    except InvalidRecord as error:  # of its samples: the record itself is whole
        say(f"{error}; what was written is left out")
        more = []
    print(terminal.text_of_cell(record, key, more), end="")
    return OK


def _serve(arguments: argparse.Namespace) -> int:
    from methods.cards import needs_of_methods
    from reports.page import server

    run = arguments.run or _newest()
    if not run.is_dir():
        raise UserError(f"there is no folder {run}; say which run, as in results/2026-01-31-laco-model")
    if not 0 <= arguments.port < 2**16:
        raise UserError(f"--port is a number from 0 to 65535; got {arguments.port}")
    try:
        served = server.open_server(run, arguments.port, needs_of_methods())
    except OSError as error:
        raise UserError(f"port {arguments.port} cannot be had: {error.strerror}; say another with --port") from None
    try:
        print(f"{run}: http://127.0.0.1:{served.server_port}/   (Ctrl-C ends it)", flush=True)
        served.serve_forever()
    except KeyboardInterrupt:
        print("", file=sys.stderr)
    finally:
        served.server_close()
    return OK


def _newest() -> Path:
    """Return the run below results/ whose records changed last."""
    from bench.records import run_folder

    changed = {}
    for run in sorted(RESULTS.glob("*")):
        changes = [path.stat().st_mtime for path in run_folder.files_of_records(run)]
        if changes:
            changed[run] = max(changes)
    if not changed:
        raise UserError(f"no run has a record below {RESULTS}/ yet; say which folder, as in `serve /tmp/run`")
    return max(changed, key=lambda run: changed[run])
