"""The command line. Imports nothing heavy, so that --help and list answer at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from bench.cli import (
    INTERRUPTED,
    USAGE,
    cell,
    doctor,
    export,
    latency_table,
    merge,
    pack,
    regression,
    report,
    run,
    serve_speed,
    show,
    similarity,
)
from bench.cli import list as list_command
from bench.system.threads import let_threads_wait
from methods.errors import UserError


class Parser(argparse.ArgumentParser):
    """Takes flags by their full names only, and turns a usage error into one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0 done, 1 not as said, 2 a mistake, 3 a cell failed, 130 interrupted."""
    let_threads_wait()
    try:
        arguments = _parsed(sys.argv[1:] if argv is None else argv)
        code: int = arguments.command(arguments)
        return code
    except UserError as error:
        print(f"prunebench: {' '.join(str(error).split())}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("prunebench: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return INTERRUPTED


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m bench", description="Prune language models, measure them, compare them fairly.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    for module in (
        run,
        export,
        serve_speed,
        latency_table,
        report,
        show,
        pack,
        merge,
        cell,
        regression,
        list_command,
        similarity,
        doctor,
    ):
        module.add(commands)
    return parser.parse_args(argv)
