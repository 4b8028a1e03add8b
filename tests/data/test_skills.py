"""Tasks by skill: what is made of requests, their names, their definitions, and the documents that a user gives."""

import gzip
import hashlib
import json
import re

import pyarrow.parquet
import pytest
from datasets import Dataset
from lm_eval.api.model import LM

from bench.data import assets, conversion, skills, task_loading, task_sources
from bench.data.task_sources import DEFINITIONS, GROUPS, OFFLINE
from bench.evaluation.tasks import evaluate
from bench.plan.protocol import protocol_of_profile
from methods.errors import UserError

EXAMPLES = "Question: One?\nAnswer: 1\n\nQuestion: Two?\nAnswer: 2\n\n"


def request(number, context, answer, label=0, native=None):
    """One line of a file of requests."""
    pair = {"context": context, "continuation": answer}
    return {"doc_id": number, "native_id": native, "label": label, "idx": 0, "request": pair, "doc": {}}


def write_requests(folder, source, lines, shots=2):
    place = folder / source
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps({"task_config": {"num_shots": shots}}))
    with gzip.open(place / "requests.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def converted(tmp_path, monkeypatch, lines_by_task):
    """The documents of tasks that requests make, and the tasks that lm-eval makes of them."""
    sources = {name: f"{name}/form" for name in lines_by_task}
    monkeypatch.setattr(conversion, "SOURCES", sources)
    for name, lines in lines_by_task.items():
        write_requests(tmp_path, sources[name], lines)
    conversion.keep_requests(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [conversion.DOCUMENTS]
    tables = {name: pyarrow.parquet.read_table(tmp_path / conversion.file_of_task(name)) for name in sources}
    return {
        name: task_loading.make_task(task_loading.make_definition(name), Dataset(table), None)
        for name, table in tables.items()
    }


def test_documents_make_the_prompts_that_they_came_from(tmp_path, monkeypatch):
    questions = [f"{EXAMPLES}Question: {word}?\nAnswer:" for word in "abcdefghijk"]
    questions.append("Question: One?\nAnswer:")  # an example of the others, which has none of its own
    solved = [request(number, text, f" {number}") for number, text in enumerate(questions)]
    chosen = [request(number, text, f" {n}", 1) for number, text in enumerate(questions) for n in ("x", " ", "z")]
    names = ("Ann", "Bo")
    filled = [request(number, f"Hi.\n\n{name} {number}", " ran.", 1) for number in range(3) for name in names]
    unconditional = [request(conversion.UNCONDITIONAL, "Answer:", " x", 1)]
    lines = {"gsm8k_bpb": solved, "sciq_rc": chosen + unconditional, "winogrande_rc": filled}
    tasks = converted(tmp_path, monkeypatch, lines)
    for name, task in tasks.items():
        with task_loading.silence_lm_eval():
            task.build_all_requests()
        conditional = [line for line in lines[name] if line["doc_id"] < conversion.UNCONDITIONAL]
        pairs = [(line["request"]["context"], line["request"]["continuation"]) for line in conditional]
        assert [instance.args for instance in task.instances] == pairs
    documents = tasks["gsm8k_bpb"].eval_docs
    assert [document["preface"] for document in documents] == [EXAMPLES] * 11 + [""]
    assert tasks["gsm8k_bpb"].doc_to_text(documents[0]) == "Question: a?\nAnswer:"
    assert {document["examples"] for document in documents} == {2}
    assert tasks["winogrande_rc"].eval_docs[0]["preface"] == "Hi.\n\n"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([request(4, "Q", None)], "document 4 has no reference"),
        ([request(4, "Q", "")], "document 4 has no reference"),
        ([request(4, "Q", " a", None), request(4, "Q", " b", None)], "the right choice None, of 2 choices"),
        ([request(4, "Q", " a", 2), request(4, "Q", " b", 2)], "the right choice 2, of 2 choices"),
        ([request(4, "Q", "a"), request(4, "Q", " b")], "a choice without a space"),
    ],
)
def test_requests_that_name_no_answer_are_one_line(tmp_path, monkeypatch, lines, words):
    with pytest.raises(UserError, match=f"gsm8k_bpb/form: document 4 has .*{words.removeprefix('document 4 has ')}"):
        converted(tmp_path, monkeypatch, {"gsm8k_bpb": lines})


def test_paragraphs_are_shared_where_nine_texts_of_ten_have_them():
    texts = [f"a\n\nb\n\n{number}\n\nc" for number in range(9)]
    assert conversion.find_shared_paragraphs([*texts, "a\n\nz"]) == "a\n\nb\n\n"
    assert conversion.find_shared_paragraphs([*texts, "z", "z"]) == ""
    assert conversion.find_shared_paragraphs(["a", "a"]) == ""


def test_names_are_none_of_lm_eval_s_and_groups_are_whole():
    definitions = b"\n".join(
        path.read_bytes() for path in DEFINITIONS.rglob("*") if path.suffix in ("", ".yaml") and path.is_file()
    )
    assert not [name for name in (*skills.SOURCES, *skills.SKILLS) if name.encode() in definitions]
    assert not re.search(rb"(task|tag|group): *-? *skills\s", definitions)
    assert sorted(name for names in skills.SKILLS.values() for name in names) == sorted(skills.SOURCES)
    assert len(skills.QUICK_SKILLS) == len(set(skills.QUICK_SKILLS)) == 27
    assert all(set(skills.QUICK_SKILLS) & set(names) for names in skills.SKILLS.values())
    assert skills.SOURCES.keys() <= OFFLINE.keys()
    assert {*map(conversion.file_of_task, skills.SOURCES)} == {*assets.ASSETS["skills"].holds}
    assert GROUPS["commonsense"][0] == "boolq", "the older group keeps its meaning"


