"""Makes contexts in which one fact is hidden, to see whether a model looks it up: a needle in a haystack.

The haystack is made of sentences of `wiki`, of articles that are never calibrated on. One sentence is made up: "The
code of the green door is 4817." It stands at a depth of 0, 25, 50, 75 or 100 % of the context, behind which the model
is asked for the code. The right one of ten codes has to be the likeliest, so that guesses have an accuracy of 10 %. Its
bits per byte say how likely it is. The other nine stand nowhere in the context.

A context has 3.75 characters for each token that its task is named for. A usual tokenizer needs fewer tokens for that,
and so models read the same documents. Where one needs more, it has fewer characters, until none has more tokens than
its task is named for (`fit_documents`). The five depths of a haystack share its beginning, which is read once.

Document n of a task is at depth DEPTHS[n % 5] of haystack n // 5.
"""

from __future__ import annotations

import random
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

CONTEXTS = {"needle_512": 512, "needle_1k": 1024, "needle_2k": 2048, "needle_4k": 4096, "needle_8k": 8192}  # tokens
SHORT = ("needle_512", "needle_1k", "needle_2k")  # the group `needle`
DEPTHS = (0, 25, 50, 75, 100)  # per cent of the context
TEXT = "wiki"  # whose every second article is for evaluation
HAYSTACKS, CHOICES, SEED = 20, 10, 57
CHARACTERS = 3.75  # of a token
DIGITS = 0.04  # the highest share of a sentence's characters, since names and figures take many tokens
END_OF_SENTENCE = re.compile(r"(?<=[.!?])\s+")
COLOURS = ("red", "blue", "green", "yellow", "white", "black", "grey", "brown", "purple", "orange")
THINGS = ("door", "box", "gate", "locker", "suitcase", "cabinet", "drawer", "chest", "safe", "shed")


def fit_documents(name: str, articles: Sequence[str], tokenizer: Any) -> list[dict[str, Any]]:
    """Return the documents of a task. Each has at most as many tokens as the task is named for."""
    characters = CHARACTERS
    while True:
        documents = make_documents(name, articles, characters)
        most = max(_count_tokens(document, tokenizer) for document in documents)
        if most <= CONTEXTS[name]:
            return documents
        characters *= 0.99 * CONTEXTS[name] / most


def _count_tokens(document: dict[str, Any], tokenizer: Any) -> int:
    """Return the tokens of a question with the longest of its choices behind it."""
    answers = [len(tokenizer(f" {choice}")["input_ids"]) for choice in document["choices"]]
    return len(tokenizer(document["question"])["input_ids"]) + max(answers)


def make_documents(name: str, articles: Sequence[str], characters: float = CHARACTERS) -> list[dict[str, Any]]:
    """Return the documents of a task, all depths of a haystack one behind the other, from the articles of a text.

    characters  of each token that the task is named for
    """
    documents = list[dict[str, Any]]()
    for number in range(HAYSTACKS):
        draw = random.Random(f"{SEED} {name} {number}")
        documents += _documents_of_haystack(draw, articles, round(characters * CONTEXTS[name]))
    return documents


def depth_of_document(number: int) -> int:
    """Return the depth of a document of a task by its number, in per cent."""
    return DEPTHS[number % len(DEPTHS)]


def _documents_of_haystack(draw: random.Random, articles: Sequence[str], size: int) -> Iterator[dict[str, Any]]:
    """Yield a document for each depth, of at most `size` characters with the question."""
    named = f"The code of the {draw.choice(COLOURS)} {draw.choice(THINGS)} is"
    codes = [str(code) for code in draw.sample(range(1000, 10_000), CHOICES)]
    right = draw.randrange(CHOICES)
    needle, question = f"{named} {codes[right]}.", f"\n\nQuestion: What is the code?\nAnswer: {named}"
    sentences = _draw_sentences(draw, articles, size - len(needle) - len(question) - 1, codes)
    ends = list(accumulate(len(sentence) + 1 for sentence in sentences))
    for depth in DEPTHS:
        place = bisect_left([0, *ends], depth / 100 * ends[-1])
        text = " ".join([*sentences[:place], needle, *sentences[place:]])
        yield {
            "question": text + question,
            "choices": codes,
            "right": right,
            "depth": depth,
            "preface": "",
            "examples": 0,
        }


def _draw_sentences(draw: random.Random, articles: Sequence[str], size: int, codes: Sequence[str]) -> list[str]:
    """Return sentences of drawn articles in their order, as many as `size` characters hold, none with a code."""
    sentences, room = list[str](), size
    for article in draw.sample(articles, len(articles)):
        for sentence in END_OF_SENTENCE.split(" ".join(article.split())):
            if not _is_prose(sentence) or any(code in sentence for code in codes):
                continue
            room -= len(sentence) + 1
            if room < 0:
                return sentences
            sentences.append(sentence)
    return sentences


def _is_prose(sentence: str) -> bool:
    """Say whether a sentence has no letters but English ones, and few digits."""
    return sentence.isascii() and sum(map(str.isdigit, sentence)) <= DIGITS * len(sentence)
