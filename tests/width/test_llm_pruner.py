"""LLM-Pruner against its authors' code, against its published counts, and against sums done by hand."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from authors_code import as_shown, difference, loaded
from conftest import TINY, VOCABULARY, tiny
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, LlamaConfig

import methods
from methods.errors import OutOfReach, Unsupported
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.gradients import collect_gradients, make_zeros
from methods.model.sizes import parameters
from methods.model.structures import Structure
from methods.width import llm_pruner
from methods.width.llm_pruner import AGGREGATION, TAYLOR, Importance, LLMPruner

GOLDEN = Path(__file__).parents[1] / "golden"
RUNS = {
    key: run
    for key, run in json.loads((GOLDEN / "slicegpt_llmpruner.json").read_text(encoding="utf-8")).items()
    if key.startswith("lp_")
}
OURS = {"param_first": "element1", "param_second": "element2", "param_mix": "mix", "vectorize": "vector"}


@pytest.fixture(scope="module")
def tensors():
    return load_file(GOLDEN / "slicegpt_llmpruner.safetensors")


def block(ids: torch.Tensor, lengths: list[int] | None = None) -> Calibration:
    mask = torch.ones_like(ids, dtype=torch.bool)
    for row, length in enumerate(lengths or []):
        mask[row, length:] = False
    return Calibration(ids, mask)


def calibration(rows: int = 6, length: int = 24, seed: int = 0) -> Calibration:
    return block(torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed)))


def logits(model: Decoder, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.model(ids).logits


def shape(**options: object) -> Decoder:
    """A Llama without weights."""
    with torch.device("meta"):
        return Decoder(AutoModelForCausalLM.from_config(LlamaConfig(**options)))


LLAMA_7B = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
LLAMA_3_8B = LLAMA_7B | {"vocab_size": 128256, "intermediate_size": 14336, "num_key_value_heads": 8}
TINYLLAMA = LLAMA_7B | {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_key_value_heads": 4,
}
SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}


# Against the authors' code


def repeated(key: str, tensors: dict[str, torch.Tensor], **options: object) -> tuple[Decoder, dict]:
    run = RUNS[key]
    name = key.removeprefix("lp_").removesuffix(f"_{run['taylor']}")
    model = Decoder(copy.deepcopy(loaded(name)))
    first, end = run["layers_pruned"]
    settings = {"keep_first": first, "keep_last": len(model.layers) - end, "sequences": 16, "gqa": "released"} | options
    pruner = LLMPruner(r=run["ratio"], importance=OURS[run["taylor"]], aggregation=run["grouping"], **settings)
    return model, pruner.prune(model, block(tensors["calib"]), 0.0)


@pytest.mark.parametrize("key", RUNS)
def test_the_authors_choices_and_logits(key, tensors):
    run = RUNS[key]
    model, decisions = repeated(key, tensors)
    E = model.layers[0].head_width
    for name, rows in run["removed"].items():
        layer = int(name.split(".")[2])
        if name.endswith("gate_proj"):
            assert decisions["removed_channels"][layer] == rows
        else:
            assert [head * E + e for head in decisions["removed_kv_heads"][layer] for e in range(E)] == rows
    assert parameters(model) == decisions["parameters"] == run["params_pruned"]
    assert decisions["kv_heads"] == [layer["kv_heads"] for layer in run["layers"]]
    assert decisions["channels"] == [layer["mlp"] for layer in run["layers"]]
    apart = difference("logits", logits(model, tensors["probe"]), tensors[f"{key}.logits"])
    assert apart < 1e-4
    as_shown("llm_pruner", key, {"logits": apart})


def test_the_correct_pairing_chooses_other_heads_and_the_same_channels(tensors):
    key = "lp_tiny_gqa_tied_vectorize"
    _, released = repeated(key, tensors)
    _, paired = repeated(key, tensors, gqa="paired")
    assert released["removed_kv_heads"] == [[], [0, 1], [0, 1], [0, 1], [0, 2], []]
    assert paired["removed_kv_heads"] == [[], [0, 1], [0, 2], [1, 2], [2, 3], []]
    assert paired["removed_channels"] == released["removed_channels"]
    assert paired["parameters"] == released["parameters"]


def test_pairings_agree_without_grouped_queries(tensors):
    key = "lp_tiny_mha_param_first"
    assert repeated(key, tensors)[1] == repeated(key, tensors, gqa="paired")[1]


# The budget, from shapes alone


@pytest.mark.parametrize(
    ("model", "r", "last", "count"),
    [
        (LLAMA_7B, 0.25, 2, 5_422_977_024),
        (LLAMA_3_8B, 0.25, 2, 6_612_586_496),
        (TINYLLAMA, 0.25, 4, 945_907_712),
        (SMOLLM2, 0.3282, 2, 106_493_760),
    ],
    ids=["llama-7b", "llama-3-8b", "tinyllama", "smollm2-135m"],
)
def test_published_counts(model, r, last, count):
    assert LLMPruner(r=r, keep_first=4, keep_last=last).plan(shape(**model), 0.0)["parameters"] == count


def test_one_share_meets_the_budget_where_heads_are_many():
    """Llama-3-8B without eight layers' worth."""
    plan = LLMPruner().plan(shape(**LLAMA_3_8B), 0.2173)
    assert plan["r"] == pytest.approx(0.3214, abs=2e-4)
    assert not plan["closed_by_channels"]


