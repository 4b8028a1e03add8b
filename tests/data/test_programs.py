"""Tasks whose answers are programs: their documents, when an answer is right, and who lets programs run."""

import gzip
import hashlib
import json

import pyarrow.parquet
import pytest
from conftest import refused
from datasets import Dataset
from lm_eval.api.model import LM

from bench.cli.main import main
from bench.data import assets, conversion, programs, task_loading, task_sources
from bench.data.task_sources import GROUPS
from bench.evaluation.tasks import evaluate
from bench.plan.run_spec import RunSpec, load_spec
from bench.plan.trust import Trust
from bench.records.run_folder import load_run
from methods.errors import UserError

HEAD = 'def twice(x):\n    """ Twice x. """\n'
HUMANEVAL = {"prompt": HEAD, "canonical_solution": "    return 2 * x\n", "entry_point": "twice"}
HUMANEVAL |= {"test": "def check(candidate):\n    assert candidate(4) == 8\n"}
MBPP = {"code": "def add(x):\r\n    return x + y", "test_setup_code": "y = 2", "test_list": ["assert add(1) == 3"] * 2}


def request(number, doc, context="Q\n```python\n"):
    return {"doc": doc, "native_id": number, "doc_id": number, "request": {"context": context, "continuation": "x"}}


def documents(tmp_path):
    """The documents that requests of each task make."""
    for (name, source), doc in zip(programs.SOURCES.items(), (HUMANEVAL, MBPP), strict=True):
        (tmp_path / source).mkdir(parents=True)
        with gzip.open(tmp_path / source / "requests.jsonl.gz", "wt", encoding="utf-8") as file:
            file.write(f"{json.dumps(request(f'{name}/0', doc))}\n")
    conversion.keep_programs(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [conversion.DOCUMENTS]
    tables = [pyarrow.parquet.read_table(tmp_path / conversion.file_of_task(name)) for name in programs.SOURCES]
    return [table.to_pylist()[0] for table in tables]


def test_a_reference_is_right_and_another_program_is_not(tmp_path):
    humaneval, mbpp = documents(tmp_path)
    assert humaneval["id"] == "codex_humaneval_gen/0"
    assert programs.prompt_of_document(mbpp) == "Q\n```python\n"
    for document in (humaneval, mbpp):
        assert programs.judge_program(document, document["answers"]) == {"pass_at_1": 1.0}
        assert programs.judge_program(document, [""]) == {"pass_at_1": 0.0}
    whole = f"{HEAD}    return x + x"  # a model may write the head once more
    assert programs.judge_program(humaneval, [whole]) == {"pass_at_1": 1.0}
    assert programs.judge_program(humaneval, [whole.replace("x + x", "x + 5")]) == {"pass_at_1": 0.0}


class Writing(LM):
    """Writes what a dictionary says behind each prompt."""

    def __init__(self, text_by_prompt):
        super().__init__()
        self.text_by_prompt = text_by_prompt

    def generate_until(self, requests):
        for request in requests:
            assert request.args[1]["max_gen_toks"] == 512
            assert "\n```" in request.args[1]["until"]
        return [self.text_by_prompt[request.args[0]] for request in requests]

    def loglikelihood(self, requests):
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


def test_a_task_of_programs_has_an_accuracy_and_what_was_written(tmp_path):
    _, document = documents(tmp_path)
    task = task_loading.make_task(
        task_loading.make_definition("codex_mbpp_gen"),
        Dataset.from_list([document | {"question": "a"}, document | {"question": "b"}]),
        None,
    )
    lm = Writing({"a": "def add(x): return x + 2", "b": "def add(x): return x"})
    scores, samples = evaluate(lm, {"codex_mbpp_gen": task}, {"codex_mbpp_gen": [0, 1]})
    score = scores["codex_mbpp_gen"]
    assert (score.main, score.main_metric.value, score.is_accuracy, score.chance) == ("pass_at_1", 0.5, True, None)
    assert samples["codex_mbpp_gen"]["responses"].tolist() == [["def add(x): return x + 2"], ["def add(x): return x"]]


@pytest.mark.parametrize("task", [*programs.SOURCES, "programs"])
def test_without_the_flag_a_run_is_one_line_that_names_it(task, capsys, tmp_path):
    out = tmp_path / "x"
    line = refused(capsys, ["run", "--methods", "drop-tail", "--tasks", f"piqa,{task}", "--out", str(out)])
    assert "executes programs that models write; to let them run add --confirm-run-unsafe-code" in line
    assert not out.exists()


def test_no_group_of_others_has_a_task_of_programs_and_no_file_lets_them_run(tmp_path):
    assert [name for name, tasks in GROUPS.items() if {*tasks} & {*programs.SOURCES}] == ["programs"]
    (tmp_path / "mine.yaml").write_text("methods: shortgpt\nconfirm_run_unsafe_code: true\n")
    with pytest.raises(UserError, match="is not taken from a file; give --confirm-run-unsafe-code on the command line"):
        load_spec(str(tmp_path / "mine.yaml"), {})


def test_a_guard_that_does_not_hold_is_refused_before_any_work(monkeypatch):
    def refuse(program):
        raise UserError("open")

    monkeypatch.setattr(programs, "is_passed", refuse)
    programs.refuse_open_guard(["piqa"])
    with pytest.raises(UserError, match="open"):
        programs.refuse_open_guard(["piqa", "codex_mbpp_gen"])


def test_a_run_executes_what_its_models_write_and_a_record_alone_lets_nothing_run(base, tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "TOKENS", 8)
    document = {"question": "a b", "before": "x = '''", "tests": "'''", "answers": ["1"]}
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(document) + "\n")
    asked = [*base, "--methods", "drop-tail", "--ratio", "0.3", "--tasks", "codex_mbpp_gen"]
    asked += ["--task-data", f"codex_mbpp_gen={path}", "--confirm-run-unsafe-code", "--no-isolate", "--texts", "none"]
    assert main(asked) == 0
    record = load_run(tmp_path / "run")[0]
    assert record.measured.task_scores["codex_mbpp_gen"].main == "pass_at_1"
    names = (record.cell.model, record.cell.protocol.calibration, str(path))
    with pytest.raises(UserError, match=r"programs that a model writes, .* add --confirm-run-unsafe-code"):
        Trust(tmp_path / "run", names=names).refuse(record.cell, measured=True)
    Trust(tmp_path / "run", names=names).refuse(record.cell)  # its model is made again, and answers nothing
    spec = RunSpec("drop-tail", ratio=0.3, model=record.cell.model, confirm_run_unsafe_code=True)
    assert Trust.of_run(spec, tmp_path).programs


