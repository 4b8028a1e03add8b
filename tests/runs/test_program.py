"""The Python interface as a user has it: a text that is piped into Python, without a guard for child processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import bench

spec = bench.RunSpec(
    methods="drop-tail",
    ratios=[0.3],
    model={model!r},
    profile="smoke",
    protocol={{
        "texts": ({text!r},), "calibration": {text!r}, "tasks": (), "window": 32, "windows": 2, "checks": False,
        "calibration_sequences": 2, "calibration_length": 16, "prefill": (8,), "decode": (), "speed_rounds": 6,
    }},
    device="cpu",
    threads=1,
    out={out!r},
)
records = bench.run(spec)
cells = bench.read({out!r})
print([record.status for record in records], list(cells["label"]), len(bench.samples({out!r}, "perplexity-text")))
"""


@pytest.mark.nightly
def test_a_program_from_standard_input_times_its_cells_and_the_command_line_is_served_from_its_records(
    model_folder, text_file, tmp_path
):
    text = tmp_path / "text.txt"
    text.write_text(text_file.read_text())
    out = tmp_path / "run"
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    }
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def python(*arguments, **how):
        how |= {"capture_output": True, "text": True, "cwd": tmp_path, "env": environment}
        return subprocess.run([sys.executable, *arguments], check=False, **how)

    program = PROGRAM.format(model=str(model_folder), text=str(text), out=str(out))
    done = python("-", input=program)
    assert done.stdout == "['ok', 'ok'] ['dense', 'drop-tail'] 4\n", done.stderr
    flags = ["--texts", str(text), "--calibration", str(text), "--tasks", "none", "--window", "32", "--windows", "2"]
    flags += ["--no-checks", "--calibration-sequences", "2", "--calibration-length", "16", "--prefill", "8"]
    flags += ["--decode", "none", "--speed-rounds", "6", "--device", "cpu", "--threads", "1", "--profile", "smoke"]
    again = python(
        *("-m", "bench", "run", "--methods", "drop-tail", "--ratio", "0.3", "--model", str(model_folder)),
        *(*flags, "--out", str(out)),
    )
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("has a record") == 2, again.stderr
