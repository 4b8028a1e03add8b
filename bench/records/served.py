"""Defines a served record: what an inference engine made of one cell's model in one type of weights.

    results/<run>/served.jsonl    a line for each, beside the records of the run, packed or not

`ServedLayout` says what each key means. A line that does not fit it is refused when it is read.

A line answers one question about one model (`question_of_record`). A new line takes the place of an earlier answer to
the same question. All other lines stay, those of other versions and of other processes among them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar

from filelock import FileLock

from bench.plan.kinds import (
    DRAWN,
    Above,
    Bytes,
    Count,
    Name,
    OneOf,
    Parameters,
    Positive,
    Ratio,
    Sha256,
    Tokens,
    Whole,
    declare_field,
    declare_optional_field,
)
from bench.records.load_results import LevelTiming, LoadAsked
from bench.records.record import FAILED, LEFT_OUT, InvalidRecord, misfit_of_layout, read_content, read_json
from bench.records.speed_results import Environment, MachineMeanwhile, MemoryAlone, PointTiming
from methods.console import say
from methods.errors import Unwritable
from methods.files import write_atomically

SERVED_SCHEMA = 2
FILE = "served.jsonl"
LOCK = ".served.lock"  # held while the file is read and written again; it stays, as the lock of bench.runs.store does
SERVED_STATUSES = ("ok", "unsupported", *FAILED)
OF_NO_FIGURE = ("silence", "engine_python", "llmcompressor_python")  # fields of a protocol that change no value


@dataclass(frozen=True)
class ServedRecord:
    """Holds one line; `ServedLayout` says what each field means."""

    key: str
    type: str
    base: str
    protocol: dict[str, Any]
    model: dict[str, Any]
    status: str
    environment: dict[str, Any]
    measured: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    schema: int = SERVED_SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SERVED_SCHEMA:
            raise InvalidRecord(f"{FILE} has schema {self.schema}; this version reads {SERVED_SCHEMA}")
        if self.status not in SERVED_STATUSES or (self.status == "ok") != (self.error is None):
            raise InvalidRecord(f"error is a reason exactly if status is not ok; got {self.status!r}")

    @property
    def name(self) -> str:
        """Return the model with its type, as in 'laco@q8_0'."""
        return f"{self.model['label']}@{self.type}"

    @property
    def is_base(self) -> bool:
        """Say whether it is the dense model that all others are compared with."""
        return self.model["method"] == "dense" and self.type == self.base


def conditions_of_engine(protocol: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return the conditions that served records must share to be compared: of the protocol and of the machine."""
    names = ("gpu", "gpus") if "gpu" in environment else ("cpu",)
    machine = {name: environment.get(name) for name in names}
    conditions = {"processes": 1} | {name: value for name, value in protocol.items() if name not in OF_NO_FIGURE}
    return conditions | machine


def group_alike(records: Iterable[ServedRecord]) -> list[list[ServedRecord]]:
    """Return the records in groups of one dense model, one protocol and one machine, each in its order."""
    groups: dict[str, list[ServedRecord]] = {}
    for record in records:
        same = [
            record.model["name"],
            record.model.get("dtype"),
            record.base,
            conditions_of_engine(record.protocol, record.environment),
        ]
        groups.setdefault(json.dumps(same, sort_keys=True), []).append(record)
    return list(groups.values())


def identity_of_measurement(record: ServedRecord) -> str:
    """Return one text for a measurement, equal in all run folders that have it, and different for any other."""
    date = record.environment.get("date")
    return json.dumps([record.key, record.type, record.model, record.base, record.protocol, date], sort_keys=True)


def question_of_record(record: ServedRecord) -> str:
    """Return the question of a record as one text: model, type, dense model beside it, protocol and machine."""
    model = record.model.get("pruned_sha256")
    return json.dumps(
        [record.key, record.type, record.base, model, conditions_of_engine(record.protocol, record.environment)],
        sort_keys=True,
    )


def load(run: Path, warn: Callable[[str], None] = say) -> list[ServedRecord]:
    """Return the served records of a run folder, none where nothing was served; one that does not fit is left out.

    warn  gets a line on each that is left out
    """
    records = list[ServedRecord]()
    for number, line in enumerate(_lines(run), start=1):
        try:
            records.append(_read(line, f"{run / FILE}: line {number}"))
        except InvalidRecord as error:
            warn(f"{error}; {LEFT_OUT}")
    return records


