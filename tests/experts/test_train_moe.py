"""The recipe of the mixture that stands for real ones: what it learns from, and that a run takes what it writes."""

from __future__ import annotations

import pytest
import torch
from pages import load_program
from transformers import AutoTokenizer

import methods
from bench.data import pretrained, texts
from methods.model.decoder import Decoder
from methods.model.structures import mixtures_of


@pytest.fixture
def recipe(text_file, monkeypatch):
    """The script with a smaller model, on forty documents of random words."""
    module = load_program("studies/train_moe.py")
    smaller = {
        "TEXTS": (str(text_file),),
        "VOCABULARY": 300,
        "WIDTH": 24,
        "LAYERS": 2,
        "BATCH": 2,
        "LENGTH": 32,
        "WARM": 5,
    }
    for name, value in smaller.items():
        monkeypatch.setattr(module, name, value)
    return module


def test_it_learns_from_the_documents_of_calibration_alone(recipe, text_file, monkeypatch, tmp_path, capsys):
    seen = {}
    monkeypatch.setattr(recipe, "train", lambda model, tokens, steps, generator: seen.update(tokens=tokens) or [1.0])
    recipe.main(["--out", str(tmp_path / "moe")])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "moe")
    known, unseen = texts.split_halves(str(text_file))
    assert tokenizer.decode(seen["tokens"]).split("<end>")[1:] == known
    assert not set(known) & set(unseen)


def test_a_layer_that_starves_its_experts_weighs_more_beside_one_that_does_not(recipe):
    even, one_pair = torch.zeros(40, 16), torch.full((40, 16), -30.0)
    one_pair[:, :2] = 0
    assert float(recipe.imbalance((even,))) == pytest.approx(1)
    assert float(recipe.imbalance((one_pair, even))) == pytest.approx((16 / 2 + 1) / 2)


def test_the_loss_falls_and_a_run_takes_the_folder(recipe, tmp_path, capsys):
    losses, train = [], recipe.train
    recipe.train = lambda *given: losses.extend(train(*given)) or losses
    recipe.main(["--out", str(tmp_path / "moe"), "--steps", "30"])
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert "30 steps" in capsys.readouterr().out
    model, tokenizer = pretrained.load(str(tmp_path / "moe"), torch.device("cpu"), torch.float32)
    decoder = Decoder(model)
    assert {experts.count for experts in mixtures_of(decoder).values()} == {16}
    block = texts.make_calibration(tokenizer, recipe.TEXTS[0], 4, 24, 0)
    assert methods.make("reap").prune(decoder, block, 0.3)["experts"][0] < 16
