"""Says which shapes of pruned models each format holds, and what reads it."""

from __future__ import annotations

from dataclasses import dataclass

HF, GGUF, NEMOTRON_NAS = FORMATS = ("hf", "gguf", "nemotron-nas")
READ_BY = {
    HF: "transformers alone where the table says stock, else this project",
    GGUF: "llama.cpp and what builds on it; Llama-like models: llama, mistral, qwen2, qwen3",
    NEMOTRON_NAS: "MLX-LM; vLLM and SGLang only with NVIDIA's configuration class; Llama-like models: llama, mistral",
}


@dataclass(frozen=True)
class HeldShape:
    """Says how each format holds one kind of shape; "no" where it does not.

    methods  those whose models have it, with their usual parameters
    """

    removed: str
    methods: tuple[str, ...]
    hf: str
    gguf: str
    nemotron_nas: str


LACO = ("laco", "laco-published", "laco-ls")
SHORTENED = ("shortened-llama", "shortened-llama-taylor")
DROPPED = ("drop", "drop-tail", "drop-random")
EXPERTS = ("reap", "expert-norm", "expert-frequency", "expert-random")
LAYERS = (*LACO, "shortgpt", "angular", "magnitude", *SHORTENED, "sleb", "llm-streamline", *DROPPED)
SHAPES = (
    HeldShape("whole layers", LAYERS, "stock", "stock", "yes"),
    HeldShape(
        "as many heads and channels in every layer", ("minitron-width", "wanda-sp", "obs"), "stock", "stock", "yes"
    ),
    HeldShape("as many experts in every layer", EXPERTS, "stock", "no", "no"),
    HeldShape(
        "attentions",
        ("blockpruner", "finercut", "evopress", "puzzle", "laco-puzzle", "llm-drop", "2ssp"),
        "prunebench",
        "deci",
        "yes",
    ),
    HeldShape(
        "MLPs",
        ("blockpruner", "finercut", "evopress", "puzzle", "laco-puzzle", "llm-drop"),
        "prunebench",
        "deci, with 32 channels of zeros",
        "yes",
    ),
    HeldShape("channels, in each layer others", ("2ssp", "puzzle", "laco-puzzle"), "prunebench", "deci", "yes"),
    HeldShape("heads, in each layer others", ("flap", "llm-pruner", "tyr"), "prunebench", "deci", "no"),
    HeldShape("rank of each matrix", ("svd-llm",), "prunebench", "no", "no"),
    HeldShape("residual width", ("slicegpt",), "prunebench", "no", "no"),
    HeldShape("anything, with a map in its place", ("+ghost", "+linearpatch"), "prunebench", "no", "no"),
)


def table() -> list[tuple[str, ...]]:
    """Return the rows of the table, its heading first."""
    rows = [(one.removed, ", ".join(one.methods), one.hf, one.gguf, one.nemotron_nas) for one in SHAPES]
    return [("removed", "by", *FORMATS), *rows]
