"""How alike a model's layers are, and what merging some of them does: the figures that layer collapse is motivated by.

Yang, Cao, Zhao 2024, "LaCo: Large Language Model Pruning via Layer Collapse", EMNLP Findings, arXiv 2402.11187.

parameters  of each role (q, k, v, o, gate, up, down), for all pairs of layers: cosine and L2 distance of the matrices
            as vectors, biases left out
states      of the residual stream in front of each layer and behind the last, for all pairs: cosine and L2 distance at
            a sequence's first and last token, and the mean over all its tokens; each the mean over sequences
merges      a window of neighbouring layers becomes one, at every position and by every rule, see bench.merges

Both kinds of distance follow from inner products that are summed a few rows, or a few tokens, at a time, in float64, so
that memory stays one model and one micro-batch: |a - b|^2 = <a, a> + <b, b> - 2 <a, b>.

Letters: L = layers, N = sequences, T = their tokens, D = residual width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.data import EvaluationText
from bench.errors import UserError
from bench.merges import RULES, Merges, plain
from bench.record import write_atomically
from methods.anatomy import Decoder, Layer
from methods.pruner import Calibration
from methods.signals import enter
from methods.surgery import Part, attention_parts, mlp_parts

NUMBERS = 2**22  # of all layers' matrices that are multiplied at once: 32 MiB in float64
MEMORY = 2**28  # bytes of one micro-batch's states

SCHEMA = 1

Matrix = list[list[float | None]]  # (L, L); None where two layers cannot be compared


@dataclass(frozen=True)
class Protocol:
    """What a study looks at; sizes are in tokens.

    `sequences` of `length` of `text` for the states, `windows` of `window` of `held_out` for merges. merge holds the
    numbers of layers m that become one; empty leaves merging out.
    """

    text: str = "c4"
    sequences: int = 16
    length: int = 128
    merge: tuple[int, ...] = (2, 3, 4)
    held_out: str = "wiki"
    windows: int = 8
    window: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("sequences", "length", "windows"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is a positive number; got {getattr(self, name)}")
        if self.window < 2:
            raise UserError(f"a window has two tokens or more, since the first is not predicted; got {self.window}")
        if any(m < 2 for m in self.merge):
            raise UserError(f"merge is a list of numbers of layers, 2 or more, or none; got {min(self.merge)}")


def study(
    heading: dict[str, Any],
    model: Decoder,
    protocol: Protocol,
    *,
    tokens: Calibration,
    held_out: EvaluationText,
    file: Path,
) -> dict[str, Any]:
    """Everything, written to the JSON `file` as soon as a part of it is there; what is there already is kept.

    heading (name, weights, dtype and environment of the model) comes first in it. Then: protocol; tokens {sequences,
    windows: sha256}; layers; rules; parameters; states; dense; merges, a list of {m, rule, positions}.
    Raises UserError where `file` holds another study.
    """
    found = heading | {
        "schema": SCHEMA,
        "layers": len(model.layers),
        "protocol": json.loads(json.dumps(asdict(protocol))),
        "tokens": {"sequences": tokens.sha256, "windows": held_out.sha256, "scored": held_out.tokens},
        "rules": RULES,
    }
    found |= _begun(file, found)

    def keep(**part: Any) -> None:
        found.update(part)
        write_atomically(file, json.dumps(found, indent=1, allow_nan=False) + "\n")

    if "parameters" not in found:
        keep(parameters=parameters(model))
    if "states" not in found:
        keep(states=states(model, tokens))
    todo = [(m, rule) for m in protocol.merge for rule in RULES]
    if todo:
        merges = Merges(model, held_out.ids, held_out.scored)
        keep(dense=merges.dense(), merges=found.get("merges", []))
        for m, rule in todo[len(found["merges"]) :]:
            keep(merges=[*found["merges"], {"m": m, "rule": rule, "positions": merges.curve(m, rule)}])
    return found


def _begun(file: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """What an earlier call has found, if `file` is there."""
    if not file.exists():
        return {}
    try:
        earlier: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}; name another folder with --out") from None
    for name in set(wanted) - {"environment"}:
        if earlier.get(name) != wanted[name]:
            raise UserError(f"{file} holds another study: its {name} differs; name another folder with --out")
    return {name: value for name, value in earlier.items() if name not in wanted}


def refuse_unless_alike(model: Decoder) -> None:
    """Raise UserError for a model whose layers cannot be compared or merged, since their shapes or bases differ."""
    for layer in model.layers:
        if layer.module is not layer.inner:
            raise UserError("each layer of a sliced model has a basis of its own; similarity compares unsliced models")
        if not (layer.has_attention and layer.has_mlp):
            raise UserError("a layer has lost its attention or its MLP; similarity compares whole layers")
    shapes = {tuple(tuple(matrix.weight.shape) for matrix in layer.matrices) for layer in model.layers}
    if len(shapes) > 1:
        raise UserError("layers differ in width after pruning; similarity compares layers of one shape")


def roles(layer: Layer) -> dict[str, Part]:
    """The layer's matrices by role, each a part of a fused matrix where the family fuses them."""
    attention = zip(("q", "k", "v", "o"), attention_parts(layer), strict=True)
    mlp = mlp_parts(layer)
    return dict(attention) | dict(zip(("gate", "up", "down")[-len(mlp) :], mlp, strict=True))


