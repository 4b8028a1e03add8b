"""Shows one decoder layer by role.

Letters: D = residual width, I = MLP width, H = query heads, G = key/value heads, E = head width, B = batch, T = tokens.
         Weights are (out, in).
"""

from __future__ import annotations

import copy
import inspect
import math
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from methods.errors import Unsupported
from methods.model.architectures import Family, Mixer
from methods.model.layer_store import LayerStore, copy_tensors
from methods.model.parts import Experts, Removed, Times

OF_ATTENTION = ("position_embeddings", "position_ids", "use_cache")  # arguments of a layer that no mixer takes
MASK_OF_MIXER = "mamba_attention_mask"  # that of a layer with both, whose attention has another


class Layer:
    """Shows one decoder layer by role. It holds the module itself, and no copy."""

    def __init__(
        self,
        module: nn.Module,
        family: Family,
        config: Mapping[str, Any],
        head_width: int,
        group: int,
        *,
        number: int,
        store: LayerStore | None = None,
    ) -> None:
        self.module = module
        self.family = family
        self.config = config  # the layer's entry in each list of architectures.LISTS, None where there is no list
        self.head_width = head_width  # E
        self.group = group  # H / G, query heads per key/value head
        self.number = number  # in the model that the method was given (Decoder.numbers)
        self.store = store  # keeps changed weights in files; None: they are in memory

    @property
    def kind(self) -> str | None:
        """Return the layer's entry in config.layer_types, where the family has such a list."""
        return self.config.get("layer_types")

    @property
    def inner(self) -> Any:
        """Return the family's own layer, also where a method has wrapped it."""
        return getattr(self.module, "inner", self.module)

    def _part(self, path: str) -> Any:
        try:
            return attrgetter(path)(self.inner)
        except AttributeError:
            if self.has_attention and self.has_mlp:
                raise
            if self.family.alone:
                raise Unsupported(
                    "a layer is an attention, a mixer or an MLP alone, and this method needs two"
                ) from None
            raise Unsupported("a layer has lost its attention or its MLP, which this method needs whole") from None

    @property
    def built_with(self) -> tuple[str, ...]:
        """Return the sublayers that the family gives this layer: `attention` and `mlp`, or one of them."""
        if not self.family.alone:
            return "attention", "mlp"
        return ("mlp",) if self.kind in self.family.alone else ("attention",)

    @property
    def lost(self) -> list[str]:
        """Return which of these have been removed."""
        has = {"attention": self.has_attention, "mlp": self.has_mlp}
        return [part for part in self.built_with if not has[part]]

    @property
    def mixer(self) -> Mixer | None:
        """Return where the parts of the mixer are that stands for the attention, or beside it; None without one."""
        row = self.family.mixer
        if row is None or (row.kind and self.kind != row.kind) or getattr(self.inner, row.path, None) is None:
            return None
        return row

    @property
    def mixer_beside(self) -> Mixer | None:
        """Return where the parts of the mixer are that stands beside the attention; None for none."""
        return self.mixer if self.mixer is not None and self.mixer.beside else None

    @property
    def mixer_alone(self) -> Mixer | None:
        """Return where the parts of the mixer are that stands in the attention's place; None for none."""
        return self.mixer if self.mixer_beside is None else None

    @property
    def _attn_path(self) -> str:
        return self.family.attn if self.mixer_alone is None else self.mixer_alone.path

    @property
    def has_attention(self) -> bool:
        """Say whether the attention, or the mixer in its place, is still there."""
        return "attention" in self.built_with and not isinstance(getattr(self.inner, self._attn_path), Removed)

    @property
    def has_heads(self) -> bool:
        """Say whether there is an attention with key/value heads, which a mixer has not."""
        return self.mixer_alone is None and self.has_attention

    @property
    def has_mlp(self) -> bool:
        """Say whether the MLP is still there."""
        path = self.family.mlp or self.family.down
        return "mlp" in self.built_with and not isinstance(attrgetter(path)(self.inner), Removed)

    def remove_attention(self) -> None:
        """Take the attention out, with a mixer beside it and norms of its own. `Decoder.set_layers` must follow."""
        self._is_a_sum()
        for norm in self._own_norms(0):
            setattr(self.inner, norm, nn.Identity())
        if self.mixer_beside is not None:
            mixer = self._part(self.mixer_beside.path)
            setattr(self.inner, self.mixer_beside.path, Removed(attention=False, buffers=dict(mixer.named_buffers())))
        setattr(self.inner, self._attn_path, Removed(attention=self.mixer_alone is None))

    def remove_mlp(self) -> None:
        """Take the MLP out, with the norms that serve it alone. `Decoder.set_layers` must follow."""
        self._is_a_sum()
        for norm in self._own_norms(1):
            setattr(self.inner, norm, nn.Identity())
        if not self.family.mlp:
            setattr(self.inner, self.family.up[0], nn.Identity())
        for path in (self.family.mlp or self.family.down, *self._beside):
            setattr(self.inner, path, Removed(attention=False, pair=self._gives_a_pair))

    @property
    def _beside(self) -> list[str]:
        """Return the path of the module whose result is added to the MLP's, if there is one."""
        return [self.family.beside] if self.family.beside and getattr(self.inner, self.family.beside) else []

    @property
    def _gives_a_pair(self) -> bool:
        """Say whether the MLP's forward returns a tuple with its result first."""
        return self.family.mixture is not None and self.family.mixture.pair

    @property
    def _norms(self) -> tuple[str, str]:
        """Return the names of the norms in front of the attention and of the MLP, which may be the same norm."""
        first, second = self.family.attn_norm, self.family.mlp_norm
        return first, first if second and getattr(self.inner, second) is None else second

    def _own_norms(self, which: int) -> list[str]:
        """Return the names of the norms that serve the attention (0) or the MLP (1) alone."""
        norm, partner = self._norms[which], self._norms[1 - which]
        shared = norm == partner and self.has_attention and self.has_mlp
        return [*([norm] if norm and not shared else []), *self.family.post_norms[which : which + 1]]

    def sizes(self) -> dict[str, int]:
        """Return the parameters that go when the `layer`, its `attention` or its `mlp` is removed."""
        mlp = [self.family.mlp] if self.family.mlp else [*self.family.up, self.family.down]
        beside = [] if self.mixer_beside is None else [self.mixer_beside.path]
        parts = {
            "attention": [self._attn_path, *beside, *self._own_norms(0)],
            "mlp": [*mlp, *self._beside, *self._own_norms(1)],
        }
        counted = dict.fromkeys(parts, 0)
        counted |= {name: sum(map(_count, map(self._part, parts[name]))) for name in self.built_with}
        return {"layer": _count(self.module)} | counted

    @property
    def attn(self) -> nn.Module:
        """Return the attention, or the mixer in its place."""
        return self._part(self._attn_path)

    @property
    def qkv(self) -> list[nn.Linear]:
        """Return q, k, v, each (heads * E, D); or one matrix with all three below each other; or those of a mixer.

        Any matrix of a layer may be a LowRank (methods.model.parts), which has widths and a bias, but no weight.
        """
        return [self._part(path) for path in self.paths_of_attention[:-1]]

    @property
    def paths_of_attention(self) -> tuple[str, ...]:
        """Return the paths of the matrices of the attention, or of the mixer in its place; the last is `out`."""
        if self.mixer_alone is not None:
            return *self.mixer_alone.reads, self.mixer_alone.out
        return *self.family.qkv, self.family.out

    @property
    def paths_of_mixer(self) -> tuple[str, ...]:
        """Return the paths of the matrices of a mixer beside the attention; the last writes into the residual."""
        return () if self.mixer_beside is None else (*self.mixer_beside.reads, self.mixer_beside.out)

    @property
    def out(self) -> nn.Linear:
        """Return the attention's output matrix, (D, H * E), or that of a mixer in its place."""
        return self._part(self.paths_of_attention[-1])

    def writers(self, which: int) -> list[nn.Linear]:
        """Return the matrices that write what the attention (0) or the MLP (1) adds to the residual.

        These are `out` with that of a mixer beside it, or `down`; of a sublayer that is gone none.
        """
        if which:
            return [self.down] if self.has_mlp else []
        return [self.out, *map(self._part, self.paths_of_mixer[-1:])] if self.has_attention else []

    @property
    def up(self) -> list[nn.Linear]:
        """Return gate and up, each (I, D); one matrix where they are fused or where there is no gate."""
        self.refuse_experts()
        return [self._part(path) for path in self.family.up]

    @property
    def down(self) -> nn.Linear:
        """Return the MLP's output matrix, (D, I)."""
        self.refuse_experts()
        return self._part(self.family.down)

    @property
    def experts(self) -> Experts | None:
        """Return the mixture of experts that stands for the MLP; None where there is none."""
        return Experts.of(self.inner, self.family.mixture)

    def refuse_experts(self) -> None:
        """Raise Unsupported where a mixture of experts stands for the MLP."""
        if self.experts is not None:
            raise Unsupported(
                "the MLP of a layer is a mixture of experts, and this method works on the matrices of a single MLP"
            )

    @property
    def matrices(self) -> list[nn.Linear]:
        """Return the matrices of both sublayers. Raises Unsupported for a mixture of experts."""
        if self.has_mlp:
            self.refuse_experts()
        return list(self.named_matrices().values())

    def named_matrices(self) -> dict[str, nn.Linear]:
        """Return the matrices by their paths in the layer (`put` takes these); of experts none."""
        attention = (*self.paths_of_attention, *self.paths_of_mixer) if self.has_attention else ()
        mlp = [*self.family.up, self.family.down] if self.has_mlp and self.experts is None else []
        return {path: self._part(path) for path in (*attention, *mlp)}

    def weights_by_path(self) -> dict[str, nn.Parameter]:
        """Return the weights of the matrices by their paths, and all that a mixer has beside them and its norm."""
        weights: dict[str, Any] = {f"{path}.weight": each.weight for path, each in self.named_matrices().items()}
        if self.mixer is not None and self.has_attention:
            beside = (*self.mixer.own, f"{self.mixer.conv}.weight", f"{self.mixer.conv}.bias")
            named = dict(self._part(self.mixer.path).named_parameters())
            weights |= {f"{self.mixer.path}.{name}": named[name] for name in beside if name in named}
        return weights

    def put(self, path: str, module: nn.Module) -> None:
        """Put a module where a matrix is."""
        parent, _, name = path.rpartition(".")
        setattr(self._part(parent) if parent else self.inner, name, module)

    @property
    def attn_norm(self) -> nn.Module:
        """Return the norm in front of the attention."""
        return self._norm(0)

    @property
    def mlp_norm(self) -> nn.Module:
        """Return the norm in front of the MLP."""
        return self._norm(1)

    def _norm(self, which: int) -> nn.Module:
        name = self._norms[which]
        return self._part(name) if name else nn.Identity()

    def set_norms(self, attn_norm: nn.Module, mlp_norm: nn.Module) -> None:
        """Put two modules in the places of both norms."""
        for name, norm in zip(self._norms, (attn_norm, mlp_norm), strict=True):
            setattr(self.inner, name, norm)

    @property
    def parallel(self) -> bool:
        """Say whether attention and MLP both read the layer's input, x + attn(x) + mlp(x)."""
        return self.family.parallel or bool(getattr(self.inner, "use_parallel_residual", False))

    @property
    def kv_heads(self) -> int:
        """Return G as the weights have it, also after pruning."""
        if not self.has_heads:
            return 0
        queries = self.group * (2 if self.family.gated_heads else 1)
        return sum(matrix.out_features for matrix in self.qkv) // (self.head_width * (queries + 2))

    @property
    def mixer_heads(self) -> int:
        """Return how many heads of the mixer in the attention's place can go, as its weights have them; 0 for none."""
        if self.mixer_alone is None or self.mixer_alone.whole or not self.has_attention:
            return 0
        return int(getattr(self.attn, self.mixer_alone.heads[0]))

    @property
    def state_channels(self) -> int:
        """Return N, how many channels the state of the mixer in the attention's place has that can go; 0 for none."""
        if self.mixer_alone is None or not self.mixer_alone.channels or not self.has_attention:
            return 0
        return int(getattr(self.attn, self.mixer_alone.state[1]))

    @property
    def heads(self) -> int:
        """Return how many heads of its attention, or of the mixer in its place, there are that can go."""
        return self.kv_heads or self.mixer_heads

    @property
    def kind_of_heads(self) -> str:
        """Return the kind of the heads of its attention, "kv_heads", or mixer, "mixer_heads"; "" where none can go."""
        return "kv_heads" if self.has_heads else "mixer_heads" if self.mixer_heads else ""

    @property
    def state_numbers(self) -> int:
        """Return the numbers of the state that a mixer carries from token to token; 0 without one."""
        if self.mixer is None or not self.has_attention:
            return 0
        return math.prod(getattr(self._part(self.mixer.path), size) for size in self.mixer.state)

    @property
    def conv(self) -> Tensor | None:
        """Return the taps of a mixer's convolution, one row for each channel; None without a mixer."""
        if self.mixer is None or not self.has_attention:
            return None
        return getattr(self._part(self.mixer.path), self.mixer.conv).weight

    def set_kv_heads(self, G: int) -> None:
        """Set the attention's number of key/value heads to G, where its forward does not read it off the weights.

        A size in the configuration goes into a copy that is this attention's own, since all layers share the original.
        """
        sizes = {"G": G, "H": G * self.group, "HE": G * self.group * self.head_width}
        for path, letters in self.family.counts:
            shared, _, name = path.rpartition(".")
            if shared:
                setattr(self.attn, shared, copy.copy(getattr(self.attn, shared)))
            setattr(getattr(self.attn, shared) if shared else self.attn, name, sizes[letters])

    def set_mixer_heads(self, count: int) -> None:
        """Set the sizes of the mixer in the attention's place to those of `count` heads."""
        if self.mixer_alone is None:
            raise ValueError("the layer has no mixer in the place of its attention")
        before = self.mixer_heads
        for name in self.mixer_alone.heads:
            setattr(self.attn, name, getattr(self.attn, name) * count // before)
        self._count_channels(self.mixer_alone)

    def set_state_channels(self, count: int) -> None:
        """Set the sizes of the mixer in the attention's place to those of a state of `count` channels."""
        if self.mixer_alone is None:
            raise ValueError("the layer has no mixer in the place of its attention")
        setattr(self.attn, self.mixer_alone.state[1], count)
        self._count_channels(self.mixer_alone)

    def _count_channels(self, mixer: Mixer) -> None:
        """Set the sizes of the mixer's convolution to those of its weight."""
        holder: Any = self.attn
        conv: Any = getattr(holder, mixer.conv)
        conv.in_channels = conv.out_channels = conv.groups = holder.conv_dim = len(conv.weight)

    @property
    def device(self) -> torch.device:
        """Return the device of the layer. Layers have different ones where a model is spread over several GPUs.

        Each of its modules then moves its own inputs (accelerate.dispatch_model). A caller that adds a tensor to its
        output must move that tensor.
        """
        if self.store is not None and self.store.device is not None:
            return self.store.device  # the layer visits it
        return next(self.module.parameters()).device

    def visiting(self) -> AbstractContextManager[None]:
        """Return a context in which the layer's weights lie on `device`, where a store keeps them elsewhere.

        Code that multiplies states by weights runs in it, and so does each call of the layer or of its sublayers. One
        context around many calls moves the weights once.
        """
        return nullcontext() if self.store is None else self.store.visit(self.module, lambda: self.module)

    def attention(self, h: Tensor, arguments: dict[str, Any]) -> Tensor:
        """Return the output of the attention's output matrix for its normed input, (B, T, D) -> (B, T, D)."""
        with self.visiting():
            if self.mixer_alone is not None:
                return self.attn(h, **arguments_of_mixer(arguments))
            return self.attn(self.enter(h), **arguments)[0]

    def enter(self, h: Tensor) -> Tensor:
        """Return what the attention reads of its normed input: with a factor in some families."""
        return h * getattr(self.inner, self.family.entry) if self.family.entry else h

    def feed_forward(self, h: Tensor) -> Tensor:
        """Return the output of the MLP's output matrix for its normed input, (B, T, D) -> (B, T, D).

        Where more than one matrix adds to it, as of experts, it is what the MLP gives.
        """
        with self.visiting():
            if self.family.scales_mlp and self.has_mlp:
                with collect_outputs(self.down) as outputs:
                    self._run_mlp(h)
                return outputs[0]
            return self._run_mlp(h)

    def _run_mlp(self, h: Tensor) -> Tensor:
        if self.family.mlp:
            m = self._part(self.family.mlp)(h)
            m = m[0] if self._gives_a_pair else m
            return sum((self._part(path)(h) for path in self._beside), m)
        (up,) = self.up
        return self.down(self.inner.activation_fn(up(h)))

    def attend(self, x: Tensor, arguments: dict[str, Any]) -> Tensor:
        """Return the attention's addition to the residual x, norms included, (B, T, D) -> (B, T, D)."""
        if "attention" not in self.built_with:
            return torch.zeros_like(x)
        with self.visiting():
            return self.join(0, self.attention(self.attn_norm(x), arguments), x, arguments)

    def transform(self, x: Tensor) -> Tensor:
        """Return the MLP's addition to the residual x, norms included, (B, T, D) -> (B, T, D)."""
        if "mlp" not in self.built_with:
            return torch.zeros_like(x)
        with self.visiting():
            m = self._run_mlp(self.mlp_norm(x))
            return m if self.family.scales_mlp else self.post_norm(1)(m)

    def join(self, which: int, output: Tensor, x: Tensor, arguments: dict[str, Any]) -> Tensor:
        """Return the addition to the residual of the attention (0) or the MLP (1) whose output matrix gives `output`.

        x, arguments  what the layer is called with, which a mixer beside the attention reads, too
        """
        added: Tensor = self.post_norm(which)(output)
        if which or self.mixer_beside is None or not self.has_attention:
            return added
        mixed = self._part(self.mixer_beside.path)(self.attn_norm(x), **arguments_of_mixer(arguments))
        return mixed * getattr(self.inner, self.mixer_beside.factor) + added

    def post_norm(self, which: int) -> nn.Module:
        """Return the module between `out` (0) or `down` (1) and the residual: a norm, a factor or identity."""
        self._is_a_sum()
        names = self.family.post_norms
        if names:
            return getattr(self.inner, names[which])
        return Times(self.factor(which)) if self.family.factors else nn.Identity()

    def factor(self, which: int) -> float:
        """Return the number by which the output of `out` (0) or `down` (1) is multiplied in front of the residual."""
        sublayer = self.has_mlp if which else self.has_attention
        return float(attrgetter(self.family.factors[which])(self.inner)) if self.family.factors and sublayer else 1.0

    def scale(self, which: int, output: Tensor) -> Tensor:
        """Return what a sublayer adds to the residual: the output of its last matrix times its factor."""
        factor = self.factor(which)
        return output if factor == 1 else factor * output

    def _is_a_sum(self) -> None:
        if self.module is not self.inner or not getattr(self.inner, "do_layer_norm_before", True):
            raise Unsupported("a layer whose residual is normed or mapped is no sum of its input, attention and MLP")

    def run(self, x: Tensor, arguments: dict[str, Any], removed: Collection[str] = ()) -> Tensor:
        """Return the layer's output without its `removed` parts ("layer", "attention", "mlp"), (B, T, D) -> same."""
        if "layer" in removed:
            return x
        if not removed:
            return self(x, arguments)
        h = x if "attention" in removed else x + self.attend(x, arguments)
        return h if "mlp" in removed else h + self.transform(x if self.parallel else h)

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return by name the arguments that the decoder passes to this layer besides the hidden states."""
        bound = inspect.signature(self.inner.forward).bind(None, *args, **kwargs).arguments
        named = {**bound, **bound.get("kwargs", {})}
        return {
            name: value
            for name, value in named.items()
            if name not in ("hidden_states", "kwargs") and not name.startswith("encoder_")
        }

    def __call__(self, x: Tensor, arguments: dict[str, Any]) -> Tensor:
        """Run the layer, (B, T, D) -> (B, T, D)."""
        with self.visiting():
            return states_of(self.module(x, **arguments))

    def settle(self) -> None:
        """Move changed weights of the layer into a file, where the model has a store; else do nothing."""
        if self.store is not None:
            self.store.settle(self.module)

    def copy_sharing_matrices(self) -> Layer:
        """Return a layer with its own norms and biases, whose matrices and configuration still are this layer's."""
        return self._copy({id(matrix.weight): matrix.weight for matrix in self.matrices})

    def copy(self) -> Layer:
        """Return a layer with weights of its own, whose configuration still is this layer's."""
        return self._copy({})

    def on(self, device: torch.device) -> Layer:
        """Return a copy of the layer on a device, with the same configuration; the layer itself if it lies there."""
        if self.device == device:
            return self
        return self._copy(copy_tensors(self.module, device))

    def _copy(self, instead: dict[int, Any]) -> Layer:
        """Return a copy with this layer's configuration, and with `instead`, by ids, in place of other objects."""
        shared = {id(part.config): part.config for part in self.module.modules() if hasattr(part, "config")}
        module = copy_module(self.module, shared | instead)
        return Layer(
            module, self.family, self.config, self.head_width, self.group, number=self.number, store=self.store
        )


def arguments_of_mixer(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return what a mixer takes of the arguments of its layer, with the mask that is its own where there are two."""
    given = {name: each for name, each in arguments.items() if name not in OF_ATTENTION}
    if MASK_OF_MIXER in given:
        given["attention_mask"] = given.pop(MASK_OF_MIXER)
    return given


@contextmanager
def collect_outputs(matrix: nn.Module) -> Iterator[list[Tensor]]:
    """Yield a list that fills with the outputs of a matrix, in the order of its calls."""
    outputs: list[Tensor] = []
    hook = matrix.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        hook.remove()


def states_of(returned: Any) -> Any:
    """Return the states in what a layer returns, which in some families is a tuple with these first."""
    return returned[0] if isinstance(returned, tuple) else returned


def copy_module(module: nn.Module, memo: dict[int, Any]) -> Any:
    """Return what `copy.deepcopy` makes of a module with this memo, in a third of the time.

    Most of that time would go into the empty dictionaries of hooks, ten for each module.
    """
    kind = type(module)
    if id(module) in memo or hasattr(kind, "__deepcopy__"):
        return copy.deepcopy(module, memo)
    memo[id(module)] = copied = kind.__new__(kind)
    state: dict[str, Any] = {}
    for name, value in module.__getstate__().items():  # type: ignore[no-untyped-call]
        if name == "_modules":
            state[name] = {key: child if child is None else copy_module(child, memo) for key, child in value.items()}
        elif type(value) is OrderedDict and not value:
            state[name] = OrderedDict()
        else:
            state[name] = copy.deepcopy(value, memo)
    copied.__setstate__(state)  # type: ignore[no-untyped-call]
    return copied


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def epsilon_of(norm: nn.Module) -> float:
    """Return the constant under a norm's root. Raises Unsupported where the norm does not say it."""
    for name in ("variance_epsilon", "eps", "epsilon"):
        if hasattr(norm, name):
            return float(getattr(norm, name))
    raise Unsupported(f"{type(norm).__name__} does not say its epsilon")


def make_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a linear layer around `weight` (out, in) and `bias` (out,), without the cost of initialising one."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight)
    if bias is not None:
        layer.bias = nn.Parameter(bias)
    return layer
