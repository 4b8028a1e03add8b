"""Estimates: of a cell that was measured it is what that took, and it grows as the work does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import tiny
from made_cells import made_cell
from made_records import changed

import methods
from bench.plan.cell import Cell, Stage
from bench.plan.protocol import Recipe, protocol_of_profile
from bench.records.measured import Measured, TaskScore, TextScore
from bench.records.record import Record
from bench.schedule import estimate
from bench.schedule.estimate import ESTIMATED, LOAD, MEASURED, Amounts, Cost, Estimator, format_duration, is_of_machine
from bench.schedule.memory_needs import Footprint
from bench.schedule.shape import Shape
from bench.system import rates
from bench.system.rates import Rates
from methods.model.decoder import Decoder
from methods.model.sizes import macs_per_token, parameters

SHAPE = Shape(
    *(30, 576, 49152, 134_515_008, 106_203_456, 3_540_096.0, 106_168_320, 34_560, 28_311_552),
    **{"mlp": 1536, "heads": 576, "keys": 384},
)
COST = Cost(SHAPE, Rates(1e11, 5e10, 1e10), 4)
COSTS = {"m": COST}
AMOUNTS = Amounts(8192, {"hellaswag": 100, "piqa": 100})


def cell(method: str, ratio: float | None = 0.2, **changes) -> Cell:
    given = {"layers": "3"} if method == "drop" else {}
    parameters = methods.parameters_of_pruner(methods.make(method, given))
    return replace(
        made_cell(method, ratio, protocol_of_profile("quick"), parameters=parameters),
        **changes,
    )


def record(of: Cell, seconds: dict[str, float], windows: int = 16, documents: int = 100, **measured) -> Record:
    text = {"perplexity": 20.0, "tokens": 511 * windows, "drawn": True, "stride": 512, "bos": "none", "sha256": "a"}
    task = {"main": "acc", "metrics": {}, "version": 1, "available": 10_000, "fewshot": 0}
    found = {
        "parameters": 1,
        "seconds": seconds,
        "perplexity": {"wiki": TextScore(**text, windows=windows, window=512)},
        "tasks": {name: TaskScore(**task, documents=documents) for name in ("hellaswag", "piqa")},
    }
    return Record(of, "ok", {}, {}, Measured(**found | measured))


@pytest.mark.parametrize("both", [True, False])
def test_what_a_run_over_several_models_learns_of_one_is_scaled_to_another(monkeypatch, both):
    """A machine that takes three times what it should for a small model does so for one of four times its size.

    A record of a model that the run does not have teaches nothing, since nobody knows what that computes.
    """
    shapes = {
        "m": SHAPE,
        "large": replace(
            SHAPE, **{name: 4 * getattr(SHAPE, name) for name in ("layer", "macs", "inner", "parameters", "mlp")}
        ),
    }
    monkeypatch.setattr(estimate, "shape_of", lambda model, trust: shapes[model])
    monkeypatch.setattr(estimate, "measure_rates", lambda *_: COST.rates)
    monkeypatch.setattr(estimate, "is_of_machine", lambda *_: True)
    small, large = cell("shortgpt"), cell("shortgpt", model="large")
    costs = {model: Cost(shape, COST.rates, 4) for model, shape in shapes.items()}
    took = {stage: 3 * seconds for stage, seconds in costs["m"].seconds(small, AMOUNTS).items()}
    known = [record(small, took, prune_seconds=took["prune"])]
    every = [small, large] if both else [large]
    how = {"amounts": lambda _: AMOUNTS, "threads": lambda _: 1, "timed_threads": 1}
    found = estimate.estimate_cells(every, known, **how)
    for of in every:
        wanted = {
            stage: (3 if both else 1) * seconds for stage, seconds in costs[of.model].seconds(of, AMOUNTS).items()
        }
        assert found[of.key].stages == pytest.approx(wanted)
        assert (found[of.key].basis == MEASURED) == both
    if both:
        assert found[large.key].seconds > 1.5 * found[small.key].seconds


def test_of_a_cell_that_was_measured_an_estimate_is_what_it_took():
    laco, flap = cell("laco"), cell("flap", 0.3)
    took = {"load": 0.7, "prune": 44.0, "perplexity": 9.0, "tasks": 33.0, "speed": 25.0, "checks": 3.0}
    other = {"load": 0.9, "prune": 3.0, "perplexity": 19.0, "tasks": 53.0, "speed": 45.0, "checks": 9.0}
    estimator = Estimator(COSTS)
    for of, seconds in ((laco, took), (flap, other)):
        estimator.learn(record(of, seconds, prune_seconds=seconds["prune"]))
    for of, seconds in ((laco, took), (flap, other)):
        found = estimator.estimate(of, AMOUNTS)
        assert found.stages == pytest.approx(seconds)
        assert found.basis == MEASURED
    unlike = estimator.estimate(cell("slicegpt"), AMOUNTS)  # never pruned so: by the rate that the others have shown
    computed = COST.seconds(cell("slicegpt"), AMOUNTS)
    known = [COST.seconds(laco, AMOUNTS), COST.seconds(flap, AMOUNTS)]
    stages = ("perplexity", "tasks", "checks")
    real = sum(took[stage] + other[stage] for stage in stages)
    assert unlike.stages["prune"] == pytest.approx(
        computed["prune"] * real / sum(one[stage] for one in known for stage in stages)
    )
    assert Estimator(COSTS).estimate(laco, AMOUNTS).basis == ESTIMATED


def test_more_windows_and_documents_take_as_much_more():
    one, estimator = cell("laco"), Estimator(COSTS)
    estimator.learn(record(one, {"prune": 20.0, "perplexity": 9.0, "tasks": 33.0}, prune_seconds=20.0))
    for times in (2, 5):
        amounts = Amounts(AMOUNTS.text_tokens * times, {task: 100 * times for task in AMOUNTS.documents})
        found = estimator.estimate(one, amounts).stages
        assert found["perplexity"] == pytest.approx(9.0 * times)
        assert found["tasks"] == pytest.approx(33.0 * times)
        assert found["prune"] == pytest.approx(20.0)
    longer = cell("shortgpt", protocol=protocol_of_profile("quick", calibration_sequences=128))
    first, second = (COST.seconds(of, AMOUNTS)["prune"] for of in (cell("shortgpt"), longer))
    assert second == pytest.approx(2 * first)


def test_a_search_that_goes_on_costs_what_is_left_of_it():
    for method in ("sleb", "blockpruner", "finercut", "laco-ls"):
        assert estimate.reuse_of_method(method) == "removals"
        whole, start = (COST.seconds(cell(method, ratio), AMOUNTS)["prune"] for ratio in (0.3, 0.1))
        rest = COST.seconds(cell(method, 0.3), AMOUNTS, known_ratio=0.1)["prune"]
        assert rest < whole
        both = rest + start  # each of which reads the dense model's states
        assert both > whole if method == "laco-ls" else both == pytest.approx(whole, rel=0.2)  # which ends anew
    known = record(cell("sleb", 0.1), {"prune": 50.0}, prune_seconds=50.0)
    went_on = record(cell("sleb", 0.3), {"prune": 70.0}, prune_seconds=120.0)
    estimator = Estimator(COSTS)
    estimator.learn(known)
    estimator.learn(went_on)
    assert estimator.estimate(cell("sleb", 0.3), AMOUNTS).stages["prune"] == pytest.approx(120.0)


@pytest.mark.parametrize("name", ["puzzle", "shortened-llama", "shortened-llama-taylor"])
def test_a_look_at_the_dense_model_is_planned_once_for_all_ratios_and_compensations_of_a_run(name):
    every = [cell(label, ratio) for ratio in (0.1, 0.3) for label in (name, f"{name}+refit")]
    known = estimate.find_known_ratios(every, ())
    assert [one.key in known for one in every] == [False, True, True, True]
    seconds = [COST.seconds(one, AMOUNTS, known.get(one.key, 0.0))["prune"] for one in every]
    alone = [COST.seconds(one, AMOUNTS)["prune"] for one in every]
    assert seconds[0] == alone[0]
    assert all(usual - less > alone[0] / 2 for usual, less in zip(alone[1:], seconds[1:], strict=True))
    again = estimate.find_known_ratios(every, {every[0].key})  # its record says nothing of what it has seen
    assert [one.key in again for one in every] == [False, False, True, True]
    behind = [replace(one, earlier=(Stage("shortgpt", {}, 0.05),)) for one in every]
    assert not estimate.find_known_ratios(behind, ())  # the model that they prune is another


def test_a_search_knows_what_a_record_has_found_and_what_is_found_anew_is_not_known():
    first, second = cell("sleb", 0.1), cell("sleb", 0.3)
    for done in ((), {first.key}):
        assert estimate.find_known_ratios([first, second], done) == {second.key: 0.1}
    assert not estimate.find_known_ratios([cell("flap", 0.1), cell("flap", 0.3)], ())


def test_every_method_has_an_estimate_and_those_that_look_at_nothing_cost_nothing():
    for name, kind in methods.load().items():
        if kind.__module__.startswith("methods."):
            found = COST.seconds(cell(name, 0.2), AMOUNTS)
            assert (found.get("prune", 0.0) == 0.0) == (kind.looks_at == "nothing"), name
    assert COST.seconds(cell("shortgpt+ghost"), AMOUNTS)["prune"] > COST.seconds(cell("shortgpt"), AMOUNTS)["prune"]
    healed = COST.seconds(cell("laco", healing=Recipe(tokens=10_000)), AMOUNTS)
    assert healed["heal"] < COST.seconds(cell("laco", healing=Recipe(tokens=20_000)), AMOUNTS)["heal"]
    for answers, stages in ((False, ["perplexity"]), (True, ["perplexity", "tasks"])):
        measured = Recipe(tokens=10_000, at=(0, 5000), answers=answers)
        while_healing = COST.seconds(cell("laco", healing=measured), AMOUNTS)["heal"] - healed["heal"]
        assert while_healing == pytest.approx(2 * sum(healed[stage] for stage in stages))
    untimed = COST.seconds(
        cell("laco", protocol=protocol_of_profile("quick", speed_rounds=0, checks=False)), Amounts(0, {})
    )
    assert set(untimed) == {"load", "prune"}


def test_a_teacher_reads_each_sequence_once_and_is_loaded(monkeypatch):
    large = replace(SHAPE, macs=10 * SHAPE.macs, inner=10 * SHAPE.inner, parameters=10 * SHAPE.parameters)
    monkeypatch.setattr(estimate, "shape_of", lambda model, trust: {"large": large}[model])
    recipes = [Recipe(loss="kl", tokens=20_000, passes=2, teacher=teacher) for teacher in ("large", None)]
    taught, alone = (COST.seconds(cell("laco", healing=recipe), AMOUNTS)["heal"] for recipe in recipes)
    read = [replace(COST, shape=shape)._forward(39 * 256, 256, 1.0) for shape in (large, SHAPE)]
    loaded = LOAD * 4 * large.parameters / COST.rates.bytes
    assert taught - alone == pytest.approx(read[0] - read[1] + loaded)


def test_what_is_solved_in_float64_takes_as_long_as_float64_does():
    """Inverses, eigenvalues and singular values; none of it is in a method that only looks at states."""
    slow = replace(COST, rates=COST.rates._replace(exact=COST.rates.exact / 10))
    few = protocol_of_profile("quick", calibration_sequences=16)
    for method in ("obs", "tyr", "slicegpt", "svd-llm"):
        usual, longer = (cost.seconds(cell(method, protocol=few), AMOUNTS)["prune"] for cost in (COST, slow))
        assert 1.5 * usual < longer < 10 * usual, method
    for method in ("shortgpt", "flap", "sleb"):
        assert slow.seconds(cell(method), AMOUNTS) == COST.seconds(cell(method), AMOUNTS)


def test_2ssp_is_planned_with_about_the_trials_that_it_makes():
    """It made 0, 30 and 87 at three ratios of SmolLM2's decoder."""
    for share, made in ((0.1, 0), (0.2, 30), (0.3, 87)):
        forwards = methods.make("2ssp").forwards(30, share * 30, 2048)
        assert 2 * (forwards - 1) == pytest.approx(made, abs=10)  # a third of an attention


