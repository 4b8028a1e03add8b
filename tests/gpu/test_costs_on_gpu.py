"""What a GPU is asked for: host waits, launches, work in float64 and bytes, counted on an emulated one.

The bounds are what was counted, in units that do not depend on the model's size: more of it is a step back.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from conftest import tiny
from emulated import EmulatedGpus
from places import model_of

import methods
from bench.evaluation import scoring
from methods.least_squares import LeastSquares
from methods.model.activations import Step, collect_by_layer
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.trials import blocks as trials

IDS = torch.randint(3, 128, (8, 24), generator=torch.Generator().manual_seed(1))
EVERY = torch.ones_like(IDS, dtype=torch.bool)
CALIBRATION = Calibration(IDS, EVERY, memory=100_000)
LAYERS, WIDTH = 6, 32


def counted(_: int, steps: Iterator[Step]) -> list[torch.Tensor]:
    return [torch.tensor(sum(1 for _ in steps))]


def waits(gpus):
    """Return how often the host has waited, copies of what it sends or fetches included."""
    return sum(gpus.waits.values())


def peak_beside_the_weights(decoder, gpus, do):
    """Return the peak of doing something beside the weights, in bytes; the model outweighs the calibration's states."""
    weights = gpus.memories[0].now
    torch.cuda.reset_peak_memory_stats()
    do(decoder)
    return gpus.memories[0].peak - weights


def first(rows, columns):
    """Return so little calibration that the models below outweigh its states."""
    return Calibration(IDS[:rows, :columns], EVERY[:rows, :columns])


def test_a_forward_of_the_scorer_waits_for_nothing():
    """What it does is known from the questions, and is on the GPU before the first one."""
    questions = sorted({(tuple(row[:12] + other[:3]), 3) for row in IDS.tolist() for other in IDS.tolist()})
    counts = {}
    with EmulatedGpus() as gpus:
        model = model_of("llama", layers=LAYERS).to("cuda")
        for batch_tokens in (16, 64):
            forwards = []
            handle = model.register_forward_pre_hook(lambda *_, forwards=forwards: forwards.append(1))
            gpus.waits.clear()
            scoring.score(model, questions, batch_tokens)
            handle.remove()
            counts[len(forwards)] = waits(gpus)
    (few, one), (many, other) = sorted(counts.items())
    assert many > few
    assert one == other <= 9


def test_reading_what_happens_in_the_layers_waits_once_a_micro_batch_for_its_check_of_overflow():
    with EmulatedGpus() as gpus:
        decoder = Decoder(model_of("llama", layers=LAYERS).to("cuda"))
        gpus.waits.clear()
        taken = sum(count for (count,) in collect_by_layer(decoder, CALIBRATION, counted))
        batches = len(CALIBRATION.batches(8 * WIDTH + 4 * 48, torch.float32))
        assert taken == LAYERS * batches > LAYERS
        assert waits(gpus) <= 4 * batches


@pytest.mark.parametrize(
    "method", ["sleb", *(pytest.param(one, marks=pytest.mark.nightly) for one in ("blockpruner", "finercut"))]
)
def test_a_trial_waits_once_for_each_micro_batch(method, monkeypatch):
    monkeypatch.setattr(trials, "TOKENS_AT_ONCE", 8)  # pieces whose losses are summed
    with EmulatedGpus() as gpus:
        decoder = Decoder(model_of("llama", layers=LAYERS).to("cuda"))
        gpus.waits.clear()
        found = methods.make(method).prune(decoder, CALIBRATION, 0.3)
        removed, blocks = len(found["removal_order"]), LAYERS if method == "sleb" else 2 * LAYERS
        tried = sum(blocks - number for number in range(removed))
        assert waits(gpus) <= (tried + 4) * len(CALIBRATION.batches(WIDTH * (LAYERS + 8), torch.float32))


@pytest.mark.parametrize("method", ["drop-tail", "laco", "shortgpt", "llm-pruner", "sleb"])
def test_what_solves_no_equations_multiplies_nothing_in_float64(method):
    with EmulatedGpus() as gpus:
        methods.make(method).prune(Decoder(model_of("llama", torch.bfloat16, LAYERS).to("cuda")), CALIBRATION, 0.3)
        assert not gpus.float64_flops


