"""Defines `Cell`: everything of one measurement that can change a number, with the key of its record."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Self

import methods
from bench.plan.kinds import Count, Meaning, Name, OneOf, Pair, Ratio, Scalar, Sha256, Whole, to_plain
from bench.plan.protocol import Protocol, Recipe
from methods.counted import QUANTITIES

FIRST_DEFAULTS = {"calibration_sequences": 16}  # of fields that have another default since: no key changes by that


@dataclass(frozen=True)
class Stage:
    """Says what was done to a model before a cell that goes on from others."""

    method: Annotated[Name, Meaning("name of the method, with +NAME of a compensation")]
    parameters: Annotated[dict[str, Any], Meaning("of the method by name, defaults too", "methods")] = field(hash=False)
    ratio: Annotated[
        Ratio | None, Meaning("that was asked for, of the dense model; null where parameters alone decide")
    ]
    given: Annotated[tuple[str, ...], Meaning("names of the parameters that were given, which are in the label")] = ()
    healing: Annotated[Recipe | None, Meaning("how it was trained; null or absent: it was not", null=True)] = None

    @property
    def label(self) -> str:
        """Return the label of this stage alone: its method and the parameters that were given, as in 'laco:C=3'."""
        return _label_at(self, None)

    @property
    def is_draw(self) -> bool:
        """Say whether this is one of several draws of a random method, whose seeds are drawn since none was given."""
        return "draws" in self.parameters and "seed" not in self.given

    @property
    def without_draw(self) -> Self:
        """Return the stage, without the value of its seed where it is one of several draws."""
        return replace(self, parameters=self.parameters | {"seed": None}) if self.is_draw else self

    def refuse_misfit(self) -> None:
        """Raise ValueError for a name that the label needs and no parameter has."""
        if missing := [name for name in self.given or () if name not in self.parameters]:
            raise ValueError(f"gives {missing[0]!r}, and its parameters have none of that name")


@dataclass(frozen=True)
class TaskInput:
    """Says which documents of a task are asked."""

    SOURCE: ClassVar = "bench.evaluation.tasks"

    version: Annotated[Scalar, Meaning("of lm-eval's definition of the task")]
    sha256: Annotated[Sha256, Meaning("of the documents and of how they are asked")]


@dataclass(frozen=True)
class TimedOn:
    """Says on what a timed cell is timed."""

    SOURCE: ClassVar = "bench.runs.inputs"

    processor: Annotated[str | None, Meaning("name of the CPU or GPU")]
    threads: Annotated[Count, Meaning("of torch")]
    omp_wait_policy: Annotated[str | None, Meaning("whether threads spin while they wait")] = None
    gomp_spincount: Annotated[str | None, Meaning("for how many turns")] = None


@dataclass(frozen=True)
class HealingInput:
    """Says what the answer of a healed cell stands on beside the pruned model."""

    SOURCE: ClassVar = "bench.runs.inputs"

    text_sha256: Annotated[Sha256, Meaning("of the tokens")]
    revision: Annotated[str, Meaning("of the code that trains")]
    peft: Annotated[str | None, Meaning("its version, for LoRA")] = None
    teacher_sha256: Annotated[Sha256 | None, Meaning("of the weight files of a teacher, where there is one")] = None


@dataclass(frozen=True)
class ScoringEngine:
    """Says what scored a cell in place of this suite."""

    SOURCE: ClassVar = "bench.inference.endpoint"

    name: Annotated[str, Meaning("of the inference engine, as its server says")]
    version: Annotated[str, Meaning("that its server reports; empty where it reports none")]
    way: Annotated[str, Meaning("how it gives log-probabilities of a prompt: prompt_logprobs or echo")]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Says what the answer stands on beyond what was asked for, all of it a part of the cell's key."""

    SOURCE: ClassVar = "bench.runs.inputs"

    weights_sha256: Annotated[Sha256, Meaning("of the model's weight files")]
    config_sha256: Annotated[
        Sha256 | None,
        Meaning(
            "of its configuration files, and of code that comes with it where that ran; absent for a GGUF file, whose "
            "weights' hash covers it"
        ),
    ] = None
    tokenizer_sha256: Annotated[Sha256, Meaning("of the tokenizer's vocabulary, rules and special tokens")]
    chat_template_sha256: Annotated[
        Sha256 | None, Meaning("of the tokenizer's chat template and of a chat in it; absent where prompts are no chat")
    ] = None
    calibration_sha256: Annotated[Sha256, Meaning("of the calibration tokens and their mask")]
    texts: Annotated[dict[str, Sha256], Meaning("by name, of the tokens of the windows and of what is scored of them")]
    tasks: Annotated[dict[str, TaskInput], Meaning("by name")]
    revision: Annotated[
        str,
        Meaning(
            "of the method and of its compensation, as in 1 or 1+1; behind it the sha256 of a plugin, of methods that "
            "differ from their commit, or of earlier code that may have decided otherwise, whose revision is 0"
        ),
    ]
    versions: Annotated[dict[str, str], Meaning("of packages, by name")]
    timed_on: Annotated[TimedOn | None, Meaning("of a timed cell alone")] = None
    healing: Annotated[HealingInput | None, Meaning("of a healed cell alone")] = None
    parent: Annotated[
        str | None, Meaning("key of the cell whose model is pruned further, of a cell that goes on from others alone")
    ] = None
    scored_by: Annotated[ScoringEngine | None, Meaning("of a cell that a server scored alone")] = None


