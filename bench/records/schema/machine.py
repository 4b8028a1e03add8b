"""Describes `environment` of a record, and what the machine did while a model was timed."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from bench.records.schema.kinds import (
    Bytes,
    Celsius,
    Cores,
    Count,
    Date,
    Layout,
    Megahertz,
    Scalar,
    Seconds,
    Share,
    Unit,
    Watts,
    absent,
)

Three = Annotated[list[float], Field(min_length=3, max_length=3)]


class Environment(Layout):
    """Describes the machine, without host name, user name or path; what cannot be found out is absent."""

    source: ClassVar[str] = "bench.system.environment"

    date: Date = absent("when the record was written")
    python: str = absent("its version")
    platform: str = absent("system, processor and C library; no kernel build, which tells who runs it")
    cpu: str = absent("name of the processor")
    physical_cores: Count = absent("of the whole machine")
    logical_cores: Count = absent("of the whole machine")
    memory_bytes: Bytes = absent("of the whole machine")
    threads: Count = absent("of torch within one operation; of a timed cell those that it has while it is timed")
    slots: Count = absent("cells that the run may have had at once there, where it had several", "bench.run.job")
    omp_wait_policy: str = absent("whether threads spin while they wait, where that was said")
    gomp_spincount: str = absent("for how many turns, where that was said")
    device: str = absent("of the model")
    dtype: str = absent("of the model")
    gpu: str = absent("name of the card; on CUDA only, as all that follows up to cuda_alloc_conf")
    gpu_memory_bytes: Bytes = absent("of the card")
    gpu_driver: str = absent("its version")
    cuda: str = absent("version that torch was built with")
    gpus: Count = absent("that torch sees")
    gpu_power_limit_w: Watts = absent("that the driver enforces")
    gpu_highest_sm_mhz: Megahertz = absent("that the card's clock may have")
    gpu_set_sm_mhz: Megahertz = absent("that it is set to")
    gpu_mig: bool = absent("whether the card is shared out")
    float32_products: str = absent("highest: products of float32 are computed in float32; high: in TF32")
    bf16_reduction: bool = absent("whether sums of bfloat16 products may be rounded to it on the way")
    cudnn: Scalar = absent("its version")
    cublas: str = absent("its version")
    cuda_alloc_conf: str = absent("what PYTORCH_CUDA_ALLOC_CONF says")
    versions: dict[str, str] = absent("of packages, by name")
    commit: str = absent("of the checkout, where it is one")
    dirty: bool = absent("whether files differ from that commit")


class MachineState(Layout):
    """Says what the machine does at one moment."""

    source: ClassVar[str] = "bench.system.environment"

    seconds: Seconds = absent("by a clock that only goes forward")
    cpu_mhz: Megahertz = absent("mean clock")
    cpu_celsius: Celsius = absent("highest temperature")
    cpu_throttled: Count = absent("how often cores were slowed down for their heat, since the machine started")
    load: float = absent("runnable processes, averaged over a minute")
    busy_seconds: Seconds = absent("of all cores together since the machine started")
    stolen_seconds: Seconds = absent("that a hypervisor kept cores from this machine")
    own_seconds: Seconds = absent("of this process")
    held_seconds: Seconds = absent("that a limit of its container's or job's processor time kept cores waiting")


class GpuState(Layout):
    """Says what a GPU does at one moment."""

    source: ClassVar[str] = "bench.system.gpu"

    sm_mhz: Megahertz = absent("clock of the multiprocessors")
    memory_mhz: Megahertz = absent("clock of the memory")
    temperature_c: Celsius = absent("of the card")
    power_w: Watts = absent("that it takes")
    slowed_by: list[str] = absent("what holds its clocks down")


class MachineThen(Layout):
    """Says what machine and GPUs do at one moment."""

    source: ClassVar[str] = "bench.speed.machine"

    machine: MachineState = absent("all of it")
    gpus: list[GpuState] = absent("each that is timed on")


class MachineMeanwhile(Layout):
    """Says what else the machine did while models were timed."""

    source: ClassVar[str] = "bench.speed.machine"

    before: MachineThen = absent("the first round")
    after: MachineThen = absent("the last round")
    other_cores: Cores = absent("that other processes kept busy, on average")
    stolen_cores: Cores = absent("that a hypervisor kept from this machine, on average")
    held_cores: Cores = absent("that a limit of its container's or job's processor time kept waiting, on average")
    other_gpu_processes: Count = absent("that computed on the GPU")
    nvml: str = absent("why the GPU's library has no figures")
    flags: list[str] = absent("busy, shared_gpu, slowed: what may have spoilt the figures")


class GpuMeanwhile(Layout):
    """Says what a GPU did within the rounds; three figures are the lowest, the median and the highest."""

    source: ClassVar[str] = "bench.system.gpu"

    samples: Count = absent("how often it was read")
    sm_mhz: Annotated[Three, Unit("MHz")] = absent("clock of the multiprocessors")
    memory_mhz: Annotated[Three, Unit("MHz")] = absent("clock of the memory")
    temperature_c: Annotated[Three, Unit("°C")] = absent("of the card")
    power_w: Annotated[Three, Unit("W")] = absent("that it takes")
    slowed_by: dict[str, Share] = absent("share of the samples, by what held its clocks down")
