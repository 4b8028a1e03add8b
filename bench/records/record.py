"""Defines a record: one cell's outcome, as one JSON file that is written once and never edited.

    results/<run>/cells/<key>.json               what was asked, decided and measured
    results/<run>/samples/<key>/<name>.parquet   one row per document or perplexity window

or, once the run is packed, as a line of records.jsonl (bench.records.packed_run).

A record has these keys and no others:

    schema       the number of this layout
    cell         what was asked for (bench.plan.cell.Cell); `inputs` is what the answer stands on (bench.run.store).
                 Only a cell that was trained has `healing` (bench.plan.recipe.Recipe), and only one that goes on from
                 others has `earlier`: those, the first one first (bench.plan.cell.Stage)
    status       "ok"; "unsupported" (the method cannot serve the model) or "out_of_reach" (it cannot remove that much
                 of it), which are outcomes; or one of FAILED: "error" (an exception), "out_of_memory", "crashed" (the
                 process died), "timed_out", LOST: "lost" (the machine went away, again and again)
    error        why the status is not "ok", else null
    environment  versions, commit, device, threads (bench.system.environment)
    decisions    what the method decided; layers go by their numbers in the model that it was given. A cell that goes on
                 from others has `earlier`, what became of each, the first one first: {label, method, parameters, ratio,
                 healing (if any), decisions, measured: what its record has of EARLIER}
    measured     figures with their unit in the name; a figure that was not measured is absent

`measured` of an "ok" record:

    parameters                        int, unique stored parameters after pruning
    parameters_without_embeddings     int, without embedding, position table and head
    dense_parameters                  int, of the model before pruning
    dense_parameters_without_embeddings   int
    ratio                             float, 1 - parameters / dense_parameters
    ratio_without_embeddings          float
    ratio_budget                      float, what every method of the run had to meet; absent if none was asked
    budget       {of (bytes, kv, macs or latency), share (of the dense model's that may stay), stays (what does), ratio
                 (of all parameters, what was asked for), tried: [[ratio, what stays] of each pruning]}   in place of
                 ratio_budget where the budget was no number of parameters
    layers, dense_layers              int
    weight_bytes                      int
    kv_bytes_per_token                int
    macs_per_token, macs_context      int, multiply-accumulates per token in a sequence of macs_context tokens
    weights_sha256                    hex, of the dense model's weight files
    pruned_sha256                     hex, of every tensor of the model that was measured
    prune_seconds                     float, with what earlier cells spent on a search or statistics that this one used;
                                      absent for "dense"
    weights_in                        "files" where the weights lay in files and not in memory (docs/guides/memory.md)
    peak_memory  {stage of seconds: {resident_bytes, anonymous_bytes (in no file, looked at every 0.02 s)}} on a CPU, of
                 the process; on GPUs {allocated_bytes (by tensors), reserved_bytes (held by torch), and of several GPUs
                 `each`, with both of each one}, together. Records of before had one figure, peak_memory_bytes: the
                 highest since pruning began. See `peak_bytes`
    calibration_memory_mib            what the states of a micro-batch were given, where that followed from the memory
                                      that was free; absent for "dense"
    healing      {recipe: bench.plan.recipe.Recipe.as_run, text_sha256, start_sha256 (of the model before training, as
                 pruned_sha256), tokens (trained on), seconds (of training, over all attempts), tokens_per_second,
                 curve: [points of bench.healing.training.heal]}   absent unless healed
    perplexity   {text: {perplexity, perplexity_low, perplexity_high (95 %), bits_per_byte, byte_perplexity,
                         word_perplexity, nll_per_token, tokens, words, windows, window, stride, bos, sha256,
                         whole (all of the text and not only every second document)}}
    tasks        {task: {metric: {value, stderr}, ..., "main": metric, "version", "documents", "available", "fewshot"}};
                 of a task with choices one metric is answer_bpb, and `chance` is the accuracy of guesses
                 (bench.records.answers)
    speed        see below; absent unless asked for, and of several draws in all but the first
    checks       {copying, counting, repetition, distinct_1, distinct_2, agreement (shares), kl, kl_low, kl_high (nats
                 per token, 95 %)}   see bench.evaluation.checks; kl and agreement are absent for "dense", and with
                 repetition and distinct_n without a text; all but kl and agreement where weights lay in files
    saved        {folder (below the run's), bytes, loads_with, reason, dtype, rounding} of methods.checkpoint, where the
                 pruned model was saved; perplexity, tasks, speed and checks then are those of the reloaded model
    seconds      {load, prune, heal, save, perplexity, tasks, speed, checks}   where the time of the cell went; what an
                 interrupted attempt had finished is not measured again and takes none
    samples      {name: {rows, sha256}}   of the Parquet files

`speed`, from a process that held the pruned and the dense model; for "dense" both are dense (see docs/guides/speed.md):

    points   a list, one for each of what was timed, by rising batch:
        kind, batch, length or context   "prefill" of `length` tokens, or "decode" behind `context` tokens
        warm_up                          {dense, pruned: calls before the first that counts}
        rounds                           {dense, pruned: [[ms of each call] of each round]}
        dense_ms, pruned_ms              medians of all calls
        dense_cv, pruned_cv              standard deviation of all calls over their mean
        clocks_apart                     share by which the wall clock and the sum of the calls differ
        speedup, speedup_low, _high      dense over pruned from the rounds' medians, with its 95 % interval
        speedup_by_macs, _by_bytes       what the removed work alone would bring, see bench.speed.workloads.predicted
        flags                            "noisy", "not_warm", "clocks_disagree"; the limits stand in bench.speed.timing.
                                         On a GPU also "slowed", "launch_bound", "low_bandwidth", "in_blocks"
        on a GPU also:
        mode                             "graph" (each decode step captured once and replayed) or "eager"; absent where
                                         no step of the protocol is captured
        dense_p90, _p99, pruned_p90, ..  percentiles of all calls; the median is the 50th
        dense_bandwidth, _matrix_rate, .. shares of the rates in setup, see bench.speed.peak_rates.shares
        gpus                             of each, within the rounds: {samples, sm_mhz, memory_mhz, temperature_c and
                                         power_w: [lowest, median, highest], slowed_by: {reason: share of the samples}}
        out_of_memory                    ["dense", "pruned"], those that ran out; the other one is then timed alone
        failed                           why there are no figures
    memory   {resident_before_bytes, points: [{kind, batch, length or context, and either figures by the names of
             bench.speed.memory, or out_of_memory or failed}]}   of the pruned model alone
    widths   {qkv, out, up, down, head, added: {in, out: [widths that occur], multiple_of: 128, 64, 8 or 1}}
    setup    {threads, cores, devices, clock, attention, and of one GPU the rates of bench.speed.peak_rates}
    machine  {before, after: {machine, gpus}, other_cores, stolen_cores (on average), other_gpu_processes, nvml (why
             it has no figures), flags: "busy", "shared_gpu", "slowed"}
    failed   why the process did not come to its end; what it told before is there
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from methods.counted import QUANTITIES
from methods.errors import UserError
from methods.files import write_atomically

SCHEMA = 2
LOST = "lost"
FAILED = ("error", "out_of_memory", "crashed", "timed_out", LOST)
REFUSED = ("unsupported", "out_of_reach")  # what a method cannot do: outcomes, and no failures
STATUSES = ("ok", *REFUSED, *FAILED)
EARLIER = ("parameters", "layers", "ratio", "ratio_budget", "pruned_sha256", "prune_seconds", "healing")
ANSWER_BPB = "answer_bpb"  # the metric of the right answer's bits per byte
ACCURACY = re.compile(r"(^|_)acc(_|$)")
KEYS = ("schema", "cell", "status", "error", "environment", "decisions", "measured")


class InvalidRecord(UserError):
    """Say that a file is not a record: truncated, of another schema, or with keys missing."""


@dataclass(frozen=True)
class Record:
    """Hold one cell's outcome. `cell` holds plain JSON values, so that reports need no other module to read it."""

    cell: dict[str, Any]
    status: str
    environment: dict[str, Any]
    decisions: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise InvalidRecord(f"status is one of {', '.join(STATUSES)}; got {self.status!r}")
        if (self.status == "ok") != (self.error is None):
            raise InvalidRecord("a record has a reason exactly if its status is not ok")
        if self.status == "ok" and "parameters" not in self.measured:
            raise InvalidRecord("an ok record has measured.parameters")


