"""Modules that methods put into a model: factored matrices, maps of the residual, and sliced layers.

LowRank is the product of two thinner matrices in the place of one:

    y = up(down(x)) + b

FewRows and FewColumns stand for a matrix of which some outputs are zero, or some inputs are not read:

    y[rows] = W x + b,    y = W x[columns] + b

MappedLayer is a layer with a linear map of the residual in front of it or behind it, where blocks have been cut out:

    y = layer(x + x M),    y + y N

SlicedLayer is a layer whose residual stream is cut. Behind it stand the steps by which SliceGPT fuses norms and cuts
matrices.

Letters: m = outputs, n = inputs, k = rank, D = residual width, d = what is left of it; M and N are (D, D).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from methods.errors import Unsupported
from methods.model.decoder import Decoder
from methods.model.layer import Layer, epsilon_of, make_linear, states_of
from methods.model.precision import widen


class FactoredMatrix(Unsupported, AttributeError):
    """Is raised where a weight is read of what stands for a matrix. `hasattr` takes it for a missing attribute."""


class StandIn(nn.Module):
    """Stands for a matrix, with its widths and a bias, but without a weight: to read one raises FactoredMatrix.

    in_features, out_features  the widths of the matrix
    bias                       of the linear layer in it that adds one; None for no bias
    """

    became: ClassVar[str]  # what the matrix has become, in the words of the error

    in_features: int
    out_features: int

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            raise FactoredMatrix(
                f"a matrix has {self.became}, and this reads or cuts whole ones; methods that remove layers, "
                "attentions or MLPs without a look at weights serve such a model"
            )
        return super().__getattr__(name)


class LowRank(StandIn):
    """Multiplies by two factors, down (k, n) and up (m, k), and adds the bias (m,) that the matrix had."""

    became = "been factored into two of low rank"

    def __init__(self, down: Tensor, up: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.down, self.up = make_linear(down, None), make_linear(up, bias)
        self.in_features, self.out_features = self.down.in_features, self.up.out_features

    @property
    def rank(self) -> int:
        """Return the width between its two factors."""
        return self.down.out_features

    @property
    def bias(self) -> Tensor | None:
        """Return the second factor's bias."""
        return self.up.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return the product with both factors."""
        y: Tensor = self.up(self.down(x))
        return y


class Places:
    """Holds the rows or columns of a matrix that are left, rising, and gives them as an index, (places,)."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers = tuple(numbers)
        self._index: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device) -> Tensor:
        """Return them as an index on a device. It is made once for each."""
        if device not in self._index:
            self._index[device] = torch.tensor(self.numbers, device=device)
        return self._index[device]


