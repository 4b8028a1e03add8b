"""The card of a stored model: names that a user chose change neither its front matter nor its tables."""

import yaml
from huggingface_hub import ModelCard

from methods.checkpoint.model_card import equal_layers, render

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
    task = {"main": "acc_norm", "acc_norm": {"value": 0.25}, "documents": 100, "available": 1838, "fewshot": 5}
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


def test_equal_layers_share_a_row():
    other = LAYER | {"skip": ["mlp"]}
    assert equal_layers([LAYER, LAYER, other, LAYER]) == [(0, 1, LAYER), (2, 2, other), (3, 3, LAYER)]
    assert "| 0 to 1 | 4 | 2 | 64 | - |\n" in render(MANIFEST)
