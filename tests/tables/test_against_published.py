"""Published figures beside measured ones: what is paired, the arithmetic, the reasons, and the data themselves."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import yaml
from made_records import DENSE, LACO, RECIPE, changed, share, with_cell
from made_runs import run_folder

from bench.cli.main import main
from bench.records.record import Record
from methods.errors import UserError
from reports.legend import READING
from reports.published.against import tables_of_published
from reports.published.papers import list_published, read_published

LLAMA = "meta-llama/Llama-2-7b-hf"
PAPER = {
    "description": "made up",
    "source": "Somebody 2024, table 1",
    "notes": ["asked by another program"],
    "protocol": {
        **{"window": 512, "windows": 16, "bos": "every window", "dtype": "float32", "calibration": "c4"},
        **{"lm_eval": "0.4.13", "fewshot": 0, "metric": "acc_norm or acc"},
    },
    "models": {
        "Llama-2-7B": {
            "names": [LLAMA],
            "rows": [
                {
                    "method": "dense",
                    "tasks": {"hellaswag": 50.0, "mmlu": 40.0, "xsum": 20.0},
                    "perplexity": {"wiki": 10},
                },
                {
                    "method": ["laco", "laco-published"],
                    "ratio": 0.30,
                    "layers": 20,
                    "prune_seconds": 15,
                    "tasks": {"hellaswag": 40.0, "mmlu": 30.0, "xsum": 10.0},
                    "average": {"of": ["hellaswag", "piqa"], "value": 45.0},
                    "perplexity": {"wiki": 30},
                },
            ],
        }
    },
}


def whole(record: Record) -> Record:
    """The record as if every document of its tasks had been asked."""
    tasks = {name: replace(one, documents=one.available) for name, one in record.measured.task_scores.items()}
    return changed(record, "measured", "tasks", to=tasks)


def printed(**protocol: object) -> dict:
    """PAPER with a ratio as that of the record, and these fields of its protocol otherwise."""
    paper = copy.deepcopy(PAPER)
    paper["models"]["Llama-2-7B"]["rows"][1]["ratio"] = 0.289
    return paper | {"protocol": PAPER["protocol"] | protocol}


def of_llama(record: Record, **tasks: float) -> Record:
    record = changed(record, "measured", "perplexity", "wiki", "drawn", to=False)  # as papers read their windows
    found = changed(changed(record, "cell", "display_name", to=LLAMA), "cell", "model", to=LLAMA)
    own = {name: {"metrics": {"acc": share(value)}, "main": "acc"} for name, value in tasks.items()}
    rest = {"version": 1, "documents": 100, "available": 100, "fewshot": 0}
    return changed(found, "measured", "tasks", to=found.measured.task_scores | {k: v | rest for k, v in own.items()})


RECORDS = [
    of_llama(DENSE, mmlu_law=0.5, mmlu_sociology=0.3),
    of_llama(LACO, mmlu_law=0.2, mmlu_sociology=0.3),
]


@pytest.fixture
def paper(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(PAPER))
    return path


def rows(table) -> dict[str, dict[str, object]]:
    return {
        row.label: {column.name: cell.value for column, cell in zip(table.columns, row.cells, strict=True)}
        for row in table.rows
    }


def read(paper: dict, tmp_path) -> list:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(paper))
    return read_published(str(path))


def test_both_figures_their_difference_and_the_shares_of_each_dense_model(tmp_path):
    dense, laco = tables_of_published([whole(one) for one in RECORDS], read(printed(), tmp_path))
    assert (dense.title, laco.title) == ("dense, published (mine) and here", "laco at 0.3, published (mine) and here")
    found = rows(laco)
    assert found["hellaswag"] == {
        "published": 0.4,
        "here": 0.3,
        "difference": pytest.approx(-0.1),
        "published_of_dense": pytest.approx(0.8),
        "here_of_dense": pytest.approx(0.3 / 0.45),
    }
    assert found["mmlu"]["here"] == pytest.approx(0.25)
    assert found["mmlu"]["here_of_dense"] == pytest.approx(0.25 / 0.4)
    assert found["average of hellaswag, piqa"]["here"] == pytest.approx((0.3 + 0.58) / 2)
    assert found["ppl wiki"]["here_of_dense"] == pytest.approx(343.4 / 20.8)
    assert found["ppl wiki"]["published_of_dense"] == pytest.approx(3.0)
    assert found["layers"] == {
        **{"published": 20, "here": 19, "difference": -1},
        **{"published_of_dense": None, "here_of_dense": None},
    }
    assert (found["pruned in"]["here"], found["pruned in"]["difference"]) == (26.31, None)  # of no machine alike
    assert found["xsum"]["here"] is None
    assert rows(dense)["hellaswag"]["difference"] == pytest.approx(-0.05)


def test_the_reasons_follow_from_the_records(paper):
    _, laco = tables_of_published(RECORDS, read_published(str(paper)))
    said = " ".join(laco.notes)
    assert "another ratio: 30.0 % published, 28.9 % here." in said
    assert "another depth: 20 layers are published, laco leaves 19." in said
    assert "already the dense models differ by up to 5.0 points (hellaswag), 2.5 on average over 2 tasks" in said
    assert "not measured here: xsum." in said
    assert laco.footnotes[:2] == ("mine: Somebody 2024, table 1.", "mine: asked by another program")
    assert "16 windows of 512 tokens" in dict(laco.protocol)["ppl wiki"]
    assert not [sentence for sentence in laco.footnotes if sentence.startswith("kept")]
    assert {READING["half"], READING["accuracy"]} <= set(laco.footnotes)
    close = changed(changed(RECORDS[1], "measured", "ratio", to=0.3), "measured", "layers", to=20)
    said = " ".join(tables_of_published([RECORDS[0], close], read_published(str(paper)))[1].notes)
    assert "another ratio" not in said
    assert "another depth" not in said


def test_titles_tell_cells_apart(paper):
    again = [changed(one, "cell", "seed", to=1) for one in RECORDS]
    exact = changed(RECORDS[1], "cell", "match", to="exact")
    found = [
        table.title.partition(",")[0]
        for table in tables_of_published([*RECORDS, *again, exact], read_published(str(paper)))
    ]
    laco = [f"laco (match layers) at 0.3 (seed {seed})" for seed in (0, 1)]
    assert found == ["dense (seed 0)", "dense (seed 1)", *laco, "laco (match exact) at 0.3 (seed 0)"]


def test_reasons_are_of_the_text_whose_difference_is_shown(tmp_path):
    """Another text, whose name has the printed word too, does not say that there is none."""
    wiki = RECORDS[1].measured.text_scores["wiki"]
    texts = {"wiki": wiki, "wiki103": replace(wiki, window=1024, stride=1024)}
    record = changed(RECORDS[1], "measured", "perplexity", to=texts)
    for several, shown in ((texts, True), (dict(reversed(texts.items())), False)):
        record = changed(record, "measured", "perplexity", to=several)
        (table,) = tables_of_published([record], read(printed(), tmp_path))
        assert (rows(table)["ppl wiki"]["difference"] is not None) == shown
        assert any("no difference of perplexities" in note for note in table.notes) != shown


def test_what_is_paired(paper):
    papers = read_published(str(paper))
    far = changed(RECORDS[1], "measured", "ratio", to=0.2)
    assert [table.rows[0].method for table in tables_of_published([RECORDS[0], far], papers)] == ["dense"]
    fixed = with_cell(far, ratio=None, parameters={"T": 0.65}, given=["T"])
    assert [table.title for table in tables_of_published([RECORDS[0], fixed], papers)][1] == (
        "laco:T=0.65, published (mine) and here"
    )
    other = changed(RECORDS[1], "cell", "method", to="laco-published")
    assert len(tables_of_published([*RECORDS, other], papers)) == 3
    folder = changed(changed(RECORDS[1], "cell", "model", to="/models/Llama-2-7b-hf"), "cell", "display_name", to="x")
    assert [table.rows[0].method for table in tables_of_published([folder], papers)] == ["laco"]
    with pytest.raises(UserError, match="there are Llama-2-7B; the runs have SmolLM2-135M-Instruct"):
        tables_of_published([DENSE, LACO], papers)


@pytest.mark.parametrize("form", ["terminal", "markdown", "csv", "latex", "html"])
def test_the_command_prints_it_in_every_format(form, paper, tmp_path, capsys):
    folder = run_folder(tmp_path / "run", RECORDS)
    assert main(["report", str(folder), "--against", str(paper), "--format", form]) == 0
    out = capsys.readouterr().out
    assert "hellaswag" in out
    share = {"csv": "0.6666666", "latex": r"67 \%"}.get(form, "67 %")
    assert share in out
    assert ("against-mine-" if form == "csv" else "Somebody") in out  # a CSV has no notes, and its lines name the table
    assert main(["report", str(folder), "--against", "published", "--format", form]) == 0
    out = capsys.readouterr().out
    note = {"csv": "against-laco-", "terminal": "published (laco)"}.get(form, "ShortGPT")  # a terminal's notes are few
    assert note in out
    assert "against-mine-" not in out


OTHERWISE = {  # a field, what the paper has there: which difference goes, and what is said
    "window": (2048, "ppl wiki", "windows of 2,048 tokens published, windows of 512 tokens here"),
    "windows": (0, "ppl wiki", "the whole text published, 16 windows here"),
    "bos": ("none", "ppl wiki", "BOS none published, BOS every window here"),
    "dtype": ("float16", "both", "float16 published, float32 here"),
    "calibration": ("wikitext", "both", "calibrated on wikitext published, on 16 sequences of 256 tokens of c4 here"),
    "calibration_length": (2048, "both", "calibrated on c4 published, on 16 sequences of 256 tokens of c4 here"),
    "lm_eval": ("0.4.0", "hellaswag", "lm-eval 0.4.0 published, lm-eval 0.4.13 here"),
    "fewshot": (5, "hellaswag", "5 examples published, 0 examples here"),
    "metric": ("acc", "hellaswag", "acc published, acc and acc_norm here"),
}
UNKNOWN = {"window": "the window", "bos": "BOS", "dtype": "the dtype", "calibration": "the calibration",
           "lm_eval": "the version of lm-eval", "fewshot": "the number of examples", "metric": "which metrics",
           "windows": "how many windows"}  # fmt: skip


def differences(records, papers) -> tuple[dict[str, object], str]:
    laco = tables_of_published(records, papers)[1]
    return {name: row.get("difference") for name, row in rows(laco).items()}, " ".join(laco.notes)


@pytest.mark.parametrize("field", OTHERWISE)
def test_what_was_measured_otherwise_has_no_difference_and_says_why(field, tmp_path):
    records = [whole(one) for one in RECORDS]
    found, said = differences(records, read(printed(), tmp_path))
    assert None not in (found["ppl wiki"], found["hellaswag"], found["average of hellaswag, piqa"])
    assert "no difference" not in said
    value, which, reason = OTHERWISE[field]
    found, said = differences(records, read(printed(**{field: value}), tmp_path))
    gone = {name for name in ("ppl wiki", "hellaswag") if found[name] is None}
    assert gone == ({"ppl wiki", "hellaswag"} if which == "both" else {which})
    assert reason in said
    assert found["layers"] == -1  # a size is what it is


def test_answers_in_a_chat_have_no_difference_from_those_in_none(tmp_path):
    records = [with_cell(whole(one), protocol=replace(one.cell.protocol, apply_chat_template=True)) for one in RECORDS]
    found, said = differences(records, read(printed(), tmp_path))
    assert found["hellaswag"] is None
    assert found["ppl wiki"] is not None
    assert "prompts in a chat template here" in said


@pytest.mark.parametrize("field", UNKNOWN)
def test_what_is_not_known_of_the_published_has_no_difference(field, tmp_path):
    found, said = differences([whole(one) for one in RECORDS], read(printed(**{field: None}), tmp_path))
    assert None in (found["ppl wiki"], found["hellaswag"])
    assert UNKNOWN[field] in said
    assert "not known" in said


def test_some_documents_and_another_ratio_have_no_difference(tmp_path):
    found, said = differences(RECORDS, read(printed(), tmp_path))
    assert (found["hellaswag"], found["ppl wiki"]) == (None, pytest.approx(343.4 - 30))
    assert "hellaswag 100 of 10,042" in said
    other = printed()
    other["models"]["Llama-2-7B"]["rows"][1]["ratio"] = 0.30
    found, said = differences([whole(one) for one in RECORDS], read(other, tmp_path))
    assert (found["hellaswag"], found["ppl wiki"]) == (None, None)
    assert "another ratio" in said


@pytest.mark.parametrize(
    ("path", "value", "which", "reason"),
    [
        (("measured", "perplexity", "wiki", "drawn"), True, "ppl wiki", "drawn from the text here"),
        (("cell", "healing"), RECIPE, "both", "healed here"),
        (("cell", "earlier"), [{"method": "laco", "parameters": {}, "ratio": 0.1}], "both", "in several steps here"),
    ],
)
def test_what_was_done_otherwise_here_has_no_difference_and_says_why(path, value, which, reason, tmp_path):
    dense, laco = (whole(one) for one in RECORDS)
    found, said = differences([dense, changed(laco, *path, to=value)], read(printed(), tmp_path))
    gone = {name for name in ("ppl wiki", "hellaswag") if found[name] is None}
    assert gone == ({"ppl wiki", "hellaswag"} if which == "both" else {which})
    assert reason in said


def test_a_validation_set_is_not_the_test_set_of_a_paper_unless_the_user_gave_the_documents(tmp_path):
    paper = printed()
    row = paper["models"]["Llama-2-7B"]["rows"][1]
    row["tasks"], row["average"] = {"sciq": 90.0, "hellaswag": 40.0}, {"of": ["hellaswag", "sciq"], "value": 45.0}
    record = whole(of_llama(LACO, sciq=0.8))
    found, said = differences([whole(of_llama(DENSE, sciq=0.9)), record], read(paper, tmp_path))
    assert found["sciq"] is None and found["average of hellaswag, sciq"] is None
    assert found["hellaswag"] is not None
    assert "the validation sets of sciq here" in said
    given = changed(record, "cell", "protocol", "task_data", to=[["sciq", "test.jsonl", "0" * 64]])
    found, said = differences([whole(of_llama(DENSE, sciq=0.9)), given], read(paper, tmp_path))
    assert found["sciq"] == pytest.approx(-0.1)
    assert "validation sets" not in said


def test_sixteen_windows_of_a_text_that_is_not_halved_are_not_the_whole_text(tmp_path):
    dense, laco = (whole(one) for one in RECORDS)
    some = changed(laco, "measured", "perplexity", "wiki", "whole", to=True)
    found, said = differences([dense, some], read(printed(windows=0), tmp_path))
    assert found["ppl wiki"] is None and "the whole text published, 16 windows here" in said
    every = changed(some, "cell", "protocol", "windows", to=0)
    assert differences([dense, every], read(printed(windows=0), tmp_path))[0]["ppl wiki"] is not None


def test_a_row_may_be_measured_otherwise_than_its_paper(tmp_path):
    paper = printed(calibration="wikitext")
    paper["models"]["Llama-2-7B"]["rows"][1]["protocol"] = {"calibration": "c4"}
    assert differences([whole(one) for one in RECORDS], read(paper, tmp_path))[0]["ppl wiki"] is not None


def test_orders_of_removal_are_compared_as_sets(tmp_path):
    paper = printed(window=2048)
    paper["models"]["Llama-2-7B"]["rows"].append({"method": "shortgpt", "order": [20, 10, 11, 25, 1, 2, 3, 4]})
    cell = changed(changed(RECORDS[1], "cell", "method", to="shortgpt"), "cell", "ratio", to=0.1)
    cell = replace(cell, decisions={"removed_layers": [10, 11, 12, 20]})
    (found,) = [
        rows(one)
        for one in tables_of_published([*RECORDS, cell], read(paper, tmp_path))
        if one.title.startswith("shortgpt")
    ]
    assert found["layers among the first 4 to go"]["here"] == 3
    front = {"decisions": {"removed_layers": [10, 11]}, "measured": {"layers": cell.measured.dense_layers - 2}}
    chained = replace(cell, decisions={"earlier": [front], "removed_layers": [10, 18]})  # 12 and 20 of the dense model
    (found,) = [
        rows(one)
        for one in tables_of_published([*RECORDS, chained], read(paper, tmp_path))
        if one.title.startswith("shortgpt")
    ]
    assert found["layers among the first 4 to go"]["here"] == 3
    far = replace(cell, decisions={"removed_layers": list(range(9))})
    assert len(tables_of_published([*RECORDS, far], read(paper, tmp_path))) == 2  # more than were printed


WRONG = {
    "unknown": ("lacco", "nothing published is called 'lacco'; give published, blockpruner, evopress"),
    "no yaml": ("models: [", "cannot be read as YAML"),
    "no models": ("source: x", "models: Field required"),
    "a list": ("[1, 2]", "is no table of published figures"),
    "a key": (
        "{source: x, models: {m: {names: [a], rows: [{method: laco, ration: 0.1}]}}}",
        "models.m.rows.0.ration: Extra inputs are not permitted; it has source and models",
    ),
    "a word": (
        "{source: x, models: {m: {names: [a], rows: [{method: laco, ratio: much}]}}}",
        "models.m.rows.0.ratio: Input should be a valid number",
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_one_line(mistake, tmp_path, capsys):
    text, message = WRONG[mistake]
    name = text
    if mistake != "unknown":
        (tmp_path / "x.yaml").write_text(text)
        name = str(tmp_path / "x.yaml")
    assert main(["report", str(run_folder(tmp_path / "run", RECORDS)), "--against", name]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_it_stands_alone(tmp_path, capsys):
    folder = str(run_folder(tmp_path / "run", RECORDS))
    assert main(["report", folder, "--against", "published", "--view", "main"]) == 2
    assert "--against is a table of its own" in capsys.readouterr().err


def test_the_data_that_come_with_the_suite_are_sound():
    """Every figure is in its range, every row has a source, and averages that were computed from columns agree."""
    papers = read_published("published")
    known = {"laco", "blockpruner", "slicegpt", "llm-pruner", "evopress", "sleb", "linearpatch", "replaceme", "flap"}
    assert {paper.name for paper in papers} == set(list_published()) == known
    for paper in papers:
        assert paper.source
        assert paper.notes
        for model, of in paper.models.items():
            names, printed = of.names, of.rows
            assert names, model
            measured = [row for row in printed if not row.order]
            assert not measured or any(row.methods == ("dense",) for row in measured), f"{model} has no dense row"
            for row in (row for row in printed if row.order):
                assert len({*row.order}) == len(row.order) == 16
                assert {*row.order} <= {*range(32)}
            for row in measured:
                assert row.methods == ("dense",) or 0 < row.ratio < 0.5
                assert all(0 <= value <= 1 for value in row.tasks.values())
                assert row.tasks or row.perplexity or row.average
                assert all(value > 1 for value in row.perplexity.values())
                if row.average and set(row.average.of) <= set(row.tasks):
                    over, value = row.average.of, row.average.value
                    assert sum(row.tasks[name] for name in over) / len(over) == pytest.approx(value, abs=6e-5)


def test_shortgpts_averages_confirm_what_was_copied():
    """The 13 columns of LaCo's table give the averages that ShortGPT prints beside them."""
    expected = {
        "Llama-2-7B": {"dense": 47.78, "llm-pruner": 34.78, "slicegpt": 32.84, "laco": 38.41, "shortgpt": 41.24},
        "Llama-2-13B": {"dense": 55.14, "llm-pruner": 38.97, "slicegpt": 34.85, "laco": 47.62, "shortgpt": 50.53},
        "Baichuan2-7B": {"dense": 57.67, "llm-pruner": 41.76, "slicegpt": 26.23, "laco": 42.93, "shortgpt": 49.08},
        "Baichuan2-13B": {"dense": 62.31, "llm-pruner": 39.20, "slicegpt": 25.23, "laco": 53.43, "shortgpt": 54.43},
    }
    (paper,) = read_published("laco")
    found = {
        model: {row.methods[0]: 100 * sum(row.tasks.values()) / len(row.tasks) for row in of.rows}
        for model, of in paper.models.items()
    }
    for model, averages in expected.items():
        for method, average in averages.items():
            assert found[model][method] == pytest.approx(average, abs=0.011), (model, method)