def test_the_sizes_of_a_model_are_those_that_are_counted_elsewhere():
    model = Decoder(tiny("llama"))
    shape = Shape.of(model)
    assert shape.parameters == parameters(model)
    assert shape.body(1, 40) + shape.head == macs_per_token(model, 40)
    assert shape.kept(None) == 1.0
    share = 2 * shape.layer / shape.parameters
    assert shape.kept(share) == pytest.approx(1 - 2 / shape.layers, rel=0.02)


def test_a_failed_record_teaches_nothing_and_one_of_another_machine_is_not_looked_at():
    estimator = Estimator(COSTS)
    failed = replace(record(cell("laco"), {"prune": 999.0}), status="error", error="no")
    estimator.learn(failed)
    assert estimator.estimate(cell("laco"), AMOUNTS).basis == ESTIMATED
    here = {"cpu": "x", "threads": 2, "device": "cpu", "dtype": "float32"}
    of = replace(record(cell("laco"), {}), environment=here | {"date": "d"})
    assert is_of_machine(of, here)
    for name, value in (("cpu", "y"), ("threads", 1), ("dtype", "bfloat16"), ("gpu", "H")):
        assert not is_of_machine(of, here | {name: value})


@pytest.mark.parametrize(("field", "value"), [("speed_rounds", 3), ("cache", "paged")])
def test_a_record_that_this_version_would_not_measure_teaches_nothing(field, value):
    """A run beside this one may be of a later version, or of an earlier one with other bounds."""
    estimator, like = Estimator(COSTS), record(cell("laco"), {"prune": 999.0})
    estimator.learn(changed(like, "cell", "protocol", field, to=value))
    assert estimator.estimate(cell("laco"), AMOUNTS).basis == ESTIMATED


