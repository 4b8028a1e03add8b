"""Similarity equals brute force, a merge equals a whole model with the merged layer in it; the command's promises."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from conftest import tiny

from bench.cli.main import main
from bench.evaluation import layer_similarity
from methods.errors import UserError
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder

FAMILIES = ("llama", "gpt2", "gemma3_text", "phi3", "gpt_neox")
GENERATOR = torch.Generator().manual_seed(1)
IDS = torch.randint(3, 128, (3, 12), generator=GENERATOR)
TOKENS = Calibration(IDS, torch.ones_like(IDS, dtype=torch.bool), memory=1)  # one sequence at a time


def brute(vectors):
    """{cosine, l2} of all pairs of float64 vectors, one pair at a time."""
    cosine = [[float(torch.nn.functional.cosine_similarity(a, b, dim=0)) for b in vectors] for a in vectors]
    return {"cosine": cosine, "l2": [[float((a - b).norm()) for b in vectors] for a in vectors]}


def close(found, wanted, tolerance=2e-5):
    assert torch.allclose(torch.tensor(found), torch.tensor(wanted), rtol=tolerance, atol=tolerance)


def matrices(model, family):
    """By role, as the family's own modules have them, split by hand where they are fused."""
    layers = {"gpt2": lambda m: m.transformer.h, "gpt_neox": lambda m: m.gpt_neox.layers}
    found = []
    for layer in layers.get(family, lambda m: m.model.layers)(model):
        if family == "gpt2":
            q, k, v = layer.attn.c_attn.weight.T.chunk(3)
            rest = {"o": layer.attn.c_proj.weight.T, "up": layer.mlp.c_fc.weight.T, "down": layer.mlp.c_proj.weight.T}
        elif family == "gpt_neox":
            q, k, v = layer.attention.query_key_value.weight.view(4, 3, 8, 32).unbind(1)
            rest = {"o": layer.attention.dense.weight, "up": layer.mlp.dense_h_to_4h.weight}
            rest |= {"down": layer.mlp.dense_4h_to_h.weight}
        elif family == "phi3":
            q, k, v = layer.self_attn.qkv_proj.weight.split([32, 16, 16])
            gate, up = layer.mlp.gate_up_proj.weight.chunk(2)
            rest = {"o": layer.self_attn.o_proj.weight, "gate": gate, "up": up, "down": layer.mlp.down_proj.weight}
        else:
            attention, mlp = layer.self_attn, layer.mlp
            q, k, v = attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight
            rest = {"o": attention.o_proj.weight, "gate": mlp.gate_proj.weight}
            rest |= {"up": mlp.up_proj.weight, "down": mlp.down_proj.weight}
        found.append({"q": q, "k": k, "v": v} | rest)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_equal_brute_force(family, monkeypatch):
    monkeypatch.setattr(layer_similarity, "NUMBERS", 500)  # a few rows at a time
    model = tiny(family)
    wanted = matrices(model, family)
    wanted = [{role: w.detach().double().clone() for role, w in layer.items()} for layer in wanted]
    found = layer_similarity.compare_parameters(Decoder(model))
    assert found.keys() == wanted[0].keys()
    for role, figures in found.items():
        pairs = brute([layer[role].flatten() for layer in wanted])
        close(figures["cosine"], pairs["cosine"])
        close(figures["l2"], pairs["l2"], 1e-4)
        close(figures["norm"], [float(layer[role].norm()) for layer in wanted])


@pytest.mark.parametrize("family", ("llama", "gpt2", "gemma3_text"))
def test_states_equal_brute_force(family):
    decoder = Decoder(tiny(family))
    found = layer_similarity.compare_states(decoder, TOKENS)
    caught = []
    modules = [layer.module for layer in decoder.layers]
    hooks = [m.register_forward_pre_hook(lambda _, args: caught.append(args[0])) for m in modules]
    hooks.append(modules[-1].register_forward_hook(lambda _, args, out: caught.append(out)))
    with torch.no_grad():
        decoder.model(IDS, use_cache=False)
    for hook in hooks:
        hook.remove()
    h = [state.double() for state in caught]
    pairs = [[brute([state[n, t] for state in h]) for t in range(12)] for n in range(3)]
    for kind in ("cosine", "l2"):
        every = torch.tensor([[pair[kind] for pair in row] for row in pairs])
        close(found["first"][kind], every[:, 0].mean(0).tolist(), 1e-4)
        close(found["last"][kind], every[:, -1].mean(0).tolist(), 1e-4)
        close(found["mean"][kind], every.mean((0, 1)).tolist(), 1e-4)


def expected_weight(window, slot, rule):
    weights = [layer.matrices[slot].weight.detach().double() for layer in window]
    if rule == "published":
        return weights[0] + sum(w - weights[0] for w in weights[1:])
    return sum(weights) / len(weights) if rule == "mean" else weights[-1]


