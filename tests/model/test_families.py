"""What the rows of the families say: along which axes a model can be cut, and why not along others."""

from __future__ import annotations

import pytest
import torch
from conftest import EVERY_FAMILY, tiny
from pages import text
from tiny_methods import calibration, logits
from transformers import LlamaConfig, LlamaForCausalLM

import methods
from bench.cli.main import main
from bench.workshop.tiny_models import HYBRIDS, MIXTURES
from methods.errors import Unsupported
from methods.model import architectures
from methods.model.activations import enter
from methods.model.architectures import AXES, FAMILIES
from methods.model.decoder import Decoder
from methods.model.sizes import parameters
from methods.trials.collapse_fit import Collapse, Fit

BY = {
    "heads": "llm-pruner",
    "channels": "minitron-width",
    "experts": "reap",
    "layers": "shortgpt",
    "residual": "slicegpt",
}
SOME = {  # models whose configuration decides
    "stablelm": ("heads", {"qk_layernorm": True}),
    "opt": ("residual", {"do_layer_norm_before": False}),
    "baichuan": ("heads", {"alibi": True}),
    "granitemoehybrid": ("channels", {"num_local_experts": 8}),
}


def test_every_family_of_the_rows_is_tested():
    assert set(EVERY_FAMILY) | set(MIXTURES) | set(HYBRIDS) == set(FAMILIES)
    assert all(one.axis in AXES and one.because for family in FAMILIES.values() for one in family.uncut)


@pytest.mark.parametrize("family", [*EVERY_FAMILY, *MIXTURES, *HYBRIDS])
def test_an_axis_is_cut_or_refused_before_any_work_as_the_row_says(family):
    model = Decoder(tiny(family))
    without = {"states"} if family in MIXTURES else {"states", "experts"}  # states: tests/model/test_state_channels.py
    for axis in [one for one in AXES if one not in without]:
        reasons = [one.because for one in FAMILIES[family].uncut if one.axis == axis and not one.models]
        assert FAMILIES[family].never(axis) == bool(reasons)
        if axis == "heads" and not reasons and family in MIXTURES:
            continue  # no method cuts heads and leaves channels
        if not reasons:
            methods.make(BY[axis]).plan(model, 0.2)
            continue
        with pytest.raises(Unsupported) as refused:
            methods.make(BY[axis]).plan(model, 0.2)
        assert str(refused.value) == f"the {axis} of this {family} cannot be cut: {reasons[0]}"


@pytest.mark.parametrize("family", SOME)
def test_a_row_says_of_which_models_it_is(family):
    axis, switch = SOME[family]
    assert not FAMILIES[family].never(axis)
    with pytest.raises(Unsupported) as refused:
        methods.make(BY[axis]).plan(Decoder(tiny(family, **switch)), 0.2)
    assert any(str(refused.value).endswith(one.because) for one in FAMILIES[family].uncut if one.models)


def test_searches_that_may_cut_heads_refuse_them_before_any_work():
    for method in ("puzzle", "laco-puzzle"):
        with pytest.raises(Unsupported, match="over all heads at once"):
            methods.make(method, {"heads": "2"}).plan(Decoder(tiny("olmo2")), 0.2)
        methods.make(method).plan(Decoder(tiny("olmo2")), 0.2)


@pytest.mark.parametrize(("family", "depends"), [("olmo2", True), ("olmo3", True), ("qwen3", False)])
def test_heads_depend_on_each_other_where_the_row_says_so(family, depends):
    """Without the first head's rows of q, the other heads give something else, or the same."""
    model = Decoder(tiny(family))
    layer, x, E = model.layers[0], torch.randn(1, 7, 32), model.layers[0].head_width
    seen = list[torch.Tensor]()
    layer.out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][..., E:]))
    arguments = enter(model, torch.zeros(1, 7, dtype=torch.long)).arguments[layer.kind]
    with torch.no_grad():
        layer.attention(x, arguments)
        layer.qkv[0].weight[:E] = 0
        layer.attention(x, arguments)
    assert torch.allclose(*seen, rtol=0, atol=1e-6) != depends


