"""Every task that the suite knows by name is described, whatever its form, and no other."""

from __future__ import annotations

from bench.cli.main import main
from bench.data.task_descriptions import DESCRIPTIONS, FORM, SERIES, describe_task, describe_tasks
from bench.data.task_sources import HUB, OFFLINE


def test_every_known_task_has_a_description_and_every_description_a_task():
    known = [*OFFLINE, *HUB]
    assert [task for task in known if not describe_task(task)] == []
    assert {FORM.sub("", task) for task in known} >= DESCRIPTIONS.keys()
    assert all(any(task.startswith(beginning) for task in known) for beginning in SERIES)


def test_forms_of_a_task_have_one_line_and_an_unknown_task_none():
    lines = describe_tasks(["boolq_mc", "truthfulqa_mc", "boolq", "boolq_rc", "mmlu_college_physics"])
    assert lines == [
        f"boolq: {DESCRIPTIONS['boolq']}.",
        "mmlu_college_physics: answer questions of exams on college physics.",
    ]


def test_the_list_of_tasks_says_what_each_asks(capsys):
    assert main(["list", "tasks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (piqa,) = (line for line in lines if line.startswith("piqa "))
    assert piqa.split(maxsplit=1)[1] == f"{DESCRIPTIONS['piqa']} (quick, commonsense, laco)"