@pytest.mark.parametrize("rule", list(layer_similarity.RULES))
@pytest.mark.parametrize("family", ("llama", "gpt2", "gemma3_text"))
def test_a_merge_is_a_whole_model_with_the_merged_layer(family, rule):
    model = tiny(family)
    p, m = 2, 3
    scored = torch.ones_like(IDS, dtype=torch.bool)
    scored[:, :4] = False
    decoder = Decoder(model)
    before = copy.deepcopy(model.state_dict())
    at = layer_similarity.Merges(decoder, IDS, scored).at(p, m, rule)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())

    whole = Decoder(copy.deepcopy(model))
    layers = whole.layers
    survivor = layers[p + m - 1] if rule == "deletion" else layers[p]
    with torch.no_grad():
        for slot, matrix in enumerate(survivor.matrices):
            matrix.weight.copy_(expected_weight(decoder.layers[p : p + m], slot, rule))
    whole.set_layers([*layers[:p], survivor, *layers[p + m :]])
    with torch.no_grad():
        out, dense = (d.model(IDS, use_cache=False, output_hidden_states=True) for d in (whole, decoder))
    cosines = [
        float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))
        for a, b in zip(out.hidden_states[-1], dense.hidden_states[-1], strict=True)
    ]
    logp = out.logits.double().log_softmax(-1)[:, :-1].gather(-1, IDS[:, 1:, None])[..., 0]
    close([at["cosine"], at["nll"]], [sum(cosines) / 3, -float(logp[:, 3:].mean())], 1e-4)
    assert at["nll_low"] < at["nll"] < at["nll_high"]


def test_the_dense_figures_are_those_of_the_model_itself():
    scored = torch.ones_like(IDS, dtype=torch.bool)
    scored[:, 0] = False
    model = tiny("llama")
    figures = layer_similarity.Merges(Decoder(model), IDS, scored).dense()
    loss = float(model(IDS, labels=IDS).loss.detach())
    assert figures["cosine"] == pytest.approx(1, abs=1e-6)
    assert figures["nll"] == pytest.approx(loss, rel=1e-5)


def test_what_is_no_finite_number_is_absent():
    assert layer_similarity.to_plain(torch.tensor([1.5, math.nan, math.inf])) == [1.5, None, None]


@pytest.fixture
def arguments(model_folder, text_file, tmp_path):
    small = ["--sequences", "2", "--length", "16", "--windows", "2", "--window", "16", "--merge", "2,3"]
    texts = ["--text", str(text_file), "--held-out", str(text_file)]
    return ["similarity", str(model_folder), *small, *texts, "--out", str(tmp_path / "out")]


@pytest.mark.nightly
def test_the_command_writes_what_it_prints_and_goes_on(arguments, tmp_path, capsys, monkeypatch):
    assert main([*arguments, "--format", "json"]) == 0
    study = json.loads(capsys.readouterr().out)
    file = tmp_path / "out" / "similarity.json"
    assert study == json.loads(file.read_text())
    assert [(of["m"], of["rule"]) for of in study["merges"]] == [(m, r) for m in (2, 3) for r in layer_similarity.RULES]
    assert [len(of["positions"]) for of in study["merges"]] == [5] * 4 + [4] * 4
    for name in ("parameters", "states", "merges"):
        assert (tmp_path / "out" / f"{name}.svg").read_text().startswith("<?xml")
        assert (tmp_path / "out" / f"{name}.png").stat().st_size > 1000
    file.write_text(json.dumps(study | {"merges": study["merges"][:5]}))
    asked = []
    curve = layer_similarity.Merges.curve
    monkeypatch.setattr(
        layer_similarity.Merges, "curve", lambda self, m, rule: asked.append((m, rule)) or curve(self, m, rule)
    )
    assert main([*arguments, "--format", "markdown"]) == 0
    assert "## 3 layers become one" in capsys.readouterr().out
    assert len(asked) == 3
    again = json.loads(file.read_text())
    assert again["merges"] == study["merges"]


def test_the_table_says_what_the_study_says(arguments, capsys):
    assert main([*arguments, "--merge", "none"]) == 0
    text = capsys.readouterr().out
    assert "cosine of neighbours" in text
    assert "perplexity" not in text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--merge", "1"], "2 or more"),
        (["--merge", "9"], "the model has 6"),
        (["--sequences", "0"], "positive"),
        (["--window", "1"], "two tokens"),
        (["--text", "nothing"], "no text"),
        (["--sequences", "5000"], "tokens for calibration"),
    ],
)
def test_mistakes_are_refused_in_one_line(arguments, more, message, capsys, tmp_path):
    assert main([*arguments, *more]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert not (tmp_path / "out" / "similarity.json").exists()


def test_another_study_is_not_written_over(arguments, tmp_path, capsys):
    assert main([*arguments, "--merge", "none"]) == 0
    before = (tmp_path / "out" / "similarity.json").read_bytes()
    assert main([*arguments, "--merge", "none", "--seed", "1"]) == 2
    assert "another study" in capsys.readouterr().err
    assert (tmp_path / "out" / "similarity.json").read_bytes() == before


def test_layers_that_cannot_be_compared_are_refused():
    from methods.model.structures import keep_channels

    model = Decoder(tiny("llama"))
    keep_channels(model.layers[1], range(20))
    with pytest.raises(UserError, match="differ in width"):
        layer_similarity.refuse_unless_alike(model)
