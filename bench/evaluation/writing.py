"""Writes behind many prompts at once, greedily. What prompts begin with alike is read once, and kept once.

Tasks put the same examples in front of every question. The prompts that wait stand in order, so that those with the
same beginning are neighbours. Every token that is read belongs to `Nodes`: it is a token of the prompts from `first`
to `last`, at its depth. A token of a prompt is read when the first of these prompts begins, and what a prompt writes
belongs to it alone. A node sees another one where all its prompts are prompts of that one too, and at no greater depth.
So one cache of keys and values, with a mask, serves prompts of all lengths without padding.

A forward reads the last token of each prompt that is being written, and the rest of those that begin. A prompt that has
ended leaves the cache, and the next one begins in its place.

In float32 these are the tokens of `generate` of transformers for one prompt at a time. In bfloat16 they are so up to
rounding, as for likelihoods (bench.evaluation.scoring).

Letters: T = nodes of one forward, P = nodes in the cache, M = prompts that are being written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from bench.evaluation.forwards import Call, Past, read_states, to_masks
from methods.model.decoder import cap_logits

AT_ONCE = 32  # prompts that are written together
KEPT = 4096  # nodes in the cache beyond which no further prompt begins

Tokens = tuple[int, ...]
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Nodes:
    """Holds tokens of prompts, each a column of (4, N): first prompt, one past the last one, depth, token."""

    columns: Numbers

    @staticmethod
    def of(*each: tuple[int, int, int, int]) -> Nodes:
        """Return the nodes of columns."""
        return Nodes(np.array(each, dtype=np.int64).reshape(-1, 4).T)

    def __len__(self) -> int:
        return self.columns.shape[1]

    def __add__(self, more: Nodes) -> Nodes:
        return Nodes(np.concatenate([self.columns, more.columns], axis=1))

    def take(self, places: Any) -> Nodes:
        """Return the nodes at these places, or in this slice."""
        return Nodes(self.columns[:, places])

    def depths_of_visible(self, every: Nodes) -> tuple[Tensor, Tensor]:
        """Return which of `every` node each of these sees, bool (T, P), and how far behind it lies, (T, P)."""
        first, last, depth, _ = (torch.from_numpy(row)[:, None] for row in self.columns)
        first_of_key, last_of_key, depth_of_key, _ = (torch.from_numpy(row)[None, :] for row in every.columns)
        distance = depth - depth_of_key
        return (first_of_key <= first) & (last <= last_of_key) & (distance >= 0), distance


def divide_prompts(prompts: Sequence[Tokens]) -> list[Nodes]:
    """Return the nodes that are read when each of the sorted, distinct prompts begins: those of no earlier one."""
    shared = [0, *(_length_of_beginning(first, second) for first, second in pairwise(prompts))]
    last = np.full(max(map(len, prompts), default=0), len(prompts))  # by depth: the next prompt that is other there
    nodes = list[Nodes]()
    for number in reversed(range(len(prompts))):
        prompt, start = prompts[number], shared[number]
        depths = np.arange(start, len(prompt))
        nodes.append(Nodes(np.stack([np.full(len(depths), number), last[depths], depths, np.array(prompt[start:])])))
        last[start:] = number
    return nodes[::-1]


def _length_of_beginning(first: Tokens, second: Tokens) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


@torch.no_grad()
def write_behind(
    model: PreTrainedModel,
    prompts: Sequence[Tokens],
    most: int,
    has_ended: Callable[[Sequence[int]], bool],
    *,
    size: int,
    bar: Any,
) -> list[list[int]]:
    """Return the tokens that a model writes behind each of the sorted, distinct prompts.

    most       tokens behind a prompt
    has_ended  says whether a prompt is done that has these tokens behind it
    size       tokens of one forward
    bar        a bar of methods.console, of the nodes of prompts and of `most` tokens behind each prompt
    """
    begins = divide_prompts(prompts)
    written: list[list[int]] = [[] for _ in prompts]
    cache, active, waiting = _Cache(model, size), list[int](), 0
    while active or waiting < len(prompts):
        nodes = Nodes.of(
            *((row, row + 1, len(prompts[row]) + len(written[row]) - 1, written[row][-1]) for row in active)
        )
        ends = list(range(len(active)))  # places of the nodes that say which token is next
        while waiting < len(prompts) and (not active or cache.has_room(len(active), nodes, begins[waiting])):
            nodes += begins[waiting]
            ends.append(len(nodes) - 1)
            active.append(waiting)
            bar.update(len(begins[waiting]))
            waiting += 1
        for row, token in zip(active, cache.read(nodes, ends), strict=True):
            written[row].append(token)
            bar.update()
        is_done = {row: len(written[row]) == most or has_ended(written[row]) for row in active}
        bar.update(sum(most - len(written[row]) for row in active if is_done[row]))
        active = [row for row in active if not is_done[row]]
        cache.keep([*active, *range(waiting, len(prompts))])
    return written


@torch.no_grad()
def write_one(
    model: PreTrainedModel, prompt: Tokens, most: int, has_ended: Callable[[Sequence[int]], bool]
) -> list[int]:
    """Return the tokens behind a prompt that a model with mixers writes by itself, on a cache that holds their states.

    The arguments are those of `write_behind`. Nothing is shared, since a state cannot be divided among prompts.
    """
    written, cache, before = list[int](), None, 0
    read = torch.tensor([prompt], device=model.device)
    while len(written) < most and not (written and has_ended(written)):
        places = torch.arange(before, before + read.shape[1], device=model.device)[None]
        output = model(input_ids=read, position_ids=places, cache=cache, use_cache=True, logits_to_keep=1)
        before += read.shape[1]
        cache, read = output.cache, output.logits[:, -1:].float().argmax(-1)
        written.append(int(read))
    return written


class _Cache:
    """Gives tokens to the model, and keeps the keys and values of those that later tokens look at."""

    def __init__(self, model: PreTrainedModel, size: int) -> None:
        self.model, self.size = model, size
        self.head = cast(nn.Module, model.get_output_embeddings())  # type: ignore[no-untyped-call]
        self.past, self.nodes = Past(), Nodes.of()
        self.stay: Numbers = np.arange(0)

    def has_room(self, active: int, nodes: Nodes, more: Nodes) -> bool:
        """Say whether a further prompt may begin in the forward of `nodes`, with `more`."""
        kept = len(self.stay) + len(nodes) + len(more)
        return active < AT_ONCE and len(nodes) + len(more) <= self.size and kept <= KEPT

    def keep(self, rows: Sequence[int]) -> None:
        """Let go of the nodes that are of none of these prompts, given in order, when the next forward reads."""
        first, last, *_ = self.nodes.columns
        self.stay = np.flatnonzero(np.searchsorted(rows, first) < np.searchsorted(rows, last))

    def read(self, nodes: Nodes, ends: Sequence[int]) -> list[int]:
        """Return the likeliest token behind each of the nodes at `ends`, which ascend."""
        states = []
        for start in range(0, len(nodes), self.size):
            piece = nodes.take(slice(start, start + self.size))
            positions = [end - start for end in ends if start <= end < start + self.size]
            states.append(self._read_piece(piece, torch.tensor(positions, dtype=torch.long)))
        logits = cap_logits(self.head(torch.cat(states)), self.model.config)  # (M, V)
        tokens: list[int] = logits.float().argmax(-1).tolist()
        return tokens

    def _read_piece(self, piece: Nodes, positions: Tensor) -> Tensor:
        device, before = self.model.device, len(self.nodes)
        every = self.nodes + piece
        _, _, depth, token = (torch.from_numpy(row)[None].to(device) for row in piece.columns)
        visible, distance = piece.depths_of_visible(every)
        inputs = {
            "input_ids": token,
            "position_ids": depth,
            "attention_mask": to_masks(self.model, visible.to(device), distance.to(device)),
        }
        stay = np.concatenate([self.stay, np.arange(before, len(every))])
        goes = len(self.stay) < before
        call = Call(inputs, positions, self.past, torch.from_numpy(stay) if goes else None)
        self.nodes = every.take(stay) if goes else every
        self.stay = np.arange(len(self.nodes))
        return read_states(self.model, call, self.head)
