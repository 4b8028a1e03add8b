"""Finds out whether stock transformers can hold a pruned model, and pads models with zeros so that it can.

Stock transformers holds one width for all layers, and only parts that its classes build. A trial decides: the stock
class is built from the configuration, names and shapes are compared, the weights are put in, and the logits must be the
same. Layers that differ in width alone can be padded with zeros to the smallest widths that the stock class takes. A
head or channel of zeros adds nothing to the residual.

Letters: H = query heads, G = key/value heads, R = H / G, E = head width, I = MLP width, V = vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from logging import LogRecord, getLogger
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from methods.checkpoint.pruned_config import (
    OF_MIXERS,
    PrunedConfig,
    Uneven,
    auto_class_of,
    class_of_config,
    class_that_cuts,
    describe,
    has_one_mlp,
    make_empty,
    stock_config_of,
)
from methods.model import decoder
from methods.model.decoder import Decoder
from methods.model.layer import Layer
from methods.model.structures import MatrixSlice, slices_of_attention, slices_of_mlp

TOLERANCE = 1e-5  # share of the largest logit by which a rebuilt model may differ, for kernels that reorder sums
ROUNDINGS = 8  # steps of the model's dtype at the largest logit, which is more in bfloat16 and float16
PROBLEMS = {
    "missing_keys": "weights are missing",
    "mismatched_keys": "weights have other shapes than the configuration says",
    "unexpected_keys": "weights are left over",
}
WIDTHS = ("num_attention_heads", "num_key_value_heads", "intermediate_size")


def config_of_uniform(model: Decoder, form: PrunedConfig) -> PreTrainedConfig:
    """Return the stock configuration of a model whose layers have the same widths. Raises Uneven for any other.

    form  description of the model
    """
    if reason := reason_for_own_code(form):
        raise Uneven(reason)
    for number, facts in enumerate(form.per_layer_config):
        for part in facts.skip:
            raise Uneven(f"layer {number} has no {part}")
    single = [number for number, layer in enumerate(model.layers) if has_one_mlp(layer)]
    with_heads = [number for number, layer in enumerate(model.layers) if layer.has_heads]
    for width in WIDTHS:
        numbers = single if width == "intermediate_size" else with_heads
        sizes = sorted({getattr(form.per_layer_config[number], width) for number in numbers})
        if len(sizes) > 1:
            raise Uneven(f"{width} differs from layer to layer, from {sizes[0]} to {sizes[-1]}")
    for name in OF_MIXERS:
        mixers = sorted({getattr(layer, name) for layer in model.layers} - {0})
        if len(mixers) > 1:
            raise Uneven(f"{name} differs from layer to layer, from {mixers[0]} to {mixers[-1]}")
    I = next((form.per_layer_config[number].intermediate_size for number in single), None)
    return stock_config_of(model, form.per_layer_config[with_heads[0]].num_key_value_heads, I)


def reason_for_own_code(form: PrunedConfig) -> str | None:
    """Return why stock classes cannot hold a pruned model, whatever sizes their layers have; None where they can."""
    if form.residual is not None:
        return "the residual stream has been cut, and each layer maps it from one basis to the next"
    for number, facts in enumerate(form.per_layer_config):
        for place in getattr(facts, "maps", []):
            return f"a linear map of the residual stands {place} layer {number}"
        if ranks := getattr(facts, "ranks", {}):
            return f"{next(iter(ranks))} of layer {number} is two factors of low rank"
        if places := getattr(facts, "rows", {}) | getattr(facts, "columns", {}):
            return f"{next(iter(places))} of layer {number} has lost some of its rows or columns"
        if hasattr(facts, "scaling"):
            return "the attention's scale follows from a layer's number, and layers in front of it have gone"
    return None


def tensors_to_store(model: Decoder, shell: Any) -> dict[str, Tensor]:
    """Return the tensors to store, by name: a tied tensor once, and transposed where `shell` holds it transposed.

    shell  a model of the stock class
    """
    transposed = {f"{name}.weight" for name in names_of_transposed(shell)}
    tied = model.model.all_tied_weights_keys or {}
    return {
        name: tensor.T if name in transposed else tensor
        for name, tensor in model.model.state_dict().items()
        if name not in tied
    }


def names_of_transposed(shell: Any) -> list[str]:
    """Return the names of the modules whose matrices a stock model holds transposed."""
    return [name for name, module in shell.named_modules() if isinstance(module, Conv1D)]


def build_from_tensors(config: PreTrainedConfig, stored: dict[str, Tensor], dtype: torch.dtype) -> Any:
    """Return the model of `config` around the tensors `stored`, without copying them.

    The loader of transformers would first take room for a second model on a GPU. Raises ValueError for a tensor that
    is missing or left over.
    """
    with init_empty_weights(include_buffers=False), no_init_weights():
        options = {"dtype": dtype, "trust_remote_code": False}
        model = auto_class_of(config).from_config(copy.deepcopy(config), **options)
    unknown = model.load_state_dict(stored, strict=False, assign=True).unexpected_keys
    model.tie_weights()
    missing = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    for problem, names in (("missing", missing), ("left over", unknown)):
        if names:
            raise ValueError(f"{problem}: {', '.join(names[:3])}")
    return decoder.settle_model(model).eval()


def load_quietly(
    config: PreTrainedConfig, folder: str, place: decoder.Place, dtype: torch.dtype, **options: Any
) -> Any:
    """Return the model of a folder, loaded without progress bars.

    Raises ValueError for a tensor that is missing or left over.
    """
    kind = class_that_cuts(config) if isinstance(config, PrunedConfig) else class_of_config(config)
    options |= decoder.options_of_loading(lambda: Decoder(make_empty(config)), place)
    shows_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        return load_with_all_weights(kind, folder, config=config, dtype=dtype, **options).eval()
    finally:
        if shows_bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def load_with_all_weights(kind: Any, folder: str | Path, *, left_over: bool = False, **options: Any) -> Any:
    """Return the model that `from_pretrained` of a class loads, where the folder has all of its weights.

    left_over  allows tensors that the model has no place for

    transformers draws weights that a folder lacks at random. Raises ValueError for a tensor that is missing, has
    another shape or is left over. A tensor that is tied, or that transformers itself makes anew, is not missing.
    """
    with _report_withheld():
        model, report = kind.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True, **options)
        for problem, entries in report.items():
            if entries and not (left_over and problem == "unexpected_keys"):
                names = sorted(entry if isinstance(entry, str) else entry[0] for entry in entries)
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                raise ValueError(f"{PROBLEMS.get(problem, problem)}: {', '.join(names[:3])}{more}")
    return model


@contextmanager
def _report_withheld() -> Iterator[None]:
    """Withhold the report that transformers logs of a load where a ValueError says what is wrong."""
    logger, withheld = getLogger("transformers.modeling_utils"), list[LogRecord]()

    def is_another(record: LogRecord) -> bool:
        if is_report := "LOAD REPORT" in record.getMessage():
            withheld.append(record)
        return not is_report

    logger.addFilter(is_another)
    try:
        yield
    except ValueError:
        withheld.clear()
        raise
    finally:
        logger.removeFilter(is_another)
        for record in withheld:
            logger.handle(record)


def shapes_of(shell: Any) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that a model of this class and these sizes stores, by name."""
    tied = shell.all_tied_weights_keys or {}
    return {name: tuple(tensor.shape) for name, tensor in shell.state_dict().items() if name not in tied}