def test_memory_grows_with_what_is_held():
    footprint = Footprint(SHAPE, 4, 2**29)
    weights, untimed = 4 * SHAPE.parameters, protocol_of_profile("quick", speed_rounds=0, calibration_sequences=16)

    def host(method: str, **changes) -> int:
        return footprint.needs(cell(method, **{"protocol": untimed} | changes)).host

    assert host("dense") > 2**29 + weights
    assert host("shortened-llama-taylor") >= host("shortgpt") >= host("dense")
    assert host("laco", healing=Recipe(kind="full")) > host("laco", healing=Recipe()) >= host("laco")
    assert (
        host("dense", protocol=protocol_of_profile("quick")) >= 2 * 2**29 + 3 * weights
    )  # the process that times holds two
    on_gpu = footprint.needs(cell("laco", device="cuda", protocol=untimed))
    assert on_gpu.device > weights
    assert on_gpu.host == 2**29 + weights  # of a model that is one shard
    large = replace(footprint, shape=replace(SHAPE, parameters=10**10)).needs(
        cell("laco", device="cuda", protocol=untimed)
    )
    assert large.host == 2**29 + 5 * 10**9 < large.device


def test_the_machine_says_how_fast_it_is(monkeypatch):
    taken = []

    def fastest(call, device, seconds):
        call()
        taken.append(call)
        return 0.5

    monkeypatch.setattr(rates, "time_fastest", fastest)
    found = rates.measure_rates.__wrapped__("cpu", torch.float32, 1)
    assert found.macs == 2 * rates.TOKENS["cpu"] * 8 * rates.WIDTH**2
    assert found.exact == 2 * rates.WIDTH**3
    assert found.bytes == 2 * 2 * rates.COPIED
    assert len(taken) == 3


def test_amounts_are_those_of_the_record():
    assert Amounts.of(record(cell("laco"), {})) == AMOUNTS


def test_a_coarse_duration_has_one_digit():
    assert [format_duration(seconds, is_coarse=True) for seconds in (4.2, 76, 1620, 12_240, 200_000)] == [
        *("4 s", "80 s", "30 min", "3 h", "2 days")
    ]
