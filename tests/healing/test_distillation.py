"""What is learnt from the dense model is a divergence by hand, from memory and from disk, and few weights stay few."""

from __future__ import annotations

import copy
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import tiny
from tiny_healing import CALIBRATION, SMALL, TEXT, pruned, timeless, weights
from torch import nn

import methods
from bench.cli.main import main
from bench.data import pretrained
from bench.healing.teacher import (
    HEAD,
    DensePredictions,
    collect_states,
    distance_of_states,
    divergence_of_relations,
    join_others,
    predict,
)
from bench.healing.trainable import find_layers_beside_cuts, make_trainable
from bench.healing.training import heal
from bench.plan.protocol import Recipe
from bench.records.run_folder import load_run
from bench.workshop.tiny_models import draw_tiny_model
from methods.errors import Unsupported, UserError
from methods.model.decoder import Decoder

V = 128  # tokens of the tiny models
LOGITS = 3 * torch.randn(2, 15, V, generator=torch.Generator().manual_seed(5))
ROWS = [3, 0]


def by_hand(logits, target, top, temperature):
    """The divergence and its gradient of float64 logits, summed token by token; None keeps all tokens."""
    total, gradient = 0.0, torch.zeros_like(logits)
    for place in ((b, t) for b in range(logits.shape[0]) for t in range(logits.shape[1])):
        p, q = ((x[place] / temperature).softmax(-1) for x in (target, logits))
        best = p.argsort(descending=True)[: top or V]
        inside = torch.zeros(V, dtype=torch.bool).index_fill(0, best, True)
        r, s = p[~inside].sum(), q[~inside].sum()
        total += float((p[best] * (p[best] / q[best]).log()).sum()) * temperature**2
        gradient[place] = torch.where(inside, q - p, q - (r / s if r > 0 else 0) * q) * temperature
        total += float(r * (r / s).log()) * temperature**2 if r > 0 else 0.0
    return total, gradient


@pytest.mark.parametrize(("top", "temperature"), [(0, 1.0), (0, 2.5), (16, 1.0), (16, 2.5), (V - 1, 1.0)])
def test_the_divergence_and_its_gradient_are_those_by_hand(top, temperature, tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path))
    dense, recipe = Decoder(tiny("llama")), Recipe(loss="kl", top=top, temperature=temperature, **SMALL)
    with torch.no_grad():
        target = dense.model(TEXT.train[ROWS], use_cache=False).logits[:, :-1].double()
    logits = LOGITS.clone().requires_grad_()
    loss = predict(dense, TEXT.train, recipe, "dense").loss(logits, {}, ROWS)
    torch.autograd.backward(loss)
    total, gradient = by_hand(LOGITS.double(), target, top, temperature)
    assert float(loss.detach()) == pytest.approx(total, rel=1e-5)
    torch.testing.assert_close(logits.grad.double(), gradient, rtol=1e-4, atol=1e-6)


def test_more_likely_tokens_come_nearer_to_the_whole_divergence_from_below():
    dense = DensePredictions(Decoder(tiny("llama")), TEXT.train)
    target, whole = dense.logits(ROWS), float(dense.loss(LOGITS, {}, ROWS))
    of_top = []
    for k in (1, 4, 16, 64, V - 1):
        tokens = target.topk(k).indices
        kept, own = join_others(target, tokens), join_others(LOGITS, tokens)
        torch.testing.assert_close(kept.exp().sum(-1), torch.ones(2, 15))
        of_top.append(float(nn.functional.kl_div(own, kept, reduction="sum", log_target=True)))
    assert of_top == sorted(of_top)
    assert of_top[0] < 0.5 * whole
    assert of_top[-1] == pytest.approx(whole, rel=1e-5)


