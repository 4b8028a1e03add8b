"""Remove the heads and channels whose loss costs a layer's output least, and update the rest exactly: OBS.

Kurtic, Frantar, Alistarh 2023, "ZipLM: Inference-Aware Structured Pruning of Language Models", NeurIPS,
arXiv 2302.04089; Meng, Ibrahim, Behdin, Hazimeh, Ponomareva, Mazumder 2024, "OSSCAR: One-Shot Structured Pruning in
Vision and Language Models with Combinatorial Optimization", ICML, arXiv 2403.12983; after Hassibi, Stork 1992, "Second
order derivatives for network pruning: Optimal Brain Surgeon", NIPS. Code: mazumder-lab/OSSCAR.

W (D, C) is the attention's output matrix or the MLP's down matrix, X (T, C) what enters it in the model as it has been
pruned so far. A matrix V with zeros at what has been removed costs

    1/2 tr((V - W) H (V - W)^T),    H = X^T X + damping mean(diag(X^T X)) I

A unit u is a key/value head with its query heads, or a channel of the MLP. With V the best matrix so far, and H^-1 over
what is left, the removal of u costs

    c(u) = 1/2 tr(V_u ((H^-1)_uu)^-1 V_u^T)                     and leaves
    V    <- V - V_u ((H^-1)_uu)^-1 (H^-1)_u:
    H^-1 <- H^-1 - (H^-1)_:u ((H^-1)_uu)^-1 (H^-1)_u:

The cheapest unit goes, then the next, as many in every layer (methods/width/obs.py). At last V is solved for
anew, V_K = (W H)_K (H_KK)^-1 over the columns K that are left. In each layer the attention is first, and the MLP is fed
by what is left of it.

`score=tyr-release` adds tr(V_u (H W^T)_u) to c(u), as the code of Tyr-the-Pruner does (Li, Zhao, Liu, Barsoum 2025,
NeurIPS, arXiv 2503.09657; AMD-AGI/Tyr-the-Pruner). That is not the cost: on a random matrix, where tests find the
loss without each unit by solving for it, c(u) is that loss and this score puts other units first. That code removes
channels in 16 rounds and heads in one.

Departures from the authors' code. There H of the attention's output and of the MLP's down matrix are of one forward,
before either is cut; here the MLP is fed by what is left of the attention. OSSCAR's code removes 10 channels or 2 heads
in a round, whose costs it does not update meanwhile (`rounds` is one number for both). A head is a key/value head with
all its query heads, also under grouped queries. Of the heads the same share goes as of the whole, rounded down, and
channels close the budget. One head and 16 channels stay in each layer, or an eighth of fewer than 128 channels.
Channels that are always 0 are no special case: with damping they cost next to nothing. OSSCAR's code takes a unit whose
weights add up to 0 for one that is gone. Its local search, which swaps units afterwards, is not built. Sums and solves
are in float64.

Cost. Two forward passes, and for each matrix that is cut an inverse of H, about as many operations again for the
removals, and one solve. Memory holds the hidden states of all calibration tokens in front of one layer and behind it,
and four matrices of C by C in float64.

How the costs are computed (`RemovalCosts`). With P = H^-1 over the columns that are left, c(u) above needs Z = V^T V
alone, so that D drops out. With L L^T = P_uu a removal leaves

    P <- P - G G^T               G = P_:u L^-T
    Z <- Z - Y G^T - G Y^T       Y = Z_:u L^-T - 1/2 G L^-1 Z_uu L^-T

The costs need the blocks of both on the diagonal, and these are always up to date. The rest is updated for LATER
columns in one product of matrices. The choice of units does not depend on that.

The code of Tyr-the-Pruner (arXiv 2503.09657) adds tr(V_u (H W^T)_u) to c(u). That is a block on the diagonal of
F = H W^T V, which a removal leaves as F - F_:u L^-T G^T.

Letters: U = units that are left, w = columns of a unit, C = U w.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from methods.base import Count, Holds, Look, Positive, WidthPruner, register
from methods.console import show_progress
from methods.errors import Unsupported
from methods.model.activations import collect_inputs, enter_all, move_beside, refuse_overflow, values_of_a_step
from methods.model.calibration import Calibration, Wait
from methods.model.decoder import Decoder
from methods.model.layer import Layer
from methods.model.precision import add_product, widen
from methods.model.sizes import parameters
from methods.model.structures import Structure, cuts_of, find_lowest, structures_of, units_in_order
from methods.width.widths import find_equal_widths

Run = Callable[[Tensor, dict[str, Any]], Tensor]  # what a block adds to the residual, (B, T, D) -> (B, T, D)

Counts = dict[tuple[int, str], int]  # units, by layer and kind


@register("obs")
@dataclass(frozen=True)
class OBS(WidthPruner):
    """Remove the heads and channels that a layer's output misses least, by second order, and update the rest."""

    damping: Positive = 0.01  # what is added to the diagonal of H, as a share of its mean
    score: Score = "cost"  # cost: what the output misses; tyr-release: as the code of Tyr-the-Pruner computes it
    rounds: Count | None = None  # in which units go, those of a round at once; None: one unit after another
    multiple: Count = 1  # what is left of the channels is a multiple of it
    uniform: bool = False  # as many heads as stock transformers takes; the widths are equal anyway

    cost = "2 forwards, and 2 inverses of each layer's H"
    mlp_solves = 6.0
    holds = Holds(states=2, squares=5)
    axes = ("heads", "channels")
    leaves = ("equal widths",)
    paper_ratio = "the heads and channels"
    paper_reads = "128 x 2,048 tokens of C4"  # README.md, opt_prune.py
    look = Look("solid", "h")

    def forwards(self, layers: int, removed: float, tokens: int) -> float:
        """Return two forwards, and sums of products in float64."""
        return 3.4  # two, and sums of products in float64

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return the units to remove from each layer."""
        return {
            "removed_per_layer": find_equal_widths(
                model, structures_of(model), ratio, self.multiple, uniform=self.uniform
            )
        }

    @torch.no_grad()
    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Cut the cheapest units of each layer in rounds, and update what is left of the matrix after each."""
        plan, structures = self.plan(model, ratio), structures_of(model)
        equal = plan["removed_per_layer"]
        counts = {(each.number, each.kind): equal[each.kind] for each in structures if equal[each.kind]}
        missed = self.sweep(model, structures, counts, calibration) if counts else []
        return plan | {"parameters": parameters(model), "missed": missed} | cuts_of(model, structures)

    @torch.no_grad()
    def sweep(
        self,
        model: Decoder,
        structures: list[Structure],
        counts: Counts,
        calibration: Calibration,
        cut: Callable[[CutTarget, Tensor], Cut] | None = None,
        *,
        prefix: Prefix = "pruned",
    ) -> list[dict[str, float]]:
        """Cut layer by layer; return the errors of each layer's outputs, tr((V-W) H (V-W)^T) / tr(W H W^T), by kind.

        counts  how many units go, by layer and kind. A structure that is missing is not cut
        cut     returns the cut for a target and H without damping, (C, C), whose memory it may use; None: `self.cut`
        prefix  what feeds a sublayer: those before it as they have been cut, or as they were
        """
        cut = cut or self.cut
        entries, masks = enter_all(model, calibration, values_of_a_step(model))
        noted = units_in_order(calibration.order)
        log = calibration.log([entry.x for entry in entries], "obs", self, counts, sorted(noted.items()), prefix)
        kept, X, missed = log.kept(), log.take(), list[dict[str, float]]()
        arguments = [entry.arguments for entry in entries]
        del entries  # with the first layer's input
        for number, layer in enumerate(show_progress(model.layers, "removing", "layer")):
            targets = [
                CutTarget(each, counts[number, each.kind], noted.get((number, each.kind), []))
                for each in structures
                if each.number == number and (number, each.kind) in counts
            ]
            model.read_ahead(number + 1)
            with layer.visiting():
                if number < log.done:
                    tensors = next(kept)
                    cuts = [Cut(*tensors[at : at + 3]) for at in range(0, len(tensors), 3)]
                    for each, cut_of_target in zip(targets, cuts, strict=True):
                        cut_of_target.make(each.structure)
                else:
                    given = [each[layer.kind] for each in arguments]
                    X = [x.to(layer.device) for x in X]
                    batches = list(map(Batch, X, given, *move_beside(X, masks)))
                    X, cuts = _cut_layer(layer, targets, batches, (cut, prefix, calibration.wait))
                    log.add([tensor for cut_of_target in cuts for tensor in cut_of_target], X)
            missed.append(
                {
                    each.structure.kind: float(cut_of_target.missed)
                    for each, cut_of_target in zip(targets, cuts, strict=True)
                }
            )
        return missed

    def cut(self, target: CutTarget, H: Tensor) -> Cut:
        """Return the cut of a target for H without damping, (C, C). The damped H takes its memory."""
        problem = Problem(target.structure, H, self.damping)
        return problem.without(target.chosen or problem.cheapest(target.how_many, self.score, self.rounds))


