"""Opens run folders, packed or not: their records, samples and data frames; reads several as one, or joins them.

    results/RUN/cells/KEY.json, samples/KEY/NAME.parquet      a run in progress, or one that was not packed
    results/RUN/records.jsonl, samples/NAME.parquet           a packed run (bench.records.packed_run)

KEY is the key of a cell. A command takes it, the start of it, or the cell's label, as RUN/CELL.

Runs that are joined into one folder may come from machines that know nothing of each other, each with some cells.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.plan.protocol import name_of_samples
from bench.records import frame as columns
from bench.records import packed_run, served
from bench.records.comparability import (
    MOST,
    conditions_of_table,
    flatten,
    names_of_differences,
    setups_of_records,
    shorten_value,
)
from bench.records.record import LEFT_OUT, InvalidRecord, Record, load
from bench.records.sample_tables import CELL, refuse_unfit
from bench.records.samples import SampleFiles, Samples
from bench.records.selection import EVERY, Selection
from bench.records.served import ServedRecord
from methods.checkpoint.weight_files import write_folder_whole
from methods.console import say
from methods.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


def is_run(folder: Path) -> bool:
    """Say whether a folder is that of a run, with or without a record yet."""
    return packed_run.is_packed(folder) or (folder / "cells").is_dir()


def files_of_records(run: Path) -> list[Path]:
    """Return the files that hold the records of a run folder, none where it is no run."""
    return [run / packed_run.RECORDS] if packed_run.is_packed(run) else sorted((run / "cells").glob("*.json"))


def read_records(run: Path, warn: Callable[[str], None] = say) -> dict[str, Record]:
    """Return {key: record} of a run folder; records that do not fit the layout are left out.

    warn  gets a line on each that is left out

    Raises UserError where it is no run folder, and where no record fits.
    """
    sound, wrong = _read(run)
    packed_run.refuse_none_left(run, sound, wrong)
    _warn_of(wrong, warn)
    return sound


def ignore_warning(_: str) -> None:
    """Print nothing on a record that is left out, where that has been printed before."""


def _warn_of(wrong: Mapping[str, InvalidRecord], warn: Callable[[str], None]) -> None:
    for error in wrong.values():
        warn(f"{error}; {LEFT_OUT}")


def _read(run: Path) -> tuple[dict[str, Record], dict[str, InvalidRecord]]:
    """Return the records that fit the layout, and the errors of others, by key. Raises UserError for another folder."""
    files = files_of_records(run)
    if not files:
        raise UserError(f"{run} is no run folder: it has no cells/*.json and no {packed_run.RECORDS}")
    sound, wrong = dict[str, Record](), dict[str, InvalidRecord]()
    if packed_run.is_packed(run):
        read = {line.key: line.record for line in packed_run.read_lines(run)}
    else:
        read = {path.stem: _load_record(path) for path in files}
    for key, record in read.items():
        if isinstance(record, Record):
            sound[key] = record
        else:
            wrong[key] = record
    return sound, wrong


def _load_record(path: Path) -> Record | InvalidRecord:
    try:
        return load(path)
    except InvalidRecord as error:
        return error


def load_run(run: Path, warn: Callable[[str], None] = say) -> list[Record]:
    """Return the records of a run folder in the order of their keys, as `read_records` does. Raises UserError."""
    return list(read_records(run, warn).values())


def folder_of_samples(run: Path, key: str) -> Path:
    """Return the folder that names the samples of a cell, see bench.records.samples."""
    return run / "samples" / key


def find_cell(run: Path, name: str, warn: Callable[[str], None] = say) -> tuple[str, Record]:
    """Return (key, record) of the cell of a run whose key is `name`, else whose label, else whose key starts so.

    warn  gets a line on each record that may have been meant and does not fit

    Raises UserError where there is none, where there are several, and where its record does not fit.
    """
    if not packed_run.is_packed(run) and (path := run / "cells" / f"{name}.json").is_file():
        return name, load(path)
    every, wrong = _read(run)
    if name in every:
        return name, every[name]
    keys = [key for key, record in every.items() if record.cell.label == name]
    keys = keys or [key for key in (*every, *wrong) if key.startswith(name)]
    if len(keys) == 1 and keys[0] in wrong:
        raise wrong[keys[0]]
    _warn_of(wrong, warn)
    if len(keys) != 1:
        which = f"names {len(keys)} cells" if keys else "is no cell"
        raise UserError(f"{name!r} {which} of {run}; it has {', '.join(keys or every) or 'none that fits'}")
    return keys[0], every[keys[0]]


def split_name(named: str) -> tuple[Path, str] | None:
    """Return (run, cell) of RUN/CELL; None where no start of it is a run folder.

    RUN is the longest start that is a run, since a label may hold a slash. CELL may also be a file, as in
    RUN/cells/CELL.json.
    """
    cuts = [position for position, character in enumerate(named) if character == "/"]
    for cut in reversed(cuts):
        folder, key = Path(named[:cut] or "/"), named[cut + 1 :]
        if key and is_run(folder):
            return folder, key
        if key and folder.name == "cells" and folder.is_dir():
            return folder.parent, key.removesuffix(".json")
    return None


def read(run: Path | str) -> pd.DataFrame:
    """Return a run folder as a data frame: a row for each cell, by its key; columns as bench.records.frame lists them.

    A record that does not fit is left out, with a line on stderr. Raises UserError where it is no run folder.
    """
    records = read_records(Path(run))
    samples = Samples([folder_of_samples(Path(run), key) for key in records], list(records.values()))
    frame = columns.frame_of_records(list(records.values()), samples)
    frame.insert(0, CELL, list(records))
    return frame


def samples(run: Path | str, task: str) -> pd.DataFrame:
    """Return the samples of a task: a row for each cell, by the column `cell`, and document.

    A text goes by "perplexity-TEXT", with a row for each window. Raises UserError where no cell has such samples.
    """
    import pandas as pd

    run = Path(run)
    tables = SampleFiles()
    table_by_key = {
        key: tables.table(record, folder_of_samples(run, key), task) for key, record in read_records(run).items()
    }
    frames = {key: table.to_pandas() for key, table in table_by_key.items() if table is not None}
    if not frames:
        names = sorted({path.stem for path in (run / "samples").rglob("*.parquet")})
        raise UserError(f"{run} has no samples of {task!r}; it has {', '.join(names) or 'none at all'}")
    return pd.concat(frames, names=[CELL]).reset_index(level=0).reset_index(drop=True)


def refuse_unfit_samples(run: Path, records: Mapping[str, Record], files: SampleFiles) -> None:
    """Raise InvalidRecord where values of a run's records, {key: record}, do not follow from its samples."""
    for key, record in records.items():
        texts = map(name_of_samples, record.measured.scores_of_windows)
        for name in (*record.measured.task_scores, *texts):
            files.table(record, folder_of_samples(run, key), name)


