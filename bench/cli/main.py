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
from difflib import get_close_matches
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
from bench.plan.parse import near
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
            flags = [word.partition("=")[0] for word in rest if word.startswith("--")]
            hint = next(filter(None, (near(flag, self._option_string_actions) for flag in flags)), "")
            self.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
        return found, rest

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Hint at the choice that is like what was given."""
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            hint = near(str(value), map(str, action.choices or ()))
            raise argparse.ArgumentError(action, f"{error.message}{hint}") from None

    def error(self, message: str) -> NoReturn:
        """Raise UserError; of an argument that is lacking and has few values it says these."""
        required, colon, lacking = message.partition("arguments are required: ")
        if colon:
            choices = {
                action.metavar or action.dest: f"one of {', '.join(map(str, action.choices))}"
                for action in self._actions
                if action.choices and not action.option_strings
            }
            message = required + colon + ", ".join(choices.get(name, name) for name in lacking.split(", "))
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
        print(f"prunebench: {error}", file=sys.stderr)
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
    parser = _parser("python -m bench")
    flag = argv[0].partition("=")[0] if argv else ""
    if flag.startswith("--") and flag not in parser._option_string_actions:
        commands = {
            option: f"{name} {option}"
            for name, command in reversed(_commands(parser).items())
            for option in command._option_string_actions
        }
        meant = [flag] if flag in commands else get_close_matches(flag, commands, n=1)
        hint = f"; did you mean `{commands[meant[0]]}`?" if meant else ""
        parser.error(f"a command stands first, and {flag} is none{hint}")
    return parser.parse_args(argv)


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of the commands by their names."""
    return next(dict(action.choices) for action in parser._actions if isinstance(action.choices, dict))


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
