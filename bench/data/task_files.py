"""Finds tasks that users define in files of their own, as lm-eval's --include_path and --tasks FILE.yaml do.

    --tasks sums.yaml                        the task of a file
    --tasks sums --include-path my_tasks     the task, tag or group of that name in a folder or below it

Prompts, metrics and documents are what lm-eval makes of the file. A definition is read here without running anything:
a function is a name until the user lets it run. `hash_files` covers the file, what it includes, and the Python files
beside them where it names a function.

A record holds of each such task its name, the file and the hash. A file that has changed since is refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.data import programs
from bench.data.task_sources import GROUPS, HUB, OFFLINE
from methods.errors import UserError, first_line_of

Files = Sequence[tuple[str, str, str]]  # of each task its name, the file of its definition, and the sha256
SUFFIXES = (".yaml", ".yml")
NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,99}", re.ASCII)  # which names a file of samples too
OUTPUT_TYPES = ("multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until")
BUILDERS = ("json", "csv", "parquet", "arrow", "text")  # of data sets, that read files and nothing else
UNSUPPORTED = {  # keys, and why a definition with a value for one is refused
    "class": "is a Python class, and a definition in YAML is taken alone",
    "unsafe_code": "executes programs that models write, which the tasks `programs` do under guard",
    "use_prompt": "takes its prompt from another package; write doc_to_text",
    "doc_to_image": "has images, and models of text are measured",
    "doc_to_audio": "has sound, and models of text are measured",
}
REMOTE_CODE = "trust-remote-code"


@dataclass(frozen=True)
class Function:
    """Names a function of a definition, which has not been imported."""

    name: str


@dataclass(frozen=True)
class TaskFile:
    """Holds a definition of lm-eval as a file has it, with what it includes; `Function` where it names one.

    parts      the file and what it includes
    functions  the names of all functions
    """

    path: Path
    values: dict[str, Any]
    parts: tuple[Path, ...]
    functions: tuple[str, ...]

    @property
    def members(self) -> list[str]:
        """Return the tasks of a group; none of a task."""
        task = self.values.get("task")
        return [each if isinstance(each, str) else "" for each in task] if isinstance(task, list) else []

    @property
    def names(self) -> list[str]:
        """Return the names by which `--tasks` can mean this file: the task's or the group's, then its tags."""
        own, tags = self.values.get("group" if self.members else "task"), self.values.get("tag") or []
        every = [own, *([tags] if isinstance(tags, str) else tags)]
        return [name for name in every if isinstance(name, str)]


def find_tasks(names: Sequence[str], folder: Path | None) -> tuple[tuple[str, ...], Files]:
    """Return the names with files and groups of files as their tasks, and the files of the tasks that have one.

    folder  of `--include-path`, whose definitions win over those of lm-eval; None: there is none

    Raises UserError for a file that defines no task that can be measured, or one of a name that is this suite's.
    """
    if folder is not None and not folder.is_dir():
        raise UserError(f"--include-path is a folder with definitions of tasks in YAML; {folder} is none")
    every, files = dict[str, None](), dict[str, TaskFile]()
    definitions = _read_folder(folder) if folder else []
    for name in names:
        is_file = Path(name).suffix in SUFFIXES
        own = [read_task_file(Path(name))] if is_file else list(_files_of_name(name, definitions))
        if not own:
            every[name] = None
        for file in own:
            task = _check_task(file)
            if task in files and files[task].path != file.path:
                raise UserError(f"{files[task].path} and {file.path} both define {task}; leave one of them out")
            files[task], every[task] = file, None
    return tuple(every), tuple(sorted((task, str(file.path), hash_files(file)) for task, file in files.items()))


def names_in_folder(folder: Path | None) -> list[str]:
    """Return the tasks, tags and groups that the files of a folder define; none without a folder."""
    files = [] if folder is None else _read_folder(folder)
    return list(dict.fromkeys(name for file in files for name in file.names))


def _files_of_name(name: str, definitions: Sequence[TaskFile], above: tuple[str, ...] = ()) -> Iterator[TaskFile]:
    """Yield the files of the task, the tag or the group of that name; of a group its members'.

    above  the groups that lead here
    """
    for file in definitions:
        if name not in file.names:
            continue
        if name in (*OFFLINE, *HUB, *GROUPS):
            raise UserError(f"{file.path} defines {name}, which is a task or group of this suite; rename it")
        if not file.members:
            yield file
        for member in file.members:
            inside = (*above, name)
            of_member = list(_files_of_name(member, definitions, inside)) if member not in ("", *inside) else []
            if not of_member:
                raise UserError(f"{file.path}: the group {name} has a member that has no file here; name its tasks")
            yield from of_member


def _read_folder(folder: Path) -> list[TaskFile]:
    """Return the definitions in a folder and below. Files that are none are left out, as lm-eval does."""
    files = []
    for path in sorted(folder.rglob("*.yaml")):
        try:
            files.append(read_task_file(path))
        except UserError:
            continue
    return files


def read_task_file(path: Path) -> TaskFile:
    """Return the definition of a file, without running anything. Raises UserError where it is none."""
    parts: dict[Path, None] = {}
    values = _read_with_includes(path, parts)
    if not isinstance(values.get("task"), str | list):
        raise UserError(f"{path} names no task, as in `task: sums`; see lm-eval's guide to new tasks")
    try:
        return TaskFile(path, values, tuple(parts), tuple(_functions_of(values)))
    except RecursionError:
        raise UserError(f"--tasks: {path} has a value that holds itself; write it out") from None


def _read_with_includes(path: Path, parts: dict[Path, None]) -> dict[str, Any]:
    """Return the values of a file over those of the files that it includes; `parts` gets each file that is read."""
    place = path.resolve()
    if place in parts:
        raise UserError(f"{path} includes itself; leave that out")
    parts[place] = None
    values = _read_yaml(path)
    includes, merged = values.pop("include", []), dict[str, Any]()
    for name in includes if isinstance(includes, list) else [includes]:
        merged |= _read_with_includes(place.parent / str(name), parts)
    merged.pop("task_list", None)
    return merged | values


def _read_yaml(path: Path) -> dict[str, Any]:
    """Return the values of a YAML file, each function as its name. Raises UserError for any other file."""
    import yaml

    class FunctionLoader(yaml.SafeLoader):
        """Makes no objects but plain ones and names of functions."""

    FunctionLoader.add_constructor("!function", lambda _, node: Function(str(node.value)))
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), FunctionLoader)
    except OSError as error:
        raise UserError(f"--tasks: {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"--tasks: {path} is no definition of a task in YAML: {first_line_of(error)}") from None
    if not isinstance(values, dict):
        raise UserError(f"--tasks: {path} is no definition of a task in YAML, as in `task: sums`")
    return values


def _functions_of(value: Any) -> Iterator[str]:
    """Yield the name of each function within nested values."""
    if isinstance(value, Function):
        yield value.name
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _functions_of(inner)


def _check_task(file: TaskFile) -> str:
    """Return the name of the task of a file. Raises UserError where it cannot be measured."""
    path, values, name = file.path, file.values, file.values["task"]
    if not isinstance(name, str):
        raise UserError(f"{path} is a group; name it with --include-path, or name its tasks")
    if name in (*OFFLINE, *HUB, *GROUPS):
        raise UserError(f"{path} defines {name}, which is a task or group of this suite; rename it")
    if not NAME.fullmatch(name) or name.startswith(("perplexity-", "positions-", "continuations")):
        raise UserError(f"{path}: a task's name has letters, digits, and . _ + - behind the first; got {name!r}")
    for key, why in UNSUPPORTED.items():
        if values.get(key):
            raise UserError(f"{path}: the task {name} {why}")
    output_type = values.get("output_type", "generate_until")
    if output_type not in OUTPUT_TYPES:
        raise UserError(f"{path}: output_type is one of {', '.join(OUTPUT_TYPES)}; got {output_type!r}")
    if not values.get("test_split") and not values.get("validation_split"):
        raise UserError(f"{path}: test_split or validation_split says what is evaluated, and neither is there")
    _check_source(file, name)
    return name


def _check_source(file: TaskFile, name: str) -> None:
    """Raise UserError where the documents of a task are neither a function's, nor of files, nor of the hub."""
    source = file.values.get("dataset_path")
    if file.values.get("custom_dataset"):
        return
    is_hub_name = isinstance(source, str) and source.count("/") == 1 and not source.startswith((".", "/", "~"))
    if source not in BUILDERS and not is_hub_name:
        raise UserError(
            f"{file.path}: dataset_path is {', '.join(BUILDERS)}, or OWNER/NAME on the hub, or --task-data {name}=PATH "
            f"takes local files beside such a name; got {source!r}"
        )


