"""Narrow MLPs and heads by the second moments of what they compute, more where layers change little: MoDeGPT.

Lin, Gao, Smith, Patel, Tuli, Shen, Jin, Hsu 2025, "MoDeGPT: Modular Decomposition for Large Language Model
Compression", ICLR, arXiv 2408.09632. Code: cbacary/MoDeGPT, which is not by the paper's authors; they released none.

Three pairs of matrices are narrowed, each between its two. All moments are of the dense model, over all tokens.

MLP. z (I) enters the down matrix W (D, I), and C = E[z z^T]. Channel i has the ridge leverage

    s_i = [C (C + lam Id)^-1]_ii = 1 - lam [(C + lam Id)^-1]_ii

which is 1 where no other channels tell what the channel gives, and near 0 where they do. The largest stay, K, and the
down matrix becomes the one of a Nystrom approximation of C, which misses least of W z:

    W_K <- (W C)_K (C_KK)^-1

Queries and keys. Positions turn dimensions of a head in pairs, i and i + E/2. So a pair goes from the queries and the
key of a group together. With q and k in front of the positions, the pairs of the largest score stay

    s = (sum over the group's queries q of E[q_i^2] E[k_i^2] + E[q_(i+E/2)^2] E[k_(i+E/2)^2])^(1/2)

Values and output. v (E) is the value of a group, C_v = E[v v^T] = L L^T, and W_j (D, E) is what the output matrix has
for query head j of the group. With the first eigenvectors V of L^T (sum over j of W_j^T W_j) L,

    v <- V^T L^-1 v,        W_j <- W_j L V

misses least of sum over j of ||W_j v||^2 among all values of that width.

How much goes follows from the block influence of each layer, the mean over tokens of 1 - cos of x_l, which enters it,
and x_(l+1), which leaves it. Of L layers with the mean share phi, layer l loses

    phi_l = L phi softmax(-BI / eps)_l

of its channels, pairs and values, at most `most`; what lies above is handed to the other layers in the same proportion.

Departures from the authors' code. There is none, and what follows is of the code above. lam is a share of the mean of
C's diagonal, so that it means the same for channels of any size; the code adds 1e-2, in its scripts 1e-4. The fit has a
`damping` as obs has it, which draws W_K to the weights that it had; the code adds 1e-6, which draws it to 0. Values
that several query heads read are fitted to all of them, as the paper has it for one; the code fits them to themselves.
Numbers of channels are rounded so that the budget is met; the code rounds each layer's down. What a layer cannot lose
is handed on in one step; the code's loop may never end, where two layers hand a rounding error to each other. The ratio
counts all parameters of the model. 16 channels stay in each layer, or an eighth of fewer than 128. Padding is left out;
the code divides by 2,048 tokens for each text, however long. A norm of q or k divides by the size of a whole head: its
gain is multiplied by what is left of that size on average. As in the code, all layers are calibrated on the dense
model; `prefix=pruned` feeds each MLP by what is left of those before it.

A head that is narrower computes zeros in the places of what has gone, so that positions, norms and caches are those of
a whole head. Key/value caches stay as large as they are. `parts=mlp` leaves heads as they are.

Families. All but mixtures of experts, and with narrower heads all whose heads are independent.

Cost. Three forward passes, two with `prefix=pruned`, and for each layer an inverse and one solve of C in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from methods.base import Count, Holds, Look, Positive, Share, WidthPruner, register
from methods.errors import OutOfReach, Unsupported
from methods.model.activations import Step, collect_by_layer, refuse_overflow
from methods.model.calibration import Calibration, shared_statistics
from methods.model.decoder import Decoder
from methods.model.inserted import FewColumns, FewRows, keep_few
from methods.model.layer import Layer
from methods.model.precision import add_product, widen
from methods.model.sizes import parameters
from methods.model.structures import Structure, cuts_of, find_lowest, slices_of_attention, structures_of, units_in_order
from methods.width.obs import OBS, Cut, CutTarget, Prefix, Problem, factor
from methods.width.widths import find_equal_widths, list_lower_widths


@register("modegpt")
@dataclass(frozen=True)
class MoDeGPT(WidthPruner):
    """Narrow MLPs and heads, more where layers change little, and fit what writes the residual (Lin et al. 2025)."""

    parts: Literal["all", "mlp"] = "all"  # pairs of matrices that are narrowed
    ridge: Positive = 0.01  # lam of the leverage, as a share of the mean of C's diagonal
    damping: Positive = 0.01  # what is added to the diagonal of C for the fit, as a share of its mean
    smoothing: Positive = 0.15  # eps of the shares: the larger, the more alike
    most: Share = 0.8  # share of its channels and head widths that a layer loses at most
    prefix: Prefix = "dense"  # what feeds a layer where it is fitted: the dense ones before it, or those cut
    multiple: Count = 1  # what is left of the channels is a multiple of it
    uniform: bool = False  # as many channels in every layer, which stock transformers loads

    cost = "3 forwards, and an inverse of each MLP's second moments"
    mlp_solves = 1.5
    holds = Holds(states=2, squares=5)
    axes = ("head widths", "channels")
    leaves = ("channels", "head widths")
    paper_ratio = "the matrices of the layers"
    paper_reads = "32 x 2,048 tokens of WikiText-2; 128 x 2,048 in its scripts"  # CompressionConfig.py, tests.sh
    look = Look("long", "p")
    revision = 2  # narrows heads too

    def __post_init__(self) -> None:
        if self.uniform and self.parts != "mlp":
            raise ValueError("uniform=true goes with parts=mlp: no class of transformers takes narrower heads")

    def forwards(self, layers: int, removed: float, tokens: int) -> float:
        """Return two or three forwards, with sums of products in float64 twice."""
        return 5.4 if self.prefix == "dense" else 4.4

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return the parameters that are left, or with `uniform` the channels to remove from each layer."""
        structures, dense = structures_of(model, "channels"), parameters(model)
        if self.uniform:
            return {
                "removed_per_layer": find_equal_widths(model, structures, ratio, self.multiple, uniform=True),
            }
        reach = sum(room.most for room in self.rooms_of(model, structures))
        if ratio * dense > reach:
            raise OutOfReach(
                f"ratio {ratio:g} is out of reach: with most={self.most:g} of each layer's {self.what_goes} gone, "
                f"{reach / dense:.3f} of the parameters are; a larger most reaches further"
            )
        return {"budget": round((1 - ratio) * dense)}

    @property
    def what_goes(self) -> str:
        """Return in words what the parts lose."""
        return "channels" if self.parts == "mlp" else "channels and head widths"

    def rooms_of(self, model: Decoder, structures: Sequence[Structure]) -> list[Room]:
        """Return what each layer may lose. Raises Unsupported where heads cannot be narrowed."""
        if self.parts == "all":
            refuse_heads(model)
        by_layer = {structure.number: structure for structure in structures}
        rooms = []
        for number, layer in enumerate(model.layers):
            channels = by_layer.get(number)
            counts = torch.zeros(1, dtype=torch.long)
            if channels is not None:
                counts = list_lower_widths(channels, self.multiple)
                counts = counts[counts <= self.most * channels.size]
            heads = self.parts == "all" and layer.has_attention
            rooms.append(Room(number, channels, counts, HeadSizes.of(layer) if heads else HeadSizes(), self.most))
        return rooms

    @torch.no_grad()
    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Choose what each layer loses, and cut it with fits of the matrices that write the residual."""
        plan, structures = self.plan(model, ratio), structures_of(model, "channels")
        decided: dict[str, Any] = {"missed": []}
        if ratio:
            moments = collect_moments(model, calibration, self.ridge, self.parts)
            decided["influences"] = [float(each.influence) for each in moments]
            counts, losses = self.count(model, structures, moments, plan, ratio * parameters(model))
            noted, chosen = units_in_order(calibration.order), list[list[int]]()
            for structure, count in zip(structures, counts, strict=True):
                lowest = sorted(find_lowest(moments[structure.number].leverage, count))
                chosen.append(noted.get((structure.number, structure.kind), []) if noted else lowest)
            fits = fit_heads(model, moments, losses, self.damping)
            if self.prefix == "pruned":
                cut_heads(model, fits)
            decided["missed"] = self.cut(model, structures, chosen, calibration) if any(chosen) else []
            if self.prefix == "dense":
                cut_heads(model, fits)
            if fits:
                decided |= decisions_of_heads(model, fits)
        return plan | decided | {"parameters": parameters(model)} | cuts_of(model, structures)

    def count(
        self,
        model: Decoder,
        structures: Sequence[Structure],
        moments: Sequence[LayerMoments],
        plan: dict[str, Any],
        target: float,
    ) -> tuple[list[int], dict[int, HeadLoss]]:
        """Return how many channels of each structure go, and what the heads of each layer lose, by its number.

        Together they are `target` parameters.
        """
        if self.uniform:
            return [int(plan["removed_per_layer"][structure.kind]) for structure in structures], {}
        rooms = [room for room in self.rooms_of(model, structures) if room.size]
        influence = torch.stack([moments[room.number].influence for room in rooms])
        sizes = torch.tensor([room.size for room in rooms], dtype=torch.float64)
        most = torch.tensor([room.most for room in rooms], dtype=torch.float64) / sizes
        phi = find_shares(torch.softmax(-influence / self.smoothing, 0), sizes, most, target).tolist()
        losses = {room.number: room.heads.round(share, self.most) for room, share in zip(rooms, phi, strict=True)}
        freed = {room.number: room.heads.parameters_of(losses[room.number]) for room in rooms}
        shares = {room.number: share for room, share in zip(rooms, phi, strict=True)}
        ideal, allowed = list[float](), list[Tensor]()
        for room in rooms:
            if room.channels is not None:
                rest = (shares[room.number] * room.size - freed[room.number]) / room.channels.cost
                ideal.append(min(max(0.0, rest), float(room.counts[-1])))
                allowed.append(room.counts)
        costs = [structure.cost for structure in structures]
        counts = round_counts(ideal, allowed, costs, target - sum(freed.values()))
        return counts, {number: loss for number, loss in losses.items() if any(loss)}

    def cut(
        self, model: Decoder, structures: list[Structure], chosen: list[list[int]], calibration: Calibration
    ) -> list[dict[str, float]]:
        """Cut these channels, and return what each layer's down matrix misses then, as `OBS.sweep` does."""
        units = {(each.number, each.kind): several for each, several in zip(structures, chosen, strict=True)}
        counts = {at: len(several) for at, several in units.items() if several}

        def cut(target: CutTarget, C: Tensor) -> Cut:
            structure = target.structure
            return Problem(structure, C, self.damping).without(units[structure.number, structure.kind])

        return OBS(damping=self.damping).sweep(model, structures, counts, calibration, cut, prefix=self.prefix)


