"""Checks every method: its decisions on the doctor's model, the logits of the pruned model, and saving and loading it.

The answers of every method are stored.

    python docs/generate.py

writes them anew, for all methods and compensations of the package, with the parameters that these give in `tiny`: after
a method was added, or after a change that is meant to move a number. It refuses answers that another machine might not
give: those where noise as large as the rounding of bfloat16 changes a decision.

Saving, loading again, and generating with a cache are checked on pruned models of every form.

The model, its tokenizer and its tokens are built in code: nothing is fetched, nothing stored. The weights come from
SHAKE-256 and not from a library's generator, so that every machine and version has the same ones. bfloat16 holds each
of them, so that a model in bfloat16 has the weights of the one in float32. Layers, heads, channels and directions of
the residual are drawn in different sizes, so that the scores of a method lie far apart and the noise of another machine
changes no choice.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, PreTrainedTokenizerFast

import methods
from bench.doctor.finding import (
    DTYPES,
    TOLERANCE,
    Finding,
    difference_of_tensors,
    dtype_name,
    finding_of_check,
    finding_of_error,
    is_close,
)
from bench.evaluation import checks
from methods import console
from methods.checkpoint import save_load
from methods.console import say
from methods.decisions import prune
from methods.errors import UserError
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder, Place, put_model
from methods.model.sizes import parameters


def check_pruning(device: torch.device) -> Iterator[Finding]:
    """Run all methods, also those of installed packages, which have no stored answers."""
    stored = read_answers()
    ours = list_cases()
    names = [*ours, *(name for name in methods.load() if name not in ours)]
    for name in console.show_progress(names, "methods", "method"):
        if name in stored:
            yield check_method(name, device, stored[name])
        else:
            yield Finding("not here", name, "no answers are stored for it")


def check_method(name: str, device: Place, want: Answer) -> Finding:
    """Run one method in each dtype."""
    wrong, off = list[str](), dict[str, float]()
    try:
        for dtype in DTYPES:
            got = find_answer(name, device, dtype)
            wrong += [f"in {dtype_name(dtype)} {text}" for text in _differences(got, want)]
            if want.logits is not None and got.parameters == want.parameters:
                off[dtype_name(dtype)] = share = difference_of_tensors(
                    torch.tensor(got.logits), torch.tensor(want.logits)
                )
                if not is_close(share, dtype):
                    wrong.append(f"in {dtype_name(dtype)} the logits are off by {share:.2g} of their size")
    except Exception as error:
        return finding_of_error(name, error)
    figure = ", ".join(f"{share:.1e} in {dtype}" for dtype, share in off.items())
    return finding_of_check(name, wrong, f"logits off by {figure}" if off else "decisions alone", **off)


def _differences(got: Answer, want: Answer) -> Iterator[str]:
    """Return the decisions that differ from the stored ones, in words."""
    for name in got.decided | want.decided:
        if got.decided.get(name) != want.decided.get(name):
            yield f"{name} is {_short(got.decided, name)} and should be {_short(want.decided, name)}"
    if got.parameters != want.parameters:
        yield f"{got.parameters:,} parameters are left and should be {want.parameters:,}"


def _short(decided: Mapping[str, Any], name: str) -> str:
    text = str(decided.get(name))
    return text if len(text) <= 40 else f"{text[:40]}..."


FILE = Path(__file__).with_name("answers.json")
RATIO = 0.3
NOISE, DRAWS = 2e-3, 3  # of every weight, as much as bfloat16 rounds off


@dataclass(frozen=True)
class Answer:
    """Holds what is left of the model.

    decided     of the decisions, the removals
    parameters  how many are left
    logits      a few of them, on tokens of their own; None where the weights are drawn anew
    """

    decided: dict[str, Any]
    parameters: int
    logits: list[list[float]] | None


def list_cases() -> list[str]:
    """Return the names of every method of the package, and of every compensation behind a method."""
    compensated = [f"{card.follows}+{card.name}" for card in methods.cards_of_compensations()]
    return [card.name for card in methods.cards_of_methods()] + compensated


def parameters_for_tiny_model(method: str) -> dict[str, str]:
    """Return the parameters with which a built-in method prunes a tiny model; {} for any other method."""
    return next((card.tiny_parameters for card in methods.cards_of_methods() if card.name == method), {})


def has_drawn_weights(case: str) -> bool:
    """Say whether a compensation draws weights on its device, so that no two kinds of device agree."""
    compensation = case.partition("+")[2]
    cards = [card for card in methods.cards_of_compensations() if card.name == compensation]
    return any(name == "seed" for card in cards for name, *_ in card.parameters)


def prune_tiny_model(
    case: str,
    device: Place,
    dtype: torch.dtype,
    noise: torch.Generator | None = None,
    parameters: dict[str, str] | None = None,
) -> tuple[Decoder, dict[str, Any]]:
    """Return the doctor's model after a method, and the decisions.

    noise       disturbs the weights before
    parameters  of the method; None: those that it gives in `tiny`
    """
    pruner = methods.make(case, parameters_for_tiny_model(case.partition("+")[0]) if parameters is None else parameters)
    model = build_tiny_model(device, dtype, mixture="experts" in pruner.alone.axes)
    if noise is not None:
        with torch.no_grad():
            for parameter in model.model.parameters():
                parameter.mul_(1 + NOISE * torch.randn(parameter.shape, generator=noise))
    torch.manual_seed(0)
    decisions = prune(pruner, model, make_calibration(), 0.0 if case == "dense" else RATIO)
    return model, {name: value for name, value in decisions.items() if name.startswith("removed_")}


def find_answer(case: str, device: Place, dtype: torch.dtype, noise: torch.Generator | None = None) -> Answer:
    """Prune the doctor's model, and return what is left."""
    model, decided = prune_tiny_model(case, device, dtype, noise)
    rounded = []
    for row in compute_some_logits(model).tolist():
        rounded.append([round(value, 4) for value in row])
    return Answer(decided, parameters(model), None if has_drawn_weights(case) else rounded)


