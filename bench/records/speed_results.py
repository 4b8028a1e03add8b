"""Describes `environment` of a record, and what the machine did while a model was timed.

Describes `speed` in a record: a pruned model timed in turns with the dense one (docs/guides/speed.md).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from bench.plan.kinds import (
    Amount,
    Bytes,
    Celsius,
    Cores,
    Count,
    Date,
    Joules,
    Layout,
    Megahertz,
    Milliseconds,
    Positive,
    Scalar,
    Seconds,
    Share,
    Times,
    Tokens,
    Unit,
    Watts,
    absent,
    needed,
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
    slots: Count = absent("cells that the run may have had at once there, where it had several", "bench.runs.job")
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

    source: ClassVar[str] = "bench.speed.peaks"

    machine: MachineState = absent("all of it")
    gpus: list[GpuState] = absent("each that is timed on")


class MachineMeanwhile(Layout):
    """Says what else the machine did while models were timed."""

    source: ClassVar[str] = "bench.speed.peaks"

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


class SizedPoint(Layout):
    """Names a size: prompts of `length` tokens, or single tokens behind `context` tokens."""

    source: ClassVar[str] = "bench.speed.workloads"

    kind: Literal["prefill", "decode"] = needed("prefill of prompts, or decode of one token after the other")
    batch: Positive = absent("sequences at once")
    length: Tokens = absent("of a prompt")
    context: Tokens = absent("that stand before the first that is generated")
    mode: str = absent("graph: each decode step captured once and replayed; eager: launched; absent: nothing captured")


class WarmUps(Layout):
    """Counts the calls before the first that counts."""

    source: ClassVar[str] = "bench.speed.timing"

    dense: Count = absent("calls of the dense model")
    pruned: Count = absent("calls of the pruned model")


class Rounds(Layout):
    """Holds every call that counts, by rounds."""

    source: ClassVar[str] = "bench.speed.timing"

    dense: list[list[Milliseconds]] = absent("each call of each round of the dense model")
    pruned: list[list[Milliseconds]] = absent("each call of each round of the pruned model")


class PointTimed(SizedPoint):
    """Says how long a model and the dense one took for one size."""

    source: ClassVar[str] = "bench.speed.benchmark"

    batch: Positive = needed("sequences at once", "bench.speed.workloads")
    warm_up: WarmUps = absent("calls before the first that counts")
    rounds: Rounds = absent("every call")
    dense_ms: Milliseconds = absent("median of all calls")
    pruned_ms: Milliseconds = absent("median of all calls")
    dense_cv: Amount = absent("standard deviation of all calls over their mean")
    pruned_cv: Amount = absent("standard deviation of all calls over their mean")
    clocks_apart: Amount = absent("share by which the wall clock and the sum of the calls differ")
    speedup: Times = absent("dense over pruned, from the rounds' medians", gt=0)
    speedup_low: Times = absent("lower end of its 95 % interval")
    speedup_high: Times = absent("upper end of its 95 % interval")
    speedup_by_macs: Times = absent("what the removed multiply-accumulates alone would bring", "bench.speed.workloads")
    speedup_by_bytes: Times = absent("what the removed bytes alone would bring", "bench.speed.workloads")
    flags: list[str] = absent(
        "noisy, not_warm, clocks_disagree (limits in bench.speed.timing); on a GPU also slowed, launch_bound, "
        "low_bandwidth, low_matrix_rate, in_blocks"
    )
    dense_p90: Milliseconds = absent("90th percentile of all calls, of 10 or more, on a GPU")
    dense_p99: Milliseconds = absent("99th percentile of all calls, of 100 or more, on a GPU")
    pruned_p90: Milliseconds = absent("90th percentile of all calls, of 10 or more, on a GPU")
    pruned_p99: Milliseconds = absent("99th percentile of all calls, of 100 or more, on a GPU")
    dense_bandwidth: Amount = absent("share of the rate of copies in `setup`, on a GPU", "bench.speed.peaks")
    pruned_bandwidth: Amount = absent("share of the rate of copies in `setup`, on a GPU", "bench.speed.peaks")
    dense_matrix_rate: Amount = absent("share of the rate of products in `setup`, on a GPU", "bench.speed.peaks")
    pruned_matrix_rate: Amount = absent("share of the rate of products in `setup`, on a GPU", "bench.speed.peaks")
    gpus: list[GpuMeanwhile] = absent("each, within the rounds")
    out_of_memory: list[str] = absent("dense, pruned: those that ran out, or had no room; the other is timed alone")
    failed: str = absent("why there are no figures")

    @model_validator(mode="after")
    def _has_a_size(self) -> Self:
        """Refuse a point without the size that belongs to its kind."""
        name = {"prefill": "length", "decode": "context"}[self.kind]
        if getattr(self, name) is None:
            raise ValueError(f"is of {self.kind} and has no {name}")
        return self


class PointMemory(SizedPoint):
    """Says how much memory or energy one size took, the model being alone; figures are absent where it ran out."""

    source: ClassVar[str] = "bench.speed.peaks"

    peak_allocated_bytes: Bytes = absent("by tensors, over all GPUs")
    peak_reserved_bytes: Bytes = absent("held by torch, over all GPUs")
    process_bytes: Bytes = absent("of the process on the GPUs, by the driver")
    peak_resident_bytes: Bytes = absent("of the process in the machine's memory, on a CPU")
    resident_bytes: Bytes = absent("of an inference engine's process", "bench.inference")
    joules_per_token: Joules = absent("by the GPU's own counter")
    energy_seconds: Seconds = absent("for which that was counted")
    out_of_memory: list[str] = absent("pruned, where it ran out")
    failed: str = absent("why there are no figures")


class MemoryAlone(Layout):
    """Says how much memory one model takes alone."""

    source: ClassVar[str] = "bench.speed.timed_cell"

    resident_before_bytes: Bytes = absent("of the process before the model was there")
    points: list[PointMemory] = absent("each size")


class MatrixWidths(Layout):
    """Holds the widths of matrices of one role."""

    source: ClassVar[str] = "bench.speed.peaks"

    read: list[Count] = absent("widths that they read", alias="in")
    out: list[Count] = absent("widths that they write")
    multiple_of: Count = absent("largest of 128, 64, 8 and 1 that divides all of them")


class TimedSetup(Layout):
    """Says what the protocol does not say of how models were timed."""

    source: ClassVar[str] = "bench.speed.peaks"

    threads: Count = absent("of torch")
    cores: Count = absent("that the process may use")
    devices: list[str] = absent("on which the models lie")
    clock: str = absent("that was read")
    attention: str = absent("implementation that transformers chose")
    copy_bytes_per_second: Amount = absent("read and written, of a copy within the GPU", "bench.speed.peaks")
    matmul_flops_per_second: Amount = absent("of a product of large matrices on the GPU", "bench.speed.peaks")


class SpeedFound(Layout):
    """Holds what was timed in a process that held the pruned and the dense model; for dense both are dense."""

    source: ClassVar[str] = "bench.speed.timed_cell"

    points: list[PointTimed] = absent("each size, by rising batch")
    memory: MemoryAlone = absent("of the pruned model alone")
    widths: dict[str, MatrixWidths] = absent("of matrices, by role: qkv, out, up, down, head, added")
    setup: TimedSetup = absent("how they were timed")
    machine: MachineMeanwhile = absent("what else the machine did")
    failed: str = absent("why the process did not come to its end; what it told before is there")