def test_the_dense_model_reads_a_text_once_and_another_question_reads_it_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr("bench.healing.teacher.LOGITS_OF_DENSE", V * 16 * 3)  # three sequences a file
    dense, forwards = Decoder(tiny("llama")), []
    dense.model.register_forward_hook(lambda *_: forwards.append(1))
    recipe = Recipe(loss="kl", top=8, hidden=1.0, **SMALL)
    first = predict(dense, TEXT.train, recipe, "dense")
    assert len(forwards) == 6
    again = predict(dense, TEXT.train, recipe, "dense")
    assert len(forwards) == 6
    states = {HEAD: torch.ones(2, 15, dense.config.hidden_size)}
    assert float(first.loss(LOGITS, states, ROWS)) == float(again.loss(LOGITS, states, ROWS))
    assert first.outside == again.outside
    with torch.no_grad():
        chances = dense.model(TEXT.train, use_cache=False).logits[:, :-1].softmax(-1)
    assert first.outside == pytest.approx(1 - float(chances.topk(8).values.sum(-1).mean()), rel=1e-4)
    for other, identity in ((Recipe(loss="kl", top=9, **SMALL), "dense"), (recipe, "another")):
        before = len(forwards)
        predict(dense, TEXT.train, other, identity)
        assert len(forwards) > before
    (file, *_) = sorted(tmp_path.glob("predictions-*/0.safetensors"))
    file.write_bytes(b"cut short")
    before = len(forwards)
    for each, identity in ((recipe, "dense"), (Recipe(loss="kl", top=9, **SMALL), "dense"), (recipe, "another")):
        predict(dense, TEXT.train, each, identity)
    assert len(forwards) == before + 7 - 1  # of the damaged folder alone


def test_a_model_equal_to_the_dense_one_loses_nothing_by_any_loss(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path))
    dense = Decoder(tiny("llama"))
    for top in (0, 8):
        recipe = Recipe(
            "full", loss="kl", top=top, temperature=2.0, hidden=1.0, attention=1.0, learning_rate=1e-9, **SMALL
        )
        kept = predict(dense, TEXT.train, recipe, "dense")
        curve = heal(Decoder(copy.deepcopy(dense.model)), TEXT, recipe, dense=kept)
        assert [point.loss for point in curve[1:]] == pytest.approx([0, 0], abs=1e-4)


def test_losses_of_states_draw_a_pruned_model_nearer_to_the_dense_one():
    few = {"tokens": 5 * 256, "passes": 5, "length": 16, "batch": 4, "points": 5, "learning_rate": 3e-3}
    recipes = [Recipe("full", loss="kl", **few, **more) for more in ({"hidden": 1.0, "attention": 2.0}, {})]
    kept = [DensePredictions(Decoder(tiny("llama")), TEXT.train, recipe) for recipe in recipes]
    curve = heal(pruned(method="flap"), TEXT, recipes[0], dense=kept[0])
    assert 0 < curve[-1].loss < 0.8 * curve[1].loss
    model = pruned(method="flap")
    with torch.no_grad(), collect_states(model, recipes[0], reads_head=True) as take:
        logits = model.model(TEXT.train[ROWS], use_cache=False).logits[:, :-1]
        states = take()
    assert sorted(states) == [HEAD, "relation 0", "relation 1", "relation 2"]
    both, alone = float(kept[0].loss(logits, states, ROWS)), float(kept[1].loss(logits, {}, ROWS))
    assert both > alone > 0


def test_relations_and_cosines_are_those_by_hand():
    own, dense = (torch.randn(2, 5, width, generator=torch.Generator().manual_seed(width)) for width in (6, 8))
    total = 0.0
    for b in range(2):
        for t in range(5):
            p, q = (
                torch.tensor([float(x[b, t] @ x[b, s]) / math.sqrt(x.shape[-1]) for s in range(t + 1)]).softmax(0)
                for x in (dense, own)
            )
            total += float((p * (p / q).log()).sum())
    assert float(divergence_of_relations(own, dense)) == pytest.approx(total, rel=1e-4)
    own.requires_grad_()
    torch.autograd.backward(divergence_of_relations(own, dense))
    assert own.grad.isfinite().all()
    assert float(distance_of_states(2 * dense, dense)) == pytest.approx(0, abs=1e-5)
    assert float(distance_of_states(-dense, dense)) == pytest.approx(2 * 10, rel=1e-5)


def test_recomputed_layers_give_the_same_bits():
    recipe = Recipe("lora", learning_rate=3e-3, **SMALL)
    kept, computed = pruned(), pruned()
    curve = heal(kept, TEXT, recipe)
    again = heal(computed, TEXT, Recipe("lora", learning_rate=3e-3, recompute=True, **SMALL))
    assert timeless(again) == timeless(curve)
    assert all(torch.equal(a, b) for a, b in zip(weights(kept).values(), weights(computed).values(), strict=True))
    assert not any("forward" in vars(module) for module in computed.stack)


