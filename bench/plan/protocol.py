"""Says how the cells of a run are measured: `Protocol`, and the profiles that are known by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.data.task_sources import QUICK_TASKS
from methods.errors import UserError

CACHES = ("dynamic", "static")
SAVE_DTYPES = ("", "auto", "float32", "bfloat16", "float16")
MIN_ROUNDS = (
    6  # the fewest that have a signed-rank interval of 95 %, see bench.stats.intervals; from 12 on one may be spoilt
)


@dataclass(frozen=True)
class Protocol:
    """How a cell is measured. The same for every cell of a run.

    Sizes are in tokens, counts in pieces; `documents` 0 means all of them, `windows` 0 as many as the text has.
    `fewshot` 0 leaves the number of examples to the task's definition; `task_data` is
    bench.data.task_sources.parse_task_data's (task, path, sha256) of tasks whose documents are local files; `checks`
    says whether bench.evaluation.checks runs. `save_dtype` is what pruned models are saved in, and measured as they
    load again; "auto" is the base's dtype, "" saves nothing.

    Speed: `prefill` prompt lengths, `decode` depths of context, `batches` sequences at once; `speed_rounds` 0 times
    nothing; `decode_steps` tokens per pass of a round; `max_batch` ends a sweep over 1, 2, 4, ..., 0 sweeps nothing;
    `pin` cores that the timing may use, none for all; `speed_limit` seconds of silence after which it is given up.
    """

    profile: str
    tasks: tuple[str, ...]
    documents: int
    texts: tuple[str, ...]
    window: int
    stride: int
    windows: int
    calibration: str
    calibration_sequences: int
    calibration_length: int
    prefill: tuple[int, ...]
    decode: tuple[int, ...]
    batches: tuple[int, ...]
    speed_rounds: int
    decode_steps: int
    max_batch: int = 0
    cache: str = "dynamic"
    compile: bool = False
    pin: tuple[int, ...] = ()
    speed_limit: int = 600
    calibration_memory_mib: int = 1024
    batch_tokens: int = 2048
    scorer: str = "shared"
    fewshot: int = 0
    task_data: tuple[tuple[str, str, str], ...] = ()
    checks: bool = True
    save_dtype: str = ""

    def __post_init__(self) -> None:
        counted = ("window", "calibration_sequences", "calibration_length", "calibration_memory_mib", "batch_tokens")
        for name in (*counted, "decode_steps", "speed_limit"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is a positive number; got {getattr(self, name)}")
        if self.fewshot < 0:
            raise UserError(f"fewshot is a number of examples, or 0; got {self.fewshot}")
        for name in ("documents", "windows"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is 0 (for all) or positive; got {getattr(self, name)}")
        if not 1 <= self.stride <= self.window:
            raise UserError(f"stride lies between 1 and the window, {self.window}; got {self.stride}")
        stems = [Path(text).stem for text in self.texts]
        if doubled := [text for text in self.texts if stems.count(Path(text).stem) > 1]:
            raise UserError(f"{' and '.join(doubled)} share a name, by which samples are kept; rename one of them")
        if self.save_dtype not in SAVE_DTYPES:
            raise UserError(f"save-dtype is {', '.join(SAVE_DTYPES[1:])}; got {self.save_dtype!r}")
        self._check_speed()

    def _check_speed(self) -> None:
        if self.speed_rounds and self.speed_rounds < MIN_ROUNDS:
            raise UserError(
                f"speed-rounds is 0 for no speed, or at least {MIN_ROUNDS}, since fewer rounds have no 95 % interval; "
                f"got {self.speed_rounds}"
            )
        for name in ("prefill", "decode", "batches"):
            sizes = getattr(self, name)
            if (not sizes and name == "batches") or any(size < 1 for size in sizes):
                raise UserError(f"{name} is a list of positive numbers, as in 1,8; got {','.join(map(str, sizes))!r}")
        if self.speed_rounds and not (self.prefill or self.decode):
            raise UserError("speed needs a prompt length or a depth of context to be timed at; both are none")
        if self.max_batch < 0:
            raise UserError(f"max-batch is 0 for no sweep, or the largest batch of one; got {self.max_batch}")
        if self.cache not in CACHES:
            raise UserError(f"cache is {' or '.join(CACHES)}; got {self.cache!r}")
        if any(core < 0 for core in self.pin):
            raise UserError(f"pin is a list of core numbers, as in 0,1; got {','.join(map(str, self.pin))!r}")


PROFILES = {
    "smoke": Protocol(
        profile="smoke",
        tasks=("piqa", "arc_easy"),
        documents=8,
        texts=("wiki",),
        window=256,
        stride=256,
        windows=4,
        calibration="c4",
        calibration_sequences=8,
        calibration_length=64,
        prefill=(64,),
        decode=(16,),
        batches=(1,),
        speed_rounds=6,
        decode_steps=4,
    ),
    "quick": Protocol(
        profile="quick",
        tasks=QUICK_TASKS,
        documents=100,
        texts=("wiki",),
        window=512,
        stride=512,
        windows=16,
        calibration="c4",
        calibration_sequences=16,
        calibration_length=256,
        prefill=(128,),
        decode=(64,),
        batches=(1,),
        speed_rounds=12,
        decode_steps=4,
    ),
    "full": Protocol(
        profile="full",
        tasks=(*QUICK_TASKS, "arc_challenge", "boolq"),
        documents=0,
        texts=("wiki", "c4"),
        window=1024,
        stride=1024,
        windows=0,
        calibration="c4",
        calibration_sequences=32,
        calibration_length=512,
        prefill=(512,),
        decode=(256,),
        batches=(1, 8),
        speed_rounds=20,
        decode_steps=16,
    ),
    "speed": Protocol(
        profile="speed",
        tasks=(),
        documents=0,
        texts=(),
        window=512,
        stride=512,
        windows=0,
        calibration="c4",
        calibration_sequences=16,
        calibration_length=256,
        prefill=(128,),
        decode=(64,),
        batches=(1,),
        speed_rounds=60,
        decode_steps=8,
        checks=False,
    ),
}
