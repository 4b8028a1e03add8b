"""States that wait in files change nothing to the last bit, take no memory, and leave nothing behind."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import VOCABULARY, tiny
from tiny_methods import EXPERTS, SPECS

import methods
from bench.run.fingerprint import state_sha256
from bench.system import environment
from methods.errors import NoRoom
from methods.model import waiting_states
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.layer_store import LayerStore, _lies_in, _mapped_files
from methods.model.sweep_log import SweepLogs
from methods.model.waiting_states import put_to_wait

RATIO = 0.3
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads files of the Linux kernel")
NONE_WAIT = {"drop", "drop-tail", "drop-random"}  # decide without looking at states
WAITING = [("llama", name) for name in SPECS if name not in NONE_WAIT]
COMPENSATED = ["scale", "linearpatch", "ghost", "replaceme"]
COMPENSATED = [*(f"shortgpt+{name}" for name in COMPENSATED), "llm-drop+replaceme", "flap+refit"]
WAITING += [("llama", name) for name in COMPENSATED] + [("mixtral", name) for name in EXPERTS if name != "expert-random"]
WAITING += [("gemma2", "laco-ls"), ("gemma2", "shortgpt+replaceme"), ("phi", "obs"), ("phi", "shortgpt+ghost")]
SETTINGS = {
    "angular": {"token": "all"},
    "laco-ls": {"trial_tokens": "48", "sweeps": "2", "later": "yes"},
    "magnitude": {"order": "taylor"},
    "llm-pruner": {"sequences": "4", "tokens": "16", "importance": "mix"},
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
    pruner = methods.make(name, SPECS.get(name, {}))
    one, other = Decoder(copy.deepcopy(model)), Decoder(model)
    decided = pruner.prune(one, calibration, RATIO)
    assert put == []
    assert pruner.prune(other, replace(calibration, offload=tmp_path), RATIO) == decided
    assert state_sha256(other.model) == state_sha256(one.model)
    assert len(put) > 6  # layers
    assert list(tmp_path.iterdir()) == []  # files have no name