class FewRows(StandIn):
    """Computes some of the m outputs of a matrix, and zeros for the others: y[rows] = W x + b; W is (rows, n)."""

    became = "lost outputs, in whose places zeros stand"
    places: Places

    def __init__(self, rows: Sequence[int], m: int, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.places, self.kept = Places(rows), make_linear(weight, bias)
        self.in_features, self.out_features = weight.shape[1], m

    @property
    def bias(self) -> Tensor | None:
        """Return the bias of the outputs that are left, (rows,)."""
        return self.kept.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs at their places, (..., n) -> (..., m)."""
        y = self.kept(x)
        return y.new_zeros(*y.shape[:-1], self.out_features).index_copy(-1, self.places.on(y.device), y)


class FewColumns(StandIn):
    """Reads some of the n inputs of a matrix: y = W x[columns] + b; W is (m, columns)."""

    became = "lost inputs, which it does not read"
    places: Places

    def __init__(self, columns: Sequence[int], n: int, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.places, self.kept = Places(columns), make_linear(weight, bias)
        self.in_features, self.out_features = n, weight.shape[0]

    @property
    def bias(self) -> Tensor | None:
        """Return the bias that the matrix had, (m,)."""
        return self.kept.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return the product with the inputs that are left, (..., n) -> (..., m)."""
        y: Tensor = self.kept(x.index_select(-1, self.places.on(x.device)))
        return y


def factor_matrix(matrix: nn.Linear, down: Tensor, up: Tensor) -> LowRank:
    """Return a LowRank for a matrix whose weight is up @ down, in the matrix's dtype and on its device."""
    weight = matrix.weight
    thin = [factor.to(weight.device, weight.dtype).contiguous() for factor in (down, up)]
    bias = None if matrix.bias is None else matrix.bias.detach()
    return LowRank(thin[0], thin[1], bias).requires_grad_(weight.requires_grad)


def keep_few(matrix: nn.Linear, kind: type[FewRows | FewColumns], places: Sequence[int]) -> nn.Module:
    """Return a FewRows or FewColumns for a matrix, which computes the same at these places, in its dtype."""
    index = torch.tensor(places, device=matrix.weight.device)
    bias = None if matrix.bias is None else matrix.bias.detach()
    if kind is FewRows:
        rows = matrix.weight.detach().index_select(0, index)
        few: nn.Module = FewRows(
            places, matrix.out_features, rows, None if bias is None else bias.index_select(0, index)
        )
    else:
        few = FewColumns(places, matrix.in_features, matrix.weight.detach().index_select(1, index), bias)
    return few.requires_grad_(matrix.weight.requires_grad)


def ranks_of(matrices: dict[str, nn.Linear]) -> dict[str, int]:
    """Return the ranks of the matrices that have been factored, by their names in `matrices`."""
    return {name: matrix.rank for name, matrix in matrices.items() if isinstance(matrix, LowRank)}


def places_of(matrices: Mapping[str, nn.Module], kind: type[FewRows | FewColumns]) -> dict[str, tuple[int, ...]]:
    """Return the rows or columns that are left of the matrices that stand-ins of a kind are for, by their names."""
    return {name: matrix.places.numbers for name, matrix in matrices.items() if isinstance(matrix, kind)}


def factors_of(matrices: list[nn.Linear]) -> list[nn.Linear]:
    """Return the linear layers that multiply: each matrix, its two factors, or what is left of it."""
    return [part for matrix in matrices for part in matrix.modules() if isinstance(part, nn.Linear)]


class MappedLayer(nn.Module):
    """Runs a layer between two maps of the residual."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.before: nn.Linear | None = None
        self.behind: nn.Linear | None = None

    def __getattr__(self, name: str) -> Any:
        """Return what the layer has by this name, which the model around it may read."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return what the layer returns, with the map in front of it and the one behind it."""
        x = hidden_states
        if self.before is not None:
            x = x.to(self.before.weight.device)
            x = x + self.before(x)
        returned = self.inner(x, *args, **kwargs)
        if self.behind is None:
            return returned
        y = states_of(returned)
        y = y + self.behind(y)
        return (y, *returned[1:]) if isinstance(returned, tuple) else y


def put_map(model: Decoder, behind: int, M: Tensor) -> None:
    """Put a map behind layer `behind`, or in front of the first where it is -1: x becomes x + x M; M is (D, D).

    Raises Unsupported where a map or another wrapper stands there already.
    """
    layers = model.layers
    layer, place = (layers[0], "before") if behind < 0 else (layers[behind], "behind")
    if not isinstance(layer.module, MappedLayer):
        if layer.module is not layer.inner:
            raise Unsupported("a layer whose residual has been cut holds no map of the whole residual")
        layer.module = MappedLayer(layer.module)
    if getattr(layer.module, place) is not None:
        raise Unsupported("the residual is mapped here already, by an earlier compensation")
    like = next(layer.inner.parameters())
    weight = M.T.to(like.device, like.dtype).contiguous()
    setattr(layer.module, place, make_linear(weight, None).requires_grad_(like.requires_grad))
    model.set_layers(layers)


def maps_of(model: Decoder) -> list[list[str]]:
    """Return the places of each layer's maps: `before`, `behind`."""
    return [_places_of_maps(layer.module) for layer in model.layers]


def _places_of_maps(module: nn.Module) -> list[str]:
    if not isinstance(module, MappedLayer):
        return []
    return [place for place in ("before", "behind") if getattr(module, place) is not None]


NUMBERS = 2**24  # numbers of a matrix that are multiplied at once, in float64 128 MiB


def output_of_attention(layer: Layer, h: Tensor, arguments: dict[str, Any]) -> Tensor:
    """Return the attention's addition to the residual from its normed input, (B, T, d) -> (B, T, d)."""
    return layer.scale(0, layer.attention(h, arguments))


def output_of_mlp(layer: Layer, h: Tensor) -> Tensor:
    """Return the MLP's addition to the residual from its normed input, (B, T, d) -> (B, T, d)."""
    return layer.scale(1, layer.feed_forward(h))


def output_of_both(layer: Layer, h: Tensor, arguments: dict[str, Any]) -> Tensor:
    """Return a parallel layer's addition to the residual from its normed input, (B, T, d) -> (B, T, d)."""
    return output_of_attention(layer, h, arguments) + output_of_mlp(layer, h)


class SlicedLayer(nn.Module):
    """Runs a layer whose residual changes its basis: x A + attention(rms(x)), then x M + mlp(rms(x)).

    Where attention and MLP are parallel there is one shortcut, x A + attention(rms(x)) + mlp(rms(x)).
    """

    def __init__(self, layer: Layer, shortcuts: list[Tensor]) -> None:
        super().__init__()
        self.inner = layer.inner
        self.view = Layer(layer.inner, layer.family, layer.config, layer.head_width, layer.group, number=layer.number)
        self.shortcuts = nn.ModuleList(make_linear(shortcut.T.contiguous(), None) for shortcut in shortcuts)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the layer's output, with maps between the bases of its sublayers."""
        layer, arguments = self.view, self.view.bind(args, kwargs)
        x = hidden_states.to(layer.out.weight.device)
        h = layer.attn_norm(x)
        if layer.parallel:
            return self.shortcuts[0](x) + output_of_both(layer, h, arguments)
        x = self.shortcuts[0](x) + output_of_attention(layer, h, arguments)
        return self.shortcuts[1](x) + output_of_mlp(layer, layer.mlp_norm(x))


class RMS(nn.Module):
    """Divides x by sqrt(sum(x^2) / D + eps), with the original D also where x is narrower."""

    def __init__(self, D: int, eps: float) -> None:
        super().__init__()
        self.D, self.eps = D, eps

    def forward(self, x: Tensor) -> Tensor:
        """Return the states divided by their root mean square over the dense width."""
        h = x.float()
        return (h * torch.rsqrt(h.pow(2).sum(-1, keepdim=True) / self.D + self.eps)).to(x.dtype)


def fuse_norms(model: Decoder, centre_embeddings: bool) -> None:
    """Move every norm's gain and bias into the matrices behind it, and its mean subtraction into those before it.

    The logits do not change, unless embeddings are centred under RMSNorm. It computes in float64, or float32 where the
    model is in half precision, cast back at the end.
    """
    model.untie()
    centred, D = model.family.centred, model.embed.embedding_dim
    if centred or centre_embeddings:
        tables = [model.embed] + ([model.positions] if model.positions is not None and centred else [])
        for table in tables:
            table.weight = change_by_rows(table.weight, D, lambda W: W - W.mean(1, keepdim=True))
    for layer in model.sweep():
        for norm, matrices in ((layer.attn_norm, layer.qkv), (layer.mlp_norm, layer.up)):
            for matrix in matrices:
                fuse_norm(model, norm, matrix)
        layer.set_norms(RMS(D, epsilon_of(layer.attn_norm)), RMS(D, epsilon_of(layer.mlp_norm)))
        if centred:
            for matrix in (layer.out, layer.down):
                matrix.weight = change_by_columns(matrix.weight, D, lambda W: W.double() - W.double().mean(0))
                if matrix.bias is not None:
                    matrix.bias = _parameter(matrix.bias.double() - matrix.bias.double().mean(), matrix.bias)
    final_norm = model.final_norm
    assert final_norm is not None  # refuse_unless_rotatable has seen to it
    fuse_norm(model, final_norm, model.head)
    model.final_norm = RMS(D, epsilon_of(final_norm))
    model.settle()


def fuse_norm(model: Decoder, norm: nn.Module, matrix: nn.Linear) -> None:
    """Move a norm's gain and bias into the matrix behind it: W <- W diag(gain), b <- b + W bias."""
    shift, gain = getattr(norm, "bias", None), model.gain(norm).double()
    if shift is not None:
        (bias,) = change_by_rows(matrix.weight, 1, lambda W: (W @ shift.to(W.dtype))[:, None], torch.float64).T
        matrix.bias = _parameter(bias + (0 if matrix.bias is None else matrix.bias.double()), matrix.weight)
    matrix.weight = change_by_rows(matrix.weight, matrix.in_features, lambda W: W * gain)


def read_in_basis(matrices: list[nn.Linear], Q: Tensor, d: int) -> None:
    """Make matrices that read the residual read d columns in the basis Q: W <- (W Q)[:, :d]."""
    for matrix in matrices:
        matrix.weight = cut_columns(matrix.weight, Q, d)
        matrix.in_features = d


def write_in_basis(matrix: nn.Linear, Q: Tensor, d: int) -> None:
    """Make a matrix that writes the residual write d columns in the basis Q: W <- (Q^T W)[:d], b <- (Q^T b)[:d]."""
    Q = widen(Q.to(matrix.weight.device), of=matrix.weight.dtype)
    matrix.weight = change_by_columns(matrix.weight, d, lambda W: Q.T[:d] @ W)
    if matrix.bias is not None:
        matrix.bias = _parameter(Q.T[:d] @ widen(matrix.bias), matrix.bias)
    matrix.out_features = d


def cut_columns(weight: Tensor, Q: Tensor, d: int) -> nn.Parameter:
    """Return the first d columns of W Q as a parameter."""
    Q = widen(Q[:, :d].to(weight.device), of=weight.dtype)
    return change_by_rows(weight, d, lambda W: W @ Q)


@torch.no_grad()
def change_by_rows(
    weight: Tensor, width: int, change: Callable[[Tensor], Tensor], dtype: torch.dtype | None = None
) -> nn.Parameter:
    """Return change(W), (rows, width), for W in the type that it is multiplied in (`widen`), a few rows at a time."""
    changed = weight.new_empty(len(weight), width, dtype=dtype)
    rows = max(1, NUMBERS // weight.shape[1])
    for piece, into in zip(torch.split(weight.detach(), rows), torch.split(changed, rows), strict=True):
        into.copy_(change(widen(piece)))
    return nn.Parameter(changed, requires_grad=weight.requires_grad)


@torch.no_grad()
def change_by_columns(weight: Tensor, height: int, change: Callable[[Tensor], Tensor]) -> nn.Parameter:
    """Return change(W), (height, columns), a few columns at a time, like `change_by_rows`."""
    changed = change_by_rows(weight.T, height, lambda W: change(W.T).T)
    return nn.Parameter(changed.T.contiguous(), requires_grad=weight.requires_grad)


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(value.to(like.dtype).contiguous(), requires_grad=like.requires_grad)
