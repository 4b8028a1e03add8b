"""Says which shapes of pruned models each format holds, and what reads it."""

from __future__ import annotations

from dataclasses import dataclass

from methods.cards import cards_of_compensations, cards_of_methods

HF, GGUF, NEMOTRON_NAS, HETEROGENEOUS = FORMATS = ("hf", "gguf", "nemotron-nas", "heterogeneous")
READ_BY = {
    HF: "transformers alone where the table says stock, else this project; vLLM with this project as its plugin",
    GGUF: "llama.cpp and what builds on it; Llama-like models: llama, mistral, qwen2, qwen3",
    NEMOTRON_NAS: "MLX-LM; vLLM with this project as its plugin; Llama-like models: llama, mistral",
    HETEROGENEOUS: "this project; transformers has the configuration, `per_layer_config`, and no model for it yet",
}


@dataclass(frozen=True)
class HeldShape:
    """Says how each format holds one kind of shape; "no" where it does not."""

    removed: str
    hf: str
    gguf: str
    nemotron_nas: str
    heterogeneous: str


SHAPES = {  # by the names that methods and compensations give in `leaves`
    "layers": HeldShape("whole layers", "stock", "stock", "yes", "stock"),
    "equal widths": HeldShape("as many heads and channels in every layer", "stock", "stock", "yes", "stock"),
    "experts": HeldShape("as many experts in every layer", "stock", "no", "no", "stock"),
    "attentions": HeldShape("attentions", "prunebench", "deci", "yes", "yes"),
    "mlps": HeldShape("MLPs", "prunebench", "deci, with 32 channels of zeros", "yes", "yes"),
    "channels": HeldShape("channels, in each layer others", "prunebench", "deci", "yes", "yes"),
    "heads": HeldShape("heads, in each layer others", "prunebench", "deci", "no", "not for llama"),
    "ranks": HeldShape("rank of each matrix", "prunebench", "no", "no", "no"),
    "head widths": HeldShape("width of each head", "prunebench", "no", "no", "no"),
    "residual": HeldShape("residual width", "prunebench", "no", "no", "no"),
    "maps": HeldShape("anything, with a map in its place", "prunebench", "no", "no", "no"),
}


def makers_of(shape: str) -> list[str]:
    """Return the methods, and the compensations behind a plus, that leave a shape with their usual parameters."""
    makers = [card.name for card in cards_of_methods() if shape in card.leaves]
    return makers + [f"+{card.name}" for card in cards_of_compensations() if shape in card.leaves]


def table_of_formats() -> list[tuple[str, ...]]:
    """Return the rows of the table, its heading first."""
    rows = [
        (row.removed, ", ".join(makers_of(shape)), row.hf, row.gguf, row.nemotron_nas, row.heterogeneous)
        for shape, row in SHAPES.items()
    ]
    return [("removed", "by", *FORMATS), *rows]
