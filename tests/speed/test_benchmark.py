"""Speed and memory: clocks and devices are made up here, so that what is asserted never depends on the machine."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import math
import multiprocessing.forkserver
import os
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import speed_children
import torch
from conftest import TINY, tiny
from made_cells import made_cell
from made_machine import Library, Time, a_gpu
from scipy.stats import wilcoxon
from tiny_methods import SHAPED, pruned

from bench.cli.main import main
from bench.data import pretrained
from bench.plan import validate
from bench.plan.kinds import to_plain
from bench.plan.protocol import protocol_of_profile
from bench.records.quantities import quantity_of_column
from bench.records.run_folder import load_run
from bench.records.speed_results import MachineState, MachineThen, MatrixWidths, Speed, TimedSetup, WarmUps
from bench.runs import job
from bench.schedule.memory_needs import MemoryNeeds
from bench.speed import benchmark, peaks, timed_cell, timing
from bench.speed.benchmark import is_narrow, join_processes, summarise_rounds
from bench.speed.timing import EventClock, Pass, WallClock, WarmUp, Workload
from bench.speed.workloads import (
    TimedPoint,
    bytes_of_step,
    macs_of_point,
    points_of_protocol,
    predict_speedup,
    workload_of_point,
)
from bench.stats.intervals import join_ratios, paired_ratio
from bench.system import environment
from bench.system import gpu as gpu_driver
from bench.system import worker as isolation
from methods.errors import UserError
from methods.model.decoder import Decoder
from reports.report import speed_to_terminal, to_markdown
from reports.tables.views import build_view

SMOKE = protocol_of_profile("smoke")
POINT = TimedPoint("decode", 1, 16)
CPU = torch.device("cpu")


# --- clocks, warm-up, rounds


def test_calls_are_timed_and_resets_are_not():
    now = Time()
    found = WallClock(now=now).run(now.work([3, 5], steps=2, reset=100))
    assert found.ms == pytest.approx([3, 5])
    assert found.wall_ms == pytest.approx(8)


def test_the_wall_clock_waits_for_the_device_before_each_reading():
    now = Time()
    pending = []

    def wait():
        now.seconds += sum(pending)
        pending.clear()

    work = Workload(lambda: pending.append(0.004), lambda: pending.append(9.0), 3)
    assert WallClock(wait, now).run(work).ms == pytest.approx([4, 4, 4])


@pytest.mark.parametrize(
    ("milliseconds", "calls", "stable"),
    [
        ([10] * 100, timing.WARM_UP_CALLS, True),
        ([90_000] + [10] * 100, timing.WARM_UP_CALLS, True),  # the first pass compiles
        ([99] * 5 + [10] * 100, 15, True),  # the first two blocks differ, the third is as the second
        ([3 ** (n // timing.BLOCK_CALLS % 2) for n in range(999)], timing.CAP_CALLS, False),
        ([4000] * 10, 2, True),  # blocks of one slow call each
        ([200] * 10, 6, True),  # and of three
        ([4000, 8000, 4000, 8000], 2, False),
    ],
)
def test_warming_up_ends_when_it_is_stable_and_at_the_cap(milliseconds, calls, stable):
    now = Time()
    found = timing.warm_up(now.work(milliseconds), WallClock(now=now))
    assert (found.calls, found.stable) == (calls, stable)


def test_both_models_have_a_turn_in_each_round_and_who_is_first_changes():
    now, log, alive = Time(), [], []
    works = {name: now.work(itertools.repeat(1), 2, log=log, name=name) for name in ("dense", "pruned")}
    found = timing.time_rounds(works, WallClock(now=now), 4, 3, lambda: alive.append(len(log)))
    turns = [name for name, _ in itertools.groupby(log)]
    assert turns == ["dense", "pruned", "dense", "pruned", "dense"]  # d p, p d, d p, p d
    assert {name: [len(turn) for turn in turns] for name, turns in found.items()} == {
        "dense": [3, 3, 3, 3],
        "pruned": [3, 3, 3, 3],
    }
    assert alive == [0, 6, 12, 18, 24, 30, 36, 42]


@pytest.mark.parametrize(
    ("number", "looks", "ran"), [(12, [6], 6), (20, [10], 10), (11, [6], 6), (8, [], 8), (6, [], 6)]
)
def test_rounds_may_end_at_their_half_which_is_looked_at_once(number, looks, ran):
    now, looked = Time(), []
    works = {name: now.work(itertools.repeat(50), 2) for name in ("dense", "pruned")}

    def enough(found, answer=True):
        looked.append(len(found["dense"]))
        return answer

    found = timing.time_rounds(works, WallClock(now=now), number, 1, enough=enough)
    assert looked == looks
    assert {len(turns) for turns in found.values()} == {ran}
    found = timing.time_rounds(works, WallClock(now=now), number, 1, enough=partial(enough, answer=False))
    assert looked == 2 * looks
    assert {len(turns) for turns in found.values()} == {number}


@pytest.mark.parametrize(("ms", "steps", "ran"), [(60, 1, 12), (60, 2, 6), (10, 2, 12), (10, 9, 6)])
def test_rounds_end_at_their_half_only_behind_the_least_time_and_number_of_calls_of_each_model(ms, steps, ran):
    now = Time()
    works = {"dense": now.work(itertools.repeat(100), 2), "pruned": now.work(itertools.repeat(ms), steps)}
    found = timing.time_rounds(works, WallClock(now=now), 12, 1, enough=lambda _: True)
    assert {len(turns) for turns in found.values()} == {ran}


def test_half_of_the_rounds_are_enough_where_they_say_the_speed_up_within_three_percent():
    def turns(*ms):
        return [[Pass([one], one)] for one in ms]

    steady, uneven = turns(*[10.0] * 6), turns(10.0, 10.7, 9.4, 10.6, 9.5, 10.2)
    assert is_narrow({"dense": turns(*[20.0] * 6), "pruned": steady})
    assert not is_narrow({"dense": turns(*[20.0] * 6), "pruned": uneven})
    assert not is_narrow({"dense": steady})


def test_a_look_at_half_of_the_rounds_keeps_the_level_of_the_interval():
    """A speed-up of 1 under normal noise of the size at which about a third ends early."""
    draw, covered, early = np.random.default_rng(0), 0, 0
    for noise in np.exp(0.02 * draw.standard_normal((1000, 12))):
        found = {"dense": [[Pass([ms], ms)] for ms in noise], "pruned": [[Pass([1.0], 1.0)] for _ in noise]}
        half = {name: turns[:6] for name, turns in found.items()}
        early += is_narrow(half)
        last = summarise_rounds(POINT, half if is_narrow(half) else found, {})
        covered += last.speedup_low <= 1 <= last.speedup_high
    assert 0.2 < early / 1000 < 0.9
    assert covered / 1000 > 0.935


def test_no_garbage_is_collected_within_a_call():
    seen = []
    now = Time()
    work = Workload(lambda: seen.append(gc.isenabled()), lambda: None)
    timing.time_rounds({"dense": work}, WallClock(now=now), 2, 1)
    assert seen == [False, False]
    assert gc.isenabled()


def test_a_drift_of_the_machine_meets_both_models_alike():
    """Each call is slower than the one before; one model takes 1.5 times what the other does."""
    now, slower = Time(), itertools.count(1)

    def work(factor):
        return Workload(lambda: now.work([factor * (1 + next(slower) / 50)]).step(), lambda: None)

    found = timing.time_rounds({"dense": work(1.5), "pruned": work(1.0)}, WallClock(now=now), 20, 1)
    assert summarise_rounds(POINT, found, {}).speedup == pytest.approx(1.5, rel=0.01)


def test_turns_are_long_enough_for_the_least_time_and_number_of_calls():
    now = Time()
    works = {"dense": now.work([], 4), "pruned": now.work([], 4)}
    warm = {"dense": WarmUp(10, True, 50.0), "pruned": WarmUp(10, True, 5.0)}
    passes = timing.passes_per_turn(works, warm, 6)
    assert passes * 6 * 4 * 5.0 >= timing.MIN_MS > (passes - 1) * 6 * 4 * 5.0
    slow = dict.fromkeys(works, WarmUp(10, True, 1e6))
    single = {name: now.work([], 1) for name in works}
    assert timing.passes_per_turn(single, slow, 6) == math.ceil(timing.MIN_CALLS / 6)


class Stream:
    """A CUDA stream whose events carry the time of the device, which runs `rate` times as fast as the wall clock."""

    def __init__(self, now: Time, rate: float = 1.0) -> None:
        self.now, self.rate, self.waits = now, rate, 0

    def event(self):
        event = SimpleNamespace()
        event.record = lambda: setattr(event, "at", 1e3 * self.now() * self.rate)
        event.elapsed_time = lambda end: end.at - event.at
        return event

    def wait(self):
        self.waits += 1


def test_events_are_read_after_one_wait():
    now = Time()
    stream = Stream(now)
    found = EventClock(stream.event, stream.wait, now).run(now.work([3, 5, 4], 3, reset=100))
    assert found.ms == pytest.approx([3, 5, 4])
    assert stream.waits == 2  # before the first call and after the last
    assert timing.disagreement_of([found]) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("rate", "flagged"), [(1.0, False), (0.98, False), (0.9, True), (1.1, True)])
def test_events_that_disagree_with_the_wall_clock_are_flagged(rate, flagged):
    now = Time()
    stream = Stream(now, rate)
    clock = EventClock(stream.event, stream.wait, now)
    works = {name: now.work(itertools.repeat(2)) for name in ("dense", "pruned")}
    found = summarise_rounds(POINT, timing.time_rounds(works, clock, 6, 2), {})
    assert ("clocks_disagree" in found.flags) == flagged
    assert found.clocks_apart == pytest.approx(abs(1 / rate - 1))


def passes(medians, spread=0.0) -> list[list[Pass]]:
    """Rounds of three calls around the medians."""
    rounds = [[m * (1 - spread), m, m * (1 + spread)] for m in medians]
    return [[Pass(ms, sum(ms))] for ms in rounds]


def test_no_speed_up_is_claimed_to_more_than_the_resolution():
    """The dense model is 0.6 % slower in every round, which where its weights lie can do to an equal model."""
    found = summarise_rounds(POINT, {"dense": passes([10.06] * 8), "pruned": passes([10.0] * 8)}, {})
    assert found.speedup == pytest.approx(1.006)
    assert (found.speedup_low, found.speedup_high) == pytest.approx((1.006 * 0.99, 1.006 * 1.01))


def test_a_summary_by_hand():
    found = summarise_rounds(
        POINT,
        {"dense": passes([30, 31, 32, 33, 34, 35]), "pruned": passes([20, 20, 21, 22, 24, 24])},
        {"dense": WarmUp(10, True, 30), "pruned": WarmUp(25, True, 20)},
    )
    ratios = [30 / 20, 31 / 20, 32 / 21, 33 / 22, 34 / 24, 35 / 24]
    assert (found.speedup_low, found.speedup_high) == pytest.approx((min(ratios), max(ratios)))
    assert min(ratios) < found.speedup < max(ratios)
    assert (found.dense_ms, found.pruned_ms) == (32.5, 21.5)
    assert found.rounds.pruned[4] == (24,) * 3
    assert found.warm_up == WarmUps(dense=10, pruned=25)
    assert found.flags == ()


def test_a_summary_flags_what_should_not_be_believed():
    steady, shaky = passes([30] * 6), passes([20] * 6, spread=0.2)
    ready, cold = WarmUp(10, True, 30), WarmUp(200, False, 30)
    assert summarise_rounds(POINT, {"dense": steady, "pruned": shaky}, {"dense": ready}).flags == ("noisy",)
    assert summarise_rounds(POINT, {"dense": steady, "pruned": steady}, {"dense": ready, "pruned": cold}).flags == (
        "not_warm",
    )
    alone = summarise_rounds(POINT, {"pruned": steady}, {"pruned": ready})
    assert alone.pruned_ms == 30
    assert not [name for name in to_plain(alone) if name.startswith(("speedup", "dense"))]


# --- several processes


def timed(ratios, **more):
    """A point that one process has timed, in whose rounds the dense model took so many times as long."""
    times = {"dense": passes([10.0 * ratio for ratio in ratios]), "pruned": passes([10.0] * len(ratios))}
    return dataclasses.replace(summarise_rounds(POINT, times, {}), **more)


def test_a_speed_up_reaches_over_the_processes_that_have_timed_it():
    """Both intervals are narrow, and neither holds what the other process has found."""
    first, second = timed([2.12] * 6), timed([3.19] * 8, flags=("noisy",), clocks_apart=0.04)
    both = join_processes([first, second])
    assert both.speedup == pytest.approx((2.12 * 3.19) ** 0.5)
    assert (both.speedup_low, both.speedup_high) == (first.speedup_low, second.speedup_high)
    assert both.by_process == (first.interval, second.interval)
    assert both.flags == ("noisy", "processes_disagree")
    assert both.clocks_apart == 0.04
    assert both.rounds.dense == first.rounds.dense + second.rounds.dense
    assert len(both.rounds.pruned) == 14
    assert both.dense_ms == pytest.approx(31.9)  # the median of 14 rounds is one of the eight
    assert join_processes([second, first]).interval == both.interval


def test_a_process_alone_is_its_own_answer_and_equal_ones_change_nothing():
    first = timed([1.9, 2.0, 2.1, 2.0, 2.05, 1.95])
    assert join_processes([first]) is first
    both = join_processes([first, first])
    assert both.interval == pytest.approx(first.interval)
    assert both.flags == ()


def test_a_point_that_fails_in_one_process_has_no_speed_up():
    failed = POINT.timing(failed="no room")
    for order in ([timed([2.0] * 6), failed], [failed, timed([2.0] * 6)]):
        assert join_processes(order) == failed


@pytest.mark.parametrize(("number", "share"), [(1, 0.0), (2, 0.5), (6, 1 - 2**-5)])
def test_the_range_of_measurements_that_differ_holds_the_median_as_often_as_order_statistics(number, share):
    generator, hits = np.random.default_rng(number), 0
    for _ in range(2000):
        ratios = [(ratio, ratio * 0.999, ratio * 1.001) for ratio in np.exp(generator.normal(0, 0.5, number))]
        _, low, high = join_ratios(ratios)
        hits += low <= 1 <= high
    assert hits / 2000 == pytest.approx(share, abs=0.03)


# --- the interval


def coverage(n, draw, truth, trials=400):
    generator = np.random.default_rng(n)
    hits, widths = 0, []
    for _ in range(trials):
        _, low, high = paired_ratio(*draw(generator, n))
        hits += low <= truth <= high
        widths.append(high / low - 1)
    return hits / trials, float(np.median(widths))


def drifting(ratio, spikes):
    """Rounds whose speed drifts for both alike, with 3 % noise of their own and now and then a call twice as slow."""

    def draw(generator, n):
        drift = np.exp(np.cumsum(generator.normal(0, 0.1, n)))
        noise = np.exp(generator.normal(0, 0.03, (2, n))) * (1 + (generator.random((2, n)) < spikes))
        return list(10 * ratio * drift * noise[0]), list(10 * drift * noise[1])

    return draw


@pytest.mark.parametrize("n", [6, 12, 30])
@pytest.mark.parametrize(("ratio", "spikes"), [(1.0, 0.0), (1.5, 0.0), (1.0, 0.05), (1.5, 0.05)])
def test_the_interval_contains_the_truth_at_its_rate(n, ratio, spikes):
    share, width = coverage(n, drifting(ratio, spikes), ratio)
    assert share >= 0.925  # 400 trials at 95 % lie above with a probability of 0.98
    assert share < 0.995
    assert width < {6: 0.25 if not spikes else math.inf, 12: 0.15, 30: 0.05}[n]  # one spike in twelve is borne


def test_the_interval_is_what_the_signed_rank_test_does_not_reject():
    generator = np.random.default_rng(3)
    a, b = np.exp(generator.normal(0.3, 0.1, 12)), np.exp(generator.normal(0, 0.1, 12))
    ratio, low, high = paired_ratio(list(a), list(b))
    assert low < ratio < high
    for edge, outwards in ((low, -1e-6), (high, 1e-6)):
        shifted = np.log(a / b) - math.log(edge)
        assert wilcoxon(shifted - outwards, method="exact").pvalue < 0.05
        assert wilcoxon(shifted + outwards, method="exact").pvalue > 0.05


def test_an_interval_needs_enough_pairs_of_positive_figures():
    assert paired_ratio([2.0] * 6, [1.0] * 6) == pytest.approx((2, 2, 2))
    for a, b in (([1.0] * 5, [1.0] * 5), ([1.0] * 6, [1.0] * 7), ([0.0] * 6, [1.0] * 6)):
        with pytest.raises(ValueError, match="pairs"):
            paired_ratio(a, b)


# --- what is timed


def test_points_are_sizes_times_batches_and_a_sweep():
    protocol = dataclasses.replace(SMOKE, prefill=(8, 16), decode=(4,), batches=(3,), max_batch=5)
    assert [str(point) for point in points_of_protocol(protocol)] == [
        "prefill of 8 tokens, batch 1",
        "decode behind 4 tokens, batch 1",
        "prefill of 8 tokens, batch 2",
        "decode behind 4 tokens, batch 2",
        "prefill of 8 tokens, batch 3",
        "prefill of 16 tokens, batch 3",
        "decode behind 4 tokens, batch 3",
        "prefill of 8 tokens, batch 4",
        "decode behind 4 tokens, batch 4",
    ]
    assert points_of_protocol(dataclasses.replace(SMOKE, prefill=())) == [TimedPoint("decode", 1, 16)]


def run_twice(model, point, protocol):
    """(the ids, the last logits of each step, of two passes): (B, T), (steps, B, V) each."""
    found = []
    with torch.inference_mode():
        work = workload_of_point(model, point, protocol)
        state = work.step.__self__
        for _ in range(2):
            work.reset()
            steps = []
            for _ in range(work.steps):
                work.step()
                assert state.last.logits.shape[1] == 1
                steps.append(state.last.logits[:, 0].clone())
            found.append(torch.stack(steps))
    return state.ids, found


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("size", [3, 20])  # within and beyond the sliding windows
@pytest.mark.parametrize("family", TINY)
def test_what_is_timed_computes_the_models_logits_in_each_pass(family, size, cache):
    model = tiny(family)
    protocol = dataclasses.replace(SMOKE, cache=cache, decode_steps=4)
    ids, found = run_twice(model, TimedPoint("prefill", 2, size), protocol)
    with torch.inference_mode():
        whole = model(ids).logits
    for logits in found:
        torch.testing.assert_close(logits, whole[:, -1][None], rtol=0, atol=1e-4 * float(whole.abs().max()))
    ids, found = run_twice(model, TimedPoint("decode", 2, size), protocol)
    assert ids.shape == (2, size + 4)
    with torch.inference_mode():
        whole = model(ids).logits
    for logits in found:
        expected = whole[:, size:].transpose(0, 1)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4 * float(whole.abs().max()))


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("method", ["slicegpt", "llm-pruner", "flap", "2ssp", "blockpruner", "drop"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "phi3"])
def test_pruned_models_decode_on_both_caches(family, method, cache):
    model, _ = pruned(method, family, 0.3)
    ids, found = run_twice(model.model, TimedPoint("decode", 1, 3), dataclasses.replace(SMOKE, cache=cache))
    with torch.inference_mode():
        whole = model.model(ids).logits
    for logits in found:
        torch.testing.assert_close(logits[:, 0], whole[0, 3:], rtol=0, atol=1e-4 * float(whole.abs().max()))


def test_both_models_get_the_same_ids_and_enough_positions():
    first, second = (
        workload_of_point(tiny("llama", seed=n), TimedPoint("decode", 2, 5), SMOKE).step.__self__.ids for n in (0, 1)
    )
    assert torch.equal(first, second)
    with pytest.raises(ValueError, match="129 tokens are asked for, and the model has 128 positions"):
        workload_of_point(tiny("gpt2"), TimedPoint("decode", 1, 125), SMOKE)


def test_the_work_that_was_removed_predicts_the_speed():
    dense = Decoder(tiny("llama", layers=6, tie_word_embeddings=False))
    half, _ = Decoder(tiny("llama", layers=3, tie_word_embeddings=False)), None
    each = sum(p.numel() for matrix in dense.layers[0].matrices for p in matrix.parameters())
    head, scores = dense.head.weight.numel(), 2 * 32 * 40
    prefill = predict_speedup(dense, half, TimedPoint("prefill", 4, 40))
    assert prefill == {"speedup_by_macs": (40 * 6 * (each + scores) + head) / (40 * 3 * (each + scores) + head)}
    decode = predict_speedup(dense, half, TimedPoint("decode", 4, 40))
    assert decode["speedup_by_macs"] == (6 * (each + scores) + head) / (3 * (each + scores) + head)
    context = 4 * 40 * 2 * 2 * 8  # batch, tokens, keys and values, heads, their width
    assert decode["speedup_by_bytes"] == (6 * (each + context) + head) / (3 * (each + context) + head)


@pytest.mark.parametrize(("family", "sliding"), [("mistral", 6), ("gemma3_text", None), ("llama", 0)])
def test_a_step_reads_no_more_of_the_context_than_windows_hold(family, sliding):
    model = Decoder(tiny(family))
    window, layers = getattr(model.config, "sliding_window", None), model.layers
    if sliding is None:  # those of some layers
        sliding = sum(layer.kind == "sliding_attention" for layer in layers)
        assert 0 < sliding < len(layers)
    context, point = 3 * (window or 8), TimedPoint("decode", 4, 3 * (window or 8))
    without = bytes_of_step(model, TimedPoint("decode", 4, 0))
    each = 2 * 4 * layers[0].kv_heads * layers[0].head_width  # keys and values of a token, in float32
    tokens = sliding * (window or 0) + (len(layers) - sliding) * context
    assert bytes_of_step(model, point) - without == 4 * each * tokens
    scores = 2 * layers[0].out.in_features
    assert macs_of_point(model, point) - macs_of_point(model, TimedPoint("decode", 4, 0)) == scores * tokens


def a_benchmark(protocol, clock=None, gpus=()):
    now = Time()
    return benchmark.SpeedBenchmark(protocol, clock or WallClock(now=now), [CPU], gpus, lambda where: None), now


def pretend(monkeypatch, now, limits, milliseconds=None):
    """Workloads that take no model: each model has memory for a batch below its limit. For a SpeedBenchmark."""

    def make(model, point, protocol, graph):
        if point.batch >= limits[model.name]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return now.work(itertools.repeat((milliseconds or {}).get(model.name, 10)))

    monkeypatch.setattr(benchmark, "workload_of_point", make)
    monkeypatch.setattr(benchmark, "predict_speedup", lambda *_: {})
    monkeypatch.setattr(benchmark, "Decoder", lambda model: model)


def a_model(name):
    return SimpleNamespace(name=name, to=lambda device: None)


def test_a_sweep_ends_where_no_model_has_the_memory(monkeypatch):
    protocol = dataclasses.replace(SMOKE, decode=(), max_batch=64)
    there, now = a_benchmark(protocol)
    pretend(monkeypatch, now, {"dense": 4, "pruned": 16}, {"dense": 30})
    found = list(there.time(a_model("dense"), a_model("pruned")))
    assert [point.batch for point in found] == [1, 2, 4, 8, 16]
    assert [point.out_of_memory for point in found] == [None, None, ("dense",), ("dense",), ("dense", "pruned")]
    assert [(point.speedup is not None, point.pruned_ms is not None) for point in found] == [(True, True)] * 2 + [
        (False, True),
        (False, True),
        (False, False),
    ]
    assert found[0].speedup == pytest.approx(3)


@pytest.mark.parametrize("limits", [{"dense": 9, "pruned": 9}, {"dense": 1, "pruned": 9}])
def test_models_whose_memory_ends_within_the_rounds_are_named_one_by_one(monkeypatch, limits):
    """Both behind their warm-up, or the pruned one, where the dense one has had no memory for it."""
    there, now = a_benchmark(dataclasses.replace(SMOKE, decode=()))
    pretend(monkeypatch, now, limits)

    def end(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(timing, "time_rounds", end)
    (found,) = there.time(a_model("dense"), a_model("pruned"))
    assert found.out_of_memory == ("dense", "pruned")
    assert found.rounds is None


def test_every_turn_of_a_point_moves_its_bar(monkeypatch, bars):
    there, now = a_benchmark(dataclasses.replace(SMOKE, decode=(), batches=(1, 4), speed_rounds=7))
    pretend(monkeypatch, now, {"dense": 2, "pruned": 8})
    list(there.time(a_model("dense"), a_model("pruned")))
    size = SMOKE.prefill[0]
    assert [(bar.what, bar.total, bar.done) for bar in bars] == [
        (f"timing prefill of {size} tokens, batch 1", 14, 14),
        (f"timing prefill of {size} tokens, batch 4", 7, 7),  # one model
    ]


def test_memory_alone_is_swept_too(monkeypatch):
    there, now = a_benchmark(dataclasses.replace(SMOKE, decode=(), max_batch=64))
    pretend(monkeypatch, now, {"pruned": 4})
    found = list(there.memory(a_model("pruned")))
    assert [(point.batch, point.peak_resident_bytes is not None) for point in found] == [
        (1, True),
        (2, True),
        (4, False),
    ]
    assert found[-1].out_of_memory == ("pruned",)


def test_one_kind_that_runs_out_leaves_the_other_alone(monkeypatch):
    there, now = a_benchmark(dataclasses.replace(SMOKE, max_batch=4))

    def make(model, point, protocol, graph):
        if point.kind == "prefill":
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")
        return now.work(itertools.repeat(1))

    pretend(monkeypatch, now, {})
    monkeypatch.setattr(benchmark, "workload_of_point", make)
    found = list(there.time(a_model("dense"), a_model("pruned")))
    assert [(p.kind, p.batch) for p in found] == [("prefill", 1), ("decode", 1), ("decode", 2), ("decode", 4)]


def test_a_model_that_cannot_do_a_point_says_why_and_the_rest_goes_on(monkeypatch):
    class NoCache(torch.nn.Module):
        """A model that takes no cache but its own."""

        def __init__(self, inner):
            super().__init__()
            self.inner, self.config, self.device = inner, inner.config, CPU

        def get_input_embeddings(self):
            return self.inner.get_input_embeddings()

        def forward(self, input_ids, cache, **options):
            if cache is not None:
                raise TypeError("no static cache here\nat all")
            return self.inner(input_ids, **options)

    monkeypatch.setattr(benchmark, "predict_speedup", lambda *_: {})
    monkeypatch.setattr(benchmark, "Decoder", lambda model: model)
    there, _ = a_benchmark(dataclasses.replace(SMOKE, cache="static"), WallClock(now=itertools.count(1).__next__))
    found = list(there.time(tiny("llama"), NoCache(tiny("llama"))))
    assert [point.failed for point in found] == ["pruned model: TypeError: no static cache here"] * 2
    there, _ = a_benchmark(dataclasses.replace(SMOKE, decode=()), WallClock(now=itertools.count(1).__next__))
    assert next(there.time(tiny("llama"), NoCache(tiny("llama")))).speedup is not None


# --- memory, GPUs, machine


def test_the_peak_of_memory_is_that_of_the_pass_alone():
    size = 2**26

    def work(step):
        return Workload(step, lambda: torch.ones(2 * size, dtype=torch.uint8))

    quiet = peaks.measure_peaks(work(lambda: None), [CPU], [])["peak_resident_bytes"]
    loud = peaks.measure_peaks(work(lambda: torch.ones(size, dtype=torch.uint8)), [CPU], [])["peak_resident_bytes"]
    assert 0.9 * size < loud - quiet < 1.5 * size


def test_without_the_library_the_record_says_so():
    def missing():
        raise ImportError("No module named 'pynvml'")

    assert gpu_driver.find_gpus([CPU], missing) == ([], None)
    gpus, why = gpu_driver.find_gpus([torch.device("cuda", 0)], missing)
    assert gpus == []
    assert "nvidia-ml-py is not installed" in why


def test_a_library_without_a_driver_is_said_too(monkeypatch):
    library = Library(nvmlInit=True)
    assert gpu_driver.find_gpus([torch.device("cuda", 0)], lambda: library) == (
        [],
        "the management library does not answer: Not Supported",
    )


def test_a_gpu_is_found_by_its_own_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234-ab"))
    gpus, why = gpu_driver.find_gpus([torch.device("cuda", 3)], Library)
    assert why is None
    assert [gpu.handle for gpu in gpus] == ["handle of GPU-1234-ab"]


@pytest.mark.parametrize(
    ("listed", "parent_there", "others"),
    [
        ([7], False, 0),
        ([7, 5], True, 0),
        ([7, 5, 99], True, 1),
        ([7, 99, 98], False, 2),
        ([41, 42], True, 0),  # a container: none of these numbers is this process's
        ([41, 42], False, 1),
        ([41, 42, 43], True, 1),
        ([], False, 0),
    ],
)
def test_processes_of_others_are_counted(listed, parent_there, others):
    assert gpu_driver.count_other_processes(a_gpu(*listed), 7, 5, parent_there) == others


def test_what_a_gpu_does_not_tell_is_absent():
    assert a_gpu(bits=0x44).state() == {
        "sm_mhz": 1410,
        "memory_mhz": 1593,
        "temperature_c": 61,
        "power_w": 250.5,
        "slowed_by": ["power cap", "thermal, by hardware"],
    }
    mute = a_gpu(nvmlDeviceGetPowerUsage=1, nvmlDeviceGetClockInfo=1, nvmlDeviceGetCurrentClocksThrottleReasons=1)
    assert mute.state() == {"temperature_c": 61}
    assert gpu_driver.count_other_processes(a_gpu(nvmlDeviceGetComputeRunningProcesses=1), 7, 5, False) is None


def test_energy_is_the_counters_difference_over_all_tokens():
    now = Time()
    work = now.work(itertools.repeat(500), steps=2)

    def metered(watts):
        card = a_gpu()
        card.library.nvmlDeviceGetTotalEnergyConsumption = lambda handle: 1e3 * watts * now.seconds
        return card

    found = peaks.measure_energy(work, 8, [metered(10)], lambda: None, now)
    assert found == {"joules_per_token": pytest.approx(30 / (3 * 8)), "energy_seconds": pytest.approx(3.0)}
    assert peaks.measure_energy(work, 8, [], lambda: None, now) == {}
    assert peaks.measure_energy(work, 8, [a_gpu(nvmlDeviceGetTotalEnergyConsumption=1)], lambda: None, now) == {}


def test_energy_of_bringing_the_cache_back_is_none_of_the_steps():
    """A card of 10 W; a pass of two steps takes 1 s, of which 0.5 s go into the reset."""
    now = Time()
    card = a_gpu()
    card.library.nvmlDeviceGetTotalEnergyConsumption = lambda handle: 1e4 * now.seconds
    found = peaks.measure_energy(now.work(itertools.repeat(250), steps=2, reset=0.5), 2, [card], lambda: None, now)
    assert found["joules_per_token"] == pytest.approx(2.5)


def state(**more) -> MachineThen:
    nothing = {"seconds": 0.0, "busy_seconds": 0.0, "stolen_seconds": 0.0, "own_seconds": 0.0}
    return MachineThen(machine=MachineState(**nothing | more))


def test_what_other_work_took_is_measured_and_flagged():
    after = state(seconds=10.0, busy_seconds=25.0, stolen_seconds=2.0, own_seconds=18.0)
    found = peaks.load_between_states(state(), after, [])
    assert (found.other_cores, found.stolen_cores, found.flags) == (0.5, 0.2, ("busy",))
    assert peaks.load_between_states(state(), state(seconds=10.0, busy_seconds=20.0, own_seconds=19.0), []).flags == ()
    hot = peaks.load_between_states(state(cpu_throttled=3), state(seconds=1.0, cpu_throttled=4), [])
    assert hot.flags == ("slowed",)
    for held, flags in ((2.0, ()), (4.0, ("slowed",))):  # in ten seconds, by a limit of time
        found = peaks.load_between_states(state(held_seconds=1.0), state(seconds=10.0, held_seconds=1.0 + held), [])
        assert (found.held_cores, found.flags) == (held / 10, flags)
    gpu = peaks.load_between_states(state(), state(seconds=1.0), [0, 2], {"power cap", "idle"})
    assert (gpu.flags, gpu.other_gpu_processes) == (("shared_gpu", "slowed"), 2)
    assert peaks.load_between_states(state(), state(seconds=1.0), [0], {"idle"}).flags == ()


def test_a_machine_that_tells_nothing_is_no_error(monkeypatch):
    def refuse(*_):
        raise FileNotFoundError("/proc")

    for name in ("cpu_times", "cpu_freq"):
        monkeypatch.setattr(environment.psutil, name, refuse)
    monkeypatch.setattr(environment, "_read", lambda path: "")
    before, after = environment.state_of_machine(), environment.state_of_machine()
    assert set(before) == {"seconds", "load", "own_seconds"}
    assert environment.load_between_states(before, after) == {}


def test_this_machine_tells_how_busy_it_is():
    before = environment.state_of_machine()
    deadline = time.process_time() + 0.2
    while time.process_time() < deadline:
        pass
    after = environment.state_of_machine()
    assert after["own_seconds"] - before["own_seconds"] >= 0.15
    if sys.platform == "linux":
        assert after["busy_seconds"] > before["busy_seconds"]
        assert 0 <= environment.load_between_states(before, after)["other_cores"] <= os.cpu_count()


def test_a_machine_with_one_core(monkeypatch, capsys):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    validate.check_cores((0,))
    with pytest.raises(UserError, match="core 1 cannot be used; there are 0"):
        validate.check_cores((0, 1))
    assert main(["speed", "--pin", "1"]) == 2
    assert capsys.readouterr().err == "prunebench: --pin: core 1 cannot be used; there are 0\n"


def test_widths_say_which_kernels_they_suit():
    found = peaks.widths_of_model(Decoder(tiny("llama", hidden_size=128, intermediate_size=320, num_key_value_heads=2)))
    assert found["qkv"] == MatrixWidths(read=(128,), out=(64, 128), multiple_of=64)
    assert found["down"] == MatrixWidths(read=(320,), out=(128,), multiple_of=64)
    assert found["head"].multiple_of == 128
    sliced, _ = pruned("slicegpt", "llama", 0.3)
    assert peaks.widths_of_model(sliced)["added"].multiple_of == 8
    low, decided = pruned("svd-llm", "llama", 0.3)
    ranks = {decided["ranks"][0][name] for name in low.family.up}
    up = peaks.widths_of_model(low)["up"]
    assert (up.read, up.out) == ((*ranks, 32), (*ranks, 48))
    assert "added" not in peaks.widths_of_model(low)
    ragged, _ = pruned("flap", "llama", 0.3)
    assert peaks.widths_of_model(ragged)["down"].multiple_of == 1


# --- another process


def through(model):
    """What the other end of a pipe makes of a model."""
    here, there = Pipe()

    def send():
        with here:  # so that whoever receives hears of a failure
            timed_cell.send_model(here, model)

    thread = threading.Thread(target=send)
    thread.start()
    received = timed_cell.receive_model(there, torch.device("cpu"))
    thread.join()
    return received


HANDED_OVER = [cell for cell in SHAPED if cell.values[1] in ("llama", "gemma2", "gpt2", "phi3")]


@pytest.mark.parametrize(("method", "family"), HANDED_OVER)
def test_every_pruned_model_can_be_handed_over(method, family, ids):
    model, _ = pruned(method, family, 0.3)
    received = through(model.model)
    assert torch.equal(received(ids).logits, model.model(ids).logits)
    count = sum(parameter.numel() for parameter in model.model.parameters())
    assert sum(parameter.numel() for parameter in received.parameters()) == count
    peaks.widths_of_model(Decoder(received))
    predict_speedup(Decoder(tiny(family)), Decoder(received), TimedPoint("decode", 1, 8))


def test_tensors_arrive_as_they_were_and_in_memory_of_their_own(monkeypatch):
    monkeypatch.setattr(timed_cell, "CHUNK", 7)
    model = torch.nn.Module()
    model.a = torch.nn.Parameter(torch.randn(3, 5, dtype=torch.bfloat16).T, requires_grad=False)
    model.b = model.a
    model.register_buffer("c", torch.tensor([True, False]))
    model.empty, model.scalar, model.word = torch.zeros(0, 4), torch.tensor(2.5), "plain"
    found = through(model)
    assert found.a is found.b
    assert torch.equal(found.a, model.a)
    assert isinstance(found.a, torch.nn.Parameter)
    assert (found.a.dtype, found.a.requires_grad, found.a.is_contiguous()) == (torch.bfloat16, False, True)
    assert torch.equal(found.c, model.c)
    assert (found.empty.shape, float(found.scalar), found.word) == ((0, 4), 2.5, "plain")
    found.a.zero_()
    assert model.a.abs().sum() > 0


def test_what_cannot_be_sent_is_said_before_anything_is():
    model = tiny("llama")
    model.hook = lambda x: x
    here, there = Pipe()
    with pytest.raises(timed_cell.NotPortable, match=r"LlamaForCausalLM cannot be sent to another process: .*lambda"):
        timed_cell.send_model(here, model)
    assert not there.poll(0)


def run(target, *arguments, limit=60.0, **options):
    heard = []
    failure = isolation.run(target, arguments, limits=isolation.Limits(silence=limit), hear=heard.append, **options)
    return failure and failure.reason, heard


def test_a_process_tells_as_it_goes_on():
    assert run(speed_children.finds, 3) == (None, [{"points": [0]}, {"points": [1]}, {"points": [2]}])
    assert run(speed_children.asks, give=lambda pipe: pipe.send("a gift")) == (None, [{"got": "a gift"}])


def test_a_killed_process_is_an_outcome_that_keeps_what_was_told():
    failed, heard = run(speed_children.dies, 2)
    assert failed == "killed by SIGKILL, and not for lack of memory, while it counted"
    assert heard == [{"points": [0]}, {"points": [1]}]
    assert run(speed_children.leaves)[0] == "the process ended with code 7 while it started"


@pytest.fixture
def new_server():
    """No server of imported modules before the test, and none behind it; nor does a test know what others imported."""
    forget_server()
    yield
    forget_server()


def forget_server():
    """Kill the server: asked to stop it would first wait for every process that it has forked, and we for it."""
    if pid := multiprocessing.forkserver._forkserver._forkserver_pid:
        os.kill(pid, signal.SIGKILL)
    multiprocessing.forkserver._forkserver._stop()
    multiprocessing.forkserver._forkserver._preload_modules = []
    isolation._environment_of_server.cache_clear()


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every process is spawned")
def test_a_process_begins_with_what_it_needs_imported_and_is_an_outcome_as_any_other(new_server):
    needed = ("speed_children", "colorsys")  # of which no other process of the tests needs the last
    assert run(speed_children.knows, "colorsys") == (None, [{"knows": False}])
    assert run(speed_children.knows, "colorsys", imported=needed) == (None, [{"knows": True}])
    for own, quiet in ({}, False), ({"TQDM_DISABLE": "1"}, True):  # which tqdm has read when it was imported
        heard, limits = [], isolation.Limits(silence=60)
        with isolation.Worker(own, needed) as worker:
            assert worker.run(speed_children.knows, ("colorsys",), limits=limits, hear=heard.append) is None
            assert worker.run(speed_children.draws, (), limits=limits, hear=heard.append) is None
        assert heard == [{"knows": True}, {"quiet": quiet}]
    failed, heard = run(speed_children.dies, 1, imported=needed)
    assert (failed, heard) == ("killed by SIGKILL, and not for lack of memory, while it counted", [{"points": [0]}])
    assert run(speed_children.leaves, imported=needed)[0] == "the process ended with code 7 while it started"
    assert run(speed_children.hears_interrupts, imported=needed) == (None, [{"hears": False}])
    failed, heard = run(speed_children.hangs, imported=needed, limit=1)
    assert failed == "silent for 1 s while it slept, and ended"
    assert not is_alive(heard[0]["pid"])


DIES = """
import os, signal
from pathlib import Path

