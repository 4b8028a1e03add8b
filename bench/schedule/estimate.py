"""Estimates what the cells of a run take, by records of like work or by what they compute, and when the run ends.

Costs. Every stage of a cell has seconds by what it computes: multiply-accumulates, or bytes of weights, at the rates
that the machine has just shown (bench.system.rates). A method counts its forwards over the calibration (methods.base).
Tests hold these seconds to the shipped records: of most methods they are right to a factor of two.

Records. Records of this machine near the run's folder say how much longer such work really took: the sum of their
seconds over the sum of those computed. An estimate is the product. The nearest records count: of the same cell, of the
same model, of any model; of pruning always of the same method. Where a stage has none, those of the measurements do.
So a cell that was measured is estimated to take what it took. Estimates grow with windows, documents and layers.

Forecast. A run's end follows from estimates that are corrected by its finished cells. A method's pruning, and every
other stage, is off by one factor for all cells that are left: the sum of what finished cells took over the sum of their
estimates. What a cell takes beside its stages, such as starting a process, is the median of the finished ones. The
slots share all work but the timing, since one cell is timed after the other on one machine. No run ends before the cell
that has longest to go.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

import methods
from bench.evaluation import checks
from bench.healing.training import HELD_OUT
from bench.plan.cell import Cell
from bench.plan.protocol import Protocol, Recipe
from bench.records import run_folder
from bench.records.measured import Measured
from bench.records.record import Record
from bench.schedule.memory_needs import bytes_of, make_pruner, shape_of
from bench.schedule.order import predecessors_of, search_groups
from bench.schedule.shape import Shape
from bench.speed import timing
from bench.speed.workloads import TimedPoint, points_of_protocol, steps_of_point
from bench.system import environment
from bench.system.rates import Rates, measure_rates
from methods.base import Pruner, Reuses
from methods.errors import UserError

MEASURED, ESTIMATED = "measured", "estimated"
STAGES = ("load", "prune", "heal", "save", "perplexity", "tasks", "speed", "checks")
LOAD = 40  # bytes that are moved for each byte of weights that is loaded: 1 s for 538 MB
SAVE = 3 * LOAD  # written, hashed, and read again
STARTED = 5.0  # seconds in which the process that times a model comes to its first call
TRAINED = 5.0  # forwards that a token of healing costs
DOCUMENT, ANSWERED = 70, 0.6  # tokens of a task's document, choices included, and the share that goes through the head
FEW = 2.5  # times its products or its reading: what a forward over few tokens takes
WARM_UP = 3  # passes of a timed point in front of its rounds
ALMOST_NOTHING = 1e-9  # layers that go: a search then costs only what it costs at any ratio


@dataclass(frozen=True)
class Estimate:
    """Holds the seconds of each stage of a cell, and the basis of most of them: MEASURED or ESTIMATED."""

    stages: dict[str, float]
    basis: str

    @property
    def seconds(self) -> float:
        """Return the seconds of the cell."""
        return sum(self.stages.values())


@dataclass(frozen=True)
class Amounts:
    """Holds the number of tokens of the texts that a cell is measured on, and of documents of each task."""

    text_tokens: int
    documents: Mapping[str, int]

    @classmethod
    def of(cls, record: Record) -> Amounts:
        """Return the amounts that a record's cell was measured on."""
        texts = record.measured.text_scores.values()
        tasks = record.measured.task_scores.items()
        tokens = sum(text.windows * text.window for text in texts)
        tokens += sum(score.tokens for score in record.measured.range_scores.values())
        return cls(tokens, {name: task.documents for name, task in tasks})