@torch.no_grad()
def compute_some_logits(model: Decoder) -> torch.Tensor:
    """Return every 17th logit at every 5th of 30 tokens, (6, 16) float32."""
    ids = draw_tokens("probe", 1, 30).to(model.embed.weight.device)
    logits: torch.Tensor = model.model(input_ids=ids, use_cache=False).logits
    return logits[0, 4::5, ::17].float().cpu()


def read_answers() -> dict[str, Answer]:
    """Return the stored answers, by case."""
    stored = json.loads(FILE.read_text(encoding="utf-8"))
    return {case: Answer(**fields) for case, fields in stored.items()}


def write_answers() -> None:
    """Compute all answers and store them. Raises UserError for one that a little noise changes."""
    torch.set_num_threads(1)
    answer_by_case = {}
    for case in list_cases():
        say(case)
        answer_by_case[case] = find_answer(case, torch.device("cpu"), torch.float32)
        if doubt := describe_noise(case, answer_by_case[case], DRAWS):
            raise UserError(f"{case} is too near to another choice: {doubt}; nothing is written")
    lines = [f"{json.dumps(case)}: {json.dumps(asdict(answer))}" for case, answer in answer_by_case.items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def describe_noise(case: str, plain: Answer, draws: int) -> str:
    """Return how a decision changed under noise, or "" where all were the same."""
    cpu = torch.device("cpu")
    rounded = [find_answer(case, cpu, torch.bfloat16)]
    disturbed = [find_answer(case, cpu, torch.float32, torch.Generator().manual_seed(seed)) for seed in range(draws)]
    for answer in (*rounded, *disturbed):
        if answer.decided != plain.decided or answer.parameters != plain.parameters:
            return f"{answer.decided} beside {plain.decided}"
        if plain.logits is not None:
            off = difference_of_tensors(torch.tensor(answer.logits), torch.tensor(plain.logits))
            if off > TOLERANCE[torch.bfloat16] / 2:
                return f"its logits move by {off:.2g} of their size"
    return ""


FORMS = {  # a method that leaves a model of each form
    "dense": "whole",
    "drop": "layers gone",
    "2ssp": "attentions gone, fewer channels",
    "flap": "layers of unlike widths",
    "slicegpt": "a narrower residual",
    "shortgpt+ghost": "maps of the residual",
}
GIVEN = {"drop": {"layers": "0+4-5"}}  # the first layer too, from which a cache takes its length
PROMPTS = (24, 9)  # tokens of each; the shorter one is padded
STEPS = 12


def check_storing(device: torch.device) -> Iterator[Finding]:
    """Save, load and generate in each dtype."""
    for name, form in FORMS.items():
        what = f"save and generate, {name}"
        try:
            yield check_stored_model(what, name, form, device)
        except Exception as error:
            yield finding_of_error(what, error)


def check_stored_model(what: str, name: str, form: str, device: torch.device) -> Finding:
    """Prune by one method, save the model, load it again, and generate with the loaded one."""
    wrong, off = list[str](), dict[str, float]()
    for dtype in DTYPES:
        model, _ = prune_tiny_model(name, device, dtype, parameters=GIVEN.get(name))
        with tempfile.TemporaryDirectory() as folder:
            save_load.save(model, Path(folder) / "model")
            loaded = save_load.load(Path(folder) / "model", device=device)
        off[dtype_name(dtype)] = share = difference_of_tensors(compute_some_logits(loaded), compute_some_logits(model))
        if not is_close(share, dtype):
            wrong.append(f"in {dtype_name(dtype)} the loaded model's logits are off by {share:.2g} of their size")
        for which, one_of_them in {"": model, "loaded again, ": loaded}.items():
            wrong += [f"in {dtype_name(dtype)}, {which}{text}" for text in check_generation(one_of_them, dtype)]
    figure = ", ".join(f"{share:.1e} in {dtype}" for dtype, share in off.items())
    return finding_of_check(
        what, wrong, f"{form}: reloaded logits off by {figure}; cached tokens are the uncached", **off
    )


@torch.no_grad()
def check_generation(model: Decoder, dtype: torch.dtype) -> Iterator[str]:
    """Yield where a token that was generated with the cache is not the most likely one of a forward without it.

    Tokens as likely as the most likely one but for rounding are right.
    """
    prompts = [draw_tokens(f"prompt {length}", 1, length)[0].tolist() for length in PROMPTS]
    new = checks.generate_greedily(model.model, prompts, STEPS)
    for prompt, chosen in zip(prompts, new.tolist(), strict=True):
        ids = torch.tensor([[*prompt, *chosen[:-1]]], device=model.embed.weight.device)
        logits = model.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :].float().cpu()
        short = logits.amax(-1) - logits[range(STEPS), chosen]
        off = (short / logits.std()).tolist()
        missed = [step for step, share in enumerate(off) if not is_close(share, dtype)]
        if missed:
            yield (
                f"token {missed[0] + 1} behind {len(prompt)} tokens, generated with a cache, is not what the model "
                "without a cache finds the most likely"
            )


