"""Judges a run against its baseline, and the cells of two runs against chance.

`Margins` says what a run may lose beside its baseline, for each kind of metric, from a YAML file or by default.

The gate gives a verdict for each metric of each cell, by the rows of bench.regression.compare and margins. With g the
change for the better (shares, bits, or the logarithm of a ratio), m its margin, and the 95 % interval of g:

    worse         g <= -m, and the adjusted p value is below LEVEL (for speed: the interval lies below 0)
    better        g >= m, and likewise above
    not worse     else, where the interval lies above -m
    inconclusive  else: a loss of m can neither be shown nor excluded
    new, missing  only the run, only the baseline has it
    incomparable  measured under other conditions, on other documents or other text
    failed        the cell has no figures

p values are adjusted (bench.stats.intervals.holm, weighted) over the accuracies, bits per byte, flips and perplexities
that gate. A model that is no worse so fails by any of them in at most LEVEL / 2 of gates. WEIGHTS are their shares of
the level. An accuracy's is the largest, since the tests of the others show far smaller losses. Sizes have no margin:
fewer is better, more is worse.

`compare` asks of each row what the second cell has more, and whether that can be told from chance.

    run, run -> pairs of cells -> [ComparedRow] (bench.regression.compare) -> [JudgedRow]
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.plan import run_spec
from bench.records import run_folder
from bench.regression.compare import ComparedRow, compare_cells, parse_allowed
from bench.regression.other_output import PROGRAMS, is_other_output, read_other_output
from bench.regression.results import CellResults, results_of_named_cell, results_of_run
from bench.stats import intervals
from methods.errors import UserError

LEVEL = 0.04  # of the two-sided tests together; half of it is for losses
ALPHA = 0.05  # below which an adjusted p value is called a difference
WEIGHTS = {"accuracy": 9.0, "task": 9.0, "bits": 3.0, "flips": 3.0, "text": 1.0}
REGRESSION, INCOMPLETE, INCOMPARABLE = 1, 3, 4  # exit codes
CELL = "cell"  # the metric of a verdict on a cell as a whole


@dataclass(frozen=True)
class Margins:
    """Says what may be lost: points of accuracy, bits per byte, percent of perplexity and speed; None does not gate.

    flips   points by which more answers may have flipped from the dense model's
    sizes   whether sizes gate
    tasks   points, of tasks that gate by themselves too
    allow   conditions that may differ (bench.regression.compare.FIELDS)
    """

    accuracy: float | None = 1.0
    answer_bpb: float | None = 0.01
    perplexity: float | None = 1.0
    speed: float | None = 5.0
    flips: float | None = None
    sizes: bool = True
    tasks: Mapping[str, float] = field(default_factory=dict)
    allow: tuple[str, ...] = ()

    def of(self, row: ComparedRow) -> float | None:
        """Return the margin of a row in the scale of its change; a task without a margin has that of the accuracy."""
        if row.kind == "text":
            return None if self.perplexity is None else math.log1p(self.perplexity / 100)
        if row.kind == "speed":
            return None if self.speed is None else -math.log1p(-self.speed / 100)
        if row.kind == "bits":
            return self.answer_bpb
        if row.kind == "flips":
            return None if self.flips is None else self.flips / 100
        points = self.tasks.get(row.task, self.accuracy) if row.kind == "task" else self.accuracy
        return None if points is None else points / 100

    def gates(self, row: ComparedRow) -> bool:
        """Say whether a row gates; a task does where a margin names it, or where the run does not have it."""
        if row.kind == "task":
            return row.task in self.tasks or (row.after is None and self.accuracy is not None)
        return self.sizes if row.kind == "size" else self.of(row) is not None


def read_margins(file: Path | None) -> Margins:
    """Return the margins of a YAML file, the defaults without one. Raises UserError."""
    if file is None:
        return Margins()
    plain = run_spec.read_yaml(file, f"--margins: {file}") or {}
    if not isinstance(plain, dict):
        raise UserError(f"--margins: {file} is a table of names and margins, as in `accuracy: 1.0`")
    names = tuple(Margins.__dataclass_fields__)
    if unknown := [str(key) for key in plain if key not in names]:
        raise UserError(f"--margins: {file} has the unknown key {unknown[0]!r}; there are {', '.join(names)}")
    return Margins(**{key: _check_value(file, key, value) for key, value in plain.items()})


def _check_value(file: Path, key: str, value: Any) -> Any:
    where = f"--margins: {file}: {key}"
    if key == "allow":
        if not isinstance(value, list):
            raise UserError(f"{where} is a list of fields, as in [cpu, threads]; got {value!r}")
        try:
            return parse_allowed(",".join(map(str, value)))
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    if key == "sizes":
        if value != "exact" and not _is_off(value):
            raise UserError(f"{where} is exact or off; got {value!r}")
        return value == "exact"
    if key == "tasks":
        if not isinstance(value, dict):
            raise UserError(f"{where} has a margin for each task, as in {{hellaswag: 2.0}}; got {value!r}")
        return {str(task): _margin(f"{where}.{task}", points) for task, points in value.items()}
    return None if _is_off(value) else _margin(where, value)


def _is_off(value: Any) -> bool:
    """Say whether a value of YAML is off; YAML 1.1 reads that as false."""
    return value is False or value == "off"


def _margin(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 100:
        raise UserError(f"{where} is a number of points, bits or percent from 0 to below 100, or off; got {value!r}")
    return float(value)


@dataclass(frozen=True)
class Verdict:
    """Holds the verdict on one metric of a cell, or on the cell as a whole (metric CELL).

    gates    whether it counts for the exit code
    p        adjusted over those that gate, or over those that do not; None where nothing was tested
    margin   in the scale of ComparedRow.change
    findable in the same scale, the smallest true loss that is judged worse with the probability
             bench.stats.intervals.POWER, at the strictest level that the adjustment gives it
    reason   words that explain the verdict; empty where it explains itself
    """

    cell: str
    metric: str
    word: str
    gates: bool = True
    row: ComparedRow | None = None
    p: float | None = None
    margin: float | None = None
    reason: str = ""
    findable: float | None = None


def pair_runs(
    baseline: Mapping[str, CellResults], run: Mapping[str, CellResults], mapping: Mapping[str, str]
) -> list[tuple[str, CellResults | None, CellResults | None, bool]]:
    """Return (name, cell of the baseline, cell of the run, whether `mapping` paired them), the missing ones last.

    mapping   labels of the run -> labels of the baseline: pairs cells of one ratio and seed, or with one without ratio
    """
    pairs = []
    for name, cell in run.items():
        label = cell.identity["label"]
        if label not in mapping:
            pairs.append((name, baseline.get(name), cell, False))
            continue
        base = _twin(cell, mapping[label], baseline)
        pairs.append((f"{name} against {base.name}" if base else name, base, cell, True))
    used = {id(base) for _, base, _, _ in pairs}
    missing = [name for name in baseline if name not in run and id(baseline[name]) not in used]
    return pairs + [(name, baseline[name], None, False) for name in missing]


def _twin(cell: CellResults, label: str, baseline: Mapping[str, CellResults]) -> CellResults | None:
    """Return the baseline's cell of that label whose ratio, seed and draw are those of `cell`; None without one."""
    for candidate in baseline.values():
        expected = {**cell.identity, "label": label}
        identity = {name: value for name, value in candidate.identity.items() if value is not None}
        if all(expected.get(name) == value for name, value in identity.items()):
            return candidate
    return None


