"""EvoPress against all states that there are, and the properties of its children and its draws."""

from __future__ import annotations

import functools
import itertools
import math
import random
from dataclasses import replace

import pytest
import torch
from conftest import LAYERS, VOCABULARY, tiny
from tiny_methods import overflowing

import methods
from methods.errors import OutOfReach, Unsupported
from methods.model import calibration as sweep_log
from methods.model.calibration import Calibration, SweepLog, SweepLogs
from methods.model.decoder import Decoder
from methods.model.sizes import layer_parameters, parameters
from methods.model.structures import Sublayer, remove_sublayers, sublayers_of
from methods.search.evopress import EvoPress, draw_children, draw_states, generations_of
from methods.trials import evolution
from methods.trials.blocks import Replacements, Trial
from methods.trials.evolution import Fitness, draw_sequences

LENGTHS = (16, 12, 7, 2, 16, 9)
TOKENS = sum(LENGTHS)


def calibration(seed: int = 0) -> Calibration:
    ids = torch.randint(3, VOCABULARY, (len(LENGTHS), 16), generator=torch.Generator().manual_seed(0))
    return Calibration(ids, torch.arange(16) < torch.tensor(LENGTHS)[:, None], seed=seed)


def kinds_of(family: str = "llama") -> list[list[Sublayer]]:
    return EvoPress().blocks(Decoder(tiny(family)))


def ratio_of(layers: int) -> float:
    model = Decoder(tiny("llama"))
    return layers * layer_parameters(model.layers[0]) / parameters(model)


@functools.cache
@torch.no_grad()
def logarithms(gone: Replacements) -> torch.Tensor:
    """Return the log-probabilities of a model that really lacks the blocks, padding included."""
    model = Decoder(tiny("llama"))
    remove_sublayers(model, gone)
    return model.model(calibration().ids, use_cache=False).logits.double().log_softmax(-1)


def kl_of(gone: Replacements) -> float:
    """Return KL(dense || pruned) per token that has a successor."""
    total, count = 0.0, 0
    for dense, pruned, length in zip(logarithms(Replacements()), logarithms(gone), LENGTHS, strict=True):
        p, q = dense[: length - 1], pruned[: length - 1]
        total, count = total + float((p.exp() * (p - q)).sum()), count + length - 1
    return total / count


