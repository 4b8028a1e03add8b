"""Makes prompts that ask for a text and say how it is to be written, and tells whether an answer does so.

The task `instructions` has 200 of them, of a fixed seed, with one instruction or two. Whether an answer follows one is
told by a rule and needs no judge, as in IFEval (J. Zhou et al., "Instruction-following evaluation for large language
models", 2023, arXiv 2311.07911), whose prompts are on the hub alone. There is no instruction on the language of an
answer, which a rule would have to guess. An answer without a word follows nothing.

Much of what can be told by a rule holds of most texts, as that they have no comma or at most 40 words, and of a broken
model's more often than of a good one's. Each prompt therefore has one of ANCHORS, which hardly any text follows whose
writer has not read the prompt.

prompt_acc       whether an answer follows all instructions of its prompt
instruction_acc  the share of them that it follows

Words are runs of letters and digits, also with an apostrophe or a hyphen inside. A sentence ends with a full stop, an
exclamation mark or a question mark in front of white space. Words of a prompt are looked for whole, in any case.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

NAME = "instructions"
SEED, PROMPTS, TOKENS = 57, 200, 128
TWO = 0.75  # of the prompts whose first instruction may have a second one beside it
ANCHORS = ("list_items", "contains", "json_keys", "ends_with", "in_quotes", "contains_times")
WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
END_OF_SENTENCE = re.compile(r"[.!?]+[\"'”’)\]]*(?=\s|$)")
ITEM = re.compile(r"^\s*[-*]\s+\S", re.MULTILINE)
FENCE = re.compile(r"^```(?:json)?\s*|\s*```$", re.IGNORECASE)

REQUESTS = (
    *("Write a short text about {}.", "Describe {} to a child.", "Explain why people like {}.", "Praise {}."),
    *("Give a friend advice about {}.", "Write a riddle about {}.", "Tell a story about {}.", "Complain about {}."),
)
TOPICS = (
    *("rain", "bread", "coffee", "music", "chess", "snow", "tea", "honey", "football", "gardening", "history"),
    *("photography", "cheese", "travel", "winter", "cooking", "swimming", "poetry", "electricity", "sleep"),
)
WORDS = ("river", "window", "morning", "secret", "mountain", "letter", "garden", "silver", "promise", "bridge")
KEYS = ("name", "colour", "size", "price", "reason", "place", "year", "owner")
ENDINGS = ("That is all.", "Thank you for reading.", "Now it is your turn.", "Who would disagree?")


class Instruction(NamedTuple):
    """Says what an answer has to be like.

    text       what the prompt says, with {number} and {words}
    group      no prompt has two instructions of one group
    follows    says whether an answer, which has a word, is such, given the number and the words
    numbers    of which one is drawn
    words      of which as many are drawn as `most`; of TOPICS the topic of the prompt is taken
    not_with   the instructions that it may contradict
    """

    text: str
    group: str
    follows: Callable[[str, int, Sequence[str]], bool]
    numbers: Sequence[int] = (0,)
    words: Sequence[str] = ()
    most: int = 1
    not_with: Collection[str] = ()


def count_words(text: str) -> int:
    """Return the number of words of a text."""
    return len(WORD.findall(text))


def count_sentences(text: str) -> int:
    """Return the number of sentences of a text; what stands behind the last end counts if it has a word."""
    return sum(WORD.search(piece) is not None for piece in END_OF_SENTENCE.split(text))


def count_occurrences(text: str, word: str) -> int:
    """Return how often a word stands in a text, whole and in any case."""
    return len(re.findall(rf"\b{re.escape(word)}\b", text, re.IGNORECASE))


def _has_keys(answer: str, number: int, words: Sequence[str]) -> bool:
    """Say whether an answer is a JSON object with these keys and no others; it may stand in a block of code."""
    try:
        parsed = json.loads(FENCE.sub("", answer.strip()))
    except (ValueError, RecursionError):
        return False
    return isinstance(parsed, dict) and set(parsed) == set(words)


def _is_in_quotes(answer: str, number: int, words: Sequence[str]) -> bool:
    text = answer.strip()
    return text.startswith('"') and text.endswith('"')


def _ends_with(answer: str, number: int, words: Sequence[str]) -> bool:
    return answer.strip().lower().endswith(words[0].lower())


SENTENCES = ("sentences_at_most", "sentences_at_least")
EVERY_LENGTH = ("words_at_most", "words_at_least", *SENTENCES)
INSTRUCTIONS = {
    "words_at_most": Instruction(
        "Use at most {number} words.", "length", lambda answer, n, _: count_words(answer) <= n, (15, 25, 40, 60)
    ),
    "words_at_least": Instruction(
        "Use at least {number} words.", "length", lambda answer, n, _: count_words(answer) >= n, (20, 30, 40, 50)
    ),
    "sentences_at_most": Instruction(
        "Use at most {number} sentences.", "length", lambda answer, n, _: count_sentences(answer) <= n, (2, 3, 4)
    ),
    "sentences_at_least": Instruction(
        "Use at least {number} sentences.", "length", lambda answer, n, _: count_sentences(answer) >= n, (2, 3, 4)
    ),
    "list_items": Instruction(
        'Answer with a list of exactly {number} items, each on a line of its own that begins with "- ".',
        "format",
        lambda answer, n, _: len(ITEM.findall(answer)) == n,
        (2, 3, 4, 5),
        not_with=("words_at_most", *SENTENCES),
    ),
    "lower_case": Instruction(
        "Use lower case letters only.", "format", lambda answer, *_: answer == answer.lower() != answer.upper()
    ),
    "json_keys": Instruction(
        "Answer with nothing but a JSON object with the keys {words}.",
        "format",
        _has_keys,
        words=KEYS,
        most=3,
        not_with=(*EVERY_LENGTH, "contains", "contains_times", "excludes", "ends_with"),
    ),
    "no_commas": Instruction("Do not use any commas.", "format", lambda answer, *_: "," not in answer),
    "in_quotes": Instruction(
        "Put double quotation marks around your whole answer.", "format", _is_in_quotes, not_with=("ends_with",)
    ),
    "contains": Instruction(
        "Use the word {words}.",
        "keyword",
        lambda answer, _, words: count_occurrences(answer, words[0]) > 0,
        words=WORDS,
    ),
    "contains_times": Instruction(
        "Use the word {words} at least {number} times.",
        "keyword",
        lambda answer, n, words: count_occurrences(answer, words[0]) >= n,
        (2, 3),
        WORDS,
    ),
    "excludes": Instruction(
        "Do not use the word {words} yourself.",
        "keyword",
        lambda answer, _, words: count_occurrences(answer, words[0]) == 0,
        words=TOPICS,
    ),
    "ends_with": Instruction(
        "End with exactly these words: {words}", "keyword", _ends_with, words=ENDINGS, not_with=("lower_case",)
    ),
}


def make_documents() -> list[dict[str, Any]]:
    """Return the prompts, each with its instructions by kind, number and words. They are the same every time."""
    draw, prompts = random.Random(SEED), dict[str, dict[str, Any]]()
    while len(prompts) < PROMPTS:
        topic, kind = draw.choice(TOPICS), ANCHORS[len(prompts) % len(ANCHORS)]
        further = [each for each in INSTRUCTIONS if _may_stand_beside(each, kind)]
        kinds = [kind, draw.choice(further)] if further and draw.random() < TWO else [kind]
        instructions = [_draw_instruction(draw, each, topic) for each in kinds]
        prompt = " ".join([draw.choice(REQUESTS).format(topic), *map(words_of_instruction, instructions)])
        prompts[prompt] = {"prompt": prompt, "instructions": instructions, "examples": 0}
    return list(prompts.values())


def _may_stand_beside(kind: str, anchor: str) -> bool:
    """Say whether a prompt may have an instruction beside another one, which it does not contradict."""
    first, second = INSTRUCTIONS[anchor], INSTRUCTIONS[kind]
    return first.group != second.group and kind not in first.not_with and anchor not in second.not_with


def _draw_instruction(draw: random.Random, kind: str, topic: str) -> dict[str, Any]:
    """Return an instruction with what is drawn for it."""
    instruction = INSTRUCTIONS[kind]
    most = min(instruction.most, len(instruction.words))
    words = [topic] if instruction.words is TOPICS else draw.sample(instruction.words, most)
    return {"kind": kind, "number": draw.choice(instruction.numbers), "words": words}


def words_of_instruction(instruction: Mapping[str, Any]) -> str:
    """Return an instruction as a prompt says it. Raises KeyError for an unknown kind."""
    words = " and ".join(instruction["words"])
    return INSTRUCTIONS[instruction["kind"]].text.format(number=instruction["number"], words=words)


def prompt_of_document(document: Mapping[str, Any]) -> str:
    """Return the prompt of a document. Raises KeyError for an instruction that no rule tells."""
    for instruction in document["instructions"]:
        words_of_instruction(instruction)
    return str(document["prompt"])


def judge_answer(document: Mapping[str, Any], written: Sequence[str]) -> dict[str, float]:
    """Return prompt_acc and instruction_acc of the one text in `written`."""
    answer = written[0]
    followed = [bool(count_words(answer)) and is_followed(each, answer) for each in document["instructions"]]
    return {"prompt_acc": float(all(followed)), "instruction_acc": sum(followed) / len(followed)}


def is_followed(instruction: Mapping[str, Any], answer: str) -> bool:
    """Say whether an answer, which has a word, follows an instruction."""
    return INSTRUCTIONS[instruction["kind"]].follows(answer, instruction["number"], instruction["words"])


def make_definition() -> dict[str, Any]:
    """Return lm-eval's definition of the task."""
    metrics = ("prompt_acc", "instruction_acc")
    return {
        "task": NAME,
        "dataset_path": "prunebench",
        "dataset_name": NAME,
        "test_split": "test",
        "num_fewshot": 0,
        "output_type": "generate_until",
        "generation_kwargs": {"until": [], "max_gen_toks": TOKENS, "do_sample": False},
        "doc_to_text": prompt_of_document,
        "doc_to_target": "",
        "process_results": judge_answer,
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in metrics],
        "metadata": {"version": 1.0},
    }