@dataclass(frozen=True)
class Cost:
    """Computes the seconds of each stage from a model's sizes, the bytes of a weight and the machine's rates."""

    shape: Shape
    rates: Rates
    bytes_each: int

    def seconds(self, cell: Cell, amounts: Amounts, known_ratio: float = 0.0) -> dict[str, float]:
        """Return the seconds of every stage that the cell has.

        known_ratio  the ratio up to which a cell in front of it has done the work of pruning, see `count_work`
        """
        kept, p = self.shape.kept(self.shape.share(cell.ratio, cell.ratio_of)), cell.protocol
        has_text = amounts.text_tokens > 0
        seconds = {"load": (1 + bool(cell.earlier)) * LOAD * self._read(1.0)}
        if cell.method != "dense":
            seconds["prune"] = self._prune(cell, known_ratio)
            seconds |= {"save": SAVE * self._read(kept)} if p.save_dtype else {}
        if cell.healing:
            seconds["heal"] = self._heal(cell.healing, kept, cell.trust_remote_code)
        if has_text:
            seconds["perplexity"] = self._forward(amounts.text_tokens, p.window, kept)
        if amounts.documents:
            tokens = DOCUMENT * sum(amounts.documents.values())
            seconds["tasks"] = self._forward(tokens, DOCUMENT, kept, ANSWERED)
        if cell.healing:  # measured at some tokens too
            measured = ["perplexity", *["tasks"] * cell.healing.answers]
            seconds["heal"] += len(cell.healing.at) * sum(seconds.get(stage, 0.0) for stage in measured)
        if cell.is_timed:
            seconds["speed"] = self._speed(p, kept)
        if p.checks:
            seconds["checks"] = self._checks(kept, has_text)
        return seconds

    def _read(self, kept: float) -> float:
        """Return the seconds in which the weights are read once."""
        return self.bytes_each * (self.shape.parameters - self.shape.inner * (1 - kept)) / self.rates.bytes

    def _forward(self, tokens: float, context: int, kept: float, head: float = 1.0) -> float:
        """Return the seconds of a forward over many tokens; a share of them goes through the head."""
        return (self.shape.body(tokens, context, kept) + head * tokens * self.shape.head) / self.rates.macs

    def _prune(self, cell: Cell, known_ratio: float) -> float:
        """Return the seconds of pruning what an earlier stage has left, 0 for a method that is not loaded."""
        before = self.shape.share(cell.earlier[-1].ratio, cell.ratio_of) if cell.earlier else 0.0
        p = cell.protocol
        ratio, known_ratio = (
            max(0.0, self.shape.share(requested, cell.ratio_of) - before) for requested in (cell.ratio, known_ratio)
        )
        try:
            pruner = make_pruner(cell.method, cell.parameters)
        except ValueError:
            return 0.0
        length, tokens = p.calibration_length, p.calibration_sequences * p.calibration_length
        work = count_work(pruner, self.shape, ratio, tokens, length, known_ratio=known_ratio)
        return self.shape.kept(before) * (work.macs / self.rates.macs + work.exact / self.rates.exact)

    def _heal(self, recipe: Recipe, kept: float, trust: bool) -> float:
        """Return the seconds of training, of the losses on held-out text, and of what the teacher predicts."""
        trained = recipe.sequences * recipe.length * recipe.passes
        held_out = HELD_OUT * recipe.length * (recipe.points + 1)
        teacher = replace(self, shape=shape_of(recipe.teacher, trust)) if recipe.teacher else self
        read = teacher._forward(recipe.sequences * recipe.length, recipe.length, 1.0) if recipe.loss == "kl" else 0.0
        read += LOAD * teacher._read(1.0) if recipe.teacher else 0.0
        return self._forward(TRAINED * trained + held_out, recipe.length, kept) + read

    def _checks(self, kept: float, has_text: bool) -> float:
        """Return the seconds of continuing all prompts in one batch, and of the divergence on a few windows."""
        rows = checks.LISTS + len(checks.STARTS) + checks.WINDOWS * has_text
        compared = 2 * checks.WINDOWS * checks.KL_TOKENS * has_text
        prompts = self._forward(rows * checks.PROMPT + compared, checks.PROMPT, kept)
        return prompts + checks.STEPS * self._call(rows, checks.PROMPT, kept)

    def _call(self, tokens: float, context: int, kept: float, head: float = 1.0) -> float:
        """Return the seconds of a forward over few tokens, for which all weights are read."""
        return FEW * max(self._forward(tokens, context, kept, head), self._read(kept))

    def _speed(self, p: Protocol, kept: float) -> float:
        """Return the seconds of timing: its own process, and at every point both models, warmed up and in turns."""
        points = points_of_protocol(p)
        timed = sum(self._point(point, p, share) for point in points for share in (1.0, kept))
        return STARTED + 2 * LOAD * self._read(1.0) + timed

    def _point(self, point: TimedPoint, p: Protocol, kept: float) -> float:
        """Return the seconds of a model at a point: passes of timed calls, each behind its prompt where it decodes."""
        seconds = prompt = self._call(point.batch * point.tokens, point.tokens, kept, 1 / point.tokens)
        if point.kind == "decode":
            seconds = steps_of_point(point, p) * self._call(point.batch, point.tokens, kept)
        passes = max(p.speed_rounds + WARM_UP, (timing.WARM_UP_MS + timing.MIN_MS) / 1e3 / seconds)
        return passes * (seconds + (prompt if point.kind == "decode" else 0.0))


@dataclass(frozen=True)
class PruningWork:
    """Holds the multiply-accumulates of forwards, and those in float64 (`exact`)."""

    macs: float = 0.0
    exact: float = 0.0