there = Path(__file__).with_suffix(".lives")
if not there.exists():
    there.touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every process is spawned")
@pytest.mark.parametrize("once", [True, False])
def test_a_server_that_is_killed_while_it_starts_is_made_once_more(once, new_server, tmp_path, monkeypatch):
    name = f"dies_{once}"
    (tmp_path / f"{name}.py").write_text(DIES if once else DIES.replace("there.touch()", ""))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]).rstrip(":"))
    heard, limits = [], isolation.Limits(silence=60)
    with isolation.Worker(imported=(name,)) as worker:
        if not once:
            worker.begin()
        failure = worker.run(speed_children.finds, (1,), limits=limits, hear=heard.append)
    said = "the process from which others are forked was killed while it started, twice"
    assert (failure and failure.reason, heard) == ((None, [{"points": [0]}]) if once else (said, []))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every process is spawned")
def test_a_process_that_times_imports_the_models_own_modules_and_copies_both_models(
    model_folder, monkeypatch, new_server
):
    """What each such process does before it times is time in which nothing else works."""
    monkeypatch.setattr(timed_cell, "_work", speed_children.times)
    protocol = dataclasses.replace(
        protocol_of_profile("speed"), prefill=(8,), decode=(4,), decode_steps=2, speed_rounds=6
    )
    cell = made_cell("drop", None, protocol, model=str(model_folder), parameters={"layers": "1"}, match="all")
    found = timed_cell.time_beside_dense(pretrained.load(cell.model, CPU, torch.float32)[0], cell, 1)
    assert [point.kind for point in found.points] == ["prefill", "decode"]
    assert found.widths["copied"] == 2  # so that both lie alike: one that is only received was up to 4 % slower
    own = [name for name in found.widths["imported"] if name.startswith(("methods", "torch", "transformers", "scipy"))]
    assert [name for name in own if not name.startswith("transformers.models.")] == []


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells which memory lies in files")
def test_both_models_that_are_timed_lie_in_no_file(model_folder):
    loaded = pretrained.load(str(model_folder), CPU, torch.float32)[0]
    assert not any(map(lies_in_a_file, through(loaded).parameters()))
    assert any(map(lies_in_a_file, loaded.parameters()))  # so that this can be told
    timed_cell.copy_to_own_memory(loaded)
    assert not any(map(lies_in_a_file, loaded.parameters()))