@torch.no_grad()
def parameters(model: Decoder) -> dict[str, dict[str, Any]]:
    """{role: {cosine, l2: (L, L), norm: (L,)}} of the matrices."""
    parts = [roles(layer) for layer in model.layers]
    found = {}
    for role in parts[0]:
        G = gram([part[role] for part in parts])
        cosine, l2 = distances(G)
        found[role] = {"cosine": plain(cosine), "l2": plain(l2), "norm": plain(G.diagonal().sqrt())}
    return found


def gram(parts: Sequence[Part]) -> Tensor:
    """(L, L) inner products of the layers' matrices, in float64; a few rows of all of them at a time."""
    weights = [part.matrix.weight for part in parts]
    device, columns = weights[0].device, weights[0].shape[1]
    every = torch.arange(weights[0].shape[0])
    rows = [(part.index.flatten() if part.axis == 0 else every).to(device) for part in parts]
    G = torch.zeros(len(parts), len(parts), dtype=torch.float64, device=device)
    step = max(1, NUMBERS // (len(parts) * columns))
    for start in range(0, len(rows[0]), step):
        some = zip(weights, rows, strict=True)
        piece = torch.stack([weight[index[start : start + step]].flatten() for weight, index in some]).double()
        G.addmm_(piece, piece.T)
    return G


def distances(G: Tensor) -> tuple[Tensor, Tensor]:
    """(..., L, L) inner products -> cosine and L2 distance, (..., L, L) each."""
    square = G.diagonal(dim1=-2, dim2=-1)
    norm = square.sqrt()
    cosine = G / (norm[..., :, None] * norm[..., None, :])
    return cosine, (square[..., :, None] + square[..., None, :] - 2 * G).clamp_min(0).sqrt()


@torch.no_grad()
def states(model: Decoder, tokens: Calibration) -> dict[str, dict[str, Matrix]]:
    """{first, last, mean: {cosine, l2: (L + 1, L + 1)}} of the states in front of each layer and behind the last."""
    layers, places = model.layers, len(model.layers) + 1
    sums = {position: torch.zeros(2, places, places, dtype=torch.float64) for position in ("first", "last", "mean")}
    for ids, _ in tokens.batches(places * (3 * model.embed.embedding_dim + 4 * places)):
        entry = enter(model, ids)
        stack = [entry.x]
        for layer in layers:
            stack.append(entry.run([layer], stack[-1]))
        X = torch.stack(stack, dim=2).double()  # (N, T, L + 1, D)
        both = torch.stack(distances(X @ X.transpose(-1, -2))).cpu()  # (2, N, T, L + 1, L + 1)
        for position, chosen in (("first", both[:, :, 0]), ("last", both[:, :, -1]), ("mean", both.mean(2))):
            sums[position] += chosen.sum(1)
    means = {position: total / len(tokens.ids) for position, total in sums.items()}
    return {position: {"cosine": plain(mean[0]), "l2": plain(mean[1])} for position, mean in means.items()}
