"""Tiny random models of every family, made from configurations; one torch thread, no network."""

from __future__ import annotations

import functools
import gc
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import browser
import forked
import pytest
import torch
from baichuan_code import BaichuanConfig, BaichuanForCausalLM
from hypothesis import HealthCheck, settings

import methods
from bench.system import worker
from bench.workshop.tiny_models import (
    LATER,
    LAYERS,
    TINY,
    VOCABULARY,
    draw_tiny_model,
    options_of_tiny_model,
    prepare_weights,
)
from methods.compensation.base import REGISTRY as COMPENSATIONS
from methods.model.calibration import Calibration
from methods.model.layer import copy_module
from methods.registry import PLUGIN, REGISTRY

# tests/fuzz has so many inputs in all: the same ones every time, or with --hypothesis-profile nightly others each time.
QUIETLY = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("suite", max_examples=200, derandomize=True, **QUIETLY)
settings.register_profile("nightly", max_examples=10_000, print_blob=True, **QUIETLY)
settings.load_profile("suite")

# Of tests/benchmarks what takes longest: left out of an ordinary run, which times nothing; tox -e bench has all of it.
LONG = (
    *("test_driver.py", "test_engines_speed.py", "test_fits.py", "test_methods_speed.py", "test_pair.py"),
    "test_rendering.py",
)


# Families that differ from another one in numbers and not in structure: each method goes through these with --nightly.
ALIKE = {"mistral": "llama", "qwen2": "llama", "llava": "llama", "gemma": "qwen3"}
ALIKE |= {"gemma2": "gemma3_text", "gemma3": "gemma3_text"}
# Folders and files whose tests take long and wait for most of it: last, they would leave a core idle. The longest of a
# single test come before all, since the last two that a process has are stolen by none. What several tests share that
# takes long to make, as in test_chain.py, is made once more by each process that steals some of them.
FIRST = (
    *("test_types.py", "test_tutorial.py", "test_doctor.py", "test_transformers_compat.py", "serving", "engines"),
    *("test_chain.py", "test_gate.py", "test_part.py", "page"),
)
# Folders of tests that go through the families, and are about something else than what a family is.
ACROSS_FAMILIES = ("depth", "width", "search", "experts", "compensation", "checkpoint", "evaluation")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--nightly", action="store_true", help="also what takes long and has a quicker test beside it")


def pytest_xdist_auto_num_workers() -> int:
    """Let `-n auto` start one worker more than cores, at most 3: tests wait for processes that they start.

    Each imports, collects and prunes for itself, about 35 s of a core.
    """
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 2) + 1


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what a nightly run alone has, unless it is one; begin with what starts processes and waits for them."""
    items.sort(key=lambda item: min(map(place_of, (item.path.name, item.path.parent.name))))
    if "PRUNEBENCH_VLLM_PYTHON" not in os.environ:
        leave_out(config, items, [item for item in items if item.get_closest_marker("vllm")])
    if config.getoption("--nightly"):
        return
    leave_out(config, items, [item for item in items if is_nightly(item)])


def leave_out(config: pytest.Config, items: list[pytest.Item], left_out: list[pytest.Item]) -> None:
    """Deselect some items, in place."""
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


def place_of(name: str) -> int:
    """Return where a folder or file stands in FIRST, and behind its end for others."""
    return FIRST.index(name) if name in FIRST else len(FIRST)


def pytest_collection_finish() -> None:
    keep_out_of_searches()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """Behind the last test of a file, take back the variables that it has set, and freeze what it has imported."""
    try:
        return (yield)
    finally:
        if nextitem is None or nextitem.path != item.path:
            restore_variables(worker._environment_of_server())
            keep_out_of_searches()


def restore_variables(before: dict[str, str]) -> None:
    """Give the environment the variables that it had before, but for pytest's own, which stays."""
    for name in os.environ.keys() - before.keys() - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]
    os.environ.update(before)


