"""Checks whether an installation of vLLM computes pruned models of every shape, token by token.

A shape is a tiny model that is cut in one way, saved as every model is, and scored by vLLM on fixed tokens. Its
log-probabilities must be this suite's. A head has 32 numbers, the fewest that vLLM's kernels take.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig

import methods
from bench.doctor.finding import Finding, finding_of_check, without_paths
from bench.doctor.pruning import VOCABULARY, draw_tokens, draw_uniform, make_calibration, make_tokenizer
from bench.inference.engine_process import EngineFailed
from bench.inference.vllm_process import EXACT, VllmProcess
from methods.checkpoint import save_load
from methods.checkpoint.transformers_compat import compute_logits
from methods.console import say
from methods.decisions import prune
from methods.errors import UserError
from methods.model.decoder import Decoder
from methods.model.inserted import put_map
from methods.model.structures import keep_channels, keep_kv_groups

TOKENS, SILENCE = 100, 600  # that are scored; seconds without a word after which vLLM is ended
OPTIONS = {"enforce_eager": True, "max_model_len": TOKENS + 1}  # compiling takes minutes for each model
LAYERS, WIDTH, CHANNELS, HEADS, KV_HEADS, EXPERTS = 4, 128, 96, 4, 2, 4
RATIO = 0.25  # of what a method removes


def check_vllm(python: str) -> Iterator[Finding]:
    """Yield what vLLM in another Python is, and for each shape whether it computes that.

    Raises UserError where no Python is named.
    """
    if not python:
        raise UserError("vllm runs in a Python of its own: --engine-python PATH/bin/python")
    process = VllmProcess(python, OPTIONS, threads=1, silence=SILENCE)
    try:
        about = process.exchange("describe")
        yield Finding("ok", "vllm", f"{about['version']}, computes on {about['device']['device']}", about)
        trouble = process.exchange("check_plugin")["trouble"]
        yield finding_of_check("plugin", [trouble] if trouble else [], "vLLM knows pruned models by this project")
        for shape in SHAPES if not trouble else ():
            say(f"vllm: {shape}")
            yield check_shape(process, shape)
    except EngineFailed as error:
        yield Finding("wrong", "vllm", without_paths(str(error)))
    finally:
        process.end()


def check_shape(process: VllmProcess, shape: str) -> Finding:
    """Return whether vLLM computes the model of a shape. What vLLM refuses is wrong, with its reason."""
    model, ids = build_shape(shape), draw_tokens("engine", 1, TOKENS)
    logs = compute_logits(model, ids)[0].log_softmax(-1)[:-1]
    ours = logs.gather(1, ids[0, 1:, None])[:, 0]
    with tempfile.TemporaryDirectory() as root:
        save_load.save(model, Path(root) / "model", tokenizer=make_tokenizer())
        try:
            process.load("tiny", Path(root) / "model", dtype="float32")
            theirs = torch.tensor(process.exchange("score", name="tiny", sequences=ids.tolist())["logs"][0])
        except EngineFailed as error:
            return Finding("wrong", shape, without_paths(str(error)))
    off = float((theirs - ours).abs().max())
    figure = f"{len(ours)} log-probabilities differ by {off:.1e} nats at most"
    return finding_of_check(shape, [] if off <= EXACT else [f"{figure}, and {EXACT:.0e} is rounding"], figure, off=off)


def build_shape(shape: str) -> Decoder:
    """Return the tiny model of a shape in SHAPES."""
    model = build_tiny_model(mixture="experts" in shape)
    SHAPES[shape](model)
    return model


def build_tiny_model(*, mixture: bool) -> Decoder:
    """Return a Llama, or a Mixtral, whose weights follow from their names."""
    kind = partial(MixtralConfig, num_local_experts=EXPERTS) if mixture else LlamaConfig
    config = kind(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=CHANNELS,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=2 * TOKENS,
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = draw_uniform(name, parameter.numel()).reshape(parameter.shape)
            matrix = parameter.dim() > 1
            parameter.copy_(values * (3 / parameter.shape[-1]) ** 0.5 if matrix else 1 + 0.25 * values)
    return Decoder(model)


def _leave_out(model: Decoder, *, attention: int | None = None, mlp: int | None = None) -> None:
    """Remove the attention of one layer and the MLP of another."""
    layers = model.layers
    if attention is not None:
        layers[attention].remove_attention()
    if mlp is not None:
        layers[mlp].remove_mlp()
    model.set_layers(layers)


def _narrow(model: Decoder, *, step: int = 0, heads: tuple[int, ...] = ()) -> None:
    """Leave each layer `step` channels less than the one before, the first 64 of 96, and halve the heads of some."""
    for number, layer in enumerate(model.layers):
        keep_channels(layer, range(64 - step * number))
        if number in heads:
            keep_kv_groups(layer, [1])


def _add_biases(model: Decoder) -> None:
    """Give an output matrix of an attention, and one of an MLP, a bias."""
    first, second, *_ = model.layers
    for matrix in (first.out, second.down):
        matrix.bias = torch.nn.Parameter(torch.linspace(-1, 1, WIDTH))


def _put_maps(model: Decoder) -> None:
    """Put maps of the residual in front of the first layer and behind the second."""
    for place in (-1, 1):
        values = draw_uniform(f"map {place}", WIDTH * WIDTH).reshape(WIDTH, WIDTH)
        put_map(model, place, 0.5 / WIDTH**0.5 * values.float())


def _drop_experts(model: Decoder) -> None:
    """Remove experts of every layer, and an attention, with which vLLM's own class of mixtures has no part."""
    _prune(model, "reap")
    _leave_out(model, attention=1)


def _prune(model: Decoder, method: str) -> None:
    prune(methods.make(method), model, make_calibration(), RATIO)


SHAPES: dict[str, Callable[[Decoder], None]] = {  # by what the table of formats says is removed
    "whole layers": lambda model: model.set_layers(model.layers[:-1]),
    "as many heads and channels in every layer": lambda model: _narrow(model, heads=tuple(range(LAYERS))),
    "as many experts in every layer": _drop_experts,
    "attentions": lambda model: _leave_out(model, attention=0),
    "MLPs": lambda model: _leave_out(model, mlp=2),
    "channels, in each layer others": lambda model: _narrow(model, step=5),
    "heads, in each layer others": lambda model: _narrow(model, heads=(1, 3)),
    "width of each head": lambda model: _prune(model, "modegpt"),
    "rank of each matrix": lambda model: _prune(model, "svd-llm"),
    "residual width": lambda model: _prune(model, "slicegpt"),
    "anything, with a map in its place": _put_maps,
    "biases of output matrices": _add_biases,
}
