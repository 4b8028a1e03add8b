"""Accuracy tasks: lm-eval's own definitions and evaluator, with the documents of the task asset where it has them.

Prompts, choices, metrics and versions are lm-eval's; of a task in OFFLINE only the source of the documents is
swapped: the stored split, and the columns that are called otherwise there. Any other name goes to lm-eval's catalogue
and the hub. All tasks run zero-shot unless lm-eval's definition of the task says otherwise.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import logging
import numbers
import random
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import assets
from bench.errors import UserError
from bench.spec import QUICK_TASKS

if TYPE_CHECKING:
    import pandas as pd

DEFINITIONS = Path(importlib.util.find_spec("lm_eval").origin).parent / "tasks"  # type: ignore[union-attr, arg-type]
MMLU = sorted(path.stem for path in (DEFINITIONS / "mmlu/default").glob("mmlu_*.yaml"))


@dataclass(frozen=True)
class Offline:
    """Where the documents of a task are.

    definition  lm-eval's YAML file, below DEFINITIONS
    data        DATASET/CONFIG/SPLIT, below assets.task_folder()
    integers    columns that lm-eval expects -> the stored column, taken as integers

    BoolQ's passages are stored without the article's title, with which SuperGLUE's copy begins them.
    """

    definition: str
    data: str
    integers: dict[str, str] = field(default_factory=dict)


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
} | {name: Offline(f"mmlu/default/{name}.yaml", f"hails/mmlu_no_train/{name[5:]}/test") for name in MMLU}
GROUPS = {
    "quick": QUICK_TASKS,
    "commonsense": ("boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa"),
    "mmlu": tuple(MMLU),
}


def check(names: Iterable[str]) -> tuple[str, ...]:
    """The names with GROUPS expanded, each once. Raises UserError for one that cannot be evaluated.

    A group or tag of lm-eval's own stays one name; `load` turns it into its tasks.
    """
    expanded = tuple(dict.fromkeys(task for name in names for task in GROUPS.get(name, (name,))))
    others = [name for name in expanded if name not in OFFLINE]
    for name in others:
        if not (_is_mentioned(name) and name in _catalogue().all_tasks):
            near = difflib.get_close_matches(name, [*OFFLINE, *GROUPS], n=2)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            known = ", ".join(task for task in (*OFFLINE, *GROUPS) if task not in MMLU)
            raise UserError(f"no task {name!r}; {hint}offline there are {known}; others are lm-eval's, by its names")
    if others and not assets.hub_is_reachable():
        load(others)
    return expanded


def load(names: Iterable[str]) -> dict[str, Any]:
    """lm-eval's Task of each name, ready to evaluate. Raises UserError when a task's documents cannot be had."""
    tasks: dict[str, Any] = {}
    with _quiet():
        for name in names:
            tasks |= {name: _load_offline(name)} if name in OFFLINE else _load_from_hub(name)
    return tasks


def draw(task: Any, documents: int, seed: int) -> list[int]:
    """Positions of `documents` documents drawn with `seed`, ascending; all for 0 or for more than there are."""
    available = len(task.eval_docs)
    if documents == 0 or documents >= available:
        return list(range(available))
    return sorted(random.Random(seed).sample(range(available), documents))


def evaluate(
    lm: Any, tasks: dict[str, Any], documents: dict[str, list[int]]
) -> tuple[dict[str, dict[str, Any]], dict[str, pd.DataFrame]]:
    """Run lm-eval's evaluator on the `documents` of each task. Returns the figures and the samples, by task.

    The figures are those of bench.record; a standard error is given where a metric is the mean over documents.

    The samples have one row per document: doc_id, doc_hash, prompt_hash and target_hash as lm-eval writes them;
    target, the position of the right choice, or the text where there are no choices; loglikelihoods and greedy, one
    per choice, or responses where text is generated; and every metric that is a number for one document.
    """
    from lm_eval.evaluator import evaluate as run

    subsets = {name: ids for name, ids in documents.items() if len(ids) < len(tasks[name].eval_docs)}
    with _quiet():
        outcome = run(lm, {"tasks": tasks}, samples=subsets, bootstrap_iters=0, log_samples=True)
    figures, samples = {}, {}
    for name, task in tasks.items():
        samples[name] = _table(task, outcome["samples"][name])
        figures[name] = _metrics(task, outcome["results"][name], samples[name]) | {
            "version": outcome["versions"][name],
            "documents": len(samples[name]),
            "available": len(task.eval_docs),
            "fewshot": outcome["n-shot"][name] or 0,
        }
    return figures, samples


def _load_offline(name: str) -> Any:
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    class OfflineTask(ConfigurableTask):  # type: ignore[misc]
        """lm-eval's task with its documents from the asset."""

        def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
            self.dataset = {split: documents}

        def fewshot_docs(self) -> None:
            """None: no split to take examples from is stored."""

        @property
        def eval_docs(self) -> Documents:
            return Documents(documents, self.config.process_docs)

        def doc_iterator(self, *, samples: list[int] | None = None, **_: Any) -> Iterator[tuple[int, dict[str, Any]]]:
            """(position among those drawn, document), without touching the others."""
            return enumerate(self.eval_docs.read(samples or range(len(documents))))

    offline = OFFLINE[name]
    split = offline.data.rpartition("/")[2]
    file = assets.task_folder() / offline.data / "data-00000-of-00001.arrow"
    documents = Dataset.from_file(str(file), in_memory=True)
    for column, stored in offline.integers.items():
        documents = documents.add_column(column, [int(value) for value in documents[stored]])
    config = load_yaml(DEFINITIONS / offline.definition)
    for key in ("tag", "training_split", "test_split", "fewshot_split", "fewshot_config"):
        config.pop(key, None)
    return OfflineTask(config=config | {"validation_split": split})


