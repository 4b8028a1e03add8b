"""The view models: means over models, places, orders that agree, and what has no figure on every model."""

from __future__ import annotations

import math
import re
from itertools import permutations
from statistics import fmean

import numpy as np
import pytest
from conftest import refused
from made_records import PER_LAYER, changed, measured, ok, plain_inputs
from made_runs import run_folder
from scipy.stats import t

from bench.cli.main import main
from bench.records.comparability import setup_of_models
from bench.records.record import Record
from bench.records.samples import Sample, Samples
from reports.formats import markup, terminal
from reports.legend import MORE_CELLS
from reports.tables.models import ratios_on_all_models
from reports.tables.rows import ReportData
from reports.tables.table import Table, TableCell
from reports.tables.views import build_view

MODELS = ("one", "two", "three")
METHODS = ("laco", "flap", "sleb", "shortgpt")


def cell(
    model: str, method: str, ppl: float, accuracy: float = 0.4, *, half: float = 1.1, ratio: float = 0.3
) -> Record:
    """A measured cell of a model, whose weights, tokens and calibration are its own."""
    dense = method == "dense"
    figures = measured(0 if dense else 11 * PER_LAYER, (ppl / half, ppl, ppl * half), [accuracy] * 5, 60.0)
    record = ok(method, None if dense else ratio, figures, budget=0 if dense else 11, model=model)
    tasks = {"piqa": {"version": 1, "sha256": "the same documents"}}
    own = {name: f"{name} of {model}" for name in ("weights_sha256", "tokenizer_sha256", "calibration_sha256")}
    inputs = plain_inputs(**own, texts={"wiki": f"tokens of {model}"}, tasks=tasks)
    return changed(record, "cell", "inputs", to=inputs)


def several(
    times: dict[str, list[float]], dense: tuple[float, ...] = (20.0, 10.0, 40.0), **more: float
) -> list[Record]:
    """The dense model of each model, and methods by how many times its perplexity they have on each."""
    found = []
    for at, model in enumerate(MODELS[: max(map(len, times.values()))]):
        found.append(cell(model, "dense", dense[at], **more))
        found += [cell(model, method, dense[at] * each[at], **more) for method, each in times.items() if at < len(each)]
    return found


def table(records: list[Record], name: str) -> Table:
    (found,) = [one for one in build_view("models", records) if one.name == name]
    return found


def cells(one: Table) -> dict[str, dict[str, TableCell]]:
    """The cells of a table by the rows' labels and the columns' headings."""
    heads = [column.label for column in one.columns]
    return {row.label: dict(zip(heads, row.cells, strict=True)) for row in one.rows}


CHANGES, PLACES = "models-perplexity_wiki-0.3", "models-places-perplexity_wiki-0.3"


def in_words(found: list[Table]) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    return [(one.title, [(row.label, [cell.text for cell in row.cells]) for row in one.rows]) for one in found]


def test_two_versions_on_each_model_stand_each_beside_its_own_dense_model():
    records = []
    for torch, dense in (("2.13", (20.0, 10.0)), ("2.14", (40.0, 5.0))):
        for record in several({"laco": [2.0, 2.0], "flap": [3.0, 4.0]}, dense):
            newer = changed(record, "environment", "versions", to={"torch": torch})
            records.append(changed(newer, "cell", "inputs", "versions", to={"torch": torch}))
    for given in (records, records[::-1]):
        found = cells(table(given, CHANGES))
        assert {label: [row[model].value for model in MODELS[:2]] for label, row in found.items()} == {
            f"{method} (torch {torch})": pytest.approx(times)
            for torch in ("2.13", "2.14")
            for method, times in (("laco", [2, 2]), ("flap", [3, 4]))
        }


