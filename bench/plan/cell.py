"""Defines `Cell`: everything of one measurement that can change a number, with the key of its record."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from functools import cache, cached_property
from typing import Any

import methods
from bench.plan.protocol import Protocol, Recipe
from methods.counted import QUANTITIES


@dataclass(frozen=True)
class Stage:
    """Says what was done to a model before a chained cell; its fields are named as those of Cell."""

    method: str
    parameters: dict[str, Any] = field(hash=False)
    ratio: float | None
    given: tuple[str, ...] = ()
    healing: Recipe | None = None


@dataclass(frozen=True)
class Cell:
    """Asks for one measurement: one model, one method with all its parameters, one ratio, one seed, one protocol.

    ratio_of the quantity that the ratio is a share of, see methods.counted; "all" where there is no ratio. A budget of
             macs=0.8 is a ratio of 0.2 of "macs"
    healing  the recipe by which the model is trained once it is pruned
    latency  the table that a budget of "latency" is counted by (methods.counted.LatencyTable), with its measurement;
             None for any other
    earlier  the stages before it, first to last; `ratio` is of the dense model all the same (bench.plan.grid)
    inputs   hashes of what the answer stands on (bench.runs.inputs); the runner fills it in, since it needs the loaded
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
        """Return the label: its method and the parameters that were given, as in 'laco:C=3'."""
        return label_of_cell(self.plain())

    @cached_property
    def question(self) -> str:
        """Return the question as one text, without defaults and inputs: equal for cells that ask the same."""
        return json.dumps(_changed_fields(self), sort_keys=True)

    @cached_property
    def key(self) -> str:
        """Return a readable file name that ends in a hash of the question and the inputs.

        A field or parameter that a later version adds changes no key, as long as it has its default.
        """
        digest = hashlib.sha256(json.dumps([self.question, self.inputs], sort_keys=True).encode()).hexdigest()[:8]
        ratio = "fixed" if self.ratio is None else f"{self.ratio:g}"
        amount = to_slug(words_of_ratio(self.ratio, self.ratio_of)) if self.ratio_of in QUANTITIES else ratio
        return "--".join((to_slug(self.label), amount, digest))

    def plain(self) -> dict[str, Any]:
        """Return every field as a record holds it, without `healing` and `latency` where they are None."""
        absent = {name for name in ("healing", "latency") if getattr(self, name) is None}
        return {name: value for name, value in asdict(self).items() if name not in absent}


def _changed_fields(part: Cell | Stage | Protocol | Recipe) -> dict[str, Any]:
    """Return the fields of a cell, or of a part of one, that differ from their defaults, as plain values; no inputs."""
    changed: dict[str, Any] = {}
    if isinstance(part, Protocol) and not part.windows:
        part = replace(part, windows_drawn=True)  # a whole text is the same windows, drawn or in a row
    for attribute in fields(part):
        value = getattr(part, attribute.name)
        if attribute.name == "parameters":
            changed[attribute.name] = methods.find_changed_parameters(part.method, value)  # type: ignore[union-attr]
        elif attribute.name == "earlier":
            changed |= {attribute.name: [_changed_fields(stage) for stage in value]} if value else {}
        elif attribute.name != "inputs" and value != _default(attribute):
            changed[attribute.name] = _changed_fields(value) if isinstance(value, Protocol | Recipe) else value
    return changed


def _default(attribute: Field[Any]) -> Any:
    """Return the default of a dataclass field; MISSING where it has none."""
    return attribute.default if attribute.default_factory is MISSING else attribute.default_factory()