def test_the_guide_repeats_the_table_and_list_prints_it(capsys):
    heading, *rows = architectures.table_of_families()
    lines = [f"| {' | '.join(row)} |" for row in (heading, ("---",) * len(heading), *rows)]
    assert "\n".join(lines) in text("docs/reference/inputs.md")
    assert main(["list", "families"]) == 0
    printed = capsys.readouterr().out
    for name, axes, reasons in rows:
        assert f"\n{name} " in f"\n{printed}"
        assert all(said in printed for said in (axes, *filter(None, reasons.split("; "))))


def as_llama(granite: torch.nn.Module) -> torch.nn.Module:
    """The Llama that computes the same: each factor of a Granite goes into the weights in front of it."""
    config, E = granite.config, granite.config.hidden_size // granite.config.num_attention_heads
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    sizes += ("num_key_value_heads", "max_position_embeddings", "attention_bias", "mlp_bias", "rms_norm_eps")
    llama = LlamaForCausalLM(LlamaConfig(**{name: getattr(config, name) for name in sizes}, tie_word_embeddings=False))
    llama.load_state_dict(granite.state_dict())
    with torch.no_grad():
        llama.model.embed_tokens.weight *= config.embedding_multiplier
        llama.lm_head.weight /= config.logits_scaling
        for layer in llama.model.layers:
            for matrix in (layer.self_attn.o_proj, layer.mlp.down_proj):
                matrix.weight *= config.residual_multiplier
                matrix.bias *= config.residual_multiplier
            layer.self_attn.q_proj.weight *= config.attention_multiplier * E**0.5
            layer.self_attn.q_proj.bias *= config.attention_multiplier * E**0.5
    return llama.eval()


FITS = {
    "laco-ls": {"trial_tokens": "48", "attention": "yes", "later": "yes", "sweeps": "2"},
    "drop+replaceme": {"layers": "2-3"},
    "drop+scale": {"layers": "2-3"},
    "drop+ghost": {"layers": "2-3"},
    "flap+refit": {},
    "slicegpt": {"d": "24"},
    "obs": {},
    "laco": {"C": "3", "I": "1"},
    "blockpruner": {"tokens": "48"},
}


def sweep(model: Decoder) -> None:
    """Collapse two windows, the first of which then makes up for the error behind the second."""
    Collapse(model, [(0, 2), (2, 3), (3, 5), (5, 6)], calibration(), Fit(sweeps=3)).run()
    model.set_layers([model.layers[number] for number in (0, 2, 3, 5)])


@pytest.mark.parametrize("method", [*FITS, "sweeps"])
def test_the_factors_of_granite_count_in_every_fit(method, ids):
    """What a method makes of a Granite computes what it makes of the Llama that computes the same."""
    granite = tiny("granite", tie_word_embeddings=False)
    both, before = [Decoder(granite), Decoder(as_llama(granite))], sum(one.numel() for one in granite.parameters())
    assert torch.allclose(*(logits(one, ids) for one in both), rtol=0, atol=1e-5)
    for one in both:
        if method == "sweeps":
            sweep(one)
            continue
        methods.make(method, FITS[method]).prune(one, calibration(), 0.0 if method.startswith("drop") else 0.3)
    found, wanted = (logits(one, ids) for one in both)
    assert parameters(both[0]) == parameters(both[1]) < before
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))


def test_a_list_of_layers_may_be_longer_than_the_model_and_not_shorter():
    """As in the configuration of a model that was made with fewer layers."""
    inner = tiny("smollm3")
    said = list(inner.config.no_rope_layers)
    inner.config.no_rope_layers = [*said, 0, 1]
    assert [layer.config["no_rope_layers"] for layer in Decoder(inner).layers] == said
    inner.config.no_rope_layers = said[:-1]
    with pytest.raises(Unsupported, match=f"no_rope_layers of its configuration names {len(said) - 1} layers of"):
        _ = Decoder(inner).layers


def test_a_layer_without_rotary_positions_stays_one(ids):
    """SmolLM3 says of each layer whether it turns its heads; another list makes another model."""
    model = Decoder(tiny("smollm3"))
    model.set_layers([model.layers[number] for number in (0, 2, 5)])
    assert model.config.no_rope_layers == [1, 1, 0]
    assert [layer.attn.use_rope for layer in model.layers] == [1, 1, 0]
    wanted = logits(model, ids)
    model.layers[1].attn.use_rope = 0
    assert (logits(model, ids) - wanted).abs().max() > 1e-3
