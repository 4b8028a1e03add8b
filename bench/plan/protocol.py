"""Says how cells are measured and healed, and how exported models are served: `Protocol`, `Recipe`, `ServedProtocol`.

`Recipe` says how a pruned model is healed, the same for every method of a run. Text comes from the calibration
documents alone, and so do the held-out sequences of the learning curve: what models are measured on is not touched. The
learning rate is warmed up over a twentieth of the steps and then lowered to zero along a cosine.

`Protocol` says how the cells of a run are measured. A profile is a named set of its values.

`SimilarityProtocol` says what the command `similarity` measures.

`ServedProtocol` says how exported models are served, scored and timed by an inference engine.

Letters: N = training sequences, H = held-out sequences, T = tokens of a sequence, B = sequences of a step.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args
from urllib.parse import quote

from annotated_types import MinLen

from bench.data.chat import Chat
from bench.data.mixture import rows_of_texts
from bench.data.skills import SKILLS
from bench.data.task_sources import QUICK_TASKS
from bench.plan.address import ENDPOINT
from bench.plan.fields import check_fields, option
from bench.plan.kinds import (
    Amount,
    Count,
    Meaning,
    Mebibytes,
    Name,
    Positive,
    Tokens,
    Whole,
    WholeSeconds,
)
from bench.plan.load import LoadProtocol
from methods.errors import UserError, first_line_of

if TYPE_CHECKING:
    import torch


KINDS = {"lora": 1e-3, "full": 1e-4, "norms": 1e-3, "beside": 1e-4}  # and their usual learning rates
RATES = ", ".join(f"{rate:g} for {kind}" for kind, rate in KINDS.items())
PREDICTED = "two tokens or more, since the first is not predicted"
SMALLEST = math.ulp(0.0)  # the number next to 0
WARM_UP = 1 / 20  # share of the steps

heal_option = partial(option, group="heal")


@dataclass(frozen=True)
class Recipe:
    """Says how a model is trained after pruning.

    Tokens are rounded down to whole sequences; tokens / passes of them are distinct. At each point of the learning
    curve a checkpoint is written. Raises UserError for values that cannot be.
    """

    PREFIX: ClassVar = "heal-"  # of its flags
    WHOLE: ClassVar = True

    kind: Annotated[
        Literal["lora", "full", "norms", "beside"],
        Meaning("lora: adapters; full: every weight; norms: of norms alone; beside: of the layers beside a cut alone"),
    ] = heal_option("lora", "measure every method as pruned, and healed; by default not", flag="heal")
    text: Annotated[Name, Meaning("whose calibration half is trained on")] = heal_option(
        "wiki", "whose calibration half is trained on, by default {default}", "TEXT"
    )
    tokens: Annotated[Tokens, Meaning("that are trained on, repeats of a pass counted")] = heal_option(
        100_000, "trained on, by default {default:,}", "N", least=1
    )
    loss: Annotated[Literal["next-token", "kl"], Meaning("next-token, or kl from the dense model")] = heal_option(
        "next-token", "kl: from the dense model; by default {default}"
    )
    passes: Annotated[Positive, Meaning("over the text")] = heal_option(
        1, "over the text, by default {default}", "N", least=1
    )
    learning_rate: Annotated[
        Amount | None, Meaning("the highest; null in `cell` where the usual one of the kind was left")
    ] = heal_option(None, f"the highest, by default {RATES}", "RATE", least=SMALLEST, right_value="a positive number")
    batch: Annotated[Positive, Meaning("sequences of a step")] = heal_option(
        8, "sequences of a step, by default {default}", "N", least=1
    )
    length: Annotated[Tokens, Meaning("of a sequence")] = heal_option(
        256, "of a sequence, by default {default}", "TOKENS", least=2, right_value=PREDICTED
    )
    rank: Annotated[Positive, Meaning("of the adapters")] = heal_option(
        8, "of LoRA's matrices, by default {default}", "N", least=1
    )
    top: Annotated[
        Count, Meaning("likeliest tokens of the dense model that kl looks at, kept on disk; 0: all", later=True)
    ] = heal_option(0, "with kl: the likeliest tokens, kept on disk; the rest are one; by default all", "K", least=0)
    temperature: Annotated[Amount, Meaning("of both distributions of kl, whose square it is times", later=True)] = (
        heal_option(1.0, "with kl: of both models, by default 1", "T", least=SMALLEST, right_value="a positive number")
    )
    hidden: Annotated[Amount, Meaning("weight of 1 - cosine between what both heads read, beside kl", later=True)] = (
        heal_option(0.0, "with kl: weight of the cosine of the last states", "WEIGHT", least=0)
    )
    attention: Annotated[
        Amount, Meaning("weight of the divergence of the relations in the last attention, beside kl", later=True)
    ] = heal_option(0.0, "with kl: weight of the last attention's relations", "WEIGHT", least=0)
    teacher: Annotated[
        Name | None,
        Meaning("model of the same tokens that kl learns from; null: the dense model itself", null=True, later=True),
    ] = heal_option(None, "with kl: another model of the same tokens to learn from, by default the dense one", "MODEL")
    patience: Annotated[
        Count, Meaning("points without a lower held-out loss after which training ends; 0: it does not", later=True)
    ] = heal_option(0, "points without a lower held-out loss that end it, by default none", "N", least=0)
    recompute: Annotated[
        bool, Meaning("whether each layer is computed once more on the way back, in less memory", later=True)
    ] = heal_option(False, "each layer once more on the way back, in less memory")
    at: Annotated[
        tuple[Count, ...], Meaning("tokens trained on after which the texts are measured; empty: not", later=True)
    ] = heal_option((), "tokens after which the texts are measured too, as in 0,10000,30000", "LIST", least=0)
    answers: Annotated[
        bool, Meaning("whether the bits of the tasks' right answers are measured at these tokens too", later=True)
    ] = heal_option(False, "at --heal-at the bits of the tasks' right answers too")
    processes: Annotated[
        Positive, Meaning("that train together, each with a part of weights and sequences", later=True)
    ] = heal_option(1, "that train together, each a part of the weights (FSDP); a GPU for each", "K", least=1)
    points: Annotated[Positive, Meaning("of the learning curve, besides the one before training")] = 10
    seed: Annotated[Whole, Meaning("of the draw of text, of its order, and of the adapters")] = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.points < 1:
            raise UserError(f"points of healing is a positive number; got {self.points}")
        for name in ("top", "temperature", "hidden", "attention", "teacher"):
            if self.loss != "kl" and getattr(self, name) != getattr(Recipe, name):
                raise UserError(f"--heal-{name} is of what the dense model or a teacher predicts; add --heal-loss kl")
        if self.teacher and self.hidden:
            raise UserError("--heal-hidden compares states number by number, which are another model's with a teacher")
        if self.at and max(self.at) > self.tokens:
            raise UserError(f"--heal-at {max(self.at)} is beyond the {self.tokens} tokens of --heal-tokens")
        if self.answers and not self.at:
            raise UserError("--heal-answers is measured after the tokens of --heal-at, and there are none; give some")
        if self.processes > 1 and self.at:
            raise UserError("--heal-at measures in the one process of a cell; leave it out, or --heal-processes")
        if self.processes > self.batch:
            raise UserError(
                f"--heal-processes {self.processes} share the sequences of a step, and --heal-batch has {self.batch}"
            )
        if self.tokens < self.passes * self.length:
            raise UserError(
                f"healing needs a sequence of {self.length} tokens in each pass, {self.passes * self.length} in all; "
                f"got {self.tokens} tokens"
            )

    @property
    def sequences(self) -> int:
        """Return the number of distinct training sequences, N."""
        return self.tokens // self.passes // self.length

    @property
    def steps(self) -> int:
        """Return the number of steps of the optimiser."""
        return self.passes * math.ceil(self.sequences / self.batch)

    def step_at(self, tokens: int) -> int:
        """Return the number of steps after which so many tokens have been trained on, at most all steps."""
        passes, rest = divmod(math.ceil(tokens / self.length), self.sequences)
        return min(self.steps, passes * (self.steps // self.passes) + math.ceil(rest / self.batch))

    @property
    def bytes_of_top(self) -> int:
        """Return the bytes on disk of the likeliest tokens of all training sequences; 0 where none are kept there."""
        return self.sequences * (self.length - 1) * 4 * (2 * self.top + 1) if self.top else 0

    @property
    def highest(self) -> float:
        """Return the learning rate after warming up."""
        return KINDS[self.kind] if self.learning_rate is None else self.learning_rate

    def as_run(self) -> dict[str, Any]:
        """Return every field as plain values, with the learning rate and the number of steps that follow from them."""
        return asdict(self) | {"learning_rate": self.highest, "steps": self.steps}

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, 0 .. steps - 1."""
        highest = self.highest
        warm = max(1, round(WARM_UP * self.steps))
        if step < warm:
            return highest * (step + 1) / warm
        return highest * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm))) / 2

    def order(self, step: int) -> list[int]:
        """Return the numbers of a step's sequences; each comes once in every pass."""
        within = math.ceil(self.sequences / self.batch)
        import torch

        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step // within)
        chosen: list[int] = torch.randperm(self.sequences, generator=generator).tolist()
        return chosen[step % within * self.batch :][: self.batch]


