"""Holds the distinct prefixes of token sequences as a tree, and says which of them each forward reads and sees.

Letters: N = nodes of a tree, T = nodes of one forward, P = ancestors in the cache, K = (node, answer token) pairs,
M = positions that go through the head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

Question = tuple[tuple[int, ...], int]  # tokens of context and continuation, length of the continuation


@dataclass(frozen=True)
class Tree:
    """Holds the distinct prefixes of many token sequences, as nodes in depth-first order, and what is asked of them.

    Node n descends from node m, or is m, exactly if m <= n < end[m]. Pairs are sorted by node.
    """

    tokens: Tensor  # (N,) the last token of each prefix
    depth: Tensor  # (N,) its position
    end: Tensor  # (N,) one past its last descendant
    pairs: Tensor  # (3, K) node, token that should follow, question

    @staticmethod
    def of(questions: Sequence[Question]) -> Tree:
        """Build the tree of `questions`, which are sorted, on the CPU."""
        tokens: list[int] = []
        depth: list[int] = []
        end: list[int] = []
        asked: list[int] = []
        answer: list[int] = []
        path: list[int] = []  # nodes of the sequence at hand
        inputs: tuple[int, ...] = ()
        for sequence, length in questions:
            previous, inputs = inputs, sequence[:-1]  # nothing is predicted from the last token
            shared = _shared(previous, inputs)
            for node in path[shared:]:
                end[node] = len(tokens)
            path = path[:shared] + list(range(len(tokens), len(tokens) + len(inputs) - shared))
            tokens += inputs[shared:]
            depth += range(shared, len(inputs))
            end += [-1] * (len(inputs) - shared)  # known when the walk leaves the node
            asked += path[-length:]
            answer += sequence[-length:]
        for node in path:
            end[node] = len(tokens)
        long = partial(torch.tensor, dtype=torch.long)
        number = long(range(len(questions))).repeat_interleave(long([length for _, length in questions]))
        pairs = torch.stack([long(asked), long(answer), number])
        return Tree(long(tokens), long(depth), long(end), pairs[:, pairs[0].argsort(stable=True)])

    def to(self, device: torch.device) -> Tree:
        """Copy it to a device."""
        return Tree(*(one.to(device) for one in (self.tokens, self.depth, self.end, self.pairs)))

    def forwards(self, size: int, device: torch.device) -> Iterator[Forward]:
        """Yield what each forward of `size` nodes does: found here, on the CPU, and copied to a device in one piece."""
        total, seen = len(self.tokens), torch.arange(0)  # (P,) nodes in the cache
        found = []
        for start in range(0, total, size):
            stop = min(start + size, total)
            first, last = torch.searchsorted(self.pairs[0], torch.tensor([start, stop])).tolist()
            seen = torch.cat([seen, torch.arange(start, stop)])
            stay = (self.end[seen] > stop).nonzero()[:, 0]
            positions, row = torch.unique(self.pairs[0, first:last] - start, return_inverse=True)
            found.append((slice(start, stop), slice(first, last), positions, row, stay))
            seen = seen[stay]
        nodes, pairs, *lists = zip(*found, strict=True)
        there = [torch.split(torch.cat(each).to(device), list(map(len, each))) for each in lists]
        return map(Forward, nodes, pairs, *there)


@dataclass(frozen=True)
class Forward:
    """Says what one forward over nodes of a tree does."""

    nodes: slice
    pairs: slice  # that are asked of them
    positions: Tensor  # (M,) among the nodes, that go through the head
    row: Tensor  # (K,) of each pair, the place among those
    stay: Tensor  # (P,) of the cache and the nodes, those with descendants to come


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the length of the common prefix."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def masks(model: PreTrainedModel, tree: Tree, nodes: Tensor, seen: Tensor) -> Tensor | dict[str, Tensor]:
    """Mask what (T,) `nodes` attend to of (P + T,) `seen`: an additive (1, 1, T, P + T), or one per layer type."""
    query, key = nodes[:, None], seen[None, :]
    ancestor = (key <= query) & (query < tree.end[key])
    window = getattr(model.config, "sliding_window", None)
    near = ancestor if window is None else ancestor & (tree.depth[query] - tree.depth[key] < window)
    zeros = torch.zeros(ancestor.shape, dtype=model.dtype, device=nodes.device)
    lowest = torch.finfo(model.dtype).min  # not -inf: softmax kernels have trouble with blocks of nothing else
    full, sliding = (zeros.masked_fill(~allowed, lowest)[None, None] for allowed in (ancestor, near))
    if getattr(model.config, "layer_types", None):
        return {"full_attention": full, "sliding_attention": sliding}
    return sliding
