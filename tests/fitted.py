"""Shared by several test files."""

from __future__ import annotations

import torch
from calibrations import LENGTHS, calibration

from methods.model.decoder import Decoder


@torch.no_grad()
def states(model: Decoder, half: int = 0) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Real tokens, each sequence alone, (M, D) in float64: what enters every layer and leaves
    the last, what each attention adds, what each MLP adds. Family llama."""
    entered = [[] for _ in range(len(model.layers) + 1)]
    attentions, mlps = ([[] for _ in model.layers] for _ in range(2))
    hooks = []

    def note(into):
        return lambda module, args, out: into.append((out[0] if isinstance(out, tuple) else out)[0].double())

    for number, layer in enumerate(model.layers):
        hooks.append(
            layer.module.register_forward_pre_hook(
                lambda module, args, number=number: entered[number].append(args[0][0].double())
            )
        )
        hooks.append(layer.attn.register_forward_hook(note(attentions[number])))
        hooks.append(layer.inner.mlp.register_forward_hook(note(mlps[number])))
    hooks.append(model.layers[-1].module.register_forward_hook(note(entered[-1])))
    tokens = calibration()
    for ids, length in zip(tokens.ids, LENGTHS, strict=True):
        model.model(ids[None, :length], use_cache=False)
    for hook in hooks:
        hook.remove()
    return tuple([torch.cat(rows) for rows in group] for group in (entered, attentions, mlps))


def brute(x: torch.Tensor, y: torch.Tensor, ridge: float, towards: torch.Tensor) -> torch.Tensor:
    """The ridge solution as plain least squares: penalties are further rows."""
    penalty = torch.diag((ridge * x.square().sum(0)).sqrt())
    return torch.linalg.lstsq(torch.cat([x, penalty]), torch.cat([y, penalty @ towards]), driver="gelsd").solution