@dataclass(frozen=True)
class Merged:
    """Holds the records of several runs with their samples; a cell that several runs have is there once.

    remarks   lines on why some of the runs are not compared, by name
    served    their served records
    left_out  a line on each record that does not fit
    """

    records: list[Record]
    samples: Samples
    remarks: list[str]
    served: list[ServedRecord] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """Return the lines that a page or a whole report prints about the records."""
        return [*self.left_out, *self.remarks]


def load_runs(runs: Sequence[Path], selection: Selection = EVERY) -> Merged:
    """Return several runs as one.

    selection  which of their cells; by default all

    Raises UserError where one is no run folder, where no record fits, and where the selection names what none has.
    """
    cells: dict[str, tuple[Record, Path]] = {}
    every, whole = list[tuple[Path, Record]](), list[Record]()
    again, left_out, wrong = 0, list[str](), dict[str, InvalidRecord]()
    rows, rows_left_out, files = list[ServedRecord](), list[str](), SampleFiles()
    for run in runs:
        sound, misfits = _read(run)
        wrong |= {f"{run}/{key}": error for key, error in misfits.items()}
        whole += sound.values()
        sound = {key: record for key, record in sound.items() if selection.selects(record)}
        for key, record in sound.items():
            every.append((run, record))
            same = json.dumps(record.cell.plain(), sort_keys=True)
            again += same in cells
            if same not in cells or _rank(record) > _rank(cells[same][0]):
                cells[same] = (record, folder_of_samples(run, key))
        rows += [row for row in served.load(run, rows_left_out.append) if row.key in misfits or _is_of(row, sound)]
    packed_run.refuse_none_left(runs[0], whole, wrong)
    selection.refuse_unknown(whole)
    _warn_of(wrong, left_out.append)
    records = [record for record, _ in cells.values()]
    kept = Samples([folder for _, folder in cells.values()], records, files)
    first: dict[str, tuple[Path, Mapping[str, Any]]] = {}
    for key, (run, record) in zip(setups_of_records([record for _, record in every]), every, strict=True):
        first.setdefault(key, (run, conditions_of_table(record)))
    engines: dict[str, ServedRecord] = {}
    for row in rows:
        engines.setdefault(served.identity_of_measurement(row), row)
    remarks = [*_twice(again), *_sentences_on_setups(list(first.values()))]
    return Merged(records, kept, remarks, list(engines.values()), [*left_out, *rows_left_out])


