"""The package in Python: run, read and samples, and that `import bench` costs nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import bench
from bench.cli.main import main
from bench.plan.protocol import Recipe
from methods.errors import UserError


@pytest.fixture(scope="module")
def spec(model_folder, text_file, tmp_path_factory):
    small = {"texts": [str(text_file)], "calibration": str(text_file), "window": 32, "windows": 4}
    small |= {"calibration_sequences": 4, "calibration_length": 24, "speed_rounds": 0, "documents": 6}
    return bench.RunSpec(
        methods="drop-tail,laco:C=2",
        ratios=[0.2],
        model=str(model_folder),
        profile="smoke",
        protocol=small | {"tasks": ["piqa"]},
        task_data={"piqa": documents(tmp_path_factory.mktemp("data") / "piqa.jsonl")},
        device="cpu",
        out=tmp_path_factory.mktemp("runs") / "run",
    )


def documents(path):
    rows = [{"goal": f"w{i}", "sol1": "w1 w2", "sol2": "w3", "label": i % 2} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_run_is_asked_for_read_and_taken_apart(spec, capsys):
    records = bench.run(spec)
    assert [record.cell.label for record in records] == ["dense", "drop-tail", "laco:C=2"]
    assert not (spec.out / "report.md").exists()  # which is the command line's
    assert capsys.readouterr().out == ""
    cells = bench.read(spec.out).set_index("label")
    assert set(cells.index) == {"dense", "drop-tail", "laco:C=2"}
    for record in records:
        row = cells.loc[record.cell.label]
        assert row["status"] == "ok"
        assert row["parameters"] == record.measured.parameters
        assert row["ratio"] == record.measured.ratio
        ((text, perplexity),) = record.measured.text_scores.items()
        assert row[f"perplexity_{text}"] == perplexity.perplexity
        assert row["average"] == record.measured.task_scores["piqa"].main_metric.value
    answers = bench.samples(spec.out, "piqa")
    assert answers.groupby("cell")["doc_id"].nunique().to_dict() == dict.fromkeys(bench.read(spec.out)["cell"], 6)
    bench.run(spec)
    assert capsys.readouterr().err.count("has a record") == 3
    with pytest.raises(UserError, match="has no samples of 'race'; it has"):
        bench.samples(spec.out, "race")


def test_the_command_line_finds_what_python_measured(spec, text_file, capsys):
    records = bench.run(spec)
    capsys.readouterr()
    words = f"run --methods drop-tail,laco:C=2 --ratio 0.2 --model {spec.model} --profile smoke --texts {text_file}"
    words += f" --calibration {text_file} --window 32 --windows 4 --calibration-sequences 4 --calibration-length 24"
    words += f" --speed-rounds 0 --documents 6 --tasks piqa --task-data piqa={spec.task_data[0].partition('=')[2]}"
    assert main([*words.split(), "--device", "cpu", "--out", str(spec.out)]) == 0
    assert capsys.readouterr().err.count("has a record") == len(records)
    assert (spec.out / "report.md").exists()


def test_a_script_needs_no_guard_and_a_method_of_its_own_another_file(model_folder, text_file, tmp_path):
    """Timed cells are measured in another process, which does not run the script again."""
    protocol = {"texts": [str(text_file)], "calibration": str(text_file), "window": 32, "windows": 2, "tasks": []}
    protocol |= {"calibration_sequences": 2, "calibration_length": 16}
    common = f"model={str(model_folder)!r}, profile='smoke', protocol={protocol!r}, device='cpu', out='run'"
    (tmp_path / "script.py").write_text(
        "from dataclasses import dataclass\n"
        "import bench, methods\n"
        f"print([record.status for record in bench.run(bench.RunSpec('dense', {common}))])\n"
        "@methods.register('mine')\n"
        "@dataclass(frozen=True)\n"
        "class Mine(methods.Pruner):\n"
        "    'Mine.'\n"
        "    def plan(self, model, ratio): return {}\n"
        "    def prune(self, model, calibration, ratio): return {}\n"
        f"try: bench.run(bench.RunSpec('mine', ratios=[0.2], {common}))\n"
        "except methods.UserError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[0] == "['ok']"
    assert "mine is defined in the script that runs" in done.stdout.splitlines()[1]


def environment():
    return os.environ | {"PYTHONPATH": str(Path(bench.__file__).parents[1])}


def test_a_mistake_is_raised_before_any_work(model_folder, tmp_path):
    spec = bench.RunSpec("drop-tail", ratios=[0.95], model=str(model_folder), out=tmp_path / "run")
    with pytest.raises(UserError, match="out of reach"):
        bench.run(spec)
    assert not spec.out.exists()


def test_the_names_of_the_package_are_what_it_says():
    import bench.runs.runner

    assert bench.Recipe is Recipe
    assert callable(bench.run)
    assert all(hasattr(bench, name) for name in bench.__all__)
    with pytest.raises(AttributeError, match="module 'bench' has no attribute 'ran'"):
        bench.ran  # noqa: B018


def test_importing_the_package_imports_nothing_else():
    code = "import sys; known = set(sys.modules); import bench; print(*sorted(set(sys.modules) - known))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {name.partition(".")[0] for name in done.stdout.split()} & {"pydantic", "torch", "pandas", "methods"}
