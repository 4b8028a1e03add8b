"""Served records made by hand, with the figures that a test wants."""

from __future__ import annotations

import numpy as np

from bench.records.served import ServedRecord

M, W = 20, 33


def nats(times: float = 1.0, seed: int = 0) -> list[float]:
    """Nats of each window, of a model with `times` the perplexity, about."""
    draws = np.random.default_rng(seed).normal(3.0 + np.log(times), 0.1, M)
    return (draws * (W - 1)).tolist()


def point(kind="decode", ms=10.0, batch=1, size=128, **more):
    of = {"length" if kind == "prefill" else "context": size}
    speedup = {"speedup": 20 / ms, "speedup_low": 19 / ms, "speedup_high": 21 / ms, "flags": []}
    return (
        {"kind": kind, "batch": batch, "pruned_ms": ms, "speedup_by_macs": 1.5, "speedup_by_bytes": 1.25}
        | of
        | speedup
        | more
    )


def record(
    label="dense", kind="bfloat16", *, points=(), sha256="s", status="ok", error=None, **figures
) -> ServedRecord:
    nll = figures.pop("nll", nats())
    mean = float(np.exp(np.sum(nll) / (M * (W - 1))))
    text = {"text": "wiki", "sha256": sha256, "windows": M, "window": W, "tokens": M * (W - 1)}
    text |= {"drawn": True, "nll": nll, "perplexity": mean, "perplexity_low": 0.9 * mean, "perplexity_high": 1.1 * mean}
    memory = [
        {"kind": one["kind"], "batch": one["batch"], "context": 128, "length": 128, "resident_bytes": 3 * 2**20}
        for one in points
    ]
    measured = {"bytes": figures.pop("bytes", 10**6), "perplexity": text, "points": list(points)}
    measured |= {"memory": {"resident_before_bytes": 2**20, "points": memory}}
    asked = {"engine": "llama.cpp", "version": "1", "threads": 2, "text": "wiki", "windows": M, "window": W}
    method = label.partition("+")[0]
    return ServedRecord(
        key=f"{label}--0.2",
        type=kind,
        base="bfloat16",
        protocol=asked | {"rounds": 12, "steps": 16},
        model={
            "name": "Model",
            "label": label,
            "method": method,
            "requested_ratio": None if method == "dense" else 0.2,
            "ratio_of": "all",
            "ratio": 0.0 if method == "dense" else 0.21,
            "parameters": 1,
            "pruned_sha256": "p",
        },
        status=status,
        error=error,
        environment={},
        measured={} if status == "unsupported" else measured,
    )
