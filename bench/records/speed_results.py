"""Describes `environment` and `speed` of a record, and what the machine did while a model was timed.

A pruned model is timed in turns with the dense one (docs/reference/measures.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Gt, Len

from bench.plan.kinds import (
    Amount,
    Bytes,
    Celsius,
    Cores,
    Count,
    Date,
    Joules,
    Megahertz,
    Milliseconds,
    OneOf,
    Positive,
    Scalar,
    Seconds,
    Share,
    Times,
    Tokens,
    Unit,
    Watts,
    declare_field,
    declare_optional_field,
)

Three = Annotated[list[float], Len(3, 3)]


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Describes the machine, without host name, user name or path; what cannot be found out is absent."""

    SOURCE: ClassVar[str] = "bench.system.environment"

    date: Date | None = declare_optional_field("when the record was written")
    python: str | None = declare_optional_field("its version")
    platform: str | None = declare_optional_field(
        "system, processor and C library; no kernel build, which tells who runs it"
    )
    cpu: str | None = declare_optional_field("name of the processor")
    physical_cores: Count | None = declare_optional_field("of the whole machine")
    logical_cores: Count | None = declare_optional_field("of the whole machine")
    memory_bytes: Bytes | None = declare_optional_field("of the whole machine")
    threads: Count | None = declare_optional_field(
        "of torch within one operation; of a timed cell those that it has while it is timed"
    )
    slots: Count | None = declare_optional_field(
        "cells that the run may have had at once there, where it had several", "bench.runs.job"
    )
    omp_wait_policy: str | None = declare_optional_field("whether threads spin while they wait, where that was said")
    gomp_spincount: str | None = declare_optional_field("for how many turns, where that was said")
    device: str | None = declare_optional_field("of the model")
    dtype: str | None = declare_optional_field("of the model")
    gpu: str | None = declare_optional_field(
        "name of the card; on CUDA only, as all that follows up to cuda_alloc_conf"
    )
    gpu_memory_bytes: Bytes | None = declare_optional_field("of the card")
    gpu_driver: str | None = declare_optional_field("its version")
    cuda: str | None = declare_optional_field("version that torch was built with")
    gpus: Count | None = declare_optional_field("that torch sees")
    gpu_power_limit_w: Watts | None = declare_optional_field("that the driver enforces")
    gpu_highest_sm_mhz: Megahertz | None = declare_optional_field("that the card's clock may have")
    gpu_set_sm_mhz: Megahertz | None = declare_optional_field("that it is set to")
    gpu_mig: bool | None = declare_optional_field("whether the card is shared out")
    float32_products: str | None = declare_optional_field(
        "highest: products of float32 are computed in float32; high: in TF32"
    )
    bf16_reduction: bool | None = declare_optional_field(
        "whether sums of bfloat16 products may be rounded to it on the way"
    )
    cudnn: Scalar | None = declare_optional_field("its version")
    cublas: str | None = declare_optional_field("its version")
    cuda_alloc_conf: str | None = declare_optional_field("what PYTORCH_CUDA_ALLOC_CONF says")
    versions: dict[str, str] | None = declare_optional_field("of packages, by name")
    commit: str | None = declare_optional_field("of the checkout, where it is one")
    dirty: bool | None = declare_optional_field("whether files differ from that commit")


@dataclass(frozen=True, kw_only=True)
class MachineState:
    """Says what the machine does at one moment."""

    SOURCE: ClassVar[str] = "bench.system.environment"

    seconds: Seconds | None = declare_optional_field("by a clock that only goes forward")
    cpu_mhz: Megahertz | None = declare_optional_field("mean clock")
    cpu_celsius: Celsius | None = declare_optional_field("highest temperature")
    cpu_throttled: Count | None = declare_optional_field(
        "how often cores were slowed down for their heat, since the machine started"
    )
    load: float | None = declare_optional_field("runnable processes, averaged over a minute")
    busy_seconds: Seconds | None = declare_optional_field("of all cores together since the machine started")
    stolen_seconds: Seconds | None = declare_optional_field("that a hypervisor kept cores from this machine")
    own_seconds: Seconds | None = declare_optional_field("of this process")
    held_seconds: Seconds | None = declare_optional_field(
        "that a limit of its container's or job's processor time kept cores waiting"
    )


