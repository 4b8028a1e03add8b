"""Scoring against lm-eval's own HFLM and against plain forwards, on tiny models of every family.

python -m pytest tests/test_scoring.py
"""

from __future__ import annotations

import math
import random
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import FAMILIES, VOCABULARY, tiny
from lm_eval.api.instance import Instance
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bench.evaluation import scoring
from bench.evaluation.forwards import Sweeping
from bench.evaluation.scoring import Scorer, compute_perplexity, make_stock_scorer, nll_of_windows
from bench.plan.kinds import to_plain
from bench.runs import measure
from methods.errors import UserError
from methods.model import precision

MAX_LENGTH = 40


@pytest.fixture(scope="module")
def tokenizer():
    """Words w0 .. w127 are tokens 0 .. 127; w1 begins and w2 ends a text."""
    words = {f"w{i}": i for i in range(VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="w1", eos_token="w2", unk_token="w0", pad_token="w3"
    )


def requests(seed: int = 0) -> list[tuple[None, list[int], list[int]]]:
    """Multiple choice as tasks have it, and the awkward cases, in random order."""
    draw = random.Random(seed)

    def words(least: int, most: int) -> list[int]:
        return [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(least, most))]

    shots = words(14, 14)  # in front of several questions, longer than the sliding window of 8
    asked = []
    for start in (shots, shots, shots, [], []):
        context = start + words(1, 12)
        asked += [(None, context, words(1, 9)) for _ in range(4)]
    letters = shots + words(3, 3)
    asked += [(None, letters, [answer]) for answer in (5, 6, 7, 8)]  # one node, four tokens
    asked += [(None, letters[:-2], [*letters[-2:], 9])]  # splits what the others have as context
    asked += [(None, [*letters, 5], words(2, 2))]  # continues an answer
    asked += [(None, words(50, 50), words(3, 8)) for _ in range(2)]  # cut from the left
    asked += [
        (None, words(2, 2), words(MAX_LENGTH, MAX_LENGTH))
    ]  # exactly what max_length holds, less than the context
    asked += asked[3:6]  # duplicates
    draw.shuffle(asked)
    return asked


def assert_same(got, want, tolerance=1e-4):
    assert len(got) == len(want)
    for (got_sum, got_greedy), (want_sum, want_greedy) in zip(got, want, strict=True):
        assert got_sum == pytest.approx(want_sum, abs=tolerance)
        assert got_greedy == want_greedy


def greedy_answers(model, asked):
    """Every third request asks for what the model would say itself, so that greedy flags are not all false."""
    answered = []
    for i, (name, context, continuation) in enumerate(asked):
        if i % 3 == 0 and len(context) < MAX_LENGTH - 3:
            new = model.generate(torch.tensor([context]), max_new_tokens=3, do_sample=False, eos_token_id=None)
            answered.append((name, context, new[0, len(context) :].tolist()))
        else:
            answered.append((name, context, continuation))
    return answered


def reference(model, tokenizer, asked):
    """HFLM's answers, without its cache for one-token answers.

    That cache is wrong where a one-token answer meets a longer one of the same tokens, split earlier: it reads the
    first position of the longer one.
    """
    lm = make_stock_scorer(model, tokenizer, max_length=MAX_LENGTH)
    lm.logits_cache = False
    return lm._loglikelihood_tokens(asked, disable_tqdm=True)


def small(family: str, tokenizer, batch_tokens: int = 2048, **overrides) -> Scorer:
    return Scorer(tiny(family, **overrides), tokenizer, batch_tokens, MAX_LENGTH)


def recorded_forwards(model) -> list[int]:
    """Grows by the number of tokens of every forward of `model`."""
    counts: list[int] = []
    model.register_forward_pre_hook(
        lambda _model, _args, inputs: counts.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    return counts


LONG = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0]}
TURNED = {  # rotary embeddings whose frequencies change with the length of a forward, beyond 16 tokens
    "phi3": {"rope_parameters": LONG | {"original_max_position_embeddings": 16, "rope_theta": 100.0}}
    | {"original_max_position_embeddings": 16},
    "llama": {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0}}
    | {"max_position_embeddings": 16},
}


def turned(family: str) -> torch.nn.Module:
    return tiny(family, **TURNED[family])


