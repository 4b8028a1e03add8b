"""Tasks of the user's own files: as lm-eval makes them, hashed, and without code that the user does not let run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import refused

import bench
from bench.cli.main import main
from bench.data import task_loading
from bench.data.task_files import find_tasks, refuse_code
from methods.errors import UserError

BASE = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {documents}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}} ="
doc_to_target: 0
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 2.0}}
"""
TASK = 'include: _base\ntask: sums\ntag: mine\ndoc_to_choice: "{{[a, wrong]}}"\n'
WITH_CODE = "include: ../_base\ntask: coded\ntag: mine\ndoc_to_choice: !function helper.choose\n"
GROUP = "group: both\ntask: [sums, coded]\n"
HELPER = "from pathlib import Path\nPath({marker!r}).touch()\n\ndef choose(doc):\n    return [doc['a'], doc['wrong']]\n"


@pytest.fixture
def own(tmp_path):
    """A folder with two tasks, of which one names a function, and a group of both."""
    folder = tmp_path / "own"
    (folder / "sub").mkdir(parents=True)
    rows = [{"q": f"w{n} w3", "a": f"w{n + 1}", "wrong": f"w{2 * n}"} for n in range(6)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "_base").write_text(BASE.format(documents=folder / "sums.jsonl"))
    (folder / "sums.yaml").write_text(TASK)
    (folder / "sub/coded.yaml").write_text(WITH_CODE)
    (folder / "sub/helper.py").write_text(HELPER.format(marker=str(tmp_path / "ran")))
    (folder / "both.yaml").write_text(GROUP)
    return folder


def prompts(task):
    """What is asked of a model, in order."""
    task.build_all_requests()
    return [instance.args for instance in task.instances]


def test_a_task_is_found_by_file_name_tag_and_group(own):
    assert find_tasks(["piqa", str(own / "sums.yaml")], None)[0] == ("piqa", "sums")
    assert find_tasks(["sums", "piqa"], own)[0] == ("sums", "piqa")
    assert find_tasks(["sums"], None) == (("sums",), ())
    for name in ("mine", "both"):
        names, files = find_tasks([name], own)
        assert sorted(names) == ["coded", "sums"]
        assert [task for task, _, _ in files] == ["coded", "sums"]


def test_what_is_asked_is_what_lm_eval_asks(own):
    from lm_eval.tasks import TaskManager

    names, files = find_tasks(["both"], own)
    assert task_loading.check_tasks(names, (), 0, files) == ("sums", "coded")
    tasks = task_loading.load_tasks(names, files=files)
    with task_loading.silence_lm_eval():
        theirs = TaskManager(include_path=str(own), include_defaults=False).load(["both"])["tasks"]
    assert prompts(tasks["sums"]) == prompts(theirs["sums"]) == prompts(tasks["coded"])
    assert prompts(tasks["sums"])[:2] == [("w0 w3 =", " w1"), ("w0 w3 =", " w0")]
    assert tasks["sums"].VERSION == 2.0


def test_the_hash_is_of_all_that_a_definition_is_made_of(own):
    def sha256(name):
        return dict((task, sha) for task, _, sha in find_tasks([name], own)[1])[name]

    def changes(path, name):
        before, text = sha256(name), path.read_text()
        path.write_text(text + "\n# another line\n")
        after = sha256(name)
        path.write_text(text)
        assert sha256(name) == before
        return before != after

    (own / "sub/beside.py").write_text("")
    assert changes(own / "sums.yaml", "sums")
    assert changes(own / "_base", "sums")
    assert changes(own / "sub/helper.py", "coded")
    assert changes(own / "sub/beside.py", "coded")
    assert not changes(own / "sub/helper.py", "sums")
    assert not changes(own / "sums.jsonl", "sums")  # documents are hashed by the cell


def test_a_file_that_changes_behind_the_check_is_refused(own):
    names, files = find_tasks(["sums"], own)
    (own / "_base").write_text((own / "_base").read_text().replace("acc", "acc_norm"))
    with pytest.raises(UserError, match="has changed since the run began"):
        task_loading.load_tasks(names, files=files)


