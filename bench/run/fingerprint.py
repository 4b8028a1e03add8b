"""What the answer of a cell stands on beyond what was asked for: the `inputs` of a cell, and so a part of its key.

    weights_sha256      of the model's weight files
    config_sha256       of its configuration files; absent for a GGUF file, whose weights' hash covers it
    tokenizer_sha256    of the tokenizer's vocabulary, rules and special tokens
    calibration_sha256  of the calibration tokens and their mask
    texts               {text: sha256 of its windows' tokens and of what is scored of them}
    tasks               {task: {version, sha256}}   see bench.evaluation.tasks.fingerprint
    method_sha256       of the method's source file and of the files that it imports, see `method_sha256`
    versions            {package: version} of VERSIONS
    timed_on            {processor, threads, and how these wait}   of a timed cell alone
    healing             {text_sha256 (of the tokens), source_sha256 (of HEALING), peft (its version, for LoRA)}   of a
                        healed cell alone
    parent              key of the cell whose model is pruned further, of a chained cell (bench.plan.chain) alone

A cell is served from a record only where all of it is equal: no answer of another model, text, document, version or
state of a method's source is ever taken for this one's.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import sys
import sysconfig
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

import methods
from bench.data import pretrained
from bench.data import texts as text_data
from bench.evaluation import tasks
from bench.healing.text import Text
from bench.plan.cell import Cell
from bench.plan.recipe import Recipe
from bench.system import environment
from methods.model.calibration import Calibration

VERSIONS = ("prunebench", "torch", "transformers", "lm_eval")
HEALING = ("healing/training.py", "healing/text.py", "plan/recipe.py")  # the modules that train, below bench/
MEASURED_ON = ("texts", "tasks", "timed_on", "healing")  # what a method has not looked at when it decides


def common(
    cell: Cell,
    tokenizer: Any,
    *,
    calibration: Calibration,
    texts: Mapping[str, text_data.EvaluationText],
    loaded_tasks: Mapping[str, Any],
    documents: Mapping[str, list[int]],
) -> dict[str, Any]:
    """What all cells of a run share, but for the hash of the weights, which takes a while where they are large."""
    found: dict[str, Any] = {
        "tokenizer_sha256": _tokenizer_sha256(tokenizer),
        "calibration_sha256": calibration.sha256,
        "texts": {name: text.sha256 for name, text in texts.items()},
        "tasks": {name: tasks.fingerprint(task, documents[name]) for name, task in loaded_tasks.items()},
        "versions": {package: metadata.version(package) for package in VERSIONS},
    }
    if settings := pretrained.config_sha256(cell.model):
        found["config_sha256"] = settings
    if cell.protocol.speed_rounds:
        processor = environment.processor(torch.device(cell.device))
        found["timed_on"] = {"processor": processor, "threads": torch.get_num_threads()} | environment.waiting()
    return found


def healing(recipe: Recipe, text: Text) -> dict[str, str]:
    """What a healed cell stands on beside the pruned model."""
    sources = b"".join((Path(__file__).parents[1] / name).read_bytes() for name in HEALING)
    found = {"text_sha256": text.sha256, "source_sha256": hashlib.sha256(sources).hexdigest()}
    return found | ({"peft": metadata.version("peft")} if recipe.kind == "lora" else {})


def differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The names under which two inputs differ."""
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))


def method_sha256(name: str) -> str:
    """sha256 of the file that registers the method (and its compensation), and of all that it imports, directly or not.

    Files of installed packages are left to their version, unless they are of the method's own package. So a plugin
    that is edited, or whose neighbour is, has another hash.
    """
    return _sources_sha256(methods.modules(name))


def _sources_sha256(start: list[str]) -> str:
    package, waiting, hashes = start[0].partition(".")[0], list(start), dict[str, str]()
    while waiting:
        name = waiting.pop()
        path = _source(name)
        if (
            path is None
            or name in hashes
            or path.suffix != ".py"
            or (name.partition(".")[0] != package and _is_installed(path))
        ):
            continue
        source = path.read_bytes()
        hashes[name] = hashlib.sha256(source).hexdigest()
        base = name if path.name == "__init__.py" else name.rpartition(".")[0]
        waiting += _imports(source, base)
    return hashlib.sha256("".join(sorted(hashes.values())).encode()).hexdigest()


def _source(name: str) -> Path | None:
    """The file of a module that has been imported, or of one of `methods` that may be later: every process agrees."""
    own = Path(methods.__file__).parent.joinpath(*name.split(".")[1:]).with_suffix(".py")
    if name.startswith("methods.") and own.is_file():
        return own
    return Path(getattr(sys.modules[name], "__file__", None) or "") if name in sys.modules else None


@functools.cache
def _imports(source: bytes, package: str) -> tuple[str, ...]:
    """The modules that a file of `package` may import, and names that may be modules, wherever in it that stands."""
    found = list[str]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return tuple(found)


def _is_installed(path: Path) -> bool:
    """Whether the file belongs to Python itself or to an installed package."""
    return any(path.resolve().is_relative_to(place) for place in _places())


@functools.cache
def _places() -> tuple[Path, ...]:
    return tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib"))


def state_sha256(model: nn.Module) -> str:
    """sha256 of every tensor of a model's state: its name, its kind, its shape and its values; tied ones once."""
    digest, names = hashlib.sha256(), dict[int, str]()
    for name, tensor in model.state_dict(keep_vars=True).items():
        first = names.setdefault(id(tensor), name)
        digest.update(f"{name} {first} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if first == name:
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _tokenizer_sha256(tokenizer: Any) -> str:
    rules = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else sorted(tokenizer.get_vocab().items())
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return hashlib.sha256(json.dumps([rules, special], sort_keys=True).encode()).hexdigest()
