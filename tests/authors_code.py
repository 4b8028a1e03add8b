"""Runs of the authors' own code, and how far ours may lie from them; shared by several test files.

tests/golden/authors has a file for each method: what of the authors' code was run (`source`), and for each run its
settings, its decisions and its scores. tensors.safetensors holds the token ids, larger scores, and the logits of the
pruned model on two probe sequences, for as many words as the residual is wide, from which all other logits follow. A
tensor that several runs have in common is there once (`same`).

A difference is the largest |ours - theirs| as a share of the largest |theirs|. The largest one of each method stands in
methods/authors_code.json, which is written anew by

    PRUNEBENCH_UPDATE_GOLDEN=1 python -m pytest -n0 tests/authors tests/depth/test_laco.py \\
        tests/width/test_slicegpt.py tests/width/test_llm_pruner.py
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from methods.depth import angular
from methods.model.activations import Step, collect_by_layer
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.sizes import layer_parameters, parameters
from methods.model.structures import Sublayer
from methods.trials.blocks import Trial

FOLDER = Path(__file__).parent / "golden"
DATA = Path(__file__).parents[1] / "methods" / "authors_code.json"
LIMIT = 1e-5  # no difference is larger, but where a test of an older method says so
ROUNDING = 10  # another processor rounds otherwise: by so much may a difference be above or below the one that is shown
DRAWN = {"mha10": 7, "tiny_mha": 11, "tiny_gqa_tied": 12}  # {model whose weights no file holds: seed}
UPDATE = "PRUNEBENCH_UPDATE_GOLDEN" in os.environ

Number = Tensor | Sequence[Any] | float


@cache
def golden(method: str) -> dict[str, Any]:
    """Return `source` and `runs` of a method."""
    return json.loads((FOLDER / "authors" / f"{method}.json").read_text(encoding="utf-8"))


@cache
def tensors() -> dict[str, Tensor]:
    return load_file(FOLDER / "authors" / "tensors.safetensors")


def every_run(method: str) -> pytest.MarkDecorator:
    """Return the decorator that makes one test of each run of a method."""
    return pytest.mark.parametrize("run", [Run(method, key) for key in golden(method)["runs"]], ids=str)


@cache
def loaded(name: str) -> Any:
    """Return a model that the authors' code was run on; those of DRAWN have no file of weights, and are drawn again."""
    folder = FOLDER / "authors" / name if name == "mha10" else FOLDER / name
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.load_state_dict(draw_weights(config, name))
    return model


def draw_weights(config: Any, model: str) -> dict[str, Tensor]:
    """Return the weights of a model of DRAWN: 7 MB in all, to the last bit as a seed drew them then.

    The layers that PyTorch draws first take their numbers from the stream, as they did then.
    """
    torch.manual_seed(DRAWN[model])
    d, ff, vocabulary, std = (
        getattr(config, name) for name in ("hidden_size", "intermediate_size", "vocab_size", "initializer_range")
    )
    kv = config.num_key_value_heads * d // config.num_attention_heads
    layers = [f"model.layers.{layer}." for layer in range(config.num_hidden_layers)]
    shapes = {f"self_attn.{name}_proj": (kv if name in "kv" else d, d) for name in "qkvo"}  # (outputs, inputs)
    shapes |= {"mlp.gate_proj": (ff, d), "mlp.up_proj": (ff, d), "mlp.down_proj": (d, ff)}
    nn.Embedding(vocabulary, d)
    for outputs, inputs in [*shapes.values()] * len(layers):
        nn.Linear(inputs, outputs, bias=False)
    weights = {"model.embed_tokens.weight": torch.empty(vocabulary, d).normal_(0, std)}
    weights["model.embed_tokens.weight"][config.pad_token_id] = 0
    for layer in layers:
        weights |= {f"{layer}{name}.weight": torch.empty(shape).normal_(0, std) for name, shape in shapes.items()}
    nn.Linear(d, vocabulary, bias=False)
    weights["lm_head.weight"] = torch.empty(vocabulary, d).normal_(0, std)
    norms = [f"{layer}{name}_layernorm.weight" for layer in layers for name in ("input", "post_attention")]
    norms.append("model.norm.weight")
    if model == "mha10":
        return weights | {norm: 1 + 0.2 * torch.randn(d) for norm in norms}
    # its embeddings are a product of two draws, which is rounded otherwise on another processor
    torch.randn(d, d), torch.randn(vocabulary, d)
    embeddings = load_file(FOLDER / "slicegpt_llmpruner.safetensors")[f"{model}.embed_tokens"]
    weights["model.embed_tokens.weight"] = embeddings
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = embeddings
    return weights | {norm: 0.5 + torch.rand(d) for norm in norms}


