"""Measures how alike a model's layers are and what merging windows of them does: the motivation of layer collapse.

Yang, Cao, Zhao 2024, "LaCo: Large Language Model Pruning via Layer Collapse", EMNLP Findings, arXiv 2402.11187.

parameters  of each role (q, k, v, o, gate, up, down), for all pairs of layers: cosine and L2 distance of the matrices
            as vectors, without biases
states      of the residual stream in front of each layer and behind the last, for all pairs: cosine and L2 distance at
            a sequence's first and last token, and the mean over all its tokens; each is a mean over sequences
merges      a window of m neighbouring layers p .. p+m-1 becomes one layer, at every position p and by every rule of
            RULES: the cosine of the last normed state to the dense model's, flattened over the tokens of a window of
            text (as methods.depth.laco compares sentences), mean over windows; and nats per token of held-out text

Distances follow from inner products that are summed a few rows, or a few tokens, at a time, in float64, so that memory
holds one model and one micro-batch: |a - b|^2 = <a, a> + <b, b> - 2 <a, b>. A merged model runs only from layer p on,
on states that the dense model has left in front of it. That is exact, since the layers below have not changed. So
merges hold M W D numbers for each layer, and two more, beside the model.

Letters: L = layers, N = sequences, T = their tokens, D = residual width, M = windows of text, W = their tokens, B =
windows of a micro-batch, m = layers that become one, p = number of the first of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.data.texts import EvaluationText
from bench.plan.protocol import SimilarityProtocol
from bench.stats.clusters import ratio_interval
from bench.stats.intervals import mean_stderr
from methods.console import show_progress
from methods.depth import laco
from methods.errors import UserError
from methods.files import write_atomically
from methods.model.activations import Entry, enter
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.layer import Layer
from methods.model.structures import MatrixSlice, slices_of_attention, slices_of_mlp

SCHEMA = 1
TOKENS_AT_ONCE = 512  # in one forward of a merged model, and through its head
NUMBERS = 2**22  # of all layers' matrices that are multiplied at once: 32 MiB in float64
MEMORY = 2**28  # bytes of the states of one micro-batch
RULES = {
    "released": "matrices of the window's last layer, norms of its first (the authors' code)",
    "published": "the sum of differences, norms of the first (equation 1)",
    "mean": "the mean of the window's matrices, norms of the first",
    "deletion": "control: the last layer stays as it is, the others are deleted",
}

Matrix = list[list[float | None]]  # (L, L); None where two layers cannot be compared


def compare_layers(
    heading: dict[str, Any],
    model: Decoder,
    protocol: SimilarityProtocol,
    *,
    tokens: Calibration,
    held_out: EvaluationText,
    file: Path,
) -> dict[str, Any]:
    """Return the whole study. Each part is written to the JSON `file` at once, and a part that is in it is kept.

    heading (name, weights, dtype and environment of the model) comes first in it. Then: protocol; tokens {sequences,
    windows: sha256}; layers; rules; parameters; states; dense; merges, a list of {m, rule, positions}.
    Raises UserError where `file` holds another study.
    """
    study = heading | {
        "schema": SCHEMA,
        "layers": len(model.layers),
        "protocol": json.loads(json.dumps(asdict(protocol))),
        "tokens": {"sequences": tokens.sha256, "windows": held_out.sha256, "scored": held_out.tokens},
        "rules": RULES,
    }
    study |= _read_earlier_parts(file, study)

    def keep(**part: Any) -> None:
        study.update(part)
        write_atomically(file, json.dumps(study, indent=1, allow_nan=False) + "\n")

    if "parameters" not in study:
        keep(parameters=compare_parameters(model))
    if "states" not in study:
        keep(states=compare_states(model, tokens))
    todo = [(m, rule) for m in protocol.merge for rule in RULES]
    if todo:
        merges = Merges(model, held_out.ids, held_out.scored, drawn=held_out.drawn)
        keep(dense=merges.dense(), merges=study.get("merges", []))
        for m, rule in todo[len(study["merges"]) :]:
            keep(merges=[*study["merges"], {"m": m, "rule": rule, "positions": merges.curve(m, rule)}])
    return study


def _read_earlier_parts(file: Path, study: dict[str, Any]) -> dict[str, Any]:
    """Return what an earlier call has written to `file`, or {} where there is no file."""
    if not file.exists():
        return {}
    try:
        earlier: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}; name another folder with --out") from None
    for name in set(study) - {"environment"}:
        if earlier.get(name) != study[name]:
            raise UserError(f"{file} holds another study: its {name} differs; name another folder with --out")
    return {name: value for name, value in earlier.items() if name not in study}


def refuse_unless_alike(model: Decoder) -> None:
    """Raise UserError for a model whose layers cannot be compared or merged, since their shapes or bases differ."""
    for layer in model.layers:
        if layer.module is not layer.inner:
            raise UserError("each layer of a sliced model has a basis of its own; similarity compares unsliced models")
        if layer.lost:
            raise UserError("a layer has lost its attention or its MLP; similarity compares whole layers")
        if layer.experts is not None:
            raise UserError("a layer has a mixture of experts; similarity compares layers with a single MLP")
    shapes = [matrix.weight.shape for matrix in model.layers[0].matrices]
    for layer in model.layers:
        if [matrix.weight.shape for matrix in layer.matrices] != shapes:
            raise UserError("layers differ in width after pruning; similarity compares layers of one shape")


def matrices_by_role(layer: Layer) -> dict[str, MatrixSlice]:
    """Return the layer's matrices by role, each a part of a fused matrix where the architecture fuses them."""
    attention = zip(("q", "k", "v", "o"), slices_of_attention(layer), strict=True)
    mlp = slices_of_mlp(layer)
    return dict(attention) | dict(zip(("gate", "up", "down")[-len(mlp) :], mlp, strict=True))


