"""Describes a model by the sizes that its cost depends on, from its shapes alone."""

from __future__ import annotations

from dataclasses import dataclass

from methods.checkpoint.pruned_config import has_one_mlp
from methods.model.activations import values_of_an_mlp
from methods.model.decoder import Decoder
from methods.model.inserted import factors_of
from methods.model.sizes import layer_parameters, macs_per_token, parameters, parameters_without_embeddings


@dataclass(frozen=True)
class Shape:
    """Holds sizes of a dense model.

    macs    multiply-accumulates of a token in all layers, without attention scores and without the head
    scores  those of attention for each token of context
    head    those of the head
    layer   parameters of a layer, on average
    inner   parameters of the layers
    mlp     width of the widest MLP, I; of a mixture of experts that of an MLP that computes as many numbers of a token
    heads   width of all query heads of a layer, H * E
    keys    widths of keys and values of a layer, 2 * G * E
    read    parameters of the matrices that read the residual in a layer: queries, keys, values, gate, up; no experts
    tied    whether the head is the embedding
    mixture whether some layer is a mixture of experts
    """

    layers: int
    width: int
    vocabulary: int
    parameters: int
    inner: int
    layer: float
    macs: int
    scores: int
    head: int
    mlp: int = 0
    heads: int = 0
    keys: int = 0
    read: int = 0
    tied: bool = False
    mixture: bool = False

    @classmethod
    def of(cls, model: Decoder) -> Shape:
        """Return the sizes of a model. It may be without weights."""
        vocabulary, width = model.head.weight.shape
        linear, layers = macs_per_token(model, 0), model.layers
        whole = next((layer for layer in layers if layer.has_heads), layers[0])
        return cls(
            layers=len(layers),
            width=width,
            vocabulary=vocabulary,
            parameters=parameters(model),
            inner=parameters_without_embeddings(model),
            layer=sum(map(layer_parameters, layers)) / len(layers),
            macs=linear - vocabulary * width,
            scores=macs_per_token(model, 1) - linear,
            head=vocabulary * width,
            mlp=max(values_of_an_mlp(layer) for layer in layers) // 4,
            heads=whole.out.in_features,
            keys=2 * whole.kv_heads * whole.head_width,
            read=sum(
                factor.weight.numel() for factor in factors_of([*whole.qkv, *(whole.up if has_one_mlp(whole) else [])])
            ),
            tied=model.head.weight is model.embed.weight,
            mixture=any(layer.experts is not None for layer in layers),
        )

    def body(self, tokens: float, context: int, kept: float = 1.0) -> float:
        """Return the multiply-accumulates of tokens in the layers, where a share of these is kept."""
        return tokens * kept * (self.macs + self.scores * context)

    def share(self, ratio: float | None, of: str) -> float:
        """Return the share of all parameters for a ratio of the quantity `of`, without the final norm.

        Of multiply-accumulates those of attention's scores are left out.
        """
        if of in ("all", "bytes"):
            return ratio or 0.0
        whole = 1 + self.head / self.macs if of == "macs" else 1.0  # times those of the layers
        return min(1.0, (ratio or 0.0) * whole) * self.inner / self.parameters

    def kept(self, ratio: float | None) -> float:
        """Return the share of the layers that stays where this ratio of all parameters goes."""
        return max(0.0, 1 - (ratio or 0.0) * self.parameters / max(1, self.inner))