def reuse_of_method(method: str) -> Reuses:
    """Return "removals", "statistics" or "": what cells of a method reuse of another cell's pruning."""
    return methods.load()[method.partition("+")[0]].reuses


def count_work(
    pruner: Pruner, shape: Shape, ratio: float, tokens: int, length: int, *, known_ratio: float = 0.0
) -> PruningWork:
    """Return the multiply-accumulates of pruning, by shapes alone.

    ratio        of the dense model's parameters to remove
    tokens       of the calibration, in sequences of `length`
    known_ratio  the ratio up to which an earlier search's removals are known; of a method that reuses statistics, more
                 than 0 says that another cell has computed them
    """
    layers = shape.layers
    method, reused = pruner.alone, pruner.alone.reuses
    removed, removed_before = (share * shape.parameters / max(1.0, shape.layer) for share in (ratio, known_ratio))
    forwards = method.forwards(layers, removed, tokens)
    of_compensation = pruner.forwards(layers, removed, tokens) - forwards
    solves = pruner.mlp_solves * shape.mlp**3 + pruner.residual_solves * shape.width**3
    if known_ratio and reused == "removals":
        start = method.forwards(layers, ALMOST_NOTHING, tokens)
        forwards = max(0.0, forwards - method.forwards(layers, removed_before, tokens) + start)
    if known_ratio and reused == "statistics":
        forwards, solves = 0.0, 0.0
    forward = shape.body(tokens, length)
    with_head = forward + (tokens * shape.head if method.holds.logits else 0.0)
    return PruningWork(forwards * with_head + of_compensation * forward, layers * solves)


@dataclass
class Estimator:
    """Learns from records of one machine, and estimates cells.

    costs  {model: seconds of its cells by what they compute}
    """

    costs: Mapping[str, Cost]
    _sums: dict[tuple[str, ...], tuple[float, float]] = field(default_factory=dict)  # seconds: measured, computed

    def learn(self, record: Record) -> None:
        """Take in the seconds of a record's stages; a record that was interrupted or failed is ignored.

        A record of a model without costs is ignored too, since its seconds say nothing about another model. So is a
        record with a teacher, which may not be here, and one whose cell this version would not measure, as of a later
        version in a folder beside the run.
        """
        cell = record.cell
        if record.status != "ok" or cell.model not in self.costs or (cell.healing and cell.healing.teacher):
            return
        try:
            cell.refuse_unmeasurable()
        except UserError:
            return
        measured = dict(record.measured.seconds or {})
        if record.measured.prune_seconds is not None:
            measured["prune"] = record.measured.prune_seconds  # with the search that it went on from
        for stage, computed in self.costs[cell.model].seconds(cell, Amounts.of(record)).items():
            if measured.get(stage, 0.0) > 0 and computed > 0:
                for kind in _kinds_of_work(stage, cell):
                    measured_sum, computed_sum = self._sums.get(kind, (0.0, 0.0))
                    self._sums[kind] = measured_sum + measured[stage], computed_sum + computed

    def estimate(self, cell: Cell, amounts: Amounts, known_ratio: float = 0.0) -> Estimate:
        """Return the estimated seconds of each stage of a cell; `known_ratio` is the ratio of `Cost.seconds`."""
        stages, measured = dict[str, float](), 0.0
        for stage, computed in self.costs[cell.model].seconds(cell, amounts, known_ratio).items():
            kind = next((kind for kind in _kinds_of_work(stage, cell) if kind in self._sums), ANY)
            real, like_computed = self._sums.get(kind, (1.0, 1.0))
            stages[stage] = computed * real / like_computed
            measured += stages[stage] if kind != ANY else 0.0
        return Estimate(stages, MEASURED if measured > sum(stages.values()) / 2 else ESTIMATED)


ANY = ("any",)  # kind of work: measurements of any cell


def _kinds_of_work(stage: str, cell: Cell) -> Iterator[tuple[str, ...]]:
    """Yield the kinds of work that a stage of a cell belongs to, the most alike first."""
    if cell.protocol.is_served and stage in ("perplexity", "tasks"):
        stage = f"{stage} by a server"  # whose rate says nothing of this machine
    alike = (cell.method,) if stage == "prune" else tuple(cell.protocol.tasks) if stage == "tasks" else ()
    settings = [cell.method, cell.parameters, cell.ratio, bool(cell.healing), len(cell.earlier)]
    yield stage, cell.model, *alike, json.dumps(settings, sort_keys=True, default=str)
    yield stage, cell.model, *alike
    yield stage, *alike
    if stage == "tasks":
        yield (stage,)
    if stage in ("perplexity", "tasks", "checks"):
        yield ANY