def test_channels_close_the_gap_that_heads_leave():
    model = shape(**SMOLLM2)
    dense = parameters(model)
    plan = LLMPruner().plan(model, 0.1842)
    assert plan["closed_by_channels"]
    assert 1 - plan["parameters"] / dense == pytest.approx(0.1842, abs=2e-4)  # one channel is 0.03 %
    assert plan["parameters"] == dense - 24 * 3 * 576 * (1536 - int(1536 * (1 - plan["r"])))  # and all heads are there


def test_a_small_head_jump_is_left_alone():
    """Llama-2-7B at 24.03 %: the nearest single r removes 24.39 %."""
    model = shape(**LLAMA_7B)
    plan = LLMPruner().plan(model, 0.2403)
    assert not plan["closed_by_channels"]
    assert abs(1 - plan["parameters"] / parameters(model) - 0.2403) < 0.005


@pytest.mark.parametrize("options", [SMOLLM2, TINYLLAMA], ids=["smollm2", "tinyllama"])
def test_what_is_removed_grows_with_the_request(options):
    model = shape(**options)
    dense = parameters(model)
    counts = [LLMPruner().plan(model, ratio / 200)["parameters"] for ratio in range(100)]
    assert counts == sorted(counts, reverse=True)
    assert all(abs(1 - count / dense - ratio / 200) <= 0.005 for ratio, count in enumerate(counts))


@pytest.mark.parametrize(("layers", "protected"), [(30, [0, 1, 2, 3, 28, 29]), (12, [0, 1, 2, 11]), (6, [0]), (3, [])])
def test_protection_scales_down_with_depth(layers, protected):
    model = shape(**SMOLLM2 | {"num_hidden_layers": layers})
    assert LLMPruner().plan(model, 0.05)["protected_layers"] == protected


@pytest.mark.parametrize("ranking", ["local", "global"])
def test_out_of_reach_is_refused_before_any_work(ranking):
    model, kept = shape(**SMOLLM2), {"keep_first": 4, "keep_last": 2}
    LLMPruner(ranking=ranking, **kept).plan(model, 0.578)  # one head and one channel of each layer would be left
    with pytest.raises(OutOfReach, match="out of reach"):
        LLMPruner(ranking=ranking, **kept).plan(model, 0.579)
    with pytest.raises(OutOfReach, match="out of reach"):
        LLMPruner(ranking=ranking).plan(model, 0.724)  # of all layers
    with pytest.raises(OutOfReach, match="protect all"):
        LLMPruner(keep_first=20, keep_last=10).plan(model, 0.1)


def test_fewer_layers_are_protected_where_the_ratio_needs_more_than_the_others_can_lose():
    model = shape(**SMOLLM2)
    found = {ratio: LLMPruner().plan(model, ratio) for ratio in (0.5, 0.52, 0.54, 0.6, 0.7)}
    assert "protected_by_default" not in found[0.5]
    assert "protected_by_default" not in found[0.52]  # 0.9 of what 24 layers can lose is 0.5203 of the model
    assert [found[ratio]["protected_layers"] for ratio in (0.52, 0.54)] == [[0, 1, 2, 3, 28, 29], [0, 1, 2, 3, 29]]
    assert found[0.6]["protected_layers"] == [0, 1]
    assert found[0.7]["protected_layers"] == []
    assert {tuple(found[ratio]["protected_by_default"]) for ratio in (0.54, 0.6, 0.7)} == {(0, 1, 2, 3, 28, 29)}
    for ratio, plan in found.items():
        assert plan["parameters"] == pytest.approx((1 - ratio) * parameters(model), abs=0.005 * parameters(model))


