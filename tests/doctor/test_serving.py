"""The doctor of engines: what proves an installation of vLLM, for which stands this suite's own reader of folders."""

from __future__ import annotations

import sys

import torch

from bench.cli.main import main
from bench.doctor import serving
from bench.export import formats
from bench.inference.engine_process import EngineFailed
from methods.checkpoint import save_load
from methods.checkpoint.transformers_compat import compute_logits


class Process:
    """Computes folders by this suite, or the whole tiny model in their place, or refuses those that need the plugin."""

    def __init__(self, *, whole=False, refuses=False, trouble=""):
        self.whole, self.refuses, self.trouble, self.ended, self.model = whole, refuses, trouble, False, None

    def __call__(self, python, options, *, threads, silence):
        return self

    def load(self, name, folder, **options):
        manifest = save_load.read_manifest(folder)
        if self.refuses and manifest["loads_with"] == "prunebench":
            raise EngineFailed("error", f"ValueError: {folder}/config.json is of no model")
        whole = serving.build_tiny_model(mixture="experts" in manifest)
        self.model = whole if self.whole else save_load.load(folder)

    def exchange(self, do, **request):
        if do == "describe":
            return {"version": "0.33.0", "device": {"device": "cpu"}}
        if do == "check_plugin":
            return {"trouble": self.trouble}
        ids = torch.tensor(request["sequences"])
        logs = compute_logits(self.model, ids).log_softmax(-1)[:, :-1]
        return {"logs": logs.gather(2, ids[:, 1:, None])[..., 0].tolist()}

    def end(self):
        self.ended = True


def examined(monkeypatch, process, capsys):
    """The exit code, and {what: status} of the table."""
    monkeypatch.setattr(serving, "VllmProcess", process)
    code = main(["doctor", "--engine", "vllm", "--engine-python", "python"])
    lines = capsys.readouterr().out.splitlines()[1:]
    status = {what: line.split()[0] for what in ("vllm", "plugin", *serving.SHAPES) for line in lines if what in line}
    assert process.ended
    return code, status, "\n".join(lines)


def test_every_shape_that_a_checkpoint_holds_is_looked_at(monkeypatch, capsys):
    code, status, _ = examined(monkeypatch, Process(), capsys)
    assert code == 0
    assert set(status.values()) == {"ok"}
    assert {shape.removed for shape in formats.SHAPES.values()} <= status.keys()
    # each is another model by far more than rounding, so that an engine that ignores what is cut would be found out
    code, status, _ = examined(monkeypatch, Process(whole=True), capsys)
    assert code == 1
    assert {what for what, word in status.items() if word == "wrong"} == set(serving.SHAPES)


def test_what_an_engine_refuses_is_wrong_and_the_others_go_on(monkeypatch, capsys):
    few = ("MLPs", "whole layers")
    monkeypatch.setattr(serving, "SHAPES", {shape: serving.SHAPES[shape] for shape in few})
    code, status, table = examined(monkeypatch, Process(refuses=True), capsys)
    assert (code, status) == (1, {"vllm": "ok", "plugin": "ok", "MLPs": "wrong", "whole layers": "ok"})
    assert "ValueError: config.json is of no model" in table  # without the path


def test_without_the_plugin_no_shape_is_tried(monkeypatch, capsys):
    code, status, _ = examined(monkeypatch, Process(trouble="No module named 'accelerate'"), capsys)
    assert (code, status) == (1, {"vllm": "ok", "plugin": "wrong"})


def test_a_python_without_vllm_is_one_line(monkeypatch, capsys):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert main(["doctor", "--engine", "vllm", "--engine-python", sys.executable]) == 1
    assert "wrong" in (line := capsys.readouterr().out.splitlines()[1:])[0]
    assert "No module named 'vllm'" in line[0]
    assert len(line) == 1
    for wrong, words in (([], "--engine-python"), (["--only", "timing"], "--only names checks of this machine")):
        assert main(["doctor", "--engine", "vllm", *wrong]) == 2
        assert words in capsys.readouterr().err
