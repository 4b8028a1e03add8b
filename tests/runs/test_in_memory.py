"""`bench.prune` on models in memory: a copy is pruned as by the method alone, generates, and comes back from disk."""

from __future__ import annotations

import pytest
import torch
from byte_tokens import byte_tokenizer
from conftest import tiny

import bench
import methods
from methods.checkpoint import load
from methods.errors import UserError
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.sizes import parameters

IDS = torch.randint(3, 128, (8, 16), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("method", ["flap", "shortgpt+ghost", "laco:T=0.1", "drop-random"])
def test_a_copy_is_pruned_as_the_method_prunes(method):
    dense = tiny("llama")
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    pruned = bench.prune(dense, method, 0.2, calibration=IDS, seed=3)
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())

    name, _, given = method.partition(":")
    alone = Decoder(tiny("llama"))
    ratio = methods.budget.round_to_layers(alone, 0.2)
    torch.manual_seed(3)
    parameter = dict([given.split("=")]) if given else {}
    decisions = methods.make(name, parameter).prune(
        alone, Calibration(IDS, torch.ones_like(IDS, dtype=torch.bool), seed=3), ratio
    )
    assert torch.equal(pruned.model(IDS).logits, alone.model(IDS).logits)
    assert pruned.parameters == parameters(alone) == parameters(Decoder(pruned.model))
    assert pruned.removed == pytest.approx(1 - parameters(alone) / parameters(Decoder(dense)))
    assert pruned.decisions == decisions


def test_ratio_zero_is_the_model():
    dense = tiny("gpt2")
    pruned = bench.prune(dense, "wanda-sp", 0, calibration=IDS)
    assert pruned.removed == 0
    assert torch.equal(pruned.model(IDS).logits, dense(IDS).logits)


@pytest.mark.parametrize("method", ["flap", "slicegpt", "llm-drop+ghost", "drop-tail", "svd-llm"])
def test_a_copy_generates_with_a_cache_what_it_does_without_and_comes_back_from_disk(method, tmp_path):
    pruned = bench.prune(tiny("llama"), method, 0.3, calibration=IDS, ratio_of="decoder", exact=True)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    written = pruned.model.generate(IDS[:2], **options)
    assert torch.equal(written, pruned.model.generate(IDS[:2], use_cache=False, **options))
    pruned.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert torch.allclose(again.model(IDS).logits, pruned.model(IDS).logits, atol=1e-6)


def test_the_random_numbers_of_the_program_are_its_own():
    dense = tiny("llama")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    bench.prune(dense, "drop-random", 0.2, calibration=IDS)
    assert torch.equal(torch.rand(3), expected)


WRONG = {
    "no method": ({"method": "flapp"}, "did you mean flap"),
    "two methods": ({"method": "flap,laco"}, "one method prunes a model"),
    "no ratio": ({"ratio": 1}, "from 0 to below 1; got 1"),
    "no count": ({"ratio_of": "bytes"}, "ratio_of is one of all, decoder, layers"),
    "no tokenizer": ({"calibration": "c4"}, "needs tokenizer="),
    "no text": ({"calibration": "c5", "tokenizer": byte_tokenizer()}, "c5"),
    "no tokens": ({"calibration": torch.rand(2, 3)}, r"whole numbers of shape \(N, T\)"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_is_refused_in_one_line(wrong):
    changes, message = WRONG[wrong]
    given = {"method": "flap", "ratio": 0.2, "calibration": IDS} | changes
    with pytest.raises(UserError, match=message) as caught:
        bench.prune(tiny("llama"), given.pop("method"), given.pop("ratio"), **given)
    assert "\n" not in str(caught.value)