def is_of_machine(record: Record, environment: Mapping[str, object]) -> bool:
    """Say whether a record was measured in this environment: on its processor and device, in its dtype and threads."""
    names = ("cpu", "gpu", "device", "dtype", "threads")
    return all(record.environment.get(name) == environment.get(name) for name in names)


def estimate_cells(
    cells: Sequence[Cell],
    records: Sequence[Record],
    *,
    amounts: Callable[[Cell], Amounts],
    threads: Callable[[Cell], int],
    timed_threads: int,
    done: Container[str] = (),
    rates: Rates | None = None,
) -> dict[str, Estimate]:
    """Return {key: estimate of the cell}, for cells of one device and dtype that run in this order.

    records        of the run's folder and of those beside it; those of this machine count
    amounts        returns the tokens and documents that a cell is measured on
    threads        returns the threads of a cell while it is not timed
    timed_threads  threads of every cell while it is timed
    done           keys of the cells that are not measured, since they have a record
    rates          of the machine that they run on; None: this one, which is measured and has records
    """
    ratio_by_key = find_known_ratios(cells, done)
    trusted = {cell.model: cell.trust_remote_code for cell in cells}
    counts = {*map(threads, cells), *[timed_threads] * any(cell.is_timed for cell in cells)}
    estimators = {count: make_estimator(trusted, cells[0], records, count, rates) for count in counts}
    estimates = dict[str, Estimate]()
    for cell in cells:
        work = cell, amounts(cell), ratio_by_key.get(cell.key, 0.0)
        estimate = estimators[threads(cell)].estimate(*work)
        if "speed" in estimate.stages:
            timed = estimators[timed_threads].estimate(*work).stages["speed"]
            estimate = replace(estimate, stages=estimate.stages | {"speed": timed})
        estimates[cell.key] = estimate
    return estimates


def make_estimator(
    models: Mapping[str, bool], cell: Cell, records: Sequence[Record], threads: int, rates: Rates | None = None
) -> Estimator:
    """Return an estimator for this machine, with the device and dtype of a cell, that has learnt from records.

    models  {name: whether its own code is trusted}
    rates   of another machine, of which records are not looked for
    """
    device = torch.device(cell.device if cell.device == "cpu" or torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, cell.dtype)
    reached, each = rates or measure_rates(str(device), dtype, threads), bytes_of(cell.dtype)
    estimator = Estimator({model: Cost(shape_of(model, trust), reached, each) for model, trust in models.items()})
    if rates:
        return estimator
    machine = environment.describe(device, dtype) | {"threads": threads, "device": cell.device}
    for record in records:
        if is_of_machine(record, machine):
            estimator.learn(record)
    return estimator


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


LEARNT = ("parameters", "perplexity", "tasks", "seconds", "prune_seconds")  # no record is without parameters
NEAR = 20  # runs beside the run's folder whose records are read: those that changed last


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
                    measured: dict[str, Any] = {name: getattr(record.measured, name) for name in LEARNT}
                    yield replace(record, decisions={}, measured=Measured(**measured))


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
        self._remaining = Counter[tuple[str, str]]()
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
        self._remaining.update(work)
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
        real = record.measured.seconds or {}
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
        shared, alone = self._total(self._remaining, every)
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
        self._remaining.subtract(work)
        self._count -= 1

    def _factor(self) -> float:
        """Return the seconds of all finished work over its estimated seconds."""
        return sum(self._real.values()) / sum(self._estimated.values()) if self._estimated else 1.0

    def _total(self, work: Mapping[tuple[str, str], float], every: float) -> tuple[float, float]:
        """Return the seconds of work, corrected by the finished cells: (shared by slots, alone on the machine)."""
        totals = {True: 0.0, False: 0.0}
        for kind, seconds in work.items():
            estimated = self._estimated.get(kind)
            factor = self._real[kind] / estimated if estimated else every
            totals[kind in self._alone] += seconds * factor
        return totals[False], totals[True]


def _kind(stage: str, cell: Cell) -> tuple[str, str]:
    """Return the kind of work that shares a factor: a method's pruning, or another stage of any cell."""
    return stage, cell.method if stage == "prune" else ""


def format_duration(seconds: float, *, is_coarse: bool = False) -> str:
    """Return seconds in words: '40 s', '12 min', '3.4 h', '2.1 days'; a coarse one has one digit: '10 min', '3 h'."""
    value, unit, digits = seconds, "s", 0
    for name, size, decimals in (("days", DAY, 1), ("h", 3600, 1), ("min", 60, 0)):
        if seconds >= (2 * size if size > 60 else 1.5 * size):
            value, unit, digits = seconds / size, name, decimals
            break
    return f"{float(f'{value:.1g}'):.0f} {unit}" if is_coarse else f"{value:.{digits}f} {unit}"
