"""check-method prunes on a GPU as well, where there is one."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from emulated import EmulatedGpus

import methods
from bench.workshop.method_checks import check_gpu, prune_tiny
from methods.budget import whole_layers
from methods.model.structures import drop_layers


@dataclass(frozen=True)
class Homebound(methods.Pruner):
    """Drops the layers with the largest entries, which it compares on the CPU, or decides by where the weights lie."""

    fault: str = ""

    only_cuts = True

    def plan(self, model, ratio):
        return {"layers": whole_layers(model, ratio)}

    def prune(self, model, calibration, ratio):
        at = 1
        if self.fault == "elsewhere":
            at = 2 if model.embed.weight.is_cuda else 1
        if self.fault == "mixes":
            model.layers[0].down.weight.data += torch.ones(model.layers[0].down.weight.shape)
        return drop_layers(model, range(at, at + self.plan(model, ratio)["layers"]))


@pytest.mark.parametrize(
    ("fault", "said"), [("", "logits off by"), ("elsewhere", "on the CPU {'removed_layers': [1, 2"), ("mixes", None)]
)
def test_a_method_is_held_on_a_gpu_to_what_it_does_on_the_cpu(fault, said):
    methods.register("homebound")(Homebound)
    try:
        case = prune_tiny("homebound", {"fault": fault}, "llama")
        with EmulatedGpus():
            if said is None:
                with pytest.raises(RuntimeError):
                    check_gpu(case)
                return
            outcome = check_gpu(case)
    finally:
        methods.REGISTRY.pop("homebound")
    assert outcome.status == ("wrong" if fault else "ok")
    assert outcome.words.startswith(said)
