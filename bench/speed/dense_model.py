"""Gives the process that times a pruned model the dense one to compare it with."""

from __future__ import annotations

import torch
from torch import nn

from bench.data import pretrained
from bench.plan.cell import Cell
from bench.system import failures
from bench.system.memory import give_back
from methods.model.layer_store import cast
from methods.model.precision import held_in


def loaded(cell: Cell, device: torch.device) -> nn.Module:
    """Load the dense model onto the device, and where it does not fit beside what is there into the host's memory."""
    how = getattr(torch, cell.dtype), cell.trust_remote_code
    try:
        return pretrained.load(cell.model, device, *how)[0]
    except Exception as error:
        if device.type == "cpu" or not failures.is_out_of_memory(error):
            raise
    give_back([device])
    return pretrained.load(cell.model, torch.device("cpu"), *how)[0]


def without_weights(cell: Cell) -> nn.Module:
    """Make the dense model on the meta device, of the cell's dtype: its work is counted from shapes alone."""
    model = pretrained.shell(cell.model, cell.trust_remote_code)
    cast(model.named_parameters(), held_in(model, getattr(torch, cell.dtype)))
    return model


def own_memory(*models: nn.Module) -> None:
    """Copy every tensor into plain memory: a model that lies in a mapped file would be timed differently."""
    for model in models:
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()
