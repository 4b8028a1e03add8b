"""The tables and sentences of the study of skills are what its records say."""

from __future__ import annotations

from functools import cache

import pytest
from pages import ROOT, report, tables, text
from scipy.stats import kendalltau

from bench.records import run_folder
from bench.regression.contrasts import contrast_of_averages
from reports.tables.rows import ReportData

PAGE = "docs/studies/skills.md"
LAYERS, PARTS = ("laco-ls", "sleb", "shortgpt"), ("flap", "obs", "llm-pruner", "2ssp+refit")
WRITTEN = {"copying of a colour": "task_copycolors_gen", "arithmetic": "task_basic_skills_arithmetic_gen"}


@cache
def data() -> ReportData:
    merged = run_folder.load_runs([ROOT / "docs/results/skills"])
    return ReportData(merged.records, "", merged.samples)


@cache
def rows() -> dict[str, dict]:
    """{label: its values}"""
    (group,) = data().groups
    return {group.label(place): row for place, row in enumerate(group.rows)}


@pytest.fixture(scope="module")
def lines():
    """{(measure, label): (what is shown, the value)}"""
    every = report("skills", view="skills")
    return {(line["measure"], line["label"]): (line["shown"], line["value"]) for line in every}


@pytest.fixture(scope="module")
def bits(lines):
    """{skill: {label: the share of bits that is added}}"""
    values: dict[str, dict[str, float]] = {}
    for (name, label), (_, value) in lines.items():
        if name.startswith("skill_bits_"):
            values.setdefault(name.removeprefix("skill_bits_"), {})[label] = float(value)
    return values


def test_every_figure_is_that_of_a_record(lines):
    added, lost, written = tables(text(PAGE))
    for (head, *body), name in ((added, "skill_bits_"), (lost, "skill_loss_")):
        assert len(body) >= 10
        for label, *cells in body:
            shown = [lines[name + skill, label][0] for skill in head[1:]]
            assert [cell.replace("\\", "") for cell in cells] == shown
    head, *body = written
    assert len(body) == len(rows()) == 11
    for label, *cells in body:
        assert cells == [f"{100 * rows()[label][WRITTEN[name]]:.0f}" for name in head[1:]]


def test_the_answer_is_what_the_tables_say(bits):
    page, labels = text(PAGE), list(bits["code"])
    most = [max(bits, key=lambda skill: bits[skill][label]) for label in labels]
    assert (len(labels), most.count("code")) == (10, 9)
    assert "Nine of ten methods add more bits per byte to code than to any other skill." in page

    def ends(labels):
        values = [100 * bits["reading"][label] for label in labels]
        return f"{min(values):.0f} to {max(values):.0f} %"

    assert f"Three that remove whole layers add {ends(LAYERS)} to answers from a passage." in page
    assert f"Four that cut heads, channels or attentions add {ends(PARTS)}." in page
    words = "**Pruning breaks code first**, and removing layers what is read from a prompt, in one run"
    assert words in text("README.md")
    order = sorted(labels, key=lambda label: rows()[label]["perplexity_wiki"])
    first = [min(labels, key=bits[skill].get) for skill in bits]
    assert (order[2], len(first), first.count(order[2])) == ("puzzle+refit", 9, 6)
    assert "`puzzle+refit` has the third lowest, and the fewest bits in six of nine skills." in page


def test_what_else_was_found(bits, lines):
    page, labels = text(PAGE), list(bits["code"])
    copied = {label: f"{100 * row['task_copycolors_gen']:.0f}" for label, row in rows().items()}
    assert "the dense model writes {dense}, `obs` {obs}, `2ssp+refit` {2ssp+refit}.".format_map(copied) in page
    assert "`laco-puzzle` writes {laco-puzzle}, `laco-ls` {laco-ls} and `sleb` {sleb}.".format_map(copied) in page
    assert "`llm-pruner` writes {llm-pruner}.".format_map(copied) in page

    records, samples = data().records, data().samples
    place = {record.cell.method: number for number, record in enumerate(records)}
    pair = place["puzzle+refit"], place["laco-puzzle"]
    tasks = [task for task in records[0].cell.protocol.tasks if not task.endswith("_gen")]
    behind = contrast_of_averages(records, [pair], samples, tasks, "answer_bpb")[pair]
    words = f"{behind.estimate:.3f} [{behind.low:.3f}, {behind.high:.3f}] fewer bits per byte, over {len(tasks)} tasks"
    assert words in page

    perplexities = [rows()[label]["perplexity_wiki"] for label in labels]
    tau = {skill: kendalltau(perplexities, [each[label] for label in labels])[0] for skill, each in bits.items()}
    assert f"{min(tau.values()):.2f}" == f"{tau['reading']:.2f}" == f"{tau['reasoning']:.2f}" == "0.38"
    assert max(tau, key=tau.get) == "commonsense"
    assert (
        f"by a Kendall's τ of {tau['reading']:.2f}. It agrees best with commonsense, {max(tau.values()):.2f}." in page
    )

    shown = {skill: [lines.get((f"skill_loss_{skill}", label), ("",))[0] for label in labels] for skill in bits}
    assert [skill for skill, each in shown.items() if all(cell.endswith("†") for cell in each)] == ["code"]
    assert {skill for skill, each in shown.items() if set(each) == {"guesses"}} == {"reading", "arithmetic"}
    letters = {
        cell for (name, label), (cell, _) in lines.items() if name.startswith("skill_letter_") and label in labels
    }
    assert letters == {"guesses"}
