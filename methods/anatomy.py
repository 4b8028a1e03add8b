"""A language model seen by role: the only file that knows what a family calls its parts.

A family is one row of FAMILIES. Methods get a Decoder and its Layers and never a Hugging Face name.

Letters: V = vocabulary, D = residual width, I = MLP width, H = query heads, G = key/value heads, E = head width,
         B = batch, T = tokens. Weights are (out, in).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from methods.pruner import Unsupported


@dataclass(frozen=True)
class Family:
    """Where a family keeps its parts. Paths from the model: layers, embed, positions, final_norm; else from a layer."""

    layers: str
    embed: str
    final_norm: str
    attn: str
    qkv: tuple[str, ...]  # read the residual for the attention; one name where q, k and v are fused
    out: str  # writes the attention's result into the residual
    mlp: str  # "" where the layer itself holds the MLP's matrices
    up: tuple[str, ...]  # read the residual for the MLP; one name where gate and up are fused
    down: str  # writes the MLP's result into the residual
    attn_norm: str
    mlp_norm: str
    positions: str = ""  # a learned table of positions
    post_norms: tuple[str, ...] = ()  # norms between a sub-block's result and the residual
    centred: bool = False  # LayerNorm, which subtracts the mean; else RMSNorm
    gain_offset: float = 0.0  # a norm multiplies by gain_offset + weight
    one_width: bool = False  # the model's forward takes the last state to be as wide as the embedding
    parallel: bool = False  # attention and MLP both read the layer's input
    interleaved: bool = False  # a fused q-k-v matrix has q, k and v head by head, (H, 3, E), not one below the other
    counts: tuple[tuple[str, str], ...] = ()  # sizes that the attention's forward does not read off its weights


LLAMA = Family(
    layers="model.layers",
    embed="model.embed_tokens",
    final_norm="model.norm",
    attn="self_attn",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    out="self_attn.o_proj",
    mlp="mlp",
    up=("mlp.gate_proj", "mlp.up_proj"),
    down="mlp.down_proj",
    attn_norm="input_layernorm",
    mlp_norm="post_attention_layernorm",
)
GEMMA2 = replace(
    LLAMA,
    mlp_norm="pre_feedforward_layernorm",
    post_norms=("post_attention_layernorm", "post_feedforward_layernorm"),
    gain_offset=1.0,
)

FAMILIES = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "gemma": replace(LLAMA, gain_offset=1.0),
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA2,
    "phi3": replace(
        LLAMA,
        qkv=("self_attn.qkv_proj",),
        up=("mlp.gate_up_proj",),
        counts=(("config.num_attention_heads", "H"), ("num_key_value_heads", "G")),
    ),
    "gpt2": Family(
        layers="transformer.h",
        embed="transformer.wte",
        positions="transformer.wpe",
        final_norm="transformer.ln_f",
        attn="attn",
        qkv=("attn.c_attn",),
        out="attn.c_proj",
        mlp="mlp",
        up=("mlp.c_fc",),
        down="mlp.c_proj",
        attn_norm="ln_1",
        mlp_norm="ln_2",
        centred=True,
        one_width=True,
        counts=(("num_heads", "H"), ("split_size", "HE")),
    ),
    "opt": Family(
        layers="model.decoder.layers",
        embed="model.decoder.embed_tokens",
        positions="model.decoder.embed_positions",
        final_norm="model.decoder.final_layer_norm",
        attn="self_attn",
        qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        out="self_attn.out_proj",
        mlp="",
        up=("fc1",),
        down="fc2",
        attn_norm="self_attn_layer_norm",
        mlp_norm="final_layer_norm",
        centred=True,
        counts=(("num_heads", "H"),),
    ),
    "gpt_neox": Family(
        layers="gpt_neox.layers",
        embed="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm",
        attn="attention",
        qkv=("attention.query_key_value",),
        out="attention.dense",
        mlp="mlp",
        up=("mlp.dense_h_to_4h",),
        down="mlp.dense_4h_to_h",
        attn_norm="input_layernorm",
        mlp_norm="post_attention_layernorm",
        centred=True,
        interleaved=True,
    ),
    "phi": replace(
        LLAMA,
        final_norm="model.final_layernorm",
        out="self_attn.dense",
        up=("mlp.fc1",),
        down="mlp.fc2",
        mlp_norm="input_layernorm",
        centred=True,
        parallel=True,
    ),
}


class Layer:
    """One decoder layer by role. A view: it holds the module, and copies nothing unless asked to."""

    def __init__(self, module: nn.Module, family: Family, kind: str | None, head_width: int, group: int) -> None:
        self.module = module
        self.family = family
        self.kind = kind  # the layer's entry in config.layer_types, where the family has such a list
        self.head_width = head_width  # E
        self.group = group  # H / G, query heads per key/value head

    @property
    def inner(self) -> Any:
        """The family's own layer, also where a method has wrapped it."""
        return getattr(self.module, "inner", self.module)

    def _part(self, path: str) -> Any:
        return attrgetter(path)(self.inner)

    @property
    def attn(self) -> nn.Module:
        return self._part(self.family.attn)

    @property
    def qkv(self) -> list[nn.Linear]:
        """q, k, v, each (heads * E, D); or one matrix with all three below each other."""
        return [self._part(path) for path in self.family.qkv]

    @property
    def out(self) -> nn.Linear:
        """(D, H * E)"""
        return self._part(self.family.out)

    @property
    def up(self) -> list[nn.Linear]:
        """gate and up, each (I, D); one matrix where they are fused or where there is no gate."""
        return [self._part(path) for path in self.family.up]

    @property
    def down(self) -> nn.Linear:
        """(D, I)"""
        return self._part(self.family.down)

    @property
    def matrices(self) -> list[nn.Linear]:
        return [*self.qkv, self.out, *self.up, self.down]

    @property
    def attn_norm(self) -> nn.Module:
        return self._part(self.family.attn_norm)

    @property
    def mlp_norm(self) -> nn.Module:
        return self._part(self.family.mlp_norm)

    def set_norms(self, attn_norm: nn.Module, mlp_norm: nn.Module) -> None:
        setattr(self.inner, self.family.attn_norm, attn_norm)
        setattr(self.inner, self.family.mlp_norm, mlp_norm)

    @property
    def parallel(self) -> bool:
        """Whether attention and MLP both read the layer's input, x + attn(x) + mlp(x)."""
        return self.family.parallel or bool(getattr(self.inner, "use_parallel_residual", False))

    @property
    def kv_heads(self) -> int:
        """G as the weights have it, also after pruning."""
        return sum(matrix.out_features for matrix in self.qkv) // (self.head_width * (self.group + 2))

    def set_kv_heads(self, G: int) -> None:
        """Tell the attention that it has G key/value heads, where its forward does not see that from the weights.

        A size in the configuration, which all layers share, goes into a copy that is this attention's own.
        """
        sizes = {"G": G, "H": G * self.group, "HE": G * self.group * self.head_width}
        for path, letters in self.family.counts:
            shared, _, name = path.rpartition(".")
            if shared:
                setattr(self.attn, shared, copy.copy(getattr(self.attn, shared)))
            setattr(getattr(self.attn, shared) if shared else self.attn, name, sizes[letters])

    def attention(self, h: Tensor, arguments: dict[str, Any]) -> Tensor:
        """The attention's contribution to the residual from its normed input, (B, T, D) -> (B, T, D)."""
        return self.attn(h, **arguments)[0]

    def feed_forward(self, h: Tensor) -> Tensor:
        """The MLP's contribution to the residual from its normed input, (B, T, D) -> (B, T, D)."""
        if self.family.mlp:
            return self._part(self.family.mlp)(h)
        (up,) = self.up
        return self.down(self.inner.activation_fn(up(h)))

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """By name, what the decoder passes to this layer besides the hidden states."""
        bound = inspect.signature(self.inner.forward).bind(None, *args, **kwargs).arguments
        named = {**bound, **bound.get("kwargs", {})}
        return {
            name: value
            for name, value in named.items()
            if name not in ("hidden_states", "kwargs") and not name.startswith("encoder_")
        }

    def __call__(self, x: Tensor, arguments: dict[str, Any]) -> Tensor:
        """Run the layer, (B, T, D) -> (B, T, D)."""
        return self.module(x, **arguments)

    def copy_sharing_matrices(self) -> Layer:
        """A new layer with its own norms and biases, whose matrices and configuration still are this layer's."""
        configurations = [module.config for module in self.module.modules() if hasattr(module, "config")]
        shared = [*configurations, *(matrix.weight for matrix in self.matrices)]
        module = copy.deepcopy(self.module, {id(part): part for part in shared})
        return Layer(module, self.family, self.kind, self.head_width, self.group)


