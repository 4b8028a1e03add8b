"""A run written down as YAML: its keys are the long flags of `run`, put in front of those of the command line.

    description: one line, for `list specs`
    base: the name of another spec, or a file beside this one; what stands here wins over it
    methods: [laco, shortgpt+ghost]
    ratio: [0.1, 0.2]
    set: {laco.C: [2, 3, 4, 6], laco.T: 0.65}
    no-checks: true

A list is what the flag takes with commas; `set` and `task-data` are tables. Keys are written with - or _.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from methods.errors import UserError

SHIPPED = Path(__file__).parent.parent / "specs"
OWN = ("description", "base")  # keys that are no flags
TABLES = ("set", "task-data")  # flags that are given once for each NAME=VALUE
REPEATED = (*TABLES, "plugin", "then")  # flags that are given several times, and not once with commas
BY_HAND = "trust-remote-code"  # what a file that others wrote cannot switch on


def shipped() -> dict[str, str]:
    """The description of each spec that comes with the suite, by its name."""
    return {path.stem: str(_read(path).get("description", "")) for path in _files()}


def _files() -> list[Path]:
    return sorted(SHIPPED.glob("*.yaml"), key=lambda path: path.stem)


def expanded(argv: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """The command line with the flags of its --spec in front of its own, of which the last counts.

    `parser` is that of `run`. Raises UserError for a spec that cannot be read, with the keys or names that are near.
    """
    command, rest = list(argv[:1]), list(argv[1:])
    name = _named(rest)
    if command != ["run"] or name is None:
        return [*command, *rest]
    return [*command, *_flags(_find(name), parser, ()), *rest]


def _named(arguments: Sequence[str]) -> str | None:
    """The value of the last --spec, if there is one."""
    found = None
    for place, argument in enumerate(arguments):
        if argument.startswith("--spec="):
            found = argument.removeprefix("--spec=")
        elif argument == "--spec" and place + 1 < len(arguments):
            found = arguments[place + 1]
    return found


def _find(name: str, beside: Path | None = None) -> Path:
    """The file of a spec: one that comes with the suite, or a path, for a base from the spec that names it."""
    path = Path(name) if beside is None else beside.parent / name
    if path.is_file():
        return path
    own = SHIPPED / f"{name}.yaml"
    if own.parent == SHIPPED and own.is_file():
        return own
    known = [file.stem for file in _files()]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"no spec {name!r}; {hint}give a YAML file, or one of {', '.join(known)}")


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {error}") from None
    if not isinstance(plain, dict):
        raise UserError(f"{path} is no table of the flags of `run`, as in `methods: [laco, slicegpt]`")
    return plain


def _flags(path: Path, parser: argparse.ArgumentParser, above: tuple[Path, ...]) -> list[str]:
    """A spec as flags, those of its base first. Raises UserError, with the file, for what `run` would not take."""
    table, found = _read(path), list[str]()
    if "base" in table:
        under = _find(str(table["base"]), path)
        if under in (path, *above):
            raise UserError(f"{path}: base leads back to {under}")
        found = _flags(under, parser, (path, *above))
    known = set(re.findall(r"--([a-z][a-z-]*)", parser.format_usage())) - {"spec", "help"}
    own, seen = list[str](), set[str]()
    for key, value in table.items():
        flag = str(key).replace("_", "-")
        if flag in OWN:
            continue
        _refuse_key(path, str(key), flag, known)
        if flag in seen:
            raise UserError(f"{path} names {flag} twice, as {key} and otherwise; keep one")
        seen.add(flag)
        own += _given(f"{path}: {key}", flag, value, parser, known)
    try:
        _parsed(parser, own)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return [*found, *own]


def _refuse_key(path: Path, key: str, flag: str, known: set[str]) -> None:
    if flag == BY_HAND:
        raise UserError(f"{path}: {key} is not taken from a file; give --{flag} on the command line")
    if flag not in known:
        near = difflib.get_close_matches(flag, [*sorted(known), *OWN], n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"{path}: {key!r} is no flag of `run`; {hint}see `python -m bench run --help`")


def _parsed(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    return parser.parse_args(["--methods=dense", *arguments])


def _given(where: str, flag: str, value: Any, parser: argparse.ArgumentParser, known: set[str]) -> list[str]:
    """One key as arguments of the command line."""
    if isinstance(value, bool):
        try:
            _parsed(parser, [f"--{flag}"])
        except UserError:
            raise UserError(f"{where} takes a value, and is no switch; got {_word(where, value)}") from None
        return [f"--{flag}"] if value else [f"--no-{flag}"] if f"no-{flag}" in known else []
    if isinstance(value, Mapping) and flag in TABLES:
        return [f"--{flag}={name}={_joined(f'{where}: {name}', inner)}" for name, inner in value.items()]
    if flag in REPEATED:
        return [f"--{flag}={_word(where, one)}" for one in (value if isinstance(value, list) else [value])]
    if value is None:
        raise UserError(f"{where} has no value")
    return [f"--{flag}={_joined(where, value)}"]


def _joined(where: str, value: Any) -> str:
    words = [_word(where, one) for one in (value if isinstance(value, list) else [value])]
    if not words:
        raise UserError(f"{where} is an empty list")
    return ",".join(words)


def _word(where: str, value: Any) -> str:
    """A value of YAML as the command line has it."""
    if isinstance(value, list | Mapping):
        raise UserError(f"{where} is a value or a list of values; got {value!r}")
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
