"""Estimates what the cells of a run take, by records of like work or by what they compute, and when the run ends.

Records. Every stage of a cell has seconds by what it computes. Records say how much longer such work really took: the
sum of their seconds over the sum of those. An estimate is the product. It takes the nearest records of this machine
that lie near the run's folder: of the same cell, of the same method and model, of the same stage. Where a stage has
none, it takes those of all stages but pruning, whose kinds of work differ most. An estimate from the record of the very
same cell is therefore what that cell took. It grows with windows, documents and layers as the work does. The cells that
a run finishes count in the same way.

Forecast. A run's end follows from estimates that are corrected by its finished cells. A method's pruning, and every
other stage, is off by one factor for all cells that are left: the sum of what finished cells took over the sum of their
estimates. What a cell takes beside its stages, such as starting a process, is the median of the finished ones. The
slots share all work but the timing, since one cell is timed after the other on one machine. No run ends before the cell
that has longest to go.

Pruning. A method counts forwards over the calibration, and products in float64 (methods.base). With the shapes of the
model they give what pruning computes. They are coarse: without a record of like work an estimate is right to about a
factor of two.

Costs. Without such a record the seconds of a stage follow from what it computes and the rates of the machine. That
counts in multiply-accumulates; where tokens come one by one, reading the weights may take longer. Constants in seconds
were measured on SmolLM2-135M on two cores (docs/results/smollm2-135m, smollm2-135m-healed).
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

import methods
from bench.evaluation import checks
from bench.healing import HELD_OUT
from bench.plan.cell import Cell, cell_from_plain, is_timed
from bench.plan.protocol import Recipe
from bench.records import run_folder
from bench.records.record import Record, peak_of_stage
from bench.schedule import memory_needs
from bench.schedule.memory_needs import MemoryNeeds, bytes_of, footprint_of, shape_of
from bench.schedule.order import predecessors_of, search_groups
from bench.schedule.shape import Shape
from bench.speed import timing
from bench.speed.workloads import TimedPoint, points_of_protocol, steps_of_point
from bench.system import environment
from bench.system.rates import Rates, measure_rates
from methods.base import Pruner, Reuses
from methods.counted import QUANTITIES
from methods.errors import UserError

Place = tuple[str, ...]
MEASURED, COMPUTED = "measured before", "from MACs"


@dataclass(frozen=True)
class Estimate:
    """Holds the seconds of each stage of a cell, and the basis of most of them: MEASURED or COMPUTED."""

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

    costs  {model: seconds of its cells by what they compute}
    """

    costs: Mapping[str, Cost]
    _sums: dict[Place, _Sums] = field(default_factory=dict)
    _peaks: dict[Place, int] = field(default_factory=dict)

    def learn(self, record: Record) -> None:
        """Take in the seconds of a record's stages; a record that was interrupted or failed is ignored.

        A record of a model without costs is ignored too, since its seconds say nothing about another model. So is a
        record whose cell this version would not measure, as of a later version in a folder beside the run.
        """
        if record.status != "ok" or record.cell["model"] not in self.costs:
            return
        try:
            cell, measured = cell_from_plain(record.cell), record.measured
        except (UserError, ValueError):  # pydantic's own error is one
            return
        real = dict(measured.get("seconds", {}))
        if "prune_seconds" in measured:
            real["prune"] = measured["prune_seconds"]  # with the search that it went on from
        for stage, computed in self.costs[cell.model].seconds(cell, amounts_of_record(record)).items():
            if real.get(stage, 0.0) > 0 and computed > 0:
                for place in _places(stage, cell):
                    sums = self._sums.setdefault(place, _Sums())
                    sums.real += real[stage]
                    sums.computed += computed
        if not {"weights_in", "states_in"} & measured.keys():  # their peak is lower than that of a cell in memory
            place = _alike(cell)
            self._peaks[place] = max(peak_of_stage(measured) or 0, self._peaks.get(place, 0))

    def estimate(self, cell: Cell, amounts: Amounts, known: float = 0.0) -> Estimate:
        """Return what a cell is likely to take; `known` is the ratio of `Cost.seconds`."""
        stages, before = dict[str, float](), 0.0
        for stage, computed in self.costs[cell.model].seconds(cell, amounts, known).items():
            factor, own = self._factor(stage, cell)
            stages[stage] = computed * factor
            before += stages[stage] * own
        return Estimate(stages, MEASURED if before > sum(stages.values()) / 2 else COMPUTED)

    def peak(self, cell: Cell) -> int:
        """Return the highest memory in bytes of cells of the same method and sizes, 0 where none is known."""
        return self._peaks.get(_alike(cell), 0)

    def _factor(self, stage: str, cell: Cell) -> tuple[float, bool]:
        """Return the factor of records for the seconds of a stage, and whether they are of that kind of work."""
        for place in _places(stage, cell):
            if sums := self._sums.get(place):
                return sums.real / sums.computed, place != ANY
        return (overall.real / overall.computed if (overall := self._sums.get(ANY)) else 1.0), False


