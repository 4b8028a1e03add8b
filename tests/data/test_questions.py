"""Questions of tasks to calibrate on: those that nobody scores, without their answers."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from byte_tokens import byte_tokenizer

from bench.cli.main import main
from bench.data import questions, task_loading, texts
from bench.data.questions import pieces_of_questions, question_of_document, read_unscored_questions
from bench.data.task_sources import parse_task_data
from bench.plan.trust import Trust
from bench.records.run_folder import load_run
from methods.errors import UserError


def sentence(seed: int, words: int = 12) -> str:
    draw = random.Random(seed)
    return " ".join(f"w{draw.randrange(5000)}" for _ in range(words))


def documents_of_piqa(start: int, count: int) -> list[dict[str, object]]:
    return [
        {
            "goal": f"goal {sentence(start + at)}",
            "sol1": f"first{start + at}",
            "sol2": f"second{start + at}",
            "label": 0,
        }
        for at in range(count)
    ]


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def data(tmp_path):
    """Forty documents of PIQA in a file, as --task-data gives them."""
    return parse_task_data([f"piqa={write_rows(tmp_path / 'piqa.jsonl', documents_of_piqa(0, 40))}"])


@pytest.mark.parametrize("seed", [0, 1])
def test_what_a_cell_scores_is_not_read_and_no_answer_is(data, seed):
    task = task_loading.load_tasks(["piqa"], data)["piqa"]
    scored = set(task_loading.draw_documents(task, 10, seed))
    expected = {f"Question: goal {sentence(at)}\nAnswer:" for at in range(40) if at not in scored}
    every = read_unscored_questions("task:piqa", data, 10, seed)
    assert set(every) == expected and len(every) == 30
    assert not any(answer in question for question in every for answer in ("first", "second"))


@pytest.mark.parametrize("documents", [0, 40, 100])
def test_a_task_of_which_all_is_scored_is_refused_in_one_line(data, documents):
    with pytest.raises(UserError, match=r"task:piqa has no question that is not scored .* fewer --documents") as caught:
        read_unscored_questions("task:piqa", data, documents, 0)
    assert "\n" not in str(caught.value)


def test_a_question_that_equals_a_scored_one_or_shares_a_passage_is_left_out(tmp_path):
    rows, passage = documents_of_piqa(0, 40), sentence(999, 200)
    task = task_loading.load_tasks(["piqa"], parse_task_data([f"piqa={write_rows(tmp_path / 'a.jsonl', rows)}"]))[
        "piqa"
    ]
    scored = task_loading.draw_documents(task, 10, 0)
    copy, other, near = [at for at in range(40) if at not in scored][:3]
    rows[copy]["goal"] = rows[scored[0]]["goal"]
    rows[scored[1]]["goal"] = f"{passage} and then?"
    rows[other]["goal"] = f"Of {passage} what else?"
    rows[near]["goal"] = f"{passage[:200]} what else?"
    data = parse_task_data([f"piqa={write_rows(tmp_path / 'b.jsonl', rows)}"])
    every = read_unscored_questions("task:piqa", data, 10, 0)
    assert len(every) == 28
    assert any(rows[near]["goal"] in question for question in every), "a shorter phrase is no passage"


def test_a_split_for_training_is_taken_whole_even_where_all_is_scored(tmp_path):
    write_rows(tmp_path / "piqa/validation.jsonl", documents_of_piqa(0, 8))
    write_rows(tmp_path / "piqa/train.jsonl", [*documents_of_piqa(100, 12), *documents_of_piqa(3, 1)])
    every = read_unscored_questions("task:piqa", parse_task_data([f"piqa={tmp_path / 'piqa'}"]), 0, 0)
    assert {question.split("\n")[0] for question in every} == {
        f"Question: goal {sentence(at)}" for at in range(100, 112)
    }


def test_documents_for_training_are_read_in_the_form_of_the_task(tmp_path):
    """HellaSwag's definition makes the question of several columns."""
    rows = [
        {
            **{"ind": at, "activity_label": "Sailing", "ctx_a": f"a boat {sentence(at)}.", "ctx_b": "it", "label": "0"},
            **{"ctx": f"a boat {sentence(at)}. it", "endings": ["sinks", "floats", "flies", "sings"], "split": "x"},
            **{"source_id": f"s~{at}", "split_type": "indomain"},
        }
        for at in range(8)
    ]
    write_rows(tmp_path / "hellaswag/validation.jsonl", rows[:4])
    write_rows(tmp_path / "hellaswag/train.jsonl", rows[4:])
    every = read_unscored_questions("task:hellaswag", parse_task_data([f"hellaswag={tmp_path / 'hellaswag'}"]), 0, 0)
    assert set(every) == {f"Sailing: a boat {sentence(at)}. It" for at in range(4, 8)}


