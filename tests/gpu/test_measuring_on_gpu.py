"""What is measured of a model on an emulated GPU is what is measured of it on the CPU; a whole run works there."""

from __future__ import annotations

import weakref
from collections import deque
from dataclasses import replace

import pytest
import torch
from conftest import padded
from emulated import EmulatedGpus
from made_cells import made_cell
from places import model_of, spread

import methods
from bench.cli.main import main
from bench.data import pretrained
from bench.evaluation import checks, layer_similarity, scoring
from bench.healing import training
from bench.healing.teacher import DensePredictions
from bench.healing.training import Text
from bench.plan.kinds import to_plain
from bench.plan.protocol import Recipe, protocol_of_profile
from bench.records.run_folder import load_run
from bench.runs import inputs
from bench.speed import timed_cell
from bench.speed.benchmark import SpeedBenchmark, wait_for_devices
from bench.speed.timing import WallClock
from methods.checkpoint import save_load, transformers_compat
from methods.model.decoder import Decoder

IDS = torch.randint(3, 128, (6, 24), generator=torch.Generator().manual_seed(2))
CALIBRATION = padded(IDS.tolist())
QUESTIONS = sorted({(tuple(row[:9] + other[3:8]), 5) for row in IDS.tolist() for other in IDS[:2].tolist()})
TEXT = Text(IDS[:4], IDS[4:], "made here", "0" * 64)
RECIPE = Recipe(tokens=4 * 24, length=24, batch=2, points=2)


def on_one_gpu(model):
    return model.to("cuda")


# Layers on two GPUs take all that one GPU takes in the same dtype, which is left to the night.
AT_NIGHT = {"marks": pytest.mark.nightly}
PLACES = pytest.mark.parametrize(
    ("place", "dtype"),
    [
        (on_one_gpu, torch.bfloat16),
        (spread, torch.float32),
        pytest.param(on_one_gpu, torch.float32, **AT_NIGHT),
        pytest.param(spread, torch.bfloat16, **AT_NIGHT),
    ],
)
TRAININGS = [{"kind": "lora"}, {"kind": "full"}, {"kind": "lora", "loss": "kl"}]


def answers(model):
    """Return log-likelihoods of answers, which are greedy, and of windows with a cache and without."""
    scored = torch.arange(24).expand(3, 24) > 3
    likelihoods, greedy = scoring.score(model, QUESTIONS, batch_tokens=32)
    windows = [scoring.nll_of_windows(model, IDS[:3], scored, batch_tokens) for batch_tokens in (12, 48)]
    return likelihoods.tolist(), greedy.tolist(), [nll.tolist() for nll in windows]


@PLACES
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_answers_and_perplexity(family, place, dtype):
    expected = answers(model_of(family, dtype))
    with EmulatedGpus(count=2):
        assert answers(place(model_of(family, dtype))) == expected


@PLACES
def test_checks(place, dtype, tmp_path):
    def figures(dense, pruned, file):
        kept = checks.DenseOutputs(IDS, file)
        kept.remember(dense)
        return kept.divergence_of(pruned), checks.generate_greedily(
            pruned, [[5, 6, 7], [9], IDS[0].tolist()], 6
        ).tolist()

    def both():
        pruned = Decoder(model_of("llama", dtype))
        methods.make("flap").prune(pruned, CALIBRATION, 0.3)
        return model_of("llama", dtype), pruned.model

    expected = figures(*both(), tmp_path / "cpu")
    with EmulatedGpus(count=2):
        assert figures(*map(place, both()), tmp_path / "gpu") == expected


