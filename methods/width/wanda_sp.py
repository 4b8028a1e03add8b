"""Remove the heads and MLP channels with the smallest weights times activations, layer by layer: Wanda-sp.

An, Zhao, Yu, Tang, Wang 2024, "Fluctuation-based Adaptive Structured Pruning for Large Language Models", AAAI,
arXiv 2312.11983, where it is the baseline; the score is that of Sun, Liu, Bair, Kolter 2024, "A Simple and Effective
Pruning Approach for Large Language Models", ICLR, arXiv 2306.11695. Code: CASIA-LMC-Lab/FLAP.

Channel j of the input X of an output matrix W, over all calibration tokens, scores

    s_j = mean over i of |W_ij| ||X_j||_2

W is the attention's output matrix or the MLP's down matrix. A unit is a key/value head with its query heads, whose
score is the sum over its channels, or a channel of the MLP. In every layer the same number of units goes, the lowest
first, so the model keeps the shape of its family. The layers are taken in order: what a layer is fed comes from the
layers before it as they have been cut. No bias makes up for what is removed.

Departures from the authors' code. A head is a key/value head with all its query heads, also under grouped queries. Of
the heads the same share goes as of the whole, rounded down, and channels close the budget; the code takes the same
share of both, which misses it where heads are few. One head and 16 channels stay in each layer, or an eighth of fewer
than 128 channels.

Cost. Two forward passes: each layer is run once to be scored, and again as it has been cut. Memory holds the hidden
states of all calibration tokens in front of one layer.

Measured. docs/studies/departures.md says which widths both roundings leave of the default model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from methods.base import Count, Holds, Look, WidthPruner, register
from methods.console import show_progress
from methods.model.activations import enter_all, run_step, values_of_a_step
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.layer import Layer
from methods.model.sizes import parameters
from methods.model.structures import Structure, cuts_of, structures_of
from methods.width.widths import find_equal_widths


@register("wanda-sp")
@dataclass(frozen=True)
class WandaSP(WidthPruner):
    """Remove the heads and channels with the least weight times activation, layer by layer (An et al. 2024)."""

    multiple: Count = 1  # what is left of the channels is a multiple of it
    uniform: bool = False  # as many heads as stock transformers takes; the widths are equal anyway

    cost = "2 forwards"
    holds = Holds(states=2, steps=1.3)
    only_cuts = True
    axes = ("heads", "channels")
    leaves = ("equal widths",)
    paper_ratio = "the decoder"
    paper_reads = "128 x 128 tokens of C4"  # lib/prune.py, main.py
    look = Look("dotted", "^")

    def forwards(self, layers: int, removed: float, tokens: int) -> float:
        """Return two forwards, since each layer is passed once more after its cut."""
        return 2.0

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return the units to remove from each layer."""
        return {
            "removed_per_layer": find_equal_widths(
                model, structures_of(model), ratio, self.multiple, uniform=self.uniform
            )
        }

    @torch.no_grad()
    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Cut the units with the least products of weights and norms of their inputs."""
        plan, structures = self.plan(model, ratio), structures_of(model)
        counts = plan["removed_per_layer"]
        if any(counts.values()):
            entries, masks = enter_all(model, calibration, values_of_a_step(model))
            log = calibration.log([entry.x for entry in entries], "wanda-sp", counts)
            kept_norms, X, given = log.kept(), log.take(), [entry.arguments for entry in entries]
            del entries  # with the first layer's input
            for number, layer in enumerate(show_progress(model.layers, "removing", "layer")):
                arguments = [each[layer.kind] for each in given]
                model.read_ahead(number + 1)
                with layer.visiting():
                    norms = next(kept_norms, None) or norms_of_inputs(layer, X, arguments, masks)
                    for structure in structures:
                        if structure.number == number:
                            norm = norms[0 if structure.is_of_heads else 1].to(layer.device)
                            structure.remove(score_units(structure, norm), counts[structure.kind])
                    if number >= log.done:
                        for at, x in enumerate(X):
                            X[at] = calibration.wait(layer(x, arguments[at]))
                        log.add(norms, X)
        return plan | {"parameters": parameters(model)} | cuts_of(model, structures)


def norms_of_inputs(layer: Layer, X: list[Tensor], arguments: list[Any], masks: list[Tensor]) -> list[Tensor]:
    """Return ||X_j||, (C,) in float64, of the inputs of the output matrices of the attention and of the MLP."""
    squares = [torch.zeros((), dtype=torch.float64)] * 2
    for x, given, mask in zip(X, arguments, masks, strict=True):
        step = run_step(layer, x, given, mask)
        for kind, signal in enumerate((step.heads, step.channels)):
            squares[kind] = squares[kind] + signal[step.mask].double().square().sum(0)
    return [total.sqrt() for total in squares]


def score_units(structure: Structure, norm: Tensor) -> Tensor:
    """Return s of every unit, (units,), from ||X_j|| (C,), in float64 on the CPU."""
    s = structure.writer.weight.abs().double().mean(0) * norm
    return s.cpu()[structure.parts[-1].index].sum(1)
