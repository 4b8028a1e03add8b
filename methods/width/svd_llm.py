"""Factor every matrix of the layers into two of low rank that keep its outputs on calibration tokens: SVD-LLM.

Wang, Zheng, Wan, Zhang 2025, "SVD-LLM: Truncation-aware Singular Value Decomposition for Large Language Model
Compression", ICLR, arXiv 2403.07378. Code: AIoT-MLSys-Lab/SVD-LLM.

This prunes no structure: heads, channels and layers all stay. It is a control, another way to the same number of
parameters.

W (m, n) is a matrix of a layer and X (n, tokens) what enters it in the dense model. With

    H = X X^T = S S^T  (Cholesky),        W S = U Sigma V^T  (singular values sigma_1 >= sigma_2 >= ...)

the matrix becomes the product of two factors of rank k,

    W_k = (U_k Sigma_k^(1/2)) (Sigma_k^(1/2) V_k^T S^-1),        k = floor(kept m n / (m + n))

of which no other matrix of rank k misses less: ||(W - W_k) X||_F^2 is the sum of sigma_i^2 over i > k (theorem 3.2 of
the paper), since S maps what is missed on X to what is missed of W S (Eckart, Young 1936). q, k and v share one S, and
so do gate and up.

Both factors are stored and count, (m + n) k parameters for m n. `kept` is the share of these that stays, the same for
all matrices of all layers as in the paper, and is solved so that what is left of the model comes nearest to the budget.
Embeddings, head, norms and biases stay as they are. A matrix that two factors would not make smaller stays whole. So
that 20 % of its parameters go, a square matrix keeps two fifths of its rank.

Departures from the authors' code. The budget is of all parameters; the code's ratio is the share that stays of the
layers' matrices. A matrix that is fused from q, k and v or from gate and up is factored as one. Where H is not positive
definite, the least number is added to its diagonal that leaves no eigenvalue below 1e-10 of the largest; the code adds
1e-6 whatever the size of H. Sums, factors and singular values are in float64. The steps that follow in the paper are
not built: they train the factors.

Families. All but mixtures of experts. Key/value caches stay as large as they are. A checkpoint needs this project to
load, and no other format holds it. Methods that look at weights or cut them refuse a factored model; those that remove
layers or blocks by what they do serve it.

Cost. One forward pass (two with `prefix=pruned`), and for each layer four factorisations of H and the singular values
of every matrix, about 14 m^2 n operations each for m <= n, in float64. Memory holds the hidden states of all
calibration tokens in front of one layer and the four H of a layer, (D, D) three times and (I, I), in float64.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from methods.base import Holds, Look, Pruner, register
from methods.console import show_progress
from methods.errors import OutOfReach
from methods.model.activations import collect_inputs, enter_all, move_beside, refuse_overflow, values_of_a_step
from methods.model.calibration import Calibration, Wait
from methods.model.decoder import Decoder
from methods.model.inserted import factor_matrix
from methods.model.layer import Layer
from methods.model.precision import add_product, widen
from methods.model.sizes import parameters

CONDITION = 1e-10  # of H: its smallest eigenvalue, at least, as a share of the largest, where it has to be lifted
HALVINGS = 50  # of the interval in which the kept share lies

Ranks = dict[str, int | None]  # of a layer's matrices, by their paths in it; None: stays whole


@register("svd-llm")
@dataclass(frozen=True)
class SVDLLM(Pruner):
    """Factor each matrix into two of low rank that keep its outputs, a control (Wang et al. 2025)."""

    prefix: Literal["dense", "pruned"] = "dense"  # what feeds a layer: the dense ones before it, or those factored

    cost = "1 forward, and the singular values of each matrix"
    residual_solves = 180.0
    holds = Holds(states=1, squares=4)
    uneven_because = "it makes two factors of each matrix"
    axes = ("channels",)
    leaves = ("ranks",)
    paper_ratio = "the matrices of the layers"
    paper_reads = "256 x 2,048 tokens of WikiText-2"  # compress_llama.sh
    look = Look("dashed", "8")

    def forwards(self, layers: int, removed: float, tokens: int) -> float:
        """Return three or four forwards, with sums of products in float64."""
        return 3.0 if self.prefix == "dense" else 4.0  # with sums of products in float64

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return the rank of each matrix."""
        model.refuse_sliced()
        model.refuse("channels")  # of a mixture of experts
        shapes: list[dict[str, torch.Size]] = []
        for layer in model.layers:
            shapes.append({name: matrix.weight.shape for name, matrix in layer.named_matrices().items()})
        counts = Counter((m, n) for shape_by_name in shapes for m, n in shape_by_name.values())
        kept = share_to_keep(counts, ratio * parameters(model), parameters(model))
        ranks: list[Ranks] = []
        for shape_by_name in shapes:
            ranks.append({name: rank_of_share(m, n, kept) for name, (m, n) in shape_by_name.items()})
        return {"kept": kept, "ranks": ranks}

    @torch.no_grad()
    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Replace each matrix by two factors of low rank, fitted to its inputs."""
        plan = self.plan(model, ratio)
        ranks: list[Ranks] = plan["ranks"]
        cut = any(k is not None for each in ranks for k in each.values())
        missed = self.sweep(model, ranks, calibration) if cut else []
        return plan | {"parameters": parameters(model), "missed": missed}

    def sweep(self, model: Decoder, ranks: list[Ranks], calibration: Calibration) -> list[dict[str, float]]:
        """Factor layer by layer; return the error of each matrix, ||(W - W_k) X||^2 / ||W X||^2, by its path."""
        entries, masks = enter_all(model, calibration, values_of_a_step(model))
        log = calibration.log([entry.x for entry in entries], "svd-llm", self, ranks)
        kept, X, missed = log.kept(), log.take(), list[dict[str, float]]()
        arguments = [entry.arguments for entry in entries]
        del entries  # with the first layer's input
        for number, layer in enumerate(show_progress(model.layers, "factoring", "layer")):
            model.read_ahead(number + 1)
            with layer.visiting():
                if number < log.done:
                    tensors = next(kept)
                    names = [name for names in group_by_input(layer, ranks[number]) for name in names]
                    factors_by_name = {name: Factors(*tensors[3 * at : 3 * at + 3]) for at, name in enumerate(names)}
                    put_factors(layer, factors_by_name)
                else:
                    given = [each[layer.kind] for each in arguments]
                    X = [x.to(layer.device) for x in X]
                    (moved,) = move_beside(X, masks)
                    factors_by_name = self.factor_layer(layer, ranks[number], X, given, moved, wait=calibration.wait)
                    log.add([tensor for factors in factors_by_name.values() for tensor in factors], X)
            layer.settle()
            missed.append({name: float(factors.missed) for name, factors in factors_by_name.items()})
        return missed

    def factor_layer(
        self,
        layer: Layer,
        ranks: Ranks,
        X: list[Tensor],
        given: Sequence[dict[str, Any]],
        masks: Sequence[Tensor],
        *,
        wait: Wait,
    ) -> dict[str, Factors]:
        """Return the factors of a layer's matrices, by path, and put them in; its outputs replace its inputs X.

        X is (B, T, D) for each micro-batch.
        """
        matrices, groups = layer.named_matrices(), group_by_input(layer, ranks)
        widths = [matrices[names[0]].in_features for names in groups]
        sums = [torch.zeros(n, n, dtype=torch.float64, device=layer.device) for n in widths]
        for at, (arguments, mask) in enumerate(zip(given, masks, strict=True)):
            with ExitStack() as stack:
                inputs = [stack.enter_context(collect_inputs(matrices[names[0]])) for names in groups]
                y = layer(X[at], arguments)
            for H, (entered,) in zip(sums, inputs, strict=True):
                x = widen(entered.reshape(*mask.shape, -1)[mask])
                add_product(H, x, x)
            if self.prefix == "dense":
                X[at] = wait(y)
        factors_by_name = dict[str, Factors]()
        for names in groups:
            S = factor_of_whitening(sums.pop(0))
            factors_by_name |= {name: factors_of_rank(matrices[name].weight, S, ranks[name] or 0) for name in names}
        put_factors(layer, factors_by_name)
        if self.prefix == "pruned":
            for at, arguments in enumerate(given):
                X[at] = wait(layer(X[at], arguments))
        return factors_by_name


class Factors(NamedTuple):
    """Holds the two factors of a matrix (m, n), and their error.

    down    (k, n) Sigma_k^(1/2) V_k^T S^-1, in the dtype of the matrix
    up      (m, k) U_k Sigma_k^(1/2)
    missed  () sum of sigma_i^2 over i > k, as a share of all
    """

    down: Tensor
    up: Tensor
    missed: Tensor


def group_by_input(layer: Layer, ranks: Ranks) -> list[list[str]]:
    """Return the paths of the matrices that are to be factored, grouped by their input."""
    paths = [*layer.paths_of_attention], [*layer.paths_of_mixer], [*layer.family.up, layer.family.down]
    groups = [group for each in paths for group in (each[:-1], each[-1:])]
    factored = []
    for group in groups:
        factored.append([name for name in group if ranks.get(name) is not None])
    return list(filter(None, factored))


def put_factors(layer: Layer, factors: dict[str, Factors]) -> None:
    """Replace a layer's matrices of these paths by their factors."""
    matrices = layer.named_matrices()
    for name, (down, up, _) in factors.items():
        layer.put(name, factor_matrix(matrices[name], down, up))


