"""The card of an exported model has a picture of its run: quality against size, with a ring around the model."""

from __future__ import annotations

import shutil

import pytest
from conftest import trusting_all
from huggingface_hub import ModelCard
from made_records import DENSE, LACO, RECORDS, changed

from bench.cli.main import main
from bench.export.card_picture import FILE
from bench.export.hub import REPLACED
from bench.records import run_folder
from bench.records.record import record_from_plain
from reports.figures.figure import render_figure
from reports.figures.pareto import figure_of_model


@pytest.fixture(scope="module")
def run(model_folder, text_file, tmp_path_factory):
    """A run of the dense model and two pruned ones, of which the models are saved."""
    folder, text = tmp_path_factory.mktemp("runs") / "run", str(text_file)
    asked = ["run", "--model", str(model_folder), "--texts", text, "--calibration", text, "--tasks", "none"]
    asked += ["--window", "32", "--windows", "4", "--calibration-sequences", "4", "--calibration-length", "24"]
    asked += ["--profile", "smoke", "--device", "cpu", "--speed-rounds", "0", "--no-checks", "--out", str(folder)]
    assert main([*asked, "--methods", "dense,drop-tail,flap", "--ratio", "0.3", "--save-models"]) == 0
    return folder


def export(run, method, to):
    """Write the model of a method, and return its card."""
    assert main(["export", str(run), *trusting_all(run), method, "--to", str(to)]) == 0
    return (to / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("more", [[], ["--save-dtype", "bfloat16"]])  # a saved model is copied, or stored anew
def test_the_picture_is_in_the_folder_and_in_the_card_with_this_model_in_a_ring(run, tmp_path, more):
    assert main(["export", str(run), *trusting_all(run), "flap", "--to", str(tmp_path / "m"), *more]) == 0
    card = (tmp_path / "m" / "README.md").read_text(encoding="utf-8")
    records = run_folder.load_run(run)
    assert len(records) == 3
    (record,) = [each for each in records if each.cell.method == "flap"]
    (line,) = [line for line in card.splitlines() if line.startswith("![")]
    assert line.endswith(f"]({FILE})")
    assert "3 cells of one run; the ring is flap at 0.3 (" in line
    figure = figure_of_model(records, record)
    (scores,) = record.measured.text_scores.values()
    (chart,) = figure.charts
    assert chart.ringed == (pytest.approx(record.measured.parameters / 1e6), pytest.approx(scores.perplexity))
    assert chart.ringed in next(curve.points for curve in chart.curves if curve.label == "flap")
    picture = (tmp_path / "m" / FILE).read_bytes()
    assert picture == render_figure(figure, ("png",))["png"]
    assert "model-index:" in card
    assert ModelCard(card).data.eval_results
    assert main(["verify", str(tmp_path / "m")]) == 0


def test_each_model_has_a_picture_of_its_own(run, tmp_path):
    cards = [export(run, method, tmp_path / method) for method in ("drop-tail", "flap")]
    pictures = {(tmp_path / method / FILE).read_bytes() for method in ("drop-tail", "flap")}
    assert len(pictures) == 2
    assert ["the ring is drop-tail" in card for card in cards] == [True, False]


def test_the_card_of_a_run_of_one_cell_has_no_picture(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    for path in (tmp_path / "run" / "cells").glob("*.json"):
        if not path.name.startswith("flap"):
            path.unlink()
    card = export(tmp_path / "run", "flap", tmp_path / "m")
    assert "](" not in card
    assert not (tmp_path / "m" / FILE).exists()


def test_a_ring_is_drawn_and_a_push_takes_away_the_picture_of_an_earlier_one():
    assert FILE in REPLACED
    figures = [figure_of_model(RECORDS, record) for record in (LACO, DENSE)]
    assert len({render_figure(figure, ("png",))["png"] for figure in figures}) == 2
    assert figures[0].charts[0].curves == figures[1].charts[0].curves


def test_a_cell_without_figures_and_one_of_another_run_have_no_picture():
    failed = next(record for record in RECORDS if record.status != "ok")
    other = changed(LACO, "cell", "seed", to=99)
    assert [figure_of_model(RECORDS, record) for record in (failed, other)] == [None, None]
    assert figure_of_model([LACO], LACO) is None
    assert figure_of_model([DENSE, LACO], record_from_plain(LACO.plain())) is not None