def keep_shared_cells(
    baseline: Mapping[str, CellResults], run: Mapping[str, CellResults], mapping: Mapping[str, str]
) -> dict[str, CellResults]:
    """Return the cells of the baseline that the run has too. Raises UserError where there is none."""
    shared = {base.name for _, base, new, _ in pair_runs(baseline, run, mapping) if base and new}
    if not shared:
        raise UserError(
            f"--partial: the run has no cell of the baseline: {'; '.join(run)} beside {'; '.join(baseline)}; "
            "measure one of these too, as by --methods dense"
        )
    return {name: cell for name, cell in baseline.items() if cell.name in shared}


def parse_mapping(texts: Sequence[str], run: Collection[str], baseline: Collection[str]) -> dict[str, str]:
    """Return {label of the run: label of the baseline} of words such as 'mine=laco'. Raises UserError."""
    mapping = {}
    for text in texts:
        cuts = [(text[:place], text[place + 1 :]) for place, character in enumerate(text) if character == "="]
        possible = [(new, base) for new, base in cuts if new in run and base in baseline]
        if len(possible) != 1:
            raise UserError(
                f"--map is written NEW=BASE, labels of the run ({', '.join(dict.fromkeys(run))}) and of the baseline "
                f"({', '.join(dict.fromkeys(baseline))}); got {text!r}"
            )
        mapping[possible[0][0]] = possible[0][1]
    return mapping