def factor_of_whitening(H: Tensor) -> Tensor:
    """Return S, lower triangular, of H = S S^T, (n, n) in float64.

    Where H is not positive definite, its diagonal is lifted first. Raises Unsupported where H is not finite.
    """
    refuse_overflow(H.isfinite().all())
    S, failed = torch.linalg.cholesky_ex(H)
    if not int(failed):
        return S
    del S
    spectrum = torch.linalg.eigvalsh(H)
    lift = float(CONDITION * spectrum[-1] - spectrum[0].clamp_max(0)) or 1.0  # 1 of inputs that all are zero
    H.diagonal().add_(lift)
    return torch.linalg.cholesky(H)


def factors_of_rank(W: Tensor, S: Tensor, k: int) -> Factors:
    """Return the factors of rank k whose product misses least of W S, for W (m, n) and S (n, n) lower triangular."""
    U, sigma, V = torch.linalg.svd(W.double() @ S, full_matrices=False)
    root, energy = sigma[:k].sqrt(), sigma.square()
    down = torch.linalg.solve_triangular(S, root[:, None] * V[:k], upper=False, left=False)
    tiny = torch.finfo(energy.dtype).tiny  # so that a matrix that gives nothing misses 0
    share = energy[k:].sum() / energy.sum().clamp_min(tiny)
    return Factors(down.to(W.dtype), (U[:, :k] * root).to(W.dtype), share)


