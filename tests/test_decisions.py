"""What a method answers is what it did: in the numbers of the model that it was given, or it is refused in one line."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from conftest import LAYERS, tiny
from tiny_methods import calibration

import methods
from bench.cli.main import main
from bench.records.run_folder import load_run
from methods import decisions
from methods.compensation.base import CompensatedPruner
from methods.errors import WrongDecisions
from methods.model.decoder import Decoder
from methods.model.sizes import parameters
from methods.model.structures import Sublayer, cut, cuts_of, drop_layers, remove_sublayers, structures_of

NONE = [[] for _ in range(LAYERS)]


@dataclass(frozen=True)
class Own(methods.Pruner):
    """A method that drops layers 1 and 3, cuts a channel of every other one, and answers what `change` makes of it."""

    change: object
    names_all: bool = True
    name = "mine"

    @property
    def only_cuts(self):
        return self.names_all

    def plan(self, model, ratio):
        return {}

    def prune(self, model, calibration, ratio):
        gone = drop_layers(model, [1, 3])
        channels = structures_of(model, "channels")
        for structure in channels:
            structure.drop([5])
        return self.change(gone | cuts_of(model, channels))


def asked(change, **how) -> tuple[Decoder, dict]:
    model = Decoder(tiny("llama"))
    return model, decisions.prune(Own(change, **how), model, calibration(), 0.3)


def test_cuts_behind_dropped_layers_go_by_the_numbers_of_the_model_that_was_given():
    model, decided = asked(lambda answer: answer)
    width = tiny("llama").config.intermediate_size
    assert decided["removed_channels"] == [[5], [], [5], [], [5], [5]]
    assert decided["channels"] == [width - 1, 0, width - 1, 0, width - 1, width - 1]
    assert decided["removed_layers"] == [1, 3]
    again = Decoder(tiny("llama"))
    cut(again, decided)
    for (name, one), other in zip(model.model.named_parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_what_is_removed_step_by_step_has_its_first_numbers():
    model = Decoder(tiny("llama"))
    assert drop_layers(model, [0]) == {"removed_layers": [0]}
    assert drop_layers(model, [2, 0]) == {"removed_layers": [1, 3]}
    decided = remove_sublayers(model, [Sublayer("mlp", 0), Sublayer("layer", 2), Sublayer("attention", 1)])
    assert decided == {"removed_layers": [5], "removed_attention": [4], "removed_mlp": [2]}
    assert [layer.number for layer in model.layers] == [2, 4]


def test_a_method_that_asks_another_one_has_the_numbers_of_its_own_model():
    """The other one is given the model that is left, whose layers have the numbers from 0 on meanwhile."""
    model = Decoder(tiny("llama"))
    drop_layers(model, [0, 2])
    assert decisions.prune(Own(dict), model, calibration(), 0.3)["removed_layers"] == [1, 3]
    assert ([layer.number for layer in model.layers], model.given) == ([1, 4], LAYERS)


WRONG = [  # what an answer is changed by, and what is said
    ({"removed_layers": [1]}, r"layer 3 is gone, and removed_layers is \[1\]"),
    ({"removed_layers": [1, 2]}, r"layer 2 is still there, and removed_layers is \[1, 2\]"),
    ({"removed_layers": [3, 1]}, r"removed_layers is \[3, 1\], which does not rise"),
    ({"removed_layers": [1, 1, 3]}, "which does not rise"),
    ({"removed_layers": [1, LAYERS]}, "removed_layers has 6, and there are 6 layers, from 0 on"),
    ({"removed_layers": [-1, 1]}, "removed_layers is .* and no list of numbers"),
    ({"removed_layers": ["1", "3"]}, "removed_layers is .* and no list of numbers"),
    ({"removed_layers": "13"}, "removed_layers is '13', and no list of numbers"),
    ({"removed_layers": [True, 3]}, "no list of numbers"),
    ({"removed_layers": None}, "removed_layers is None, and no list of numbers"),
    ({"removed_mlp": [3]}, "layer 3 is both in removed_layers and in removed_mlp"),
    ({"removed_attention": [2]}, "layer 2 has its attention, and removed_attention says otherwise"),
    ({"removed_channels": [[5]] * 4}, "removed_channels has 4 entries, and a list is due for each of the 6 layers"),
    ({"removed_channels": NONE}, r"layer 0 has 47 channels, and by removed_channels it has 48"),
    ({"removed_channels": [[48], *NONE[1:]]}, r"removed_channels\[0\] has 48, and there are 48 channels, from 0 on"),
    ({"removed_channels": [[5, 4], *NONE[1:]]}, r"removed_channels\[0\] is \[5, 4\], which does not rise"),
    ({"removed_channels": [5] * LAYERS}, r"removed_channels\[0\] is 5, and no list of numbers"),
    ({"removed_kv_heads": [[0], *NONE[1:]]}, "layer 0 has 2 kv_heads, and by removed_kv_heads it has 1"),
    ({"removed_experts": [[0], *NONE[1:]]}, r"removed_experts\[0\] has 0, and there are 0 experts"),
    ({"channels": [47] * 4}, r"channels is \[47, 47, 47, 47\], and of the 6 layers are left \[47, 0, 47, 0, 47, 47\]"),
    ({"kv_heads": [2] * 6}, r"kv_heads is \[2, 2, 2, 2, 2, 2\], and of the 6 layers are left \[2, 0, 2, 0, 2, 2\]"),
    ({"removal_order": "layer 1"}, "removal_order is 'layer 1', and no list of texts"),
    ({"removal_order": [1, 3]}, "and no list of texts"),
    ({"free_removals": 1}, "free_removals is 1, and removal_order has 0"),
    ({"norms": torch.ones(2)}, "norms is no plain JSON value: Object of type Tensor"),
    ({"loss": float("nan")}, "loss is no plain JSON value: Out of range float"),
    ({1: 2}, "the key 1 is no text"),
]


@pytest.mark.parametrize(("changed", "said"), WRONG, ids=range(len(WRONG)))
@pytest.mark.parametrize("only_cuts", [True, False])
def test_an_answer_that_is_not_what_was_done_is_refused(changed, said, only_cuts):
    with pytest.raises(WrongDecisions, match=f"^the decisions of mine do not hold: .*{said}") as refusal:
        asked(lambda answer: answer | changed, names_all=only_cuts)
    assert "\n" not in str(refusal.value)
    assert "docs/guides/add-method.md" in str(refusal.value)


def test_an_answer_that_is_none_is_refused():
    with pytest.raises(WrongDecisions, match="`prune` returned None, and no dictionary"):
        asked(lambda _: None)


def test_a_method_that_only_cuts_says_all_that_went():
    """One that says so and something else, or nothing; another may leave its answer open."""
    said = "parameters are left, and the model of `only_cuts` has"
    with pytest.raises(WrongDecisions, match=said):
        asked(lambda _: {})
    assert asked(lambda _: {}, names_all=False)[1] == {}

    def with_a_bias(answer):
        model.layers[0].out.bias = torch.nn.Parameter(torch.zeros(model.layers[0].out.out_features))
        return answer

    model = Decoder(tiny("llama"))
    with pytest.raises(WrongDecisions, match=said):
        decisions.prune(Own(with_a_bias), model, calibration(), 0.3)


def test_a_compensation_refuses_the_wrong_answer_of_what_it_follows():
    pruner = methods.make("shortgpt+ghost")
    pair = CompensatedPruner(Own(lambda answer: answer | {"removed_layers": [1]}), pruner.compensation)
    with pytest.raises(WrongDecisions, match="the decisions of mine do not hold: layer 3 is gone"):
        decisions.prune(pair, Decoder(tiny("llama")), calibration(), 0.3)


@pytest.mark.parametrize("name", ["puzzle", "laco-puzzle"])
def test_a_search_that_leaves_nothing_of_a_layer_counts_0_for_it(name):
    """So that reports, which need a count for each layer, show what is left."""
    model = Decoder(tiny("llama"))
    pruner = methods.make(name, {"steps": "1", "tokens": "48", "best": "1"})
    decided = decisions.prune(pruner, model, calibration(), 0.6)
    whole = decided["removed_layers"]
    assert whole
    assert all(len(decided[unit]) == LAYERS for unit in ("kv_heads", "channels"))
    assert all(decided[unit][number] == 0 for unit in ("kv_heads", "channels") for number in whole)


def test_the_outline_of_a_model_has_its_shapes_and_no_weights():
    model = Decoder(tiny("llama"))
    outline = decisions.make_outline(model)
    assert parameters(outline) == parameters(model)
    held = (*outline.model.parameters(), *outline.model.buffers())
    assert {one.device.type for one in held} == {"meta"}
    assert outline.head.weight is outline.embed.weight


PLUGIN = """
from dataclasses import dataclass
from methods import Pruner, register
from methods.model.structures import drop_layers

