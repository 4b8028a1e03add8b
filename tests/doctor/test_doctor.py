"""The doctor: nothing is wrong here, and what is broken on purpose is named."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import platform
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import refused
from emulated.gpus import EmulatedGpus

from bench.cli.main import main
from bench.data import assets
from bench.doctor import CHECKS, examination, finding, machine, measuring, pruning
from bench.doctor.finding import Finding
from bench.evaluation.scoring import Scorer
from bench.records.speed_results import PointTiming
from methods.depth.magnitude import Magnitude
from methods.depth.shortgpt import ShortGPT
from methods.errors import UserError

CPU = torch.device("cpu")
COMPENSATED = {f"shortgpt+{name}" for name in ("scale", "linearpatch", "ghost", "replaceme", "reinitialize")}


def examined(*arguments: str) -> SimpleNamespace:
    """Run the command; its exit code, its document, what it wrote on stderr, and the findings that are wrong."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["doctor", "--device", "cpu", "--json", *arguments])
    found = json.loads(out.getvalue())
    wrong = {one["what"]: one for one in found["findings"] if one["status"] == "wrong"}
    return SimpleNamespace(code=code, found=found, text=out.getvalue(), err=err.getvalue(), wrong=wrong)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """This machine, as one with an empty cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNEBENCH_CACHE", str(tmp_path_factory.mktemp("empty")))
        return examined()


def test_nothing_is_wrong_here(here):
    assert here.wrong == {}
    assert here.code == 0
    assert "nothing is wrong" in here.err


def test_every_check_and_every_method_is_in_it(here):
    statuses = {one["what"]: one["status"] for one in here.found["findings"]}
    assert {name: statuses[name] for name in pruning.list_cases()} == dict.fromkeys(pruning.list_cases(), "ok")
    assert all(f"{name}:" in here.err for name in CHECKS)
    assert examination.FUNCTIONS.keys() == CHECKS.keys()
    lines = ("product, float32", "bandwidth", "perplexity, bfloat16", "scorer, made-up documents, float32")
    lines += ("save and generate, slicegpt", "save and generate, drop")
    assert {statuses[line] for line in lines} == {"ok"}
    timed = {statuses["timing, prefill, eager"], statuses["timing, decode, eager"]}
    assert timed <= {"ok", "not here"}  # of a machine that is too busy to tell
    lacking = ("GPU", "out of memory", "copies", "second GPU", "captured decode", "scorer, piqa and arc_easy")
    assert {statuses[line] for line in lacking} == {"not here"}


def test_a_bug_report_does_not_tell_who_and_where(here):
    told = {str(Path.home()), str(Path(__file__).parents[2]), "/nowhere", "/tmp/"}
    told |= {platform.node()} if len(platform.node()) > 3 else set()
    assert [text for text in told if text in here.text] == []
    assert {"versions", "cpu", "threads", "free_memory_bytes"} <= here.found["machine"].keys()


def test_the_table_has_a_line_for_each_finding(capsys):
    assert main(["doctor", "--device", "cpu", "--only", "memory,copies"]) == 0
    out, _ = capsys.readouterr()
    head, *lines = out.splitlines()
    assert head.split() == ["status", "what", "figure"]
    assert [line[:8] for line in lines if line[0] != " "] == ["not here"] * 3


@pytest.mark.nightly
def test_methods_that_decide_otherwise_or_fail_are_named(monkeypatch):
    right = ShortGPT.scores
    monkeypatch.setattr(ShortGPT, "scores", lambda *asked: [-score for score in right(*asked)])
    monkeypatch.setattr(Magnitude, "scores", lambda *asked: Path("/nowhere/at/all/weights").read_text())
    found = examined("--only", "methods")
    assert found.code == 1
    assert found.wrong.keys() == {"magnitude", "shortgpt"} | COMPENSATED
    assert "removed_layers is [" in found.wrong["shortgpt"]["figure"]
    assert "shortgpt" in found.err.splitlines()[-1]
    assert found.wrong["magnitude"]["figure"].startswith("FileNotFoundError")
    assert any(line.startswith("methods/trials/selection.py:") for line in found.wrong["magnitude"]["where"])
    assert "/nowhere" not in found.text


def test_a_scorer_that_loses_a_token_is_named(monkeypatch, tmp_path):
    right = Scorer._question
    monkeypatch.setattr(Scorer, "_question", lambda self, context, answer: right(self, context[1:], answer))
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path))
    found = examined("--only", "scorer")
    assert found.code == 1
    assert "scorer, made-up documents, float32" in found.wrong
    assert all(what.startswith("scorer, made-up documents, ") for what in found.wrong)


def test_layers_that_keep_their_places_in_the_cache_are_named(monkeypatch):
    monkeypatch.setattr("methods.model.decoder._slots", lambda layers: [layer.attn.layer_idx for layer in layers])
    monkeypatch.setattr(pruning, "FORMS", {name: pruning.FORMS[name] for name in ("dense", "drop")})
    found = examined("--only", "checkpoints")
    assert found.code == 1
    assert "save and generate, drop" in found.wrong
    figure = found.wrong["save and generate, drop"]["figure"]
    assert "generated with a cache" in figure or "IndexError" in figure  # as transformers' cache takes it
    assert "save and generate, dense" not in found.wrong
    assert len(found.found["findings"]) == 2


def test_a_check_that_fails_as_a_whole_is_wrong_and_the_others_go_on(monkeypatch):
    monkeypatch.setitem(examination.FUNCTIONS, "memory", lambda device: 1 / 0)
    found = examination.examine(CPU, ["memory", "copies"])
    assert [one.what for one in found] == ["memory", "copies", "second GPU"]
    assert examination.names_of_wrong(found) == ["memory"]


def test_a_check_that_is_not_there_is_refused(capsys):
    assert "machine, methods" in refused(capsys, ["doctor", "--only", "methods,weather"])
    assert "--only is given nothing" in refused(capsys, ["doctor", "--only", ","])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("no such file: '/home/me/models/weights.bin'", "no such file: 'weights.bin'"),
        (f"{Path.home()} of Ann/one", "~ of Ann/one"),
        ("~/models/one and C:\\Users\\me\\two", "one and two"),
        ("half 1/2 of a/b", "half 1/2 of a/b"),
    ],
)
def test_paths_are_cut_to_their_names(text, told):
    assert finding.without_paths(text) == told


def test_what_is_no_number_is_null_in_a_bug_report(monkeypatch, capsys):
    broken = finding.finding_of_check(
        "flap", ["logits"], "", logits=[1.5, math.nan], far=math.inf, table={"one": -math.inf}
    )
    monkeypatch.setattr(examination, "examine", lambda *_: [broken])
    assert main(["doctor", "--device", "cpu", "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["findings"]
    assert found["found"] == {"logits": [1.5, None], "far": None, "table": {"one": None}}


# what is stored


def test_there_is_an_answer_for_every_method_and_compensation():
    assert list(pruning.read_answers()) == pruning.list_cases()
    assert [case for case, held in pruning.read_answers().items() if held.logits is None] == ["shortgpt+reinitialize"]


@pytest.mark.nightly
def test_no_answer_is_near_to_another():
    assert [case for case, held in pruning.read_answers().items() if pruning.describe_noise(case, held, 1)] == []


def test_an_answer_that_noise_changes_is_not_written(monkeypatch, tmp_path):
    monkeypatch.setattr(pruning, "FILE", tmp_path / "answers.json")
    monkeypatch.setattr(pruning, "list_cases", lambda: ["shortgpt"])
    right, calls = ShortGPT.scores, []
    monkeypatch.setattr(ShortGPT, "scores", lambda *a: calls.append(1) or right(*a)[:: 1 if len(calls) == 1 else -1])
    with pytest.raises(UserError, match="too near to another choice"):
        pruning.write_answers()
    assert list(tmp_path.iterdir()) == []
    calls.clear()
    monkeypatch.setattr(ShortGPT, "scores", right)
    pruning.write_answers()
    assert pruning.read_answers()["shortgpt"].decided.keys() == {"removed_layers"}


# timing


def timed(monkeypatch, *intervals: tuple[float, float]) -> list[Finding]:
    """What is found where the measurements have given these intervals, one after the other."""
    left = list(intervals)

    def time(*_):
        low, high = left.pop(0)
        yield PointTiming(
            kind="decode",
            batch=1,
            speedup=(low + high) / 2,
            speedup_low=low,
            speedup_high=high,
            flags=("noisy",),
            dense_ms=2.0,
            pruned_ms=2.0,
        )

    monkeypatch.setattr("bench.speed.benchmark.SpeedBenchmark.time", time)
    found = list(measuring.check_timing(CPU))
    assert left == []
    return found


def test_an_interval_that_holds_one_is_right(monkeypatch):
    _, found = timed(monkeypatch, (0.98, 1.02))
    assert (found.status, found.what) == ("ok", "timing, decode, eager")
    assert "noisy" in found.figure


def test_one_that_does_not_is_measured_again(monkeypatch):
    _, found = timed(monkeypatch, (1.01, 1.02), (0.99, 1.01))
    assert (found.status, found.found["tries"]) == ("ok", 2)


def test_a_busy_machine_is_neither_right_nor_wrong(monkeypatch):
    _, found = timed(monkeypatch, (0.6, 1.5), (0.9, 1.3), (0.8, 1.2))
    assert found.status == "not here"
    assert "too busy" in found.figure


def test_three_that_do_not_are_wrong(monkeypatch):
    _, found = timed(monkeypatch, (1.01, 1.02), (0.97, 0.98), (1.01, 1.03))
    assert found.status == "wrong"
    assert "1.010 to 1.030" in found.figure


@pytest.mark.parametrize(
    ("intervals", "status"),
    [
        (((1.05, 1.06), (0.8, 1.5), (1.04, 1.07)), "wrong"),
        (((1.05, 1.06), (1.04, 1.07), (0.8, 1.5)), "wrong"),
        (((1.05, 1.06), (0.8, 1.5), (0.8, 1.4)), "not here"),  # one in twenty is chance
        (((1.05, 1.5), (1.1, 1.5), (1.05, 1.4)), "wrong"),
    ],
)
def test_a_wide_interval_excuses_no_two_that_leave_out_that_a_model_is_as_fast_as_itself(
    monkeypatch, intervals, status
):
    _, found = timed(monkeypatch, *intervals)
    assert found.status == status
    if intervals[1:] == ((0.8, 1.5), (1.04, 1.07)):
        assert "1.040 to 1.070" in found.figure
        assert "in any of 2 tries" in found.figure


class Replayed:
    """Does a step again, unless nothing is to happen."""

    does = True

    def capture(self, step, rewind):
        self.step = step
        rewind()
        step()

    def replay(self):
        if self.does:
            self.step()


class Stuck(Replayed):
    """Says the same again and again."""

    does = False


@pytest.mark.parametrize(("graph", "status"), [(Replayed, "ok"), (Stuck, "wrong")])
def test_captured_steps_must_say_what_eager_ones_say(graph, status):
    assert measuring.check_captured(CPU, torch.float32, graph).status == status


# a made-up GPU


def test_an_emulated_gpu_and_a_second_one():
    with EmulatedGpus(count=2):
        found = examination.examine(torch.device("cuda", 0), ["memory", "copies"])
        assert measuring.check_captured(torch.device("cuda", 1), torch.float32, Replayed).status == "ok"
    assert [one.what for one in found if one.status != "ok"] == []
    assert {one.what for one in found} >= {"out of memory", "copies between GPUs", "slicegpt on cuda:1"}


def test_a_gpu_that_a_check_has_lost_leaves_what_was_found(monkeypatch):
    def lost(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with EmulatedGpus():
        monkeypatch.setitem(examination.FUNCTIONS, "memory", lost)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lost)
        found = examined("--device", "cuda", "--only", "memory")
        (gpu,) = [one for one in itertools.islice(machine.check_machine(torch.device("cuda")), 3) if one.what == "GPU"]
    assert found.code == 1
    assert "illegal memory access" in found.wrong["memory"]["figure"]
    assert "illegal memory access" in found.found["machine"]["gpu_lost"]
    assert gpu.status == "wrong"


def test_a_gpu_without_a_name_is_no_cpu(monkeypatch):
    def unknown(*_):
        raise RuntimeError("CUDA error: unknown error")

    with EmulatedGpus():
        monkeypatch.setattr(torch.cuda, "get_device_properties", unknown)
        (gpu,) = [one for one in itertools.islice(machine.check_machine(torch.device("cuda")), 3) if one.what == "GPU"]
    assert gpu.status == "wrong"
    assert "torch cannot tell its name" in gpu.figure


@pytest.fixture
def gpu(monkeypatch):
    """A card of 8 GiB, which gives what `answer` says."""
    card = SimpleNamespace(total_memory=2**33, answer=None)

    def empty(asked, **_):
        assert asked > card.total_memory
        if card.answer:
            raise card.answer

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(machine.torch, "empty", empty)
    monkeypatch.setattr(machine, "check_product", lambda *asked: Finding("ok", "product", ""))
    return card


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "ok"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "wrong"),
        (None, "wrong"),
    ],
)
def test_memory_that_runs_out_must_be_recognised(gpu, answer, status):
    gpu.answer = answer
    (found,) = machine.check_memory(torch.device("cuda", 0))
    assert found.status == status


def test_a_copy_that_changes_a_bit_is_wrong(monkeypatch):
    monkeypatch.setattr(machine, "COPIED", 100)
    assert machine.check_copy("copies", CPU, CPU).status == "ok"
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: self ^ 1)
    assert machine.check_copy("copies", CPU, CPU).status == "wrong"


def test_a_product_less_exact_than_its_dtype_is_wrong(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "to", lambda self, where: self.bfloat16().float() if where == CPU else self)
    assert machine.check_product(CPU, torch.float32).status == "wrong"


@pytest.mark.default_model
def test_real_documents_are_scored_as_by_lm_eval():
    assets.fetch_assets((measuring.MODEL, "tasks"))
    found = list(measuring._real(CPU))
    assert [one.status for one in found] == ["ok"]
