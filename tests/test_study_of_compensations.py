"""The tables of the study of compensations are what its records say."""

from __future__ import annotations

import re

from pages import ROOT, measure, report, tables, text

from bench.records import run_folder

GAINED = ("ghost", "replaceme", "scale")


def study(beside: str) -> list[tuple[str, list[str], list[list[str]]]]:
    """(first head, further heads, lines) of each table of the study that has the column `beside`, left out of both."""
    page = text("docs/studies/compensation.md")
    found = re.findall(rf"\| (.*) \| {beside} \| (.*) \|\n\|.*\n((?:\|.*\n)+)", page)
    return [
        (first, heads.split(" | "), [line.strip("| ").split(" | ") for line in lines.splitlines()])
        for first, heads, lines in found
    ]


def test_the_tables_of_the_study_of_compensations_are_what_its_records_say():
    said = {
        (line["measure"], line["label"], line["requested_ratio"]): line["shown"]
        for line in report("compensation", view="grid")
    }
    checked = 0
    for head, columns, lines in study("removed"):
        mendings = ["+" + re.sub("[` ]", "", name) if "`" in name else "" for name in columns]
        for method, ratio, *cells in lines:
            for mending, cell in zip(mendings, cells, strict=True):
                label = method.strip("`") + mending.replace(",intercept", ":refit.intercept=True")
                assert said.get((measure(head), label, ratio), "-") == cell, (head, label, ratio)
                checked += cell != "-"
    assert checked == 28


def test_what_is_said_of_maps_and_of_refit_is_what_its_records_say():
    page = " ".join(text("docs/studies/compensation.md").split())
    said = {(line["label"], line["measure"]): line for line in report("compensation", view="grid")}

    def off(label: str, name: str) -> str:
        line = said[label, f"gain_perplexity_{name}"]
        low, high = sorted(100 * (1 - float(line[end])) for end in ("low", "high"))
        return f"{100 * (1 - float(line['value'])):.0f} % [{low:.0f}, {high:.0f}]"

    def shown(label: str) -> list[str]:
        return [name for name in ("wiki", "c4") if said[label, f"gain_perplexity_{name}"]["shown"].endswith("†")]

    assert "`ghost` takes {} off the perplexity of `angular` on Wikipedia".format(off("angular+ghost", "wiki")) in page
    assert "`replaceme` takes {} off there.".format(off("angular+replaceme", "wiki")) in page
    assert "Behind `shortgpt` it takes {} off".format(off("shortgpt+ghost", "wiki").partition(" [")[0]) in page
    behind = {
        label: shown(label) for label in ("shortgpt+ghost", "minitron-width+refit", "flap+refit", "llm-pruner+refit")
    }
    assert [*behind.values()] == [["c4"], ["wiki"], [], []]
    assert not shown("shortgpt+linearpatch")
    alone = [
        one.measured.text_scores["wiki"].perplexity
        for one in run_folder.read_records(ROOT / "docs/results/compensation").values()
        if one.cell.label == "llm-drop"
    ]
    assert f"`llm-drop` has perplexities from {min(alone):,.0f} to {max(alone):,.0f} over three seeds" in page
    assert all(shown(f"angular+{mending}") == ["wiki", "c4"] for mending in (*GAINED, "linearpatch"))
    (table,) = (table for table in tables(text("docs/studies/compensation.md")) if table[0][0] == "behind")
    words = {("wiki",): "on `wiki`", ("c4",): "on `c4`", (): "on neither"}
    for method, mending, *cells, shown_on in table[1:]:
        label = f"{method}+{mending}"
        assert shown_on.strip("`") == words[tuple(shown(label))].strip("`"), label
        for name, cell in zip(("wiki", "c4"), cells, strict=True):
            expected = off(label, name)
            assert cell == (expected if "[" in cell else expected.partition(" [")[0]), label
    assert len(table) == 7