def _lines(run: Path) -> list[bytes]:
    path = run / FILE
    return read_content(path).splitlines() if path.is_file() else []


def _read(line: bytes, where: str = FILE) -> ServedRecord:
    return _from_json(read_json(line, where), where)


def _from_json(data: Any, where: str) -> ServedRecord:
    """Return the served record in a JSON object. Raises InvalidRecord."""
    if wrong := misfit_of_layout(data, ServedLayout):
        raise InvalidRecord(f"{where}: {wrong}")
    try:
        return ServedRecord(**{field.name: data[field.name] for field in fields(ServedRecord)})
    except InvalidRecord as error:
        raise InvalidRecord(f"{where}: {error}") from None


def save(run: Path, record: ServedRecord) -> ServedRecord:
    """Add a record to those of a run folder, and return the record that answers its question from now on.

    It is an earlier record where that is ok and this one is not. Raises Unwritable.
    """
    with lock_served(run):
        lines = _join_lines([*_lines(run), json.dumps(asdict(record), allow_nan=False).encode()])
        _write(run, lines)
    mine = question_of_record(record)
    return next(
        (answer for answer in reversed(load(run, lambda _: None)) if question_of_record(answer) == mine), record
    )


def join(parts: Sequence[Path], out: Path) -> None:
    """Write the lines of all parts to the new folder `out`; of lines that answer one question the first is kept.

    A record that is ok goes before one that is not. A line that this version does not read is kept. Raises
    Unwritable.
    """
    if lines := _join_lines([line for part in reversed(parts) for line in _lines(part)]):
        _write(out, lines)


def _join_lines(lines: Iterable[bytes]) -> list[bytes]:
    """Return for each question the last answer that is ok, else the last answer, and all lines that are no records."""
    answers: dict[str | bytes, tuple[bytes, bool]] = {}
    for line in lines:
        try:
            record = _read(line)
        except InvalidRecord:
            answers[line] = line, False
            continue
        key, well = question_of_record(record), record.status == "ok"
        if well or not answers.get(key, (line, False))[1]:
            answers[key] = line, well
    return [line for line, _ in answers.values()]


def _write(run: Path, lines: Iterable[bytes]) -> None:
    write_atomically(run / FILE, b"".join(line + b"\n" for line in lines))


@contextmanager
def lock_served(run: Path) -> Iterator[None]:
    """Keep other processes from writing the file meanwhile. Raises Unwritable."""
    lock = FileLock(run / LOCK)
    try:
        lock.acquire()
    except OSError as error:
        raise Unwritable(f"{run} cannot be locked: {error.strerror}; the same command goes on once it can") from error
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True, kw_only=True)
class EngineProtocol:
    """Says what an inference engine was asked, of every model alike."""

    SOURCE: ClassVar[str] = "bench.plan.protocol"

    engine: Name = declare_field("llama.cpp or vllm")
    engine_python: str | None = declare_optional_field("interpreter that has vllm")
    engine_args: str | None = declare_optional_field("words for those")
    llmcompressor_python: str | None = declare_optional_field("interpreter that has llmcompressor")
    prefill: tuple[Tokens, ...] | None = declare_optional_field("prompt lengths that are timed")
    decode: tuple[Tokens, ...] | None = declare_optional_field("depths of context behind which tokens are generated")
    batches: tuple[Positive, ...] | None = declare_optional_field("sequences at once")
    steps: Positive = declare_field("tokens that a pass generates for each sequence")
    rounds: Positive = declare_field("of dense against pruned in each process")
    processes: Positive | None = declare_optional_field("of the engine that read both models anew; absent for one")
    text: str = declare_field("that the engine scores")
    windows: Count = declare_field("of that text")
    window: Tokens = declare_field("of each window")
    silence: Count | None = declare_optional_field("seconds without a word after which the engine is ended")
    version: str = declare_field("of the engine")
    threads: Count = declare_field("of the engine")
    load: LoadAsked | None = declare_optional_field("under which the engine's server was timed")


