"""The command line. Imports nothing heavy, so that --help and list answer at once."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import select
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from bench.cli import (
    READER_GONE,
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
from bench.system import interrupt
from bench.system.threads import set_up_threads
from methods.errors import UserError

SHELLS = ("bash", "zsh", "fish")


class Parser(argparse.ArgumentParser):
    """Takes flags by their full names only, and turns a usage error into one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def parse_known_args(self, *given: Any, **named: Any) -> Any:
        """Refuse what is not known here and now, so that the message names the help of this command and not of all."""
        found, rest = super().parse_known_args(*given, **named)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return found, rest

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")


class Said(argparse.Action):
    """Is a flag that prints something and ends the program."""

    def __init__(self, *names: Any, says: Any, **options: Any) -> None:
        super().__init__(*names, **options)
        self.says = says

    def __call__(self, parser: argparse.ArgumentParser, _: object, value: Any, option: str | None = None) -> NoReturn:
        print(self.says(value))
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code, as docs/guides/running.md lists them."""
    set_up_threads()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # where the terminal has no such character, as stderr does
    try:
        arguments = _parsed(sys.argv[1:] if argv is None else argv)
        with interrupt.prompt():
            code: int = arguments.command(arguments)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"prunebench: {' '.join(str(error).split())}", file=sys.stderr)
        return USAGE
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        return READER_GONE
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        print(f"prunebench: no path may be as long as {str(error.filename)[:40]!r}...; name another", file=sys.stderr)
        return USAGE
    except (KeyboardInterrupt, interrupt.EndedBySignal) as ended:
        with contextlib.suppress(OSError):  # of a terminal that has been closed
            print(interrupt.message(ended), file=sys.stderr)
        return interrupt.code_of(ended)


def _reader_is_gone() -> bool:
    """Say whether nobody reads the output any more, as behind `| head`; what is left of it is let go then."""
    if hasattr(select, "poll"):
        output = select.poll()
        output.register(sys.stdout.fileno(), 0)
        if not any(event & select.POLLERR for _, event in output.poll(0)):
            return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # which the interpreter flushes at its end
    return True


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    return _parser("python -m bench").parse_args(argv)


def _parser(program: str) -> Parser:
    parser = Parser(prog=program, description="Prune language models, measure them, compare them fairly.")
    parser.add_argument("--version", action=Said, says=_versions, nargs=0, help="say which versions are installed")
    parser.add_argument(
        "--print-completion",
        action=Said,
        says=_completion,
        choices=SHELLS,
        help="print what a shell needs to complete `prunebench` commands",
    )
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
    return parser


def _versions(_: object) -> str:
    """Return the versions that a figure stands on, a line each."""
    from bench.system import versions

    python = ".".join(map(str, sys.version_info[:3]))
    return "\n".join(f"{name} {version}" for name, version in (versions.installed() | {"python": python}).items())


def _completion(shell: str) -> str:
    """Return a script by which a shell completes the command `prunebench`, file names included."""
    import shtab

    parser = _parser("prunebench")
    for action in _actions(parser):
        if action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # which shtab reads
    script: str = shtab.complete(parser, shell)
    return script


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the arguments of a parser and of all its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action.choices, dict):
            for command in action.choices.values():
                yield from _actions(command)
