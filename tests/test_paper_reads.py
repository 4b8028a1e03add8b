"""What `list methods` says of calibration: how much a method's authors read, and how much the method itself."""

from __future__ import annotations

import re

import pytest

import methods
from bench.cli.main import main

METHODS, COMPENSATIONS = methods.cards_of_methods(), methods.cards_of_compensations()
NUMBER = r"\d{1,3}(?:,\d{3})*"
TEXT = r"[A-Za-z][\w-]*\d?"
SHAPE = re.compile(
    rf"(?:{NUMBER} x {NUMBER} tokens|(?:about )?{NUMBER} [a-z]+) of {TEXT}"
    rf"(?: in sequences of (?:up to )?{NUMBER} tokens)?"
    rf"(?:; {NUMBER}(?: x {NUMBER})? (?:in|for) [a-z ]+)?"
)
NOT_STATED = {
    "angular": "the authors released no code, and their paper names no number",
    "magnitude": "the paper is one of initialisation, without code, and names no number of sequences that was found",
    "expert-norm": "the paper names C4, and no number that was found",
    "expert-frequency": "a control without a paper of its own",
    "laco-ls": "of this project",
    "laco-puzzle": "of this project",
    "scale": "the authors released no code, and no number was found in what their paper says",
    "reinitialize": "it reads nothing",
    "blockwise": "the authors released no code of it, and the paper's number was not read",
}


def test_every_method_that_reads_text_says_what_its_authors_read_or_is_named_with_the_reason():
    without = [card.name for card in METHODS if card.needs != "nothing" and not card.paper_reads]
    without += [card.name for card in COMPENSATIONS if not card.paper_reads]
    assert sorted(without) == sorted(NOT_STATED)
    assert not [card.name for card in METHODS if card.needs == "nothing" and card.paper_reads]


@pytest.mark.parametrize(
    "reads",
    sorted({card.paper_reads for card in (*METHODS, *COMPENSATIONS)} - {""}),
)
def test_and_it_says_so_as_sequences_and_tokens_of_a_text(reads):
    assert SHAPE.fullmatch(reads)


@pytest.mark.parametrize(
    "reads", ["128 x 2,048 of C4", "128 tokens", "1024 x 128 tokens of C4", "128 x 2,048 tokens of C4 or so", "C4"]
)
def test_that_shape_leaves_out_no_number_and_no_text(reads):
    assert not SHAPE.fullmatch(reads)


def test_a_method_that_reads_fewer_tokens_than_it_is_offered_says_so_in_its_cost():
    capped = {}
    for card in METHODS:
        default_of = {name: default for name, default, _ in card.parameters}
        if default_of.get("tokens", "None") != "None":
            sequences = default_of.get("sequences") or default_of.get("sentences")
            capped[card.name] = f"{f'{sequences} x ' if sequences else ''}{int(default_of['tokens']):,} tokens"
            assert capped[card.name] in card.cost
    assert {"sleb": "2,048 tokens", "laco-published": "10 x 16 tokens"}.items() <= capped.items()


def test_the_list_says_both(capsys):
    assert main(["list", "methods"]) == 0
    listed = re.split(r"\n(?=\S)", capsys.readouterr().out)
    (lines,) = (lines for lines in listed if lines.startswith("shortened-llama "))
    assert "looks at calibration, half a forward over 1,280 tokens per layer\n" in lines
    assert lines.endswith(" its authors read 10 x 128 tokens of BookCorpus")
    (lines,) = (lines for lines in listed if lines.startswith("+ghost "))
    assert lines.endswith(" its authors read 32 x 2,048 tokens of C4")