def refuse_recipe(recipe: Recipe, dtype: torch.dtype, dense: Any) -> None:
    """Raise UserError for a dtype that no model is trained in, and for loss "kl" without the dense predictions."""
    import torch

    if dtype not in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        raise UserError(f"healing trains in float32 or bfloat16, and the model is in {name}; give --dtype bfloat16")
    if recipe.loss == "kl" and dense is None:
        raise UserError("healing by kl needs what the dense model predicts")


SaveDtype = Literal["", "auto", "float32", "bfloat16", "float16"]
SAVE_DTYPES: tuple[str, ...] = get_args(SaveDtype)
MIN_ROUNDS = 6  # the fewest with a signed-rank interval of 95 % (bench.stats.intervals); from 12 on one may be spoilt

SCORER = "stock: lm-eval's own backend, for checking; endpoint: the server at --endpoint; vllm: that of --vllm-python"
DTYPES = "auto (the base's), float32, bfloat16, float16"
ALL = "0 (for all) or positive"
CALIBRATION = (
    "text that methods look at; task:piqa: a task's questions that are not scored; self or self:piqa: what the dense "
    "model writes, behind such questions; c4:0.5,wiki:0.3,code:0.2: a mixture; several sweep"
)
CHAT = "whether prompts of tasks are turns of the model's chat template; texts and the calibration never are"
SWEEP = "0 for no sweep, or the largest batch of one"
FIRST = "from the start of a text, and not drawn from it"
SHOTS = "a number of examples, or 0"
FIRST_RANGE = 512  # tokens; each further range of positions is as long as all before it
POSITIONS = f"also perplexity by position: 0-{FIRST_RANGE}, {FIRST_RANGE}-{2 * FIRST_RANGE}, ... of windows this long"
LONG = f"0 for none, or more than {FIRST_RANGE}, the tokens of the first range"
STATES = "for the states of a micro-batch; 0, the default on CUDA: an eighth of what is free"
STATES_WANTED = "a number of MiB, or 0 for an eighth of what is free"

