"""Puzzle against enumerated optima, models that really have each choice, and counts of what goes."""

from __future__ import annotations

import copy
import functools
import itertools
import math

import numpy as np
import pytest
import scipy.optimize
import torch
from conftest import LAYERS, tiny
from tiny_methods import calibration

from methods.budget import prune_to_budget
from methods.counted import LatencyTable, budget_of_quantity, count_quantity, quantity_of_layer
from methods.errors import OutOfReach
from methods.model.decoder import Decoder
from methods.model.sizes import layer_parameters, parameters
from methods.model.structures import Narrowed, Sublayer, cut, remove_sublayers
from methods.search.puzzle import (
    EXACT,
    Narrow,
    Program,
    Puzzle,
    Ranks,
    choices_of_layers,
    contributions_of_units,
    cost_of_choice,
    damages_of_choices,
    library,
    ranking,
    to_decisions,
)
from methods.trials.blocks import Replacements

TOKENS = calibration()
RNG = np.random.default_rng(0)
FAMILIES = ("llama", "gpt2", "gemma2", "phi")


def with_choice(family: str, choice: Replacements) -> Decoder:
    """A model that has really lost what a choice leaves out."""
    model = Decoder(tiny(family))
    cut(model, to_decisions(choice, model, dense_ranking(family)))
    return model


@functools.cache
def dense_ranking(family: str) -> Ranks:
    model = Decoder(tiny(family))
    return ranking(model, contributions_of_units(model, TOKENS))


@functools.cache
@torch.no_grad()
def dense_logarithms(family: str) -> torch.Tensor:
    return logarithms(Decoder(tiny(family)))


def logarithms(model: Decoder) -> torch.Tensor:
    """The log-probabilities of each token that has a successor."""
    return model.model(TOKENS.ids, use_cache=False).logits[:, :-1].double().log_softmax(-1)


def damages_of(model: Decoder, widths: tuple[int, int], score: str = "kl") -> list[torch.Tensor]:
    return damages_of_choices(model, TOKENS, ranking(model, contributions_of_units(model, TOKENS)), widths, score)


@torch.no_grad()
def kl_of(family: str, pruned: Decoder) -> float:
    """KL(dense || pruned) per token that has a successor."""
    p, q = dense_logarithms(family), logarithms(pruned)
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_damage_is_that_of_a_model_that_has_this_choice_alone(family):
    model = Decoder(tiny(family))
    every = choices_of_layers(model, 2, 2)
    for several, s in zip(every, damages_of(model, (2, 2)), strict=True):
        assert s[0] == 0
        for choice, damage in zip(several[1:], s[1:], strict=True):
            assert float(damage) == pytest.approx(kl_of(family, with_choice(family, choice)), rel=1e-3, abs=2e-7)


def test_by_nll_a_damage_is_what_the_next_token_loses():
    model = Decoder(tiny("llama"))
    (s, *_) = damages_of(model, (2, 1), "nll")
    losses = []
    for choice in (Replacements(), choices_of_layers(model, 2, 1)[0][-1]):
        with torch.no_grad():
            logits = with_choice("llama", choice).model(TOKENS.ids, use_cache=False).logits[:, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), TOKENS.ids[:, 1:].flatten()))
    assert float(s[-1]) == pytest.approx(float(losses[1] - losses[0]), abs=1e-5)