@dataclass(frozen=True)
class LatencyParts:
    """Says how long a generated token takes in each part of a layer, by its size."""

    SOURCE: ClassVar = "bench.speed.latency"

    attention: Annotated[list[Pair], Meaning("[parameters, ms] of an attention, rising")]
    mlp: Annotated[list[Pair], Meaning("[parameters, ms] of an MLP, rising")]


@dataclass(frozen=True)
class LatencyTable:
    """Holds the table by which a budget of latency is told."""

    SOURCE: ClassVar = "bench.speed.latency"

    parts: Annotated[LatencyParts, Meaning("of a layer")]
    rest: Annotated[float, Meaning("milliseconds of all that is no layer")]
    about: Annotated[
        dict[str, Any], Meaning("how it was measured: model, machine, rounds, and each model that was timed")
    ]


@dataclass(frozen=True, kw_only=True)
class Cell(Stage):
    """Says what was asked for; the file's name ends in a hash of it."""

    model: Annotated[Name, Meaning("name, folder, file or hub address of the dense model")]
    match: Annotated[
        str,
        OneOf(("layers", "exact")),
        Meaning("layers: the ratio was rounded to whole layers; exact: it was not"),
    ]
    ratio_of: Annotated[
        Name, Meaning("what the ratio is a share of: all, decoder, layers, macs, kv, bytes, latency")
    ] = "all"
    seed: Annotated[Whole, Meaning("of the calibration text, of the documents of tasks, and of what a method draws")]
    device: Annotated[Name, Meaning("cpu, cuda or one of several, as torch calls it")]
    dtype: Annotated[Name, Meaning("in which the model is loaded, as in float32")]
    protocol: Annotated[Protocol, Meaning("how it is measured")]
    trust_remote_code: Annotated[bool, Meaning("whether code that comes with the model may run")] = False
    inputs: Annotated[Inputs | None, Meaning("what the answer stands on, filled in by the run")] = field(
        default=None, hash=False
    )
    earlier: Annotated[tuple[Stage, ...], Meaning("what was done to the model before, the first one first")] = ()
    latency: Annotated[
        LatencyTable | None, Meaning("the table by which a budget of latency is told; absent for any other")
    ] = field(default=None, hash=False)

    @cached_property
    def label(self) -> str:
        """Return the label: 'laco:C=3', 'laco, healed', or behind earlier stages 'laco at 0.25, healed, then laco'."""
        return ", then ".join([*(_label_at(stage, stage.ratio) for stage in self.earlier), _label_at(self, None)])

    @property
    def title(self) -> str:
        """Return the title: 'laco at 0.3'."""
        return f"{self.label}{'' if self.ratio is None else f' at {words_of_ratio(self.ratio, self.ratio_of)}'}"

    @cached_property
    def question(self) -> str:
        """Return the question as one text, without first defaults and inputs: equal for cells that ask the same."""
        return json.dumps(_changed_fields(self), sort_keys=True)

    @cached_property
    def key(self) -> str:
        """Return a readable file name that ends in a hash of the question and the inputs.

        A field or parameter that a later version adds changes no key, as long as it has its default; nor does a
        default that changes, which FIRST_DEFAULTS remembers.
        """
        hashed = [self.question, to_plain(self.inputs) or {}]
        digest = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:8]
        ratio = "fixed" if self.ratio is None else f"{self.ratio:g}"
        amount = to_slug(words_of_ratio(self.ratio, self.ratio_of)) if self.ratio_of in QUANTITIES else ratio
        return "--".join((to_slug(self.label), amount, digest))

    @property
    def filled_inputs(self) -> Inputs:
        """Return the inputs of a cell of a run, which has filled them in."""
        assert self.inputs is not None, f"{self.title} has no inputs so far"
        return self.inputs

    @property
    def parent_key(self) -> str | None:
        """Return the key of the cell that this one goes on from; None where it goes on from none."""
        return self.inputs.parent if self.inputs else None

    @property
    def stage(self) -> Stage:
        """Return the cell as a stage of the cells that go on from it."""
        return Stage(self.method, self.parameters, self.ratio, self.given, self.healing)

    @property
    def stages(self) -> list[Stage]:
        """Return the earlier stages and the cell itself, the first one first."""
        return [*self.earlier, self]

    @property
    def parent(self) -> Cell:
        """Return the parent of a chained cell, without inputs."""
        *earlier, last = self.earlier
        stage = {name: getattr(last, name) for name in ("method", "parameters", "ratio", "given", "healing")}
        return replace(self, **stage, earlier=tuple(earlier), inputs=None)

    @property
    def ancestors(self) -> list[Cell]:
        """Return all cells before a chained one, the first in front; none for any other."""
        return [*self.parent.ancestors, self.parent] if self.earlier else []

    @property
    def is_timed(self) -> bool:
        """Say whether the cell is timed: of several draws only the first, since all remove the same amount."""
        first = (None, seed_of_first_draw(self.seed))
        later = any(stage.is_draw and stage.parameters.get("seed") not in first for stage in self.stages)
        return self.protocol.speed_rounds > 0 and not later

    @property
    def draw(self) -> Any:
        """Return the seed of the random choice; as text where several stages have their own; None without a choice."""
        seeds = [stage.parameters["seed"] for stage in self.stages if stage.is_draw]
        return ", ".join(map(str, seeds)) if len(set(seeds)) > 1 else next(iter(seeds), None)

    @property
    def without_draws(self) -> Cell:
        """Return the cell without the draws of random methods, its own and those of earlier stages."""
        return replace(self.without_draw, earlier=tuple(stage.without_draw for stage in self.earlier))

    def refuse_unmeasurable(self) -> None:
        """Raise UserError where this version would not measure so, as a record of another version may say."""
        replace(self.protocol)  # which checks its fields
        for stage in self.stages:
            if stage.healing:
                replace(stage.healing)

    def plain(self) -> dict[str, Any]:
        """Return every field as a record holds it; optional fields without a value are left out."""
        plain: dict[str, Any] = to_plain(self)
        return plain


