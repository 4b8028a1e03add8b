"""The commands new-method and check-method, for who writes a method: its first file with a test, and what must hold."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from bench.cli import NOT_AS_SAID, OK
from methods.console import say
from methods.errors import UserError

FAMILIES = ("depth", "width", "search", "compensation")  # those of bench.workshop.new_method


def add_new_method(commands: Any) -> None:
    """Add the command new-method."""
    new = commands.add_parser(
        "new-method",
        help="write the first file of a method of your own, and its test",
        description=(
            "Write NAME.py and test_NAME.py, a small method that runs as it is and the test of what it alone promises. "
            "Its head has places to fill. Nothing that is there is replaced."
        ),
    )
    new.add_argument("name", metavar="NAME", help="of the method, as in smallest-writers")
    new.add_argument(
        "--family",
        choices=FAMILIES,
        default="depth",
        help="depth drops layers, width cuts heads and channels, search compares sets of attentions and MLPs, "
        "compensation repairs what a method has cut; by default %(default)s",
    )
    new.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="by default the folder of the command")
    new.set_defaults(command=_new)


def _new(arguments: argparse.Namespace) -> int:
    from bench.workshop import new_method

    method, test = new_method.write_method(arguments.name, arguments.family, arguments.out)
    print(f"{method}\n{test}")
    label = f"shortgpt+{arguments.name}" if arguments.family == "compensation" else arguments.name
    file, test_file = shlex.quote(str(method)), shlex.quote(str(test))
    say(f"next: python -m bench check-method {file}")
    say(f"      python -m pytest {test_file}")
    say(f"      python -m bench run --plugin {file} --methods {label} --ratio 0.1")
    return OK


def add_check_method(commands: Any) -> None:
    """Add the command check-method."""
    check = commands.add_parser(
        "check-method",
        help="say what holds of a method of your own, on tiny models",
        description=(
            "Prune tiny random models of several families with a method of a file, and say line by line what holds: "
            "its budget, its decisions, saving, exporting, a second run, weights in files and more. Takes about a "
            "minute. Nothing is fetched, and nothing is left behind; the exit code is 1 where something is wrong."
        ),
    )
    check.add_argument("file", type=Path, metavar="FILE.py", help="a Python file with methods or compensations")
    check.add_argument(
        "--method", metavar="NAME", help="one of them, with parameters as in mine:keep_first=2; by default all"
    )
    check.add_argument("--json", action="store_true", help="print JSON with what each family gave, not the table")
    check.set_defaults(command=_check)


def _check(arguments: argparse.Namespace) -> int:
    from bench.plan import named
    from bench.plan.fields import parse_methods

    named.refuse_plugin(arguments.file)
    choices = parse_methods(arguments.method) if arguments.method is not None else []
    import torch

    import methods
    from bench.doctor import examination, finding, machine
    from bench.workshop import method_checks

    try:
        methods.load([str(arguments.file)])
        labels = method_checks.list_labels(arguments.file)
        if unknown := [choice.method for choice in choices if choice.method not in labels]:
            raise UserError(f"--method names a method of {arguments.file}: {', '.join(labels)}; got {unknown[0]!r}")
        given = {choice.method: choice.given for choice in choices} or {label: {} for label in labels}
        for label, parameters in given.items():
            methods.make(label, methods.tiny_parameters_of(label) | parameters)
    except ValueError as error:
        raise UserError(str(error)) from None
    findings = list[finding.Finding]()
    for label, parameters in given.items():
        findings += method_checks.check_method(label, parameters, prefix=f"{label}: " if len(given) > 1 else "")
    if arguments.json:
        document = finding.document_of_findings(findings, machine.describe(torch.device("cpu")))
        print(json.dumps(document, indent=1, allow_nan=False))
    else:
        print(finding.format_findings(findings))
    wrong = examination.names_of_wrong(findings)
    names = ", ".join(given)
    say(f"does not hold of {names}: {'; '.join(wrong)}" if wrong else f"all that was looked at holds of {names}")
    return NOT_AS_SAID if wrong else OK
