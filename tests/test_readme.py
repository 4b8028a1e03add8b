"""The README is short, names what there is, and shows what the records print; studies hold its other figures."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from pages import DOCS, ROOT, load_program, text

import methods
from bench.cli.main import main

PAGE = text("README.md")
LINES = PAGE.splitlines()
FIGURE = re.compile(r"(?<![\w.])\d[\d,.]*(?![\w])")


def test_it_is_read_in_a_few_minutes_and_has_its_picture_on_top():
    assert len(LINES) <= 110
    assert len(PAGE.split()) <= 900
    assert [line for line in LINES[:25] if line.startswith("![")]


def test_no_sentence_has_more_than_three_figures_or_thirty_words():
    """Also in cells of its tables; code counts as one word without a figure."""
    prose = re.sub(r"`[^`]*`", "CODE", re.sub(r"```.*?```|\]\([^)]*\)", "", PAGE, flags=re.DOTALL))
    pieces = [piece for line in prose.splitlines() for piece in line.split(" | ")]
    sentences = [sentence for piece in pieces for sentence in re.split(r"(?<=[.?!:])\s+", piece)]
    assert len(sentences) > 80
    assert [sentence for sentence in sentences if len(FIGURE.findall(sentence)) > 3] == []
    assert [sentence for sentence in sentences if len(sentence.split()) > 30] == []


def test_it_names_every_method_once_and_recommends_such_as_there_are():
    every = [card.name for card in methods.cards_of_methods() if card.name != "dense"]
    assert f"with {len(every)} methods" in PAGE
    every += [f"+{card.name}" for card in methods.cards_of_compensations()]
    table = PAGE[PAGE.index("## Methods") : PAGE.index("## Read on")]
    assert sorted(re.findall(r"`([^`]+)`", table)) == sorted(every)
    recommended = re.findall(r"^\| [^|]+ \| `--methods ([\w-]+)", PAGE, re.MULTILINE)
    assert len(recommended) == 5
    assert set(recommended) <= set(every)


def test_the_lines_that_it_shows_are_what_its_command_prints(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    (command,) = re.findall(r"python -m bench (report .*)", PAGE)
    (shown,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    assert main(command.split()) == 0
    assert capsys.readouterr().out.startswith(shown)
    assert len([line for line in shown.splitlines() if line]) == 8


def test_its_picture_is_that_of_the_records():
    """By what it says, since another matplotlib draws other bytes. docs/studies/figures.py drew it."""
    drawn = load_program("studies/figures.py").FIGURES["all-methods"]()
    root = ElementTree.parse(DOCS / "studies/all-methods.svg").getroot()
    assert (root.findtext("{*}title"), root.findtext("{*}desc")) == (drawn.title, drawn.description)
