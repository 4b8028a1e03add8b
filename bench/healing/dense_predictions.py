"""Keeps what the dense model predicts for the text that a pruned model is healed on, without keeping the dense model.

What its head reads is noted before pruning, when the dense model is on the device anyway, and waits in the host's
memory: D numbers a token, where the predictions themselves would be V. On the device there is a copy of the head.

Letters: N = training sequences, B = some of them, T = their tokens, D = residual width, V = vocabulary.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from methods import progress
from methods.model.activations import inputs_of
from methods.model.decoder import Decoder, capped

LOGITS = 2**26  # the most of one forward


class DensePredictions:
    """Holds what the dense model's head reads for each training sequence, (N, T - 1, D) on the CPU, and the head."""

    @torch.no_grad()
    def __init__(self, dense: Decoder, ids: Tensor) -> None:
        """Run the dense model on ids, (N, T)."""
        self.head = copy.deepcopy(dense.head).requires_grad_(False)
        self.config = dense.config
        read = list[Tensor]()
        pieces = torch.split(ids, max(1, LOGITS // (dense.embed.num_embeddings * ids.shape[1])))
        for some in progress.over(pieces, "reading the text of healing", "batch"):
            with inputs_of(dense.head) as seen:
                dense.model(input_ids=some.to(dense.embed.weight.device), use_cache=False)
            read.append(seen[0][:, :-1].cpu())
        self.read = torch.cat(read)

    @torch.no_grad()
    def logits(self, rows: list[int]) -> Tensor:
        """Predict each token but the first of these sequences: (B, T - 1, V) in float32."""
        return capped(self.head(self.read[rows].to(self.head.weight.device)), self.config).float()
