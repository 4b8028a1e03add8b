"""Fits behind a norm: what is known is found again, and blocks miss less on text that they have not seen."""

from __future__ import annotations

import pytest
import torch
from conftest import LAYERS, VOCABULARY, tiny

import methods
from methods.least_squares import Norm, NormedMap, Rows, fit_normed
from methods.model.activations import enter_all
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder, make_twin
from methods.model.sizes import layer_parameters, parameters

FAMILIES = ("gemma2", "gemma3_text")


def tokens(seed: int, sequences: int = 64) -> Calibration:
    ids = torch.randint(0, VOCABULARY, (sequences, 24), generator=torch.Generator().manual_seed(seed))
    return Calibration(ids, torch.ones_like(ids, dtype=torch.bool))


def rows_of(found: NormedMap, seed: int, count: int = 400) -> Rows:
    """Sixteen sequences of inputs whose channels have a common part, and what the map gives for them."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(16, count // 16, found.W.shape[0], generator=draw, dtype=torch.float64) + 0.5
    x *= torch.randn(16, count // 16, 1, generator=draw, dtype=torch.float64).exp()  # sizes that the norm takes away
    y = found(x)
    everywhere = torch.ones(x.shape[:2], dtype=torch.bool)
    return Rows(x, y, y, everywhere, ~everywhere)


def missed(found: NormedMap, rows: Rows) -> float:
    return float((found(rows.x) - rows.y).square().sum() / rows.y.square().sum())


@pytest.fixture
def truth():
    draw = torch.Generator().manual_seed(1)
    W = torch.randn(12, 8, generator=draw, dtype=torch.float64)
    return NormedMap(W, Norm(torch.linspace(0.3, 3, 8, dtype=torch.float64), 1e-6))


def test_a_map_that_there_is_is_found_again_whatever_the_sizes_of_matrix_and_gains(truth):
    draw = torch.Generator().manual_seed(2)
    start = NormedMap(
        7 * (truth.W + 0.5 * torch.randn(truth.W.shape, generator=draw, dtype=torch.float64)),
        Norm(truth.norm.g / 3 * torch.linspace(0.7, 1.3, 8), truth.norm.epsilon),
    )
    seen, unseen = rows_of(truth, 3), rows_of(truth, 4)
    found, fitted = fit_normed([seen], 1e-3, start.W, "apart", start.norm)
    assert missed(start, unseen) > 0.3
    assert missed(found, unseen) < 0.012
    assert fitted.held_out < 0.012


def test_what_is_right_already_stays(truth):
    found, _ = fit_normed([rows_of(truth, 3)], 1.0, truth.W, "apart", truth.norm)
    torch.testing.assert_close(found(rows_of(truth, 4).x), truth(rows_of(truth, 4).x), rtol=1e-6, atol=1e-9)


def test_on_what_is_fitted_it_never_misses_more_than_before(truth):
    """Also for a target that no such map gives, as what several blocks add is."""
    for seed in range(5):
        rows = rows_of(truth, seed, 32)
        noise = torch.randn(rows.y.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        wanted = Rows(rows.x, 4 * noise, 4 * noise, rows.where, rows.sink)
        found, _ = fit_normed([wanted], 1.0, truth.W, "apart", truth.norm)
        assert missed(found, wanted) < missed(truth, wanted)
        o = rows.x @ found.W
        left = (o / found.norm.size(o) * (found(rows.x) - wanted.y)).sum((0, 1))  # each gain is its channel's best
        torch.testing.assert_close(left, torch.zeros(8, dtype=torch.float64), rtol=0.0, atol=1e-9)


@torch.no_grad()
def behind(model: Decoder, read: Calibration, layers: int) -> torch.Tensor:
    """What leaves the first layers, in float64."""
    entries, _ = enter_all(model, read, 10**6)
    return torch.cat([entry.run(model.layers[:layers], entry.x) for entry in entries]).double()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n", [1, 3])
def test_laco_ls_lowers_what_is_missed_on_other_text(family, n):
    dense, model = Decoder(tiny(family)), Decoder(tiny(family))
    ratio = n * layer_parameters(model.layers[0]) / parameters(model)
    decisions = methods.make("laco-ls", {"trial_tokens": 48}).prune(model, tokens(0), ratio)
    assert len(model.layers) == LAYERS - n
    plain, kept = make_twin(dense), [i for i in range(LAYERS) if i not in decisions["removed_layers"]]
    plain.set_layers([plain.layers[i] for i in kept])
    for report, (s, end) in zip(decisions["errors"], decisions["windows"], strict=True):
        assert report["error_held_out"] < report["error_before"]
        survivors = kept.index(s) + 1
        z = behind(dense, tokens(1), end + 1)
        errors = [float((behind(one, tokens(1), survivors) - z).square().sum()) for one in (model, plain)]
        assert errors[0] < errors[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_replaceme_lowers_what_is_missed_on_other_text(family):
    dense, model, plain = (Decoder(tiny(family)) for _ in range(3))
    methods.make("drop", {"layers": "2-3"}).prune(plain, None, 0.0)
    decisions = methods.make("drop+replaceme", {"layers": "2-3"}).prune(model, tokens(0), 0.0)
    (cut,) = decisions["compensation"]["cuts"]
    assert cut["error_held_out"] < cut["error_before"]
    z = behind(dense, tokens(1), 4)
    errors = [float((behind(one, tokens(1), 2) - z).square().sum()) for one in (model, plain)]
    assert errors[0] < errors[1]
    assert parameters(model) == parameters(plain)


@pytest.mark.parametrize("gain", [0.001, -0.001, 0.0])
def test_replaceme_leaves_the_error_that_it_records_where_gains_are_near_zero(gain):
    dense, model = Decoder(tiny("gemma3_text")), Decoder(tiny("gemma3_text"))
    for one in (dense, model):
        with torch.no_grad():
            one.layers[1].post_norm(1).weight[[3, 11, 20]] = gain - one.family.gain_offset
    decisions = methods.make("drop+replaceme", {"layers": "2-3"}).prune(model, tokens(0), 0.0)
    (cut,) = decisions["compensation"]["cuts"]
    y, z = behind(model, tokens(0), 2), behind(dense, tokens(0), 4)
    assert cut["error_after"] < cut["error_before"]
    assert float((y - z).square().sum() / z.square().sum()) == pytest.approx(cut["error_after"], rel=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_scale_multiplies_the_residual_in_effect(family):
    """Against the model whose states are multiplied at the cut; the norms' epsilon is all that differs."""
    model, plain = Decoder(tiny(family)), Decoder(tiny(family))
    decisions = methods.make("drop+scale", {"layers": "2"}).prune(model, tokens(0), 0.0)
    methods.make("drop", {"layers": "2"}).prune(plain, None, 0.0)
    (c,) = decisions["compensation"]["factors"]
    assert abs(c - 1) > 0.01
    ids = tokens(1, 2).ids
    hook = plain.layers[1].module.register_forward_hook(lambda module, args, out: c * out)
    with torch.no_grad():
        wanted, found = plain.model(ids).logits, model.model(ids).logits
    hook.remove()
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
