"""Keeps what the dense model predicts for the text of healing, and says how far the trained model is from that.

There is no second model while one is trained. The dense model reads the training sequences once, before pruning, when
it is on the device anyway. Where a recipe names a teacher, a model of the same tokens, that one reads them instead,
before the dense model is loaded. What is kept for each token depends on the recipe:

all tokens     what the head reads, D numbers, in the host's memory. A copy of the head on the device makes the
               predictions, V numbers, anew.
`top` tokens   log-probabilities and numbers of the k likeliest tokens, 8 k bytes. They lie on disk, in the cache, where
               another cell of the same dense model, text, k and temperature reads them.

Divergence. KL(p || q) T^2 with p and q at temperature T (Hinton et al. 2015, "Distilling the Knowledge in a Neural
Network", arXiv 1503.02531). With k tokens all others are one outcome, so that both distributions still sum to 1:

    KL_k = sum_i in top p_i log(p_i / q_i) + r log(r / s),    r = 1 - sum p_i,  s = 1 - sum q_i

It is at most KL, and lacks r times the divergence among the others. Its gradient moves the others as a whole.

States. Two further losses compare states, which are kept beside the predictions:

hidden         1 - cosine of what the heads of both models read
attention      relations of MiniLMv2 (Wang et al. 2021, "MiniLMv2: Multi-Head Self-Attention Relation Distillation",
               arXiv 2012.15828) in the last layer with an attention. R = softmax(X X^T / sqrt(width)) over tokens that
               are not later, for X of queries, keys and values. The loss is the mean of KL(R dense || R). All heads
               make up one relation, so that a model with fewer heads can be compared

Letters: N = training sequences, B = sequences of a step, T = tokens of a sequence, D = residual width, V = vocabulary,
k = `top`.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from bench.data import kept_folder
from bench.data.assets import PREDICTIONS, folder_of_cache
from bench.plan.protocol import Recipe
from methods import console
from methods.errors import Unsupported
from methods.model.activations import collect_inputs
from methods.model.decoder import Decoder, cap_logits

LOGITS_OF_DENSE = 2**26  # the most that one forward of the dense model gives
HEAD, LOGARITHMS, TOKENS = "head", "logarithms", "tokens"
Kept = dict[str, Tensor]  # of some sequences: HEAD (B, T - 1, D); LOGARITHMS, TOKENS (B, T - 1, k + 1 and k); relations


class DensePredictions:
    """Holds what the dense model predicts for each training sequence, all tokens of it."""

    outside: float | None = None  # the mean probability of tokens that are not kept; None where all are

    @torch.no_grad()
    def __init__(self, dense: Decoder, ids: Tensor, recipe: Recipe | None = None) -> None:
        """Run the dense model on ids, (N, T), and keep what the losses of the recipe need on the CPU."""
        self.recipe = recipe or Recipe(loss="kl")
        self.head = copy.deepcopy(dense.head).requires_grad_(False)
        self.config = dense.whole_config
        self.kept = _join_pieces(list(_read_text(dense, ids, self.recipe)))

    def _states(self, rows: list[int]) -> Kept:
        """Return what is kept of these sequences."""
        return {name: values[rows] for name, values in self.kept.items()}

    @torch.no_grad()
    def logits(self, rows: list[int]) -> Tensor:
        """Return the dense model's logits for each token but the first of these sequences: (B, T - 1, V) in float32."""
        return cap_logits(self.head(self.kept[HEAD][rows].to(self.head.weight.device)), self.config).float()

    def _divergence(self, logits: Tensor, rows: list[int]) -> Tensor:
        """Return the divergence of logits at the temperature, (B, T - 1, V), summed over tokens."""
        target = (self.logits(rows).to(logits.device) / self.recipe.temperature).log_softmax(-1)
        return functional.kl_div(logits.log_softmax(-1), target, reduction="sum", log_target=True)

    def loss(self, logits: Tensor, states: Kept, rows: list[int]) -> Tensor:
        """Return the loss of these sequences, summed over tokens: of their logits, (B, T - 1, V), and states."""
        temperature, recipe = self.recipe.temperature, self.recipe
        total = self._divergence(logits / temperature, rows) * temperature**2
        kept = self._states(rows) if states else {}
        if recipe.hidden:
            total = total + recipe.hidden * distance_of_states(states[HEAD], kept[HEAD])
        relations = [name for name in states if name != HEAD]
        for name in relations:
            total = total + recipe.attention / len(relations) * divergence_of_relations(states[name], kept[name])
        return total


