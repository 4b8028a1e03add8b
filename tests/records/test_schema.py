"""The layout of a record: what fits, what is said of what does not, and what commands do then."""

from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import jsonschema
import pytest
from made_cells import made_cell, made_inputs
from made_records import DENSE, FAILED, LACO, MENDED, RECORDS
from made_runs import answers, nats, speed
from made_runs import cell as written_cell
from made_runs import run_folder as made_run
from made_served import record as served_record
from mutated_records import mutated
from pages import ROOT, generator

from bench.cli.main import main
from bench.plan.cell import Cell, Stage
from bench.plan.kinds import Meaning, defaults_of_later_fields, to_plain, value_from_plain
from bench.plan.protocol import Protocol, Recipe, ServedProtocol
from bench.records import packed_run, run_folder, schema, served
from bench.records.measured import Measured
from bench.records.record import (
    InvalidRecord,
    Record,
    RecordLayout,
    load,
    misfit_of_layout,
    misfit_of_record,
    record_from_json,
    save,
    write_json,
)

RESULTS = sorted(path.parent for path in (ROOT / "docs" / "results").glob("*/records.jsonl"))
HEALED = ROOT / "docs" / "results" / "smollm2-135m-healed"
TIMED = ROOT / "docs" / "results" / "compensation-speed"
UNITS = {"_bytes": "bytes", "_seconds": "s", "_ms": "ms", "_mib": "MiB", "sha256": "sha256", "_mhz": "MHz"}
MUTATIONS, THROUGH_COMMANDS = 600, int(os.environ.get("PRUNEBENCH_MUTATIONS", "60"))


def plain(record: Record) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(record.plain()))
    return found


def sound() -> list[dict[str, Any]]:
    """Records of every kind, short enough to be looked at many times."""
    shipped = [line for run in (HEALED, TIMED) for line in lines(run)]
    return [*map(plain, [*RECORDS, *MENDED]), *shipped]


def lines(run: Path) -> list[dict[str, Any]]:
    return [line.plain for line in packed_run.read_lines(run)]


def fits(record: dict[str, Any]) -> bool:
    try:
        record_from_json(record, "")
    except InvalidRecord:
        return False
    return True


def put(folder: Path, **records: Any) -> Path:
    """A run folder with a file for each of the records, by key, as plain values."""
    for key, record in records.items():
        write_json(record if isinstance(record, dict) else record.plain(), folder / "cells" / f"{key}.json")
    return folder


def changed(record: Record, path: str, to: Any) -> dict[str, Any]:
    new = plain(record)
    *places, last = path.split(".")
    place: Any = new
    for name in places:
        place = place[int(name)] if isinstance(place, list) else place[name]
    place[int(last) if isinstance(place, list) else last] = to
    return new


def later_settings() -> dict[str, Any]:
    """The settings of a protocol that records of earlier versions lack, with their defaults."""
    return defaults_of_later_fields(Protocol)


@pytest.mark.parametrize("run", RESULTS, ids=lambda run: run.name)
def test_every_shipped_record_fits(run, capsys):
    found = packed_run.read_lines(run)
    assert [str(line.record) for line in found if not isinstance(line.record, Record)] == []
    for line in found:
        line.plain["measured"].get("healing", {}).pop("peak_memory_bytes", None)  # in five, which no layout names
        line.plain["cell"]["protocol"] = later_settings() | line.plain["cell"]["protocol"]
        if "healing" in line.plain["cell"]:
            line.plain["cell"]["healing"] = defaults_of_later_fields(Recipe) | line.plain["cell"]["healing"]
    assert [line.key for line in found if line.record.plain() != line.plain] == []  # and would be written as it is
    written = (run / served.FILE).read_text().count("\n") if (run / served.FILE).is_file() else 0
    assert len(served.load(run)) == written
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("run", RESULTS, ids=lambda run: run.name)
def test_what_shipped_records_measured_is_the_same_through_its_type(run):
    for line in lines(run):
        measured = line["measured"]
        measured.get("healing", {}).pop("peak_memory_bytes", None)  # of an earlier version, and read over
        assert json.loads(json.dumps(to_plain(value_from_plain(Measured, measured)))) == measured


def test_a_field_without_a_value_that_is_needed_is_missed():
    with pytest.raises(KeyError, match="share"):
        value_from_plain(Measured, {"budget": {"of": "macs"}})


