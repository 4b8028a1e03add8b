"""Serves the models of a run by an inference engine, one after the other, each in every type of weights of a protocol.

A row is a model in one type. It is exported, compared with this suite's logits, scored by the engine on windows of a
text, and timed in turns with the dense model in the first type, which is timed against itself. A model that the engine
computes differently from this suite is not timed: an engine that leaves an attention out would win.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from bench.data import pretrained, texts
from bench.export import write
from bench.plan.kinds import to_plain, value_from_plain
from bench.plan.load import ALONE
from bench.plan.protocol import AUTO, Protocol, ServedProtocol
from bench.plan.trust import Trust
from bench.records import run_folder, served
from bench.records.record import Record, name_of_model
from bench.records.served import ServedRecord
from bench.records.speed_results import PointTiming
from bench.runs.reproduce import PrunedModel, refuse_trained
from bench.serving.adapters import ExportedModel, NotServed, ServingEngine
from bench.serving.load import RequestSource, describe_load, read_requests, time_under_load
from bench.speed import workloads
from bench.speed.benchmark import join_processes
from bench.speed.workloads import TimedPoint
from bench.system import environment, failures
from bench.system.environment import join_machines
from methods.console import say
from methods.errors import Unwritable, UserError

SCRATCH = ".served-"  # begins the name of a folder that lasts as long as its command
IN_USE = ".lock"  # in it, locked meanwhile


class DenseNotServed(UserError):
    """Says why the engine does not serve the dense model. The models that are timed beside it are not served either."""


@dataclass(frozen=True)
class Served:
    """Says which cells of a run are served: the dense one of a model, and the wanted ones, by their keys."""

    trust: Trust
    dense: str
    cells: dict[str, Record]

    @property
    def run(self) -> Path:
        """Return the folder of the run."""
        return self.trust.run

    @property
    def name(self) -> str:
        """Return the dense model's name for a reader."""
        return name_of_model(self.cells[self.dense])


def find_served(trust: Trust, names: Sequence[str] = ()) -> list[Served]:
    """Return the cells to serve by model and dtype with their dense one; without `names` all that have a model.

    Of cells that have one model by one method and ratio, as of a method that draws nothing under several seeds, the
    first is taken.

    Raises UserError where a name is no cell, a cell has no model or names what `trust` does not let it, or where there
    is no dense cell to compare it with.
    """
    run = trust.run
    every = run_folder.read_records(run)
    named = dict(run_folder.find_cell(run, name, run_folder.ignore_warning) for name in names)
    for key, record in named.items():
        if record.status != "ok":
            raise UserError(f"{key} has no model: {record.status}, {(record.error or '').partition(chr(10))[0]}")
    with_model = {key: record for key, record in every.items() if record.status == "ok"}
    chosen = named or with_model
    if not chosen:
        raise UserError(f"{run} has no cell with a model")
    dense = {_base(record): key for key, record in reversed(with_model.items()) if record.cell.method == "dense"}
    models = []
    for base in dict.fromkeys(map(_base, chosen.values())):
        if base not in dense:
            raise UserError(
                f"{run} has no cell of the dense model in {base[1]}, which every row is compared with; measure it "
                "there too"
            )
        mine = {key: record for key, record in chosen.items() if _base(record) == base}
        order = sorted(mine, key=lambda key: (mine[key].cell.method != "dense", key))
        cells = {dense[base]: every[dense[base]]} | {key: mine[key] for key in order}
        models.append(Served(trust, dense[base], _drop_duplicates(cells)))
    for model in models:
        for record in model.cells.values():
            if write.find_saved_model(record, trust, record.cell.dtype) is None:
                trust.refuse(record.cell)
                refuse_trained(record)
    return models


def _drop_duplicates(cells: dict[str, Record]) -> dict[str, Record]:
    """Return the cells without those whose model an earlier one has under the same name."""
    key_by_model = dict[str | tuple[Any, ...], str]()
    for key, record in cells.items():
        name = (record.cell.label, record.cell.ratio, record.cell.ratio_of)
        model = record.measured.pruned_sha256
        key_by_model.setdefault((*name, model) if model else key, key)
    return {key: cells[key] for key in key_by_model.values()}


