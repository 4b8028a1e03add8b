"""States that wait in files change nothing to the last bit, take no memory, and leave nothing behind."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch
from conftest import VOCABULARY, tiny
from tiny_methods import EXPERTS, SPECS, TINY, layers_for

import methods
from bench.runs.inputs import sha256_of_state
from bench.system import environment
from methods.errors import NoRoom
from methods.model import layer_store
from methods.model.calibration import Calibration, SweepLogs
from methods.model.decoder import Decoder
from methods.model.layer_store import LayerStore, _lies_in, _mapped_files, put_to_wait

RATIO = 0.3
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads files of the Linux kernel")
AS_ANOTHER = (
    "angular",
    "wanda-sp",
    "finercut",
    "shortened-llama",
    "minitron-width",
)  # read states as others do: at night
WAITING = [
    pytest.param("llama", name, marks=[pytest.mark.nightly] if name in AS_ANOTHER else [])
    for name in SPECS
    if TINY[name].looks_at != "nothing"
]
COMPENSATED = ["scale", "linearpatch", "ghost", "replaceme"]
COMPENSATED = [*(f"shortgpt+{name}" for name in COMPENSATED), "llm-drop+replaceme", "flap+refit", "flap+blockwise"]
WAITING += [("llama", name) for name in COMPENSATED]
WAITING += [("mixtral", name) for name in EXPERTS if name != "expert-random"]
WAITING += [("gemma2", "laco-ls"), ("gemma2", "shortgpt+replaceme"), ("phi", "obs"), ("phi", "shortgpt+ghost")]
SETTINGS = {
    "angular": {"token": "all"},
    "laco-ls": {"trial_tokens": "48", "attention": "yes", "later": "yes", "sweeps": "2"},
    "laco-puzzle": {"steps": "2", "tokens": "48", "best": "1"},
    "puzzle": {"steps": "1", "tokens": "48", "best": "1"},
    "evopress": {"generations": "1", "offspring": "2", "initial": "2", "tokens": "48"},
}


@pytest.fixture
def calibration():
    ids = torch.randint(3, VOCABULARY, (8, 32), generator=torch.Generator().manual_seed(1))
    return Calibration(ids, torch.ones_like(ids, dtype=torch.bool), memory=2**17)  # several micro-batches


@pytest.mark.parametrize(("family", "name"), WAITING)
def test_every_method_does_the_same_with_states_in_files(family, name, calibration, tmp_path, monkeypatch):
    put = list[torch.Tensor]()
    waits = layer_store.put_to_wait
    monkeypatch.setattr(layer_store, "put_to_wait", lambda x, folder: put.append(x) or waits(x, folder))
    pruner = methods.make(name, SETTINGS.get(name if family == "llama" else "", SPECS.get(name, {})))
    one, other = (Decoder(tiny(family, layers=layers_for(name))) for _ in range(2))
    decided = pruner.prune(one, calibration, RATIO)
    assert put == []
    assert pruner.prune(other, replace(calibration, offload=tmp_path), RATIO) == decided
    assert sha256_of_state(other.model) == sha256_of_state(one.model)
    assert len(put) > layers_for(name)
    assert list(tmp_path.iterdir()) == []  # files have no name


@pytest.mark.nightly
@LINUX
def test_anonymous_memory_is_without_the_states_that_wait(tmp_path):
    """Nine sets of states of all tokens are there when a cut is judged, and next to none of them in memory."""
    code = """
import os, sys, torch
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
import methods
from bench.system.memory import anonymous_bytes_of
from methods.compensation import base
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder

sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
ids, errors = torch.randint(3, 64, (128, 256)), base.errors_of_fit
taken = []
base.errors_of_fit = lambda *given, **more: taken.append(anonymous_bytes_of(os.getpid())) or errors(*given, **more)
for folder in (Path(sys.argv[1]), None):
    model = Decoder(LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=64)))
    before = anonymous_bytes_of(os.getpid())
    calibration = Calibration(ids, torch.ones_like(ids, dtype=torch.bool), memory=2**21, offload=folder)
    methods.make("shortgpt+scale").prune(model, calibration, 0.4)
    print((taken.pop() - before) / (ids.numel() * 64 * 4))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=environment.CHECKOUT, capture_output=True, check=True
    )
    in_files, in_memory = map(float, done.stdout.split())
    assert in_memory > 6
    assert in_files < 2, done.stdout


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_states_in_a_file_are_what_they_were_and_what_is_written_to_them_stays_out_of_it(dtype, tmp_path):
    x = torch.randn(3, 5, 70, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = put_to_wait(x[1:, ::2], tmp_path)
    assert torch.equal(found, x[1:, ::2])
    assert found.dtype == dtype
    assert sys.platform != "linux" or _lies_in(_mapped_files(), found)
    assert list(tmp_path.iterdir()) == []
    assert put_to_wait(x[:0], tmp_path).shape == (0, 5, 70)


def test_a_folder_that_takes_no_more_says_so_in_a_line_and_keeps_no_file(tmp_path, monkeypatch):
    x = torch.ones(2, 3)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "from_file", full)
    with pytest.raises(NoRoom, match=r"^the folder of --offload takes no more states: No space left on device; name"):
        put_to_wait(x, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_that_goes_on_has_its_states_in_files_too(calibration, tmp_path):
    """In the micro-batches of this time, which may be other ones."""
    states = torch.arange(24.0).view(8, 3, 1)
    first = SweepLogs(tmp_path / "log").log(list(states.split(3)), "of")
    first._last = -1e9  # long ago, so that it is written
    first.add([torch.ones(1)], [one + 1 for one in states.split(3)])
    waiting = replace(calibration, offload=tmp_path)
    again = SweepLogs(tmp_path / "log").log(list(torch.zeros(8, 3, 1).split(5)), "of", wait=waiting.wait).take()
    assert [len(one) for one in again] == [5, 3]
    assert torch.equal(torch.cat(again), states + 1)
    assert sys.platform != "linux" or all(_lies_in(_mapped_files(), one) for one in again)


@pytest.mark.parametrize(("name", "sweeps"), [("shortgpt+scale", 2), ("flap+refit", 3), ("obs", 1), ("slicegpt", 1)])
def test_sweeps_that_change_a_model_or_mend_it_read_the_next_layer_ahead(
    name, sweeps, calibration, tmp_path, monkeypatch
):
    model, ahead = Decoder(tiny("llama"), LayerStore(tmp_path)), Counter[int]()
    monkeypatch.setattr(Decoder, "read_ahead", lambda self, number: ahead.update([number]))
    methods.make(name).prune(model, calibration, RATIO)
    assert set(range(1, 6)) <= set(ahead)
    assert ahead[1] >= sweeps