measure_option = partial(option, group="measure")
time_option = partial(option, group="time")


@dataclass(frozen=True)
class Protocol:
    """Says how every cell of a run is measured.

    Its defaults are the profile `quick`; on CUDA some of the speed have others (`protocol_for_cuda`). `save_dtype`
    "auto" is the base's dtype. Raises UserError for values that cannot be.
    """

    WHOLE: ClassVar = True

    profile: Annotated[Name, Meaning("name of the set of settings that the others changed, as in quick")] = "quick"
    tasks: Annotated[tuple[str, ...], Meaning("that are answered")] = measure_option(
        QUICK_TASKS, "tasks or groups of `list tasks`; none for no task", "LIST"
    )
    documents: Annotated[Count, Meaning("of each task; 0: all")] = measure_option(
        100, "documents per task; 0 for all", "N", least=0, right_value=ALL
    )
    texts: Annotated[tuple[str, ...], Meaning("whose perplexity is measured")] = measure_option(
        ("wiki",), "texts for perplexity, see `list texts`; none for no text", "LIST"
    )
    window: Annotated[Tokens, Meaning("of a perplexity window")] = measure_option(
        512, "tokens of a perplexity window", "TOKENS", least=2
    )
    stride: Annotated[Tokens, Meaning("from window to window")] = measure_option(
        512, "tokens from window to window; by default the window", "TOKENS", least=1
    )
    windows: Annotated[Count, Meaning("of each text; 0: all")] = measure_option(
        16, "perplexity windows; 0 for all", "N", least=0, right_value=ALL
    )
    windows_drawn: Annotated[bool, Meaning("whether they are drawn from the text; else they are the first ones")] = (
        measure_option(True, FIRST, flag="first-windows")
    )
    positions: Annotated[
        Tokens, Meaning("of a long window, for perplexity by position; 0: none is measured", later=True)
    ] = measure_option(0, POSITIONS, "TOKENS", least=0, right_value=LONG)
    calibration: Annotated[Name, Meaning("text that methods look at")] = measure_option("c4", CALIBRATION, "LIST")
    calibration_sequences: Annotated[Positive, Meaning("of that text")] = measure_option(
        64, "how many; several sweep", "LIST", least=1
    )
    calibration_length: Annotated[Tokens, Meaning("of each sequence")] = measure_option(
        256, "tokens of each; several sweep", "LIST", least=2
    )
    prefill: Annotated[tuple[Tokens, ...], Meaning("prompt lengths that are timed")] = time_option(
        (128,), "prompt lengths in tokens, as in 128,1024; or none", "LIST", least=1
    )
    decode: Annotated[tuple[Tokens, ...], Meaning("depths of context behind which steps are timed")] = time_option(
        (64,), "tokens of context before a step, or none", "LIST", least=1
    )
    batches: Annotated[tuple[Positive, ...], MinLen(1), Meaning("sequences at once, the first for the main table")] = (
        time_option((1,), "sequences at once, as in 1,8", "LIST", flag="batch", least=1)
    )
    speed_rounds: Annotated[Count, Meaning("of dense against pruned; 0: nothing is timed")] = time_option(
        12, "of dense against pruned; 0: none", "N", least=0
    )
    decode_steps: Annotated[Positive, Meaning("steps of a pass, each a token for every sequence")] = time_option(
        4, "steps per pass, each a token for every sequence", "N", least=1
    )
    max_batch: Annotated[Count, Meaning("largest batch of a sweep over 1, 2, 4, ...; 0: no sweep")] = time_option(
        0, "also 1, 2, 4, ... up to N or until memory runs out", "N", least=0, right_value=SWEEP
    )
    cache: Annotated[
        Literal["dynamic", "static"], Meaning("dynamic: grows with every token; static: allocated once")
    ] = time_option("dynamic", "static: allocated once, for all tokens")
    compile: Annotated[bool, Meaning("whether torch.compile is used for timing")] = time_option(
        False, "by torch.compile"
    )
    mode: Annotated[
        Literal["eager", "graph"], Meaning("graph: decode steps are captured once and replayed; eager: they are not")
    ] = time_option("eager", "graph: decode steps captured once, on CUDA the default")
    pin: Annotated[tuple[Count, ...], Meaning("numbers of the cores that are timed on; none: all")] = time_option(
        (), "numbers of the cores to run on, as in 0,1", "LIST", least=0
    )
    speed_limit: Annotated[WholeSeconds, Meaning("of silence after which timing is given up")] = time_option(
        600, "of silence, before timing is given up", "SECONDS", least=1
    )
    calibration_memory_mib: Annotated[
        Mebibytes, Meaning("for the states of a micro-batch; 0: an eighth of what is free")
    ] = measure_option(1024, STATES, "MIB", least=0, right_value=STATES_WANTED)
    batch_tokens: Annotated[Tokens, Meaning("of one forward when scoring")] = measure_option(
        2048, "tokens of one forward when scoring", "TOKENS", least=1
    )
    scorer: Annotated[
        Literal["shared", "stock", "endpoint", "vllm"],
        Meaning("shared: every common prefix once; stock: lm-eval's own backend; endpoint: a server; vllm"),
    ] = measure_option("shared", SCORER)
    fewshot: Annotated[Count, Meaning("examples in front of each question; 0: as many as the task says")] = (
        measure_option(0, "examples in front of each question; by default none", "N", least=0, right_value=SHOTS)
    )
    apply_chat_template: Annotated[bool, Meaning(CHAT, later=True)] = measure_option(
        False, "prompts of tasks as turns of a chat, as in lm-eval"
    )
    system: Annotated[str, Meaning("text of the system turn of that chat; empty: none", later=True)] = measure_option(
        "", "text of the system turn, with --apply-chat-template", "TEXT"
    )
    task_data: Annotated[
        tuple[tuple[str, str, str], ...], Meaning("[task, path, sha256] of tasks whose documents are local files")
    ] = ()
    task_files: Annotated[
        tuple[tuple[str, str, str], ...],
        Meaning("[task, path, sha256] of tasks whose definitions are the user's own files", later=True),
    ] = ()
    checks: Annotated[bool, Meaning("whether text is generated and compared with the dense model's")] = measure_option(
        True, "no generation, no KL", flag="no-checks"
    )
    save_dtype: Annotated[
        SaveDtype, Meaning("dtype in which pruned models are saved before they are measured; empty: not saved")
    ] = option("", f"{DTYPES}; saves too", "DTYPE", group="where")

    def __post_init__(self) -> None:
        check_fields(self)
        if self.stride > self.window:
            raise UserError(f"--stride lies between 1 and the window, {self.window}; got {self.stride}")
        if self.system and not self.apply_chat_template:
            raise UserError("--system is a turn of a chat, and prompts are none; add --apply-chat-template")
        rows_of_texts(self.calibration, self.calibration_sequences)  # refuses too few for a mixture
        if 0 < self.positions <= FIRST_RANGE:
            raise UserError(f"--positions is {LONG}; got {self.positions}")
        if self.positions and not self.texts:
            raise UserError("--positions is of the windows of --texts, and there are none; name a text")
        names = [name_of_text(text) for text in self.texts]
        if doubled := [text for text in self.texts if names.count(name_of_text(text)) > 1]:
            raise UserError(f"{' and '.join(doubled)} share a name, by which samples are kept; rename one of them")
        if 0 < self.speed_rounds < MIN_ROUNDS:
            right_value = f"0 for no speed, or at least {MIN_ROUNDS}, since fewer rounds have no 95 % interval"
            raise UserError(f"--speed-rounds is {right_value}; got {self.speed_rounds}")
        if not self.batches:
            raise UserError("--batch is a list of whole numbers, each 1 or more; got none")
        if self.mode == "graph" and (self.compile or self.cache != "static"):
            wrong = "leave --compile out" if self.compile else "add --cache static"
            raise UserError(f"--mode graph captures uncompiled steps on a static cache; {wrong}")
        if self.speed_rounds and not (self.prefill or self.decode):
            raise UserError("speed needs a prompt length or a depth of context to be timed at; both are none")
        self._refuse_both()

    def _refuse_both(self) -> None:
        """Raise UserError where a server scores and this process is to be timed or checked beside it."""
        if self.is_served and (self.speed_rounds or self.checks):
            wrong = "--speed-rounds times" if self.speed_rounds else "checks are of"
            raise UserError(f"{wrong} the model in this process, and --scorer {self.scorer} asks another; leave it out")

    @property
    def is_served(self) -> bool:
        """Say whether an inference engine scores in place of this process."""
        return self.scorer in (ENDPOINT, VLLM)

    @property
    def chat(self) -> Chat | None:
        """Return the chat whose turns the prompts of tasks are; None where they are plain text."""
        return Chat(self.system) if self.apply_chat_template else None

    @property
    def macs_context(self) -> int:
        """Return the tokens of the sequence over which multiply-accumulates are averaged."""
        return max(self.prefill, default=self.window)