def test_the_table_of_how_many_tokens_is_what_its_records_say():
    found = report("compensation-calibration", view="by-ratio")
    said = {(line["measure"], line["label"]): line["shown"] for line in found}
    page = text("docs/studies/compensation.md")
    (table,) = (table for table in tables(page) if table[0][0] == "tokens of the fit")
    for label, *shown in table[1:]:
        mending = label.partition("+")[2]
        tokens = [f"{label}:{f'{mending}.' if mending else ''}tokens={number}" for number in (2048, 4096)]
        assert shown == [said[f"perplexity_{on}", one] for on in ("wiki", "c4") for one in (*tokens, label)], label
    assert len(table) == 5


def test_the_table_of_sinks_is_what_its_records_say():
    said = {
        (line["label"], line["table"].split("-")[2], line["measure"]): line["shown"]
        for line in report("sinks", view="seeds")
        if line["table"].startswith("seeds-methods-")
    }
    found: dict[tuple[str, str], dict[tuple[str, int], float]] = {}
    for record in run_folder.read_records(ROOT / "docs/results/sinks").values():
        for name, figures in record.measured.text_scores.items():
            draw = record.cell.protocol.calibration, record.cell.seed
            found.setdefault((record.cell.label, name), {})[draw] = figures.perplexity
    (table,) = (table for table in tables(text("docs/studies/compensation.md")) if table[0][0] == "sinks")
    for label, *shown in table[1:]:
        mending = label.partition("+")[2]
        alike = f"{label}:{f'{mending}.' if mending else ''}sinks=alike"
        expected = []
        for name in ("wiki", "c4"):
            for one in (label, alike):
                mean, lowest, highest = (said[one, name, measure] for measure in ("perplexity", "lowest", "highest"))
                expected.append(f"{mean} ({lowest} to {highest})")
            apart, together = found[label, name], found[alike, name]
            expected.append(f"{sum(apart[draw] < together[draw] for draw in apart)} of {len(apart)}")
        assert shown == expected, label
    assert len(table) == 7
    means = [said[label, "wiki", "perplexity"] for label in ("angular+ghost:ghost.sinks=alike", "angular+ghost")]
    words = "`angular` with `ghost` has {} with sinks weighed alike, and {} with sinks apart"
    assert words.format(*means) in text("docs/studies/compensation.md")
    assert all(
        found["angular+ghost", "wiki"][draw] < value
        for draw, value in found["angular+ghost:ghost.sinks=alike", "wiki"].items()
    )


def test_what_is_said_of_what_maps_cost_in_time_is_what_its_records_say():
    said: dict[str, list[str]] = {}
    for line in report("compensation-speed", view="speed"):
        if line["measure"] == "speedup" or (line["measure"] == "ratio" and line["label"] not in said):
            said.setdefault(line["label"], []).append(re.sub(r"(\d)x", r"\1", line["shown"]))
    page = text("docs/studies/compensation.md")
    (one,), (eight,) = (
        [cells[2].partition(" ")[0] for label, cells in said.items() if "ghost" in label and ("+8" in label) == many]
        for many in (False, True)
    )
    assert f"is {one} times as fast with one, and {eight} with eight" in page


def test_the_table_of_what_helps_laco_ls_is_what_its_records_say():
    said = {
        (line["measure"].partition("_")[2], line["label"], line["requested_ratio"]): line["shown"]
        for line in report("laco-ls-ablation", view="by-ratio", reference="laco-ls")
    }
    ((_, columns, lines),) = study("what is fitted")
    for choice, fitted, *cells in lines:
        settings = ",".join(re.findall(r"`(.*?)`", choice + fitted)).replace("yes", "True")
        label = f"laco-ls:{settings}" if settings else "laco-ls"
        for column, cell in zip(columns, cells, strict=True):
            source, ratio = column.strip("`").split("` at ")
            assert said[source, label, ratio] == cell, (label, column)
    assert len(lines) == 9
