"""The card of a stored model: names that a user chose change neither its front matter nor its tables."""

import yaml

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


def test_equal_layers_share_a_row():
    other = LAYER | {"skip": ["mlp"]}
    assert equal_layers([LAYER, LAYER, other, LAYER]) == [(0, 1, LAYER), (2, 2, other), (3, 3, LAYER)]
    assert "| 0 to 1 | 4 | 2 | 64 | - |\n" in render(MANIFEST)
