"""DarwinLM: states have the matrices of the dense prefix, training narrows nothing back, and a search goes on."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
import torch
from conftest import LAYERS, tiny
from tiny_methods import calibration
from torch import nn

import methods
from methods.errors import Unsupported
from methods.model import calibration as sweep_log
from methods.model.calibration import SweepLog, SweepLogs
from methods.model.decoder import Decoder, make_twin
from methods.model.sizes import parameters
from methods.model.structures import structures_of
from methods.search import darwinlm
from methods.search.darwinlm import COMPARED, TRAINED, DarwinLM, divergence_of, fit_layers, make_candidate
from methods.search.tyr import Levels, make_supernet, state_of
from methods.trials import evolution
from methods.trials.blocks import Trial
from methods.width.obs import OBS

RATIO = 0.3


def started(family: str = "llama", ratio: float = RATIO, dtype: torch.dtype = torch.float32):
    """A model, the units that are left where all layers lose the same, and the matrices of all levels around them."""
    model = Decoder(tiny(family, layers=LAYERS).to(dtype))
    structures, counts = structures_of(model), OBS().plan(model, ratio)["removed_per_layer"]
    left = {(each.number, each.kind): each.size - counts[each.kind] for each in structures}
    levels = Levels.around(left, structures, 11, 10)
    return model, left, make_supernet(model, calibration(), levels, left, OBS(), prefix="dense")


def weights_of(model: Decoder) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.model.named_parameters()}


def test_a_candidate_is_the_model_that_obs_cuts_on_the_dense_prefix():
    model, left, supernet = started()
    candidate, pruned = make_candidate(model, supernet, state_of(left)), make_twin(model)
    structures = structures_of(pruned)
    to_cut = {(each.number, each.kind): each.size - left[each.number, each.kind] for each in structures}
    OBS().sweep(pruned, structures, {at: count for at, count in to_cut.items() if count}, calibration(), prefix="dense")
    ours, theirs = weights_of(candidate), weights_of(pruned)
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_changes_a_candidate_and_never_the_model(dtype):
    model, left, supernet = started(dtype=dtype)
    before, candidate = weights_of(model), make_candidate(model, supernet, state_of(left))
    fresh = weights_of(candidate)
    assert {weight.dtype for weight in fresh.values()} == {torch.float32}
    fit_layers(candidate, calibration(), 1e-3)
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(model).items())
    trained = weights_of(candidate)
    changed = {name for name, weight in trained.items() if not torch.equal(weight, fresh[name])}
    assert changed == {name for name in fresh if ".layers." in name}
    assert parameters(candidate) == parameters(make_candidate(model, supernet, state_of(left)))


def test_a_step_is_that_of_adamw_on_the_whole_model():
    """Each layer's step is what PyTorch's own loss and optimiser make of a copy of the model."""
    model, left, supernet = started()
    one = calibration()
    one = type(one)(one.ids[:1], one.mask[:1])
    candidate, alike = (make_candidate(model, supernet, state_of(left)) for _ in range(2))
    fit_layers(candidate, one, 1e-3)
    layers = [weight for name, weight in alike.model.named_parameters() if ".layers." in name]
    alike.model.requires_grad_(True)
    optimiser = torch.optim.AdamW(layers, 1e-3)
    ids = one.ids[:1, : int(one.mask[0].sum())]
    alike.model(input_ids=ids, labels=ids).loss.backward()
    optimiser.step()
    for name, weight in weights_of(alike).items():
        torch.testing.assert_close(weights_of(candidate)[name], weight, rtol=0, atol=1e-6, msg=name)


def test_a_tied_head_stays_tied():
    model, left, supernet = started("gemma")
    candidate = make_candidate(model, supernet, state_of(left))
    assert candidate.head.weight is candidate.embed.weight and candidate.embed.weight is not model.embed.weight


def test_the_divergence_is_that_of_a_trial():
    model, left, supernet = started()
    state = state_of(left)
    of_trial = Trial(model, calibration(), "kl", narrow=supernet).losses([state])[0]
    candidate = make_candidate(model, supernet, state)
    assert divergence_of(model, candidate, calibration()) == pytest.approx(of_trial, rel=1e-4)
    assert divergence_of(model, model, calibration()) == pytest.approx(0, abs=1e-7)


def test_training_lowers_the_loss_that_it_is_of():
    model, left, supernet = started()
    candidate = make_candidate(model, supernet, state_of(left))

    def loss() -> float:
        total = 0.0
        for ids, mask in zip(calibration().ids, calibration().mask, strict=True):
            row = ids[None, : int(mask.sum())]
            total += float(candidate.model(input_ids=row, labels=row).loss.detach())
        return total

    before = loss()
    for _ in range(3):
        fit_layers(candidate, calibration(), 1e-3)
    assert loss() < before


class Noted(darwinlm._Search):
    """Notes which states are compared, and on how many tokens, in place of training them."""

    loss_of = staticmethod(lambda state: 0.0)

    def train_and_compare(self, state, train, compare):
        self.notes.append((state, int(train.mask.sum()), int(compare.mask.sum())))
        self.trained += int(train.mask.sum())
        return [9.0, self.loss_of(state)]


def test_half_of_the_states_go_on_and_the_parent_joins_the_last_stage(monkeypatch):
    model, left, supernet = started()
    how = DarwinLM(train=2, compare=3)
    search = Noted(how, model, calibration(), supernet, random.Random(0))
    search.notes = []
    parent = state_of(left)
    levels = Levels.around(left, structures_of(model), 11, 10)
    children = levels.children([parent], 16, 3, random.Random(1))
    place = {state: number for number, state in enumerate(children)}
    monkeypatch.setattr(Noted, "loss_of", staticmethod(lambda state: place.get(state, 99)))
    winner, losses = search.run_generation(parent, children)
    assert (winner, losses) == (children[0], [9.0, 0])
    stages = [(2 * trained, 3 * compared) for trained, compared in zip(TRAINED, COMPARED, strict=True)]
    in_stages = [[state for state, *tokens in search.notes if tuple(tokens) == stage] for stage in stages]
    assert in_stages == [children, children[:8], children[:4], [*children[:2], parent]]
    assert DarwinLM(offspring=16).states_by_stage() == [len(states) for states in in_stages]
    monkeypatch.setattr(Noted, "loss_of", staticmethod(lambda state: -1.0 if state == parent else place[state]))
    assert search.run_generation(parent, children)[0] == parent


def test_trained_and_compared_sequences_are_others():
    model, _, supernet = started()
    search = darwinlm._Search(DarwinLM(), model, calibration(), supernet, random.Random(0))
    rows = [{tuple(row.tolist()) for row in half.ids} for half in (search.to_train, search.to_compare)]
    assert not rows[0] & rows[1]
    assert rows[0] | rows[1] == {tuple(row.tolist()) for row in calibration().ids}


def test_what_is_searched_for_keeps_the_parameters_and_the_record_says_how():
    model = Decoder(tiny("llama", layers=LAYERS))
    made = methods.make("darwinlm", {"generations": "2", "offspring": "3", "train": "24", "compare": "24"})
    planned = made.plan(model, RATIO)["parameters"]
    decisions = made.prune(model, calibration(), RATIO)
    assert parameters(model) == planned == decisions["parameters"]
    assert decisions["generations"] == len(decisions["kl"]) == len(decisions["kl_before_training"]) == 2
    assert decisions["tokens_trained"] > 0


def test_weights_in_files_are_refused():
    model, left, _ = started()
    model.store = object()
    with pytest.raises(Unsupported, match="have to fit into memory"):
        DarwinLM().search(model, calibration(), left)
    assert isinstance(model.model, nn.Module)


@pytest.mark.parametrize("at", [1, 2])
def test_a_search_that_was_interrupted_goes_on_to_the_same_end(at, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_log, "SECONDS", 0.0)
    given, add, generations = (
        DarwinLM(generations=3, offspring=3, train=24, compare=24),
        SweepLog.add,
        itertools.count(),
    )

    def prune() -> dict:
        tokens = replace(calibration(), sweeps=SweepLogs(tmp_path / "kept"))
        return given.prune(Decoder(tiny("llama")), tokens, RATIO)

    def interrupted(self: SweepLog, *added: object) -> None:
        if self.folder and next(generations) == at:  # those of the matrices keep nothing
            raise KeyboardInterrupt
        add(self, *added)

    whole = given.prune(Decoder(tiny("llama")), calibration(), RATIO)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SweepLog, "add", interrupted)
        prune()
    resumed = prune()
    for name in ("kl_before_training", "kl"):  # sums in float32, which depend on where memory lies
        assert resumed.pop(name) == pytest.approx(whole.pop(name), rel=1e-6)
    assert resumed == whole


def test_the_search_ends_when_its_minutes_are_over_and_says_so(monkeypatch):
    clock = itertools.count(0.0, 25.0)
    monkeypatch.setattr(darwinlm.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(evolution.time, "monotonic", lambda: next(clock))
    given = DarwinLM(generations=9, offspring=2, train=24, compare=24, minutes=1)
    decisions = given.prune(Decoder(tiny("llama")), calibration(), RATIO)
    assert (decisions["generations"], decisions["of_generations"], len(decisions["kl"])) == (2, 9, 2)
