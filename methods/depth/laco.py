"""Merge rear layers into a prior one while the output of the model stays similar: LaCo, Layer Collapse.

Yang, Cao, Zhao 2024, "LaCo: Large Language Model Pruning via Layer Collapse", EMNLP Findings, arXiv 2402.11187.
Code: yangyifei729/LaCo.

The layers l+1 .. l+m merge into layer l and are removed (equation 1, `laco-published`):

    theta*_l = theta_l + sum_{k=1..m} (theta_{l+k} - theta_l)

A pointer l runs from the rear to the front. A window of C layers is merged if the last hidden state of the merged model
still resembles that of the original model, averaged over a few sentences (algorithm 1):

    s = mean over sentences of cos(h_merged, h_original),   accepted if s > T

The pointer moves on by I after a merge, and by one layer otherwise.

The authors' released code updates the weights in place, so its differences cancel: the survivor ends with exactly the
projections of the window's last layer, and keeps the norms and biases of its first. That rule is `laco`, since only it
works with the published window and threshold. For C = 2 the two rules agree.

C = layers in a window, I = pointer step after a merge, T = threshold, L and H = lower and upper end of the pointer's
range, K = C - 1 layers that a merge removes, D = residual width, N = sentences, t = tokens of a sentence.

Where a ratio is asked for instead of T, T is the largest threshold at which the loop removes at least that many layers;
the last window then merges only as many of its layers as are missing. The path of the loop changes only where T passes
a similarity that was rejected, so the search steps from one such value to the next and computes no similarity twice. It
leaves a path as soon as the remaining positions cannot hold the merges that are missing.

Departures from the authors' code. The reference states are computed once and every candidate starts at its pointer,
which is exact, because nothing below the pointer has changed yet. The states behind its window and behind the original
layers above that are kept for the candidates that begin alike. Where weights lie in files and a ratio is asked for, the
windows that follow each other unless one is accepted go through a layer together, so that it is read once for 16 of
them. The model is not copied, and all sentences run as one batch. The code's jump for a pointer above the model can
never happen, and is left out; the clamp that the paper describes is part of `laco-published`. Caches and the
configuration are renumbered at the end.

Cost. No gradients. One pass over the sentences for the reference states; each candidate then runs the layers from its
pointer upward. A given T looks at no more than H - C - L + 1 candidates, the search for a ratio at several times that.

Measured. docs/studies/settings.md varies C, T, I, H and the sentences; docs/studies/similarity.md merges at each place;
docs/studies/departures.md sets the released rule beside the paper's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from methods.base import Count, Finite, Holds, Layers, Look, Pruner, register
from methods.budget import whole_layers
from methods.console import make_bar
from methods.errors import OutOfReach
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.layer import Layer
from methods.trials.merges import Candidate, Merged, MergeTrial, leaves_of, may_merge

TOGETHER = 16  # windows that go through layers in files together while a threshold is searched for


WINDOWS = 33  # tried for each layer removed, where a ratio is met: 129, 285, 371 for 4, 8, 11 of 30 (smollm2-135m)
PUBLISHED_WINDOWS = 45  # tried by `laco-published`, whatever the ratio: 47, 45, 43 there
FEW = 128  # tokens of which a forward takes as long as one of fewer, since all weights are read


@register("laco")
@dataclass(frozen=True)
class LaCo(Pruner):
    """Merge rear layers into a prior one while the output stays similar, by the released rule (Yang et al. 2024)."""

    C: Annotated[int, Ge(2)] = 4  # layers in a window
    I: Count = 2  # pointer step after a merge
    T: Finite | None = None  # threshold of the similarity; None: the largest that meets the ratio
    L: Layers = 0  # lowest layer that others may merge into
    H: Layers | None = None  # upper end of the range: the first window is H-C .. H-1; None: the last layer's number
    merge: Literal["last", "sum"] = "last"  # last: projections of the window's last layer; sum: equation 1
    norms: Literal["base", "last", "sum"] = "base"  # norms and biases of the survivor: base, last or sum
    clamp: bool = False  # after a merge, move the pointer down until a whole window fits
    sentences: Count = 5  # calibration sequences that are compared; the authors' code has five, the paper says ten
    tokens: Count = 16  # leading tokens of each that are used

    cost = "about a forward of the layers behind it over 5 x 16 tokens per window tried"
    holds = Holds(steps=0, all_layers=1, layers=0.8)
    axes = ("layers", "channels")  # which one layer takes over from others
    takes_first = True
    paper_ratio = "all parameters"
    paper_reads = "5 sentences of Wikipedia"  # laco_llama-13b.ipynb
    look = Look("solid", "o")
    tiny = "C=3,I=1"

    def tokens_read(self, tokens: int) -> int:
        """Return the tokens of the sentences that compare states."""
        return min(tokens, self.sentences * self.tokens)

    def forwards(self, layers: int, removed: float, tokens: int) -> float:
        """Return a third of a forward over few tokens for each window that is tried."""
        windows = layers if self.T is not None else WINDOWS * removed
        return windows / 3 * max(FEW, self.tokens_read(tokens)) / tokens

    @property
    def fixed(self) -> bool:
        """Say whether a threshold T is given, which alone decides."""
        return self.T is not None

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return the layers to remove, none for a threshold. Raises OutOfReach where windows cannot give so many."""
        model.refuse_experts()
        model.refuse_fixed(self.L)
        if self.T is not None:
            return {}
        count = whole_layers(model, ratio)
        layers = model.layers

        def similarities(candidates: list[Candidate]) -> list[float]:
            return [1.0 if may_merge(layers, order[p]) else math.nan for order, p in candidates]

        most = _Loop(self, len(layers), similarities).run(-math.inf, count).removed
        if most < count:
            unlike = "" if may_merge(layers, tuple(range(len(layers)))) else ", of which only those of one shape merge"
            raise OutOfReach(
                f"ratio {ratio:g} is out of reach: it takes {count} layers, and windows of C={self.C} with I={self.I} "
                f"remove at most {most} of {len(layers)}{unlike}"
            )
        return {"layers": count}

    @torch.no_grad()
    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Merge windows of layers while the states stay similar; return the merges."""
        count = len(model.layers) if self.T is not None else self.plan(model, ratio)["layers"]
        if not count:
            return {"removed_layers": []}
        part = slice(self.sentences), slice(self.tokens)
        few = replace(calibration, ids=calibration.ids[part], mask=calibration.mask[part])
        trial = MergeTrial(partial(merge, rule=self.merge, norms=self.norms), model, few)
        pointers = {int(name.split()[1]) for name in calibration.order}  # the pointer at each merge
        together = TOGETHER if model.store and self.T is None else 1
        log = calibration.log([], "laco", count, together)  # of an interrupted attempt, with windows in the same order
        measured = log.kept()
        with make_bar(None, "collapsing", " windows") as tried:

            def similarities(candidates: list[Candidate]) -> list[float]:
                if (values := next(measured, None)) is None:
                    values = [torch.tensor(trial.similarities(candidates), dtype=torch.float64)]
                    log.add(values, [])
                for _ in candidates:
                    tried.update()
                return values[0].tolist()

            loop = _Loop(self, len(model.layers), similarities, together)
            if pointers:
                agreed = _Loop(self, loop.count, lambda candidates: [float(p in pointers) for _, p in candidates])
                threshold, path = self.T, agreed.run(0.0, count)
            elif self.T is not None:
                threshold, path = self.T, loop.run(self.T, count)
            else:
                threshold, path = loop.largest_threshold(count)
        model.set_layers(list(model.sweep(map(trial.realise, path.order))))
        kept = [_first(layer) for layer in path.order]
        return {
            "threshold": threshold,
            "removed_layers": sorted(set(range(trial.count)) - set(kept)),
            "kept_layers": kept,
            "projections_from": [_last(layer) if self.merge == "last" else leaves_of(layer) for layer in path.order],
            "trace": path.trace,
            "similarities_computed": len(loop.similarity_by_layers),
        }


@register("laco-published")
@dataclass(frozen=True)
class LaCoPublished(LaCo):
    """Merge rear layers by the sum of their differences, as the paper's equation 1 says (Yang et al. 2024)."""

    merge: Literal["last", "sum"] = "sum"
    clamp: bool = True
    sentences: Count = 10

    cost = "about a forward of the layers behind it over 10 x 16 tokens per window tried"
    holds = Holds(steps=0, all_layers=1, layers=1.2)
    look = Look("dashed", "s")

    def forwards(self, layers: int, removed: float, tokens: int) -> float:
        """Return half a forward over few tokens for each window that is tried."""
        return PUBLISHED_WINDOWS / 2 * max(FEW, self.tokens_read(tokens)) / tokens