def test_orders_under_other_conditions_have_tables_of_their_own():
    records = several({"laco": [2.0, 2.0], "flap": [3.0, 4.0]})
    turned = several({"laco": [2.0, 5.0], "flap": [3.0, 4.0]})
    fewer = [changed(record, "cell", "protocol", "documents", to=7) for record in turned]

    def orders(given: list[Record]) -> list[tuple[str, list[tuple[str, list[str]]]]]:
        return in_words([one for one in build_view("models", given) if one.name.startswith("models-orders")])

    assert orders([*records, *fewer]) == [*orders(records), *orders(fewer)]
    assert orders(records) != orders(fewer)


def test_without_a_standard_error_a_change_has_no_interval():
    records = several({"laco": [2.0, 2.0]})
    bare = [
        changed(record, "measured", "tasks", "piqa", "metrics", "acc_norm", "stderr", to=None) for record in records
    ]
    with_error, without = (cells(table(given, "models-average-0.3"))["laco"]["one"] for given in (records, bare))
    assert without.value == with_error.value
    assert (with_error.low is None, without.low) == (False, None)


# --- means


def test_the_mean_of_equal_figures_is_that_figure_with_the_models_own_interval():
    """Dense models of other perplexities are divided out, and models that agree add nothing to the interval."""
    found = cells(table(several({"laco": [3.0, 3.0, 3.0], "flap": [2.0, 2.0, 2.0]}), CHANGES))
    for model in MODELS:
        assert found["laco"][model].value == pytest.approx(3)
    mean = found["laco"]["mean"]
    assert (mean.value, mean.low, mean.high) == pytest.approx((3, found["laco"]["one"].low, found["laco"]["one"].high))


def test_the_mean_is_geometric_and_its_interval_is_students_over_the_models():
    """Hardly any error of their own: (x 2, x 4, x 8) has the mean 4 and Student's t of two degrees of freedom."""
    mean = cells(table(several({"laco": [2.0, 4.0, 8.0], "flap": [9.0, 9.0, 9.0]}, half=1 + 1e-9), CHANGES))["laco"][
        "mean"
    ]
    assert mean.value == pytest.approx(4)
    half = t.ppf(0.975, 2) * math.log(2) / math.sqrt(3)
    assert (mean.low, mean.high) == pytest.approx((4 * math.exp(-half), 4 * math.exp(half)))


def test_the_mean_of_an_average_is_that_of_the_points_that_are_lost():
    records = [cell(model, "dense", 20, 0.5) for model in MODELS]
    records += [cell(model, "laco", 50, lost) for model, lost in zip(MODELS, (0.4, 0.45, 0.2), strict=True)]
    records += [cell(model, "flap", 50, 0.5) for model in MODELS]
    found = cells(table(records, "models-average-0.3"))
    assert [found["laco"][model].value for model in MODELS] == pytest.approx([-0.1, -0.05, -0.3])
    assert found["laco"]["mean"].value == pytest.approx(-0.15)
    assert found["flap"]["mean"].value == pytest.approx(0)
    assert list(found) == ["flap", "laco"]  # more is better


def test_bits_per_byte_are_times_the_dense_models():
    records = [cell(model, "dense", 20, 0.7) for model in MODELS]  # 1 bit per byte
    records += [cell(model, method, 50, 0.2) for model in MODELS for method in ("laco", "flap")]  # 2 bits
    found = cells(table(records, "models-answer_bpb-0.3"))["laco"]
    assert found["mean"].value == pytest.approx(2)
    own = math.hypot(0.06 / math.sqrt(5) / 2, 0.06 / math.sqrt(5) / 1)  # of the logarithm, five tasks of 0.06 each
    assert found["one"].high == pytest.approx(2 * math.exp(1.96 * own))


