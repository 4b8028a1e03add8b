"""Compensations against brute force: torch.linalg.lstsq on whole matrices of states that hooks have seen."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from calibrations import LENGTHS, calibration
from conftest import LAYERS, TINY, tiny
from fitted import brute, states
from pages import rows
from scipy.linalg import hadamard as sylvester
from tiny_methods import SPECS, logits
from tiny_methods import calibration as whole_sequences

import methods
from bench.plan import run_spec
from methods.checkpoint import save_load
from methods.compensation.base import Boundary, BoundaryStates, CompensatedPruner, Pruning, boundaries_of
from methods.compensation.ghost import Ghost
from methods.compensation.linear_patch import LinearPatch, make_hadamard
from methods.compensation.refit import Refit
from methods.compensation.replaceme import ReplaceMe
from methods.compensation.scale import Scale
from methods.errors import CheckpointError, OutOfReach, Unsupported
from methods.least_squares import LeastSquares
from methods.model.activations import collect_inputs, enter
from methods.model.decoder import Decoder, make_twin
from methods.model.inserted import MappedLayer
from methods.model.layer import Layer
from methods.model.sizes import layer_parameters, macs_per_token, parameters
from methods.model.structures import Sublayer, drop_layers, keep_channels
from methods.search.evopress import EvoPress
from methods.trials.blocks import Replacements

RIDGE = 0.3
DEPTH = ("scale", "linearpatch", "ghost", "replaceme")
RIDGES = {"ghost": "ghost.ridge", "replaceme": "replaceme.ridge", "refit": "refit.ridge"}
PAIRS = [  # every compensation, after methods of every granularity
    *(f"shortgpt+{name}" for name in DEPTH),
    *(f"blockpruner+{name}" for name in DEPTH),
    "laco+ghost",
    "drop+ghost",
    "sleb+linearpatch",
    "llm-drop+ghost",
    "2ssp+ghost",
    *(f"{name}+refit" for name in ("flap", "wanda-sp", "llm-pruner", "2ssp", "minitron-width", "obs")),
]
# Of a compensation behind several methods: the first on every family, the others on one, and on all at night.
FIRST = {pair.partition("+")[2]: pair for pair in reversed(PAIRS)}
EACH = [
    pytest.param(pair, family, marks=[] if pair in FIRST.values() or family == "llama" else [pytest.mark.nightly])
    for pair in PAIRS
    for family in TINY
]


def made(pair: str, **given: object) -> methods.Pruner:
    return methods.make(pair, SPECS[pair.partition("+")[0]] | given)


def compensated(pair: str, family: str, ratio: float, **given: object) -> tuple[Decoder, dict]:
    model = Decoder(tiny(family))
    try:
        return model, made(pair, **given).prune(model, whole_sequences(), ratio)
    except Unsupported as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("pieces", [(60,), (1, 59), (7, 1, 1, 51), (1,) * 60])
@pytest.mark.parametrize("intercept", [False, True])
def test_streamed_sums_give_the_least_squares_of_the_whole(pieces, intercept):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(60, 7, generator=draw, dtype=torch.float64) * torch.logspace(-2, 2, 7, dtype=torch.float64) + 3
    y, towards = (torch.randn(n, 4, generator=draw, dtype=torch.float64) for n in (60, 7))
    sums = LeastSquares(7, 4, x.device)
    for a, b in zip(x.split(list(pieces)), y.split(list(pieces)), strict=True):
        sums.add(a, b)
    W, bias = sums.solve(0.05, towards, intercept=intercept)
    if intercept:
        torch.testing.assert_close(bias, (y - x @ W).mean(0))
        x, y = x - x.mean(0), y - y.mean(0)
    torch.testing.assert_close(W, brute(x, y, 0.05, towards), rtol=1e-7, atol=1e-9)
    assert intercept == (bias is not None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rows_in_half_precision_give_what_they_give_in_float64(dtype):
    """But for rounding far below their own; in float32 they are multiplied in float64, to the last bit."""
    draw, found = torch.Generator().manual_seed(3), []
    x = (torch.randn(400, 16, generator=draw) * torch.logspace(-2, 2, 16)).to(dtype)
    y, towards = (torch.randn(n, 4, generator=draw, dtype=torch.float64) for n in (400, 16))
    for given in (x, x.float(), x.double()):
        sums = LeastSquares(16, 4, x.device)
        for a, b in zip(given.split(100), y.split(100), strict=True):
            sums.add(a, b, 0.5)
        found.append(sums.solve(0.01, towards)[0])
    assert torch.equal(found[1], found[2])
    torch.testing.assert_close(found[0], found[2], rtol=1e-5, atol=1e-5 * float(found[2].abs().max()))


def test_a_small_ridge_is_no_ridge_and_a_huge_one_changes_nothing():
    draw = torch.Generator().manual_seed(1)
    x, y, towards = (torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((50, 6), (50, 3), (6, 3)))
    sums = LeastSquares(6, 3, x.device)
    sums.add(x, y)
    torch.testing.assert_close(sums.solve(1e-10, towards)[0], torch.linalg.lstsq(x, y).solution, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(sums.solve(1e10, towards)[0], towards, rtol=1e-6, atol=1e-6)


def test_fewer_tokens_than_channels_have_a_solution_or_a_reason():
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sums = LeastSquares(8, 2, x.device)
    sums.add(x, x[:, :2])
    assert sums.solve(1e-3, sums.xy * 0)[0].isfinite().all()
    with pytest.raises(Unsupported, match="5 calibration tokens do not determine a map of 8 channels at ridge=1e-30"):
        sums.solve(1e-30, sums.xy * 0)


def named(removed: dict[int, str], family: str = "llama") -> list[Boundary]:
    """The cuts where of each layer in `removed` the part goes."""
    dense = Decoder(tiny(family))
    pruned = make_twin(dense)
    layers = pruned.layers
    for number, part in removed.items():
        {"attention": layers[number].remove_attention, "mlp": layers[number].remove_mlp, "layer": lambda: None}[part]()
    kept = [number for number in range(LAYERS) if removed.get(number) != "layer"]
    pruned.set_layers([layers[number] for number in kept])
    return boundaries_of(Pruning(dense, pruned, kept))


@pytest.mark.parametrize(
    ("removed", "cuts"),
    [
        ({}, []),
        ({2: "layer", 3: "layer"}, [(1, ("layer 2", "layer 3"), 8)]),
        ({0: "layer", 5: "layer"}, [(-1, ("layer 0",), 2), (3, ("layer 5",), 12)]),
        ({0: "attention"}, [(-1, ("attention 0",), 1)]),
        ({1: "mlp", 2: "attention"}, [(1, ("mlp 1", "attention 2"), 5)]),
        ({1: "attention", 2: "mlp"}, [(0, ("attention 1",), 3), (2, ("mlp 2",), 6)]),
        (
            {1: "mlp", 2: "layer", 3: "attention", 4: "attention"},
            [(1, ("mlp 1", "layer 2", "attention 3"), 7), (2, ("attention 4",), 9)],
        ),
    ],
)
def test_a_cut_is_a_run_of_whatever_is_gone(removed, cuts):
    assert named(removed) == [Boundary(*cut) for cut in cuts]


def test_where_attention_and_mlp_are_parallel_a_cut_is_at_the_end_of_the_layer():
    assert named({1: "attention", 2: "mlp", 3: "layer", 4: "layer"}, "phi") == [
        Boundary(1, ("attention 1",), 4),
        Boundary(2, ("mlp 2", "layer 3", "layer 4"), 10),
    ]


@pytest.mark.parametrize("ridge", ["1e-9", "0.3"])
def test_ghost_is_the_least_squares_of_the_gap(ridge):
    dense, model = Decoder(tiny("llama")), Decoder(tiny("llama"))
    made("drop+ghost", layers="1+3-4", **{"ghost.ridge": ridge}).prune(model, calibration(filler=9), 0.0)
    z, now = states(dense)[0], states(model)[0]
    for behind, until in ((0, 2), (1, 5)):
        M = model.layers[behind].module.behind.weight.detach().double().T
        y = now[behind + 1] @ torch.linalg.inv(torch.eye(32, dtype=torch.float64) + M)  # before the map
        expected = brute(y, z[until] - y, float(ridge), torch.zeros(32, 32, dtype=torch.float64))
        torch.testing.assert_close(M, expected, rtol=0, atol=2e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("ridge", ["1e-9", "0.3"])
def test_replaceme_is_the_least_squares_of_the_mlps_share_and_folds(ridge):
    dense, model = Decoder(tiny("llama")), Decoder(tiny("llama"))
    made("drop+replaceme", layers="2-3", **{"replaceme.ridge": ridge}).prune(model, calibration(filler=9), 0.0)
    (x, _, m), (now, _, mapped) = states(dense), states(model)
    R, N, Z = x[2] - m[1], m[1], x[4]
    T = brute(N, Z - R, float(ridge), torch.eye(32, dtype=torch.float64))
    scale = float(x[2].abs().max())
    torch.testing.assert_close(now[2], R + N @ T, rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(mapped[1], N @ T, rtol=0, atol=1e-5 * scale)
    folded, plain = (one.layers[1].down.weight.detach().double() for one in (model, dense))
    torch.testing.assert_close(folded, T.T @ plain, rtol=0, atol=1e-5 * float(folded.abs().max()))


@torch.no_grad()
def test_replaceme_folds_into_the_attention_where_the_mlp_has_gone():
    """Behind it the next attention is gone as well, and the map does the work of both."""
    dense = Decoder(tiny("llama"))
    pruned = make_twin(dense)
    layers = pruned.layers
    layers[2].remove_mlp()
    layers[3].remove_attention()
    pruned.set_layers(layers)
    done = ReplaceMe(ridge=RIDGE).repair(Pruning(dense, pruned, range(LAYERS)), calibration(filler=9))
    assert [cut["removed"] for cut in done["cuts"]] == [["mlp 2", "attention 3"]]
    x, a, _ = states(dense)
    T = brute(a[2], x[3] + a[3] - x[2], RIDGE, torch.eye(32, dtype=torch.float64))
    folded, whole = (one.layers[2].out.weight.double() for one in (pruned, dense))
    torch.testing.assert_close(folded, T.T @ whole, rtol=0, atol=1e-4 * float(folded.abs().max()))


@pytest.mark.parametrize("ridge", [1e-6, 1.0])
def test_where_nothing_is_missing_nothing_is_mended(ridge):
    """Every map of a cut with equal states on both sides is the identity."""
    draw = torch.Generator().manual_seed(0)
    y, n = (torch.randn(2, 40, 16, generator=draw) for _ in range(2))
    seen = [BoundaryStates(y, n, y, torch.ones(2, 40, dtype=torch.bool), torch.zeros(2, 40, dtype=torch.bool))]
    nothing, one = torch.zeros(16, 16, dtype=torch.float64), torch.eye(16, dtype=torch.float64)
    torch.testing.assert_close(Ghost(ridge=ridge).fit(seen).W, nothing, rtol=0, atol=1e-12)
    torch.testing.assert_close(LinearPatch().fit(seen).W, nothing, rtol=0, atol=1e-12)
    torch.testing.assert_close(ReplaceMe(ridge=ridge).fit(seen).W, one, rtol=0, atol=1e-6)
    assert Scale().fit(seen) == pytest.approx(1.0, abs=1e-12)


def test_a_map_before_the_first_layer_is_the_least_squares_of_the_first_gap():
    dense, model = Decoder(tiny("llama")), Decoder(tiny("llama"))
    made("drop+ghost", layers="0-1", **{"ghost.ridge": "0.1"}).prune(model, calibration(filler=9), 0.0)
    x, seen = states(dense)[0], []
    model.layers[0].inner.register_forward_pre_hook(lambda _, args: seen.append(args[0][0].double()))
    states(model)
    M = brute(x[0], x[2] - x[0], 0.1, torch.zeros(32, 32, dtype=torch.float64))
    expected = x[0] + x[0] @ M
    torch.testing.assert_close(torch.cat(seen), expected, rtol=0, atol=2e-4 * float(expected.abs().max()))


def test_later_cuts_see_the_earlier_ones_mended():
    """The second map of two is that of the dense gap from what the first has left."""
    first, both = Decoder(tiny("llama")), Decoder(tiny("llama"))
    given = {"ghost.ridge": "0.01"}
    made("drop+ghost", layers="1", **given).prune(first, calibration(), 0.0)
    decided = made("drop+ghost", layers="1+4", **given).prune(both, calibration(), 0.0)
    z, y = states(Decoder(tiny("llama")))[0][5], states(first)[0][3]
    assert torch.equal(first.layers[0].module.behind.weight, both.layers[0].module.behind.weight)
    M = brute(y, z - y, 0.01, torch.zeros(32, 32, dtype=torch.float64))
    torch.testing.assert_close(
        both.layers[2].module.behind.weight.double().T, M, rtol=0, atol=2e-4 * float(M.abs().max())
    )
    second = decided["compensation"]["cuts"][1]
    assert second["error_before"] == pytest.approx(float((y - z).square().sum() / z.square().sum()), rel=1e-4)
    assert second["error_after"] == pytest.approx(float((y + y @ M - z).square().sum() / z.square().sum()), rel=1e-3)


@pytest.mark.parametrize("layers", ["0+3", "0+2", "0+2+4"])
@pytest.mark.parametrize("name", ["ghost", "linearpatch"])
def test_cuts_behind_one_before_the_first_layer_are_fitted_to_what_the_finished_model_has_there(name, layers):
    dense, model = Decoder(tiny("llama")), Decoder(tiny("llama"))
    decided = made(f"drop+{name}", layers=layers).prune(model, calibration(), 0.0)
    first, *later = decided["compensation"]["cuts"]
    assert first["behind_layer"] == -1 and len(later) == layers.count("+")
    for cut, number in zip(later, layers.split("+")[1:], strict=True):
        z, y = states(dense)[0][int(number) + 1], states(model)[0][cut["behind_layer"] + 1]
        missed = float((y - z).square().sum() / z.square().sum())
        assert cut["error_after"] == pytest.approx(missed, rel=1e-3)


def test_refit_is_the_least_squares_of_the_dense_output_for_the_same_input():
    """The first layer's down matrix, whose input no earlier cut has changed; with and without an intercept."""
    for intercept in ("no", "yes"):
        dense, model = Decoder(tiny("llama")), Decoder(tiny("llama"))
        given = {"refit.ridge": "0.02", "refit.intercept": intercept}
        decided = made("minitron-width+refit", **given).prune(model, calibration(filler=5), 0.2)
        with collect_inputs(dense.layers[0].down) as inputs:
            m = states(dense)[2][0]
        gone = decided["removed_channels"][0]
        kept = [channel for channel in range(48) if channel not in gone]
        S = torch.cat([x[0].double() for x in inputs])[:, kept]
        W = dense.layers[0].down.weight.detach().double()[:, kept].T
        down = model.layers[0].down
        if intercept == "yes":
            expected = brute(S - S.mean(0), m - m.mean(0), 0.02, W)
            bias = m.mean(0) - S.mean(0) @ expected
            torch.testing.assert_close(down.bias.double(), bias, rtol=0, atol=1e-4 * float(bias.abs().max()))
        else:
            expected = brute(S, m, 0.02, W)
            assert down.bias is None
        torch.testing.assert_close(down.weight.double().T, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
        assert decided["compensation"]["added_parameters"] == (32 * LAYERS if intercept == "yes" else 0)


def through(layer: Layer, part: str, x: list[torch.Tensor], given: list[dict]) -> list[torch.Tensor]:
    """What the attention (out) or the MLP (down) of a layer adds."""
    return [
        layer.attend(one, each) if part == "out" else layer.transform(one) for one, each in zip(x, given, strict=True)
    ]


@pytest.mark.parametrize("pair", ["flap+refit", "wanda-sp+refit", "llm-pruner+refit"])
@torch.no_grad()
def test_every_cut_matrix_is_refitted_on_what_the_refitted_prefix_gives(pair):
    """Attentions and MLPs of all layers: the dense block's output for the input that the block has now."""
    dense, plain, model = (Decoder(tiny("llama", num_key_value_heads=4)) for _ in range(3))
    made(pair.partition("+")[0]).prune(plain, calibration(filler=5), 0.3)
    made(pair, **{"refit.ridge": "0.1"}).prune(model, calibration(filler=5), 0.3)
    tokens, refitted = calibration(), []
    entries = [enter(dense, ids[None, :length]) for ids, length in zip(tokens.ids, LENGTHS, strict=True)]
    x = [entry.x for entry in entries]
    for whole, cut, layer in zip(dense.layers, plain.layers, model.layers, strict=True):
        given = [entry.arguments[layer.kind] for entry in entries]
        for part in ("out", "down"):
            matrix, before = getattr(layer, part), getattr(cut, part)
            with collect_inputs(matrix) as entered:
                added, Y = (through(one, part, x, given) for one in (layer, whole))
            x = [one + new for one, new in zip(x, added, strict=True)]
            if matrix.in_features == getattr(whole, part).in_features:
                assert torch.equal(matrix.weight, before.weight)
                continue
            refitted.append(part)
            S, Y = (torch.cat([one[0].double() for one in rows]) for rows in (entered, Y))
            bias = 0 if before.bias is None else before.bias.double()
            W = brute(S, Y - bias, 0.1, before.weight.double().T)
            torch.testing.assert_close(matrix.weight.double().T, W, rtol=0, atol=2e-4 * float(W.abs().max()))
    assert refitted.count("out") > 3 < refitted.count("down")


def test_scale_multiplies_the_residual_as_its_norms_see_it():
    """Dividing what is added behind a cut by c gives the logits of a residual that is multiplied by c there."""
    model, by_hand = (Decoder(tiny("llama", rms_norm_eps=1e-12)) for _ in range(2))
    decided = made("drop+scale", layers="1+3").prune(model, calibration(), 0.0)
    factors = decided["compensation"]["factors"]
    z, y = states(Decoder(tiny("llama", rms_norm_eps=1e-12)))[0][2], states(model)[0][1]
    assert factors[0] == pytest.approx(float((z.norm(dim=-1) / y.norm(dim=-1)).mean()), rel=1e-5)
    methods.make("drop", {"layers": "1+3"}).prune(by_hand, calibration(), 0.0)
    for layer, c in zip(by_hand.layers, (factors[0], factors[1] / factors[0]), strict=False):
        layer.module.register_forward_hook(lambda module, args, out, c=c: c * out)
    ids = calibration().ids
    expected = logits(by_hand, ids)
    torch.testing.assert_close(logits(model, ids), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("rotate", ["yes", "no"])
def test_linearpatch_by_hand(rotate):
    dense, model = Decoder(tiny("llama")), Decoder(tiny("llama"))
    made("drop+linearpatch", layers="2-3", **{"linearpatch.rotate": rotate}).prune(model, calibration(filler=3), 0.0)
    H = torch.tensor(sylvester(32)) / 32**0.5 if rotate == "yes" else torch.eye(32)
    H, x = H.double(), states(dense)[0]
    pairs = zip(*(one.split(list(LENGTHS)) for one in (x[4], x[2])), strict=True)
    c = torch.stack([(z @ H).abs().mean(0) / (y @ H).abs().mean(0) for z, y in pairs]).mean(0)
    M = model.layers[1].module.behind.weight.double().T
    expected = H @ torch.diag(c) @ H.T - torch.eye(32, dtype=torch.float64)
    torch.testing.assert_close(M, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("n", [1, 2, 8, 12, 20, 28, 36, 64, 576, 896, 1152, 5120 // 8])
def test_hadamard_matrices_have_entries_of_one_size(n):
    H = make_hadamard(n)
    torch.testing.assert_close(H @ H.T, torch.eye(n, dtype=torch.float64))
    torch.testing.assert_close(H.abs(), torch.full_like(H, n**-0.5))


@pytest.mark.parametrize("n", [3, 50, 92])
def test_other_widths_get_some_orthogonal_matrix(n):
    torch.testing.assert_close(make_hadamard(n) @ make_hadamard(n).T, torch.eye(n, dtype=torch.float64))
    assert torch.equal(make_hadamard(n), make_hadamard(n))


@pytest.mark.parametrize(("pair", "family"), [cell for cell in EACH if not cell.values[0].startswith("drop")])
def test_ratio_zero_changes_nothing(pair, family, ids):
    dense = Decoder(tiny(family))
    model, decisions = compensated(pair, family, 0.0)
    assert torch.equal(logits(model, ids), logits(dense, ids))
    assert model.config.to_dict() == dense.config.to_dict()
    assert "compensation" not in decisions


@pytest.mark.parametrize(("pair", "family"), EACH)
def test_a_compensated_model_counts_caches_and_comes_back(pair, family, ids, tmp_path):
    model, decisions = compensated(pair, family, 0.3)
    whole = logits(model, ids)
    with torch.no_grad():
        out = model.model(ids[:, :16], use_cache=True)
        steps = [out.logits]
        for t in range(16, ids.shape[1]):
            out = model.model(ids[:, t : t + 1], cache=out.cache, use_cache=True)
            steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=0, atol=1e-4 * float(whole.abs().max()))
    manifest = save_load.save(model, tmp_path / "model")
    again = save_load.load(tmp_path / "model")
    assert torch.equal(logits(again, ids), whole)
    assert parameters(again) == parameters(model) == manifest["parameters"]
    if pair.endswith(("+ghost", "+linearpatch")):
        assert manifest["loads_with"] == "prunebench"
    elif pair.startswith("shortgpt"):
        assert manifest["loads_with"] == "transformers"
    added = decisions["compensation"]["added_parameters"]
    assert added == sum(
        p.numel() for name, p in model.model.named_parameters() if ".behind." in name or ".before." in name
    )


@pytest.mark.parametrize("pair", PAIRS)
def test_the_same_tokens_make_the_same_model(pair, ids):
    runs = [compensated(pair, "llama", 0.3) for _ in range(2)]
    assert runs[0][1] == runs[1][1]
    assert torch.equal(logits(runs[0][0], ids), logits(runs[1][0], ids))


@pytest.mark.parametrize("pair", ["shortgpt+ghost", "blockpruner+replaceme", "flap+refit", "shortgpt+linearpatch"])
def test_padding_and_micro_batches_change_nothing(pair, ids):
    models = []
    for filler, memory in ((0, 2**30), (77, 2**30), (0, 1)):
        model = Decoder(tiny("qwen2"))
        made(pair).prune(model, calibration(filler=filler, memory=memory), 0.3)
        models.append(logits(model, ids))
    for other in models[1:]:
        torch.testing.assert_close(other, models[0], rtol=0, atol=1e-3 * float(models[0].abs().max()))


@pytest.mark.parametrize(
    ("pair", "what"), [*((f"drop+{name}", "mending") for name in DEPTH), ("flap+refit", "refitting")]
)
def test_a_fit_shows_how_far_it_is(pair, what, bars):
    compensated(pair, "llama", 0.3)
    (bar,) = [bar for bar in bars if bar.what == what]
    assert bar.done == bar.total > 1


@pytest.mark.parametrize("pair", PAIRS)
def test_the_budget_is_met_with_what_is_added(pair):
    if pair.startswith("drop"):
        return
    model = Decoder(tiny("llama"))
    dense, each = parameters(model), layer_parameters(model.layers[0])
    pruner = made(pair)
    for n in (1, 2, 3):
        after, decisions = compensated(pair, "llama", n * each / dense)
        missed = abs(parameters(after) - (dense - n * each))
        inner = made(pair.partition("+")[0])
        plain = Decoder(tiny("llama"))
        inner.prune(plain, whole_sequences(), n * each / dense)
        alone = abs(parameters(plain) + decisions["compensation"]["added_parameters"] - (dense - n * each))
        assert missed <= max(alone, each / 2)
        assert parameters(after) == decisions.get("parameters", parameters(after))
    assert pruner.name == pair


def test_whole_layers_make_up_for_many_maps():
    """Eight cuts of a wide, shallow-layered model cost more than half a layer, so that one more goes."""
    model = Decoder(tiny("llama", layers=20, intermediate_size=8, num_key_value_heads=1))
    dense, each = parameters(model), layer_parameters(model.layers[0])
    layers = model.layers
    assert layers[0].matrices[0].weight.numel() * 5 > each  # a map weighs more than a fifth of a layer
    decisions = methods.make("sleb+ghost", {"tokens": "96"}).prune(model, whole_sequences(), 8 * each / dense)
    cuts = len(decisions["compensation"]["cuts"])
    removed = len(decisions["removed_layers"])
    assert removed > 8
    assert decisions["asked_of_pruner"] > 8 * each / dense
    assert parameters(model) == dense - removed * each + cuts * 32 * 32
    assert abs(parameters(model) - (dense - 8 * each)) <= each / 2


def test_a_method_prunes_once_where_maps_do_not_change_the_number_of_layers(monkeypatch):
    from methods.depth.shortgpt import ShortGPT

    calls, scores = [], ShortGPT.scores
    monkeypatch.setattr(ShortGPT, "scores", lambda self, *args: calls.append(args) or scores(self, *args))
    compensated("shortgpt+ghost", "llama", 0.3)
    assert len(calls) == 1


def test_what_a_search_has_found_is_not_searched_again(monkeypatch):
    """Four layers need two maps, so that five go, which need one: four with theirs come nearer."""
    asked, model = [], Decoder(tiny("llama", layers=20, intermediate_size=8, num_key_value_heads=1))

    def search(self, model, calibration, k, *_):
        asked.append(k)
        layers = (2, 3, 5, 6) if k == 4 else range(k)
        return Replacements(Sublayer(part, layer) for part in ("attention", "mlp") for layer in layers), {}

    monkeypatch.setattr(EvoPress, "search", search)
    dense, each = parameters(model), layer_parameters(model.layers[0])
    decided = methods.make("evopress+ghost").prune(model, whole_sequences(), 4 * each / dense)
    assert len(asked) == len(set(asked)) > 1
    assert asked[-1] != decided["blocks_of_each_kind"] == len(decided["removed_layers"])
    cuts = len(decided["compensation"]["cuts"])
    assert parameters(model) == dense - len(decided["removed_layers"]) * each + cuts * 32 * 32


def test_a_map_counts_in_memory_and_work():
    model, decisions = compensated("drop+ghost", "llama", 0.0)
    plain = Decoder(tiny("llama"))
    methods.make("drop", SPECS["drop"]).prune(plain, None, 0.0)
    assert decisions["compensation"]["added_parameters"] == parameters(model) - parameters(plain) == 2 * 32 * 32
    assert macs_per_token(model, 8) - macs_per_token(plain, 8) == 2 * 32 * 32
    assert isinstance(model.layers[0].module, MappedLayer)


@pytest.mark.parametrize(
    ("pair", "family", "reason"),
    [
        ("flap+ghost", "llama", "no cut; refit serves heads and channels"),
        ("shortgpt+refit", "llama", "removes no head and no channel"),
        ("slicegpt+ghost", "llama", "slicegpt cuts the residual itself"),
        ("laco-ls+refit", "llama", "removes no head and no channel"),
    ],
)
def test_what_makes_no_sense_is_unsupported_with_the_reason(pair, family, reason):
    with pytest.raises(Unsupported, match=reason):
        made(pair).prune(Decoder(tiny(family)), whole_sequences(), 0.3)


def test_refit_does_not_go_behind_a_method_that_refits_by_itself():
    with pytest.raises(Unsupported, match="laco-puzzle does what refit does by itself"):
        made("laco-puzzle+refit").plan(Decoder(tiny("llama")), 0.3)
    made("laco-puzzle+ghost").plan(Decoder(tiny("llama")), 0.3)


@dataclass(frozen=True)
class Collapsing(methods.Pruner):
    """Says that layer 3 has collapsed into layer 2, and narrows the MLP of some layer."""

    name, takes_ratio = "collapsing", False
    narrow: int

    def plan(self, model, ratio):
        return {}

    def prune(self, model, calibration, ratio):
        keep_channels(model.layers[self.narrow], range(8, 48))
        channels = [list(range(8)) if number == self.narrow else [] for number in range(LAYERS)]
        return drop_layers(model, [3]) | {"windows": [[2, 3]], "removed_channels": channels}


def test_a_layer_that_does_the_work_of_others_is_not_refitted_to_that_of_one():
    with pytest.raises(Unsupported, match="layer 2 does the work of layers 2 to 3"):
        CompensatedPruner(Collapsing(2), Refit()).prune(Decoder(tiny("llama")), whole_sequences(), 0.0)
    decided = CompensatedPruner(Collapsing(4), Refit()).prune(Decoder(tiny("llama")), whole_sequences(), 0.0)
    assert [one["layer"] for one in decided["compensation"]["refitted"]] == [3]


def test_what_a_method_says_of_its_own_fits_is_kept_beside_those_of_a_compensation():
    class Fitting(Collapsing):
        def prune(self, model, calibration, ratio):
            fits = {"refitted": [{"layer": 4, "part": "mlp"}], "tokens": 7}
            return super().prune(model, calibration, ratio) | {"compensation": {"name": "refit"} | fits}

    decided = CompensatedPruner(Fitting(4), Ghost()).prune(Decoder(tiny("llama")), whole_sequences(), 0.0)
    assert decided["refitted"] == [{"layer": 4, "part": "mlp"}]
    assert (decided["compensation"]["name"], len(decided["compensation"]["cuts"])) == ("ghost", 1)


def test_replaceme_has_nothing_to_fold_into_before_the_first_layer():
    with pytest.raises(Unsupported, match="nothing is left in front of the first cut"):
        made("drop+replaceme", layers="0").prune(Decoder(tiny("llama")), whole_sequences(), 0.0)
    model = Decoder(tiny("llama"))
    made("drop+ghost", layers="0").prune(model, whole_sequences(), 0.0)
    assert model.layers[0].module.before is not None


def test_a_ratio_out_of_reach_is_refused_as_by_the_method_alone():
    with pytest.raises(OutOfReach, match="out of reach"):
        made("shortgpt+ghost").plan(Decoder(tiny("llama")), 0.95)


def test_names_and_parameters():
    pruner = methods.make("shortgpt+ghost", {"token": "last", "ghost.ridge": "0.5"})
    flat = methods.parameters_of_pruner(pruner)
    assert (pruner.name, pruner.fixed) == ("shortgpt+ghost", False)
    assert (flat["token"], flat["ghost.ridge"]) == ("last", 0.5)
    assert methods.make("shortgpt+ghost", flat) == pruner
    assert methods.modules_of("shortgpt+ghost") == ["methods.depth.shortgpt", "methods.compensation.ghost"]
    assert methods.modules_of("shortgpt+none") == methods.modules_of("shortgpt") == ["methods.depth.shortgpt"]
    assert methods.make("shortgpt+none") == methods.make("shortgpt")
    assert methods.make("drop-random+ghost").alone.draws == 5
    assert methods.make("drop:layers".partition(":")[0] + "+scale", {"layers": "1"}).fixed
    names = ["blockwise", "ghost", "linearpatch", "refit", "reinitialize", "replaceme", "scale"]
    assert [card.name for card in methods.cards_of_compensations()] == names
    for card in methods.cards_of_compensations():
        known = methods.parameters_of_pruner(methods.make(f"shortgpt+{card.name}"))
        assert {f"{card.name}.{name}" for name, _, _ in card.parameters} == {name for name in known if "." in name}


@pytest.mark.parametrize(
    ("pair", "given", "message"),
    [
        ("shortgpt+goast", {}, "no compensation is called 'goast'; did you mean ghost"),
        ("shortgbt+ghost", {}, "no method is called 'shortgbt'; did you mean shortgpt"),
        ("shortgpt+ghost", {"ghost.rigde": "1"}, "ghost has no parameter ghost.rigde; it has: ghost.ridge"),
        ("shortgpt+ghost", {"ridge": "1"}, "shortgpt has no parameter ridge"),
        ("shortgpt+ghost", {"ghost.ridge": "much"}, "ghost.ridge is float, more than 0 and finite; got 'much'"),
        ("shortgpt+ghost", {"ghost.ridge": "inf"}, "ghost.ridge is float, more than 0 and finite; got 'inf'"),
        ("shortgpt+ghost", {"ghost.ridge": "nan"}, "ghost.ridge is float, more than 0 and finite; got 'nan'"),
        ("shortgpt+ghost", {"ghost.ridge": "0"}, "ghost.ridge is float, more than 0 and finite; got '0'"),
        ("shortgpt+scale", {"scale.tokens": "1"}, "scale.tokens is int, at least 2 or None; got '1'"),
    ],
)
def test_unsound_names_and_parameters_are_refused(pair, given, message):
    with pytest.raises(ValueError, match=message):
        methods.make(pair, given)


@pytest.mark.parametrize("pair", ["shortgpt+ghost", "blockpruner+ghost"])
def test_a_damaged_description_of_maps_is_refused(pair, tmp_path):
    model, _ = compensated(pair, "llama", 0.3)
    save_load.save(model, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(path.read_text().replace('"behind"', '"beside"').replace('"before"', '"behind"'))
    with pytest.raises(CheckpointError):
        save_load.load(tmp_path / "model")


@pytest.mark.parametrize("card", methods.cards_of_compensations(), ids=lambda card: card.name)
def test_every_parameter_is_on_its_page_with_its_default(card):
    table = rows()
    assert card.parameters
    for parameter in card.parameters:
        assert any(row[-3:] == parameter for row in table), f"docs/methods lacks {card.name}: {parameter}"


@pytest.mark.parametrize(
    "pair", ["shortgpt+ghost", "shortgpt+replaceme", "shortgpt+scale", "flap+refit", "laco-ls+none"]
)
def test_weights_keep_their_dtype_and_their_state(pair):
    model = Decoder(tiny("llama").bfloat16())
    model.model.requires_grad_(False)
    made(pair).prune(model, whole_sequences(), 0.3)
    assert {(one.dtype, one.requires_grad) for one in model.model.parameters()} == {(torch.bfloat16, False)}


@pytest.mark.parametrize(("name", "cells"), [("compensation", 87), ("compensation-calibration", 15), ("seeds", 110)])
def test_the_specs_of_the_study_name_what_there_is(name, cells):
    """Every method is known, and each that is mended stands there alone as well."""
    spec = run_spec.load_spec(name, {})
    asked = spec.method_choices()
    for method, given, _ in asked:
        methods.make(method, given)
    assert {mention.method.partition("+")[0] for mention in asked} <= {mention.method for mention in asked}
    assert len(spec.protocols()) * (1 + len(asked) * len(spec.ratios)) == cells