@torch.no_grad()
def compare_parameters(model: Decoder) -> dict[str, dict[str, Any]]:
    """Return the distances of the matrices of all layers: {role: {cosine, l2: (L, L), norm: (L,)}}."""
    parts = [matrices_by_role(layer) for layer in model.layers]
    comparison_by_role = {}
    for role in parts[0]:
        G = products_of_matrices([part[role] for part in parts])
        cosine, l2 = distances_of_products(G)
        comparison_by_role[role] = {
            "cosine": to_plain(cosine),
            "l2": to_plain(l2),
            "norm": to_plain(G.diagonal().sqrt()),
        }
    return comparison_by_role


def products_of_matrices(parts: Sequence[MatrixSlice]) -> Tensor:
    """Return the (L, L) inner products of the layers' matrices, in float64."""
    weights = [part.matrix.weight for part in parts]
    device, columns = weights[0].device, weights[0].shape[1]
    every = torch.arange(weights[0].shape[0])
    rows = [(part.index.flatten() if part.axis == 0 else every).to(device) for part in parts]
    G = torch.zeros(len(parts), len(parts), dtype=torch.float64, device=device)
    step = max(1, NUMBERS // (len(parts) * columns))
    for start in range(0, len(rows[0]), step):
        pairs = zip(weights, rows, strict=True)
        piece = torch.stack([weight[index[start : start + step]].flatten() for weight, index in pairs]).double()
        G.addmm_(piece, piece.T)
    return G


def distances_of_products(G: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosine and L2 distance, (..., L, L) each, of (..., L, L) inner products."""
    square = G.diagonal(dim1=-2, dim2=-1)
    norm = square.sqrt()
    cosine = G / (norm[..., :, None] * norm[..., None, :])
    return cosine, (square[..., :, None] + square[..., None, :] - 2 * G).clamp_min(0).sqrt()


@torch.no_grad()
def compare_states(model: Decoder, tokens: Calibration) -> dict[str, dict[str, Matrix]]:
    """Return distances of the states in front of each layer and behind the last.

    {first, last, mean: {cosine, l2: (L+1, L+1)}}
    """
    layers, places = model.layers, len(model.layers) + 1
    sums = {position: torch.zeros(2, places, places, dtype=torch.float64) for position in ("first", "last", "mean")}
    for ids, _ in tokens.batches(places * (3 * model.embed.embedding_dim + 4 * places), torch.float32):
        entry = enter(model, ids)
        stack = [entry.x]
        for layer in layers:
            stack.append(entry.run([layer], stack[-1]))
        X = torch.stack(stack, dim=2).double()  # (N, T, L + 1, D)
        both = torch.stack(distances_of_products(X @ X.transpose(-1, -2))).cpu()  # (2, N, T, L + 1, L + 1)
        for position, chosen in (("first", both[:, :, 0]), ("last", both[:, :, -1]), ("mean", both.mean(2))):
            sums[position] += chosen.sum(1)
    means = {position: total / len(tokens.ids) for position, total in sums.items()}
    return {position: {"cosine": to_plain(mean[0]), "l2": to_plain(mean[1])} for position, mean in means.items()}


def to_plain(values: Tensor) -> Any:
    """Return a tensor as nested lists of floats of six digits, with None for each number that is not finite."""
    if values.ndim:
        return [to_plain(value) for value in values]
    return float(f"{float(values):.6g}") if bool(values.isfinite()) else None


@torch.no_grad()
def merge_layers(window: list[Layer], rule: str) -> Layer:
    """Return the one layer that `window` becomes by one of RULES; the window itself does not change."""
    if rule == "deletion":
        return window[-1]
    if rule != "mean":
        return laco.merge(window, {"released": "last", "published": "sum"}[rule], "base")
    survivor = window[0].copy_sharing_matrices()
    for slot, matrix in enumerate(survivor.matrices):
        total = torch.stack([layer.matrices[slot].weight.float() for layer in window]).mean(0)
        matrix.weight = nn.Parameter(total.to(matrix.weight.dtype))
    return survivor


@dataclass(frozen=True)
class _DenseStates:
    """Holds a few windows of text in the dense model: the states in front of each layer, and the last one, normed."""

    entry: Entry
    targets: Tensor  # (B, W - 1)
    scored: Tensor  # (B, W - 1) true where the target counts
    states: list[Tensor]  # (B, W, D) each
    final: Tensor  # (B, W, D)


class Merges:
    """Measures a model on held-out windows of text, dense and with a window of its layers merged.

    `ids` and `scored` are (M, W), and `drawn` is whether they are drawn, as in bench.data.texts.EvaluationText.
    """

    @torch.no_grad()
    def __init__(self, model: Decoder, ids: Tensor, scored: Tensor, *, drawn: bool = False) -> None:
        self.model, self.layers, self.drawn, self.batches = model, model.layers, drawn, []
        rows = max(1, TOKENS_AT_ONCE // ids.shape[1])
        for part, scored_part in zip(torch.split(ids, rows), torch.split(scored, rows), strict=True):
            entry = enter(model, part)
            states = [entry.x]
            for layer in self.layers:
                states.append(entry.run([layer], states[-1]))
            on = entry.x.device
            final = model.normed(states[-1])
            self.batches.append(_DenseStates(entry, part[:, 1:].to(on), scored_part[:, 1:].to(on), states, final))

    def dense(self) -> dict[str, Any]:
        """Return the dense model's figures, by the names of `at`."""
        return self._figures([], len(self.layers))

    def curve(self, m: int, rule: str) -> list[dict[str, Any]]:
        """Return the figures of `at` for every position, in rising order."""
        positions = range(len(self.layers) - m + 1)
        return [self.at(p, m, rule) for p in show_progress(positions, f"{m} layers by {rule}", "merge")]

    def at(self, p: int, m: int, rule: str) -> dict[str, Any]:
        """Merge the layers p .. p+m-1 by `rule` and return the figures of the model.

        position; cosine and cosine_stderr over windows; nll, nll_low, nll_high (95 %), nats per token. A figure that is
        no finite number, and with a single window its interval, is None.
        """
        window = self.layers[p : p + m]
        return {"position": p} | self._figures([merge_layers(window, rule), *self.layers[p + m :]], p)

    @torch.no_grad()
    def _figures(self, layers: list[Layer], p: int) -> dict[str, Any]:
        cosines, sums, counts = [], [], []
        for batch in self.batches:
            x = batch.entry.run(layers, batch.states[p])
            a, b = (state.float().flatten(1) for state in (self.model.normed(x), batch.final))
            cosines += nn.functional.cosine_similarity(a, b, dim=1, eps=1e-12).tolist()
            sums += self._nll(x[:, :-1], batch).tolist()
            counts += batch.scored.sum(1).tolist()
        cosine, stderr = mean_stderr(cosines)
        low, high = ratio_interval(sums, counts, in_a_row=not self.drawn) if len(sums) > 1 else (None, None)
        figures = {"cosine": cosine, "cosine_stderr": stderr, "nll": sum(sums) / sum(counts)}
        return {
            name: None if value is None else to_plain(torch.tensor(value, dtype=torch.float64))
            for name, value in (figures | {"nll_low": low, "nll_high": high}).items()
        }

    def _nll(self, x: Tensor, batch: _DenseStates) -> Tensor:
        """Sum the nats of each window's scored tokens: (B, W - 1, D) -> float64 (B,)."""
        places = batch.scored.flatten().nonzero()[:, 0]
        states, targets = x.flatten(0, 1)[places], batch.targets.flatten()[places]
        losses = []
        parts = zip(torch.split(states, TOKENS_AT_ONCE), torch.split(targets, TOKENS_AT_ONCE), strict=True)
        for part, successors in parts:
            losses.append(nn.functional.cross_entropy(self.model.logits(part).float(), successors, reduction="none"))
        nll = torch.cat(losses)
        rows = places // batch.targets.shape[1]
        total = torch.zeros(len(batch.targets), dtype=torch.float64, device=nll.device)
        return total.index_add_(0, rows, nll.double())
