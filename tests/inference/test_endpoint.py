"""Scoring by an OpenAI-compatible server, on the loopback address over a tiny model."""

from __future__ import annotations

import json
import math
import re
from contextlib import ExitStack
from dataclasses import replace
from threading import Barrier, BrokenBarrierError
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from completions_server import serve_completions
from conftest import refused, tiny
from lm_eval.api.instance import Instance
from transformers import AutoTokenizer

from bench.cli.main import main
from bench.evaluation import agreement
from bench.evaluation.scoring import OwnModel, Scorer
from bench.inference import endpoint
from bench.plan.address import KEY, ServerAddress
from bench.plan.cell import ScoringEngine
from bench.records.comparability import GATE, conditions_of_gate, setups_of_records
from bench.records.run_folder import load_run, samples

WAYS = ("prompt_logprobs", "echo")
SECRET = "sesame-open-17"


@pytest.fixture(scope="module")
def loaded(model_folder):
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(model_folder).eval(), AutoTokenizer.from_pretrained(model_folder)


@pytest.fixture
def with_key(monkeypatch, capsys):
    """What is printed, with the key in the environment."""
    monkeypatch.setenv(KEY, SECRET)
    return capsys


@pytest.fixture
def words(base, tmp_path):
    """A sound run of the dense model with a task."""
    rows = [{"goal": f"w{i} w5", "sol1": "w1 w2", "sol2": f"w{i}", "label": i % 2} for i in range(6)]
    (tmp_path / "piqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = ["--tasks", "piqa", "--task-data", f"piqa={tmp_path / 'piqa.jsonl'}"]
    return [*base, "--methods", "dense", *task]


def by_server(words, url, *more):
    return [*words, "--scorer", "endpoint", "--endpoint", url, *more]


def test_a_server_s_scores_are_this_suite_s_and_stand_apart(words, loaded, tmp_path, with_key):
    assert main([*words, "--out", str(tmp_path / "own")]) == 0
    with serve_completions(*loaded, key=SECRET) as (url, asked):
        served = by_server(words, f"{url}/v1/", "--out", str(tmp_path / "served"))
        for version, least in (("0.32.0", 16), ("0.32.0", 0), ("0.33.0", 16)):
            asked.version = version
            before = len(asked.requests)
            assert main(served) == 0
            assert least <= len(asked.requests) - before - 1  # the probe
            assert least or len(asked.requests) == before + 1
    err = with_key.readouterr().err
    assert "has a record" in err and "this has changed: scored_by" in err
    (own,), (record,) = load_run(tmp_path / "own"), load_run(tmp_path / "served")
    assert record.cell.inputs.scored_by == ScoringEngine("vllm", "0.33.0", "prompt_logprobs")
    assert record.measured.agreement.tokens > 0 and record.measured.agreement.largest < 1e-4
    ours, theirs = (samples(tmp_path / run, "piqa") for run in ("own", "served"))
    assert ours["greedy"].map(list).tolist() == theirs["greedy"].map(list).tolist()
    (text,) = (name for name in own.measured.samples if name.startswith("perplexity"))
    windows, served_windows = (samples(tmp_path / run, text)["nll"] for run in ("own", "served"))
    answers, served_answers = (each["loglikelihoods"].explode() for each in (ours, theirs))
    for want, got in ((windows, served_windows), (answers, served_answers)):
        assert np.abs(want.to_numpy(float) - got.to_numpy(float)).max() < 1e-4
    written = b"".join(path.read_bytes() for path in (tmp_path / "served").rglob("*") if path.is_file())
    assert SECRET.encode() not in written and b"127.0.0.1" not in written and SECRET not in err
    assert re.search(r"scored by +\| vllm 0\.33\.0, by prompt_logprobs, held", written.decode(errors="replace"))
    earlier = replace(record, cell=with_engine(record.cell, replace(record.cell.inputs.scored_by, version="0.32.0")))
    here = replace(record, cell=with_engine(record.cell, None))
    assert len(set(setups_of_records([record, earlier, here, own, record]))) == 4
    assert conditions_of_gate(record)["scored_by"] != conditions_of_gate(earlier)["scored_by"]
    assert "scored_by" not in conditions_of_gate(own) and "scored_by" not in GATE["size"]
    assert "scored_by" in GATE["text"] and "scored_by" in GATE["task"]


def with_engine(cell, engine):
    return replace(cell, inputs=replace(cell.inputs, scored_by=engine))


@pytest.mark.parametrize("way", WAYS)
def test_either_way_gives_the_likelihoods_of_the_model(loaded, way):
    own = OwnModel(loaded[0], 2048)
    best = int(loaded[0](torch.tensor([[5, 6, 7]])).logits[0, -1].argmax())
    questions = sorted({((5, 6, 7, best), 1), ((5, 6, 7, best + 1), 1), ((5, 6, 7, best, 9), 4), ((8, 9), 1)})
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    scored = torch.tensor([[False, True, True, True], [False, False, True, True]])
    with serve_completions(*loaded, way=way) as (url, _):
        server = endpoint.connect(ServerAddress(url))
        (got, greedy), nll = server.score_questions(questions), server.nll_of_windows(ids, scored)
    want, own_greedy = own.score_questions(questions)
    assert torch.allclose(got, want, atol=1e-4) and greedy.tolist() == own_greedy.tolist() and greedy.sum() == 1
    assert torch.allclose(nll, own.nll_of_windows(ids, scored), atol=1e-4)


REFUSED = {
    "give --methods dense": {"flags": ["--methods", "shortgpt", "--ratio", "0.3"]},
    "--speed-rounds times the model in this process": {"flags": ["--speed-rounds", "6"]},
    "leave --engine out": {"flags": ["--engine", "slurm"]},
    "has no model 'large'; it has tiny": {"flags": ["--endpoint-model", "large"]},
    "has 2 models, a, b; name one with --endpoint-model": {"models": ("a", "b")},
    "gives no log-probabilities of a prompt, .* refuses a request .status 400.: Only no echo is supported": {
        "way": "none"
    },
    "takes 20 tokens, and a request has 33 with": {"longest": 20},
    f"refuses the key of {KEY} .status 401": {"key": "another"},
    "answers a completion without choices": {"replies": lambda reply: {"text": "yes"}},
    "answers at /v1/completions with what is no JSON object": {"replies": lambda reply: b"\xff<html>"},
    "other tokens than it was given": {"replies": lambda reply: {"choices": [{"prompt_logprobs": [None, {"1": {}}]}]}},
}


@pytest.mark.parametrize("line", REFUSED)
def test_a_server_that_cannot_score_is_refused_before_any_work(words, loaded, line, with_key):
    details = {"key": SECRET} | REFUSED[line]
    flags = details.pop("flags", [])
    with serve_completions(*loaded, **details) as (url, _):
        said = refused(with_key, by_server(words, url, *flags))
    assert re.search(line, said)
    assert SECRET not in said


def test_an_address_that_is_none_is_refused(words, capsys, monkeypatch):
    assert "gives no answer: [Errno 111]" in refused(capsys, by_server(words, "http://127.0.0.1:9"))
    for wrong in ("127.0.0.1:8000", "ftp://host", "http://", "http://host:port", "http://a b"):
        assert "--endpoint is an address as in http://127.0.0.1:8000" in refused(capsys, by_server(words, wrong))
    for secret in (f"http://me:{SECRET}@host", f"http://host?key={SECRET}"):
        said = refused(capsys, by_server(words, secret))
        assert KEY in said and SECRET not in said
    assert "add --scorer endpoint" in refused(capsys, [*words, "--endpoint", "http://host"])
    assert "--endpoint URL says which" in refused(capsys, [*words, "--scorer", "endpoint"])
    monkeypatch.setenv(KEY, f"{SECRET}\n")
    said = refused(capsys, by_server(words, "http://127.0.0.1:9"))
    assert KEY in said and SECRET not in said


def test_the_key_does_not_go_along_with_a_redirect(loaded, monkeypatch):
    monkeypatch.setenv(KEY, SECRET)
    shown = []
    with (
        serve_completions(*loaded, do_GET=lambda handler: shown.append(handler.headers)) as (target, _),
        ExitStack() as on,
    ):
        url, _ = on.enter_context(serve_completions(*loaded, elsewhere=f"{target}/v1/models"))
        with pytest.raises(endpoint.NoAnswer, match=r"sends to another address \(status 302\)"):
            endpoint.connect(ServerAddress(url))
    assert shown == []


def after(count, reply):
    """Change replies from the one with this number on."""
    numbers = iter(range(10**6))
    return lambda right: right if next(numbers) < count else reply(right)


def hang(_):
    raise BrokenBarrierError  # in the thread of the request, which closes the connection without an answer


FAILED = {
    "gives no answer, 4 times": {"replies": after(12, hang)},
    "answers with the log-probabilities of other tokens": {
        "replies": after(
            12, lambda right: json.loads(json.dumps(right).replace('"logprob": -', '"logprob": NaN, "x": -'))
        )
    },
}


@pytest.mark.parametrize("line", FAILED)
def test_a_server_that_fails_in_a_run_is_the_outcome_of_its_cell(words, loaded, tmp_path, line, monkeypatch):
    monkeypatch.setattr(endpoint, "PAUSES", (0.01, 0.01, 0.01))
    with serve_completions(*loaded, **FAILED[line]) as (url, _):
        assert main(by_server(words, url, "--endpoint-requests", "1")) == 3
    (record,) = load_run(tmp_path / "run")
    assert record.status == "error" and record.error.startswith(line) and "\n" not in record.error
    assert "127.0.0.1" not in record.error


def test_a_server_of_another_model_is_no_score(words, loaded, tmp_path):
    with serve_completions(tiny("llama", seed=3, max_position_embeddings=2048), loaded[1]) as (url, _):
        assert main(by_server(words, url)) == 3
    (record,) = load_run(tmp_path / "run")
    assert record.status == "error" and "it serves another model" in record.error
    assert record.measured.perplexity is None and record.measured.tasks is None


def test_a_busy_server_is_asked_again_and_one_that_hangs_is_not(loaded, monkeypatch):
    monkeypatch.setattr(endpoint, "PAUSES", (0.01, 0.01, 0.01))
    with serve_completions(*loaded, busy=3) as (url, asked):
        endpoint.connect(ServerAddress(url))
        assert len(asked.requests) == 4
        server = endpoint.connect(ServerAddress(url, seconds=1))
        stuck = Barrier(2)
        asked.replies = lambda right: stuck.wait(3) or right
        before = len(asked.requests)
        with pytest.raises(endpoint.NoAnswer, match="says nothing for 1 s"):
            server.score_questions([((5, 6, 7), 1)])
        assert len(asked.requests) == before + 1
        stuck.abort()


def test_several_requests_wait_at_once_and_no_more_than_asked(loaded):
    waiting, most = [], []
    together = Barrier(3)

    def meet(right):
        waiting.append(1)
        most.append(len(waiting))
        together.wait(20)  # which no two alone pass
        waiting.pop()
        return right

    with serve_completions(*loaded) as (url, asked):
        server = endpoint.connect(ServerAddress(url, requests=3))
        asked.replies = meet
        questions = sorted({((5, 6, number), 1) for number in range(9)})
        got, _ = server.score_questions(questions)
    assert max(most) == 3
    want, _ = OwnModel(loaded[0], 2048).score_questions(questions)
    assert torch.allclose(got, want, atol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_what_a_server_writes_is_what_the_model_writes(loaded, way):
    """By the ids of tokens, or by their text; up to the first stop string, also where a server knows none."""
    model, tokenizer = loaded
    prompts = ["w5 w6 w7", "w5 w6 w9 w11", "w20"]
    asked = [(prompt, {"until": until, "max_gen_toks": 8}) for prompt in prompts for until in ([], ["w99", "w7"])]
    wanted = [Instance("generate_until", {}, each, 0) for each in asked]
    own = Scorer(model, tokenizer).generate_until(wanted)
    own_stop = own[0].split()[3]
    wanted += [Instance("generate_until", {}, (prompts[0], {"until": [own_stop], "max_gen_toks": 8}), 0)]
    own = Scorer(model, tokenizer).generate_until(wanted)
    assert len(own[-1].split()) <= 3 < len(own[0].split())
    with serve_completions(model, tokenizer, way=way) as (url, handler):
        server = endpoint.connect(ServerAddress(url), tokenizer)
        assert Scorer(model, tokenizer, backend=server).generate_until(wanted) == own
        sent = [body for body in handler.requests if "stop" in body]
    assert {body["max_tokens"] for body in sent} == {8} and all(body["temperature"] == 0 for body in sent)


@pytest.mark.parametrize(("dtype", "passes", "fails"), [("float32", 9e-4, 1.1e-3), ("bfloat16", 0.1, 0.2)])
def test_likelihoods_pass_within_the_tolerance_of_their_dtype(loaded, dtype, passes, fails):
    own, questions = OwnModel(loaded[0], 2048), [((5, 6, 7, 8), 2), ((9, 10, 11), 1)]

    def compare(off):
        scored, greedy = own.score_questions(questions)
        moved = scored + off * torch.tensor([length for _, length in questions])
        engine = SimpleNamespace(score_questions=lambda asked: (moved, greedy))
        return agreement.compare_backends(engine, own, None, questions, dtype)

    for off in (passes, -passes):
        near = compare(off)
        assert near.tokens == 3 and near.mean == pytest.approx(passes) and near.largest == pytest.approx(passes)
    for off in (fails, -fails, math.nan):
        with pytest.raises(agreement.Unlike):
            compare(off)
