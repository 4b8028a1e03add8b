"""Parameters of methods: what is taken, what is refused and how, and the names that they had earlier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest

import methods
from methods.base import REGISTRY, Layers

NAMES = [card.name for card in methods.cards_of_methods() if card.name != "drop"]


@pytest.fixture
def plugin():
    """A method of someone's own, in a plain dataclass."""

    @methods.register("of-mine")
    @dataclass(frozen=True)
    class OfMine(methods.Pruner):
        first: int = 1
        share: float | None = None
        loud: bool = False
        words: str = ""
        kind: Literal["a", "b"] = "a"
        keep_last: Layers = 0

        def plan(self, model, ratio):
            return {}

        def prune(self, model, calibration, ratio):
            return {}

    methods.load()
    yield OfMine
    del REGISTRY["of-mine"]


@pytest.mark.parametrize("name", NAMES)
def test_what_a_method_has_by_default_is_right_and_as_text_the_same(name):
    pruner = methods.make(name)
    given = methods.parameters_of_pruner(pruner)
    assert methods.make(name, given) == pruner
    assert methods.make(name, {key: str(value) for key, value in given.items()}) == pruner


@pytest.mark.parametrize("card", methods.cards_of_compensations(), ids=lambda card: card.name)
def test_and_so_has_a_compensation(card):
    name = f"drop-tail+{card.name}"
    given = methods.parameters_of_pruner(methods.make(name))
    assert methods.make(name, {key: str(value) for key, value in given.items()}) == methods.make(name)


def test_text_becomes_what_the_type_says(plugin):
    given = {"first": "3", "share": "0.5", "loud": "yes", "words": 20, "kind": "b", "keep_last": "0"}
    assert methods.make("of-mine", given) == plugin(3, 0.5, True, "20", "b", 0)
    assert methods.make("of-mine", {"share": "None", "loud": "0"}) == plugin()
    assert isinstance(methods.make("of-mine", {"share": 1}).share, float)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"first": "x"}, "of-mine:first is int; got 'x'"),
        ({"first": "none"}, "of-mine:first is int; got 'none'"),
        ({"share": "much"}, "of-mine:share is float or None; got 'much'"),
        ({"loud": "loudly"}, "of-mine:loud is bool; got 'loudly'"),
        ({"kind": "c"}, "of-mine:kind is a or b; got 'c'"),
        ({"keep_last": -1}, "of-mine:keep_last is int, at least 0; got -1"),
        ({"keep_lst": 1}, "of-mine has no parameter keep_lst; it has: first, share, loud, words, kind, keep_last; did"),
    ],
)
def test_what_is_wrong_is_said_with_what_would_be_right(plugin, given, message):
    with pytest.raises(ValueError) as refused:
        methods.make("of-mine", given)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_a_type_that_cannot_be_found_is_named(plugin):
    plugin.__annotations__["share"] = "Tensor | None"
    with pytest.raises(ValueError, match="of-mine: name 'Tensor' is not defined; the types of its parameters are imp"):
        methods.make("of-mine")
