"""Refuses names of models, texts, tasks and files that are missing, before torch is imported.

A mistake in a command is so reported within a second. What needs the model, its tokenizer or lm-eval is refused by
bench.plan.validate, which looks at these names again.
"""

from __future__ import annotations

from pathlib import Path

from bench.data import pretrained, task_files, task_loading, task_sources, texts
from bench.data.task_files import Files
from bench.plan.run_spec import RunSpec
from methods.errors import UserError


def refuse_missing(spec: RunSpec, folder: Path) -> None:
    """Raise UserError where a run names a model, text, task, plugin or folder that it cannot have.

    folder  of the results
    """
    for plugin in spec.plugins:
        refuse_plugin(Path(plugin))
    protocols = spec.protocols()
    first = protocols[0][0]
    local, (names, files) = task_sources.parse_task_data(spec.task_data), find_own_tasks(spec)
    own = task_files.names_in_folder(spec.include_path)
    task_loading.refuse_unknown(task_loading.split_groups(names, local), local, files, own)
    healed_on = [spec.healing.text] if spec.healing else []
    for text in dict.fromkeys([*first.texts, *healed_on]):
        texts.check_text(text, ask_hub=False)
    texts.check_calibrations((protocol.calibration for protocol, _ in protocols), ask_hub=False)
    teachers = [spec.healing.teacher] if spec.healing and spec.healing.teacher else []
    for model in [*spec.models, *teachers]:
        if not pretrained.is_on_hub(model):
            pretrained.check(model, spec.trust_remote_code)
    refuse_file(folder)


def find_own_tasks(spec: RunSpec) -> tuple[tuple[str, ...], Files]:
    """Return the tasks of a run by their names, and the files of those that the user has defined.

    Raises UserError for a file that defines no task to measure, and for code that the user does not let run.
    """
    names, files = task_files.find_tasks(spec.protocols()[0][0].tasks, spec.include_path)
    task_files.refuse_code(files, is_confirmed=spec.confirm_run_unsafe_code, trusts_remote_code=spec.trust_remote_code)
    return names, files


def refuse_plugin(path: Path) -> None:
    """Raise UserError for a plugin that is no Python file."""
    if not path.is_file():
        raise UserError(f"--plugin names a Python file with @register-ed methods; {path} is none")


def refuse_file(folder: Path) -> None:
    """Raise UserError where a folder for results surely cannot be made, without making it."""
    if "\0" in str(folder):
        raise UserError(f"no path has a null byte, as {str(folder)!r} has; name another with --out")
    if above := next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), None):
        raise UserError(f"{folder} cannot hold results: {above} is a file; name another with --out")