@pytest.mark.parametrize("family", TURNED)
@pytest.mark.parametrize("length", [14, 40])
def test_windows_of_frequencies_that_change_with_the_length_do_not_depend_on_the_batch(family, length):
    ids = torch.randint(3, VOCABULARY, (3, length), generator=torch.Generator().manual_seed(1))
    scored = torch.ones_like(ids, dtype=torch.bool)
    scored[:, 0] = False
    model = turned(family)
    with torch.no_grad():
        logits = turned(family)(ids[:, :-1], use_cache=False).logits
    want = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").double()
    for batch_tokens in (5, 16, 20, 200):
        torch.testing.assert_close(nll_of_windows(model, ids, scored, batch_tokens)[:, 1:], want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", TURNED)
def test_answers_of_frequencies_that_change_with_the_length_are_those_of_each_alone(family):
    draw = random.Random(1)
    start = [draw.randrange(3, VOCABULARY) for _ in range(12)]
    questions = sorted(
        (tuple(start + [draw.randrange(3, VOCABULARY) for _ in range(more)]), 2) for more in (2, 4, 5, 6, 20, 20, 24)
    )
    alone = []
    for tokens, length in questions:  # each by a model that has read nothing longer
        with torch.no_grad():
            logits = turned(family)(torch.tensor([tokens[:-1]]), use_cache=False).logits[0, -length:].log_softmax(-1)
        alone.append(logits[torch.arange(length), torch.tensor(tokens[-length:])].sum().double())
    for batch_tokens in (3, 16, 200):
        sums, _ = scoring.score(turned(family), questions, batch_tokens)
        torch.testing.assert_close(sums, torch.stack(alone), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", [*FAMILIES, "granite", "cohere2"])
def test_answers_are_those_of_lm_eval(family, tokenizer):
    model = tiny(family)
    asked = greedy_answers(model, requests())
    want = reference(model, tokenizer, asked)
    assert {greedy for _, greedy in want} == {True, False}
    for batch_tokens in (7, 2048):
        scorer = Scorer(model, tokenizer, batch_tokens, MAX_LENGTH)
        assert_same(scorer._loglikelihood_tokens(asked), want)


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "gemma3_text", "mistral"])
def test_pruned_models(family, tokenizer):
    """Half of the layers gone, the layer types cut accordingly, one MLP narrower than the others."""
    model, keep = tiny(family), [0, 3, 5]
    model.model.layers = torch.nn.ModuleList(model.model.layers[i] for i in keep)
    for i, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = i
    model.config.num_hidden_layers = 3
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in keep]
    mlp = model.model.layers[1].mlp
    mlp.gate_proj, mlp.up_proj = torch.nn.Linear(32, 20, bias=False), torch.nn.Linear(32, 20, bias=False)
    mlp.down_proj = torch.nn.Linear(20, 32, bias=False)
    got = Scorer(model, tokenizer, 16, MAX_LENGTH)._loglikelihood_tokens(requests())
    assert_same(got, reference(model, tokenizer, requests()))


def test_texts_are_scored_like_lm_eval(tokenizer):
    """Empty contexts, texts longer than max_length, and answers' spaces, through the public methods."""
    model = tiny("llama")
    ours, theirs = (
        Scorer(model, tokenizer, max_length=MAX_LENGTH),
        make_stock_scorer(model, tokenizer, max_length=MAX_LENGTH),
    )
    draw = random.Random(5)
    text = " ".join(f"w{draw.randrange(3, VOCABULARY)}" for _ in range(3 * MAX_LENGTH + 5))
    pairs = [
        Instance("loglikelihood", {}, arguments, 0) for arguments in [("", text[:60]), ("w5 w6 ", "w7"), ("w5", " w9")]
    ]
    assert_same(ours.loglikelihood(pairs), theirs.loglikelihood(pairs, disable_tqdm=True))
    rolling = [Instance("loglikelihood_rolling", {}, (piece,), 0) for piece in (text, text[:200], "w7")]
    want = theirs.loglikelihood_rolling(rolling, disable_tqdm=True)
    assert ours.loglikelihood_rolling(rolling) == pytest.approx(want, abs=1e-3)


def writing(*pairs):
    """Requests that ask for text behind contexts, by (context, settings)."""
    return [Instance("generate_until", {}, pair, number) for number, pair in enumerate(pairs)]


