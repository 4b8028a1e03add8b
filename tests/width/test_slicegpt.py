"""SliceGPT against the authors' own code, and its invariances on every family whose structure allows it."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from authors_code import as_shown, difference, loaded
from conftest import LAYERS, TINY, VOCABULARY, tiny
from safetensors.torch import load_file
from tiny_methods import overflowing
from transformers import AutoConfig, AutoModelForCausalLM

from methods.errors import OutOfReach, Unsupported
from methods.model import inserted
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.inserted import fuse_norms, write_in_basis
from methods.model.sizes import parameters
from methods.width import slicegpt
from methods.width.slicegpt import SliceGPT, parameters_after_slicing, sizes_of_slices, values_per_token

FOLDER = Path(__file__).parents[1] / "golden"
GOLDEN = {k: v for k, v in json.loads((FOLDER / "slicegpt_llmpruner.json").read_text()).items() if k.startswith("sg_")}
TENSORS = load_file(FOLDER / "slicegpt_llmpruner.safetensors")
ROTATABLE = [family for family in TINY if family not in ("gemma2", "gemma3_text")]
BARE_NORMS = [  # without gains and biases
    ("opt", {"layer_norm_elementwise_affine": False, "enable_bias": enable_bias}) for enable_bias in (False, True)
]


def tokens(seed: int = 0, rows: int = 12) -> Calibration:
    ids = torch.randint(3, VOCABULARY, (rows, 40), generator=torch.Generator().manual_seed(seed))
    return Calibration(ids, torch.ones_like(ids, dtype=torch.bool))


def golden_model(key: str) -> Decoder:
    name = "tiny_gqa_tied" if "tiny_gqa_tied" in key else "tiny_mha"
    return Decoder(copy.deepcopy(loaded(name)))


@pytest.mark.parametrize("key", GOLDEN)
def test_the_authors_logits_and_counts_are_repeated(key):
    expected, model = GOLDEN[key], golden_model(key)
    assert parameters(model) == expected["params_dense"]
    method = SliceGPT(sparsity=expected["sparsity"], centre_embeddings=expected["embedding_mean_subtracted"])
    calibration = Calibration(TENSORS["calib"], torch.ones_like(TENSORS["calib"], dtype=torch.bool))
    assert method.prune(model, calibration, 0.0)["d"] == expected["new_dim"]
    assert parameters(model) == expected["params_pruned"]
    with torch.no_grad():
        logits = model.model(TENSORS["probe"]).logits
    apart = difference("logits", logits, TENSORS[f"{key}.logits"])
    assert apart < 1e-4
    as_shown("slicegpt", key, {"logits": apart})


@pytest.mark.parametrize("key", ["sg_tiny_gqa_tied_0.25", "sg_tiny_mha_0.25"])
def test_fusing_counts_as_the_authors_count_and_leaves_the_logits(key):
    model = golden_model(key)
    with torch.no_grad():
        fuse_norms(model, centre_embeddings=False)
        logits = model.model(TENSORS["probe"]).logits
    assert parameters(model) == GOLDEN[key]["params_after_fusion"]
    dense = TENSORS["tiny_gqa_tied.dense_logits" if "gqa" in key else "tiny_mha.dense_logits"]
    torch.testing.assert_close(logits, dense, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("family", "config"), [*((family, {}) for family in ROTATABLE), *BARE_NORMS])
def test_rotating_without_cutting_changes_nothing(family, config, ids):
    model = Decoder(tiny(family, **config))
    with torch.no_grad():
        dense = model.model(ids).logits
        SliceGPT(d=32).prune(model, tokens(), 0.0)
        rotated = model.model(ids).logits
    torch.testing.assert_close(rotated, dense, rtol=0, atol=1e-5 * float(dense.abs().max()))


@pytest.mark.parametrize(("family", "config"), [*((family, {}) for family in ROTATABLE), *BARE_NORMS])
@pytest.mark.parametrize("slice_head", [False, True])
def test_the_formula_equals_the_count(family, config, slice_head):
    model = Decoder(tiny(family, **config))
    method = SliceGPT(d=16, slice_head=slice_head)
    expected = parameters_after_slicing(model, 16, method.slices_head(model))
    method.prune(model, tokens(), 0.0)
    assert parameters(model) == expected


@pytest.mark.parametrize("family", ROTATABLE)
@pytest.mark.parametrize("slice_head", [False, True])
def test_three_widths_tell_the_size_of_every_slice(family, slice_head):
    model, widths = Decoder(tiny(family)), range(1, 33)
    counted = [parameters_after_slicing(model, width, slice_head) for width in widths]
    assert sizes_of_slices(model, widths, slice_head) == counted


def test_a_plan_counts_the_layers_three_times_however_many_widths_there_are(monkeypatch):
    visited, count = [], slicegpt._untouched_parameters
    monkeypatch.setattr(slicegpt, "_untouched_parameters", lambda layer: visited.append(layer) or count(layer))
    SliceGPT(multiple=1).plan(Decoder(tiny("llama")), 0.2)
    assert len(visited) == 3 * LAYERS


def test_a_multiple_beyond_the_models_width_is_refused():
    with pytest.raises(OutOfReach, match="multiple is at most the model's width, 32; got 1000"):
        SliceGPT(multiple=1000).plan(Decoder(tiny("llama")), 0.2)


@pytest.mark.parametrize("columns", [1, 3, 100])
def test_what_writes_the_residual_is_widened_a_few_columns_at_a_time(columns, monkeypatch):
    matrix, Q = torch.nn.Linear(8, 12), torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64)).Q
    expected = Q.T[:9] @ matrix.weight.double(), Q.T[:9] @ matrix.bias.double()
    seen, widened = [], inserted.widen
    monkeypatch.setattr(inserted, "NUMBERS", 12 * columns)
    monkeypatch.setattr(inserted, "widen", lambda x, **of: seen.append(len(x)) or widened(x, **of))
    write_in_basis(matrix, Q, 9)
    torch.testing.assert_close(matrix.weight.double(), expected[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(matrix.bias.double(), expected[1], rtol=0, atol=1e-6)
    assert seen[1:-1] == [min(columns, 8 - at) for at in range(0, 8, columns)]
    assert matrix.weight.is_contiguous()


def test_states_that_overflow_are_a_reason():
    with pytest.raises(Unsupported, match="states of a layer overflow"):
        SliceGPT().prune(Decoder(overflowing()), tokens(), 0.2)


@pytest.mark.parametrize("family", ["llama", "opt", "gpt_neox"])
def test_cutting_equals_zeroing_in_the_rotated_basis(family, ids):
    """The same axes rotated but not cut, with a projection in place of the cut, give the same logits."""
    cut = Decoder(tiny(family))
    SliceGPT(d=24, slice_head=True).prune(cut, tokens(), 0.0)
    zeroed = Decoder(tiny(family))
    SliceGPT(d=24, slice_head=True).prune(zeroed, tokens(), 0.0)
    with torch.no_grad():
        for layer in zeroed.layers:
            for matrix in (layer.out, layer.down):  # widen every output by axes that hold zeros
                matrix.weight = torch.nn.Parameter(torch.cat([matrix.weight, torch.zeros(8, matrix.in_features)]))
                if matrix.bias is not None:
                    matrix.bias = torch.nn.Parameter(torch.cat([matrix.bias, torch.zeros(8)]))
            for matrix in (*layer.qkv, *layer.up):
                noise = torch.randn(matrix.out_features, 8)
                matrix.weight = torch.nn.Parameter(torch.cat([matrix.weight, noise], 1))
            for shortcut in layer.module.shortcuts:
                shortcut.weight = torch.nn.Parameter(torch.nn.functional.pad(shortcut.weight, (0, 8, 0, 8)))
        tables = [zeroed.embed] + ([zeroed.positions] if zeroed.positions is not None else [])
        for table in tables:
            table.weight = torch.nn.Parameter(torch.nn.functional.pad(table.weight, (0, 8)))
        zeroed.head.weight = torch.nn.Parameter(torch.nn.functional.pad(zeroed.head.weight, (0, 8), value=3.0))
        torch.testing.assert_close(cut.model(ids).logits, zeroed.model(ids).logits, rtol=0, atol=1e-5)


def test_padding_and_micro_batches_do_not_matter(ids):
    whole = tokens()
    padded = torch.cat([whole.ids, torch.full((12, 5), 7)], 1)
    mask = torch.cat([whole.mask, torch.zeros(12, 5, dtype=torch.bool)], 1)
    logits = []
    small = dataclasses.replace(whole, memory=5 * 40 * 4 * values_per_token(Decoder(tiny("llama"))))
    assert [len(ids) for ids, _ in small.batches(values_per_token(Decoder(tiny("llama"))), torch.float32)] == [5, 5, 2]
    for calibration in (whole, small, Calibration(padded, mask)):
        model = Decoder(tiny("llama"))
        SliceGPT(d=24).prune(model, calibration, 0.0)
        with torch.no_grad():
            logits.append(model.model(ids).logits)
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(logits[2], logits[0], rtol=0, atol=1e-5)


def test_the_head_is_untied_for_every_loader():
    model = Decoder(tiny("llama"))
    assert model.head.weight is model.embed.weight
    SliceGPT(d=24).prune(model, tokens(), 0.0)
    head = model.head.weight.clone()
    model.model.tie_weights()
    assert torch.equal(model.head.weight, head)
    assert model.config.tie_word_embeddings is False


def test_centring_embeddings_is_no_invariance_under_rms_norm(ids):
    model = Decoder(tiny("llama"))
    with torch.no_grad():
        dense = model.model(ids).logits
        SliceGPT(d=32, centre_embeddings=True).prune(model, tokens(), 0.0)
        centred = model.model(ids).logits
    assert float((centred - dense).abs().max()) > 1e-3


def shell(name: str, **config: object) -> Decoder:
    with torch.device("meta"):
        return Decoder(AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **config)))


def test_published_counts_come_out_of_the_formula():
    """OPT-125M and Phi-2 at 20 %, the authors' golden counts; SmolLM2-135M at d = 320, counted on the authors' code."""
    assert parameters_after_slicing(shell("opt"), 608) == 147_250_880
    phi_2 = shell("phi", hidden_size=2560, intermediate_size=10240, num_hidden_layers=32, num_attention_heads=32)
    assert parameters_after_slicing(phi_2, 2048) == 2_391_772_160
    smol = shell(
        "llama",
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    assert parameters(smol) == 134_515_008
    assert parameters_after_slicing(smol, 320) == 109_641_728


def test_what_no_rotation_survives_is_unsupported():
    for family in ("gemma2", "gemma3_text"):
        with pytest.raises(Unsupported, match="norms stand between its sub-blocks and the residual"):
            SliceGPT().plan(Decoder(tiny(family)), 0.2)
    with pytest.raises(Unsupported, match="norms stand between its sub-blocks and the residual"):
        SliceGPT().plan(Decoder(tiny("opt", do_layer_norm_before=False)), 0.2)
    with pytest.raises(Unsupported, match="projected"):
        SliceGPT().plan(Decoder(tiny("opt", word_embed_proj_dim=16)), 0.2)


def test_a_ratio_beyond_the_narrowest_slice_is_out_of_reach():
    with pytest.raises(OutOfReach, match="out of reach"):
        SliceGPT().plan(Decoder(tiny("llama")), 0.95)
    with pytest.raises(OutOfReach, match="d lies between 1 and the model's width, 32; got 40"):
        SliceGPT(d=40).plan(Decoder(tiny("llama")), 0.0)
    with pytest.raises(ValueError, match="two names for one knob"):
        SliceGPT(d=8, sparsity=0.2)


def test_a_width_to_the_column_meets_the_budget_more_closely():
    model = Decoder(tiny("llama"))
    for ratio in (0.1, 0.2, 0.3):
        target = (1 - ratio) * parameters(model)
        miss = [
            abs(parameters_after_slicing(model, SliceGPT(multiple=m).plan(model, ratio)["d"]) - target) for m in (1, 8)
        ]
        assert miss[0] <= miss[1]


def test_signals_of_a_model_in_half_precision_wait_unrounded(monkeypatch):
    """Each of the 2 L + 1 bases is of what layers have said, and not of what a basis before has made round."""
    pca, unrounded = slicegpt._Slicer.pca, []

    def watched(slicer):
        unrounded.append(any(bool((X.bfloat16() != X).any()) for X in slicer.X))
        return pca(slicer)

    monkeypatch.setattr(slicegpt._Slicer, "pca", watched)
    SliceGPT().prune(Decoder(tiny("llama").to(torch.bfloat16)), tokens(), 0.3)
    assert unrounded == [False] + [True] * 2 * LAYERS  # what is embedded is in half precision itself
