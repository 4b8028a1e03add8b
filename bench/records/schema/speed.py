"""Describes `speed` in a record: a pruned model timed in turns with the dense one (docs/guides/speed.md)."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from bench.records.schema.kinds import (
    Amount,
    Bytes,
    Count,
    Joules,
    Layout,
    Milliseconds,
    Positive,
    Seconds,
    Times,
    Tokens,
    absent,
    needed,
)
from bench.records.schema.machine import GpuMeanwhile, MachineMeanwhile


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

    source: ClassVar[str] = "bench.speed.summary"

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
    dense_bandwidth: Amount = absent("share of the rate of copies in `setup`, on a GPU", "bench.speed.peak_rates")
    pruned_bandwidth: Amount = absent("share of the rate of copies in `setup`, on a GPU", "bench.speed.peak_rates")
    dense_matrix_rate: Amount = absent("share of the rate of products in `setup`, on a GPU", "bench.speed.peak_rates")
    pruned_matrix_rate: Amount = absent("share of the rate of products in `setup`, on a GPU", "bench.speed.peak_rates")
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

    source: ClassVar[str] = "bench.speed.memory"

    peak_allocated_bytes: Bytes = absent("by tensors, over all GPUs")
    peak_reserved_bytes: Bytes = absent("held by torch, over all GPUs")
    process_bytes: Bytes = absent("of the process on the GPUs, by the driver")
    peak_resident_bytes: Bytes = absent("of the process in the machine's memory, on a CPU")
    resident_bytes: Bytes = absent("of an inference engine's process", "bench.serving")
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

    source: ClassVar[str] = "bench.speed.machine"

    read: list[Count] = absent("widths that they read", alias="in")
    out: list[Count] = absent("widths that they write")
    multiple_of: Count = absent("largest of 128, 64, 8 and 1 that divides all of them")


class TimedSetup(Layout):
    """Says what the protocol does not say of how models were timed."""

    source: ClassVar[str] = "bench.speed.machine"

    threads: Count = absent("of torch")
    cores: Count = absent("that the process may use")
    devices: list[str] = absent("on which the models lie")
    clock: str = absent("that was read")
    attention: str = absent("implementation that transformers chose")
    copy_bytes_per_second: Amount = absent("read and written, of a copy within the GPU", "bench.speed.peak_rates")
    matmul_flops_per_second: Amount = absent("of a product of large matrices on the GPU", "bench.speed.peak_rates")


class SpeedFound(Layout):
    """Holds what was timed in a process that held the pruned and the dense model; for dense both are dense."""

    source: ClassVar[str] = "bench.speed.timed_cell"

    points: list[PointTimed] = absent("each size, by rising batch")
    memory: MemoryAlone = absent("of the pruned model alone")
    widths: dict[str, MatrixWidths] = absent("of matrices, by role: qkv, out, up, down, head, added")
    setup: TimedSetup = absent("how they were timed")
    machine: MachineMeanwhile = absent("what else the machine did")
    failed: str = absent("why the process did not come to its end; what it told before is there")
