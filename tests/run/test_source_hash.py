"""The hash of a method's code: what changes it, what does not, and which records of earlier code it still serves."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest
from conftest import LAYERS, trusting_all
from tiny_methods import METHODS

import methods
from bench.cli.main import main
from bench.records.run_folder import load_run
from bench.run import fingerprint, source_hash
from bench.run.reproduce import cell_of
from bench.run.source_hash import code_sha256, method_sha256, sources
from methods import registry
from methods.checkpoint import load

CODE = '''"""A head."""

from __future__ import annotations

import math
from dataclasses import dataclass

HALF = 0.5  # of it


@dataclass(frozen=True)
class Score:
    """A score."""

    tokens: int = 512  # that are read

    def of(self, x: float) -> float:
        """Return it."""
        import random

        return math.sqrt(x) * HALF + self.tokens
'''
SAME = [
    ("A head", "Another head"),
    ('    """A score."""\n\n', ""),
    ('        """Return it."""\n', ""),
    ("import math\nfrom dataclasses import dataclass\n", "from dataclasses import dataclass\nimport math\n"),
    ("import math\n", "import math\nfrom typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    import torch\n"),
    ("        import random\n\n", ""),
    ("  # that are read", "  # another comment"),
    ("math.sqrt(x) * HALF", "(math.sqrt(x)  *  HALF)"),
]
OTHER = [
    ("0.5", "0.25"),
    ("* HALF", "+ HALF"),
    ("512", "256"),
    ("frozen=True", "frozen=False"),
    ("tokens: int", "tokens: float"),
    ("HALF", "SHARE"),
    ("sqrt", "log"),
    ("return math", "x = 1\n        return math"),
]


def hash_of(folder: Path, code: str, name: str = "a.py") -> str:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(code)
    return code_sha256([path])


@pytest.mark.parametrize("old, new", SAME)
def test_what_is_said_of_code_is_no_code(tmp_path, old, new):
    assert old in CODE
    assert hash_of(tmp_path, CODE.replace(old, new)) == hash_of(tmp_path, CODE)


@pytest.mark.parametrize("old, new", OTHER)
def test_another_constant_operator_or_name_is_another_hash(tmp_path, old, new):
    assert old in CODE
    assert hash_of(tmp_path, CODE.replace(old, new)) != hash_of(tmp_path, CODE)


def test_a_hash_knows_no_names_of_files_and_no_order(tmp_path):
    assert hash_of(tmp_path, CODE) == hash_of(tmp_path, CODE, "elsewhere/b.py")
    (tmp_path / "c.py").write_text("X = 1\n")
    (tmp_path / "imports.py").write_text('"""Passes on."""\n\nfrom a import HALF\n')
    files = [tmp_path / name for name in ("a.py", "c.py")]
    assert code_sha256(files) == code_sha256(reversed(files)) == code_sha256([*files, tmp_path / "imports.py"])
    assert code_sha256(files) != code_sha256(files[:1])


def test_python_versions_agree_on_a_hash(tmp_path):
    """Parts that only some versions of Python store, and store as nothing, are left out."""
    tree = source_hash.ast.parse("def f(x=None): return {**x}")
    with_more = source_hash.ast.parse("def f(x=None): return {**x}")
    with_more.body[0].type_params, with_more.body[0].type_comment = [], None  # of 3.12
    assert source_hash._plain(tree) == source_hash._plain(with_more)
    assert source_hash._plain(tree) != source_hash._plain(source_hash.ast.parse("def f(x=None): return {1: x}"))
    tree, with_more = (source_hash.ast.parse("f'{x:<{y}}'") for _ in range(2))
    with_more.body[0].value.values[0].format_spec.values.append(source_hash.ast.Constant(""))  # of 3.12
    assert source_hash._plain(tree) == source_hash._plain(with_more)
    assert source_hash._plain(tree) != source_hash._plain(source_hash.ast.parse("f'{x:<{y} }'"))


@pytest.fixture
def copied(tmp_path, monkeypatch) -> Path:
    """A copy of the package `methods` that hashes are taken of."""
    methods.load()
    modules = {name: methods.modules(name) for name in (*METHODS, "shortgpt+ghost", "flap+refit")}
    root = tmp_path / "methods"
    shutil.copytree(Path(methods.__file__).parent, root, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(methods, "__file__", str(root / "__init__.py"))
    monkeypatch.setattr(methods, "modules", modules.__getitem__)
    return root


def hashes() -> dict[str, str]:
    return {name: method_sha256(name) for name in (*METHODS, "shortgpt+ghost", "flap+refit")}


MADE_OF = {  # methods of which others are whole parts
    "laco-puzzle": ("laco-ls", "puzzle"),
    "tyr": ("obs",),
    "llm-streamline": ("angular",),
}


@pytest.mark.nightly
def test_another_pruner_makes_no_other_old(copied):
    before = hashes()
    folders = ("depth", "width", "search", "compensation")
    for path in [path for folder in folders for path in copied.glob(f"{folder}/*.py")]:
        users = {name for name in before if path in sources(methods.modules(name))}
        text = path.read_text()
        path.write_text(text + "\nEDITED = 1\n")
        changed = {name for name, sha256 in hashes().items() if sha256 != before[name]}
        path.write_text(text)
        assert changed == users
        if "\n@register(" in text:  # a pruner's own file
            own = {name for name in before if f'@register("{name.partition("+")[0]}")' in text}
            assert changed == own | {name for name, parts in MADE_OF.items() if not own.isdisjoint(parts)}, path


@pytest.mark.parametrize("name", ["flap", "laco-ls", "minitron-width", "sleb", "angular"])
def test_what_a_method_does_not_use_is_not_in_its_hash(copied, name):
    unused = [path for path in copied.glob("checkpoint/*.py") if path.name != "stock.py"]  # by which widths are planned
    unused += [copied / "progress.py", copied / "errors.py", copied / "registry.py"]
    unused += [copied / "base.py", copied / "__init__.py", copied / "model" / "sliced_layer.py"]
    before = method_sha256(name)
    for path in unused:
        path.write_text(path.read_text() + "\nEDITED = 1\n")
    assert method_sha256(name) == before
    for used in ("model/decoder.py", "model/structures.py", "model/sizes.py", "budget.py", "counted.py"):
        (copied / used).write_text((copied / used).read_text() + "\nEDITED = 1\n")
        assert method_sha256(name) != before
        before = method_sha256(name)


@pytest.mark.parametrize("folder", ["site-packages", "dist-packages"])
def test_packages_of_another_environment_are_in_no_hash(folder, tmp_path, monkeypatch):
    """As those of the system are for an environment that finds them there; all of torch took minutes."""
    names = [f"{name}_{folder[:4]}" for name in ("far_away", "beside_it", "whose_own")]
    far, beside, own = names
    (tmp_path / folder).mkdir()
    (tmp_path / folder / f"{far}.py").write_text("HALF = 0.5\n")
    (tmp_path / f"{beside}.py").write_text("THIRD = 1 / 3\n")
    (tmp_path / f"{own}.py").write_text(f"from {far} import HALF\nfrom {beside} import THIRD\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / folder)
    importlib.import_module(own)
    assert {path.stem for path in sources([own])} == {own, beside}
    for name in names:
        monkeypatch.delitem(sys.modules, name)


def test_a_move_changes_no_hash(copied, monkeypatch):
    before = hashes()
    (copied / "model" / "sizes.py").rename(copied / "model" / "counts.py")
    (copied / "width" / "flap.py").rename(copied / "depth" / "fluctuation.py")
    for path in copied.rglob("*.py"):
        path.write_text(path.read_text().replace("methods.model.sizes", "methods.model.counts"))
    inner = methods.modules
    monkeypatch.setattr(
        methods,
        "modules",
        lambda name: [one.replace("methods.width.flap", "methods.depth.fluctuation") for one in inner(name)],
    )
    assert hashes() == before


def test_the_table_is_of_todays_code():
    """After a change that alters no decision: python -m bench.run.source_hash; else with the methods that it alters."""
    methods.load()
    table = json.loads(source_hash.TABLE.read_text())
    assert table
    assert {name: entry["now"] for name, entry in table.items()} == {
        name: source_hash.healing_sha256() if name == "healing" else method_sha256(name) for name in table
    }


def test_a_renewed_table_keeps_what_was_and_drops_what_decides_otherwise(monkeypatch):
    monkeypatch.setattr(source_hash, "method_sha256", {"sleb": "c", "laco": "d"}.__getitem__)
    monkeypatch.setattr(source_hash, "healing_sha256", lambda: "h")
    table = {
        "sleb": {"now": "b", "earlier": ["a"]},
        "laco": {"now": "b", "earlier": []},
        "healing": {"now": "h", "earlier": ["g"]},
    }
    assert source_hash.renewed(table, ["laco"]) == {
        "healing": {"now": "h", "earlier": ["g"]},
        "sleb": {"now": "c", "earlier": ["a", "b"]},
    }


def test_a_method_dropped_from_the_table_is_old_though_others_of_its_module_are_not(monkeypatch, tmp_path):
    table = json.loads(source_hash.TABLE.read_text())
    old = next(iter(set(table["laco"]["earlier"]) & set(table["laco-published"]["earlier"])))
    assert source_hash.as_of_today("laco", old) == table["laco"]["now"]
    monkeypatch.setattr(source_hash, "TABLE", tmp_path / "table.json")
    source_hash.TABLE.write_text(json.dumps(source_hash.renewed(table, ["laco"])))
    source_hash._earlier.cache_clear()
    try:
        for of, now in (("laco", old), ("laco-published", method_sha256("laco-published"))):
            known = fingerprint.of_today({"method": of, "parameters": {}, "inputs": {"method_sha256": old}})
            assert known["inputs"]["method_sha256"] == now
    finally:
        source_hash._earlier.cache_clear()


@pytest.fixture
def asked(model_folder, text_file, tmp_path) -> list[str]:
    """A run of a second."""
    return [
        *("run", "--methods", "shortgpt", "--ratio", "0.2", "--model", str(model_folder), "--profile", "smoke"),
        *("--texts", str(text_file), "--calibration", str(text_file), "--tasks", "none", "--no-checks"),
        *("--window", "32", "--windows", "2", "--calibration-sequences", "2", "--calibration-length", "16"),
        *("--speed-rounds", "0", "--device", "cpu", "--out", str(tmp_path / "run")),
    ]


def stored(run: Path) -> set[str]:
    """The names of all records and samples."""
    return {path.name for kind in ("cells", "samples") for path in (run / kind).iterdir()}


def older(run: Path, change) -> None:
    """Make the records those of earlier code: `change` their cells, and name the files as their keys were then."""
    for path in [*(run / "cells").iterdir()]:
        record = json.loads(path.read_text())
        change(record["cell"])
        (run / "cells" / f"{path.stem}0.json").write_text(json.dumps(record))
        path.unlink()
        if (run / "samples" / path.stem).exists():
            (run / "samples" / path.stem).rename(run / "samples" / f"{path.stem}0")


def test_a_run_of_earlier_code_that_decides_the_same_is_served_from_its_records(asked, tmp_path, capsys, monkeypatch):
    assert main(asked) == 0
    capsys.readouterr()
    names = stored(tmp_path / "run")
    earlier = {name: {f"old {name}": method_sha256(name)} for name in METHODS}
    monkeypatch.setattr(source_hash, "_earlier", lambda: earlier)

    def first(cell):
        cell["inputs"]["method_sha256"] = f"old {cell['method']}"

    older(tmp_path / "run", first)
    assert main(asked) == 0
    assert "shortgpt at 0.2: has a record" in (said := capsys.readouterr().err)
    assert "old dense" not in said
    assert "loading the model" in said  # of dense, whose earlier code is not in this table
    assert stored(tmp_path / "run") == names
    records = {record.cell["method"]: record for record in load_run(tmp_path / "run")}
    assert records["shortgpt"].cell["inputs"]["method_sha256"] == "old shortgpt"  # a record is never edited
    assert main(asked) == 0
    assert capsys.readouterr().err.count("has a record") == 2


def test_a_record_from_before_a_parameter_is_served_for_its_default_and_no_other_value(asked, tmp_path, capsys):
    assert main(asked) == 0

    def first(cell):
        cell["parameters"].pop("keep_last", None)

    older(tmp_path / "run", first)
    capsys.readouterr()
    assert main(asked) == 0
    assert capsys.readouterr().err.count("has a record") == 2
    asked[2] = "shortgpt:keep_last=1"
    assert main(asked) == 0
    assert capsys.readouterr().err.count("has a record") == 1


def test_a_record_with_earlier_names_of_parameters_is_served_made_anew_and_exported(asked, tmp_path, capsys):
    registry._say_renamed.cache_clear()
    asked[2] = "shortgpt:protect_first=1"
    assert main(asked) == 0
    assert "shortgpt:protect_first is called keep_first now" in capsys.readouterr().err
    run = tmp_path / "run"
    (cell,) = [record.cell for record in load_run(run) if record.cell["method"] == "shortgpt"]
    assert (cell["label"], cell["given"]) == ("shortgpt:keep_first=1", ["keep_first"])
    assert cell["parameters"] == {"token": "all", "keep_first": 1, "keep_last": 0}

    def first(cell):
        if cell["method"] == "shortgpt":
            cell["parameters"] = {"token": "all", "protect_first": 1, "protect_last": 0}
            cell["given"], cell["label"] = ["protect_first"], "shortgpt:protect_first=1"

    older(run, first)
    records = {record.cell["method"]: record for record in load_run(run)}
    made = cell_of(records["shortgpt"])
    assert (made.given, made.parameters) == (("keep_first",), cell["parameters"])
    assert (
        main(["export", str(run), *trusting_all(run), "shortgpt:protect_first=1", "--to", str(tmp_path / "model")]) == 0
    )
    assert capsys.readouterr().err == ""  # nobody has typed an earlier name
    assert load(tmp_path / "model").config.num_hidden_layers < LAYERS
    assert main(asked) == 0
    assert capsys.readouterr().err.count("has a record") == 2
