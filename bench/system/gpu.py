"""Reads an NVIDIA GPU's state from the driver's management library, through the optional package `nvidia-ml-py`.

Every reading is None where the library, the driver or the card does not give it. Nothing here raises an error.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, Self

import torch

MISSING = "nvidia-ml-py is not installed (pip install 'prunebench[gpu]')"
REASONS = {  # why a card does not run at its highest clock, by the library's own bits
    0x1: "idle",
    0x2: "clocks set by the user",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal, by software",
    0x40: "thermal, by hardware",
    0x80: "power brake",
    0x100: "display clocks",
}
THROTTLED = ("power cap", "hardware slowdown", "thermal, by software", "thermal, by hardware", "power brake")


class Gpu:
    """Reads one GPU. `library` is the module pynvml, initialised; `handle` its name for the GPU."""

    def __init__(self, library: Any, handle: Any) -> None:
        self.library, self.handle = library, handle

    def _ask(self, question: str, *arguments: Any) -> Any:
        function = getattr(self.library, question, None)
        try:
            return None if function is None else function(self.handle, *arguments)
        except self.library.NVMLError:
            return None

    def processes(self) -> dict[int, int | None] | None:
        """Return {process: bytes it holds on the GPU} of all that compute there; None where that is unknown."""
        processes = self._ask("nvmlDeviceGetComputeRunningProcesses")
        return None if processes is None else {process.pid: process.usedGpuMemory for process in processes}

    def energy_joules(self) -> float | None:
        """Return the energy in joules since the driver was loaded; None without a counter."""
        millijoules = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        return None if millijoules is None else millijoules / 1e3

    def state(self) -> dict[str, Any]:
        """Return clocks in MHz, temperature in degrees Celsius, power in watts, and what holds the clocks down."""
        milliwatts = self._ask("nvmlDeviceGetPowerUsage")
        bits = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if bits is None:
            bits = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        state = {
            "sm_mhz": self._ask("nvmlDeviceGetClockInfo", self.library.NVML_CLOCK_SM),
            "memory_mhz": self._ask("nvmlDeviceGetClockInfo", self.library.NVML_CLOCK_MEM),
            "temperature_c": self._ask("nvmlDeviceGetTemperature", self.library.NVML_TEMPERATURE_GPU),
            "power_w": None if milliwatts is None else milliwatts / 1e3,
            "slowed_by": None if bits is None else [reason for bit, reason in REASONS.items() if bits & bit],
        }
        return {name: value for name, value in state.items() if value is not None}

    def limits(self) -> dict[str, Any]:
        """Return what the card may do: watts, its highest and its set clock in MHz, and whether it is shared out.

        power_limit_w   the limit that is in force
        highest_sm_mhz  the highest clock that it can have
        set_sm_mhz      the clock that an administrator has set for applications
        mig             whether it is divided into instances
        """
        milliwatts = self._ask("nvmlDeviceGetEnforcedPowerLimit")
        mig = self._ask("nvmlDeviceGetMigMode")
        limits = {
            "power_limit_w": None if milliwatts is None else milliwatts / 1e3,
            "highest_sm_mhz": self._ask("nvmlDeviceGetMaxClockInfo", self.library.NVML_CLOCK_SM),
            "set_sm_mhz": self._ask("nvmlDeviceGetApplicationsClock", self.library.NVML_CLOCK_SM),
            "mig": None if mig is None else bool(mig[0]),
        }
        return {name: value for name, value in limits.items() if value is not None}


class Sampler:
    """Reads GPUs in a thread while they work, within `with`. They are idle again once the host has waited for them.

    It can be entered several times; `states` then holds all readings.
    """

    def __init__(self, gpus: Sequence[Gpu], seconds: float = 0.1) -> None:
        self.gpus, self.seconds = gpus, seconds
        self.states: list[list[dict[str, Any]]] = [[] for _ in gpus]
        self._ended, self._thread = threading.Event(), threading.Thread()

    def __enter__(self) -> Self:
        if self.gpus:
            self._ended.clear()
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.gpus:
            self._ended.set()
            self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self.seconds):
            for gpu, states in zip(self.gpus, self.states, strict=True):
                states.append(gpu.state())

    def summarise(self) -> list[dict[str, Any]]:
        """Return for each GPU the number of readings, and [lowest, middle, highest] of each value of `Gpu.state`.

        slowed_by is {reason: share of the readings}.
        """
        return [_summarise(states) for states in self.states]

    @property
    def is_throttled(self) -> bool:
        """Say whether heat or power held a GPU down at any reading."""
        reasons = {reason for summary in self.summarise() for reason in summary.get("slowed_by", ())}
        return not reasons.isdisjoint(THROTTLED)


def _summarise(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    summary: dict[str, Any] = {"samples": len(states)}
    for name in dict.fromkeys(name for state in states for name in state):
        values = [state[name] for state in states if name in state]
        if name == "slowed_by":
            counts = Counter(reason for reasons in values for reason in reasons)
            summary[name] = {reason: round(count / len(values), 3) for reason, count in counts.items()}
        else:
            summary[name] = [min(values), median(values), max(values)]
    return summary


def count_other_processes(gpu: Gpu, mine: int, parent: int, parent_is_there: bool) -> int | None:
    """Return how many processes compute on the GPU beside this one and its parent; None where that is unknown.

    In a container the driver may number processes differently, so that this one is not in the list. Then processes are
    only counted, and the one or two of this program are subtracted.
    """
    processes = gpu.processes()
    if processes is None:
        return None
    if mine in processes:
        return len(set(processes) - {mine, parent})
    return max(0, len(processes) - 1 - parent_is_there)


def find_gpus(devices: list[torch.device], load: Callable[[], Any] | None = None) -> tuple[list[Gpu], str | None]:
    """Return the GPUs among `devices`, and why there are none although there should be; None where nothing is wrong."""
    cuda = [device for device in devices if device.type == "cuda"]
    if not cuda:
        return [], None
    try:
        library = (load or _library)()
    except ImportError:
        return [], MISSING
    try:
        library.nvmlInit()
        return [Gpu(library, library.nvmlDeviceGetHandleByUUID(_uuid(device))) for device in cuda], None
    except library.NVMLError as error:
        return [], f"the management library does not answer: {error}"


def _library() -> Any:
    import pynvml

    return pynvml


def _uuid(device: torch.device) -> str:
    """Return the card's own name, since numbers differ when only a part of the cards is visible."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"