def rank_of_share(m: int, n: int, kept: float) -> int | None:
    """Return the rank k at which the share `kept` of a matrix (m, n) stays; None where the matrix stays whole."""
    k = max(1, int(kept * m * n / (m + n)))
    return k if kept < 1 and (m + n) * k < m * n else None


def parameters_to_go(shapes: Counter[tuple[int, int]], kept: float) -> int:
    """Return the number of parameters that go where the share `kept` of each matrix stays.

    shapes  number of matrices by shape (m, n)
    """
    total = 0
    for (m, n), count in shapes.items():
        k = rank_of_share(m, n, kept)
        total += 0 if k is None else count * (m * n - (m + n) * k)
    return total


def share_to_keep(shapes: Counter[tuple[int, int]], to_keep: float, total: int) -> float:
    """Return the share of each matrix that stays where the removals come nearest to `to_keep` of `total` parameters.

    Raises OutOfReach where factors of rank 1 leave more.
    """
    low, high = 0.0, 1.0
    if to_keep > (most := parameters_to_go(shapes, low)):
        raise OutOfReach(
            f"ratio {to_keep / total:g} is out of reach: with factors of rank 1 in every layer, {most / total:.3f} of "
            "the parameters are gone"
        )
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if parameters_to_go(shapes, middle) >= to_keep else (low, middle)
    return min(high, low, key=lambda kept: abs(parameters_to_go(shapes, kept) - to_keep))