def asked(base: list[str], own: Path, name: str, *more: str) -> list[str]:
    """The command that measures a task of the folder on the dense model."""
    words = list(base)
    words[words.index("--tasks") + 1] = name
    words[words.index("--texts") + 1] = "none"
    return [*words, "--methods", "dense", "--include-path", str(own), *more]


def test_a_run_measures_it_and_its_record_has_the_hashes(base, own, tmp_path, capsys):
    command = asked(base, own, "sums", "--no-isolate")
    assert main(command) == main(command) == 0
    assert capsys.readouterr().err.count("has a record") == 1
    (own / "sums.yaml").write_text(TASK + "target_delimiter: ''\n")
    assert main(command) == 0
    records = [json.loads(path.read_text()) for path in (tmp_path / "run" / "cells").glob("*.json")]
    assert len(records) == 2
    for record in records:
        [(task, path, _)] = record["cell"]["protocol"]["task_files"]
        assert (task, path) == ("sums", str(own / "sums.yaml"))
        assert record["measured"]["tasks"]["sums"]["documents"] == 6
        assert record["measured"]["tasks"]["sums"]["version"] == 2.0
    assert len({record["cell"]["protocol"]["task_files"][0][2] for record in records}) == 2
    assert len({record["cell"]["inputs"]["tasks"]["sums"]["sha256"] for record in records}) == 2


def test_functions_run_only_where_the_user_lets_them(base, own, tmp_path, capsys):
    line = refused(capsys, asked(base, own, "coded"))
    assert "sub/coded.yaml runs the function helper.choose" in line and "--confirm-run-unsafe-code" in line
    assert not (tmp_path / "ran").exists() and not (tmp_path / "run").exists()
    names, files = find_tasks(["coded"], own)
    refuse_code(files, is_confirmed=True, trusts_remote_code=False)
    task_loading.load_tasks(names, files=files)
    assert (tmp_path / "ran").exists()


def test_a_record_alone_lets_no_file_and_no_function_be_read(base, own, tmp_path, capsys):
    from bench.plan.trust import Trust
    from bench.records.run_folder import read_records

    assert main(asked(base, own, "coded", "--confirm-run-unsafe-code", "--no-isolate")) == 0
    (tmp_path / "ran").unlink()
    [record] = read_records(tmp_path / "run").values()
    names = (record.cell.model, record.cell.protocol.calibration)
    with pytest.raises(UserError, match=r"names a file of a task, .* --trust \S+coded.yaml"):
        Trust(tmp_path / "run", names=names).refuse(record.cell, measured=True)
    trusted = (*names, str(own / "sub/coded.yaml"))
    with pytest.raises(UserError, match=r"names the function helper.choose, .* --confirm-run-unsafe-code"):
        Trust(tmp_path / "run", names=trusted).refuse(record.cell, measured=True)
    Trust(tmp_path / "run", names=trusted, programs=True).refuse(record.cell, measured=True)
    assert not (tmp_path / "ran").exists()


def test_a_template_is_no_way_to_run_code(own):
    (own / "sums.yaml").write_text(TASK.replace("{{[a, wrong]}}", "{{[a, wrong.__class__.__mro__ | string]}}"))
    names, files = find_tasks(["sums"], own)
    with pytest.raises(UserError, match=r"task sums cannot be made .*SecurityError") as caught:
        task_loading.check_tasks(names, (), 0, files)
    assert "\n" not in str(caught.value)


def test_documents_of_ones_own_take_the_place_of_the_hubs(own, tmp_path):
    (own / "_base").write_text((own / "_base").read_text().replace("dataset_path: json", "dataset_path: someone/sums"))
    names, files = find_tasks(["sums"], own)
    data = [("sums", str(shutil.copy(own / "sums.jsonl", tmp_path / "test.jsonl")), "")]
    assert task_loading.check_tasks(names, data, 0, files) == ("sums",)
    assert len(task_loading.load_tasks(names, data, files=files)["sums"].eval_docs) == 6


