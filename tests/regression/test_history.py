"""A metric over runs: order, intervals, marks of new levels and of other conditions, and the plot."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from made_records import LACO as LACO_AT_03
from made_records import PER_LAYER, changed, checked, measured, ok
from made_runs import VERSIONS, answers, cell, nats, run_folder

from bench.cli.main import main
from bench.records import frame as column_data
from bench.records.comparability import conditions_of_metric
from bench.records.run_folder import read_records
from reports.history import find_changes

STEP = 8  # the run from which perplexity is higher
WINDOWS = {"tokens": 8176, "windows": 16, "window": 512, "stride": 512, "bos": "none", "drawn": False}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Twelve runs, listed out of order: perplexity repeats to within noise and rises by 20 % at the run STEP."""
    folder = tmp_path_factory.mktemp("history")
    noise = np.random.default_rng(0).normal(0, 1, 12)
    for n in range(12):
        nll = nats(1) + noise[n] + (93 if n >= STEP else 0)  # of 511 tokens
        low, high = {"perplexity_low": 15.0, "perplexity_high": 30.0}.values()
        versions = VERSIONS | {"torch": "2.13.0" if n < 3 else "2.14.0"}
        environment = {"date": f"2026-01-{n + 1:02d}T00:00:00+00:00", "commit": f"{n:08d}abc", "versions": versions}
        environment["dirty"] = n == 5
        perplexity = {"perplexity": float(np.exp(nll.sum() / nll.size / 511)), "sha256": "a" * 64, "drawn": True}
        perplexity |= {"perplexity_low": low, "perplexity_high": high}
        run = folder / f"run-{n}"
        for label, ratio in (("dense", None), ("laco", 0.1), ("laco", 0.2)):
            figures = {"perplexity": {"wiki": WINDOWS | perplexity}, "parameters": 1000 if n < 6 else 900}
            cell(run, label, ratio, tasks={"piqa": answers(n, 100)}, environment=environment, measured=figures)
    return [str(folder / f"run-{n}") for n in (3, 1, 2, 0, *range(11, 3, -1))]


LACO = ("--label", "laco", "--ratio", "0.1")


def lines(capsys, *arguments: str) -> list[dict[str, str]]:
    assert main(["history", *arguments, "--format", "csv"]) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_runs_are_in_the_order_of_their_dates_with_the_step_marked(runs, capsys):
    found = lines(capsys, *runs, "--metric", "perplexity_wiki", *LACO)
    assert [line["run"] for line in found] == [f"run-{n}" for n in range(12)]
    assert [n for n, line in enumerate(found) if line["new_level"] == "1"] == [STEP]
    assert [n for n, line in enumerate(found) if "torch" in line["conditions_apart"]] == [3]
    assert (found[5]["commit"], found[6]["commit"]) == ("00000005*", "00000006")
    assert {line["low"] for line in found} == {"15.0"}


def test_draws_are_pooled_as_in_a_report_and_other_cells_are_not_pooled(tmp_path, capsys):
    def timed(run, ratio_of: str, seed: int, ppl: float) -> None:
        perplexity = WINDOWS | {"perplexity": ppl, "sha256": "a" * 64}
        cell(run, "laco", 0.3, seed=seed, measured={"perplexity": {"wiki": perplexity}})
        path = next(path for path in (run / "cells").iterdir() if path.stem.endswith(f"--{seed}"))
        found = json.loads(path.read_text())
        found["cell"]["ratio_of"] = ratio_of
        path.write_text(json.dumps(found))

    for seed, ppl in ((0, 20.0), (1, 500.0)):
        timed(tmp_path / "seeds", "all", seed, ppl)
        timed(tmp_path / "budgets", ("all", "decoder")[seed], seed, ppl)
    (line,) = lines(capsys, str(tmp_path / "seeds"), "--metric", "perplexity_wiki", "--label", "laco")
    assert (float(line["perplexity_wiki"]), line["draws"]) == (pytest.approx(100.0), "2")
    assert main(["history", str(tmp_path / "budgets"), "--metric", "perplexity_wiki", "--label", "laco"]) == 2
    err = capsys.readouterr().err
    assert "has several cells" in err and "laco at 0.3; laco at 0.3 of the decoder" in err


