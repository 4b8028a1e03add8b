"""laco-ls: every fit against torch.linalg.lstsq on whole matrices, every trial against a model that was changed."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from calibrations import LENGTHS, calibration
from conftest import LAYERS, tiny
from fitted import brute, states
from tiny_methods import calibration as whole_sequences
from tiny_methods import logits

import methods
from methods.checkpoint import save_load
from methods.compensation.replaceme import fold_map
from methods.depth.laco_ls import LaCoLS, division_of_name, name_of_division
from methods.errors import Unsupported
from methods.model.activations import collect_inputs
from methods.model.decoder import Decoder, make_twin
from methods.model.sizes import layer_parameters, parameters
from methods.trials.collapse_fit import Collapse, Fit
from methods.trials.windows import (
    CollapseTrial,
    DenseStates,
    division_into_layers,
    exchange_layers,
    find_lightest,
    join_windows,
)

RIDGE = 0.3


def numbers(name: str) -> list[int]:
    starts = [s for s, _ in division_of_name(name, LAYERS)]
    return [number for number in range(LAYERS) if number not in starts]


def ratio(model: Decoder, n: int) -> float:
    return n * layer_parameters(model.layers[0]) / parameters(model)


def collapsed(n: int, tokens: methods.Calibration, family: str = "llama", **given: object) -> tuple[Decoder, dict]:
    model, few = Decoder(tiny(family)), {"ridge": RIDGE, "trial_tokens": 48, "final_tokens": 48}
    return model, LaCoLS(**few | given).prune(model, tokens, ratio(model, n))


@pytest.mark.parametrize("given", [{}, {"search_tokens": 20}, {"choose": "error"}, {"choose": "cosine", "trials": 1}])
def test_the_survivors_down_matrix_is_the_least_squares_of_its_window(given):
    """On all tokens, however the windows were found."""
    dense = Decoder(tiny("llama"))
    model, decisions = collapsed(3, calibration(filler=9), **given)
    x = states(dense)[0]
    kept = [number for number in range(LAYERS) if number not in decisions["removed_layers"]]
    ends = {s: e + 1 for s, e in decisions["windows"]}
    assert ends
    for place, s in enumerate(kept):
        layer, whole = model.layers[place], dense.layers[s]
        if s not in ends:
            assert layer.down.weight is not whole.down.weight
            assert torch.equal(layer.down.weight, whole.down.weight)
            continue
        with collect_inputs(layer.down) as seen:
            entered, _, m = states(model)
        C = torch.cat([one[0].double() for one in seen])
        r = entered[place + 1] - m[place]
        W = brute(C, x[ends[s]] - r, RIDGE, whole.down.weight.detach().double().T)
        found = layer.down.weight.detach().double().T
        torch.testing.assert_close(found, W, rtol=0, atol=2e-4 * float(W.abs().max()))
        after = float((r + C @ W - x[ends[s]]).square().sum() / x[ends[s]].square().sum())
        (error,) = [error for error in decisions["errors"] if error["window"][0] == s]
        assert error["error_after"] == pytest.approx(after, rel=1e-3)
        assert error["error_after"] < error["error_before"]


def test_only_the_survivors_down_matrices_change():
    dense = Decoder(tiny("qwen2"))
    model, decisions = collapsed(2, whole_sequences(), "qwen2")
    kept = [number for number in range(LAYERS) if number not in decisions["removed_layers"]]
    starts = {s for s, _ in decisions["windows"]}
    for layer, s in zip(model.layers, kept, strict=True):
        for (name, found), wanted in zip(
            layer.module.named_parameters(), dense.layers[s].module.parameters(), strict=True
        ):
            assert torch.equal(found, wanted) == (s not in starts or found is not layer.down.weight), name


def test_the_foretold_map_and_what_it_leaves_by_hand():
    model = Decoder(tiny("llama"))
    found = DenseStates(model, calibration(filler=9), sinks="apart", ridge=RIDGE)
    x, _, m = states(model)
    for s, e in ((1, 3), (2, 6), (0, 2)):
        r = x[s + 1] - m[s]
        T = brute(m[s], x[e] - r, RIDGE, torch.eye(32, dtype=torch.float64))
        torch.testing.assert_close(
            found.map_addition((s, e), torch.eye(32)).double(), T, rtol=0, atol=1e-4 * float(T.abs().max())
        )
        u = 1 - torch.nn.functional.cosine_similarity(r + m[s] @ T, x[e], dim=-1).mean()
        assert found.undone_work((s, e)) == pytest.approx(float(u), rel=1e-3)


def test_windows_can_be_judged_by_the_error_of_the_fit_or_the_cosine_before_it():
    model = Decoder(tiny("llama"))
    x, _, m = states(model)
    for choose in ("error", "cosine"):
        found = DenseStates(model, calibration(filler=9), sinks="apart", ridge=RIDGE, choose=choose)
        for s, e in ((1, 3), (2, 6)):
            r, z = x[s + 1] - m[s], x[e]
            T = brute(m[s], z - r, RIDGE, torch.eye(32, dtype=torch.float64))
            error = float((r + m[s] @ T - z).square().sum() / z.square().sum())
            angle = float(1 - torch.nn.functional.cosine_similarity(x[s + 1], z, dim=-1).mean())
            assert found.undone_work((s, e)) == pytest.approx(error if choose == "error" else angle, rel=1e-3)


WINDOWS = [(0, 1), (1, 3), (3, 4), (4, 6)]  # of six layers


def fitted(family: str, **how: object) -> tuple[Decoder, list[dict]]:
    """The model with WINDOWS collapsed."""
    model = Decoder(tiny(family))
    layers = model.layers
    errors = Collapse(model, WINDOWS, calibration(filler=9, memory=1), Fit(ridge=RIDGE, **how)).run()
    model.set_layers([layers[s] for s, _ in WINDOWS])
    return model, errors


@torch.no_grad()
def seen(model: Decoder, number: int) -> dict[str, torch.Tensor]:
    """Of real tokens, each sequence alone: what enters and leaves layer `number`, and what
    enters its output matrices, (M, columns) in float64."""
    layer, found = model.layers[number], {"x": [], "y": [], "heads": [], "channels": []}
    hooks = [
        layer.module.register_forward_pre_hook(lambda _, args: found["x"].append(args[0])),
        layer.module.register_forward_hook(
            lambda _, args, out: found["y"].append(out[0] if isinstance(out, tuple) else out)
        ),
        layer.out.register_forward_pre_hook(lambda _, args: found["heads"].append(args[0])),
        layer.down.register_forward_pre_hook(lambda _, args: found["channels"].append(args[0])),
    ]
    tokens = calibration()
    for ids, length in zip(tokens.ids, LENGTHS, strict=True):
        model.model(ids[None, :length], use_cache=False)
    for hook in hooks:
        hook.remove()
    return {
        name: torch.cat([one.reshape(length, -1) for one, length in zip(rows, LENGTHS, strict=True)]).double()
        for name, rows in found.items()
    }


def same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=3e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("family", ["llama", "phi", "gpt2", "granite", "falcon_h1"])
def test_the_attentions_output_is_fitted_together_with_the_mlps(family):
    """Then the MLP's anew, since it reads what the attention adds; where both are parallel that changes nothing.

    Some families multiply both outputs, and a mixer beside the attention adds to neither.
    """
    dense = Decoder(tiny(family))
    model, errors = fitted(family, attention=True)
    before, after, z = seen(dense, 1), seen(model, 1), seen(dense, 2)["y"]
    whole, layer = dense.layers[1], model.layers[1]
    of_out, of_down = {"granite": (0.4, 0.4), "falcon_h1": (1.3, 1.2)}.get(family, (1.0, 1.0))
    W = torch.cat([whole.out.weight, whole.down.weight], 1).detach().double().T
    both = torch.cat([before["heads"] * of_out / of_down, before["channels"]], 1)
    rest = before["y"] - of_down * both @ W
    if family != "falcon_h1":
        assert float((rest - before["x"]).std(0).max()) < 1e-5  # biases, the same in every row
    joint = brute(both, (z - rest) / of_down, RIDGE, W)
    same(layer.out.weight.T, joint[: layer.out.in_features])
    rest = after["y"] - of_down * after["channels"] @ layer.down.weight.detach().double().T
    old = whole.down.weight.detach().double().T
    same(layer.down.weight.T, brute(after["channels"], (z - rest) / of_down, RIDGE, old))
    if family == "phi":
        same(layer.down.weight.T, joint[32:])
    assert errors[0]["error_after"] == pytest.approx(
        float((after["y"] - z).square().sum() / z.square().sum()), rel=1e-3
    )
    _, alone = fitted(family)
    assert errors[0]["error_after"] < alone[0]["error_after"] < alone[0]["error_before"]


def test_every_later_down_matrix_can_be_fitted_to_the_dense_state_behind_its_layer():
    dense = Decoder(tiny("qwen2"))
    model, errors = fitted("qwen2", later=True)
    assert [error["window"] for error in errors] == [[1, 2], [3, 3], [4, 5]]
    assert torch.equal(model.layers[0].down.weight, dense.layers[0].down.weight)
    for place, (_, e) in list(enumerate(WINDOWS))[1:]:
        after, z, down = seen(model, place), seen(dense, e - 1)["y"], model.layers[place].down
        rest = after["y"] - after["channels"] @ down.weight.detach().double().T
        whole = dense.layers[WINDOWS[place][0]].down.weight.detach().double().T
        same(down.weight.T, brute(after["channels"], z - rest, RIDGE, whole))


def test_a_second_sweep_makes_up_for_the_error_behind_the_next_window():
    dense = Decoder(tiny("llama"))
    (first, before), (model, after) = fitted("llama"), fitted("llama", sweeps=2)
    one, z = seen(first, 1), seen(dense, 5)["y"]
    now = first.layers[1].down.weight.detach().double().T
    wanted = z - seen(first, 3)["y"] + one["channels"] @ now
    whole = [layer.down.weight.detach().double().T for layer in dense.layers]
    same(model.layers[1].down.weight.T, brute(one["channels"], wanted, RIDGE, whole[1]))
    last, down = seen(model, 3), model.layers[3].down
    rest = last["y"] - last["channels"] @ down.weight.detach().double().T
    same(down.weight.T, brute(last["channels"], z - rest, RIDGE, whole[4]))
    assert after[1]["error_after"] < before[1]["error_after"]
    assert after[1]["error_after"] == pytest.approx(float((last["y"] - z).square().sum() / z.square().sum()), rel=1e-3)
    assert all("error_held_out" in one for one in before)
    assert "error_held_out" not in after[0]  # whose last fit holds nothing out
    assert after[1]["error_held_out"] != before[1]["error_held_out"]
    near, z = seen(model, 1)["y"], seen(dense, 2)["y"]
    assert after[0]["error_after"] == pytest.approx(float((near - z).square().sum() / z.square().sum()), rel=1e-3)


def test_a_sweep_that_helps_nothing_is_undone(monkeypatch, ids):
    first, before = fitted("llama")

    def spoil(self, s, *_):
        self.layers[s].down.weight = torch.nn.Parameter(10 * self.layers[s].down.weight)

    monkeypatch.setattr(Collapse, "_refit_for_the_next", spoil)
    model, after = fitted("llama", sweeps=3)
    assert torch.equal(logits(model, ids), logits(first, ids))
    assert after == before


def test_what_is_linear_alone_is_refused_behind_norms():
    for given in ({"attention": True}, {"sweeps": 2}):
        with pytest.raises(Unsupported, match="gemma3_text norms what an MLP adds"):
            LaCoLS(**given).plan(Decoder(tiny("gemma3_text")), 0.3)


@pytest.mark.parametrize("family", ["llama", "phi", "gpt2"])
def test_a_trial_is_the_model_with_its_maps_folded(family):
    model, tokens = Decoder(tiny(family)), calibration(filler=9)
    dense = DenseStates(model, tokens, sinks="apart", ridge=RIDGE)
    trial = CollapseTrial(dense, tokens.first(60))
    windows = join_windows(join_windows(division_into_layers(LAYERS), 1), 1)  # layers 1 to 3 are one
    assert windows == ((0, 1), (1, 4), (4, 5), (5, 6))
    changed = make_twin(model)
    layers = changed.layers
    fold_map(layers[1].down, dense.map_addition((1, 4), torch.eye(32)).double())
    changed.set_layers([layers[s] for s, _ in windows])
    few = tokens.first(60)
    wanted = few.mask[:, 1:]
    p, q = (logits(one, few.ids)[:, :-1][wanted].log_softmax(-1) for one in (model, changed))
    kl = float((p.exp() * (p - q)).sum(-1).mean())
    later = ((0, 1), (1, 3), (3, 4), (4, 6))
    for fixed in (
        (),
        division_into_layers(LAYERS),
        windows,
        later,
        ((0, 2), *division_into_layers(LAYERS)[2:]),
    ):  # what states are kept of
        trial.fix(fixed)
        found = trial.losses([windows, division_into_layers(LAYERS)], "trying")
        assert found == [pytest.approx(kl, rel=1e-3, abs=1e-6), pytest.approx(0.0, abs=1e-5)]


def test_a_division_whose_loss_is_no_number_never_wins():
    model, tokens = Decoder(tiny("llama")), whole_sequences()
    dense = DenseStates(model, tokens, sinks="apart", ridge=RIDGE)
    dense.map_addition = lambda window, m: m * float("nan")
    one = join_windows(division_into_layers(LAYERS), 2)
    assert CollapseTrial(dense, tokens).losses([one, join_windows(one, 3)], "trying") == [float("inf")] * 2


def divisions(n: int) -> list[tuple[tuple[int, int], ...]]:
    """All divisions of the layers of which n begin no window; the first one cannot."""
    swallowed = itertools.combinations(range(1, LAYERS), n)
    return [division_of_name("layers " + "+".join(map(str, gone)), LAYERS) for gone in swallowed]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_with_every_division_tried_the_best_one_is_taken(n):
    """Against a loop over all of them written out."""
    model, tokens = Decoder(tiny("llama")), whole_sequences()
    dense = DenseStates(model, tokens, sinks="apart", ridge=RIDGE)
    trial = CollapseTrial(dense, tokens.first(48))
    losses = dict(zip(divisions(n), trial.losses(divisions(n), "trying"), strict=True))
    best = min(losses, key=losses.__getitem__)
    _, decisions = collapsed(n, tokens, divisions=100, finalists=1)
    assert decisions["removal_order"][-1] == f"finally {name_of_division(best)}"
    assert decisions["losses"][-1] == pytest.approx(losses[best], rel=1e-4)
    _, one = collapsed(1, tokens, trials=1, divisions=0, exchanges=0)
    least = min(range(LAYERS - 1), key=lambda s: dense.undone_work((s, s + 2)))
    assert one["removal_order"] == [f"finally layers {least + 1}"]


def test_what_is_close_is_tried_on_more_tokens(monkeypatch):
    """At most as many as are asked for; what is not close stays out, though it would have won."""
    few = {"layers 3": 1.0, "layers 1": 1.02, "layers 4": 1.04, "layers 2": 1.09, "layers 5": 1.3}
    many = {"layers 3": 1.0, "layers 1": 0.9, "layers 4": 0.8, "layers 2": 0.1, "layers 5": 0.0}

    def losses(self, some, _):
        return [(few if self.mask.sum() < 50 else many)[name_of_division(one)] for one in some]

    monkeypatch.setattr(CollapseTrial, "losses", losses)
    asked = {}, {"finalists": 3}, {"finalists": 2}, {"close": 0.01}, {"close": 0.5, "finalists": 9}, {"finalists": 1}
    given = {"trial_tokens": 48, "final_tokens": 96, "exchanges": 0}
    found = [collapsed(1, whole_sequences(), **given | each)[1] for each in asked]
    wanted = "3142", "314", "31", "3", "31425", "3"
    assert [[one["layers"] for one in each["finalists"]] for each in found] == [list(each) for each in wanted]
    assert [each["removal_order"][0] for each in found] == [f"finally layers {each}" for each in "241353"]
    assert [each["losses"][0] for each in found] == [0.1, 0.8, 0.9, 1.0, 0.0, 1.0]
    assert all(one["kl"] == many[f"layers {one['layers']}"] for each in found for one in each["finalists"])


def test_no_exchange_of_a_layer_is_better_than_the_best_trial():
    """Steps alone, of one candidate each, end where exchanges are; these go on until they are at an end."""
    tokens, steps = whole_sequences(1), {"trials": 1, "divisions": 0, "finalists": 1}
    _, before = collapsed(2, tokens, exchanges=0, **steps)
    _, after = collapsed(2, tokens, exchanges=100, **steps)
    trial = CollapseTrial(DenseStates(Decoder(tiny("llama")), tokens, "apart", RIDGE), tokens.first(48))
    assert after["losses"][-1] < before["losses"][-1]
    assert after["losses"][:-1] == before["losses"][:-1]
    gone = set(after["removed_layers"])
    others = [one for one in divisions(2) if len(gone & set(numbers(name_of_division(one)))) == 1]
    assert len(others) == 2 * 3
    assert set(exchange_layers(division_of_name(after["removal_order"][-1].removeprefix("finally "), LAYERS))) == set(
        others
    )
    assert min(trial.losses(others, "trying")) > after["losses"][-1]


@pytest.mark.parametrize("n", range(1, LAYERS))
def test_the_lightest_divisions_are_those_of_all(n):
    weights = torch.rand(LAYERS + 1, LAYERS + 1, generator=torch.Generator().manual_seed(n)).tolist()
    sums = {each: sum(weights[s][e] for s, e in each) for each in divisions(n)}
    for count in (1, 3, 100):
        found = find_lightest(LAYERS, n, count, lambda window: weights[window[0]][window[1]])
        assert found == sorted(sums, key=sums.__getitem__)[:count]


def test_steps_alone_lead_past_a_window_that_divisions_find(monkeypatch):
    """Where one layer is cheapest alone, and two others are together."""
    cost = {(0, 2): 0.1, (2, 5): 0.15, (2, 4): 0.2, (3, 5): 0.2}
    monkeypatch.setattr(
        DenseStates, "undone_work", lambda _, window: cost.get(window, float(window[1] - window[0] - 1))
    )
    monkeypatch.setattr(
        CollapseTrial, "losses", lambda self, some, _: [sum(map(self.dense.undone_work, one)) for one in some]
    )
    _, steps = collapsed(2, whole_sequences(), divisions=0, exchanges=0, finalists=1)
    _, both = collapsed(2, whole_sequences(), exchanges=0, finalists=1)
    assert steps["removal_order"] == ["layers 1", "finally layers 1+3"]
    assert both["removal_order"] == ["layers 1", "finally layers 3-4"]
    assert steps["losses"] == pytest.approx([0.1, 0.3])
    assert both["losses"] == pytest.approx([0.1, 0.15])


def test_the_name_of_a_division_says_it():
    assert name_of_division(((0, 1), (1, 4), (4, 6))) == "layers 2-3+5"
    for n in range(1, LAYERS):
        for each in divisions(n):
            assert division_of_name(name_of_division(each), LAYERS) == each


def test_maps_that_are_let_go_are_fitted_again():
    dense = DenseStates(Decoder(tiny("llama")), whole_sequences(), sinks="apart", ridge=RIDGE)
    m = dense.m[1][0]
    before, left = dense.map_addition((1, 4), m), dense.undone_work((1, 4))
    dense.keep_maps([(2, 4)])
    assert torch.equal(dense.map_addition((1, 4), m), before)
    assert dense.undone_work((1, 4)) == left


def test_layers_that_do_nothing_go_first_and_are_not_missed(ids):
    model = Decoder(tiny("llama"))
    for layer in (model.layers[2], model.layers[4]):
        layer.out.weight.data.mul_(1e-4)
        layer.down.weight.data.mul_(1e-4)
    before = logits(model, ids)
    decisions = LaCoLS(trial_tokens=48).prune(model, whole_sequences(), ratio(model, 2))
    assert decisions["removed_layers"] == [2, 4]
    torch.testing.assert_close(logits(model, ids), before, rtol=0, atol=0.02 * float(before.abs().max()))


def test_an_order_that_is_known_is_followed_without_a_trial(monkeypatch):
    model, decisions = collapsed(3, whole_sequences())
    _, shorter = collapsed(2, whole_sequences())
    order = decisions["removal_order"]
    assert shorter["removal_order"][:1] == order[:1]
    assert (decisions["free_removals"], shorter["free_removals"]) == (2, 1)
    found = collapsed(2, dataclasses.replace(whole_sequences(), order=tuple(order[:2])))[1]  # as at another ratio
    assert found == shorter | {"losses": [None, *shorter["losses"][1:]]}
    found = collapsed(3, dataclasses.replace(whole_sequences(), order=tuple(order[:2])))[1]
    assert found == decisions | {"losses": [None, None, decisions["losses"][2]]}
    monkeypatch.setattr(CollapseTrial, "__init__", lambda *_: pytest.fail("nothing was left to find"))
    again, repeated = collapsed(3, dataclasses.replace(whole_sequences(), order=tuple(order)))
    assert repeated["removed_layers"] == decisions["removed_layers"]
    assert repeated["removal_order"] == order
    assert repeated["losses"] == [None] * 3
    ids = whole_sequences().ids
    assert torch.equal(logits(again, ids), logits(model, ids))


@pytest.mark.parametrize(("filler", "memory"), [(77, 2**30), (0, 1), (0, 40_000)])
def test_padding_and_micro_batches_change_nothing(filler, memory, ids):
    model, decisions = collapsed(3, calibration())
    other, again = collapsed(3, calibration(filler=filler, memory=memory))
    assert again["removed_layers"] == decisions["removed_layers"]
    expected = logits(model, ids)
    torch.testing.assert_close(logits(other, ids), expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


def test_stock_transformers_loads_the_result(tmp_path):
    model, _ = collapsed(2, whole_sequences())
    manifest = save_load.save(model, tmp_path / "model")
    assert manifest["loads_with"] == "transformers"
    assert manifest["parameters"] == parameters(Decoder(tiny("llama"))) - 2 * layer_parameters(model.layers[0])


def test_a_model_that_has_lost_an_mlp_is_unsupported():
    model = Decoder(tiny("llama"))
    layers = model.layers
    layers[2].remove_mlp()
    model.set_layers(layers)
    with pytest.raises(Unsupported, match="a layer has no MLP"):
        LaCoLS().plan(model, 0.2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ridge": "0"}, "laco-ls:ridge is float, more than 0 and finite; got '0'"),
        ({"trials": "0"}, "laco-ls:trials is int, at least 1; got '0'"),
        ({"divisions": "-1"}, "laco-ls:divisions is int, at least 0; got '-1'"),
        ({"sweeps": "0"}, "laco-ls:sweeps is int, at least 1; got '0'"),
        ({"choose": "angle"}, "laco-ls:choose is fit, error or cosine; got 'angle'"),
        ({"trial_tokens": "1"}, "laco-ls:trial_tokens is int, at least 2; got '1'"),
        ({"search_tokens": "1"}, "laco-ls:search_tokens is int, at least 2; got '1'"),
        ({"tokens": "0"}, "laco-ls:tokens is int, at least 2 or None; got '0'"),
    ],
)
def test_unsound_parameters_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        methods.make("laco-ls", given)
