"""Holds the decoder layer whose residual stream is cut, and the parts of it that SliceGPT fuses and cuts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from methods.model.decoder import Decoder
from methods.model.layer import Layer, linear_like, norm_eps
from methods.model.precision import widened

NUMBERS = 2**24  # of a matrix that are multiplied at once, in float64 128 MiB


def attention(layer: Layer, h: Tensor, arguments: dict[str, Any]) -> Tensor:
    """Return what the attention adds to the residual from its normed input, (B, T, d) -> (B, T, d)."""
    return layer.scaled(layer.attention(h, arguments))


def feed_forward(layer: Layer, h: Tensor) -> Tensor:
    """Return what the MLP adds to the residual from its normed input, (B, T, d) -> (B, T, d)."""
    return layer.scaled(layer.feed_forward(h))


def both(layer: Layer, h: Tensor, arguments: dict[str, Any]) -> Tensor:
    """Return what a parallel layer adds to the residual from its normed input, (B, T, d) -> (B, T, d)."""
    return attention(layer, h, arguments) + feed_forward(layer, h)


class SlicedLayer(nn.Module):
    """Runs a layer whose residual changes its basis: x A + attention(rms(x)), then x M + mlp(rms(x)).

    Where attention and MLP are parallel there is one shortcut, x A + attention(rms(x)) + mlp(rms(x)).
    """

    def __init__(self, layer: Layer, shortcuts: list[Tensor]) -> None:
        super().__init__()
        self.inner = layer.inner
        self.view = Layer(layer.inner, layer.family, layer.said, layer.head_width, layer.group, number=layer.number)
        self.shortcuts = nn.ModuleList(linear_like(shortcut.T.contiguous(), None) for shortcut in shortcuts)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer, arguments = self.view, self.view.bind(args, kwargs)
        x = hidden_states.to(layer.out.weight.device)
        h = layer.attn_norm(x)
        if layer.parallel:
            return self.shortcuts[0](x) + both(layer, h, arguments)
        x = self.shortcuts[0](x) + attention(layer, h, arguments)
        return self.shortcuts[1](x) + feed_forward(layer, layer.mlp_norm(x))


class RMS(nn.Module):
    """Divides x by sqrt(sum(x^2) / D + eps), with the original D also where x is narrower."""

    def __init__(self, D: int, eps: float) -> None:
        super().__init__()
        self.D, self.eps = D, eps

    def forward(self, x: Tensor) -> Tensor:
        h = x.float()
        return (h * torch.rsqrt(h.pow(2).sum(-1, keepdim=True) / self.D + self.eps)).to(x.dtype)


def fuse(model: Decoder, centre_embeddings: bool) -> None:
    """Move every norm's gain and bias into the matrices behind it, and its mean subtraction into those before it.

    Leaves the logits as they are, unless embeddings are centred under RMSNorm. In float64, or float32 where the
    model is in half precision, cast back at the end.
    """
    model.untie()
    centred, D = model.family.centred, model.embed.embedding_dim
    if centred or centre_embeddings:
        tables = [model.embed] + ([model.positions] if model.positions is not None and centred else [])
        for table in tables:
            table.weight = by_rows(table.weight, D, lambda W: W - W.mean(1, keepdim=True))
    for layer in model.sweep():
        for norm, matrices in ((layer.attn_norm, layer.qkv), (layer.mlp_norm, layer.up)):
            for matrix in matrices:
                fuse_norm(model, norm, matrix)
        layer.set_norms(RMS(D, norm_eps(layer.attn_norm)), RMS(D, norm_eps(layer.mlp_norm)))
        if centred:
            for matrix in (layer.out, layer.down):
                matrix.weight = by_columns(matrix.weight, D, lambda W: W.double() - W.double().mean(0))
                if matrix.bias is not None:
                    matrix.bias = _parameter(matrix.bias.double() - matrix.bias.double().mean(), matrix.bias)
    final_norm = model.final_norm
    assert final_norm is not None  # refuse_unless_rotatable has seen to it
    fuse_norm(model, final_norm, model.head)
    model.final_norm = RMS(D, norm_eps(final_norm))
    model.settle()


def fuse_norm(model: Decoder, norm: nn.Module, matrix: nn.Linear) -> None:
    """Move a norm's gain and bias into the matrix behind it: W <- W diag(gain), b <- b + W bias."""
    shift, gain = getattr(norm, "bias", None), model.gain(norm).double()
    if shift is not None:
        (bias,) = by_rows(matrix.weight, 1, lambda W: (W @ shift.to(W.dtype))[:, None], torch.float64).T
        matrix.bias = _parameter(bias + (0 if matrix.bias is None else matrix.bias.double()), matrix.weight)
    matrix.weight = by_rows(matrix.weight, matrix.in_features, lambda W: W * gain)


def read_in_basis(matrices: list[nn.Linear], Q: Tensor, d: int) -> None:
    """Let what reads the residual read d columns in the basis Q: W <- (W Q)[:, :d]."""
    for matrix in matrices:
        matrix.weight = cut_columns(matrix.weight, Q, d)
        matrix.in_features = d


def write_in_basis(matrix: nn.Linear, Q: Tensor, d: int) -> None:
    """Let what writes the residual write d columns in the basis Q: W <- (Q^T W)[:d], b <- (Q^T b)[:d]."""
    Q = widened(Q.to(matrix.weight.device), of=matrix.weight.dtype)
    matrix.weight = by_columns(matrix.weight, d, lambda W: Q.T[:d] @ W)
    if matrix.bias is not None:
        matrix.bias = _parameter(Q.T[:d] @ widened(matrix.bias), matrix.bias)
    matrix.out_features = d


def cut_columns(weight: Tensor, Q: Tensor, d: int) -> nn.Parameter:
    """Return (W Q)[:, :d]."""
    Q = widened(Q[:, :d].to(weight.device), of=weight.dtype)
    return by_rows(weight, d, lambda W: W @ Q)


@torch.no_grad()
def by_rows(
    weight: Tensor, width: int, change: Callable[[Tensor], Tensor], dtype: torch.dtype | None = None
) -> nn.Parameter:
    """Return change(W), (rows, width), of W as it is multiplied, a few rows at a time: no table is so as a whole."""
    changed = weight.new_empty(len(weight), width, dtype=dtype)
    rows = max(1, NUMBERS // weight.shape[1])
    for some, into in zip(torch.split(weight.detach(), rows), torch.split(changed, rows), strict=True):
        into.copy_(change(widened(some)))
    return nn.Parameter(changed, requires_grad=weight.requires_grad)


@torch.no_grad()
def by_columns(weight: Tensor, height: int, change: Callable[[Tensor], Tensor]) -> nn.Parameter:
    """Return change(W), (height, columns), a few columns at a time, as `by_rows` does with rows."""
    changed = by_rows(weight.T, height, lambda W: change(W.T).T)
    return nn.Parameter(changed.T.contiguous(), requires_grad=weight.requires_grad)


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(value.to(like.dtype).contiguous(), requires_grad=like.requires_grad)