class Decoder:
    """A causal language model by role. Raises Unsupported for a family that FAMILIES lacks.

    GPT-2's transposed matrices become ordinary linear layers here, once, so that every kernel may assume (out, in).
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.config = model.config
        family = FAMILIES.get(self.config.model_type)
        if family is None:
            raise Unsupported(
                f"model type {self.config.model_type!r} has no row in methods/anatomy.py (known: {', '.join(FAMILIES)})"
            )
        self.family = family
        _straighten(model)

    @property
    def layers(self) -> list[Layer]:
        heads = self.config.num_attention_heads
        group = heads // (getattr(self.config, "num_key_value_heads", None) or heads)
        width = getattr(self.config, "head_dim", None) or self.config.hidden_size // heads
        modules = list(attrgetter(self.family.layers)(self.model))
        kinds = getattr(self.config, "layer_types", None) or [None] * len(modules)
        return [Layer(m, self.family, kind, width, group) for m, kind in zip(modules, kinds, strict=True)]

    def set_layers(self, layers: Sequence[Layer]) -> None:
        """Make these the model's layers: the one place that renumbers caches and keeps the configuration truthful.

        Without new indices cached generation breaks; without the layers' kinds, a model with sliding windows
        gives wrong logits and no error.
        """
        for index, layer in enumerate(layers):
            for part in (layer.inner, layer.attn):
                if hasattr(part, "layer_idx"):
                    part.layer_idx = index
        self.swap_stack(nn.ModuleList(layer.module for layer in layers))
        kinds = [layer.kind for layer in layers]
        self.config.num_hidden_layers = len(kinds)
        if any(kind is not None for kind in kinds):
            self.config.layer_types = kinds

    def swap_stack(self, stack: nn.ModuleList) -> nn.ModuleList:
        """Put another list of modules where the layers are, and return the old one; the configuration stays."""
        old: nn.ModuleList = attrgetter(self.family.layers)(self.model)
        self._put(self.family.layers, stack)
        return old

    @property
    def embed(self) -> nn.Embedding:
        """(V, D)"""
        return attrgetter(self.family.embed)(self.model)

    @property
    def positions(self) -> nn.Embedding | None:
        """The learned table of positions, or None."""
        return attrgetter(self.family.positions)(self.model) if self.family.positions else None

    @property
    def final_norm(self) -> Any:
        return attrgetter(self.family.final_norm)(self.model)

    @final_norm.setter
    def final_norm(self, norm: nn.Module) -> None:
        self._put(self.family.final_norm, norm)

    @property
    def head(self) -> nn.Linear:
        """(V, D)"""
        return self.model.get_output_embeddings()

    def untie(self) -> None:
        """Give the head its own copy of the embedding, and say so in the configuration, which loaders obey."""
        if self.head.weight is self.embed.weight:
            self.head.weight = nn.Parameter(self.embed.weight.detach().clone())
        self.config.tie_word_embeddings = False
        self.model.all_tied_weights_keys = {}

    def gain(self, norm: Any) -> Tensor:
        """(D,) what the norm multiplies by."""
        return norm.weight.detach() + self.family.gain_offset

    def normed(self, x: Tensor) -> Tensor:
        """The final norm, or x itself where the family has none."""
        return x if self.final_norm is None else self.final_norm(x)

    def _put(self, path: str, module: nn.Module) -> None:
        parent, _, name = path.rpartition(".")
        setattr(attrgetter(parent)(self.model), name, module)


def norm_eps(norm: nn.Module) -> float:
    """The constant under a norm's root, which families store under three names."""
    for name in ("variance_epsilon", "eps"):
        if hasattr(norm, name):
            return float(getattr(norm, name))
    raise Unsupported(f"{type(norm).__name__} does not say its epsilon")


def linear_like(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer around `weight` (out, in) and `bias` (out,), without the cost of initialising one."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight)
    if bias is not None:
        layer.bias = nn.Parameter(bias)
    return layer


def _straighten(model: nn.Module) -> None:
    """Replace every transposed linear layer by an ordinary one."""
    found: Iterable[tuple[nn.Module, str, nn.Module]] = [
        (parent, name, child) for parent in model.modules() for name, child in parent.named_children()
    ]
    for parent, name, child in found:
        if isinstance(child, Conv1D):
            setattr(parent, name, linear_like(child.weight.detach().T.contiguous(), child.bias.detach()))
