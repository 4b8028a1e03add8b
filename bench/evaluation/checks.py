"""Checks what a language model generates by itself, and what is lost before accuracies move.

copying      a list of words, given twice, is begun again: the share of its words that follow before the first mistake
counting     numbers are counted up: the share of the next ones that follow before the first mistake
repetition   share of the 4-grams of a continuation that it has had before, mean over continuations
             (seq-rep-4 of Welleck et al. 2020, "Neural text generation with unlikelihood training", arXiv 1908.04319)
distinct_n   distinct n-grams per n-gram, over all continuations
             (Li et al. 2016, "A diversity-promoting objective function", arXiv 1510.03055)
kl           Kullback-Leibler divergence of the model's next token from the dense model's, nats per token:
             mean over tokens of sum_v p(v) (log p(v) - log q(v)), p dense, q pruned
agreement    share of positions at which the same next token is the most likely for both

All text is continued greedily, in one batch, and what was written is kept beside the values. Continuations, and the
divergence, are of the first windows of the first evaluated text, which no method has read. Where weights lie in files,
each token of a continuation would read all of them: nothing is continued there.

Letters: B = prompts, L = tokens of a prompt, M = windows, W = tokens of a window, V = vocabulary.
"""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GenerationConfig

from bench.evaluation.forwards import Call, Sweeping, read
from bench.plan.kinds import to_plain
from bench.records.measured import Checks
from bench.stats.clusters import ratio_interval
from methods import console
from methods.model.decoder import Decoder, cap_logits, clear_positions

WORDS = (
    "apple river window garden music paper stone winter bridge candle horse summer table mountain doctor bottle "
    "forest letter silver engine orange kitchen island pencil"
)
LISTS, LENGTH = 6, 8  # how many lists of words, and of how many words
STARTS = (1, 4, 17, 38, 61, 95)  # where counting begins
GIVEN, EXPECTED = 5, 5  # numbers that are given, numbers that should follow
WINDOWS, PROMPT, STEPS = 8, 32, 24  # windows that are looked at; tokens of a prompt, and of a continuation
KL_TOKENS = 64  # of each window
HEAD_ROWS = 2**14  # of the head at once in float32: 256 MiB at a width of 4,096
STORED = 2**26  # the most log-probabilities of the dense model that are kept, 256 MiB in float32


@dataclass(frozen=True)
class Continuation:
    """Holds a prompt of the checks, and what the model wrote behind it.

    check  copying or counting; for a window of text repetition
    """

    check: str
    prompt: str
    written: str


def measure_checks(
    model: Any, tokenizer: Any, ids: Tensor | None, dense: DenseOutputs | None, sweeping: Sweeping | None = None
) -> tuple[Checks, list[Continuation]]:
    """Return the checks at the head of this file, and the continuations; `ids` (M, W) are windows of held-out text.

    Without them no window is continued. Without `dense`, and for the dense model itself, there is no divergence.
    `sweeping` is that of bench.evaluation.forwards.read, for weights in files; None: they lie in memory.
    """
    checks, written = _continue_prompts(model, tokenizer, ids) if sweeping is None else (Checks(), [])
    if dense is not None:
        checks = replace(checks, **to_plain(dense.divergence_of(model, sweeping)))
    return checks, written


def _continue_prompts(model: Any, tokenizer: Any, ids: Tensor | None) -> tuple[Checks, list[Continuation]]:
    """Return the checks of generated text: words, numbers, and continuations of the windows (M, W), if any."""
    lists, numbers = draw_word_lists(), [list(range(start, start + GIVEN + EXPECTED)) for start in STARTS]
    copying = [" ".join(words) + "\n" + " ".join(words) + "\n" + words[0] for words in lists]
    counting = [", ".join(map(str, series[:GIVEN])) + "," for series in numbers]
    prompts = [tokenizer(text)["input_ids"] for text in (*copying, *counting)]
    if ids is not None:
        prompts += ids[:WINDOWS, :PROMPT].tolist()
    new = generate_greedily(model, prompts, STEPS)
    texts = tokenizer.batch_decode(new, skip_special_tokens=True)
    words_and_numbers = len(lists) + len(numbers)
    starts = [*copying, *counting, *tokenizer.batch_decode(prompts[words_and_numbers:], skip_special_tokens=True)]
    word_lists = [text.replace(",", " ").split() for text in texts[:words_and_numbers]]
    checks = Checks() if ids is None else measure_diversity(new[words_and_numbers:].tolist())
    kinds = ["copying"] * len(lists) + ["counting"] * len(numbers) + ["repetition"] * (len(texts) - words_and_numbers)
    checks = replace(
        checks,
        copying=share_of_expected([words[1:] for words in lists], word_lists[:LISTS]),
        counting=share_of_expected([list(map(str, series[GIVEN:])) for series in numbers], word_lists[LISTS:]),
    )
    return checks, list(map(Continuation, kinds, starts, texts))


def draw_word_lists() -> list[list[str]]:
    """Return the lists of words, which are the same for every model."""
    draw = random.Random(0)
    return [draw.sample(WORDS.split(), LENGTH) for _ in range(LISTS)]


