"""Shows a language model by role, and puts its layers on devices.

Methods get a Decoder and its Layers (methods.model.layer), and see no Hugging Face names. The names that a family has
for its parts are a row of methods/model/architectures.py.

A model may be spread over several devices, layer by layer in their order, so that each holds its share of the weights.
Embedding, positions and a tied head lie with the first layers, the final norm and an untied head with the last. In the
model's own forward, hooks of accelerate move states from one device to the next. Methods move states themselves
(methods.model.layer). No weight is offloaded: each lies on the device that multiplies with it.

Letters: V = vocabulary, D = residual width, I = MLP width, H = query heads, G = key/value heads, E = head width,
         B = batch, T = tokens. Weights are (out, in).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from operator import attrgetter
from typing import Any

import torch
from accelerate import dispatch_model, init_empty_weights
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from methods.errors import Unsupported
from methods.model.architectures import FAMILIES, LISTS, LLAMA, Axis, Family, has_mixers
from methods.model.layer import Layer, copy_module, make_linear
from methods.model.layer_store import LayerStore, cast, move_modules
from methods.model.parts import Removed
from methods.model.precision import dtype_by_name


class Decoder:
    """Shows a causal language model by role. Raises Unsupported for a family that FAMILIES lacks.

    GPT-2's transposed matrices and Baichuan2's head become ordinary linear layers here, once, so that every kernel may
    assume (out, in) and that a head is what its weights say.

    config   what its layers follow: the model's configuration, or that of the text tower of one that reads images
    store    keeps weights that methods change in files (methods.model.layer_store); None: they are in memory
    numbers  numbers of the layers, by which decisions name them: those they had when a method was given the model
    given    number of layers that it had then
    """

    def __init__(self, model: Any, store: LayerStore | None = None) -> None:
        self.model = model
        self.store = store
        self.family = family_of(model.config)
        self.config = model.config.get_text_config() if self.family.vision else model.config
        _refuse_old_code(self.stack)
        self.number_layers()
        if store is not None and store.device is not None:
            self._put_around(store.device)
        for layer in self.sweep():
            _straighten(layer.module)
        self.settle()
        head = model.get_output_embeddings()
        if self.family.unit_rows and not isinstance(head, nn.Linear):
            model.set_output_embeddings(make_linear(nn.functional.normalize(head.weight.detach()), None))

    def _put_around(self, device: torch.device) -> None:
        """Move all modules around the layers to a device; tied weights stay tied."""
        leaves = ((name, module) for name, module in self.model.named_modules() if not any(module.children()))
        elsewhere = tuple(f"{path}." for path in (self.family.layers, *self.family.vision))
        move_modules([module for name, module in leaves if not f"{name}.".startswith(elsewhere)], device)

    @contextmanager
    def at_home(self) -> Iterator[None]:
        """Move the whole model to where its layers lie, meanwhile, as its own forward needs it."""
        device = None if self.store is None else self.store.device
        if self.store is None or device is None:
            yield
            return
        move_modules([self.model], torch.device("cpu"))
        self.store.device = None
        try:
            yield
        finally:
            self.store.device = device
            self._put_around(device)

    @property
    def whole_config(self) -> Any:
        """Return the configuration of the whole model, from which its class builds it."""
        return self.model.config

    @property
    def vision(self) -> list[nn.Module]:
        """Return the modules that read images. Text goes through none of them."""
        return [attrgetter(path)(self.model) for path in self.family.vision]

    @property
    def fixed_layers(self) -> int:
        """Return how many layers at the front keep their places, since states of images are added behind each."""
        return len(attrgetter(self.family.added)(self.whole_config)) if self.family.added else 0

    def refuse_fixed(self, first: int = 0) -> None:
        """Raise Unsupported for a method that takes layers from `first` on into others, where such layers are fixed."""
        if first < self.fixed_layers:
            kind = self.whole_config.model_type
            raise Unsupported(
                f"the first {self.fixed_layers} layers of this {kind} stay where they are, since states of "
                "images are added behind them, and this method may merge or empty them"
            )

    @property
    def stack(self) -> nn.ModuleList:
        """Return the modules behind `layers`."""
        return attrgetter(self.family.layers)(self.model)

    @property
    def layers(self) -> list[Layer]:
        """Return the layers. Raises Unsupported where the configuration names other layers than there are."""
        heads = self.config.num_attention_heads
        group = heads // (getattr(self.config, "num_key_value_heads", None) or heads)
        width = getattr(self.config, "head_dim", None) or self.config.hidden_size // heads
        lists = {name: (getattr(self.config, name, None) or [])[: len(self.stack)] for name in LISTS}
        for name, entries in lists.items():
            if 0 < len(entries) < len(self.stack):
                raise Unsupported(f"{name} of its configuration names {len(entries)} layers of {len(self.stack)}")
        rows = [dict(zip(lists, row, strict=True)) for row in zip_longest(*lists.values())] or [{}] * len(self.stack)
        return [
            Layer(module, self.family, row, width, group, number=number, store=self.store)
            for number, module, row in zip(self.numbers, self.stack, rows, strict=True)
        ]

    def number_layers(self) -> None:
        """Give the layers that the model has the numbers from 0 on."""
        self.given = len(self.stack)
        self.numbers = list(range(self.given))

    def reach(self, layer: Layer, context: int) -> int:
        """Return how many of `context` earlier tokens the attention of a layer looks at: at most its sliding window."""
        window = getattr(self.config, "sliding_window", None)
        return min(context, window) if window and layer.kind in (None, "sliding_attention") else context

    def refuse(self, axis: Axis) -> None:
        """Raise Unsupported, with the reason, where a model of this family cannot be cut along an axis."""
        attention = next((layer.attn for layer in self.layers if layer.has_attention), None)
        for uncut in self.family.uncut:
            if uncut.axis == axis and uncut.of(self.config, attention):
                kind = self.whole_config.model_type
                raise Unsupported(f"the {axis} of this {kind} cannot be cut: {uncut.because}")

    def refuse_experts(self) -> None:
        """Raise Unsupported where a mixture of experts stands for the MLP of a layer."""
        for layer in self.layers:
            layer.refuse_experts()

    def sweep(self, layers: Iterable[Layer] | None = None) -> Iterator[Layer]:
        """Yield each layer, or those of `layers`, to be changed. A layer is settled before the next one comes."""
        for layer in self.layers if layers is None else layers:
            yield layer
            layer.settle()

    def passing(self, numbers: Sequence[int]) -> Iterator[tuple[int, Layer]]:
        """Yield the layers of these numbers, each with its weights on the device that computes.

        The next one is read ahead.
        """
        layers = self.layers
        for number, following in zip_longest(numbers, numbers[1:]):
            if following is not None:
                self.read_ahead(following)
            with layers[number].visiting():
                yield number, layers[number]

    def read_ahead(self, number: int) -> None:
        """Ask the system to read a layer that lies in files. A number beyond the last layer does nothing."""
        if self.store is not None and number < len(self.stack):
            self.store.read_ahead(self.stack[number])

    def cast(self, dtype: torch.dtype) -> None:
        """Convert the weights to `dtype`, one layer at a time; buffers become those of a new model of that dtype.

        Tensors that the model's class keeps in float32 stay in it (methods.model.precision.dtype_by_name).
        """
        if dtype == self.embed.weight.dtype:
            return
        dtype_of_name, named = dtype_by_name(self.model, dtype), list(self.model.named_parameters())
        names = {id(parameter): name for name, parameter in named}
        for layer in self.sweep():
            cast(((names[id(parameter)], parameter) for parameter in layer.module.parameters()), dtype_of_name)
        cast(named, dtype_of_name)
        self.settle()
        set_dtype(self.whole_config, dtype)
        fresh, stored = _fresh_buffers(self.model, dtype), self.model.state_dict().keys()
        for name, buffer in self.model.named_buffers():
            if name not in stored and name in fresh:
                buffer.data = fresh[name].to(buffer.device)
            elif buffer.is_floating_point():
                buffer.data = buffer.to(dtype_of_name(name))

    def settle_all(self) -> None:
        """Settle every layer, and the modules outside the layers."""
        for layer in self.layers:
            layer.settle()
        self.settle()

    def settle(self) -> None:
        """Move changed weights outside the layers into a file, where the model has a store."""
        if self.store is not None:
            tables = [self.embed, *([] if self.positions is None else [self.positions])]
            norms = [] if self.final_norm is None else [self.final_norm]
            self.store.settle(*tables, *norms, self.model.get_output_embeddings())

    def set_layers(self, layers: Sequence[Layer]) -> None:
        """Make these the model's layers: the one place that renumbers caches and keeps the configuration truthful.

        Without new indices cached generation breaks; without the layers' kinds, a model with sliding windows
        gives wrong logits and no error.
        """
        self.refuse_sliced()
        if [layer.number for layer in layers[: self.fixed_layers]] != list(range(self.fixed_layers)):
            self.refuse_fixed()
        if self.family.mixer is not None and not any(
            layer.mixer_alone is None and "attention" in layer.built_with for layer in layers
        ):
            raise Unsupported(
                "no layer with an attention would be left beside the mixers, off which a cache of transformers reads "
                "how many tokens it holds"
            )
        for slot, layer in zip(_slots(layers), layers, strict=True):
            mixer = [] if layer.mixer is None else [getattr(layer.inner, layer.mixer.path)]
            for part in (layer.inner, layer.attn, *mixer):
                if hasattr(part, "layer_idx"):
                    part.layer_idx = slot
        self.swap_stack(nn.ModuleList(layer.module for layer in layers))
        self.numbers = [layer.number for layer in layers]
        self.config.num_hidden_layers = len(layers)
        for name in LISTS:
            if not _is_derived(self.config, name) and any(layer.config.get(name) is not None for layer in layers):
                setattr(self.config, name, [layer.config[name] for layer in layers])
        self._set_places(layers)

    def copy_lists(self, whole: Decoder) -> None:
        """Let the configuration list the layers of another model of the family, which then are set."""
        self.config.num_hidden_layers = whole.config.num_hidden_layers
        for name in (*LISTS, *([self.family.mixer.attentions] if self.family.mixer else [])):
            if name and getattr(whole.config, name, None) and not _is_derived(self.config, name):
                setattr(self.config, name, list(getattr(whole.config, name)))

    def _set_places(self, layers: Sequence[Layer]) -> None:
        """Set what the configuration says by the numbers of layers: which are mixtures, and which have an attention."""
        if self.family.mixer is not None and (name := self.family.mixer.attentions):
            setattr(self.config, name, [number for number, layer in enumerate(layers) if layer.mixer is None])
        single = [number for number, layer in enumerate(layers) if layer.experts is None]
        if (mixture := self.family.mixture) and mixture.plain:
            setattr(self.config, mixture.plain, single)
            setattr(self.config, mixture.every, 1)
        elif mixture and mixture.first:
            setattr(self.config, mixture.first, sum(number == place for place, number in enumerate(single)))

    def refuse_sliced(self) -> None:
        """Raise Unsupported where the residual has been cut, so that every layer speaks in a basis of its own."""
        if any(hasattr(module, "shortcuts") for module in self.stack):
            raise Unsupported(
                "the residual has been sliced, and each layer reads another basis of it than it writes, so that none "
                "can go, be observed as one of the family or be sliced again; llm-pruner and grasprune serve such a one"
            )

    def swap_stack(self, stack: nn.ModuleList) -> nn.ModuleList:
        """Put another list of modules where the layers are, and return the old one; the configuration stays."""
        old = self.stack
        self._put(self.family.layers, stack)
        return old

    @property
    def embed(self) -> nn.Embedding:
        """Return the embedding, (V, D)."""
        return attrgetter(self.family.embed)(self.model)

    @property
    def positions(self) -> nn.Embedding | None:
        """Return the learned table of positions, or None."""
        return attrgetter(self.family.positions)(self.model) if self.family.positions else None

    @property
    def final_norm(self) -> Any:
        """Return the norm behind the last layer."""
        return attrgetter(self.family.final_norm)(self.model)

    @final_norm.setter
    def final_norm(self, norm: nn.Module) -> None:
        self._put(self.family.final_norm, norm)

    @property
    def head(self) -> nn.Linear:
        """Return the output layer, (V, D)."""
        return self.model.get_output_embeddings()

    def untie(self) -> None:
        """Give the head its own copy of the embedding, and set the configuration so that loaders keep it."""
        if self.head.weight is self.embed.weight:
            self.head.weight = nn.Parameter(self.embed.weight.detach().clone())
        self.config.tie_word_embeddings = self.whole_config.tie_word_embeddings = False
        self.model.all_tied_weights_keys = {}

    def gain(self, norm: Any) -> Tensor:
        """Return the gains of a norm, (D,); 1 where it has no weights."""
        return torch.ones(()) if norm.weight is None else norm.weight.detach() + self.family.gain_offset

    def normed(self, x: Tensor) -> Tensor:
        """Return x after the final norm, or x itself where the family has none."""
        return x if self.final_norm is None else self.final_norm(x)

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits for the output of the last layer, (..., D) -> (..., V), in the model's dtype."""
        if x.shape[-1] != self.head.in_features:
            raise Unsupported("the head does not read the last layer's width")
        return cap_logits(self.head(self.normed(x)), self.whole_config)

    def _put(self, path: str, module: nn.Module) -> None:
        parent, _, name = path.rpartition(".")
        setattr(attrgetter(parent)(self.model), name, module)