class CutTarget(NamedTuple):
    """Says how many units of a structure are to be cut, and which ones where they are chosen already."""

    structure: Structure
    how_many: int
    chosen: list[int]


class Batch(NamedTuple):
    """Holds the input of a layer for one micro-batch.

    x          (B, T, D)
    arguments  of the layer besides the hidden states
    mask       (B, T) true at real tokens
    """

    x: Tensor
    arguments: dict[str, Any]
    mask: Tensor


class Cut(NamedTuple):
    """Holds the cut of one output matrix.

    units   (n,) that go
    V       (D, K) the columns that stay
    missed  () tr((V-W) X^T X (V-W)^T) / tr(W X^T X W^T)
    """

    units: Tensor
    V: Tensor
    missed: Tensor

    def make(self, structure: Structure) -> None:
        """Cut the units, and put the updated matrix in."""
        structure.drop(self.units.tolist())
        matrix = structure.writer
        matrix.weight = nn.Parameter(self.V.to(matrix.weight.device), matrix.weight.requires_grad)
        structure.layer.settle()


class Problem:
    """Holds W (D, C) of a structure's output matrix and its damped H, (C, C), both in float64.

    H  without damping. The damped H takes its memory
    """

    def __init__(self, structure: Structure, H: Tensor, damping: float) -> None:
        self.structure, self.H, self.W = structure, H, structure.writer.weight.double()
        self.width, self.damping = len(H) // structure.size, damping * float(H.diagonal().mean())
        H.diagonal().add_(self.damping)

    def cheapest(self, count: int, score: Score = "cost", rounds: int | None = None) -> list[int]:
        """Return the units that cost least, in the order in which they go (methods/width/obs.py)."""
        return find_cheapest(self.H, self.W, self.width, count, score=score, rounds=rounds)

    def without(self, units: list[int]) -> Cut:
        """Return the output matrix without these units that changes the sublayer's output least."""
        H, W = self.H, self.W
        stay = torch.ones(self.structure.size, dtype=torch.bool, device=H.device)
        stay[torch.tensor(units, dtype=torch.long, device=H.device)] = False
        K = stay.repeat_interleave(self.width).nonzero()
        V = torch.zeros_like(W)
        V[:, K[:, 0]] = torch.cholesky_solve((H @ W.T)[K[:, 0]], factor(H[K, K.T])).T
        missed, whole = (((each @ H) * each).sum() - self.damping * each.square().sum() for each in (V - W, W))
        share = missed / whole.clamp_min(torch.finfo(whole.dtype).tiny)  # 0 of a matrix that gives nothing
        return Cut(torch.tensor(sorted(units)), V[:, K[:, 0]].to(self.structure.writer.weight.dtype), share)

    def nested(self, order: list[int], counts: Iterable[int]) -> Iterator[Tensor]:
        """Yield the best matrix, (D, K), for each number of units in `left`. Units go in this order.

        One factor serves all, since the columns that stay longest come first in it:

            H = L L^T,    L_KK^T V^T = (L^-1 H W^T)_K
        """
        H, W, w = self.H, self.W, self.width
        longest = [*sorted(set(range(self.structure.size)) - set(order)), *reversed(order)]
        first = torch.tensor(longest, device=H.device)
        columns = (first[:, None] * w + torch.arange(w, device=H.device)).flatten()
        L = factor(H[columns[:, None], columns])
        solved = torch.linalg.solve_triangular(L, (H @ W.T)[columns], upper=False)
        for units in counts:
            K = units * w
            V = torch.linalg.solve_triangular(L[:K, :K].mT, solved[:K], upper=True)
            yield V[columns[:K].argsort()].T.contiguous().to(self.structure.writer.weight.dtype)


