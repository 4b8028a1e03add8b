"""Says in a few words what each task asks of a model."""

from __future__ import annotations

import re
from collections.abc import Iterable

FORM = re.compile("_(bpb|rc|mc|gen)$")  # in which the names of tasks by skill end (bench.data.skills)
DESCRIPTIONS = {
    "hellaswag": "choose how an everyday scene goes on",
    "piqa": "choose how to do an everyday thing",
    "winogrande": "choose which of two nouns belongs into a sentence",
    "arc_easy": "answer easy questions on science from school",
    "arc_challenge": "answer hard questions on science from school",
    "openbookqa": "answer questions on science from school that need two facts",
    "boolq": "answer yes or no from a passage of Wikipedia",
    "sciq": "answer questions on science from school",
    "copa": "choose the cause or the effect of an event",
    "commonsense_qa": "answer questions on what everybody knows",
    "social_iqa": "say what people do, want or feel in a situation",
    "cb": "say whether a statement follows from a passage of several sentences",
    "rte": "say whether a sentence follows from another",
    "mrpc": "say whether two sentences mean the same",
    "sst2": "say whether a sentence on a film is praise",
    "nq_open": "answer questions that people asked a search engine",
    "medmcqa": "answer questions of Indian entrance exams in medicine",
    "instructions": "write short texts as an instruction says",
    "race": "answer questions of English exams from a passage",
    "wsc": "say whether a pronoun stands for a noun",
    "wikitext": "perplexity by words of articles of Wikipedia",
    "lambada_openai": "say the last word of a passage from a book",
    "jeopardy": "answer the clues of a quiz show",
    "naturalqs_open": "answer questions that people asked a search engine",
    "trivia_qa": "answer questions of a pub quiz",
    "squad": "find the answer in a passage of Wikipedia",
    "drop": "count or compute an answer from a passage",
    "coqa": "answer the next question of a conversation on a passage",
    "lambada": "say the last word of a passage from a book",
    "gsm8k": "solve problems in words of primary school",
    "codex_humaneval": "write the body of a Python function from its description (HumanEval)",
    "codex_mbpp": "write a short Python program from a sentence (MBPP)",
    "minerva_math_500": "solve problems of mathematical contests (500 of all subjects)",
    "medqa_en": "answer questions of American exams in medicine",
    "qasper_yesno": "answer yes or no from a paper on language processing",
    "sciriff_yesno": "answer yes or no from the abstracts of papers",
    "lab_bench_dbqa": "answer questions on databases of biology",
    "lab_bench_protocolqa": "say what to change in a protocol of a laboratory",
    "copycolors": "give back a colour that the question names",
    "basic_skills_arithmetic": "compute with small numbers",
    "basic_skills_coding": "go on with a line of a short Python function",
    "basic_skills_common_knowledge": "complete a well-known fact",
    "basic_skills_logical_reasoning": "choose what follows from two sentences",
    "basic_skills_pattern": "go on with a short series",
    "basic_skills_string_operations": "join, reverse or replace parts of words",
}
SERIES = {  # the beginning of several names: what they ask, with what stands behind it
    "mmlu_": "answer questions of exams on {}",
    "cmmlu_": "answer questions of Chinese exams on {}",
    "needle_": "choose the code that a sentence in a text of {} tokens has named",
    "minerva_math_": "solve problems of mathematical contests ({})",
    "mt_mbpp_": "write a short program in {} from a sentence",
}


def describe_task(task: str) -> str:
    """Return what a task asks of a model, whatever its form; nothing for a task that only lm-eval knows."""
    name = FORM.sub("", task)
    if name in DESCRIPTIONS:
        return DESCRIPTIONS[name]
    for beginning, words in SERIES.items():
        if name.startswith(beginning):
            return words.format(name.removeprefix(beginning).replace("_", " "))
    return ""


def describe_tasks(tasks: Iterable[str]) -> list[str]:
    """Return a line for each of the tasks that has a description; the forms of a task have one together."""
    names = dict.fromkeys(FORM.sub("", task) for task in tasks)
    return [f"{name}: {describe_task(name)}." for name in names if describe_task(name)]
