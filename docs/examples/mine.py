"""A new idea: drop the layers whose MLP takes back what their attention adds."""

from dataclasses import dataclass

from torch.nn.functional import cosine_similarity

from methods import Pruner, register
from methods.budget import whole_layers
from methods.model.activations import run_steps


@register("opposed")
@dataclass(frozen=True)
class Opposed(Pruner):
    """Layers by the mean cosine between the two updates to the residual stream, the most negative first."""

    guard: int = 1  # layers at either end that stay

    def plan(self, model, ratio):
        return {"layers": whole_layers(model, ratio, stay=2 * self.guard)}

    def prune(self, model, calibration, ratio):
        layers = model.layers
        cosines = [0.0] * len(layers)
        for number, step in run_steps(model, calibration):
            cosines[number] += float(cosine_similarity(step.a[step.mask], step.m[step.mask], dim=-1).sum())
        free = range(self.guard, len(layers) - self.guard)
        gone = sorted(sorted(free, key=cosines.__getitem__)[: self.plan(model, ratio)["layers"]])
        model.set_layers([layer for number, layer in enumerate(layers) if number not in gone])
        return {"removed_layers": gone, "cosines": cosines}