@torch.no_grad()
def generate_greedily(model: Any, prompts: Sequence[list[int]], steps: int) -> Tensor:
    """Return the `steps` most likely tokens behind each of the B prompts, (B, steps). An end of text ends none."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=steps, min_new_tokens=steps, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    before, model.generation_config = model.generation_config, config  # a model's own may penalise repetition
    try:
        new = model.generate(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))
    finally:
        model.generation_config = before
        clear_positions(model)
    return new[:, longest:].cpu()


def share_of_expected(expected: Sequence[Sequence[str]], answers: Sequence[Sequence[str]]) -> float:
    """Return the share of the expected words that come before the first mistake; mean over the pairs."""
    shares = []
    for expected_words, words in zip(expected, answers, strict=True):
        right = [a == b for a, b in zip(expected_words, words, strict=False)]
        shares.append((right.index(False) if False in right else len(right)) / len(expected_words))
    return sum(shares) / len(shares)


def measure_diversity(continuations: Sequence[Sequence[int]]) -> Checks:
    """Return repetition, distinct_1 and distinct_2 of continuations of four tokens or more."""
    repeated, distinct = list[float](), list[float]()
    for tokens in continuations:
        grams = ngrams_of(tokens, 4)
        repeated.append(1 - len(set(grams)) / len(grams))
    for n in (1, 2):
        grams = [gram for tokens in continuations for gram in ngrams_of(tokens, n)]
        distinct.append(len(set(grams)) / len(grams))
    return Checks(repetition=sum(repeated) / len(repeated), distinct_1=distinct[0], distinct_2=distinct[1])


def ngrams_of(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    """Return all runs of n tokens."""
    return [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]


class DenseOutputs:
    """Keeps the dense model's log-probabilities on held-out windows, in a file while the run lasts.

    Every cell begins with the dense model, so that the first one that runs can `remember` it, and the file need not
    outlive the run. Cells that run at once may each write the same. A window at a time is read back.
    `ids` (M, W) are the windows, and `drawn` is whether they are drawn, as in bench.data.texts.EvaluationText.
    The later tokens of each window are left out where a large vocabulary would take more than STORED numbers.
    """

    def __init__(self, ids: Tensor, file: Path, *, drawn: bool = False):
        self.ids = ids[:WINDOWS, : KL_TOKENS + 1]
        self.file, self.drawn = file, drawn

    def remember(self, model: Any, sweeping: Sweeping | None = None) -> None:
        """Write the log-probabilities of the dense `model` unless they exist; `sweeping` is as in `measure_checks`."""
        self.ids = self.ids[:, : 1 + max(1, STORED // (model.config.get_text_config().vocab_size * len(self.ids)))]
        if not self.file.exists():
            unfinished = self.file.with_suffix(f".{os.getpid()}")  # another process may be about the same
            rows = enumerate(log_probabilities_of(model, self.ids, sweeping))
            save_file({str(row): each for row, each in rows}, unfinished)
            unfinished.replace(self.file)  # so that a process that is killed leaves no half of it to the next one

    def divergence_of(self, model: Any, sweeping: Sweeping | None = None) -> Checks:
        """Return kl and agreement of the model; with several windows also kl_low and kl_high, their 95 % interval.

        `sweeping` is that of `measure_checks`.
        """
        sums, same = [], 0
        tokens = [self.ids.shape[1] - 1] * len(self.ids)
        with safe_open(self.file, "pt") as stored:
            for row, own in enumerate(log_probabilities_of(model, self.ids, sweeping)):
                p, q = stored.get_tensor(str(row)).to(model.device), own.to(model.device)
                sums.append(float((p.exp() * (p - q)).sum(dtype=torch.float64)))
                same += int((p.argmax(-1) == q.argmax(-1)).sum())
        divergence = Checks(kl=sum(sums) / sum(tokens), agreement=same / sum(tokens))
        if len(sums) == 1:
            return divergence
        low, high = ratio_interval(sums, tokens, in_a_row=not self.drawn)
        return replace(divergence, kl_low=max(0.0, low), kl_high=high, drawn=self.drawn)


@torch.no_grad()
def log_probabilities_of(model: Any, windows: Tensor, sweeping: Sweeping | None = None) -> Iterator[Tensor]:
    """Yield log-probabilities of each token's successor but the last's: (M, W) ids -> M times float32 (W - 1, V).

    They lie on the CPU. `sweeping` is that of `measure_checks`. Final norm and head compute in float32. Logits in
    bfloat16 come in steps of up to an eighth, and that rounding alone would be a divergence.
    """
    decoder, length = Decoder(model), windows.shape[1] - 1
    exact = model.dtype != torch.float32
    norm = _norm_before_head(decoder) if exact else None
    calls = (
        (Call({"input_ids": window[None, :-1].to(model.device)}, torch.arange(length)), None) for window in windows
    )
    with console.make_bar(len(windows) * length, "comparing with the dense model", "token") as bar:
        for _, h in read(model, calls, bar, sweeping, norm or decoder.head):  # (T, D)
            logits = _exact_logits(decoder, norm, h) if exact else cap_logits(decoder.head(h), model.config).float()
            yield (logits - logits.logsumexp(-1, keepdim=True)).cpu()


def _norm_before_head(decoder: Decoder) -> nn.Module | None:
    """Return the final norm; None where there is none, or where a projection to the head's width stands behind it."""
    norm: nn.Module | None = decoder.final_norm
    weight = getattr(norm, "weight", None)
    return norm if weight is None or len(weight) == decoder.head.weight.shape[1] else None


def _exact_logits(decoder: Decoder, norm: nn.Module | None, h: Tensor) -> Tensor:
    """Return the logits of what the norm, or without one the head, reads, in float32, (T, D) -> (T, V)."""
    head, h = decoder.head, h.float()
    if norm is not None:
        h = copy.deepcopy(norm).float()(h).to(head.weight.device)
    logits = torch.cat([h @ rows.float().T for rows in torch.split(head.weight, HEAD_ROWS)], -1)
    if head.bias is not None:
        logits += head.bias.float()
    return cap_logits(logits, decoder.whole_config)
