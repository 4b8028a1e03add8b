"""The script that measures settings on windows of no table, on a tiny model and forty documents of random words."""

from __future__ import annotations

import json

import pytest
import torch
from pages import load_program
from transformers import AutoTokenizer

from bench.data import texts
from methods.model.calibration import Calibration


@pytest.fixture
def script(text_file, monkeypatch):
    module = load_program("studies/unused_windows.py")
    for name, value in {"TEXTS": (str(text_file),), "LENGTH": 32, "DRAWN": 4, "WINDOWS": 3}.items():
        monkeypatch.setattr(module, name, value)
    return module


@pytest.mark.parametrize("most", [3, 1000])
def test_no_window_is_one_that_is_drawn_elsewhere(most, script, model_folder, text_file, monkeypatch):
    monkeypatch.setattr(script, "WINDOWS", most)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    ids, scored = script.unused(tokenizer, str(text_file))
    every = texts.make_evaluation_text(tokenizer, str(text_file), 32, 32, 0).ids
    drawn = texts.make_evaluation_text(tokenizer, str(text_file), 32, 32, 4, drawn=True).ids
    assert ids.shape == scored.shape == (min(most, len(every) - 4), 32)
    assert not {tuple(row) for row in ids.tolist()} & {tuple(row) for row in drawn.tolist()}


def test_a_line_for_each_method(script, model_folder, text_file, monkeypatch, capsys):
    ids = torch.randint(3, 128, (6, 24), generator=torch.Generator().manual_seed(0))
    given = Calibration(ids, torch.ones_like(ids, dtype=torch.bool))
    monkeypatch.setattr(script.texts, "make_calibration", lambda *_: given)
    asked = "drop-tail,laco:C=2,I=1"
    script.main(["--model", str(model_folder), "--ratio", "0.5", "--methods", asked])
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["method"] for line in lines] == ["drop-tail", "laco:C=2,I=1"]
    for line in lines:
        found = line[str(text_file)]
        assert len(found["nll"]) == len(line["removed_layers"]) == 3
        assert found["perplexity"] == pytest.approx(torch.tensor(found["nll"]).mean().exp().item(), rel=1e-4)
    assert lines[0]["removed_layers"] == [3, 4, 5] != lines[1]["removed_layers"]
    assert "drop-tail " in err