def _cut_layer(
    layer: Layer,
    targets: list[CutTarget],
    batches: list[Batch],
    how: tuple[Callable[[CutTarget, Tensor], Cut], Prefix, Wait],
) -> tuple[list[Tensor], list[Cut]]:
    """Cut a layer that is fed these batches; return its outputs, (B, T, D) each, and the cuts.

    The outputs are those after the cuts where the next layer is fed by the pruned model, and else those before.
    """
    cut, prefix, wait = how
    runs: tuple[Run, Run] = (layer.attend, lambda x, _: layer.transform(x))
    Y, cuts = [batch.x for batch in batches], list[Cut]()
    for is_of_heads, run in zip((True, False), runs, strict=True):
        entering = batches if layer.parallel else [batch._replace(x=y) for batch, y in zip(batches, Y, strict=True)]
        of_kind = [each for each in targets if each.structure.is_of_heads == is_of_heads]
        new = [cut(each, second_moments_of(each.structure, run, entering)) for each in of_kind]
        if prefix == "pruned":
            _make_all(new, of_kind)
        Y = [wait(y + run(batch.x, batch.arguments)) for y, batch in zip(Y, entering, strict=True)]
        if prefix == "dense":
            _make_all(new, of_kind)
        cuts += new
    return Y, cuts