@pytest.mark.parametrize("place", [spread, pytest.param(on_one_gpu, **AT_NIGHT)])
@pytest.mark.parametrize("how", TRAININGS, ids=str)
def test_healing(how, place, tmp_path, monkeypatch):
    """Interrupted halfway, it goes on from its checkpoint to the same model."""
    train = training.Training._train

    def killed(self):
        if self.step == 1:
            raise KeyboardInterrupt
        train(self)

    def healed(place, folder):
        model, recipe = Decoder(place(model_of("llama"))), replace(RECIPE, **how)
        dense = DensePredictions(model, TEXT.train) if recipe.loss == "kl" else None
        methods.make("shortgpt").prune(model, CALIBRATION, 0.3)
        curve = training.heal(model, TEXT, recipe, dense=dense, folder=folder)
        curve = [replace(point, seconds=0.0) for point in curve]
        return curve, {name: value.detach().cpu() for name, value in model.model.named_parameters()}

    curve, weights = healed(lambda model: model, tmp_path / "cpu")
    with EmulatedGpus(count=2):
        with monkeypatch.context() as patched:
            patched.setattr(training.Training, "_train", killed)
            with pytest.raises(KeyboardInterrupt):
                healed(place, tmp_path / "gpu")
        for _ in range(2):  # from halfway, then from the end
            found, there = healed(place, tmp_path / "gpu")
            assert found == curve
            assert all(torch.equal(there[name], weights[name]) for name in weights)


def test_similarity():
    expected = layer_similarity.compare_states(Decoder(model_of("llama")), CALIBRATION)
    with EmulatedGpus():
        assert layer_similarity.compare_states(Decoder(model_of("llama").to("cuda")), CALIBRATION) == expected


@pytest.mark.parametrize("method", ["shortgpt", "flap", "slicegpt", "shortgpt+ghost"])
def test_a_model_is_saved_loads_again_and_is_the_same_to_the_last_bit(method, tmp_path):
    with EmulatedGpus():
        model = Decoder(model_of("llama").to("cuda"))
        methods.make(method).prune(model, CALIBRATION, 0.3)
        save_load.save(model, tmp_path / "model", probe=IDS[:1])
        loaded = save_load.load(tmp_path / "model", device=torch.device("cuda"))
        assert {parameter.device for parameter in loaded.model.parameters()} == {torch.device("cuda", 0)}
        here = inputs.sha256_of_state(loaded.model)
    on_cpu = save_load.load(tmp_path / "model")
    assert inputs.sha256_of_state(on_cpu.model) == here


def test_padding_with_zeros():
    with EmulatedGpus():
        model = Decoder(model_of("llama").to("cuda"))
        methods.make("flap").prune(model, CALIBRATION, 0.3)
        wide, off = transformers_compat.pad_layers(model, IDS[:1])
        assert off <= transformers_compat.TOLERANCE * 100
        assert wide.embed.weight.device == torch.device("cuda", 0)


def test_time_and_memory():
    protocol = protocol_of_profile("smoke", speed_rounds=6, prefill=(), decode=(4,), decode_steps=2)
    with EmulatedGpus() as gpus:
        devices = [torch.device("cuda", 0)]
        dense, pruned = (model_of("llama").to("cuda") for _ in range(2))
        methods.make("shortgpt").prune(Decoder(pruned), CALIBRATION, 0.3)
        timed = SpeedBenchmark(protocol, WallClock(lambda: wait_for_devices(devices)), devices, [], lambda where: None)
        weights = gpus.memories[0].now
        for point in timed.memory(pruned):
            assert point.peak_allocated_bytes > weights
        for point in timed.time(dense, pruned):
            assert point.failed is None
            assert len(point.rounds.dense) == 6


class Kept:
    """Is a pipe to itself: what is sent is received in the same order."""

    def __init__(self):
        self.sent = deque()

    def send(self, thing):
        self.sent.append(thing)

    def send_bytes(self, data):
        self.sent.append(bytes(data))

    def recv(self):
        return self.sent.popleft()

    recv_bytes = recv

    def recv_bytes_into(self, buffer):
        buffer[:] = self.sent.popleft()


def test_a_model_that_is_handed_over_goes_to_the_gpu_one_tensor_at_a_time(monkeypatch):
    arrived, arrival = list[weakref.ref](), timed_cell._tensor

    def noted(*asked):
        assert not [one for one in arrived if one() is not None]  # on the host
        tensor = arrival(*asked)
        arrived.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(timed_cell, "_tensor", noted)
    model, pipe = model_of("llama"), Kept()
    timed_cell.send_model(pipe, model)
    with EmulatedGpus():
        found = timed_cell.receive_model(pipe, torch.device("cuda", 0))
        assert len(arrived) > 20
        assert {one.device for one in (*found.parameters(), *found.buffers())} == {torch.device("cuda", 0)}
        assert inputs.sha256_of_state(found) == inputs.sha256_of_state(model)


