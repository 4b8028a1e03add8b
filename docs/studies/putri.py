"""Remove as many MLP channels from every layer, then key/value heads with the fit inside the search: Putri.

Putri 2026, "Prune, Update and Trim: Robust Structured Pruning for Large Language Models". Code: Coello-dev/Putri.

The first stage is that of 2SSP (methods/width/two_ssp.py): channel j of the MLP scores the mean over the calibration
sequences of ||X_j||_2, and the down matrix is refitted. The second stage removes key/value heads, each with its query
heads, where 2SSP removes whole attentions. Without head g, H = X^T X of what enters the output matrix W (D, C), and K
the columns that are left, the matrix becomes the one that is nearest on the calibration tokens,

    W_K = W H[:, K] (H[K, K] + lambda I)^-1,

and the head goes without which, with that matrix, the loss on `tokens` tokens is lowest. H is of the model as it is cut
so far. An attention whose last head goes is gone whole.

It is a plugin, to be compared with `2ssp+refit`, which has the same first stage and the same last fit:

    python docs/studies/unused_windows.py --plugin docs/studies/putri.py --ratio 0.3 --methods putri+refit,2ssp+refit

docs/studies/laco-puzzle.md has the figures, and why it is no method of the suite.

Departures from the authors' code: the number of parameters that the second stage takes is 2SSP's, heads go one at a
time and not several, and lambda is a share of the mean of H's diagonal.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import Positive, register
from methods.compensation.base import Pruning
from methods.compensation.refit import Refit
from methods.model.activations import Step, collect_by_layer
from methods.model.calibration import Calibration, shared_statistics
from methods.model.decoder import Decoder, make_twin
from methods.model.layer import Layer
from methods.model.sizes import parameters
from methods.model.structures import Narrowed, Sublayer, cut, cuts_of, keep, structures_of
from methods.trials.blocks import Replacements, Trial
from methods.width.two_ssp import TwoSSP, norms_of_channels, parameters_of_attention


@dataclass(frozen=True)
class Without(Narrowed):
    """Names a layer without one more of its key/value heads."""

    head: int = 0


@register("putri")
@dataclass(frozen=True)
class Putri(TwoSSP):
    """Remove MLP channels by activation norm, then key/value heads by loss, each fitted (Putri 2026)."""

    damping: Positive = 0.01  # lambda, as a share of the mean of H's diagonal

    uneven_because = "it removes heads of some layers"
    cost = "1 forward, and about L/2 over 2,048 tokens for each of the heads that are left, for each removed"
    axes = ("channels", "heads", "layers")

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        plan, dense, structures = self.plan(model, ratio), make_twin(model), structures_of(model, "channels")
        n, channels = plan["attentions"], plan["removed_per_layer"]["channels"]
        if channels:
            for structure, score in zip(
                structures, shared_statistics(norms_of_channels, model, calibration), strict=True
            ):
                structure.remove(score, channels)
        decided = {"removed_channels": cuts_of(model, structures)["removed_channels"]}
        if n:
            trying = make_twin(model)
            Refit().repair(Pruning(dense, trying, list(range(len(model.layers)))), calibration)
            decided |= self.search(trying, calibration.first(self.tokens), n * parameters_of_attention(dense))
            cut(model, {name: decided[name] for name in ("removed_kv_heads", "removed_attention")})
        return decided | {"parameters": parameters(model)}

    @torch.no_grad()
    def search(self, model: Decoder, calibration: Calibration, budget: float) -> dict[str, Any]:
        """Remove heads from the model, in place, until `budget` parameters have gone; return which, for the record."""
        whole, order = parameters(model), list[str]()
        heads_of = [layer.kv_heads if layer.has_attention else 0 for layer in model.layers]
        left = [list(range(heads)) for heads in heads_of]
        while True:
            candidates, sizes = list[Replacements](), dict[Replacements, int]()
            for number, layer in enumerate(model.layers):
                for head in range(len(left[number])):
                    last = len(left[number]) == 1
                    one = Sublayer("attention", number) if last else Without("kv_heads", number, 0, head)
                    candidates.append(Replacements([one]))
                    size = layer.sizes()["attention"]
                    sizes[candidates[-1]] = size if last else size // len(left[number])
            rest = budget - (whole - parameters(model))
            smallest = min(sizes.values())
            candidates = [one for one in candidates if sizes[one] - rest <= smallest / 2]
            if not candidates:
                break
            narrow = Fitted(inputs(model, calibration), self.damping)
            trial = Trial(model, calibration, "nll", narrow=narrow)
            losses = trial.losses(candidates, f"head {len(order) + 1}", lowest=1)
            (chosen,) = min(zip(losses, candidates, strict=True), key=lambda pair: pair[0])[1]
            layer = model.layers[chosen.layer]
            if isinstance(chosen, Without):
                fitted = narrow(layer, [chosen])
                keep(layer, "kv_heads", [at for at in range(len(left[chosen.layer])) if at != chosen.head])
                layer.out.weight = fitted.out.weight
                order.append(f"{chosen.layer}.{left[chosen.layer].pop(chosen.head)}")
            else:
                layer.remove_attention()
                order.append(f"{chosen.layer}.{left[chosen.layer].pop()}")
        gone = [sorted(set(range(heads_of[number])) - set(heads)) for number, heads in enumerate(left)]
        no_attention = [number for number, heads in enumerate(left) if not heads and gone[number]]
        removed = [[] if number in no_attention else heads for number, heads in enumerate(gone)]
        return {"removed_kv_heads": removed, "removed_attention": no_attention, "heads_in_order": order}


@dataclass(frozen=True)
class Fitted:
    """Makes a layer without one more head of one with it, and fits its output matrix.

    H  (C, C) of each layer, of what enters that matrix
    """

    H: list[Tensor]
    damping: float
    made: dict[Narrowed, Layer] = field(default_factory=dict)

    def __call__(self, layer: Layer, narrowed: Collection[Narrowed]) -> Layer:
        (one,) = narrowed
        if one not in self.made:
            assert isinstance(one, Without)
            left = layer.copy_sharing_matrices()
            left.store = None
            keep(left, "kv_heads", [head for head in range(layer.kv_heads) if head != one.head])
            H, W = self.H[one.layer], layer.out.weight.double()
            columns = torch.arange(H.shape[0]).view(layer.kv_heads, -1)
            K = torch.cat([columns[head] for head in range(layer.kv_heads) if head != one.head])
            damped = H[K][:, K] + self.damping * H.diagonal().mean() * torch.eye(len(K), dtype=H.dtype)
            kept = torch.linalg.solve(damped, H[K] @ W.T).T  # (D, K)
            left.out.weight = nn.Parameter(kept.to(layer.out.weight.dtype).contiguous(), requires_grad=False)
            self.made[one] = left
        return self.made[one]


def inputs(model: Decoder, calibration: Calibration) -> list[Tensor]:
    """Return H = X^T X, (C, C), of what enters the output matrix of each layer's attention, in float64."""

    def of_layer(number: int, steps: Iterator[Step]) -> list[Tensor]:
        H = torch.zeros((), dtype=torch.float64)
        for step in steps:
            X = (step.heads.float() * step.mask[:, :, None]).flatten(0, 1)
            H = H + (X.T @ X).double()
        return [H]

    return [H for (H,) in collect_by_layer(model, calibration, of_layer)]
