"""The card of a stored model: names that a user chose change neither its front matter nor its tables."""

import pytest
import yaml
from huggingface_hub import ModelCard

from methods.checkpoint.model_card import group_equal_layers, render, results_of_manifest, words_of_windows
from methods.counted import COUNTED, QUANTITIES

LAYER = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
MANIFEST = {
    "architecture": "LlamaForCausalLM",
    "parameters": 1234,
    "dtype": "float32",
    "loads_with": "transformers",
    "reason": None,
    "versions": {"prunebench": "0.1.0"},
    "structure": {"layers": [LAYER, LAYER], "residual": None},
}


def test_names_from_the_user_stay_inside_their_field():
    name = "a | b\n---\n# Licence: MIT {{ manifest }}"
    card = render(MANIFEST | {"base": {"name": name, "licence": "no: [x", "hub": "org/it's: true"}})
    _, front, body = card.split("---\n", 2)
    data = yaml.safe_load(front)
    assert (data["license"], data["base_model"]) == ("no: [x", "org/it's: true")
    assert "| Base model | a \\| b --- # Licence: MIT {{ manifest }} |\n" in body
    assert [line for line in body.splitlines() if line.startswith("# ")] == [f"# {' '.join(name.split())}, pruned"]


def test_figures_are_in_the_model_index_as_the_hub_reads_it():
    text = {"perplexity": 20.5, "bits_per_byte": 0.98, "tokens": 8176, "windows": 16, "window": 512, "stride": 256}
    task = {
        "main": "acc_norm",
        "metrics": {"acc_norm": {"value": 0.25}},
        "documents": 100,
        "available": 1838,
        "fewshot": 5,
    }
    base, pruning = {"name": "Tiny: it's\nmine"}, {"label": "laco:C=3"}
    figures = {"perplexity": {"wiki: a\nb": text}, "tasks": {"piqa": task}}
    card = ModelCard(render(MANIFEST | {"base": base, "pruning": pruning, "measured": figures}))
    assert card.data.model_name == "Tiny: it's mine, pruned with laco:C=3"
    found = {one.metric_type: one for one in card.data.eval_results}
    assert {name: one.metric_value for name, one in found.items()} == {
        "perplexity": 20.5,
        "bits_per_byte": 0.98,
        "acc_norm": 0.25,
    }
    protocol = "8,176 tokens, 16 windows of 512, stride 256"
    assert found["perplexity"].metric_name == f"perplexity per token, {protocol}"
    assert found["perplexity"].metric_args == {"tokens": 8176, "windows": 16, "window": 512, "stride": 256}
    assert found["perplexity"].dataset_name == "wiki: a\nb"
    assert found["acc_norm"].metric_name == "acc_norm, 100 of 1,838 documents, 5-shot"
    assert (found["acc_norm"].dataset_type, found["acc_norm"].task_type) == ("piqa", "text-generation")
    assert f"| 20.500 | {protocol} |" in card.content
    assert "model-index" not in render(MANIFEST)


@pytest.mark.parametrize(
    ("entry", "said"),
    [({"drawn": True}, ", drawn from the text"), ({"drawn": False}, ", one behind the other"), ({}, "")],
)
def test_it_is_said_whether_windows_were_drawn(entry, said):
    text = {"perplexity": 20.5, "tokens": 8176, "windows": 16, "window": 512} | entry
    assert words_of_windows(text) == f"8,176 tokens, 16 windows of 512{said}"
    (found,) = results_of_manifest({"perplexity": {"wiki": text}})
    assert found.metric_name.endswith(words_of_windows(text))
    assert {name: found.metric_args[name] for name in entry} == entry


def asked(**pruning: object) -> str:
    """The line of a card that says what was asked for."""
    card = render(MANIFEST | {"pruning": {"requested": 0.2, "match": "layers", **pruning}})
    (line,) = [line for line in card.splitlines() if "asked for" in line]
    return line


@pytest.mark.parametrize("of", [None, *COUNTED])
def test_a_ratio_is_a_share_of_what_was_asked_for(of):
    words = {"decoder": "the decoder's parameters", "layers": "the layers' parameters"}
    given = {} if of is None else {"ratio_of": of}
    assert asked(**given) == f"| Ratio asked for | 0.2 of {words.get(of, 'all parameters')} |"


@pytest.mark.parametrize("of", QUANTITIES)
def test_a_budget_is_a_share_of_its_quantity(of):
    quantity = {"of": of, "share": 0.8, "stays": 0.79}
    assert asked(quantity=quantity) == f"| Budget asked for | {QUANTITIES[of]}: 0.8 of the dense model's |"


def test_equal_layers_share_a_row():
    other = LAYER | {"skip": ["mlp"]}
    assert group_equal_layers([LAYER, LAYER, other, LAYER]) == [(0, 1, LAYER), (2, 2, other), (3, 3, LAYER)]
    assert "| 0 to 1 | 4 | 2 | 64 | - |\n" in render(MANIFEST)