def pytest_sessionstart() -> None:
    gc.set_threshold(20_000, 10, 10)  # searches after 700 new objects took a tenth of the tests of models


def keep_out_of_searches() -> None:
    """Leave what stays out of searches for garbage: one behind each cell of a run takes 0.06 s for 125,000 objects."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or libraries report it as leaked


def is_nightly(item: pytest.Item) -> bool:
    given = item.callspec.params if hasattr(item, "callspec") else {}
    across = "method" in given or "pair" in given or item.path.parent.name in ACROSS_FAMILIES
    return item.get_closest_marker("nightly") is not None or (across and given.get("family") in ALIKE)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if collection_path.name in LONG and config.getoption("benchmark_disable") else None


OWN_CODE: dict[str, dict[str, object]] = {"baichuan": {}}  # families that transformers does not have
FAMILIES = (
    *TINY,
    *OWN_CODE,
)  # which go through every method; LATER through one of each kind of shape (tiny_methods.py)
EVERY_FAMILY = (*FAMILIES, *LATER)


def tiny(family: str, *, layers: int = LAYERS, seed: int = 0, **overrides: object) -> torch.nn.Module:
    """A random float32 model of `family`: `layers` layers, width 32, 4 query heads, 128 words, 128 positions.

    It is a copy of what the process has drawn once, and torch's generator stands where drawing leaves it.
    """
    key = repr((family, layers, seed, sorted(overrides.items())))
    if key not in DRAWN:
        DRAWN[key] = draw(family, layers, seed, overrides), torch.default_generator.get_state()
    model, generator = DRAWN[key]
    torch.default_generator.set_state(generator)
    return copy_of_model(model)


DRAWN: dict[str, tuple[torch.nn.Module, torch.Tensor]] = {}


def copy_of_model(model: torch.nn.Module) -> torch.nn.Module:
    """What `copy.deepcopy` makes of a model, in a third of the time."""
    copied: torch.nn.Module = copy_module(model, {})
    return copied


def draw(family: str, layers: int, seed: int, overrides: dict[str, object]) -> torch.nn.Module:
    """The model that `tiny` gives copies of."""
    if family not in OWN_CODE:
        return draw_tiny_model(family, layers=layers, seed=seed, **overrides)
    torch.default_generator.manual_seed(seed)
    return prepare_weights(BaichuanForCausalLM(BaichuanConfig(**options_of_tiny_model(layers) | overrides)))


def padded(rows: list[list[int]]) -> Calibration:
    """Sentences of any length as one block, padded on the right."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = True
    return Calibration(ids, mask)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Let all tests have one environment, so that their processes can be forked from one server.

    A variable that a library sets when a test imports it does not outlive the test. Where a fixture imports it, as that
    of a Ray cluster does, no test of the file forks, and those of other files do.
    """
    variables, before = os.environ, dict(os.environ)  # a test may put another object into the place of the first
    del variables["PYTEST_CURRENT_TEST"]
    try:
        return (yield)
    finally:
        for name in variables.keys() - before.keys():
            del variables[name]
        variables.update(before)


@pytest.fixture(autouse=True, scope="session")
def _methods_are_imported():
    """Let no method be imported by a test that has changed a number which the method then takes for its own."""
    methods.load()


@pytest.fixture(autouse=True, scope="session")
def _float32_by_default():
    """Let every machine choose the dtype that one without native bfloat16 does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.cpu.get_capabilities", dict, raising=False)
        yield