class TopPredictions(DensePredictions):
    """Reads what the dense model predicts for the likeliest tokens from a folder that `keep_top` has filled."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.recipe, self.folder = recipe, folder
        facts = json.loads((folder / kept_folder.MANIFEST).read_text(encoding="utf-8"))
        self.rows_of_file, self.outside = int(facts["rows_of_file"]), float(facts["outside"])

    def _states(self, rows: list[int]) -> Kept:
        """Return what is kept of these sequences."""
        pieces = list[Kept]()
        for row in rows:
            number, place = divmod(row, self.rows_of_file)
            with safe_open(self.folder / f"{number}.safetensors", "pt") as stored:
                names = stored.keys()
                pieces.append({name: stored.get_slice(name)[place : place + 1] for name in names})
        return _join_pieces(pieces)

    def _divergence(self, logits: Tensor, rows: list[int]) -> Tensor:
        """Return the divergence over the likeliest tokens and all others together, summed over tokens."""
        kept = self._states(rows)
        target = kept[LOGARITHMS].to(logits.device)
        own = join_others(logits, kept[TOKENS].to(logits.device))
        return functional.kl_div(own, target, reduction="sum", log_target=True)


def predict(dense: Decoder, ids: Tensor, recipe: Recipe, identity: str) -> DensePredictions:
    """Return what the dense model predicts for ids, (N, T), from the cache where the likeliest tokens are kept there.

    identity  names the dense model and the text, with all that its predictions depend on

    Raises UserError where the disk has no room for them.
    """
    if not recipe.top:
        return DensePredictions(dense, ids, recipe)
    facts = [identity, list(ids.shape), recipe.top, recipe.temperature, recipe.hidden > 0, recipe.attention > 0]
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    folder = folder_of_cache() / f"{PREDICTIONS}{name}"
    keep_top(dense, ids, recipe, folder)
    return TopPredictions(folder, recipe)


def keep_top(dense: Decoder, ids: Tensor, recipe: Recipe, folder: Path) -> None:
    """Write what the dense model predicts for the likeliest tokens of ids, (N, T), into a folder that is not filled."""
    if kept_folder.is_filled(folder):
        return

    def write(staged: Path, _: Path) -> Mapping[str, Any]:
        staged.mkdir()
        shares = list[Tensor]()
        for number, piece in enumerate(_read_text(dense, ids, recipe)):
            save_file(piece, staged / f"{number}.safetensors")
            shares.append(piece[LOGARITHMS][..., -1].exp())
        return {"rows_of_file": len(shares[0]), "outside": float(torch.cat(shares).mean())}

    kept_folder.fill(folder, "what the dense model predicts", write)


@torch.no_grad()
def _read_text(dense: Decoder, ids: Tensor, recipe: Recipe) -> Iterator[Kept]:
    """Yield what is kept on the CPU of each piece of ids, (N, T)."""
    pieces = torch.split(ids, max(1, LOGITS_OF_DENSE // (dense.embed.num_embeddings * ids.shape[1])))
    for piece in console.show_progress(pieces, "reading the text of healing", "batch"):
        with collect_states(dense, recipe, reads_head=not recipe.top or recipe.hidden > 0) as take:
            logits = dense.model(input_ids=piece.to(dense.embed.weight.device), use_cache=False).logits
            kept = take()
        if recipe.top:
            logits = logits[:, :-1].float() / recipe.temperature
            kept[TOKENS] = logits.topk(recipe.top, sorted=True).indices.int()
            kept[LOGARITHMS] = join_others(logits, kept[TOKENS])
        yield {name: values.cpu().contiguous() for name, values in kept.items()}


def _join_pieces(pieces: list[Kept]) -> Kept:
    """Return what is kept of all sequences of these pieces."""
    joined: Kept = {}
    for name in pieces[0]:
        joined[name] = torch.cat([piece[name] for piece in pieces])
    return joined


def join_others(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return log-probabilities of these tokens, and behind them of all others together: (B, T, V) -> (B, T, k + 1)."""
    tokens, total = tokens.long(), logits.logsumexp(-1, keepdim=True)
    rest = logits.scatter(-1, tokens, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([logits.gather(-1, tokens), rest], -1) - total


@contextmanager
def collect_states(model: Decoder, recipe: Recipe, *, reads_head: bool) -> Iterator[Callable[[], Kept]]:
    """Yield a function that returns the states of the forward before it, which the losses of a recipe compare.

    reads_head  whether what the head reads is among them

    Raises Unsupported for a model without attention where attentions are compared, and for one whose residual stream
    has been cut where states of it are.
    """
    states: Kept = {}
    if recipe.hidden:
        model.refuse_sliced()
    with ExitStack() as hooks:
        read = hooks.enter_context(collect_inputs(model.head)) if reads_head else []
        for number, matrix in enumerate(_last_attention(model) if recipe.attention else []):
            note = functools.partial(_note_output, states, f"relation {number}")
            hooks.callback(matrix.register_forward_hook(note).remove)

        def take() -> Kept:
            noted = states | ({HEAD: read[0][:, :-1]} if read else {})
            read.clear()
            states.clear()
            return noted

        yield take


def _note_output(states: Kept, name: str, _: Any, __: Any, output: Tensor) -> None:
    states[name] = output


def _last_attention(model: Decoder) -> list[nn.Linear]:
    """Return the matrices of queries, keys and values of the last layer that has an attention."""
    layer = next((layer for layer in reversed(model.layers) if layer.has_heads), None)
    if layer is None:
        raise Unsupported("--heal-attention compares attentions, and the pruned model has none")
    return layer.qkv


def distance_of_states(own: Tensor, dense: Tensor) -> Tensor:
    """Return 1 - cosine of states, summed over tokens: (B, T, D) of both."""
    return (1 - functional.cosine_similarity(own.float(), dense.to(own.device).float(), dim=-1)).sum()


def divergence_of_relations(own: Tensor, dense: Tensor) -> Tensor:
    """Return the divergence of the relations between tokens, summed over tokens: (B, T, width), widths may differ."""
    later = torch.ones(own.shape[1], own.shape[1], dtype=torch.bool, device=own.device).triu(1)
    target, logarithms = _relations(dense.to(own.device), later), _relations(own, later)
    return (target.exp() * (target - logarithms).masked_fill(later, 0.0)).sum()


def _relations(states: Tensor, later: Tensor) -> Tensor:
    """Return log softmax(S S^T / sqrt(width)) over each token and those before it: (B, T, width) -> (B, T, T)."""
    products = states.float() @ states.float().mT / states.shape[-1] ** 0.5
    return products.masked_fill(later, -torch.inf).log_softmax(-1)
