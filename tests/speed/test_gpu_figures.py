"""What is measured on a GPU alone: rates, shares of them, marks, readings within rounds; all of it made up here."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny
from emulated import EmulatedGpus
from made_machine import Library, Time, a_gpu
from recorded_graph import RecordedGraph, Refused

from bench.plan.kinds import to_plain
from bench.plan.protocol import protocol_of_profile
from bench.speed import benchmark, peaks, timing
from bench.speed.benchmark import Placement, summarise_rounds
from bench.speed.timing import Pass, WallClock, WarmUp, Workload
from bench.speed.workloads import TimedPoint, bytes_of_step, macs_of_point
from bench.system import gpu as gpu_driver
from bench.system import rates as rate
from methods.model.decoder import Decoder

CPU = torch.device("cpu")
GRAPH = dataclasses.replace(
    protocol_of_profile("smoke"), cache="static", mode="graph", decode_steps=2, prefill=(4,), decode=(4,)
)
RATES = {"copy_bytes_per_second": 1e9, "matmul_flops_per_second": 1e12}


# --- rates


def test_rates_are_the_work_of_the_fastest_call_over_its_time(monkeypatch):
    """A clock by which each call takes 2 ms but for the fourth, which takes 1 ms."""
    now, calls = [0.0], itertools.count()
    monkeypatch.setattr(rate.time, "perf_counter", lambda: now[0])

    def once(call):
        call()
        took = 1e-3 if next(calls) % 500 == 3 else 2e-3
        now[0] += took
        return took

    monkeypatch.setattr(rate, "_on_cpu", once)
    found = peaks.measure_peak_rates(CPU, torch.float32, copied=1000, side=10)
    assert found == {"copy_bytes_per_second": pytest.approx(2e6), "matmul_flops_per_second": pytest.approx(2e6)}
    assert rate.rate_of_product(CPU, torch.bfloat16, 1, 10, seconds=1.0) == pytest.approx(
        1e5
    )  # half the flops, a tenth of it


def test_a_gpu_is_timed_by_its_own_clock_and_the_host_waits_once_a_call():
    with EmulatedGpus() as gpus:
        found = peaks.measure_peak_rates(torch.device("cuda", 0), torch.float32, copied=1000, side=10)
        assert set(found) == {"copy_bytes_per_second", "matmul_flops_per_second"}
        assert sum(gpus.waits.values()) == 0  # but for the events


def test_a_rate_that_there_is_no_memory_for_is_absent(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 512 MiB")

    monkeypatch.setattr(peaks, "rate_of_copy", full)
    monkeypatch.setattr(peaks, "SECONDS", 0.001)
    assert list(peaks.measure_peak_rates(CPU, torch.float32, side=4)) == ["matmul_flops_per_second"]


def test_shares_of_the_rates_by_hand():
    model = Decoder(tiny("llama"))
    point = TimedPoint("decode", 3, 16)
    found = peaks.shares_of_peak(model, point, 2.0, RATES)
    assert found["bandwidth"] == pytest.approx(bytes_of_step(model, point) / 2e-3 / 1e9)
    assert found["matrix_rate"] == pytest.approx(2 * 3 * macs_of_point(model, point) / 2e-3 / 1e12)
    assert set(peaks.shares_of_peak(model, TimedPoint("prefill", 1, 16), 2.0, RATES)) == {"matrix_rate"}
    assert peaks.shares_of_peak(model, point, 2.0, {}) == {}


@pytest.mark.parametrize(
    ("ms", "captured", "rate", "flags"),
    [
        (10.0, 9.5, 1.0, ("noisy",)),
        (10.0, 9.0, 1.0, ("noisy", "launch_bound")),  # the host takes more than a tenth beside
        (10.0, 9.0, 1e-9, ("noisy", "low_bandwidth", "launch_bound")),
        (10.0, None, 1e-9, ("noisy", "low_bandwidth")),
    ],
)
def test_an_eager_step_that_waits_for_the_host_is_marked(ms, captured, rate, flags):
    model = Decoder(tiny("llama"))
    models, point = {"dense": model, "pruned": model}, TimedPoint("decode", 1, 16, "eager")
    read = bytes_of_step(model, point) / (ms / 1e3) / rate
    beside = None if captured is None else point.timing(dense_ms=10.0, pruned_ms=captured)
    found = point.timing(dense_ms=ms, pruned_ms=ms, flags=("noisy",))
    judged = peaks.compare_with_peak(models, point, found, beside, {"copy_bytes_per_second": read})
    assert judged.flags == flags
    assert judged.pruned_bandwidth == pytest.approx(rate)
    assert found.flags == ("noisy",)
    failed = point.timing(failed="it did")
    assert peaks.compare_with_peak(models, point, failed, beside, RATES) == failed


@pytest.mark.parametrize(
    ("kind", "share", "flags"),
    [("prefill", 0.39, ("low_matrix_rate",)), ("prefill", 0.41, ()), ("prefill", None, ()), ("decode", 0.01, ())],
)
def test_a_prompt_that_leaves_the_matrix_units_idle_is_marked(kind, share, flags):
    model, point = Decoder(tiny("llama")), TimedPoint(kind, 4, 16)
    rates = {"copy_bytes_per_second": 1.0}  # of which a step is never short
    if share is not None:
        rates["matmul_flops_per_second"] = 2 * 4 * macs_of_point(model, point) / 1e-2 / share
    judged = peaks.compare_with_peak({"pruned": model}, point, point.timing(pruned_ms=10.0, flags=()), None, rates)
    assert judged.flags == flags
    assert judged.pruned_matrix_rate == (None if share is None else pytest.approx(share))


def test_the_peak_of_a_captured_step_has_what_its_tensors_take(monkeypatch):
    """A replay allocates nothing, so that its peak is that of what was there before."""
    held, peak = 100, 0

    def take(size):
        nonlocal peak
        peak = max(peak, held + size)

    def start_anew(devices):
        nonlocal peak
        peak = held

    monkeypatch.setattr(peaks.memory, "reset_peaks", start_anew)
    monkeypatch.setattr(
        peaks.memory, "peaks_of_devices", lambda devices: {"allocated_bytes": peak, "reserved_bytes": 300 + peak}
    )
    nothing, filled = (lambda: None), (lambda: take(900))  # which is no part of a step
    found = peaks.measure_peaks(Workload(nothing, filled, 2, lambda: take(50)), [], [])
    assert found == {"peak_allocated_bytes": 150, "peak_reserved_bytes": 400}
    assert peaks.measure_peaks(Workload(nothing, filled, 2), [], [])["peak_allocated_bytes"] == 100
    assert peaks.measure_peaks(Workload(lambda: take(70), filled, 2), [], [])["peak_allocated_bytes"] == 170


# --- readings within the rounds


def test_a_gpu_is_read_while_it_works_and_not_when_it_is_idle_again():
    """The card is capped while a turn lasts, and idle before and after."""
    library, read = Library(bits=0x1), threading.Event()
    card = gpu_driver.Gpu(library, "handle")

    class Watched(gpu_driver.Gpu):
        def state(self):
            found = card.state()
            if found["slowed_by"] == ["power cap"]:
                read.set()
            return found

    sampler = gpu_driver.Sampler([Watched(library, "handle")], seconds=0.001)
    with sampler:
        library.bits = 0x4
        assert read.wait(20)
    library.bits = 0x1
    (found,) = sampler.summarise()
    assert found["slowed_by"]["power cap"] > 0
    assert found["power_w"] == [250.5] * 3
    assert found["sm_mhz"] == [1410] * 3
    assert sampler.is_throttled
    before = found["samples"]
    with sampler:  # again, as for the second block of a model
        read.clear()
        library.bits = 0x4
        assert read.wait(20)
    assert sampler.summarise()[0]["samples"] > before


def test_readings_are_summed_up_by_what_they_tell():
    states = [{"power_w": 100.0, "slowed_by": []}, {"power_w": 300.0, "slowed_by": ["power cap"]}, {"power_w": 200.0}]
    assert gpu_driver._summarise(states) == {
        "samples": 3,
        "power_w": [100.0, 200.0, 300.0],
        "slowed_by": {"power cap": 0.5},
    }
    sampler = gpu_driver.Sampler([a_gpu()])
    sampler.states = [[{"slowed_by": ["idle"]}]]
    assert not sampler.is_throttled


def test_without_a_gpu_nothing_is_read():
    with gpu_driver.Sampler([]) as sampler:
        assert threading.active_count() == 1 or not sampler._thread.is_alive()
    assert (sampler.summarise(), sampler.is_throttled) == ([], False)


# --- samples


def test_fast_calls_of_a_gpu_are_warmed_up_for_a_second_too():
    now = Time()
    found = timing.warm_up(now.work(itertools.repeat(1)), WallClock(now=now), long=True)
    assert now.seconds >= timing.WARM_UP_MS / 1e3
    assert found.stable
    slow = timing.warm_up(now.work(itertools.repeat(1)), WallClock(now=now), long=False)
    assert slow.calls == timing.WARM_UP_CALLS


def test_percentiles_are_of_all_calls():
    samples = [[Pass(list(map(float, range(first, first + 25))), 0.0)] for first in (0, 25, 50, 75)]
    found = summarise_rounds(
        TimedPoint("decode", 1, 16), {"pruned": samples}, {"pruned": WarmUp(1, True, 1.0)}, percentiles=True
    )
    assert (found.pruned_ms, found.pruned_p90, found.pruned_p99) == pytest.approx((49.5, 89.1, 98.01))
    assert (
        summarise_rounds(TimedPoint("decode", 1, 16), {"pruned": samples}, {"pruned": WarmUp(1, True, 1.0)}).pruned_p99
        is None
    )


@pytest.mark.parametrize(("calls", "told"), [(6, set()), (10, {90}), (99, {90}), (100, {90, 99})])
def test_a_percentile_is_of_so_many_calls_that_one_is_beyond_it(calls, told):
    found = summarise_rounds(
        TimedPoint("decode", 1, 16),
        {"pruned": [[Pass([1.0, 2.0] * (calls // 2) + [2.0] * (calls % 2), 0.0)]]},
        {},
        percentiles=True,
    )
    assert {share for share in (90, 99) if getattr(found, f"pruned_p{share}") is not None} == told


# --- the whole way


class Host:
    """A clock in milliseconds of a machine whose host needs 1 ms for an operation, and 0.5 ms for a replay."""

    name = "made"

    def run(self, work):
        state = getattr(work.step, "__self__", None)
        work.reset()
        ms = 0.5 if type(state).__name__ == "_CapturedDecode" else 1.0
        for _ in range(work.steps):
            work.step()
        return Pass([ms] * work.steps, ms * work.steps)


@pytest.mark.nightly
def test_captured_and_eager_steps_stand_side_by_side(monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *_: self)  # to the made GPU
    gpus = [a_gpu(bits=0x4)]
    monkeypatch.setattr(gpu_driver.Sampler, "_run", lambda self: self.states[0].append(self.gpus[0].state()))
    there = benchmark.SpeedBenchmark(
        GRAPH, Host(), [torch.device("cuda", 0)], gpus, lambda where: None, RATES, RecordedGraph
    )
    found = list(there.time(tiny("llama"), tiny("llama", layers=3)))
    assert [(point.kind, point.mode) for point in found] == [
        ("prefill", "eager"),
        ("decode", "graph"),
        ("decode", "eager"),
    ]
    prefill, captured, eager = found
    assert (captured.pruned_ms, eager.pruned_ms) == (0.5, 1.0)
    assert ("launch_bound" in captured.flags, "launch_bound" in eager.flags) == (False, True)
    assert "launch_bound" not in prefill.flags
    for point in found:
        assert "slowed" in point.flags
        assert point.gpus[0].slowed_by == {"power cap": 1.0}
        assert {"dense_p90", "pruned_p99", "dense_matrix_rate", "pruned_matrix_rate"} <= set(to_plain(point))
    assert captured.dense_bandwidth == pytest.approx(2 * eager.dense_bandwidth)
    assert captured.speedup is not None


def test_a_step_that_cuda_will_not_capture_is_a_failure_of_its_point_alone(monkeypatch):
    """Although torch says it by the error with which it says that a GPU is lost."""
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *_: self)  # to the made GPU
    monkeypatch.setattr(timing, "WARM_UP_MS", 20)
    monkeypatch.setattr(timing, "MIN_MS", 60)

    class Uncaptured(RecordedGraph):
        def capture(self, step, rewind):
            raise Refused("nonzero makes the host wait")

    made = (GRAPH, Host(), [torch.device("cuda", 0)], [], lambda where: None, RATES, Uncaptured)
    (prefill, captured, eager) = benchmark.SpeedBenchmark(*made).time(tiny("llama"), tiny("llama", layers=3))
    assert captured.mode == "graph"
    assert "CUDA error: operation not permitted when stream is capturing" in captured.failed
    assert prefill.speedup is not None and eager.speedup is not None


# --- models that do not fit together, and sweeps


class Room:
    """A GPU with room for so many units of models and of batches; models and workloads take it up."""

    def __init__(self, monkeypatch, room, sizes, *, per_sequence=0, speeds=None):
        self.room, self.there, self.now, self.log = room, {}, Time(), []
        self.models = {name: self.model(name, size) for name, size in sizes.items()}
        speeds = speeds or {}

        def workload(model, point, protocol, graph):
            self.take(point.batch * per_sequence)
            ms = speeds.get(point.batch, {}).get(model.name, 10)
            return self.now.work(itertools.repeat(ms), log=self.log, name=model.name)

        monkeypatch.setattr(benchmark, "workload_of_point", workload)
        monkeypatch.setattr(benchmark, "predict_speedup", lambda *_: {})
        monkeypatch.setattr(benchmark, "Decoder", lambda model: model)
        monkeypatch.setattr(peaks, "shares_of_peak", lambda *_: {})
        monkeypatch.setattr(timing, "MIN_MS", 60)

    def take(self, units):
        if sum(self.there.values()) + units > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    def model(self, name, size):
        def to(device):
            self.there.pop(name, None)
            if torch.device(device).type == "cuda":
                self.take(size)
                self.there[name] = size
            return model

        model = SimpleNamespace(name=name, to=to)
        return model

    def timed(self, protocol, **how):
        there = benchmark.SpeedBenchmark(
            protocol, WallClock(now=self.now), [torch.device("cuda", 0)], [], lambda where: None
        )
        return list(there.time(self.models["dense"], self.models["pruned"], **how))


ONE = dataclasses.replace(protocol_of_profile("smoke"), decode=(), prefill=(4,), speed_rounds=7)


def test_models_that_do_not_fit_together_are_timed_one_after_the_other(monkeypatch):
    gpu = Room(monkeypatch, 10, {"dense": 8, "pruned": 6})
    (found,) = gpu.timed(ONE)
    assert [name for name, _ in itertools.groupby(gpu.log)] == ["dense", "pruned", "dense"]
    assert (len(found.rounds.dense), len(found.rounds.pruned)) == (7, 7)
    assert found.speedup == pytest.approx(1)
    assert "in_blocks" in found.flags
    assert found.out_of_memory is None


@pytest.mark.parametrize("unsteady", [0, 1, 2, None])
def test_each_block_has_warmed_up_or_the_point_is_marked(monkeypatch, unsteady):
    gpu = Room(monkeypatch, 10, {"dense": 8, "pruned": 6})
    number, warm_up = itertools.count(), timing.warm_up

    def warmed(*args, **how):
        return dataclasses.replace(warm_up(*args, **how), stable=next(number) != unsteady)

    monkeypatch.setattr(timing, "warm_up", warmed)
    (found,) = gpu.timed(ONE)
    assert next(number) == 3  # blocks
    assert ("not_warm" in found.flags) == (unsteady is not None)


def test_a_dense_model_that_does_not_fit_leaves_the_pruned_one(monkeypatch):
    gpu = Room(monkeypatch, 10, {"dense": 12, "pruned": 6})
    (found,) = gpu.timed(ONE)
    assert found.out_of_memory == ("dense",)
    assert found.pruned_ms == pytest.approx(10)
    assert not [name for name in to_plain(found) if name.startswith(("speedup", "dense"))]
    assert "in_blocks" not in found.flags


def test_a_dense_model_without_weights_is_not_moved_and_the_pruned_one_alone_fills_the_gpu(monkeypatch):
    gpu, of = Room(monkeypatch, 10, {"dense": 1, "pruned": 6}, per_sequence=2), []
    monkeypatch.setattr(benchmark, "predict_speedup", lambda *pair: of.append((pair[0].name, pair[1].name)) or {})
    found = gpu.timed(dataclasses.replace(ONE, batches=(1, 2, 3)), alone=True)
    assert set(gpu.log) == {"pruned"}
    assert [point.out_of_memory for point in found] == [("dense",), ("dense",), ("dense", "pruned")]
    assert [len(point.rounds.pruned) if point.rounds else 0 for point in found] == [7, 7, 0]
    assert of == [("dense", "pruned")] * 3
    assert not [name for point in found for name in to_plain(point) if name.startswith(("speedup", "dense_"))]


def test_a_batch_that_fits_beside_one_model_only_is_timed_in_blocks(monkeypatch):
    gpu = Room(monkeypatch, 20, {"dense": 8, "pruned": 6}, per_sequence=4)
    found = gpu.timed(dataclasses.replace(ONE, batches=(1, 2, 3, 4)))
    assert ["in_blocks" in (point.flags or ()) for point in found] == [False, True, True, False]
    assert [point.out_of_memory for point in found] == [None, None, None, ("dense", "pruned")]
    assert gpu.there == {"dense": 8, "pruned": 6}  # together again


def test_what_takes_the_gpu_away_ends_the_timing_and_is_no_point(monkeypatch):
    gpu = Room(monkeypatch, 20, {"dense": 8, "pruned": 6})

    def lost(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(benchmark, "workload_of_point", lost)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        gpu.timed(ONE)


def test_the_sweep_of_a_gpu_ends_where_more_sequences_bring_no_more_tokens(monkeypatch):
    """Tokens per second double up to batch 4; then the dense model's stay, and behind 8 the pruned one's too."""
    speeds = {1: (8, 4), 2: (8, 4), 4: (8, 4), 8: (16, 4), 16: (32, 7.9), 32: (64, 15.8)}
    named = {batch: {"dense": dense, "pruned": fast} for batch, (dense, fast) in speeds.items()}
    gpu = Room(monkeypatch, 20, {"dense": 8, "pruned": 6}, speeds=named)
    found = gpu.timed(dataclasses.replace(ONE, max_batch=64))
    assert [point.batch for point in found] == [1, 2, 4, 8, 16]
    asked = gpu.timed(dataclasses.replace(ONE, max_batch=64, batches=(1, 32)))
    assert [point.batch for point in asked] == [1, 2, 4, 8, 16, 32]


def test_a_model_that_moves_keeps_the_kind_of_its_parameters():
    model, meta = tiny("llama"), torch.device("meta")  # takes the place of a GPU
    with torch.inference_mode():
        assert Placement({"dense": model}, [meta]).alone("dense").device == meta
    assert not any(parameter.is_inference() for parameter in model.parameters())
