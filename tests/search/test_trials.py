"""What trials compute of candidates of which only the lowest losses are asked for, and what they keep meanwhile."""

from __future__ import annotations

import math

import pytest
import torch
from calibrations import calibration
from conftest import VOCABULARY, tiny

from methods.model.decoder import Decoder
from methods.model.sizes import parameters
from methods.model.structures import sublayers_of
from methods.trials import blocks as trials
from methods.trials.blocks import Replacements, Trial
from methods.trials.selection import search


@pytest.fixture(autouse=True)
def few_tokens_at_once(monkeypatch):
    """Several pieces, behind each of which a candidate can be given up."""
    monkeypatch.setattr(trials, "TOKENS_AT_ONCE", 8)
    monkeypatch.setattr("methods.model.precision.CACHED", 3 * VOCABULARY)


@pytest.mark.parametrize(  # every pair of two of them; logits of the dense model fit, they do not, a batch a sequence
    ("lowest", "loss", "memory"),
    [(1, "nll", 2**30), (3, "kl", 2**30), (3, "nll", 2**14), (1, "kl", 2**14), (1, "nll", 1), (3, "kl", 1)],
)
def test_the_lowest_losses_are_exact_and_all_others_are_above_them(lowest, loss, memory):
    model = Decoder(tiny("llama"))
    blocks = sublayers_of(model, "attention", "mlp")
    whole = Trial(model, calibration(memory=memory), loss).losses_without(blocks)
    nth = sorted(whole)[lowest - 1]
    for order in (blocks, blocks[::-1]):
        expected = dict(zip(blocks, whole, strict=True))
        found = Trial(model, calibration(memory=memory), loss).losses_without(order, lowest=lowest)
        for block, loss_found in zip(order, found, strict=True):
            assert loss_found == pytest.approx(expected[block], rel=1e-6) or nth < loss_found <= expected[block]
        assert sorted(found)[:lowest] == pytest.approx(sorted(whole)[:lowest], rel=1e-6)


def test_what_is_above_the_losses_of_others_is_given_up():
    model = Decoder(tiny("llama"))
    sets = [Replacements([block]) for block in sublayers_of(model, "attention", "mlp")]
    whole = Trial(model, calibration(), "nll").losses(sets)
    low, high = min(whole) / 2, 2 * max(whole)
    assert Trial(model, calibration(), "nll").losses(sets, lowest=1, beside=[high]) == pytest.approx(
        Trial(model, calibration(), "nll").losses(sets, lowest=1), rel=1e-6
    )
    found = Trial(model, calibration(), "nll").losses(sets, lowest=1, beside=[low, high])
    assert all(low < one < true for one, true in zip(found, whole, strict=True))


@pytest.mark.parametrize(("lowest", "groups"), [(None, 1), (2, 2)])  # the first two go before the others
def test_dense_logits_that_do_not_fit_are_computed_once_for_all_candidates(lowest, groups, monkeypatch):
    model = Decoder(tiny("llama"))
    trial, computed = Trial(model, calibration(memory=2**14), "kl"), []
    assert not trial.keeps_dense
    once = Trial._log_probabilities
    monkeypatch.setattr(Trial, "_log_probabilities", lambda trial, x: computed.append(len(x)) or once(trial, x))
    trial.losses_without(sublayers_of(model, "attention"), lowest=lowest)
    assert sum(computed) <= groups * sum(len(batch.targets) for batch in trial.batches)
    assert trial.latest is None  # its memory is free


@pytest.mark.parametrize("loss", ["kl", "js", "js-released"])
def test_dense_logits_that_do_not_fit_are_computed_again_and_change_nothing(loss):
    model = Decoder(tiny("llama"))
    roomy, tight = (Trial(model, calibration(memory=memory), loss) for memory in (2**30, 2**10))
    assert roomy.keeps_dense and not tight.keeps_dense
    blocks = sublayers_of(model, "attention", "mlp")
    assert roomy.losses_without(blocks) == pytest.approx(tight.losses_without(blocks), rel=1e-5)


def test_a_loss_that_is_no_number_is_above_all_others(monkeypatch):
    monkeypatch.setitem(trials.LOSSES, "nll", lambda logits, p, targets: torch.tensor(math.nan))
    model = Decoder(tiny("llama"))
    sets = [Replacements([block]) for block in sublayers_of(model, "attention")]
    for lowest in (None, 2):
        assert Trial(model, calibration(), "nll").losses(sets, lowest=lowest, beside=[1.0]) == [math.inf] * len(sets)


def test_a_trial_changes_no_module():
    model = Decoder(tiny("llama"))
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    trial = Trial(model, calibration(), "nll")
    search(trial, sublayers_of(model, "attention", "mlp"), 0.3 * parameters(model))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.model.state_dict().items())
    assert len(model.layers) == 6