def test_what_one_task_of_a_group_scores_is_not_read_of_another(tmp_path, monkeypatch):
    """As MATH-500 is a part of the tests of MATH."""
    paths = [
        write_rows(tmp_path / f"{name}.jsonl", documents_of_piqa(start, 20)) for name, start in (("a", 0), ("b", 9))
    ]
    tasks = {}
    for name, path in zip(("one", "two"), paths, strict=True):
        tasks[name] = task_loading.load_tasks(["piqa"], parse_task_data([f"piqa={path}"]))["piqa"]
        monkeypatch.setitem(questions.OFFLINE, name, questions.OFFLINE["piqa"])
    monkeypatch.setitem(questions.GROUPS, "both", ("one", "two"))
    monkeypatch.setattr(task_loading, "load_tasks", lambda names, data: {name: tasks[name] for name in names})
    drawn = task_loading.draw_documents(tasks["one"], 6, 5)
    scored = set(drawn) | {9 + at for at in drawn}
    expected = {f"Question: goal {sentence(at)}\nAnswer:" for at in range(29) if at not in scored}
    assert set(read_unscored_questions("task:both", (), 6, 5)) == expected


def test_a_task_of_the_hub_is_asked_from_its_training_split(monkeypatch):
    task = SimpleNamespace(
        eval_docs=[{"q": "scored"}],
        has_training_docs=lambda: True,
        training_docs=lambda: [{"q": "one"}, {"q": "scored"}, {"q": "two"}],
        doc_to_text=lambda document: document["q"],
        multiple_input=0,
    )
    monkeypatch.setattr(task_loading, "load_tasks", lambda names, data: dict.fromkeys(names, task))
    assert read_unscored_questions("task:race", (), 0, 987) == ("one", "two")
    task.has_training_docs = lambda: False
    with pytest.raises(UserError, match="task:race has no question that is not scored"):
        read_unscored_questions("task:race", (), 0, 988)


@pytest.mark.default_model
def test_mmlu_is_asked_from_its_validation_sets_and_winogrande_up_to_the_gap(monkeypatch):
    anatomy = read_unscored_questions("task:mmlu_anatomy", (), 0, 0)
    assert len(anatomy) == 14 and all(question.endswith("Answer:") for question in anatomy)
    task = task_loading.load_tasks(["winogrande"])["winogrande"]
    assert question_of_document(task, task.eval_docs[2]) == (
        "They were worried the wine would ruin the bed and the blanket, but the"
    )
    monkeypatch.setitem(questions.GROUPS, "both", ("mmlu_anatomy", "mmlu_virology"))
    both = read_unscored_questions("task:both", (), 0, 0)
    assert both == (*anatomy, *read_unscored_questions("task:mmlu_virology", (), 0, 0))


@pytest.mark.default_model
@pytest.mark.parametrize("name", ["piqa", "winogrande", "copa"])
def test_no_scored_question_stands_in_what_is_read(name):
    task = task_loading.load_tasks([name])[name]
    documents = {name: task_loading.draw_documents(task, 50, 0)}
    bare = "".join("".join(read_unscored_questions(f"task:{name}", (), 50, 0)).split())
    questions.refuse_scored_questions({f"task:{name}": bare}, {name: task}, documents)
    with pytest.raises(UserError, match=rf"task:{name}, which is calibrated on, has in part what {name} asks: "):
        questions.refuse_scored_questions({f"task:{name}": bare}, {name: task}, {name: list(range(60))})


