"""Cuts a model: layers, sublayers, key/value heads with their query heads, channels, experts, heads, states of mixers.

Rows of the matrices that read the residual belong together with columns of the one that writes it. A unit is removed
from all of them at once, with the biases of removed rows. So its removal equals zeroing its columns of the output
matrix. Fused matrices are cut block by block and stay fused. A channel of a mixer's state is rows alone: those of B and
C of Mamba-2, in all groups. Its removal equals zeroing those of C behind the convolution.

Letters: D = residual width, I = MLP width, G = key/value heads, R = query heads for each of them, E = head width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from methods.errors import OutOfReach, Unsupported
from methods.model.architectures import FAMILIES, Axis, Mixture
from methods.model.decoder import Decoder
from methods.model.layer import Layer
from methods.model.parts import Experts

if TYPE_CHECKING:
    from methods.model.decoder import Decoder


HEADS = ("kv_heads", "mixer_heads")  # of the attention of a layer, or of the mixer that stands in its place
HEADS_AND_CHANNELS = (*HEADS, "channels")
AXIS: dict[str, Axis] = {
    "kv_heads": "heads",
    "mixer_heads": "heads",
    "channels": "channels",
    "state_channels": "states",
}
PARTS = ("layer", "attention", "mlp")  # that are removed whole


@dataclass(frozen=True)
class MatrixSlice:
    """Says which rows or columns of one matrix belong to each unit.

    axis   0 where units are rows, 1 where they are columns
    index  (units, width) the rows or columns of each unit
    """

    matrix: nn.Linear
    axis: int
    index: Tensor

    @property
    def parameters(self) -> int:
        """Return how many parameters go with one unit: its rows or columns of the matrix."""
        across = self.matrix.out_features if self.axis else self.matrix.in_features + (self.matrix.bias is not None)
        return self.index.shape[1] * across


@dataclass(frozen=True)
class RowSlice:
    """Says which rows of a module that is no linear layer, or of a vector, belong to each unit.

    holder  the module, or what holds the vector of this name
    index   (units, width) the rows of each unit
    """

    holder: nn.Module
    names: tuple[str, ...]
    index: Tensor

    @property
    def parameters(self) -> int:
        """Return how many parameters go with one unit."""
        tensors = [getattr(self.holder, name) for name in self.names]
        return self.index.shape[1] * sum(tensor[0].numel() for tensor in tensors)

    def keep(self, units: Sequence[int]) -> None:
        """Keep these units and remove the others; rows that belong to none stay."""
        for name in self.names:
            tensor = getattr(self.holder, name)
            setattr(self.holder, name, _pick(tensor, 0, _rest(len(tensor), [_rows_lost(self.index, units)])))


def slices_of_attention(layer: Layer) -> list[MatrixSlice]:
    """Return q, k, v and the output matrix by key/value head: R * E, E, E and R * E rows or columns for each.

    Where q has a gate for each head too, these are 2 * R * E rows of q.
    """
    G, R, E = layer.kv_heads, layer.group, layer.head_width
    sizes = (G * R * E * (2 if layer.family.gated_heads else 1), G * E, G * E)
    if layer.family.interleaved:
        rows = list(torch.arange(G * 3 * E, device="cpu").view(G, 3, E).unbind(1))
    else:
        starts = (0, 0, 0) if len(layer.qkv) == 3 else (0, sizes[0], sizes[0] + sizes[1])
        rows = [
            torch.arange(start, start + size, device="cpu").view(G, -1)
            for start, size in zip(starts, sizes, strict=True)
        ]
    matrices = layer.qkv if len(layer.qkv) == 3 else layer.qkv * 3
    read = [MatrixSlice(matrix, 0, index) for matrix, index in zip(matrices, rows, strict=True)]
    return [*read, MatrixSlice(layer.out, 1, torch.arange(G * R * E, device="cpu").view(G, -1))]


def slices_of_mixer(layer: Layer) -> list[MatrixSlice]:
    """Return the matrices of the mixer in the attention's place by head; the last one is the output matrix."""
    mixer = layer.mixer_alone
    if mixer is None:
        return []
    parts = [MatrixSlice(getattr(layer.attn, name), 0, _rows(layer, blocks)) for name, blocks in mixer.rows]
    return [*parts, MatrixSlice(layer.out, 1, _rows(layer, ("v",)))]