@pytest.mark.parametrize("ranking", ["local", "global"])
def test_a_model_with_one_key_value_head_reaches_what_all_its_layers_can_lose(ranking):
    model = Decoder(tiny("gemma", layers=8))  # 2 layers are protected by default
    other = Decoder(tiny("gemma", layers=8))
    channels = 3 * 32 * 47 / parameters(model)  # all but one, of a layer
    ratio = 6.5 * channels
    with pytest.raises(OutOfReach, match="out of reach"):
        LLMPruner(ranking=ranking, keep_first=2, keep_last=1).prune(other, calibration(), ratio)
    decisions = LLMPruner(ranking=ranking).prune(model, calibration(), ratio)
    assert len(decisions["protected_by_default"]) > len(decisions["protected_layers"])
    assert 1 - parameters(model) / parameters(other) == pytest.approx(ratio, abs=0.01)


@pytest.mark.parametrize("ranking", ["local", "global"])
def test_a_head_and_a_channel_always_stay(ranking, ids):
    model = Decoder(tiny("llama"))
    decisions = LLMPruner(r=0.999, ranking=ranking).prune(model, calibration(), 0.0)
    assert decisions["kv_heads"] == [2, 1, 1, 1, 1, 1]
    assert decisions["channels"] == [48, 1, 1, 1, 1, 1]
    assert logits(model, ids).isfinite().all()


# Every family


@pytest.mark.parametrize("ranking", ["local", "global"])
@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.3])
@pytest.mark.parametrize("family", TINY)
def test_the_formula_is_the_count(family, ratio, ranking):
    model = Decoder(tiny(family))
    dense = parameters(model)
    pruner = LLMPruner(ranking=ranking)
    plan = pruner.plan(model, ratio)
    decisions = pruner.prune(model, calibration(), ratio)
    assert decisions["parameters"] == parameters(model)
    assert ranking == "global" or plan["parameters"] == decisions["parameters"]
    assert 1 - parameters(model) / dense == pytest.approx(ratio, abs=0.01)  # one channel of five layers is up to 1 %
    for layer, heads, channels in zip(model.layers, decisions["kv_heads"], decisions["channels"], strict=True):
        assert (layer.kv_heads, layer.down.in_features) == (heads, channels)
    json.dumps(decisions)