def test_a_model_in_memory_answers_it(own, model_folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (kind.from_pretrained(model_folder) for kind in (AutoModelForCausalLM, AutoTokenizer))
    measured = bench.evaluate(model, tokenizer=tokenizer, texts="none", tasks=[str(own / "sums.yaml")]).measured
    assert measured.tasks["sums"].documents == 6


WRONG = {  # what is written behind the task, and what is said of it
    "no YAML": ("a: [", "is no definition of a task in YAML"),
    "an object of Python": ("a: !!python/object/apply:os.system [ls]", "is no definition of a task in YAML"),
    "a list": ("[]", "is no definition of a task in YAML"),
    "no name": ("output_type: multiple_choice", "names no task"),
    "a group": ("group: x\ntask: [sums]", "is a group"),
    "a name of this suite": ("task: piqa", "defines piqa, which is a task or group of this suite"),
    "a path for a name": ("include: _base\ntask: ../sums", "a task's name has letters"),
    "the name of a text": ("include: _base\ntask: perplexity-wiki", "a task's name has letters"),
    "a class": ("include: _base\ntask: x\nclass: !function helper.Task", "is a Python class"),
    "programs": ("include: _base\ntask: x\nunsafe_code: true", "executes programs that models write"),
    "images": ("include: _base\ntask: x\ndoc_to_image: image", "has images"),
    "another output": ("include: _base\ntask: x\noutput_type: squad", "output_type is one of multiple_choice"),
    "no split": ("task: x\ndataset_path: json", "test_split or validation_split"),
    "pickled documents": ("include: _base\ntask: x\ndataset_path: pandas", "dataset_path is json, csv"),
    "a script": ("include: _base\ntask: x\ndataset_path: ./load.py", "dataset_path is json, csv"),
    "includes itself": ("include: x.yaml\ntask: x", "includes itself"),
    "includes nothing": ("include: nowhere\ntask: x", "cannot be read: No such file"),
    "holds itself": ("task: x\na: &a [*a]", "holds itself"),
    "remote code": (
        "include: _base\ntask: x\ndataset_kwargs: {trust_remote_code: true}",
        "runs code of a data set; look at it, then let it run by --trust-remote-code",
    ),
    "a metric of the hub": (
        "include: _base\ntask: x\nmetric_list: [{metric: bleu, hf_evaluate: true}]",
        "runs a metric of the hub",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_file_that_defines_nothing_to_measure_is_refused_in_one_line(wrong, own):
    text, message = WRONG[wrong]
    (own / "x.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        refuse_code(find_tasks([str(own / "x.yaml")], None)[1], is_confirmed=False, trusts_remote_code=False)
    assert "\n" not in str(caught.value)


LATER = {
    "another metric": ("metric_list: [{metric: acuracy}]", "lm-eval has no metric 'acuracy'"),
    "no such column": ('doc_to_text: "{{question}}"', r"cannot be made of its file and its documents \(UndefinedError"),
    "a wrong label": ("doc_to_target: 5", "document 0 has the right choice 5, of 2 choices|IndexError"),
    "no documents": ("dataset_kwargs: {data_files: nowhere.jsonl}", "cannot be made of its file and its documents"),
}


@pytest.mark.parametrize("wrong", LATER)
def test_documents_that_do_not_fit_are_refused_in_one_line(wrong, own):
    text, message = LATER[wrong]
    (own / "sums.yaml").write_text(TASK + text + "\n")
    names, files = find_tasks(["sums"], own)
    with pytest.raises(UserError, match=message) as caught:
        task_loading.check_tasks(names, (), 0, files)
    assert "\n" not in str(caught.value)


def test_folders_and_names_that_are_not_there_are_refused(own, base, capsys):
    assert "--include-path is a folder" in refused(capsys, asked(base, own / "nowhere", "sums"))
    assert "no task 'zzsumz'" in refused(capsys, asked(base, own, "zzsumz"))
    assert "no task 'zzsums'; did you mean sums" in refused(capsys, asked(base, own, "zzsums"))
    assert "cannot be read: No such file" in refused(capsys, asked(base, own, str(own / "none.yaml")))
    (own / "sub/again.yaml").write_text(TASK.replace("_base", "../_base"))
    assert "both define sums" in refused(capsys, asked(base, own, "sums"))
    (own / "sub/again.yaml").write_text("group: round\ntask: [round]\n")
    assert "has a member that has no file here" in refused(capsys, asked(base, own, "round"))
