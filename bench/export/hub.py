"""Sends models and runs to the Hugging Face hub, and fetches runs from it, by huggingface_hub.

    export --push ORG/NAME           a written model folder, as a model repository with its card
    pack --push ORG/NAME             a packed run, as a dataset repository
    report hf://datasets/ORG/NAME    reads such a run; hf://ORG/NAME is the same, and @REVISION may stand behind it

A push is one commit, which also deletes what an earlier one has left. A run is fetched as its newest commit, or as the
revision that is named, into a folder of the cache that has the commit in its name and is not changed again.
"""

from __future__ import annotations

import fnmatch
import glob
import re
from pathlib import Path
from typing import Any

from bench.data import assets
from bench.export.card_picture import FILE as PICTURE
from bench.export.eval_results import FILES
from bench.records import packed_run, run_folder, served
from methods.errors import UserError, first_line_of

ADDRESS = re.compile(r"hf:/{1,2}(?:datasets/)?(?P<name>[^/@]+/[^/@]+?)/?(?:@(?P<revision>[^@]+))?")
OF_RUN = (packed_run.RECORDS, "samples/*.parquet", served.FILE)  # what a packed run is
CARD = """---
tags:
- prunebench
configs:
- config_name: records
  data_files: records.jsonl
---

# {name}

Records of pruned language models, packed by prunebench. `records.jsonl` has a line for each cell, and `samples` has its
answers and windows. A report of them:

```sh
python -m bench report hf://datasets/{name}
```
"""


# Files that an earlier push may have left, at the top alone: the same commit deletes those that the folder has not,
# since transformers takes a model.safetensors before an index, and so the weights of another model.
REPLACED = [
    *("model*.safetensors", "model.safetensors.index.json", "generation_config.json", "chat_template.jinja"),
    PICTURE,
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
]


class NotPushed(Exception):
    """Says why a model or a run that has been written was not pushed."""


def check_push(name: str) -> None:
    """Ask the hub for the owner of the token. Raises UserError where `name` is no name there or cannot be pushed."""
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # which it does

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--push {name}: {first_line_of(error)}") from None
    if name.count("/") != 1:
        raise UserError(f"--push takes ORG/NAME, as in me/smollm2-135m-laco; got {name!r}")
    if constants.HF_HUB_OFFLINE:
        raise UserError("--push needs the hub, and HF_HUB_OFFLINE is set; unset it")
    if get_token() is None:
        raise UserError("--push needs a token that may write: run `hf auth login`, or set HF_TOKEN")
    try:
        HfApi().whoami()
    except Exception as error:  # its class is the HTTP client's, which differs between the hub's versions
        raise UserError(f"--push cannot use the hub at {constants.ENDPOINT}: {first_line_of(error)}") from None


def _is_replaced(file: str) -> bool:
    """Say whether a push replaces a file of the repository. A pattern with a star alone would reach into folders."""
    if file in FILES:  # of an earlier push, whose figures are those of other weights
        return True
    return "/" not in file and any(fnmatch.fnmatchcase(file, pattern) for pattern in REPLACED)


def push_folder(folder: Path, name: str, *, public: bool) -> str:
    """Push a folder of methods.checkpoint as a commit of the repository `name`; return its address.

    public  whether a new repository can be seen by all; one that exists keeps its setting

    Raises NotPushed where the hub refuses or does not answer.
    """
    from huggingface_hub import HfApi

    from methods.checkpoint import save_load

    hub, pruning = HfApi(), save_load.read_manifest(folder).get("pruning", {})
    try:
        hub.create_repo(name, private=not public, exist_ok=True)
        message = f"Pruned with {pruning['label']}" if pruning.get("label") else "A pruned model"
        replaced = [glob.escape(file) for file in hub.list_repo_files(name) if _is_replaced(file)]
        hub.upload_folder(repo_id=name, folder_path=folder, commit_message=message, delete_patterns=replaced)
    except Exception as error:  # see `check_push`
        kept = f"the folder is whole, and `hf upload {name} {folder}` tries again"
        raise NotPushed(f"{name} was not pushed: {first_line_of(error)}; {kept}") from None
    return f"{hub.endpoint}/{name}"


def push_run(run: Path, name: str, *, public: bool) -> str:
    """Push a packed run as a commit of the dataset repository `name`; return its address.

    public  whether a new repository can be seen by all; one that exists keeps its setting

    Raises UserError where the run is not packed, and NotPushed where the hub refuses or does not answer.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    files = [path for path in (*packed_run.files_of_packed_run(run), run / served.FILE) if path.is_file()]
    cells, card = len(run_folder.read_records(run)), {"README.md": CARD.format(name=name).encode()}
    content = {path.relative_to(run).as_posix(): path.read_bytes() for path in files}
    hub = HfApi()
    try:
        hub.create_repo(name, repo_type="dataset", private=not public, exist_ok=True)
        stored = hub.list_repo_files(name, repo_type="dataset")
        added = content | ({} if "README.md" in stored else card)  # the owner's stays as it is
        operations: list[Any] = [CommitOperationAdd(path, text) for path, text in added.items()]
        operations += [CommitOperationDelete(path) for path in stored if _is_of_run(path) and path not in content]
        hub.create_commit(name, operations, commit_message=f"{cells} cells of prunebench", repo_type="dataset")
    except Exception as error:  # see `check_push`
        again = f"{run} is packed, and the same command tries again"
        raise NotPushed(f"{name} was not pushed: {first_line_of(error)}; {again}") from None
    return f"{hub.endpoint}/datasets/{name}"


def _is_of_run(path: str) -> bool:
    """Say whether a file of a repository is one that a packed run has."""
    return path.count("/") <= 1 and any(fnmatch.fnmatchcase(path, pattern) for pattern in OF_RUN)


def fetch_run(run: Path | str) -> Path:
    """Return the folder of a run, which is fetched first where its name is hf://[datasets/]ORG/NAME[@REVISION].

    Raises UserError where the hub cannot be reached or has no such run.
    """
    if not str(run).startswith("hf:/"):
        return Path(run)
    from huggingface_hub import HfApi, constants

    match = ADDRESS.fullmatch(str(run))
    if match is None:
        raise UserError(
            f"{run} is no run of the hub, which is written hf://datasets/ORG/NAME, or with @REVISION behind it"
        )
    name, revision = match["name"], match["revision"]
    where = f"the run {name} cannot be had of the hub at {constants.ENDPOINT}"
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{where}: HF_HUB_OFFLINE is set; unset it, or copy the run and name its folder")
    hub = HfApi()
    try:
        about = hub.dataset_info(name, revision=revision)
        folder = assets.folder_of_cache() / "runs" / f"{name.replace('/', '--')}@{about.sha}"
        is_run = any(file.rfilename == packed_run.RECORDS for file in about.siblings or ())
        if is_run:
            patterns = list(OF_RUN)
            hub.snapshot_download(
                name, repo_type="dataset", revision=about.sha, allow_patterns=patterns, local_dir=folder
            )
    except Exception as error:  # see `check_push`
        raise UserError(f"{where}: {first_line_of(error)}; a private one needs `hf auth login` or HF_TOKEN") from None
    if not is_run:
        raise UserError(f"{name} is no packed run: it has no {packed_run.RECORDS}; `pack RUN --push {name}` makes one")
    return folder