def test_samples_of_the_same_documents_narrow_an_interval():
    """Two cells that lose the same bits on every document have a ratio without an error."""
    units = tuple(range(50))
    dense = np.linspace(0.5, 1.5, 50)

    class Paired(Samples):
        def of(self, number, name, figure):
            if figure != "answer_bpb":
                return None
            return Sample(units, dense * (1.0 if number % 2 == 0 else 2.0))

    records = [
        record for model in MODELS[:2] for record in (cell(model, "dense", 20, 0.7), cell(model, "laco", 50, 0.2))
    ]
    (shared,) = ratios_on_all_models(ReportData(records, samples=Paired()))
    change = shared.models[0].change("laco", "answer_bpb")
    assert (change.low, change.high) == pytest.approx((math.log(2), math.log(2)))


def test_the_dense_models_have_a_table_of_their_values():
    one = table(several({"laco": [2.0, 2.0], "flap": [3.0, 3.0]}), "models-dense")
    found = {row.label: dict(zip([c.name for c in one.columns], row.cells, strict=True)) for row in one.rows}
    assert {label: row["perplexity_wiki"].value for label, row in found.items()} == {"one": 20.0, "two": 10.0}
    assert found["one"]["perplexity_wiki"].high == pytest.approx(22)
    assert one.head == "model"


# --- what is missing


def test_a_method_without_a_figure_on_one_model_has_no_mean_and_no_place():
    records = several(
        {
            "laco": [2.0, 2.0, 2.0],
            "flap": [3.0, 3.0, 3.0],
            "sleb": [1.1, 1.1, 1.1],
            "shortgpt": [1.2, 1.2],
            "drop": [1.3, 1.3],
        }
    )
    place = next(at for at, one in enumerate(records) if one.cell.model == "two" and one.cell.method == "sleb")
    cut = records[place].cell
    records[place] = Record(cut, "unsupported", records[place].environment, error="no rotation survives the norms")
    one = table(records, CHANGES)
    found = cells(one)
    assert list(found) == ["laco", "flap", "sleb", "shortgpt", "drop"]  # those without a mean at the end, however good
    assert (found["sleb"]["two"].text, found["sleb"]["mean"].text) == ("unsupported", "-")
    assert found["sleb"]["one"].value == pytest.approx(1.1)
    assert (found["shortgpt"]["three"].text, found["shortgpt"]["mean"].text) == ("-", "-")
    (line,) = [note for note in one.notes if note.startswith("no mean: ")]
    assert line.endswith(": sleb [unsupported on two], shortgpt, drop [not measured on three].")
    places = cells(table(records, PLACES))
    assert {name: row["one"].value for name, row in places.items()} == {"laco": 1, "flap": 2}
    orders = cells(table(records, "models-orders-models"))
    assert orders["ppl wiki"]["0.3"].text.endswith("(n 2)")  # of two and three, the last pair: laco and flap


def test_a_missed_budget_has_its_sign_and_is_named_with_its_model():
    records = several({"laco": [2.0, 2.0], "flap": [3.0, 3.0]})
    place = next(at for at, one in enumerate(records) if one.cell.model == "two" and one.cell.method == "flap")
    budget = records[place].measured.ratio + 0.02
    records[place] = changed(records[place], "measured", "ratio_budget", to=budget)
    one = table(records, CHANGES)
    assert {name: cell.text.endswith("*") for name, cell in cells(one)["flap"].items()} == {
        "one": False,
        "two": True,
        "mean": False,
    }
    (line,) = [note for note in one.notes if note.startswith("* missed: ")]
    assert ": flap on two [requested 30.0 %, budget " in line
    assert "laco" not in line


def test_one_model_alone_is_refused_in_a_sentence(tmp_path, capsys):
    run = run_folder(tmp_path / "run", several({"laco": [2.0], "flap": [3.0]}))
    said = refused(capsys, ["report", str(run), "--view", "models"])
    assert "these cells are of SmolLM2-135M-Instruct alone" in said
    assert "report RUN OTHER --view models" in said
    assert main(["report", str(run), "--view", "all"]) == 0
    assert "places of" not in capsys.readouterr().out


