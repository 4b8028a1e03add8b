"""Measures the loss of a model with some replacements, for many candidates at once and without changing the model.

A candidate leaves blocks out or narrows them. All candidates go through a layer before any goes through the next, a few
at a time where they have few tokens. So the weights of a layer are read once for all of them, and matrices are large. A
candidate with its first replacement in layer l begins with the states in front of it, and runs the layers from l on:
half of a forward on average.

A loss is a sum over tokens of terms that are never negative. Where only the lowest losses are wanted, the candidate
with the lowest sum so far goes on with its next tokens, until all others are above those that are through. Where the
dense model's logits do not fit, all candidates go on together, so that the logits of a token are computed once.

Letters: N = sequences, T = tokens, D = residual width, V = vocabulary.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heapreplace
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from methods.console import make_bar
from methods.model.activations import enter, refuse_overflow
from methods.model.calibration import Calibration, SweepLog
from methods.model.decoder import Decoder
from methods.model.layer import Layer
from methods.model.precision import rows_in_cache
from methods.model.structures import Narrowed, Sublayer

TOKENS_AT_ONCE = 128  # tokens whose logits are held at once: fewer make slow products, more do not fit a cache
ROWS = 2048  # tokens that a layer takes at once where it can: fewer make slow products
MOST = 4  # candidates at most among them
ROUNDING = 1e-4  # share by which a loss is above the best before it is given up: sums of zeros can round to below zero

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
# A candidate: blocks that are left out or narrowed, beside those that have been removed before.
Replacements = frozenset["Sublayer | Narrowed"]
Ends = dict[Replacements, Tensor]  # the states behind the last layer, by candidate
Arguments = dict[str | None, dict[str, Any]]  # by kind of layer, as Entry has them


def nll(logits: Tensor, p: Tensor, targets: Tensor) -> Tensor:
    """Return -log p(target), summed over M tokens: (M, V), anything, (M,) -> (). It needs no dense model."""
    return nn.functional.cross_entropy(logits, targets, reduction="sum")


def kl(logits: Tensor, p: Tensor, targets: Tensor) -> Tensor:
    """Return KL(dense || pruned) of the next token, summed over M tokens: (M, V), (M, V) dense log-probabilities."""
    return nn.functional.kl_div(logits.log_softmax(-1), p, reduction="sum", log_target=True)


def js(logits: Tensor, p: Tensor, targets: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of the next token, summed over M tokens: (M, V), (M, V), p as in `kl`."""
    q = logits.log_softmax(-1)
    m = torch.logaddexp(p, q) - math.log(2)
    halves = [nn.functional.kl_div(m, log_p, reduction="sum", log_target=True) for log_p in (p, q)]
    return (halves[0] + halves[1]) / 2


def js_released(logits: Tensor, p: Tensor, targets: Tensor) -> Tensor:
    """Return (KL(m || p) + KL(m || q)) / 2, summed over M tokens, as in FinerCut's code; shapes as in `js`."""
    q = logits.log_softmax(-1)
    m = torch.logaddexp(p, q) - math.log(2)
    halves = [nn.functional.kl_div(log_p, m, reduction="sum", log_target=True) for log_p in (p, q)]
    return (halves[0] + halves[1]) / 2


def sum_loss(loss: Loss, logits: Tensor, p: Tensor, targets: Tensor) -> Tensor:
    """Return a loss over logits of any type: (M, V), (M, V) dense log-probabilities, (M,) -> ().

    It is computed in float32, on a CPU with few rows at a time, so that they stay in a core's cache.
    """
    rows = (torch.split(each, rows_in_cache(logits)) for each in (logits, p, targets))
    return torch.stack([loss(few.float(), *rest) for few, *rest in zip(*rows, strict=True)]).sum()


LOSSES: dict[str, Loss] = {"nll": nll, "kl": kl, "js": js, "js-released": js_released}
Positions = Literal["followed", "all"]


@dataclass(frozen=True)
class _Batch:
    """Holds one micro-batch, in which M positions are compared."""

    x: Tensor  # (B, T, D) in front of the first layer
    arguments: list[Arguments]  # of the layers for the batch once, twice, ...: as many candidates as run together
    positions: Tensor  # (M,) the positions that are compared, row by row
    targets: Tensor  # (M,) the token behind each
    dense: Tensor  # (M, V), the dense model's log-probabilities there; (M, D), its last layer's output, where too large


def _replacements_in_layer(candidate: Replacements, number: int) -> Replacements:
    return Replacements(block for block in candidate if block.layer == number)


class Limit:
    """Says which sums are above the `lowest`-th lowest of the sums that are known; with None, none is."""

    def __init__(self, lowest: int | None, sums: Iterable[float]) -> None:
        self.lowest, self.sums = lowest, sorted(sums)

    def add(self, total: float) -> None:
        """Note the sum of a candidate that has ended."""
        insort(self.sums, total)

    def is_below(self, total: float) -> bool:
        """Say whether a sum so far is above what a candidate can win with."""
        if self.lowest is None or len(self.sums) < self.lowest:
            return False
        return total > (1 + ROUNDING) * self.sums[self.lowest - 1]