def test_what_is_written_is_lm_evals(tokenizer):
    model = tiny("llama")
    ours, theirs = Scorer(model, tokenizer, 16, MAX_LENGTH), make_stock_scorer(model, tokenizer, 1, MAX_LENGTH)
    words = " ".join(f"w{number}" for number in range(20, 40))
    prompts = ("w5 w6 w7", f"{words} w5", "w5 w6 w7", f"{words} {words}")  # one is there twice, the last is cut
    free = {"until": [], "max_gen_toks": 10}
    texts = theirs.generate_until(writing(*((prompt, free) for prompt in prompts)), disable_tqdm=True)
    middle = texts[0].split()[3:5]
    ends: list[Any] = [["w9", " ".join(middle)], middle[1]]
    ends = [free, *({"until": until, "max_gen_toks": 10, "do_sample": False, "temperature": 0.0} for until in ends)]
    asked = writing(*((prompt, end) for end in ends for prompt in prompts))
    got = ours.generate_until(asked)
    assert got == [theirs.generate_until([each], disable_tqdm=True)[0] for each in asked]
    assert got[: len(prompts)] == texts
    assert all(len(got[place]) < len(texts[0]) for place in (4, 8))


@pytest.mark.parametrize("family", sorted(TURNED))
def test_what_is_written_beyond_a_limit_of_positions_is_generates(tokenizer, family):
    prompts = ["w5 w6 w7", *(" ".join(f"w{n}" for n in range(start, start + 14)) for start in (20, 40))]
    asked = writing(*((prompt, {"until": [], "max_gen_toks": 6}) for prompt in prompts))
    got = Scorer(turned(family), tokenizer, 4, MAX_LENGTH).generate_until(asked)
    theirs = make_stock_scorer(turned(family), tokenizer, 1, MAX_LENGTH)
    assert got == theirs.generate_until(asked, disable_tqdm=True)


def test_texts_that_are_drawn_or_penalised_are_lm_evals_own(tokenizer, monkeypatch):
    monkeypatch.setattr(make_stock_scorer(tiny("llama"), tokenizer).__class__, "generate_until", lambda *_: ["own"])
    greedy, drawn = {"until": [], "max_gen_toks": 3}, {"until": [], "max_gen_toks": 3, "temperature": 0.7}
    scorer = Scorer(tiny("llama"), tokenizer)
    assert scorer.generate_until(writing(("w5", greedy))) != ["own"]
    assert scorer.generate_until(writing(("w5", drawn))) == ["own"]
    scorer.model.generation_config.repetition_penalty = 1.1
    assert scorer.generate_until(writing(("w5", greedy))) == ["own"]


def test_a_task_that_writes_more_than_the_model_has_positions_is_one_line(tokenizer):
    scorer = Scorer(tiny("llama"), tokenizer, 16, MAX_LENGTH)
    with pytest.raises(UserError, match="writes up to 40 tokens, and the model has 40 positions"):
        scorer.generate_until(writing(("w5", {"until": [], "max_gen_toks": 40})))


def test_order_and_batch_do_not_change_answers(tokenizer):
    model, asked = tiny("gemma2"), requests(3)
    want = Scorer(model, tokenizer, 2048, MAX_LENGTH)._loglikelihood_tokens(asked)
    for seed, batch_tokens in enumerate((1, 5, 16, 64, 300)):
        order = random.Random(seed).sample(range(len(asked)), len(asked))
        got = Scorer(model, tokenizer, batch_tokens, MAX_LENGTH)._loglikelihood_tokens([asked[i] for i in order])
        assert_same(got, [want[i] for i in order])


def test_no_prefix_is_computed_twice(tokenizer):
    """Nor does the cache keep more than one path of the tree."""
    scorer, asked = small("llama", tokenizer, batch_tokens=16), requests()
    prefixes = set()
    for _, context, continuation in asked:
        inputs = (context + continuation)[-(MAX_LENGTH + 1) :][:-1]
        prefixes |= {tuple(inputs[:n]) for n in range(1, len(inputs) + 1)}
    shapes: list[torch.Size] = []
    scorer.model.register_forward_pre_hook(
        lambda _model, _args, inputs: shapes.append(inputs["attention_mask"].shape), with_kwargs=True
    )
    scorer._loglikelihood_tokens(asked)
    assert sum(shape[2] for shape in shapes) == len(prefixes)
    assert max(shape[2] for shape in shapes) == 16
    assert max(shape[3] - shape[2] for shape in shapes) < MAX_LENGTH