def rows_of_mixer(layer: Layer) -> list[RowSlice]:
    """Return by head what the mixer in the attention's place has beside its matrices."""
    mixer, slices = layer.mixer_alone, list[RowSlice]()
    for name, blocks in () if mixer is None else mixer.rows_beside:
        part: Any = getattr(layer.attn, name)
        if isinstance(part, nn.Module):
            slices.append(RowSlice(part, _vectors_of(part), _rows(layer, blocks)))
        else:
            slices.append(RowSlice(layer.attn, (name,), _rows(layer, blocks)))
    return slices


def _vectors_of(part: nn.Module) -> tuple[str, ...]:
    return tuple(key for key, parameter in part.named_parameters(recurse=False) if parameter is not None)


def slices_of_states(layer: Layer) -> list[MatrixSlice]:
    """Return the matrices of the mixer in the attention's place by channel of its state: the rows of B and C."""
    mixer = layer.mixer_alone
    if mixer is None:
        return []
    return [MatrixSlice(getattr(layer.attn, name), 0, _rows_of_keys(layer, blocks)) for name, blocks in mixer.rows]


def rows_of_states(layer: Layer) -> list[RowSlice]:
    """Return by channel of its state what the mixer in the attention's place has beside its matrices."""
    mixer = layer.mixer_alone
    if mixer is None:
        return []
    beside = [(getattr(layer.attn, name), blocks) for name, blocks in mixer.rows_beside if "k" in blocks]
    return [RowSlice(part, _vectors_of(part), _rows_of_keys(layer, blocks)) for part, blocks in beside]


def _rows(layer: Layer, blocks: Sequence[str]) -> Tensor:
    """Return the rows of each head of a mixer, (heads, width), for blocks as `Mixer.rows` has them."""
    return torch.cat(_blocks_by_head(layer, blocks), 1)


def _rows_of_keys(layer: Layer, blocks: Sequence[str]) -> Tensor:
    """Return the rows of each channel of a mixer's keys, (channels, heads x blocks of keys)."""
    rows = zip(blocks, _blocks_by_head(layer, blocks), strict=True)
    return torch.cat([of_block.T for letters, of_block in rows if letters == "k"], 1)