def test_cells_of_several_models_or_conditions_have_no_mean(tmp_path, capsys):
    def run(name: str, place: tuple[str, ...], values: tuple[object, object]) -> Path:
        records = [changed(LACO_AT_03, *place, to=value) for value in values]
        return run_folder(tmp_path / name, [changed(one, "cell", "seed", to=n) for n, one in enumerate(records)])

    models = run("models", ("cell", "display_name"), ("A", "B"))
    for path, model in zip(sorted((models / "cells").iterdir()), ("a", "b"), strict=True):
        path.write_text(path.read_text().replace("smollm2-135m", model))
    asked = ["--metric", "perplexity_wiki", "--label", "laco"]
    assert main(["history", str(models), *asked]) == 2
    assert "laco at 0.3 on several models, whose mean says nothing: A, B; --model" in capsys.readouterr().err
    (line,) = lines(capsys, str(models), *asked, "--model", "B")
    assert (line["perplexity_wiki"], line["draws"]) == ("343.4", "1")
    assert main(["history", str(models), *asked, "--model", "C"]) == 2
    assert "has no model 'C'; it has A, B" in capsys.readouterr().err
    same = run("same", ("cell", "model"), ("/runs/a/model", "/runs/b/model"))
    assert main(["history", str(same), *asked]) == 2
    assert "nothing: /runs/a/model, /runs/b/model; --model names one" in capsys.readouterr().err
    assert len(lines(capsys, str(same), *asked, "--model", "/runs/a/model")) == 1
    windows = run("windows", ("cell", "protocol", "windows"), (16, 48))
    assert main(["history", str(windows), *asked]) == 2
    assert "under several conditions, whose mean says nothing: cpu, float32, windows 16; cpu" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("metric", "apart"), [("prune_seconds", "cpu threads torch"), ("parameters", ""), ("perplexity_wiki", "torch")]
)
def test_what_pruning_took_says_that_the_machine_is_another(metric, apart, tmp_path, capsys):
    for number, (cpu, threads, torch) in enumerate((("A", 2, "2.13.0"), ("B", 64, "2.14.0"))):
        environment = {"date": f"2026-01-0{number + 1}T00:00:00+00:00", "cpu": cpu, "threads": threads}
        environment["versions"] = VERSIONS | {"torch": torch}
        figures = {"perplexity": {"wiki": WINDOWS | {"perplexity": 20.0, "sha256": "a" * 64}}, "prune_seconds": 9.0}
        cell(tmp_path / f"run-{number}", "laco", 0.3, environment=environment, measured=figures)
    runs = [str(tmp_path / f"run-{number}") for number in range(2)]
    _, second = lines(capsys, *runs, "--metric", metric, "--label", "laco")
    assert second["conditions_apart"] == apart


TEXT, SEQUENCES = ("measured", "perplexity", "wiki", "sha256"), ("decisions", "calibration", "sha256")
LM_EVAL = ("environment", "versions", "lm_eval")


@pytest.mark.parametrize(
    ("place", "apart", "alike"),
    [
        (TEXT, "perplexity_wiki perplexity_wiki_high bits_per_byte_wiki kl kl_low repetition", "copying task_piqa"),
        (SEQUENCES, "prune_seconds peak_memory_bytes kl task_piqa", "parameters"),
        (LM_EVAL, "task_piqa average", "perplexity_wiki kl copying prune_seconds"),
    ],
)
def test_a_figure_goes_by_what_it_was_measured_on(place, apart, alike):
    figures = checked(measured(PER_LAYER, (19.9, 20.8, 21.7), [0.3] * 5, 57.0), 0.3, 0.5)
    one = ok("laco", 0.3, figures, prune_seconds=9.0, decisions={"calibration": {"sha256": "c" * 64}})
    other = changed(one, *place, to="another")
    found = {
        name: conditions_of_metric(one, name) == conditions_of_metric(other, name)
        for name in f"{apart} {alike}".split()
    }
    assert found == dict.fromkeys(apart.split(), False) | dict.fromkeys(alike.split(), True)


def test_a_check_is_of_the_first_text():
    figures = checked(measured(PER_LAYER, (19.9, 20.8, 21.7), [0.3] * 5, 57.0), 0.3, 0.5)
    figures["perplexity"]["c4"] = figures["perplexity"]["wiki"] | {"sha256": "11"}
    one = ok("laco", 0.3, figures)
    texts = [changed(one, "cell", "protocol", "texts", to=names) for names in (["wiki", "c4"], ["c4", "wiki"])]
    assert [conditions_of_metric(record, "kl")["text"] for record in texts] == ["00", "11"]
    assert conditions_of_metric(one, "perplexity_c4")["text"] == "11"


def test_an_exact_figure_has_no_noise(runs, capsys):
    found = lines(capsys, *runs, "--metric", "parameters", "--label", "dense")
    assert [n for n, line in enumerate(found) if line["new_level"] == "1"] == [6]


@pytest.mark.parametrize("kind", ["terminal", "markdown"])
def test_the_table_is_for_a_reader(kind, runs, capsys):
    assert main(["history", *runs, "--metric", "perplexity_wiki", *LACO, "--format", kind]) == 0
    out = capsys.readouterr().out
    assert out.count("new level") == 2  # the mark and what it means
    assert "torch" in out
    assert "2026-01-09 00:00" in out


