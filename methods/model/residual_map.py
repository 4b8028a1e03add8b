"""Layers with a linear map at their end, or at the start of the first: what is left where blocks have been cut out.

    y = layer(x + x M),    y + y N

M stands in front of a layer and N behind it; either may be missing. Both are (D, D), D = residual width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from methods.errors import Unsupported
from methods.model.decoder import Decoder
from methods.model.layer import linear_like


class MappedLayer(nn.Module):
    """Runs a layer between two maps of the residual."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.before: nn.Linear | None = None
        self.behind: nn.Linear | None = None

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        x = hidden_states
        if self.before is not None:
            x = x.to(self.before.weight.device)
            x = x + self.before(x)
        y: Tensor = self.inner(x, *args, **kwargs)
        return y if self.behind is None else y + self.behind(y)


def put_map(model: Decoder, behind: int, M: Tensor) -> None:
    """Let the state behind layer `behind`, or what enters the first where it is -1, become x + x M; M is (D, D).

    Raises Unsupported where a map stands already, or another wrapper.
    """
    layers = model.layers
    layer, place = (layers[0], "before") if behind < 0 else (layers[behind], "behind")
    if not isinstance(layer.module, MappedLayer):
        if layer.module is not layer.inner:
            raise Unsupported("a layer whose residual has been cut holds no map of the whole residual")
        layer.module = MappedLayer(layer.module)
    if getattr(layer.module, place) is not None:
        raise Unsupported("the residual is mapped here already, by an earlier compensation")
    like = next(layer.module.parameters())
    weight = M.T.to(like.device, like.dtype).contiguous()
    setattr(layer.module, place, linear_like(weight, None).requires_grad_(like.requires_grad))
    model.set_layers(layers)


def maps_of(model: Decoder) -> list[list[str]]:
    """Return for each layer where it has a map: `before`, `behind`."""
    modules = [layer.module for layer in model.layers]
    return [
        [place for place in ("before", "behind") if isinstance(one, MappedLayer) and getattr(one, place) is not None]
        for one in modules
    ]