PROFILES: dict[str, dict[str, Any]] = {  # the fields in which each differs from `quick`, which are Protocol's defaults
    "smoke": {
        "tasks": ("piqa", "arc_easy"),
        "documents": 8,
        "window": 256,
        "stride": 256,
        "windows": 4,
        "calibration_sequences": 8,
        "calibration_length": 64,
        "prefill": (64,),
        "decode": (16,),
        "speed_rounds": 6,
    },
    "quick": {},
    "full": {
        "tasks": (*QUICK_TASKS, "arc_challenge", "boolq", *SKILLS),
        "documents": 0,
        "texts": ("wiki", "c4"),
        "window": 1024,
        "stride": 1024,
        "windows": 0,
        "calibration_sequences": 32,
        "calibration_length": 512,
        "prefill": (512,),
        "decode": (256,),
        "batches": (1, 8),
        "speed_rounds": 20,
        "decode_steps": 16,
    },
    "speed": {
        "tasks": (),
        "documents": 0,
        "texts": (),
        "windows": 0,
        "speed_rounds": 60,
        "decode_steps": 8,
        "checks": False,
    },
}


def protocol_of_profile(name: str, **changes: Any) -> Protocol:
    """Return the protocol of a profile with changed fields. Raises UserError for an unknown profile."""
    if name not in PROFILES:
        raise UserError(f"no profile {name!r}; there are {', '.join(PROFILES)}")
    return Protocol(**PROFILES[name] | {"profile": name} | changes)


