"""vLLM computes exported models of every shape, token by token (`tox -e vllm`, minutes)."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import tiny
from tiny_methods import calibration
from uneven_models import bpe

import methods
from bench.export import engine_form
from methods.checkpoint import save_load
from methods.checkpoint.transformers_compat import compute_logits
from methods.model.decoder import Decoder
from methods.model.inserted import put_map
from methods.model.structures import keep_channels, keep_kv_groups

pytestmark = pytest.mark.vllm

SCRIPT = Path(__file__).parents[1] / "served_by_vllm.py"
AGREES = 1e-3  # nats by which a token may differ in float32
WIDE = {
    "hidden_size": 128,
    "intermediate_size": 96,
    "layers": 4,
    "vocab_size": 260,
}  # heads of 32, as kernels want them
HEAD_DIM = ("qwen3", "gemma", "gemma2", "gemma3_text", "nemotron", "glm4", "qwen3_moe", "gpt_oss", "glm4_moe")
FAMILIES = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "gpt2", "opt", "gpt_neox", "phi"),
    *("granite", "smollm3", "olmo2", "olmo3", "starcoder2", "stablelm", "nemotron", "glm4", "cohere2"),
)
WHOLE_HEADS = ("gemma", "olmo2", "olmo3")  # one key/value head, or heads that depend on each other


def make(family):
    options = WIDE | ({"head_dim": 32} if family in HEAD_DIM else {})
    if family in ("gemma2", "gemma3_text"):
        options["query_pre_attn_scalar"] = 32
    if family == "opt":
        options |= {"ffn_dim": 96, "word_embed_proj_dim": 128}
    return Decoder(tiny(family, **options))


def uneven(family, gone=(("attention", 1), ("mlp", 2)), biases=False):
    """Heads and channels that differ from layer to layer, without an attention and an MLP."""
    model = make(family)
    layers = model.layers
    for number, layer in enumerate(layers):
        keep_channels(layer, range(layer.down.in_features - 5 * (number % 3)))
    if family not in WHOLE_HEADS:
        keep_kv_groups(layers[-1], [1])
    for matrix in (layers[0].out, layers[1].down) if biases else ():
        matrix.bias = torch.nn.Parameter(torch.linspace(-1, 1, 128))
    for part, number in gone:
        getattr(layers[number], f"remove_{part}")()
    model.set_layers(layers)
    return model


def by_method(method, family, ratio=0.25):
    model = make(family)
    methods.make(method).prune(model, calibration(), ratio)
    return model


def mapped():
    model = make("llama")
    for place in (-1, 1):
        put_map(model, place, 0.1 * torch.randn(128, 128, generator=torch.Generator().manual_seed(place + 1)))
    return model


def mixture(family):
    """A mixture of fewer experts, without an attention and the experts of another layer."""
    model = by_method("expert-random", family)
    layers = model.layers
    layers[1].remove_attention()
    layers[2].remove_mlp()
    model.set_layers(layers)
    return model


def as_nemotron(model, folder):
    engine_form.write_nemotron(model, bpe(), folder, torch.float32, shard_bytes=10**9)


def as_saved(model, folder):
    save_load.save(model, folder, tokenizer=bpe())


SHAPES = {
    "biases": (lambda: uneven("llama", biases=True), as_saved),
    "first parts gone": (lambda: uneven("llama", gone=(("attention", 0), ("mlp", 0))), as_saved),
    "ranks": (lambda: by_method("svd-llm", "llama"), as_saved),
    "residual": (lambda: by_method("slicegpt", "llama"), as_saved),
    "residual, attention beside MLP": (lambda: by_method("slicegpt", "phi"), as_saved),
    "maps": (mapped, as_saved),
    "nemotron-nas": (lambda: by_method("llm-drop", "llama"), as_nemotron),
    **{family: (lambda family=family: uneven(family), as_saved) for family in FAMILIES},
    **{
        family: (lambda family=family: mixture(family), as_saved)
        for family in ("mixtral", "qwen3_moe", "olmoe", "gpt_oss")
    },
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """{shape: (log-probabilities by transformers, what vLLM says)}, all by one process of vLLM's."""
    root = tmp_path_factory.mktemp("served")
    ids = (torch.arange(100) * 37 % 255 + 2)[None]
    expected, questions = {}, {}
    for number, (shape, (build, write)) in enumerate(SHAPES.items()):
        model, folder = build(), root / str(number)
        write(model, folder)
        logs = compute_logits(model, ids)[0].log_softmax(-1)
        expected[shape] = logs[:-1].gather(1, ids[0, 1:, None])[:, 0]
        questions[str(folder)] = {"ids": ids[0].tolist()}
    (root / "questions.json").write_text(json.dumps(questions))
    command = [os.environ["PRUNEBENCH_VLLM_PYTHON"], str(SCRIPT), root / "questions.json", root / "answers.json"]
    subprocess.run(command, check=True, cwd=root)
    given = json.loads((root / "answers.json").read_text())
    return {shape: (expected[shape], given[str(root / str(number))]) for number, shape in enumerate(SHAPES)}


@pytest.mark.parametrize("shape", SHAPES)
def test_vllm_computes_the_model_token_by_token(shape, answers):
    ours, theirs = answers[shape]
    assert not isinstance(theirs, str), theirs
    assert float((torch.tensor(theirs) - ours).abs().max()) < AGREES
