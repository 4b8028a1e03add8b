"""Heals a pruned model: draws the text, trains, and goes on from where it was interrupted.

The recipe's kind says what is trained, and its loss says towards what:

lora    low-rank adapters beside the matrices of every layer, but those of experts, merged into them at the end
        (Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685, by the library peft)
full    all parameters
norms   those of the norms
beside  those of the layers in front of and behind removed ones, and of layers that lack an attention or an MLP

next-token   loss of the next token of the text, nats per token
kl           Kullback-Leibler divergence of the next token from the dense model's, nats per token, and what the recipe
             adds to it (bench.healing.teacher)

Training. AdamW runs at the learning rate of bench.plan.protocol, with gradients clipped to norm 1, no weight decay and
no dropout. A step is divided into forwards whose logits fit, and its gradients are summed. Weights that are trained are
float32, adapters as well; a bfloat16 model computes in bfloat16.

Checkpoints. The loop is written out here since a checkpoint of the Trainer, and of accelerate, is a pickle. Ours is one
safetensors file, renamed into place: trained weights, moments of AdamW, and the curve so far. The order of the
sequences follows from the seed and the step. Training that goes on from a checkpoint therefore equals training that was
never interrupted: to the last bit on a CPU. On a GPU attention's backward pass adds in no fixed order, and both are
equal up to rounding.

Processes. Several of them train one model (bench.healing.processes): each has a part of every weight and moment, and of
the sequences of a step. Their checkpoint has whole tensors, as that of one process, which ends with it what they began.
They add in another order than one process does, so that both are equal up to rounding.

Letters: N = training sequences, H = held-out sequences, B = sequences of a step, T = tokens of a sequence,
V = vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bench.healing.teacher import DensePredictions, collect_states
from bench.healing.trainable import make_trainable
from bench.plan.kinds import to_plain, value_from_plain
from bench.plan.protocol import Recipe, refuse_recipe
from bench.records.measured import LearningPoint, PointScore, TaskMetric
from bench.stats.clusters import ratio_interval
from methods import console
from methods.errors import UserError
from methods.model.decoder import Decoder

HELD_OUT = 8  # sequences
LOGITS = 2**26  # the most of one forward, 256 MiB in float32
LOGITS_ON_CPU = 2**24  # 64 MiB: a GPU is idle with so few tokens, a processor is quicker, and takes half the memory
CHECKPOINT = "heal.safetensors"
PROGRESS = ("step", "tokens", "seconds", "curve")  # of training, in a checkpoint beside weights and moments
Scorers = Mapping[str, Callable[[], Mapping[str, PointScore | TaskMetric]]]
REVISION = 1  # raised by every change after which training comes to other weights: earlier records are old then


@dataclass(frozen=True)
class Text:
    """Holds sequences of the calibration documents: train (N, T) and held_out (H, T) ids, source, sha256 of both."""

    train: torch.Tensor
    held_out: torch.Tensor
    source: str
    sha256: str


def draw_text(tokenizer: Any, recipe: Recipe) -> Text:
    """Return training and held-out sequences of the recipe's text. Raises UserError where it is too short."""
    from bench.data import texts

    block = texts.make_calibration(tokenizer, recipe.text, recipe.sequences + HELD_OUT, recipe.length, recipe.seed)
    return Text(block.ids[:-HELD_OUT], block.ids[-HELD_OUT:], block.source, block.sha256)


def heal(
    model: Decoder,
    text: Text,
    recipe: Recipe,
    *,
    dense: DensePredictions | None = None,
    folder: Path | None = None,
    scorers: Scorers = MappingProxyType({}),
) -> list[LearningPoint]:
    """Train `model` in place, and return its learning curve; afterwards it is a plain pruned model again.

    dense    predictions of the model before pruning for text.train, for loss "kl"
    folder   for the checkpoint; training goes on from a checkpoint of the same model and recipe
    scorers  measure the model as it is where the recipe says so, by the field of the point

    `loss` of a point is the mean of the recipe's loss since the point before, and None at step 0. `heldout_loss` is
    that of the next token, whatever the recipe's loss. Its interval is over sequences that follow each other in their
    text. The last point is of the model that is returned, with adapters merged and in its own dtype. Where the recipe
    has a patience, training ends after so many points without a lower held-out loss.

    Raises UserError as `refuse_recipe` does and for a checkpoint of another training, Unsupported for a model that has
    no weights of the recipe's kind or no states of its loss, FloatingPointError where the loss is no finite number.
    """
    dtype = model.embed.weight.dtype
    refuse_recipe(recipe, dtype, dense)
    with make_trainable(model, recipe) as weights:
        training = Training(model, text, recipe, dense, weights)
        training.scorers = scorers
        training.half = recipe.kind != "lora" and dtype == torch.bfloat16
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        training.run(folder / CHECKPOINT if folder is not None else None)
    training.half = False
    training.curve[-1] |= training.held_out()
    return [value_from_plain(LearningPoint, point) for point in training.curve]