def hash_files(file: TaskFile) -> str:
    """Return the sha256 of a definition's file, of what it includes, and of Python files beside where it has functions.

    Those that a function's name leads to count wherever they lie below.
    """
    parts = dict.fromkeys(file.parts)
    if functions := file.functions:
        folders = [part.parent for part in file.parts]
        beside = [path for folder in folders for path in sorted(folder.glob("*.py"))]
        named = [folder / f"{name.rpartition('.')[0].replace('.', '/')}.py" for folder in folders for name in functions]
        parts |= dict.fromkeys(path.resolve() for path in (*beside, *named) if path.is_file())
    digest = hashlib.sha256()
    for path in parts:
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def list_code(file: TaskFile) -> dict[str, str]:
    """Return what a definition would run, each with the flag that allows it."""
    code = dict[str, str]()
    if functions := file.functions:
        code[f"the function {functions[0]}"] = programs.FLAG
    kwargs = file.values.get("dataset_kwargs")
    if isinstance(kwargs, dict) and kwargs.get("trust_remote_code"):
        code["code of a data set"] = REMOTE_CODE
    metrics = file.values.get("metric_list")
    if any(
        isinstance(each, dict) and each.get("hf_evaluate") for each in (metrics if isinstance(metrics, list) else ())
    ):
        code["a metric of the hub"] = REMOTE_CODE
    return code