_SIZES = (1024, 128, 8192)  # the first is swept over batches, and stands in the main table
_ON_CUDA = {"prefill": _SIZES, "decode": _SIZES, "batches": (1,), "decode_steps": 128}
PROFILES_ON_CUDA: dict[str, dict[str, Any]] = {  # what else a profile is on a GPU, which its sizes would not fill
    "quick": _ON_CUDA,
    "full": _ON_CUDA | {"max_batch": 1024, "speed_rounds": 12},
    "speed": _ON_CUDA | {"max_batch": 1024, "speed_rounds": 12},
}


def protocol_for_cuda(protocol: Protocol, given: Collection[str], positions: int | None) -> Protocol:
    """Return the protocol on a GPU: a GPU's defaults stand in fields that the user did not give.

    Steps are captured, sizes are larger, and states take what follows from the memory that is free. Where nothing is
    timed the prompt lengths alone are a GPU's, since multiply-accumulates are averaged over the longest.

    given      the fields that the user gave
    positions  how many tokens the model takes, if there is a limit; default sizes beyond it are left out
    """
    changes = {"cache": "static"} | PROFILES_ON_CUDA.get(protocol.profile, {})
    meant = changes.keys() if protocol.speed_rounds else {"prefill"}
    changes = {name: value for name, value in changes.items() if name not in given and name in meant}
    if "calibration_memory_mib" not in given:
        changes["calibration_memory_mib"] = 0
    if (protocol.compile, changes.get("cache", protocol.cache)) == (False, "static") and "mode" not in given:
        changes["mode"] = "graph"
    steps = {"prefill": 0, "decode": changes.get("decode_steps", protocol.decode_steps)}
    for name in steps.keys() & changes.keys():
        fitting = tuple(size for size in changes[name] if positions is None or size + steps[name] <= positions)
        changes[name] = fitting or getattr(protocol, name)
    return replace(protocol, **changes)