@pytest.mark.parametrize(
    ("method", "most"),
    [("drop-tail", 0.0), ("magnitude", 1.1), ("shortgpt", 1.1), ("slicegpt", 1.2), ("flap", 1.4), ("laco", 2.4)],
)
def test_the_peak_of_pruning_is_the_weights_and_about_what_states_may_take(method, most):
    """`most` is the share of Calibration.memory that is taken on top of that and of states that wait for a layer.

    LaCo takes it once more for states that its candidates share.
    """
    waiting = 4 * WIDTH * CALIBRATION.ids.numel() if method in ("magnitude", "shortgpt", "flap", "slicegpt") else 0
    with EmulatedGpus() as gpus:
        decoder = Decoder(model_of("llama", layers=LAYERS).to("cuda"))
        weights = gpus.memories[0].now
        torch.cuda.reset_peak_memory_stats()
        methods.make(method).prune(decoder, CALIBRATION, 0.3)
        assert gpus.memories[0].peak <= weights + waiting + most * CALIBRATION.memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_states_take_what_they_may_in_every_dtype(dtype):
    """So that half as many bytes a number are twice as many tokens at once."""
    with EmulatedGpus() as gpus:
        decoder = Decoder(model_of("llama", dtype, LAYERS).to("cuda"))
        taken = peak_beside_the_weights(decoder, gpus, lambda one: collect_by_layer(one, CALIBRATION, counted))
        waiting = dtype.itemsize * WIDTH * CALIBRATION.ids.numel()  # states between two layers
        assert 0.6 * CALIBRATION.memory < taken <= waiting + 1.1 * CALIBRATION.memory


@pytest.mark.parametrize(
    ("method", "settings", "most"),
    [("llm-pruner", {}, 2.6), ("llm-pruner", {"importance": "mix"}, 2.9), ("shortened-llama-taylor", {}, 3.2)],
)
def test_gradients_take_the_memory_of_a_few_layers_and_not_of_all(method, settings, most):
    """`most` counts layers, at a shape whose weights outweigh the states. The gradients of all would take 12."""
    with EmulatedGpus() as gpus:
        decoder = Decoder(tiny("llama", layers=12, hidden_size=128, intermediate_size=352).to("cuda"))
        layer, few = sum(each.nbytes for each in decoder.layers[0].module.parameters()), first(4, 16)
        prune = methods.make(method, settings).prune
        assert peak_beside_the_weights(decoder, gpus, lambda one: prune(one, few, 0.3)) <= most * layer


def test_slicegpt_holds_no_table_in_float64(monkeypatch):
    """The vocabulary outweighs the layers here; a copy of the head in its own dtype is all that may be twice there."""
    monkeypatch.setattr("methods.model.inserted.NUMBERS", 2**12)
    with EmulatedGpus() as gpus:
        decoder = Decoder(tiny("llama", vocab_size=8192, tie_word_embeddings=False).to("cuda"))
        table = decoder.head.weight.nbytes
        prune = methods.make("slicegpt").prune
        assert peak_beside_the_weights(decoder, gpus, lambda one: prune(one, first(1, 24), 0.3)) <= 1.1 * table


@pytest.mark.parametrize("intercept", [False, True])
def test_least_squares_are_solved_in_one_matrix_beside_their_sums(intercept):
    with EmulatedGpus() as gpus:
        sums = LeastSquares(256, 8, torch.device("cuda", 0))
        x = torch.randn(512, 256, device="cuda")
        sums.add(x, x[:, :8])
        del x
        before, matrix, few = gpus.memories[0].now, 256 * 256 * 8, 6 * 256 * 8 * 8
        torch.cuda.reset_peak_memory_stats()
        sums.solve(0.1, torch.zeros(256, 8, device="cuda"), intercept=intercept)
        assert gpus.memories[0].peak - before <= (2 if intercept else 1) * matrix + few


@pytest.mark.parametrize("method", ["flap", "wanda-sp"])
def test_refit_has_one_dense_layer_on_the_gpu_at_a_time(method):
    """At a shape of 12 layers that outweigh the states and the fits, of which 3.6 layers' worth goes."""
    with EmulatedGpus() as gpus:
        decoder = Decoder(tiny("llama", layers=12, hidden_size=64, intermediate_size=176).to("cuda"))
        layer = sum(each.nbytes for each in decoder.layers[0].module.parameters())
        prune = methods.make(f"{method}+refit").prune
        assert peak_beside_the_weights(decoder, gpus, lambda one: prune(one, first(2, 8), 0.3)) <= 1.3 * layer


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("slicegpt", {}),
        ("drop+ghost", {"layers": "2-3"}),
        ("drop+linearpatch", {"layers": "2-3"}),
        ("wanda-sp+refit", {}),
        ("obs", {}),
    ],
)
def test_work_in_float64_does_not_grow_with_the_tokens_of_a_model_in_half_precision(method, settings):
    """Solutions and eigenvectors are in float64, and products of what the tokens give in float32."""
    counted = []
    for rows in (4, 8):
        with EmulatedGpus() as gpus:
            decoder = Decoder(model_of("llama", torch.bfloat16, LAYERS).to("cuda"))
            methods.make(method, settings).prune(decoder, first(rows, 24), 0.3)
            counted.append(sum(gpus.float64_flops.values()))
    assert counted[0] == counted[1]