def difference_of_shapes(shapes: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> str | None:
    """Return a sentence on the first tensor whose shape is not the wanted one; None where all are."""
    for name in [*expected, *shapes]:
        if name not in shapes:
            return f"{name} is missing"
        if name not in expected:
            return f"there is no place for {name}"
        if expected[name] != shapes[name]:
            return f"{name} is {shapes[name]} and should be {expected[name]}"
    return None


def try_out(model: Decoder, config: PreTrainedConfig, ids: Tensor) -> dict[str, Tensor]:
    """Return the tensors from which `config` builds the same model again. Raises Uneven where it does not."""
    shell = make_empty(config)
    stored = tensors_to_store(model, shell)
    shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    if (problem := difference_of_shapes(shapes, shapes_of(shell))) is not None:
        raise Uneven(f"what transformers would build differs: {problem}")
    dtype = model.embed.weight.dtype
    expected = compute_logits(model, ids)
    got = compute_logits(Decoder(build_from_tensors(config, stored, dtype)), ids)
    off = float((got - expected).abs().max())
    share = tolerance_of(dtype) if may_reorder_sums(model, shell) else TOLERANCE
    if not off <= share * float(expected.abs().max()):
        raise Uneven(f"what transformers would build computes something else: logits differ by up to {off:.2g}")
    return stored


def may_reorder_sums(model: Decoder, shell: Any) -> bool:
    """Say whether the same model may sum in another order once it is rebuilt in the class of `shell`.

    A transposed matrix takes another kernel, and a GPU adds the outputs of a token's experts in any order.
    """
    on_gpu = model.embed.weight.device.type != "cpu"
    return bool(names_of_transposed(shell)) or (on_gpu and any(layer.experts is not None for layer in model.layers))


def tolerance_of(dtype: torch.dtype) -> float:
    """Return the share of the largest logit by which a model in `dtype` may differ where it sums in another order.

    A model of other shapes may do so, too, since a GPU takes another kernel for them.
    """
    return max(TOLERANCE, ROUNDINGS * torch.finfo(dtype).eps)


@torch.no_grad()
def compute_logits(model: Decoder, ids: Tensor) -> Tensor:
    """Return the logits of ids, (B, T) -> (B, T, V), in float32."""
    return model.model(ids.to(model.embed.weight.device), use_cache=False).logits.float()


def pad_layers(model: Decoder, ids: Tensor) -> tuple[Decoder, float]:
    """Return a copy with zeros where layers are narrower than the widest, and the largest difference of its logits.

    The widths are the smallest ones that the stock class takes. Raises Uneven where there are none, and where the copy
    does not compute the same on `ids` up to rounding.
    """
    form = describe(model)
    whole = ("ranks", "rows", "columns")
    if form.residual is not None or any(getattr(facts, name, {}) for facts in form.per_layer_config for name in whole):
        raise Uneven(f"{reason_for_own_code(form)}, which zeros do not undo")
    if any(layer.experts is not None for layer in model.layers):
        raise Uneven("a mixture of experts is not filled up with zeros")
    for name in OF_MIXERS:
        if len({getattr(layer, name) for layer in model.layers} - {0}) > 1:
            raise Uneven(f"{name} differs from layer to layer, and a mixer is not filled up with zeros")
    layers, whole = model.layers, model.whole_config
    base = Decoder(make_empty(type(whole).from_dict(whole.to_dict())))
    G, most = max(layer.kv_heads for layer in layers), max(layer.kv_heads for layer in base.layers)
    if not any(layer.has_mlp for layer in layers):
        raise Uneven("no layer has an MLP")
    I = max(layer.down.in_features for layer in layers if layer.has_mlp)
    config, reason = None, Uneven("no layer has an attention")
    for wider in range(max(G, 1), most + 1):
        try:
            config = stock_config_of(model, wider, I)
            break
        except Uneven as error:
            reason = error
    if config is None:
        raise reason
    device, dtype = model.embed.weight.device, model.embed.weight.dtype
    zeros = {
        name: torch.zeros(shape, device=device, dtype=dtype) for name, shape in shapes_of(make_empty(config)).items()
    }
    wide = Decoder(build_from_tensors(config, zeros, dtype))
    _copy(model, wide)
    expected = compute_logits(model, ids)
    off = float((compute_logits(wide, ids) - expected).abs().max())
    if not off <= tolerance_of(dtype) * float(expected.abs().max()):
        config_of_uniform(model, form)  # says what zeros do not give, where it knows
        raise Uneven(f"with zeros it computes something else: logits differ by up to {off:.2g}")
    return wide, off


@torch.no_grad()
def _copy(narrow: Decoder, wide: Decoder) -> None:
    """Fill `wide` with the units of `narrow`, each matrix from its first unit on. The rest of it does not change."""
    matrices = {id(part.matrix.weight) for layer in narrow.layers for part in _slices(layer)}
    target = dict(wide.model.named_parameters())
    for name, parameter in narrow.model.named_parameters():
        if id(parameter) not in matrices and name in target and target[name].shape == parameter.shape:
            target[name].copy_(parameter)
    for ours, theirs in zip(narrow.layers, wide.layers, strict=True):
        parts = [(slices_of_attention, ours.has_heads), (slices_of_mlp, ours.has_mlp)]
        for slices_of in (slices_of for slices_of, is_there in parts if is_there):
            for source, place in zip(slices_of(ours), slices_of(theirs), strict=True):
                _copy_units(source, place)


def _slices(layer: Layer) -> list[MatrixSlice]:
    """Return the slices of all matrices that can be narrower than the stock class builds them."""
    attention = slices_of_attention(layer) if layer.has_heads else []
    return attention + (slices_of_mlp(layer) if layer.has_mlp else [])


def _copy_units(source: MatrixSlice, place: MatrixSlice) -> None:
    if source.matrix.bias is not None and place.matrix.bias is None:
        raise Uneven("there is no place for the bias of an output matrix")
    units, rows = source.index.flatten(), place.index[: len(source.index)].flatten()
    if source.axis == 0:
        place.matrix.weight[rows] = source.matrix.weight[units]
        if source.matrix.bias is not None:
            place.matrix.bias[rows] = source.matrix.bias[units]
    else:
        place.matrix.weight[:, rows] = source.matrix.weight[:, units]  # its bias is as long in both