def lies_in_a_file(tensor):
    for line in Path("/proc/self/maps").read_text().splitlines():
        places, _, _, _, number, *_ = line.split()
        start, end = (int(place, 16) for place in places.split("-"))
        if start <= tensor.data_ptr() < end:
            return number != "0"
    raise AssertionError("the tensor lies nowhere")


def test_a_process_that_hangs_is_ended():
    failed, heard = run(speed_children.hangs, limit=5)
    assert failed == "silent for 5 s while it slept, and ended"
    assert not is_alive(heard[0]["pid"])
    failed, _ = run(speed_children.never_listens, limit=3, give=lambda pipe: pipe.send_bytes(bytes(2**24)))
    assert failed == "left a message half read or half written for 3 s while it started, and ended"
    failed, _ = run(speed_children.stops_in_a_message, limit=3)
    assert failed == "left a message half read or half written for 3 s while it started, and ended"
    failed, _ = run(speed_children.finds, bytes(2**24), limit=60)  # larger than a pipe holds
    assert failed.startswith("TypeError")


def kill(pid):
    """Kill a child of this process and wait until all of its threads are gone; who started it can still fetch it."""
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def test_a_worker_keeps_its_process_until_something_fails_in_it():
    heard = []

    def ask(target=speed_children.counts, *arguments, seconds=60.0):
        failure = worker.run(target, arguments, limits=isolation.Limits(seconds=seconds), hear=heard.append)
        return failure and failure.reason

    with isolation.Worker() as worker:
        assert ask() is ask() is None
        for ended in (
            lambda: ask(speed_children.fails) == "ZeroDivisionError: by nothing while it divided",
            lambda: ask(speed_children.leaves) == "the process ended with code 7 while it started",
            lambda: ask(speed_children.naps, 600, seconds=0.1).endswith("while it started, and ended"),
            lambda: worker.stop() is None,
            lambda: kill(heard[-1]["pid"]) is None,
        ):
            assert ended()
            assert not is_alive(heard[-1]["pid"])
            assert ask() is None
    assert [one["tasks"] for one in heard] == [1, 2, 1, 1, 1, 1, 1]
    assert heard[0]["pid"] == heard[1]["pid"]
    assert len({one["pid"] for one in heard}) == 6
    assert not any(is_alive(one["pid"]) for one in heard)


