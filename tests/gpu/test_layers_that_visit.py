"""A model whose layers lie in files and visit the GPU is pruned as one that lies on the GPU as a whole."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny
from emulated import EmulatedGpus
from made_cells import made_cell
from places import CUDA, devices_of, model_of
from test_methods_on_gpu import CALIBRATION

import methods
from bench.cli.main import main
from bench.plan.protocol import protocol_of_profile
from bench.records.run_folder import load_run
from bench.records.speed_results import Speed
from bench.runs import job
from bench.schedule.memory_needs import Footprint, MemoryNeeds
from bench.schedule.shape import Shape
from bench.speed import timed_cell
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.layer_store import LayerStore

IDS = CALIBRATION.ids[:2]


@pytest.mark.parametrize("named", [CUDA, torch.device("cuda")], ids=str)
def test_what_has_been_changed_is_brought_back_and_all_else_is_what_it_was(named, tmp_path):
    """Within another visit of the same layer, which ends nothing; what is shared with another layer stays shared."""
    with EmulatedGpus() as gpus:
        decoder = Decoder(model_of("llama"), LayerStore(tmp_path, named))
        layer, other = decoder.layers[2], decoder.layers[3]
        other.up[0].weight = layer.up[0].weight
        before = {name: (one, one.detach().clone()) for name, one in layer.module.named_parameters()}
        around = gpus.memories[0].now
        with layer.visiting():
            with decoder.layers[2].visiting(), torch.no_grad():
                layer.down.weight.mul_(2)
                layer.out.weight = torch.nn.Parameter(layer.out.weight.detach()[:5] + 1)
            assert {one.device for one in layer.module.parameters()} == {CUDA}
            assert layer.down.weight.requires_grad
        assert gpus.memories[0].now == around
        assert other.up[0].weight is layer.up[0].weight
        for name, one in layer.module.named_parameters():
            was, value = before[name]
            wanted = value * 2 if one is layer.down.weight else value[:5] + 1 if one is layer.out.weight else value
            assert torch.equal(one, wanted)
            assert (one is was) == (one is not layer.out.weight)


def test_at_home_a_model_runs_as_it_is_and_all_around_its_layers_goes_back(tmp_path):
    with EmulatedGpus():
        decoder = Decoder(model_of("llama"), LayerStore(tmp_path, CUDA))
        with decoder.at_home(), torch.no_grad():
            assert devices_of(decoder) == ({torch.device("cpu")}, {torch.device("cpu")})
            assert decoder.layers[0].device.type == "cpu"
            found = decoder.model(IDS, use_cache=False).logits
        assert devices_of(decoder) == ({torch.device("cpu")}, {CUDA})
        assert decoder.layers[0].device == CUDA
    with torch.no_grad():
        assert torch.equal(found, Decoder(model_of("llama")).model(IDS, use_cache=False).logits)


def test_a_layer_is_whole_behind_an_error(tmp_path):
    with EmulatedGpus() as gpus:
        decoder = Decoder(model_of("llama"), LayerStore(tmp_path, CUDA))
        layer, around = decoder.layers[2], gpus.memories[0].now
        before = dict(layer.module.named_parameters())
        with pytest.raises(torch.OutOfMemoryError), layer.visiting():
            raise torch.OutOfMemoryError
        assert dict(layer.module.named_parameters()) == before
        assert gpus.memories[0].now == around


@pytest.mark.parametrize("alone", [True, False])
def test_a_model_whose_layers_visit_is_handed_over_whole_to_be_timed(alone, tmp_path, monkeypatch):
    """And lies then where it lay."""
    asked = made_cell("flap", 0.3, protocol_of_profile("full"), match="all", device="cuda:0")
    places = list[set[torch.device]]()

    def run(work, given, *, give, **_):
        assert given == (asked, 1, methods.files_of_plugins(), alone)
        give(SimpleNamespace(send=lambda _: None, send_bytes=lambda _: places.append(devices_of(decoder)[1])))

    monkeypatch.setattr(timed_cell.worker, "run", run)
    with EmulatedGpus() as gpus:
        decoder = Decoder(model_of("llama"), LayerStore(tmp_path, CUDA))
        lay, around = devices_of(decoder), gpus.memories[0].now
        assert lay == ({torch.device("cpu")}, {CUDA})
        assert timed_cell.time_beside_dense(decoder.model, asked, 1, alone=alone) == Speed(points=())
        assert devices_of(decoder) == lay
        assert gpus.memories[0].now == around
    assert set().union(*places) == {torch.device("cpu")}


@pytest.mark.parametrize("saved", [True, pytest.param(False, marks=pytest.mark.nightly)])
def test_a_run_whose_layers_visit_the_gpu_finds_what_one_in_memory_finds(saved, with_checks, tmp_path, monkeypatch):
    """But for what is generated, and for what lies there when it is loaded: what is around the layers."""
    asked = [*with_checks, "--methods", "flap,slicegpt,shortgpt+ghost", "--ratio", "0.3"]
    asked += ["--dtype", "float32", "--no-isolate"]
    monkeypatch.setattr("bench.evaluation.checks.STEPS", 8)  # on the CPU alone
    asked += ["--save-models"] if saved else ["--then", "llm-pruner:ratio=0.5"]
    assert main([*asked, "--out", str(tmp_path / "cpu")]) == 0
    monkeypatch.setattr(job, "needs_of", lambda cell, memory, card, **_: MemoryNeeds(0, 0, card is not None))
    with EmulatedGpus() as gpus:
        assert main([*asked, "--out", str(tmp_path / "gpu"), "--device", "cuda"]) == 0
        assert gpus.memories[0].now == 0
    both = zip(load_run(tmp_path / "cpu"), load_run(tmp_path / "gpu"), strict=True)
    pairs = [(want, found) for want, found in both if want.status != "unsupported" or found.status != want.status]
    assert len(pairs) > 3
    for want, found in pairs:
        assert found.status == want.status == "ok"
        decided = [{name: value for name, value in one.decisions.items() if name != "earlier"} for one in (want, found)]
        assert decided[0] == decided[1]
        assert found.measured.weights_in == "files"
        for name in ("perplexity", "pruned_sha256", "tasks"):
            assert getattr(found.measured, name) == getattr(want.measured, name)
        divergence = [
            {name: getattr(one.measured.checks, name) for name in ("kl", "agreement")} for one in (want, found)
        ]
        assert divergence[0] == divergence[1]
        layer = 4 * found.measured.dense_parameters_without_embeddings / found.measured.dense_layers
        around = 4 * (found.measured.dense_parameters - found.measured.dense_parameters_without_embeddings)
        assert around <= found.measured.peak_memory["load"].allocated_bytes <= 1.1 * around + layer


@pytest.mark.parametrize(
    "name",
    [
        "laco",
        "shortgpt",
        pytest.param("flap", marks=pytest.mark.nightly),
        "slicegpt",
        "llm-pruner",
        "2ssp",
        pytest.param("laco-ls", marks=pytest.mark.nightly),
        pytest.param("wanda-sp", marks=pytest.mark.nightly),
        pytest.param("obs", marks=pytest.mark.nightly),
        "svd-llm",
        pytest.param("shortgpt+replaceme", marks=pytest.mark.nightly),
        "sleb",
    ],
)
def test_the_gpu_holds_a_few_layers_at_a_time_and_what_is_counted_is_about_what_is_taken(name, tmp_path):
    """At a shape whose layers outweigh all else, of which the whole model would be 16."""
    options = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 16, "max_position_embeddings": 64}
    model = tiny("llama", **options)
    footprint = Footprint(Shape.of(Decoder(model)), 4)
    protocol = replace(
        protocol_of_profile("quick"), calibration_sequences=4, calibration_length=16, calibration_memory_mib=1
    )
    protocol = replace(protocol, tasks=(), texts=(), speed_rounds=0)
    needs = footprint.place(
        made_cell(name, 0.2, protocol, device="cuda:0"),
        2**40,
        card=1,
    )
    ids = CALIBRATION.ids[:4, :16]
    tokens = Calibration(ids, torch.ones_like(ids, dtype=torch.bool), memory=2**20)
    with EmulatedGpus() as gpus:
        decoder = Decoder(model, LayerStore(tmp_path, CUDA))
        methods.make(name).prune(decoder, tokens, 0.2)
        taken = gpus.memories[0].peak
    assert taken < 0.5 * footprint.weights
    assert 0.8 * taken <= needs.device <= 2 * taken
