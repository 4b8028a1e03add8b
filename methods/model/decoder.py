"""A language model seen by role. Methods get a Decoder and its Layers and never a Hugging Face name.

What a family calls its parts is a row of methods/model/architectures.py.

Letters: V = vocabulary, D = residual width, I = MLP width, H = query heads, G = key/value heads, E = head width,
         B = batch, T = tokens. Weights are (out, in).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection, Iterable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from methods.errors import Unsupported
from methods.model.architectures import FAMILIES, Family


class Removed(nn.Module):
    """Stands where an attention or an MLP was, and adds nothing to the residual."""

    def __init__(self, *, attention: bool) -> None:
        super().__init__()
        self.attention = attention
        self.layer_idx = 0
        self.counts = False  # no attention of the layer's kind is left, so that this one tells the cache its length

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        nothing = torch.zeros_like(hidden_states)
        if not self.attention:
            return nothing
        cache = kwargs.get("cache", kwargs.get("layer_past"))
        if self.counts and cache is not None:
            one_number = nothing[:, None, :, :1]  # per token, (B, 1, T, 1): a cache of no numbers has no length
            cache.update(one_number, one_number, self.layer_idx)
        return nothing, None


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
        try:
            return attrgetter(path)(self.inner)
        except AttributeError:
            if self.has_attention and self.has_mlp:
                raise
            raise Unsupported("a layer has lost its attention or its MLP, which this method needs whole") from None

    @property
    def has_attention(self) -> bool:
        return not isinstance(getattr(self.inner, self.family.attn), Removed)

    @property
    def has_mlp(self) -> bool:
        return not isinstance(attrgetter(self.family.mlp or self.family.down)(self.inner), Removed)

    def remove_attention(self) -> None:
        """Take the attention out, with the norms that serve it alone. `Decoder.set_layers` must follow."""
        self._is_a_sum()
        for norm in self._own_norms(self.family.attn_norm, 0):
            setattr(self.inner, norm, nn.Identity())
        setattr(self.inner, self.family.attn, Removed(attention=True))

    def remove_mlp(self) -> None:
        """Take the MLP out, with the norms that serve it alone. `Decoder.set_layers` must follow."""
        self._is_a_sum()
        for norm in self._own_norms(self.family.mlp_norm, 1):
            setattr(self.inner, norm, nn.Identity())
        if not self.family.mlp:
            setattr(self.inner, self.family.up[0], nn.Identity())
        setattr(self.inner, self.family.mlp or self.family.down, Removed(attention=False))

    def _own_norms(self, norm: str, which: int) -> list[str]:
        """The names of the norms that serve the attention (0) or the MLP (1) alone."""
        shared = self.family.attn_norm == self.family.mlp_norm and self.has_attention and self.has_mlp
        return [*([] if shared else [norm]), *self.family.post_norms[which : which + 1]]

    def sizes(self) -> dict[str, int]:
        """Parameters that go when the layer, its attention or its MLP is removed."""
        mlp = [self.family.mlp] if self.family.mlp else [*self.family.up, self.family.down]
        parts = {
            "attention": [self.family.attn, *self._own_norms(self.family.attn_norm, 0)],
            "mlp": [*mlp, *self._own_norms(self.family.mlp_norm, 1)],
        }
        counted = {name: sum(_count(self._part(path)) for path in paths) for name, paths in parts.items()}
        return {"layer": _count(self.module)} | counted

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
        attention = [*self.qkv, self.out] if self.has_attention else []
        return [*attention, *self.up, self.down] if self.has_mlp else attention

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
        if not self.has_attention:
            return 0
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

    def attend(self, x: Tensor, arguments: dict[str, Any]) -> Tensor:
        """What the attention adds to the residual x, norms included, (B, T, D) -> (B, T, D)."""
        return self.post_norm(0)(self.attention(self.attn_norm(x), arguments))

    def transform(self, x: Tensor) -> Tensor:
        """What the MLP adds to the residual x, norms included, (B, T, D) -> (B, T, D)."""
        return self.post_norm(1)(self.feed_forward(self.mlp_norm(x)))

    def post_norm(self, which: int) -> nn.Module:
        """What stands between the attention (0) or the MLP (1) and the residual: a norm, or nothing."""
        self._is_a_sum()
        names = self.family.post_norms
        return getattr(self.inner, names[which]) if names else nn.Identity()

    def _is_a_sum(self) -> None:
        if self.module is not self.inner or not getattr(self.inner, "do_layer_norm_before", True):
            raise Unsupported("a layer whose residual is normed or mapped is no sum of its input, attention and MLP")

    def run(self, x: Tensor, arguments: dict[str, Any], gone: Collection[str] = ()) -> Tensor:
        """Run the layer as if the parts `gone` ("layer", "attention", "mlp") had been removed, (B, T, D) -> same."""
        if "layer" in gone:
            return x
        if not gone:
            return self(x, arguments)
        h = x if "attention" in gone else x + self.attend(x, arguments)
        return h if "mlp" in gone else h + self.transform(x if self.parallel else h)

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

    GPT-2's transposed matrices and Baichuan2's head become ordinary linear layers here, once, so that every kernel may
    assume (out, in) and that a head is what its weights say.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.config = model.config
        family = FAMILIES.get(self.config.model_type)
        if family is None:
            raise Unsupported(
                f"model type {self.config.model_type!r} has no row in methods/model/architectures.py "
                f"(known: {', '.join(FAMILIES)})"
            )
        self.family = family
        _refuse_old_code(self.stack)
        _straighten(model)
        head = model.get_output_embeddings()
        if family.unit_rows and not isinstance(head, nn.Linear):
            model.set_output_embeddings(linear_like(nn.functional.normalize(head.weight.detach()), None))

    @property
    def stack(self) -> nn.ModuleList:
        """The modules that `layers` are views of."""
        return attrgetter(self.family.layers)(self.model)

    @property
    def layers(self) -> list[Layer]:
        heads = self.config.num_attention_heads
        group = heads // (getattr(self.config, "num_key_value_heads", None) or heads)
        width = getattr(self.config, "head_dim", None) or self.config.hidden_size // heads
        kinds = getattr(self.config, "layer_types", None) or [None] * len(self.stack)
        return [Layer(m, self.family, kind, width, group) for m, kind in zip(self.stack, kinds, strict=True)]

    def set_layers(self, layers: Sequence[Layer]) -> None:
        """Make these the model's layers: the one place that renumbers caches and keeps the configuration truthful.

        Without new indices cached generation breaks; without the layers' kinds, a model with sliding windows
        gives wrong logits and no error.
        """
        self.refuse_sliced()
        for slot, layer in zip(_slots(layers), layers, strict=True):
            for part in (layer.inner, layer.attn):
                if hasattr(part, "layer_idx"):
                    part.layer_idx = slot
        self.swap_stack(nn.ModuleList(layer.module for layer in layers))
        kinds = [layer.kind for layer in layers]
        self.config.num_hidden_layers = len(kinds)
        if any(kind is not None for kind in kinds):
            self.config.layer_types = kinds

    def refuse_sliced(self) -> None:
        """Raise Unsupported where the residual has been cut, so that every layer speaks in a basis of its own."""
        if any(hasattr(module, "shortcuts") for module in self.stack):
            raise Unsupported(
                "the residual has been sliced, and each layer reads another basis of it than it writes, so that none "
                "can go, be observed as one of the family or be sliced again; llm-pruner serves such a model"
            )

    def swap_stack(self, stack: nn.ModuleList) -> nn.ModuleList:
        """Put another list of modules where the layers are, and return the old one; the configuration stays."""
        old = self.stack
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

    def logits(self, x: Tensor) -> Tensor:
        """The logits of what comes out of the last layer, (..., D) -> (..., V), in the model's dtype."""
        if x.shape[-1] != self.head.in_features:
            raise Unsupported("the head does not read the last layer's width")
        logits, cap = self.head(self.normed(x)), getattr(self.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def _put(self, path: str, module: nn.Module) -> None:
        parent, _, name = path.rpartition(".")
        setattr(attrgetter(parent)(self.model), name, module)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _slots(layers: Sequence[Layer]) -> list[int]:
    """Each layer's place in the cache: its own number, unless an attention is gone.

    A cache reads its length off the first place of each kind, so that attentions come before what stands in for one.
    """
    slots = list(range(len(layers)))
    for kind in {layer.kind for layer in layers}:
        places = [number for number, layer in enumerate(layers) if layer.kind == kind]
        order = sorted(places, key=lambda number: not layers[number].has_attention)
        for place, number in zip(places, order, strict=True):
            slots[number] = place
            stand_in = layers[number].attn
            if isinstance(stand_in, Removed):
                stand_in.counts = number == order[0]
    return slots


def norm_eps(norm: nn.Module) -> float:
    """The constant under a norm's root, which families store under four names."""
    for name in ("variance_epsilon", "eps", "epsilon"):
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


def _refuse_old_code(layers: nn.ModuleList) -> None:
    """Code that comes with a model may be older than the caches of today."""
    for layer in layers[:1]:
        if "past_key_value" in inspect.signature(layer.forward).parameters:
            raise Unsupported(
                f"{type(layer).__name__} is code for transformers 4, whose layers take and return tuples; "
                "the model needs code for transformers 5, or a copy in the layout of a family that transformers has"
            )


def _straighten(model: nn.Module) -> None:
    """Replace every transposed linear layer by an ordinary one."""
    found: Iterable[tuple[nn.Module, str, nn.Module]] = [
        (parent, name, child) for parent in model.modules() for name, child in parent.named_children()
    ]
    for parent, name, child in found:
        if isinstance(child, Conv1D):
            setattr(parent, name, linear_like(child.weight.detach().T.contiguous(), child.bias.detach()))


def twin(model: Decoder, config: Any = None) -> Decoder:
    """A model of its own modules around the same weights: a cut gives a module new weights and changes no tensor.

    config  what its layers take for their configuration; by default a copy
    """
    shared = {id(tensor): tensor for tensor in (*model.model.parameters(), *model.model.buffers())}
    return Decoder(copy.deepcopy(model.model, shared | ({} if config is None else {id(model.config): config})))