def family_of(config: Any) -> Family:
    """Return the row of a model's family. Raises Unsupported where there is none that fits its configuration."""
    kind, text = config.model_type, config.get_text_config().model_type
    if (family := FAMILIES.get(kind)) is None:
        raise Unsupported(
            f"model type {kind!r} has no row in methods/model/architectures.py (known: {', '.join(FAMILIES)})"
        )
    serves = [name for name, row in FAMILIES.items() if row is LLAMA]
    if family.vision and not text.startswith(kind) and text not in serves:
        raise Unsupported(f"the text tower of this {kind} is a {text}, and may be one of {', '.join(serves)}")
    return family


def clear_positions(model: Any) -> None:
    """Let a model forget how far the images of its last prompt moved positions, which Qwen3-VL keeps between calls."""
    if hasattr(model.base_model, "rope_deltas"):
        model.base_model.rope_deltas = None


def positions_behind_cache(model: Any, past: int, count: int) -> dict[str, Tensor]:
    """Return by name the argument that says where `count` tokens stand behind `past` ones of a cache, (1, count).

    A model without mixers counts for itself, and gets none. Bamba's takes the first token of each call for position 0.
    """
    if not has_mixers(model.config.get_text_config()):
        return {}
    return {"position_ids": torch.arange(past, past + count, device=model.device)[None]}