@pytest.mark.parametrize("fits", [True, False])
def test_the_dense_model_is_loaded_beside_the_pruned_one_where_it_fits(fits, monkeypatch):
    def load(name, device, dtype, trust):
        if device.type == "cuda" and not fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.nn.Linear(1, 1).to(device, dtype), None

    monkeypatch.setattr(pretrained, "load", load)
    cell = made_cell("dense", None, protocol_of_profile("smoke"), device="cuda:0", dtype="bfloat16")
    with EmulatedGpus():
        found = timed_cell.load_dense(cell, torch.device("cuda", 0))
    assert (found.weight.device.type, found.weight.dtype) == ("cuda" if fits else "cpu", torch.bfloat16)


def figures(base, run, *arguments):
    """Return what a run decides and measures, and its records."""
    asked = [*base, "--methods", "flap,shortgpt+ghost", "--ratio", "0.3", "--save-models", *arguments]
    assert main([*asked, "--out", str(run)]) == 0
    records = load_run(run)
    known = ("perplexity", "checks", "pruned_sha256")
    decided = [{name: value for name, value in one.decisions.items() if name != "earlier"} for one in records]
    return {
        record.cell.label: (decisions, *(getattr(record.measured, name) for name in known))
        for record, decisions in zip(records, decided, strict=True)
    }, records


ON_GPU = ("--dtype", "float32", "--no-isolate", "--device")


def test_a_run_on_the_gpu_finds_what_a_run_on_the_cpu_finds(with_checks, tmp_path, monkeypatch):
    """With models that are saved and loaded again, for which there is one model in memory and no second one."""
    monkeypatch.setattr(checks, "STEPS", 8)
    expected, _ = figures(with_checks, tmp_path / "cpu")
    with EmulatedGpus(count=2) as gpus:
        found, records = figures(with_checks, tmp_path / "gpu", *ON_GPU, "cuda:1")
        assert gpus.memories[0].peak == 0
    assert found == expected
    for record in records:
        measured, peaks = record.measured, record.measured.peak_memory
        assert set(peaks) == set(measured.seconds)
        assert all(set(to_plain(peak)) == {"allocated_bytes", "reserved_bytes"} for peak in peaks.values())
        given = measured.calibration_memory_mib  # of 80 GiB nearly all is free
        assert given == (None if record.cell.method == "dense" else 8 * 1024)
        dense = 4 * measured.dense_parameters
        assert dense <= peaks["load"].allocated_bytes <= 1.2 * dense
        if "save" in peaks:
            assert peaks["save"].allocated_bytes <= 1.5 * measured.weight_bytes  # with the logits of the probe


@pytest.mark.nightly
def test_a_model_that_is_spread_over_two_gpus_is_measured_as_on_the_cpu(with_checks, tmp_path):
    """Pruned, healed, saved, loaded again and pruned further; what is timed says why it is not."""
    further = ["--then", "shortgpt:ratio=0.6", "--heal", "lora", "--heal-text", with_checks[4]]
    further += ["--heal-tokens", "128", "--heal-length", "16", "--heal-batch", "4", "--heal-learning-rate", "0.003"]
    expected, _ = figures(with_checks, tmp_path / "cpu", *further)
    with EmulatedGpus(count=2) as gpus:
        timed = ["--gpus-per-cell", "2", "--speed-rounds", "6"]
        found, records = figures(with_checks, tmp_path / "gpu", *further, *ON_GPU, "cuda", *timed)
        assert all(memory.peak for memory in gpus.memories)
    assert found == expected
    speeds = [record.measured.speed for record in records if record.measured.speed is not None]
    assert len(speeds) >= 3
    assert all("spread over several GPUs" in speed.failed for speed in speeds)
    for record in records:
        assert set(record.measured.peak_memory) == set(record.measured.seconds)
        for stage, peak in record.measured.peak_memory.items():
            each = [one.allocated_bytes for one in peak.each]
            assert peak.allocated_bytes == sum(each)
            assert max(each) <= 0.75 * sum(each) or stage != "load"
