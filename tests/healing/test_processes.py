"""Two processes train what one does, up to rounding, go on from a checkpoint, and are refused where they cannot."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import tiny
from safetensors import safe_open
from tiny_healing import TEXT, pruned, timeless, weights

from bench.cli.main import main
from bench.healing.processes import train_in_processes
from bench.healing.teacher import predict
from bench.healing.training import CHECKPOINT, Text, heal
from bench.plan import validate
from bench.plan.protocol import Recipe
from bench.records.run_folder import load_run
from methods.errors import UserError
from methods.model.decoder import Decoder

FEW = {
    "tokens": 2 * 256,
    "passes": 2,
    "length": 16,
    "batch": 5,
    "points": 4,
    "learning_rate": 3e-3,
}  # steps of 5, 5, 5, 1


def train(model, text, recipe, folder, dense=None):
    """Heal as a cell does."""
    if recipe.processes > 1:
        train_in_processes(model, text, recipe, dense, folder)
    return heal(model, text, recipe, dense=dense, folder=folder)


@pytest.mark.parametrize(("kind", "more"), [("full", {}), ("lora", {"loss": "kl", "top": 8, "recompute": True})])
def test_two_processes_come_to_the_weights_and_losses_of_one(kind, more, tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))
    models, curves = [], []
    for processes in (1, 2):
        recipe = Recipe(kind, processes=processes, **FEW, **more)
        dense = predict(Decoder(tiny("llama")), TEXT.train, recipe, "dense") if more else None
        models.append(pruned())
        curves.append(train(models[-1], TEXT, recipe, tmp_path / str(processes), dense))
    before, (alone, together) = weights(pruned()), map(weights, models)
    for name, weight in together.items():
        torch.testing.assert_close(weight, alone[name], rtol=0, atol=2e-5)
    moved = max(float((weight - before[name]).abs().max()) for name, weight in together.items())
    assert moved > 100 * 2e-5
    for name in ("loss", "heldout_loss"):
        own, other = ([getattr(point, name) or 0.0 for point in curve] for curve in curves)
        assert own == pytest.approx(other, rel=1e-4)
    assert [point.tokens for point in curves[0]] == [point.tokens for point in curves[1]]


def test_two_processes_go_on_from_a_checkpoint_and_say_why_one_failed(tmp_path):
    recipe, whole = Recipe("full", processes=2, **FEW | {"tokens": 256, "passes": 1}), pruned()
    expected = timeless(train(whole, TEXT, recipe, tmp_path / "whole"))
    broken = Text(TEXT.train.clone(), TEXT.held_out, TEXT.source, TEXT.sha256)
    broken.train[recipe.order(3)[0]] = 10**6  # no token, read in the last of four steps
    with pytest.raises(RuntimeError, match=r"one of 2 processes of healing has failed: .*index out of range"):
        train(pruned(), broken, recipe, tmp_path / "again")
    with safe_open(tmp_path / "again" / CHECKPOINT, "pt") as stored:
        assert json.loads(stored.metadata()["progress"])["step"] == 3
    model = pruned()
    assert timeless(train(model, TEXT, recipe, tmp_path / "again")) == expected
    for name, weight in weights(model).items():
        assert torch.equal(weight, weights(whole)[name])


def test_a_run_heals_in_two_processes_with_the_records_of_one(base, text_file, tmp_path):
    few = ("--heal-tokens", "256", "--heal-length", "16", "--heal-batch", "4", "--heal-text", str(text_file))
    run = [*base[:-4], "--speed-rounds", "0", "--methods", "drop-tail", "--ratio", "0.3", "--heal", "lora", *few]
    healed = []
    for processes in (1, 2):
        assert main([*run, "--heal-processes", str(processes), "--out", str(tmp_path / str(processes))]) == 0
        healed += [record for record in load_run(tmp_path / str(processes)) if record.cell.healing]
    curves = [record.measured.healing.curve for record in healed]
    perplexities = [next(iter(record.measured.text_scores.values())).perplexity for record in healed]
    assert perplexities[0] == pytest.approx(perplexities[1], rel=1e-4)
    assert [point.heldout_loss for point in curves[0]] == pytest.approx([p.heldout_loss for p in curves[1]], rel=1e-4)
    assert [record.cell.healing.processes for record in healed] == [1, 2]


def test_processes_on_gpus_need_one_for_each():
    target = validate.Target(Decoder(tiny("llama")), torch.device("cuda"), torch.float32)
    validate._check_healing(Recipe(processes=2, length=16), [], target, 2)
    with pytest.raises(UserError, match="needs a GPU for each, and a cell has 1; give --gpus-per-cell 2"):
        validate._check_healing(Recipe(processes=2, length=16), [], target, 1)