def _changed_fields(part: Stage | Protocol | Recipe) -> dict[str, Any]:
    """Return the fields of a cell, or of a part of one, that differ from their defaults, as plain values; no inputs."""
    changed: dict[str, Any] = {}
    if isinstance(part, Protocol) and not part.windows:
        part = replace(part, windows_drawn=True)  # a whole text is the same windows, drawn or in a row
    for attribute in fields(part):
        value = getattr(part, attribute.name)
        if attribute.name == "parameters":
            changed[attribute.name] = methods.find_changed_parameters(part.method, value)  # type: ignore[union-attr]
        elif attribute.name == "earlier":
            changed |= {attribute.name: [_changed_fields(stage) for stage in value]} if value else {}
        elif attribute.name != "inputs" and value != _unkeyed_value(attribute):
            is_part = isinstance(value, Protocol | Recipe)
            changed[attribute.name] = _changed_fields(value) if is_part else to_plain(value)
    return changed


def _unkeyed_value(attribute: Field[Any]) -> Any:
    """Return the value of a field that no key has: the first default that it had; MISSING where it has none."""
    if attribute.name in FIRST_DEFAULTS:
        return FIRST_DEFAULTS[attribute.name]
    return attribute.default if attribute.default_factory is MISSING else attribute.default_factory()


def to_slug(text: str) -> str:
    """Return a text as a piece of a file name: letters, digits, dot, dash and underscore only."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:60] or "unnamed"


def seed_of_first_draw(seed: int) -> int:
    """Return the seed of a random method's first draw, far enough from other seeds' that no draw is made twice."""
    return 1000 * seed


def _label_at(stage: Stage, ratio: float | None) -> str:
    """Return the label of a stage alone, with its ratio where one is given: 'laco:C=3 at 0.25, healed'."""
    given = ",".join(f"{name}={stage.parameters[name]}" for name in stage.given)
    method = f"{stage.method}:{given}" if given else stage.method
    where = "" if ratio is None else f" at {ratio:g}"
    return f"{method}{where}{', healed' if stage.healing else ''}"


def words_of_ratio(ratio: float | None, of: str = "all") -> str:
    """Return a requested ratio in words: '0.3', '0.3 of the decoder', or as a budget 'macs=0.8'; empty for none."""
    if ratio is None:
        return ""
    return f"{of}={1 - ratio:g}" if of in QUANTITIES else f"{ratio:g}" + ("" if of == "all" else f" of the {of}")


def words_of_amount(ratio: float | None, of: str = "all") -> str:
    """Return a ratio or a budget with the word for it: 'ratio 0.3', 'budget macs=0.8'; empty for none."""
    return f"{'budget' if of in QUANTITIES else 'ratio'} {words_of_ratio(ratio, of)}" if ratio is not None else ""
