"""Files that a run or a gate is asked by, with anything wrong in them, are refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from fuzzing import BESIDE, DIGITS, NESTED, damaged, damages, refused_or_done, scratch, share, watched, wild_json
from hypothesis import example, given
from hypothesis import strategies as st

from bench.plan.run_spec import flags_of_run
from bench.regression import gate

SPECS = [
    {"methods": ["laco", "shortgpt+ghost"], "ratio": [0.1, 0.2], "set": {"laco.C": [2, 3], "laco.T": 0.65}},
    {"description": "words", "methods": "slicegpt", "ratio": 0.3, "seed": [0, 1], "no-checks": True},
    {"methods": ["drop-tail"], "budget": ["macs=0.8"], "heal": "lora", "heal-tokens": 100, "then": ["laco:0.3"]},
    {"methods": "all", "ratio": 0.1, "calibration-sequences": [2, 3], "engine": "ray", "slots": "auto"},
]
VALUES = [value for value in BESIDE if value not in (NESTED, DIGITS)] + [
    None,
    True,
    [],
    {},
    0,
    1,
    "none",
    "auto",
    1e300,
]
MARGINS = {"accuracy": 1.0, "answer_bpb": 0.01, "perplexity": "off", "speed": False, "sizes": "exact"}
MARGINS |= {"tasks": {"piqa": 2.0}, "allow": ["cpu", "threads"]}
LAUGHS = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{below}'] * 8)}]\n" for below, name in zip("abcdefgh", "bcdefghi", strict=True)
)
TEXTS = (
    "methods: !!python/object/apply:os.getcwd []",
    LAUGHS + "methods: *i",
    LAUGHS.replace("a: &a", "methods: &a"),
    "methods: laco\nratio: 2026-01-01",
    "methods: laco\nratio: 1:30",
    "methods: laco\nratio: .nan",
    "? [methods, ratio]\n: laco",
    "methods: laco\nmethods: laco",
    "methods: &m [*m]",
    "<<: {methods: laco}\nratio: 0.1",
    "base: spec.yaml",
    "base: [spec.yaml]",
    "base: \x00",
    "- methods",
    "\ufeffmethods: laco",
    "methods: laco\n---\nmethods: laco",
    "methods: " + "[" * 3000,
    "methods: !!set {laco, flap}",
    "methods: !!binary aGk=",
    "methods: laco\nthreads: 0x7fffffffffffffffffff",
    f"methods: laco\nmax-cells: {'9' * 5000}",
    "methods: laco\nset: {laco.C: [1, [2]]}",
)


def planned(content: bytes, folder: Path, model_folder: Path, text_file: Path) -> None:
    """Plan what a file of this content asks for, of a tiny model."""
    (folder / "spec.yaml").write_bytes(content)
    small = ["--model", str(model_folder), "--texts", str(text_file), "--calibration", str(text_file)]
    small += ["--tasks", "none", "--window", "32", "--windows", "2", "--device", "cpu"]
    watched(["run", "--spec", "spec.yaml", "--plan", *small], folder)


@pytest.mark.parametrize("text", TEXTS)
def test_hard_yaml(text, model_folder, text_file, tmp_path):
    planned(text.encode(), tmp_path, model_folder, text_file)
    (tmp_path / "margins.yaml").write_text(text.replace("methods", "tasks").replace("ratio", "accuracy"))
    refused_or_done(lambda: gate.read_margins(tmp_path / "margins.yaml"), tmp_path)


@share(0.07)
@given(text=wild_json(st.sampled_from(SPECS)))
def test_wild_specs(text, model_folder, text_file, tmp_path_factory):
    with scratch(tmp_path_factory, "specs") as folder:
        planned(text.encode(), folder, model_folder, text_file)


@share(0.06)
@given(
    table=st.sampled_from(SPECS),
    more=st.dictionaries(st.sampled_from(sorted(flags_of_run())), st.sampled_from(VALUES), min_size=1, max_size=4),
)
@example(table=SPECS[0], more={"threads": 2**63})
@example(table=SPECS[3], more={"slots": 10**30})
@example(table=SPECS[0], more={"slots": 10**9})
def test_specs_with_other_values(table, more, model_folder, text_file, tmp_path_factory):
    with scratch(tmp_path_factory, "values") as folder:
        planned(json.dumps(table | more).encode(), folder, model_folder, text_file)


@share(0.02)
@given(table=st.sampled_from(SPECS), changes=damages())
def test_damaged_specs(table, changes, model_folder, text_file, tmp_path_factory):
    with scratch(tmp_path_factory, "damaged") as folder:
        planned(damaged(yaml.safe_dump(table).encode(), changes), folder, model_folder, text_file)


@share(0.03)
@given(text=wild_json(st.just(MARGINS)))
@example(text='{"allow": [-0.0]}')
def test_wild_margins(text, tmp_path_factory):
    with scratch(tmp_path_factory, "margins") as folder:
        (folder / "margins.yaml").write_text(text)
        said = refused_or_done(lambda: gate.read_margins(folder / "margins.yaml"), folder)
        assert said is None or "margins.yaml" in said
        watched(["gate", "none", "--baseline", "none", "--margins", "margins.yaml"], folder)


@share(0.01)
@given(changes=damages())
def test_damaged_margins(changes, tmp_path_factory):
    with scratch(tmp_path_factory, "damaged") as folder:
        (folder / "margins.yaml").write_bytes(damaged(yaml.safe_dump(MARGINS).encode(), changes))
        watched(["gate", "none", "--baseline", "none", "--margins", "margins.yaml"], folder)
