"""`export --push`: huggingface_hub itself, against a hub on the loopback address."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import refused, tiny, trusting_all
from hub_server import LocalHub
from huggingface_hub import ModelCard, constants

from bench.cli.main import main
from bench.export.hub import push_folder
from bench.records.run_folder import load_run
from methods.checkpoint import save_load
from methods.model.decoder import Decoder


@pytest.fixture(scope="module")
def run(model_folder, text_file, tmp_path_factory):
    """A run that saved no model."""
    folder, text = tmp_path_factory.mktemp("runs") / "run", str(text_file)
    asked = ["run", "--model", str(model_folder), "--texts", text, "--calibration", text, "--tasks", "none"]
    asked += ["--window", "32", "--windows", "4", "--calibration-sequences", "4", "--calibration-length", "24"]
    asked += ["--profile", "smoke", "--device", "cpu", "--speed-rounds", "0", "--no-checks", "--out", str(folder)]
    assert main([*asked, "--methods", "drop-tail", "--ratio", "0.3"]) == 0
    return folder


@pytest.fixture
def hub(monkeypatch):
    """A hub that huggingface_hub talks to, with a token that it takes."""
    with LocalHub() as opened:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", opened.address)
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        yield opened


def test_a_pushed_model_is_the_written_folder_with_its_figures_as_results(run, hub, tmp_path, capsys):
    assert (
        main(
            [
                "export",
                str(run),
                *trusting_all(run),
                "drop-tail",
                "--to",
                str(tmp_path / "m"),
                "--push",
                "me/tiny-pruned",
            ]
        )
        == 0
    )
    out, _ = capsys.readouterr()
    assert out.splitlines()[-1] == f"{hub.address}/me/tiny-pruned"
    kept = hub.handler.repositories["me/tiny-pruned"]
    assert kept["private"] is True
    assert kept["said"] == ["Pruned with drop-tail"]
    assert kept["files"] == {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}
    assert {"config.json", "model.safetensors", "prunebench.json", "README.md"} < kept["files"].keys()
    for name, content in kept["files"].items():
        assert str(tmp_path.parent).encode() not in content, name
    [record] = [one for one in load_run(run) if one.cell.method == "drop-tail"]
    card = ModelCard(kept["files"]["README.md"].decode())
    [[text, figures]] = record.measured.text_scores.items()
    found = {one.metric_type: (one.dataset_type, one.metric_value) for one in card.data.eval_results}
    assert found == {name: (Path(text).name, getattr(figures, name)) for name in ("perplexity", "bits_per_byte")}
    assert f"{record.measured.parameters:,}" in card.text
    assert card.data.library_name == "transformers"


def test_a_push_leaves_no_weights_of_an_earlier_one(hub, tmp_path):
    """transformers would load model.safetensors, and not the files that an index names."""
    model = Decoder(tiny("llama"))
    mine = dict.fromkeys(("notes.json", "models/a.safetensors", "tokenizers/mine.txt"), b"of the owner")
    for name, most in (("whole", 10**9), ("in files", 20_000), ("whole again", 10**9)):
        save_load.save(model, tmp_path / name, shard_bytes=most)
        push_folder(tmp_path / name, "org/again", public=False)
        there = hub.handler.repositories["org/again"]["files"]
        if name == "whole":
            there |= mine
        assert there == mine | {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        assert ("model.safetensors" in there) == (most > 20_000)
        there["model-[x].safetensors"] = b"of an earlier push"


def test_a_new_repository_is_public_where_that_is_said_and_an_old_one_stays_as_it_is(run, hub, tmp_path):
    for to, more in (("a", ["--public"]), ("b", [])):
        assert (
            main(
                [
                    "export",
                    str(run),
                    *trusting_all(run),
                    "drop-tail",
                    "--to",
                    str(tmp_path / to),
                    "--push",
                    "org/tiny",
                    *more,
                ]
            )
            == 0
        )
    kept = hub.handler.repositories["org/tiny"]
    assert kept["private"] is False
    assert len(kept["said"]) == 2


def test_nothing_is_asked_of_the_hub_without_the_flag(run, hub, tmp_path):
    assert main(["export", str(run), *trusting_all(run), "drop-tail", "--to", str(tmp_path / "m")]) == 0
    assert hub.handler.asked == []
    assert "model-index:" in (tmp_path / "m" / "README.md").read_text()


@pytest.mark.parametrize(
    ("push", "said"),
    [
        (["tiny"], "--push takes ORG/NAME"),
        (["me/ti--ny"], "Cannot have -- or .. in repo_id"),
        (["me/tiny", "--format", "gguf"], "--push is for --format hf"),
        (["me/tiny", "--lm-eval-json"], "leave --push out"),
    ],
)
@pytest.mark.usefixtures("hub")
def test_what_cannot_be_pushed_is_refused_before_any_work(push, said, run, tmp_path, capsys):
    asked = ["export", str(run), *trusting_all(run), "drop-tail", "--to", str(tmp_path / "m"), "--push", *push]
    assert said in refused(capsys, asked)
    assert not (tmp_path / "m").exists()


def test_a_hub_without_a_token_or_out_of_reach_is_known_before_any_work(run, hub, tmp_path, capsys, monkeypatch):
    asked = ["export", str(run), *trusting_all(run), "drop-tail", "--to", str(tmp_path / "m"), "--push", "me/tiny"]
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert f"--push cannot use the hub at {hub.address}: " in refused(capsys, asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused(capsys, asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "--push cannot use the hub at http://127.0.0.1:9: " in refused(capsys, asked)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "--push needs a token that may write" in refused(capsys, asked)
    assert "--public is about --push" in refused(capsys, [*asked[:-2], "--public"])
    assert not (tmp_path / "m").exists()


def test_a_hub_that_refuses_the_files_leaves_the_folder_and_says_so(run, hub, tmp_path, capsys):
    hub.handler.refuses = "/commit/"
    asked = ["export", str(run), *trusting_all(run), "drop-tail", "--to", str(tmp_path / "m"), "--push", "me/tiny"]
    assert main(asked) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("me/tiny was not pushed: ")
    assert f"`hf upload me/tiny {tmp_path / 'm'}` tries again" in last
    assert main(["verify", str(tmp_path / "m")]) == 0