@dataclass(frozen=True)
class SimilarityProtocol:
    """Says what the command `similarity` measures. Raises UserError for values that cannot be.

    The states are those of `sequences` of `length` tokens of `text`; merged models are measured on `windows` of
    `window` tokens of `held_out`. `merge` holds the numbers of layers that become one; empty leaves merging out.
    """

    text: str = option("c4", "whose states are compared, its calibration half; by default {default}")
    sequences: int = option(16, "of that text, by default {default}", "N", least=1)
    length: int = option(128, "of a sequence, by default {default}", "TOKENS", least=1)
    merge: tuple[int, ...] = option(
        (2, 3, 4), "numbers of layers that become one, by default 2,3,4; or none", "LIST", least=2
    )
    held_out: str = option("wiki", "on which merged models are measured, by default {default}", "TEXT")
    windows: int = option(8, "of that text, by default {default}", "N", least=1)
    window: int = option(64, "tokens of a window, by default {default}", "TOKENS", least=2, right_value=PREDICTED)
    seed: int = option(0, "of the draw of sequences, by default {default}")

    def __post_init__(self) -> None:
        check_fields(self)


AUTO = "auto"  # the dtype of the cell
QUANTISED = ("q8_0", "q4_0")  # types that llama.cpp itself writes into a GGUF file
COMPRESSED = ("w8a8", "w4a16")  # types that llmcompressor writes into a folder, for vLLM
TYPES = (AUTO, "float32", "bfloat16", "float16", *QUANTISED, *COMPRESSED)
LLAMA_CPP, VLLM = ("llama.cpp", "vllm")