ANY: Place = ("any",)


def _places(stage: str, cell: Cell) -> Iterator[Place]:
    """Yield the places in which records of a stage are counted, the most alike work first."""
    method, _, compensation = cell.method.partition("+")
    given = json.dumps(cell.parameters, sort_keys=True, default=str)
    yield stage, cell.model, cell.method, given, str(cell.ratio), str(bool(cell.healing)), str(len(cell.earlier))
    if stage == "prune":
        yield stage, cell.model, cell.method, given
        yield stage, cell.method
        if not compensation:  # its fit would count as the method's
            yield stage, method
        return
    if stage == "tasks":
        yield stage, cell.model, *cell.protocol.tasks
    yield stage, cell.model
    yield (stage,)
    if stage in ("perplexity", "tasks", "checks"):
        yield ANY


def _alike(cell: Cell) -> Place:
    """Return the place in which a peak of memory is counted; it has all that memory depends on.

    The ratio is a part of it where cut models are held, or trained as a whole.
    """
    p = cell.protocol
    sizes = p.calibration_sequences, p.calibration_length, p.calibration_memory_mib, p.batch_tokens, p.window, p.windows
    healed = asdict(cell.healing) if cell.healing else None
    ratio = cell.ratio if healed or cell.ratio_of in QUANTITIES else None
    settings = [cell.parameters, cell.ratio_of, ratio, healed, len(cell.earlier)]
    given = json.dumps(settings, sort_keys=True, default=str)
    return cell.model, cell.method, given, *map(str, sizes), str(bool(p.tasks)), str(bool(p.texts))


def amounts_of_record(record: Record) -> Amounts:
    """Return the numbers of tokens and documents that a record's cell was measured on."""
    texts = record.measured.get("perplexity", {}).values()
    tasks = record.measured.get("tasks", {}).items()
    return Amounts(
        sum(text["windows"] * text["window"] for text in texts), {name: task["documents"] for name, task in tasks}
    )


def is_of_machine(record: Record, environment: Mapping[str, object]) -> bool:
    """Return whether a record's seconds are of such a machine: its processor, device, dtype and threads."""
    names = ("cpu", "gpu", "device", "dtype", "threads")
    return all(record.environment.get(name) == environment.get(name) for name in names)


RECENT = 32  # finished cells whose time beside their stages counts
DAY = 24 * 3600
TIMING = ("speed", "")  # kind of work that runs alone on its machine


