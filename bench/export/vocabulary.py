"""Puts a tokenizer into a GGUF file.

Letters: V = vocabulary.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bench.data import gguf_reader
from methods.errors import CheckpointError, UserError, first_line

SAMPLE = "The Eiffel Tower, built in 1889, isn't in Lyon.\n  It's 330 m high: naïve? 42%!"


def describe(tokenizer: Any, V: int) -> dict[str, Any]:
    """Return what GGUF says of a BPE tokenizer: its kind and split, tokens and their types, merges, special ids."""
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    bpe = described["model"]
    if bpe["type"] != "BPE" or not bpe["merges"]:
        raise UserError(f"GGUF is written for BPE tokenizers with merges; this one is a {bpe['type']}")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in bpe["merges"]]
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    added = {entry["id"]: entry["special"] for entry in described["added_tokens"]}
    kinds = gguf.TokenType
    types = [
        (kinds.CONTROL if added[number] else kinds.USER_DEFINED)
        if number in added
        else kinds.UNUSED
        if number not in by_id
        else kinds.BYTE
        if bpe["byte_fallback"] and by_id[number].startswith("<0x")
        else kinds.NORMAL
        for number in range(V)
    ]
    ranks = {merge.replace(" ", "", 1): -float(rank) for rank, merge in reversed(list(enumerate(merges)))}
    tokens = [by_id.get(number, f"[PAD{number}]") for number in range(V)]
    template = tokenizer.chat_template
    special = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad")}
    return {
        "model": "llama" if bpe["byte_fallback"] else "gpt2",
        "pre": "default" if bpe["byte_fallback"] else _split(described["pre_tokenizer"]),
        "tokens": tokens,
        "types": types,
        "merges": merges,
        "scores": [ranks.get(token, 0.0) for token in tokens] if bpe["byte_fallback"] else None,
        "special": {name: number for name, number in special.items() if number is not None},
        "add_bos": tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id],
        "chat_template": template if isinstance(template, str) else None,
    }


def _split(pre_tokenizer: dict[str, Any] | None) -> str:
    """Return GGUF's word for how a byte-level tokenizer splits text. Raises UserError where it has none."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer or {}])
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"] and steps[0]["use_regex"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and steps[1]["use_regex"]:
        return "smollm"
    if kinds == ["Split", "ByteLevel"]:
        pattern = steps[0]["pattern"].get("Regex")
        for word in ("llama-bpe", "qwen2", "tekken", "gpt-4o"):
            if GGUF_PRE_TOKENIZER_SPLITS.get(word) == pattern:
                return word
    raise UserError(f"GGUF has no word for how this tokenizer splits text: {', '.join(map(str, kinds))}")


def add(writer: gguf.GGUFWriter, vocabulary: dict[str, Any]) -> None:
    writer.add_tokenizer_model(vocabulary["model"])
    writer.add_tokenizer_pre(vocabulary["pre"])
    writer.add_token_list(vocabulary["tokens"])
    writer.add_token_types(vocabulary["types"])
    writer.add_token_merges(vocabulary["merges"])
    if vocabulary["scores"] is not None:
        writer.add_token_scores(vocabulary["scores"])
    add = {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "unk": writer.add_unk_token_id,
        "pad": writer.add_pad_token_id,
    }
    for name, number in vocabulary["special"].items():
        add[name](number)
    writer.add_add_bos_token(vocabulary["add_bos"])
    if vocabulary["chat_template"]:
        writer.add_chat_template(vocabulary["chat_template"])


def read(file: Path) -> Any:
    """Return the tokenizer in a file, through the reader of transformers. Raises CheckpointError."""
    with gguf_reader.readable(file):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(file.parent, gguf_file=file.name)
        split = gguf.GGUFReader(file).get_field("tokenizer.ggml.pre")
        if split is not None and split.contents() == "smollm":  # which the reader does not know: digits stay together
            steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
        return tokenizer


def other_tokens(file: Path, tokenizer: Any) -> str | None:
    """Say whether the tokenizer that is read from the file splits a sample otherwise."""
    try:
        words = read(file)
    except CheckpointError as error:
        return first_line(error)
    return None if words(SAMPLE)["input_ids"] == tokenizer(SAMPLE)["input_ids"] else "its tokens differ"