def test_only_asked_positions_go_through_the_head(tokenizer):
    scorer = small("llama", tokenizer)
    rows: list[int] = []
    scorer.model.get_output_embeddings().register_forward_hook(lambda _head, _in, out: rows.append(out[..., 0].numel()))
    context = list(range(10, 40))
    scorer._loglikelihood_tokens([(None, context, [answer]) for answer in (5, 6, 7)] + [(None, context, [5, 6])])
    assert sum(rows) == 2  # after the context, and after its continuation 5


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi"])
def test_logits_are_bounded_and_the_tokens_of_a_forward_are_not(family, tokenizer, monkeypatch):
    scorer, rows = small(family, tokenizer), list[int]()
    ids = torch.tensor([[3, 4, 5, 6, 7, 8, 9, 10, 11, 12]] * 3)
    asked = scorer.model, ids, torch.arange(10).expand(3, 10) > 0, 64
    want, text, counts = (
        scorer._loglikelihood_tokens(requests()),
        nll_of_windows(*asked),
        recorded_forwards(scorer.model),
    )
    scorer.model.get_output_embeddings().register_forward_hook(lambda _head, _in, out: rows.append(out[..., 0].numel()))
    monkeypatch.setattr("bench.evaluation.scoring.LOGITS", 4 * VOCABULARY)
    found, again = scorer._loglikelihood_tokens(requests()), nll_of_windows(*asked)
    assert_same(found, want)
    assert torch.allclose(again, text, atol=1e-5)
    assert max(rows) == 4
    assert max(counts) > 4


def test_long_answers_and_empty_requests_are_refused(tokenizer):
    scorer = small("llama", tokenizer)
    assert scorer._loglikelihood_tokens([]) == []
    for context, continuation in (([], [5]), ([5], []), ([5], [6] * (MAX_LENGTH + 1))):
        with pytest.raises(ValueError, match=f"1 to {MAX_LENGTH} tokens; got {len(context)} and"):
            scorer._loglikelihood_tokens([(None, context, continuation)])


def test_a_model_that_ignores_the_mask_is_refused(tokenizer):
    model = tiny("llama")
    forward = model.model.forward
    model.model.forward = lambda *args, **inputs: forward(*args, **(inputs | {"attention_mask": None}))
    with pytest.raises(UserError, match="--scorer stock"):
        Scorer(model, tokenizer)
    Scorer(model, tokenizer, check=False)


@pytest.mark.parametrize("method", ["dense", "drop-tail"])
def test_a_run_tries_the_mask_on_the_dense_model_alone(method, monkeypatch):
    """Pruning can leave a model that magnifies rounding beyond any bound, which says nothing of the mask."""
    asked = []
    monkeypatch.setattr(measure.scoring, "Scorer", lambda *args, **options: asked.append(options))
    protocol = SimpleNamespace(scorer="shared", batch_tokens=16, is_served=False)
    cell = SimpleNamespace(method=method, protocol=protocol)
    outcome = measure.CellProgress(*[lambda told: None] * 3, nullcontext, sweeping=Sweeping(2**20))
    measure._make_scorer(cell, (None, None), None, outcome)
    options = {"batch_tokens": 16, "check": method == "dense", "sweeping": Sweeping(2**20), "backend": None}
    assert asked == [options]


def test_the_length_is_the_model_s_positions_and_what_is_longer_is_told(tokenizer, capsys):
    scorer = Scorer(tiny("gpt2"), tokenizer)
    assert scorer.max_length == 128  # the model's positions
    assert Scorer(tiny("llama", max_position_embeddings=4096), tokenizer).max_length == 4096
    scorer.loglikelihood([Instance("loglikelihood", {}, (text, " w5"), 0) for text in ("w5", 200 * " w6")])
    assert "1 of 2 prompts are longer than 128 tokens and lose their beginning" in capsys.readouterr().err


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_tokens", [5, 24, 50, 1000])
def test_window_nll_is_that_of_a_plain_forward(family, batch_tokens):
    """Windows of 24 tokens, of which the later ones score only their last 8 (stride below the window)."""
    model = tiny(family)
    ids = torch.randint(3, VOCABULARY, (5, 24), generator=torch.Generator().manual_seed(2))
    scored = torch.zeros(5, 24, dtype=torch.bool)
    scored[0, 1:] = scored[1:, 16:] = True
    scored[4, 20:] = False  # the text ends inside the last window
    with torch.no_grad():
        log_probability = model(ids).logits[:, :-1].double().log_softmax(-1)
    want = -log_probability.gather(2, ids[:, 1:, None])[..., 0] * scored[:, 1:]
    counts = recorded_forwards(model)
    got = nll_of_windows(model, ids, scored, batch_tokens)
    assert got.dtype == torch.float64
    assert torch.allclose(got[:, 1:], want, atol=1e-4)
    assert not got[~scored].any()
    assert max(counts) <= batch_tokens


