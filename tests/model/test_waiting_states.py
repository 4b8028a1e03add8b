"""States that wait in files change nothing to the last bit, take no memory, and leave nothing behind."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace

import pytest
import torch
from conftest import VOCABULARY, tiny
from tiny_methods import EXPERTS, SPECS

import methods
from bench.run.fingerprint import state_sha256
from methods.model import waiting_states
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder

RATIO = 0.3
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads files of the Linux kernel")
NONE_WAIT = {"drop", "drop-tail", "drop-random"}  # decide without looking at states
WAITING = [("llama", name) for name in SPECS if name not in NONE_WAIT]
COMPENSATED = ["scale", "linearpatch", "ghost", "replaceme"]
COMPENSATED = [*(f"shortgpt+{name}" for name in COMPENSATED), "llm-drop+replaceme", "flap+refit"]
WAITING += [("llama", name) for name in COMPENSATED]
WAITING += [("mixtral", name) for name in EXPERTS if name != "expert-random"]
WAITING += [("gemma2", "laco-ls"), ("gemma2", "shortgpt+replaceme"), ("phi", "obs"), ("phi", "shortgpt+ghost")]
SETTINGS = {
    "angular": {"token": "all"},
    "laco-ls": {"trial_tokens": "48", "attention": "yes", "later": "yes", "sweeps": "2"},
    "laco-puzzle": {"depths": "1", "steps": "2", "tokens": "48", "best": "1"},
    "puzzle": {"steps": "1", "tokens": "48", "best": "1"},
    "evopress": {"generations": "1", "offspring": "2", "initial": "2", "tokens": "48"},
}


@pytest.fixture
def calibration():
    ids = torch.randint(3, VOCABULARY, (8, 32), generator=torch.Generator().manual_seed(1))
    return Calibration(ids, torch.ones_like(ids, dtype=torch.bool), memory=2**17)  # several micro-batches


@pytest.mark.parametrize(("family", "name"), WAITING)
def test_every_method_does_the_same_with_states_in_files(family, name, calibration, tmp_path, monkeypatch):
    put, model = list[torch.Tensor](), tiny(family)
    waits = waiting_states.put_to_wait
    monkeypatch.setattr(waiting_states, "put_to_wait", lambda x, folder: put.append(x) or waits(x, folder))
    pruner = methods.make(name, SETTINGS.get(name if family == "llama" else "", SPECS.get(name, {})))
    one, other = Decoder(copy.deepcopy(model)), Decoder(model)
    decided = pruner.prune(one, calibration, RATIO)
    assert put == []
    assert pruner.prune(other, replace(calibration, offload=tmp_path), RATIO) == decided
    assert state_sha256(other.model) == state_sha256(one.model)
    assert len(put) > 6  # layers
    assert list(tmp_path.iterdir()) == []  # files have no name