def test_a_worker_may_begin_before_its_first_task():
    heard = []
    with isolation.Worker() as worker:
        worker.begin(["colorsys", "no_such_module"])
        begun = worker._process.pid
        assert worker.run(speed_children.knows, ("colorsys",), limits=isolation.Limits(), hear=heard.append) is None
        assert heard == [{"knows": True}]
        assert worker._process.pid == begun


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every process is spawned")
def test_another_environment_than_the_servers_is_not_the_servers(new_server, monkeypatch):
    imported = ("speed_children", "colorsys")
    assert run(speed_children.knows, "colorsys", imported=imported) == (None, [{"knows": True}])
    with monkeypatch.context() as patch:
        patch.setenv("WHICH_MODULES_READ", "when they are imported")
        assert run(speed_children.knows, "colorsys", imported=imported) == (None, [{"knows": False}])
    assert run(speed_children.knows, "colorsys", imported=imported) == (None, [{"knows": True}])


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every process is spawned")
def test_a_server_may_begin_before_its_first_process(new_server):
    isolation.begin_server(["colorsys"])
    assert run(speed_children.knows, "colorsys", imported=("speed_children",)) == (None, [{"knows": True}])


def test_the_time_of_a_task_is_its_own():
    with isolation.Worker() as worker:
        for nap, limit in ((4, 60), (0.1, 3.5)):
            limits = isolation.Limits(seconds=limit)
            assert worker.run(speed_children.naps, (nap,), limits=limits, hear=print) is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_in_a_process_ends_with_it():
    heard = []
    limits = isolation.Limits(seconds=12)
    failure = isolation.run(speed_children.nests, (), limits=limits, hear=heard.append)
    assert failure == isolation.Failure("timed_out", "took longer than 0.2 min while its child slept, and ended")
    for _ in range(300):
        if not is_alive(heard[0]["pid"]):
            break
        time.sleep(0.1)
    assert not is_alive(heard[0]["pid"])