@pytest.fixture(autouse=True, scope="session")
def _conversions_are_of_the_tests(tmp_path_factory):
    """Keep what tests convert out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.data.converted.place_of_folders", lambda: tmp_path_factory.getbasetemp() / "converted")
        yield


@pytest.fixture(autouse=True, scope="session")
def _one_server_imports_for_all_processes():
    """Let the server from which processes are forked import what any of them needs: torch is imported once, for 6 s.

    What stands for another machine's process is forked from it too.
    """
    begin = ForkServerContext.set_forkserver_preload

    def import_all(self: ForkServerContext, names: list[str]) -> None:
        begin(self, [*names, *forked.IMPORTED] if set(forked.IMPORTED) & set(names) else names)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ForkServerContext, "set_forkserver_preload", import_all)
        patch.setattr("bench.engines.engine.Worker", functools.partial(worker.Worker, imported=(forked.JOBS,)))
        with pytest.MonkeyPatch.context() as own:
            own.delenv("PYTEST_CURRENT_TEST")
            worker._environment_of_server()  # is that of all tests
        yield


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def bars(monkeypatch):
    """Every progress bar from now on, none of them drawn: what, total and done."""
    shown = list[SimpleNamespace]()

    @contextmanager
    def bar(*, total, desc, initial, **how):
        one = SimpleNamespace(what=desc, total=total, done=initial)
        shown.append(one)
        one.update = lambda: setattr(one, "done", one.done + 1)
        yield one

    monkeypatch.setattr("tqdm.tqdm", bar)
    return shown


@pytest.fixture(autouse=True)
def no_plugin_outlives_its_test():
    """Methods of files that a test has loaded are gone behind it, so that another one may use their names."""
    yield
    for registry in (REGISTRY, COMPENSATIONS):
        for name, kind in list(registry.items()):
            if kind.__module__.startswith(PLUGIN):
                del registry[name]
                sys.modules.pop(kind.__module__, None)


@pytest.fixture
def ids():
    """(3, 20) random token ids without special ones."""
    return torch.randint(3, VOCABULARY, (3, 20), generator=torch.Generator().manual_seed(1))


WORDS = [f"w{number}" for number in range(VOCABULARY - 3)]


@pytest.fixture(scope="module")
def chromium():
    """A browser, of which each test opens a page of its own."""
    with browser.started() as started:
        yield started


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A tiny Llama with a tokenizer, in a folder as `--model` takes it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    vocabulary = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    tiny("llama", max_position_embeddings=2048).save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    """Forty documents of sixty known words each."""
    generator = torch.Generator().manual_seed(5)
    documents = [
        " ".join(WORDS[i] for i in torch.randint(len(WORDS), (60,), generator=generator).tolist()) for _ in range(40)
    ]
    path = tmp_path_factory.mktemp("texts") / "words.txt"
    path.write_text("\n\n".join(documents))
    return path


@pytest.fixture
def base(model_folder, text_file, tmp_path):
    """A sound run on a tiny model, which measures its perplexity alone."""
    return [
        *("run", "--model", str(model_folder), "--texts", str(text_file), "--calibration", str(text_file)),
        *("--tasks", "none", "--no-checks", "--window", "32", "--windows", "4", "--calibration-sequences", "4"),
        *("--calibration-length", "24", "--profile", "smoke", "--device", "cpu", "--out", str(tmp_path / "run")),
        *("--speed-rounds", "0"),
    ]


@pytest.fixture
def with_checks(base):
    """The same run, in which models also generate, and are held against the dense one."""
    return [word for word in base if word != "--no-checks"]


def trusting(*names: Path | str) -> list[str]:
    """The flags by which a user lets the records of a run name these."""
    return [word for name in names for word in ("--trust", str(name))]


def trusting_all(run: Path) -> list[str]:
    """The flags by which a user lets the records of a run name what they do name."""
    return trusting(*names_of(run))


def names_of(run: Path) -> tuple[str, ...]:
    """What the records of a run name: models, and texts."""
    from bench.records.run_folder import load_run

    cells = [record.cell for record in load_run(run)]
    texts = [text for cell in cells for text in (cell.protocol.calibration, *cell.protocol.texts)]
    return tuple(dict.fromkeys([*(cell.model for cell in cells), *texts]))


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """The one line that a mistake prints; no result, and no results folder with anything in it."""
    from bench.cli.main import main

    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err