def _is_of(row: ServedRecord, sound: Mapping[str, Record]) -> bool:
    """Say whether a served record is of the model that its cell has now, and not of a superseded record."""
    record = sound.get(row.key)
    return record is not None and row.model.get("pruned_sha256") == record.measured.pruned_sha256


def _rank(record: Record) -> tuple[bool, str]:
    """Return the rank of a record among those of one cell: a measured one is above a failed one, then the newest."""
    return record.status == "ok", str(record.environment.get("date", ""))


def _twice(count: int) -> list[str]:
    if not count:
        return []
    noun = "cell stands" if count == 1 else "cells stand"
    return [f"{count} {noun} in several runs; of each the newest that was measured is reported."]


def _sentences_on_setups(cells: Sequence[tuple[Path, Mapping[str, Any]]]) -> Iterator[str]:
    """Yield a sentence on each setup but the first: why it stands in tables of its own.

    None of another model in the same run, whose tables have its name.
    """
    for run, conditions in cells[1:]:
        first, second = flatten(cells[0][1]), flatten(conditions)
        fields = names_of_differences([first, second])
        if "model" in fields:  # from which its tokens and weights follow
            fields = [name for name in fields if name.partition(".")[0] != "inputs"]
        if fields == ["model"] and run == cells[0][0]:
            continue
        words = [
            f"{name} is {shorten_value(second.get(name))}, not {shorten_value(first.get(name))}"
            for name in fields[:MOST]
        ]
        more = f", and {len(fields) - MOST} more fields" if len(fields) > MOST else ""
        where = "within one run" if run == cells[0][0] else f"with those of {cells[0][0].name}"
        yield f"{run.name}: cells are not compared {where} and stand in tables of their own: {', '.join(words)}{more}."


def merge_runs(parts: Sequence[Path], out: Path) -> dict[str, Record]:
    """Write the cells of all parts, packed or not, with samples and saved models to the new folder `out`.

    Returns {key: record}. A cell that several parts have with the same content is taken once. Served records are joined
    as `served.join` says. Raises UserError, and writes nothing, where a part is no run folder or has a record that does
    not fit, where two have different records of one key, where samples are damaged, where a saved model has links, and
    where `out` has files.
    """
    cells: dict[str, tuple[Path, Record]] = {}
    for part in parts:
        for key, record in read_records(part, _refuse).items():
            first, first_record = cells.setdefault(key, (part, record))
            if first_record != record:
                raise UserError(
                    f"{key} is in {first} and in {part}, and not the same: it was measured twice; leave one of the two "
                    "out, or compare the parts as runs of their own"
                )
    with write_folder_whole(out) as folder:
        for part in parts:
            if packed_run.is_packed(part):
                packed_run.unpack_run(part, folder)
        for key, (part, record) in cells.items():
            if not packed_run.is_packed(part):
                _copy(part, key, record, folder)
            _copy_model(part / "models" / key, folder / "models" / key)
        served.join(parts, folder)
    return {key: record for key, (_, record) in cells.items()}


def _refuse(wrong: str) -> None:
    """Raise UserError for a record that does not fit, since it would be lost."""
    raise UserError(f"{wrong.removesuffix(f'; {LEFT_OUT}')}; mend it, or move it out of the part")


def _copy_model(model: Path, target: Path) -> None:
    """Copy the saved model of a cell, where there is one. Raises UserError where it has links."""
    if not model.is_dir():
        return
    if link := next((path for path in (model.parent, model, *model.rglob("*")) if path.is_symlink()), None):
        raise UserError(f"{link} is a link, and what it leads to is not copied; put the files there, or remove it")
    shutil.copytree(model, target)


def _copy(part: Path, key: str, record: Record, folder: Path) -> None:
    """Copy a cell's record, and its samples if their hashes are the record's."""
    refuse_unfit(folder_of_samples(part, key), record.measured)
    samples = folder_of_samples(folder, key)
    for path in sorted(folder_of_samples(part, key).glob("*.parquet")):
        samples.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, samples)
    target = folder / "cells" / f"{key}.json"
    target.parent.mkdir(exist_ok=True)
    shutil.copy(part / "cells" / target.name, target)