@pytest.mark.parametrize("family", TINY)
def test_what_stays_is_the_dense_model_masked(family, ids):
    model, masked = Decoder(tiny(family)), Decoder(tiny(family))
    decisions = LLMPruner(r=0.5, importance="mix").prune(model, calibration(), 0.0)
    assert any(decisions["removed_channels"])
    with torch.no_grad():
        for layer, heads, channels in zip(
            masked.layers, decisions["removed_kv_heads"], decisions["removed_channels"], strict=True
        ):
            layer.out.weight.view(len(layer.out.weight), layer.kv_heads, -1)[:, heads] = 0
            layer.down.weight[:, channels] = 0
    expected = logits(masked, ids)
    torch.testing.assert_close(logits(model, ids), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("family", TINY)
def test_cached_generation_after_pruning(family, ids):
    model = Decoder(tiny(family))
    LLMPruner(r=0.5).prune(model, calibration(), 0.0)
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    cached, uncached = (model.model.generate(ids, use_cache=cache, **options) for cache in (True, False))
    assert torch.equal(cached, uncached)


@pytest.mark.parametrize("options", [{"r": 0.0}, {}, {"ranking": "global"}, {"r": 0.0, "ranking": "global"}], ids=str)
@pytest.mark.parametrize("family", TINY)
def test_ratio_zero_touches_nothing(family, options):
    model = Decoder(tiny(family))
    before = dict(model.model.named_parameters())
    decisions = LLMPruner(**options).prune(model, calibration(), 0.0)
    assert all(before[name] is parameter for name, parameter in model.model.named_parameters())
    assert decisions["parameters"] == parameters(model)
    assert not any(decisions["removed_channels"] + decisions["removed_kv_heads"])


# Importance by hand


def hand(importance: str, w: float, g: float, a: float) -> float:
    """What one weight counts."""
    return {
        "element1": abs(w * g),
        "element2": abs(w * w * a),
        "mix": abs(w * g - w * w * a / 2),
        "vector": w * g,
        "l1": abs(w),
        "l2": w * w,
    }[importance]


@pytest.mark.parametrize(
    ("importance", "scores"),
    [
        # W_gate = [[1, -2]], W_up = [[3, 1]], W_down = [[2], [-1]]; all g = 1, 2 and a = 1, 2 along the row or column
        ("element1", (5, 5, 4)),
        ("vector", (3, 5, 0)),
        ("element2", (9, 11, 6)),
        ("mix", (0.5 + 8, 1.5 + 1, 0 + 3)),
        ("l1", (3, 4, 3)),
        ("l2", (5, 10, 5)),
    ],
)
@pytest.mark.parametrize("aggregation", AGGREGATION)
def test_the_importance_of_a_channel(importance, scores, aggregation):
    structure = Structure(0, "channels", Decoder(tiny("llama")).layers[0])
    layer, pair = structure.layer, torch.tensor([1.0, 2.0])
    weights = [*(matrix.weight for matrix in layer.up), layer.down.weight]
    g, a = make_zeros(weights), make_zeros(weights)
    with torch.no_grad():
        for weight, values in zip(weights, ([1.0, -2.0], [3.0, 1.0], [2.0, -1.0]), strict=True):
            weight.zero_()
            row = weight.T if weight is layer.down.weight else weight
            row[7, 4:6] = torch.tensor(values)
            for sums in (g, a):
                (sums[weight].T if weight is layer.down.weight else sums[weight])[7, 4:6] = pair
    expected = {
        "sum": sum(scores),
        "mean": sum(scores) / 3,
        "max": max(scores),
        "prod": scores[0] * scores[1] * scores[2],
        "first": scores[0],
        "second": scores[1],
    }[aggregation]
    found = LLMPruner(importance=importance, aggregation=aggregation).score(structure, g, a)
    assert found.tolist() == pytest.approx([expected if channel == 7 else 0.0 for channel in range(48)], rel=1e-6)


@pytest.mark.parametrize("gqa", ["paired", "released"])
@pytest.mark.parametrize("aggregation", AGGREGATION)
@pytest.mark.parametrize("importance", [name for name in get_args(Importance) if name != "random"])
def test_the_importance_of_a_head(importance, aggregation, gqa):
    """G = 2 heads of width E = 8 with R = 2 query heads each, channel by channel."""
    model = Decoder(tiny("llama"))
    structure = Structure(0, "kv_heads", model.layers[0])
    q, k, v = (matrix.weight for matrix in structure.layer.qkv)
    out = structure.layer.out.weight
    draw = torch.Generator().manual_seed(0)
    g, a = ({weight: torch.randn(weight.shape, generator=draw) for weight in (q, k, v, out)} for _ in range(2))

    def channel(weight: torch.Tensor, row: int) -> float:
        sources = weight.detach(), g[weight], a[weight]
        triples = zip(*(x[:, row] if weight is out else x[row] for x in sources), strict=True)
        total = sum(hand(importance, *(float(x) for x in triple)) for triple in triples)
        return abs(total)

    expected = []
    for head in range(2):
        mine = (2 * head, 2 * head + 1) if gqa == "paired" else (head, head + 2)
        score = 0.0
        for e in range(8):
            of = {
                "k": channel(k, head * 8 + e),
                "out": sum(channel(out, query * 8 + e) for query in mine),
                "v": channel(v, head * 8 + e),
                "q": sum(channel(q, query * 8 + e) for query in mine),
            }
            product = of["k"] * of["out"] * of["v"] * of["q"]
            total = sum(of.values())
            score += {
                "sum": total,
                "mean": total / 4,
                "max": max(of.values()),
                "prod": product,
                "first": of["k"],
                "second": of["out"],
            }[aggregation]
        expected.append(score)
    found = LLMPruner(importance=importance, aggregation=aggregation, gqa=gqa).score(structure, g, a)
    assert found.tolist() == pytest.approx(expected, rel=1e-4)


def test_first_is_the_query_matrix_without_grouped_queries():
    structure = Structure(0, "kv_heads", Decoder(tiny("gpt2")).layers[0])
    q = structure.layer.qkv[0].weight[:32]  # of q, k and v below each other
    found = LLMPruner(importance="l1", aggregation="first").score(structure, {}, {})
    torch.testing.assert_close(found, q.abs().view(4, -1).sum(1).double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("family", ["phi3", "gpt2", "gpt_neox"])
def test_fused_matrices_are_scored_like_separate_ones(family):
    """Scaling one head's rows of one role moves that head's score alone."""
    model = Decoder(tiny(family))
    structure = Structure(0, "kv_heads", model.layers[0])
    pruner = LLMPruner(importance="l1")
    before = pruner.score(structure, {}, {})
    E, heads = structure.layer.head_width, structure.size
    value = {"phi3": (4 + 2 + 1) * E, "gpt2": (4 + 4 + 1) * E, "gpt_neox": (3 + 2) * E}[family]  # v of head 1
    with torch.no_grad():
        structure.layer.qkv[0].weight[value : value + E] *= 3
    moved = pruner.score(structure, {}, {}) - before
    assert [head for head in range(heads) if moved[head] > 1e-6] == [1]


# Gradients


def sums(model: Decoder, tokens: Calibration, second: bool = True) -> tuple[dict, dict]:
    weights = [matrix.weight for layer in model.layers[1:3] for matrix in layer.matrices]
    g, a = dict[torch.Tensor, torch.Tensor](), dict[torch.Tensor, torch.Tensor]()

    def of_layer(_: int, sums_of_one: dict, squares_of_one: dict) -> list:
        g.update(sums_of_one)
        a.update(squares_of_one)
        return []

    collect_gradients(model, tokens, set(weights), of_layer, a=second)
    return g, a


@pytest.mark.parametrize("second", [True, False])
def test_gradients_are_those_of_the_models_own_loss(second):
    model, tokens = Decoder(tiny("llama")), calibration()
    g, a = sums(model, tokens, second)
    squares = {weight: torch.zeros_like(weight) for weight in g}
    for row in tokens.ids:
        gradients = torch.autograd.grad(model.model(row[None], labels=row[None]).loss, list(g))
        for weight, gradient in zip(g, gradients, strict=True):
            squares[weight] += gradient**2 / len(tokens.ids)
    of_all = torch.autograd.grad(model.model(tokens.ids, labels=tokens.ids).loss, list(g))
    for weight, gradient in zip(g, of_all, strict=True):
        torch.testing.assert_close(g[weight], gradient, rtol=1e-4, atol=1e-6)
        if second:
            torch.testing.assert_close(a[weight], squares[weight], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("second", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_padding_is_no_target(family, second):
    model, tokens = Decoder(tiny(family)), calibration(rows=3)
    lengths = [24, 9, 5]
    padded = block(tokens.ids.clone(), lengths)
    padded.ids[~padded.mask] = 0
    g, a = sums(model, padded, second)
    texts = [row[:length] for row, length in zip(tokens.ids, lengths, strict=True)]
    losses = [cross_entropy(model.model(text[None]).logits[0, :-1], text[1:], reduction="sum") for text in texts]
    expected = torch.autograd.grad(sum(losses) / (sum(lengths) - 3), list(g), retain_graph=True)
    own = [torch.autograd.grad(loss / (len(text) - 1), list(g)) for loss, text in zip(losses, texts, strict=True)]
    for slot, weight in enumerate(g):
        torch.testing.assert_close(g[weight], expected[slot], rtol=1e-4, atol=1e-6)
        if second:
            square = sum(gradients[slot] ** 2 for gradients in own) / 3
            torch.testing.assert_close(a[weight], square, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("importance", TAYLOR)
def test_how_the_calibration_is_split_changes_no_decision(importance, monkeypatch):
    found = []
    for tokens in (1, 50, 10_000):
        monkeypatch.setattr("methods.model.gradients.TOKENS_AT_ONCE", tokens)
        pruner = LLMPruner(r=0.4, importance=importance)
        found.append(pruner.prune(Decoder(tiny("qwen2")), calibration(rows=10), 0.0))
    assert found[0] == found[1] == found[2]


def test_afterwards_nothing_holds_a_gradient_and_flags_are_as_before():
    model = Decoder(tiny("llama"))
    frozen = {name for name, _ in model.model.named_parameters() if "layers.2" in name or "embed" in name}
    for name, parameter in model.model.named_parameters():
        parameter.requires_grad_(name not in frozen)
        parameter.grad = torch.ones_like(parameter) if name not in frozen else None
    LLMPruner(r=0.5).prune(model, calibration(), 0.0)
    for name, parameter in model.model.named_parameters():
        assert parameter.requires_grad == (name not in frozen)
        assert parameter.grad is None


def test_a_failure_leaves_flags_as_before():
    model = Decoder(tiny("llama"))
    with pytest.raises(IndexError):
        LLMPruner(r=0.5).prune(model, block(torch.full((2, 8), VOCABULARY)), 0.0)
    assert all(parameter.requires_grad for parameter in model.model.parameters())


def test_only_what_may_be_removed_needs_a_gradient(monkeypatch):
    seen = []
    monkeypatch.setattr(
        llm_pruner,
        "collect_gradients",
        lambda *given, **kinds: seen.append(given[2]) or collect_gradients(*given, **kinds),
    )
    model = Decoder(tiny("llama"))
    matrices = [layer.matrices for layer in model.layers]
    expected = {matrix.weight for layer in matrices[2:5] for matrix in layer[4:]}  # r too small for a head: MLPs alone
    LLMPruner(r=0.2, keep_first=2, keep_last=1).prune(model, calibration(), 0.0)
    assert seen == [expected]


def test_gradients_are_float32_whatever_the_model_is():
    model = Decoder(tiny("llama").bfloat16())
    g, a = sums(model, calibration())
    assert {tensor.dtype for tensor in (*g.values(), *a.values())} == {torch.float32}
    LLMPruner(r=0.5, importance="mix").prune(model, calibration(), 0.0)
    assert {parameter.dtype for parameter in model.model.parameters()} == {torch.bfloat16}


def test_a_caller_without_gradients_gets_them_all_the_same():
    decisions = LLMPruner(r=0.4).prune(Decoder(tiny("llama")), calibration(), 0.0)
    with torch.no_grad():
        assert LLMPruner(r=0.4).prune(Decoder(tiny("llama")), calibration(), 0.0) == decisions


# Calibration, rounds, order and controls


def test_only_the_first_sequences_and_tokens_are_looked_at():
    tokens, other = calibration(rows=8), calibration(rows=8, seed=1)
    mixed = other.ids.clone()
    mixed[:4, :10] = tokens.ids[:4, :10]
    pruner = LLMPruner(r=0.4, sequences=4, tokens=10)
    found = [pruner.prune(Decoder(tiny("llama")), block(ids), 0.0) for ids in (tokens.ids, mixed, other.ids)]
    assert found[0] == found[1] != found[2]


def test_each_round_takes_the_next_sequences_and_then_begins_again():
    pruner, tokens = LLMPruner(sequences=4, steps=3), calibration(rows=6)
    rows = [[0, 1, 2, 3], [4, 5, 0, 1], [2, 3, 4, 5]]
    assert all(torch.equal(pruner.block(tokens, n + 1).ids, tokens.ids[row]) for n, row in enumerate(rows))


def test_sequences_that_predict_nothing_are_left_out():
    tokens = block(calibration(rows=3).ids, [24, 1, 0])
    assert len(LLMPruner().block(tokens, 1).ids) == 1
    with pytest.raises(Unsupported, match="nothing to predict"):
        LLMPruner().block(block(tokens.ids, [1, 1, 0]), 1)


@pytest.mark.parametrize("ranking", ["local", "global"])
@pytest.mark.parametrize("asked", [{"r": 0.5}, {}], ids=str)
def test_rounds_end_at_the_same_count(ranking, asked):
    once, often = (
        LLMPruner(ranking=ranking, steps=steps, **asked).prune(Decoder(tiny("gpt2")), calibration(), 0.25)
        for steps in (1, 3)
    )
    assert abs(once["parameters"] - often["parameters"]) <= (0 if ranking == "local" else 2000)
    assert once["removed_channels"] != often["removed_channels"]


def test_rounds_remove_by_the_authors_steps(monkeypatch):
    """At step t of k the target is r t / k of the first width."""
    widths = []
    score = LLMPruner.score

    def spy(self, structure, g, a):
        if structure.kind == "channels" and structure.number == 2:
            widths.append(len(structure.units_left))
        return score(self, structure, g, a)

    monkeypatch.setattr(LLMPruner, "score", spy)
    decisions = LLMPruner(r=0.5, steps=3).prune(Decoder(tiny("llama")), calibration(), 0.0)
    assert widths == [48, 48 - 8, 48 - 16]
    assert decisions["channels"][2] == 24


def test_global_ranking_takes_the_lowest_of_all():
    model = Decoder(tiny("gpt2"))
    pruner = LLMPruner(r=0.3, ranking="global", importance="l2")
    structures = pruner.structures(model, 0.0)
    scores = [pruner.score(structure, {}, {}) for structure in structures]
    decisions = pruner.prune(model, calibration(), 0.0)
    gone, kept = [], []
    for structure, score in zip(structures, scores, strict=True):
        removed = decisions[f"removed_{structure.kind}"][structure.number]
        gone += [float(score[unit]) for unit in removed]
        kept += [float(score[unit]) for unit in set(range(structure.size)) - set(removed)]
    units = len(gone) + len(kept)
    assert len(gone) == units - int(units * 0.7)
    assert max(gone) <= min(kept)


def test_random_follows_its_seed():
    def removed(seed: int | None, of_the_run: int = 0) -> list:
        tokens = Calibration(calibration().ids, calibration().mask, seed=of_the_run)
        pruner = LLMPruner(importance="random", r=0.5, seed=seed)
        return pruner.prune(Decoder(tiny("llama")), tokens, 0.0)["removed_channels"]

    assert removed(3) == removed(None, 3) != removed(4)


@pytest.mark.parametrize("importance", ["l1", "l2", "random"])
def test_controls_look_at_no_text(importance, monkeypatch):
    monkeypatch.delattr(llm_pruner, "collect_gradients")
    pruner = LLMPruner(importance=importance, r=0.5)
    assert pruner.prune(Decoder(tiny("llama")), calibration(), 0.0)["removed_channels"]


def test_sequences_of_one_token_are_a_reason():
    with pytest.raises(methods.Unsupported, match="no calibration sequence has two tokens"):
        LLMPruner().prune(Decoder(tiny("llama")), calibration(length=1), 0.2)


def test_later_rounds_of_a_random_control_are_not_the_first_of_the_next_seed():
    structures = LLMPruner().structures(Decoder(tiny("llama")), 0.2)

    def scores(seed: int, step: int) -> torch.Tensor:
        drawn = LLMPruner(importance="random", seed=seed).scores(
            Decoder(tiny("llama")), structures, calibration(), step
        )
        return torch.cat(drawn)

    draws = [scores(seed, step) for seed in range(4) for step in range(1, 5)]
    assert len({tuple(one.tolist()) for one in draws}) == 16
    torch.testing.assert_close(scores(3, 1)[0], torch.rand(1, generator=torch.Generator().manual_seed(3))[0])


def test_overflowing_gradients_are_said_and_not_ranked():
    structure = Structure(4, "channels", Decoder(tiny("llama")).layers[4])
    g = make_zeros(part.matrix.weight for part in structure.parts)
    g[structure.layer.down.weight][0, 0] = torch.inf
    with pytest.raises(methods.Unsupported, match="layer 4"):
        LLMPruner().score(structure, g, {})


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"importance": "taylor"}, "importance is element1, element2, mix, vector, l1, l2 or random; got 'taylor'"),
        ({"aggregation": "median"}, "aggregation is sum, mean, max, prod, first or second; got"),
        ({"ranking": "both"}, "ranking is local or global; got"),
        ({"gqa": "swapped"}, "gqa is paired or released; got"),
        ({"r": "1.5"}, "r is float, at least 0 and less than 1 or None; got '1.5'"),
        ({"keep_first": "-1"}, "keep_first is int, at least 0 or None; got '-1'"),
        ({"steps": "0"}, "steps is int, at least 1; got"),
        ({"tokens": "1"}, "tokens is int, at least 2; got"),
    ],
)
def test_unsound_parameters_are_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        methods.make("llm-pruner", parameters)


def test_an_explicit_r_is_fixed():
    assert methods.make("llm-pruner", {"r": "0.25"}).fixed
    assert not methods.make("llm-pruner", {"importance": "l1"}).fixed
