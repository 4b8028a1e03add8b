"""Opens run folders, packed or with a file for each cell: records, samples, data frames, and several runs as one.

    results/RUN/cells/KEY.json, samples/KEY/NAME.parquet      a run in progress, or one that was not packed
    results/RUN/records.jsonl, samples/NAME.parquet           a packed run (bench.records.packed_run)

KEY is the name of a cell; a command takes it, the start of it, or the cell's label, as RUN/CELL.

Joins run folders into one: those of machines that know nothing of each other, each with a part of the cells.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.plan.protocol import text_name
from bench.records import frame as columns
from bench.records import packed_run, served
from bench.records.comparability import MOST, brief, conditions_of, differing, flat, setups
from bench.records.record import LEFT_OUT, InvalidRecord, Record, load
from bench.records.sample_tables import CELL, refuse_unfit
from bench.records.samples import SampleFiles, Samples
from bench.records.served import ServedRecord
from methods.checkpoint.weight_files import staged
from methods.console import say
from methods.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


def is_run(folder: Path) -> bool:
    """Say whether a folder is that of a run, with or without a record yet."""
    return packed_run.is_packed(folder) or (folder / "cells").is_dir()


def files(run: Path) -> list[Path]:
    """Return the files that hold the records of a run folder, none where it is no run."""
    return [run / packed_run.RECORDS] if packed_run.is_packed(run) else sorted((run / "cells").glob("*.json"))


def records(run: Path, told: Callable[[str], None] = say) -> dict[str, Record]:
    """Read the records of a run folder: {key: record}, without those that do not fit.

    told  is told of each that is left out, in a line

    Raises UserError where it is no run folder, and where no record fits.
    """
    sound, wrong = _read(run)
    packed_run.refuse_none_left(run, sound, wrong)
    _tell(wrong, told)
    return sound


def unsaid(_: str) -> None:
    """Say nothing of a record that is left out, where that has been said."""


def _tell(wrong: Mapping[str, InvalidRecord], told: Callable[[str], None]) -> None:
    for error in wrong.values():
        told(f"{error}; {LEFT_OUT}")


def _read(run: Path) -> tuple[dict[str, Record], dict[str, InvalidRecord]]:
    """Read a run folder: its records by key, and why others are none. Raises UserError where it is no run folder."""
    found = files(run)
    if not found:
        raise UserError(f"{run} is no run folder: it has no cells/*.json and no {packed_run.RECORDS}")
    sound, wrong = dict[str, Record](), dict[str, InvalidRecord]()
    if packed_run.is_packed(run):
        read = {line.key: line.record for line in packed_run.lines(run)}
    else:
        read = {path.stem: _loaded(path) for path in found}
    for key, one in read.items():
        if isinstance(one, Record):
            sound[key] = one
        else:
            wrong[key] = one
    return sound, wrong


def _loaded(path: Path) -> Record | InvalidRecord:
    try:
        return load(path)
    except InvalidRecord as error:
        return error


def load_run(run: Path, told: Callable[[str], None] = say) -> list[Record]:
    """Read the records of a run folder, in the order of their keys, as `records` does. Raises UserError."""
    return list(records(run, told).values())


def samples_folder(run: Path, key: str) -> Path:
    """Return what the samples of a cell are called by, see bench.records.samples."""
    return run / "samples" / key


def cell(run: Path, wanted: str, told: Callable[[str], None] = say) -> tuple[str, Record]:
    """Return the one cell of a run whose key is `wanted`, else whose label, else whose key starts so.

    told  is told of each record that may have been meant and does not fit, in a line

    Raises UserError where there is none, where there are several, and where its record does not fit.
    """
    if not packed_run.is_packed(run) and (path := run / "cells" / f"{wanted}.json").is_file():
        return wanted, load(path)
    every, wrong = _read(run)
    if wanted in every:
        return wanted, every[wanted]
    found = [key for key, record in every.items() if record.cell.get("label") == wanted]
    found = found or [key for key in (*every, *wrong) if key.startswith(wanted)]
    if len(found) == 1 and found[0] in wrong:
        raise wrong[found[0]]
    _tell(wrong, told)
    if len(found) != 1:
        which = f"names {len(found)} cells" if found else "is no cell"
        raise UserError(f"{wanted!r} {which} of {run}; it has {', '.join(found or every) or 'none that fits'}")
    return found[0], every[found[0]]


def split(named: str) -> tuple[Path, str] | None:
    """Cut RUN/CELL into run and cell, RUN being the longest start of it that is a run, since a label may hold a slash.

    CELL may also be a file, RUN/cells/CELL.json. None where no start of it is a run folder.
    """
    cuts = [position for position, character in enumerate(named) if character == "/"]
    for cut in reversed(cuts):
        folder, wanted = Path(named[:cut] or "/"), named[cut + 1 :]
        if wanted and is_run(folder):
            return folder, wanted
        if wanted and folder.name == "cells" and folder.is_dir():
            return folder.parent, wanted.removesuffix(".json")
    return None


def read(run: Path | str) -> pd.DataFrame:
    """Read a run folder as a data frame: a row for each cell, by its key; columns as bench.records.frame lists them.

    A record that does not fit is left out, and said on stderr. Raises UserError where it is no run folder.
    """
    found = records(Path(run))
    frame = columns.frame(list(found.values()))
    frame.insert(0, CELL, list(found))
    return frame


def samples(run: Path | str, task: str) -> pd.DataFrame:
    """Read what the cells of a run answered: a row for each cell, by the column `cell`, and document of a task.

    A text goes by "perplexity-TEXT", with a row for each window. Raises UserError where no cell has such samples.
    """
    import pandas as pd

    run = Path(run)
    tables = SampleFiles()
    found = {key: tables.table(record, samples_folder(run, key), task) for key, record in records(run).items()}
    frames = {key: table.to_pandas() for key, table in found.items() if table is not None}
    if not frames:
        names = sorted({path.stem for path in (run / "samples").rglob("*.parquet")})
        raise UserError(f"{run} has no samples of {task!r}; it has {', '.join(names) or 'none at all'}")
    return pd.concat(frames, names=[CELL]).reset_index(level=0).reset_index(drop=True)


def refuse_unfit_samples(run: Path, found: Mapping[str, Record], files: SampleFiles) -> None:
    """Raise InvalidRecord where figures of records of a run, by key, do not follow from the samples that it has."""
    for key, record in found.items():
        texts = (f"perplexity-{text_name(text)}" for text in record.measured.get("perplexity", {}))
        for name in (*record.measured.get("tasks", {}), *texts):
            files.table(record, samples_folder(run, key), name)


@dataclass(frozen=True)
class Merged:
    """Hold the records of several runs, a cell that occurs twice once, with their samples.

    remarks   what keeps some of the runs from being compared, by name
    served    what inference engines made of their models
    left_out  a line on each record that does not fit
    """

    records: list[Record]
    samples: Samples
    remarks: list[str]
    served: list[ServedRecord] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """Return all that a page or a whole report says of the records."""
        return [*self.left_out, *self.remarks]


def load_runs(runs: Sequence[Path]) -> Merged:
    """Read several runs as one. Raises UserError where one is no run folder, and where no record fits."""
    cells: dict[str, tuple[Record, Path]] = {}
    every = list[tuple[Path, Record]]()
    again, left_out, wrong = 0, list[str](), dict[str, InvalidRecord]()
    rows, rows_left_out, files = list[ServedRecord](), list[str](), SampleFiles()
    for run in runs:
        sound, others = _read(run)
        wrong |= {f"{run}/{key}": error for key, error in others.items()}
        for key, record in sound.items():
            every.append((run, record))
            same = json.dumps(record.cell, sort_keys=True)
            again += same in cells
            if same not in cells or _rank(record) > _rank(cells[same][0]):
                cells[same] = (record, samples_folder(run, key))
        rows += [one for one in served.load(run, rows_left_out.append) if one.key in others or _is_of(one, sound)]
    packed_run.refuse_none_left(runs[0], cells, wrong)
    _tell(wrong, left_out.append)
    found = [record for record, _ in cells.values()]
    kept = Samples([folder for _, folder in cells.values()], found, files)
    first: dict[str, tuple[Path, Mapping[str, Any]]] = {}
    for key, (run, record) in zip(setups([record for _, record in every]), every, strict=True):
        first.setdefault(key, (run, conditions_of(record)))
    engines: dict[str, ServedRecord] = {}
    for one in rows:
        engines.setdefault(served.measurement(one), one)
    said = [*_twice(again), *_apart(list(first.values()))]
    return Merged(found, kept, said, list(engines.values()), [*left_out, *rows_left_out])


def _is_of(row: ServedRecord, sound: Mapping[str, Record]) -> bool:
    """Say whether a served model is that of its cell today, and not of a record that was set aside."""
    record = sound.get(row.key)
    return record is not None and row.model.get("pruned_sha256") == record.measured.get("pruned_sha256")


def _rank(record: Record) -> tuple[bool, str]:
    """Return what sorts records of one cell: a measured one is above a failed one, then the newest."""
    return record.status == "ok", str(record.environment.get("date", ""))


def _twice(count: int) -> list[str]:
    if not count:
        return []
    noun = "cell stands" if count == 1 else "cells stand"
    return [f"{count} {noun} in several runs; of each the newest that was measured is reported."]


def _apart(found: Sequence[tuple[Path, Mapping[str, Any]]]) -> Iterator[str]:
    """Say of each setup but the first why it stands apart."""
    for run, conditions in found[1:]:
        first, other = flat(found[0][1]), flat(conditions)
        fields = differing([first, other])
        if "model" in fields:  # from which its tokens and weights follow
            fields = [name for name in fields if name.partition(".")[0] != "inputs"]
        shown = [f"{name} is {brief(other.get(name))}, not {brief(first.get(name))}" for name in fields[:MOST]]
        more = f", and {len(fields) - MOST} more fields" if len(fields) > MOST else ""
        where = "within one run" if run == found[0][0] else f"with those of {found[0][0].name}"
        yield f"{run.name}: cells are not compared {where} and stand in tables of their own: {', '.join(shown)}{more}."


def merge(parts: Sequence[Path], out: Path) -> dict[str, Record]:
    """Write the cells of all parts, packed or not, with samples and saved models to the new folder `out`; return them.

    A cell of one key and one content in several parts is taken once. What inference engines made of a model is joined
    as `served.join` says. Raises UserError, and writes nothing, where a part is no run folder or has a record that does
    not fit, where two have different records of one key, where samples are damaged, where a saved model has links, and
    where `out` has files.
    """
    found: dict[str, tuple[Path, Record]] = {}
    for part in parts:
        for key, record in records(part, _refuse).items():
            first, known = found.setdefault(key, (part, record))
            if known != record:
                raise UserError(
                    f"{key} is in {first} and in {part}, and not the same: it was measured twice; leave one of the two "
                    "out, or compare the parts as runs of their own"
                )
    with staged(out) as folder:
        for part in parts:
            if packed_run.is_packed(part):
                packed_run.unpack(part, folder)
        for key, (part, record) in found.items():
            if not packed_run.is_packed(part):
                _copy(part, key, record, folder)
            _copy_model(part / "models" / key, folder / "models" / key)
        served.join(parts, folder)
    return {key: record for key, (_, record) in found.items()}


def _refuse(wrong: str) -> None:
    """Raise UserError for a record that does not fit, which would be lost."""
    raise UserError(f"{wrong.removesuffix(f'; {LEFT_OUT}')}; mend it, or move it out of the part")


def _copy_model(model: Path, target: Path) -> None:
    """Copy the saved model of a cell, where there is one. Raises UserError where it has links."""
    if not model.is_dir():
        return
    if link := next((path for path in (model.parent, model, *model.rglob("*")) if path.is_symlink()), None):
        raise UserError(f"{link} is a link, and what it leads to is not copied; put the files there, or remove it")
    shutil.copytree(model, target)


def _copy(part: Path, key: str, record: Record, folder: Path) -> None:
    """Copy a cell's record, and its samples where they are those that the record names."""
    refuse_unfit(samples_folder(part, key), record.measured)
    samples = samples_folder(folder, key)
    for path in sorted(samples_folder(part, key).glob("*.parquet")):
        samples.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, samples)
    target = folder / "cells" / f"{key}.json"
    target.parent.mkdir(exist_ok=True)
    shutil.copy(part / "cells" / target.name, target)