@dataclass(frozen=True, kw_only=True)
class ModelServed:
    """Says which model was served."""

    SOURCE: ClassVar[str] = "bench.serving.serve"

    pruned_sha256: Sha256 | None = declare_optional_field("of the cell's record", null=True)
    name: str = declare_field("of the dense model for a reader")
    label: Name = declare_field("the method with its parameters")
    method: Name = declare_field("its name")
    dtype: Name | None = declare_optional_field("of its cell, which is that of the dense model beside it")
    seed: Whole | None = declare_optional_field("of its cell")
    requested_ratio: Ratio | None = declare_field(
        "that was asked for; null for dense, and where parameters alone decide"
    )
    ratio_of: Name = declare_field("what that is a share of")
    ratio: Ratio | None = declare_field("of the dense model's parameters that went")
    parameters: Parameters | None = declare_field("that are left")


@dataclass(frozen=True, kw_only=True)
class TextServed:
    """Says how well an engine predicts the text with the model."""

    SOURCE: ClassVar[str] = "bench.export.engine_check"

    text: Name = declare_field("its name")
    sha256: Sha256 = declare_field("of the windows' tokens")
    windows: Count | None = declare_optional_field("that were read")
    drawn: bool = declare_field(DRAWN)
    window: Tokens = declare_field("of each window")
    tokens: Tokens | None = declare_optional_field("that are scored")
    nll: tuple[float, ...] = declare_field("nats of each window")
    perplexity: Above = declare_field("per token")
    perplexity_low: Above | None = declare_optional_field("lower end of its 95 % interval over windows")
    perplexity_high: Above | None = declare_optional_field("upper end of its 95 % interval over windows")


@dataclass(frozen=True, kw_only=True)
class EngineFound:
    """Describes the engine."""

    SOURCE: ClassVar[str] = "bench.inference"

    name: str | None = declare_optional_field("llama.cpp or vllm")
    version: str | None = declare_optional_field("of its package")
    commit: str | None = declare_optional_field("of its source")
    system: str | None = declare_optional_field("instructions of the processor that it uses")
    threads: Count | None = declare_optional_field("with which it computes")
    slots: Count | None = declare_optional_field("of llama.cpp's server: requests that it computes at once")


@dataclass(frozen=True, kw_only=True)
class ServedFound:
    """Holds what was found of a served model; what was not is absent."""

    SOURCE: ClassVar[str] = "bench.serving.serve"

    format: str | None = declare_optional_field("gguf or hf", "bench.export.write")
    bytes: Bytes | None = declare_optional_field("of the weights' files, with the vocabulary where it is in them")
    quantiser: str | None = declare_optional_field("what wrote w8a8 or w4a16, with its version")
    checks: tuple[tuple[Any, ...], ...] | None = declare_optional_field(
        "[name, passed, found] of the engine's answers against this suite's"
    )
    perplexity: TextServed | None = declare_optional_field("by the engine")
    engine: EngineFound | None = declare_optional_field("which it was")
    memory: MemoryAlone | None = declare_optional_field("of the engine's process with this model alone")
    points: tuple[PointTiming, ...] | None = declare_optional_field(
        "each size; dense is the dense model in the type `base`, pruned this one; prefill at batch 1 is the time to "
        "the first token"
    )
    load: tuple[LevelTiming, ...] | None = declare_optional_field("each level of load, in place of points")
    machine: MachineMeanwhile | None = declare_optional_field("what else the machine did while both were timed")


@dataclass(frozen=True, kw_only=True)
class ServedLayout:
    """Describes a served record: what an inference engine made of one cell's model in one type of weights."""

    SOURCE: ClassVar[str] = "bench.serving.serve"

    number: Annotated[int, OneOf((SERVED_SCHEMA,))] = declare_field("number of this layout", alias="schema")
    key: Name = declare_field("of the cell whose model it is")
    type: Name = declare_field("of its matrices in the file: float32, bfloat16, float16, q8_0, q4_0, w8a8 or w4a16")
    base: Name = declare_field("type of the dense model that it was timed beside")
    protocol: EngineProtocol = declare_field("how the engine was asked")
    model: ModelServed = declare_field("which it is")
    status: Annotated[str, OneOf(SERVED_STATUSES)] = declare_field(
        "unsupported: no format of the engine holds the model; error: the model is not made again, or a check did not "
        "pass, and nothing was timed"
    )
    error: str | None = declare_field("why the status is not ok, else null")
    environment: Environment = declare_field("where it was served")
    measured: ServedFound = declare_field("what was found")
