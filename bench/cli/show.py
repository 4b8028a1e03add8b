"""The commands show and serve: one cell whole, and the page of a run while it grows."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from bench.cli import OK
from methods.errors import UserError

PORT = 8765
RESULTS = Path("results")


def add(commands: Any) -> None:
    """Add both commands and their options."""
    show = commands.add_parser(
        "show",
        help="print one cell whole",
        description="Print everything that was asked, decided and measured of one cell, and where.",
    )
    show.add_argument("run", metavar="RUN", help="a run folder, or RUN/CELL in one word")
    show.add_argument("cell", nargs="?", metavar="CELL", help="the key of a cell, its start, or a label")
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
    from reports.formats import cell_text

    named = (Path(arguments.run), arguments.cell) if arguments.cell else run_folder.split(arguments.run)
    if named is None:
        raise UserError(
            f"{arguments.run!r} names no cell; say RUN/CELL, as in results/2026-01-31-laco-model/laco--0.3, or RUN CELL"
        )
    key, record = run_folder.cell(*named)
    print(cell_text.text(record, key), end="")
    return OK


def _serve(arguments: argparse.Namespace) -> int:
    from methods.listed.cards import needs
    from reports.page import server

    run = arguments.run or _newest()
    if not run.is_dir():
        raise UserError(f"there is no folder {run}; say which run, as in results/2026-01-31-laco-model")
    if not 0 <= arguments.port < 2**16:
        raise UserError(f"--port is a number from 0 to 65535; got {arguments.port}")
    try:
        served = server.start(run, arguments.port, needs())
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

    held = {run: run_folder.files(run) for run in sorted(RESULTS.glob("*"))}
    changed = {run: max(path.stat().st_mtime for path in files) for run, files in held.items() if files}
    if not changed:
        raise UserError(f"no run has a record below {RESULTS}/ yet; say which folder, as in `serve /tmp/run`")
    return max(changed, key=lambda run: changed[run])
