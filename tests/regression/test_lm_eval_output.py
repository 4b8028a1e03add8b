"""What lm-eval itself has written of two models is compared as two cells are, and a wrong file is one line."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from pathlib import Path

import lm_eval
import numpy as np
import pytest
import torch
from byte_tokens import byte_tokenizer
from conftest import tiny
from lm_eval.loggers import EvaluationTracker
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from scipy import stats

from bench.cli.main import main
from bench.data import task_loading
from bench.regression.gate import REGRESSION
from bench.regression.lm_eval_output import find_results_file, results_of_lm_eval
from methods.errors import UserError

DOCUMENTS = 40


def write_output(out: Path, scale: float, questions: Path) -> Path:
    """Let lm-eval score a tiny model whose head is `scale` times as large, and write all that it writes."""
    model = tiny("llama", vocab_size=258, max_position_embeddings=512, tie_word_embeddings=False)
    with torch.no_grad():
        noise = torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(1))
        model.lm_head.weight += scale * noise
    data = (("piqa", str(questions), ""),)
    with task_loading.silence_lm_eval(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # asks pip for every package
        tracker = EvaluationTracker(output_path=str(out))
        options = {"log_samples": True, "bootstrap_iters": 0, "evaluation_tracker": tracker}
        options["task_manager"] = TaskManager(include_defaults=False)  # or it reads the definitions of all its tasks
        scorer = HFLM(pretrained=model, tokenizer=byte_tokenizer(), batch_size=8)
        tasks = [*task_loading.load_tasks(("piqa",), data).values()]
        results = lm_eval.simple_evaluate(scorer, tasks=tasks, **options)
    assert results is not None
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for task, lines in samples.items():
        tracker.save_results_samples(task_name=task, samples=lines)
    file = find_results_file(out)
    assert file is not None
    return file


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> tuple[Path, Path]:
    """The results files of two models on the same questions; the second one is worse."""
    folder = tmp_path_factory.mktemp("outputs")
    rows = [{"goal": f"How is {n}?", "sol1": f"as {n * 7} is", "sol2": f"it is {n}", "label": n % 2} for n in range(40)]
    (folder / "piqa.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    first, second = (
        write_output(folder / name, scale, folder / "piqa.jsonl") for name, scale in (("a", 0), ("b", 0.5))
    )
    return first, second


@pytest.fixture
def copied(outputs, tmp_path) -> Path:
    """The results file of a copy of the first output, which a test may damage."""
    folder = tmp_path / "copied"
    shutil.copytree(outputs[0].parent, folder)
    return folder / outputs[0].name


def lines_of(file: Path) -> list[dict]:
    (samples,) = file.parent.glob("samples_*.jsonl")
    return [json.loads(line) for line in samples.read_text().splitlines()]


def rows_of(capsys, *arguments: str) -> dict[str, dict[str, str]]:
    assert main(["compare", *arguments, "--format", "csv"]) == 0
    return {row["metric"]: row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}


def holm(p: list[float]) -> list[float]:
    """Adjust p values as Holm does, one after the other from the smallest."""
    adjusted, worst = dict[int, float](), 0.0
    for rank, place in enumerate(np.argsort(p)):
        worst = max(worst, min(1.0, p[place] * (len(p) - rank)))
        adjusted[int(place)] = worst
    return [adjusted[place] for place in range(len(p))]


def bits(line: dict) -> float:
    right = int(line["target"])
    continuation = line["arguments"][f"gen_args_{right}"]["arg_1"]
    return -float(line["resps"][right][0][0]) / math.log(2) / len(continuation.encode())


def test_tests_are_those_of_scipy_on_the_same_files(outputs, capsys):
    rows = rows_of(capsys, *map(str, outputs))
    before, after = map(lines_of, outputs)
    assert [line["doc_hash"] for line in before] == [line["doc_hash"] for line in after]
    right = np.array([[line["acc_norm"] for line in lines] for lines in (before, after)])
    lost, gained = (right[0] > right[1]).sum(), (right[0] < right[1]).sum()
    mcnemar = stats.binomtest(int(lost), int(lost + gained)).pvalue
    own, other = ([bits(line) for line in lines] for lines in (before, after))
    student = stats.ttest_rel(other, own)
    expected = holm([mcnemar, float(student.pvalue)])
    assert float(rows["piqa acc_norm"]["p"]) == pytest.approx(expected[0], rel=1e-3)
    assert float(rows["piqa bpb"]["p"]) == pytest.approx(expected[1], rel=1e-2, abs=1e-12)
    assert float(rows["piqa bpb"]["a"]) == pytest.approx(np.mean(own), abs=1e-4)
    assert float(rows["piqa bpb"]["b"]) == pytest.approx(np.mean(other), abs=1e-4)
    assert float(rows["piqa bpb"]["a"]) < float(rows["piqa bpb"]["b"])


def test_documents_are_paired_by_their_hashes_and_not_by_their_order(outputs, copied, capsys):
    as_written = rows_of(capsys, *map(str, outputs))
    (samples,) = copied.parent.glob("samples_*.jsonl")
    samples.write_text("".join(f"{line}\n" for line in reversed(samples.read_text().splitlines())))
    turned = rows_of(capsys, str(copied), str(outputs[1]))
    assert turned.keys() == as_written.keys()
    for metric, row in as_written.items():
        for column in ("a", "b", "low", "high", "p"):
            assert float(turned[metric][column]) == pytest.approx(float(row[column]), rel=1e-9)


def test_a_gate_fails_where_the_second_model_is_worse(outputs, capsys):
    first, second = map(str, outputs)
    assert main(["gate", second, "--baseline", first]) == REGRESSION
    assert "worse" in capsys.readouterr().out
    assert main(["gate", first, "--baseline", first]) == 0


def test_samples_may_lie_elsewhere(outputs, copied, tmp_path, capsys):
    as_written = rows_of(capsys, *map(str, outputs))
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.move(copied, alone)
    (samples,) = copied.parent.glob("samples_*.jsonl")
    for place in (samples, samples.parent):
        given = ["--samples", str(place), str(outputs[1].parent)]
        assert rows_of(capsys, str(alone / copied.name), str(outputs[1]), *given) == as_written


def test_right_choices_that_the_samples_contradict_have_no_bits(copied):
    assert results_of_lm_eval(copied).bits.keys() == {"piqa"}
    (samples,) = copied.parent.glob("samples_*.jsonl")
    lines = lines_of(copied)
    for line in lines:
        line["target"] = str(1 - int(line["target"]))  # as of a task whose target is no position
    samples.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert results_of_lm_eval(copied).bits == {}


def damaged(file: Path, change) -> None:
    (samples,) = file.parent.glob("samples_*.jsonl")
    lines = lines_of(file)
    change(lines)
    samples.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


WRONG = {
    "no samples": (lambda file: next(file.parent.glob("samples_*")).unlink(), "--log_samples"),
    "no results": (lambda file: file.write_text("{}"), "is no results file of lm-eval"),
    "no JSON": (lambda file: file.write_text("{"), "is not JSON"),
    "no hash": (lambda file: damaged(file, lambda lines: lines[2].pop("doc_hash")), "line 3 has no doc_hash"),
    "a line missing": (lambda file: damaged(file, lambda lines: lines.__delitem__(slice(7))), "two evaluations"),
    "nothing": (lambda file: damaged(file, lambda lines: lines.clear()), "is empty"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_mistakes_are_one_line(wrong, outputs, copied, capsys):
    damage, message = WRONG[wrong]
    damage(copied)
    for command in (["compare", str(copied), str(outputs[1])], ["gate", str(copied), "--baseline", str(outputs[1])]):
        assert main(command) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert message in err
        assert err.count("\n") == 1


def test_other_documents_are_no_comparison(outputs, copied, capsys):
    damaged(copied, lambda lines: [line.update(doc_hash=f"{place:x}") for place, line in enumerate(lines)])
    assert main(["compare", str(copied), str(outputs[1])]) == 4
    assert "documents" in capsys.readouterr().err


def test_a_model_in_another_dtype_is_compared_only_where_that_is_allowed(outputs, copied, capsys):
    results = json.loads(copied.read_text())
    results["config"]["model_dtype"] = "torch.bfloat16"
    copied.write_text(json.dumps(results))
    sides = [str(copied), str(outputs[1])]
    assert main(["compare", *sides]) == 4
    assert "dtype (bfloat16 and float32" in capsys.readouterr().err
    assert main(["compare", *sides, "--allow", "dtype"]) == 0


@pytest.mark.parametrize(("part", "version"), [("lm_eval_version", "0.0.1"), ("versions", {"piqa": 99.5})])
def test_other_versions_are_no_comparison(part, version, outputs, copied, capsys):
    copied.write_text(json.dumps(json.loads(copied.read_text()) | {part: version}))
    assert main(["compare", str(copied), str(outputs[1])]) == 4
    assert main(["gate", str(outputs[1]), "--baseline", str(copied)]) == 4
    assert ("99.5" if part == "versions" else version) in "".join(capsys.readouterr())


def test_samples_of_another_task_are_refused(copied):
    (samples,) = copied.parent.glob("samples_*.jsonl")
    samples.rename(samples.with_name(samples.name.replace("piqa", "arc_easy")))
    with pytest.raises(UserError, match="is of the task arc_easy, which"):
        results_of_lm_eval(copied)
