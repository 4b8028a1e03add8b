"""The commands show and serve: one cell whole, and the page of a run while it grows."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from bench.commands import OK
from bench.errors import UserError

PORT = 8765
RESULTS = Path("results")


def add(commands: Any) -> None:
    show = commands.add_parser(
        "show",
        help="print one cell whole",
        description="Print everything that was asked, decided and measured of one cell, and where.",
    )
    show.add_argument("run", metavar="RUN", help="a run folder, or RUN/CELL in one word")
    show.add_argument(
        "cell", nargs="?", metavar="CELL", help="a file of its cells/ without .json, its start, or a label"
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
    from bench.record import InvalidRecord, load
    from reports import cell

    run, wanted = _run_and_cell(arguments.run, arguments.cell)
    path = find(run, wanted)
    try:
        print(cell.text(load(path), path.stem), end="")
    except InvalidRecord as error:
        raise UserError(str(error)) from None
    return OK


def _run_and_cell(run: str, cell: str | None) -> tuple[Path, str]:
    """RUN CELL, or RUN/CELL where RUN is the longest start of it that is a run folder; a label may hold a slash."""
    if cell is not None:
        return Path(run), cell
    cuts = [position for position, character in enumerate(run) if character == "/"]
    for cut in reversed(cuts):
        folder, wanted = Path(run[:cut] or "/"), run[cut + 1 :]
        if wanted and (folder / "cells").is_dir():
            return folder, wanted
        if wanted and folder.name == "cells" and folder.is_dir():
            return folder.parent, wanted.removesuffix(".json")
    raise UserError(f"{run!r} names no cell; say RUN/CELL, as in results/2026-01-31-laco-model/laco--0.3, or RUN CELL")


def find(run: Path, wanted: str) -> Path:
    """The one file of a run's cells whose name is `wanted`, starts with it, or whose label it is. Raises UserError."""
    from bench.record import InvalidRecord, load

    paths = {path.stem: path for path in sorted((run / "cells").glob("*.json"))}
    if not paths:
        raise UserError(f"{run} is no run folder: it has no cells/*.json")
    found = [key for key in paths if key == wanted] or [key for key in paths if key.startswith(wanted)]
    if not found:
        try:
            found = [key for key, path in paths.items() if load(path).cell.get("label") == wanted]
        except InvalidRecord as error:
            raise UserError(str(error)) from None
    if len(found) != 1:
        which = f"names {len(found)} cells" if found else "is no cell"
        raise UserError(f"{wanted!r} {which} of {run}; it has {', '.join(found or paths)}")
    return paths[found[0]]


def _serve(arguments: argparse.Namespace) -> int:
    from methods import catalogue
    from reports import server

    run = arguments.run or _newest()
    if not run.is_dir():
        raise UserError(f"there is no folder {run}; say which run, as in results/2026-01-31-laco-model")
    if not 0 <= arguments.port < 2**16:
        raise UserError(f"--port is a number from 0 to 65535; got {arguments.port}")
    try:
        served = server.start(run, arguments.port, {card.name: card.needs for card in catalogue()})
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
    """The run below results/ whose records changed last."""
    changed = {
        path.parent.parent: path.stat().st_mtime for path in sorted(RESULTS.glob("*/cells/*.json"), key=_changed)
    }
    if not changed:
        raise UserError(f"no run has a record below {RESULTS}/ yet; say which folder, as in `serve /tmp/run`")
    return max(changed, key=lambda run: changed[run])


def _changed(path: Path) -> float:
    return path.stat().st_mtime