def test_window_nll_refuses_what_has_no_context():
    ids = torch.full((1, 4), 5)
    with pytest.raises(ValueError, match="first token of a window"):
        nll_of_windows(tiny("llama"), ids, torch.ones(1, 4, dtype=torch.bool), 100)


def test_perplexity_figures():
    sums, counts = torch.tensor([20.0, 33.0, 24.0]), torch.tensor([10, 15, 10])
    figures = compute_perplexity(sums, counts, bytes=140, words=22, drawn=True)
    mean = 77 / 35
    residuals = [20 - 10 * mean, 33 - 15 * mean, 24 - 10 * mean]
    error = math.sqrt(3 / 2 * sum(r * r for r in residuals)) / 35
    assert figures.nll_per_token == pytest.approx(mean)
    assert figures.perplexity == pytest.approx(math.exp(mean))
    assert figures.bits_per_byte == pytest.approx(77 / math.log(2) / 140)
    assert figures.byte_perplexity == pytest.approx(math.exp(77 / 140)) == pytest.approx(2**figures.bits_per_byte)
    assert figures.word_perplexity == pytest.approx(math.exp(3.5))
    assert (figures.tokens, figures.words, figures.windows) == (35, 22, 3)
    assert figures.perplexity_low == pytest.approx(math.exp(mean - 4.302653 * error))
    assert figures.perplexity_high == pytest.approx(math.exp(mean + 4.302653 * error))


def test_the_interval_covers_the_truth_19_times_of_20():
    """Windows of differing difficulty and length, 400 texts of 20 windows."""
    draw = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(400):
        counts = torch.randint(50, 100, (20,), generator=draw)
        sums = counts * (3.0 + 0.3 * torch.randn(20, generator=draw))
        figures = compute_perplexity(sums, counts, bytes=1000, words=1000, drawn=True)
        covered += figures.perplexity_low < math.exp(3.0) < figures.perplexity_high
    assert 0.92 < covered / 400 < 0.98


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_softmax_in_parts_is_that_of_all_rows_and_of_equal_logits_the_first_is_greedy(dtype, monkeypatch):
    model = tiny("llama", tie_word_embeddings=False).to(dtype)
    head = model.lm_head.weight
    h = torch.randn(9, head.shape[1], generator=torch.Generator().manual_seed(0)).to(dtype)
    first = int((h @ head.T)[0].argmax())
    with torch.no_grad():
        head[first + 1 :][:2] = head[first]  # three words that are equally likely
    row, token = torch.arange(9).repeat_interleave(VOCABULARY), torch.arange(VOCABULARY).repeat(9)
    monkeypatch.setattr(precision, "CACHED", 2 * VOCABULARY)  # parts of two rows, the last of one
    with torch.no_grad():
        found, best = scoring._log_probability(model, h, row, token)
        logits = model.lm_head(h)
    assert torch.allclose(found.view(9, -1), logits.double().log_softmax(-1), atol=1e-5)
    assert torch.equal(best.view(9, -1)[:, 0], logits.argmax(-1))
    assert best[0] == first


def test_one_window_has_no_interval():
    figures = to_plain(compute_perplexity(torch.tensor([20.0]), torch.tensor([10]), bytes=40, words=8, drawn=False))
    assert {"perplexity", "nll_per_token", "windows"} <= figures.keys()
    assert not {"perplexity_low", "perplexity_high"} & figures.keys()


def test_an_interval_that_reaches_beyond_a_float_is_left_out():
    """Of a broken model: 20 and 180 nats per token, whose mean has a finite perplexity."""
    figures = compute_perplexity(torch.tensor([200.0, 1800.0]), torch.tensor([10, 10]), bytes=80, words=16, drawn=True)
    assert figures.perplexity == pytest.approx(math.exp(100))
    assert figures.perplexity_low is figures.perplexity_high is None


def test_a_perplexity_beyond_a_float_is_endless():
    figures = compute_perplexity(torch.tensor([8000.0, 7000.0]), torch.tensor([10, 10]), bytes=21, words=5, drawn=False)
    assert figures.perplexity == figures.byte_perplexity == math.inf
    assert figures.nll_per_token == 750
    assert math.isnan(compute_perplexity(torch.tensor([math.nan]), torch.tensor([10]), 21, 5, drawn=False).perplexity)


@pytest.mark.parametrize("words", [0, 1])
def test_a_text_without_spaces_has_no_word_perplexity(words):
    figures = compute_perplexity(torch.tensor([900.0]), torch.tensor([300]), bytes=900, words=words, drawn=False)
    assert figures.word_perplexity is None
    assert figures.perplexity == pytest.approx(math.exp(3))