@dataclass(frozen=True, kw_only=True)
class GpuState:
    """Says what a GPU does at one moment."""

    SOURCE: ClassVar[str] = "bench.system.gpu"

    sm_mhz: Megahertz | None = declare_optional_field("clock of the multiprocessors")
    memory_mhz: Megahertz | None = declare_optional_field("clock of the memory")
    temperature_c: Celsius | None = declare_optional_field("of the card")
    power_w: Watts | None = declare_optional_field("that it takes")
    slowed_by: tuple[str, ...] | None = declare_optional_field("what holds its clocks down")


@dataclass(frozen=True, kw_only=True)
class MachineThen:
    """Says what machine and GPUs do at one moment."""

    SOURCE: ClassVar[str] = "bench.speed.peaks"

    machine: MachineState | None = declare_optional_field("all of it")
    gpus: tuple[GpuState, ...] | None = declare_optional_field("each that is timed on")


@dataclass(frozen=True, kw_only=True)
class MachineMeanwhile:
    """Says what else the machine did while models were timed."""

    SOURCE: ClassVar[str] = "bench.speed.peaks"

    before: MachineThen | None = declare_optional_field("the first round")
    after: MachineThen | None = declare_optional_field("the last round")
    other_cores: Cores | None = declare_optional_field("that other processes kept busy, on average")
    stolen_cores: Cores | None = declare_optional_field("that a hypervisor kept from this machine, on average")
    held_cores: Cores | None = declare_optional_field(
        "that a limit of its container's or job's processor time kept waiting, on average"
    )
    other_gpu_processes: Count | None = declare_optional_field("that computed on the GPU")
    nvml: str | None = declare_optional_field("why the GPU's library has no figures")
    flags: tuple[str, ...] | None = declare_optional_field("busy, shared_gpu, slowed: what may have spoilt the figures")


@dataclass(frozen=True, kw_only=True)
class GpuMeanwhile:
    """Says what a GPU did within the rounds; three figures are the lowest, the median and the highest."""

    SOURCE: ClassVar[str] = "bench.system.gpu"

    samples: Count | None = declare_optional_field("how often it was read")
    sm_mhz: Annotated[Three, Unit("MHz")] | None = declare_optional_field("clock of the multiprocessors")
    memory_mhz: Annotated[Three, Unit("MHz")] | None = declare_optional_field("clock of the memory")
    temperature_c: Annotated[Three, Unit("°C")] | None = declare_optional_field("of the card")
    power_w: Annotated[Three, Unit("W")] | None = declare_optional_field("that it takes")
    slowed_by: dict[str, Share] | None = declare_optional_field("share of the samples, by what held its clocks down")


@dataclass(frozen=True, kw_only=True)
class SizedPoint:
    """Names a size: prompts of `length` tokens, or single tokens behind `context` tokens."""

    SOURCE: ClassVar[str] = "bench.speed.workloads"

    kind: Annotated[str, OneOf(("prefill", "decode"))] = declare_field(
        "prefill of prompts, or decode of one token after the other"
    )
    batch: Positive | None = declare_optional_field("sequences at once")
    length: Tokens | None = declare_optional_field("of a prompt")
    context: Tokens | None = declare_optional_field("that stand before the first that is generated")
    mode: str | None = declare_optional_field(
        "graph: each decode step captured once and replayed; eager: launched; absent: nothing captured"
    )

    @property
    def tokens(self) -> int:
        """Return the tokens of the prompt where that was timed, else of the context that a generated token follows."""
        return (self.length if self.kind == "prefill" else self.context) or 0


