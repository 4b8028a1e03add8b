"""Healing trains what it says on what it says, resumes exactly, and leaves a plain pruned model behind."""

from __future__ import annotations

import copy
import json
import math
from itertools import pairwise

import pytest
import torch
from conftest import tiny
from tiny_healing import CALIBRATION, IDS, SMALL, TEXT, pruned, timeless, weights
from torch import nn

import methods
from bench.cli.main import main
from bench.healing import training
from bench.healing.teacher import DensePredictions, predict
from bench.healing.trainable import make_trainable
from bench.healing.training import HELD_OUT, Text, draw_text, heal
from bench.plan.kinds import to_plain
from bench.plan.protocol import Recipe
from bench.records.run_folder import load_run
from bench.stats.clusters import ratio_interval
from methods.checkpoint import save_load
from methods.errors import UserError
from methods.model.decoder import Decoder
from methods.model.inserted import factors_of

PRUNED = [
    ("llama", "laco", 0.3),
    ("llama", "slicegpt", 0.3),
    ("llama", "flap", 0.3),
    ("llama", "svd-llm", 0.3),
    ("gpt2", "llm-pruner", 0.2),
    ("gemma3_text", "blockpruner", 0.2),
    ("opt", "slicegpt", 0.2),
    ("phi3", "shortgpt", 0.3),
]


@pytest.mark.parametrize("kind", ("lora", "full"))
@pytest.mark.parametrize(("family", "method", "ratio"), PRUNED)
def test_a_healed_model_is_a_plain_pruned_model_that_loads_again(family, method, ratio, kind, tmp_path):
    model = pruned(family, method, ratio)
    before, types = weights(model), [type(module) for module in model.model.modules()]
    curve = heal(model, TEXT, Recipe(kind=kind, learning_rate=3e-3, **SMALL))
    after = weights(model)
    assert [(name, w.shape, w.dtype) for name, w in after.items()] == [
        (name, w.shape, w.dtype) for name, w in before.items()
    ]
    assert [type(module) for module in model.model.modules()] == types
    assert all(parameter.requires_grad for parameter in model.model.parameters())
    assert not any(parameter.grad is not None for parameter in model.model.parameters())
    adapted = {id(matrix.weight) for layer in model.layers for matrix in factors_of(layer.matrices)}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    wanted = {n for n, p in model.model.named_parameters() if kind == "full" or id(p) in adapted}
    unused = {n for n in wanted if before[n].ndim == 1}  # a key's bias has no gradient
    assert changed <= wanted
    assert wanted - unused <= changed
    assert curve[-1].heldout_loss < curve[0].heldout_loss
    logits = model.model(IDS[:2], use_cache=False).logits.detach()
    save_load.save(model, tmp_path / "saved")
    again = save_load.load(tmp_path / "saved")
    assert torch.allclose(again.model(IDS[:2], use_cache=False).logits, logits, atol=1e-4)


def test_the_curve_is_what_the_model_gives():
    model = pruned()
    dense = nn.functional.cross_entropy

    def loss(model, ids):
        logits = model.model(ids, use_cache=False).logits[:, :-1].detach()
        return float(dense(logits.flatten(0, 1), ids[:, 1:].flatten()))

    start = loss(model, TEXT.held_out)
    curve = heal(model, TEXT, Recipe(**SMALL))
    assert [(point.step, point.tokens) for point in curve] == [(0, 0), (2, 128), (4, 256)]
    assert curve[0].heldout_loss == pytest.approx(start, rel=1e-5)
    assert curve[-1].heldout_loss == pytest.approx(loss(model, TEXT.held_out), rel=1e-5)
    assert curve[0].loss is None
    assert all(point.heldout_loss_low < point.heldout_loss < point.heldout_loss_high for point in curve)
    json.dumps(to_plain(curve), allow_nan=False)


