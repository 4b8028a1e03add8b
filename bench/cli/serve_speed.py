"""The command serve-speed: the models of a run in an inference engine, their quality, size and speed there."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cli import FAILED_CELLS, OK, options
from bench.plan.fields import options as options_of
from bench.plan.served import ServedProtocol

if TYPE_CHECKING:
    from bench.plan.trust import Trust

OWN = options_of(ServedProtocol)


def add(commands: Any) -> None:
    command = commands.add_parser(
        "serve-speed",
        help="time the models of a run in an inference engine",
        description="Export each model of a run in several types of weights, hold what the engine computes against "
        "this suite, and have the engine score a text and be timed, in turns with the dense model. The table is the "
        "one of `report RUN --view served`; the same command goes on where it stopped, "
        "and another one adds its rows.",
    )
    command.add_argument("run", type=Path, metavar="RUN", help="a run folder, whose served.jsonl is written")
    command.add_argument("cells", nargs="*", metavar="CELL", help="keys or labels; by default all cells with a model")
    options.add(command, OWN)
    command.add_argument("--threads", type=int, metavar="N", help="of the engine; by default all cores")
    command.add_argument("--device", default="auto", help="to make models again on; auto: as in the record")
    command.add_argument("--plugin", action="append", default=[], metavar="FILE", help="a Python file with methods")
    options.add_trust(command)
    command.set_defaults(command=_serve_speed)


def _serve_speed(arguments: argparse.Namespace) -> int:
    protocol = ServedProtocol(**options.fields(arguments, OWN))
    import methods
    from methods.errors import UserError

    if arguments.threads is not None and arguments.threads < 1:
        raise UserError(f"--threads is a positive number; got {arguments.threads}")
    try:
        methods.load(arguments.plugin)
    except ValueError as error:
        raise UserError(str(error)) from None
    trust = options.trust(arguments)
    return serve(trust, protocol, arguments.cells, threads=arguments.threads, device=arguments.device)


def require(protocol: ServedProtocol) -> None:
    """Raise UserError where the engine is missing, before any work."""
    from bench.served import chosen

    chosen.engine(protocol, None).require(protocol)


def serve(
    trust: Trust,
    protocol: ServedProtocol,
    cells: Sequence[str] = (),
    *,
    threads: int | None = None,
    device: str = "auto",
) -> int:
    """Serve models of a run, all of them where none is named, print the tables, and return the exit code.

    trust  says of which run, and what its records may name

    Raises UserError where the engine serves none of the dense models.
    """
    from bench.served import chosen, rows
    from bench.system.console import say
    from reports.formats import terminal
    from reports.tables.speed import served as tables

    wanted, engine = rows.find(trust, cells), chosen.engine(protocol, threads)
    found, refused = [], list[rows.DenseNotServed]()
    for model in wanted:
        try:
            found += list(rows.serve(model, protocol, engine, device=device))
        except rows.DenseNotServed as error:
            refused.append(error)
            if len(wanted) > 1:
                say(f"{model.name}: {error}")
    if len(refused) == len(wanted):
        raise refused[0]
    print(terminal.render(tables.tables(found)), end="")
    return FAILED_CELLS if refused or any(one.status not in ("ok", "unsupported") for one in found) else OK
