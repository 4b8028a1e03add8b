"""Fit the output matrices that have lost heads or channels to the dense model's outputs: refit.

Putri 2026, "Prune, Update and Trim: Robust Structured Pruning for Large Language Models", does so for the MLPs of its
own method. Code: Coello-dev/Putri. The reconstruction itself is that of layer-wise pruning, of which Kurtic, Frantar,
Alistarh 2023, "ZipLM: Inference-Aware Structured Pruning of Language Models", NeurIPS, arXiv 2302.04089, is one.

In a layer that is fed x by the pruned model, S (tokens, C) is what enters the output matrix W_K that is left and Y what
the dense layer's own output matrix would give for the same x. Then

    W = argmin ||S W^T + b - Y||^2  +  penalty of the distance from W_K

Layers are taken in order, each fed by those before it as they have been refitted; in each the attention first. With
`intercept` the matrix gets a bias b that is fitted as well, and counted; otherwise it keeps the bias that it has.

D = residual width, C = channels that are left. The penalty is that of methods/least_squares.py. Attention sinks, tokens
for which a block gives something of huge norm, weigh as a population of their own (methods/least_squares.py).

Families. Methods that cut heads or channels: flap, wanda-sp, llm-pruner, 2ssp, minitron-width, obs, puzzle, tyr. A
layer that has taken over the work of others is set beside no dense layer, and is not served where it has been narrowed;
laco-puzzle refits such layers by itself.

Cost. About three forward passes over the calibration text and two Cholesky solves for each cut matrix, one of them to
judge the fit by sequences that it has not seen. The dense layers wait in the host's memory; one at a time is on a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import Holds, Look, Positive, Tokens
from methods.compensation.base import Compensation, Pruning, register_compensation
from methods.console import show_progress
from methods.errors import Unsupported
from methods.least_squares import Rows, Sinks, errors_of_fit, find_sinks, fit
from methods.model.activations import collect_inputs, enter_all, values_of_a_step
from methods.model.calibration import Calibration, Wait
from methods.model.layer import Layer
from methods.model.structures import HEADS_AND_CHANNELS

WIDTHS = {f"removed_{kind}" for kind in HEADS_AND_CHANNELS}  # in the decisions of methods that cut them
Run = Callable[[Layer, Tensor, dict[str, Any]], Tensor]


@register_compensation("refit")
@dataclass(frozen=True)
class Refit(Compensation):
    """Output matrices that have lost heads or channels are fitted anew by least squares."""

    ridge: Positive = 1.0  # penalty of each channel's distance from its weights, as a share of its energy
    intercept: bool = False  # fit a bias as well, which counts as added
    sinks: Sinks = "apart"  # attention sinks weigh as a population of their own, or alike, as all other tokens
    tokens: Tokens | None = None  # calibration tokens that are read; None: all

    by_layer = True
    needs_one_mlp = True
    not_behind = ("laco-puzzle",)
    forwards = 3.53
    holds = Holds(states=12, squares=1.5, steps=0.5)
    paper_reads = "1,000 documents of C4 in sequences of 2,048 tokens"  # main.py, src/datasets.py
    look = Look("solid", "^", "green")
    follows = "flap"

    @property
    def uneven_because(self) -> str:
        """Return the reason where intercepts become biases."""
        return "refit:intercept adds biases" if self.intercept else ""

    def parameters_added(self, pruning: Pruning) -> int:
        """Return the parameters of the intercepts. Raises Unsupported for a collapsed layer that is narrowed."""
        collapsed = {first: last for first, last in pruning.windows}
        for number, pair in zip(pruning.kept, pairs_of_layers(pruning), strict=True):
            if number in collapsed and find_narrowed(*pair):
                raise Unsupported(
                    f"layer {number} does the work of layers {number} to {collapsed[number]}, and no dense layer gives "
                    "what it should once it is narrowed"
                )
        cut = [matrix for pair in pairs_of_layers(pruning) for matrix in find_narrowed(*pair).values()]
        if not cut and WIDTHS.isdisjoint(pruning.removed):  # else it could have removed some, and did not here
            raise Unsupported("the method removes no head and no channel; the other compensations serve it")
        return sum(matrix.out_features for matrix in cut if self.intercept and matrix.bias is None)

    @torch.no_grad()
    def repair(self, pruning: Pruning, calibration: Calibration) -> dict[str, Any]:
        """Fit the matrices that write what narrowed units gave, layer by layer, and return which."""
        widths = []
        for pair in pairs_of_layers(pruning):
            widths.append([matrix.in_features for matrix in find_narrowed(*pair).values()])
        if not any(widths):
            return {"refitted": [], "tokens": 0}
        read = calibration.first(self.tokens)
        entries, masks = enter_all(pruning.dense, read, values_of_a_step(pruning.dense))
        where = [mask.to(entries[0].x.device) for mask in masks]
        log = read.log([entry.x for entry in entries], "refit", self, pruning.kept, widths, pruning.removed)
        kept_fits, x, report = log.kept(), log.take(), list[dict[str, Any]]()
        arguments = [entry.arguments for entry in entries]
        del entries  # with the first layer's input
        for number, (whole, layer) in enumerate(show_progress(pairs_of_layers(pruning), "refitting", "layer")):
            given, cut = [each[layer.kind] for each in arguments], find_narrowed(whole, layer)
            if number + 1 < len(pruning.kept):
                pruning.dense.read_ahead(pruning.kept[number + 1])
                pruning.pruned.read_ahead(number + 1)
            x, where = [state.to(layer.device) for state in x], [mask.to(layer.device) for mask in where]
            with whole.visiting(), layer.visiting():
                if number < log.done:
                    fits = self.put_back(cut, next(kept_fits))
                else:
                    x, fits = self.refit_layer(whole, layer, cut, list(zip(x, given, where, strict=True)), read.wait)
                    log.add([*parameters_of_matrices(cut), to_bytes(fits)], x)
            report += [{"layer": number} | entry for entry in fits]
            layer.settle()
        return {"refitted": report, "tokens": int(read.mask.sum())}

    def put_back(self, cut: dict[str, nn.Linear], weights: list[Tensor]) -> list[dict[str, Any]]:
        """Put back the weights that an interrupted attempt fitted, and return its report of the fits."""
        *fitted, encoded = weights
        values = iter(fitted)
        for matrix in cut.values():
            like = matrix.weight
            matrix.weight = nn.Parameter(next(values).to(like.device), like.requires_grad)
            if self.intercept or matrix.bias is not None:
                matrix.bias = nn.Parameter(next(values).to(like.device), like.requires_grad)
        report: list[dict[str, Any]] = json.loads(bytes(encoded.tolist()))
        return report

    def refit_layer(
        self,
        whole: Layer,
        layer: Layer,
        cut: dict[str, nn.Linear],
        batches: list[tuple[Tensor, Any, Tensor]],
        wait: Wait,
    ) -> tuple[list[Tensor], list[dict[str, Any]]]:
        """Refit the cut matrices of a layer; return its outputs, and a report.

        batches  (input, arguments, real tokens) of each micro-batch
        """
        x = [state for state, _, _ in batches]
        if not cut:
            return [wait(layer(state, given)) for state, given, _ in batches], []
        h, dense, report = x, whole.on(layer.device), list[dict[str, Any]]()
        for which, part in enumerate(("attention", "mlp")):
            if part not in layer.built_with:
                continue
            enters = zip(x if layer.parallel else h, batches, strict=True)
            entered = [(state, given, where) for state, (_, given, where) in enters]
            if part in cut:
                added, missed = self.fit(cut[part], dense, layer, RUN[part], entered, wait=wait)
                report.append({"part": part} | missed)
            else:
                added = [wait(RUN[part](layer, state, given)) for state, given, _ in entered]
            joined = (layer.join(which, new, *of) for new, (*of, _) in zip(added, entered, strict=True))
            h = [wait(state + addition) for state, addition in zip(h, joined, strict=True)]
        return h, report

    def fit(
        self,
        matrix: nn.Linear,
        whole: Layer,
        layer: Layer,
        run: Run,
        batches: list[tuple[Tensor, Any, Tensor]],
        *,
        wait: Wait,
    ) -> tuple[list[Tensor], dict[str, Any]]:
        """Refit one output matrix, in place; return its outputs, (B, T, D) each, and the errors for the record.

        batches  (input, arguments, real tokens) of each micro-batch
        """
        b = 0 if matrix.bias is None or self.intercept else matrix.bias.double()
        entered, given, Y = list[Tensor](), list[Tensor](), list[Tensor]()
        where = [tokens for _, _, tokens in batches]
        for x, arguments, tokens in batches:
            with collect_inputs(matrix) as inputs:
                given.append(wait(run(layer, x, arguments)))
            entered.append(wait(inputs[0].reshape(*tokens.shape, -1)))
            Y.append(wait(run(whole, x, arguments)))
        sinks = find_sinks(where, Y)
        rows = [Rows(S, wait(target - b), target, *of) for S, target, *of in zip(entered, Y, where, sinks, strict=True)]
        fitted = fit(rows, self.ridge, matrix.weight.T, self.sinks, intercept=self.intercept)
        matrix.weight = nn.Parameter(fitted.W.T.to(matrix.weight.dtype).contiguous(), matrix.weight.requires_grad)
        if fitted.b is not None:
            matrix.bias = nn.Parameter(fitted.b.to(matrix.weight.dtype), matrix.weight.requires_grad)
        parameters_added = [wait(matrix(S)) for S in entered]
        return parameters_added, errors_of_fit(sinks, where, Y, given, parameters_added, fitted=fitted)


def output_of_attention(layer: Layer, x: Tensor, arguments: dict[str, Any]) -> Tensor:
    """Return the output of the attention's output matrix for the residual x in front of it, (B, T, D) -> (B, T, D)."""
    return layer.attention(layer.attn_norm(x), arguments)


