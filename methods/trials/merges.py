"""Measures how much the last state of a model in which windows of layers have merged resembles the dense model's.

A candidate begins at its window, since no layer below has changed. All candidates go through a layer before any goes
through the next, so that a layer whose weights lie in a file is read once for all of them.

N = sentences, t = tokens of a sentence, D = residual width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn

from methods.model.activations import Entry, enter, refuse_overflow
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.layer import Layer

# A layer of the working model: the number of an original layer, or the window that was merged into one.
Merged = int | tuple["Merged", ...]
Candidate = tuple[tuple[Merged, ...], int]  # the layers of a working model, and the place of the window among them


@dataclass
class _Sentences:
    """Holds one micro-batch of sentences in the original model.

    entry   arguments of its layers besides the states
    mask    (N, t) true at real tokens
    states  the input of every layer, (N, t, D) each
    final   the last hidden state after the final norm, (N, t, D)
    """

    entry: Entry
    mask: Tensor
    states: list[Tensor]
    final: Tensor


class MergeTrial:
    """Holds the original model's states, and measures how much a working model's last state resembles them.

    Raises Unsupported where the original states overflow.

    merged  returns one layer for the layers of a window
    kept    states behind a run of layers of a working model, for each micro-batch. A run is a window and original
            layers above it, so that there are at most about as many as pairs of layers
    room    bytes that `kept` may still take
    """

    def __init__(self, merged: Callable[[list[Layer]], Layer], model: Decoder, calibration: Calibration) -> None:
        self.merged, self.model, self.wait = merged, model, calibration.wait
        self.original = model.layers
        self.count = len(self.original)
        width = model.embed.embedding_dim * (self.count + 6)
        self.sentences = [self._pass(ids, mask) for ids, mask in calibration.batches(width, model.embed.weight.dtype)]
        refuse_overflow(torch.stack([batch.final[batch.mask].isfinite().all() for batch in self.sentences]).all())
        self.kept: dict[tuple[Merged, ...], list[Tensor]] = {}
        self.room = calibration.memory

    def _pass(self, ids: Tensor, mask: Tensor) -> _Sentences:
        entry = enter(self.model, ids)
        states = [self.wait(entry.x)]
        for layer in self.original:
            states.append(self.wait(entry.run([layer], states[-1])))
        final = self.model.normed(states.pop())
        return _Sentences(entry, mask.to(final.device), states, final)

    def similarities(self, candidates: Sequence[Candidate]) -> list[float]:
        """Return for each candidate the mean over sentences of the cosine of both models' last states.

        A cosine is over all real tokens. It is NaN, and rejected, where an earlier method has cut the window's layers
        to different shapes.
        """
        alike = [may_merge(self.original, order[p]) for order, p in candidates]
        ends = iter(self._ends([(order[p:], p) for order, p in compress(candidates, alike)]))
        return [self._cosine(next(ends)) if same else math.nan for same in alike]

    def _cosine(self, states: list[Tensor]) -> float:
        cosines = []
        for batch, state in zip(self.sentences, states, strict=True):
            h = self.model.normed(state)
            a, b = ((state * batch.mask[..., None]).flatten(1).float() for state in (h, batch.final))
            cosines.append(nn.functional.cosine_similarity(a, b, dim=1, eps=1e-12))
        return float(torch.cat(cosines).mean())

    def _ends(self, tried: Sequence[Candidate]) -> list[list[Tensor]]:
        """Return the states behind each run of layers that begins at p, for each micro-batch, (N, t, D).

        All runs go through a layer, counted from the last one, before any goes through the next, so that it is read
        once.
        """
        states, starts = list[list[Tensor]](), list[int]()
        for layers, p in tried:
            starts.append(next((end for end in range(len(layers), 0, -1) if layers[:end] in self.kept), 0))
            kept = self.kept[layers[: starts[-1]]] if starts[-1] else None
            states.append([batch.states[p] for batch in self.sentences] if kept is None else kept)
        ahead = [len(layers) - start for (layers, _), start in zip(tried, starts, strict=True)]
        for from_end in range(max(ahead, default=0), 0, -1):
            numbers = [number for number, layers in enumerate(ahead) if layers >= from_end]
            for each in dict.fromkeys(tried[number][0][-from_end] for number in numbers):
                layer = self.realise(each)
                with layer.visiting():
                    for number in numbers:
                        layers = tried[number][0]
                        if layers[-from_end] == each:
                            pairs = zip(self.sentences, states[number], strict=True)
                            states[number] = [self.wait(batch.entry.run([layer], state)) for batch, state in pairs]
                            self._keep(layers[: len(layers) - from_end + 1], states[number])
        return states

    def _keep(self, layers: tuple[Merged, ...], states: list[Tensor]) -> None:
        """Keep the states behind a window and original layers above it, if there is room."""
        size = sum(state.nbytes for state in states)
        if all(isinstance(above, int) for above in layers[1:]) and size <= self.room:
            self.kept[layers], self.room = states, self.room - size

    def realise(self, layer: Merged) -> Layer:
        """Return the layer itself, or the survivor of its window."""
        if isinstance(layer, int):
            return self.original[layer]
        return self.merged([self.realise(part) for part in layer])


def may_merge(layers: Sequence[Layer], window: Merged) -> bool:
    """Say whether layers of a window may merge: whether they have the same sublayers, and matrices of one shape."""
    return len({_shapes(layers[number]) for number in leaves_of(window)}) == 1


def _shapes(layer: Layer) -> tuple[Any, ...]:
    shapes = [tuple(matrix.weight.shape) for matrix in layer.matrices]
    return layer.has_attention, layer.has_mlp, layer.mixer is None, *shapes


def leaves_of(layer: Merged) -> list[int]:
    """Return the numbers of the original layers that are in a layer, from the lowest on."""
    return [layer] if isinstance(layer, int) else [leaf for part in layer for leaf in leaves_of(part)]