def test_recomputed_layers_keep_their_inputs_alone():
    sizes = []
    for recompute in (False, True):
        model, kept = pruned(), []
        with (
            make_trainable(model, Recipe("full", recompute=recompute, **SMALL)),
            torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x.numel()) or x, lambda x: x),
        ):
            model.model(TEXT.train, use_cache=False)
        sizes.append(sum(kept))
    assert sizes[1] < 0.5 * sizes[0]


@pytest.mark.parametrize(("kind", "trained"), [("norms", "norm"), ("beside", "layers.")])
def test_only_the_weights_of_the_recipe_change(kind, trained):
    model = pruned()
    before, beside = weights(model), find_layers_beside_cuts(model)
    places = [f"layers.{place}." for place in beside] if kind == "beside" else [trained]
    curve = heal(model, TEXT, Recipe(kind, learning_rate=3e-3, **SMALL))
    after = weights(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if any(place in name for place in places)}
    assert curve[-1].heldout_loss < curve[0].heldout_loss
    assert all(parameter.requires_grad for parameter in model.model.parameters())


def test_layers_beside_a_cut_are_its_neighbours_and_those_that_lost_a_part():
    model = Decoder(tiny("llama"))
    count = len(model.layers)
    assert count == 6
    assert find_layers_beside_cuts(model) == set()
    methods.make("drop-tail").prune(model, CALIBRATION, 0.3)
    assert find_layers_beside_cuts(model) == {len(model.layers) - 1}
    inside = Decoder(tiny("llama"))
    inside.set_layers([inside.layers[place] for place in (0, 1, 4, 5)])
    assert find_layers_beside_cuts(inside) == {1, 2}
    inside.layers[3].remove_mlp()
    assert find_layers_beside_cuts(inside) == {1, 2, 3}


def test_a_model_without_such_weights_is_refused():
    with pytest.raises(Unsupported, match="nothing whole"):
        heal(pruned(method="flap"), TEXT, Recipe("beside", **SMALL))
    with pytest.raises(Unsupported, match="norms have no weights"):
        heal(pruned(method="slicegpt"), TEXT, Recipe("norms", **SMALL))
    recipe = Recipe("full", loss="kl", hidden=1.0, **SMALL)
    dense = DensePredictions(Decoder(tiny("llama")), TEXT.train, recipe)
    with pytest.raises(Unsupported, match="residual has been sliced"):
        heal(pruned(method="slicegpt"), TEXT, recipe, dense=dense)


