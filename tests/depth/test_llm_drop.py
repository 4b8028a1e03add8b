"""LLM-Drop: importances against hooks on the model, choices against arithmetic by hand."""

from __future__ import annotations

import pytest
import torch
from conftest import VOCABULARY, tiny
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import methods
from methods.errors import OutOfReach
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.sizes import parameters
from methods.model.structures import Sublayer, remove_sublayers

LENGTHS = (20, 13, 7, 1)
FAMILIES = ["llama", "gemma3_text", "opt", "phi", "gpt2"]


def calibration(columns: int = 20, **options) -> Calibration:
    ids = torch.randint(3, VOCABULARY, (len(LENGTHS), 20), generator=torch.Generator().manual_seed(0))
    ids = nn.functional.pad(ids, (0, columns - 20), value=3)
    return Calibration(ids, torch.arange(columns) < torch.tensor(LENGTHS)[:, None], **options)


def pruned(mode: str, family: str, ratio: float, tokens: Calibration | None = None) -> dict:
    return methods.make("llm-drop", {"mode": mode}).prune(Decoder(tiny(family)), tokens or calibration(), ratio)


def importance(family: str) -> dict[str, list[float]]:
    """1 - mean cos of each block's input u and of u + f(u), sequence by sequence and without padding."""
    model, seen = tiny(family), {}
    layers = Decoder(model).layers
    for number, layer in enumerate(layers):
        for name, module in (("layer", layer.module), ("middle", layer.mlp_norm), ("attention", layer.attn)):

            def note(module, args, kwargs, output, key=(name, number)):
                into = args[0] if args else kwargs["hidden_states"]
                out = output[0] if isinstance(output, tuple) else output
                seen.setdefault(key, []).append((into.reshape(-1, 32), out.reshape(-1, 32)))

            module.register_forward_hook(note, with_kwargs=True)
    for row, length in zip(calibration().ids, LENGTHS, strict=True):
        with torch.no_grad():
            model(row[None, :length])
    found = {"attention": [], "mlp": [], "layer": []}
    for number, layer in enumerate(layers):
        x, y = (torch.cat(states) for states in zip(*seen["layer", number], strict=True))
        middle = torch.cat([into for into, _ in seen["middle", number]])
        attended = x + torch.cat([out for _, out in seen["attention", number]]) if layer.parallel else middle
        u, after = (x, x + y - attended) if layer.parallel else (middle, y)
        for part, (before, behind) in {"attention": (x, attended), "mlp": (u, after), "layer": (x, y)}.items():
            cos = nn.functional.cosine_similarity(before.double(), behind.double(), dim=-1)
            found[part].append(float(1 - cos.mean()))
    return found


PARTS = {"joint": ["attention", "mlp"], "attn": ["attention"], "block": ["layer"]}


@pytest.mark.parametrize("mode", PARTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_importance(family, mode):
    expected, found = importance(family), pruned(mode, family, 0.15, calibration(memory=1))["scores"]
    assert list(found) == PARTS[mode]
    for part in found:
        assert found[part] == pytest.approx(expected[part], abs=2e-6)


@pytest.mark.parametrize(("mode", "part"), [("attn", "attention"), ("mlp", "mlp"), ("block", "layer")])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_least_important_go(family, mode, part):
    model = Decoder(tiny(family))
    found = pruned(mode, family, 2 * model.layers[0].sizes()[part] / parameters(model))
    scores = importance(family)[part]
    lowest = sorted(range(6), key=lambda number: scores[number])[:2]
    assert found["order"] == [f"{part} {number}" for number in lowest]
    key = "removed_layers" if mode == "block" else f"removed_{part}"
    assert found[key] == sorted(lowest)


@pytest.mark.parametrize("family", FAMILIES)
def test_both_kinds_compete_for_one_budget(family):
    model = Decoder(tiny(family))
    sizes, scores = model.layers[0].sizes(), importance(family)
    smallest = min(sizes["attention"], sizes["mlp"])
    rest, order = 0.3 * parameters(model), []
    for _, part, number in sorted((scores[p][n], p, n) for p in ("attention", "mlp") for n in range(6)):
        if sizes[part] - rest <= smallest / 2:
            order.append(f"{part} {number}")
            rest -= sizes[part]
    assert pruned("joint", family, 0.3)["order"] == order
    assert abs(rest) <= smallest / 2


def test_whole_layers_are_those_of_the_block_influence():
    shortgpt = methods.make("shortgpt").prune(Decoder(tiny("llama")), calibration(), 0.33)
    blocks = pruned("block", "llama", 0.33)
    assert blocks["removed_layers"] == shortgpt["removed_layers"]
    assert blocks["scores"]["layer"] == pytest.approx(shortgpt["scores"])


def test_padding_changes_no_decision():
    one, other = pruned("joint", "gemma3_text", 0.3), pruned("joint", "gemma3_text", 0.3, calibration(33))
    assert one["order"] == other["order"]


def test_what_is_gone_already_does_not_compete():
    model = Decoder(tiny("llama"))
    remove_sublayers(model, [Sublayer("attention", 1), Sublayer("mlp", 4)])
    found = methods.make("llm-drop").prune(model, calibration(), 0.2)
    assert found["scores"]["attention"][1] is None and found["scores"]["mlp"][4] is None
    assert not {"attention 1", "mlp 4"} & set(found["order"])


def test_attentions_of_smollm2_reach_a_fifth():
    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
    shape |= {"num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True}
    with torch.device("meta"):
        model = Decoder(AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **shape)))
    attention = 884_736 + 576  # with its norm
    assert parameters(model) == 134_515_008
    pruner = methods.make("llm-drop", {"mode": "attn"})
    assert pruner.plan(model, 30 * attention / 134_515_008) == {"parameters": 134_515_008 - 30 * attention}
    with pytest.raises(OutOfReach, match=r"all attention blocks that may go hold 0\.197 of the model"):
        pruner.plan(model, 0.21)
    assert methods.make("llm-drop", {"mode": "mlp"}).plan(model, 0.5)
    assert methods.make("llm-drop").plan(model, 0.6)
    with pytest.raises(OutOfReach, match="all but one of the 30 layers"):
        methods.make("llm-drop").plan(model, 0.79)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="mode is attn, mlp, joint or block; got 'attention'"):
        methods.make("llm-drop", {"mode": "attention"})


@pytest.mark.parametrize("mode", ["attn", "mlp", "joint", "block"])
def test_a_ratio_of_zero_looks_at_nothing(mode):
    decisions = methods.make("llm-drop", {"mode": mode}).prune(Decoder(tiny("llama")), None, 0.0)
    assert not any(decisions.values())
