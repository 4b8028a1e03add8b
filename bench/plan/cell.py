"""Names everything of one measurement that can change a number: `Cell`, and the key of its record."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from functools import cache, cached_property
from typing import Any

import methods
from bench.plan.protocol import Protocol
from bench.plan.recipe import Recipe
from bench.records.record import label, share
from methods.counted import QUANTITIES


@dataclass(frozen=True)
class Stage:
    """Says what was done to a model before a chained cell, by the names of Cell."""

    method: str
    parameters: dict[str, Any] = field(hash=False)
    ratio: float | None
    given: tuple[str, ...] = ()
    healing: Recipe | None = None


@dataclass(frozen=True)
class Cell:
    """Asks for one measurement: one model, one method with all its parameters, one ratio, one seed, one protocol.

    ratio_of what the ratio is a share of, see methods.counted; "all" where there is no ratio. A budget of macs=0.8 is a
             ratio of 0.2 of "macs"
    healing  how the model is trained once it is pruned
    latency  the table by which a budget of "latency" is told (methods.counted.LatencyTable), with what was measured;
             None for any other
    earlier  what was done to it before, first to last; `ratio` is of the dense model all the same (bench.plan.chain)
    inputs   what the answer stands on (bench.run.fingerprint); the runner fills it in, since it needs the loaded
             materials
    """

    model: str
    method: str
    parameters: dict[str, Any] = field(hash=False)
    ratio: float | None
    match: str
    seed: int
    device: str
    dtype: str
    protocol: Protocol
    given: tuple[str, ...] = ()  # names of the parameters that were given, for the label
    trust_remote_code: bool = False
    inputs: dict[str, Any] = field(default_factory=dict, hash=False)
    healing: Recipe | None = None
    earlier: tuple[Stage, ...] = ()
    ratio_of: str = "all"
    latency: dict[str, Any] | None = field(default=None, hash=False)

    @cached_property
    def label(self) -> str:
        """Name the cell as a reader wants to see it: its method and the parameters that were given."""
        return label(self.plain())

    @cached_property
    def question(self) -> str:
        """Return all that is asked for as one text, but for defaults and inputs: equal for cells that ask the same."""
        return json.dumps(_changed_fields(self), sort_keys=True)

    @cached_property
    def key(self) -> str:
        """Make a readable file name that ends in a hash of the question and of what its answer stands on.

        A field or parameter that a later version adds changes no key, as long as it has its default.
        """
        digest = hashlib.sha256(json.dumps([self.question, self.inputs], sort_keys=True).encode()).hexdigest()[:8]
        ratio = "fixed" if self.ratio is None else f"{self.ratio:g}"
        amount = slug(share(self.ratio, self.ratio_of)) if self.ratio_of in QUANTITIES else ratio
        return "--".join((slug(self.label), amount, digest))

    def plain(self) -> dict[str, Any]:
        """Return every field as a record holds it, without those that are None where most cells have none."""
        absent = {name for name in ("healing", "latency") if getattr(self, name) is None}
        return {name: value for name, value in asdict(self).items() if name not in absent}


def _changed_fields(part: Cell | Stage | Protocol | Recipe) -> dict[str, Any]:
    """Return what a cell, or a part of one, has otherwise than by default, as plain values; not the inputs."""
    changed: dict[str, Any] = {}
    for one in fields(part):
        value = getattr(part, one.name)
        if one.name == "parameters":
            changed[one.name] = methods.changed_parameters(part.method, value)  # type: ignore[union-attr]
        elif one.name == "earlier":
            changed |= {one.name: [_changed_fields(stage) for stage in value]} if value else {}
        elif one.name != "inputs" and value != _default(one):
            changed[one.name] = _changed_fields(value) if isinstance(value, Protocol | Recipe) else value
    return changed


def _default(one: Field[Any]) -> Any:
    """Return the default of a dataclass field; MISSING where it has none."""
    return one.default if one.default_factory is MISSING else one.default_factory()


def slug(text: str) -> str:
    """Return a text as a piece of a file name: letters, digits, dot, dash and underscore only."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:60] or "unnamed"


def from_plain(plain: Mapping[str, Any]) -> Cell:
    """Return the cell that `Cell.plain` gave, also where that has been JSON meanwhile; other names are left out."""
    cell: Cell = _reader().validate_python(dict(plain))
    return cell


@cache
def _reader() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Cell)
