"""The run folder of every method at three ratios, made up: records and samples as large as a real run writes them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from test_reports import LAYERS, PER_LAYER, TASKS, checked, measured, ok

from bench.record import Record, save

LAYERS_OF = {0.1: 4, 0.2: 8, 0.3: 11}  # of the budget at each ratio
WHOLE = ("shortgpt", "angular", "magnitude", "shortened-llama", "shortened-llama-taylor", "sleb", "drop-tail")
BLOCKS = ("blockpruner", "finercut", "llm-drop")
WIDTHS = ("llm-pruner", "flap", "wanda-sp", "minitron-width", "2ssp")
MERGERS = ("laco", "laco-published", "laco-ls")
METHODS = (*MERGERS, *WIDTHS, "slicegpt", *WHOLE, *BLOCKS, "drop-random")
DRAWS, DOCUMENTS, WINDOWS, TOKENS = 5, 100, 16, 511
CHANNELS, KV_HEADS, WIDTH = 1536, 3, 576


def write(run: Path) -> None:
    """Write every cell of `run`: the dense model, 19 methods at three ratios, and five draws of random layers."""
    rng = np.random.default_rng(0)
    base = {"nll": rng.normal(3.1 * TOKENS, 120, WINDOWS)} | {task: rng.uniform(size=DOCUMENTS) for task in TASKS}
    _cell(run, "dense--fixed", "dense", None, base, 0.0, {}, rng)
    for ratio, layers in LAYERS_OF.items():
        for place, method in enumerate(METHODS):
            for draw in range(DRAWS if method == "drop-random" else 1):
                drawn = {"seed": draw, "draws": DRAWS} if method == "drop-random" else {}
                harm = ratio * (1 + place / 8) + 0.05 * draw
                _cell(run, f"{method}--{ratio}--{draw}", method, ratio, base, harm, drawn, rng, layers)


def _cell(
    run: Path,
    key: str,
    method: str,
    ratio: float | None,
    base: Mapping[str, np.ndarray],
    harm: float,
    parameters: dict[str, Any],
    rng: np.random.Generator,
    layers: int = 0,
) -> None:
    """One record whose figures follow from its samples; `harm` is about how many nats a token it loses, times ten."""
    nll = base["nll"] + 10 * harm * TOKENS * rng.normal(1, 0.05, WINDOWS)
    right = {task: (base[task] + rng.normal(0, 0.1, DOCUMENTS) < 0.6 - 0.3 * harm).astype(float) for task in TASKS}
    folder = run / "samples" / key
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({"nll": nll, "tokens": TOKENS}).to_parquet(folder / "perplexity-wiki.parquet")
    for task, answers in right.items():
        hashes = [hashlib.sha256(f"{task} {number}".encode()).hexdigest() for number in range(DOCUMENTS)]
        table = {"doc_id": range(DOCUMENTS), "doc_hash": hashes, "prompt_hash": hashes, "target_hash": hashes}
        table |= {"lengths": [[5, 7, 9, 11]] * DOCUMENTS, "logs": rng.normal(-30, 5, (DOCUMENTS, 4)).tolist()}
        pd.DataFrame(table | {"acc": answers, "acc_norm": answers}).to_parquet(folder / f"{task}.parquet")
    spread = math.exp(2.1 * nll.std(ddof=1) / math.sqrt(WINDOWS) / TOKENS)
    ppl = math.exp(nll.sum() / (TOKENS * WINDOWS))
    ms = 80.0 * (1 - (ratio or 0.0))
    figures = measured(layers * PER_LAYER, (ppl / spread, ppl, ppl * spread), [a.mean() for a in right.values()], ms)
    for point in figures["speed"]["points"]:
        point["rounds"] = {
            side: (point[f"{side}_ms"] * rng.normal(1, 0.02, (12, 4))).round(4).tolist() for side in ("dense", "pruned")
        }
    figures = checked(figures, None if method == "dense" else 5 * harm, 1.0)
    decided = {"calibration": {"source": "c4", "seed": 0, "shape": [16, 256], "sha256": "c" * 64}}
    if method == "dense":
        record = ok("dense", None, figures, decisions=decided)
    else:
        decided |= _decided(method, layers, rng)
        record = ok(
            method, ratio, figures, budget=layers, prune_seconds=30 * harm, parameters=parameters, decisions=decided
        )
    save(_plain(record), run / "cells" / f"{key}.json")


def _plain(record: Record) -> Record:
    return replace(record, cell=record.cell | {"label": record.cell["method"]})


def _decided(method: str, layers: int, rng: np.random.Generator) -> dict[str, Any]:
    """What a method of its kind decides."""
    if method == "slicegpt":
        return {"d": WIDTH - 12 * layers, "width": WIDTH}
    if method in WIDTHS:
        heads, channels = layers // 6, CHANNELS * layers // LAYERS
        return {
            "kv_heads": [KV_HEADS - heads] * LAYERS,
            "channels": [CHANNELS - channels] * LAYERS,
            "removed_kv_heads": [sorted(rng.permutation(KV_HEADS)[:heads].tolist()) for _ in range(LAYERS)],
            "removed_channels": [sorted(rng.permutation(CHANNELS)[:channels].tolist()) for _ in range(LAYERS)],
        }
    if method in BLOCKS:
        gone = [sorted(rng.permutation(LAYERS)[:layers].tolist()) for _ in range(2)]
        return {"removed_attention": gone[0], "removed_mlp": gone[1]}
    gone = sorted(rng.permutation(LAYERS)[:layers].tolist())
    if method in MERGERS:
        steps = [
            {"pointer": n, "layers": LAYERS, "merged": 3, "similarity": rng.uniform(0.5, 0.9), "accepted": n % 7 == 3}
            for n in range(25, 1, -1)
        ]
        return {"removed_layers": gone, "threshold": 0.85, "trace": steps}
    return {"removed_layers": gone}
