"""Says what a run measures: `RunSpec`, made from flags, from a spec file, or by hand.

RunSpec(methods="laco,slicegpt", ratios=[0.3], profile="smoke", protocol={"windows": 8}, healing=Recipe("lora"))

A spec file is YAML. Its keys are the long flags of `run`:

    description: one line, for `list specs`
    base: the name of another spec, or a file beside this one; what stands here wins over it
    methods: [laco, shortgpt+ghost]
    ratio: [0.1, 0.2]
    set: {laco.C: [2, 3, 4, 6], laco.T: 0.65}
    no-checks: true

A list is what the flag takes with commas; `set` and `task-data` are tables. Keys are written with - or _. Flags of the
command line win over the file. A flag that may be repeated is added behind the values of the file.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from bench.data import programs
from bench.data.mixture import split_calibrations
from bench.plan.address import ENDPOINT, KEY, ServerAddress, VllmPython, parse_url
from bench.plan.cell import to_slug
from bench.plan.fields import (
    MethodChoice,
    Option,
    check_fields,
    hint_of_similar_name,
    option,
    options_of_class,
    parse_budget,
    parse_methods,
    parse_ratios,
    refuse_name,
    split_list,
    split_repeated,
)
from bench.plan.protocol import KINDS, PROFILES, VLLM, Protocol, Recipe, protocol_of_profile
from methods import base, registry
from methods.counted import Counted
from methods.errors import UserError

MOST_SLOTS = 4096
LARGEST_SEED = 2**32 - 1  # torch takes as many and more; of a seed several are made
SWEPT = ("calibration", "calibration_sequences", "calibration_length")  # fields of Protocol of which several sweep

THEN = (
    "prune every cell further, to ratio R of the dense model in total; given again, behind the one before. With --heal "
    "a healed cell is pruned further, then healed again, and the next --then goes on from there"
)
TASK_DATA = (
    "a task's documents from local files, with the columns of the hub's: an .arrow, .parquet or .jsonl file of what "
    "is evaluated, or a folder of such, where files named by split (test-0.parquet) are taken by split"
)
INCLUDE = "with definitions of tasks as lm-eval's YAML has them, which --tasks names; a FILE.yaml of --tasks is one too"
UNSAFE = "execute what models write, of the tasks `programs`, and functions that a task's file names"
CALIBRATION_TOKENS = (
    "in place of --calibration-sequences: how many tokens in all, as in 4k,64k (k is 1,024); several sweep"
)
SEARCH = "end each search (evopress, tyr) with what it has found after N minutes; by default it is not ended"
ISOLATE = (
    "each cell in a process of its own; by default cells that are timed or on a GPU share one until one fails in it"
)
DTYPE = "float32, bfloat16 or float16; auto: bfloat16 where the GPU or CPU multiplies it natively, else float32"
THREADS = (
    "torch threads of each cell on the CPU; auto: as many as other programs leave cores, looked at before each stage "
    "but timing; by default cells that run at once share all"
)
SLOTS = "cells that run at once, timed ones alone; auto: one for each GPU, one on a CPU; by default 1 on this machine"
MEMORY = "what a cell on the CPU may take: weights lie in files where the whole model would take more"
CARD = "of its GPU's: layers lie in files and visit it one at a time where the whole model would take more"
OFFLOAD = "for states that wait between layers, on a disk of the machine that measures; by default they are in memory"
LIMIT = "0 for no limit, or positive"
SHARES = "a list of shares of the parameters, each in [0, 1), as in 0.1,0.3"
BUDGET = (
    "in place of --ratio: the share that may stay of the weights' bytes, of the KV cache's bytes per token, of the "
    "multiply-accumulates or of the milliseconds per token, as in bytes=0.8, kv=0.8, macs=0.8,0.6 or latency=0.8"
)
TABLE = "that tells --budget latency, as the command latency-table has measured it"

SERVER = (
    "an OpenAI-compatible server that scores the dense model, as in http://127.0.0.1:8000; with --scorer endpoint. A "
    f"key for it is read from the variable {KEY}"
)
VLLM_PYTHON = "that has vLLM, which scores the model of each cell; with --scorer vllm"
ENGINE = "local is this machine, ray a cluster, see docs/reference/machines.md"
GPUS = "GPUs that each cell has to itself, over which its model is spread"

HELP = "see `python -m bench run --help`"
FLAGS = "it takes the names of the flags of `run`"

Spec = TypeVar("Spec")

what_option = partial(option, group="what")
where_option = partial(option, group="where")
engine_option = partial(option, group="engine")


def accept_flags(spec_class: type[Spec]) -> type[Spec]:
    """Return RunSpec with an __init__ that takes the names of flags too, as in ratio=0.2, window=64, heal="lora".

    It raises UserError for a name that is neither a field nor a flag, and for a value that is given by both.
    """
    from_fields: Callable[..., None] = spec_class.__init__

    @functools.wraps(from_fields)
    def __init__(self: Any, *methods: Any, **named: Any) -> None:
        own, options = [attribute.name for attribute in fields(RunSpec)], options_by_name()
        parts: dict[type, dict[str, Any]] = {RunSpec: {}, Protocol: {}, Recipe: {}}
        given_as: dict[tuple[type, str], str] = {
            (Protocol, name): f"protocol's {name}" for name in named.get("protocol", ())
        }
        for name, value in named.items():
            if name not in own and name not in options:
                refuse_name("RunSpec takes no", name, dict.fromkeys([*options, *own]), f"{FLAGS}, {HELP}")
            where = (RunSpec, name) if name in own else (options[name].owner, options[name].field)
            if where in given_as:
                raise UserError(f"{given_as[where]} and {name} say the same; give one of them")
            given_as[where] = name
            switches_off = name not in own and options[name].default is True and name != options[name].field
            parts[where[0]][where[1]] = not options[name].convert(value) if switches_off else value
        given, protocol, healing = parts[RunSpec], parts[Protocol], parts[Recipe]
        if not methods and "methods" not in given:
            raise UserError(f"the following arguments are required: --methods; {HELP}")
        if protocol:
            given["protocol"] = {**given.get("protocol", {}), **protocol}
        if healing and "kind" not in healing:
            flag = next(name for name in named if name.startswith("heal_")).replace("_", "-")
            kinds = " or --heal ".join(KINDS)
            raise UserError(f"--{flag} says how to heal, and nothing is healed; add --heal {kinds}")
        if "rank" in healing and healing["kind"] != "lora":
            kind = healing["kind"]
            raise UserError(f"--heal-rank is of LoRA's matrices, which --heal {kind} has none of; leave it out")
        from_fields(self, *methods, **given)
        if healing:
            from_fields(self, *methods, **given | {"healing": Recipe(**healing, seed=self.seeds[0])})

    spec_class.__init__ = __init__  # type: ignore[method-assign]  # of which mypy and readers see the fields
    return spec_class


def options_by_name() -> dict[str, Option]:
    """Return the flags of `run` by their names in Python, those of the protocol also by those of its fields."""
    of_protocol = {flag.field: flag for flag in flags_of_run().values() if flag.owner is Protocol}
    return of_protocol | {flag.flag.replace("-", "_"): flag for flag in flags_of_run().values()}


@accept_flags
@dataclass(frozen=True)
class RunSpec:
    """Says what a run measures, and where. Raises UserError, in one line, for values that cannot be.

    The names of the flags of `run` are taken as well, with underscores: ratio=0.2 is ratios=[0.2], windows=4 is
    protocol={"windows": 4}, heal="lora" is healing=Recipe("lora").

    methods              as `--methods` takes them, in one text or a list; "all" is every method that takes a ratio
    model                of several, in one text or a list, each has every cell, and its own dense one
    ratios               shares of the parameters to remove, each in [0, 1), of those that `ratio_of` counts
    budget               shares of one quantity of the dense model that may stay, in place of ratios: "macs=0.8,0.6"
    latency_table        the file by which budgets of latency are counted
    settings             parameters of methods, several values of which sweep: {"laco.C": [2, 3]} or "laco.C=2,3"
    healing              how every pruned model is trained a little and measured once more; None: not at all
    profile, protocol    how cells are measured: a name of PROFILES, and the fields of Protocol that differ from it;
                         several values of SWEPT sweep
    name                 of the run's folder between date and model, by default its methods
    record_out_of_reach  whether a ratio that a method cannot reach is an outcome of its cell, with the status
                         `out_of_reach`; otherwise it ends the run before any work. Of methods that `all` names it
                         always is an outcome

    The other fields are described by the help of their flags (`python -m bench run --help`).
    """

    methods: str | Sequence[str] = what_option(MISSING, "as in laco,slicegpt or laco:C=3,T=0.7; all for all", "LIST")
    model: str | Sequence[str] = what_option(
        "smollm2-135m", "see `list models`; a folder, .gguf file or hub name", "LIST"
    )
    ratios: Sequence[float] = what_option(
        (), "share of the parameters to remove, as in 0.1,0.3", "LIST", flag="ratio", right_value=SHARES
    )
    ratio_of: Counted = what_option(
        "all", "what a ratio is a share of: all parameters, without embeddings, or those of layers"
    )
    budget: Sequence[str] = what_option((), BUDGET, "NAME=LIST")
    latency_table: Path | None = what_option(None, TABLE, "FILE")
    settings: Sequence[str] | Mapping[str, Any] = what_option(
        (), "as in laco.T=0.7; laco.C=2,3,4 sweeps", "METHOD.NAME=LIST", flag="set", repeated=True
    )
    max_cells: int = what_option(200, "of a sweep; more are refused", "N", least=1)
    match: Literal["layers", "exact"] = what_option("layers", "round the ratio to whole layers")
    compensate: str | None = what_option(None, "of `list methods`, behind all of --methods: laco is laco+NAME", "NAME")
    uniform: bool = what_option(False, "cut widths alike in all layers, for stock transformers")
    search_minutes: float | None = what_option(None, SEARCH, "N", least=0.01)
    trust_remote_code: bool = what_option(False, "run code that comes with a model or with a task's data")
    plugins: Sequence[str] = what_option((), "a Python file with methods", "FILE", flag="plugin", repeated=True)
    then: Sequence[str] = what_option((), THEN, "METHOD:ratio=R[,NAME=VALUE]", repeated=True)
    healing: Recipe | None = None
    profile: str = option(
        "quick", f"{', '.join(PROFILES)}; by default {{default}}, see `list profiles`", group="measure"
    )
    protocol: Mapping[str, Any] = field(default_factory=dict)
    calibration_tokens: Sequence[str] = option((), CALIBRATION_TOKENS, "LIST", group="measure")
    task_data: Sequence[str] | Mapping[str, Any] = option((), TASK_DATA, "TASK=PATH", group="measure", repeated=True)
    include_path: Path | None = option(None, INCLUDE, "DIR", group="measure")
    confirm_run_unsafe_code: bool = option(False, UNSAFE, group="measure")
    endpoint: str = option("", SERVER, "URL", group="measure")
    endpoint_model: str = option("", "the model's name there; by default the only one", "NAME", group="measure")
    endpoint_requests: int = option(8, "that wait there at once, by default {default}", "N", group="measure", least=1)
    endpoint_seconds: int = option(
        300, "without a word after which it counts as hanging, by default {default}", "N", group="measure", least=1
    )
    vllm_python: str = option("", VLLM_PYTHON, "PATH", group="measure")
    vllm_args: str = option("", "of vLLM, as in --vllm-args=--enforce-eager", "WORDS", group="measure")
    device: str = where_option("auto", "auto, cpu, cuda or cuda:N")
    dtype: str = where_option("auto", DTYPE)
    threads: int | Literal["auto"] | None = where_option(
        None, THREADS, "N", least=1, right_value="auto or a positive number"
    )
    seeds: Sequence[int] = where_option((0,), "of all draws; of several, tables show the mean", "LIST", flag="seed")
    out: Path | None = where_option(None, "by default results/<date>-<methods>-<model>", "DIR")
    isolate: bool | None = where_option(None, ISOLATE)
    memory: float | Literal["auto"] = where_option("auto", MEMORY, "GIB", least=0.01, right_value="auto or GiB")
    device_memory: float | Literal["auto"] = where_option("auto", CARD, "GIB", least=0.01, right_value="auto or GiB")
    offload: Path | None = where_option(None, OFFLOAD, "DIR")
    cell_memory_mib: float = where_option(
        0.0, "end a cell that takes more, files left out", "MIB", least=0, right_value=LIMIT
    )
    cell_minutes: float = where_option(0.0, "end a cell that takes longer", "N", least=0, right_value=LIMIT)
    retry_failed: bool = where_option(False, "run cells again whose record is a failure")
    save_models: bool = where_option(False, "save pruned models, measure them as they load again")
    engine: Literal["local", "ray", "slurm"] = engine_option("local", ENGINE)
    slots: int | Literal["auto"] | None = engine_option(
        None, SLOTS, "N", least=1, right_value="auto or a positive number"
    )
    gpus_per_cell: int = engine_option(1, GPUS, "N", least=1)
    accelerator: str | None = engine_option(None, "the kind of GPU that cells run on, as the cluster names it", "NAME")
    ray_address: str | None = engine_option(
        None, "the cluster, as HOST:PORT; auto is the one that runs here", "ADDRESS"
    )
    partition: str | None = engine_option(None, "of Slurm", "NAME")
    slurm_options: Sequence[str] = engine_option(
        (), "of sbatch, as in time=120", "NAME=VALUE", flag="slurm", repeated=True
    )
    name: str = ""
    record_out_of_reach: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratios", parse_ratios(self.ratios))
        check_fields(self)
        object.__setattr__(self, "seeds", tuple(dict.fromkeys(self.seeds)))
        self._refuse_seeds()
        self._refuse_places()
        if self.healing:
            object.__setattr__(self, "healing", replace(self.healing, learning_rate=self.healing.highest))
        names = [attribute.name for attribute in fields(Protocol)]
        for name in self.protocol:
            if name not in names:
                refuse_name("a protocol has no", name, names, f"it has {', '.join(names)}")
        if not self.models:
            raise UserError("--model is given nothing; name one or several, as in smollm2-135m,gemma3-270m")
        self._refuse_two_amounts()
        self._refuse_unknown_methods()
        self.protocols()
        self._refuse_server()

    def _refuse_seeds(self) -> None:
        """Raise UserError where there is no seed, or one outside the limits."""
        if not self.seeds:
            raise UserError("--seed is given nothing; name one value or several, as in 1,2")
        if not 0 <= min(self.seeds) <= max(self.seeds) <= LARGEST_SEED:
            raise UserError(f"--seed lies between 0 and {LARGEST_SEED}; got {','.join(map(str, self.seeds))}")

    def _refuse_places(self) -> None:
        """Raise UserError for limits, threads and slots that the engine or the missing process cannot give."""
        for limit in ("cell_memory_mib", "cell_minutes"):
            if getattr(self, limit) and self.isolate is False:
                raise UserError(f"--{limit.replace('_', '-')} needs a process of its own; leave --no-isolate out")
        if self.threads == "auto" and self.engine != "local":
            raise UserError(
                f"--threads auto looks at the cores of this machine; with --engine {self.engine} give a number"
            )
        if self.offload and self.engine != "local" and not self.offload.is_absolute():
            raise UserError(f"--offload is of the machines that measure; give the whole path, not {self.offload}")
        if isinstance(self.slots, int) and self.slots > MOST_SLOTS:
            raise UserError(f"--slots is at most {MOST_SLOTS} cells at once; got {self.slots}")
        if self.slots not in (None, 1) and self.isolate is False:
            raise UserError("--slots needs a process for each cell that runs; leave --no-isolate out")

    @property
    def models(self) -> tuple[str, ...]:
        """Return the models that are pruned, each once. The name of a file or folder may hold commas."""
        is_path = isinstance(self.model, str) and self.model != "" and Path(self.model).exists()
        return (str(self.model),) if is_path else tuple(dict.fromkeys(split_list(self.model)))

    @property
    def amounts(self) -> tuple[Sequence[float], str]:
        """Return the shares to remove, and their quantity: that of --ratio-of, or of the budget."""
        return parse_budget(self.budget) if self.budget else (self.ratios, self.ratio_of)

    def _refuse_two_amounts(self) -> None:
        """Raise UserError for a budget beside a ratio or --then, and for a latency table without its budget."""
        if self.latency_table and self.amounts[1] != "latency":
            raise UserError("--latency-table tells --budget latency, which is not asked for; leave it out")
        if not self.budget:
            return
        for flag, given in {"--ratio": self.ratios, "--ratio-of": self.ratio_of != "all"}.items():
            if given:
                raise UserError(f"--budget and {flag} both say how much goes; leave one of them out")
        _, of = self.amounts
        if self.then:
            raise UserError(f"--then counts parameters, and --budget counts {of}; give --ratio in its place")

    def _refuse_unknown_methods(self) -> None:
        """Raise UserError for an unknown method; with plugins any name passes, since they are loaded later."""
        from methods.cards import cards_of_compensations, cards_of_methods

        names = {card.name for card in cards_of_methods()} | base.REGISTRY.keys()
        compensations = {"none", *(card.name for card in cards_of_compensations())}
        for choice in self.method_choices():
            method, plus, compensation = choice.method.partition("+")
            if (method in names and (not plus or compensation in compensations)) or self.plugins:
                continue
            if (
                method not in names and not registry.installed_methods()
            ):  # so that torch need not be imported to refuse it
                raise UserError(
                    f"no method is called {method!r}{hint_of_similar_name(method, names)}; known: "
                    f"{', '.join(sorted(names))}"
                )
            try:
                registry.make(choice.method)
            except ValueError as error:
                raise UserError(str(error)) from None

    def _refuse_server(self) -> None:
        """Raise UserError for a server without its address, and for cells that are not of its one dense model."""
        is_served = self.protocol.get("scorer") == ENDPOINT
        if bool(self.vllm_python) != (self.protocol.get("scorer") == VLLM):
            raise UserError("--scorer vllm is that of --vllm-python, as in /opt/vllm/bin/python; give both of them")
        if self.engine != "local" and (is_served or self.vllm_python):
            raise UserError(f"--scorer {self.protocol['scorer']} is asked by this machine; leave --engine out")
        if bool(self.endpoint) != is_served:
            missing = "--endpoint URL says which" if is_served else "add --scorer endpoint"
            raise UserError(f"--scorer endpoint is the server at --endpoint, and one of them is missing: {missing}")
        if not is_served:
            return
        parse_url(self.endpoint)
        if len(self.models) > 1 or [choice.method for choice in self.method_choices()] != ["dense"]:
            raise UserError(
                "--scorer endpoint scores the one model that stands there; give --methods dense, and as --model its "
                "folder or name, with the weights that the server has"
            )

    @property
    def server(self) -> ServerAddress | VllmPython | None:
        """Return what scores; None where this process does."""
        if self.vllm_python:
            return VllmPython(self.vllm_python, self.vllm_args)
        if not self.endpoint:
            return None
        how = self.endpoint_model, self.endpoint_requests, self.endpoint_seconds
        return ServerAddress(parse_url(self.endpoint), *how)

    @property
    def fixed_threads(self) -> int | None:
        """Return the threads of each cell where the user gave a number; else None."""
        return None if self.threads == "auto" else self.threads

    @property
    def memory_gib(self) -> float | None:
        """Return the GiB of the host's memory that a cell may take; None: all that there is."""
        return None if self.memory == "auto" else self.memory

    @property
    def device_memory_gib(self) -> float | None:
        """Return the GiB of its GPU's memory that a cell may take; None: all that the GPU has."""
        return None if self.device_memory == "auto" else self.device_memory

    @property
    def limits(self) -> dict[str, float]:
        """Return the limits of each cell's process, by the names of bench.system.worker.Limits; {} without any."""
        limits = {"memory": self.cell_memory_mib * 2**20, "seconds": self.cell_minutes * 60}
        return {name: limit for name, limit in limits.items() if limit}

    def method_choices(self) -> list[MethodChoice]:
        """Return the methods of the run, with the compensation that `compensate` puts behind them.

        It goes behind every method but the dense one and those that name a compensation themselves.
        """
        choices = []
        for method, given, by_name in parse_methods(self.methods):
            is_plain = self.compensate is not None and method != "dense" and "+" not in method
            name = f"{method}+{self.compensate}" if is_plain else method
            choices.append(MethodChoice(name, given, by_name and not self.record_out_of_reach))
        return choices

    def protocols(self) -> list[tuple[Protocol, int]]:
        """Return (protocol, seed) for each combination of the calibrations and the seeds."""
        changes = self._protocol_in_sequences()
        if "window" in changes:
            changes.setdefault("stride", changes["window"])
        if self.save_models:
            changes.setdefault("save_dtype", "auto")
        if changes.get("scorer") in (ENDPOINT, VLLM):  # nothing is measured in this process
            changes = {"speed_rounds": 0, "checks": False} | changes
        if changes.get("scorer") == VLLM:  # which reads each model from a folder
            changes.setdefault("save_dtype", "auto")
        swept = {name: values_of_field(name, changes.pop(name)) for name in SWEPT if name in changes}
        return [
            (protocol_of_profile(self.profile, **changes, **dict(zip(swept, values, strict=True))), seed)
            for *values, seed in itertools.product(*swept.values(), self.seeds)
        ]

    def _protocol_in_sequences(self) -> dict[str, Any]:
        """Return the changes of the protocol, with `calibration_tokens` as numbers of sequences.

        Raises UserError for tokens that are no whole number of sequences, and where both are given.
        """
        changes = dict(self.protocol)
        if not self.calibration_tokens:
            return changes
        if "calibration_sequences" in changes:
            raise UserError("--calibration-tokens and --calibration-sequences say the same; give one of them")
        given_length = changes.get("calibration_length")
        lengths = () if given_length is None else values_of_field("calibration_length", given_length)
        if len(lengths) > 1:
            raise UserError("--calibration-tokens takes one --calibration-length, since it is cut into such sequences")
        named = {"calibration_length": lengths[0]} if lengths else {}
        length = protocol_of_profile(self.profile, **named).calibration_length
        sequences = []
        for word in self.calibration_tokens:
            tokens = parse_tokens(word)
            if tokens % length or not tokens:
                raise UserError(
                    f"--calibration-tokens are whole sequences of {length} tokens (--calibration-length); {word} is "
                    f"{tokens / length:g} of them"
                )
            sequences.append(tokens // length)
        return changes | {"calibration_sequences": sequences}

    def folder(self) -> Path:
        """Return the folder of the run's results."""
        what = self.name or "-".join(dict.fromkeys(choice.method for choice in self.method_choices()))
        what = f"speed-{what}" if self.profile == "speed" else what
        models = "-".join(model.rstrip("/").rsplit("/", 1)[-1] for model in self.models)
        return self.out or Path("results") / f"{time.strftime('%Y-%m-%d')}-{to_slug(what)}-{to_slug(models)}"


def parse_tokens(word: str) -> int:
    """Return the number of tokens that a word says: '64k' is 65,536. Raises UserError for any other word."""
    number = word.lower().removesuffix("k")
    if not number.isascii() or not number.isdecimal():
        raise UserError(f"--calibration-tokens are numbers, or thousands of 1,024 as in 64k; got {word!r}")
    return int(number) * (1024 if number != word else 1)


def values_of_field(name: str, given: Any) -> tuple[Any, ...]:
    """Return the values of a field that sweeps. Raises UserError for none, and for shares of no mixture."""
    values = split_calibrations(given) if name == "calibration" else split_list(given)
    if not values:
        raise UserError(f"--{name.replace('_', '-')} is given nothing; name one value or several, as in 1,2")
    return values


@functools.cache
def flags_of_run() -> dict[str, Option]:
    """Return the flags of `run` by their names; spec files have the same names as keys."""
    flags = list[Option]()
    for flag in options_of_class(RunSpec):
        flags.append(flag)
        flags += {"then": options_of_class(Recipe), "profile": options_of_class(Protocol)}.get(flag.field, [])
    flags.sort(key=lambda flag: flag.flag == "save-dtype")  # behind save-models
    return {flag.flag: flag for flag in flags}


def spec_from_flags(given: Mapping[str, Any], **more: Any) -> RunSpec:
    """Return the spec of flags, {flag: value}; `more` are fields that have no flag.

    Raises UserError for values that cannot be.
    """
    options = flags_of_run()
    fields_first = {name: name if options[name].owner is Recipe else options[name].field for name in given}
    return RunSpec(**{fields_first[name].replace("-", "_"): value for name, value in given.items()}, **more)


SHIPPED = Path(__file__).parent.parent / "specs"
OWN = ("description", "base")  # keys that are no flags
BY_HAND = ("trust-remote-code", programs.FLAG)  # what a file that others wrote cannot switch on


def shipped_specs() -> dict[str, str]:
    """Return the description of each spec that comes with the suite, by its name."""
    return {name: str(_read(path).get("description", "")) for name, path in _files_of_specs().items()}


def load_spec(name: str, given: Mapping[str, Any]) -> RunSpec:
    """Return the spec of a name that comes with the suite, or of a file; `given` are flags that win over it.

    A ratio that a method of the file cannot reach is an outcome of its cell. Raises UserError for a file that cannot be
    read, with the keys or names that are near, and for values that `run` would not take.
    """
    path = _find(name)
    values = _over(_table(path, ()), given)
    return spec_from_flags(values, name=path.stem, record_out_of_reach="methods" not in given)


def _find(name: str, beside: Path | None = None) -> Path:
    """Return the file of a spec; that of a base may lie beside the spec that names it."""
    path = Path(name) if beside is None else beside.parent / name
    if path.is_file():
        return path
    files = _files_of_specs()
    if name in files:
        return files[name]
    raise UserError(
        f"no spec {name!r}{hint_of_similar_name(name, files)}; give a YAML file, or one of {', '.join(files)}"
    )


def _files_of_specs() -> dict[str, Path]:
    """Return the files that come with the suite, by name: its own studies, and those of papers."""
    return {path.stem: path for path in sorted(SHIPPED.rglob("*.yaml"), key=lambda path: path.stem)}


def _read(path: Path) -> dict[str, Any]:
    plain = read_yaml(path, str(path))
    if not isinstance(plain, dict):
        raise UserError(f"{path} is no table of the flags of `run`, as in `methods: [laco, slicegpt]`")
    return plain


def read_yaml(path: Path, where: str) -> Any:
    """Return the values of a YAML file. Raises UserError for any other file; its message begins with `where`."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a key that a table has twice; YAML's own loader would take the last."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if twice := [key for at, key in enumerate(keys) if key in keys[:at]]:
                raise ValueError(f"the table at line {node.start_mark.line + 1} names {twice[0]} twice; keep one")
            table: dict[Any, Any] = super().construct_mapping(node, deep)
            return table

    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader)
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{where} is not YAML: {error}") from None


def _table(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """Return {flag: value} of a spec, over those of its base. Raises UserError for a wrong key or value."""
    table, below, values = _read(path), dict[str, Any](), dict[str, Any]()
    if "base" in table:
        under = _find(str(table["base"]), path)
        if under in (path, *above):
            raise UserError(f"{path}: base leads back to {under}")
        below = _table(under, (path, *above))
    for key, value in table.items():
        flag = str(key).replace("_", "-")
        if flag in OWN:
            continue
        if flag in BY_HAND:
            raise UserError(f"{path}: {key} is not taken from a file; give --{flag} on the command line")
        if flag not in flags_of_run():
            refuse_name(f"{path}: `run` has no flag", str(key), [*sorted(flags_of_run()), *OWN], HELP)
        if flag in values:
            raise UserError(f"{path} names {flag} twice, as {key} and otherwise; keep one")
        try:
            values[flag], name = _value(str(key), flag, value), flags_of_run()[flag].field
            for single in values_of_field(name, values[flag]) if name in SWEPT else [values[flag]]:
                flags_of_run()[flag].convert(single)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    return _over(below, values)


def _value(where: str, flag: str, value: Any) -> Any:
    """Return the value that a key gives its flag. Raises UserError for no value, and for a list or table in another.

    A switch is converted here already, since some are turned round.
    """
    option = flags_of_run()[flag]
    if option.kind is bool:
        switch = option.convert(value)  # as 1 or "on" are
        return not switch if option.default is True else switch  # of no-checks and first-windows, which switch off
    values = list(value.values()) if option.repeated and isinstance(value, Mapping) else [value]
    if value is None:
        raise UserError(f"{where} has no value")
    for entry in values:
        for each in entry if isinstance(entry, list) else [entry]:
            if isinstance(each, list | Mapping):
                raise UserError(f"{where} is a value or a list of values; got {each!r}")
        if entry == []:
            raise UserError(f"{where} is an empty list")
    return value


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of flags `below` with those `above` in their place, or behind where a flag is repeated."""
    both = {flag for flag in below if flag in above and flags_of_run()[flag].repeated}
    return {**below, **above} | {flag: (*split_repeated(below[flag]), *split_repeated(above[flag])) for flag in both}
