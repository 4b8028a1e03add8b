"""Says how the cells of a run are measured: `Protocol`, and the profiles that are known by name."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

from bench.data.task_sources import QUICK_TASKS
from bench.plan.fields import check, option
from bench.plan.recipe import PREDICTED
from bench.records.record import text_name
from methods.errors import UserError

SaveDtype = Literal["", "auto", "float32", "bfloat16", "float16"]
SAVE_DTYPES: tuple[str, ...] = get_args(SaveDtype)
MIN_ROUNDS = 6  # the fewest with a signed-rank interval of 95 % (bench.stats.intervals); from 12 on one may be spoilt

DTYPES = "auto (the base's), float32, bfloat16, float16"
ALL = "0 (for all) or positive"
SWEEP = "0 for no sweep, or the largest batch of one"
FIRST = "from the start of a text, and not drawn from it"
SHOTS = "a number of examples, or 0"
STATES = "for the states of a micro-batch; 0, the default on CUDA: an eighth of what is free"
STATES_WANTED = "a number of MiB, or 0 for an eighth of what is free"

measured = partial(option, group="measure")
timed = partial(option, group="time")


@dataclass(frozen=True)
class Protocol:
    """Says how a cell is measured, every cell of a run alike. Raises UserError for what cannot be.

    Its defaults are the profile `quick`. Sizes are in tokens, counts in pieces. `fewshot` 0 leaves the number of
    examples to the task's definition; `task_data` is bench.data.task_sources.parse_task_data's (task, path, sha256) of
    tasks whose documents are local files; `checks` says whether bench.evaluation.checks runs. `save_dtype` is what
    pruned models are saved in, and measured as they load again; "auto" is the base's dtype, "" saves nothing.

    Speed: `prefill` prompt lengths, `decode` depths of context, `batches` sequences at once; `speed_rounds` 0 times
    nothing; `decode_steps` tokens per pass of a round; `max_batch` ends a sweep over 1, 2, 4, ..., 0 sweeps nothing;
    `pin` cores that the timing may use, none for all; `speed_limit` seconds of silence after which it is given up;
    `mode` "graph" captures a decode step once and replays it. On CUDA some have other defaults (`for_cuda`).
    """

    profile: str = "quick"
    tasks: tuple[str, ...] = measured(QUICK_TASKS, "tasks or groups of `list tasks`; none for no task", "LIST")
    documents: int = measured(100, "documents per task; 0 for all", "N", least=0, wanted=ALL)
    texts: tuple[str, ...] = measured(("wiki",), "texts for perplexity, see `list texts`; none for no text", "LIST")
    window: int = measured(512, "tokens of a perplexity window", "TOKENS", least=2)
    stride: int = measured(512, "tokens from window to window; by default the window", "TOKENS", least=1)
    windows: int = measured(16, "perplexity windows; 0 for all", "N", least=0, wanted=ALL)
    windows_drawn: bool = measured(True, FIRST, flag="first-windows")
    calibration: str = measured("c4", "text that methods look at; several sweep", "LIST")
    calibration_sequences: int = measured(16, "how many; several sweep", "LIST", least=1)
    calibration_length: int = measured(256, "tokens of each; several sweep", "LIST", least=2)
    prefill: tuple[int, ...] = timed((128,), "prompt lengths in tokens, as in 128,1024; or none", "LIST", least=1)
    decode: tuple[int, ...] = timed((64,), "tokens of context before a step, or none", "LIST", least=1)
    batches: tuple[int, ...] = timed((1,), "sequences at once, as in 1,8", "LIST", flag="batch", least=1)
    speed_rounds: int = timed(12, "of dense against pruned; 0: none", "N", least=0)
    decode_steps: int = timed(4, "steps per pass, each a token for every sequence", "N", least=1)
    max_batch: int = timed(0, "also 1, 2, 4, ... up to N or until memory runs out", "N", least=0, wanted=SWEEP)
    cache: Literal["dynamic", "static"] = timed("dynamic", "static: allocated once, for all tokens")
    compile: bool = timed(False, "by torch.compile")
    mode: Literal["eager", "graph"] = timed("eager", "graph: decode steps captured once, on CUDA the default")
    pin: tuple[int, ...] = timed((), "numbers of the cores to run on, as in 0,1", "LIST", least=0)
    speed_limit: int = timed(600, "of silence, before timing is given up", "SECONDS", least=1)
    calibration_memory_mib: int = measured(1024, STATES, "MIB", least=0, wanted=STATES_WANTED)
    batch_tokens: int = measured(2048, "tokens of one forward when scoring", "TOKENS", least=1)
    scorer: Literal["shared", "stock"] = measured("shared", "stock: lm-eval's own backend, for checking")
    fewshot: int = measured(0, "examples in front of each question; by default none", "N", least=0, wanted=SHOTS)
    task_data: tuple[tuple[str, str, str], ...] = ()
    checks: bool = measured(True, "no generation, no KL", flag="no-checks")
    save_dtype: SaveDtype = option("", f"{DTYPES}; saves too", "DTYPE", group="where")

    def __post_init__(self) -> None:
        check(self)
        if self.stride > self.window:
            raise UserError(f"--stride lies between 1 and the window, {self.window}; got {self.stride}")
        names = [text_name(text) for text in self.texts]
        if doubled := [text for text in self.texts if names.count(text_name(text)) > 1]:
            raise UserError(f"{' and '.join(doubled)} share a name, by which samples are kept; rename one of them")
        if 0 < self.speed_rounds < MIN_ROUNDS:
            wanted = f"0 for no speed, or at least {MIN_ROUNDS}, since fewer rounds have no 95 % interval"
            raise UserError(f"--speed-rounds is {wanted}; got {self.speed_rounds}")
        if not self.batches:
            raise UserError("--batch is a list of whole numbers, each 1 or more; got none")
        if self.mode == "graph" and (self.compile or self.cache != "static"):
            wrong = "leave --compile out" if self.compile else "add --cache static"
            raise UserError(f"--mode graph captures uncompiled steps on a static cache; {wrong}")
        if self.speed_rounds and not (self.prefill or self.decode):
            raise UserError("speed needs a prompt length or a depth of context to be timed at; both are none")

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
        "tasks": (*QUICK_TASKS, "arc_challenge", "boolq"),
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


def profile(name: str, **changes: Any) -> Protocol:
    """Return the protocol of a profile with some fields changed. Raises UserError for a profile that there is not."""
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


def for_cuda(protocol: Protocol, said: Collection[str], positions: int | None) -> Protocol:
    """Return how cells are measured on a GPU, where the user did not say otherwise.

    Steps are captured, sizes are larger, and states take what follows from the memory that is free. Where nothing is
    timed the prompt lengths alone are a GPU's, since multiply-accumulates are averaged over the longest.

    said       the fields that the user gave
    positions  how many tokens the model takes, if there is a limit; default sizes beyond it are left out
    """
    changes = {"cache": "static"} | PROFILES_ON_CUDA.get(protocol.profile, {})
    meant = changes.keys() if protocol.speed_rounds else {"prefill"}
    changes = {name: value for name, value in changes.items() if name not in said and name in meant}
    if "calibration_memory_mib" not in said:
        changes["calibration_memory_mib"] = 0
    if (protocol.compile, changes.get("cache", protocol.cache)) == (False, "static") and "mode" not in said:
        changes["mode"] = "graph"
    steps = {"prefill": 0, "decode": changes.get("decode_steps", protocol.decode_steps)}
    for name in steps.keys() & changes.keys():
        fitting = tuple(size for size in changes[name] if positions is None or size + steps[name] <= positions)
        changes[name] = fitting or getattr(protocol, name)
    return replace(protocol, **changes)


@dataclass(frozen=True)
class SimilarityProtocol:
    """Says what the command `similarity` looks at. Raises UserError for what cannot be.

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
    window: int = option(64, "tokens of a window, by default {default}", "TOKENS", least=2, wanted=PREDICTED)
    seed: int = option(0, "of the draw of sequences, by default {default}")

    def __post_init__(self) -> None:
        check(self)