def judge(
    baseline: Mapping[str, CellResults],
    run: Mapping[str, CellResults],
    margins: Margins,
    mapping: Mapping[str, str] | None = None,
) -> list[Verdict]:
    """Return the verdicts in the order of the run's cells. Raises UserError for a margin of a task that cannot gate."""
    verdicts: list[Verdict] = []
    for name, base, new, mapped in pair_runs(baseline, run, mapping or {}):
        whole = _whole(name, base, new)
        if whole is not None:
            verdicts.append(whole)
            continue
        assert base is not None and new is not None
        rows = compare_cells(base, new, margins.allow)
        alone = len(new.tasks) == len(base.tasks) == 1 and any(row.kind == "accuracy" for row in rows)
        for row in rows:
            if row.kind == "task" and alone and row.task not in margins.tasks:
                continue  # the accuracy over all tasks says the same
            if row.kind == "bits of a task" or (row.kind == "flips" and margins.flips is None):
                continue  # `compare` shows them
            gates = margins.gates(row) and not (mapped and row.kind == "size")  # other methods meet a budget otherwise
            verdicts.append(Verdict(name, row.metric, "", gates, row, None, margins.of(row)))
    _refuse_unknown(margins, [*baseline.values(), *run.values()], [v.row for v in verdicts if v.row is not None])
    adjusted = _adjust_p(verdicts)
    total = sum(_weight(v) for v in verdicts if v.gates)
    verdicts = [v if v.row is None else replace(v, findable=_findable(v, v.row, total)) for v in verdicts]
    return [v if v.row is None else _decide(v, v.row, adjusted.get(number)) for number, v in enumerate(verdicts)]


def _refuse_unknown(margins: Margins, cells: Sequence[CellResults], rows: Sequence[ComparedRow]) -> None:
    """Raise UserError for a margin of a task that no cell measures, or that has no accuracy."""
    tasks = dict.fromkeys(task for cell in cells for task in (*cell.tasks, *cell.bits, *cell.requested_tasks))
    if unknown := [task for task in margins.tasks if task not in tasks]:
        names = ", ".join(tasks) or "none"
        raise UserError(f"--margins: tasks has {unknown[0]}, which no cell measured; there are {names}")
    if margins.flips is not None and rows and not any(row.kind == "flips" for row in rows):
        raise UserError("--margins: flips are of the dense model's answers, and neither run has its dense cell")
    for row in rows:
        if row.kind == "task" and row.task in margins.tasks and row.after is not None and not row.is_accuracy:
            raise UserError(f"--margins: {row.metric} is no accuracy and cannot gate")
    for task in margins.tasks:
        if any(task in cell.bits and task not in cell.tasks for cell in cells):
            raise UserError(f"--margins: {task} has no accuracy and cannot gate; answer_bpb is its margin")


def _weight(verdict: Verdict) -> float:
    """Return the weight of a verdict among all verdicts tested together; 0 where nothing is tested."""
    row = verdict.row
    return WEIGHTS.get(row.kind, 0.0) if row is not None and row.contrast else 0.0


def _findable(verdict: Verdict, row: ComparedRow, total: float) -> float | None:
    """Return the smallest true loss that the gate finds with the probability POWER; None where it does not gate."""
    if not verdict.gates or not _weight(verdict):
        return None
    return row.detectable(LEVEL * _weight(verdict) / total, verdict.margin or 0.0)


def _whole(name: str, base: CellResults | None, new: CellResults | None) -> Verdict | None:
    """Return the verdict on a cell that has no figures to compare; None where it has."""
    if new is None:
        return Verdict(name, CELL, "missing", reason="the run does not have it")
    if new.status != "ok":
        if base is not None and base.status == new.status:
            return Verdict(name, CELL, "not worse", reason=f"{new.status}, as in the baseline")
        return Verdict(name, CELL, "failed", reason=new.status)
    if base is None or base.status != "ok":
        return Verdict(name, CELL, "new", reason="" if base is None else f"{base.status} in the baseline")
    return None


