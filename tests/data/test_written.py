"""Answers that are written: which are right, what their documents are made of, and what ends them."""

import gzip
import hashlib
import json

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset
from lm_eval.api.model import LM

from bench.data import assets, conversion, skills, task_loading, task_sources
from bench.data.written import judge_number, judge_text, judge_words
from bench.evaluation.tasks import evaluate
from methods.errors import UserError


@pytest.mark.parametrize(
    ("written", "answers", "exact_match", "f1"),
    [
        (" The  Eiffel Tower.", ["Louvre", "eiffel tower"], 1, 1),
        (" New York", ["York City", "New York City"], 0, 4 / 5),
        (" the", ["A"], 0, 0),  # both without their articles are nothing
        ("", ["x"], 0, 0),
        (" new new york", ["new new jersey"], 0, 2 / 3),  # a word counts as often as both have it
    ],
)
def test_words_are_compared_as_for_squad(written, answers, exact_match, f1):
    metrics = judge_words({"answers": answers}, [written])
    assert metrics == {"exact_match": exact_match, "f1": pytest.approx(f1)}


@pytest.mark.parametrize(
    ("written", "is_right"),
    [
        (" He has 3 + 4 = 7. So the answer is 1,250.", True),
        (" It costs $1250", True),
        (" 1250 dollars for 2", False),
        (" twelve", False),
        (" So the answer is -1250.", False),
    ],
)
def test_the_last_number_is_the_answer(written, is_right):
    assert judge_number({"answers": ["1,250"]}, [written]) == {"exact_match": is_right}


@pytest.mark.parametrize(("written", "is_right"), [(" 32", True), ("32.", True), (" 32 2", False), (" 3 2", False)])
def test_a_short_text_is_the_same_text(written, is_right):
    assert judge_text({"answers": ["32"]}, [written]) == {"exact_match": is_right}


def request(number, question, label, choices=(" a",), name="task"):
    """The requests of one document."""
    alike = {"doc_id": number, "native_id": None, "label": label, "task_name": name}
    return [alike | {"request": {"context": question, "continuation": choice}} for choice in choices]


LISTED = "Question: {0}?\n A. red\n B. grey\nAnswer:"


def documents_of_requests(tmp_path, monkeypatch, name, requests):
    monkeypatch.setattr(conversion, "SOURCES", {name: "a/form"})
    (tmp_path / "a/form").mkdir(parents=True)
    (tmp_path / "a/form/config.json").write_text(json.dumps({"task_config": {"num_shots": 2}}))
    with gzip.open(tmp_path / "a/form/requests.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in requests)
    conversion.keep_requests(tmp_path)
    return pyarrow.parquet.read_table(tmp_path / conversion.file_of_task(name)).to_pylist()


def test_labels_become_all_answers_that_are_right(tmp_path, monkeypatch):
    lines = [*request(0, "X\n\nQ0", ["5", "five", "5"]), *request(1, "X\n\nQ1", "six")]
    lines += request(2, "X\n\nQ2", 1, (" a", " b"))
    documents = documents_of_requests(tmp_path, monkeypatch, "squad_gen", lines)
    assert [document["answers"] for document in documents] == [["5", "five"], ["six"], ["b"]]
    assert {document["preface"] for document in documents} == {"X\n\n"}
    assert documents[2] == {"id": "2", "question": "Q2", "answers": ["b"], "preface": "X\n\n", "examples": 2}


def test_letters_of_copycolors_become_the_colors(tmp_path, monkeypatch):
    prompt = f"{LISTED.format('Ash')} B\n\n{LISTED.format('Jam')}"
    lines = request(0, prompt, 0, (" A", " B"), "copycolors:mc")
    (document,) = documents_of_requests(tmp_path, monkeypatch, "copycolors_gen", lines)
    assert document["preface"] + document["question"] == "Question: Ash?\nAnswer: grey\n\nQuestion: Jam?\nAnswer:"
    assert document["answers"] == ["red"]


def test_the_first_documents_of_trivia_are_the_examples_of_the_others(tmp_path):
    rows = [
        {"question_id": f"q{n}", "question": f"Who {n}?", "answer": {"value": f"V{n}", "aliases": [f"A{n}", f"V{n}"]}}
        for n in range(7)
    ]
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.OSFile(str(tmp_path / "t.arrow"), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    documents = conversion.read_trivia(tmp_path / "t.arrow")
    assert [document["id"] for document in documents] == ["q5", "q6"]
    assert documents[0]["answers"] == ["V5", "A5"]
    assert documents[0]["preface"].startswith("Question: Who 0?\nAnswer: V0\n\nQuestion: Who 1?")
    assert documents[0]["preface"].endswith("Answer: V4\n\n")
    assert documents[1]["question"] == "Question: Who 6?\nAnswer:"


class Writing(LM):
    """Writes what a dictionary says behind each prompt, and notes what would end it."""

    def __init__(self, text_by_prompt):
        super().__init__()
        self.text_by_prompt, self.ends = text_by_prompt, []

    def generate_until(self, requests):
        self.ends += [request.args[1] for request in requests]
        return [self.text_by_prompt[request.args[0]] for request in requests]

    def loglikelihood(self, requests):
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


def test_a_written_task_has_exact_match_and_what_was_written(tmp_path):
    rows = [{"preface": "E\n\n", "question": f"Q{n}", "answers": ["red", "dark red"]} for n in range(3)]
    task = task_loading.make_task(task_loading.make_definition("squad_gen"), Dataset.from_list(rows), None)
    lm = Writing({"E\n\nQ0": " Dark Red", "E\n\nQ2": " red wine"})
    scores, samples = evaluate(lm, {"squad_gen": task}, {"squad_gen": [0, 2]})
    score, rows = scores["squad_gen"], samples["squad_gen"]
    assert (score.main, score.is_accuracy, score.chance, score.answer_bpb) == ("exact_match", True, None, None)
    assert score.metrics["exact_match"].value == 0.5
    assert score.metrics["f1"].value == pytest.approx((1 + 2 / 3) / 2)
    assert rows["responses"].tolist() == [[" Dark Red"], [" red wine"]]
    assert rows["doc_id"].tolist() == [0, 2]
    assert lm.ends[0]["until"] == ["\n"]
    assert lm.ends[0]["max_gen_toks"] == 48


def test_local_documents_without_an_answer_are_one_line(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question": "q", "answers": ["a"]}\n{"question": "q", "answers": []}\n')
    data = task_sources.parse_task_data([f"gsm8k_gen={path}"])
    with pytest.raises(UserError, match="document 1 has no reference; leave out") as caught:
        task_loading.check_tasks(["gsm8k_gen"], data)
    assert "\n" not in str(caught.value)


@pytest.mark.default_model
def test_documents_are_the_pinned_ones_and_those_of_the_other_forms():
    """Another digest is another version of the tasks: raise that of `make_definition`, and conversion.DOCUMENTS."""
    digest = hashlib.sha256()
    for name in skills.WRITTEN:
        forms = [pyarrow.parquet.read_table(assets.fetch_documents(form)) for form in skills.FORMS[name]]
        *scored, written = forms
        assert [table["id"].to_pylist() for table in scored] == [written["id"].to_pylist()] * len(scored)
        prefaces = written["preface"].unique().to_pylist()
        digest.update(json.dumps([name, prefaces, written.drop_columns(["preface"]).to_pydict()]).encode())
        assert all(answers and all(answers) for answers in written["answers"].to_pylist())
    assert digest.hexdigest() == "21d27eecbe5946ac5c5d78ccc4a228caf25aab0522b7edfdc3bce3ff7df18f3f"
