"""Records of code that has only moved count under the key of today, with all that they have and all that follows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.cli.main import main
from bench.records import run_folder
from bench.run import source_hash, store
from bench.run.source_hash import method_sha256


@pytest.fixture
def asked(base):
    """A chain of two pruned cells behind the dense one, with their models."""
    run = [*base, "--methods", "shortgpt", "--ratio", "0.2", "--then", "shortgpt:ratio=0.5"]
    return [*run, "--save-models"]


@pytest.fixture(autouse=True)
def moved(monkeypatch):
    """Code of shortgpt that has only moved since it was called old."""
    monkeypatch.setattr(source_hash, "_earlier", lambda: {"shortgpt": {"old": method_sha256("shortgpt")}})


def older(run) -> dict[str, str]:
    """Make a run one of the old code; return {key then: key today}."""
    names = {path.stem: f"{path.stem}0" for path in (run / "cells").iterdir()}
    for key, before in names.items():
        plain = json.loads((run / "cells" / f"{key}.json").read_text())
        if plain["cell"]["method"] == "shortgpt":
            plain["cell"]["inputs"]["method_sha256"] = "old"
        if parent := plain["cell"]["inputs"].get("parent"):
            plain["cell"]["inputs"]["parent"] = names[parent]
        if "saved" in plain["measured"]:
            plain["measured"]["saved"]["folder"] = f"models/{before}"
        (run / "cells" / f"{before}.json").write_text(json.dumps(plain))
        (run / "cells" / f"{key}.json").unlink()
        for kind in ("samples", "models"):
            if (run / kind / key).exists():
                (run / kind / key).rename(run / kind / before)
    rows = [json.dumps({"key": key, "type": "float32"}) for key in [*names.values(), "another"]]
    (run / "served.jsonl").write_text("\n".join([*rows, "no JSON"]) + "\n")
    return {before: key for key, before in names.items()}


def test_a_chain_of_earlier_code_is_served_with_its_models_and_what_engines_made_of_them(asked, tmp_path, capsys):
    assert main(asked) == 0
    run = tmp_path / "run"
    before = {path.relative_to(run) for path in run.rglob("*") if path.is_file()}
    names = older(run)
    capsys.readouterr()
    assert main([*asked, "--plan"]) == 0
    assert "0 of 3 cells are to be measured" in capsys.readouterr().out
    assert {path.stem for path in (run / "cells").iterdir()} == set(names)  # to look changes nothing
    assert main(asked) == 0
    said = capsys.readouterr().err
    assert (said.count("has a record"), "superseded" in said) == (3, False)
    after = {path.relative_to(run) for path in run.rglob("*") if path.is_file()}
    assert after - {Path("served.jsonl"), Path(".served.lock")} == before
    for key, record in run_folder.records(run).items():
        if saved := record.measured.get("saved"):
            assert saved["folder"] == f"models/{key}"
            assert store.find_model(run, key) == run / "models" / key
    *rows, last = (run / "served.jsonl").read_text().splitlines()
    assert ({json.loads(row)["key"] for row in rows}, last) == ({*names.values(), "another"}, "no JSON")
    assert main(asked) == 0
    assert capsys.readouterr().err.count("has a record") == 3


def test_a_chained_record_is_old_where_its_parent_is_another_model(asked, tmp_path, capsys):
    assert main(asked) == 0
    run = tmp_path / "run"
    older(run)
    (chained,) = [path for path in (run / "cells").iterdir() if "then" in path.name]
    plain = json.loads(chained.read_text())
    plain["decisions"]["earlier"][-1]["measured"]["pruned_sha256"] = "cd" * 32
    chained.write_text(json.dumps(plain))
    capsys.readouterr()
    assert main(asked) == 0
    said = capsys.readouterr().err
    assert said.count("has a record") == 2
    assert f"{chained.name} is old, since this has changed: parent; moved to superseded/" in said