def set_dtype(config: Any, dtype: torch.dtype | str | None) -> None:
    """Set the dtype of a model's configuration, and of each part that builds a model of its own."""
    config.dtype = dtype
    for name in config.sub_configs:
        set_dtype(getattr(config, name), dtype)


def _slots(layers: Sequence[Layer]) -> list[int]:
    """Return each layer's place in the cache: its own number, unless an attention has been removed.

    A cache reads its length off the first place of each kind. So layers with an attention come before those without.
    """
    slots = list(range(len(layers)))
    for kind in {layer.kind for layer in layers}:
        places = [number for number, layer in enumerate(layers) if layer.kind == kind]
        order = sorted(places, key=lambda number: not layers[number].has_attention)
        for place, number in zip(places, order, strict=True):
            slots[number] = place
            stand_in = layers[number].attn
            if isinstance(stand_in, Removed):
                stand_in.counts = stand_in.pair and number == order[0]
    return slots


def _is_derived(config: Any, name: str) -> bool:
    """Say whether a configuration computes an entry from others, so that none can be set."""
    return isinstance(getattr(type(config), config.attribute_map.get(name, name), None), property)


def _refuse_old_code(layers: nn.ModuleList) -> None:
    """Raise Unsupported for code that comes with a model and is older than the caches of today."""
    for layer in layers[:1]:
        if "past_key_value" in inspect.signature(layer.forward).parameters:
            raise Unsupported(
                f"{type(layer).__name__} is code for transformers 4, whose layers take and return tuples; "
                "the model needs code for transformers 5, or a copy in the layout of a family that transformers has"
            )


