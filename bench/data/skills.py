"""Names the tasks by skill, whose prompts and answers are those of OLMES, and where the tasks' wheel has them.

    NAME_bpb  one text is right, and its bits per byte are measured: a solution, a program, a short answer
    NAME_rc   the text of every choice is scored behind the question, as in most tasks of lm-eval
    NAME_mc   the choices stand in the question, and their letters are scored
    NAME_gen  the model writes the answer, and it is right or wrong as a whole (bench.data.written)

All forms of a task have the same documents in the same order, so that a draw of one is a draw of the others. The wheel
holds the prompts with the examples in front of them (Y. Gu et al., "OLMES: a standard for language model evaluations",
2024). The names end in the form, since lm-eval has tasks of other prompts under most of the others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import chain

REFERENCES = {
    "jeopardy": "jeopardy/bpb_5shot",
    "naturalqs_open": "naturalqs_open/bpb_5shot",
    "squad": "squad/bpb_5shot",
    "drop": "drop/bpb_5shot",
    "coqa": "coqa/bpb_0shot",
    "lambada": "lambada/bpb_0shot",
    "gsm8k": "gsm8k/gold_bpb_5shot",
    "codex_humaneval": "codex_humaneval/gold_bpb_3shot",
    "codex_mbpp": "codex_mbpp/gold_bpb_3shot",
}
MATHS = (
    *("500", "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory"),
    *("prealgebra", "precalculus"),
)
LANGUAGES = (
    *("bash", "c", "cpp", "csharp", "go", "haskell", "java", "javascript", "matlab", "php", "python", "r", "ruby"),
    *("rust", "scala", "swift", "typescript"),
)
REFERENCES |= {f"minerva_math_{part}": f"minerva_math_{part}/gold_bpb_0shot" for part in MATHS}
REFERENCES |= {f"mt_mbpp_{language}": f"mt_mbpp_{language}/gold_bpb_3shot" for language in LANGUAGES}
CHOICES = {  # the folder of each form, "rc" or "mc"
    "arc_challenge": "arc_challenge/val_{}_5shot",
    "arc_easy": "arc_easy/val_{}_5shot",
    "boolq": "boolq/val_{}_5shot",
    "commonsense_qa": "csqa/val_{}_5shot",
    "hellaswag": "hellaswag/val_{}_5shot",
    "openbookqa": "openbookqa/val_{}_5shot",
    "piqa": "piqa/val_{}_5shot",
    "sciq": "sciq/{}_5shot",
    "social_iqa": "socialiqa/val_{}_5shot",
    "winogrande": "winogrande/val_{}_5shot",
    "basic_skills_arithmetic": "basic_skills_arithmetic/{}_5shot",
    "basic_skills_coding": "basic_skills_coding/{}_5shot",
    "basic_skills_common_knowledge": "basic_skills_common_knowledge/{}_5shot",
    "basic_skills_logical_reasoning": "basic_skills_logical_reasoning/{}_5shot",
    "basic_skills_pattern": "basic_skills_pattern/{}_5shot",
    "basic_skills_string_operations": "basic_skills_string_operations/{}_5shot",
    "medmcqa": "medmcqa/{}_5shot",
    "medqa_en": "medqa_en/{}_5shot",
    "qasper_yesno": "qasper_yesno/{}_5shot",
    "sciriff_yesno": "sciriff_yesno/{}_5shot",
    "lab_bench_dbqa": "lab_bench_dbqa/{}_3shot",
    "lab_bench_protocolqa": "lab_bench_protocolqa/{}_3shot",
}
COPYCOLORS = "copycolors"  # which has letters alone
TRIVIA = "trivia_qa"  # which the wheel has as a data set, without requests


@dataclass(frozen=True)
class Written:
    """Says how an answer is written.

    source  the folder in the wheel
    judged  how it is told whether it is right, see bench.data.written.JUDGES
    until   what ends it, as in lm-eval; a line where every example has one line
    tokens  the most that it has
    """

    source: str
    judged: str
    until: tuple[str, ...] = ("\n",)
    tokens: int = 32


WRITTEN = {
    "jeopardy": Written(REFERENCES["jeopardy"], "words"),
    "naturalqs_open": Written(REFERENCES["naturalqs_open"], "words"),
    TRIVIA: Written("trivia_qa/rc.wikipedia.nocontext/validation", "words"),
    "squad": Written(REFERENCES["squad"], "words", tokens=48),
    "gsm8k": Written(REFERENCES["gsm8k"], "number", ("Question:", "</s>", "<|im_end|>", "\n\n"), tokens=256),
    COPYCOLORS: Written("copycolors/10way", "text", tokens=16),
}
WRITTEN |= {
    f"basic_skills_{part}": Written(CHOICES[f"basic_skills_{part}"].format("rc"), judged)
    for part, judged in (
        *(("arithmetic", "text"), ("common_knowledge", "words"), ("pattern", "text"), ("string_operations", "text")),
    )
}
DIFFERING = "winogrande_rc"  # its choices stand in the question, in front of the same ending
FORMS: dict[str, tuple[str, ...]] = {COPYCOLORS: (f"{COPYCOLORS}_mc",)}
FORMS |= {name: (f"{name}_bpb",) for name in REFERENCES} | {name: (f"{name}_rc", f"{name}_mc") for name in CHOICES}
FORMS |= {name: (*FORMS.get(name, ()), f"{name}_gen") for name in WRITTEN}
REFERENCE_TASKS = tuple(f"{name}_bpb" for name in REFERENCES)
SOURCES = {f"{name}_bpb": source for name, source in REFERENCES.items()}  # of each task, its folder in the wheel
SOURCES |= {f"{name}_{form}": source.format(form) for name, source in CHOICES.items() for form in ("rc", "mc")}
SOURCES |= {f"{COPYCOLORS}_mc": WRITTEN[COPYCOLORS].source}
WRITTEN_TASKS = {f"{name}_gen": written for name, written in WRITTEN.items()}
SOURCES |= {task: written.source for task, written in WRITTEN_TASKS.items()}
# "skill-" keeps the older group `commonsense` and lm-eval's own tag `arithmetic` what they are.
NAMES_BY_GROUP = {
    "skill-knowledge": (
        *("jeopardy", "naturalqs_open", TRIVIA, "basic_skills_common_knowledge", "sciq", "arc_easy", "medmcqa"),
        *("medqa_en", "lab_bench_dbqa", "lab_bench_protocolqa"),
    ),
    "skill-reading": ("squad", "drop", "coqa", "boolq", "qasper_yesno", "sciriff_yesno"),
    "skill-language": ("lambada", "hellaswag"),
    "skill-commonsense": ("piqa", "winogrande", "commonsense_qa", "social_iqa", "openbookqa"),
    "skill-reasoning": ("basic_skills_logical_reasoning", "basic_skills_pattern", "arc_challenge"),
    "skill-arithmetic": ("basic_skills_arithmetic",),
    "skill-math": ("gsm8k", *(f"minerva_math_{part}" for part in MATHS)),
    "skill-code": ("codex_humaneval", "codex_mbpp", "basic_skills_coding", *(f"mt_mbpp_{name}" for name in LANGUAGES)),
    "skill-copying": (COPYCOLORS, "basic_skills_string_operations"),
}


def _forms_of_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the tasks of some names, in all their forms."""
    return tuple(chain.from_iterable(FORMS[name] for name in names))


SKILLS = {group: _forms_of_names(names) for group, names in NAMES_BY_GROUP.items()}
SERIES = re.compile("minerva_math_|mt_mbpp_")  # the beginnings of names that lists give once
QUICK_SKILLS = (
    *("jeopardy_bpb", "naturalqs_open_bpb", "basic_skills_common_knowledge_rc", "basic_skills_common_knowledge_mc"),
    *("squad_bpb", "coqa_bpb", "boolq_rc"),
    *("lambada_bpb", "hellaswag_rc"),
    *("piqa_rc", "winogrande_rc", "commonsense_qa_rc", "commonsense_qa_mc"),
    *("basic_skills_logical_reasoning_rc", "basic_skills_logical_reasoning_mc", "basic_skills_pattern_rc"),
    *("basic_skills_arithmetic_rc", "basic_skills_arithmetic_mc", "basic_skills_arithmetic_gen"),
    *("gsm8k_bpb", "minerva_math_algebra_bpb"),
    *("codex_humaneval_bpb", "codex_mbpp_bpb", "basic_skills_coding_rc"),
    *("copycolors_mc", "copycolors_gen", "basic_skills_string_operations_rc"),
)
