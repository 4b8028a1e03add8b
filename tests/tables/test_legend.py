"""The legend: a fixed sentence for each flag, the cells in brackets behind it, and how many lines a terminal shows."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from made_records import DENSE, LACO, changed, failed
from pages import pages

from reports import legend
from reports.formats import terminal
from reports.legend import FLAGS, READING, Flag, FlaggedCell, describe_flags
from reports.tables.views import build_view

SENTENCES = [flag.sentence for flag in FLAGS] + list(READING.values())


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_sentence_is_whole_and_short(sentence):
    for part in re.split(r"(?<=[.;]) ", sentence):
        assert 3 <= len(part.split()) <= 30
    assert sentence.endswith(".")


def test_every_flag_of_the_module_can_stand_in_a_legend():
    named = [value for value in vars(legend).values() if isinstance(value, Flag)]
    assert {*named, *legend.OF_POINTS.values(), *legend.OF_MACHINE.values()} == set(FLAGS)
    words = [flag.word for flag in FLAGS]
    assert len(set(words)) == len(words)


def test_the_page_of_flags_has_each_with_its_sentence():
    page = pages()["flags.md"]
    for flag in FLAGS:
        assert re.search(rf"\| {flag.word.replace('_', ' ')} \|", page)
    assert page.count("\n| ") == len(FLAGS) + 2
    assert page.count("\n- ") == len(READING)


def test_cells_with_the_same_values_share_the_brackets_and_no_cell_stands_twice():
    values = {"status": "error", "reason": "lost"}
    flagged = [FlaggedCell(legend.FAILED, name, values) for name in ("a", "b", "a")]
    flagged.append(FlaggedCell(legend.FAILED, "c", values | {"reason": "late"}))
    flagged.append(FlaggedCell(legend.NOT_ABOVE_RANDOM, "d", {"where": ""}))
    assert describe_flags(reversed(flagged)) == [
        "failed: The cell has no figures: c [error: late], a, b [error: lost].",
        f"not above random: {legend.NOT_ABOVE_RANDOM.sentence[:-1]}: d.",
    ]


def many_lines() -> list[str]:
    """The legend of a table with more flags than a terminal shows, and whose table it is."""
    return [f"flag {number}: A sentence: a." for number in range(12)]


def test_a_terminal_shows_the_first_eight_lines_and_counts_the_rest():
    (table,) = build_view("main", [DENSE, LACO])
    table = replace(table, notes=tuple(many_lines()), footnotes=("Read it.",), protocol=(("ppl", "windows"),))
    short, whole = (terminal.render([table], explain=explain) for explain in (False, True))
    assert "flag 7: " in short
    assert not re.search("flag 8|Read it|windows", short)
    assert re.search("flag 11(?s:.*)Read it(?s:.*)ppl +windows", whole)
    (count,) = re.findall(r"more lines, with `report --explain`: (\d+)\.", short)
    assert int(count) == 4 + 1 + 1 + sum(line.startswith("the ") for line in whole.splitlines())
    assert "--explain" not in whole


def test_sentences_of_several_lines_count_as_such_and_a_long_first_one_is_cut():
    (table,) = build_view("main", [DENSE, LACO])
    for sentences, expected in (((3 * "word " * 19,) * 3, 6), ((12 * "word " * 19, "next"), 8)):
        short = terminal.render([replace(table, notes=sentences, footnotes=())], explain=False)
        assert sum("word " in line for line in short.splitlines()) == expected
        assert max(map(len, short.splitlines())) <= terminal.LINE
        assert "more lines, with `report --explain`: " in short


def test_wrong_and_missing_figures_come_before_how_to_read():
    missed = changed(LACO, "measured", "ratio", to=0.2)
    records = [DENSE, missed, failed("error", "flap", "it broke")]
    text = terminal.render(build_view("main", records), explain=False)
    places = [text.index(words) for words in ("failed: ", "* missed: ", "± beside a perplexity")]
    assert places == sorted(places)
