"""Builds the model that the doctor looks at, its tokenizer and its tokens, in code: nothing is fetched, nothing stored.

The weights come from SHAKE-256 and not from a library's generator, so that every machine and version has the same ones;
bfloat16 holds each of them, so that a model in bfloat16 has the weights of the one in float32. Layers, heads, channels
and directions of the residual are drawn in different sizes, so that what a method scores lies far apart and the noise
of another machine changes no choice.
"""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, PreTrainedTokenizerFast

from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.spread import Place, put

LAYERS, WIDTH, CHANNELS, HEADS, KV_HEADS, POSITIONS = 8, 32, 32, 4, 2, 256
EXPERTS, TAKEN = 4, 2  # of a mixture; where two go, no token has a choice left that noise could change
SPECIAL = ("<pad>", "<s>", "</s>")
VOCABULARY = len(SPECIAL) + 256
SEQUENCES, LENGTH = 8, 48  # of the calibration
LAYER_SIZES = (1.0, 0.36, 0.64, 0.16, 0.8, 0.24, 0.5, 1.0)  # of what each layer adds to the residual
ATTENTION, MLP = 1.0, 0.7  # of what its halves add
EMBEDDING = 0.5 * WIDTH**0.5  # of what the tokens are
SEED = 0  # of all names; of those tried, one with which no choice is near to another (bench.doctor.answers)
ROUTERS = 31  # of the names of routers; of those tried, one with which experts are taken most unequally often
RANGE = 256.0  # the largest channel, head or direction over the smallest


def build(device: Place, dtype: torch.dtype, *, mixture: bool = False) -> Decoder:
    """Return the model: a Llama with grouped queries and a tied head, 8 layers of width 32, or a Mixtral like it."""
    kind = partial(MixtralConfig, num_local_experts=EXPERTS, num_experts_per_tok=TAKEN) if mixture else LlamaConfig
    config = kind(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=CHANNELS,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = Decoder(AutoModelForCausalLM.from_config(config, dtype=dtype))  # type: ignore[no-untyped-call]
    with torch.no_grad():
        _fill(model)
    put(model.model, device).eval()
    return model


def _fill(model: Decoder) -> None:
    """Give every parameter its value, computed in float64 and rounded once, so that no machine's rounding shows."""
    values = {name: _plain(name, parameter.shape) for name, parameter in model.model.named_parameters()}
    of = {id(parameter): values[name] for name, parameter in model.model.named_parameters()}
    of[id(model.embed.weight)].mul_(EMBEDDING * spread("residual", WIDTH))
    for number, layer in enumerate(model.layers):
        heads = spread(f"heads {number}", KV_HEADS).repeat_interleave(WIDTH // KV_HEADS)
        of[id(layer.out.weight)].mul_(ATTENTION * LAYER_SIZES[number] * heads)
        if layer.experts is None:
            of[id(layer.down.weight)].mul_(MLP * LAYER_SIZES[number] * spread(f"channels {number}", CHANNELS))
            continue
        sizes, (*_, down) = spread(f"experts {number}", EXPERTS), layer.experts.bank.parameters()
        of[id(down)].mul_(MLP * LAYER_SIZES[number] * sizes[:, None, None])
        of[id(layer.experts.router.weight)].mul_(spread(f"router {ROUTERS} {number}", EXPERTS)[:, None])
    for parameter in model.model.parameters():
        parameter.copy_(of[id(parameter)].bfloat16())


def _plain(name: str, shape: torch.Size) -> Tensor:
    """Return values before layers, heads, channels and experts are made unlike: a vector about 1, or matrices."""
    drawn = uniform(name, shape.numel()).reshape(shape)
    if len(shape) == 1:
        return 1 + 0.25 * drawn
    return drawn.sign() * (0.75 + 0.5 * drawn.abs()) / shape[-1] ** 0.5  # of rows and columns that are equally long


def uniform(name: str, count: int) -> Tensor:
    """Return numbers between -1 and 1 that follow from a name, (count,) float64."""
    digits = np.frombuffer(hashlib.shake_256(f"{SEED} {name}".encode()).digest(2 * count), dtype="<u2")
    return torch.from_numpy(digits.astype(np.float64) / 2**15 - 1)


def spread(name: str, count: int) -> Tensor:
    """Return sizes at equal ratios from RANGE to 1, in an order that follows from a name, mean square 1; (count,)."""
    order = uniform(name, count).argsort(stable=True)
    sizes = RANGE ** (order.double() / (count - 1))
    return sizes / sizes.square().mean().sqrt()


def tokens(name: str, rows: int, columns: int) -> Tensor:
    """Return token ids without special ones that follow from a name, (rows, columns) long."""
    shares = (uniform(name, rows * columns) + 1) / 2
    return (len(SPECIAL) + (shares * (VOCABULARY - len(SPECIAL))).long()).reshape(rows, columns)


def calibration() -> Calibration:
    """Return what methods may look at."""
    ids = tokens("calibration", SEQUENCES, LENGTH)
    return Calibration(ids, torch.ones_like(ids, dtype=torch.bool), source="made up")


def tokenizer() -> Any:
    """Return the tokenizer of the model, which has a token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *alphabet))}
    backend = Tokenizer(models.BPE(vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=POSITIONS
    )