def test_a_system_without_room_for_a_process_is_an_outcome(monkeypatch):
    def refuse(*_):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("multiprocessing.context.SpawnProcess._Popen", refuse)
    assert "Resource temporarily unavailable" in run(speed_children.finds, 1)[0]


def test_an_error_is_a_reason_in_one_line():
    assert run(speed_children.fails)[0] == "ZeroDivisionError: by nothing while it divided"
    assert run(speed_children.runs_out)[0] == "out of memory (MemoryError) while it started"


def is_alive(pid):
    """Whether the process runs; one that is dead and not yet fetched does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_behind(how):
    """Ctrl-C reaches the whole group, and the child leaves it to its parent; of a killed parent it hears nothing."""
    root = Path(__file__).parents[1]
    path = os.pathsep.join([str(root), str(root.parent)])
    parent = subprocess.Popen(
        [sys.executable, speed_children.__file__],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    try:
        child, deaf = parent.stdout.readline().split()
        assert deaf == "True"
        assert is_alive(child)
        if how == signal.SIGINT:
            os.killpg(parent.pid, how)
        else:
            parent.kill()
        _, errors = parent.communicate(timeout=60)  # ends when both have closed it
        for _ in range(300):
            if not is_alive(child):
                break
            time.sleep(0.1)
        assert not is_alive(child)
    finally:
        parent.kill()
    assert errors.count("Traceback") == (how == signal.SIGINT)  # the parent's own, none of the child


# --- the whole way


PLUGIN = '''
from dataclasses import dataclass
import torch
from methods import Pruner, register


class Scaled(torch.nn.Module):
    """A layer of the plugin's own."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, *args, **kwargs):
        return self.inner(x, *args, **kwargs)


