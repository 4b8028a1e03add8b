"""Estimates what cells will take: by records of like work where there are any, else by what they compute.

Every stage of a cell has seconds by what it computes (bench.schedule.work). Records say how much longer such work
really took: the sum of their seconds over the sum of those. An estimate is the product, and takes the records that are
nearest: of the same cell, of the same method and model, of the same stage; where a stage has none, those of all stages
but pruning, whose kinds of work differ most. So an estimate from the record of the very same cell is what that took,
and grows with windows, documents and layers as the work does. The cells that a run finishes count in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field

from bench.plan.cell import Cell, from_plain
from bench.records.record import Record, peak_bytes
from bench.schedule.work import Amounts, Cost
from methods.counted import QUANTITIES
from methods.errors import UserError

Place = tuple[str, ...]
MEASURED, COMPUTED = "measured before", "from MACs"


@dataclass(frozen=True)
class Estimate:
    """Holds the seconds of each stage of a cell, and what most of them stand on."""

    stages: dict[str, float]
    basis: str

    @property
    def seconds(self) -> float:
        """Return the seconds of the cell."""
        return sum(self.stages.values())


@dataclass
class _Sums:
    real: float = 0.0
    computed: float = 0.0


@dataclass
class Estimator:
    """Learns from records, and estimates cells.

    costs  what cells compute, by their models
    """

    costs: Mapping[str, Cost]
    _sums: dict[Place, _Sums] = field(default_factory=dict)
    _peaks: dict[Place, int] = field(default_factory=dict)

    def learn(self, record: Record) -> None:
        """Take in what a record's stages took; one that was interrupted or failed is of no use.

        One of a model without costs is left out, whose seconds say nothing about another model, and so is one whose
        cell this version would not measure, as of a later version in a folder beside the run.
        """
        if record.status != "ok" or record.cell["model"] not in self.costs:
            return
        try:
            cell, measured = from_plain(record.cell), record.measured
        except (UserError, ValueError):  # pydantic's own error is one
            return
        real = dict(measured.get("seconds", {}))
        if "prune_seconds" in measured:
            real["prune"] = measured["prune_seconds"]  # with the search that it went on from
        for stage, computed in self.costs[cell.model].seconds(cell, amounts_of(record)).items():
            if real.get(stage, 0.0) > 0 and computed > 0:
                for place in _places(stage, cell):
                    sums = self._sums.setdefault(place, _Sums())
                    sums.real += real[stage]
                    sums.computed += computed
        if not {"weights_in", "states_in"} & measured.keys():  # whose peak is lower than that of a cell in memory
            place = _alike(cell)
            self._peaks[place] = max(peak_bytes(measured) or 0, self._peaks.get(place, 0))

    def estimate(self, cell: Cell, amounts: Amounts, known: float = 0.0) -> Estimate:
        """Return what a cell is likely to take, `known` as bench.schedule.work has it."""
        stages, before = dict[str, float](), 0.0
        for stage, computed in self.costs[cell.model].seconds(cell, amounts, known).items():
            factor, own = self._factor(stage, cell)
            stages[stage] = computed * factor
            before += stages[stage] * own
        return Estimate(stages, MEASURED if before > sum(stages.values()) / 2 else COMPUTED)

    def peak(self, cell: Cell) -> int:
        """Return the highest memory that a cell of the same method and sizes had, 0 where none is known."""
        return self._peaks.get(_alike(cell), 0)

    def _factor(self, stage: str, cell: Cell) -> tuple[float, bool]:
        """Return by what records multiply the seconds of a stage, and whether they are of that kind of work."""
        for place in _places(stage, cell):
            if sums := self._sums.get(place):
                return sums.real / sums.computed, place != ANY
        return (found.real / found.computed if (found := self._sums.get(ANY)) else 1.0), False


ANY: Place = ("any",)


def _places(stage: str, cell: Cell) -> Iterator[Place]:
    """Yield where records of a stage are counted, those of the likest work first."""
    method, _, compensation = cell.method.partition("+")
    given = json.dumps(cell.parameters, sort_keys=True, default=str)
    yield stage, cell.model, cell.method, given, str(cell.ratio), str(bool(cell.healing)), str(len(cell.earlier))
    if stage == "prune":
        yield stage, cell.model, cell.method, given
        yield stage, cell.method
        if not compensation:  # whose fit would count as the method's
            yield stage, method
        return
    if stage == "tasks":
        yield stage, cell.model, *cell.protocol.tasks
    yield stage, cell.model
    yield (stage,)
    if stage in ("perplexity", "tasks", "checks"):
        yield ANY


def _alike(cell: Cell) -> Place:
    """Return where a peak of memory is counted: by all that memory depends on.

    The ratio matters where models that have been cut are held, or trained as a whole.
    """
    p = cell.protocol
    sizes = p.calibration_sequences, p.calibration_length, p.calibration_memory_mib, p.batch_tokens, p.window, p.windows
    healed = asdict(cell.healing) if cell.healing else None
    ratio = cell.ratio if healed or cell.ratio_of in QUANTITIES else None
    asked = [cell.parameters, cell.ratio_of, ratio, healed, len(cell.earlier)]
    given = json.dumps(asked, sort_keys=True, default=str)
    return cell.model, cell.method, given, *map(str, sizes), str(bool(p.tasks)), str(bool(p.texts))


def amounts_of(record: Record) -> Amounts:
    """Return on how much a record's cell was measured."""
    texts = record.measured.get("perplexity", {}).values()
    tasks = record.measured.get("tasks", {}).items()
    return Amounts(
        sum(text["windows"] * text["window"] for text in texts), {name: task["documents"] for name, task in tasks}
    )


def same_machine(record: Record, environment: Mapping[str, object]) -> bool:
    """Say whether a record's seconds are of such a machine: its processor, device, type of numbers and threads."""
    names = ("cpu", "gpu", "device", "dtype", "threads")
    return all(record.environment.get(name) == environment.get(name) for name in names)
