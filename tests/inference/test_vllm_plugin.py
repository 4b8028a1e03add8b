"""What vLLM is told of pruned models, without vLLM; tests/inference/test_vllm_served.py has it serve them."""

from __future__ import annotations

import copy
import json
import pickle
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from conftest import tiny
from tiny_methods import pruned
from transformers import AutoConfig, AutoModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from uneven_models import bpe, uneven

from bench.export import engine_form
from bench.inference.vllm_config import NemotronNasConfig, ServedConfig, refuse_parallel, register_configs
from methods.checkpoint import save_load, weight_files
from methods.checkpoint.pruned_config import describe
from methods.model.decoder import Decoder

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


@pytest.fixture(autouse=True)
def _other_tests_have_other_classes(monkeypatch):
    """Let what is registered here be known to one test alone."""
    for mapping in (CONFIG_MAPPING, MODEL_MAPPING):
        monkeypatch.setattr(mapping, "_extra_content", dict(mapping._extra_content))


def test_the_plugin_of_the_package_warns_where_it_cannot_register_and_never_raises():
    """vLLM calls it before it starts with any model, and here there is no vLLM."""
    points = tomllib.loads(PYPROJECT.read_text())["project"]["entry-points"]["vllm.general_plugins"]
    (point,) = (EntryPoint(name, value, "vllm.general_plugins") for name, value in points.items())
    register = point.load()
    for _ in range(2):
        with pytest.warns(UserWarning, match="does not make pruned models known to vLLM: No module named 'vllm'"):
            register()
    assert CONFIG_MAPPING["prunebench"] is ServedConfig
    assert CONFIG_MAPPING["nemotron-nas"] is NemotronNasConfig


KINDS = {
    "parts gone": lambda: uneven("llama", gone="attention 0, mlp 2, attention 4, mlp 4", biases=True),
    "GPT-2's names": lambda: uneven("gpt2", gone="attention 1"),
    "a fused matrix": lambda: uneven("phi3"),
    "the residual": lambda: pruned("slicegpt", "llama", 0.3)[0],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_becomes_the_model_without_its_head(kind, tmp_path):
    model = KINDS[kind]()
    manifest = save_load.save(model, tmp_path / "model", tokenizer=bpe())
    register_configs()
    config = AutoConfig.from_pretrained(tmp_path / "model")
    assert type(config) is ServedConfig
    with torch.device("meta"):
        base = AutoModel.from_config(config)
    prefix, stored = model.model.base_model_prefix, weight_files.shapes_on_disk(tmp_path / "model", manifest["weights"])
    expected = {name: shape for name, shape in stored.items() if not name.startswith("lm_head")}
    assert {f"{prefix}.{name}": tuple(tensor.shape) for name, tensor in base.state_dict().items()} == expected


def test_a_configuration_says_what_the_base_says_and_what_is_left_of_each_layer(tmp_path):
    model = uneven("gemma3_text", gone="attention 1")
    save_load.save(model, tmp_path / "model")
    register_configs()
    read = AutoConfig.from_pretrained(tmp_path / "model")
    again = type(read).from_dict(json.loads(json.dumps(read.to_dict())))
    for config in (read, copy.deepcopy(read), pickle.loads(pickle.dumps(read)), again):
        assert type(config) is ServedConfig
        for name in ("rope_parameters", "layer_types", "sliding_window", "head_dim", "tie_word_embeddings"):
            assert getattr(config, name) == getattr(model.config, name)
        assert config.architectures == ["PrunedForCausalLM"]
        assert config.num_hidden_layers == 6
        heads = [(facts.num_attention_heads, facts.num_key_value_heads) for facts in config.per_layer_config]
        assert heads == [(4, 2), (0, 0), (2, 1), (4, 2), (4, 2), (4, 2)]


def test_the_head_reads_what_is_left_of_the_residual_and_logits_are_multiplied():
    model = Decoder(tiny("granite", vocab_size=260))
    config = ServedConfig.from_dict(describe(model).to_dict() | {"residual": {"hidden_size": 20, "output_size": 24}})
    assert config.hidden_size == 24
    assert config.head_dim == model.layers[0].head_width == 8
    assert config.logit_scale == 1 / model.config.logits_scaling == 0.5


def test_block_configs_are_objects_for_vllm_and_plain_on_disk(tmp_path):
    folder = tmp_path / "nas"
    engine_form.write_nemotron(uneven("llama", heads=(), gone="mlp 2"), bpe(), folder, torch.float32, shard_bytes=10**9)
    blocks = json.loads((folder / "config.json").read_text())["block_configs"]
    register_configs()
    read = AutoConfig.from_pretrained(folder)
    for config in (read, copy.deepcopy(read), pickle.loads(pickle.dumps(read))):
        assert [block.ffn.no_op for block in config.block_configs] == [False, False, True, False, False, False]
        assert config.block_configs[1].attention.n_heads_in_group == 2
        assert not hasattr(config.block_configs[1].ffn, "ffn_mult")  # which vLLM would take first
        assert json.loads(config.to_json_string())["block_configs"] == blocks
        assert config.to_dict()["block_configs"] == blocks


PARALLEL = {
    "heads": (lambda: uneven("llama", step=4), 2, 1, "num_key_value_heads of 2 is 1"),
    "channels": (lambda: uneven("llama", heads=()), 2, 1, "intermediate_size of 1 is 43"),
    "ranks": (lambda: pruned("svd-llm", "llama", 0.3)[0], 2, 1, "is two factors of low rank"),
    "experts": (lambda: Decoder(tiny("mixtral")), 2, 1, "layer 0 has a mixture of experts"),
    "layers": (lambda: uneven("llama"), 1, 2, "pipeline parallelism"),
}


@pytest.mark.parametrize("kind", PARALLEL)
def test_what_does_not_divide_is_refused_in_one_line(kind):
    make, shards, stages, words = PARALLEL[kind]
    with pytest.raises(ValueError, match=words) as caught:
        refuse_parallel(describe(make()), shards, stages)
    assert "\n" not in str(caught.value)


def test_what_divides_is_served_by_several():
    refuse_parallel(describe(uneven("llama", heads=(), step=4, gone="attention 1, mlp 2")), 2, 1)
    refuse_parallel(describe(uneven("llama")), 1, 1)
