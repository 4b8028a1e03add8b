"""A packed run: the same run in few files, back again byte for byte, and read by every command that reads runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import refused
from made_records import with_measured
from made_runs import answers, cell, nats, speed

from bench.cli.main import main
from bench.records import packed_run, run_folder
from bench.records.record import load, save
from bench.records.samples import SampleFiles
from methods.errors import UserError
from methods.files import hash_file

STUDY = Path(__file__).parents[2] / "docs/results/smollm2-135m-healed"


@pytest.fixture
def run(tmp_path):
    """Three cells, one of them failed, whose records name their samples as those of a run do."""
    folder = tmp_path / "run"
    texts = {"wiki": nats(1), "c4": nats(2)}
    cell(folder, tasks={"piqa": answers(1), "arc": answers(2)}, texts=texts)
    cell(folder, "laco", 0.1, tasks={"piqa": answers(3)}, texts={"wiki": nats(4)}, measured={"speed": speed(1.4)})
    cell(folder, "laco", 0.2, tasks={"piqa": answers(5)}, texts={"wiki": nats(6)}, metric="acc_norm")
    cell(folder, "sleb", 0.1, status="out_of_memory")
    for path in folder.rglob("*.parquet"):
        pd.read_parquet(path).to_parquet(path, index=False)  # as a run writes them
    for path in (folder / "cells").glob("*.json"):
        found = {
            one.stem: {"rows": len(pd.read_parquet(one)), "sha256": hash_file(one)} for one in samples(folder, path)
        }
        record = load(path)
        save(with_measured(record, samples=found or None), path)
    return folder


def samples(run: Path, path: Path) -> list[Path]:
    return sorted((run / "samples" / path.stem).glob("*.parquet"))


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but the lock's."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_packing_and_unpacking_give_every_file_back(run, capsys):
    before = content(run)
    assert main(["pack", str(run)]) == 0
    names = [
        "records.jsonl",
        *(f"samples/{name}.parquet" for name in ("arc", "perplexity-c4", "perplexity-wiki", "piqa")),
    ]
    assert list(content(run)) == names
    assert "4 cells in 5 files" in capsys.readouterr().out
    assert main(["pack", str(run), "--unpack"]) == 0
    assert content(run) == before


def test_a_packed_copy_leaves_the_run_alone(run, tmp_path):
    before = content(run)
    assert main(["pack", str(run), "--out", str(tmp_path / "copy")]) == 0
    assert content(run) == before
    assert run_folder.read_records(tmp_path / "copy") == run_folder.read_records(run)
    lines = [json.loads(line) for line in (tmp_path / "copy" / "records.jsonl").read_text().splitlines()]
    assert [line.pop("key") for line in lines] == [path.stem for path in run_folder.files_of_records(run)]
    assert [{**line, "rows_sha256": 0} for line in lines] == [
        {"rows_sha256": 0} | json.loads(path.read_text()) for path in run_folder.files_of_records(run)
    ]


def record_with_channels(run, channels):
    """Let the first record of a run say that these channels went; return its path."""
    path = run_folder.files_of_records(run)[0]
    plain = json.loads(path.read_text())
    plain["decisions"]["removed_channels"] = channels
    path.write_text(json.dumps(plain, indent=1))
    return path


@pytest.mark.parametrize(
    ("channels", "line"),
    [
        ([[0, 2, 5], [], [63]], ["25", "0", "8000000000000000"]),
        ([[5, 2], [], []], [[5, 2], [], []]),  # an order that bits would lose
        ([[2, 2], [], []], [[2, 2], [], []]),
        ([[10**9], []], [[10**9], []]),  # as many digits as no line should have
        ([], []),
    ],
)
def test_channels_are_bits_of_a_line_and_numbers_again(channels, line, run, tmp_path):
    path = record_with_channels(run, channels)
    packed_run.pack_run(run, tmp_path / "copy")
    (first, *_) = (tmp_path / "copy" / "records.jsonl").read_text().splitlines()
    assert json.loads(first)["decisions"]["removed_channels"] == line
    again = run_folder.read_records(tmp_path / "copy")
    assert again[path.stem].decisions["removed_channels"] == channels
    assert again == run_folder.read_records(run)


def test_lines_with_lists_are_read_and_packed_anew_with_bits(run, tmp_path):
    path = record_with_channels(run, [[1, 3]])
    packed_run.pack_run(run, tmp_path / "new")
    lines = tmp_path / "new" / "records.jsonl"
    packed = lines.read_bytes()
    lines.write_bytes(packed.replace(b'["a"]', b"[[1, 3]]"))
    assert lines.read_bytes() != packed
    assert run_folder.read_records(tmp_path / "new")[path.stem].decisions["removed_channels"] == [[1, 3]]
    packed_run.pack_run(tmp_path / "new", tmp_path / "again")
    assert (tmp_path / "again" / "records.jsonl").read_bytes() == packed


@pytest.mark.parametrize("bits", ["", "xyz", "-5", "0x5", "F", "5 "])
def test_bits_that_are_none_make_a_line_that_is_no_record(bits, run, tmp_path):
    record_with_channels(run, [[1, 3]])
    packed_run.pack_run(run, tmp_path / "new")
    lines = tmp_path / "new" / "records.jsonl"
    lines.write_bytes(lines.read_bytes().replace(b'["a"]', json.dumps([bits]).encode()))
    (first, *_) = packed_run.read_lines(tmp_path / "new")
    assert f"removed_channels are lists, or bits as hexadecimal digits; got {bits!r}" in str(first.record)


@pytest.mark.parametrize(
    "words",
    [
        ["report", "{run}", "--view", "all"],
        ["report", "{run}", "--reference", "laco"],
        ["report", "{run}", "--format", "csv"],
        ["show", "{run}/laco--0.2"],
        ["compare", "{run}/laco--0.2", "{run}/laco-healed", "--format", "csv"],
        ["history", "{run}", "--metric", "perplexity_wiki", "--label", "dense"],
    ],
)
def test_a_command_says_the_same_of_a_packed_run(words, tmp_path, capsys):
    run = tmp_path / STUDY.name
    shutil.copytree(STUDY, run)
    arguments = [word.format(run=run) for word in words]
    assert main(arguments) == 0
    packed = capsys.readouterr()
    assert len(packed.out.splitlines()) > 2
    packed_run.unpack_run(run)
    assert main(arguments) == 0
    assert capsys.readouterr() == packed


def test_each_cell_has_its_own_columns(run):
    loose = {
        path.stem: {one.stem: pd.read_parquet(one) for one in samples(run, path)}
        for path in run_folder.files_of_records(run)
    }
    packed_run.pack_run(run, run)
    files = SampleFiles()
    for key, tables in loose.items():
        for name in ("piqa", "arc", "perplexity-wiki", "perplexity-c4"):
            found = files.table(None, run / "samples" / key, name)
            assert (found is None) == (name not in tables)
            if found is not None:
                pd.testing.assert_frame_equal(found.to_pandas(), tables[name])


def test_other_bytes_of_the_same_rows_are_named_anew(run):
    """As where another version of Parquet writes the files."""
    packed_run.pack_run(run, run)
    text = (run / "records.jsonl").read_text()
    wanted = run_folder.read_records(run)["dense--fixed--0"].measured.samples["piqa"].sha256
    (run / "records.jsonl").write_text(text.replace(wanted, "0" * 64))
    packed_run.unpack_run(run)
    assert load(run / "cells" / "dense--fixed--0.json").measured.samples["piqa"].sha256 == wanted


def test_samples_that_were_changed_are_found_out(run, capsys):
    packed_run.pack_run(run, run)
    path = run / "samples" / "piqa.parquet"
    table = pd.read_parquet(path)
    table.loc[3, "acc"] = 1 - table.loc[3, "acc"]
    table.to_parquet(path)
    assert "has not the rows of dense--fixed--0 that were packed" in refused(capsys, ["pack", str(run), "--unpack"])
    assert packed_run.is_packed(run)
    path.write_bytes(b"PAR1 cut off")
    assert "cannot be read" in refused(capsys, ["compare", str(run), str(run)])


def test_what_cannot_be_packed_is_refused(run, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    assert "exists and is not an empty folder" in refused(capsys, ["pack", str(run), "--out", str(other)])
    assert "is no run folder" in refused(capsys, ["pack", str(tmp_path)])
    assert "is not packed" in refused(capsys, ["pack", str(run), "--unpack"])
    assert "leave --out out" in refused(capsys, ["pack", str(run), "--unpack", "--out", str(tmp_path / "x")])
    shutil.copy(run / "samples" / "laco--0.1--0" / "piqa.parquet", run / "samples" / "dense--fixed--0" / "piqa.parquet")
    assert "not the file that was written" in refused(capsys, ["pack", str(run)])
    packed_run.pack_run(other, other)
    assert "is packed already" in refused(capsys, ["pack", str(other)])
    (other / "records.jsonl").write_text("{}\n")
    assert "line 1 is not a record" in refused(capsys, ["report", str(other)])


def test_of_lines_with_one_key_the_first_is_read_and_the_others_are_told(run, capsys):
    packed_run.pack_run(run, run)
    path = run / "records.jsonl"
    before, keys = run_folder.read_records(run), list(run_folder.read_records(run))
    again = json.loads(path.read_text().splitlines()[1])
    again["measured"]["parameters"] += 1
    path.write_text(path.read_text() + json.dumps(again) + "\n")
    said = f"{path}: line 5 has the key of line 2, {keys[1]}"
    assert run_folder.read_records(run) == before
    assert capsys.readouterr().err == f"{said}; it is left out\n"
    assert run_folder.load_runs([run]).left_out == [f"{said}; it is left out"]
    assert said in refused(capsys, ["pack", str(run), "--unpack"])


@pytest.mark.parametrize("name", ["../../escaped", "/escaped", "a/b", "..", ".", "", "a\\b", "a\x00"])
@pytest.mark.parametrize("place", ["key", "rows_sha256"])
def test_no_line_is_unpacked_beside_the_run(run, tmp_path, capsys, name, place):
    packed_run.pack_run(run, run)
    path = run / "records.jsonl"
    first, *others = path.read_text().splitlines()
    line = json.loads(first)
    line[place] = name if place == "key" else {name: line[place]["piqa"]}
    path.write_text("\n".join([json.dumps(line), *others]))
    before = content(tmp_path)
    assert "line 1: a key and the names of samples are file names, and " in refused(
        capsys, ["pack", str(run), "--unpack"]
    )
    assert content(tmp_path) == before
    assert packed_run.unpack_run(run, tmp_path / "new") == 3
    new = [name for name in content(tmp_path) if name not in before]
    assert all(name.startswith(("new/cells/", "new/samples/")) for name in new)


def test_a_packed_run_goes_on_once_it_is_unpacked(base, tmp_path, capsys):
    arguments = [*base, "--methods", "drop-tail", "--ratio", "0.4"]
    assert main(arguments) == 0
    packed_run.pack_run(tmp_path / "run", tmp_path / "run")
    capsys.readouterr()
    assert main(arguments) == 2
    assert f"`python -m bench pack {tmp_path / 'run'} --unpack`" in capsys.readouterr().err
    assert main(["pack", str(tmp_path / "run"), "--unpack"]) == 0
    assert main(arguments) == 0
    assert capsys.readouterr().err.count("has a record") == 2


def test_a_run_that_goes_on_is_not_packed_where_it_lies(run):
    from bench.runs import store

    with store.lock_folder(run), pytest.raises(UserError, match="is in use by"):
        main_error(["pack", str(run)])
    assert not packed_run.is_packed(run)


def main_error(words: list[str]) -> None:
    """Run a command in the way that lets its error out."""
    from bench.cli.main import _parse

    arguments = _parse(words)
    arguments.command(arguments)