class Trial:
    """Runs the model on the calibration tokens with any replacements. It changes no module.

    A loss is over the positions with a successor. With `positions` "all" it is also over the last of each sequence,
    and `nll` is then not possible. All losses but `nll` compare with the dense model. Raises Unsupported where the
    dense model's states overflow.

    narrow  returns a narrowed layer from a layer and its replacements, around the same weights where it can
    runs    layers that have been run, for all tokens; divided by the number of layers, forwards
    """

    @torch.no_grad()
    def __init__(
        self,
        model: Decoder,
        calibration: Calibration,
        loss: str,
        positions: Positions = "followed",
        narrow: Callable[[Layer, Collection[Narrowed]], Layer] | None = None,
    ) -> None:
        self.model, self.layers, self.loss, self.narrow = model, model.layers, LOSSES[loss], narrow
        self.wait = calibration.wait
        self.removed: set[Sublayer] = set()
        self.runs = 0.0
        self.share = 1 / len(calibration.ids)
        self.latest: tuple[int, Tensor] | None = None  # first token and log-probabilities of the latest piece of dense
        self.batches, sound = [], torch.ones((), dtype=torch.bool)
        end = model.head.weight.device  # of the logits
        beyond = 0 if positions == "all" else 1
        kept = 4 * int(calibration.mask[:, beyond:].sum()) * model.config.vocab_size <= calibration.memory
        self.keeps_dense = kept and self.loss is not nll
        values, dtype = model.config.hidden_size * (len(self.layers) + 8), model.embed.weight.dtype
        for ids, mask in calibration.batches(values, dtype):
            placed, most = ids.to(model.embed.weight.device), max(1, min(MOST, ROWS // ids.numel()))
            together = [enter(model, placed.repeat(n, 1)) for n in range(1, most + 1)]
            x, arguments = self.wait(together[0].x), [entry.arguments for entry in together]
            compared = nn.functional.pad(mask[:, beyond:], (0, beyond)).flatten().nonzero()[:, 0].to(end)
            targets = placed.to(end).roll(-1, 1).flatten()[compared]
            batch = _Batch(x, arguments, compared, targets, x[:0])
            if self.loss is not nll:
                dense = self._states_to_compare(batch, self._ends(batch, [Replacements()])[Replacements()])
                sound = dense.isfinite().all() & sound.to(dense.device)
                if self.keeps_dense:
                    dense = torch.cat([self._log_probabilities(piece) for piece in torch.split(dense, TOKENS_AT_ONCE)])
                batch = replace(batch, dense=dense if self.keeps_dense else self.wait(dense))
            self.batches.append(batch)
        refuse_overflow(sound)

    def losses_without(
        self, blocks: Sequence[Sublayer | None], title: str = "leaving out one", *, lowest: int | None = None
    ) -> list[float]:
        """Return the loss per token when each of `blocks` is left out too; None leaves out no other. See `losses`.

        Raises Unsupported where no loss is finite, since the model's states overflow.
        """
        losses = self.losses([Replacements([block] if block else []) for block in blocks], title, lowest=lowest)
        refuse_overflow(torch.tensor(losses).isfinite().any())
        return losses

    @torch.no_grad()
    def losses(
        self,
        candidates: Sequence[Replacements],
        title: str = "comparing",
        *,
        lowest: int | None = None,
        beside: Sequence[float] = (),
        log: SweepLog | None = None,
    ) -> list[float]:
        """Return the loss per token with each candidate. No two candidates are the same.

        lowest  how many of the lowest losses are wanted: a candidate that is sure to be above them may be given up, and
                its loss is then any number above them; None: all
        beside  known losses that count among them
        title   title of the progress bar
        log     keeps the losses, and may have those of an interrupted attempt at the same candidates, without `lowest`
        """
        tokens, L = sum(len(batch.targets) for batch in self.batches), len(self.layers)
        limit = Limit(lowest, [loss * tokens for loss in beside])
        first = min(L, max(0, (lowest or 0) - len(beside)))  # candidates whose sums spare others their last batches
        cuts = sorted({0, *range(first if len(self.batches) > 1 else 0, len(candidates), L)})
        groups = [candidates[start:end] for start, end in pairwise([*cuts, len(candidates)]) if end]
        losses = [loss for (kept,) in log.kept() for loss in kept.tolist()] if log else []
        done = log.done if log else 0  # groups
        with make_bar(len(groups) * len(self.batches) * L, title, "layer", done * len(self.batches) * L) as progress:
            for group in groups[done:]:
                totals = dict.fromkeys(group, 0.0)
                for batch in self.batches:
                    promising = [candidate for candidate in group if not limit.is_below(totals[candidate])]
                    ends = self._ends(batch, promising, progress)
                    added = {candidate: self._losses(batch, ends.pop(candidate)) for candidate in promising}
                    self._add(totals, added, limit, last=batch is self.batches[-1])
                of_group = [totals[candidate] / tokens for candidate in group]
                losses += of_group
                if log:
                    log.add([torch.tensor(of_group, dtype=torch.float64)], [])
        return losses

    def remove(self, block: Sublayer) -> None:
        """Leave `block` out in all trials from now on."""
        self.removed.add(block)

    def _ends(self, batch: _Batch, candidates: Sequence[Replacements], progress: Any = None) -> Ends:
        """Return the states behind the last layer with each candidate, (B, T, D).

        Candidates with the same replacements in the layers so far share a state.
        """
        states, so_far = {Replacements(): batch.x}, dict.fromkeys(candidates, Replacements())
        for number in range(len(self.layers)):
            of_layer = {candidate: _replacements_in_layer(candidate, number) for candidate in candidates}
            place = {earlier: place for place, earlier in enumerate(states)}
            steps = dict.fromkeys((so_far[candidate], of_layer[candidate]) for candidate in candidates)
            # replacements in this layer -> those in the layers before
            groups: dict[Replacements, list[Replacements]] = {Replacements(): []}
            for earlier, left_out in sorted(steps, key=lambda step: place[step[0]]):
                groups.setdefault(left_out, []).append(earlier)
            entering, states = states, {}
            for left_out, before in groups.items():
                new = self._run(batch, number, [entering[earlier] for earlier in before], self.removed | left_out)
                states.update(zip([earlier | left_out for earlier in before], new, strict=True))
            so_far = {candidate: so_far[candidate] | of_layer[candidate] for candidate in candidates}
            if progress is not None:
                progress.update()
        return states

    def _run(
        self, batch: _Batch, number: int, states: list[Tensor], replacements: Set[Sublayer | Narrowed]
    ) -> list[Tensor]:
        """Return the outputs of layer `number` for each of its inputs, (B, T, D)."""
        layer, (B, *_) = self.layers[number], batch.x.shape
        parts = {part for part in ("layer", "attention", "mlp") if Sublayer(part, number) in replacements}
        if "layer" in parts or len(parts) == 2:
            return states
        self.runs += len(states) * B * self.share
        outputs = list[Tensor]()
        narrowed = [each for each in replacements if isinstance(each, Narrowed) and each.layer == number]
        with layer.visiting():
            if narrowed and self.narrow:
                layer = self.narrow(layer, narrowed)
            for start in range(0, len(states), len(batch.arguments)):
                entering = states[start : start + len(batch.arguments)]
                x = torch.cat([state.to(layer.device) for state in entering])
                y = layer.run(x, batch.arguments[len(entering) - 1][layer.kind], parts)
                outputs += map(self.wait, torch.split(y, B))
        return outputs

    def _states_to_compare(self, batch: _Batch, x: Tensor) -> Tensor:
        """Return the states of the positions that are compared, (B, T, D) -> (M, D), on the device of the logits."""
        return x.flatten(0, 1)[batch.positions.to(x.device)].to(batch.targets.device)

    def _add(
        self, totals: dict[Replacements, float], added: dict[Replacements, Iterator[float]], limit: Limit, *, last: bool
    ) -> None:
        """Add the losses of tokens to the sum of each candidate, some at a time, until it is above the limit.

        last  whether these are the last tokens, so that the sum of a candidate that is through is complete
        """
        racing = limit.lowest is not None and (self.keeps_dense or self.loss is nll)
        candidates = list(added)
        waiting = [(totals[candidate] if racing else 0.0, place) for place, candidate in enumerate(candidates)]
        heapify(waiting)
        while waiting:
            (before, place), candidate = waiting[0], candidates[waiting[0][1]]
            above = limit.is_below(totals[candidate])
            loss = None if above else next(added[candidate], None)
            if loss is None:
                heappop(waiting)
                if last and not above:
                    limit.add(totals[candidate])
            else:
                totals[candidate] += math.inf if math.isnan(loss) else loss
                heapreplace(waiting, (totals[candidate] if racing else before + 1, place))
        self.latest = None

    def _losses(self, batch: _Batch, x: Tensor) -> Iterator[float]:
        """Yield the loss summed over some tokens at a time. From a GPU all come at once: the host waits once."""
        x = self._states_to_compare(batch, x)
        losses = self._pieces(batch, x)
        yield from map(float, losses) if x.device.type == "cpu" else torch.stack(list(losses)).tolist()

    def _pieces(self, batch: _Batch, x: Tensor) -> Iterator[Tensor]:
        for start in range(0, len(x), TOKENS_AT_ONCE):
            piece = slice(start, start + TOKENS_AT_ONCE)
            logits, targets = self.model.logits(x[piece]), batch.targets[piece]
            p = logits if self.loss is nll else self._p(batch, piece)
            yield sum_loss(self.loss, logits, p, targets)

    def _p(self, batch: _Batch, piece: slice) -> Tensor:
        """Return the dense model's log-probabilities, (M, V), of some of a batch's tokens."""
        if self.keeps_dense:
            return batch.dense[piece]
        if self.latest is None or self.latest[0] != piece.start:
            self.latest = None  # its memory is free for the next
            self.latest = piece.start, self._log_probabilities(batch.dense[piece])
        return self.latest[1]

    def _log_probabilities(self, x: Tensor) -> Tensor:
        """Return the log-probabilities of the next token from the last layer's output: (M, D) -> (M, V)."""
        return self.model.logits(x).float().log_softmax(-1)
