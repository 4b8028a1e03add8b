"""Rotate the residual stream to its principal axes, and cut the weak ones off every matrix: SliceGPT.

Ashkboos, Croci, do Nascimento, Hoefler, Hensman 2024, "SliceGPT: Compress Large Language Models by Deleting Rows and
Columns", ICLR, arXiv 2401.15024. Code: microsoft/TransformerCompression.

Between two norms without weights the residual stream may be rotated by any orthogonal Q without changing the model
(theorem 1): with the norms' gains fused into the matrices behind them, W_in becomes W_in Q and W_out becomes Q^T W_out.
Each sub-block gets the Q of a PCA of its own input, so the residual passes from one basis to the next through
shortcuts,

    x A + attention(rms(x)),    A = Q_1^T Q_2        x M + mlp(rms(x)),    M = Q_2^T Q_3          (figure 4)

and the trailing D - d axes of every basis are cut: columns of what reads the residual, rows of what writes it.

V = vocabulary, D = residual width, d = what is left of it, I = MLP width, X, Y = signals in the original basis, S = a
signal rotated and cut, Q = the basis at a layer's input, Q_m at its MLP, Q_n at its output, L = layers.

The ratio is met by the multiple of 8 whose parameter count comes nearest to the budget. Eight columns are 1.6 % of
SmolLM2-135M, so this can miss the budget by 0.8 %, which tables show; `multiple=1` meets it to the column. The count
includes the shortcuts A and M, and the head, which can no longer be tied to the embedding: a slice of 25 % removes
about 15 % of a 7B model, and adds parameters to a small model with tied embeddings until d is well below D.

Families. All whose norms stand only before a sub-block, LayerNorm and parallel blocks included. Others norm what a
sub-block adds to the residual, which no rotation leaves alone; so do OPT-350M's norms behind its blocks.

Departures from the authors' code. The attention of a layer runs once: its output in the cut basis is the full one's
times Q_m. Embeddings are not centred where the norm does not subtract the mean, since there that changes the model
(`centre_embeddings=True` restores it). Norms keep the model's own epsilon instead of 1e-5. The random orientation
inside the kept axes and the damping of the covariance are left out, since neither can change the result. Padding is
skipped in the PCA and nothing is zeroed in place. GPT-2's forward takes the last state to be as wide as the embedding,
so its head is always sliced.

Cost. No gradients. One pass of the calibration text through each layer and two eigendecompositions of size D per layer.
The states of all calibration tokens wait in float32, so that a bfloat16 model's are not rounded at each of the 2 L + 1
sites: on the device where they take no more than states of one micro-batch may, else in the CPU's memory. Matrices are
multiplied a few rows or columns at a time, in float64, those in half precision in float32.

Measured. docs/studies/departures.md compares embeddings that are centred with those that are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import Count, Holds, Look, Pruner, Share, register
from methods.console import show_progress
from methods.errors import OutOfReach
from methods.model.activations import enter_all, refuse_overflow
from methods.model.calibration import Calibration, SweepLog, Wait
from methods.model.decoder import Decoder
from methods.model.inserted import (
    SlicedLayer,
    cut_columns,
    fuse_norms,
    output_of_attention,
    output_of_both,
    output_of_mlp,
    read_in_basis,
    write_in_basis,
)
from methods.model.layer import Layer
from methods.model.precision import add_product, widen
from methods.model.sizes import parameters


@register("slicegpt")
@dataclass(frozen=True)
class SliceGPT(Pruner):
    """Rotate the residual stream to its principal axes and cut the weak ones (Ashkboos et al. 2024)."""

    d: int | None = None  # residual width to keep; None: solved from the ratio
    sparsity: Share | None = None  # the authors' knob, d = (1 - sparsity) D, rounded down
    multiple: Count = 8  # d is a multiple of it, for the sake of fast kernels
    slice_head: bool = False  # also cut the last layer's output and the head, which the paper leaves whole
    centre_embeddings: bool = False  # subtract each embedding row's mean also under RMSNorm, as the authors' code does

    cost = "2 forwards, 2 eigenvalue problems per layer"
    residual_solves = 18.0
    holds = Holds(states=2.5, squares=1.5, logits=4, parks="states")
    uneven_because = "it cuts the residual stream and adds shortcuts"
    axes = ("residual",)
    leaves = ("residual",)
    paper_ratio = "the residual width"
    paper_reads = "128 x 2,048 tokens of WikiText-2; 1,024 x 2,048 in the paper"  # run_slicegpt.py
    look = Look("solid", "D")

    def forwards(self, layers: int, removed: float, tokens: int) -> float:
        """Return two forwards, since each layer is passed once more after its cut."""
        return 2.0

    def __post_init__(self) -> None:
        if self.d is not None and self.sparsity is not None:
            raise ValueError("d and sparsity are two names for one knob; give one of them")

    @property
    def fixed(self) -> bool:
        """Say whether the width or the sparsity is given, which alone decides."""
        return self.d is not None or self.sparsity is not None

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return the width d that is left. Raises Unsupported for models that cannot be rotated."""
        refuse_unless_rotatable(model)
        D = model.embed.embedding_dim
        if self.fixed:
            d = self.d if self.d is not None else int((1 - (self.sparsity or 0.0)) * D) // self.multiple * self.multiple
            if not 0 < d <= D:
                raise OutOfReach(f"d lies between 1 and the model's width, {D}; got {d}")
            return {"d": d}
        if self.multiple > D:
            raise OutOfReach(f"multiple is at most the model's width, {D}; got {self.multiple}")
        target = (1 - ratio) * parameters(model)
        widths = range(self.multiple, D + 1, self.multiple)
        counts = dict(zip(widths, sizes_of_slices(model, widths, self.slices_head(model)), strict=True))
        d = min(counts, key=lambda width: abs(counts[width] - target))
        if counts[widths[0]] > target:
            raise OutOfReach(f"ratio {ratio:g} is out of reach: the narrowest slice, d = {widths[0]}, holds more")
        return {"d": d}

    def slices_head(self, model: Decoder) -> bool:
        """Say whether the head loses its directions too."""
        return self.slice_head or model.family.one_width

    @torch.no_grad()
    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Rotate the residual to its principal directions, and cut the last of them."""
        d = self.plan(model, ratio)["d"]
        if not self.fixed and ratio == 0:
            return {"d": model.embed.embedding_dim}
        fuse_norms(model, self.centre_embeddings)
        entries, mask = enter_all(model, calibration, values_per_token(model))
        numbers = sum(entry.x.numel() for entry in entries)
        waits = model.embed.weight.device if 4 * numbers <= calibration.memory else torch.device("cpu")
        log = calibration.log([calibration.wait(entry.x.to(waits).float()) for entry in entries], "slicegpt", d)
        arguments = [entry.arguments for entry in entries]
        del entries  # with the first layer's input
        slicer = _Slicer(model, arguments, mask, d, log, wait=calibration.wait)
        slicer.run(self.slices_head(model))
        return {"d": d, "width": slicer.D, "head_sliced": self.slices_head(model), "energy_kept": slicer.energy}


Arguments = dict[str | None, dict[str, Any]]  # by kind of layer, as methods.model.activations.Entry has them


class _Slicer:
    """Makes one pass from the embedding to the head, each layer fed by the already cut layers before it.

    X  one signal (B, T, D) per micro-batch, in the original basis and float32; they wait on the host, or on the device
       where all of them take at most as much as states of one micro-batch may
    Q  (D, D), the basis at the next layer's input, columns by falling variance

    log  has the basis of each site that an interrupted pass has come to, and X at the last of them
    """

    def __init__(
        self, model: Decoder, arguments: list[Arguments], mask: list[Tensor], d: int, log: SweepLog, *, wait: Wait
    ) -> None:
        self.model, self.arguments, self.d, self.log, self.wait = model, arguments, d, log, wait
        self.kept_outcomes = log.kept()
        self.D, self.device = model.embed.embedding_dim, model.embed.weight.device
        self.X = log.take()
        self.mask = [real.to(self.X[0].device) for real in mask]
        self.energy: list[float] = []  # share of the signal's energy in the kept axes, site by site
        self.Q = self.basis(lambda: self.X)

    def run(self, slice_head: bool) -> None:
        tables = [self.model.embed] + ([self.model.positions] if self.model.positions is not None else [])
        for table in tables:
            table.weight = cut_columns(table.weight, self.Q, self.d)
            table.embedding_dim = self.d
        layers = self.model.layers
        for number, layer in enumerate(self.model.sweep(show_progress(layers[:-1], "slicing", "layer"))):
            self.model.read_ahead(number + 1)
            with layer.visiting():
                self.slice_layer(layer, self.d)
        with layers[-1].visiting():
            self.slice_layer(layers[-1], self.d if slice_head else self.D)
        layers[-1].settle()
        head = self.model.head
        head.weight = cut_columns(head.weight, self.Q, self.d if slice_head else self.D)
        head.in_features = head.weight.shape[1]
        self.model.set_layers(layers)
        self.model.settle()

    def slice_layer(self, layer: Layer, e: int) -> None:
        """Cut one layer: it will read d and write e columns."""
        B = self.Q.T[: self.d]  # (d, D), from the cut basis back to the original one
        read_in_basis(layer.qkv, self.Q, self.d)
        if layer.parallel:
            read_in_basis(layer.up, self.Q, self.d)
            self.Q = self.basis(lambda: self.advance(layer, B, layer.attn_norm, partial(output_of_both, layer)))
            shortcuts = [B @ self.Q[:, :e]]
            write_in_basis(layer.out, self.Q, e)
        else:
            # X then is Y, the MLP's input
            Q_m = self.basis(lambda: self.advance(layer, B, layer.attn_norm, partial(output_of_attention, layer)))
            write_in_basis(layer.out, Q_m, self.d)
            read_in_basis(layer.up, Q_m, self.d)
            B_m, self.Q = Q_m.T[: self.d], Q_m
            self.Q = self.basis(lambda: self.advance(layer, B_m, layer.mlp_norm, lambda h, _: output_of_mlp(layer, h)))
            shortcuts = [B @ Q_m[:, : self.d], B_m @ self.Q[:, :e]]
        write_in_basis(layer.down, self.Q, e)
        layer.module = SlicedLayer(layer, [shortcut.to(layer.device, layer.out.weight.dtype) for shortcut in shortcuts])

    def basis(self, signal: Callable[[], list[Tensor]]) -> Tensor:
        """Return the basis of the signal at the next site, (D, D). The log of an interrupted pass may have it."""
        outcome = next(self.kept_outcomes, None)
        if outcome is None:
            self.X = signal()
            outcome = self.pca()
            self.log.add(outcome, self.X)
        Q, energy = outcome
        self.energy.append(float(energy))
        return Q.to(self.device)

    def advance(self, layer: Layer, B: Tensor, norm: nn.Module, block: Callable[[Tensor, Any], Tensor]) -> list[Tensor]:
        """Cut the signal, (B, T, D) -> (B, T, d), and pass it through one sub-block: S B + block(rms(S))."""
        B, Q = (matrix.to(layer.device, torch.float32) for matrix in (B, self.Q[:, : self.d]))
        dtype = layer.out.weight.dtype
        for at, given in enumerate(self.arguments):
            S, waits = self.X[at].to(layer.device) @ Q, self.X[at].device
            self.X[at] = self.wait((S @ B + block(norm(S.to(dtype)), given[layer.kind])).to(waits))
        return self.X

    def pca(self) -> list[Tensor]:
        """Return the principal axes of the present signal, (D, D), and the share of its energy in the kept ones.

        No mean is subtracted, padding is left out, and sums are in float64. Raises Unsupported where one overflows.
        """
        C = torch.zeros(self.D, self.D, dtype=torch.float64, device=self.device)
        for X, mask in zip(self.X, self.mask, strict=True):
            x = widen(X[mask].to(self.device), of=self.model.embed.weight.dtype)
            add_product(C, x, x)
        refuse_overflow(C.isfinite().all())
        variance, axes = torch.linalg.eigh(C)
        energy = round(float(variance[-self.d :].sum() / variance.sum()), 6)
        return [widen(axes.flip(1), of=self.model.embed.weight.dtype), torch.tensor(energy, dtype=torch.float64)]


def refuse_unless_rotatable(model: Decoder) -> None:
    """Raise Unsupported where a rotation of the residual would change the model, or where it is sliced already."""
    model.refuse_sliced()
    model.refuse("residual")


def values_per_token(model: Decoder) -> int:
    """Return how many numbers a token has in memory in a layer: residuals, the widest reads, a float64 copy."""
    layer = model.layers[0]
    reads = sum(matrix.out_features for matrix in (*layer.qkv, *layer.up))
    return 6 * model.embed.embedding_dim + 2 * reads


def parameters_after_slicing(model: Decoder, d: int, slice_head: bool = False) -> int:
    """Return the stored parameters after slicing to width d, from shapes alone; at d = D those of a rotated model."""
    D, V = model.embed.embedding_dim, model.embed.num_embeddings
    total = V * d + (model.positions.num_embeddings * d if model.positions is not None else 0)
    layers = model.layers
    for index, layer in enumerate(layers):
        e = D if index == len(layers) - 1 and not slice_head else d
        middle = e if layer.parallel else d
        total += _untouched_parameters(layer) + d * middle + (0 if layer.parallel else d * e)
        for norm, matrices in ((layer.attn_norm, layer.qkv), (layer.mlp_norm, layer.up)):
            for matrix in matrices:  # to which fusing a norm's own bias gives one
                total += matrix.out_features * (d + max(_biases(norm), _biases(matrix)))
        total += middle * (layer.out.in_features + int(layer.out.bias is not None))
        total += e * (layer.down.in_features + int(layer.down.bias is not None))
    return total + V * ((d if slice_head else D) + max(_biases(model.final_norm), _biases(model.head)))


def sizes_of_slices(model: Decoder, widths: Iterable[int], slice_head: bool = False) -> list[int]:
    """Return `parameters_after_slicing` for each width, from three of them: it is a polynomial of degree 2 in d."""
    constant, first, second = (parameters_after_slicing(model, width, slice_head) for width in range(3))
    square = (second - 2 * first + constant) // 2
    linear = first - constant - square
    return [constant + linear * width + square * width**2 for width in widths]


def _biases(module: Any) -> int:
    """Return how many biases a module has for each number that it gives: one or none."""
    return int(getattr(module, "bias", None) is not None)


def _untouched_parameters(layer: Layer) -> int:
    """Return the parameters of a layer outside its matrices and the two norms that are fused."""
    touched = {id(p) for m in (layer.attn_norm, layer.mlp_norm, *layer.matrices) for p in m.parameters()}
    return sum(p.numel() for p in layer.inner.parameters() if id(p) not in touched)