def label(cell: Mapping[str, Any]) -> str:
    """Write a cell as its method and the parameters that were given, with what was done before in front.

    'laco:C=3', 'laco, healed', 'laco at 0.25, healed, then laco'. `cell` holds the fields of bench.plan.cell.Cell.
    """
    before = [_label(stage, stage["ratio"]) for stage in cell.get("earlier") or ()]
    return ", then ".join([*before, _label(cell)])


def _label(stage: Mapping[str, Any], ratio: float | None = None) -> str:
    given = ",".join(f"{name}={stage['parameters'][name]}" for name in stage.get("given", ()))
    asked = f"{stage['method']}:{given}" if given else str(stage["method"])
    where = "" if ratio is None else f" at {ratio:g}"
    return f"{asked}{where}, healed" if stage.get("healing") else f"{asked}{where}"


def display_name(record: Record) -> str:
    """Return the model's name for a reader."""
    return str(record.cell.get("display_name") or record.cell["model"])


def requested_ratio(record: Record) -> float | None:
    """Return the share of the parameters that was asked to go; None for the dense model."""
    return None if record.cell["method"] == "dense" else record.cell["ratio"]


def peak_bytes(measured: Mapping[str, Any], stage: str = "") -> int | None:
    """Return the highest memory of a stage, or of all: allocated on GPUs, resident on a CPU; None where it is unknown.

    Of records that have one figure for all that is known as the highest of all.
    """
    stages = measured.get("peak_memory", {})
    found = [stages[stage]] if stage in stages else [] if stage else list(stages.values())
    known = [one.get("allocated_bytes", one.get("resident_bytes")) for one in found]
    return max(known) if known else None if stage else measured.get("peak_memory_bytes")


