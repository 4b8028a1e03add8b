"""Shared by several test files."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

from made_cells import made_cell, made_inputs

from bench.plan.kinds import to_plain
from bench.plan.protocol import Recipe, protocol_of_profile
from bench.records.record import Record, record_from_plain

TASKS = {"hellaswag": 10042, "piqa": 1838, "winogrande": 1267, "arc_easy": 2376, "openbookqa": 500}


DENSE_PARAMETERS, PER_LAYER, LAYERS = 134_515_008, 3_540_096, 30


ENVIRONMENT = {
    "date": "2026-01-02T03:04:05+00:00",
    "python": "3.12.3",
    "platform": "Linux-6.1-x86_64",
    "cpu": "Example CPU @ 2.0 GHz",
    "logical_cores": 2,
    "memory_bytes": 8 * 2**30,
    "threads": 2,
    "device": "cpu",
    "dtype": "float32",
    "versions": {"torch": "2.13.0", "lm_eval": "0.4.13"},
    "commit": "0123456789abcdef",
    "dirty": False,
}


def cell(method: str, ratio: float | None, **changes: Any) -> dict[str, Any]:
    """The plain cell dict of a record, as it comes back from JSON."""
    asked = made_cell(
        method,
        ratio,
        protocol_of_profile("quick", calibration_sequences=16),
        model="smollm2-135m",
        parameters=changes.pop("parameters", {}),
        given=changes.pop("given", ()),
    )
    return json.loads(json.dumps(asked.plain())) | {"display_name": "SmolLM2-135M-Instruct"} | changes


def plain_inputs(**changes: Any) -> dict[str, Any]:
    """The plain inputs of a record's cell, whole."""
    return to_plain(made_inputs()) | changes


def share(value: float) -> dict[str, float]:
    """An accuracy over 100 documents with its standard error."""
    return {"value": value, "stderr": math.sqrt(value * (1 - value) / 99)}


