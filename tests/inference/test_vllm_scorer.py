"""Scoring of each cell's model by vLLM, for which a model in this process stands."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refused

from bench.cli.main import main
from bench.inference import vllm_scorer
from bench.inference.engine_process import EngineFailed
from bench.inference.predictor import NoAnswer
from bench.plan.address import VllmPython
from bench.plan.cell import ScoringEngine
from bench.records.run_folder import load_run, samples
from methods.checkpoint import save_load

STUB = Path(__file__).parents[1] / "stub"


class Held:
    """Does what VllmProcess does, in this process."""

    loaded, ended = list[Path](), list[bool]()
    fails = ""

    def __init__(self, python, options, *, threads, silence):
        self.options = options

    def load(self, name, folder, *, dtype):
        if self.fails == "load":
            raise EngineFailed("error", "ValueError: no memory")
        self.loaded.append(folder)
        pruned = (folder / "prunebench.json").exists()
        dense = pytest.importorskip("transformers").AutoModelForCausalLM
        self.model = save_load.load(folder).model if pruned else dense.from_pretrained(folder)

    @torch.no_grad()
    def exchange(self, do, name="", sequences=(), **_):
        if do == "describe":
            return {"version": "0.32.0"}
        if self.fails == "score":
            raise EngineFailed("timed_out", "vllm said nothing for 600 s, and was ended")
        logs, ranks = [], []
        for ids in sequences:
            every = self.model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            own = every.gather(1, torch.tensor(ids[1:])[:, None])
            logs.append(own[:, 0].tolist())
            ranks.append((1 + (every > own).sum(1)).tolist())
        return {"logs": logs, "ranks": ranks}

    def end(self):
        self.ended.append(True)


@pytest.fixture
def held(monkeypatch):
    monkeypatch.setattr(vllm_scorer, "VllmProcess", Held)
    monkeypatch.setattr(Held, "loaded", [])
    monkeypatch.setattr(Held, "ended", [])
    return Held


@pytest.fixture
def words(base, tmp_path):
    rows = [{"goal": f"w{i} w5", "sol1": "w1 w2", "sol2": f"w{i}", "label": i % 2} for i in range(4)]
    (tmp_path / "piqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = ["--tasks", "piqa", "--task-data", f"piqa={tmp_path / 'piqa.jsonl'}", "--no-isolate"]
    return [*base, "--methods", "flap", "--ratio", "0.3", *task]


def by_vllm(words, *more):
    return [*words, "--scorer", "vllm", "--vllm-python", sys.executable, *more]


def test_each_cell_is_scored_from_its_own_folder(words, held, tmp_path, model_folder):
    assert main([*words, "--save-models", "--out", str(tmp_path / "own")]) == 0
    assert main(by_vllm(words, "--out", str(tmp_path / "vllm"))) == 0
    own, scored = load_run(tmp_path / "own"), load_run(tmp_path / "vllm")
    assert [record.cell.inputs.scored_by for record in scored] == [
        ScoringEngine("vllm", "0.32.0", "prompt_logprobs")
    ] * 2
    assert held.loaded == [model_folder, tmp_path / "vllm" / scored[1].measured.saved.folder]
    assert len(held.ended) == 3  # of the version too
    assert all(record.measured.agreement.largest < 1e-4 for record in scored)
    ours, theirs = (samples(tmp_path / run, "piqa") for run in ("own", "vllm"))
    assert ours["greedy"].map(list).tolist() == theirs["greedy"].map(list).tolist()
    want, got = (each["loglikelihoods"].explode().to_numpy(float) for each in (ours, theirs))
    assert np.abs(want - got).max() < 1e-4
    for mine, other in zip(own, scored, strict=True):
        (mine_text,), (other_text,) = (each.measured.perplexity.values() for each in (mine, other))
        assert mine_text.perplexity == pytest.approx(other_text.perplexity, rel=1e-5)


def test_a_vllm_that_fails_is_refused_or_the_outcome_of_its_cell(words, held, tmp_path, monkeypatch, capsys):
    assert "give both of them" in refused(capsys, [*words, "--scorer", "vllm"])
    assert "give both of them" in refused(capsys, [*words, "--vllm-python", "python"])
    assert "leave --engine out" in refused(capsys, by_vllm(words, "--engine", "slurm"))
    assert "'word' belongs to no flag" in refused(capsys, by_vllm(words, "--vllm-args", "word"))
    for fails, line in (
        ("load", "does not load the model: ValueError: no memory"),
        ("score", "gives no answer: vllm said"),
    ):
        monkeypatch.setattr(Held, "fails", fails)
        assert main([*by_vllm(words, "--out", str(tmp_path / fails)), "--methods", "dense"]) == 3
        (record,) = load_run(tmp_path / fails)
        assert record.status == "error" and re.match(line, record.error)
    assert len(held.ended) == 4


def test_a_python_without_vllm_is_refused(words, capsys, tmp_path):
    assert "cannot be run: No such file" in refused(capsys, by_vllm(words, "--vllm-python", str(tmp_path / "none")))


def test_what_the_process_answers_is_read(tmp_path, monkeypatch):
    """The stub's n-th token has a log-probability of -n and the rank n; behind a prompt it writes it backwards."""
    monkeypatch.setenv("PYTHONPATH", str(STUB))
    monkeypatch.setenv("STUB_NOTES", str(tmp_path / "notes"))
    (tmp_path / "model").mkdir()
    address = VllmPython(sys.executable, "--max-model-len=64")
    with vllm_scorer.open_model(address, tmp_path / "model", "float32", 1) as model:
        assert model.engine == ScoringEngine("vllm", "0.33.0", "prompt_logprobs")
        sums, greedy = model.score_questions([((5, 6, 7, 8), 2), ((9, 10), 1)])
        assert (sums.tolist(), greedy.tolist()) == ([-5.0, -1.0], [False, True])
        assert model.write_behind([(5, 6, 7, 8)], 3, ["stop"], lambda ids: ids[-1] == 7) == [[8, 7]]
        process = model.process
    with pytest.raises(NoAnswer):
        vllm_scorer.VllmModel(process, model.engine).score_questions([((5, 6), 1)])
    given = [json.loads(line) for line in (tmp_path / "notes").read_text().splitlines()]
    assert given[0]["options"]["dtype"] == "float32" and given[0]["options"]["max_model_len"] == 64
    assert {"max_tokens": 3, "temperature": 0.0, "stop": ["stop"]} in [line.get("params") for line in given]
