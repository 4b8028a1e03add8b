"""The commands of docs/examples are those of this version, and its files are what the programs that read them take."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from made_runs import answers, cell
from pages import ROOT

from bench.cli.main import _parse
from bench.plan.run_spec import shipped_specs

EXAMPLES = ROOT / "docs" / "examples"
FILES = ("gate.yml", "site.yml", "hf_jobs.py", "modal_job.py", "skypilot.yaml", "cuda.Dockerfile")
RENTED = ("hf_jobs.py", "modal_job.py", "skypilot.yaml")


def texts_of(value: Any) -> Iterator[str]:
    """Yield the texts in the values of a YAML file."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from texts_of(each)


def commands_of(name: str) -> list[str]:
    """Return the commands of an example, and those that its head says."""
    content = (EXAMPLES / name).read_text(encoding="utf-8")
    texts = [re.sub(r"^# ?", "", content, flags=re.MULTILINE)] if name.endswith(("Dockerfile", "yaml", "yml")) else []
    if name.endswith(("yml", "yaml")):
        texts += texts_of(yaml.safe_load(content))
    elif name.endswith(".py"):
        texts += [node.value for node in ast.walk(ast.parse(content)) if isinstance(node, ast.Constant)]
    lines = "\n".join(text for text in texts if isinstance(text, str))
    return re.findall(r"(?:python -m bench|prunebench-cuda \\\n +) ?([a-z][^\n|`#]*)", lines)


@pytest.mark.parametrize("name", FILES)
def test_every_command_of_an_example_is_one_of_this_version(name):
    commands = commands_of(name)
    assert commands
    for command in commands:
        arguments = _parse(shlex.split(command))
        if spec := vars(arguments).get("spec"):
            assert spec in shipped_specs()


@pytest.mark.parametrize("name", RENTED)
def test_a_rented_machine_is_looked_at_then_measured_with_then_packed(name):
    """In this order; what was measured is brought back also where a cell has failed."""
    content = (EXAMPLES / name).read_text(encoding="utf-8")
    _, *body = content.rpartition("HF_TOKEN: null" if name.endswith("yaml") else "LOOK =")
    places = ["".join(body).index(f"python -m bench {command} ") for command in ("doctor", "run", "pack")]
    assert places == sorted(places)
    assert {command.split()[0] for command in commands_of(name)} >= {"doctor", "run", "pack", "report"}


def test_the_script_of_jobs_has_inline_metadata_that_names_this_project():
    content = (EXAMPLES / "hf_jobs.py").read_text(encoding="utf-8")
    block = re.match(r"# /// script\n((?:#.*\n)+?)# ///\n", content)[1]
    metadata = tomllib.loads(re.sub(r"^# ?", "", block, flags=re.MULTILINE))
    own = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert metadata["requires-python"] == own["requires-python"]
    (needed,) = metadata["dependencies"]
    assert needed.startswith(f"{own['name']} @ git+https://")


def test_a_machine_of_skypilot_ends_by_itself():
    task = yaml.safe_load((EXAMPLES / "skypilot.yaml").read_text(encoding="utf-8"))
    assert task["resources"]["autostop"] > 0
    assert Path(task["workdir"]) == Path()
    assert task["run"].splitlines()[-1] == "exit ${code:-0}"


SITE = yaml.safe_load((EXAMPLES / "site.yml").read_text(encoding="utf-8"))


def call_step(name: str, folder: Path) -> int:
    """Run a step of site.yml as the service does, and return its exit code."""
    (command,) = (step["run"] for step in SITE["jobs"]["site"]["steps"] if step.get("name") == name)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(["bash", "-e", "-c", command], cwd=folder, env=environment, check=False).returncode


def test_runs_of_others_are_judged_before_the_site_has_them(tmp_path):
    right = answers(0)
    for run in ("grid", "runs/same", "other"):
        cell(tmp_path / run, "dense", None, tasks={"piqa": right})
    cell(tmp_path / "grid", "laco", 0.1, tasks={"piqa": right})
    assert call_step("Judge", tmp_path) == call_step("Draw", tmp_path) == 0
    cell(tmp_path / "other", "mine", 0.1, tasks={"piqa": right})
    (tmp_path / "other").rename(tmp_path / "runs" / "other")
    assert call_step("Judge", tmp_path) == call_step("Draw", tmp_path) == 0
    assert "mine" in (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    cell(tmp_path / "runs" / "first", "dense", None, tasks={"piqa": np.zeros_like(right)})
    assert call_step("Judge", tmp_path) == 1  # though that of another run is right


def test_a_pull_request_gets_no_right_to_write():
    assert set(SITE["permissions"].values()) == {"read"}
    assert set(SITE[True]) == {"pull_request", "push"}  # `on` is true in YAML 1.1
    writing = [job for job in SITE["jobs"].values() if "write" in job.get("permissions", {}).values()]
    assert [job["if"] for job in writing] == ["github.event_name == 'push'"]
    assert "secrets" not in (EXAMPLES / "site.yml").read_text(encoding="utf-8")
