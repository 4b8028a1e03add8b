"""One run over several models: its cells, what they share and what they must not."""

from __future__ import annotations

import gc
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import refused, tiny
from made_cells import made_cell, made_inputs

from bench.cli.main import main
from bench.data import pretrained, texts
from bench.engines import local
from bench.engines.engine import Machine
from bench.plan import run_spec, validate
from bench.plan.protocol import protocol_of_profile
from bench.plan.run_spec import RunSpec
from bench.records import run_folder
from bench.runs import datasets, job


@pytest.fixture(scope="module")
def models(model_folder, tmp_path_factory):
    """The tiny Llama, and one more of its tokenizer whose head is another."""
    other = tmp_path_factory.mktemp("models") / "tiny-other"
    shutil.copytree(model_folder, other)
    model = tiny("llama")
    with torch.no_grad():
        model.lm_head.weight.copy_(model.lm_head.weight.flip(0) * 3)
    model.save_pretrained(other)
    return str(model_folder), str(other)


def over(base: list[str], models: str, out: str) -> list[str]:
    """Return a command line for other models and another folder."""
    found = [*base, "--methods", "drop-tail", "--ratio", "0.4"]
    found[found.index("--model") + 1], found[found.index("--out") + 1] = models, out
    return found


def test_each_model_has_every_cell_and_those_are_of_runs_of_its_own(with_checks, models, tmp_path, capsys):
    """Models of one tokenizer read the same tokens; the dense model that a cell diverges from is its own."""
    assert main(over(with_checks, ",".join(models), str(tmp_path / "both"))) == 0
    out, err = capsys.readouterr()
    assert "[3/4] dense, tiny-other: loading the model" in err
    assert out.count("\ndense ") == 2
    both = run_folder.read_records(tmp_path / "both")
    assert len(both) == 4
    assert main(over(with_checks, models[1], str(tmp_path / "alone"))) == 0
    alone = run_folder.read_records(tmp_path / "alone")
    assert set(alone) == {key for key, record in both.items() if record.cell.model == models[1]}
    for key, record in alone.items():
        assert record.measured.text_scores == both[key].measured.text_scores
        assert record.measured.checks == both[key].measured.checks


@pytest.mark.parametrize("reads_anew", [False, True], ids=["as the run has read", "anew"])
def test_a_process_that_measures_cells_of_several_models_has_the_texts_of_each(
    reads_anew, base, models, tmp_path, monkeypatch
):
    """It loads what the run has read, or reads through the tokenizer of each model as on another machine.

    It then ends with nothing kept from the collector, or libraries print what they have leaked over many lines.
    """
    cache, seen, at_end = dict[Any, Any](), list[str](), list[Callable[[], None]]()

    def start(self, needs):
        def work(line, asked):
            line.cache = cache  # as in a worker, which keeps what it has read
            needs.work(line, asked)

        return local.InThisProcess(work, Machine(None, 1))

    class Reader(datasets.DatasetReader):
        def __init__(self, cell, *more):
            seen.append(cell.model)
            super().__init__(cell, *more)

    monkeypatch.setattr(local.Local, "start", start)
    monkeypatch.setattr(job, "DatasetReader", Reader)
    if reads_anew:
        monkeypatch.setattr(job, "file_of_datasets", lambda *_: tmp_path / "none.safetensors")
    monkeypatch.setattr(job.atexit, "register", at_end.append)
    assert main([*over(base, ",".join(models), str(tmp_path / "run")), "--isolate"]) == 0
    assert seen == [*models] * reads_anew
    assert all(record.status == "ok" for record in run_folder.read_records(tmp_path / "run").values())
    assert gc.get_freeze_count() > 0
    for do in at_end:
        do()
    assert gc.get_freeze_count() == 0


def test_the_plan_names_the_model_of_each_cell(base, models, tmp_path, capsys):
    assert main([*over(base, ",".join(models), str(tmp_path / "run")), "--plan"]) == 0
    out = capsys.readouterr().out
    assert out.count("tiny-llama") == out.count("tiny-other") >= 2
    assert "4 of 4 cells are to be measured" in out
    assert main([*over(base, models[0], str(tmp_path / "run")), "--plan"]) == 0
    assert "tiny-llama" not in capsys.readouterr().out


def test_models_come_once_and_a_folder_may_have_a_comma_in_its_name(tmp_path):
    assert RunSpec("dense", model="a,b,a").models == RunSpec("dense", model=["a", "b"]).models == ("a", "b")
    assert RunSpec("dense", model="org/a,b/").folder().name.endswith("-dense-a-b")
    odd = tmp_path / "one,two"
    odd.mkdir()
    assert RunSpec("dense", model=str(odd)).models == (str(odd),)


def test_a_second_model_that_is_not_there_is_refused_before_any_work(base, models, tmp_path, capsys):
    out = tmp_path / "run"
    assert "smollm2-135" in refused(capsys, over(base, f"{models[0]},smollm2-135", str(out)))
    assert "--model is given nothing" in refused(capsys, over(base, "none", str(out)))
    assert not out.exists()


def test_the_gate_refuses_a_run_of_several_models(base, models, tmp_path, capsys):
    """A baseline is of one model: cells of two would share their names."""
    assert main(over(base, ",".join(models), str(tmp_path / "run"))) == 0
    capsys.readouterr()
    accept = ["baseline", "accept", str(tmp_path / "run"), "--out", str(tmp_path / "baseline")]
    assert re.search(r"has several cells .*, of tiny-\w+ and tiny-\w+; name one as", refused(capsys, accept))


def test_the_spec_has_the_same_cells_on_every_model(monkeypatch):
    monkeypatch.setattr(texts, "check_text", lambda text, **_: None)
    monkeypatch.setattr(pretrained, "check", lambda model, trust: None)
    monkeypatch.setattr(
        pretrained, "make_shell", lambda model, trust: tiny("llama", layers=30, max_position_embeddings=2048)
    )
    spec = run_spec.load_spec("grid", {"tasks": "none", "device": "cpu"})
    cells = validate.cells_of_spec(spec)
    assert spec.models == ("smollm2-135m", "gemma3-270m", "qwen2.5-coder-0.5b")
    for model in spec.models:
        own = [cell for cell in cells if cell.model == model]
        assert [cell.method for cell in own].count("dense") == 1
        assert len({(cell.label, cell.ratio) for cell in own}) == 1 + (len(spec.methods) - 1) * 3
        assert {cell.ratio_of for cell in own if cell.ratio} == {"decoder"}
    assert f", {len(cells) - len(spec.models)} cells" in run_spec.shipped_specs()["grid"]


def test_models_of_the_same_weights_and_other_settings_share_no_statistics(tmp_path):
    cell = made_cell("puzzle", 0.3, protocol_of_profile("smoke"))
    cells = [replace(cell, inputs=made_inputs(config_sha256=config * 32)) for config in ("12", "34")]
    one, other = (job.folder_of_statistics(cell, tmp_path) for cell in cells)
    assert one != other
    assert job.folder_of_statistics(replace(cells[0], protocol=replace(cell.protocol, windows=2)), tmp_path) == one