def test_training_ends_where_the_held_out_loss_has_not_fallen_for_as_many_points():
    few = {"tokens": 5 * 256, "passes": 5, "length": 16, "batch": 16, "points": 5, "learning_rate": 1.0}
    whole = timeless(heal(pruned(), TEXT, Recipe("full", **few)))
    losses = [point.heldout_loss for point in whole]
    assert losses[0] < min(losses[1:3])  # such a rate does harm
    for patience in (1, 2):
        ended = timeless(heal(pruned(), TEXT, Recipe("full", patience=patience, **few)))
        assert ended == whole[: 1 + patience]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--heal-top", "8"), "--heal-top is of what the dense model or a teacher predicts; add --heal-loss kl"),
        (("--heal-hidden", "1"), "add --heal-loss kl"),
        (("--heal-teacher", "smollm2-135m"), "--heal-teacher is of what the dense model or a teacher predicts; add"),
        (("--heal-loss", "kl", "--heal-teacher", "x", "--heal-hidden", "1"), "--heal-hidden compares states number by"),
        (("--heal-loss", "kl", "--heal-teacher", "/nope"), "'/nope' is no model"),
        (("--heal-loss", "kl", "--heal-top", "128"), "--heal-top 128 leaves none of the model's 128 tokens"),
        (("--heal-loss", "kl", "--heal-temperature", "0"), "--heal-temperature is a positive number; got 0"),
        (("--heal-patience", "-1"), "--heal-patience is 0 or positive"),
        (("--heal-at", "0,129"), "--heal-at 129 is beyond the 128 tokens of --heal-tokens"),
        (("--heal-answers",), "--heal-answers is measured after the tokens of --heal-at, and there are none"),
        (("--heal-answers", "--heal-at", "0"), "--heal-answers measures the tasks of --tasks, and there are none"),
        (("--heal-processes", "0"), "--heal-processes is a positive number"),
        (("--heal-processes", "9"), "--heal-processes 9 share the sequences of a step, and --heal-batch has 8"),
        (("--heal-processes", "2", "--heal-at", "0"), "--heal-at measures in the one process of a cell"),
        (("--heal-at", "0", "--texts", "none"), "--heal-at measures the texts of --texts"),
    ],
)
def test_recipes_that_cannot_be_are_refused_before_any_work(flags, message, base, text_file, capsys):
    heal_flags = ("--heal", "lora", "--heal-tokens", "128", "--heal-length", "16", "--heal-text", str(text_file))
    assert main([*base, "--methods", "drop-tail", "--ratio", "0.3", *heal_flags, *flags]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def tiny_teacher(folder, model_folder, tokenizer=lambda plain: None, **options):
    """Save another tiny Llama beside the tokenizer of the model, whose file `tokenizer` changes."""
    shutil.copytree(model_folder, folder)
    draw_tiny_model("llama", seed=7, **({"max_position_embeddings": 2048} | options)).save_pretrained(folder)
    plain = json.loads((folder / "tokenizer.json").read_text())
    tokenizer(plain)
    (folder / "tokenizer.json").write_text(json.dumps(plain))
    return folder


def swap_two_words(plain):
    words = plain["model"]["vocab"]
    first, second = list(words)[5:7]
    words[first], words[second] = words[second], words[first]


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"tokenizer": swap_two_words}, "has another vocabulary than"),
        ({"tokenizer": swap_two_words}, "128 tokens beside 128, of which 2 differ; name a model of the same tokenizer"),
        ({"vocab_size": 136}, "136 tokens beside 128, of which none differ"),
        ({"max_position_embeddings": 8}, "--heal-length 16 is more than the 8 tokens that --heal-teacher takes"),
    ],
)
def test_a_teacher_of_other_tokens_is_refused_before_any_work(teacher, message, base, text_file, capsys):
    folder, out = Path(base[2]), Path(base[base.index("--out") + 1])
    recipe = ("--heal", "lora", "--heal-loss", "kl", "--heal-tokens", "128", "--heal-length", "16")
    run = [*base, "--methods", "drop-tail", "--ratio", "0.3", *recipe, "--heal-text", str(text_file)]
    run += ["--heal-teacher", str(tiny_teacher(out.with_name("teacher"), folder, **teacher))]
    capsys.readouterr()
    assert main(run) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not out.exists()


def test_a_run_learns_from_the_teacher_that_it_names(base, text_file, model_folder, tmp_path, monkeypatch):
    """A copy of the model teaches what the dense model does; another one something else, from its own predictions."""
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))
    recipe = ("--heal", "full", "--heal-loss", "kl", "--heal-top", "8", "--heal-tokens", "128", "--heal-length", "16")
    run = [*base[:-4], "--speed-rounds", "0", "--methods", "drop-tail", "--ratio", "0.3", *recipe]
    run += ["--heal-text", str(text_file)]
    twin = tmp_path / "twin"
    shutil.copytree(model_folder, twin)
    unlike = tiny_teacher(tmp_path / "unlike", model_folder, hidden_size=48)
    healed = {}
    for name, flags in {"dense": (), "twin": ("--heal-teacher", twin), "unlike": ("--heal-teacher", unlike)}.items():
        assert main([*map(str, (*run, *flags)), "--out", str(tmp_path / name)]) == 0
        (healed[name],) = [record for record in load_run(tmp_path / name) if record.cell.healing]
    curves = {name: timeless(record.measured.healing.curve) for name, record in healed.items()}
    assert curves["twin"] == curves["dense"]
    assert [point.loss for point in curves["unlike"]] != [point.loss for point in curves["dense"]]
    assert len(list((tmp_path / "cache").glob("predictions-*"))) == 2
    hashes = {name: record.cell.inputs.healing.teacher_sha256 for name, record in healed.items()}
    assert hashes == {
        "dense": None,
        "twin": healed["dense"].measured.weights_sha256,
        "unlike": pretrained.sha256_of_weights(str(unlike)),
    }