@dataclass(frozen=True, kw_only=True)
class WarmUps:
    """Counts the calls before the first that counts."""

    SOURCE: ClassVar[str] = "bench.speed.timing"

    dense: Count | None = declare_optional_field("calls of the dense model")
    pruned: Count | None = declare_optional_field("calls of the pruned model")


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """Holds every call that counts, by rounds."""

    SOURCE: ClassVar[str] = "bench.speed.timing"

    dense: tuple[tuple[Milliseconds, ...], ...] | None = declare_optional_field(
        "each call of each round of the dense model"
    )
    pruned: tuple[tuple[Milliseconds, ...], ...] | None = declare_optional_field(
        "each call of each round of the pruned model"
    )


@dataclass(frozen=True, kw_only=True)
class PointTiming(SizedPoint):
    """Says how long a model and the dense one took for one size."""

    SOURCE: ClassVar[str] = "bench.speed.benchmark"

    batch: Positive = declare_field("sequences at once", "bench.speed.workloads")
    warm_up: WarmUps | None = declare_optional_field("calls before the first that counts")
    rounds: Rounds | None = declare_optional_field("every call")
    dense_ms: Milliseconds | None = declare_optional_field("median of all calls")
    pruned_ms: Milliseconds | None = declare_optional_field("median of all calls")
    dense_cv: Amount | None = declare_optional_field("standard deviation of all calls over their mean")
    pruned_cv: Amount | None = declare_optional_field("standard deviation of all calls over their mean")
    clocks_apart: Amount | None = declare_optional_field(
        "share by which the wall clock and the sum of the calls differ"
    )
    speedup: Annotated[Times, Gt(0)] | None = declare_optional_field("dense over pruned, from the rounds' medians")
    speedup_low: Times | None = declare_optional_field("lower end of its 95 % interval")
    speedup_high: Times | None = declare_optional_field("upper end of its 95 % interval")
    by_process: tuple[tuple[Times, Times, Times], ...] | None = declare_optional_field(
        "the speed-up in each process that read both models anew, and both ends of its 95 % interval; the speed-up is "
        "then their geometric mean, and its interval the range of theirs",
        "bench.stats.intervals",
    )
    speedup_by_macs: Times | None = declare_optional_field(
        "what the removed multiply-accumulates alone would bring", "bench.speed.workloads"
    )
    speedup_by_bytes: Times | None = declare_optional_field(
        "what the removed bytes alone would bring", "bench.speed.workloads"
    )
    flags: tuple[str, ...] | None = declare_optional_field(
        "noisy, not_warm, clocks_disagree (limits in bench.speed.timing), processes_disagree (their intervals share "
        "nothing); on a GPU also slowed, launch_bound, low_bandwidth, low_matrix_rate, in_blocks"
    )
    dense_p90: Milliseconds | None = declare_optional_field("90th percentile of all calls, of 10 or more, on a GPU")
    dense_p99: Milliseconds | None = declare_optional_field("99th percentile of all calls, of 100 or more, on a GPU")
    pruned_p90: Milliseconds | None = declare_optional_field("90th percentile of all calls, of 10 or more, on a GPU")
    pruned_p99: Milliseconds | None = declare_optional_field("99th percentile of all calls, of 100 or more, on a GPU")
    dense_bandwidth: Amount | None = declare_optional_field(
        "share of the rate of copies in `setup`, on a GPU", "bench.speed.peaks"
    )
    pruned_bandwidth: Amount | None = declare_optional_field(
        "share of the rate of copies in `setup`, on a GPU", "bench.speed.peaks"
    )
    dense_matrix_rate: Amount | None = declare_optional_field(
        "share of the rate of products in `setup`, on a GPU", "bench.speed.peaks"
    )
    pruned_matrix_rate: Amount | None = declare_optional_field(
        "share of the rate of products in `setup`, on a GPU", "bench.speed.peaks"
    )
    gpus: tuple[GpuMeanwhile, ...] | None = declare_optional_field("each, within the rounds")
    out_of_memory: tuple[str, ...] | None = declare_optional_field(
        "dense, pruned: those that ran out, or had no room; the other is timed alone"
    )
    failed: str | None = declare_optional_field("why there are no figures")

    @property
    def interval(self) -> tuple[float, float, float] | None:
        """Return the speed-up and both ends of its interval; None where the models were not both timed."""
        if self.speedup is None or self.speedup_low is None or self.speedup_high is None:
            return None
        return self.speedup, self.speedup_low, self.speedup_high

    def ms_by_model(self) -> dict[str, float]:
        """Return the median milliseconds of those models that were timed: dense, pruned."""
        ms = {"dense": self.dense_ms, "pruned": self.pruned_ms}
        return {name: each for name, each in ms.items() if each is not None}

    def refuse_misfit(self) -> None:
        """Raise ValueError for a point without the size that belongs to its kind."""
        name = {"prefill": "length", "decode": "context"}[self.kind]
        if getattr(self, name) is None:
            raise ValueError(f"is of {self.kind} and has no {name}")