def _base(record: Record) -> tuple[str, str]:
    """Return the dense model that a cell is compared with: its name, and the dtype of both."""
    return record.cell.model, record.cell.dtype


def serve(
    to_serve: Served, protocol: ServedProtocol, engine: ServingEngine, *, device: str = AUTO
) -> Iterator[ServedRecord]:
    """Measure every row that has no record that counts, write it, and yield the records of all rows in their order.

    device  on which models are made again where they were not saved

    Raises UserError, before any work, where the engine, the text or the dense model is missing, and DenseNotServed
    where the engine does not serve the dense model.
    """
    engine.require(protocol)
    texts.check_text(protocol.text)
    dense = to_serve.cells[to_serve.dense]
    types = list(dict.fromkeys(dense.cell.dtype if kind == AUTO else kind for kind in protocol.types))
    question = _question(protocol, engine)
    conditions = served.conditions_of_engine(question, _environment(engine))
    rows = [(key, kind) for key in to_serve.cells for kind in types]
    row_by_name = {
        (row.key, row.type): row
        for row in served.load(to_serve.run)
        if row.key in to_serve.cells and _counts(row, to_serve.cells[row.key], conditions, types[0])
    }
    missing = [row for row in rows if row not in row_by_name]
    with _scratch(to_serve.run) as scratch:
        measurer = _RowMeasurer(to_serve, protocol, engine, scratch=scratch, base=types[0], device=device)
        for number, (key, kind) in enumerate(rows, start=1):
            if (key, kind) in missing:
                record, where = (
                    to_serve.cells[key],
                    f"[{number}/{len(rows)}] {to_serve.cells[key].cell.label}@{kind}",
                )
                status, error, measured = measurer.measure_row(key, kind, where)
                if error:
                    say(f"{where}: {status}: {error}")
                row = ServedRecord(
                    key=key,
                    type=kind,
                    base=types[0],
                    protocol=question,
                    model=_model(record),
                    status=status,
                    error=error,
                    environment=_environment(engine, kind),
                    measured=measured,
                )
                row_by_name[key, kind] = served.save(to_serve.run, row)
                if status != "ok" and (key, kind) == (to_serve.dense, types[0]):
                    raise DenseNotServed(
                        f"{engine.name} does not serve the dense model, beside which all are timed: {error}"
                    )
            yield row_by_name[key, kind]


@contextmanager
def _scratch(run: Path) -> Iterator[Path]:
    """Make a folder beside the rows for the time of the command, and remove folders that killed commands have left."""
    with ExitStack() as kept:
        with served.lock_served(run):
            for forgotten in run.glob(f"{SCRATCH}*"):
                with suppress(Timeout), FileLock(forgotten / IN_USE).acquire(timeout=0):
                    shutil.rmtree(forgotten, ignore_errors=True)
            folder = Path(kept.enter_context(tempfile.TemporaryDirectory(prefix=SCRATCH, dir=run)))
            kept.enter_context(FileLock(folder / IN_USE))
        yield folder


def _counts(earlier: ServedRecord, record: Record, conditions: dict[str, Any], base: str) -> bool:
    """Say whether a row was measured here under the same conditions, of the model that the cell has now."""
    if earlier.status not in ("ok", "unsupported"):
        return False
    mine, model = served.conditions_of_engine(earlier.protocol, earlier.environment), _model(record)
    return (mine, earlier.base, model | earlier.model) == (conditions, base, model)  # an older one says less of a model


def _environment(engine: ServingEngine, kind: str = "") -> dict[str, Any]:
    """Return the environment of a row with its matrices in `kind`: the machine, and what the engine computes on."""
    environment_of_row = environment.describe(torch.device("cpu"), getattr(torch, kind, torch.float32))
    if not hasattr(torch, kind):  # a type of the engine's own
        del environment_of_row["dtype"]
    return environment_of_row | engine.computes_on() | {"threads": engine.threads}