def test_made_records_fit():
    assert [wrong for one in [*RECORDS, *MENDED] if (wrong := misfit_of_record(plain(one)))] == []


@pytest.mark.parametrize(
    ("path", "to", "said"),
    [
        ("measured.perplexity.wiki.tokens", "many", 'measured.perplexity.wiki.tokens is "many", not a whole number'),
        ("measured.perplexity.wiki.tokens", 8176.0, "measured.perplexity.wiki.tokens is 8176.0, not a whole number"),
        ("measured.perplexity.wiki.perplexity", 0, "measured.perplexity.wiki.perplexity is 0, not above 0"),
        ("measured.tasks.piqa.documents", -1, "measured.tasks.piqa.documents is -1, not 0 or more"),
        ("measured.tasks.piqa.chance", 1.5, "measured.tasks.piqa.chance is 1.5, not 1 or less"),
        ("measured.tasks.piqa.main", "em", "measured.tasks.piqa has the main metric 'em', and no figure of that name"),
        ("measured.tasks.piqa.metrics.acc", {"stderr": 0.1}, "measured.tasks.piqa.metrics.acc.value is missing"),
        (
            "measured.tasks.piqa.metrics.acc.value",
            71.0,
            "measured.tasks.piqa has acc 71, and an accuracy is a share from",
        ),
        ("measured.speed.points.0.pruned_ms", None, "measured.speed.points[0].pruned_ms is null, not a number"),
        ("measured.speed.points.0.pruned_ms", True, "measured.speed.points[0].pruned_ms is true, not a number"),
        ("measured.speed.points.0.pruned_ms", float("nan"), "points[0].pruned_ms is NaN, not a finite number"),
        ("measured.speed.points.1.kind", "prefill", "measured.speed.points[1] is of prefill and has no length"),
        ("measured.parameters", 10**30, "measured.parameters is 1000000000000000000000000000000, not 922337203685"),
        ("measured", [], "measured is [], not an object"),
        ("cell.protocol.batches", [], "cell.protocol.batches is [], not a list of 1 or more"),
        ("cell.seed", "0", 'cell.seed is "0", not a whole number'),
        ("cell.given", ["C"], "cell gives 'C', and its parameters have none of that name"),
        ("environment.versions", "2.13", 'environment.versions is "2.13", not an object'),
        ("decisions.removed_layers", [3, 30], "it has 30 in decisions.removed_layers, and measured.dense_layers is 30"),
        ("decisions.removed_layers.1", 2.5, "decisions.removed_layers[1] is 2.5, not a whole number"),
        ("status", "failed", "status is \"failed\", not 'ok', 'unsupported', 'out_of_reach'"),
        ("error", "it did not work", "error is a reason, not null, and status is ok"),
        ("schema", 1, "schema 1; this version reads 3"),
    ],
)
def test_a_refusal_names_the_field_what_it_is_and_what_is_right(path, to, said):
    with pytest.raises(InvalidRecord) as refused:
        record_from_json(changed(LACO, path, to), "results/x/cells/abc.json")
    assert str(refused.value).startswith("results/x/cells/abc.json")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_field_and_several_mistakes_are_counted():
    broken = changed(LACO, "measured.ratio", "a")
    broken["measured"]["layers"] = "b"
    assert misfit_of_record(broken) == 'measured.ratio is "a", not a number, and another field does not fit'
    broken["measured"]["dense_layers"] = "c"
    assert misfit_of_record(broken).endswith("not a number, and 2 more fields do not fit")
    del broken["cell"]["protocol"]["profile"]
    assert misfit_of_record(broken).startswith("cell.protocol.profile is missing, and 3 more")
    assert misfit_of_record([]) == "it is [], not an object"


def test_what_later_versions_may_add_is_left_alone_and_kept(tmp_path):
    new = changed(LACO, "later", {"a": [1]})
    for place in ("cell", "environment", "decisions", "measured"):
        new[place]["later"] = {"b": None}
    new["cell"]["protocol"]["later"] = new["measured"]["perplexity"]["wiki"]["later"] = 1
    new["measured"]["speed"]["points"][0]["later"] = new["measured"]["tasks"]["piqa"]["later"] = "word"
    assert misfit_of_record(new) == ""
    run = put(tmp_path / "run", dense=DENSE, laco=new)
    for command in (["report", str(run)], ["report", str(run), "--view", "all"], ["show", str(run), "laco"]):
        assert main(command) == 0
    packed_run.pack_run(run, run)
    assert len(run_folder.read_records(run)) == 2
    packed_run.unpack_run(run)
    assert json.loads((run / "cells" / "laco.json").read_text()) == new


