"""Windows that are drawn, and the first ones where that is asked for, in whatever process a cell is measured."""

from __future__ import annotations

import pytest

from bench.cli.main import main
from bench.data import pretrained, texts
from bench.records.run_folder import load_run


@pytest.mark.parametrize("process", ["--isolate", "--no-isolate"])
@pytest.mark.parametrize(("flag", "drawn"), [((), True), (("--first-windows",), False)])
def test_windows_are_those_that_were_asked_for(with_checks, tmp_path, process, flag, drawn):
    model, text = (with_checks[with_checks.index(name) + 1] for name in ("--model", "--texts"))
    assert main([*with_checks, "--methods", "drop-tail", "--ratio", "0.3", process, *flag]) == 0
    tokenizer = pretrained.load_tokenizer(model)
    expected = texts.make_evaluation_text(tokenizer, text, 32, 32, 4, drawn=drawn)
    assert expected.drawn is drawn
    found = load_run(tmp_path / "run")
    assert len(found) == 2
    for record in found:
        (scored,) = record.measured.text_scores.values()
        assert (scored.drawn, scored.sha256) == (drawn, expected.sha256)
        assert record.cell.protocol.windows_drawn is drawn
    (pruned,) = [record for record in found if record.cell.method == "drop-tail"]
    assert pruned.measured.checks.drawn is drawn


def test_all_windows_are_the_same_cells_however_they_are_asked_for(base, tmp_path, capsys):
    everything = [*base, "--methods", "drop-tail", "--ratio", "0.3", "--windows", "0"]
    assert main([*everything, "--first-windows"]) == 0
    capsys.readouterr()
    assert main(everything) == 0
    assert capsys.readouterr().err.count("has a record") == 2
    assert len(load_run(tmp_path / "run")) == 2
