"""Reads a run that is written down as YAML: its keys are the long flags of `run`.

    description: one line, for `list specs`
    base: the name of another spec, or a file beside this one; what stands here wins over it
    methods: [laco, shortgpt+ghost]
    ratio: [0.1, 0.2]
    set: {laco.C: [2, 3, 4, 6], laco.T: 0.65}
    no-checks: true

A list is what the flag takes with commas; `set` and `task-data` are tables. Keys are written with - or _. What the
command line gives wins over the file, and of flags that are given several times it stands behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.plan.fields import repeated
from bench.plan.parse import near
from bench.plan.run_spec import SWEPT, RunSpec, flags, from_flags, several
from methods.errors import UserError

SHIPPED = Path(__file__).parent.parent / "specs"
OWN = ("description", "base")  # keys that are no flags
BY_HAND = "trust-remote-code"  # what a file that others wrote cannot switch on


def shipped() -> dict[str, str]:
    """Return the description of each spec that comes with the suite, by its name."""
    return {name: str(_read(path).get("description", "")) for name, path in _shipped().items()}


def spec(name: str, given: Mapping[str, Any]) -> RunSpec:
    """Return what a spec asks for: one that comes with the suite, or a file; `given` are flags that win over it.

    A ratio that a method of the file cannot reach is an outcome of its cell. Raises UserError for a file that cannot be
    read, with the keys or names that are near, and for what `run` would not take.
    """
    path = _find(name)
    asked = _over(_table(path, ()), given)
    return from_flags(asked, name=path.stem, record_out_of_reach="methods" not in given)


def _find(name: str, beside: Path | None = None) -> Path:
    """Return the file of a spec; that of a base may lie beside the spec that names it."""
    path = Path(name) if beside is None else beside.parent / name
    if path.is_file():
        return path
    known = _shipped()
    if name in known:
        return known[name]
    raise UserError(f"no spec {name!r}{near(name, known)}; give a YAML file, or one of {', '.join(known)}")


def _shipped() -> dict[str, Path]:
    """Return the files that come with the suite, by name: its own studies, and those of papers."""
    return {path.stem: path for path in sorted(SHIPPED.rglob("*.yaml"), key=lambda path: path.stem)}


def _read(path: Path) -> dict[str, Any]:
    plain = read_yaml(path, str(path))
    if not isinstance(plain, dict):
        raise UserError(f"{path} is no table of the flags of `run`, as in `methods: [laco, slicegpt]`")
    return plain


def read_yaml(path: Path, where: str) -> Any:
    """Return what a YAML file says. Raises UserError, whose message begins with `where`, for any other file."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a key that is there twice, of which YAML's own loader takes the last."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if twice := [key for at, key in enumerate(keys) if key in keys[:at]]:
                raise ValueError(f"the table at line {node.start_mark.line + 1} names {twice[0]} twice; keep one")
            found: dict[Any, Any] = super().construct_mapping(node, deep)
            return found

    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader)
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{where} is not YAML: {error}") from None


def _table(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """Return a spec as values of flags, over those of its base. Raises UserError, with the file, for what is none."""
    table, below, found = _read(path), dict[str, Any](), dict[str, Any]()
    if "base" in table:
        under = _find(str(table["base"]), path)
        if under in (path, *above):
            raise UserError(f"{path}: base leads back to {under}")
        below = _table(under, (path, *above))
    for key, value in table.items():
        flag = str(key).replace("_", "-")
        if flag in OWN:
            continue
        if flag == BY_HAND:
            raise UserError(f"{path}: {key} is not taken from a file; give --{flag} on the command line")
        if flag not in flags():
            hint = near(flag, [*sorted(flags()), *OWN])
            raise UserError(f"{path}: {key!r} is no flag of `run`{hint}; see `python -m bench run --help`")
        if flag in found:
            raise UserError(f"{path} names {flag} twice, as {key} and otherwise; keep one")
        try:
            found[flag], name = _value(str(key), flag, value), flags()[flag].field
            for one in several(name, found[flag]) if name in SWEPT else [found[flag]]:
                flags()[flag].converted(one)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    return _over(below, found)


def _value(where: str, flag: str, value: Any) -> Any:
    """Return what a key gives its flag. Raises UserError where that is nothing, or a list or table within another.

    A switch is converted here already, since some are turned round.
    """
    option = flags()[flag]
    if option.kind is bool:
        switch = option.converted(value)  # as 1 or "on" are
        return not switch if option.default is True else switch  # of no-checks and first-windows, which switch off
    values = list(value.values()) if option.repeated and isinstance(value, Mapping) else [value]
    if value is None:
        raise UserError(f"{where} has no value")
    for one in values:
        for each in one if isinstance(one, list) else [one]:
            if isinstance(each, list | Mapping):
                raise UserError(f"{where} is a value or a list of values; got {each!r}")
        if one == []:
            raise UserError(f"{where} is an empty list")
    return value


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of flags `below` with those `above` in their place, or behind where a flag is repeated."""
    both = {flag for flag in below if flag in above and flags()[flag].repeated}
    return {**below, **above} | {flag: (*repeated(below[flag]), *repeated(above[flag])) for flag in both}