@pytest.mark.parametrize("suffix", ["svg", "png", "pdf"])
def test_the_plot_is_the_same_every_time(suffix, runs, tmp_path, capsys):
    files = [tmp_path / f"{name}.{suffix}" for name in ("one", "two")]
    for file in files:
        assert main(["history", *runs, "--metric", "task_piqa", *LACO, "--plot", str(file)]) == 0
    assert files[0].read_bytes() == files[1].read_bytes()
    if suffix == "svg":
        ElementTree.parse(files[0])


def test_every_column_of_figures_has_a_table(tmp_path, capsys):
    whole = checked(measured(11 * PER_LAYER, (300.0, 343.4, 391.0), [0.3] * 5, 57.0), 0.3, 0.5)
    run = run_folder(tmp_path, [ok("laco", 0.3, whole, budget=11, prune_seconds=26.31)])
    assert main(["history", str(run), "--metric", "none"]) == 2
    figures = capsys.readouterr().err.split("it has ")[1].strip().split(", ")
    row = column_data.rows_of_records(list(read_records(run).values()))[0]
    assert {"bits_per_byte_wiki", "miss", "task_piqa_acc_stderr", "kl_low", "macs_context"} <= set(figures)
    assert set(figures) == {name for name, value in row.items() if isinstance(value, int | float)}
    for name in figures:
        assert main(["history", str(run), "--metric", name]) == 0
        assert "2026-01-02" in capsys.readouterr().out, name


def test_a_plot_that_cannot_be_written_is_one_line(runs, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "a.svg", tmp_path / "folder.svg"):
        (tmp_path / "folder.svg").mkdir(exist_ok=True)
        assert main(["history", *runs, "--metric", "parameters", *LACO, "--plot", str(place)]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n"), "cannot be written" in err) == ("", 1, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.svg"]


def test_mistakes_are_one_line(runs, tmp_path, capsys):
    for arguments, message in (
        (["--metric", "perplexity_wikki", *LACO], "no metric 'perplexity_wikki'; it has"),
        (["--metric", "status", *LACO], "no metric 'status'; it has"),
        (["--metric", "perplexity_wiki"], "several cells of that --label and --ratio"),
        (["--metric", "perplexity_wiki", "--label", "sleb"], "no cell of that --label"),
        (["--metric", "perplexity_wiki", *LACO, "--plot", "x.gif"], "--plot names an .svg"),
    ):
        assert main(["history", *runs, *arguments]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert message in err
    assert main(["history", str(tmp_path), "--metric", "parameters"]) == 2


def test_folders_without_the_cell_are_left_out_and_counted(runs, tmp_path, capsys):
    (tmp_path / "file.txt").touch()
    (tmp_path / "empty").mkdir()
    cell(tmp_path / "dense-alone", tasks={"piqa": answers(0, 100)})
    cell(tmp_path / "unmeasured", "laco", 0.1, tasks={"piqa": answers(0, 100)})
    others = [str(path) for path in sorted(tmp_path.iterdir())]
    asked = ["--metric", "perplexity_wiki", *LACO, "--format", "csv"]
    assert main(["history", *others, *runs[:2], *asked]) == 0
    out, err = capsys.readouterr()
    assert [line["run"] for line in csv.DictReader(io.StringIO(out))] == ["run-1", "run-3"]
    assert err.startswith("left out 4 of 6 folders; of the first: ")
    assert err.count("\n") == 1
    assert main(["history", *others, *asked]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)


# Where levels begin


@pytest.mark.parametrize("at", [4, 10, 16])
@pytest.mark.parametrize("size", [6.0, -6.0])
def test_a_step_of_six_times_the_noise_is_found_where_it_is(at, size):
    generator = np.random.default_rng(at)
    values = generator.normal(100, 1, 20)
    values[at:] += size
    assert find_changes(values.tolist()) == [at]


def test_noise_and_odd_runs_make_no_level():
    generator = np.random.default_rng(1)
    for runs, most in ((6, 0.08), (20, 0.02)):
        marked = [bool(find_changes(generator.normal(100, 1, runs).tolist())) for _ in range(150)]
        assert np.mean(marked) <= most
    odd = generator.normal(100, 1, 20)
    odd[7] += 50
    assert find_changes(odd.tolist()) == []


def test_the_newest_run_alone_is_no_level_and_few_runs_have_none():
    assert find_changes([5.0] * 9 + [9.0]) == []
    assert find_changes([5.0] * 8 + [9.0] * 2) == [8]
    assert find_changes([1.0, 1.0, 9.0, 9.0]) == []
    assert find_changes([5.0] * 10) == []
    assert find_changes([5.0, float("inf"), 5.0, 5.0, 9.0, 9.0]) == []
