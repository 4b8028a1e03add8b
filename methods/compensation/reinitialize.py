"""Draw the weights of a pruned model anew in its shape: a control for what a pruned model inherits.

Yang, Cao, Zhao 2024, "LaCo: Large Language Model Pruning via Layer Collapse", EMNLP Findings, arXiv 2402.11187, say in
the abstract that a collapsed model inherits the parameters of the dense one. `laco` and `laco+reinitialize` with
`--heal full` test that: both have the same shape and are trained on the same sequences in the same order for as many
steps, and differ in where they begin.

    W ~ as transformers initialises a new model of the family

What no family has starts where it changes least, since a random map of the residual stream would be no fair start:
shortcuts of a sliced model as identity matrices that are cut to their shapes, maps that an earlier compensation has put
around a layer as zeros. Two factors in the place of a matrix are drawn and divided so that their product is as large as
the matrix would have been. Buffers that are stored, such as the correction biases of routers, are those of a new model,
too. Tied matrices stay tied. No parameter is added. The authors have released no code for this comparison.

Families. Every method, in every family. Transformers alone loads the result where it loads the method's own.

Cost. No text is read. While weights are drawn there are two models in the host's memory, and on a GPU the new weights
lie beside the dense ones.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from methods.base import Holds, Look
from methods.compensation.base import Compensation, Pruning, register_compensation
from methods.model.calibration import Calibration
from methods.model.decoder import gpus_of
from methods.model.inserted import LowRank, MappedLayer
from methods.model.layer_store import copy_tensors


@register_compensation("reinitialize")
@dataclass(frozen=True)
class Reinitialize(Compensation):
    """Weights drawn anew in the pruned model's shape: the control for what a pruned model inherits."""

    seed: int = 0  # of the draw of weights

    reads_states = False  # so that it serves a model whose residual is cut, too
    forwards = 0.0
    holds = Holds(models=1, steps=0)
    look = Look("dotted", "X", "grey")

    def parameters_added(self, pruning: Pruning) -> int:
        """Return 0: it draws weights that are there."""
        return 0

    @torch.no_grad()
    def repair(self, pruning: Pruning, calibration: Calibration) -> dict[str, Any]:
        """Draw all weights anew from the seed, as at the start of training."""
        model: Any = pruning.pruned.model
        host = copy_tensors(model, torch.device("cpu"))  # so that the draws are the same on every device
        drawn: Any = copy.deepcopy(model, host)  # drops the marks of loaded weights, so that they are drawn again
        with torch.random.fork_rng(gpus_of(model)):
            torch.manual_seed(self.seed)
            drawn.apply(drawn._init_weights)
        for module in drawn.modules():
            _start_fairly(module)
        drawn_by_id = dict[int, nn.Parameter]()  # by the ids of the drawn parameters, so that tied ones stay tied
        for mine, new in zip(model.modules(), drawn.modules(), strict=True):
            for name, parameter in mine._parameters.items():
                if parameter is not None:  # it is replaced and not written to, since the dense model may share it
                    counterpart = new._parameters[name]
                    if id(counterpart) not in drawn_by_id:
                        drawn_by_id[id(counterpart)] = nn.Parameter(
                            counterpart.detach().to(parameter.device), parameter.requires_grad
                        )
                    mine._parameters[name] = drawn_by_id[id(counterpart)]
            for name in mine._buffers.keys() - mine._non_persistent_buffers_set:
                if (buffer := mine._buffers[name]) is not None:
                    mine._buffers[name] = new._buffers[name].to(buffer.device)
        pruning.pruned.settle_all()
        return {"seed": self.seed}


def _start_fairly(module: nn.Module) -> None:
    """Reset parts that no family has: shortcuts to identities, maps to zeros, factors to the size of their matrix."""
    for shortcut in getattr(module, "shortcuts", ()):
        nn.init.eye_(shortcut.weight)
    if isinstance(module, MappedLayer):
        for each in (module.before, module.behind):
            if each is not None:
                nn.init.zeros_(each.weight)
    if isinstance(module, LowRank):
        s, k = module.down.weight.std(), module.rank  # of a sum of k products of two numbers: s^2 sqrt(k)
        for factor in (module.down, module.up):
            factor.weight.div_((s * k**0.5).sqrt())