class Documents(Sequence[dict[str, Any]]):
    """Stored documents, turned into lm-eval's form when they are read: HellaSwag's 10,042 would take a second."""

    def __init__(self, stored: Any, process: Any):
        self.stored = stored
        self.process = process

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, position: Any) -> Any:
        return self.read([position])[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.read(range(len(self))))

    def read(self, positions: Iterable[int]) -> Any:
        """The documents at `positions`, as lm-eval's dataset of them."""
        selected = self.stored.select(positions)
        return selected if self.process is None else self.process(selected)

    @property
    def features(self) -> Any:
        return self.read([0]).features


def _load_from_hub(name: str) -> dict[str, Any]:
    assets.hub_is_reachable()  # if it is not, the hub's libraries learn it here and do not retry
    try:
        return dict(_catalogue().load([name])["tasks"])
    except Exception as error:  # whatever a definition or a data set's own loader may raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"task {name} cannot be loaded from the hub or its cache: {reason}") from error


def _is_mentioned(name: str) -> bool:
    """Whether any definition of lm-eval contains `name`: finds a slip in half a second, the catalogue takes eight."""
    files = (path for path in DEFINITIONS.rglob("*") if path.suffix in ("", ".yaml") and path.is_file())
    return any(name.encode() in path.read_bytes() for path in files)


@functools.cache
def _catalogue() -> Any:
    from lm_eval.tasks import TaskManager

    print("reading lm-eval's catalogue of tasks (about 8 s)", file=sys.stderr, flush=True)
    return TaskManager()


def _table(task: Any, samples: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per document, of which `samples` has one for each filter of the task."""
    import pandas as pd

    rows: dict[int, dict[str, Any]] = {}
    for sample in samples:
        row = rows.setdefault(sample["doc_id"], _row(task, sample))
        for metric in sample["metrics"]:
            if isinstance(sample[metric], numbers.Real):
                row[_metric_name(task, metric, sample["filter"])] = float(sample[metric])
    return pd.DataFrame(list(rows.values())).sort_values("doc_id", ignore_index=True)


def _row(task: Any, sample: dict[str, Any]) -> dict[str, Any]:
    row = {key: sample[key] for key in ("doc_id", "doc_hash", "prompt_hash", "target_hash")}
    row["target"] = _target(task, sample)
    responses = [response[0] for response in sample["resps"]]
    if all(isinstance(response, tuple) for response in responses):
        row["loglikelihoods"] = [float(loglikelihood) for loglikelihood, _ in responses]
        row["greedy"] = [bool(greedy) for _, greedy in responses]
    elif all(isinstance(response, float) for response in responses):
        row["loglikelihoods"] = responses
    else:
        row["responses"] = [str(response) for response in responses]
    return row


def _target(task: Any, sample: dict[str, Any]) -> Any:
    """The right choice's position; as in lm-eval, where the choices are contexts it stands in the text's place."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return str(sample["target"])
    if task.multiple_input:
        return task.doc_to_text(sample["doc"])
    choices, target = task.doc_to_choice(sample["doc"]), sample["target"]
    return choices.index(target) if isinstance(target, str) else target


def _metric_name(task: Any, metric: str, filtered: str) -> str:
    """lm-eval's 'metric,filter' without the filter where the task has only one."""
    return metric if len(task._filters) == 1 else f"{metric},{filtered}"


def _metrics(task: Any, results: dict[str, Any], samples: pd.DataFrame) -> dict[str, Any]:
    """{metric: {value, stderr}, ..., "main": metric}"""
    from lm_eval.api.metrics import mean

    from bench.stats import mean_stderr

    metrics: dict[str, Any] = {}
    for key, value in results.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        name = _metric_name(task, metric, filtered)
        metrics[name] = {"value": float(value)}
        if task.aggregation().get(metric, mean) is mean and name in samples and len(samples) > 1:
            metrics[name]["stderr"] = mean_stderr(samples[name].tolist())[1]
    main = next((name for name in ("acc_norm", "acc") if name in metrics), next(iter(metrics)))
    return metrics | {"main": main}


@contextmanager
def _quiet() -> Iterator[None]:
    """Errors of lm-eval only, and no progress bar but the model's own."""
    import datasets
    from lm_eval.api import task
    from tqdm import tqdm

    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    task.tqdm = functools.partial(tqdm, disable=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="sklearn")  # an F score of few documents may be ill-defined
            yield
    finally:
        logger.setLevel(level)
        task.tqdm = tqdm
        if not bars:
            datasets.enable_progress_bars()