def ratio_of(cell: Mapping[str, Any]) -> str:
    """Return what the ratio of a record's cell is a share of: all, decoder or layers; or bytes, kv or macs."""
    return str(cell.get("ratio_of", "all"))


def share(ratio: float | None, of: str = "all") -> str:
    """Write a ratio as it was asked for: '0.3', '0.3 of the decoder', or as a budget 'macs=0.8'; empty for none."""
    if ratio is None:
        return ""
    return f"{of}={1 - ratio:g}" if of in QUANTITIES else f"{ratio:g}" + ("" if of == "all" else f" of the {of}")


def amount(ratio: float | None, of: str = "all") -> str:
    """Write a ratio or a budget with the word for it: 'ratio 0.3', 'budget macs=0.8'; empty for none."""
    return f"{'budget' if of in QUANTITIES else 'ratio'} {share(ratio, of)}" if ratio is not None else ""


def named(record: Record) -> str:
    """Write a cell as sentences and figures call it: 'laco at 0.3'."""
    asked = share(requested_ratio(record), ratio_of(record.cell))
    return label(record.cell) + (f" at {asked}" if asked else "")


def is_accuracy(task: Mapping[str, Any]) -> bool:
    """Say whether a task's main metric is an accuracy, which alone can be averaged over tasks."""
    return is_accuracy_metric(task["main"])


def is_accuracy_metric(metric: str) -> bool:
    """Say whether a metric is a share of documents that were right."""
    name = metric.partition(",")[0]  # lm-eval names a filter behind a comma
    return name in ("exact_match", "em", "mc1", "mc2") or ACCURACY.search(name) is not None


def save(record: Record, path: Path) -> None:
    """Write atomically: the file is there whole or not at all."""
    write_atomically(path, json.dumps(vars(record), indent=1, allow_nan=False) + "\n")


def load(path: Path) -> Record:
    """Read and validate one record. Raises InvalidRecord, naming the file and what is wrong with it."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidRecord(f"{path} is not JSON: {error}") from None
    return from_json(data, str(path))


def from_json(data: Any, where: str) -> Record:
    """Return the record in a JSON object. Raises InvalidRecord, whose message begins with `where` that was read."""
    if not isinstance(data, dict) or set(data) != set(KEYS):
        raise InvalidRecord(f"{where} has not the keys of a record: {', '.join(KEYS)}")
    if data["schema"] != SCHEMA:
        raise InvalidRecord(f"{where} has schema {data['schema']}; this version reads {SCHEMA}")
    try:
        return Record(**data)
    except InvalidRecord as error:
        raise InvalidRecord(f"{where}: {error}") from None
