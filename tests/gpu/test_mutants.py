"""Whether the emulated GPU finds what would fail on a real one: lines of the project with a move taken out.

Each is a file, a fragment of it that occurs there once, what stands there instead, and what is done then. What is
illegal on CUDA has to raise. What is legal, at the price of a wait, has to decide what it decided before.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from emulated import EmulatedGpus
from emulated.mutants import mutated
from places import model_of, spread
from tiny_methods import layers_for

import methods
from bench.evaluation import checks, scoring
from bench.healing import training
from bench.healing.teacher import DensePredictions
from bench.healing.training import Text
from bench.plan.protocol import Recipe
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder

IDS = torch.randint(3, 128, (8, 24), generator=torch.Generator().manual_seed(1))
CALIBRATION = Calibration(IDS, torch.arange(24) < torch.tensor([24, 19] * 4)[:, None], memory=200_000)


def on_one(model):
    return model.to("cuda")


def prune(name, settings, place):
    name, waiting, _ = name.partition(", waiting on the host")
    block = replace(CALIBRATION, memory=1) if waiting else CALIBRATION
    return methods.make(name, settings).prune(Decoder(place(model_of("llama", layers=layers_for(name)))), block, 0.3)


def score(place, family="llama"):
    questions = sorted({(tuple(row[:12]), 3) for row in IDS.tolist()})
    return scoring.score(place(model_of(family)), questions, batch_tokens=16)[0].tolist()


def score_untied(place):
    return score(place, "gpt_neox")


def read(place):
    return scoring.nll_of_windows(place(model_of("llama")), IDS, CALIBRATION.mask & (torch.arange(24) > 0), 9).tolist()


def generate(place):
    return checks.generate_greedily(place(model_of("llama")), [[5, 6], [7]], 3).tolist()


def diverge(place, folder):
    kept = checks.DenseOutputs(IDS, folder / "dense")
    kept.remember(place(model_of("llama")))
    return kept.divergence_of(place(model_of("llama")))


def heal(place):
    text, model = Text(IDS[:4], IDS[4:], "made here", "0" * 64), Decoder(place(model_of("llama")))
    recipe = Recipe(kind="lora", loss="kl", tokens=96, length=24, batch=4, points=1)
    curve = training.heal(model, text, recipe, dense=DensePredictions(model, text.train))
    return [point.heldout_loss for point in curve]


def do(what, place, folder):
    """Do what a mutant names: a thing above, or a method with its settings."""
    known = {"score": score, "score untied": score_untied, "read": read, "generate": generate, "heal": heal}
    if what == "diverge":
        return diverge(place, folder)
    name, _, setting = what.partition(":")
    key, _, value = setting.partition("=")
    return known[what](place) if what in known else prune(name, {key: value} if key else {}, place)


ILLEGAL = [
    ("methods/model/activations.py", "input_ids=ids.to(model.embed.weight.device)", "input_ids=ids", "shortgpt"),
    ("methods/model/gradients.py", "targets.to(logits.device)", "targets", "llm-pruner"),
    ("methods/model/gradients.py", "input_ids=ids.to(model.embed.weight.device)", "input_ids=ids", "llm-pruner"),
    ("methods/model/structures.py", "index.to(tensor.device)", "index", "flap"),
    ("methods/least_squares.py", "dtype=torch.float64, device=device)", "dtype=torch.float64)", "laco-ls"),
    ("methods/least_squares.py", ", device=each.where.device)", ")", "shortgpt+replaceme"),
    ("methods/trials/merges.py", "mask.to(final.device)", "mask", "laco"),
    ("methods/trials/windows.py", ", device=y[0].device)", ")", "laco-ls"),
    (
        "methods/compensation/replaceme.py",
        "self.ridge, torch.eye(D, dtype=torch.float64, device=batches[0].y.device)",
        "self.ridge, torch.eye(D, dtype=torch.float64)",
        "shortgpt+replaceme",
    ),
    ("methods/compensation/ghost.py", ", device=batches[0].y.device)", ")", "shortgpt+ghost"),
    ("methods/compensation/linear_patch.py", "dtype=torch.float64)).to(device)", "dtype=torch.float64))",
     "shortgpt+linearpatch"),
    ("methods/width/slicegpt.py", "dtype=torch.float64, device=self.device)", "dtype=torch.float64)", "slicegpt"),
    ("methods/width/slicegpt.py", "X[mask].to(self.device)", "X[mask]", "slicegpt, waiting on the host"),
    ("methods/width/slicegpt.py", "self.X[at].to(layer.device) @ Q", "self.X[at] @ Q", "slicegpt, waiting on the host"),
    ("methods/compensation/refit.py", "whole.on(layer.device)", "whole", "flap+refit"),
    ("methods/width/flap.py", "dtype=torch.float64, device=device)", "dtype=torch.float64)", "flap"),
    ("methods/width/flap.py", "z.cpu()[", "z[", "flap"),
    ("bench/evaluation/scoring.py", "tree_on_device, nodes = tree.to(model.device)", "tree_on_device, nodes = tree",
     "score"),
    ("bench/evaluation/scoring.py", "torch.cat(likelihood).cpu()", "torch.cat(likelihood)", "score"),
    ("bench/evaluation/scoring.py", "torch.cat(missed).cpu()", "torch.cat(missed)", "score"),
    ("bench/evaluation/scoring.py", "kept = torch.arange(0, device=model.device)", "kept = torch.arange(0)", "score"),
    ("bench/evaluation/scoring.py", "forward.nodes.stop, device=model.device)", "forward.nodes.stop)", "score"),
    ("bench/evaluation/forwards.py", "dtype=model.dtype, device=visible.device)", "dtype=model.dtype)", "score"),
    ("bench/evaluation/scoring.py", "ids[block].to(model.device)", "ids[block]", "read"),
    ("bench/evaluation/checks.py", "stored.get_tensor(str(row)).to(model.device)", "stored.get_tensor(str(row))",
     "diverge"),
    ("bench/evaluation/scoring.py", "-logarithms.cpu()", "-logarithms", "read"),
    ("bench/evaluation/checks.py", "window[None, :-1].to(model.device)", "window[None, :-1]", "diverge"),
    ("bench/healing/training.py", "self.text.train[rows].to(self.device)", "self.text.train[rows]", "heal"),
    ("bench/healing/teacher.py", "piece.to(dense.embed.weight.device)", "piece", "heal"),
    ("bench/healing/teacher.py", "[rows].to(self.head.weight.device)", "[rows]", "heal"),
    ("bench/healing/training.py", "self.text.held_out.to(self.device)", "self.text.held_out", "heal"),
]  # fmt: skip
ILLEGAL_ON_TWO = [
    ("methods/trials/blocks.py", "state.to(layer.device)", "state", "blockpruner"),
    ("methods/model/activations.py", "    x = x.to(layer.device)\n    empty", "    empty", "shortgpt"),
    ("methods/model/activations.py", "tensor.to(state.device)", "tensor", "shortgpt+ghost"),
    ("methods/model/inserted.py", "Q[:, :d].to(weight.device)", "Q[:, :d]", "slicegpt"),
    ("methods/model/inserted.py", "Q.to(matrix.weight.device)", "Q", "slicegpt"),
    ("methods/depth/laco.py", "weights[-1].detach().to(weight.device)", "weights[-1].detach()", "laco"),
    ("methods/depth/laco.py", "theta.detach().to(base.device)", "theta.detach()", "laco-published"),
    ("methods/trials/collapse_fit.py", "z, where = move_beside(before, z, self.where)", "where = self.where",
     "laco-ls"),
    (
        "methods/compensation/refit.py",
        "[state.to(layer.device) for state in x], [mask.to(layer.device) for mask in where]",
        "x, where",
        "flap+refit",
    ),
    ("bench/evaluation/forwards.py", "positions.to(states.device)", "positions", "score untied"),
    ("bench/evaluation/scoring.py", "forward.row.to(h.device)", "forward.row", "score untied"),
    ("bench/evaluation/scoring.py", "forward.pairs].to(h.device)", "forward.pairs]", "score untied"),
]  # fmt: skip
LEGAL = [
    ("methods/width/wanda_sp.py", "s.cpu()[", "s[", "wanda-sp"),
    ("bench/evaluation/checks.py", "input_ids=ids.to(model.device)", "input_ids=ids", "generate"),
    ("methods/model/activations.py", "(self.masks,) = move_beside(self.states, masks)", "self.masks = masks",
     "shortgpt"),
    ("methods/trials/windows.py", "calibration.mask[:, 1:].to(self.entry.x.device)", "calibration.mask[:, 1:]",
     "laco-ls"),
    ("methods/width/slicegpt.py", "entry.x.to(waits).float()", "entry.x.float()", "slicegpt, waiting on the host"),
    ("bench/evaluation/scoring.py", "scored[block].to(model.device)", "scored[block]", "read"),
]  # fmt: skip


def names(mutants):
    return [f"{file.rpartition('/')[2]} {fragment.strip()}" for file, fragment, *_ in mutants]


@pytest.mark.parametrize(("file", "fragment", "instead", "what"), ILLEGAL, ids=names(ILLEGAL))
def test_what_is_illegal_on_a_gpu_raises(file, fragment, instead, what, tmp_path):
    with EmulatedGpus(), mutated(file, fragment, instead), pytest.raises((RuntimeError, TypeError)):
        do(what, on_one, tmp_path)


@pytest.mark.parametrize(("file", "fragment", "instead", "what"), ILLEGAL_ON_TWO, ids=names(ILLEGAL_ON_TWO))
def test_what_is_illegal_with_layers_on_two_gpus_raises(file, fragment, instead, what, tmp_path):
    with EmulatedGpus(count=2), mutated(file, fragment, instead), pytest.raises((RuntimeError, TypeError)):
        do(what, spread, tmp_path)


@pytest.mark.parametrize(("file", "fragment", "instead", "what"), LEGAL, ids=names(LEGAL))
def test_what_is_legal_and_waits_is_not_reported(file, fragment, instead, what, tmp_path):
    with EmulatedGpus():
        expected = do(what, on_one, tmp_path)
    with EmulatedGpus(), mutated(file, fragment, instead):
        assert do(what, on_one, tmp_path) == expected
