"""The run folder of every method at three ratios, made up: records and samples as large as a real run writes them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from made_records import LAYERS, PER_LAYER, TASKS, checked, measured, ok

from bench.records.record import Record, save

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
    _save(run, "dense--fixed", ok("dense", None, _measured(run / "samples" / "dense--fixed", base, 0.0, 0, rng)))
    for ratio, layers in LAYERS_OF.items():
        for place, method in enumerate(METHODS):
            for draw in range(DRAWS if method == "drop-random" else 1):
                key, harm = f"{method}--{ratio}--{draw}", ratio * (1 + place / 8) + 0.05 * draw
                parameters = {"seed": draw, "draws": DRAWS} if method == "drop-random" else {}
                figures = _measured(run / "samples" / key, base, harm, layers, rng)
                if draw:
                    del figures["speed"]  # of the first draw alone
                decided = {"decisions": _decided(method, layers, rng), "prune_seconds": 30 * harm}
                _save(run, key, ok(method, ratio, figures, budget=layers, parameters=parameters, **decided))


def _save(run: Path, key: str, record: Record) -> None:
    save(record, run / "cells" / f"{key}.json")


def _measured(
    folder: Path, base: Mapping[str, np.ndarray], harm: float, layers: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Figures that follow from the samples written to `folder`; `harm` is a tenth of the nats lost per token."""
    folder.mkdir(parents=True, exist_ok=True)
    nll = base["nll"] + 10 * harm * TOKENS * rng.normal(1, 0.05, WINDOWS)
    pd.DataFrame({"nll": nll, "tokens": TOKENS}).to_parquet(folder / "perplexity-wiki.parquet")
    shares = []
    for task in TASKS:
        answers = (base[task] + rng.normal(0, 0.1, DOCUMENTS) < 0.6 - 0.3 * harm).astype(float)
        hashes = [hashlib.sha256(f"{task} {number}".encode()).hexdigest() for number in range(DOCUMENTS)]
        table = {"doc_id": range(DOCUMENTS), "doc_hash": hashes, "prompt_hash": hashes, "target_hash": hashes}
        table |= {"lengths": [[5, 7, 9, 11]] * DOCUMENTS, "logs": rng.normal(-30, 5, (DOCUMENTS, 4)).tolist()}
        pd.DataFrame(table | {"acc": answers, "acc_norm": answers}).to_parquet(folder / f"{task}.parquet")
        shares.append(float(answers.mean()))
    spread = math.exp(2.1 * nll.std(ddof=1) / math.sqrt(WINDOWS) / TOKENS)
    ppl, removed = math.exp(nll.sum() / (TOKENS * WINDOWS)), layers * PER_LAYER
    figures = measured(removed, (ppl / spread, ppl, ppl * spread), shares, 80.0 * (1 - layers / LAYERS))
    for task in figures["tasks"].values():
        task["metrics"]["acc"] = task["metrics"][task["main"]]  # both columns of the samples are the same
    for point in figures["speed"]["points"]:
        point["rounds"] = {
            side: (point[f"{side}_ms"] * rng.normal(1, 0.02, (12, 4))).round(4).tolist() for side in ("dense", "pruned")
        }
    return checked(figures, 5 * harm if layers else None, 1.0)


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