def test_the_interval_of_the_held_out_loss_is_that_of_sequences_in_a_row():
    model = pruned()
    curve = heal(model, TEXT, Recipe(**SMALL))
    with torch.no_grad():
        logits = model.model(TEXT.held_out, use_cache=False).logits[:, :-1].transpose(1, 2)
    sums = nn.functional.cross_entropy(logits, TEXT.held_out[:, 1:], reduction="none").sum(1).tolist()
    low, high = ratio_interval(sums, [TEXT.held_out.shape[1] - 1] * len(sums), in_a_row=True)
    assert [curve[-1].heldout_loss_low, curve[-1].heldout_loss_high] == pytest.approx([low, high], rel=1e-4)


def test_moments_are_updated_one_tensor_after_the_other(monkeypatch):
    """Lists of tensors, which AdamW takes by itself on CUDA, need 4 bytes for each number beside what is counted."""
    made = []

    def noted(*args, **options):
        made.append(options)
        return AdamW(*args, **options)

    AdamW = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", noted)
    heal(pruned(), TEXT, Recipe(kind="full", **SMALL))
    assert [options["foreach"] for options in made] == [False]


def test_full_training_is_adamw_by_hand():
    recipe = Recipe(kind="full", learning_rate=1e-3, **SMALL)
    model, twin = pruned(), pruned()
    optimiser = torch.optim.AdamW(twin.model.parameters(), lr=1.0, weight_decay=0.0)
    for step in range(recipe.steps):
        ids = TEXT.train[recipe.order(step)]
        optimiser.param_groups[0]["lr"] = recipe.rate(step)
        logits = twin.model(ids, use_cache=False).logits[:, :-1]
        nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
        nn.utils.clip_grad_norm_(twin.model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    heal(model, TEXT, recipe)
    assert all(
        torch.allclose(a, b, atol=1e-5) for a, b in zip(weights(model).values(), weights(twin).values(), strict=True)
    )


def test_small_forwards_change_nothing(monkeypatch):
    one, other = pruned(), pruned()
    recipe = Recipe(kind="full", **SMALL)
    curve = heal(one, TEXT, recipe)
    monkeypatch.setattr(training, "LOGITS_ON_CPU", 1)  # a sequence at a time
    assert heal(other, TEXT, recipe)[-1].heldout_loss == pytest.approx(curve[-1].heldout_loss, abs=1e-4)


def test_kl_is_zero_against_itself_and_draws_near_the_dense_model():
    dense = Decoder(tiny("llama"))
    recipe = Recipe(kind="full", loss="kl", learning_rate=3e-3, tokens=8 * 256, passes=8, length=16, batch=4, points=8)
    kept = DensePredictions(dense, TEXT.train)
    same = heal(Decoder(copy.deepcopy(dense.model)), TEXT, Recipe(loss="kl", kind="full", **SMALL), dense=kept)
    assert same[1].loss == pytest.approx(0, abs=1e-5)
    curve = heal(pruned(), TEXT, recipe, dense=kept)
    assert 0 < curve[-1].loss < 0.7 * curve[1].loss


class SecondModel(DensePredictions):
    """Predicts with the dense model itself, as a second one beside the pruned model would."""

    def __init__(self, dense):
        self.dense, self.recipe = dense, Recipe(loss="kl")

    @torch.no_grad()
    def logits(self, rows):
        return self.dense.model(input_ids=TEXT.train[rows], use_cache=False).logits[:, :-1].float()


@pytest.mark.parametrize(
    ("family", "method", "kind"),
    [
        ("llama", "laco", "lora"),
        ("llama", "slicegpt", "full"),
        ("gemma2", "flap", "full"),
        ("gpt2", "flap", "lora"),
    ],
)
def test_kl_needs_no_second_model_and_has_the_losses_of_one(family, method, kind, monkeypatch):
    """What is kept is of the dense model, whatever pruning and training then do to the model that it was."""
    monkeypatch.setattr("bench.healing.teacher.LOGITS_OF_DENSE", 128 * 16 * 3)  # three sequences at a time
    model, recipe = Decoder(tiny(family)), Recipe(kind=kind, loss="kl", learning_rate=3e-3, **SMALL)
    kept = DensePredictions(model, TEXT.train)
    methods.make(method).prune(model, CALIBRATION, 0.3)
    other, dense = Decoder(copy.deepcopy(model.model)), SecondModel(Decoder(tiny(family)))
    curve, expected = (heal(one, TEXT, recipe, dense=of) for one, of in ((model, kept), (other, dense)))
    assert [each.loss for each in curve[1:]] == pytest.approx([each.loss for each in expected[1:]], rel=1e-4)
    torch.testing.assert_close(kept.logits([5, 0]), dense.logits([5, 0]), rtol=1e-5, atol=1e-5)


ADDED = {"loss": "kl", "top": 20, "temperature": 2.0, "hidden": 0.5, "attention": 0.5}


@pytest.mark.parametrize(
    ("kind", "further"),
    [
        ("lora", {}),
        ("full", {}),
        ("norms", ADDED),
        ("beside", ADDED | {"top": 0}),
        ("lora", ADDED | {"recompute": True, "patience": 3}),
    ],
)
def test_training_that_was_interrupted_ends_as_if_it_had_not_been(kind, further, tmp_path, monkeypatch):
    recipe = Recipe(kind=kind, learning_rate=3e-3, tokens=2 * 256, passes=2, length=16, batch=4, points=4, **further)
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))

    def heal_again(model, folder=None):
        """Heal as a new process does, which asks the dense model itself."""
        dense = predict(Decoder(tiny("llama")), TEXT.train, recipe, "dense") if further else None
        return heal(model, TEXT, recipe, dense=dense, folder=folder)

    whole, tmp_path = pruned(), tmp_path / "pieces"
    wanted = timeless(heal_again(whole))
    train = training.Training._train

    def killed(self):
        if self.step == 5:
            raise KeyboardInterrupt
        train(self)

    monkeypatch.setattr(training.Training, "_train", killed)
    with pytest.raises(KeyboardInterrupt):
        heal_again(pruned(), tmp_path)
    monkeypatch.setattr(training.Training, "_train", train)
    assert [path.name for path in tmp_path.iterdir()] == ["heal.safetensors"]
    steps = []
    monkeypatch.setattr(training.Training, "_train", lambda self: steps.append(self.step) or train(self))
    model = pruned()
    assert timeless(heal_again(model, tmp_path)) == wanted
    assert steps == [4, 5, 6, 7]
    assert all(torch.equal(a, b) for a, b in zip(weights(model).values(), weights(whole).values(), strict=True))
    finished = pruned()
    again = heal_again(finished, tmp_path)
    assert timeless(again) == wanted
    seconds = [point.seconds for point in again]
    assert seconds[0] == 0
    assert all(before < after for before, after in pairwise(seconds))  # over both attempts
    assert all(torch.equal(a, b) for a, b in zip(weights(finished).values(), weights(model).values(), strict=True))


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    heal(pruned(), TEXT, Recipe(**SMALL), folder=tmp_path)
    for model, recipe, text in (
        (pruned(), Recipe(**SMALL, seed=1), TEXT),
        (pruned(ratio=0.5), Recipe(**SMALL), TEXT),
        (pruned(), Recipe(**SMALL), Text(TEXT.train, TEXT.held_out, "other", "1" * 64)),
    ):
        with pytest.raises(UserError, match="another training"):
            heal(model, text, recipe, folder=tmp_path)
    (tmp_path / "heal.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="no checkpoint"):
        heal(pruned(), TEXT, Recipe(**SMALL), folder=tmp_path)


def test_a_bfloat16_model_stays_one_and_learns():
    for kind in ("lora", "full"):
        model = Decoder(pruned().model.to(torch.bfloat16))
        recipe = Recipe(kind=kind, learning_rate=3e-3, tokens=4 * 256, passes=4, length=16, batch=4, points=1)
        with make_trainable(Decoder(copy.deepcopy(model.model)), recipe) as trained:
            assert {weight.dtype for weight in trained.values()} == {torch.float32}
        curve = heal(model, TEXT, recipe)
        assert {parameter.dtype for parameter in model.model.parameters()} == {torch.bfloat16}
        assert curve[-1].heldout_loss < curve[0].heldout_loss
        with torch.no_grad():  # of the model that is given back, whose weights have been rounded again
            logits = model.model(TEXT.held_out, use_cache=False).logits[:, :-1].float()
        given_back = nn.functional.cross_entropy(logits.flatten(0, 1), TEXT.held_out[:, 1:].flatten())
        assert curve[-1].heldout_loss == pytest.approx(float(given_back), rel=1e-6)


def test_a_loss_that_is_no_number_ends_it():
    model = pruned()
    with torch.no_grad():
        model.layers[0].down.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="step 0"):
        heal(model, TEXT, Recipe(**SMALL))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "none"}, "lora, full, norms or beside"),
        ({"loss": "mse"}, "next-token or kl"),
        ({"tokens": 10}, "needs a sequence"),
        ({"batch": 0}, "positive"),
        ({"length": 1}, "two tokens"),
        ({"learning_rate": -1.0}, "positive"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        Recipe(**wrong)


def test_float16_and_a_missing_dense_model_are_refused():
    with pytest.raises(UserError, match="bfloat16"):
        heal(Decoder(tiny("llama").half()), TEXT, Recipe(**SMALL))
    with pytest.raises(UserError, match="dense"):
        heal(pruned(), TEXT, Recipe(loss="kl", **SMALL))


def test_every_sequence_is_seen_once_in_each_pass_and_the_rate_rises_and_falls():
    recipe = Recipe(tokens=3 * 10 * 16, passes=3, length=16, batch=4)
    assert (recipe.sequences, recipe.steps) == (10, 9)
    orders = [recipe.order(step) for step in range(9)]
    passes = [[n for order in orders[start : start + 3] for n in order] for start in (0, 3, 6)]
    assert all(sorted(one) == list(range(10)) for one in passes)
    assert passes[0] != passes[1]
    long = Recipe(tokens=100 * 8 * 256)
    rates = [long.rate(step) for step in range(100)]
    assert rates.index(max(rates)) in (4, 5)
    assert max(rates) == pytest.approx(1e-3)
    assert rates[-1] < 1e-5


def test_text_is_of_the_calibration_documents(model_folder, text_file):
    from bench.data import pretrained
    from bench.data import texts as text_data

    tokenizer = pretrained.load_tokenizer(str(model_folder))
    recipe = Recipe(text=str(text_file), tokens=160, length=16)
    text = draw_text(tokenizer, recipe)
    assert text.train.shape == (10, 16)
    assert text.held_out.shape == (HELD_OUT, 16)
    documents = text_data._documents(str(text_file))[0::2]
    own = "  ".join(" ".join(document.split()) for document in documents)
    for row in torch.cat([text.train, text.held_out]).tolist():
        words = tokenizer.decode([token for token in row if token != tokenizer.bos_token_id]).split()
        assert " ".join(words[:6]) in own or " ".join(words[-6:]) in own
    with pytest.raises(UserError, match="asked for"):
        draw_text(tokenizer, Recipe(text=str(text_file), tokens=10**6, length=16))


def test_a_run_heals_by_kl_with_what_the_dense_model_predicted_before_it_was_pruned(base, text_file, tmp_path):
    heal = ("--heal", "lora", "--heal-loss", "kl", "--heal-tokens", "128", "--heal-length", "16", "--heal-batch", "4")
    run = [*base, "--methods", "drop-tail", "--ratio", "0.3", "--threads", "1", *heal, "--heal-text", str(text_file)]
    assert main(run) == 0
    (healed,) = [record for record in load_run(tmp_path / "run") if record.cell.healing]
    assert healed.status == "ok"
    assert 0 < healed.measured.healing.curve[-1].loss < healed.measured.healing.curve[-1].heldout_loss
