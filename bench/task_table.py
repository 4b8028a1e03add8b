"""The tasks that are known by name: where lm-eval's definition of each is and where its documents are."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path

from bench import assets
from bench.spec import QUICK_TASKS

DEFINITIONS = Path(importlib.util.find_spec("lm_eval").origin).parent / "tasks"  # type: ignore[union-attr, arg-type]
MMLU = sorted(path.stem for path in (DEFINITIONS / "mmlu/default").glob("mmlu_*.yaml"))
CMMLU = sorted(path.stem for path in (DEFINITIONS / "cmmlu").glob("cmmlu_*.yaml"))


@dataclass(frozen=True)
class Offline:
    """Where the documents of a task are.

    definition  lm-eval's YAML file, below DEFINITIONS
    data        DATASET/CONFIG/SPLIT, below assets.task_folder()
    integers    columns that lm-eval expects -> the stored column, taken as integers
    examples    the stored split that examples are taken from

    BoolQ's passages are stored without the article's title, with which SuperGLUE's copy begins them.
    """

    definition: str
    data: str
    integers: dict[str, str] = field(default_factory=dict)
    examples: str | None = None

    def file(self, split: str | None = None) -> Path:
        """Of `split`, by default that of the documents."""
        folder = assets.task_folder() / self.data
        return (folder.with_name(split) if split else folder) / "data-00000-of-00001.arrow"


OFFLINE = {
    "hellaswag": Offline("hellaswag/hellaswag.yaml", "hellaswag/none/validation"),
    "piqa": Offline("piqa/piqa.yaml", "piqa/plain_text/validation"),
    "winogrande": Offline("winogrande/default.yaml", "winogrande/winogrande_xl/validation"),
    "arc_easy": Offline("arc/arc_easy.yaml", "ai2_arc/ARC-Easy/validation"),
    "arc_challenge": Offline("arc/arc_challenge.yaml", "ai2_arc/ARC-Challenge/validation"),
    "openbookqa": Offline("openbookqa/openbookqa.yaml", "openbookqa/main/validation"),
    "boolq": Offline("super_glue/boolq/default.yaml", "boolq/none/validation", {"label": "answer"}),
    "sciq": Offline("sciq/sciq.yaml", "sciq/none/validation"),
    "copa": Offline("super_glue/copa/default.yaml", "super_glue/copa/validation"),
    "commonsense_qa": Offline("commonsense_qa/default.yaml", "tau/commonsense_qa/none/validation"),
    "social_iqa": Offline("siqa/siqa.yaml", "social_i_qa/none/validation"),
    "cb": Offline("super_glue/cb/default.yaml", "super_glue/cb/validation"),
    "rte": Offline("glue/rte/default.yaml", "glue/rte/validation"),
    "mrpc": Offline("glue/mrpc/default.yaml", "glue/mrpc/validation"),
    "sst2": Offline("glue/sst2/default.yaml", "glue/sst2/validation"),
    "nq_open": Offline("nq_open/nq_open.yaml", "nq_open/none/validation"),
    "medmcqa": Offline("medmcqa/medmcqa.yaml", "medmcqa/none/validation"),
}
OFFLINE |= {
    name: Offline(f"mmlu/default/{name}.yaml", f"hails/mmlu_no_train/{name[5:]}/test", examples="dev") for name in MMLU
}
HUB = {  # known by name, their documents on the hub only: lm-eval's YAML file
    "race": "race/race.yaml",
    "wsc": "super_glue/wsc/default.yaml",
    "wikitext": "wikitext/wikitext.yaml",
    "lambada_openai": "lambada/lambada_openai.yaml",
} | {name: f"cmmlu/{name}.yaml" for name in CMMLU}
# The LaCo paper's tasks, arXiv 2402.11187, table 1, as far as lm-eval defines them. It has no CMNLI, CHID, C3 and
# RACE-M (whose documents --task-data race=... takes), and its XSum needs the package unitxt.
LACO = ("hellaswag", "piqa", "wsc", "commonsense_qa", "boolq", "race", *MMLU, *CMMLU)
GROUPS = {
    "quick": QUICK_TASKS,
    "commonsense": ("boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa"),
    "mmlu": tuple(MMLU),
    "cmmlu": tuple(CMMLU),
    "laco": LACO,
}
