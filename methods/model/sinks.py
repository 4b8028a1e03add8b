"""Tells attention sinks from the other tokens, by the size of their states, for fits that sum squares over tokens.

Many language models hold a state of huge norm at the first position of a sequence, and at few others, on which heads
that have nothing to do spend their attention: Xiao, Tian, Chen, Han, Lewis 2024, "Efficient Streaming Language Models
with Attention Sinks", ICLR, arXiv 2309.17453; Sun, Chen, Kolter, Liu 2024, "Massive Activations in Large Language
Models", COLM, arXiv 2402.17762. In SmolLM2-135M such a state is a hundred times as long as the others behind layer 11.
A sum of squares over all tokens is then decided by the sinks, and one that leaves them out loses them where they first
appear inside the removed layers. So they are a population of their own: a fit minimises

    J = sum_others ||e||^2 / sum_others ||z||^2  +  s sum_sinks ||e||^2 / sum_sinks ||z||^2

e what is missed at a token, z the state that is wanted there, s = 1, or, where there are fewer sinks than sequences,
their number by that of the sequences. A token is a sink where its norm is more than TIMES the median, in any of the
states that a fit sees. Where there is none, J is the usual sum of squares but for a factor.

What a sink needs is to be one: the norm in front of every block does not see its size. So a sink that is there already
is wanted in the size that it has, in the direction of z (`wanted_states`). To shrink one, as the last layers of
SmolLM2-135M do, would cost the other tokens much.

B = sequences of a micro-batch, T = tokens, D = residual width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from methods.model.calibration import Wait, in_memory

Sinks = Literal["apart", "alike"]  # a population of their own, or tokens as all others

TIMES = 5.0  # the median norm; in SmolLM2-135M sinks have 5 to 11 times it in layers 2 to 7, 28 or more from 11 to 27


def find_sinks(where: Sequence[Tensor], *states: Sequence[Tensor]) -> list[Tensor]:
    """Return (B, T) for each micro-batch, true at what is a sink in any of the states.

    `where` (B, T) is true at real tokens; of each of `states` there is (B, T, D) for each micro-batch.
    """
    found = [torch.zeros_like(one) for one in where]
    for each in states:
        norms = [one.float().norm(dim=-1) for one in each]
        median = torch.cat([norm[real] for norm, real in zip(norms, where, strict=True)]).median()
        found = [sink | (real & (norm > TIMES * median)) for sink, norm, real in zip(found, norms, where, strict=True)]
    return found


def wanted_states(
    where: Sequence[Tensor], y: Sequence[Tensor], z: Sequence[Tensor], sinks: Sinks, wait: Wait = in_memory
) -> list[Tensor]:
    """Return z, (B, T, D) for each micro-batch; with sinks `apart`, where y is one as well as z, in the size of y."""
    if sinks == "alike":
        return list(z)
    found = []
    for one, other, in_y, in_z in zip(y, z, find_sinks(where, y), find_sinks(where, z), strict=True):
        size = torch.where(in_y & in_z, one.float().norm(dim=-1) / other.float().norm(dim=-1), 1.0)
        found.append(wait(other * size[..., None].to(other.dtype)))
    return found