@register("astray")
@dataclass(frozen=True)
class Astray(Pruner):
    def plan(self, model, ratio): return {}
    def prune(self, model, calibration, ratio):
        drop_layers(model, [1, 3])
        return ANSWER
"""


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("{'removed_layers': [1, 2]}", "layer 2 is still there, and removed_layers is [1, 2]"),
        ("{'threshold': 'high'}", 'threshold is "high", not a number'),
        ("{'calibration': 3}", "calibration is the record's own"),
    ],
)
def test_a_run_says_in_a_line_what_is_wrong_and_goes_on(base, tmp_path, capsys, answer, said):
    """The other cells are measured, and the record can be read."""
    (tmp_path / "astray.py").write_text(PLUGIN.replace("ANSWER", answer))
    plugin = ["--plugin", str(tmp_path / "astray.py"), "--methods", "astray,drop-tail", "--ratio", "0.3"]
    assert main([*base, *plugin, "--no-isolate"]) == 3
    lines = [line for line in capsys.readouterr().err.splitlines() if "do not hold" in line]
    assert len(lines) == 1
    refusal = lines[0].replace("layer 3 is", "layer 2 is")
    assert f"astray at 0.3: error: astray.py:10 in prune: the decisions of astray do not hold: {said}" in refusal
    status = {record.cell.method: record.status for record in load_run(tmp_path / "run")}
    assert status == {"dense": "ok", "astray": "error", "drop-tail": "ok"}
