"""Scores answers and text by exact log-likelihoods. Every shared prefix is computed once.

A multiple-choice question asks for the likelihood of several continuations of one context, and a task with examples
repeats those in front of every question. `Scorer` answers all requests of a task together. Their token sequences form
a `Tree` in which a node is one distinct prefix. The tree is walked depth first, a chunk of nodes per forward, and says
what each `Forward` reads and sees. Keys and values of nodes that have descendants to come stay in the cache, so that
no node is computed twice. A mask lets each node see its ancestors and itself; its depth is its position. Only nodes
that predict answers go through the head.

In float32 these are the log-likelihoods of the plain forward within 1e-3. In bfloat16 they are so up to its rounding,
because a forward with a mask takes another kernel; sums are float64, on the CPU, and in the same order on every device.

Some models turn all positions of a forward by other frequencies where the last one lies beyond a limit
(`tokens_in_one_way`). Keys that wait in a cache would then be turned differently from the queries that look at them.
Whatever is longer is therefore read in one forward, whose tokens `batch_tokens` does not bound. So is everything by a
model with mixers, whose state is that of all tokens before it, and cannot leave out those that a mask hides.

A `Backend` computes these likelihoods, and what is written: `OwnModel` the model in this process, as above, and the
server behind an address (bench.inference.endpoint) the one that it serves.

Letters: N = nodes of a tree, T = nodes of one forward, P = ancestors in the cache, K = (node, answer token) pairs,
M = positions that go through the head, D = residual width, V = vocabulary, W = tokens of a window.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial, partialmethod
from typing import Any, Protocol

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bench.data.texts import EvaluationText
from bench.evaluation.forwards import Call, Past, Sweeping, read, to_masks
from bench.evaluation.writing import Tokens, divide_prompts, write_behind, write_one
from bench.records.measured import Perplexity, RangeScore
from bench.stats.clusters import ratio_interval
from bench.stats.draws import exp_of_log
from methods import console
from methods.console import say
from methods.errors import Unsupported, UserError
from methods.model.architectures import has_mixers
from methods.model.decoder import cap_logits
from methods.model.precision import rows_in_cache

Question = tuple[tuple[int, ...], int]  # tokens of context and continuation, length of the continuation

LOGITS = 2**27  # the most logits at once: 512 MiB in float32
CPU_CHUNK = 1024  # nodes, times bytes of a number, that keep a CPU busy; more add attention between strangers

Request = tuple[Any, list[int], list[int]]  # text, which is not looked at, and tokens of context and continuation


class Backend(Protocol):
    """Computes what scores stand on."""

    def score_questions(self, questions: Sequence[Question]) -> tuple[Tensor, Tensor]:
        """Return a float64 log-likelihood and a bool greedy flag of each of the sorted, distinct questions."""

    def nll_of_windows(self, ids: Tensor, scored: Tensor) -> Tensor:
        """Return the nats of each scored token of (M, W) windows, float64 on the CPU; zero where not scored."""

    def write_behind(
        self, prompts: Sequence[Tokens], most: int, until: Sequence[str], has_ended: Callable[[Sequence[int]], bool]
    ) -> list[list[int]]:
        """Return the greedy tokens behind each of the sorted, distinct prompts, `most` at most.

        They end with the first token with which they have ended. `until` are the stop strings that say so.
        """


@dataclass(frozen=True)
class OwnModel:
    """Computes by a model in this process, in forwards of `batch_tokens` tokens.

    `sweeping` is that of bench.evaluation.forwards.read, for log-likelihoods.
    """

    model: PreTrainedModel
    batch_tokens: int
    sweeping: Sweeping | None = None

    def score_questions(self, questions: Sequence[Question]) -> tuple[Tensor, Tensor]:
        """Return what `Backend` says."""
        return score(self.model, questions, self.batch_tokens, self.sweeping)

    def nll_of_windows(self, ids: Tensor, scored: Tensor) -> Tensor:
        """Return what `Backend` says."""
        return nll_of_windows(self.model, ids, scored, self.batch_tokens, self.sweeping)

    def write_behind(
        self, prompts: Sequence[Tokens], most: int, until: Sequence[str], has_ended: Callable[[Sequence[int]], bool]
    ) -> list[list[int]]:
        """Return what `Backend` says."""
        limit, size = tokens_in_one_way(self.model), _tokens_of_forward(self.model, self.batch_tokens)
        whole = sorted((prompt for prompt in prompts if len(prompt) + most > limit), key=len)
        shared = [prompt for prompt in prompts if len(prompt) + most <= limit]
        written = dict[Tokens, list[int]]()
        if has_mixers(self.model.config.get_text_config()):
            each = console.show_progress(prompts, "writing", "prompt")
            return [write_one(self.model, prompt, most, has_ended) for prompt in each]
        for together in ([shared] if shared else []) + [[prompt] for prompt in whole]:
            total = sum(map(len, divide_prompts(together))) + most * len(together)
            with console.make_bar(total, "writing", "token") as bar:
                size_of_forward = size if together is shared else len(together[0])
                tokens = write_behind(self.model, together, most, has_ended, size=size_of_forward, bar=bar)
            written |= zip(together, tokens, strict=True)
        return [written[prompt] for prompt in prompts]


class Scorer(HFLM):  # type: ignore[misc]  # lm_eval is untyped
    """Computes the log-likelihoods of lm-eval's HFLM faster, and what it writes; prompts are HFLM's own.

    batch_tokens bounds the tokens of one forward. max_length (default: HFLM's length of the model) is where a context
    is cut from the left; stderr says so. `check` says whether the model is tried on a small tree, which takes a model
    whose rounding stays small. `sweeping` is that of bench.evaluation.forwards.read, for log-likelihoods. Raises
    UserError for a model that does not honour an attention mask over a tree.

    backend: what computes in place of the model, whose configuration and tokenizer still make the prompts.

    HFLM itself draws texts, in batches of batch_size, and writes where the model's own settings say more than which
    tokens end a text, such as a penalty of repetitions. A backend in the model's place goes by such settings itself,
    and draws none.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_tokens: int = 2048,
        max_length: int | None = None,
        batch_size: int = 8,
        *,
        check: bool = True,
        sweeping: Sweeping | None = None,
        backend: Backend | None = None,
    ) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, max_length=max_length, batch_size=batch_size)
        self.is_own, self.backend = backend is None, backend or OwnModel(model, batch_tokens, sweeping)
        if check:
            _check(model, sweeping)

    # HFLM's, without its bars for the tokenising
    loglikelihood = partialmethod(HFLM.loglikelihood, disable_tqdm=True)
    loglikelihood_rolling = partialmethod(HFLM.loglikelihood_rolling, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Return (log-likelihood, whether the continuation is greedy) of each request. The rest has no effect."""
        questions = [self._question(context, continuation) for _, context, continuation in requests]
        if cut := sum(len(context) + len(continuation) > self.max_length + 1 for _, context, continuation in requests):
            say(f"{cut} of {len(requests)} prompts are longer than {self.max_length} tokens and lose their beginning")
        distinct = sorted(set(questions))
        sums, greedy = self.backend.score_questions(distinct)
        answers = dict(zip(distinct, zip(sums.tolist(), greedy.tolist(), strict=True), strict=True))
        return [answers[question] for question in questions]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return what the model writes behind the context of each of lm-eval's requests, up to its stop strings."""
        eos = self.tok_decode([self.eot_token_id], skip_special_tokens=False)
        ends = [_greedy_end(request.args[1], eos, self.max_gen_toks) for request in requests]
        if None in ends and not self.is_own:
            raise Unsupported("a task draws what is written, and --scorer endpoint asks for the likeliest tokens alone")
        if self.is_own and (None in ends or not _is_plainly_greedy(self.model)):
            return super().generate_until(requests, disable_tqdm)
        texts = dict[tuple[str, Any], str]()
        for end in dict.fromkeys(filter(None, ends)):
            contexts = [request.args[0] for request, own in zip(requests, ends, strict=True) if own == end]
            texts |= {(context, end): text for context, text in self._write(list(dict.fromkeys(contexts)), end).items()}
        return [texts[request.args[0], end] for request, end in zip(requests, ends, strict=True) if end]

    def _write(self, contexts: Sequence[str], end: End) -> dict[str, str]:
        """Return what the model writes behind each context, without what ended it."""
        room = self.max_length - end.most
        if room <= 0:
            raise UserError(f"a task writes up to {end.most} tokens, and the model has {self.max_length} positions")
        prompts = {context: tuple(self.tok_batch_encode([context])[0][0].tolist()) for context in contexts}
        if cut := sum(len(prompt) > room for prompt in prompts.values()):
            say(f"{cut} of {len(prompts)} prompts are longer than {room} tokens and lose their beginning")
        prompts = {context: prompt[-room:] for context, prompt in prompts.items()}
        distinct = sorted(set(prompts.values()))
        tokens = self.backend.write_behind(distinct, end.most, end.until, self._ending(end))
        written = dict(zip(distinct, tokens, strict=True))
        return {context: self._to_text(written[prompt], end) for context, prompt in prompts.items()}

    def _ending(self, end: End) -> Callable[[Sequence[int]], bool]:
        """Return what says whether tokens end, by their last one or by a stop string among the last ones."""
        own = self.model.generation_config.eos_token_id
        ids = {self.eot_token_id, *(own if isinstance(own, list) else [own])}
        reach = 2 + max((len(text.encode()) for text in end.until), default=0)  # a token has a byte at least

        def has_ended(tokens: Sequence[int]) -> bool:
            text = self.tok_decode(tokens[-reach:], skip_special_tokens=False)
            return tokens[-1] in ids or any(stop in text for stop in end.until)

        return has_ended

    def _to_text(self, tokens: Sequence[int], end: End) -> str:
        """Return the text of tokens up to the first stop string."""
        text: str = self.tok_decode(tokens)
        for stop in end.until:
            text = text.partition(stop)[0]
        return text

    def _question(self, context: list[int], continuation: list[int]) -> Question:
        """Return a request, truncated as HFLM does: the continuation stays whole, the context loses its beginning."""
        if not context or not 0 < len(continuation) <= self.max_length:
            got = f"{len(context)} and {len(continuation)} tokens"
            raise ValueError(f"a request has a context and a continuation of 1 to {self.max_length} tokens; got {got}")
        return tuple((context + continuation)[-(self.max_length + 1) :]), len(continuation)


def make_stock_scorer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = 8, max_length: int | None = None
) -> HFLM:
    """Return lm-eval's own HFLM, the reference: one row per request, the head at every position."""
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=max_length)


