"""The spec heal-8b says what its plan is, by shapes that are made here, and without the hub it is refused in a line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bench.cli.main import main
from bench.data import assets, pretrained, texts
from bench.plan import run_spec, validate
from bench.schedule.data_sheets import DATA_SHEETS
from bench.schedule.estimate import Amounts, Cost
from bench.schedule.memory_needs import GIB, Footprint
from bench.schedule.shape import Shape
from methods.model.decoder import Decoder

GROUPED = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False}
MODELS = {
    "Qwen/Qwen3-8B": ("qwen3", {"intermediate_size": 12288, "num_hidden_layers": 36, "vocab_size": 151936}),
    "meta-llama/Llama-3.1-8B": ("llama", {"intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128256}),
}
AMOUNTS = Amounts(290_000, {f"task {number}": 500 for number in range(5)})


def make_shell(name, trust=False):
    family, sizes = MODELS[name]
    config = AutoConfig.for_model(family, **GROUPED, **sizes, head_dim=128, max_position_embeddings=40_960)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("model", MODELS)
def test_the_plan_of_two_8b_models_is_what_the_spec_says(model, monkeypatch):
    monkeypatch.setattr(texts, "check_text", lambda text, **_: None)
    monkeypatch.setattr(pretrained, "check", lambda name, trust: None)
    monkeypatch.setattr(pretrained, "make_shell", make_shell)
    spec = run_spec.load_spec("heal-8b", {"device": "cuda", "model": model})
    cells = validate.cells_of_spec(spec, is_here=False)
    shape = Shape.of(Decoder(make_shell(model)))
    cost, footprint = Cost(shape, DATA_SHEETS["h100"].rates(torch.bfloat16), 2), Footprint(shape, 2)
    hours = [sum(cost.seconds(cell, AMOUNTS).values()) / 3600 for cell in cells]
    memory = max(footprint.needs(cell).device_bytes for cell in cells) / GIB
    head = Path(run_spec.__file__).parents[1].joinpath("specs/heal-8b.yaml").read_text().replace("\n# ", " ")
    planned = re.search(rf"--model {model}(?: --plan h100  #| it is) (\d+) h and ([\d.]+) GiB", head)
    assert planned is not None
    assert round(sum(hours)) == int(planned[1])
    assert memory == pytest.approx(float(planned[2]), abs=0.05)
    low, high = map(int, re.search(r"A healed cell takes (\d+) to (\d+) h", head).groups())
    assert all(low < each < high for cell, each in zip(cells, hours, strict=True) if cell.healing)
    assert spec.healing.tokens == 10**9
    assert f"take {spec.healing.bytes_of_top / 1e9:.0f} GB of disk" in head
    assert "Never run." in head


def test_without_the_hub_its_plan_is_refused_in_a_line(monkeypatch, capsys):
    monkeypatch.setattr(assets, "is_hub_reachable", lambda: False)
    assert main(["run", "--spec", "heal-8b", "--plan", "h100"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "hub is out of reach" in line
