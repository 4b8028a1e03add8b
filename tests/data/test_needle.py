"""Needles: where the fact stands in its context, what else the context has, and what the task makes of it."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise

import pytest
from conftest import refused
from lm_eval.api.model import LM

from bench.data import needle, task_loading, texts
from bench.data.task_sources import GROUPS, OFFLINE
from bench.evaluation.tasks import evaluate


class Finder(LM):
    """Finds the code that stands in the context likely, unless that is longer than it reads."""

    def __init__(self, reads: int) -> None:
        super().__init__()
        self.reads = reads

    def loglikelihood(self, requests, **_):
        return [
            (-1.0 if code.strip() in context[-self.reads :] else -9.0, False)
            for context, code in (r.args for r in requests)
        ]

    def loglikelihood_rolling(self, requests, **_):
        raise NotImplementedError

    def generate_until(self, requests, **_):
        raise NotImplementedError


@pytest.fixture(scope="module")
def documents():
    return list(OFFLINE["needle_512"].read())


def test_documents_are_pinned(documents):
    """Another digest is another version of the task: raise that of its definition."""
    content = json.dumps(documents, sort_keys=True).encode()
    assert hashlib.sha256(content).hexdigest()[:16] == "872ea0e23e826b22"


def test_a_tokenizer_with_few_characters_a_token_gets_a_shorter_context(documents):
    """One of usual length gets the same documents as any other."""

    def by(size):
        return lambda text: {"input_ids": [0, *range(0, len(text), size)]}  # with a token that begins a text

    assert list(OFFLINE["needle_512"].read(by(4))) == documents
    for size in (3, 1):
        (task,) = task_loading.load_tasks(["needle_512"], tokenizer=by(size)).values()
        shorter = list(task.eval_docs)
        tokens = [len(by(size)(f"{each['question']} {each['choices'][0]}")["input_ids"]) for each in shorter]
        assert 0.6 * 512 < max(tokens) <= 512
        assert [each["depth"] for each in shorter] == [each["depth"] for each in documents]
        assert all(each["choices"][each["right"]] in each["question"] for each in shorter)


def test_one_fact_stands_at_its_depth_in_a_context_of_the_right_size(documents):
    assert len(documents) == needle.HAYSTACKS * len(needle.DEPTHS)
    for number, document in enumerate(documents):
        text, codes = document["question"], document["choices"]
        assert 0.8 * 1920 < len(text) <= 1920
        assert [text.count(code) for code in codes] == [place == document["right"] for place in range(10)]
        haystack, _, question = text.partition("\n\nQuestion: What is the code?\nAnswer: ")
        fact = f"{question} {codes[document['right']]}."
        before, _, behind = haystack.partition(fact)
        length = len(before) + len(behind)
        assert document["depth"] == needle.depth_of_document(number)
        assert abs(len(before) - document["depth"] / 100 * length) < 400  # a sentence is not cut
        assert (before == "") is (document["depth"] == 0)
        assert (behind == "") is (document["depth"] == 100)


def test_a_haystack_has_no_code_of_its_own_and_no_sentence_of_figures():
    """Its codes are drawn before its sentences, so that those of other articles are known here."""
    plain = [f"Nothing is said of any number in the article on {word * 9}." for word in ("tea", "snow", "bread")] * 40
    codes = {code for document in needle.make_documents("needle_512", plain) for code in document["choices"]}
    articles = [f"{'A word and ' * 11}the number {code}. In {code}, {code} and {code}." for code in sorted(codes)]
    documents = needle.make_documents("needle_512", articles)
    assert {code for document in documents for code in document["choices"]} == codes
    for document in documents:
        text = document["question"]
        assert sum(text.count(code) for code in codes) > 10
        assert [text.count(code) for code in document["choices"]] == [n == document["right"] for n in range(10)]
        assert "In " not in text


def test_tokens_are_those_of_a_question_with_its_answer(documents):
    question, choices = documents[0]["question"], documents[0]["choices"]
    assert needle._count_tokens(documents[0], lambda text: {"input_ids": text}) == len(f"{question} {choices[0]}")


def test_depths_of_a_haystack_differ_in_the_place_of_the_fact_alone(documents):
    first = documents[: len(needle.DEPTHS)]
    assert len({tuple(document["choices"]) for document in first}) == 1
    words = [sorted(document["question"].split()) for document in first]
    assert all(one == other for one, other in pairwise(words))
    assert len({document["question"] for document in documents}) == len(documents)


def test_no_haystack_is_calibrated_on(documents):
    calibration, evaluation = (" ".join(" ".join(half).split()) for half in texts.split_halves("wiki"))
    for document in documents[:: len(needle.DEPTHS)]:
        sentences = needle.END_OF_SENTENCE.split(document["question"])[2:-4]
        known = sum(sentence in evaluation for sentence in sentences)  # the last one of an article may lack its stop
        assert known > len(sentences) / 2
        shared = sum(len(sentence) > 40 and sentence in calibration for sentence in sentences)
        assert shared <= len(sentences) / 4  # formulas, as of years in review


def test_the_task_is_a_choice_among_ten_codes_and_a_short_reader_loses_the_depths_that_it_does_not_reach():
    (task,) = task_loading.load_tasks(["needle_512"]).values()
    scores, samples = evaluate(Finder(800), {"needle_512": task}, {"needle_512": list(range(100))})
    score, rows = scores["needle_512"], samples["needle_512"]
    assert (score.main, score.documents, score.chance) == ("acc", 100, pytest.approx(0.1))
    found = {
        depth: rows["answer_bpb"][[needle.depth_of_document(n) == depth for n in rows["doc_id"]]]
        for depth in needle.DEPTHS
    }
    near = 1 / (5 * 0.6931471805599453)  # bits of one nat over " 1234"
    assert found[100].tolist() == pytest.approx([near] * 20)
    assert found[75].tolist() == pytest.approx([near] * 20)
    assert found[0].tolist() == pytest.approx([9 * near] * 20)


def test_a_context_that_the_model_does_not_take_is_refused(base, capsys):
    asked = [word for word in base if word not in ("--tasks", "none")]
    error = refused(capsys, [*asked, "--methods", "drop-tail", "--ratio", "0.3", "--tasks", "needle_1k,needle_4k"])
    assert "--tasks needle_4k: a context of 4096 is more than the 2048 tokens that the model takes" in error
    assert max(needle.CONTEXTS[task] for task in GROUPS["needle"]) == 2048
