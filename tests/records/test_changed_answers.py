"""What a model wrote and chose stands beside the dense model's, in samples, packed or not, and in `show`."""

from __future__ import annotations

import json
import shutil

import pytest

import bench
from bench.cli.main import main
from bench.records import changed_answers, packed_run, run_folder
from bench.records.changed_answers import ChangedAnswer, find_beside, list_changed_answers


@pytest.fixture(scope="module")
def run(model_folder, text_file, tmp_path_factory):
    """A run of the dense model and of a pruned one, with checks and a task with choices."""
    folder = tmp_path_factory.mktemp("answers")
    rows = [{"goal": f"w{n} w3", "sol1": f"w{n + 1} w5", "sol2": f"w6 w{2 * n}", "label": n % 2} for n in range(12)]
    (folder / "piqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = {"texts": str(text_file), "calibration": str(text_file), "window": 40, "windows": 3}
    task = {"tasks": "piqa", "task_data": {"piqa": str(folder / "piqa.jsonl")}}
    where = {"model": str(model_folder), "out": folder / "run", "device": "cpu", "dtype": "float32", "isolate": False}
    more = {"ratio": 0.5, "profile": "smoke", "speed_rounds": 0, "threads": 1, "calibration_length": 24}
    bench.run(bench.RunSpec("dense,drop-tail", **texts, **task, **where, **more))
    return folder / "run"


def test_what_the_checks_wrote_is_in_the_samples(run):
    written = bench.samples(run, "continuations")
    dense, pruned = (rows for _, rows in written.groupby("cell"))
    assert len(dense) == len(pruned) == 6 + 6 + 3
    assert dense["check"].tolist() == ["copying"] * 6 + ["counting"] * 6 + ["repetition"] * 3
    assert dense["prompt"].tolist() == pruned["prompt"].tolist()
    assert dense["written"].tolist() != pruned["written"].tolist()
    assert all(dense["written"])


def test_show_has_both_texts_and_the_answers_that_changed(run, capsys):
    assert main(["show", f"{run}/drop-tail", "--all-answers"]) == 0
    out = capsys.readouterr().out
    key, record = run_folder.find_cell(run, "drop-tail")
    beside = find_beside(run, key, record)
    dense, pruned = (rows for _, rows in bench.samples(run, "continuations").groupby("cell"))
    assert [each.dense for each in beside.texts] == dense["written"].tolist()
    assert [each.written for each in beside.texts] == pruned["written"].tolist()
    answers = bench.samples(run, "piqa").pivot(index="doc_id", columns="cell", values="acc_norm")
    right_before, right_after = (answers[column] == 1 for column in sorted(answers.columns))
    lost = sorted(answers.index[right_before & ~right_after])
    gained = sorted(answers.index[~right_before & right_after])
    assert lost or gained
    expected = [(number, "lost") for number in lost] + [(number, "gained") for number in gained]
    assert [(answer.document, answer.change) for answer in beside.changed["piqa"]] == expected
    continuations, changed = out.partition("CONTINUATIONS\n")[2].split("CHANGED ANSWERS\n")
    assert continuations.count("prompt ") == 15
    assert f"{len(expected)} of 8 changed" in changed
    assert all(f"document {number}, {change}\n" in changed for number, change in expected)


def test_show_has_three_of_each_kind_unless_all_are_wanted(run, capsys):
    assert main(["show", f"{run}/drop-tail"]) == 0
    out = capsys.readouterr().out.partition("CONTINUATIONS\n")[2]
    assert out.count("prompt ") == 9
    assert "6, with --all-answers" in out


def test_the_dense_cell_has_its_own_texts_alone(run, capsys):
    assert main(["show", f"{run}/dense"]) == 0
    out = capsys.readouterr().out.partition("CONTINUATIONS\n")[2]
    assert out.count("prompt ") == 9 and "CHANGED ANSWERS" not in out


def test_a_packed_run_shows_the_same(run, tmp_path, capsys):
    packed_run.pack_run(run, tmp_path / "packed")
    outs = []
    for folder in (run, tmp_path / "packed"):
        assert main(["show", f"{folder}/drop-tail"]) == 0
        outs.append(capsys.readouterr().out)
    assert outs[0] == outs[1]


def test_a_damaged_file_of_samples_is_one_line_and_the_record_is_shown(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    key, _ = run_folder.find_cell(tmp_path / "run", "drop-tail")
    (tmp_path / "run" / "samples" / key / "continuations.parquet").write_bytes(b"PAR1")
    assert main(["show", f"{tmp_path / 'run'}/drop-tail"]) == 0
    found = capsys.readouterr()
    assert "MEASURED" in found.out and "CONTINUATIONS" not in found.out
    assert found.err.count("\n") == 1 and "what was written is left out" in found.err


def row(number, *, target="one", response=None, metric=None, **more):
    """A row of samples."""
    written = {} if response is None else {"responses": [response]}
    hashes = dict.fromkeys(("doc_hash", "prompt_hash", "target_hash"), str(number))
    return {"doc_id": number, "target": target, "em": metric, **hashes, **written, **more}


def test_answers_that_changed_by_hand():
    dense = [row(n, response=text, metric=m) for n, (text, m) in enumerate([("a", 1), ("b", 1), ("c", 0), ("d", 0)])]
    own = [row(n, response=text, metric=m) for n, (text, m) in enumerate([("a", 1), ("x", 0), ("c2", 0), ("y", 1)])]
    assert list_changed_answers(own[::-1], dense, "em") == [
        ChangedAnswer(1, "one", "b", "x", "lost"),
        ChangedAnswer(3, "one", "d", "y", "gained"),
        ChangedAnswer(2, "one", "c", "c2", ""),
    ]


def test_other_documents_and_other_prompts_are_no_changed_answers():
    dense, own = row(1, response="a", metric=1), row(1, response="b", metric=0)
    assert list_changed_answers([own], [dense], "em")
    assert list_changed_answers([own | {"prompt_hash": "2"}], [dense], "em") == []
    assert list_changed_answers([own], [], "em") == list_changed_answers([], [dense], "em") == []


def test_continuations_of_other_prompts_stand_alone():
    own = [{"check": "copying", "prompt": prompt, "written": text} for prompt, text in (("p", "a"), ("p", "b"))]
    dense = [each | {"written": each["written"].upper()} for each in own]
    assert [each.dense for each in changed_answers._pair_texts(own, dense)] == ["A", "B"]
    assert [each.dense for each in changed_answers._pair_texts(own, dense[:1])] == [None, None]
    assert [each.dense for each in changed_answers._pair_texts(own, [])] == [None, None]


def test_choices_are_named_by_the_likeliest():
    dense = row(1, target=0, metric=1, loglikelihoods=[-1.0, -2.0], greedy=[False, False])
    own = row(1, target=0, metric=0, loglikelihoods=[-3.0, -2.0], greedy=[False, False])
    assert list_changed_answers([own], [dense], "em") == [ChangedAnswer(1, "0", "0", "1", "lost")]
    right = {"loglikelihoods": [-1.0], "greedy": [True]}
    before, after = row(1, metric=1, **right), row(1, metric=0, loglikelihoods=[-1.0], greedy=[False])
    assert list_changed_answers([after], [before], "em") == [
        ChangedAnswer(1, "one", "the right text", "another text", "lost")
    ]


@pytest.mark.parametrize(
    ("metric", "likelihoods", "expected"),
    [
        ("acc", [-3.0, -2.0, -4.0], "1"),
        ("acc_norm", [-3.0, -2.0, -4.0], "another; likeliest is 1"),
        ("acc_norm", [-1.0, -2.0, -4.0], "another; likeliest is 0"),  # which is right, but not by its length
        ("acc_norm", [-1.0, -2.0], "1"),
    ],
)
def test_a_lost_answer_never_has_the_right_choice_and_a_right_one_has_no_other(metric, likelihoods, expected):
    dense = row(1, target=0, loglikelihoods=[-2.0, -1.0, -3.0], **{metric: 1})
    own = row(1, target=0, loglikelihoods=likelihoods, **{metric: 0})
    (answer,) = list_changed_answers([own], [dense], metric)
    assert (answer.answer, answer.change) == (expected, "lost")
    assert metric == "acc" or answer.dense == answer.target