def test_predictions_that_the_disk_cannot_hold_are_refused_before_any_work(base, text_file, monkeypatch, capsys):
    monkeypatch.setattr("bench.plan.validate.room_for_predictions", lambda: 1000)
    heal_flags = (
        "--heal",
        "lora",
        "--heal-loss",
        "kl",
        "--heal-top",
        "8",
        "--heal-tokens",
        "128",
        "--heal-length",
        "16",
    )
    run = [*base, "--methods", "drop-tail", "--ratio", "0.3", *heal_flags, "--heal-text", str(text_file)]
    assert main(run) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "--heal-top 8 takes" in line
    assert "are free" in line


def test_a_text_too_short_for_the_tokens_is_refused_before_any_work(base, text_file, tmp_path, capsys):
    recipe = ("--heal", "lora", "--heal-tokens", "100000", "--heal-length", "16", "--heal-text", str(text_file))
    assert main([*base, "--methods", "drop-tail", "--ratio", "0.3", *recipe]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(r"words.txt .* [\d,]+ .*tokens", line)
    assert not (tmp_path / "run").exists()


def test_a_disk_that_fills_up_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bench.healing.teacher.save_file", full)
    with pytest.raises(UserError, match="no space left for what the dense model predicts"):
        predict(Decoder(tiny("llama")), TEXT.train, Recipe(loss="kl", top=8, **SMALL), "dense")


def test_a_run_measures_its_texts_while_it_heals(base, text_file, tmp_path):
    few = ("--heal-tokens", "128", "--heal-length", "16", "--heal-batch", "4", "--heal-text", str(text_file))
    run = [*base, "--methods", "drop-tail", "--ratio", "0.3", "--heal", "full", "--heal-at", "0,64,128", *few]
    assert main(run) == 0
    dense, plain, trained = sorted(
        load_run(tmp_path / "run"), key=lambda each: (bool(each.cell.ratio), len(each.cell.label))
    )
    curve = trained.measured.healing.curve
    measured = {point.tokens: point.texts for point in curve if point.texts is not None}
    assert list(measured) == [0, 64, 128]
    ((text, start),) = measured[0].items()
    assert start.perplexity == pytest.approx(plain.measured.text_scores[text].perplexity, rel=1e-5)
    assert measured[128][text].perplexity == pytest.approx(trained.measured.text_scores[text].perplexity, rel=1e-5)
    assert start.perplexity_low == pytest.approx(plain.measured.text_scores[text].perplexity_low, rel=1e-5)
    assert measured[64][text].perplexity != start.perplexity
    assert dense.measured.healing is None


def test_a_run_measures_the_right_answers_while_it_heals(base, text_file, tmp_path):
    few = ("--heal-tokens", "128", "--heal-length", "16", "--heal-batch", "4", "--heal-text", str(text_file))
    run = [
        *base,
        "--methods",
        "drop-tail",
        "--ratio",
        "0.3",
        "--heal",
        "lora",
        "--heal-at",
        "0,64",
        "--heal-answers",
        *few,
    ]
    rows = [{"goal": f"w{i} w{i + 1}", "sol1": f"w{i + 2}", "sol2": f"w{i + 3}", "label": i % 2} for i in range(6)]
    (tmp_path / "piqa.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main([*run, "--tasks", "piqa", "--task-data", f"piqa={tmp_path / 'piqa.jsonl'}", "--texts", "none"]) == 0
    _, plain, trained = sorted(
        load_run(tmp_path / "run"), key=lambda each: (bool(each.cell.ratio), len(each.cell.label))
    )
    points = {point.tokens: point.answers for point in trained.measured.healing.curve if point.answers}
    assert list(points) == [0, 64]
    start, halfway = (points[tokens]["piqa"] for tokens in (0, 64))
    before = plain.measured.task_scores["piqa"].answer_bpb
    assert [start.value, start.stderr] == pytest.approx([before.value, before.stderr], rel=1e-5)
    assert halfway.value != start.value


def test_points_are_at_the_first_step_with_so_many_tokens():
    recipe = Recipe(tokens=3 * 10 * 16, passes=3, length=16, batch=4)  # steps of 4, 4 and 2 sequences
    tokens = [0, *torch.tensor([4, 4, 2] * 3).cumsum(0).mul(16).tolist()]
    for asked in range(3 * 10 * 16 + 1):
        step = recipe.step_at(asked)
        assert tokens[step] >= asked
        assert step == 0 or tokens[step - 1] < asked