@register("wraps")
@dataclass(frozen=True)
class Wraps(Pruner):
    takes_ratio = False

    def plan(self, model, ratio):
        return {}

    def prune(self, model, calibration, ratio):
        layers = model.layers[:4]
        for layer in layers:
            layer.module = Scaled(layer.module)
        model.set_layers(layers)
        return {}


@register("stays")
@dataclass(frozen=True)
class Stays(Wraps):
    def prune(self, model, calibration, ratio):
        model.model.hook = lambda x: x
        return {}
'''


@pytest.fixture(scope="session")
def plugin(tmp_path_factory):
    """One file for all tests, since a process knows each method from one place."""
    path = tmp_path_factory.mktemp("plugins") / "mine.py"
    path.write_text(PLUGIN)
    return path


@pytest.fixture
def command(model_folder, text_file, plugin, tmp_path):
    return [
        *("speed", str(model_folder), "--calibration", str(text_file), "--calibration-sequences", "4"),
        *("--calibration-length", "24", "--rounds", "6", "--prefill", "8", "--decode", "4", "--decode-steps", "2"),
        *("--device", "cpu", "--threads", "1", "--out", str(tmp_path / "run"), "--plugin", str(plugin)),
        "--no-isolate",
    ]


def test_the_command_times_what_methods_and_plugins_make(command, tmp_path, capsys):
    assert main([*command, "--methods", "wraps,stays", "--pin", "0"]) == 0
    out = capsys.readouterr().out
    records = {record.cell.method: record for record in load_run(tmp_path / "run")}
    for name in ("dense", "wraps"):
        measured = records[name].measured
        assert not measured.task_scores and not measured.text_scores
        found = measured.speed
        assert found.failed is None
        assert [(point.kind, point.batch) for point in found.points] == [("prefill", 1), ("decode", 1)]
        for point in found.points:
            assert len(point.rounds.dense) == len(point.rounds.pruned) == 6
            assert point.speedup_low <= point.speedup <= point.speedup_high
            assert point.speedup_by_macs == 1 if name == "dense" else point.speedup_by_macs > 1
        own = {"threads": 1, "cores": 1, "devices": ("cpu",), "clock": "monotonic", "attention": "sdpa"}
        assert found.setup == TimedSetup(**own)
        assert [point.kind for point in found.memory.points] == ["prefill", "decode"]
        assert all(point.peak_resident_bytes > 2**27 for point in found.memory.points)
        assert found.widths["up"].multiple_of == 8
        assert found.machine.before is not None
    assert records["stays"].status == "ok"
    assert "cannot be sent to another process" in records["stays"].measured.speed.failed
    assert records["stays"].measured.timed_points == ()
    assert "stays [LlamaForCausalLM cannot be sent" in out.replace("\n  ", " ")
    assert sum(line.startswith("wraps ") for line in out.splitlines()) == 3  # two points and one row of sizes


def test_speed_is_part_of_a_run_and_its_failure_is_no_failure_of_the_cell(command, tmp_path, monkeypatch, capsys):
    killed = isolation.Failure("crashed", "killed by SIGKILL")
    monkeypatch.setattr(isolation, "run", lambda *_, **options: options["hear"]({"setup": TimedSetup()}) or killed)
    assert main([*command, "--methods", "drop:layers=1"]) == 0
    for record in load_run(tmp_path / "run"):
        assert record.measured.speed == Speed(points=(), setup=TimedSetup(), failed="killed by SIGKILL")
    out = " ".join(capsys.readouterr().out.split())
    assert "its speed is missing: dense, drop:layers=1 [killed by SIGKILL]." in out


def test_where_the_dense_model_has_no_room_the_pruned_one_in_files_is_timed_alone(
    command, tmp_path, monkeypatch, capsys
):
    run, found = [*command[:-1], "--methods", "flap", "--ratio", "0.3", "--no-isolate"], []
    run[run.index("--out") + 1] = str(tmp_path / "beside")
    assert main(run) == 0
    capsys.readouterr()
    monkeypatch.setattr(job, "needs_of", lambda *_, **__: MemoryNeeds(0, 0, in_files=True, alone=True))
    run[run.index("--out") + 1] = str(tmp_path / "alone")
    assert main(run) == 0
    out = capsys.readouterr().out
    found = [load_run(tmp_path / where) for where in ("beside", "alone")]
    beside, alone = ({one.cell.method: one.measured for one in records} for records in found)
    assert alone["dense"].speed == Speed(points=(), failed=timed_cell.NO_ROOM)
    assert alone["flap"].weights_in == "files"
    assert alone["flap"].pruned_sha256 == beside["flap"].pruned_sha256
    points = [map(to_plain, each["flap"].timed_points) for each in (beside, alone)]
    for one, other in zip(*points, strict=True):
        work = {name: value for name, value in one.items() if name.startswith(("speedup_by", "kind", "batch"))}
        assert {name: other[name] for name in work} == work
        assert other["out_of_memory"] == ["dense"]
        assert set(other["rounds"]) == {"pruned"}
        assert other["pruned_ms"] > 0
        assert {"speedup", "speedup_low", "dense_ms"} <= one.keys() - other.keys()
    assert out.count("no memory: dense") == 2
    assert f"dense [{timed_cell.NO_ROOM}]" in out.replace("\n  ", " ")
    assert "alone: The dense model had no room in memory" in out.replace("\n  ", " ")
    assert "flap at 0.3 [prefill at batch 1, decode at batch 1]" in out.replace("\n  ", " ")
    assert main(["report", str(tmp_path / "alone"), "--explain"]) == 0
    explained = capsys.readouterr().out
    assert "in turns with dense" not in explained
    assert "one token behind 4 tokens, batch 1, timed alone, up to 6 rounds" in " ".join(explained.split())


def test_of_several_draws_the_first_is_timed(command, tmp_path, monkeypatch):
    monkeypatch.setattr(timed_cell, "time_beside_dense", lambda model, cell, threads, **_: Speed(points=()))
    chosen = ["--methods", "drop-random:draws=3,drop-random:seed=9", "--ratio", "0.4", "--seed", "5"]
    assert main([*command, *chosen]) == 0
    records = [record for record in load_run(tmp_path / "run") if record.cell.method != "dense"]
    timed = {record.cell.parameters["seed"]: record.measured.speed is not None for record in records}
    assert timed == {5000: True, 5001: False, 5002: False, 9: True}
    assert main([*command, "--methods", "drop-random:draws=1", "--ratio", "0.4"]) == 0
    (single,) = (one for one in load_run(tmp_path / "run") if one.cell.parameters.get("draws") == 1)
    assert single.measured.speed is not None


# --- what a user may ask, and what is shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "5"], "speed-rounds is 0 for no speed, or at least 6"),
        (["--batch", "0"], "--batch is a list of whole numbers, each 1 or more; got 0"),
        (["--batch", "none"], "--batch is a list of whole numbers, each 1 or more; got none"),
        (["--prefill", "none", "--decode", "none"], "both are none"),
        (["--prefill", "many"], "--prefill is a list of whole numbers, each 1 or more; got 'many'"),
        (["--max-batch", "-1"], "max-batch is 0 for no sweep"),
        (["--cache", "paged"], "invalid choice: 'paged'"),
        (["--speed-limit", "0"], "--speed-limit is a positive number"),
        (["--decode-steps", "0"], "--decode-steps is a positive number"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, capsys):
    assert main(["speed", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def a_record(points, **more):
    from made_records import LACO, changed

    return changed(LACO, "measured", "speed", to={"points": points, **more})


def test_a_report_shows_every_batch_what_ran_out_and_what_is_doubtful():
    from made_records import point

    shaky = point("decode", 8, 64, 10.0, pruned_cv=0.34, flags=["noisy"], speedup_by_bytes=1.6)
    full = {"kind": "decode", "batch": 16, "context": 64, "out_of_memory": ["dense"], "pruned_ms": 5.0, "flags": []}
    lost = {"kind": "decode", "batch": 32, "context": 64, "out_of_memory": ["dense", "pruned"]}
    wrong = {"kind": "prefill", "batch": 32, "length": 128, "failed": "pruned model: ValueError: no"}
    meanwhile = {"flags": ["busy"], "other_cores": 1.25, "stolen_cores": 0.5}
    record = a_record([point("prefill", 1, 128, 57.0), shaky, full, lost, wrong], machine=meanwhile)
    lines = speed_to_terminal([record]).splitlines()
    rows = [line.split() for line in lines if line.startswith("laco ")]
    assert " ".join(rows[0]) == "laco at 0.3 28.9 % prefill 128 1 57.0 0.445 2,246 1.40x ± 0.03 1.50x"
    assert " ".join(rows[1]).endswith("decode 64 8 10.0 10.0 800 2.00x ± 0.04! 1.50x / 1.60x")
    assert " ".join(rows[2]).endswith("decode 64 16 5.00 5.00 3,200 no memory: dense -")
    assert " ".join(rows[3]).endswith("decode 64 32 - - - no memory: both -")
    assert " ".join(rows[4]).endswith("prefill 128 32 - - - failed -")
    text = " ".join(line.strip() for line in lines)
    assert ": laco at 0.3 [decode at batch 8 (± 34 %)]." in text
    assert "not timed: A timing has failed, so that its speed is missing: laco at 0.3 [pruned model: " in text
    assert "busy: Other work ran during the timing: laco at 0.3 [1.2 cores taken, 0.5 withheld]." in text
    assert max(map(len, lines)) <= 100
    assert "## Speed" in to_markdown([record])
    assert "## Speed" not in to_markdown([a_record([point("prefill", 1, 128, 57.0), point("decode", 1, 64, 14.0)])])


def test_a_report_of_a_gpu_has_both_modes_shares_and_what_the_memory_is_worth():
    from made_records import DENSE, changed, point

    def step(batch, mode, dense, ms, **more):
        reached = {"pruned_p99": 2 * ms, "pruned_bandwidth": 0.62, "pruned_matrix_rate": 0.034}
        return point("decode", batch, 64, ms, mode=mode, **reached, **more) | {"dense_ms": dense}

    def taken(batch, size):
        return {"kind": "decode", "batch": batch, "context": 64, "mode": "graph", "peak_reserved_bytes": size * 2**30}

    eager = step(1, "eager", 5.0, 5.0, flags=["launch_bound"])
    points = [step(1, "graph", 4.0, 2.0), eager, step(2, "graph", 4.0, 2.5), step(4, "graph", 8.0, 4.0)]
    ours = {"points": [taken(1, 1), taken(2, 2), taken(4, 6)]}
    theirs = {"points": [taken(1, 2), taken(2, 4), taken(4, 8)]}
    dense = changed(DENSE, "measured", "speed", to={"points": points, "memory": theirs})
    pruned = a_record(points, memory=ours)
    text = " ".join(speed_to_terminal([dense, pruned]).split())
    assert "laco at 0.3 decode 64 graph 1 28.9 % 2.00" in text
    assert "laco at 0.3 decode 64 eager 1 28.9 % 5.00" in text
    assert quantity_of_column("kept").show(0.62) + " " + quantity_of_column("kept").show(0.034) in text
    assert "launch bound: The host launches kernels more slowly than the GPU runs them" in text
    assert "laco at 0.3 [decode at batch 1, eager]" in text
    (most,) = [table for table in build_view("speed", [dense, pruned]) if table.name == "speed-throughput"]
    assert [(row.label, *(cell.text for cell in row.cells)) for row in most.rows] == [
        ("dense", "64", "-", "500", "2", "-", "-"),
        ("laco at 0.3", "64", "-", "500", "2", "1,000", "4"),
        ("laco at 0.3", "64", "4.00 GiB", "500", "2", "800", "2"),
    ]


def test_a_width_that_suits_no_kernel_stands_out():
    tiles = {"qkv": 64, "out": 64, "up": 1, "down": 1, "head": 64}
    record = a_record([], widths={role: {"multiple_of": tile} for role, tile in tiles.items()})
    assert "64; up 1; down 1" in speed_to_terminal([record])


def test_the_main_table_has_the_first_batch_that_was_asked_for():
    from made_records import point

    points = [point("prefill", 1, 128, 57.0), point("prefill", 2, 128, 200.0)]
    record = a_record([points[1], points[0]])
    text = to_markdown([record])
    assert "1.40x ± 0.03" in text
    assert re.search(r"\| prefill +\| a prompt of 128 tokens, batch 1, in turns with dense, up to 12 rounds", text)
