"""Checks whether a saved model is what its folder says, one check after the other, each with what was found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from methods.checkpoint import save_load, weight_files
from methods.checkpoint.transformers_compat import logits
from methods.errors import CheckpointError
from methods.model.decoder import Decoder
from methods.model.sizes import parameters

CACHED = 1e-4  # share of the largest logit by which generation with and without a cache may differ, in float32


@dataclass(frozen=True)
class Check:
    """Is one line of `verify`."""

    name: str
    passed: bool
    found: str

    def __str__(self) -> str:
        return f"{'ok    ' if self.passed else 'FAILED'} {self.name}: {self.found}"


def verify(folder: Path) -> Iterator[Check]:
    """Yield the checks of a folder that `save` wrote; they end early where no model can be made of it.

    Raises CheckpointError for a folder without a readable manifest.
    """
    manifest = save_load.read_manifest(folder)
    weights = manifest["weights"]
    yield _check(
        "files",
        lambda: weight_files.check(folder, weights),
        f"{len(weights)} with the sizes and hashes of the manifest",
    )
    shape = _check("shapes", lambda: save_load.check_config(folder, manifest), "config.json and the weights agree")
    yield shape
    if not shape.passed:
        return
    yield _loads_as_said(folder, manifest)
    try:
        model = save_load.load(folder, dtype=torch.float32, check_hashes=False)
    except CheckpointError as error:
        yield Check("loading", False, str(error))
        return
    count = parameters(model)
    said = manifest["parameters"]
    yield Check(
        "parameters", count == said, f"{count:,}" if count == said else f"{count:,}, and the card says {said:,}"
    )
    yield from _computes(model)


def _check(name: str, look: Any, found: str) -> Check:
    try:
        look()
    except CheckpointError as error:
        return Check(name, False, str(error))
    return Check(name, True, found)


def _loads_as_said(folder: Path, manifest: dict[str, Any]) -> Check:
    own = save_load.check_config(folder, manifest).model_type == "prunebench"
    kind = "prunebench" if own else "transformers"
    said = manifest["loads_with"]
    found = f"with {kind}" if kind == said else f"with {kind}, and the card says {said}"
    return Check("loads", kind == said, found)


@torch.no_grad()
def _computes(model: Decoder) -> Iterator[Check]:
    ids = save_load.default_probe(model)
    whole = logits(model, ids)
    finite = bool(whole.isfinite().all())
    yield Check("logits", finite, f"finite on {ids.numel()} tokens" if finite else "not finite")
    if not finite:
        return
    half = ids.shape[1] // 2
    out = model.model(ids[:, :half], use_cache=True)
    steps = [out.logits]
    for position in range(half, ids.shape[1]):
        out = model.model(ids[:, position : position + 1], cache=out.cache, use_cache=True)
        steps.append(out.logits)
    off = float((torch.cat(steps, 1) - whole).abs().max() / whole.abs().max())
    yield Check("cache", off <= CACHED, f"cached and uncached logits differ by {off:.1g} of the largest")