@dataclass(frozen=True)
class End:
    """Says what ends a text that is written: stop strings, or the most tokens."""

    until: tuple[str, ...]
    most: int


def _greedy_end(settings: dict[str, Any], eos: str, most: int) -> End | None:
    """Return what ends the text of a request, by its settings in lm-eval; None where it is not written greedily.

    eos   a further stop string
    most  tokens where the settings say nothing
    """
    plain = normalize_gen_kwargs(settings, most)
    until = tuple(filter(None, handle_stop_sequences(plain.pop("until", None), eos)))
    most, draws, temperature = plain.pop("max_gen_toks"), plain.pop("do_sample"), plain.pop("temperature", 0.0)
    return None if draws or temperature or plain else End(until, most)


PLAIN = {  # settings of a model's own generation without a part in the next token of a greedy text
    *("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "_from_model_config", "use_cache"),
    *("do_sample", "temperature", "top_k", "top_p", "max_length", "max_new_tokens", "output_attentions"),
    *("output_hidden_states", "return_dict_in_generate", "cache_implementation"),
}


def _is_plainly_greedy(model: PreTrainedModel) -> bool:
    """Say whether the likeliest token is the next one, by the model's own settings of generation."""
    return PLAIN.issuperset(model.generation_config.to_diff_dict())


def _tokens_of_forward(model: PreTrainedModel, batch_tokens: int) -> int:
    """Return the most tokens of one forward whose tokens do not all see each other."""
    size = max(1, batch_tokens)
    return min(size, CPU_CHUNK // model.dtype.itemsize) if model.device.type == "cpu" else size


@torch.no_grad()
def score(
    model: PreTrainedModel, questions: Sequence[Question], batch_tokens: int, sweeping: Sweeping | None = None
) -> tuple[Tensor, Tensor]:
    """Return a float64 log-likelihood and a bool greedy flag of each of the sorted, distinct questions.

    batch_tokens bounds the tokens of one forward; `sweeping` is that of bench.evaluation.forwards.read.
    """
    sums, misses = torch.zeros(len(questions), dtype=torch.float64), torch.zeros(len(questions), dtype=torch.long)
    limit, size = tokens_in_one_way(model), _tokens_of_forward(model, batch_tokens)
    whole = [number for number, (tokens, _) in enumerate(questions) if len(tokens) - 1 > limit]
    whole.sort(key=lambda number: len(questions[number][0]))  # what "dynamic" has grown to it keeps
    shared = sorted(set(range(len(questions))) - set(whole))
    for numbers in ([shared] if shared else []) + [[number] for number in whole]:
        tree = Tree.of([questions[number] for number in numbers])
        tree_on_device, nodes = tree.to(model.device), size if numbers is shared else len(tree.tokens)
        likelihood, missed = list[Tensor](), list[Tensor]()  # of each pair
        with console.make_bar(len(tree.tokens), "scoring", "token") as bar:
            past = Past() if numbers is shared or not has_mixers(model.config.get_text_config()) else None
            calls = _tree_calls(model, tree_on_device, tree.forwards(nodes, model.device), past)
            for forward, h in read(model, calls, bar, sweeping):  # (M, D)
                row, token = forward.row.to(h.device), tree_on_device.pairs[1, forward.pairs].to(h.device)
                logarithms, best = _log_probability(model, h, row, token)
                likelihood.append(logarithms)
                missed.append(best != token)
        question = torch.tensor(numbers)[tree.pairs[2]]  # summed on the CPU, where the order of sums is fixed
        sums.index_add_(0, question, torch.cat(likelihood).cpu())
        misses.index_add_(0, question, torch.cat(missed).cpu().long())
    return sums, misses == 0


def tokens_in_one_way(model: PreTrainedModel) -> float:
    """Return the most tokens of a forward for which a model turns a position in one way, whatever else is read with it.

    Beyond it, "longrope" takes other frequencies for all positions, and "dynamic" those of the last one. It is 0 of a
    model with mixers, whose state depends on all that is read before.
    """
    config: Any = model.config.get_text_config()
    if has_mixers(config):
        return 0
    rotary = getattr(config, "rope_parameters", None) or {}
    limits = [
        each.get("original_max_position_embeddings") or config.max_position_embeddings
        for each in (rotary, *rotary.values())  # some models have one of each type of layer
        if isinstance(each, dict) and each.get("rope_type") in ("longrope", "dynamic")
    ]
    return min(limits, default=math.inf)


def _tree_calls(
    model: PreTrainedModel, tree: Tree, forwards: Iterable[Forward], past: Past | None
) -> Iterator[tuple[Call, Forward]]:
    """Yield the call of the model for each forward over nodes of a tree that lies on its device."""
    kept = torch.arange(0, device=model.device)  # (P,) the nodes in the cache
    for forward in forwards:
        nodes = torch.arange(forward.nodes.start, forward.nodes.stop, device=model.device)  # (T,)
        visible = torch.cat([kept, nodes])  # (P + T,)
        inputs = {
            "input_ids": tree.tokens[None, forward.nodes],
            "position_ids": tree.depth[None, forward.nodes],
            "attention_mask": make_masks(model, tree, nodes, visible),
        }
        yield Call(inputs, forward.positions, past, forward.stay), forward
        kept = visible[forward.stay]


def _head(model: PreTrainedModel) -> torch.nn.Module:
    head: torch.nn.Module = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return head


def _log_probability(model: PreTrainedModel, h: Tensor, row: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probability of token[k] behind h[row[k]], float64 (K,), and the most likely token there, (K,).

    h (M, D) goes through the head LOGITS logits at a time. The softmax is float32, a few rows at a time, by logsumexp,
    because log_softmax drifts on a CPU: by 8e-6 in each token's logarithm at 49,152 words.
    """
    size = max(1, LOGITS // int(model.config.get_text_config().vocab_size))
    logarithms, best = torch.zeros(len(row), dtype=torch.float64, device=h.device), torch.zeros_like(row)
    for start in range(0, len(h), size):
        logits = cap_logits(_head(model)(h[start : start + size]), model.config)  # (M, V)
        rows = min(64, rows_in_cache(logits))
        parts = [(part.logsumexp(-1), part.max(-1).indices) for part in map(Tensor.float, torch.split(logits, rows))]
        normaliser, highest = map(torch.cat, zip(*parts, strict=True))  # (M,) each
        in_part = (row >= start) & (row < start + size)
        at = (row - start).clamp(0, len(logits) - 1)
        logarithms = torch.where(in_part, (logits[at, token].float() - normaliser[at]).double(), logarithms)
        best = torch.where(in_part, highest[at], best)
    return logarithms, best


def _check(model: PreTrainedModel, sweeping: Sweeping | None) -> None:
    """Raise UserError unless a small tree gives the answers that the plain forward gives."""
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.tensor([[3, 4, 5, 6, 7], [3, 4, 7, 8, 9]], device=model.device) % vocabulary
    scored = torch.arange(5).expand(2, 5) > 0
    plain = -nll_of_windows(model, ids, scored, 10, sweeping).sum(1)
    tree, _ = score(model, [(tuple(row), 4) for row in ids.tolist()], 3, sweeping)
    tolerance = 1e-4 if model.dtype == torch.float32 else 0.05
    if not torch.allclose(tree, plain, rtol=tolerance, equal_nan=True):
        raise UserError(f"model type {model.config.model_type!r} disregards an attention mask; use --scorer stock")


@torch.no_grad()
def nll_of_windows(
    model: PreTrainedModel, ids: Tensor, scored: Tensor, batch_tokens: int, sweeping: Sweeping | None = None
) -> Tensor:
    """Return the negative log-likelihood in nats of each scored token of (M, W) windows; zero where not scored.

    ids (M, W) long; scored (M, W) bool: scored[i, j] asks for token j given tokens 0 to j - 1 of its window, so that
    column 0 is never scored. batch_tokens bounds the tokens of one forward; a longer window is read in pieces through
    the key-value cache, where that is exact. `sweeping` is that of bench.evaluation.forwards.read. Returns float64
    (M, W) on the CPU.
    """
    if scored[:, 0].any():
        raise ValueError("the first token of a window has nothing to be predicted from; scored[:, 0] must be false")
    nll = torch.zeros(ids.shape, dtype=torch.float64)
    with console.make_bar(len(ids) * (ids.shape[1] - 1), "perplexity", "token") as bar:
        for (rows, columns, token), h in read(model, _window_calls(model, ids, scored, batch_tokens), bar, sweeping):
            every = torch.arange(len(h), device=h.device)  # (M,)
            logarithms, _ = _log_probability(model, h, every, token.to(h.device))
            nll[rows, columns][scored[rows, columns]] = -logarithms.cpu()
    return nll


def _window_calls(
    model: PreTrainedModel, ids: Tensor, scored: Tensor, batch_tokens: int
) -> Iterator[tuple[Call, tuple[slice, slice, Tensor]]]:
    """Yield calls that read windows in forwards of `batch_tokens` tokens, with the rows and columns that they score.

    The scored tokens of these, (M,), follow.
    """
    size, last = max(1, batch_tokens), ids.shape[1] - 1  # nothing is predicted from the last token
    size = max(size, ids.shape[1]) if last > tokens_in_one_way(model) else size
    rows, columns = max(1, size // ids.shape[1]), min(size, ids.shape[1])
    for first in range(0, len(ids), rows):
        block = slice(first, first + rows)
        tokens, is_scored = ids[block].to(model.device), scored[block].to(model.device)  # (B, W)
        past = Past() if last > columns else None
        for start in range(0, last, columns):
            end = min(start + columns, last)
            ahead = slice(start + 1, end + 1)  # what is predicted
            positions = is_scored[:, ahead].flatten().nonzero()[:, 0]
            call = Call({"input_ids": tokens[:, start:end]}, positions, past, positions[:0] if end == last else None)
            yield call, (block, ahead, tokens[:, ahead][is_scored[:, ahead]])


def compute_perplexity(nll_sums: Tensor, counts: Tensor, bytes: int, words: int, *, drawn: bool) -> Perplexity:
    """Return the perplexity of a text from its windows' (M,) negative log-likelihoods in nats and token counts.

    bytes (UTF-8) and words (by white space) are those of the scored text. A value beyond a float is inf. There is no
    word_perplexity where it would be inf, as in languages without spaces. There is no 95 % interval
    (bench.stats.clusters.ratio_interval) of one window, or where it reaches beyond a float.
    drawn: whether the windows are drawn from the text, or else follow each other.
    """
    total = float(nll_sums.double().sum())
    return Perplexity(
        bits_per_byte=total / math.log(2) / bytes,
        byte_perplexity=exp_of_log(total / bytes),
        word_perplexity=math.exp(total / words) if words and total / words < 700 else None,
        words=words,
        **_perplexity_per_token(nll_sums, counts, drawn=drawn),
    )


def _perplexity_per_token(nll_sums: Tensor, counts: Tensor, *, drawn: bool) -> dict[str, Any]:
    """Return what `Perplexity` and `RangeScore` share; arguments as of `compute_perplexity`."""
    total, tokens = float(nll_sums.double().sum()), int(counts.sum())
    low = high = None
    if len(counts) > 1:
        ends = ratio_interval(nll_sums.tolist(), counts.tolist(), in_a_row=not drawn)
        with suppress(OverflowError):
            low, high = map(math.exp, ends)
    return {
        "perplexity": exp_of_log(total / tokens),
        "perplexity_low": low,
        "perplexity_high": high,
        "nll_per_token": total / tokens,
        "tokens": tokens,
        "windows": len(counts),
        "drawn": drawn,
    }


def score_range(nll: Tensor, text: EvaluationText, first: int, end: int) -> tuple[RangeScore, Tensor, Tensor]:
    """Return the score of the positions from `first` to `end` of long windows, and their (M,) nats and tokens.

    nll  (M, W) as `nll_of_windows` returns it for the windows of `text`, so that every range is of the same forwards
    """
    at = slice(first, end)
    sums, counts = nll[:, at].sum(1), text.scored[:, at].sum(1)
    score = RangeScore(
        window=text.ids.shape[1],
        within=text.within,
        bos=text.bos,
        sha256=hashlib.sha256(f"{text.sha256} {first}-{end}".encode()).hexdigest(),
        **_perplexity_per_token(sums, counts, drawn=text.drawn),
    )
    return score, sums, counts


@dataclass(frozen=True)
class Tree:
    """Holds the distinct prefixes of many token sequences, as nodes in depth-first order, and the pairs to score.

    Node n descends from node m, or is m, exactly if m <= n < end[m]. Pairs are sorted by node.
    """

    tokens: Tensor  # (N,) the last token of each prefix
    depth: Tensor  # (N,) its position
    end: Tensor  # (N,) one past its last descendant
    pairs: Tensor  # (3, K) node, token that should follow, question

    @staticmethod
    def of(questions: Sequence[Question]) -> Tree:
        """Return the tree of `questions`, which are sorted, on the CPU."""
        tokens: list[int] = []
        depth: list[int] = []
        end: list[int] = []
        behind: list[int] = []
        answer: list[int] = []
        path: list[int] = []  # nodes of the sequence at hand
        inputs: tuple[int, ...] = ()
        for sequence, length in questions:
            previous, inputs = inputs, sequence[:-1]  # nothing is predicted from the last token
            shared = _length_of_prefix(previous, inputs)
            for node in path[shared:]:
                end[node] = len(tokens)
            path = path[:shared] + list(range(len(tokens), len(tokens) + len(inputs) - shared))
            tokens += inputs[shared:]
            depth += range(shared, len(inputs))
            end += [-1] * (len(inputs) - shared)  # known when the walk leaves the node
            behind += path[-length:]
            answer += sequence[-length:]
        for node in path:
            end[node] = len(tokens)
        long = partial(torch.tensor, dtype=torch.long)
        number = long(range(len(questions))).repeat_interleave(long([length for _, length in questions]))
        pairs = torch.stack([long(behind), long(answer), number])
        return Tree(long(tokens), long(depth), long(end), pairs[:, pairs[0].argsort(stable=True)])

    def to(self, device: torch.device) -> Tree:
        """Return a copy on a device."""
        return Tree(*(tensor.to(device) for tensor in (self.tokens, self.depth, self.end, self.pairs)))

    def forwards(self, size: int, device: torch.device) -> Iterator[Forward]:
        """Yield the forwards over `size` nodes each. Their indices are copied to a device in one piece."""
        total, cached = len(self.tokens), torch.arange(0)  # (P,) nodes in the cache
        forwards = []
        for start in range(0, total, size):
            stop = min(start + size, total)
            first, last = torch.searchsorted(self.pairs[0], torch.tensor([start, stop])).tolist()
            cached = torch.cat([cached, torch.arange(start, stop)])
            stay = (self.end[cached] > stop).nonzero()[:, 0]
            positions, row = torch.unique(self.pairs[0, first:last] - start, return_inverse=True)
            forwards.append((slice(start, stop), slice(first, last), positions, row, stay))
            cached = cached[stay]
        nodes, pairs, *lists = zip(*forwards, strict=True)
        on_device = [torch.split(torch.cat(each).to(device), list(map(len, each))) for each in lists]
        return map(Forward, nodes, pairs, *on_device)


@dataclass(frozen=True)
class Forward:
    """Says what one forward over nodes of a tree does."""

    nodes: slice
    pairs: slice  # that are asked of them
    positions: Tensor  # (M,) among the nodes, that go through the head
    row: Tensor  # (K,) of each pair, the place among those
    stay: Tensor  # (P,) of the cache and the nodes, those with descendants to come


def _length_of_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the length of the common prefix."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def make_masks(model: PreTrainedModel, tree: Tree, nodes: Tensor, visible: Tensor) -> Tensor | dict[str, Tensor | None]:
    """Return the masks of (T,) `nodes` over (P + T,) `visible`: an additive (1, 1, T, P + T), or one per layer type."""
    query, key = nodes[:, None], visible[None, :]
    return to_masks(model, (key <= query) & (query < tree.end[key]), tree.depth[query] - tree.depth[key])