class Forecast:
    """Follows the cells of a run from estimate to end.

    slots        the number of cells that run at once
    one_machine  whether nothing runs beside a cell that is timed
    queues       whether a cell that has begun may wait for others' work, so that nobody knows when the run ends
    now          returns the seconds of a clock that only goes forward
    """

    def __init__(
        self,
        estimates: Mapping[str, Estimate],
        slots: int,
        *,
        one_machine: bool = True,
        queues: bool = False,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.slots, self._now, self._queues = slots, now, queues
        self._alone = (TIMING,) if one_machine else ()
        self._estimates = dict(estimates)
        self._left = Counter[tuple[str, str]]()
        self._count = 0
        self._work: dict[str, dict[tuple[str, str], float]] = {}
        self._began: dict[str, float] = {}
        self._real: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._estimated: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._beside: list[float] = []

    def add(self, cell: Cell) -> None:
        """Note a cell that is to be measured."""
        work = {_kind(stage, cell): seconds for stage, seconds in self._estimates[cell.key].stages.items()}
        self._work[cell.key] = work
        self._left.update(work)
        self._count += 1

    def begin(self, key: str) -> None:
        """Note that a cell runs."""
        self._began[key] = self._now()
        self._take(self._work[key])

    def end(self, cell: Cell, record: Record) -> None:
        """Note the record of a cell, whether it ran or not."""
        work = self._work.pop(cell.key)
        began = self._began.pop(cell.key, None)
        if began is None:
            self._take(work)
            return
        real = record.measured.get("seconds", {})
        if record.status == "ok":
            for stage, seconds in real.items():
                if (kind := _kind(stage, cell)) in work:
                    self._real[kind] += seconds
                    self._estimated[kind] += work[kind]
            self._beside = [*self._beside[1 - RECENT :], max(0.0, self._now() - began - sum(real.values()))]

    def seconds(self) -> float | None:
        """Return the seconds until the run ends; None before the first cell has ended, and where cells queue."""
        if self._queues or not self._beside:
            return None
        beside, now, every = median(self._beside), self._now(), self._factor()
        shared, alone = self._total(self._left, every)
        shared += beside * self._count
        longest = 0.0
        for key, began in self._began.items():
            own, timing = self._total(self._work[key], every)
            remaining = max(0.0, began + own + beside - now)
            longest, shared, alone = max(longest, remaining), shared + remaining, alone + timing
        return max(longest, shared / self.slots) + alone

    def line(self, clock: Callable[[], float] = time.time) -> str:
        """Return the line on when the run ends: 'ends about 14:32, in 12 min'; empty where that is not known."""
        if (seconds := self.seconds()) is None:
            return ""
        end = time.localtime(clock() + seconds)
        return (
            f"ends about {time.strftime('%H:%M' if seconds < DAY else '%d %b %H:%M', end)}, in "
            f"{format_duration(seconds)}"
        )

    def _take(self, work: Mapping[tuple[str, str], float]) -> None:
        """Remove a cell's work from what is left."""
        self._left.subtract(work)
        self._count -= 1

    def _factor(self) -> float:
        """Return the factor by which all finished work took longer than it was estimated."""
        return sum(self._real.values()) / sum(self._estimated.values()) if self._estimated else 1.0

    def _total(self, work: Mapping[tuple[str, str], float], every: float) -> tuple[float, float]:
        """Return the seconds of work, corrected by the finished cells: (shared by slots, alone on the machine)."""
        totals = {True: 0.0, False: 0.0}
        for kind, seconds in work.items():
            factor = self._real[kind] / estimated if (estimated := self._estimated.get(kind)) else every
            totals[kind in self._alone] += seconds * factor
        return totals[False], totals[True]


def _kind(stage: str, cell: Cell) -> tuple[str, str]:
    """Return the kind of work that shares a factor: a method's pruning, or another stage of any cell."""
    return stage, cell.method if stage == "prune" else ""


def format_duration(seconds: float) -> str:
    """Return seconds in words: '40 s', '12 min', '3.4 h', '2.1 days'."""
    for unit, size, digits in (("days", DAY, 1), ("h", 3600, 1), ("min", 60, 0)):
        if seconds >= (2 * size if size > 60 else 1.5 * size):
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s"


LEARNT = (
    *("parameters", "perplexity", "tasks", "seconds", "prune_seconds"),
    *("peak_memory", "weights_in", "states_in"),
)
NEAR = 20  # runs beside the run's folder whose records are read: those that changed last


@dataclass
class Outlook:
    """Estimates what the cells of one run take.

    device, dtype  of its cells, as torch writes them
    earlier        records of the run's folder and of those beside it
    estimates      of the cells, by key (`add`)
    """

    device: str
    dtype: str
    earlier: Sequence[Record]
    estimates: dict[str, Estimate] = field(default_factory=dict)
    _models: dict[str, Cell] = field(default_factory=dict)  # {model: one of its cells}
    _estimators: dict[int, Estimator] = field(default_factory=dict)  # {threads: its estimator}

    @classmethod
    def of(cls, cell: Cell, folder: Path) -> Outlook:
        """Return the outlook of a run to which a cell belongs, without estimates."""
        return cls(cell.device, cell.dtype, list(read_records_nearby(folder)))

    def add(
        self,
        cells: Sequence[Cell],
        amounts: Callable[[Cell], Amounts],
        threads: Callable[[Cell], int],
        timed_threads: int,
        done: Container[str] = (),
    ) -> None:
        """Estimate cells that come in this order.

        amounts        returns the tokens and documents that a cell is measured on
        threads        returns the threads of a cell while it is not timed
        timed_threads  threads of every cell while it is timed
        done           keys of the cells that are not measured, since they have a record
        """
        self._models |= {cell.model: cell for cell in cells}
        self._estimators.clear()
        known = find_known_ratios(cells, done)
        for cell in cells:
            known_ratio, text = known.get(cell.key, 0.0), amounts(cell)
            estimate = self._estimator(threads(cell)).estimate(cell, text, known_ratio)
            if "speed" in estimate.stages and threads(cell) != timed_threads:
                timed = self._estimator(timed_threads).estimate(cell, text, known_ratio)
                estimate = replace(estimate, stages=estimate.stages | {"speed": timed.stages["speed"]})
            self.estimates[cell.key] = estimate

    def needs(self, cell: Cell, room: int, card: int | None = None, *, offload: bool = False) -> MemoryNeeds:
        """Return the memory of a cell that may take `room` bytes of the host's and `card` bytes of its GPU's.

        offload  whether its states have a folder
        """
        peak = max((estimator.peak(cell) for estimator in self._estimators.values()), default=0)
        return footprint_of(cell, offload=offload).place(cell, room, peak, card)

    def _estimator(self, threads: int) -> Estimator:
        if threads not in self._estimators:
            device = torch.device(self.device if self.device == "cpu" or torch.cuda.is_available() else "cpu")
            dtype = getattr(torch, self.dtype)
            shapes = {model: shape_of(model, cell.trust_remote_code) for model, cell in self._models.items()}
            costs = {
                model: Cost(shape, measure_rates(str(device), dtype, threads, shape.widths), bytes_of(self.dtype))
                for model, shape in shapes.items()
            }
            estimator = Estimator(costs)
            machine: Mapping[str, Any] = environment.describe(device, dtype) | {
                "threads": threads,
                "device": self.device,
            }
            for record in self.earlier:
                if is_of_machine(record, machine):
                    estimator.learn(record)
            self._estimators[threads] = estimator
        return self._estimators[threads]


def find_known_ratios(cells: Sequence[Cell], done: Container[str]) -> dict[str, float]:
    """Return {key: the ratio up to which other cells of the run have done this cell's work}, for `Cost.seconds`.

    Removals of a search are in the records of cells that are done. Statistics of the dense model are shared only by
    cells that are measured in the same run.
    """
    searches, by_key = search_groups(cells), {cell.key: cell for cell in cells}
    before, looked, ratio_by_key = predecessors_of(searches), set[str](), dict[str, float]()
    for key, search in searches.items():
        cell = by_key[key]
        if reuse_of_method(cell.method) == "removals" and key in before:
            ratio_by_key[key] = min(by_key[before[key]].ratio or 0.0, cell.ratio or 0.0)
        elif reuse_of_method(cell.method) == "statistics" and not cell.earlier:
            if search in looked:
                ratio_by_key[key] = cell.ratio or 0.0
            if key not in done:
                looked.add(search)
    return ratio_by_key


def read_records_nearby(folder: Path) -> Iterator[Record]:
    """Yield the ok records of a run's folder and of the runs beside it, with the values that estimates need.

    Runs and records that cannot be read are left out.
    """
    beside = [run for run in folder.absolute().parent.glob("*") if run_folder.is_run(run)]
    beside.sort(key=lambda run: (run.name == folder.name, run.stat().st_mtime), reverse=True)
    for run in beside[:NEAR]:
        with suppress(UserError, OSError):
            for record in run_folder.load_run(run, run_folder.ignore_warning):
                if record.status == "ok":
                    measured = {name: record.measured[name] for name in LEARNT if name in record.measured}
                    yield replace(record, decisions={}, measured=measured)


ALMOST_NOTHING = 1e-9  # layers that go: a search then costs only what it costs at any ratio


@dataclass(frozen=True)
class PruningWork:
    """Holds the multiply-accumulates of forwards, and those in float64 (`exact`)."""

    macs: float = 0.0
    exact: float = 0.0


def reuse_of_method(method: str) -> Reuses:
    """Return what a method's cells reuse of a cell at another ratio: removals, statistics or nothing."""
    return methods.load()[method.partition("+")[0]].reuses


def count_work(
    pruner: Pruner, shape: Shape, ratio: float, tokens: int, length: int, *, known: float = 0.0
) -> PruningWork:
    """Return the work of pruning.

    ratio   of the dense model's parameters to remove
    tokens  of the calibration, in sequences of `length`
    known   the ratio up to which an earlier search's removals are known; of a method that reuses statistics, more than
            0 says that another cell has computed them
    """
    layers = shape.layers
    method, reused = pruner.alone, pruner.alone.reuses
    removed, removed_before = (share * shape.parameters / max(1.0, shape.layer) for share in (ratio, known))
    forwards = method.forwards(layers, removed, tokens)
    of_compensation = pruner.forwards(layers, removed, tokens) - forwards
    solves = pruner.mlp_solves * shape.mlp**3 + pruner.residual_solves * shape.width**3
    if known and reused == "removals":
        search_before = method.forwards(layers, removed_before, tokens) - method.forwards(
            layers, ALMOST_NOTHING, tokens
        )
        forwards = max(0.0, forwards - search_before)
    if known and reused == "statistics":
        forwards, solves = 0.0, 0.0
    forward = shape.body(tokens, length)
    with_head = forward + (tokens * shape.head if method.holds.logits else 0.0)
    return PruningWork(forwards * with_head + of_compensation * forward, layers * solves)


LOAD = 1.3e-9  # seconds for a byte of weights: 0.7 s for 538 MB
SAVE = 3 * LOAD  # written, hashed, and read again
STARTED = 5.0  # seconds in which the process that times a model comes to its first call
TRAINED = 7.0  # forwards that a token of healing costs: 2,110 s for 100,000 tokens beside 24 s for 8,192 without
TOKENS = {  # of a document of each default task, prefixes that choices share counted once; and those for the head
    "hellaswag": (162, 116),
    "piqa": (45, 35),
    "winogrande": (26, 11),
    "arc_easy": (32, 12),
    "openbookqa": (20, 11),
    "arc_challenge": (44, 17),
    "boolq": (137, 1),
}
TOKENS_OF_OTHER_TASK = tuple(
    sum(counts[at] for counts in TOKENS.values()) / len(TOKENS) for at in (0, 1)
)  # of any other task's
STAGES = ("load", "prune", "heal", "save", "perplexity", "tasks", "speed", "checks")


@dataclass(frozen=True)
class Amounts:
    """Holds the number of tokens of the texts that a cell is measured on, and of documents of each task."""

    text_tokens: int
    documents: Mapping[str, int]


@dataclass(frozen=True)
class Cost:
    """Computes the seconds of each stage from a model's sizes, the bytes of a weight and the machine's rates."""

    shape: Shape
    rates: Rates
    bytes_each: int

    def seconds(self, cell: Cell, amounts: Amounts, known: float = 0.0) -> dict[str, float]:
        """Return the seconds of every stage that the cell has.

        known  the ratio up to which a cell in front of it has done the work of pruning, see `count_work`
        """
        kept, p = self.shape.kept(self.shape.share(cell.ratio, cell.ratio_of)), cell.protocol
        seconds = {"load": (1 + bool(cell.earlier)) * LOAD * self._bytes(1.0)}
        if cell.method != "dense":
            seconds["prune"] = self._prune(cell, known)
        if cell.healing:
            seconds["heal"] = self._heal(cell.healing, kept)
        if p.save_dtype and cell.method != "dense":
            seconds["save"] = SAVE * self._bytes(kept)
        if amounts.text_tokens:
            seconds["perplexity"] = self._forward(amounts.text_tokens, p.window, kept)
        if amounts.documents:
            seconds["tasks"] = sum(self._task(name, count, kept) for name, count in amounts.documents.items())
        if is_timed(cell):
            seconds["speed"] = self._speed(cell, kept)
        if p.checks:
            seconds["checks"] = self._checks(kept, bool(amounts.text_tokens))
        return seconds

    def _bytes(self, kept: float) -> float:
        return self.bytes_each * (self.shape.parameters - self.shape.inner * (1 - kept))

    def _forward(self, tokens: float, context: int, kept: float, head: float = 1.0) -> float:
        """Return the seconds of a forward over many tokens, of which a share goes through the head."""
        return (self.shape.body(tokens, context, kept) + head * tokens * self.shape.head) / self.rates.macs

    def _call(self, tokens: float, context: int, kept: float, head: float = 1.0) -> float:
        """Return the seconds of a forward over few tokens, for which all weights are read."""
        return max(self._forward(tokens, context, kept, head), self._bytes(kept) / self.rates.bytes)

    def _prune(self, cell: Cell, known: float) -> float:
        before = self.shape.share(cell.earlier[-1].ratio, cell.ratio_of) if cell.earlier else 0.0
        p = cell.protocol
        ratio, known = (
            max(0.0, self.shape.share(requested, cell.ratio_of) - before) for requested in (cell.ratio, known)
        )
        try:
            pruner = memory_needs.make_pruner(cell.method, cell.parameters)
        except ValueError:  # of a record of a method that is not loaded
            return 0.0
        length, tokens = p.calibration_length, p.calibration_sequences * p.calibration_length
        work = count_work(pruner, self.shape, ratio, tokens, length, known=known)
        return self.shape.kept(before) * (work.macs / self.rates.macs + work.exact / self.rates.exact)

    def _heal(self, recipe: Recipe, kept: float) -> float:
        trained = recipe.sequences * recipe.length * recipe.passes * TRAINED
        looked_at = HELD_OUT * recipe.length * (recipe.points + 1)
        dense = self._forward(trained / TRAINED, recipe.length, 1.0) if recipe.loss == "kl" else 0.0
        return self._forward(trained + looked_at, recipe.length, kept) + dense

    def _task(self, name: str, documents: int, kept: float) -> float:
        tokens, answered = TOKENS.get(name, TOKENS_OF_OTHER_TASK)
        return self._forward(documents * tokens, round(tokens), kept, answered / tokens)

    def _checks(self, kept: float, text: bool) -> float:
        """Return the seconds of continuing all prompts in one batch, and of the divergence on a few windows."""
        rows = checks.LISTS + len(checks.STARTS) + checks.WINDOWS * text
        shown = self._forward(rows * checks.PROMPT, checks.PROMPT, kept, 1 / checks.PROMPT)
        looked_at = 2 * self._forward(checks.WINDOWS * checks.KL_TOKENS, checks.KL_TOKENS, kept) if text else 0.0
        return shown + checks.STEPS * self._call(rows, checks.PROMPT, kept) + looked_at

    def _speed(self, cell: Cell, kept: float) -> float:
        """Return the seconds of timing: its own process, and at every point both models, warmed up and in turns."""
        seconds = STARTED + 2 * LOAD * self._bytes(1.0)
        for point in points_of_protocol(cell.protocol):
            seconds += sum(self._point(point, cell, share) for share in (1.0, kept))
        return seconds

    def _point(self, point: TimedPoint, cell: Cell, kept: float) -> float:
        p, calls = cell.protocol, steps_of_point(point, cell.protocol)
        if point.kind == "prefill":
            call, reset = self._call(point.batch * point.tokens, point.tokens, kept, 1 / point.tokens), 0.0
        else:
            call = self._call(point.batch, point.tokens, kept)
            reset = self._call(point.batch * point.tokens, point.tokens, kept, 1 / point.tokens)
        share = (calls * call + reset) / (calls * call)  # of time for each second that counts
        least = min(timing.WARM_UP_CALLS * call, timing.WARM_UP_MS / 1e3)
        warm = calls * call + max(least, 2 * calls * call)
        least = max(timing.MIN_CALLS * call, timing.MIN_MS / 1e3)
        turns = p.speed_rounds * math.ceil(least / (p.speed_rounds * calls * call))
        return share * call * calls * (turns + 1) + share * warm
