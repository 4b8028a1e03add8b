"""A plugin is its file and those of its own that it imports; nobody else's count."""

from __future__ import annotations

import pytest

from methods.errors import UserError
from methods.plugin_sources import find_sources, read_sources


def write(folder, **files):
    """Write files, whose folders have two underscores for a slash in their names."""
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/').replace('//', '/__')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def names_of(folder, plugin):
    return [path.relative_to(folder).as_posix() for path in find_sources(folder / plugin)]


def test_what_lies_beside_a_plugin_counts_where_it_is_imported_however_deep(tmp_path):
    write(tmp_path, mine="import near, torch\n", near="def f():\n    from far import deep\n", far__deep="", unused="")
    assert names_of(tmp_path, "mine.py") == ["mine.py", "near.py", "far/deep.py"]


def test_files_that_import_each_other_count_once(tmp_path):
    write(tmp_path, mine="import near", near="import mine")
    assert names_of(tmp_path, "mine.py") == ["mine.py", "near.py"]


@pytest.mark.parametrize(
    "line", ["from . import near", "from .near import f", "from own.near import f", "import own.near"]
)
@pytest.mark.parametrize("place", ["site-packages", "source"])
def test_the_modules_of_a_package_count_wherever_it_lies(line, place, tmp_path):
    (tmp_path / place / "own").mkdir(parents=True)
    (tmp_path / place / "own" / "__init__.py").write_text("")
    write(tmp_path / place, own__mine=f"import torch\n{line}\n", own__near="from . import mine", torch="")
    sources = names_of(tmp_path / place, "own/mine.py")
    assert set(sources) == {"own/mine.py", "own/__init__.py", "own/near.py"}


def test_a_single_file_that_an_installer_has_put_there_stands_alone(tmp_path):
    write(tmp_path / "site-packages", mine="import numpy, near", numpy="", near="")
    assert names_of(tmp_path / "site-packages", "mine.py") == ["mine.py"]


def test_a_module_of_the_folder_of_the_program_counts(tmp_path, monkeypatch):
    """`python -m` finds it there, wherever the plugin lies."""
    write(tmp_path, plugins__mine="import near, far.deep", near="", far__deep="import near")
    assert names_of(tmp_path, "plugins/mine.py") == ["plugins/mine.py"]
    monkeypatch.chdir(tmp_path)
    assert names_of(tmp_path, "plugins/mine.py") == ["plugins/mine.py", "near.py", "far/deep.py"]


def test_this_package_is_not_a_part_of_a_plugin_beside_it(tmp_path):
    write(tmp_path, mine="from methods import Pruner\nimport bench.plan", methods__base="", bench__plan="")
    (tmp_path / "methods" / "__init__.py").write_text("")
    assert names_of(tmp_path, "mine.py") == ["mine.py"]


def test_a_file_that_is_no_python_imports_nothing(tmp_path):
    write(tmp_path, mine="import near", near="this is no Python")
    assert names_of(tmp_path, "mine.py") == ["mine.py", "near.py"]


def test_files_are_named_as_imports_find_them(tmp_path, monkeypatch):
    write(tmp_path, own__mine="from own import near\nfrom . import inner\nimport far.deep", own__near="x = 1")
    write(tmp_path, own__inner="", beside__far__deep="import near", beside__near="x = 2")
    (tmp_path / "own" / "__init__.py").write_text("")
    monkeypatch.chdir(tmp_path / "beside")
    names, texts = read_sources([tmp_path / "own" / "mine.py"])
    assert [name.as_posix() for name in names] == ["own/mine.py"]
    assert set(texts) == {"own/mine.py", "own/__init__.py", "own/near.py", "own/inner.py", "far/deep.py", "near.py"}
    assert texts["near.py"] == "x = 2"


def test_two_files_of_one_name_do_not_travel_together(tmp_path):
    write(tmp_path, a__mine="import near", b__other="import near", a__near="", b__near="")
    plugins = [tmp_path / "a" / "mine.py", tmp_path / "b" / "other.py"]
    assert [name.name for name in read_sources(plugins)[0]] == ["mine.py", "other.py"]
    write(tmp_path, b__near="x = 1")
    with pytest.raises(UserError, match=r"a/near\.py and .*b/near\.py would be one file, near\.py, where jobs run"):
        read_sources(plugins)