class Training:
    """Runs the training loop, alone or as one of several processes. `weights` are the trained parameters, by name."""

    def __init__(
        self,
        model: Decoder,
        text: Text,
        recipe: Recipe,
        dense: DensePredictions | None,
        weights: dict[str, nn.Parameter],
    ) -> None:
        self.model, self.text, self.recipe, self.dense, self.weights = model, text, recipe, dense, weights
        self.device = model.embed.weight.device
        self.measured_at = set(map(recipe.step_at, recipe.at))  # steps
        self.scorers: Scorers = {}
        self.rank, self.processes = 0, 1  # of those that train together
        self.half = False  # the weights are float32 while they are trained, and products are bfloat16
        # one tensor after the other, also on a GPU: lists would take 4 bytes more for each number that is trained
        self.optimiser = torch.optim.AdamW(weights.values(), lr=recipe.rate(0), weight_decay=0.0, foreach=False)
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self.losses = [0.0, 0]  # nats and tokens since the last point
        self.curve: list[dict[str, Any]] = []  # as a checkpoint holds it

    def run(self, file: Path | None, identity: str = "") -> None:
        """Train to the last step, from the checkpoint `file` where it exists; one is written at each point."""
        identity = identity or self.compute_identity()
        if file is not None and file.exists():
            self._resume(file, identity)
        recipe = self.recipe
        points = {round(recipe.steps * k / recipe.points) for k in range(recipe.points + 1)} | self.measured_at
        if not self.curve:
            self._point()
        with console.make_bar(self.recipe.steps, "healing", "step", done=self.step) as bar:
            while self.step < self.recipe.steps and not self._is_over():
                start = time.perf_counter()
                self._train()
                self.seconds += time.perf_counter() - start
                bar.update()
                if self.step in points:
                    self._point()
                    bar.set_postfix_str(f"held-out loss {self.curve[-1]['heldout_loss']:.3f}")
                    if file is not None:
                        self._save(file, identity)

    def _is_over(self) -> bool:
        """Say whether the held-out loss has not fallen for as many points as the recipe's patience has."""
        losses = [point["heldout_loss"] for point in self.curve]
        patience = self.recipe.patience
        return 0 < patience < len(losses) and min(losses[-patience:]) >= min(losses[:-patience])

    def _train(self) -> None:
        """Take one step."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.rate(self.step)
        rows = self.recipe.order(self.step)
        own, length = rows[self.rank :: self.processes], self.text.train.shape[1]
        targets = len(rows) * (length - 1)
        total, most = 0.0, LOGITS_ON_CPU if self.device.type == "cpu" else LOGITS
        size = max(1, most // (self.model.embed.num_embeddings * length))
        for start in range(0, math.ceil(len(rows) / self.processes), size):
            piece = own[start : start + size]
            # each process has to take part in each forward of the others, with nothing if it has no sequence more
            loss = self._loss(piece) if piece else 0.0 * self._loss(rows[:1])
            torch.autograd.backward(loss * self.processes / targets)  # of which the mean over processes is taken
            total += float(loss.detach())
        total = self._sum(total)
        if not math.isfinite(total):
            raise FloatingPointError(f"the loss of healing is no finite number at step {self.step}")
        nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.step, self.tokens = self.step + 1, self.tokens + len(rows) * length
        self.losses = [self.losses[0] + total, self.losses[1] + targets]

    def _sum(self, value: float) -> float:
        """Return the sum of a value over all processes."""
        if self.processes == 1:
            return value
        values = torch.tensor(value, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(values)
        return float(values)

    def _loss(self, rows: list[int]) -> Tensor:
        """Return the loss of the sequences `rows`, summed over all tokens but each one's first, ()."""
        ids = self.text.train[rows].to(self.device)
        with collect_states(self.model, self.recipe, reads_head=self.recipe.hidden > 0) as take:
            logits = self._logits(ids)
            states = take()
        if self.recipe.loss == "next-token" or self.dense is None:
            return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
        return self.dense.loss(logits, states, rows)

    def _logits(self, ids: Tensor) -> Tensor:
        """Predict each token but the first: (B, T) -> (B, T - 1, V) in float32."""
        with self._casting():
            logits: Tensor = self.model.model(input_ids=ids, use_cache=False).logits[:, :-1]
        return logits.float()

    def _casting(self) -> AbstractContextManager[Any]:
        """Return a context in which products are bfloat16, where the weights that are trained are not."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.half else nullcontext()

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """Return the loss on the held-out sequences with its interval, by the names of a point."""
        sums = []
        for ids in torch.split(self.text.held_out.to(self.device), 1):
            logits = self._logits(ids)
            sums.append(float(nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")))
        counts = [self.text.held_out.shape[1] - 1] * len(sums)
        low, high = ratio_interval(sums, counts, in_a_row=True)
        return {
            "heldout_loss": sum(sums) / sum(counts),
            "heldout_loss_low": float(low),
            "heldout_loss_high": float(high),
        }

    def _point(self) -> None:
        """Add a point to the learning curve."""
        point: dict[str, Any] = {"step": self.step, "tokens": self.tokens, "seconds": self.seconds}
        if self.losses[1]:
            point["loss"] = self.losses[0] / self.losses[1]
        if self.step in self.measured_at:
            with self._casting():
                point |= {name: to_plain(score()) for name, score in self.scorers.items()}
        self.curve.append(point | self.held_out())
        self.losses = [0.0, 0]

    def compute_identity(self) -> str:
        """Return the sha256 that a checkpoint must have: of recipe, text and a part of each tensor before training."""
        digest = hashlib.sha256(json.dumps([asdict(self.recipe), self.text.sha256]).encode())
        for name, parameter in self.model.model.named_parameters():
            values = parameter.detach().flatten()[:1024].float().cpu()
            digest.update(f"{name} {tuple(parameter.shape)}".encode() + values.numpy().tobytes())
        return digest.hexdigest()

    def _save(self, file: Path, identity: str) -> None:
        """Write the checkpoint, whole or not at all."""
        tensors = {}
        for name, weight in self.weights.items():
            tensors[f"weight {name}"] = join_parts(weight.detach()).contiguous()
            for moment, value in self.optimiser.state[weight].items():
                tensors[f"{moment} {name}"] = join_parts(value).contiguous()
        if self.rank:
            return
        so_far = {name: getattr(self, name) for name in PROGRESS}
        temporary = file.with_name(f".{file.name}")
        save_file(tensors, temporary, {"identity": identity, "progress": json.dumps(so_far)})
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(file)

    @torch.no_grad()
    def _resume(self, file: Path, identity: str) -> None:
        try:
            with safe_open(file, "pt", device=str(self.device)) as stored:
                facts = stored.metadata()
                if facts["identity"] != identity:
                    raise UserError(f"{file} is of another training; remove it, or heal into another folder")
                for name, weight in self.weights.items():
                    weight.copy_(divide_like(weight, stored.get_tensor(f"weight {name}")))
                    self.optimiser.state[weight] = {
                        moment: divide_like(weight, stored.get_tensor(f"{moment} {name}").to(weight.device))
                        for moment in ("exp_avg", "exp_avg_sq")
                    } | {"step": stored.get_tensor(f"step {name}").cpu()}
        except (SafetensorError, KeyError, TypeError) as error:
            raise UserError(f"{file} is no checkpoint of healing: {error}") from error
        so_far = json.loads(facts["progress"])
        for name in PROGRESS:
            setattr(self, name, so_far[name])


def join_parts(values: Tensor) -> Tensor:
    """Return the whole of a tensor that is divided among processes; an undivided one is returned unchanged."""
    whole: Tensor = values.full_tensor() if hasattr(values, "full_tensor") else values
    return whole


def divide_like(weight: Tensor, values: Tensor) -> Tensor:
    """Return values divided among processes as a weight is; unchanged where it is not divided."""
    if not hasattr(weight, "full_tensor"):
        return values
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(values, weight.device_mesh, weight.placements)  # type: ignore[attr-defined]
