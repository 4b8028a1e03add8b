"""The commands of the command line, a module for each kind. Each module adds the flags of its commands to the parser.

Nothing here imports anything heavy before its command runs. `add_flags` adds the flags of a dataclass to a command. A
flag that is not given leaves no value behind.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.plan.fields import Option
from bench.plan.run_spec import BY_HAND, flags_of_run
from methods.console import say

if TYPE_CHECKING:
    from bench.plan.trust import Trust


OK, NOT_AS_SAID, USAGE, FAILED_CELLS, READER_GONE = 0, 1, 2, 3, 141  # exit codes, beside bench.system.interrupt's


TRUST = (
    "a model, text, task or file of documents that records may name, as they write it or as a path; by default those "
    "that come with this suite, and what lies in RUN. May be given several times"
)


def add_flags(parser: Any, options: Iterable[Option], **renamed: str) -> None:
    """Add flags to a parser or to a group of one. Their values stand under the names of the flags.

    renamed  other names of flags, as speed_rounds="--rounds"
    """
    for option in options:
        how: dict[str, Any] = {"metavar": option.metavar}
        if option.kind is bool:
            actions = {None: argparse.BooleanOptionalAction, False: "store_true", True: "store_false"}
            how = {"action": actions[option.default]}
        elif option.repeated:
            how["action"] = "append"
        elif option.choices:
            how["choices"] = option.choices
        flag = renamed.get(option.field, f"--{option.flag}")
        parser.add_argument(flag, dest=option.flag, default=argparse.SUPPRESS, help=option.help, **how)


def given_flags(arguments: argparse.Namespace, options: Iterable[Option]) -> dict[str, Any]:
    """Return the values of the flags in the command, by the names of the flags."""
    return {option.flag: vars(arguments)[option.flag] for option in options if option.flag in arguments}


def given_fields(arguments: argparse.Namespace, options: Iterable[Option]) -> dict[str, Any]:
    """Return the values of the flags in the command, by the names of their fields."""
    return {option.field: vars(arguments)[option.flag] for option in options if option.flag in arguments}


def say_next(*runs: Path) -> None:
    """Print the commands that show more of runs, on stderr where a person reads it."""
    if sys.stderr.isatty():
        folders = " ".join(map(str, runs))
        say(f"next: `python -m bench report {folders} --explain` says how it was measured,")
        say(f"`python -m bench site {folders} --out DIR` writes a page that compares the methods")


def add_trust(parser: Any) -> None:
    """Add the flags that allow what a record alone may not name, for commands that make cells of records again."""
    parser.add_argument("--trust", action="append", default=[], metavar="NAME", help=TRUST)
    add_flags(parser, [flags_of_run()[name] for name in BY_HAND])


def trust_of(arguments: argparse.Namespace) -> Trust:
    """Return what the user lets the records of the run name."""
    from bench.plan.trust import Trust

    remote_code, programs = (vars(arguments).get(name, False) for name in BY_HAND)
    return Trust(arguments.run, remote_code, tuple(arguments.trust), programs)