def _adjust_p(verdicts: Sequence[Verdict]) -> dict[int, float]:
    """Return {number of a verdict: adjusted p}; verdicts that gate are one family, those only shown another."""
    adjusted: dict[int, float] = {}
    for gates in (True, False):
        family = {
            number: v.row
            for number, v in enumerate(verdicts)
            if v.gates is gates and v.row is not None and v.row.contrast and v.row.kind in WEIGHTS
        }
        p = [row.contrast.p for row in family.values() if row.contrast]
        adjusted |= dict(zip(family, intervals.holm(p, [WEIGHTS[row.kind] for row in family.values()]), strict=True))
    return adjusted


def _decide(verdict: Verdict, row: ComparedRow, p: float | None) -> Verdict:
    if row.differs:
        words = "; ".join(f"{name} differs: {values}" for name, values in row.differs)
        return replace(verdict, word="incomparable", reason=words)
    if row.before is None or row.after is None:
        return replace(verdict, word="new" if row.before is None else "missing")
    if row.kind == "size":
        word = "not worse" if row.after == row.before else "better" if row.after < row.before else "worse"
        return replace(verdict, word=word)
    if row.contrast is None:
        return replace(verdict, word="inconclusive", reason="nothing to pair: a single window, or other text")
    if row.kind == "task" and not row.is_accuracy:
        return replace(verdict, word="inconclusive", p=p, reason="which way is better is not known of this metric")
    return _judge_row(replace(verdict, p=p), row)


def _judge_row(verdict: Verdict, row: ComparedRow) -> Verdict:
    """Return a verdict by the rule at the head of this file; where there is no margin it is 0."""
    margin = verdict.margin or 0.0
    change, low, high = row.changes
    differs = verdict.p < LEVEL if verdict.p is not None else not low <= 0 <= high
    rounding = 1e-12  # 10 of 1,000 documents are one point
    if differs and change < 0 and change <= rounding - margin:
        return replace(verdict, word="worse")
    if differs and change > 0 and change >= margin - rounding:
        return replace(verdict, word="better")
    if low > -margin or change == low == high == 0:
        return replace(verdict, word="not worse")
    same = f"every answer is the same, but {row.count:,} documents do not exclude a loss of the margin"
    unclear = "a loss of the margin is neither shown nor excluded"
    reason = same if row.contrast and row.contrast.lost == row.contrast.gained == 0 else unclear
    return replace(verdict, word="inconclusive", reason=reason if verdict.gates else "")


def find_suspects(verdicts: Sequence[Verdict]) -> list[str]:
    """Return the cells, as verdicts name them, with a regression that counts."""
    return list(dict.fromkeys(v.cell for v in verdicts if v.word == "worse" and v.gates))


def keep_confirmed(first: Sequence[Verdict], second: Mapping[tuple[str, str], Verdict]) -> list[Verdict]:
    """Return the verdicts; a regression that counts stays only where the second measurement has it too.

    second   verdicts with the suspected cells measured again, by cell and metric
    """
    kept = []
    for v in first:
        again = second.get((v.cell, v.metric), second.get((v.cell, CELL)))
        if v.word != "worse" or not v.gates or again is None:
            kept.append(v)
        elif again.word == "worse":
            kept.append(replace(v, reason="measured twice"))
        elif again.word == "failed":
            kept.append(replace(v, word="failed", reason=f"worse, and {again.reason} when measured again"))
        else:
            kept.append(replace(v, word="inconclusive", reason=f"worse at first, {again.word} when measured again"))
    return kept


def exit_code_of(verdicts: Sequence[Verdict], *, strict: bool = False) -> int:
    """Return 0 for ok, else the first of 1 a regression, 4 incomparable, 3 incomplete (`strict`: or inconclusive)."""
    words = {v.word for v in verdicts if v.gates}
    if "worse" in words:
        return REGRESSION
    if "incomparable" in words:
        return INCOMPARABLE
    return INCOMPLETE if words & {"failed", "missing", *(("inconclusive",) if strict else ())} else 0


@dataclass(frozen=True)
class JudgedRow:
    """Holds a row and its verdict.

    p           adjusted for all that the comparison tests; None where there is none
    detectable  the smallest true change that the test shows with the probability bench.stats.intervals.POWER, at the
                strictest level that the adjustment gives it, in the scale of ComparedRow.change
    """

    cells: str
    row: ComparedRow
    p: float | None
    verdict: str
    detectable: float | None = None


