"""Puts the models of a pair on the device: both at once where they fit, else one at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from bench.system import failures
from bench.system.memory import give_back

CPU = torch.device("cpu")


class Placement:
    """Knows where the `models`, by their names, lie: on `devices`, or while they wait in the host's memory."""

    def __init__(self, models: Mapping[str, nn.Module], devices: Sequence[torch.device]) -> None:
        self.models, self.devices = models, devices
        self.together = True
        self.gather()

    @property
    def separable(self) -> bool:
        """Whether one model can make room for the other; those of a CPU lie in the memory that they would wait in."""
        return len(self.models) > 1 and [device.type for device in self.devices] == ["cuda"]

    @torch.inference_mode(mode=False)  # which would make tensors of that mode of the parameters
    def gather(self) -> None:
        """Put all models on the device, if they did not turn out to be too large for it together."""
        if not self.together:
            return
        try:
            for model in self.models.values():
                model.to(self.devices[0])
        except Exception as error:
            if not (self.separable and failures.is_out_of_memory(error)):
                raise
            self.together = False

    @torch.inference_mode(mode=False)
    def alone(self, name: str) -> nn.Module:
        """Return a model, which then is the only one on the device."""
        for other, model in self.models.items():
            if other != name:
                model.to(CPU)
        give_back(self.devices)
        return self.models[name].to(self.devices[0])
