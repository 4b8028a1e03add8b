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

from bench.cli import READER_GONE, USAGE, export, folder, measurements, regression, report, run, workshop
from bench.cli import list as list_command
from bench.plan.fields import hint_of_similar_name
from bench.system import failures, interrupt
from bench.system.threads import set_up_threads
from methods.console import say
from methods.errors import UserError

SHELLS = ("bash", "zsh", "fish")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)  # errors of an output that takes no more


class Parser(argparse.ArgumentParser):
    """Takes flags by their full names only, and turns a usage error into one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def parse_known_args(self, *given: Any, **named: Any) -> Any:
        """Refuse unknown flags here, so that the message names the help of this command and not of all."""
        namespace, rest = super().parse_known_args(*given, **named)
        if rest:
            flags = [word.partition("=")[0] for word in rest if word.startswith("--")]
            hint = next(filter(None, (hint_of_similar_name(flag, self._option_string_actions) for flag in flags)), "")
            self.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
        return namespace, rest

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Hint at the choice that resembles the given one."""
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            hint = hint_of_similar_name(str(value), map(str, action.choices or ()))
            raise argparse.ArgumentError(action, f"{error.message}{hint}") from None

    def error(self, message: str) -> NoReturn:
        """Raise UserError. Of a missing argument that has few values the message lists them."""
        required, colon, lacking = message.partition("arguments are required: ")
        if colon:
            choices = {
                action.metavar or action.dest: f"one of {', '.join(map(str, action.choices))}"
                for action in self._actions
                if action.choices and not action.option_strings
            }
            message = required + colon + ", ".join(choices.get(name, name) for name in lacking.split(", "))
        raise UserError(f"{message}; see `{self.prog} --help`")


class PrintAndExit(argparse.Action):
    """Is a flag that prints something and ends the program."""

    def __init__(self, *names: Any, says: Any, **options: Any) -> None:
        super().__init__(*names, **options)
        self.says = says

    def __call__(self, parser: argparse.ArgumentParser, _: object, value: Any, option: str | None = None) -> NoReturn:
        """Print what the flag asks for, and end the program."""
        print(self.says(value))
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code, as docs/reference/runs.md lists them."""
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  # or what goes there would go to stdout
    if sys.stdout is None:
        say("prunebench: standard output is closed, where results go; send them to a file, or to /dev/null")
        return USAGE
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # where the terminal has no such character, as stderr does
    try:
        arguments = _parse(sys.argv[1:] if argv is None else argv)
        set_up_threads()
        with interrupt.keep_prompt():
            code = _run_command(arguments)
        sys.stdout.flush()
        return code
    except UserError as error:
        say(f"prunebench: {error}")
        return USAGE
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        return READER_GONE
    except (OSError, MemoryError, ImportError) as error:
        reason = _of_the_machine(error)
        if not reason:
            raise
        say(f"prunebench: {reason}")
        return USAGE
    except (KeyboardInterrupt, interrupt.EndedBySignal) as ended:
        with contextlib.suppress(OSError):  # the terminal may have been closed
            say(interrupt.message_of_signal(ended))
        return interrupt.code_of_signal(ended)


def _run_command(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code. Raises UserError where something in it ends the program itself."""
    try:
        code: int = arguments.command(arguments)
        return code
    except interrupt.EndedBySignal:
        raise
    except SystemExit as end:  # not of our commands: its exit code would pass for a verdict
        raise UserError(
            f"code that the command has called, such as a plugin's, ends the program with SystemExit({end.code!r}), so "
            "that there is no result; take that out of it"
        ) from end


def _of_the_machine(error: BaseException) -> str:
    """Return a line on what the machine refuses, such as a file or memory; empty where it refuses nothing."""
    if failures.is_out_of_memory(error):
        return f"memory does not suffice ({failures.reason_of_error(error)}); give the command more, see `ulimit -a`"
    if not isinstance(error, OSError):
        return ""
    if error.errno == errno.ENAMETOOLONG:
        return f"no path may be as long as {str(error.filename)[:40]!r}...; name another"
    if error.filename is None and error.errno in FULL:
        _let_go_of_output()
        return f"standard output takes no more: {error.strerror}; make room, or send it elsewhere"
    if error.filename is None or error.strerror is None:
        return ""
    return f"{os.fsdecode(error.filename)}: {error.strerror}; make it so that it can be had, or name another"


def _let_go_of_output() -> None:
    """Discard the rest of the output, which the interpreter would flush at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _reader_is_gone() -> bool:
    """Say whether nobody reads the output any more, as behind `| head`. The rest of it is discarded then."""
    if hasattr(select, "poll"):
        output = select.poll()
        output.register(sys.stdout.fileno(), 0)
        if not any(event & select.POLLERR for _, event in output.poll(0)):
            return False
    _let_go_of_output()
    return True


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _parser("python -m bench")
    flag = argv[0].partition("=")[0] if argv else ""
    if flag.startswith("--") and flag not in parser._option_string_actions:
        commands = {
            option: f"{name} {option}"
            for name, command in reversed(_commands(parser).items())
            for option in command._option_string_actions
        }
        flags_of_run = _commands(parser)["run"]._option_string_actions
        longer = [option for option in flags_of_run if option.startswith(flag)]  # of the command that is left out most
        if flag in commands and (flag in flags_of_run or not longer):
            longer = [flag]
        meant = longer[:1] or get_close_matches(flag, commands, n=1)
        hint = f"; did you mean `{commands[meant[0]]}`?" if meant else ""
        parser.error(f"a command stands first, and {flag} is none{hint}")
    return parser.parse_args(argv)


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of the commands by their names."""
    return next(dict(action.choices) for action in parser._actions if isinstance(action.choices, dict))


def _parser(program: str) -> Parser:
    parser = Parser(prog=program, description="Prune language models, measure them, compare them fairly.")
    parser.add_argument(
        "--version", action=PrintAndExit, says=_versions, nargs=0, help="say which versions are installed"
    )
    parser.add_argument(
        "--print-completion",
        action=PrintAndExit,
        says=_completion,
        choices=SHELLS,
        help="print what a shell needs to complete `prunebench` commands",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    for add in (
        run.add_run,
        export.add,
        measurements.add_serve_speed,
        measurements.add_latency_table,
        report.add,
        folder.add_show,
        folder.add_pack,
        folder.add_merge,
        run.add_cell,
        regression.add,
        list_command.add_list,
        measurements.add_similarity,
        list_command.add_doctor,
        workshop.add_new_method,
        workshop.add_check_method,
    ):
        add(commands)
    return parser


def _versions(_: object) -> str:
    """Return the versions that results depend on, a line each."""
    from bench.system import versions

    python = ".".join(map(str, sys.version_info[:3]))
    return "\n".join(
        f"{name} {version}" for name, version in (versions.installed_versions() | {"python": python}).items()
    )


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