def test_models_that_were_measured_otherwise_are_not_set_beside_each_other(tmp_path, capsys):
    records = several({"laco": [2.0, 2.0], "flap": [3.0, 3.0]})
    longer = [changed(r, "cell", "protocol", "window", to=1024) if r.cell.model == "two" else r for r in records]
    assert build_view("models", longer) == []
    run = run_folder(tmp_path / "run", [changed(r, "cell", "display_name", to=r.cell.model) for r in longer])
    assert "one and two share no ratio" in refused(capsys, ["report", str(run), "--view", "models"])
    timed = [changed(r, "cell", "protocol", "speed_rounds", to=0) if r.cell.model == "two" else r for r in records]
    assert len({setup_of_models(record) for record in timed}) == 1  # whether it was timed touches no quality


def test_of_one_model_the_cells_under_most_conditions_stand_and_a_note_says_so():
    records = several({"laco": [2.0, 2.0], "flap": [3.0, 3.0]})
    again = [cell("one", "dense", 20.0), cell("one", "laco", 99.0)]
    again = [changed(record, "cell", "protocol", "speed_rounds", to=0) for record in again]
    one = table([*again, *records], CHANGES)
    assert cells(one)["laco"]["one"].value == pytest.approx(2)
    assert f"more cells: {MORE_CELLS.sentence[:-1]}: one." in one.notes


def test_two_models_of_one_name_are_two_models():
    """As of two folders `model`, which would be told apart by nothing else."""
    folders = {"one": "/runs/a/model", "two": "/runs/b/model"}
    records = several({"laco": [2.0, 3.0], "flap": [3.0, 4.0]})
    moved = [changed(one, "cell", "model", to=folders[one.cell.model]) for one in records]
    one = table(moved, CHANGES)
    assert {name: cell.value for name, cell in cells(one)["laco"].items() if name != "mean"} == {
        "a/model": pytest.approx(2),
        "b/model": pytest.approx(3),
    }
    assert not any("under other conditions" in note for note in one.notes)


# --- places and orders


@pytest.mark.parametrize("names", permutations(METHODS[:3]))
def test_places_go_with_the_methods_whatever_their_order(names):
    times = {"laco": [2.0, 5.0, 4.0], "flap": [3.0, 2.0, 3.0], "sleb": [4.0, 4.0, 2.0]}
    found = cells(table(several({name: times[name] for name in names}), PLACES))
    places = {name: [found[name][model].value for model in MODELS] for name in names}
    assert places == {"laco": [1, 3, 3], "flap": [2, 1, 2], "sleb": [3, 2, 1]}
    for name in names:
        mean = found[name]["mean place"]
        assert (mean.value, mean.low, mean.high) == (fmean(places[name]), min(places[name]), max(places[name]))


def test_a_place_is_as_open_as_the_tests_leave_it_and_only_what_they_show_is_marked():
    """laco and flap change places within their intervals; sleb comes from far behind to far in front."""
    times = {"laco": [2.0, 2.1], "flap": [2.1, 2.0], "sleb": [20.0, 0.5], "shortgpt": [8.0, 8.0]}
    one = table(several(times, half=1.05), PLACES)
    found = cells(one)
    assert found["laco"]["one"].text == "1 [1, 2]"
    assert found["flap"]["two"].text == "2 [2, 3]"
    assert (found["sleb"]["one"].text, found["sleb"]["two"].text) == ("4 [4, 4]", "1 [1, 1]")
    assert (found["shortgpt"]["one"].text, found["shortgpt"]["two"].text) == ("3 [3, 3]", "4 [4, 4]")
    assert {name for name, row in found.items() if "differs" in row["mean place"].marks} == {"sleb", "shortgpt"}
    assert any(note.startswith("†: changes place") for note in one.notes)
    steady = table(several({"laco": [2.0, 2.1], "flap": [2.1, 2.0]}, half=1.05), PLACES)
    assert steady.notes == ()


