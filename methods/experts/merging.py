"""Groups experts that are to become one, puts their channels into the same order, and averages their weights.

Experts are numbers of a mixture. Which of them are near to each other says the caller (methods/experts/ream.py).

Letters: J = experts, D = residual width, I = channels of an expert, F = features of a channel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from methods.model.parts import Experts

COMPONENTS = 64  # principal components of the weights of channels
ROUNDS = 4  # of the iteration that finds them
ROUNDING = 1e-6  # by such a share distances may differ that are the same
LEAST = 0.5  # the weight of an expert without a saliency is at most this

Groups = list[list[int]]  # experts that become one, the centre first


def group_by_saliency(S: Tensor, distances: Tensor, lost: Sequence[int], size: int) -> Groups:
    """Return groups around the experts that are not `lost`, each with its centre first, the most salient first.

    S          (J,)
    distances  (J, J)
    size       experts of a group at most; the most salient centre takes its nearest first. 0: each lost expert goes to
               the nearest centre
    """
    centres = [number for number in S.argsort(stable=True).flip(0).tolist() if number not in lost]
    groups: Groups = [[centre] for centre in centres]
    if not size:
        for number in lost:
            groups[int(distances[centres, number].argmin())].append(number)
        return groups
    missing = set(lost)
    for place, centre in enumerate(centres):
        nearest = [number for number in distances[centre].argsort(stable=True).tolist() if number in missing]
        groups[place] += nearest[: size - 1]
        missing -= set(groups[place])
    return groups


def group_by_clusters(a: Tensor, count: int) -> Groups:
    """Return clusters of the rows of a, (J, D), each with the row nearest to its mean first, by average linkage.

    Two clusters are as far apart as their rows are on average. The nearest two become one until `count` are there.
    """
    clusters: Groups = [[number] for number in range(len(a))]
    between = distances_of_rows(a, a).fill_diagonal_(torch.inf)
    while len(clusters) > count:
        i, j = sorted(divmod(int(between.argmin()), len(clusters)))
        sizes = len(clusters[i]), len(clusters[j])
        joined = (sizes[0] * between[i] + sizes[1] * between[j]) / sum(sizes)  # the mean over all pairs of rows
        between[i], between[:, i] = joined, joined
        between[i, i] = torch.inf
        rest = [number for number in range(len(clusters)) if number != j]
        between = between[rest][:, rest]
        clusters[i] = sorted(clusters[i] + clusters.pop(j))
    return [sort_by_mean(a, cluster) for cluster in clusters]


def sort_by_mean(a: Tensor, cluster: list[int]) -> list[int]:
    """Return the rows of a cluster, rising, behind the one that is nearest to their mean.

    Of rows that are as near but for rounding, as two are that are alone, the first counts.
    """
    rows = a[cluster]
    apart = torch.linalg.vector_norm(rows - rows.mean(0), dim=1)
    centre = cluster[int((apart <= apart.min() * (1 + ROUNDING)).int().argmax())]
    return sorted(cluster, key=lambda number: (number != centre, number))


def similarity_of_routing(products: Tensor) -> Tensor:
    """Return 1 - ||u_i - u_j|| / max ||u - u|| from the products of the router's logits, (J, J)."""
    norms = products.diagonal().sqrt().clamp_min(torch.finfo(products.dtype).tiny)
    apart = (2 - 2 * products / norms / norms[:, None]).clamp_min(0).fill_diagonal_(0).sqrt()
    return 1 - apart / apart.max().clamp_min(torch.finfo(products.dtype).tiny)


def weights_of_experts(S: Tensor) -> Tensor:
    """Return S with the smallest of all above 0, or LEAST, for experts without one, so that these count too, (J,)."""
    above = S[S > 0]
    least = min(LEAST, float(above.min())) if len(above) else LEAST
    return torch.where(S > 0, S, least)


def distances_of_rows(x: Tensor, y: Tensor) -> Tensor:
    """Return the distance of each row of x (U, F) from each of y (V, F), (U, V)."""
    squares = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    return squares.clamp_min(0).sqrt()


def score_channels(experts: Experts) -> Tensor:
    """Return V, the scores of the weights of all channels, (J, I, components)."""
    J, I = experts.count, experts.channels
    first = experts.weights_of_channels(0)
    rows = torch.empty(J, I, first.shape[1], device=first.device)  # in float32
    for number in range(J):
        rows[number] = torch.nn.functional.normalize(experts.weights_of_channels(number).float(), dim=1)
    return score_components(rows.view(J * I, -1), COMPONENTS).view(J, I, -1)


def score_components(x: Tensor, count: int) -> Tensor:
    """Return the scores of the first principal components of the rows of x, times their singular values, (N, count).

    x has its mean taken off, in place. Components are found by ROUNDS of an iteration that begins with drawn
    directions, the same each time.
    """
    x -= x.mean(0)
    directions = torch.randn(x.shape[1], min(count, *x.shape), generator=torch.Generator().manual_seed(0)).to(x)
    for _ in range(ROUNDS):
        directions = torch.linalg.qr(x.T @ (x @ directions)).Q
    _, sigma, turn = torch.linalg.svd(x @ directions, full_matrices=False)
    scores: Tensor = x @ directions @ turn.T * sigma
    return scores


def pair_channels(features: Iterable[Sequence[Tensor]], channels: int) -> list[Tensor]:
    """Return for each expert of a group the order of its channels that costs least beside the first expert's, (I,).

    features  (I, F) of each kind by which channels are compared, for each expert; none: the order that they have
    """
    each, orders = iter(features), [torch.arange(channels)]
    centre = next(each)
    for rows in each:
        costs = [distances_of_rows(x, y).double().cpu() for x, y in zip(centre, rows, strict=True)]
        orders.append(solve_assignment(sum(costs[1:], costs[0])) if costs else orders[0])
    return orders


def solve_assignment(cost: Tensor) -> Tensor:
    """Return the column of each row of a square matrix at which the sum is least, each column once."""
    from scipy.optimize import linear_sum_assignment

    _, columns = linear_sum_assignment(cost)
    return torch.from_numpy(columns)


def merge_experts(
    experts: Experts, group: Sequence[int], weights: Sequence[float], orders: Sequence[Tensor]
) -> list[Tensor]:
    """Return the weighed mean of experts whose channels are in these orders, for each tensor of the bank."""
    means: dict[str, Tensor] = {}
    for number, weight, order in zip(group, weights, orders, strict=True):
        for name, tensor in experts.reorder_channels(number, order).items():
            part = weight * tensor.double()
            means[name] = means[name] + part if name in means else part
    return [mean.to(getattr(experts.bank, name).dtype) for name, mean in means.items()]