@pytest.mark.parametrize("k", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_the_best_of_all_states_is_found(k):
    """Where every comparison is of all tokens and every child is compared, as many generations as there are suffice."""
    states = itertools.product(*(itertools.combinations(blocks, k) for blocks in kinds_of()))
    losses = {gone: kl_of(gone) for gone in (Replacements([*attentions, *mlps]) for attentions, mlps in states)}
    search = EvoPress(generations=30, offspring=12, initial=12, tokens=TOKENS, final_tokens=TOKENS)
    decided = search.prune(Decoder(tiny("llama")), calibration(), ratio_of(k))
    best = min(losses, key=losses.__getitem__)
    removed = {Sublayer(part, layer) for part in ("attention", "mlp") for layer in decided[f"removed_{part}"]}
    removed |= {Sublayer(part, layer) for part in ("attention", "mlp") for layer in decided["removed_layers"]}
    assert removed == best
    assert decided["kl"][-1] == pytest.approx(losses[best], rel=1e-4)
    assert all(later <= sooner * (1 + 1e-6) for sooner, later in itertools.pairwise(decided["kl"]))


def test_the_loss_of_a_set_is_that_of_a_model_without_it():
    """For sets that begin alike, that leave out both blocks of a layer, and none."""
    blocks = sublayers_of(Decoder(tiny("llama")), "attention", "mlp")
    sets = [
        Replacements(),
        Replacements(blocks[:2]),
        Replacements(blocks[:3]),
        Replacements(blocks[2:]),
        Replacements([blocks[1], blocks[4]]),
        Replacements(blocks),
    ]
    losses = Trial(Decoder(tiny("llama")), calibration(), "kl").losses(sets)
    assert losses[0] == pytest.approx(0, abs=1e-6)
    assert losses[1:] == pytest.approx([kl_of(each) for each in sets[1:]], rel=1e-4)


def test_the_fittest_are_in_the_order_of_what_is_missed(monkeypatch):
    """Also where one that is worse than the best could be given up behind any sequence."""
    monkeypatch.setattr("methods.trials.blocks.TOKENS_AT_ONCE", 4)
    states = draw_states(kinds_of(), 2, 20, random.Random(3))
    few = replace(calibration(), memory=1)
    found = Fitness(Decoder(tiny("llama")), few, random.Random(0)).fittest(states, 5, TOKENS)
    assert [gone for gone, _ in found] == sorted(states, key=kl_of)[:5]
    assert [loss for _, loss in found] == pytest.approx(sorted(map(kl_of, states))[:5], rel=1e-4)


def test_what_is_missed_of_parents_on_all_tokens_is_measured_once():
    """A second comparison takes the forwards of what is new, and gives what one that knows nothing gives."""
    states = draw_states(kinds_of(), 2, 6, random.Random(3))
    fitness = Fitness(Decoder(tiny("llama")), calibration(), random.Random(0))
    parents = fitness.fittest(states[:4], 2, TOKENS)
    before = fitness.forwards
    again = fitness.fittest([*states[4:], *(state for state, _ in parents)], 3, TOKENS)
    fresh = Fitness(Decoder(tiny("llama")), calibration(), random.Random(0))
    assert again == fresh.fittest([*states[4:], *(state for state, _ in parents)], 3, TOKENS)
    alone = Fitness(Decoder(tiny("llama")), calibration(), random.Random(0))
    alone.fittest(states[4:], 1, TOKENS)
    assert fitness.forwards - before == pytest.approx(alone.forwards - 1)  # the dense model's
    (best, missed), *_ = parents
    assert fitness.fittest([best], 1, TOKENS // 2) != [(best, missed)]  # on other tokens
    assert fitness.fittest(states[:1], 1, TOKENS) == fresh.fittest(states[:1], 1, TOKENS)


def test_children_have_as_many_of_each_kind_gone_and_are_a_few_swaps_away():
    kinds, generator = (
        [[Sublayer(part, layer) for layer in range(12)] for part in ("attention", "mlp")],
        random.Random(1),
    )
    parents = draw_states(kinds, 4, 2, generator)
    found = draw_children(parents, kinds, 200, 3, generator)
    assert len(set(found)) == len(found) == 200
    assert not set(found) & set(parents)
    swaps = [min(len(child - parent) for parent in parents) for child in found]
    assert set(swaps) == {1, 2, 3}
    assert swaps.count(1) > swaps.count(2) > swaps.count(3)  # the smaller of two draws is likelier to be small
    for child in found:
        assert [sum(block in child for block in blocks) for blocks in kinds] == [4, 4]


def test_where_few_states_are_left_there_are_fewer_children():
    kinds, generator = kinds_of(), random.Random(0)
    every = draw_states(kinds, 1, 1000, generator)
    assert len(every) == LAYERS**2
    assert len(draw_children(every[:1], kinds, 1000, 3, generator)) == LAYERS**2 - 1
    assert draw_children(every, kinds, 5, 3, generator) == []


@pytest.mark.parametrize("ratio", [0.2, 0.3, 0.4])
def test_where_blocks_differ_in_size_no_state_is_far_from_the_budget(ratio):
    """Of the tiny mixture the first MLP, which is dense, holds less than a quarter of each other one."""
    model, search = Decoder(tiny("glm4_moe")), EvoPress(generations=3, offspring=8, initial=8)
    dense, (size, each) = parameters(model), search.sizes(model)
    assert min(held for block, held in size.items() if block.part == "mlp") < each / 4
    search.prune(model, calibration(), ratio)
    assert abs(dense - parameters(model) - ratio * dense) <= each / 2 + 1


@pytest.mark.parametrize("layers", [0.6, 1, 1.5, 2.4, 3])
def test_where_all_blocks_of_a_kind_are_of_one_size_every_state_fits(layers):
    model, search = Decoder(tiny("llama")), EvoPress()
    k, fits = search.how_many(model, ratio_of(layers)), search.fits(model, ratio_of(layers))
    assert all(map(fits, draw_states(kinds_of(), k, 50, random.Random(0))))
    assert not fits(Replacements())


def test_where_no_state_fits_all_are_compared():
    search = EvoPress(generations=1, offspring=3, initial=3)
    gone, _ = search.search(Decoder(tiny("llama")), calibration(), 2, lambda _: False)
    assert len(gone) == 4


def test_unless_told_there_are_as_many_generations_as_in_the_authors_script():
    search = EvoPress(offspring=2, initial=2, minutes=1e-9)
    decided = search.prune(Decoder(tiny("llama")), calibration(), ratio_of(2))
    assert decided["of_generations"] == 5  # int(2 * (6 - 2) / 1.5)
    assert generations_of(1, 2) == 1


def test_a_model_whose_states_overflow_is_refused():
    with pytest.raises(Unsupported, match="states of a layer overflow"):
        EvoPress(generations=1).prune(Decoder(overflowing()), calibration(), ratio_of(1))


def test_draws_hold_as_many_tokens_as_are_asked_for():
    generator = random.Random(2)
    drawn = [draw_sequences(calibration(), tokens, generator) for tokens in (2, 10, 30, 30, TOKENS, 10 * TOKENS)]
    assert [int(one.mask.sum()) for one in drawn] == [2, 10, 30, 30, TOKENS, TOKENS]
    assert not torch.equal(drawn[2].ids, drawn[3].ids)
    for one in drawn:
        starts = [tuple(row[:2].tolist()) for row in one.ids]
        assert len(set(starts)) == len(starts)
        for row, mask in zip(one.ids, one.mask, strict=True):
            assert any(torch.equal(row[mask], whole[: len(row[mask])]) for whole in calibration().ids)


def test_whole_layers_leave_a_shape_that_stock_transformers_loads():
    assert methods.make("evopress").uneven_because
    assert methods.make("evopress", {"whole": "yes"}).uneven_because == ""


def test_whole_layers_go_where_that_is_asked_for():
    model = Decoder(tiny("llama"))
    decided = methods.make("evopress", {"whole": "yes", "generations": "2"}).prune(model, calibration(), ratio_of(2))
    assert len(decided["removed_layers"]) == decided["blocks_of_each_kind"] == 2
    assert decided["removed_attention"] == decided["removed_mlp"] == []
    assert len(model.layers) == LAYERS - 2


def test_the_search_ends_when_its_minutes_are_over_and_says_so(monkeypatch):
    clock = itertools.count(0.0, 25.0)
    monkeypatch.setattr(evolution.time, "monotonic", lambda: next(clock))
    search = methods.make("evopress", {"generations": "9", "minutes": "1", "offspring": "3", "initial": "3"})
    decided = search.prune(Decoder(tiny("llama")), calibration(), ratio_of(1))
    assert (decided["generations"], decided["of_generations"], len(decided["kl"])) == (2, 9, 2)


@pytest.mark.parametrize("final_tokens", [30, TOKENS])
def test_a_search_that_was_interrupted_goes_on_behind_its_last_generation(final_tokens, tmp_path, monkeypatch):
    """Whether its last comparisons are of tokens that are drawn or of all: the draws and the forwards are the same."""
    monkeypatch.setattr(sweep_log, "SECONDS", 0.0)
    given = {
        "generations": 5,
        "offspring": 4,
        "initial": 4,
        "population": 2,
        "tokens": 20,
        "final_tokens": final_tokens,
    }

    def found():
        kept = replace(calibration(), sweeps=SweepLogs(tmp_path / "kept"))
        return EvoPress(**given).prune(Decoder(tiny("llama")), kept, ratio_of(2))

    whole = EvoPress(**given).prune(Decoder(tiny("llama")), calibration(), ratio_of(2))
    add, generations = SweepLog.add, itertools.count()

    def interrupted(self, *told):
        if next(generations) == 3:
            raise KeyboardInterrupt
        add(self, *told)

    with monkeypatch.context() as patch:
        patch.setattr(SweepLog, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            found()
    assert found() == whole
    assert next(generations) == 4  # of the attempt that was interrupted


def test_minutes_of_an_interrupted_attempt_count(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_log, "SECONDS", 0.0)
    clock = itertools.count(0.0, 200.0)
    monkeypatch.setattr(sweep_log.time, "perf_counter", lambda: next(clock))
    search = EvoPress(generations=5, offspring=4, initial=4, minutes=5.0)
    add, generations = SweepLog.add, itertools.count()

    def interrupted(self, *told):
        if next(generations) == 3:
            raise KeyboardInterrupt
        add(self, *told)

    def found():
        kept = replace(calibration(), sweeps=SweepLogs(tmp_path))
        return search.prune(Decoder(tiny("llama")), kept, ratio_of(2))

    with monkeypatch.context() as patch:
        patch.setattr(SweepLog, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            found()
    assert found()["generations"] == 3


def test_a_divergence_that_is_no_number_is_none_in_the_record(monkeypatch):
    class Broken(Trial):
        def losses(self, states, *_, **__):
            return [math.nan] * len(states)

    monkeypatch.setattr(evolution, "Trial", Broken)
    decided = EvoPress(generations=2, offspring=3, initial=3).prune(Decoder(tiny("llama")), calibration(), ratio_of(1))
    assert decided["kl"] == [None, None]


def test_a_seed_decides():
    runs = [
        EvoPress(generations=2, offspring=3, initial=3, tokens=16).prune(
            Decoder(tiny("llama")), calibration(seed), ratio_of(2)
        )
        for seed in (0, 0, 1, 2)
    ]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2] or runs[0] != runs[3]


def test_all_blocks_of_a_kind_are_never_gone():
    with pytest.raises(OutOfReach, match="all but one of the 6 layers"):
        EvoPress().plan(Decoder(tiny("llama")), ratio_of(LAYERS))
    model = Decoder(tiny("llama"))
    remove_sublayers(model, [Sublayer("attention", layer) for layer in range(3)])
    with pytest.raises(OutOfReach, match="with all but one of 3 blocks of each kind gone"):
        EvoPress().plan(model, 0.6)