@dataclass(frozen=True, kw_only=True)
class PointMemory(SizedPoint):
    """Says how much memory or energy one size took, the model being alone; figures are absent where it ran out."""

    SOURCE: ClassVar[str] = "bench.speed.peaks"

    peak_allocated_bytes: Bytes | None = declare_optional_field("by tensors, over all GPUs")
    peak_reserved_bytes: Bytes | None = declare_optional_field("held by torch, over all GPUs")
    process_bytes: Bytes | None = declare_optional_field("of the process on the GPUs, by the driver")
    peak_resident_bytes: Bytes | None = declare_optional_field("of the process in the machine's memory, on a CPU")
    resident_bytes: Bytes | None = declare_optional_field("of an inference engine's process", "bench.inference")
    joules_per_token: Joules | None = declare_optional_field("by the GPU's own counter")
    energy_seconds: Seconds | None = declare_optional_field("for which that was counted")
    out_of_memory: tuple[str, ...] | None = declare_optional_field("pruned, where it ran out")
    failed: str | None = declare_optional_field("why there are no figures")


@dataclass(frozen=True, kw_only=True)
class MemoryAlone:
    """Says how much memory one model takes alone."""

    SOURCE: ClassVar[str] = "bench.speed.timed_cell"

    resident_before_bytes: Bytes | None = declare_optional_field("of the process before the model was there")
    points: tuple[PointMemory, ...] | None = declare_optional_field("each size")


@dataclass(frozen=True, kw_only=True)
class MatrixWidths:
    """Holds the widths of matrices of one role."""

    SOURCE: ClassVar[str] = "bench.speed.peaks"

    read: tuple[Count, ...] | None = declare_optional_field("widths that they read", alias="in")
    out: tuple[Count, ...] | None = declare_optional_field("widths that they write")
    multiple_of: Count | None = declare_optional_field("largest of 128, 64, 8 and 1 that divides all of them")


@dataclass(frozen=True, kw_only=True)
class TimedSetup:
    """Says what the protocol does not say of how models were timed."""

    SOURCE: ClassVar[str] = "bench.speed.peaks"

    threads: Count | None = declare_optional_field("of torch")
    cores: Count | None = declare_optional_field("that the process may use")
    devices: tuple[str, ...] | None = declare_optional_field("on which the models lie")
    clock: str | None = declare_optional_field("that was read")
    attention: str | None = declare_optional_field("implementation that transformers chose")
    copy_bytes_per_second: Amount | None = declare_optional_field(
        "read and written, of a copy within the GPU", "bench.speed.peaks"
    )
    matmul_flops_per_second: Amount | None = declare_optional_field(
        "of a product of large matrices on the GPU", "bench.speed.peaks"
    )


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Holds what was timed in a process that held the pruned and the dense model; for dense both are dense."""

    SOURCE: ClassVar[str] = "bench.speed.timed_cell"

    points: tuple[PointTiming, ...] | None = declare_optional_field("each size, by rising batch")
    memory: MemoryAlone | None = declare_optional_field("of the pruned model alone")
    widths: dict[str, MatrixWidths] | None = declare_optional_field(
        "of matrices, by role: qkv, out, up, down, head, added"
    )
    setup: TimedSetup | None = declare_optional_field("how they were timed")
    machine: MachineMeanwhile | None = declare_optional_field("what else the machine did")
    failed: str | None = declare_optional_field("why the process did not come to its end; what it told before is there")
