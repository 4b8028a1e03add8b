"""Remove as many MLP channels from every layer, then whole attentions one by one: 2SSP.

Sandri, Cunegatti, Iacca 2025, "2SSP: A Two-Stage Framework for Structured Pruning of LLMs", TMLR, arXiv 2501.17771.
Code: FabrizioSandri/2SSP.

Of L layers with A parameters in the attention and M in the MLP, a share p of all layers' parameters is to go. The
number of attentions among it is (equation 5)

    n = round(L p^((M / A) / alpha)),    alpha = 1.5

In the first stage, channel j of the MLP scores what enters the down matrix there, X (T, I) for each sequence: the mean
over the calibration sequences of ||X_j||_2, in one pass over the dense model. The highest stay, as many in every layer,
so that with n attentions removed the budget is met.

In the second stage, n times, the attention goes without which the cut model's loss on `tokens` tokens is lowest.

For SmolLM2-135M (L = 30, M / A = 3, 1,536 channels) p = 0.25 removes 2 attentions and keeps 1,058 channels, p = 0.375
removes 4 and keeps 836, p = 0.5 removes 8 and keeps 648.

Departures from the authors' code. p follows from the ratio, which counts all parameters of the model. An attention goes
with its norm, which is counted; the code leaves the norm in place. Where the channels could not make up for n
attentions, n is lowered or raised; the code gives up. One attention stays, and 16 channels in each layer, or an eighth
of fewer than 128. Padding is left out of norms and loss.

Cost. One forward pass for the first stage. For the second about half a pass over `tokens` tokens for each attention
that is left, for each one that goes. The order of removal belongs to one width, so every ratio searches again.

Measured. docs/studies/departures.md says what both counts of parameters leave of the default model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from methods.base import Count, Holds, Look, Positive, Pruner, Tokens, register
from methods.errors import OutOfReach
from methods.model.activations import Step, collect_by_layer
from methods.model.calibration import Calibration, shared_statistics
from methods.model.decoder import Decoder
from methods.model.sizes import layer_parameters, parameters
from methods.model.structures import cuts_of, remove_sublayers, structures_of, sublayers_of
from methods.trials.blocks import Trial
from methods.trials.selection import Removals, search
from methods.width.widths import find_equal_widths, list_lower_widths, parameters_freed

MLP_BY_ATTENTION = 3.0  # parameters of an MLP over those of an attention, as most Llama-like layers have them


@register("2ssp")
@dataclass(frozen=True)
class TwoSSP(Pruner):
    """Remove MLP channels by activation norm, as many in every layer, then attentions by loss (Sandri et al. 2025)."""

    alpha: Positive = 1.5  # the higher, the more of the budget comes from attentions
    tokens: Tokens = 2048  # calibration tokens of the second stage
    multiple: Count = 1  # what is left of the channels is a multiple of it

    cost = "1 forward, and about L/2 over 2,048 tokens for each attention removed"
    holds = Holds(all_layers=1, logits=3)
    only_cuts = True
    uneven_because = "it removes whole attentions"
    axes = ("channels", "layers")
    leaves = ("attentions", "channels")
    paper_ratio = "the decoder"
    paper_reads = "32 x 2,048 tokens of C4; 1 x 2,048 in the second stage"  # main.py, src/pruning.py
    look = Look("solid", "P")
    tiny = "tokens=48"

    def tokens_read(self, tokens: int) -> int:
        """Return the tokens of its parameter at most."""
        return min(tokens, self.tokens)

    def forwards(self, layers: int, removed: float, tokens: int) -> float:
        """Return one forward, and half a model for each attention that is left out in each step."""
        attentions = layers * (removed / layers) ** (MLP_BY_ATTENTION / self.alpha)
        tried = attentions * (layers - max(0, attentions - 1) / 2) / 2
        return 1 + tried * self.tokens_read(tokens) / tokens

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return how many attentions go, and the channels to remove from each layer."""
        n = self.attentions(model, ratio)
        rest = ratio - n * parameters_of_attention(model) / parameters(model)
        counts = find_equal_widths(model, structures_of(model, "channels"), rest, self.multiple)
        return {"attentions": n, "removed_per_layer": counts}

    def attentions(self, model: Decoder, ratio: float) -> int:
        """Return n for `ratio` of all parameters. Raises OutOfReach where channels and attentions are too few."""
        budget, A = ratio * parameters(model), parameters_of_attention(model)
        L, layers = len(model.layers), model.layers
        M = sum(layer.sizes()["mlp"] for layer in layers) / L
        p = budget / sum(map(layer_parameters, layers))
        n = round(L * p ** (M / A / self.alpha))
        channels = structures_of(model, "channels")
        most_channels = sum(
            int(parameters_freed(each, list_lower_widths(each, self.multiple))[-1]) for each in channels
        )
        fewest, most = math.ceil((budget - most_channels) / A), len(sublayers_of(model, "attention")) - 1
        if fewest > most:
            raise OutOfReach(
                f"ratio {ratio:g} is out of reach: with all channels but a few and all attentions but one gone, "
                f"{(most_channels + most * A) / parameters(model):.3f} of the parameters are"
            )
        return max(fewest, min(n, int(budget / A), most))

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Cut the channels with the least norms, then attentions by the loss without each."""
        plan, structures = self.plan(model, ratio), structures_of(model, "channels")
        n, channels = plan["attentions"], plan["removed_per_layer"]["channels"]
        if channels:
            for structure, score in zip(
                structures, shared_statistics(norms_of_channels, model, calibration), strict=True
            ):
                structure.remove(score, channels)
        cut, removals = cuts_of(model, structures), Removals()
        if n:
            trial = Trial(model, calibration.first(self.tokens), "nll")
            log = calibration.log([], "2ssp", channels, n)
            removals = search(trial, sublayers_of(model, "attention"), n * parameters_of_attention(model), log=log)
            plan |= remove_sublayers(model, removals.order)
        return plan | {
            "parameters": parameters(model),
            "channels": cut["channels"],
            "removed_channels": cut["removed_channels"],
            "attentions_in_order": [block.layer for block in removals.order],
            "losses": removals.losses,
            "forwards": round(removals.runs, 2),
        }


def parameters_of_attention(model: Decoder) -> float:
    """Return A, the mean parameters of an attention and its norm, over the layers that have one."""
    sizes = [layer.sizes()["attention"] for layer in model.layers if layer.has_attention]
    return sum(sizes) / len(sizes)


def norms_of_channels(model: Decoder, calibration: Calibration) -> list[Tensor]:
    """Return the mean over sequences of ||X_j||_2, (I,) for each layer with an MLP, in float64 on the CPU."""

    def of_layer(_: int, steps: Iterator[Step]) -> list[Tensor]:
        total = torch.zeros((), dtype=torch.float64)
        for step in steps:
            X = step.channels.double() * step.mask[:, :, None]
            total = total + X.square().sum(1).sqrt().sum(0).cpu()
        return [total / len(calibration.ids)]

    norms_by_layer = collect_by_layer(model, calibration, of_layer)
    return [norms for (norms,), layer in zip(norms_by_layer, model.layers, strict=True) if layer.has_mlp]
