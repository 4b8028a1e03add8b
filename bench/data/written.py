"""Says whether an answer that a model has written is right, given all texts that are right.

words   SQuAD's rules: small letters, without punctuation, articles and further spaces, exact_match with any of the
        answers; f1 of the words that both have, the highest over the answers (P. Rajpurkar et al., "SQuAD: 100,000+
        questions for machine comprehension of text", 2016)
number  the last number is the answer's, as by the filter flexible-extract of lm-eval's gsm8k
text    the same text, without the spaces around it and a full stop behind it
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

NUMBER = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")  # lm-eval's
ARTICLES = re.compile(r"\b(a|an|the)\b")
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def judge_words(document: Mapping[str, Any], written: Sequence[str]) -> dict[str, float]:
    """Return exact_match and f1 of the one text in `written`, by SQuAD's rules."""
    words = _normalise_words(written[0])
    answers = [_normalise_words(answer) for answer in document["answers"]]
    f1 = max(_f1_of_words(words.split(), answer.split()) for answer in answers)
    return {"exact_match": float(bool(words) and words in answers), "f1": f1}


def judge_number(document: Mapping[str, Any], written: Sequence[str]) -> dict[str, float]:
    """Return exact_match of the last number of the one text in `written`."""
    number = _find_last_number(written[0])
    return {"exact_match": float(number in map(_find_last_number, document["answers"]) if number else False)}


def judge_text(document: Mapping[str, Any], written: Sequence[str]) -> dict[str, float]:
    """Return exact_match of the one text in `written`."""
    text, *answers = (_strip_text(text) for text in (written[0], *document["answers"]))
    return {"exact_match": float(text in answers)}


JUDGES: dict[str, Callable[[Mapping[str, Any], Sequence[str]], dict[str, float]]] = {
    "words": judge_words,
    "number": judge_number,
    "text": judge_text,
}
METRICS = {"words": ("exact_match", "f1"), "number": ("exact_match",), "text": ("exact_match",)}


def _normalise_words(text: str) -> str:
    bare = text.lower().translate(WITHOUT_PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", bare).split())


def _f1_of_words(words: Sequence[str], answer: Sequence[str]) -> float:
    both = sum((Counter(words) & Counter(answer)).values())
    return 2 * both / (len(words) + len(answer)) if both else 0.0


def _find_last_number(text: str) -> str:
    """Return the last number of a text, without dollars, commas and a full stop; "" where it has none."""
    matches = NUMBER.findall(text)
    return re.sub(r"[$,]|\.$", "", "".join(matches[-1])) if matches else ""


def _strip_text(text: str) -> str:
    return text.strip().removesuffix(".").rstrip()