def test_the_first_place_by_an_average_is_the_highest():
    records = [
        cell(model, method, 20, accuracy)
        for model in MODELS[:2]
        for method, accuracy in {"dense": 0.95, "laco": 0.2, "flap": 0.9}.items()
    ]
    found = cells(table(records, "models-places-average-0.3"))
    assert {name: row["one"].text for name, row in found.items()} == {"flap": "1 [1, 1]", "laco": "2 [2, 2]"}


def test_an_order_agrees_with_itself_and_is_opposed_to_its_reverse():
    same, reverse = [2.0, 3.0, 4.0, 5.0], [5.0, 4.0, 3.0, 2.0]
    times = {name: [a, a, b] for name, a, b in zip(METHODS, same, reverse, strict=True)}
    one = table(several(times), "models-orders-models")
    found = {row.cells[0].text: row.cells[1] for row in one.rows if row.label == "ppl wiki"}
    assert {pair: tau.value for pair, tau in found.items()} == {"one, two": 1, "one, three": -1, "two, three": -1}
    assert {tau.text for tau in found.values()} == {"1.00 (n 4)", "-1.00 (n 4)"}


def test_orders_of_measures_agree_where_the_best_of_one_is_the_best_of_the_other():
    """A high accuracy and a low perplexity are both the best."""
    accuracies = dict(zip(METHODS, (0.5, 0.4, 0.3, 0.2), strict=True))
    records = [
        cell(model, method, ppl, accuracies.get(method, 0.6))
        for model in MODELS[:2]
        for method, ppl in {"dense": 10.0, "laco": 20.0, "flap": 30.0, "sleb": 40.0, "shortgpt": 50.0}.items()
    ]
    one = table(records, "models-orders-measures")
    assert {(row.label, row.cells[0].text, row.cells[1].value) for row in one.rows} == {
        (model, pair, 1.0) for model in MODELS[:2] for pair in ("ppl wiki, bpb", "ppl wiki, average", "bpb, average")
    }


# --- how it is written


def test_models_stand_by_their_size_and_wide_intervals_by_that_of_their_ends():
    records = several({"laco": [2.0, 9000.0], "flap": [3.0, 2.0]})
    larger = [
        changed(r, "measured", "dense_parameters", to=2 * 134_515_008) if r.cell.model == "one" else r for r in records
    ]
    one = table(larger, CHANGES)
    assert [column.label for column in one.columns] == ["two", "one", "mean"]
    assert re.fullmatch(r"134 \[[\d.e-]+, \d\.\de\d+\]", cells(one)["laco"]["mean"].text)


def test_a_budget_is_called_one():
    records = several({"laco": [2.0, 3.0, 4.0], "flap": [3.0, 2.0, 3.0]})
    pruned = [changed(one, "cell", "ratio_of", to="macs") for one in records if one.cell.method != "dense"]
    dense = [one for one in records if one.cell.method == "dense"]
    titles = [one.title for one in build_view("models", [*dense, *pruned]) if one.head == "method"]
    assert titles
    assert all("budget macs=0.7, 3 models" in title for title in titles)


def test_the_view_stands_in_every_format_and_on_the_page(tmp_path, capsys):
    records = several({"laco": [2.0, 3.0, 4.0], "flap": [3.0, 2.0, 3.0]})
    for model in MODELS:
        mine = [record for record in records if record.cell.model == model]
        run_folder(tmp_path / model, mine)
    runs = [str(tmp_path / model) for model in MODELS]
    for form in ("terminal", "markdown", "csv", "latex", "html"):
        assert main(["report", *runs, "--view", "models", "--format", form]) == 0
        out, err = capsys.readouterr()
        assert "three" in out
        assert err == ""
    tables = build_view("models", records)
    assert max(map(len, terminal.render(tables).splitlines())) <= 100
    assert "places of 2 methods" in markup.render_markdown(tables)