def _fresh_buffers(model: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the buffers, such as a scale of embeddings, that a new model of this class has in `dtype`, by name."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with init_empty_weights(include_buffers=False):
            return dict(type(model)(model.config).named_buffers())
    finally:
        torch.set_default_dtype(before)


def _straighten(model: nn.Module) -> None:
    """Replace every transposed linear layer by an ordinary one."""
    children: Iterable[tuple[nn.Module, str, nn.Module]] = [
        (parent, name, child) for parent in model.modules() for name, child in parent.named_children()
    ]
    for parent, name, child in children:
        if isinstance(child, Conv1D):
            setattr(parent, name, make_linear(child.weight.detach().T.contiguous(), child.bias.detach()))


def make_twin(model: Decoder, config: Any = None) -> Decoder:
    """Return a model with modules of its own around the same weights. A cut gives a module new weights.

    config  configuration of its layers; by default a copy
    """
    shared = {id(tensor): tensor for tensor in (*model.model.parameters(), *model.model.buffers())}
    module = copy_module(model.model, shared | ({} if config is None else {id(model.config): config}))
    return Decoder(module, model.store)


def cap_logits(logits: Tensor, config: Any) -> Tensor:
    """Return the model's logits from those of its head: c tanh(logits / c) where its configuration has a cap c.

    Some families multiply them by `logit_scale` or `lm_head_multiplier` first, others divide them by `logits_scaling`.
    """
    cap = getattr(config, "final_logit_softcapping", None)
    divisor = getattr(config, "logits_scaling", None)
    for factor in (getattr(config, name, None) for name in ("logit_scale", "lm_head_multiplier")):
        logits = logits if factor is None else logits * factor
    logits = logits if divisor is None else logits / divisor
    return logits if cap is None else cap * torch.tanh(logits / cap)


Place = torch.device | Sequence[torch.device]  # one device, or those over which layers are spread


def devices_of(place: Place) -> list[torch.device]:
    """Return the devices of a place, the first one first."""
    return [place] if isinstance(place, torch.device) else list(place)


def devices_of_modules(model: Decoder, place: Place) -> dict[str, torch.device]:
    """Return the device of each module in a place, by names that cover the whole model.

    A GPU's share of the weights is its share of the memory of all GPUs. A layer between two GPUs goes to the one that
    would hold more of it. `model` may lie on the meta device.
    """
    devices = devices_of(place)
    room = [torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 1 for device in devices]
    ends = [sum(room[: number + 1]) / sum(room) for number in range(len(room) - 1)]
    parts = _parts(model)
    whole = sum(parameter.numel() for parameter in model.model.parameters())
    device_by_module, counted = dict[str, torch.device](), dict[int, int]()
    for name, module in parts.items():
        before = sum(counted.values())
        # what is tied counts where it comes first
        counted |= {id(parameter): parameter.numel() for parameter in module.parameters()}
        middle = (before + sum(counted.values())) / 2 / whole
        device_by_module[name] = devices[sum(middle > end for end in ends)]
    if _is_tied(model):  # where the embedding lies
        ends_of_model = model.final_norm, model.head
        device_by_module |= {name: devices[0] for name, module in parts.items() if module in ends_of_model}
    return device_by_module


def options_of_loading(shell: Callable[[], Decoder], place: Place) -> dict[str, Any]:
    """Return the options by which transformers loads a model straight to its place.

    shell  makes the model without weights, where layers are spread
    """
    devices = devices_of(place)
    if len(devices) == 1:
        return {} if devices[0].type == "cpu" else {"device_map": {"": devices[0]}}
    return {"device_map": devices_of_modules(shell(), devices)}


def put_model(model: nn.Module, place: Place) -> nn.Module:
    """Move a model to its place, and return it."""
    devices = devices_of(place)
    return _dispatched(model, devices_of_modules(Decoder(model), devices)) if len(devices) > 1 else model.to(devices[0])


def settle_model(model: nn.Module) -> nn.Module:
    """Put a model's buffers on the devices of its weights, and return it. No weight is copied."""
    devices = place_of(model)
    if len(devices) == 1:
        return model.to(devices[0])
    decoder = Decoder(model)
    first = decoder.embed.weight.device
    return _dispatched(model, {name: _device_of(part) or first for name, part in _parts(decoder).items()})


def _device_of(module: nn.Module) -> torch.device | None:
    """Return where the first parameter of a module lies; None where it has none."""
    return next((parameter.device for parameter in module.parameters()), None)


def place_of(model: nn.Module) -> list[torch.device]:
    """Return the devices that a model lies on, in the order of their numbers."""
    devices = {parameter.device for parameter in model.parameters()}
    return sorted(devices, key=lambda device: (device.type, device.index or 0))


def gpus_of(model: nn.Module) -> list[int]:
    """Return the numbers of the GPUs that a model lies on. Their generators draw its random numbers."""
    return [device.index for device in place_of(model) if device.type == "cuda"]


def _parts(model: Decoder) -> dict[str, nn.Module]:
    """Return the modules that each lie on one device, by name: those before the layers, the layers, and the rest."""
    layers, vision = model.family.layers, model.family.vision
    elsewhere = tuple(f"{path}." for path in (layers, *vision))
    leaves = dict(zip(vision, model.vision, strict=True)) | {
        name: module
        for name, module in model.model.named_modules()
        if name and not any(module.children()) and not f"{name}.".startswith(elsewhere)
    }
    last = [name for name, module in leaves.items() if module in (model.final_norm, model.head)]
    stack = {f"{layers}.{number}": module for number, module in enumerate(model.stack)}
    return {name: leaves[name] for name in leaves if name not in last} | stack | {name: leaves[name] for name in last}


def _is_tied(model: Decoder) -> bool:
    return model.head.weight is model.embed.weight


def _dispatched(model: Any, where: dict[str, torch.device]) -> nn.Module:
    stay = getattr(model, "_skip_keys_device_placement", None)  # caches, whose parts lie where their layers do
    dispatched: nn.Module = dispatch_model(model, where, main_device=next(iter(where.values())), skip_keys=stay)
    return dispatched
