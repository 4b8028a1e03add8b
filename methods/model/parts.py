"""Parts of a layer: mixtures of experts, the stand-in for a removed sublayer, and a factor of additions.

Experts shows the mixture of experts that stands for the MLP of a layer, and removes experts from it. A router scores J
experts for each token, takes k of them, and weighs their outputs:

    MoE(h) = sum over the k experts j that h is routed to of g_j(h) f_j(h)

Some families add an MLP that every token takes. It is none of the J and stays.

The experts' tensors lie in one bank, with the experts on the first axis, and so do the router's rows and biases. An
expert that goes takes its slice of each with it, and the router takes the k best of those that are left. Removing an
expert equals forbidding it in the router.

Letters: J = experts, k = experts that a token takes, D = residual width, I = channels of an expert, M = tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from methods.errors import Unsupported
from methods.model.architectures import Mixture


@dataclass(frozen=True)
class Experts:
    """Shows a layer's mixture of experts by role.

    router  scores the experts and takes k of them
    bank    computes them
    shared  the matrices of the MLP that every token takes beside them, if there is one
    row     the family's names for these parts
    """

    router: Any
    bank: Any
    shared: Sequence[nn.Linear]
    row: Mixture

    @staticmethod
    def of(layer: Any, row: Mixture | None) -> Experts | None:
        """Return the mixture of a family's own layer; None where the layer has a single MLP, or has lost its MLP."""
        if row is None:
            return None
        try:
            router, bank = attrgetter(row.router, row.bank)(layer)
        except AttributeError:
            return None
        shared = attrgetter(row.shared)(layer).modules() if row.shared else ()
        return Experts(router, bank, [part for part in shared if isinstance(part, nn.Linear)], row)

    @property
    def count(self) -> int:
        """Return J as the weights have it, also after pruning."""
        return len(self.router.weight)

    @property
    def experts_per_token(self) -> int:
        """Return k, how many experts a token takes."""
        return int(getattr(self.router, self.row.experts_per_token))

    @property
    def groups(self) -> int:
        """Return the number of the router's groups of experts, equal ones, one behind the other; 1 without groups."""
        return int(getattr(self.router, self.row.groups)) if self.row.groups else 1

    @property
    def fewest(self) -> int:
        """Return the least number of experts, so that a token finds k in the groups that it may take.

        A router with groups ranks them by the two best experts of each.
        """
        if self.groups == 1:
            return self.experts_per_token
        allowed = int(getattr(self.router, self.row.groups_per_token))
        return self.groups * max(2, -(-self.experts_per_token // allowed))

    @property
    def parameters(self) -> int:
        """Return the parameters of one expert, with its row of the router."""
        return self.weights + sum(parameter.numel() for parameter in self.router.parameters()) // self.count

    @property
    def weights(self) -> int:
        """Return the parameters of one expert in the bank."""
        return sum(parameter.numel() for parameter in self.bank.parameters()) // self.count

    @property
    def matrices(self) -> dict[str, list[Tensor]]:
        """Return the router's matrix (J, D), and those of one expert, gate and up in one."""
        stacked = [tensor[0] for tensor in self.bank.parameters() if tensor.ndim == 3]  # all else are biases
        experts = [matrix.T if self.row.transposed else matrix for matrix in stacked]
        return {"router": [self.router.weight], "experts": experts}

    @property
    def _sizes(self) -> list[torch.Size]:
        return [tensor.shape[1:] for tensor in self.bank.parameters() if tensor.ndim == 3]

    @property
    def macs(self) -> int:
        """Return the multiply-accumulates of a token in the router and its k experts, without any linear layer."""
        return int(self.router.weight.numel()) + self.experts_per_token * sum(size.numel() for size in self._sizes)

    @property
    def values(self) -> int:
        """Return how many numbers a token has in memory at most: logits, and the inputs and outputs of each matrix."""
        shared = sum(matrix.in_features + matrix.out_features for matrix in self.shared)
        return self.count + self.experts_per_token * sum(map(sum, self._sizes)) + shared

    def route(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return g and the numbers of the experts that each token takes, (M, D) -> (M, k), (M, k).

        g is the factor of an expert's output, renormalised where the router does so with the k best.
        """
        _, g, chosen = self.router(h)
        return g, chosen

    def outputs(self, h: Tensor, chosen: Tensor) -> Tensor:
        """Return f_j(h) of each expert that is chosen for a token, (M, D), (M, k) -> (M, k, D).

        The bank is called with a single expert for each row, with the weight 1.
        """
        k = chosen.shape[1]
        ones = torch.ones(chosen.numel(), 1, device=h.device, dtype=h.dtype)
        outputs: Tensor = self.bank(h[:, None].expand(-1, k, -1).reshape(-1, h.shape[1]), chosen.reshape(-1, 1), ones)
        return outputs.view(len(h), k, -1)

    def score(self, h: Tensor) -> Tensor:
        """Return the router's logits of all experts, in front of any softmax, (M, D) -> (M, J) in float32."""
        bias = getattr(self.router, "bias", None)
        logits: Tensor = nn.functional.linear(
            h.float(), self.router.weight.float(), None if bias is None else bias.float()
        )
        return logits

    @property
    def channels(self) -> int:
        """Return I, how many channels an expert has between its matrices."""
        return int(getattr(self.bank, self.row.down).shape[1 if self.row.transposed else 2])

    def activations(self, h: Tensor, number: int) -> Tensor:
        """Return what enters the last matrix of one expert, (M, D) -> (M, I)."""
        tensors = self.tensors_of(number)
        gate_up = tensors[self.row.gate_up]
        both = nn.functional.linear(h, gate_up.T if self.row.transposed else gate_up, tensors.get(self._gate_up_bias))
        activations: Tensor = self.bank._apply_gate(both) if self.row.gated else self.bank.act_fn(both)
        return activations

    def weights_of_channels(self, number: int) -> Tensor:
        """Return the weights of each channel of one expert, its rows of gate and up and its column of down, (I, 3D).

        Without a gate they are (I, 2D).
        """
        tensors = self.tensors_of(number)
        gate_up, down = tensors[self.row.gate_up], tensors[self.row.down]
        if self.row.transposed:
            gate_up, down = gate_up.T, down.T
        if not self.row.gated:
            return torch.cat([gate_up, down.T], dim=1)
        gate, up = (gate_up[0::2], gate_up[1::2]) if self.row.paired else gate_up.chunk(2)
        return torch.cat([gate, up, down.T], dim=1)

    def tensors_of(self, number: int) -> dict[str, Tensor]:
        """Return the tensors of one expert by their names in the bank."""
        return {name: tensor.detach()[number] for name, tensor in self.bank.named_parameters()}

    def reorder_channels(self, number: int, order: Tensor) -> dict[str, Tensor]:
        """Return the tensors of one expert with its channels in another order, (I,), which changes no output."""
        tensors, across = self.tensors_of(number), int(self.row.transposed)
        order = order.to(tensors[self.row.down].device)
        rows = self._rows(order)
        tensors[self.row.gate_up] = tensors[self.row.gate_up].index_select(across, rows)
        tensors[self.row.down] = tensors[self.row.down].index_select(1 - across, order)
        if (bias := tensors.get(self._gate_up_bias)) is not None:
            tensors[self._gate_up_bias] = bias[rows]
        return tensors

    @torch.no_grad()
    def put(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Put tensors, by their names in the bank, in the place of one expert's."""
        for name, tensor in tensors.items():
            getattr(self.bank, name)[number].copy_(tensor)

    @property
    def _gate_up_bias(self) -> str:
        return f"{self.row.gate_up}_bias"

    def _rows(self, channels: Tensor) -> Tensor:
        """Return the rows of gate and up, which are one matrix, of channels in this order, (I,) -> (2I,), or of up."""
        if not self.row.gated:
            return channels
        if self.row.paired:
            return torch.stack([2 * channels, 2 * channels + 1], dim=1).flatten()
        return torch.cat([channels, channels + self.channels])

    def keep(self, kept: Sequence[int]) -> None:
        """Keep the experts `kept`, in this order, and remove all others. The caller sets the model's count."""
        index = torch.tensor(list(kept), dtype=torch.long)
        if self.groups > 1 and not _equal_groups(kept, self.count, self.groups):
            raise Unsupported("its router takes groups of equally many experts, so that each has to lose as many")
        for part in (self.router, self.bank):
            self._slice(part, index)
            for name in self.row.counts:
                if hasattr(part, name):
                    setattr(part, name, len(kept))

    def _slice(self, part: nn.Module, index: Tensor) -> None:
        count = len(next(part.parameters()))
        names = [name for name, _ in (*part.named_parameters(), *part.named_buffers())]
        if any(len(getattr(part, name, ())) != count for name in names):
            raise Unsupported("a tensor of its experts does not have the experts on its first axis")
        for name in names:  # one after the other, so that the old one goes before the next comes
            tensor = getattr(part, name)
            new = tensor.detach().index_select(0, index.to(tensor.device))
            setattr(part, name, nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new)
            del tensor


def _equal_groups(kept: Iterable[int], count: int, groups: int) -> bool:
    sizes = [0] * groups
    for number in kept:
        sizes[number * groups // count] += 1
    return len(set(sizes)) == 1


class InPlace(nn.Module):
    """Stands where a layer is, and has all that the model around it may read of that layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._layer = (layer,)  # no module of this one

    def __getattr__(self, name: str) -> Any:
        """Return what the layer has by this name."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "_layer":
                raise
            return getattr(self._layer[0], name)


class Removed(nn.Module):
    """Stands where an attention or an MLP was, and adds nothing to the residual."""

    def __init__(self, *, attention: bool, pair: bool = False, buffers: Mapping[str, Tensor] | None = None) -> None:
        """Stand for an attention or an MLP.

        pair     whether the MLP's forward returned a tuple with its result first, as an attention's does
        buffers  of what stood here, which the class of the model fills itself and no folder holds
        """
        super().__init__()
        self.pair = attention or pair
        for name, buffer in (buffers or {}).items():
            self.register_buffer(name, buffer, persistent=False)
        self.layer_idx = 0
        self.counts = False  # True where no attention of the layer's kind is left: then this gives the cache a length

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return zeros; an attention also tells the cache how many tokens came."""
        nothing = torch.zeros_like(hidden_states)
        if not self.pair:
            return nothing
        cache = kwargs.get("cache", kwargs.get("layer_past"))
        if self.counts and cache is not None:
            one_number = nothing[:, None, :, :1]  # per token, (B, 1, T, 1): a cache of no numbers has no length
            cache.update(one_number, one_number, self.layer_idx)
        return nothing, None


class Times(nn.Module):
    """Multiplies by a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Return the states times the factor."""
        return x * self.factor
