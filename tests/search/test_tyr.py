"""Týr: its matrices are those of optimal brain surgery, its swaps keep the parameters, and it finds the best of all."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
import torch
from conftest import LAYERS, tiny
from tiny_methods import calibration

import methods
from methods.errors import OutOfReach
from methods.model import calibration as sweep_log
from methods.model.calibration import SweepLog, SweepLogs
from methods.model.decoder import Decoder, make_twin
from methods.model.sizes import parameters
from methods.model.structures import structures_of
from methods.search.tyr import Levels, Tyr, state_of, widths_of
from methods.trials import evolution
from methods.trials.blocks import Trial
from methods.trials.evolution import Generations
from methods.width.obs import OBS, Problem

TOKENS = calibration().ids.numel()
RATIO = 0.3


def started(ratio: float = RATIO, layers: int = LAYERS, **how: object):
    """A model, and what its structures have left where all layers lose the same, with the levels of the first round."""
    model, tyr = Decoder(tiny("llama", layers=layers)), Tyr(**how)
    structures, counts = structures_of(model), OBS().plan(model, ratio)["removed_per_layer"]
    left = {(each.number, each.kind): each.size - counts[each.kind] for each in structures}
    return model, tyr, left, tyr.around(left, structures, 0)


def cut_by_obs(model: Decoder, left: dict) -> Decoder:
    pruned = make_twin(model)
    structures = structures_of(pruned)
    gone = {(each.number, each.kind): each.size - left[each.number, each.kind] for each in structures}
    OBS().sweep(pruned, structures, {at: count for at, count in gone.items() if count}, calibration())
    return pruned


def parameters_with(model: Decoder, left: dict) -> int:
    """Count the parameters of a model of whose structures so many units are left, whichever they are."""
    pruned = make_twin(model)
    for each in structures_of(pruned):
        each.drop(range(each.size - left[each.number, each.kind]))
    return parameters(pruned)


def test_at_the_levels_that_fed_them_the_matrices_are_those_of_obs():
    """The layers that a trial makes there give the same states as a model that obs has cut so."""
    model, tyr, left, levels = started()
    supernet = tyr.supernet(model, calibration(), levels, left)
    narrowed = [
        supernet(layer, [one for one in state_of(left) if one.layer == l]) for l, layer in enumerate(model.layers)
    ]
    pruned = cut_by_obs(model, left)
    for made, wanted in zip(narrowed, pruned.layers, strict=True):
        ours, theirs = dict(made.module.named_parameters()), dict(wanted.module.named_parameters())
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_levels_are_nested_and_the_whole_one_is_the_dense_matrix():
    model, tyr, left, _ = started(ratio=0.1)
    levels = Levels({at: list(range(1, 3 if at[1] == "kv_heads" else 49)) for at in left}, {})
    supernet = tyr.supernet(model, calibration(), levels, left)
    for (layer, kind), several in supernet.matrices.items():
        matrix = model.layers[layer].out if kind == "kv_heads" else model.layers[layer].down
        torch.testing.assert_close(several[levels.units[layer, kind][-1]], matrix.weight, rtol=0, atol=1e-6)
        assert len(set(supernet.order[layer, kind])) == levels.units[layer, kind][-1] - 1
        wide = matrix.in_features // levels.units[layer, kind][-1]
        assert [matrix.shape[1] for matrix in several.values()] == [wide * units for units in levels.units[layer, kind]]


@pytest.mark.parametrize("kind", ["kv_heads", "channels"])
def test_matrices_of_one_factor_are_those_that_are_solved_for_one_by_one(kind):
    model = Decoder(tiny("llama").double())
    structure = next(each for each in structures_of(model, kind) if each.number == 1)
    columns, of = structure.writer.in_features, torch.Generator().manual_seed(3)
    X = torch.randn(2 * columns, columns, generator=of, dtype=torch.float64)
    problem = Problem(structure, X.T @ (X + X.roll(1, 1)) + columns * torch.eye(columns), 0.01)
    problem.H.copy_((problem.H + problem.H.T) / 2)
    order = problem.cheapest(structure.size - 1)
    left = list(range(1, structure.size + 1))
    for units, V in zip(left, problem.nested(order, left), strict=True):
        alone = problem.without(order[: structure.size - units]).V
        torch.testing.assert_close(V, alone, rtol=1e-9, atol=1e-12)
        assert V.is_contiguous()


@pytest.mark.nightly
def test_swaps_keep_the_parameters_and_stay_among_the_levels():
    model, tyr, left, _ = started(levels=5)
    left |= {(l, "kv_heads"): 1 + l % 2 for l in range(LAYERS)}
    levels = tyr.around(left, structures_of(model), 0)
    dense, generator, seen = parameters(model), random.Random(0), set()
    children = levels.children([state_of(left)], 40, 4, generator)
    assert len(set(children)) == 40
    for child in children:
        found = widths_of(child)
        seen.update(found.items())
        assert found.keys() == left.keys()
        assert all(units in levels.units[at] for at, units in found.items())
        assert parameters_with(model, found) == parameters_with(model, left) < dense
    assert {kind for (l, kind), units in seen if units != left[l, kind]} == {"kv_heads", "channels"}


def test_where_no_swap_is_possible_a_state_stays_as_it_is():
    levels = Levels({(0, "channels"): [4, 8], (1, "kv_heads"): [1, 2]}, {(0, "channels"): 1, (1, "kv_heads"): 2})
    left = {(0, "channels"): 4, (1, "kv_heads"): 2}
    levels.swap(left, random.Random(0))
    assert left == {(0, "channels"): 4, (1, "kv_heads"): 2}


def test_the_best_of_all_states_is_found():
    """Of all ways to give the MLPs one of three widths with as many channels in all, where every token is compared."""
    layers = 5
    model, _, left, levels = started(layers=layers)
    start = {at: units for at, units in left.items()}
    narrow = {at: [units] for at, units in left.items()}
    narrow |= {(l, "channels"): [start[l, "channels"] + step for step in (-9, 0, 9)] for l in range(layers)}
    levels = Levels(narrow, levels.alike)
    tyr = Tyr(rounds=1, generations=20, offspring=12, tokens=TOKENS, final_tokens=TOKENS)
    supernet = tyr.supernet(model, calibration(), levels, left)
    every = [
        state_of(start | {(l, "channels"): start[l, "channels"] + 9 * step for l, step in enumerate(steps)})
        for steps in itertools.product((-1, 0, 1), repeat=layers)
        if sum(steps) == 0
    ]
    losses = Trial(model, calibration(), "kl", narrow=supernet).losses(every)
    best = widths_of(every[min(range(len(every)), key=losses.__getitem__)])
    tyr = _Fixed(levels, rounds=1, generations=20, offspring=12, tokens=TOKENS, final_tokens=TOKENS)
    found, said = tyr.search(model, calibration(), left)
    assert len(every) == 51
    assert found == best != left
    assert said["kl"][-1] == pytest.approx(min(losses), rel=1e-4)
    assert all(later <= sooner * (1 + 1e-6) for sooner, later in itertools.pairwise(said["kl"]))


class _Fixed(Tyr):
    """A search over given levels."""

    def __init__(self, levels: Levels, **how: object) -> None:
        super().__init__(**how)
        object.__setattr__(self, "given", levels)

    def around(self, *_: object) -> Levels:
        return self.given


def test_the_model_is_cut_to_what_was_found_with_as_many_parameters_as_planned():
    model, made = Decoder(tiny("llama")), methods.make("tyr", {"rounds": "2", "generations": "4", "offspring": "6"})
    planned, equal = made.plan(model, RATIO), OBS().prune(Decoder(tiny("llama")), calibration(), RATIO)
    decided = made.prune(model, calibration(), RATIO)
    assert decided["parameters"] == planned["parameters"] == parameters(model) == equal["parameters"]
    assert decided["channels"] == [layer.down.in_features for layer in model.layers]
    assert len(set(decided["channels"])) > 1
    assert (decided["generations"], decided["of_generations"], len(decided["kl"])) == (8, 8, 8)
    assert sum(map(len, decided["removed_channels"])) == sum(map(len, equal["removed_channels"]))


def test_steps_are_halved_in_each_round_and_channels_stay_multiples():
    model, tyr, left, _ = started(multiple=3)
    left = {at: 30 if at[1] == "channels" else 2 for at in left}
    structures = structures_of(model)
    first, second = (tyr.around(left, structures, number).units for number in (0, 1))
    assert first[0, "channels"] == [6, 12, 18, 24, 30, 36, 42, 48]  # of 48
    assert second[0, "channels"] == [18, 21, 24, 27, 30, 33, 36, 39, 42]
    assert first[0, "kv_heads"] == second[0, "kv_heads"] == [1, 2]


def test_the_search_ends_when_its_minutes_are_over_and_says_so(monkeypatch):
    clock = itertools.count(0.0, 25.0)
    monkeypatch.setattr(evolution.time, "monotonic", lambda: next(clock))
    made = methods.make("tyr", {"rounds": "3", "generations": "9", "offspring": "3", "minutes": "1"})
    decided = made.prune(Decoder(tiny("llama")), calibration(), RATIO)
    assert (decided["generations"], decided["of_generations"], len(decided["kl"])) == (2, 27, 2)


@pytest.mark.parametrize("at", [1, 2, 3])  # behind the first generation, behind the first round, and within the second
def test_a_search_that_was_interrupted_goes_on_behind_its_last_generation(at, tmp_path, monkeypatch):
    """To the same end; the matrices of a round whose generations are all known are made no more."""
    monkeypatch.setattr(sweep_log, "SECONDS", 0.0)
    given = Tyr(rounds=2, generations=2, offspring=3, levels=3, tokens=48, final_tokens=TOKENS)
    add, supernet, made, generations = SweepLog.add, Tyr.supernet, [], itertools.count()

    def found() -> dict:
        tokens = replace(calibration(), sweeps=SweepLogs(tmp_path / "kept"))
        return given.prune(Decoder(tiny("llama")), tokens, RATIO)

    def interrupted(self: SweepLog, *told: object) -> None:
        if self.folder and next(generations) == at:  # those of the matrices keep nothing
            raise KeyboardInterrupt
        add(self, *told)

    def counted(self: Tyr, *of: object):
        made.append(of)
        return supernet(self, *of)

    whole = given.prune(Decoder(tiny("llama")), calibration(), RATIO)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SweepLog, "add", interrupted)
        found()
    monkeypatch.setattr(Tyr, "supernet", counted)
    assert found() == whole
    assert len(made) == (2 if at < 2 else 1)


def test_minutes_of_an_interrupted_attempt_count(tmp_path, monkeypatch):
    monkeypatch.setattr(SweepLog, "_read", lambda self, *_: setattr(self, "seconds", 61.0))
    tokens = replace(calibration(), sweeps=SweepLogs(tmp_path))
    made = methods.make("tyr", {"rounds": "2", "generations": "2", "offspring": "3", "minutes": "1"})
    assert made.prune(Decoder(tiny("llama")), tokens, RATIO)["generations"] == 0


def test_a_state_that_is_parent_and_child_is_compared_once():
    asked = []

    class Counting:
        def fittest(self, states, survivors, tokens):
            asked.append(states)
            return [(one, 0.0) for one in states[:survivors]]

    parent, other = state_of({(0, "channels"): 1}), state_of({(0, "channels"): 2})
    Generations(1, 1, 2, 8, 8).evolve([parent], lambda _: [parent, other], Counting())
    assert asked[1] == [parent, other]


def test_a_ratio_out_of_reach_is_refused_before_any_work():
    with pytest.raises(OutOfReach, match="is out of reach"):
        Tyr().plan(Decoder(tiny("llama")), 0.95)