def test_mutated_records_are_refused_by_path_or_sound():
    """What is refused is named by the path of the mutation, or of what it is in or was in it."""
    draw, known, refused = random.Random(0), sound(), 0
    for _ in range(MUTATIONS):
        new, path, _ = mutated(draw.choice(known), draw)
        try:
            record_from_json(new, "file.json")
        except InvalidRecord as error:
            refused += 1
            said = str(error).removeprefix("file.json").removeprefix(":").split()[0]
            assert said in ("it", "has") or said.startswith(path) or path.startswith(said), (path, str(error))
    assert MUTATIONS / 3 < refused < MUTATIONS  # most are wrong, and not all


def test_mutated_records_end_no_command_in_a_traceback(tmp_path, capsys):
    draw, known = random.Random(1), sound()
    for number in range(THROUGH_COMMANDS):
        new, path, to = mutated(draw.choice(known), draw)
        run = put(tmp_path / f"run{number}", dense=DENSE, laco=LACO, other=new)
        told = f"{path} := {to!r}"
        assert main(["report", str(run), "--view", "all"]) == 0, told
        assert main(["show", str(run), "other"]) in (0, 2), told
        assert capsys.readouterr().err.count("other.json: ") <= 2 * (not fits(new)), told


def measured_run(folder: Path) -> Path:
    """A run with samples, which `compare` and `gate` read."""
    for label, ratio, seed in (("dense", None, 1), ("laco", 0.1, 3), ("sleb", 0.1, 4)):
        figures = {
            "tasks": {"piqa": answers(seed, 100)},
            "texts": {"wiki": nats(seed)},
            "measured": {"speed": speed(1)},
        }
        written_cell(folder, label, ratio, **figures)
    return folder


def test_mutated_records_end_no_comparison_in_a_traceback(tmp_path, capsys):
    draw, run = random.Random(2), measured_run(tmp_path / "run")
    before, path = tmp_path / "before", run / "cells" / "laco--0.1--0.json"
    shutil.copytree(run, before)
    laco = json.loads(path.read_text())
    for _ in range(THROUGH_COMMANDS):
        new, where, to = mutated(laco, draw)
        write_json(new, path)
        told = f"{where} := {to!r}"
        assert main(["compare", str(before), str(run)]) in (0, 2, 4), told
        said = capsys.readouterr().err
        assert said.count("it is left out") == (not fits(new)), told
        if not fits(new):
            assert main(["gate", str(run), "--baseline", str(before), "--no-confirm"]) == 3, told  # it is missing
            assert main(["compare", f"{before}/laco--0.1--0", f"{run}/laco--0.1--0"]) == 2, told
        else:
            assert main(["gate", str(run), "--baseline", str(before), "--no-confirm"]) in (0, 1, 2, 3, 4), told
        capsys.readouterr()


@pytest.mark.parametrize("form", ["loose", "packed"])
def test_a_wrong_record_changes_nothing_but_one_line(form, tmp_path, capsys):
    wrong = changed(LACO, "measured.perplexity.wiki.tokens", "many")
    alone, beside = made_run(tmp_path / "alone", [DENSE, *FAILED]), made_run(tmp_path / "beside", [DENSE, *FAILED])
    put(beside, wrong=wrong)
    where = f"{beside}/cells/wrong.json"
    if form == "packed":
        (beside / "cells" / "wrong.json").unlink()
        packed_run.pack_run(alone, alone)
        packed_run.pack_run(beside, beside)
        with (beside / "records.jsonl").open("a") as file:
            file.write(json.dumps({"key": "wrong", "rows_sha256": {}} | wrong) + "\n")
        where = f"{beside}/records.jsonl: wrong"
    line = f'{where}: measured.perplexity.wiki.tokens is "many", not a whole number; it is left out\n'
    for how in ([], ["--view", "all"], ["--format", "csv"], ["--format", "html"]):
        assert main(["report", str(alone), *how]) == 0
        clean = capsys.readouterr()
        assert main(["report", str(beside), *how]) == 0
        found = capsys.readouterr()
        assert found.out == clean.out
        assert found.err == line + clean.err
    assert main(["show", str(beside), "0"]) == 0  # which is not in doubt
    assert capsys.readouterr().err == ""
    assert main(["show", str(beside), "wrong"]) == 2
    assert capsys.readouterr().err == f"prunebench: {line.replace('; it is left out', '')}"