@dataclass(frozen=True)
class ServedProtocol:
    """Says how an inference engine serves models, all alike. Raises UserError for values that cannot be.

    The dense model in the first of `types` is what every row is compared with. `prefill` are prompt lengths, `decode`
    depths of context, `batches` sequences at once, `steps` the tokens that a pass generates for each of them. A text's
    `windows` of `window` tokens are scored by the engine. With a `load` the engine's server is timed under it, and no
    prompts and steps are timed alone.
    """

    engine: Literal["llama.cpp", "vllm"] = option("llama.cpp", "what serves the models, by default {default}")
    engine_python: str = option("", "that has vllm, as in /opt/vllm/bin/python", "PATH")
    engine_args: str = option("", "for vllm, as in --engine-args=--enforce-eager", "WORDS")
    llmcompressor_python: str = option(
        "", "that has llmcompressor, for the types w8a8 and w4a16, as in /opt/quantise/bin/python", "PATH"
    )
    types: tuple[str, ...] = option(
        (AUTO, "q8_0"), f"of weights, by default auto,q8_0: {', '.join(TYPES)}; auto is as in the cell", "LIST"
    )
    prefill: tuple[int, ...] = option((128,), "prompt lengths in tokens, by default 128; or none", "LIST", least=1)
    decode: tuple[int, ...] = option(
        (128,), "tokens of context before the first that is generated, by default 128; or none", "LIST", least=1
    )
    batches: tuple[int, ...] = option((1,), "sequences at once, by default 1", "LIST", flag="batch", least=1)
    steps: int = option(16, "tokens that a pass generates for each sequence, by default {default}", "N", least=1)
    rounds: int = option(12, "of dense against pruned in each process, by default {default}", "N", least=MIN_ROUNDS)
    processes: int = option(
        2, "of the engine, one after the other, that each read both models anew, by default {default}", "N", least=1
    )
    text: str = option("wiki", "that the engine scores, by default {default}; see `list texts`", "TEXT")
    windows: int = option(16, "of that text, by default {default}", "N", least=2)
    window: int = option(512, "tokens of a window, by default {default}", "TOKENS", least=2)
    silence: int = option(
        600, "without a word after which the engine is ended, by default {default}", "SECONDS", least=1
    )
    load: LoadProtocol | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.types or (wrong := [kind for kind in self.types if kind not in TYPES]):
            got = wrong[0] if self.types else "none"
            raise UserError(f"--types is a list of {', '.join(TYPES)}; got {got}")
        if not (self.prefill or self.decode) or not self.batches:
            raise UserError("there is nothing to time: give --prefill or --decode, and --batch")
        try:
            shlex.split(self.engine_args)
        except ValueError as error:
            wrong_words = first_line_of(error).lower()
            raise UserError(f"--engine-args are words as in a shell; got {self.engine_args!r}: {wrong_words}") from None
        foreign, owner = (COMPRESSED, VLLM) if self.engine == LLAMA_CPP else (QUANTISED, LLAMA_CPP)
        if wrong := [kind for kind in self.types if kind in foreign]:
            right = ", ".join(kind for kind in TYPES if kind not in foreign)
            raise UserError(f"{wrong[0]} is a type of {owner}'s; {self.engine} is given {right}")
        compressed = [kind for kind in self.types if kind in COMPRESSED]
        if compressed and not self.llmcompressor_python:
            words = "is written by llmcompressor, which runs in a Python of its own"
            raise UserError(f"{compressed[0]} {words}: --llmcompressor-python PATH/bin/python")


def ranges_of_window(length: int) -> list[tuple[int, int]]:
    """Return (first, end) of each range of positions of a window of `length` tokens, the last as long as is left."""
    ranges = [(0, min(FIRST_RANGE, length))]
    while ranges[-1][1] < length:
        end = ranges[-1][1]
        ranges.append((end, min(2 * end, length)))
    return ranges


def name_of_range(text: str, first: int, end: int) -> str:
    """Return the name of a range of positions of a text: 'wiki:512-1024'."""
    return f"{text}:{first}-{end}"


def split_range(name: str) -> tuple[str, str]:
    """Return ('wiki', '512-1024') of the name of a range, and (TEXT, '') of that of a text."""
    text, colon, positions = name.rpartition(":")
    return (text, positions) if colon and re.fullmatch(r"\d+-\d+", positions) else (name, "")


def name_of_samples(name: str) -> str:
    """Return the name of the samples of a text, or of a range of positions of it."""
    text, positions = split_range(name)
    return f"positions-{name_of_text(text)}-{positions}" if positions else f"perplexity-{name_of_text(text)}"


def name_of_text(text: str) -> str:
    """Return the file name of a text's samples: of a file its own name without folder and ending.

    A dataset of the hub goes by all that it is called, since its parts may differ only behind a point.
    """
    return quote(text, safe="") if text.startswith("hub:") else PurePath(text).stem