def measured(removed: int, ppl: tuple[float, float, float], accuracies: list[float], ms: float) -> dict[str, Any]:
    """What a cell measured that removed `removed` parameters, with accuracies over 100 documents."""
    parameters = DENSE_PARAMETERS - removed
    tasks = {
        name: {
            "metrics": {"acc": share(0.9 * accuracy), "acc_norm": share(accuracy)},
            "answer_bpb": {"value": 2.4 - 2 * accuracy, "stderr": 0.06},
            "main": "acc_norm",
            "version": 1,
            "documents": 100,
            "available": available,
            "fewshot": 0,
        }
        for (name, available), accuracy in zip(TASKS.items(), accuracies, strict=False)
    }
    if "winogrande" in tasks:
        tasks["winogrande"] |= {"main": "acc", "metrics": {"acc": share(accuracies[2])}}
    return {
        "parameters": parameters,
        "parameters_without_embeddings": PER_LAYER * LAYERS - removed,
        "dense_parameters": DENSE_PARAMETERS,
        "dense_parameters_without_embeddings": PER_LAYER * LAYERS,
        "ratio": removed / DENSE_PARAMETERS,
        "ratio_without_embeddings": removed / (PER_LAYER * LAYERS),
        "layers": LAYERS - removed // PER_LAYER,
        "dense_layers": LAYERS,
        "weight_bytes": 4 * parameters,
        "kv_bytes_per_token": 1536 * (LAYERS - removed // PER_LAYER),
        "macs_per_token": parameters,
        "macs_context": 128,
        "peak_memory": {"together": {"resident_bytes": 1_610_612_736}},
        "perplexity": {
            "wiki": {
                "perplexity": ppl[1],
                "perplexity_low": ppl[0],
                "perplexity_high": ppl[2],
                "bits_per_byte": 0.98,
                "nll_per_token": math.log(ppl[1]),
                "tokens": 8176,
                "windows": 16,
                "drawn": True,
                "window": 512,
                "stride": 512,
                "bos": "every window",
                "sha256": "00",
            }
        },
        "tasks": tasks,
        "speed": {
            "points": [point("prefill", 1, 128, ms), point("decode", 1, 64, ms / 4)],
            "memory": {"resident_before_bytes": 2**28, "points": [{"kind": "prefill", "peak_resident_bytes": 2**30}]},
            "widths": {"qkv": {"in": [576], "out": [192, 576], "multiple_of": 64}},
            "machine": {"flags": []},
        },
    }


def point(kind: str, batch: int, size: int, ms: float, dense_ms: float = 80.0, **more: Any) -> dict[str, Any]:
    """What was timed, an interval of 4 % around the ratio; decode of the dense model takes a quarter of its prefill."""
    dense_ms = dense_ms if kind == "prefill" else dense_ms / 4
    sizes = {"kind": kind, "batch": batch, "length" if kind == "prefill" else "context": size}
    spread = {"speedup_low": 0.98 * dense_ms / ms, "speedup_high": 1.02 * dense_ms / ms}
    spread |= {"dense_cv": 0.01, "pruned_cv": 0.02, "flags": [], "speedup_by_macs": 1.5}
    return sizes | {"dense_ms": dense_ms, "pruned_ms": ms, "speedup": dense_ms / ms} | spread | more


def ok(method: str, ratio: float | None, figures: dict[str, Any], *, budget: int = 0, **changes: Any) -> Record:
    """A measured record; `budget` is in layers."""
    seconds = changes.pop("prune_seconds", None)
    if method != "dense" and seconds is not None:
        figures |= {"prune_seconds": seconds}
    if budget:
        figures |= {"ratio_budget": budget * PER_LAYER / DENSE_PARAMETERS}
    decided = changes.pop("decisions", {})
    return made_record(cell(method, ratio, **changes), environment=ENVIRONMENT, measured=figures, decisions=decided)


def failed(status: str, method: str, error: str, **changes: Any) -> Record:
    return made_record(cell(method, 0.3, **changes), status=status, environment=ENVIRONMENT, error=error)


def made_record(asked: dict[str, Any], status: str = "ok", **changes: Any) -> Record:
    """The record of a plain cell, as it comes from a file."""
    empty = {"environment": {}, "decisions": {}, "measured": {}, "error": None, "schema": 3}
    return record_from_plain(empty | {"cell": asked, "status": status} | changes)


def checked(figures: dict[str, Any], kl: float | None, copying: float) -> dict[str, Any]:
    """`figures` with checks; without a divergence those of the dense model."""
    checks = {"copying": copying, "counting": 0.9, "repetition": 0.0625, "distinct_1": 0.4635, "distinct_2": 0.7446}
    if kl is not None:
        checks |= {"kl": kl, "kl_low": 0.9 * kl, "kl_high": 1.1 * kl, "agreement": 0.7588, "drawn": True}
    return figures | {"checks": checks}


DENSE = ok("dense", None, measured(0, (19.9, 20.8, 21.7), [0.45, 0.71, 0.5, 0.6, 0.44], 80.0))


LACO = ok(
    "laco",
    0.3,
    measured(11 * PER_LAYER, (300.0, 343.4, 391.0), [0.3, 0.58, 0.49, 0.36, 0.3], 57.0),
    budget=11,
    prune_seconds=26.31,
    parameters={"sentences": 5, "tokens": 16},
    decisions={"removed_layers": [10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 23], "threshold": 0.84479},
)


SLICEGPT = ok(  # misses the budget by 0.8 % of the dense model
    "slicegpt",
    0.3,
    measured(11 * PER_LAYER - 1_076_120, (200.0, 210.0, 310.0), [0.31, 0.6, 0.51, 0.4, 0.31], 90.0),
    budget=11,
    prune_seconds=95.2,
    decisions={"d": 360, "width": 576},
)


HUGE = ok(  # a name from hell, a perplexity without measure, no task, tiny times
    "<script>alert(1)</script>|x",
    0.3,
    measured(11 * PER_LAYER, (2.9e8, 3.4e8, 4.0e8), [], 0.004),
    budget=11,
    prune_seconds=0.00123,
)


UNICODE = ok(
    "größe",
    0.1,
    checked(measured(4 * PER_LAYER, (11000.0, 12345.0, 13900.0), [0.0, 0.0004, 0.5, 1.0, 0.25], 70.0), 8.1234, 0.25),
    budget=4,
    prune_seconds=3700.0,
    parameters={"λ": "`a`", "note": "line\nbreak \x1b[31mred", "window": 4},
    given=("λ", "note", "window"),
)


FIXED = ok(
    "drop",
    None,
    measured(5 * PER_LAYER, (27.1, 29.6, 32.3), [0.41, 0.69, 0.5, 0.52, 0.4], 67.0),
    prune_seconds=0.4,
    parameters={"layers": "20-24"},
    given=("layers",),
    decisions={"removed_layers": [20, 21, 22, 23, 24]},
)


FAILED = [
    failed("unsupported", "flap", "model type 'gpt2' has no gated MLP; flap serves: llama, mistral, qwen2"),
    failed("out_of_memory", "llm-pruner", "CUDA out of memory. Tried to allocate 20.00 GiB"),
    failed(
        "error",
        "shortgpt",
        'KeyError: no | layer\nleft \x07over\nTraceback (most recent call last):\n  File "a.py", line 1, in f\n    g()',
    ),
]


RECIPE = Recipe(loss="kl").as_run()  # by which a cell was healed

RECORDS = [LACO, DENSE, SLICEGPT, HUGE, UNICODE, FIXED, *FAILED]


def mended(method: str, ratio: float, ppl: float, average: float, *, seconds: float = 4.5, **changes: Any) -> Record:
    """A method, or a method and a compensation, at the size of as many layers as the ratio asks for."""
    removed = {0.2: 8, 0.3: 11}[ratio]
    figures = measured(removed * PER_LAYER, (0.9 * ppl, ppl, 1.12 * ppl), [average] * 5, 57.0)
    return ok(method, ratio, checked(figures, ppl / 100, 0.5), budget=removed, prune_seconds=seconds, **changes)


MENDED = [
    DENSE,
    mended("shortgpt", 0.2, 84.4, 0.4),
    mended("shortgpt+replaceme", 0.2, 62.7, 0.41),
    mended("shortgpt", 0.3, 508.0, 0.36, seconds=1.25),
    mended("shortgpt+ghost", 0.3, 160.0, 0.38),
    mended("shortgpt+replaceme", 0.3, 105.2, 0.37),
    mended(
        "shortgpt+ghost",
        0.3,
        171.0,
        0.385,
        parameters={"token": "last", "ghost.ridge": 0.1},
        given=("token", "ghost.ridge"),
    ),
    mended("flap", 0.3, 130.0, 0.39),
    mended("flap+refit", 0.3, 110.0, 0.4),
    mended("laco-ls", 0.3, 81.9, 0.39),
    failed("unsupported", "flap+ghost", "the method removes heads and channels, nothing whole, so there is no cut"),
]


def changed(record: Record, *path: str, to: Any) -> Record:
    """A copy of the record with one of its plain values replaced."""
    new = copy.deepcopy(record.plain())
    place: Any = new
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = to_plain(to)
    return record_from_plain(new)


def with_cell(record: Record, **changes: Any) -> Record:
    """The record with other plain values of its cell."""
    plain = record.plain()
    return record_from_plain(plain | {"cell": plain["cell"] | to_plain(changes)})


def with_measured(record: Record, **changes: Any) -> Record:
    """The record with other plain values of what it measured; a field of None is absent."""
    plain = record.plain()
    values = plain["measured"] | to_plain(changes)
    return record_from_plain(plain | {"measured": {name: value for name, value in values.items() if value is not None}})


def drawn(seed: int, ppl: float, accuracy: float, given: tuple[str, ...] = (), *, timed: bool = True) -> Record:
    figures = measured(4 * PER_LAYER, (ppl - 1, ppl, ppl + 1), [accuracy] * 5, 20.0)
    if not timed:
        del figures["speed"]
    return ok("drop-random", 0.1, figures, parameters={"seed": seed, "draws": 3}, given=given)
