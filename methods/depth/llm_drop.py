"""Drop the attentions, MLPs or layers whose output is most like their input: LLM-Drop.

He, Sun, Shen, Li 2024, "What Matters in Transformers? Not All Attention is Needed", TMLR, arXiv 2406.15786.
Code: CASE-Lab-UMD/LLM-Drop.

For a block f with the input u, which is x_l for an attention and x_l + a_l for an MLP:

    S = 1 - mean over tokens of cos(u, u + f(norm(u)))

x_l enters layer l, and a_l is what its attention adds. The blocks with the smallest S go at once, each with its norm.
`mode` says which blocks compete:

    attn     attentions
    mlp      MLPs
    joint    both, in one order
    block    whole layers, as methods/depth/shortgpt.py chooses them

Attentions are the smaller part of a model, so `attn` reaches only as far as all of them weigh, 20 % of SmolLM2-135M;
more is refused before any work. `joint` meets any ratio and is the default, though the paper's best results are those
of `attn`, which shortens the key/value cache.

Departures from the authors' code. The paper counts blocks. Here they go in the order of S, except those that would
exceed the budget of parameters by more than half of the smallest block. In layers where attention and MLP both read
x_l, the MLP's u is x_l. Padding is left out of the mean. The variant that scores again after each removal is not built.

Measured. docs/studies/departures.md says why no parameter counts blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from methods.base import Look, Pruner, register
from methods.budget import parameters_of_blocks
from methods.model.activations import Step, collect_by_layer
from methods.model.calibration import Calibration, shared_statistics
from methods.model.decoder import Decoder
from methods.model.sizes import parameters
from methods.model.structures import Sublayer, remove_sublayers, sizes_of_sublayers, sublayers_of
from methods.trials.selection import find_affordable

Mode = Literal["attn", "mlp", "joint", "block"]
MODES = {"attn": ("attention",), "mlp": ("mlp",), "joint": ("attention", "mlp"), "block": ("layer",)}


@register("llm-drop")
@dataclass(frozen=True)
class LLMDrop(Pruner):
    """Drop the attentions and MLPs whose output is most like their input (He et al. 2024)."""

    mode: Mode = "joint"  # blocks that compete: attn, mlp, joint (both), or block (whole layers)

    only_cuts = True
    leaves = ("attentions", "mlps")
    paper_ratio = "attentions and MLPs, by their number"
    paper_reads = "256 x 2,048 tokens of C4"  # scripts/dropping/layer_drop_joint.sh
    look = Look("dotted", "^")

    @property
    def uneven_because(self) -> str:
        """Return the reason where sublayers go alone."""
        return "" if self.mode == "block" else "it removes single attentions and MLPs"

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return the parameters that are left."""
        blocks = sublayers_of(model, *MODES[self.mode])
        return {"parameters": parameters(model) - parameters_of_blocks(model, ratio, blocks)}

    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Drop the sublayers that change the residual least, as far as the budget goes."""
        rest = parameters_of_blocks(model, ratio, sublayers_of(model, *MODES[self.mode]))
        if not rest:
            return {"removed_layers": [], "removed_attention": [], "removed_mlp": []}
        (importances,) = shared_statistics(importance_of_blocks, model, calibration, self.mode)
        S, order = dict(zip(sublayers_of(model, *MODES[self.mode]), importances.tolist(), strict=True)), []
        size, candidates = sizes_of_sublayers(model, S), list(S)
        while allowed := find_affordable(candidates, size, rest):
            order.append(min(allowed, key=lambda block: (S[block], -block.layer)))
            candidates.remove(order[-1])
            rest -= size[order[-1]]
        scores = {}
        for part in MODES[self.mode]:
            scores[part] = [S.get(Sublayer(part, l)) for l in range(len(model.layers))]
        return remove_sublayers(model, order) | {"order": [str(block) for block in order], "scores": scores}


def importance_of_blocks(model: Decoder, calibration: Calibration, mode: Mode) -> list[Tensor]:
    """Return S of every block that competes, in the order of `sublayers_of`, in float64."""
    blocks, tokens = sublayers_of(model, *MODES[mode]), int(calibration.mask.sum())
    parallel = [layer.parallel for layer in model.layers]

    def of_layer(l: int, steps: Iterator[Step]) -> list[Tensor]:
        total = {part: 0.0 for part in MODES[mode] if Sublayer(part, l) in blocks}
        for step in steps:
            u = step.x if parallel[l] else step.x + step.a  # (B, T, D) what enters the MLP
            pairs = {"attention": (step.x, step.x + step.a), "mlp": (u, u + step.m), "layer": (step.x, step.y)}
            for part in total:
                before, after = (state[step.mask].float() for state in pairs[part])
                total[part] += float((1 - cosine_similarity(before, after, dim=-1)).double().sum())
        return [torch.tensor([total.get(part, math.nan) / tokens for part in MODES[mode]], dtype=torch.float64)]

    S = [
        dict(zip(MODES[mode], of.tolist(), strict=True))
        for (of,) in collect_by_layer(model, calibration, of_layer, mode)
    ]
    return [torch.tensor([S[block.layer][block.part] for block in blocks], dtype=torch.float64)]
