"""Says where the definition and the documents of a task are: on this machine, on the hub, or in the user's own files.

Local files take the place of the hub's with --task-data TASK=PATH. PATH is one .arrow, .parquet or .jsonl file with the
documents that are evaluated, or a folder of such files. A folder whose files, or their folders, are named by split as
the hub does it (test-00000-of-00001.parquet, test/...) gives each split its own files; any other folder is taken whole.
Columns are those of the data set that lm-eval's definition names.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.data import assets, instructions, needle, programs
from bench.data.skills import QUICK_SKILLS, SKILLS, SOURCES, WRITTEN_TASKS
from methods.errors import UserError, first_line_of
from methods.files import hash_file

if TYPE_CHECKING:
    import datasets


QUICK_TASKS = ("hellaswag", "piqa", "winogrande", "arc_easy", "openbookqa")
VALIDATION = ("arc_easy", "arc_challenge", "openbookqa", "sciq")  # lm-eval takes their test sets, which are not stored
SUFFIXES = (".arrow", ".parquet", ".jsonl")
SPLITS = ("train", "validation", "dev", "test")
SPLIT = re.compile(rf"({'|'.join(SPLITS)})(?![A-Za-z])")  # at the start of a name
DEFINITIONS = Path(importlib.util.find_spec("lm_eval").origin).parent / "tasks"  # type: ignore[union-attr, arg-type]
MMLU = sorted(path.stem for path in (DEFINITIONS / "mmlu/default").glob("mmlu_*.yaml"))
CMMLU = sorted(path.stem for path in (DEFINITIONS / "cmmlu").glob("cmmlu_*.yaml"))


@dataclass(frozen=True)
class Offline:
    """Says where the documents of a task are.

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
        """Return the file of `split`, by default the one with the documents."""
        folder = assets.fetch_tasks() / self.data
        return (folder.with_name(split) if split else folder) / "data-00000-of-00001.arrow"


@dataclass(frozen=True)
class BySkill:
    """Names a task whose definition is the suite's own: by skill, of programs, `instructions` or a needle's.

    examples  the split that examples are taken from: none, since they stand in front of the questions
    """

    name: str
    examples: None = None

    def read(self, tokenizer: Any = None) -> datasets.Dataset:
        """Return its documents, whose columns bench.data.conversion.keep_requests describes, or those of prompts.

        tokenizer  by which a needle's are cut to the tokens that their task is named for; None: they are not
        """
        import datasets

        if self.name == instructions.NAME:
            return datasets.Dataset.from_list(instructions.make_documents())
        if self.name in needle.CONTEXTS:
            articles = list(dict.fromkeys(map(str.strip, assets.read_text(needle.TEXT))))
            fit = partial(needle.fit_documents, tokenizer=tokenizer) if tokenizer else needle.make_documents
            return datasets.Dataset.from_list(fit(self.name, articles[1::2]))
        return _read(assets.fetch_documents(self.name))


OFFLINE: dict[str, Offline | BySkill] = {
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
OFFLINE |= {name: BySkill(name) for name in (*SOURCES, *programs.SOURCES, instructions.NAME, *needle.CONTEXTS)}
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
    "skills": QUICK_SKILLS,
    "written": tuple(WRITTEN_TASKS),
    "programs": tuple(programs.SOURCES),
    "needle": needle.SHORT,
} | SKILLS


def parse_task_data(settings: Iterable[str]) -> tuple[tuple[str, str, str], ...]:
    """Return each 'race=PATH' as (task, path, sha256 of the files), sorted. Raises UserError for anything else."""
    setting_by_task = {}
    for setting in settings:
        task, equals, path = setting.partition("=")
        if not (task and equals and path):
            raise UserError(f"--task-data is written TASK=PATH, as in race=data/race/high; got {setting!r}")
        if task in setting_by_task:
            raise UserError(f"--task-data names {task} twice")
        try:
            setting_by_task[task] = (task, path, _sha256(_files(Path(path))))
        except OSError as error:
            raise UserError(f"--task-data {setting} cannot be read: {first_line_of(error)}") from error
    return tuple(sorted(setting_by_task.values()))


def read_documents(path: Path, split: str) -> datasets.Dataset | None:
    """Return the documents of `split`; None where the folder names its splits and lacks it. A file has any split."""
    import datasets

    files = _files(path)
    named = {file: SPLIT.match(file.relative_to(path).as_posix()) for file in files if file != path}
    if any(named.values()):
        files = [file for file, match in named.items() if match and match[1] == split]
    try:
        return datasets.concatenate_datasets([_read(file) for file in files]) if files else None
    except (ValueError, TypeError) as error:  # datasets raises it for columns of several types
        raise UserError(
            f"--task-data: the files of {path} have columns of different types ({first_line_of(error)})"
        ) from error


def has_splits(path: Path) -> bool:
    """Say whether `path` is a folder that keeps its splits apart."""
    return path.is_dir() and any(SPLIT.match(file.relative_to(path).as_posix()) for file in _files(path))


def _files(path: Path) -> list[Path]:
    """Return the files of documents in `path`, in the order of their names. Raises UserError where there are none."""
    if not path.exists():
        raise UserError(f"--task-data: there is no {path}")
    candidates = [path] if path.is_file() else [*path.glob("*"), *path.glob("*/*")]
    files = [file for file in candidates if file.suffix in SUFFIXES and (file == path or _counts(file, path))]
    if not files:
        raise UserError(f"--task-data: {path} holds no {', '.join(SUFFIXES)} file")
    return sorted(files)


def _counts(file: Path, folder: Path) -> bool:
    """Say whether a file holds documents: no cache of the datasets library, and in no folder but a split's."""
    return not file.name.startswith("cache-") and (file.parent == folder or file.parent.name in SPLITS)


def _sha256(files: list[Path]) -> str:
    """Return the sha256 of the files' names and contents."""
    return hashlib.sha256(b"".join(f.name.encode() + bytes.fromhex(hash_file(f)) for f in files)).hexdigest()


def _read(file: Path) -> datasets.Dataset:
    import datasets
    import pyarrow
    import pyarrow.parquet

    try:
        if file.suffix == ".jsonl":
            rows = _rows(file)
            names = dict.fromkeys(name for row in rows for name in row)  # from_list takes the first row's
            return datasets.Dataset.from_list([dict.fromkeys(names) | row for row in rows])
        if file.suffix == ".arrow":
            with pyarrow.OSFile(str(file)) as stream:
                table = pyarrow.ipc.open_stream(stream).read_all()
        else:
            table = pyarrow.parquet.read_table(file)
        table.validate(full=True)  # offsets that lead elsewhere would end the process in datasets
        return datasets.Dataset(table)
    except Exception as error:  # whatever json, pyarrow and datasets make of a file that is none
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"--task-data: {file} cannot be read as {file.suffix.removeprefix('.')}: {reason}") from error


def _rows(file: Path) -> list[dict[str, Any]]:
    """Read one JSON object per line. Raises ValueError for anything else."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError("one object per line is expected")
    return rows
