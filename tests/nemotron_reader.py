"""Computes a Nemotron-NAS folder in plain torch, from the description of the format alone.

Letters: B = sequences, T = tokens, D = residual width, H = query heads, G = key/value heads, E = head width.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


def logits(folder: Path, ids: Tensor) -> Tensor:
    """The logits of (B, T) token ids, (B, T, V). Every tensor of the folder must be used."""
    config = json.loads((folder / "config.json").read_text())
    left = {}
    for file in folder.glob("*.safetensors"):
        left |= load_file(file)
    take = left.pop
    D, H, E = config["hidden_size"], config["num_attention_heads"], config["head_dim"]

    def norm(x: Tensor, name: str) -> Tensor:
        return nn.functional.rms_norm(x, (D,), take(f"{name}.weight"), config["rms_norm_eps"])

    def linear(x: Tensor, name: str, bias: bool) -> Tensor:
        return nn.functional.linear(x, take(f"{name}.weight"), take(f"{name}.bias") if bias else None)

    embedding = left["model.embed_tokens.weight"]
    x = embedding[ids]
    assert len(config["block_configs"]) == config["num_hidden_layers"]
    for number, block in enumerate(config["block_configs"]):
        layer, attention, ffn = f"model.layers.{number}", block["attention"], block["ffn"]
        if not attention["no_op"]:
            h, G = norm(x, f"{layer}.input_layernorm"), H // attention["n_heads_in_group"]
            with_bias = config["attention_bias"]
            q, k, v = (
                linear(h, f"{layer}.self_attn.{name}_proj", with_bias).unflatten(-1, (heads, E)).transpose(1, 2)
                for name, heads in (("q", H), ("k", G), ("v", G))
            )
            q, k = turned(q, config["rope_theta"]), turned(k, config["rope_theta"])
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            x = x + linear(mixed.transpose(1, 2).flatten(2), f"{layer}.self_attn.o_proj", with_bias)
        if not ffn["no_op"]:
            h, with_bias = norm(x, f"{layer}.post_attention_layernorm"), config["mlp_bias"]
            gate, up = (linear(h, f"{layer}.mlp.{name}_proj", with_bias) for name in ("gate", "up"))
            assert gate.shape[-1] == width(ffn, D)
            x = x + linear(nn.functional.silu(gate) * up, f"{layer}.mlp.down_proj", with_bias)
    x = norm(x, "model.norm")
    del left["model.embed_tokens.weight"]
    head = embedding if config["tie_word_embeddings"] else take("lm_head.weight")
    assert not left
    return x @ head.T


def width(ffn: dict, D: int) -> int:
    """The MLP's width as vLLM reads it: ffn_mult where it is given, rounded up to a multiple of 256."""
    if "ffn_mult" not in ffn:
        return ffn["intermediate_size"]
    return -(-int(2 * ffn["ffn_mult"] * D / 3) // 256) * 256


def turned(x: Tensor, theta: float) -> Tensor:
    """Turn (B, heads, T, E) by position, the first half of a head against the second."""
    T, E = x.shape[-2:]
    angles = torch.outer(torch.arange(T).float(), theta ** (-torch.arange(0, E, 2) / E))
    a, b = x.chunk(2, -1)
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)