def _make_all(cuts: list[Cut], targets: list[CutTarget]) -> None:
    for cut_of_target, target in zip(cuts, targets, strict=True):
        cut_of_target.make(target.structure)


def second_moments_of(structure: Structure, run: Run, batches: Iterable[Batch]) -> Tensor:
    """Return X^T X of the input of a structure's output matrix, (C, C) in float64.

    Raises Unsupported where it is not finite.
    """
    matrix = structure.writer
    sums = torch.zeros(matrix.in_features, matrix.in_features, dtype=torch.float64, device=structure.layer.device)
    for x, arguments, mask in batches:
        with collect_inputs(matrix) as inputs:
            run(x, arguments)
        X = widen(inputs[0].reshape(*mask.shape, -1)[mask])
        add_product(sums, X, X)
    refuse_overflow(sums.isfinite().all())
    return sums


Score = Literal["cost", "tyr-release"]
Prefix = Literal["dense", "pruned"]

LATER = 128  # columns whose updates are made in one product


def find_cheapest(
    H: Tensor, W: Tensor, width: int, count: int, *, score: Score = "cost", rounds: int | None = None
) -> list[int]:
    """Return the `count` units whose removal costs least, in the order in which they go.

    H (C, C) and W (D, C) are in float64; a unit is `width` columns that stand together.

    rounds  in which they go, those of a round at once; None: one after another

    Raises Unsupported where H is not positive definite.
    """
    costs, order = RemovalCosts(H, W, width, score), list[int]()
    rounds = min(rounds or count, count)
    for number in range(rounds):
        for unit in costs.cheapest(-(-(count - len(order)) // (rounds - number))):
            order.append(unit)
            costs.remove(unit)
    return order


class RemovalCosts:
    """Holds the cost of the removal of each unit that is left.

    P, Z and F (C, C) lack the updates of the last removals, whose G, Y and E = F_:u L^-T wait as columns of (C, n). The
    blocks on their diagonals, (U, w, w), lack none.
    """

    def __init__(self, H: Tensor, W: Tensor, width: int, score: Score = "cost") -> None:
        self.w, self.numbers = width, torch.arange(len(H) // width, device=H.device)
        self.P, self.Z = torch.cholesky_inverse(factor(H)), W.T @ W
        self.F = (H @ W.T) @ W if score == "tyr-release" else None
        self._start()

    def _start(self) -> None:
        self.removed = torch.zeros_like(self.numbers, dtype=torch.bool)
        self.G, self.Y, self.E = (self.P.new_zeros(len(self.P), 0) for _ in range(3))
        self.P_uu, self.Z_uu = self._diagonal(self.P), self._diagonal(self.Z)
        self.F_uu = None if self.F is None else self._diagonal(self.F)

    def _diagonal(self, matrix: Tensor) -> Tensor:
        """Return the blocks on the diagonal, (U, w, w)."""
        U, w = len(self.numbers), self.w
        return matrix.view(U, w, U, w).diagonal(dim1=0, dim2=2).permute(2, 0, 1).clone()

    def costs(self) -> Tensor:
        """Return c of each unit, (U,), infinite for removed ones."""
        P_uu = torch.where(self.removed[:, None, None], torch.eye(self.w).to(self.P), self.P_uu)
        # not torch.linalg.solve, whose LU of several matrices is wrong in several threads (pytorch/pytorch 142815)
        c = 0.5 * _trace(self.Z_uu / P_uu if self.w == 1 else torch.cholesky_solve(self.Z_uu, factor(P_uu)))
        if self.F_uu is not None:
            c += _trace(self.F_uu)
        return c.masked_fill(self.removed, torch.inf)

    def cheapest(self, count: int) -> list[int]:
        """Return the `count` units that cost least, by the numbers that they had at first."""
        if self.G.shape[1] >= LATER:
            self._update()
        numbers: list[int] = self.numbers[find_lowest(self.costs(), count)].tolist()
        return numbers

    def remove(self, unit: int) -> None:
        """Remove a unit, by the number that it had at first."""
        u = int((self.numbers == unit).nonzero())
        at = slice(u * self.w, (u + 1) * self.w)
        P_u = self.P[:, at] - self.G @ self.G[at].T
        Z_u = self.Z[:, at] - self.Y @ self.G[at].T - self.G @ self.Y[at].T
        L = factor(P_u[at])
        G = _over(P_u, L)
        Y = _over(Z_u, L)
        Y -= 0.5 * G @ torch.linalg.solve_triangular(L, Y[at], upper=False)
        g, y = G.view(-1, self.w, self.w), Y.view(-1, self.w, self.w)
        self.P_uu -= g @ g.mT
        self.Z_uu -= y @ g.mT + g @ y.mT
        if self.F is not None and self.F_uu is not None:
            E = _over(self.F[:, at] - self.E @ self.G[at].T, L)
            self.F_uu -= E.view(-1, self.w, self.w) @ g.mT
            self.E = torch.cat([self.E, E], 1)
        self.G, self.Y = torch.cat([self.G, G], 1), torch.cat([self.Y, Y], 1)
        self.removed[u] = True

    def _update(self) -> None:
        """Make the updates that wait, and let go of the rows and columns of removed units."""
        K = (~self.removed).repeat_interleave(self.w).nonzero()
        G, Y, pairs = self.G[K[:, 0]], self.Y[K[:, 0]], (K, K.T)
        self.P = self.P[pairs].addmm_(G, G.T, alpha=-1)
        self.Z = self.Z[pairs].addmm_(Y, G.T, alpha=-1).addmm_(G, Y.T, alpha=-1)
        if self.F is not None:
            self.F = self.F[pairs].addmm_(self.E[K[:, 0]], G.T, alpha=-1)
        self.numbers = self.numbers[~self.removed]
        self._start()


def _trace(blocks: Tensor) -> Tensor:
    return blocks.diagonal(dim1=1, dim2=2).sum(1)


def _over(x: Tensor, L: Tensor) -> Tensor:
    """Return x L^-T, (C, w)."""
    return torch.linalg.solve_triangular(L, x.T, upper=False).T


def factor(H: Tensor) -> Tensor:
    """Return L of H = L L^T, (C, C) or (U, w, w). Raises Unsupported where H is not positive definite."""
    L, failed = torch.linalg.cholesky_ex(H)
    if bool(failed.any()):
        raise Unsupported(
            "the calibration tokens do not determine what the loss of each unit would cost; give more tokens, or the "
            "method a larger damping"
        )
    return L