LAYERS, WIDTH, CHANNELS, HEADS, KV_HEADS, POSITIONS = 8, 32, 32, 4, 2, 256
EXPERTS, EXPERTS_PER_TOKEN = (
    4,
    2,
)  # of a mixture. Without two of the experts no token has a choice that noise could change
SPECIAL = ("<pad>", "<s>", "</s>")
VOCABULARY = len(SPECIAL) + 256
SEQUENCES, LENGTH = 8, 48  # of the calibration
LAYER_SIZES = (1.0, 0.36, 0.64, 0.16, 0.8, 0.24, 0.5, 1.0)  # the sizes of what each layer adds to the residual
ATTENTION, MLP = 1.0, 0.7  # the sizes of what its halves add
EMBEDDING = 0.5 * WIDTH**0.5  # the size of token embeddings
SEED = 0  # of all names; of those tried, one with which no choice is near to another (bench.doctor.pruning)
ROUTERS = 31  # of the names of routers; of those tried, one with which experts are taken most unequally often
RANGE = 256.0  # the largest channel, head or direction over the smallest


def build_tiny_model(device: Place, dtype: torch.dtype, *, mixture: bool = False) -> Decoder:
    """Return the model: a Llama with grouped queries and a tied head, 8 layers of width 32, or a Mixtral like it."""
    kind = (
        partial(MixtralConfig, num_local_experts=EXPERTS, num_experts_per_tok=EXPERTS_PER_TOKEN)
        if mixture
        else LlamaConfig
    )
    config = kind(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=CHANNELS,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = Decoder(AutoModelForCausalLM.from_config(config, dtype=dtype))  # type: ignore[no-untyped-call]
    with torch.no_grad():
        _fill(model)
    put_model(model.model, device).eval()
    return model


def _fill(model: Decoder) -> None:
    """Give every parameter its value, computed in float64 and rounded once, so that no machine's rounding shows."""
    values = {name: _plain(name, parameter.shape) for name, parameter in model.model.named_parameters()}
    of = {id(parameter): values[name] for name, parameter in model.model.named_parameters()}
    of[id(model.embed.weight)].mul_(EMBEDDING * draw_spread("residual", WIDTH))
    for number, layer in enumerate(model.layers):
        heads = draw_spread(f"heads {number}", KV_HEADS).repeat_interleave(WIDTH // KV_HEADS)
        of[id(layer.out.weight)].mul_(ATTENTION * LAYER_SIZES[number] * heads)
        if layer.experts is None:
            of[id(layer.down.weight)].mul_(MLP * LAYER_SIZES[number] * draw_spread(f"channels {number}", CHANNELS))
            continue
        sizes, (*_, down) = draw_spread(f"experts {number}", EXPERTS), layer.experts.bank.parameters()
        of[id(down)].mul_(MLP * LAYER_SIZES[number] * sizes[:, None, None])
        of[id(layer.experts.router.weight)].mul_(draw_spread(f"router {ROUTERS} {number}", EXPERTS)[:, None])
    for parameter in model.model.parameters():
        parameter.copy_(of[id(parameter)].bfloat16())


def _plain(name: str, shape: torch.Size) -> Tensor:
    """Return values before layers, heads, channels and experts are made unlike: a vector about 1, or matrices."""
    drawn = draw_uniform(name, shape.numel()).reshape(shape)
    if len(shape) == 1:
        return 1 + 0.25 * drawn
    return drawn.sign() * (0.75 + 0.5 * drawn.abs()) / shape[-1] ** 0.5  # of rows and columns that are equally long


def draw_uniform(name: str, count: int) -> Tensor:
    """Return numbers between -1 and 1 that follow from a name, (count,) float64."""
    digits = np.frombuffer(hashlib.shake_256(f"{SEED} {name}".encode()).digest(2 * count), dtype="<u2")
    return torch.from_numpy(digits.astype(np.float64) / 2**15 - 1)


def draw_spread(name: str, count: int) -> Tensor:
    """Return sizes at equal ratios from RANGE to 1, in an order that follows from a name, mean square 1; (count,)."""
    order = draw_uniform(name, count).argsort(stable=True)
    sizes = RANGE ** (order.double() / (count - 1))
    return sizes / sizes.square().mean().sqrt()


def draw_tokens(name: str, rows: int, columns: int) -> Tensor:
    """Return token ids without special ones that follow from a name, (rows, columns) long."""
    shares = (draw_uniform(name, rows * columns) + 1) / 2
    return (len(SPECIAL) + (shares * (VOCABULARY - len(SPECIAL))).long()).reshape(rows, columns)


def make_calibration() -> Calibration:
    """Return the calibration of the methods."""
    ids = draw_tokens("calibration", SEQUENCES, LENGTH)
    return Calibration(ids, torch.ones_like(ids, dtype=torch.bool), source="made up")


def make_tokenizer() -> Any:
    """Return the tokenizer of the model, which has a token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *alphabet))}
    backend = Tokenizer(models.BPE(vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=POSITIONS
    )
