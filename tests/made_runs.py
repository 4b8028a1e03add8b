"""Run folders made by hand: records and samples as a run writes them, with the figures that a test wants."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from made_cells import made_cell, made_inputs

from bench.plan.kinds import value_from_plain
from bench.plan.protocol import protocol_of_profile
from bench.records.measured import Measured
from bench.records.record import Record, save

VERSIONS = {"torch": "2.13.0", "transformers": "5.24.0", "lm_eval": "0.4.13", "prunebench": "0.1.0"}


def answers(seed: int, n: int = 1000, share: float = 0.7) -> np.ndarray:
    return (np.random.default_rng(seed).uniform(size=n) < share).astype(float)


def nats(seed: int, n: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).normal(1500, 120, n)


def speed(ratio: float, half: float = 0.02) -> dict[str, Any]:
    point = {"kind": "prefill", "batch": 1, "length": 128, "speedup": ratio, "pruned_ms": 10.0}
    return {"points": [point | {"speedup_low": ratio - half, "speedup_high": ratio + half}]}


def cell(
    run: Path,
    label: str = "dense",
    ratio: float | None = None,
    *,
    tasks: Mapping[str, np.ndarray] | None = None,
    texts: Mapping[str, np.ndarray] | None = None,
    bits: Mapping[str, np.ndarray] | None = None,
    status: str = "ok",
    environment: Mapping[str, Any] | None = None,
    measured: Mapping[str, Any] | None = None,
    sha256: str = "a" * 64,
    questions: str = "document",
    metric: str = "acc",
    seed: int = 0,
    fewshot: int = 0,
    system: str = "",
    parameters: Mapping[str, Any] | None = None,
) -> None:
    """Write one cell of `run`; `bits` are those per byte of the right answers of some of the tasks.

    `system` is the system text of prompts that are a chat; empty: they are none.
    """
    key = f"{label.replace(':', '-').replace('=', '-')}--{'fixed' if ratio is None else ratio}--{seed}"
    protocol = protocol_of_profile(
        "quick", tasks=tuple(tasks or ()), texts=tuple(texts or ()), decode=(), calibration_sequences=16
    )
    method, _, words = label.partition(":")
    given = dict(word.split("=") for word in words.split(",") if word)
    more = {
        "model": "somewhere/model",
        "parameters": given | dict(parameters or {}),
        "given": tuple(given),
        "seed": seed,
    }
    if system:
        protocol = replace(protocol, apply_chat_template=True, system=system)
        more["inputs"] = made_inputs(chat_template_sha256="d" * 64)
    asked = made_cell(method, ratio, protocol, **more)
    described = {"date": "2026-01-02T03:04:05+00:00", "commit": "0123456789abcdef", "cpu": "Example CPU", "threads": 2}
    described |= {"versions": VERSIONS, **(environment or {})}
    found: dict[str, Any] = {}
    if status == "ok":
        found = {"parameters": 1000, "dense_parameters": 1000, "weights_sha256": "f" * 64, "weight_bytes": 4000}
        found |= {"macs_per_token": 900, "macs_context": 128, "ratio": 0.0}
        found["tasks"] = {
            name: {"main": metric, "metrics": {metric: {"value": float(right.mean())}}, "version": 1}
            | {"documents": len(right), "available": len(right), "fewshot": fewshot}
            | ({"answer_bpb": {"value": float(bits[name].mean())}} if bits and name in bits else {})
            for name, right in (tasks or {}).items()
        }
        found["perplexity"] = {
            name: {"sha256": sha256, "perplexity": float(np.exp(nll.sum() / (511 * len(nll))))}
            | {"tokens": 511 * len(nll), "windows": len(nll), "window": 512, "stride": 512}
            | {"bos": "none", "drawn": False}
            for name, nll in (texts or {}).items()
        }
        found |= measured or {}
    decisions = {"calibration": {"sha256": "c" * 64}} if status == "ok" else {}
    error = None if status == "ok" else f"{status}: for a test"
    record = Record(asked, status, described, decisions, value_from_plain(Measured, found), error, display_name="Model")
    save(record, run / "cells" / f"{key}.json")
    folder = run / "samples" / key
    folder.mkdir(parents=True, exist_ok=True)
    for name, right in (tasks or {}).items():
        hashes = [hashlib.sha256(f"{questions} {name} {n}".encode()).hexdigest() for n in range(len(right))]
        prompts = [f"{one} {fewshot} {system}" for one in hashes] if fewshot or system else hashes
        columns = {"doc_id": range(len(right)), "doc_hash": hashes, "prompt_hash": prompts, "target_hash": hashes}
        likely = {"answer_bpb": bits[name]} if bits and name in bits else {}
        pd.DataFrame(columns | {metric: right} | likely).to_parquet(folder / f"{name}.parquet")
    for name, nll in (texts or {}).items():
        table = pd.DataFrame({"nll": nll, "tokens": [511] * len(nll)})
        table.to_parquet(folder / f"perplexity-{Path(name).stem}.parquet")


def run_folder(folder, records: list[Record]):
    for number, record in enumerate(records):
        save(record, folder / "cells" / f"{number}.json")
    return folder
