"""Writes a random Llama of 7 or 13 billion parameters in bfloat16, layer by layer, which is larger than some memories.

python tests/benchmarks/random_llama.py FOLDER TOKENIZER_FOLDER [7b|13b]

The shape is Llama-2's but for its vocabulary, which is that of the tokenizer. A layer takes 0.4 or 0.6 GB.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, LlamaConfig

SHAPES = {"7b": (4096, 11008, 32, 32), "13b": (5120, 13824, 40, 40)}  # width, MLP width, heads, layers
TOKENIZER = ("tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt", "chat_template.jinja")


def write(folder: Path, tokenizer: Path, shape: str) -> None:
    """Write the model with normal weights, 0.02 wide, of seed 0."""
    D, I, heads, layers = SHAPES[shape]
    folder.mkdir(parents=True)
    draw = torch.Generator().manual_seed(0)
    words = len(AutoTokenizer.from_pretrained(tokenizer))
    LlamaConfig(
        hidden_size=D,
        intermediate_size=I,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=words,
        max_position_embeddings=4096,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)
    for pattern in TOKENIZER:
        for file in tokenizer.glob(pattern):
            shutil.copy(file, folder)

    def normal(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=draw)

    where, count = dict[str, str](), 0
    for number in range(layers + 1):
        if number < layers:
            shapes = {f"self_attn.{name}_proj": (D, D) for name in "qkvo"}
            shapes |= {"mlp.gate_proj": (I, D), "mlp.up_proj": (I, D), "mlp.down_proj": (D, I)}
            shapes |= dict.fromkeys(("input_layernorm", "post_attention_layernorm"), (D,))
            shapes = {f"model.layers.{number}.{name}": shape for name, shape in shapes.items()}
        else:
            shapes = {"model.embed_tokens": (words, D), "lm_head": (words, D), "model.norm": (D,)}
        tensors = {
            f"{name}.weight": normal(*shape) if len(shape) > 1 else torch.ones(shape, dtype=torch.bfloat16)
            for name, shape in shapes.items()
        }
        file = f"model-{number + 1:05}-of-{layers + 1:05}.safetensors"
        save_file(tensors, folder / file, {"format": "pt"})
        where |= dict.fromkeys(tensors, file)
        count += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": count}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "7b")