def pair_cells(
    a: str, b: str, samples: Sequence[Path | None] = (None, None)
) -> list[tuple[str, CellResults, CellResults]]:
    """Return (name, cell of A, cell of B) of two cells, or of the cells of two runs by label, ratio and seed.

    samples  where those of A and of B lie, which lm-eval has scored; None: beside its results
    """
    cells_of_a, cells_of_b = _side(a, samples[0]), _side(b, samples[1])
    if not any(run_folder.is_run(Path(named)) for named in (a, b)):
        (first,), (second,) = cells_of_a.values(), cells_of_b.values()
        pairs = [(first.name if first.name == second.name else f"{first.name} → {second.name}", first, second)]
    else:
        pairs = [(name, cells_of_a[name], cells_of_b[name]) for name in cells_of_a if name in cells_of_b]
    if not pairs:
        raise UserError(
            f"no cell of {a} has label, ratio and seed of one of {b}: "
            f"{'; '.join(cells_of_a)} against {'; '.join(cells_of_b)}; name two cells as RUN/CELL"
        )
    return pairs


def _side(named: str, samples: Path | None = None) -> dict[str, CellResults]:
    """Return the cells of a run folder, the one cell of RUN/CELL, or that of another program's output."""
    if run_folder.is_run(Path(named)):
        return results_of_run(Path(named))
    if is_other_output(Path(named)):
        cell = read_other_output(Path(named), samples)
    elif parts := run_folder.split_name(named):
        cell = results_of_named_cell(*parts)
    else:
        raise UserError(f"{named} is neither a run folder nor a cell of one, as RUN/CELL, nor {PROGRAMS}")
    return {cell.name: cell}


def reason_for_refusal(pairs: Mapping[str, Sequence[ComparedRow]]) -> str | None:
    """Return one line on why these cells cannot be compared; None where they can."""
    differences: dict[str, str] = {}
    for cells, compared in pairs.items():
        for row in compared:
            for name, words in row.differs:
                differences.setdefault(name, f"{name} ({words} in {cells}, for {row.metric})")
    if not differences:
        return None
    words, names = "; ".join(differences.values()), ",".join(differences)
    return f"not comparable, these differ: {words}; --allow {names} compares all the same"


def judge_rows(pairs: Mapping[str, Sequence[ComparedRow]]) -> list[JudgedRow]:
    """Return every row with its verdict; p values are adjusted (intervals.holm) for their number in the table.

    Flips go by their interval. They are of the same answers as the accuracy, and would take power from its test.
    """
    every = [(cells, row) for cells, compared in pairs.items() for row in _without_repetition(compared)]
    with_p = [number for number, (_, row) in enumerate(every) if row.contrast and not np.isnan(row.contrast.p)]
    tested = [number for number in with_p if every[number][1].kind != "flips"]
    adjusted = intervals.holm([every[number][1].contrast.p for number in tested])  # type: ignore[union-attr]
    p = dict(zip(tested, adjusted, strict=True))
    judged = []
    for number, (cells, row) in enumerate(every):
        detectable = row.detectable(ALPHA / len(tested)) if number in p else None
        judged.append(JudgedRow(cells, row, p.get(number), _verdict(row, p.get(number)), detectable))
    return judged


def _without_repetition(compared: Sequence[ComparedRow]) -> list[ComparedRow]:
    """Return the rows without that over all tasks where there is one task, since its own row says the same."""
    kinds = [row.kind for row in compared]
    same = [whole for whole, single in (("accuracy", "task"), ("bits", "bits of a task")) if kinds.count(single) == 1]
    return [row for row in compared if row.kind not in same]


def _verdict(row: ComparedRow, p: float | None) -> str:
    if row.before is None or row.after is None:
        return "only in B" if row.before is None else "only in A"
    if row.kind == "size":
        return "same" if row.before == row.after else "smaller" if row.after < row.before else "larger"
    if row.contrast is None:
        return "not paired"
    _, low, high = row.changes
    if p > ALPHA if p is not None else low <= 0 <= high:
        return "no difference shown"
    if row.kind == "task" and not row.is_accuracy:
        return "differs"  # which way is better is not known of every metric
    return "better" if row.change > 0 else "worse"