def test_local_documents_without_tests_are_one_line(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question": "q", "before": "", "answers": ["a"]}\n')
    data = task_sources.parse_task_data([f"codex_mbpp_gen={path}"])
    with pytest.raises(UserError, match=r"has the columns question, before, answers, .*'tests'"):
        task_loading.check_tasks(["codex_mbpp_gen"], data)


@pytest.mark.default_model
def test_documents_are_the_pinned_ones_and_those_of_the_other_form():
    """Another digest is another version of the tasks: raise that of `make_definition`, and conversion.DOCUMENTS."""
    digest = hashlib.sha256()
    for name in programs.SOURCES:
        table = pyarrow.parquet.read_table(assets.fetch_documents(name))
        scored = pyarrow.parquet.read_table(assets.fetch_documents(name.replace("_gen", "_bpb")))
        assert table["id"].to_pylist() == scored["id"].to_pylist()
        digest.update(json.dumps([name, table.to_pydict()]).encode())
        first = table.slice(0, 2).to_pylist()
        assert [programs.judge_program(row, row["answers"])["pass_at_1"] for row in first] == [1.0, 1.0]
    assert digest.hexdigest() == "80d50c61f648270b9028c0ef2a7856dc6bf633fc69aadf969425f1015fa3fc94"


@pytest.mark.nightly
@pytest.mark.default_model
def test_every_reference_is_right():
    for name in programs.SOURCES:
        rows = pyarrow.parquet.read_table(assets.fetch_documents(name)).to_pylist()
        wrong = [row["id"] for row in rows if not programs.judge_program(row, row["answers"])["pass_at_1"]]
        assert not wrong