def test_pieces_are_whole_questions_or_passages_of_long_ones():
    assert pieces_of_questions(["a b", "c"]) == {"ab", "c"}
    long = "".join(chr(97 + at % 26) * (1 + at % 3) for at in range(300))
    pieces = pieces_of_questions([long])
    assert {len(piece) for piece in pieces} == {texts.PASSAGE}
    assert long[: texts.PASSAGE] in pieces and len(pieces) == 1 + (len(long) - texts.PASSAGE) // texts.STEP


def test_a_run_calibrates_on_questions_and_its_record_allows_itself_none(
    data, model_folder, text_file, tmp_path, capsys
):
    ((_, path, _),) = data
    command = ["run", "--model", str(model_folder), "--methods", "shortgpt", "--ratio", "0.3", "--profile", "smoke"]
    command += ["--window", "64", "--windows", "2", "--calibration-sequences", "4", "--calibration-length", "32"]
    command += ["--texts", str(text_file), "--no-checks", "--speed-rounds", "0", "--threads", "1", "--device", "cpu"]
    command += ["--documents", "6", "--tasks", "piqa", "--task-data", f"piqa={path}"]
    out = tmp_path / "run"
    assert main([*command, "--calibration", f"task:piqa:0.5,{text_file}:0.5", "--out", str(out)]) == 0
    record = next(record for record in load_run(out) if record.cell.method == "shortgpt")
    assert record.decisions["calibration"]["source"] == f"task:piqa:0.5,{text_file}:0.5"
    names = (str(model_folder), str(text_file), path)
    Trust(tmp_path / "nowhere", names=names).refuse(record.cell)
    with pytest.raises(UserError, match=rf"names a file of documents, .* add --trust {path}"):
        Trust(tmp_path / "nowhere", names=names[:2]).refuse(record.cell)
    foreign = replace(record.cell, protocol=replace(record.cell.protocol, calibration="task:race", task_data=()))
    with pytest.raises(UserError, match=r"names a task, .* add --trust race"):
        Trust(tmp_path / "nowhere", names=names).refuse(foreign)
    capsys.readouterr()
    assert main([*command, "--calibration", "task:piqa", "--documents", "0", "--out", str(tmp_path / "all")]) == 2
    assert "task:piqa has no question that is not scored" in capsys.readouterr().err


def test_questions_are_packed_one_behind_the_other():
    every = [f"Q{at}?" for at in range(6)]
    ids = texts.pack_documents(byte_tokenizer(bos=True), "task:piqa", every, 3, length=9, seed=2)
    order = list(every)
    random.Random(2).shuffle(order)
    packed = "\n\n".join(order)
    assert ids[:, 0].tolist() == [1, 1, 1]
    assert byte_tokenizer().decode(ids[:, 1:].flatten()) == packed[:24]
    with pytest.raises(UserError, match=r"task:piqa has 30 tokens for calibration in questions that are not scored"):
        texts.pack_documents(byte_tokenizer(), "task:piqa", every, 4, length=9, seed=2)


@pytest.mark.parametrize(
    ("calibration", "words"),
    [
        ("task:pika", "no task 'pika'; did you mean piqa?"),
        ("task:", "task: is written with a task behind it, as in task:piqa"),
        ("c4:0.5,task:pika:0.5", "no task 'pika'"),
    ],
)
def test_a_task_that_is_none_is_refused_before_any_work(calibration, words, capsys):
    assert main(["run", "--methods", "laco", "--calibration", calibration]) == 2
    line = capsys.readouterr().err.strip()
    assert words in line and "\n" not in line


def test_questions_are_no_text_to_measure_perplexity_on(capsys):
    assert main(["run", "--methods", "laco", "--texts", "task:piqa"]) == 2
    assert "task:piqa is for --calibration alone; give wiki, c4, " in capsys.readouterr().err