def test_commands_that_join_and_pack_go_on_with_the_others(tmp_path, capsys):
    wrong = changed(LACO, "cell.seed", None)
    said = "wrong.json: cell.seed is null, not a whole number; "
    run = put(tmp_path / "run", dense=DENSE, laco=LACO, wrong=wrong)
    assert main(["merge", str(run), "--out", str(tmp_path / "joined")]) == 2
    assert f"{said}mend it, or move it out of the part" in capsys.readouterr().err
    assert not (tmp_path / "joined").exists()
    assert main(["pack", str(run), "--out", str(tmp_path / "packed")]) == 0
    assert capsys.readouterr().err.count(f"{said}it is left out") == 1
    assert set(run_folder.read_records(tmp_path / "packed")) == {"dense", "laco"}
    assert main(["history", str(run), "--metric", "perplexity_wiki", "--label", "dense"]) in (0, 2)
    assert capsys.readouterr().err.count(f"{said}it is left out") == 1
    assert main(["pack", str(run)]) == 0
    assert f"{said}moved to superseded/" in capsys.readouterr().err
    assert json.loads((run / "superseded" / "cells" / "wrong.json").read_text()) == wrong  # nothing is lost
    assert set(run_folder.read_records(run)) == {"dense", "laco"}
    with (run / "records.jsonl").open("ab") as file:
        file.write(b"\xff\xfe no text\n")
    assert main(["pack", str(run), "--unpack"]) == 2
    assert "line 3 is not JSON" in (refused := capsys.readouterr().err)
    assert "mend the line, or take it out of records.jsonl" in refused
    assert packed_run.is_packed(run)
    assert main(["merge", str(run), "--out", str(tmp_path / "again")]) == 2
    assert "line 3 is not JSON" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_where_no_record_is_left_the_mistake_is_the_users(tmp_path, capsys):
    run = put(tmp_path / "run", a=changed(LACO, "cell", 1), b=changed(DENSE, "cell", 1))
    for command in (["report", str(run)], ["compare", str(run), str(run)], ["merge", str(run), "--out", f"{run}2"]):
        assert main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"a.json: cell is 1, not an object; none of the other 1 records of {run} fits either" in line
    put(run, dense=DENSE)
    assert main(["report", str(run)]) == 0
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_an_empty_file_of_records_is_no_run(tmp_path, capsys):
    run = put(tmp_path / "run", dense=DENSE)
    packed_run.pack_run(run, run)
    (run / "records.jsonl").write_bytes(b"")
    for command in (
        ["report", str(run)],
        ["merge", str(run), "--out", f"{run}2"],
        ["pack", str(run), "--out", f"{run}2"],
    ):
        assert main(command) == 2
        assert capsys.readouterr().err == f"prunebench: {run} has no record; copy the run again\n"


def test_a_run_of_which_nothing_is_left_does_not_end_a_report_of_two(tmp_path, capsys):
    good, bad = put(tmp_path / "good", dense=DENSE, laco=LACO), put(tmp_path / "bad", a=changed(LACO, "cell", 1))
    assert main(["report", str(bad), str(good)]) == 0
    found = capsys.readouterr()
    assert "laco" in found.out
    assert found.err == f"{bad}/cells/a.json: cell is 1, not an object; it is left out\n"


def test_a_served_model_of_a_run_that_is_given_twice_stands_once(tmp_path):
    run = put(tmp_path / "run", dense=DENSE)
    model = {"pruned_sha256": DENSE.measured.pruned_sha256}
    dense = replace(served_record(), key="dense")
    first, other = (replace(dense, type=kind, model=dense.model | model) for kind in ("bfloat16", "q8_0"))
    again = replace(other, environment=other.environment | {"date": "2026-12-31T00:00:00+00:00"})
    for one in (first, other):
        served.save(run, one)
    assert run_folder.load_runs([run, run]).served == served.load(run)
    newer = put(tmp_path / "newer", dense=DENSE)
    served.save(newer, again)
    assert run_folder.load_runs([run, newer, run]).served == [*served.load(run), *served.load(newer)]


