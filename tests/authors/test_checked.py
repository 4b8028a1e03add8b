"""What is said of the comparison with authors' code is what the tests have: one file, and what is made of it."""

from __future__ import annotations

import json
import re

import pytest
from authors_code import DATA, FOLDER, UPDATE, golden
from pages import DOCS, generator, tables, text

from methods import cards

CHECKS = cards.read_comparisons()
ELSEWHERE = {"laco": 1, "slicegpt": 6, "llm_pruner": 8}  # runs, repeated by the tests of these methods
PAGE = "docs/checks.md"
MADE = re.compile(r"(<!-- made by docs/generate.py -->\n).*?(<!-- end -->)", re.DOTALL)


def test_every_run_is_counted():
    assert {name: check.runs for name, check in CHECKS.items() if name in ELSEWHERE} == ELSEWHERE
    counted = {name: check.runs for name, check in CHECKS.items() if name not in ELSEWHERE}
    assert counted == {name: len(golden(name)["runs"]) for name in counted}
    assert sum(counted.values()) == 240
    assert sorted(counted) == sorted(path.stem for path in golden_files())


def golden_files():
    return (FOLDER / "authors").glob("*.json")


@pytest.mark.parametrize("name", [name for name in CHECKS if name not in ELSEWHERE])
def test_repository_and_commit_are_those_that_were_run(name):
    source = golden(name)["source"]
    assert [repository for repository, _ in CHECKS[name].code] == re.findall(r"[\w.-]+/[\w.-]+", source["repo"])
    assert [commit for _, commit in CHECKS[name].code] == source["commit"].split(" and ")
    assert CHECKS[name].by_the_authors == ("by the paper" not in source["repo"])


def test_each_difference_is_of_a_run():
    for name, said in json.loads(DATA.read_text(encoding="utf-8"))["methods"].items():
        for kind, largest in said["largest"].items():
            assert kind in ("scores", "logits")
            assert name in ELSEWHERE or largest["run"] in golden(name)["runs"]
        assert said["largest"]


def test_the_page_of_what_was_checked_is_made_of_the_file():
    page = text(PAGE)
    made = MADE.sub(lambda found: f"{found[1]}\n{generator().method_pages.checked()}\n\n{found[2]}", page)
    if UPDATE:
        (DOCS.parent / PAGE).write_text(made, encoding="utf-8")
    else:
        assert page == made
    assert len(table_of("code")) == 1 + 27
    largest = max(each for check in CHECKS.values() for each in check.largest.values())
    assert f"{sum(check.runs for check in CHECKS.values())} runs of authors' code are repeated" in page
    assert f"scores and logits agree within {largest:.1e}" in page


@pytest.mark.parametrize("name", CHECKS)
def test_the_page_of_a_method_and_the_list_say_how_it_was_checked(name, capsys):
    from bench.cli.main import main

    check = cards.read_comparisons()[name]
    (page,) = (page for page in generator().method_pages.PAGES if page.stem == name)
    assert main(["list", "methods", "--verbose"]) == 0
    listed = capsys.readouterr().out
    for said in (page.markdown().replace("\\", ""), listed):
        assert check.compared in said
        assert check.apart in said
        assert all(repository in said and (commit or "")[:7] in said for repository, commit in check.code)
        assert all(sentence in said for sentence in check.put_in)
    departures = cards.departures_of(f"{page.folder}.{name}")
    assert departures
    assert all(f"departure: {sentence}\n" in listed for sentence in departures)


def test_a_method_whose_runs_were_not_compared_says_nothing_of_a_comparison(capsys):
    from bench.cli.main import main

    assert main(["list", "methods", "--verbose"]) == 0
    listed = re.split(r"\n(?=\S)", capsys.readouterr().out)
    checked = {lines.split()[0].lstrip("+") for lines in listed if "\n    checked against " in lines}
    compared = {name for check in CHECKS.values() for name in check.methods}
    assert checked == compared
    assert not compared & {"expert-random", "laco-published"}
    assert {"reap", "expert-norm", "laco", "linearpatch", "2ssp"} <= compared


def table_of(column: str) -> list[list[str]]:
    """Return the table of the page that has a column, the head first."""
    (table,) = (table for table in tables(text(PAGE)) if column in table[0])
    return table


def test_the_page_says_of_every_method_what_it_was_held_against():
    import methods

    every = {card.name for card in methods.cards_of_methods()} - {"dense"}
    every |= {f"+{card.name}" for card in methods.cards_of_compensations()}
    page = text(PAGE)
    columns = ("code", "what its tests compare")
    compared, brute = ({name for row in table_of(column)[1:] for name in names(row[0])} for column in columns)
    (said,) = re.findall(r"`magnitude` and `\+scale` have no code.*?are controls\.", page, re.DOTALL)
    without = set(re.findall(r"`([+\w-]+)`", said))
    assert compared.isdisjoint(without)
    assert compared | without == every
    assert every - brute == {"expert-random", "+reinitialize"}  # draws, of which nothing is to be found otherwise


def names(said: str) -> set[str]:
    """Return the names in a cell, whose outer backticks are gone."""
    return {name.strip("`") for name in said.split(", ")}