def refuse_code(files: Files, *, is_confirmed: bool, trusts_remote_code: bool) -> None:
    """Raise UserError for a definition that would run code which the user does not let run.

    is_confirmed        whether functions of definitions may run
    trusts_remote_code  whether code of the hub may
    """
    allowed = {programs.FLAG: is_confirmed, REMOTE_CODE: trusts_remote_code}
    for _, path, _ in files:
        for what, flag in list_code(read_task_file(Path(path))).items():
            if not allowed[flag]:
                raise UserError(f"{path} runs {what}; look at it, then let it run by --{flag}")


def read_definition(task: str, files: Files) -> dict[str, Any] | None:
    """Return lm-eval's definition of a task that has a file, with its functions; None for any other task.

    Raises UserError where the file, or what it includes, is no longer what the run has looked at.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    for name, path, sha256 in files:
        if name == task:
            if hash_files(read_task_file(Path(path))) != sha256:
                raise UserError(f"{path}, or what it includes, has changed since the run began; begin it again")
            _render_in_sandbox()
            try:
                return dict(load_yaml(path))
            except Exception as error:  # whatever a function's module does
                raise UserError(f"{path} cannot be loaded: {first_line_of(error)}") from error
    return None


def _render_in_sandbox() -> None:
    """Let lm-eval fill in its templates where they reach no attribute of Python's own, which would be code."""
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    if not isinstance(utils.env, SandboxedEnvironment):
        options = {name: getattr(utils.env, name) for name in ("loader", "undefined", "keep_trailing_newline")}
        sandbox = SandboxedEnvironment(**options)
        sandbox.filters.update(utils.env.filters)
        utils.env = sandbox


def tasks_of_files(files: Files) -> set[str]:
    """Return the names of the tasks that have files of their own."""
    return {task for task, _, _ in files}


def without_tasks_of_files(names: Iterable[str], files: Files) -> list[str]:
    """Return the names of the tasks that have no file of their own."""
    own = tasks_of_files(files)
    return [name for name in names if name not in own]
