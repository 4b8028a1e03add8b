"""Models that were saved before the package had folders: they load, and compute what they computed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from methods import checkpoint
from methods.checkpoint.save_load import verify
from methods.model.sizes import parameters

SAVED = Path(__file__).parents[1] / "golden" / "saved"
EXPECTED = json.loads((SAVED / "logits.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", sorted(EXPECTED["last"]))
def test_a_model_that_was_saved_before_the_move_loads_and_computes_the_same(name):
    expected = EXPECTED["last"][name]
    model = checkpoint.load(SAVED / name)
    assert parameters(model) == expected["parameters"]
    with torch.no_grad():
        last = model.model(torch.tensor(EXPECTED["ids"]), use_cache=False).logits[0, -1]
    assert torch.allclose(last, torch.tensor(expected["logits"]), rtol=0, atol=1e-6 * float(last.abs().max()))
    assert checkpoint.read_manifest(SAVED / name)["loads_with"] == expected["loads_with"]


def test_some_of_them_have_a_structure_of_their_own():
    assert {entry["loads_with"] for entry in EXPECTED["last"].values()} == {"transformers", "prunebench"}


@pytest.mark.parametrize("name", ["shortgpt", "flap", "slicegpt"])
def test_a_folder_of_before_the_move_passes_every_check(name):
    checks = list(verify(SAVED / name))
    assert [str(check) for check in checks if not check.passed] == []
    assert len(checks) >= 5
