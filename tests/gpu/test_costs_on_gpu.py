"""What a GPU is asked for: host waits, launches, work in float64 and bytes, counted on an emulated one.

The bounds are what was counted, in units that do not depend on the model's size: more of it is a step back.
"""

from __future__ import annotations

import pytest
import torch
from emulated import EmulatedGpus
from places import model_of

import methods
from bench.evaluation import scoring
from methods.depth import greedy_search
from methods.model.activations import steps
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder

IDS = torch.randint(3, 128, (8, 24), generator=torch.Generator().manual_seed(1))
EVERY = torch.ones_like(IDS, dtype=torch.bool)
CALIBRATION = Calibration(IDS, EVERY, memory=100_000)
LAYERS, WIDTH = 6, 32


def waits(gpus):
    """Return how often the host has waited, copies of what it sends or fetches included."""
    return sum(gpus.waits.values())


def test_a_forward_of_the_scorer_waits_for_nothing():
    """What it does is known from the questions, and is on the GPU before the first one."""
    questions = sorted({(tuple(row[:12] + other[:3]), 3) for row in IDS.tolist() for other in IDS.tolist()})
    counts = {}
    with EmulatedGpus() as gpus:
        model = model_of("llama").to("cuda")
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
        decoder = Decoder(model_of("llama").to("cuda"))
        gpus.waits.clear()
        taken = sum(1 for _ in steps(decoder, CALIBRATION))
        batches = len(CALIBRATION.batches(8 * WIDTH + 4 * 48))
        assert taken == LAYERS * batches > LAYERS
        assert waits(gpus) <= 4 * batches


@pytest.mark.parametrize("method", ["sleb", "blockpruner", "finercut"])
def test_a_trial_waits_once_for_each_micro_batch(method, monkeypatch):
    monkeypatch.setattr(greedy_search, "TOKENS_AT_ONCE", 8)  # pieces whose losses are summed
    with EmulatedGpus() as gpus:
        decoder = Decoder(model_of("llama").to("cuda"))
        gpus.waits.clear()
        found = methods.make(method).prune(decoder, CALIBRATION, 0.3)
        removed, blocks = len(found["removal_order"]), LAYERS if method == "sleb" else 2 * LAYERS
        trials = sum(blocks - number for number in range(removed))
        assert waits(gpus) <= (trials + 4) * len(CALIBRATION.batches(WIDTH * (LAYERS + 8)))


@pytest.mark.parametrize("method", ["drop-tail", "laco", "shortgpt", "llm-pruner", "sleb"])
def test_what_solves_no_equations_multiplies_nothing_in_float64(method):
    with EmulatedGpus() as gpus:
        methods.make(method).prune(Decoder(model_of("llama", torch.bfloat16).to("cuda")), CALIBRATION, 0.3)
        assert not gpus.float64_flops


@pytest.mark.parametrize(
    ("method", "most"),
    [("drop-tail", 0.0), ("magnitude", 1.1), ("shortgpt", 1.1), ("slicegpt", 1.1), ("flap", 1.4), ("laco", 1.4)],
)
def test_the_peak_of_pruning_is_the_weights_and_about_what_states_may_take(method, most):
    """`most` is the share of Calibration.memory that is taken on top."""
    with EmulatedGpus() as gpus:
        decoder = Decoder(model_of("llama").to("cuda"))
        weights = gpus.memories[0].now
        torch.cuda.reset_peak_memory_stats()
        methods.make(method).prune(decoder, CALIBRATION, 0.3)
        assert gpus.memories[0].peak <= weights + most * CALIBRATION.memory