class Answering(LM):
    """Gives a byte of every answer half a nat."""

    def loglikelihood(self, requests):
        return [(-0.5 * len(request.args[1].encode()), False) for request in requests]

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError

    def generate_until(self, requests):
        raise NotImplementedError


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def local_task(name, path):
    data = task_sources.parse_task_data([f"{name}={path}"])
    assert task_loading.check_tasks([name], data) == (name,)
    return task_loading.load_tasks([name], data)[name]


def test_a_task_with_one_reference_has_its_bits_and_no_accuracy(tmp_path):
    rows = [{"question": f"{number}:", "reference": " [1, 2]"} for number in range(4)]
    task = local_task("gsm8k_bpb", write_lines(tmp_path / "mine.jsonl", rows))
    scores, samples = evaluate(Answering(), {"gsm8k_bpb": task}, {"gsm8k_bpb": [0, 2]})
    score = scores["gsm8k_bpb"]
    assert (score.main, score.metrics, score.chance, score.is_accuracy) == ("answer_bpb", {}, None, False)
    assert score.main_metric == score.answer_bpb
    assert score.answer_bpb.value == pytest.approx(0.5 / 0.6931, rel=1e-4)
    assert samples["gsm8k_bpb"]["target"].tolist() == [" [1, 2]"] * 2
    assert (score.version, score.documents, score.available) == (1.0, 2, 4)


@pytest.mark.parametrize(
    ("name", "row", "words"),
    [
        ("gsm8k_bpb", {"question": "q", "reference": ""}, "document 1 has no reference; leave out"),
        ("gsm8k_bpb", {"question": "q"}, "document 1 has no reference; leave out"),
        ("sciq_rc", {"question": "q", "choices": ["a", "b"], "right": 2}, "document 1 has the right choice 2, of 2"),
    ],
)
def test_local_documents_without_an_answer_are_one_line(tmp_path, name, row, words):
    whole = {"question": "q", "reference": " r", "choices": ["a", "b"], "right": 0}
    path = write_lines(tmp_path / "mine.jsonl", [whole, row])
    with pytest.raises(UserError, match=words) as caught:
        local_task(name, path)
    assert "\n" not in str(caught.value)


def test_local_documents_without_a_column_are_one_line_that_names_it(tmp_path):
    path = write_lines(tmp_path / "mine.jsonl", [{"question": "q", "answer": "a"}])
    words = "has the columns question, answer, .*gsm8k_bpb.*KeyError: 'reference'"
    with pytest.raises(UserError, match=words) as caught:
        local_task("gsm8k_bpb", path)
    assert "\n" not in str(caught.value)


def test_examples_in_front_of_other_questions_cannot_be_asked_for():
    with pytest.raises(UserError, match="--fewshot: squad_bpb has no documents for examples"):
        task_loading.check_tasks(["squad_bpb"], fewshot=3)


@pytest.mark.default_model
def test_documents_are_the_pinned_ones_and_both_forms_have_the_same():
    """Another digest is another version of the tasks: raise that of `make_definition`, and conversion.DOCUMENTS."""
    digest, identities = hashlib.sha256(), {}
    for name in (name for name in skills.SOURCES if name not in skills.WRITTEN_TASKS):  # tests/data/test_written.py
        table = pyarrow.parquet.read_table(assets.fetch_documents(name))
        assert table.num_rows >= 100
        prefaces = table["preface"].unique().to_pylist()  # most of the text, and alike in nearly all documents
        digest.update(json.dumps([name, prefaces, table.drop_columns(["preface"]).to_pydict()]).encode())
        identities[name] = table["id"].to_pylist()
    assert digest.hexdigest() == "72df7a0e251e50c106a7bfe11dc76d783420e51abee76cc710373fa574f757f0"
    for name in skills.CHOICES:
        text, letter = (identities[f"{name}_{form}"] for form in ("rc", "mc"))
        assert len(text) == len(letter)
        if len(set(text)) == len(set(letter)) == len(text):  # else the data set numbers none
            assert text == letter


@pytest.mark.default_model
def test_the_quick_set_is_answered():
    names = ("jeopardy_bpb", "winogrande_rc", "basic_skills_arithmetic_mc")
    tasks = task_loading.load_tasks(names)
    scores, _ = evaluate(Answering(), tasks, {name: [3, 50] for name in names})
    assert [score.main for score in scores.values()] == ["answer_bpb", "acc", "acc"]
    assert [score.fewshot for score in scores.values()] == [5, 5, 5]
    assert [score.chance for score in scores.values()] == [None, 0.5, 0.1]
    assert tasks["jeopardy_bpb"].instances[0].args[0].startswith("Category: HISTORY\nQuestion: Under the 1814")


def test_the_profile_full_has_every_task_of_every_skill_in_all_forms():
    names = task_loading.split_groups(protocol_of_profile("full").tasks)
    assert {form for forms in skills.SKILLS.values() for form in forms} < set(names)
    assert len(names) == len(set(names)) == 7 + len(skills.SOURCES)