def output_of_mlp(layer: Layer, x: Tensor, arguments: dict[str, Any]) -> Tensor:
    """Return the output of the MLP's output matrix for the residual x in front of it, (B, T, D) -> (B, T, D)."""
    return layer.feed_forward(layer.mlp_norm(x))


RUN: dict[str, Run] = {"attention": output_of_attention, "mlp": output_of_mlp}


def pairs_of_layers(pruning: Pruning) -> list[tuple[Layer, Layer]]:
    """Return (dense layer, layer) for each layer of the pruned model."""
    layers = pruning.dense.layers
    return [(layers[number], layer) for number, layer in zip(pruning.kept, pruning.pruned.layers, strict=True)]


def find_narrowed(whole: Layer, layer: Layer) -> dict[str, nn.Linear]:
    """Return the output matrices that have lost columns, by `attention` and `mlp`."""
    matrices = {}
    if layer.has_attention and layer.out.in_features < whole.out.in_features:
        matrices["attention"] = layer.out
    if layer.has_mlp and layer.down.in_features < whole.down.in_features:
        matrices["mlp"] = layer.down
    return matrices


def parameters_of_matrices(cut: dict[str, nn.Linear]) -> list[Tensor]:
    """Return the weight of each matrix, (m, n), and its bias, (m,), where it has one."""
    return [parameter for matrix in cut.values() for parameter in (matrix.weight, matrix.bias) if parameter is not None]


def to_bytes(report: list[dict[str, Any]]) -> Tensor:
    """Return plain JSON values as a tensor of bytes."""
    return torch.frombuffer(bytearray(json.dumps(report).encode()), dtype=torch.uint8)
