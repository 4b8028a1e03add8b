"""Attention sinks in fits: told apart by their norm, weighed as a population, and judged on sequences not seen."""

from __future__ import annotations

import pytest
import torch
from calibrations import calibration
from conftest import tiny

import methods
from methods.compensation.base import BoundaryStates
from methods.compensation.ghost import Ghost
from methods.compensation.linear_patch import LinearPatch
from methods.compensation.scale import Scale
from methods.least_squares import TIMES, Rows, errors_of_fit, find_sinks, fit, states_to_fit
from methods.model.decoder import Decoder

B, T, D = 8, 30, 12
WHERE = torch.ones(B, T, dtype=torch.bool)
SINK = torch.zeros(B, T, dtype=torch.bool)
SINK[:, 0] = True


def states(birth: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """y and z of one micro-batch: z is a map of y and noise. With `birth` the first positions are sinks in z and in y
    tokens that one direction tells from the others."""
    draw = torch.Generator().manual_seed(0)
    y = torch.randn(B, T, D, generator=draw, dtype=torch.float64)
    z = y + 0.3 * y @ torch.randn(D, D, generator=draw, dtype=torch.float64)
    z += 0.5 * torch.randn(B, T, D, generator=draw, dtype=torch.float64)
    y[..., 0] *= 0.01
    if birth:
        y[:, 0, 0] = 3 + 0.1 * torch.randn(B, generator=draw, dtype=torch.float64)
        z[:, 0, 1] = 500.0
    return y, z


def rows(y: torch.Tensor, z: torch.Tensor, sink: torch.Tensor = SINK) -> list[Rows]:
    """Three micro-batches of unequal size."""
    return [
        Rows(*(one[part] for one in (y, z - y, z, WHERE, sink))) for part in (slice(0, 1), slice(1, 5), slice(5, 8))
    ]


def weighed(y: torch.Tensor, z: torch.Tensor, w: torch.Tensor, ridge: float) -> torch.Tensor:
    """Least squares of y W = z - y by rows multiplied by the root of their weight; penalties are further rows."""
    x, wanted, root = y.flatten(0, 1), (z - y).flatten(0, 1), w.flatten()[:, None].sqrt()
    penalty = torch.diag((ridge * (x * root).square().sum(0)).sqrt())
    rows, targets = torch.cat([x * root, penalty]), torch.cat([wanted * root, torch.zeros(D, D, dtype=torch.float64)])
    return torch.linalg.lstsq(rows, targets, driver="gelsd").solution


def test_sinks_are_what_is_far_longer_than_the_median_of_real_tokens():
    y, z = states()
    y[3, 7] *= 2 * TIMES * y.norm(dim=-1).median() / y[3, 7].norm()
    where = WHERE.clone()
    where[5] = False
    z[5] = 1e9  # padding counts for nothing
    (found,) = find_sinks([where], [y], [z])
    expected = SINK & where
    expected[3, 7] = True
    assert torch.equal(found, expected)
    split = find_sinks([where[:2], where[2:]], [y[:2], y[2:]], [z[:2], z[2:]])
    assert torch.equal(torch.cat(split), found)


def test_without_sinks_both_ways_are_the_plain_sum_of_squares():
    y, z = states(birth=False)
    none = torch.zeros_like(SINK)
    W = weighed(y, z, torch.ones(B, T, dtype=torch.float64), 0.3)
    for sinks in ("apart", "alike"):
        torch.testing.assert_close(fit(rows(y, z, none), 0.3, torch.zeros(D, D), sinks).W, W)


@pytest.mark.parametrize(("count", "share"), [(B, 1.0), (2, 2 / B)])
def test_both_populations_weigh_the_same_but_no_sink_more_than_a_sequence(count, share):
    y, z = states()
    sink = SINK.clone()
    sink[count:] = False
    w = torch.ones(B, T, dtype=torch.float64)
    w[sink] = share * float(z[~sink].square().sum() / z[sink].square().sum())
    torch.testing.assert_close(fit(rows(y, z, sink), 0.3, torch.zeros(D, D), "apart").W, weighed(y, z, w, 0.3))
    alike = weighed(y, z, torch.ones_like(w), 0.3)
    torch.testing.assert_close(fit(rows(y, z, sink), 0.3, torch.zeros(D, D), "alike").W, alike)


def test_a_sink_that_is_born_behind_the_cut_is_born_and_costs_the_others_little():
    """Left out, the sink is not born; as tokens like all others, sinks cost the others more than they have to."""
    y, z = states()
    left_out = fit([Rows(y, z - y, z, WHERE & ~SINK, SINK)], 1.0, torch.zeros(D, D), "apart").W

    def missed(W):
        found = errors_of_fit([SINK], [WHERE], [z], [y], [y + y @ W])
        return found["error_after"], found["sinks"]["error_after"]

    apart, alike = (missed(fit(rows(y, z), 1.0, torch.zeros(D, D), sinks).W) for sinks in ("apart", "alike"))
    others, sinks = missed(left_out)
    assert sinks > 0.9 and apart[1] < 0.4
    assert others < apart[0] < alike[0]


def test_held_out_errors_are_those_of_a_fit_without_every_fourth_sequence():
    y, z = states()
    fitted = fit(rows(y, z), 0.3, torch.zeros(D, D), "apart")
    held = torch.zeros(B, dtype=torch.bool)
    held[[3, 7]] = True
    w = torch.ones(B, T, dtype=torch.float64)
    w[SINK] = float(z[~SINK].square().sum() / z[SINK].square().sum())
    W = weighed(y[~held], z[~held], w[~held], 0.3)
    d = (y + y @ W - z).square().sum(-1)
    for found, population in ((fitted.held_out, ~SINK), (fitted.held_out_sinks, SINK)):
        tokens = population & held[:, None]
        assert found == pytest.approx(float(d[tokens].sum() / z.square().sum(-1)[tokens].sum()), rel=1e-6)


def test_one_sequence_has_nothing_to_hold_out():
    y, z = states(birth=False)
    fitted = fit([Rows(y[:1], (z - y)[:1], z[:1], WHERE[:1], ~WHERE[:1])], 0.3, torch.zeros(D, D), "apart")
    assert (fitted.held_out, fitted.held_out_sinks) == (None, None)


def test_sizes_are_compared_without_the_sinks():
    y, z = states()
    plain = [BoundaryStates(y[:, 1:], y[:, 1:], z[:, 1:], WHERE[:, 1:], SINK[:, 1:])]
    seen = [BoundaryStates(y, y, z, WHERE, SINK)]
    assert Scale().fit(seen) == pytest.approx(Scale().fit(plain), rel=1e-12)
    torch.testing.assert_close(LinearPatch().fit(seen).W, LinearPatch().fit(plain).W)
    assert Scale(sinks="alike").fit(seen) > 2 * Scale().fit(seen)
    assert float((LinearPatch(sinks="alike").fit(seen).W - LinearPatch().fit(seen).W).abs().max()) > 1


def test_ghost_weighs_them_as_it_is_told():
    y, z = states()
    seen = [BoundaryStates(y, y, z, WHERE, SINK)]
    for sinks in ("apart", "alike"):
        expected = fit(rows(y, z), 0.5, torch.zeros(D, D), sinks).W
        torch.testing.assert_close(Ghost(ridge=0.5, sinks=sinks).fit(seen).W, expected)


def with_sinks():
    """A model, and tokens that begin with one word whose embedding is huge and that the first MLP answers to alone."""
    model, tokens = Decoder(tiny("llama")), calibration()
    tokens.ids[:, 0] = 5
    tokens.ids[:, 1:][tokens.ids[:, 1:] == 5] = 6
    embedding, mlp = model.embed.weight.data, model.layers[0].inner.mlp
    word = embedding[5] / embedding[5].norm()
    embedding -= (embedding @ word)[:, None] * word  # no other word has a share of it
    embedding[5] = 10 * word
    for layer in model.layers:  # no attention: no other token sees it
        layer.out.weight.data.zero_()
    mlp.gate_proj.weight.data[0] = mlp.up_proj.weight.data[0] = 5 * word
    return model, tokens


@pytest.mark.parametrize("pair", ["drop+ghost", "drop+replaceme", "flap+refit", "laco-ls"])
def test_the_record_says_what_the_sinks_miss(pair):
    model, tokens = with_sinks()
    given = {"layers": "2-3"} if pair.startswith("drop") else {}
    decided = methods.make(pair, given).prune(model, tokens, 0.0 if given else 0.3)
    done = decided.get("compensation", decided)
    fits = [one["sinks"] for one in done.get("cuts") or done.get("refitted") or done["errors"] if "sinks" in one]
    assert fits
    for one in fits:
        assert one["tokens"] == len(tokens.ids)
        assert {"error_before", "error_after", "error_held_out"} <= set(one)


def test_a_factor_of_the_residual_leaves_the_sinks_what_they_are():
    """A sink is wanted in the size that it has, whatever the factor is, and these are the model's in direction."""
    model, tokens = with_sinks()
    done = methods.make("drop+scale", {"layers": "2+4"}).prune(model, tokens, 0.0)["compensation"]
    assert min(abs(factor - 1) for factor in done["factors"]) > 0.05
    for cut in done["cuts"]:
        assert cut["sinks"]["error_after"] == pytest.approx(cut["sinks"]["error_before"], rel=1e-4)


def test_a_sink_that_stays_is_wanted_in_its_own_size_and_no_other_token_is():
    y, z = states()
    y[:, 0, 1] = 300.0  # a sink in front as well; behind it is longer, in almost the same direction
    y[4, 0], z[5, 0] = y[4, 1], z[5, 1]  # one that is born, and one that ends
    (wanted,) = states_to_fit([WHERE], [y], [z], "apart")
    assert states_to_fit([WHERE], [y], [z], "alike")[0] is z
    stays = SINK.clone()
    stays[4:6] = False
    assert torch.equal(wanted[~stays], z[~stays])
    torch.testing.assert_close(wanted[stays].norm(dim=-1), y[stays].norm(dim=-1), rtol=1e-6, atol=0)
    cosines = torch.nn.functional.cosine_similarity(wanted[stays], z[stays], dim=-1)
    torch.testing.assert_close(cosines, torch.ones_like(cosines))


def test_a_sink_that_shrinks_costs_the_others_less_in_its_own_size():
    """The removed layers make a sink shorter and turn nothing."""
    y, z = states(birth=False)
    y[:, 0], z[:, 0] = 0.0, 0.0
    y[:, 0, 1], z[:, 0, 1] = 900.0, 300.0
    (wanted,) = states_to_fit([WHERE], [y], [z], "apart")

    def missed(target):
        W = fit(rows(y, target), 1.0, torch.zeros(D, D), "apart").W
        return errors_of_fit([SINK], [WHERE], [z], [y], [y + y @ W])["error_after"]

    assert missed(wanted) < 0.98 * missed(z)
