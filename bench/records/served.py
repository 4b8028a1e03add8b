"""Defines a served record: what an inference engine made of one cell's model in one type of weights.

    results/<run>/served.jsonl    a line for each, beside the records of the run, packed or not

A line has these keys and no others:

    schema       the number of this layout
    key          of the cell whose model it is
    type         of its matrices in the file: float32, bfloat16, float16, q8_0 or q4_0
    base         the type of the dense model that it was timed beside
    asked        bench.plan.served.ServedProtocol, its types left out
    model        {pruned_sha256 (of the cell's record), name, label, method, requested_ratio, ratio_of, ratio,
                 parameters}
    status       "ok"; "unsupported" (the model is not made again, or no format of the engine holds it); "error" (a
                 check did not pass, and nothing was timed), "crashed", "timed_out" or "out_of_memory"
    error        why the status is not "ok", else null
    environment  versions, commit, device, threads (bench.system.environment)
    measured     what was found before that, absent where nothing was:
        format      "gguf", "hf" or "nemotron-nas"
        bytes       of the weights' files, with the vocabulary where it is in them
        checks      [[name, passed, found]] of the engine's answers against this suite's (bench.export.engine_check)
        perplexity  {text, sha256, windows, window, tokens, nll: nats of each window, perplexity, perplexity_low, _high
                    (95 %)}   by the engine
        engine      {name, version, commit, system, threads, ...}
        memory      {resident_before_bytes, points: [{kind, batch, length or context, resident_bytes}]}   of the
                    engine's process with this model alone
        points      as of `speed` in bench.records.record; "dense" is the dense model in the type `base`, "pruned" this
                    one; prefill at batch 1 is the time to the first token
        machine     {other_cores, stolen_cores}   on average while both were timed
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.records.record import FAILED, InvalidRecord
from methods.files import write_atomically

SCHEMA = 1
FILE = "served.jsonl"
STATUSES = ("ok", "unsupported", *FAILED)


@dataclass(frozen=True)
class ServedRecord:
    """Holds one line; the head of this file says what is in it."""

    key: str
    type: str
    base: str
    asked: dict[str, Any]
    model: dict[str, Any]
    status: str
    environment: dict[str, Any]
    measured: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise InvalidRecord(f"{FILE} has schema {self.schema}; this version reads {SCHEMA}")
        if self.status not in STATUSES or (self.status == "ok") != (self.error is None):
            raise InvalidRecord(f"a served record has a reason exactly if its status is not ok; got {self.status!r}")

    @property
    def name(self) -> str:
        """Return the model with its type, as in 'laco@q8_0'."""
        return f"{self.model['label']}@{self.type}"

    @property
    def is_base(self) -> bool:
        """Say whether it is the dense model that all others are compared with."""
        return self.model["method"] == "dense" and self.type == self.base


def alike(records: Iterable[ServedRecord]) -> list[list[ServedRecord]]:
    """Return the records by groups of one model that was served in one way, each in its order."""
    found: dict[str, list[ServedRecord]] = {}
    for one in records:
        found.setdefault(json.dumps([one.model["name"], one.base, one.asked], sort_keys=True), []).append(one)
    return list(found.values())


def load(run: Path) -> list[ServedRecord]:
    """Read the served records of a run folder, none where nothing was served. Raises InvalidRecord."""
    path = run / FILE
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            found.append(ServedRecord(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise InvalidRecord(f"{path}: line {number} is not a served record: {error}") from None
    return found


def save(run: Path, records: Iterable[ServedRecord]) -> None:
    """Write all served records of a run folder; the file is there whole or not at all. Raises Unwritable."""
    lines = (json.dumps(asdict(record), allow_nan=False) for record in records)
    write_atomically(run / FILE, "".join(f"{line}\n" for line in lines))