def to_slug(text: str) -> str:
    """Return a text as a piece of a file name: letters, digits, dot, dash and underscore only."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:60] or "unnamed"


def cell_from_plain(plain: Mapping[str, Any]) -> Cell:
    """Return the cell of the values that `Cell.plain` gave, also after JSON; names that no field has are left out."""
    cell: Cell = _reader().validate_python(dict(plain))
    return cell


@cache
def _reader() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Cell)


def is_draw(cell: Cell | Stage) -> bool:
    """Return whether a cell, or a stage of one, is one of several draws of a random method."""
    return is_drawn(cell.parameters, cell.given)


def is_timed(cell: Cell) -> bool:
    """Return whether the cell is timed: of several draws only the first, since all remove the same amount."""
    stages: list[Cell | Stage] = [*cell.earlier, cell]
    first = (None, seed_of_first_draw(cell.seed))
    later = any(is_draw(stage) and stage.parameters.get("seed") not in first for stage in stages)
    return cell.protocol.speed_rounds > 0 and not later


def stage_of(cell: Cell) -> Stage:
    """Return a cell as a stage of the cells that go on from it."""
    return Stage(cell.method, cell.parameters, cell.ratio, cell.given, cell.healing)


def parent_of(cell: Cell) -> Cell:
    """Return the parent of a chained cell, without inputs."""
    *earlier, last = cell.earlier
    stage = {name: getattr(last, name) for name in ("method", "parameters", "ratio", "given", "healing")}
    return replace(cell, **stage, earlier=tuple(earlier), inputs={})


def ancestors_of(cell: Cell) -> list[Cell]:
    """Return all cells before a chained one, the first in front; none for any other."""
    return [*ancestors_of(parent_of(cell)), parent_of(cell)] if cell.earlier else []


def seed_of_first_draw(seed: int) -> int:
    """Return the seed of a random method's first draw, far enough from other seeds' that no draw is made twice."""
    return 1000 * seed


def is_recorded_draw(stage: Mapping[str, Any]) -> bool:
    """Return whether a stage of a record's cell, as plain values, is one of several draws of a random method."""
    return is_drawn(stage["parameters"], stage.get("given", ()))


def is_drawn(parameters: Mapping[str, Any], given: Collection[str]) -> bool:
    """Return whether a method with these parameters draws its seeds itself, since none was given."""
    return "draws" in parameters and "seed" not in given


def label_of_cell(cell: Mapping[str, Any]) -> str:
    """Return the label of a cell: its method and the parameters that were given, behind those of earlier stages.

    'laco:C=3', 'laco, healed', 'laco at 0.25, healed, then laco'. `cell` holds the fields of bench.plan.cell.Cell.
    """
    before = [_label(stage, stage["ratio"]) for stage in cell.get("earlier") or ()]
    return ", then ".join([*before, _label(cell)])


def _label(stage: Mapping[str, Any], ratio: float | None = None) -> str:
    given = ",".join(f"{name}={stage['parameters'][name]}" for name in stage.get("given", ()))
    method = f"{stage['method']}:{given}" if given else str(stage["method"])
    where = "" if ratio is None else f" at {ratio:g}"
    return f"{method}{where}, healed" if stage.get("healing") else f"{method}{where}"


def base_of_ratio(cell: Mapping[str, Any]) -> str:
    """Return the quantity that the ratio of a record's cell is a share of, as in 'all', 'decoder' or 'macs'."""
    return str(cell.get("ratio_of", "all"))


def words_of_ratio(ratio: float | None, of: str = "all") -> str:
    """Return a requested ratio in words: '0.3', '0.3 of the decoder', or as a budget 'macs=0.8'; empty for none."""
    if ratio is None:
        return ""
    return f"{of}={1 - ratio:g}" if of in QUANTITIES else f"{ratio:g}" + ("" if of == "all" else f" of the {of}")


def words_of_amount(ratio: float | None, of: str = "all") -> str:
    """Return a ratio or a budget with the word for it: 'ratio 0.3', 'budget macs=0.8'; empty for none."""
    return f"{'budget' if of in QUANTITIES else 'ratio'} {words_of_ratio(ratio, of)}" if ratio is not None else ""


def title_of_cell(cell: Cell) -> str:
    """Return the title of a cell: 'laco at 0.3'."""
    return f"{cell.label}{'' if cell.ratio is None else f' at {words_of_ratio(cell.ratio, cell.ratio_of)}'}"
