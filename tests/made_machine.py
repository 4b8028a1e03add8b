"""A clock and a driver of a GPU that are made up, so that tests of timing assert nothing of the machine they run on."""

from __future__ import annotations

from types import SimpleNamespace

from bench.speed.timing import Workload
from bench.system import gpu as gpu_driver


class Time:
    """A clock that goes only when it is told to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def work(self, milliseconds, steps=1, *, reset=0.0, log=None, name="") -> Workload:
        """Each call takes the next of `milliseconds`, and each reset `reset` seconds."""
        durations = iter(milliseconds)

        def step():
            self.seconds += next(durations) / 1e3
            if log is not None:
                log.append(name)

        def back():
            self.seconds += reset

        return Workload(step, back, steps)


class Library:
    """As much of the module pynvml as is used here, with one GPU."""

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, processes=(), bits=0, **absent):
        self.bits, self.millijoules = bits, 0
        self.listed = [SimpleNamespace(pid=pid, usedGpuMemory=2**20 * pid) for pid in processes]
        self.nvmlInit = lambda: None
        self.nvmlDeviceGetHandleByUUID = lambda uuid: f"handle of {uuid}"
        for name in absent:
            setattr(self, name, self.refuse)

    def refuse(self, *_):
        raise self.NVMLError("Not Supported")

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return self.listed

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        self.millijoules += 30_000
        return self.millijoules

    def nvmlDeviceGetPowerUsage(self, handle):
        return 250_500

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        return self.bits

    def nvmlDeviceGetClockInfo(self, handle, kind):
        return {1: 1410, 2: 1593}[kind]

    def nvmlDeviceGetMaxClockInfo(self, handle, kind):
        return {1: 1980}[kind]

    def nvmlDeviceGetEnforcedPowerLimit(self, handle):
        return 700_000

    def nvmlDeviceGetMigMode(self, handle):
        return [0, 1]  # now, and after the next reset

    def nvmlDeviceGetTemperature(self, handle, sensor):
        return 61


def a_gpu(*processes, **options):
    return gpu_driver.Gpu(Library(processes, **options), "handle")