def _question(protocol: ServedProtocol, engine: ServingEngine) -> dict[str, Any]:
    """Return what all rows of a protocol ask, with the engine that answers, as JSON gives it back."""
    left_out = ("types", "load", *(ALONE if protocol.load else ()))
    fields = {name: value for name, value in vars(protocol).items() if name not in left_out}
    load = {"load": describe_load(protocol.load)} if protocol.load else {}
    plain: dict[str, Any] = to_plain(fields | {"version": engine.version, "threads": engine.threads} | load)
    return plain


def _model(record: Record) -> dict[str, Any]:
    """Return what a served record says of its cell."""
    sizes = {name: getattr(record.measured, name) for name in ("pruned_sha256", "ratio", "parameters")}
    return sizes | {
        "name": name_of_model(record),
        "label": record.cell.label,
        "method": record.cell.method,
        "dtype": record.cell.dtype,
        "seed": record.cell.seed,
        "requested_ratio": record.cell.ratio,
        "ratio_of": record.cell.ratio_of,
    }


def _ends_all(error: Exception) -> bool:
    """Say whether an error would stop every other model too."""
    return isinstance(error, Unwritable) or failures.is_full_disk(error)


class _RowMeasurer:
    """Keeps what rows share: the dense model's file, the windows, and the model in memory for all its types."""

    def __init__(
        self,
        to_serve: Served,
        protocol: ServedProtocol,
        engine: ServingEngine,
        *,
        scratch: Path,
        base: str,
        device: str,
    ) -> None:
        self.to_serve, self.protocol, self.engine, self.scratch, self.device = (
            to_serve,
            protocol,
            engine,
            scratch,
            device,
        )
        dense = to_serve.cells[to_serve.dense].cell
        to_serve.trust.refuse(dense)
        pretrained.check(dense.model, dense.trust_remote_code)
        tokenizer = pretrained.load_tokenizer(dense.model, dense.trust_remote_code)
        self.text = texts.make_evaluation_text(
            tokenizer, protocol.text, protocol.window, protocol.window, protocol.windows, drawn=True
        )
        self.requests = self._source_of_requests(tokenizer)
        self.points = workloads.points_of_protocol(
            Protocol(prefill=protocol.prefill, decode=protocol.decode, batches=protocol.batches)
        )
        self.base = base
        self.model_in_memory: tuple[str, PrunedModel] | None = None
        self.dense: ExportedModel | None = None
        self.work: dict[TimedPoint, int] = {}

    def _source_of_requests(self, tokenizer: Any) -> RequestSource | None:
        """Return what makes the requests of a load; None without one. Raises UserError for longer ones than fit."""
        load, cell = self.protocol.load, self.to_serve.cells[self.to_serve.dense].cell
        if load is None:
            return None
        from_file = read_requests(Path(load.requests), tokenizer) if load.requests else ()
        source = RequestSource(load, len(tokenizer), from_file)
        config: Any = pretrained.make_shell(cell.model, cell.trust_remote_code).config
        most = getattr(config.get_text_config(), "max_position_embeddings", None) or source.context
        if source.context > most:
            longest = f"the longest request has {source.context} tokens with those that it generates"
            raise UserError(f"{longest}, and the model takes {most}")
        return source

    def measure_row(self, key: str, kind: str, where: str) -> tuple[str, str | None, dict[str, Any]]:
        """Return the status of a row, why it is not ok, and what was measured."""
        if self.dense is None:
            say(f"{where}: exporting the dense model")
            try:
                self.dense = self._export(self.to_serve.dense, self.base)
            except (NotServed, UserError) as error:
                if _ends_all(error):
                    raise
                reason = f"the dense model, beside which all are timed, is not exported: {error}"
                raise DenseNotServed(reason) from None
            self.work = self._macs()
        measured: dict[str, Any] = {}
        try:
            say(f"{where}: exporting")
            is_base = (key, kind) == (self.to_serve.dense, self.base)
            exported = self.dense if is_base else self._export(key, kind)
        except NotServed as error:
            return error.status, str(error), measured
        except UserError as error:
            if _ends_all(error):
                raise
            return "unsupported", str(error), measured
        try:
            measured |= {"format": exported.format, "bytes": exported.bytes}
            say(f"{where}: {self.engine.name} computes {exported.bytes / 1e6:,.1f} MB")
            measured |= self.engine.quality(exported, self._model(key), self.text)
            say(f"{where}: timing")
            measured |= self._time(self.dense, exported, lambda words: say(f"{where}: {words}"))
            return "ok", None, measured
        except NotServed as error:
            return error.status, str(error), measured | error.measured
        finally:
            if exported is not self.dense:
                exported.remove()

    def _time(self, dense: ExportedModel, exported: ExportedModel, hear: Callable[[str], object]) -> dict[str, Any]:
        """Return what was timed of a model: points, or levels of load. Raises NotServed."""
        if self.requests:
            return time_under_load(self.engine, dense, exported, self.protocol, self.requests, hear=hear)
        speed = self._time_in_processes(dense, exported, hear)
        self._predict(speed["points"], exported)
        return speed

    def _time_in_processes(
        self, dense: ExportedModel, exported: ExportedModel, hear: Callable[[str], object]
    ) -> dict[str, Any]:
        """Return what the engine times in one process after the other. Raises NotServed."""
        speeds, number = list[dict[str, Any]](), self.protocol.processes
        for which in range(1, number + 1):
            if speeds:
                self.engine.end()
            hear_process = (lambda words, which=which: hear(f"process {which}: {words}")) if number > 1 else hear
            speeds.append(self.engine.speed(dense, exported, self.points, hear_process))
        timings_of_points = zip(*map(_read_points, speeds), strict=True)
        points = [to_plain(join_processes(timings)) for timings in timings_of_points]
        machines = [speed["machine"] for speed in speeds if "machine" in speed]
        return speeds[0] | {"points": points} | ({"machine": join_machines(machines)} if machines else {})

    def _export(self, key: str, kind: str) -> ExportedModel:
        model, cell = self._model(key), self.to_serve.cells[key].cell
        return self.engine.export(model, self.scratch / f"{key}@{kind}", kind, pretrained.name_of_model(cell.model))

    def _model(self, key: str) -> PrunedModel:
        """Return the model of a cell, saved or made again once for all its types. Raises NotServed."""
        if self.model_in_memory is None or self.model_in_memory[0] != key:
            self.model_in_memory = None  # before the next one needs the room
            record = self.to_serve.cells[key]
            try:
                model = write.model_of(record, self.to_serve.trust, self.device, record.cell.dtype)
            except UserError as error:
                raise NotServed("error", str(error)) from None
            self.model_in_memory = (key, model)
        return self.model_in_memory[1]

    def _macs(self) -> dict[TimedPoint, int]:
        """Return the multiply-accumulates of each point of the model that is in memory."""
        assert self.model_in_memory is not None
        return {point: workloads.macs_of_point(self.model_in_memory[1].model, point) for point in self.points}

    def _predict(self, points: list[dict[str, Any]], exported: ExportedModel) -> None:
        """Add to each point the speed-up that the removed work would bring, and for decode that of the bytes read."""
        assert self.dense is not None
        mine = self._macs()
        for point, figures in zip(self.points, points, strict=True):
            figures["speedup_by_macs"] = self.work[point] / mine[point]
            if point.kind == "decode" and exported.step_bytes and self.dense.step_bytes:
                figures["speedup_by_bytes"] = self.dense.step_bytes(point) / exported.step_bytes(point)


def _read_points(speed: dict[str, Any]) -> list[PointTiming]:
    return [value_from_plain(PointTiming, point) for point in speed["points"]]
