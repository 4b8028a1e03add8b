"""Prompts with instructions, and the rule of each on answers by hand: one that follows it, and others that do not."""

import hashlib
import json
from collections import Counter
from itertools import combinations

import pytest
from lm_eval.api.model import LM

from bench.data import instructions, task_loading, task_sources
from bench.data.instructions import ANCHORS, INSTRUCTIONS, is_followed, judge_answer, make_documents
from bench.evaluation.tasks import evaluate
from methods.errors import UserError

# kind: number, words, answers that follow it, answers that do not
BY_HAND = {
    "words_at_most": (4, (), ["One, two - three.", "It's well-known."], ["one two three four five"]),
    "words_at_least": (4, (), ["one two three four", "a b c 7"], ["one - two ... three", "it's mother-in-law's"]),
    "sentences_at_most": (2, (), ["One. Two!", "3.14 is pi. So"], ["One. Two. Three.", "One? Two! three"]),
    "sentences_at_least": (
        2,
        (),
        ['He said "no." She left.', "Why? Because"],
        ["One.", "Version 3.14 ...", "One. ..."],
    ),
    "list_items": (2, (), ["Here:\n- one\n- two\nBye.", "* one\n  - two"], ["- one", "- 1\n- 2\n- 3", "-one\n-two"]),
    "lower_case": (0, (), ["all small, 7 of them."], ["One capital.", "7"]),
    "json_keys": (
        0,
        ("name", "size"),
        ['{"size": 1, "name": [2]}', '```json\n{"name": "a",\n "size": null}\n```'],
        ['{"name": 1}', '{"name": 1, "size": 2, "x": 3}', 'Sure: {"name": 1, "size": 2}', "[1]", '"name"', "{name: 1}"],
    ),
    "no_commas": (0, (), ["no comma; here"], ["one, two"]),
    "in_quotes": (0, (), ['  "All of it."\n'], ['He said "no."', '"No," he said.', "'no'", "“no”"]),
    "contains": (0, ("river",), ["A RIVER.", "the river's end"], ["rivers", "driver", "stream"]),
    "contains_times": (2, ("river",), ["River, river!"], ["river rivers", "a river"]),
    "excludes": (0, ("rain",), ["brain, rainy"], ["The rain.", "RAIN"]),
    "ends_with": (0, ("That is all.",), ["x. That is all. \n", "that is all."], ["That is all. x", "That is all"]),
}


@pytest.mark.parametrize("kind", INSTRUCTIONS)
def test_each_rule_tells_answers_that_follow_it_from_others(kind):
    number, words, right, wrong = BY_HAND[kind]
    instruction = {"kind": kind, "number": number, "words": list(words)}
    assert [answer for answer in right if not is_followed(instruction, answer)] == []
    assert [answer for answer in wrong if is_followed(instruction, answer)] == []


def test_an_answer_follows_a_prompt_where_it_follows_all_and_without_a_word_none():
    asked = [{"kind": "no_commas", "number": 0, "words": []}, {"kind": "contains", "number": 0, "words": ["river"]}]
    for answer, shares in (
        ("a river", (1, 1)),
        ("a, river", (0, 0.5)),
        ("a, b", (0, 0)),
        ("", (0, 0)),
        ("...", (0, 0)),
    ):
        scores = judge_answer({"instructions": asked}, [answer])
        assert (scores["prompt_acc"], scores["instruction_acc"]) == shares


def test_the_prompts_are_the_pinned_ones():
    """Another digest is another version of the task: raise that of `instructions.make_definition`."""
    documents = make_documents()
    digest = hashlib.sha256(json.dumps(documents, sort_keys=True).encode()).hexdigest()
    assert digest == "7fb327f1949d3c1db0a6ca0065c000017389044167c5b27308444b25b9165ac5"
    assert len({document["prompt"] for document in documents}) == len(documents) == 200


def test_no_prompt_has_instructions_that_contradict_each_other_and_each_kind_comes_often():
    documents, counts = make_documents(), dict.fromkeys(INSTRUCTIONS, 0)
    for document in documents:
        kinds = [instruction["kind"] for instruction in document["instructions"]]
        assert all(instructions.words_of_instruction(each) in document["prompt"] for each in document["instructions"])
        for kind in kinds:
            counts[kind] += 1
        for one, other in combinations(kinds, 2):
            assert INSTRUCTIONS[one].group != INSTRUCTIONS[other].group
            assert one not in INSTRUCTIONS[other].not_with
            assert other not in INSTRUCTIONS[one].not_with
    assert min(counts.values()) >= 3
    assert min(counts[kind] for kind in ANCHORS) >= 30
    sizes = Counter(len(document["instructions"]) for document in documents)
    assert sizes == {1: 69, 2: 131}, "as the guide says"


@pytest.mark.parametrize(
    "answer", ["x", "x " * 80, "X y. " * 20, "No, and no.", "x\n" * 9, "It is a text about the topic."]
)
def test_a_text_that_ignores_its_prompt_follows_none(answer):
    assert [document for document in make_documents() if judge_answer(document, [answer])["prompt_acc"]] == []


class Writing(LM):
    """Writes one answer to every prompt."""

    def loglikelihood(self, requests):
        raise NotImplementedError

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError

    def generate_until(self, requests):
        self.asked = [request.args for request in requests]
        return ["- a river, not a road\n- a bridge" for _ in requests]


def test_answers_that_a_model_writes_are_judged():
    lm, documents = Writing(), make_documents()
    scores, samples = evaluate(lm, task_loading.load_tasks(["instructions"]), {"instructions": list(range(0, 200, 3))})
    score, table = scores["instructions"], samples["instructions"]
    assert (score.main, score.version, score.available, score.fewshot) == ("prompt_acc", 1.0, 200, 0)
    assert score.is_accuracy
    assert lm.asked[1] == (documents[3]["prompt"], {"until": [], "max_gen_toks": 128, "do_sample": False})
    for row in table.itertuples():
        judged = judge_answer(documents[row.doc_id], row.responses)
        assert (row.prompt_acc, row.instruction_acc) == tuple(judged.values())
    assert 0 < score.metrics["prompt_acc"].value < score.metrics["instruction_acc"].value < 1
    assert score.metrics["instruction_acc"].value == pytest.approx(table["instruction_acc"].mean())


def test_local_prompts_need_instructions_that_a_rule_tells(tmp_path):
    rows = [{"prompt": "Say no.", "instructions": [{"kind": "no_commas", "number": 0, "words": []}]}] * 2
    for name, kind in (("good", "no_commas"), ("bad", "politely")):
        rows[1] = {"prompt": "Say no.", "instructions": [{"kind": kind, "number": 0, "words": []}]}
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    good, bad = (task_sources.parse_task_data([f"instructions={tmp_path / name}.jsonl"]) for name in ("good", "bad"))
    assert task_loading.check_tasks(["instructions"], good) == ("instructions",)
    with pytest.raises(UserError, match="KeyError: 'politely'") as caught:
        task_loading.check_tasks(["instructions"], bad)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="--fewshot: instructions has no documents for examples"):
        task_loading.check_tasks(["instructions"], fewshot=1)