def test_a_line_of_a_served_model_that_does_not_fit_is_left_out(tmp_path, capsys):
    run = put(tmp_path / "run", dense=DENSE)
    for row in (served_record(), served_record("laco", "q8_0")):
        served.save(run, row)
    one, other = (run / served.FILE).read_text().splitlines()
    wrong = json.loads(other)
    wrong["model"]["ratio"] = "most"
    (run / served.FILE).write_text(f"{one}\n{json.dumps(wrong)}\n")
    assert [found.name for found in served.load(run)] == ["dense@bfloat16"]
    assert main(["report", str(run)]) == 0
    said = capsys.readouterr().err.splitlines()
    assert f'{run}/served.jsonl: line 2: model.ratio is "most", not a number; it is left out' in said


def test_the_models_have_the_fields_of_what_is_asked():
    def names(owner: Any, but: str = "") -> set[str]:
        return {field.name for field in fields(owner)} - {but}

    assert names(served.EngineProtocol) == names(ServedProtocol, "types") | {"version", "threads"}


def test_a_cell_of_a_record_has_the_fields_of_a_cell_and_its_names():
    defined = schema.schema_of_layout(RecordLayout)["$defs"]
    for name, owner, more in (("RecordedCell", Cell, {"display_name", "label"}), ("Protocol", Protocol, set())):
        assert set(defined[name]["properties"]) == {field.name for field in fields(owner)} | more
    assert set(defined["Protocol"]["required"]) == {field.name for field in fields(Protocol)} - later_settings().keys()
    assert later_settings().keys() >= {"apply_chat_template", "positions", "system"}
    assert {"type": "null"} not in defined["RecordedCell"]["properties"]["latency"].get("anyOf", [])


@dataclass(frozen=True)
class Grown:
    """Has a field that records of earlier versions lack."""

    WHOLE: ClassVar = True

    old: Annotated[int, Meaning("that was always there")] = 1
    new: Annotated[int, Meaning("that came later", later=True)] = 2


def test_a_setting_that_came_later_is_written_and_makes_no_earlier_record_wrong():
    assert misfit_of_layout({"old": 1}, Grown) == ""
    assert misfit_of_layout({"new": 2}, Grown) == "old is missing"
    assert to_plain(Grown()) == {"old": 1, "new": 2}


def test_a_field_is_absent_where_it_is_none_and_not_needed():
    plain_cell = made_cell("laco", None, Protocol(), earlier=(Stage("drop", {}, 0.1, healing=Recipe()),)).plain()
    assert {"healing", "latency", "inputs"}.isdisjoint(plain_cell)
    assert plain_cell["ratio"] is None
    assert plain_cell["earlier"][0]["healing"]["learning_rate"] is None
    assert "parent" not in to_plain(made_inputs())


@pytest.mark.parametrize("name", schema.FILES)
def test_the_published_schema_is_what_the_models_give(name):
    generate = generator()
    shipped = (ROOT / "docs" / name).read_text()
    assert shipped == generate.schemas()[name], "python docs/generate.py writes it"
    page = generate.pages()["record.md"]
    for section in schema.sections_of_layout(schema.FILES[name]):
        assert section.about.split(". ")[0].rstrip(".").split()
        for row in section.rows:
            assert f"| `{row.name}` |" in page
            assert (row.meaning and row.kind != "anything") or row.name in ("version", "cudnn"), (section.path, row)
            assert is_module(row.source), (section.path, row)
            for ending, unit in UNITS.items():
                own = not row.name.endswith(ending) or row.name == "speedup_by_bytes"
                assert own or row.unit.startswith(unit), (section.path, row)


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def test_the_json_schema_takes_and_refuses_what_the_models_do():
    validator = jsonschema.Draft202012Validator(schema.schema_of_layout(RecordLayout))
    validator.check_schema(validator.schema)
    for record in sound():
        assert list(validator.iter_errors(record)) == []
    for path in ("measured.perplexity.wiki.tokens", "cell.seed", "environment.threads", "decisions.removed_layers"):
        (error,) = validator.iter_errors(changed(LACO, path, "many"))
        assert ".".join(error.absolute_path) == path


def test_a_damaged_file_is_none(tmp_path):
    path = tmp_path / "x.json"
    save(LACO, path)
    assert load(path) == LACO
    for content in (b"\xff", b"[" * 100_000, b"", b"{}", b"null", b'{"schema": 3}', path.read_bytes()[:-9]):
        path.write_bytes(content)
        with pytest.raises(InvalidRecord, match=r"x\.json"):
            load(path)