class HeadLoss(NamedTuple):
    """Says how many pairs of dimensions each query and key of a layer loses, and how many dimensions each value."""

    pairs: int = 0
    values: int = 0


@dataclass(frozen=True)
class HeadSizes:
    """Holds the width E of a layer's heads, and the parameters of one pair and of one value in all of them."""

    width: int = 0
    pair: int = 0
    value: int = 0

    @classmethod
    def of(cls, layer: Layer) -> HeadSizes:
        """Return the sizes of a layer's heads."""
        E, G = layer.head_width, layer.kv_heads
        q, k, v, out = (part.parameters * G // E for part in slices_of_attention(layer))
        return cls(E, 2 * (q + k), v + out)

    def parameters_of(self, loss: HeadLoss) -> int:
        """Return the parameters of what is lost."""
        return loss.pairs * self.pair + loss.values * self.value

    @property
    def whole(self) -> HeadLoss:
        """Return all that the heads have."""
        return HeadLoss(self.width // 2, self.width)

    def round(self, share: float, most: float) -> HeadLoss:
        """Return whole numbers next to a share of the heads, at most the share `most`."""
        pairs, values = (min(round(share * count), int(most * count)) for count in self.whole)
        return HeadLoss(pairs, values)


@dataclass(frozen=True)
class Room:
    """Says what a layer may lose.

    channels  of its MLP; None where it has none
    counts    how many channels may go, rising from 0
    heads     of its attention; all 0 where they stay as they are
    share     of the heads' width that may go at most
    """

    number: int
    channels: Structure | None
    counts: Tensor
    heads: HeadSizes
    share: float

    @property
    def size(self) -> int:
        """Return the parameters that the shares are of."""
        channels = 0 if self.channels is None else self.channels.size * self.channels.cost
        return channels + self.heads.parameters_of(self.heads.whole)

    @property
    def most(self) -> int:
        """Return the parameters that may go."""
        channels = 0 if self.channels is None else int(self.counts[-1]) * self.channels.cost
        return channels + self.heads.parameters_of(self.heads.round(1.0, self.share))


class LayerMoments(NamedTuple):
    """Holds what a layer computes on all tokens, in float64; (0,) where it has no such part.

    influence  () BI
    leverage   (I,) of its channels
    q          (2, G, R, E) mean squares of its queries, and of the queries behind their norm
    k          (2, G, E) the same of its keys
    C_v        (G, E, E) second moments of its values
    """

    influence: Tensor
    leverage: Tensor
    q: Tensor
    k: Tensor
    C_v: Tensor


def collect_moments(model: Decoder, calibration: Calibration, ridge: float, parts: str) -> list[LayerMoments]:
    """Return the moments of each layer; `ridge` is that of the leverage. Heads have none where only MLPs are cut."""
    flat = shared_statistics(collect_flat_moments, model, calibration, ridge, parts)
    size = len(LayerMoments._fields)
    return [LayerMoments(*flat[at : at + size]) for at in range(0, len(flat), size)]


def collect_flat_moments(model: Decoder, calibration: Calibration, ridge: float, parts: str) -> list[Tensor]:
    """Return the fields of the moments of all layers, one behind the other."""
    layers = model.layers

    def of_layer(number: int, steps: Iterator[Step]) -> LayerMoments:
        layer, total, count = layers[number], 0.0, 0
        I = layer.down.in_features if layer.has_mlp else 0
        C = torch.zeros(I, I, dtype=torch.float64, device=layer.device)
        heads = HeadSums(layer) if parts == "all" and layer.has_attention else None
        for step in steps:
            x, y = step.x[step.mask].float(), step.y[step.mask].float()
            total += float((1 - cosine_similarity(x, y, dim=-1)).double().sum())
            z = widen(step.channels[step.mask])
            add_product(C, z, z)
            count += len(z)
            if heads is not None:
                heads.add(step.x[step.mask])
        sums = [torch.zeros(0, dtype=torch.float64)] * 3 if heads is None else [heads.q, heads.k, heads.C_v]
        of_heads = [each / count for each in sums]
        return LayerMoments(torch.tensor(total / count, dtype=torch.float64), leverage_of_channels(C, ridge), *of_heads)

    return [field for of_each in collect_by_layer(model, calibration, of_layer, ridge, parts) for field in of_each]


class HeadSums:
    """Adds up squares of queries and keys and products of values of a layer, by the names of LayerMoments."""

    def __init__(self, layer: Layer) -> None:
        self.layer, self.parts = layer, slices_of_attention(layer)[:3]
        G, R, E = layer.kv_heads, layer.group, layer.head_width
        zeros = partial(torch.zeros, dtype=torch.float64, device=layer.device)
        self.q, self.k, self.C_v = zeros(2, G, R, E), zeros(2, G, E), zeros(G, E, E)

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Add tokens that enter the layer, (tokens, D)."""
        h, (G, R, E) = self.layer.enter(self.layer.attn_norm(x)), self.q.shape[1:]
        computed = {id(matrix): matrix(h) for matrix in self.layer.qkv}
        q, k, v = (computed[id(part.matrix)][:, part.index.flatten().to(x.device)] for part in self.parts)
        q, k, v = q.view(-1, G, R, E), k.view(-1, G, E), widen(v.view(-1, G, E))
        for sums, states, norm in zip((self.q, self.k), (q, k), norms_of_heads(self.layer), strict=True):
            normed = states if norm is None else norm(states)
            sums.add_(torch.stack([each.double().square().sum(0) for each in (states, normed)]))
        self.C_v += torch.einsum("tgi,tgj->gij", v, v)


def norms_of_heads(layer: Layer) -> tuple[Any, Any]:
    """Return the norms of a query and of a key, (..., E) -> (..., E); None for none."""
    return getattr(layer.attn, "q_norm", None), getattr(layer.attn, "k_norm", None)


def refuse_heads(model: Decoder) -> None:
    """Raise Unsupported where heads cannot be narrowed: they depend on each other, or a norm subtracts their mean."""
    model.refuse("heads")
    for layer in model.layers:
        if layer.mixer_alone is not None:
            raise Unsupported(
                "heads are not narrowed where mixers stand for some attentions; parts=mlp leaves them as they are"
            )
        if layer.has_attention and getattr(layer.attn, "q_layernorm", None) is not None:
            raise Unsupported(
                "heads are not narrowed where a norm subtracts the mean of q and k, as in phi with qk_layernorm=True; "
                "parts=mlp leaves them as they are"
            )


def pairs_of_dimensions(model: Decoder) -> Tensor:
    """Return the dimensions of a head that positions turn together, (E / 2, 2).

    Those that do not turn are paired with their neighbours.
    """
    E, sizes = model.layers[0].head_width, list[int]()
    vision = tuple(f"{path}." for path in model.family.vision)
    for name, buffer in model.model.named_buffers():
        if name.endswith("inv_freq") and not name.startswith(vision):
            sizes.append(2 * buffer.numel())
    turning = min(sizes, default=0)
    halves = torch.arange(turning).view(2, -1).T
    if model.family.turns_neighbours:
        halves = torch.arange(turning).view(-1, 2)
    return torch.cat([halves, torch.arange(turning, E).view(-1, 2)])


class HeadFit(NamedTuple):
    """Says what is left of the heads of a layer.

    removed  (G, pairs) that go of each group, rising
    read     (G, E, k) for v <- v read; no tensor where all of v stays
    write    (G, E, k) for W_j <- W_j write
    gains    of the norms of queries and keys, times their own
    missed   shares of the squared scores and outputs that are lost
    """

    removed: Tensor
    read: Tensor | None
    write: Tensor | None
    gains: tuple[float, float]
    missed: dict[str, float]


def fit_heads(
    model: Decoder, moments: Sequence[LayerMoments], losses: Mapping[int, HeadLoss], damping: float
) -> dict[int, HeadFit]:
    """Return by the number of a layer what is left of its heads. The model stays as it is."""
    pairs, fits = pairs_of_dimensions(model), dict[int, HeadFit]()
    for number, loss in losses.items():
        layer, of_layer = model.layers[number], moments[number]
        score = score_pairs(of_layer, pairs)
        removed = score.argsort(dim=1, stable=True)[:, : loss.pairs].sort(1).values
        missed = {"scores": float(score.gather(1, removed).square().sum() / score.square().sum())}
        read = write = None
        if loss.values:
            with layer.visiting():
                columns = slices_of_attention(layer)[3].index
                W = layer.out.weight.detach()[:, columns].double().cpu()  # (D, G, R E)
            G, E, _ = of_layer.C_v.shape
            W = W.view(len(W), G, -1, E)
            S = torch.einsum("dgri,dgrj->gij", W, W)
            read, write, missed["values"] = fit_values(of_layer.C_v, S, E - loss.values, damping)
        gains = [find_size(squares[0], pairs, removed) for squares in (of_layer.q, of_layer.k[:, :, None])]
        fits[number] = HeadFit(removed, read, write, (gains[0], gains[1]), missed)
    return fits


def score_pairs(moments: LayerMoments, pairs: Tensor) -> Tensor:
    """Return s of each pair of dimensions, (G, E / 2)."""
    products = (moments.q[1] * moments.k[1][:, None]).sum(1)  # (G, E), over the group's queries
    return products[:, pairs].sum(-1).sqrt()


def find_size(squares: Tensor, pairs: Tensor, removed: Tensor) -> float:
    """Return the share of the heads' root mean square that stays without these pairs (G, n); squares (G, R, E)."""
    lost = sum(float(of_group[:, pairs[places]].sum()) for of_group, places in zip(squares, removed, strict=True))
    return float((1 - lost / squares.sum()).clamp_min(0).sqrt())


def fit_values(C_v: Tensor, S: Tensor, k: int, damping: float) -> tuple[Tensor, Tensor, float]:
    """Return read and write, (G, E, k) each, so that v read write^T misses least of v for all W_j, and its share.

    C_v  (G, E, E) second moments of the values
    S    (G, E, E) sum over j of W_j^T W_j
    """
    lift = damping * C_v.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(torch.finfo(C_v.dtype).tiny)
    L = torch.linalg.cholesky(C_v + lift[:, None, None] * torch.eye(C_v.shape[-1], dtype=C_v.dtype))
    gained, V = torch.linalg.eigh(L.mT @ S @ L)  # rising
    V = V[..., -k:].flip(-1)
    read = torch.linalg.solve_triangular(L.mT, V, upper=True)
    missed = gained[..., :-k].clamp_min(0).sum() / gained.clamp_min(0).sum()
    return read, L @ V, float(missed)


@torch.no_grad()
def cut_heads(model: Decoder, fits: Mapping[int, HeadFit]) -> None:
    """Narrow the heads of these layers, in place."""
    pairs = pairs_of_dimensions(model)
    for number, fit in fits.items():
        layer = model.layers[number]
        with layer.visiting():
            for norm, gain in zip(norms_of_heads(layer), fit.gains, strict=True):
                if norm is not None:
                    changed = model.gain(norm) * gain - model.family.gain_offset
                    norm.weight = nn.Parameter(changed, norm.weight.requires_grad)
            _fold_values(layer, fit)
            _leave_out(layer, pairs, fit)
        layer.settle()


def _fold_values(layer: Layer, fit: HeadFit) -> None:
    """Put what is left of the values into the first rows and columns of each head: W_v <- read^T W_v, W_j write."""
    if fit.read is None or fit.write is None:
        return
    _, _, v, out = slices_of_attention(layer)
    weight, written, k = v.matrix.weight.detach().clone(), out.matrix.weight.detach().clone(), fit.read.shape[-1]
    bias = None if v.matrix.bias is None else v.matrix.bias.detach().clone()
    of_heads = out.index.view(layer.kv_heads, layer.group, -1)
    fits = zip(fit.read.to(weight.device), fit.write.to(written.device), strict=True)
    for rows, columns, (read, write) in zip(v.index, of_heads, fits, strict=True):
        weight[rows[:k]] = (read.T @ weight[rows].double()).to(weight.dtype)
        if bias is not None:
            bias[rows[:k]] = (read.T @ bias[rows].double()).to(bias.dtype)
        written[:, columns[:, :k]] = (written[:, columns].double() @ write).to(written.dtype)
    for matrix, changed in ((v.matrix, weight), (out.matrix, written)):
        matrix.weight = nn.Parameter(changed, matrix.weight.requires_grad)
    if bias is not None and v.matrix.bias is not None:
        v.matrix.bias = nn.Parameter(bias, v.matrix.bias.requires_grad)


def _leave_out(layer: Layer, pairs: Tensor, fit: HeadFit) -> None:
    """Let matrices compute and read only what is left of the heads."""
    q, k, v, out = slices_of_attention(layer)
    G, R, E = layer.kv_heads, layer.group, layer.head_width
    stays = torch.ones(G, len(pairs), dtype=torch.bool).scatter_(1, fit.removed, False)
    turned = torch.zeros(G, E, dtype=torch.bool)
    turned[:, pairs] = stays[..., None]
    width = E if fit.read is None else fit.read.shape[-1]
    first = (torch.arange(E) < width).expand(G, E)
    rows = [(q, turned.repeat(1, R)), (k, turned), (v, first)]
    for path, matrix in layer.named_matrices().items():
        places = [part.index[mask] for part, mask in rows if part.matrix is matrix]
        kind: type[FewRows | FewColumns] = FewRows
        if matrix is out.matrix:
            places, kind = [out.index[first.repeat(1, R)]], FewColumns
        if places and sum(map(len, places)) < (matrix.in_features if kind is FewColumns else matrix.out_features):
            layer.put(path, keep_few(matrix, kind, torch.cat(places).sort().values.tolist()))


def decisions_of_heads(model: Decoder, fits: Mapping[int, HeadFit]) -> dict[str, Any]:
    """Return for the record, by layer, the widths that are left of the heads, and the pairs that each group lost."""
    widths, lost, missed = list[list[int]](), list[list[list[int]]](), list[dict[str, float]]()
    for number, layer in enumerate(model.layers):
        E, fit = layer.head_width, fits.get(number)
        removed = [] if fit is None else fit.removed.tolist()
        values = E if fit is None or fit.read is None else fit.read.shape[-1]
        widths.append([E - 2 * len(removed[0]) if removed else E, values] if layer.has_attention else [0, 0])
        lost.append(removed)
        missed.append({} if fit is None else fit.missed)
    return {"head_widths": widths, "removed_pairs": lost, "missed_of_heads": missed}


def leverage_of_channels(C: Tensor, ridge: float) -> Tensor:
    """Return s (I,) of second moments C (I, I) in float64, whose memory it uses; `ridge` is a share of C's mean."""
    if not len(C):
        return C.diagonal()
    refuse_overflow(C.isfinite().all())
    lam = ridge * C.diagonal().mean().clamp_min(torch.finfo(C.dtype).tiny)
    C.diagonal().add_(lam)
    return 1 - lam * torch.cholesky_inverse(factor(C)).diagonal()


def find_shares(weights: Tensor, sizes: Tensor, most: Tensor, target: float) -> Tensor:
    """Return phi (n,): in proportion to the weights and at most `most`, so that the sum of sizes * phi is `target`."""
    at_most = torch.zeros_like(most, dtype=torch.bool)
    while not at_most.all():
        rest = target - float((sizes * most)[at_most].sum())
        shares = torch.where(at_most, most, weights * (rest / (sizes * weights)[~at_most].sum()))
        over = (shares > most) & ~at_most
        if not over.any():
            return shares
        at_most |= over
    return most


def round_counts(ideal: Sequence[float], allowed: Sequence[Tensor], costs: Sequence[int], target: float) -> list[int]:
    """Return whole numbers near to the ideal ones, (n,), whose sum with the costs is next to `target`.

    Each is rounded down to an allowed number. Then those that lost the largest share of a step go up again, as long as
    that brings the sum nearer.

    allowed  for each place its numbers, rising
    """
    counts, steps = list[int](), list[tuple[float, int, int]]()
    for place, (number, several) in enumerate(zip(ideal, allowed, strict=True)):
        below = int(several[several <= number].max())
        counts.append(below)
        for above in several[several > below][:1].tolist():
            steps.append(((number - below) / (above - below), place, above - below))
    missing = target - sum(count * cost for count, cost in zip(counts, costs, strict=True))
    for _, place, step in sorted(steps, key=lambda each: -each[0]):
        freed = step * costs[place]
        if abs(missing - freed) < abs(missing):
            counts[place] += step
            missing -= freed
    return counts
