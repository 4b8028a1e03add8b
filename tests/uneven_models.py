"""Models whose layers differ, and a tokenizer that GGUF has a word for. Shared by several test files."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from conftest import tiny
from tiny_methods import calibration
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers import models as kinds
from transformers import PreTrainedTokenizerFast

import methods
from methods.model.decoder import Decoder
from methods.model.inserted import put_map
from methods.model.structures import keep_channels, keep_kv_groups


def bpe(
    bos: bool = True,
    *,
    fallback: bool = False,
    regex: str | None = None,
    merges: Sequence[tuple[str, str]] = (("t", "h"), ("th", "e")),
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 258 tokens and one for each merge, by default two."""
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "<s>": 1} | {byte: number for number, byte in enumerate(bytes_, start=2)}
    vocabulary |= {"".join(pair): number for number, pair in enumerate(merges, start=258)}
    tokenizer = Tokenizer(kinds.BPE(vocabulary, merges=list(merges), byte_fallback=fallback))
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if regex:
        from tokenizers import Regex

        pieces = [pre_tokenizers.Split(Regex(regex), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        split = pre_tokenizers.Sequence(pieces)
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", pad_token="<pad>")


def droped(family: str, **options: object) -> Decoder:
    model = Decoder(tiny(family, vocab_size=260, **options))
    methods.make("drop", {"layers": "1+3"}).prune(model, calibration(), 0.0)
    return model


def uneven(
    family: str,
    *,
    gone: str = "",
    biases: bool = False,
    heads: tuple[int, ...] = (2,),
    step: int = 5,
    **options: object,
) -> Decoder:
    """A model of 260 words of which each layer has other sizes.

    gone    removed parts, as in "attention 0, mlp 2"
    biases  whether one output matrix of an attention and one of an MLP have a bias
    heads   layers that have lost a key/value head
    step    channels that a layer, of three in turn, has lost in addition to the one in front
    """
    model = Decoder(tiny(family, vocab_size=260, **options))
    layers = model.layers
    for number, layer in enumerate(layers):
        keep_channels(layer, range(layer.down.in_features - step * (number % 3)))
    for number in heads:
        keep_kv_groups(layers[number], [1])
    if biases:
        for matrix in (layers[1].down, layers[2].out):
            matrix.bias = torch.nn.Parameter(torch.linspace(-1, 1, 32))
    for part, number in (name.split() for name in filter(None, gone.split(", "))):
        getattr(layers[int(number)], f"remove_{part}")()
    model.set_layers(layers)
    return model


def with_a_map() -> Decoder:
    model = Decoder(tiny("llama", vocab_size=260))
    put_map(model, 1, torch.eye(32))
    return model