def test_a_layer_has_every_pair_of_what_its_attention_and_its_mlp_may_keep():
    model = Decoder(tiny("llama"))
    heads, channels = model.layers[0].kv_heads, model.layers[0].down.in_features
    for number, several in enumerate(choices_of_layers(model, 3, 2)):
        left_attention = [
            Replacements(),
            Replacements([Narrowed("kv_heads", number, heads // 2)]),
            Replacements([Sublayer("attention", number)]),
        ]
        left_mlp = [
            Replacements(),
            *(Replacements([Narrowed("channels", number, channels * part // 3)]) for part in (2, 1)),
            Replacements([Sublayer("mlp", number)]),
        ]
        assert several == [a | m for a, m in itertools.product(left_attention, left_mlp)]
        assert several[0] == Replacements()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_narrowed_layer_is_one_whose_other_units_give_nothing(family):
    model = Decoder(tiny(family))
    ranks = ranking(model, contributions_of_units(model, TOKENS))
    layer = model.layers[1]
    heads, channels = layer.kv_heads, layer.down.in_features
    narrowed = [Narrowed("channels", 1, channels // 3), *[Narrowed("kv_heads", 1, heads // 2)] * (heads > 1)]
    before = copy.deepcopy(layer.module.state_dict())
    left = Narrow(ranks)(layer, narrowed)
    assert left.down.in_features == channels // 3
    assert all(torch.equal(one, before[name]) for name, one in layer.module.state_dict().items())
    zeroed = Decoder(tiny(family)).layers[1]
    zeroed.down.weight.data[:, ranks[1, "channels"][channels // 3 :]] = 0
    if heads > 1:
        each = zeroed.out.in_features // heads
        for head in ranks[1, "kv_heads"][heads // 2 :]:
            zeroed.out.weight.data[:, head * each : (head + 1) * each] = 0
    from methods.model.activations import enter

    entry = enter(model, TOKENS.ids)
    x, arguments = torch.randn_like(entry.x), entry.arguments[layer.kind]
    with torch.no_grad():
        assert torch.allclose(left(x, arguments), zeroed(x, arguments), atol=1e-5)


def test_contributions_are_the_mean_sizes_of_what_units_write():
    model = Decoder(tiny("llama"))
    seen: dict[int, list[torch.Tensor]] = {}
    hooks = [
        matrix.register_forward_pre_hook(lambda _, given, at=at: seen.setdefault(at, []).append(given[0].detach()))
        for at, matrix in enumerate(matrix for layer in model.layers for matrix in (layer.out, layer.down))
    ]
    with torch.no_grad():
        model.model(TOKENS.ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    for at, C in enumerate(contributions_of_units(model, TOKENS)):
        layer = model.layers[at // 2]
        W = (layer.down if at % 2 else layer.out).weight.detach().double()
        each = torch.stack([X.double().abs().flatten(0, 1).mean(0) for X in seen[at]]).mean(0) * W.norm(dim=0)
        assert torch.allclose(C, each if at % 2 else each.view(layer.kv_heads, -1).sum(1), rtol=1e-4)


TABLE = LatencyTable({"attention": [[0, 0], [2_000, 1.0], [9_000, 2.0]], "mlp": [[0, 0], [3_000, 2.5]]}, 4.0)


@pytest.mark.parametrize("of", ["all", "bytes", "kv", "macs", "latency"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_what_goes_with_a_choice_is_what_the_model_has_less(family, of):
    dense, table = Decoder(tiny(family)), TABLE if of == "latency" else None
    quantity = layer_parameters if of == "all" else lambda layer: quantity_of_layer(layer, of, 16, table)
    before = count_quantity(dense, of, 16, table)
    for choice in choices_of_layers(dense, 3, 2)[2]:
        after = count_quantity(with_choice(family, choice), of, 16, table)
        assert cost_of_choice(choice, dense.layers[2], quantity) == pytest.approx(before - after), choice
    assert count_quantity(dense, of, 16, table) == before


def made_program(layers: int, choices: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Damages and costs of layers that may lose more for more; of the first choice none."""
    m = [np.array([0, *sorted(RNG.choice(8, choices - 1, replace=False) + 1)], dtype=float) for _ in range(layers)]
    return [np.array([0, *np.sort(RNG.random(choices - 1))]) * RNG.random() for _ in range(layers)], m


@pytest.mark.parametrize("number", range(6))
def test_the_best_solutions_are_those_of_all(number):
    s, m = made_program(4, 4)
    gone = 9.0
    window = 0.5 * min(one[one > 0].min() for one in m)
    every = [
        (sum(one[c] for one, c in zip(s, solution, strict=True)), list(solution))
        for solution in itertools.product(range(4), repeat=4)
        if abs(sum(one[c] for one, c in zip(m, solution, strict=True)) - gone) <= window and solution != (3, 3, 3, 3)
    ]
    program = Program(s, m)
    found = program.solutions(gone, 5)
    assert [program.damage(one) for one in found] == pytest.approx([damage for damage, _ in sorted(every)[:5]])
    assert all(one in [solution for _, solution in every] for one in found)
    assert len({tuple(one) for one in found}) == len(found)
    assert len(program.solutions(gone, 10_000)) == len(every)


def with_noise(s: list[np.ndarray], m: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The same layers, each with one choice more, with which next to nothing goes and less than half is damaged."""
    return [np.insert(one, 1, one[1] / 2) for one in s], [np.insert(one, 1, 1e-3) for one in m]


def test_a_choice_that_saves_next_to_nothing_narrows_no_window(monkeypatch):
    """As in a table of latencies, where some widths take the same time but for its noise: no end was in sight."""
    monkeypatch.setitem(EXACT, "node_limit", 300)
    m = [np.sort(np.add.outer([0, 1 + 0.02 * RNG.random()], [0, 0.5, 1, 2]).ravel()) for _ in range(30)]
    s = [np.array([0, *np.sort(RNG.random(len(one) - 1))]) for one in m]
    plain, noisy = Program(s, m), Program(*with_noise(s, m))
    gone = 0.3 * sum(one[-1] for one in m)
    (best,), (found,) = plain.solutions(gone, 1), noisy.solutions(gone, 1)
    assert noisy.damage(found) <= plain.damage(best)
    assert noisy.unproven == 0


def test_a_solution_that_the_solver_has_not_proven_is_counted(monkeypatch):
    s, m = made_program(4, 4)
    program, milp = Program(s, m), scipy.optimize.milp
    monkeypatch.setattr(scipy.optimize, "milp", lambda *a, **k: replaced(milp(*a, **k), status=4))
    assert len(program.solutions(9.0, 3)) == program.unproven == 3
    model = Decoder(tiny("llama"))
    assert Puzzle(steps=2, tokens=48, best=2).prune(model, TOKENS, 0.3)["unproven"] == 2


def replaced(found: scipy.optimize.OptimizeResult, **values: object) -> scipy.optimize.OptimizeResult:
    found.update(values)
    return found


def test_the_window_widens_until_something_lies_in_it_and_one_layer_stays():
    program = Program([np.array([0.0, 1.0])] * 2, [np.array([0.0, 10.0])] * 2)
    assert program.solutions(16, 9) in ([[0, 1], [1, 0]], [[1, 0], [0, 1]])  # 6 away; both layers are never empty
    with pytest.raises(OutOfReach, match="comes near to what has to go"):
        Program([np.array([0.0])] * 2, [np.array([0.0])] * 2).solutions(5, 1)


def test_a_damage_that_is_no_number_is_the_last_to_be_chosen():
    s, m = [np.array([0.0, math.nan]), np.array([0.0, 5.0]), np.array([0.0, math.inf])], [np.array([0.0, 3.0])] * 3
    assert Program(s, m).solutions(3, 3)[0] == [0, 1, 0]


def test_of_choices_that_cost_the_same_the_least_damage_is_left():
    s, m = [np.array([0.0, 0.3, 0.2, 0.5])] * 2, [np.array([0.0, 4.0, 4.0, 8.0])] * 2
    assert Program(s, m).solutions(4, 9) in ([[0, 2], [2, 0]], [[2, 0], [0, 2]])


@pytest.mark.parametrize(("ratio", "steps", "first"), [(0.2, 4, False), (0.45, 3, True)])
def test_of_the_solutions_the_one_that_is_missed_least_is_taken_and_its_damage_is_the_models(ratio, steps, first):
    model = Decoder(tiny("llama"))
    dense = parameters(model)
    found = Puzzle(steps=steps, tokens=TOKENS.ids.numel(), best=4).prune(model, TOKENS, ratio)
    assert found["solution"] == min(range(4), key=found["damage"].__getitem__)
    assert (found["solution"] == 0) == first  # of which the program thought best
    assert found["expected_damage"] == sorted(found["expected_damage"])
    assert found["damage"][found["solution"]] == pytest.approx(kl_of("llama", model), rel=1e-3)
    assert abs(dense - parameters(model) - ratio * dense) <= dense / 20


def test_damages_are_measured_on_the_tokens_that_were_asked_for_and_contributions_on_all():
    model, few = Decoder(tiny("llama")), TOKENS.first(48)
    C = contributions_of_units(model, TOKENS)
    asked = [*damages_of_choices(model, few, ranking(model, C), (2, 1), "kl"), *C]
    found = library(model, TOKENS, (2, 1), "kl", 48)
    assert all(torch.equal(one, other) for one, other in zip(found, asked, strict=True))
    assert not torch.equal(found[0], damages_of(model, (2, 1))[0])


def test_where_next_to_nothing_goes_nothing_may():
    model = Decoder(tiny("llama"))
    before = parameters(model)
    found = Puzzle(steps=2, tokens=48, best=2).prune(model, TOKENS, 2 / before)
    assert parameters(model) == before
    assert found["damage"][found["solution"]] == 0


@pytest.mark.parametrize("of", ["kv", "macs", "bytes"])
def test_a_budget_is_what_the_program_is_solved_under(of):
    dense = Decoder(tiny("llama", layers=LAYERS))
    before = {name: one.clone() for name, one in dense.model.state_dict().items()}
    budget = budget_of_quantity(dense, 0.34, of, 16, whole=True)
    pruner = Puzzle(steps=3, heads=2, tokens=48, best=3)
    model, decided, said = prune_to_budget(budget, pruner, dense, TOKENS)
    stays = budget.stays(model)
    assert said.stays == stays == pytest.approx(budget.share, abs=0.02)
    assert said.tried == [[pytest.approx(1 - parameters(model) / parameters(dense)), stays]]
    assert all(torch.equal(one, before[name]) for name, one in dense.model.state_dict().items())
    if of == "kv":  # of which MLPs hold nothing, so that no whole one goes
        assert decided["removed_mlp"] == decided["removed_layers"] == []


def test_a_budget_that_no_choice_comes_near_to_is_out_of_reach(monkeypatch):
    dense = Decoder(tiny("llama"))
    budget = budget_of_quantity(dense, 0.5, "kv", 16, whole=True)
    monkeypatch.setattr(Program, "solutions", lambda self, gone, count: [[0] * len(dense.layers)])
    with pytest.raises(OutOfReach, match="as they are"):
        prune_to_budget(budget, Puzzle(steps=2, tokens=48), dense, TOKENS)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("part", ["attention", "mlp"])
def test_a_model_that_has_lost_a_block_before_is_pruned_further(family, part):
    model = Decoder(tiny(family))
    remove_sublayers(model, [Sublayer(part, 1)])
    before, C = parameters(model), contributions_of_units(model, TOKENS)
    gone, (heads, channels) = {"attention": 0, "mlp": 1}[part], C[2:4]
    assert len(C[2 + gone]) == 0 < len(C[3 - gone])
    assert (len(heads) == 0) != (len(channels) == 0)
    ratio = 1.5 * layer_parameters(model.layers[0]) / before
    decided = Puzzle(steps=4, tokens=48, best=2).prune(model, TOKENS, ratio)
    assert 1 - parameters(model) / before == pytest.approx(ratio, abs=0.5 * ratio / 1.5 / 4 + 0.01)
    assert 1 not in decided[f"removed_{part}"]  # which is gone already


def test_the_fields_of_the_record_make_the_model_again():
    model, again = Decoder(tiny("llama")), Decoder(tiny("llama"))
    decided = Puzzle(steps=2, heads=2, tokens=48).prune(model, TOKENS, 0.4)
    cut(again, decided)
    with torch.no_grad():
        logits = [each.model(TOKENS.ids, use_cache=False).logits for each in (model, again)]
    assert torch.equal(*logits)