@dataclass
class _Path:
    """Holds one run of the loop: the working model's layers, and a trace of all candidates."""

    order: tuple[Merged, ...]
    removed: int = 0
    trace: list[dict[str, Any]] = field(default_factory=list)


def _merge_order(order: tuple[Merged, ...], p: int, K: int) -> tuple[Merged, ...]:
    """Return `order` with its layers p .. p+K merged into one."""
    return (*order[:p], order[p : p + K + 1], *order[p + K + 1 :])


class _Loop:
    """Runs algorithm 1 at any threshold, and computes the similarity of a candidate once.

    similarities  computes those of a list of candidates
    together      length of that list: the next candidate, and those that follow while none is accepted
    """

    def __init__(
        self, laco: LaCo, count: int, similarities: Callable[[list[Candidate]], list[float]], together: int = 1
    ) -> None:
        self.laco, self.count, self.similarities, self.together = laco, count, similarities, together
        self.similarity_by_layers: dict[tuple[Merged, ...], float] = {}

    def run(self, threshold: float, limit: int, need: int = 0) -> _Path:
        """Return the path of merges from the rear to the front, until the pointer passes L or `limit` layers are gone.

        It ends early where `need` layers can no longer be removed: a merge takes at most C - 1 and moves on by I.
        """
        C, I = self.laco.C, self.laco.I
        path = _Path(tuple(range(self.count)))
        p = (self.count - 1 if self.laco.H is None else min(self.laco.H, self.count)) - C
        while p >= self.laco.L and path.removed < limit:
            if path.removed + (C - 1) * ((p - self.laco.L) // I + 1) < need:
                break
            n = len(path.order)
            K = min(C - 1, n - 1 - p)
            if K < 1:
                p -= 1
                continue
            s = self._similarity(path.order, p)
            accepted = s > threshold
            if accepted:
                K = min(K, limit - path.removed)
            similarity = None if math.isnan(s) else s  # JSON has no NaN; the loop rejects it
            path.trace.append({"pointer": p, "layers": n, "merged": K, "similarity": similarity, "accepted": accepted})
            if accepted:
                path.order, path.removed, p = _merge_order(path.order, p, K), path.removed + K, p - I
                if self.laco.clamp:
                    p = min(p, len(path.order) - C)
            else:
                p -= 1
        return path

    def largest_threshold(self, limit: int) -> tuple[float, _Path]:
        """Return the largest threshold at which the loop removes `limit` layers, and the path of that run."""
        threshold = math.inf
        while (path := self.run(threshold, limit, need=limit)).removed < limit:
            rejected = [
                step["similarity"] for step in path.trace if not step["accepted"] and step["similarity"] is not None
            ]
            if not rejected:
                raise OutOfReach(f"no threshold removes {limit} layers; the loop ends after {path.removed}")
            threshold = math.nextafter(max(rejected), -math.inf)
        return threshold, path

    def _similarity(self, order: tuple[Merged, ...], p: int) -> float:
        """Return the similarity after a merge of the window at p, which is shorter at the end of the model."""
        if (layers := self._candidate(order, p)[0][p:]) not in self.similarity_by_layers:
            below = (self._candidate(order, place) for place in range(p, self.laco.L - 1, -1))
            unknown = ((merged, place) for merged, place in below if merged[place:] not in self.similarity_by_layers)
            candidates = list(islice(unknown, self.together))
            pairs = zip(candidates, self.similarities(candidates), strict=True)
            self.similarity_by_layers |= {merged[place:]: s for (merged, place), s in pairs}
        return self.similarity_by_layers[layers]

    def _candidate(self, order: tuple[Merged, ...], p: int) -> Candidate:
        return _merge_order(order, p, min(self.laco.C - 1, len(order) - 1 - p)), p


def merge(window: list[Layer], rule: str, norms: str) -> Layer:
    """Return the survivor of `window`: matrices by `rule`, norms and biases by `norms`. The window does not change.

    Of a mixer all is merged by `rule` but its norm: its convolution and its decays belong to its matrices.
    All else is that of the window's first layer, as in the authors' code: whether its attention is of a sliding window,
    the base of its rotary positions, and its scale, also where its projections are those of the last.
    """
    survivor = window[0].copy_sharing_matrices()
    matrices_by_layer = [layer.weights_by_path() for layer in window]
    for path, weight in survivor.weights_by_path().items():
        parent, _, name = path.rpartition(".")
        weights = [by_path[path] for by_path in matrices_by_layer]
        if rule == "sum":
            merged = nn.Parameter(_sum_of_differences(weights))
        elif weights[-1].device == weight.device:
            merged = weights[-1]
        else:
            merged = nn.Parameter(weights[-1].detach().to(weight.device))
        setattr(survivor.inner.get_submodule(parent), name, merged)
    matrices = {id(weight) for weight in survivor.weights_by_path().values()}
    parameters_by_layer = [dict(layer.inner.named_parameters()) for layer in window]
    for name, parameter in survivor.inner.named_parameters():
        if id(parameter) not in matrices and norms != "base":
            values = [named[name] for named in parameters_by_layer]
            parameter.data = (
                values[-1].data.to(parameter.device, copy=True) if norms == "last" else _sum_of_differences(values)
            )
    return survivor


def _sum_of_differences(thetas: Sequence[Tensor]) -> Tensor:
    """Return equation 1, theta_l + sum_k (theta_{l+k} - theta_l), computed in float32."""
    base = thetas[0].detach().float()
    return (base + sum(theta.detach().to(base.device).float() - base for theta in thetas[1:])).to(thetas[0].dtype)


def _first(layer: Merged) -> int:
    return leaves_of(layer)[0]


def _last(layer: Merged) -> int:
    return leaves_of(layer)[-1]