class Run:
    """Is one run of the authors' code: its settings, decisions and scores by name."""

    def __init__(self, method: str, key: str) -> None:
        self.method, self.key = method, key
        self.said: dict[str, Any] = golden(method)["runs"][key]

    def __str__(self) -> str:
        return self.key

    def __getitem__(self, name: str) -> Any:
        return self.said[name]

    def tensor(self, part: str) -> Tensor:
        return tensors()[self.said.get("same", {}).get(part, f"{self.method}/{self.key}/{part}")]

    def has(self, part: str) -> bool:
        return part in self.said.get("same", {}) or f"{self.method}/{self.key}/{part}" in tensors()

    def model(self) -> Decoder:
        """Return the dense model, which may be cut."""
        return Decoder(copy.deepcopy(loaded(self["model"])))

    def calibration(self) -> Calibration:
        ids = tensors()[f"ids/{self['ids']}"].long()
        return Calibration(ids, torch.ones_like(ids, dtype=torch.bool))

    def agrees(self, model: Decoder | None, **scores: tuple[Number, Number]) -> None:
        """Assert that the pruned model's logits and all scores (ours, theirs) are within LIMIT, and as near as shown.

        The run has no logits where `model` is None.
        """
        found = {"scores": max((difference(name, *pair) for name, pair in scores.items()), default=0.0)}
        if model is not None:
            found["logits"] = difference("logits", self.logits(model), self.tensor("logits"))
        else:
            assert not self.has("logits")
        assert max(found.values()) < LIMIT, found
        as_shown(self.method, self.key, found)

    @torch.no_grad()
    def logits(self, model: Decoder) -> Tensor:
        """Return what the authors' run has of the logits."""
        logits = model.model(tensors()[f"probe/{self['model']}"].long(), use_cache=False).logits
        return logits[..., : self.tensor("logits").shape[-1]]


def difference(name: str, ours: Number, theirs: Number) -> float:
    """Return the largest |ours - theirs| as a share of the largest |theirs|."""
    ours, theirs = (torch.as_tensor(each).double() for each in (ours, theirs))
    assert ours.shape == theirs.shape, name
    assert ours.isfinite().all(), name
    return float((ours - theirs).abs().max() / theirs.abs().max())


def as_shown(method: str, key: str, found: Mapping[str, float]) -> None:
    """Assert that differences of one run are those that methods/authors_code.json shows, or write them there."""
    if UPDATE:
        _renew(method, key, found)
        return
    shown = json.loads(DATA.read_text(encoding="utf-8"))["methods"][method]["largest"]
    for kind, value in found.items():
        assert value <= ROUNDING * shown[kind]["difference"], f"{kind} of {key} are further apart than is shown"
        if key == shown[kind]["run"]:
            assert value >= shown[kind]["difference"] / ROUNDING, f"{kind} of {key} are nearer than is shown"


_RENEWED: dict[str, dict[str, dict[str, Any]]] = {}


def _renew(method: str, key: str, found: Mapping[str, float]) -> None:
    """Write the largest differences of the runs of this process, and how many there were."""
    assert "PYTEST_XDIST_WORKER" not in os.environ, "only one process may write the file: run pytest with -n0"
    largest = _RENEWED.setdefault(method, {})
    for kind, value in found.items():
        if kind not in largest or value > largest[kind]["difference"]:
            largest[kind] = {"difference": float(f"{value:.1e}"), "run": key}
    data = json.loads(DATA.read_text(encoding="utf-8"))
    data["methods"][method]["largest"] = largest
    DATA.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def every_trial(monkeypatch: pytest.MonkeyPatch) -> dict[frozenset[str], float]:
    """Return what fills with the loss of every trial of a greedy search by the blocks that are gone in it.

    The search gives up a trial whose loss is above the best one's; here it runs to its end.
    """
    seen: dict[frozenset[str], float] = {}
    whole = Trial.losses_without

    def without(trial: Trial, blocks: list[Sublayer], *_: str, **__: bool) -> list[float]:
        losses = whole(trial, blocks)
        seen.update((frozenset(map(str, trial.removed | {b})), loss) for b, loss in zip(blocks, losses, strict=True))
        return losses

    monkeypatch.setattr(Trial, "losses_without", without)
    return seen


def last_state_normed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `angular` compare the state behind the last layer as other code does: behind the final norm."""

    def normed(model: Decoder, calibration: Calibration, of_layer: Callable[..., Any], *of: Any) -> list[list[Tensor]]:
        def of_normed(l: int, steps: Iterator[Step]) -> list[Tensor]:
            last = l == len(model.layers) - 1
            behind = (dataclasses.replace(step, y=model.normed(step.y)) if last else step for step in steps)
            found: list[Tensor] = of_layer(l, behind)
            return found

        return collect_by_layer(model, calibration, of_normed, *of)

    monkeypatch.setattr(angular, "collect_by_layer", normed)


def ratio_of(model: Decoder, layers: int) -> float:
    """Return the ratio that asks for so many whole layers."""
    return layers * layer_parameters(model.layers[0]) / parameters(model)