def _blocks_by_head(layer: Layer, blocks: Sequence[str]) -> list[Tensor]:
    """Return the rows of each head of a mixer in each block, (heads, width)."""
    if layer.mixer_alone is None:
        raise ValueError("the layer has no mixer in the place of its attention")
    value_heads, key, value = (int(getattr(layer.attn, name)) for name in layer.mixer_alone.state)
    heads = int(getattr(layer.attn, layer.mixer_alone.heads[0]))
    width = {"k": key, "v": value_heads // heads * value, "h": value_heads // heads}
    rows, start = list[Tensor](), 0
    for letters in blocks:
        across = sum(width[letter] for letter in letters)
        rows.append(start + torch.arange(heads * across, device="cpu").view(heads, across))
        start += heads * across
    return rows


def slices_of_mlp(layer: Layer) -> list[MatrixSlice]:
    """Return gate, up and down by channel, or up and down where there is no gate."""
    I = layer.down.in_features
    read = [
        MatrixSlice(matrix, 0, torch.arange(start, start + I, device="cpu").view(I, 1))
        for matrix in layer.up
        for start in range(0, matrix.out_features, I)
    ]
    return [*read, MatrixSlice(layer.down, 1, torch.arange(I, device="cpu").view(I, 1))]


@dataclass
class Structure:
    """Holds the units of one sublayer that depend on each other: heads of an attention, or channels of an MLP.

    number  of the layer
    kind    kv_heads: a unit is a key/value head with its query heads; mixer_heads: one of the mixer in the attention's
            place, a key head with its value heads; channels: a unit is a channel of the MLP; state_channels: one of the
            mixer's state, in all groups
    size    units at first
    cost    parameters of one unit
    width   channels of one unit: E, those of the values of a mixer's head, 1, or rows of a channel of a state

    `units_left` has the units that have not been removed, by the numbers they had at first.
    """

    number: int
    kind: str
    layer: Layer

    def __post_init__(self) -> None:
        self.size = len(self.parts[-1].index)
        self.units_left = list(range(self.size))
        self.cost = sum(part.parameters for part in self.parts)
        beside = ROWS_BESIDE[self.kind](self.layer) if self.kind in ROWS_BESIDE else []
        self.cost += sum(part.parameters for part in beside)
        self.width = self.layer.head_width if self.kind == "kv_heads" else self.parts[-1].index.shape[1]

    @property
    def parts(self) -> list[MatrixSlice]:
        """Return the slices of the matrices that its units are rows or columns of."""
        return SLICES[self.kind](self.layer)

    @property
    def is_of_heads(self) -> bool:
        """Say whether its units are heads."""
        return self.kind in HEADS

    @property
    def removed(self) -> list[int]:
        """Return the numbers of the units that are cut."""
        return sorted(set(range(self.size)) - set(self.units_left))

    @property
    def writer(self) -> nn.Linear:
        """Return the matrix whose columns the units are: the attention's output matrix, or down.

        Raises ValueError for channels of a state, which are rows alone.
        """
        if self.kind == "state_channels":
            raise ValueError("channels of a state are columns of no matrix")
        return self.layer.out if self.is_of_heads else self.layer.down

    def remove(self, score: Tensor, count: int) -> None:
        """Remove the `count` units with the smallest score, (units,), and settle the layer."""
        self.drop(find_lowest(score, count))

    def drop(self, units: Iterable[int]) -> None:
        """Remove these units, by the numbers that they have now, and settle the layer."""
        removed = set(units)
        kept = [unit for unit in range(len(self.units_left)) if unit not in removed]
        keep(self.layer, self.kind, kept)
        self.units_left = [self.units_left[unit] for unit in kept]
        self.layer.settle()


SLICES = {
    "kv_heads": slices_of_attention,
    "mixer_heads": slices_of_mixer,
    "channels": slices_of_mlp,
    "state_channels": slices_of_states,
}
ROWS_BESIDE = {"mixer_heads": rows_of_mixer, "state_channels": rows_of_states}


def find_lowest(score: Tensor, count: int) -> list[int]:
    """Return the `count` units with the smallest score, (units,)."""
    return score.argsort(stable=True)[:count].tolist()


def structures_of(model: Decoder, *kinds: str) -> list[Structure]:
    """Return the units of these kinds of every layer that has them, by layer; without kinds, its heads and channels.

    Raises Unsupported where the model's family cannot be cut along them.
    """
    kinds = kinds or HEADS_AND_CHANNELS
    for kind in kinds:
        model.refuse(AXIS[kind])
    has = [
        (layer.kind_of_heads, "channels" if layer.has_mlp else "", "state_channels" if layer.state_channels else "")
        for layer in model.layers
    ]
    return [
        Structure(number, kind, layer)
        for number, layer in enumerate(model.layers)
        for kind in kinds
        if kind in has[number]
    ]


def cuts_of(model: Decoder, structures: Iterable[Structure]) -> dict[str, list[Any]]:
    """Return for the record the units that each layer has left, and the units that it has lost.

    Layers have the numbers that they had when the method was given the model. A layer that it has dropped has no units
    left.
    """
    lost = {(structure.layer.number, structure.kind): structure.removed for structure in structures}
    cuts: dict[str, list[Any]] = {**count_units_left(model)}
    for kind in kinds_of(model):
        cuts[f"removed_{kind}"] = [lost.get((number, kind), []) for number in range(model.given)]
    return cuts


def kinds_of(model: Decoder) -> list[str]:
    """Return the kinds of units that a model of this family may have: heads and states of mixers in few of them."""
    mixer = model.family.mixer
    has = {"mixer_heads": mixer is not None and not mixer.whole, "state_channels": not model.family.never("states")}
    return [kind for kind in AXIS if has.get(kind, True)]


def count_units_left(model: Decoder) -> dict[str, list[int]]:
    """Return for the record how many heads and channels are left in each layer that the method was given."""
    layer_by_number = {layer.number: layer for layer in model.layers}
    each = [layer_by_number.get(number) for number in range(model.given)]
    counts = {
        "kv_heads": [0 if layer is None else layer.kv_heads for layer in each],
        "mixer_heads": [0 if layer is None else layer.mixer_heads for layer in each],
        "channels": [0 if layer is None or not layer.has_mlp else layer.down.in_features for layer in each],
        "state_channels": [0 if layer is None else layer.state_channels for layer in each],
    }
    return {kind: counts[kind] for kind in kinds_of(model)}


@dataclass(frozen=True)
class Sublayer:
    """Names a layer, an attention or an MLP that is removed whole. As text it is "mlp 3"."""

    part: str  # layer, attention or mlp
    layer: int

    def __str__(self) -> str:
        return f"{self.part} {self.layer}"

    @staticmethod
    def parse(text: str) -> Sublayer:
        """Return the sublayer of a text such as 'mlp 3'."""
        part, _, layer = text.partition(" ")
        return Sublayer(part, int(layer))


@dataclass(frozen=True)
class Narrowed:
    """Says how many heads (kv_heads, mixer_heads) or channels of a layer are left. As text it is "channels 3 768"."""

    kind: str
    layer: int
    units: int

    def __str__(self) -> str:
        return f"{self.kind} {self.layer} {self.units}"


def sublayers_of(model: Decoder, *parts: str) -> list[Sublayer]:
    """Return every block of these kinds that the model still has and may lose, by layer."""
    has = [{"layer": True, "attention": layer.has_attention, "mlp": layer.has_mlp} for layer in model.layers]
    return [
        Sublayer(part, number) for number in range(model.fixed_layers, len(has)) for part in parts if has[number][part]
    ]


def sizes_of_sublayers(model: Decoder, blocks: Iterable[Sublayer]) -> dict[Sublayer, int]:
    """Return the number of parameters that go with each block."""
    sizes = [layer.sizes() for layer in model.layers]
    return {block: sizes[block.layer][block.part] for block in blocks}


def remove_sublayers(model: Decoder, blocks: Iterable[Sublayer]) -> dict[str, list[int]]:
    """Remove the blocks, in place, and return them by kind for the record. A layer that is left empty goes whole.

    Blocks have the present places of layers. The record has the numbers that layers had when the method was given them.
    """
    removed = set(blocks)
    kept = []
    named: dict[str, list[int]] = {"removed_layers": [], "removed_attention": [], "removed_mlp": []}
    for place, layer in enumerate(model.layers):
        attention, mlp = (Sublayer(part, place) in removed for part in ("attention", "mlp"))
        is_empty = (attention or not layer.has_attention) and (mlp or not layer.has_mlp)
        if Sublayer("layer", place) in removed or is_empty:
            named["removed_layers"].append(layer.number)
            continue
        if attention and layer.has_attention:
            layer.remove_attention()
            named["removed_attention"].append(layer.number)
        if mlp and layer.has_mlp:
            layer.remove_mlp()
            named["removed_mlp"].append(layer.number)
        kept.append(layer)
    model.set_layers(kept)
    return named


def cut(model: Decoder, decisions: Mapping[str, Any]) -> None:
    """Remove from a dense model, in place, all that decisions name (`cuts_of`, `remove_sublayers`)."""
    if any(experts := decisions.get("removed_experts", [])):
        remove_experts(model, experts)
    for kind in AXIS:
        by_layer = decisions.get(f"removed_{kind}", [])
        for structure in structures_of(model, kind) if any(by_layer) else ():
            if units := by_layer[structure.number]:
                structure.drop(units)
    names = {part: decisions.get(f"removed_{part}{'s' if part == 'layer' else ''}", []) for part in PARTS}
    if any(names.values()):
        remove_sublayers(model, [Sublayer(part, number) for part, numbers in names.items() for number in numbers])


def units_in_order(order: Iterable[str]) -> dict[tuple[int, str], list[int]]:
    """Return the units of each layer and kind that are known to go ("channels 3 0+17", Calibration.order)."""
    words = [name.split() for name in order]
    return {(int(layer), kind): [*map(int, units.split("+"))] for kind, layer, units in words}


def drop_layers(model: Decoder, places: Sequence[int]) -> dict[str, Any]:
    """Remove the layers at these places, in place, and return their numbers (`Layer.number`) for the record."""
    layers = model.layers
    model.set_layers([layer for l, layer in enumerate(layers) if l not in places])
    return {"removed_layers": [layers[l].number for l in sorted(places)]}


def drop_lowest(model: Decoder, scores: Sequence[float], candidates: Iterable[int], n: int) -> list[int]:
    """Remove the n candidate layers with the smallest score, in place, and return their places, rising.

    Of equal ones the lower stays. Raises OutOfReach where fewer may go.
    """
    may_go = [l for l in candidates if l >= model.fixed_layers]
    if len(may_go) < n:
        raise OutOfReach(f"{n} layers are to go, and {len(may_go)} may")
    places = sorted(sorted(may_go, key=lambda l: (scores[l], -l))[:n])
    drop_layers(model, places)
    return places


def keep(layer: Layer, kind: str, units: Sequence[int]) -> None:
    """Keep these heads (kv_heads, mixer_heads), channels or state_channels of a layer and remove the others."""
    KEEP[kind](layer, units)


def keep_kv_groups(layer: Layer, kept: Sequence[int]) -> None:
    """Keep the key/value heads `kept`, each with its query heads, and remove the others."""
    _keep(slices_of_attention(layer), kept)
    layer.set_kv_heads(len(kept))


def keep_mixer_heads(layer: Layer, kept: Sequence[int]) -> None:
    """Keep these heads of the mixer in the attention's place, and remove the others."""
    beside = rows_of_mixer(layer)
    _keep(slices_of_mixer(layer), kept)
    for part in beside:
        part.keep(kept)
    layer.set_mixer_heads(len(kept))


def keep_channels(layer: Layer, kept: Sequence[int]) -> None:
    """Keep the MLP channels `kept` and remove the others."""
    _keep(slices_of_mlp(layer), kept)


def keep_state_channels(layer: Layer, kept: Sequence[int]) -> None:
    """Keep these channels of the state of the mixer in the attention's place, and remove the others."""
    beside = rows_of_states(layer)
    _keep(slices_of_states(layer), kept)
    for part in beside:
        part.keep(kept)
    layer.set_state_channels(len(kept))


KEEP = {
    "kv_heads": keep_kv_groups,
    "mixer_heads": keep_mixer_heads,
    "channels": keep_channels,
    "state_channels": keep_state_channels,
}


def _keep(parts: list[MatrixSlice], kept: Sequence[int]) -> None:
    """Keep these units in each matrix, and what belongs to none of them."""
    lost: defaultdict[tuple[nn.Linear, int], list[Tensor]] = defaultdict(list)
    for part in parts:
        lost[part.matrix, part.axis].append(_rows_lost(part.index, kept))
    for (matrix, axis), indices in lost.items():
        stay = _rest(matrix.in_features if axis else matrix.out_features, indices)
        (keep_columns if axis else keep_rows)(matrix, stay)


def _rows_lost(index: Tensor, kept: Iterable[int]) -> Tensor:
    """Return the rows or columns, (n,), of all units, (units, width), but those that are kept."""
    return index[sorted({*range(len(index))} - {*kept})].flatten()


def _rest(size: int, lost: Iterable[Tensor]) -> Tensor:
    """Return the numbers below `size` that are not lost, rising."""
    stay = torch.ones(size, dtype=torch.bool, device="cpu")
    for numbers in lost:
        stay[numbers] = False
    return stay.nonzero()[:, 0]


def keep_rows(matrix: nn.Linear, rows: Tensor) -> None:
    """Keep these rows of a matrix: W <- W[rows], b <- b[rows]."""
    matrix.weight = _pick(matrix.weight, 0, rows)
    if matrix.bias is not None:
        matrix.bias = _pick(matrix.bias, 0, rows)
    matrix.out_features = len(rows)


def keep_columns(matrix: nn.Linear, columns: Tensor) -> None:
    """Keep these columns of a matrix: W <- W[:, columns]."""
    matrix.weight = _pick(matrix.weight, 1, columns)
    matrix.in_features = len(columns)


def _pick(tensor: Tensor, axis: int, index: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().index_select(axis, index.to(tensor.device)), tensor.requires_grad)


def remove_experts(model: Decoder, removed: Sequence[Sequence[int]]) -> None:
    """Remove the experts of these numbers from each layer, in place. A layer that is no mixture has none.

    Raises ValueError where layers would keep different numbers of experts, since a configuration has one count.
    """
    layers = model.layers
    kept_by_layer: dict[int, list[int]] = {}
    for number, (layer, lost) in enumerate(zip(layers, removed, strict=True)):
        if layer.experts is not None:
            kept_by_layer[number] = sorted(set(range(layer.experts.count)) - set(lost))
    if len({len(kept) for kept in kept_by_layer.values()}) != 1:
        raise ValueError("each layer keeps as many experts as the others, since a configuration has one count for all")
    for number, kept in kept_by_layer.items():
        experts = layers[number].experts
        if experts is not None and len(kept) < experts.count:
            experts.keep(kept)
            layers[number].settle()
            count_experts(model, experts.row, len(kept))


def count_experts(model: Decoder, row: Mixture, count: int) -> None:
    """Set the number of experts of each layer in a model and its configuration."""
    for name in row.counts:
        for holder in (model.model, model.config):
            if hasattr(holder, name):
                setattr(holder, name, count)


def mixtures_of(model: Decoder) -> dict[int, Experts]:
    """Return the mixtures of experts by the number of their layer.

    Raises Unsupported where there is none, and where they cannot be cut.
    """
    model.refuse("experts")
    experts_by_layer = {number: layer.experts for number, layer in enumerate(model.layers)}
    mixtures = {number: experts for number, experts in experts_by_layer.items() if experts is not None}
    if not mixtures:
        serves = ", ".join(name for name, family in FAMILIES.items() if family.mixture is not None)
        raise Unsupported(f"this {model.whole_config.model_type} has no experts: this method serves {serves}")
    return mixtures
