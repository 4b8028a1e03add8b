"""Statistics of the dense model that cells share change no decision, and are found once."""

from __future__ import annotations

import dataclasses
import typing
from itertools import product

import pytest
import torch
from conftest import tiny
from tiny_methods import SPECS, calibration

import methods
from bench.runs.datasets import KeptStatistics
from methods.errors import OutOfReach, Unsupported
from methods.model.calibration import Calibration, SweepLogs
from methods.model.decoder import Decoder

SHARING = {
    *("shortgpt", "angular", "shortened-llama", "shortened-llama-taylor", "llm-drop"),
    *("flap", "minitron-width", "2ssp", "llm-pruner", "nirvana", "puzzle", "llm-streamline", "modegpt"),
}


def peaks():
    return {"resident_bytes": 7}


def variants(name: str) -> list[dict[str, str]]:
    """The method as the tests have it, and with each other value of each parameter of few values."""
    kind = type(methods.make(name, SPECS[name]))
    hints = typing.get_type_hints(kind)
    plain = SPECS[name]
    found = [plain]
    for field in dataclasses.fields(kind):
        if typing.get_origin(hints[field.name]) is typing.Literal:
            found += [plain | {field.name: str(value)} for value in typing.get_args(hints[field.name])]
        elif hints[field.name] is bool:
            found.append(plain | {field.name: str(not field.default)})
        elif field.name == "steps":
            found.append(plain | {"steps": "2"})  # of which the second looks at a model that has been cut
    return found


def decided(name: str, parameters: dict[str, str], ratio: float, tokens: Calibration) -> object:
    """What a method decides on a tiny model, or with which words it refuses."""
    try:
        return methods.make(name, parameters).prune(Decoder(tiny("llama", layers=4)), tokens, ratio)
    except (OutOfReach, Unsupported, ValueError) as reason:  # as uniform=true without parts=mlp
        return str(reason)


@pytest.mark.parametrize("name", sorted(SHARING))
def test_what_is_shared_is_what_would_have_been_found(name, tmp_path):
    asked = list(product(variants(name), (0.2, 0.4), [calibration()]))
    asked += [(SPECS[name], 0.2, tokens) for tokens in (calibration().first(72), calibration(1))]
    asked = [(given, ratio, dataclasses.replace(tokens, sha256=str(tokens.seed))) for given, ratio, tokens in asked]
    for given, ratio, tokens in asked:
        kept = dataclasses.replace(tokens, keep=KeptStatistics(tmp_path, peaks))
        assert decided(name, given, ratio, kept) == decided(name, given, ratio, tokens), given
    again = KeptStatistics(tmp_path, peaks)
    block = dataclasses.replace(tokens, keep=again)
    assert decided(name, given, ratio, block) == decided(name, given, ratio, tokens)
    assert again.seconds > 0
    assert again.peak == {"resident_bytes": 7}


@pytest.mark.parametrize("name", sorted(set(SPECS) - SHARING))
def test_other_methods_keep_nothing(name, tmp_path):
    tokens = dataclasses.replace(calibration(), keep=KeptStatistics(tmp_path, peaks))
    decided(name, SPECS.get(name, {}), 0.2, tokens)
    assert list(tmp_path.iterdir()) == []


def test_what_an_interrupted_sweep_has_cost_counts_for_those_who_read_what_came_of_it(tmp_path):
    first, second = (KeptStatistics(tmp_path / "kept", peaks) for _ in range(2))
    first.sweeps = SweepLogs(tmp_path / "prune")

    def find() -> list[torch.Tensor]:
        first.sweeps.seconds += 100.0  # of the layers that the log has
        return [torch.zeros(1)]

    first("name", find)
    second("name", lambda: pytest.fail("it is there"))
    assert 100 < second.seconds < 101


def test_a_second_cell_finds_nothing_and_says_what_it_has_cost(tmp_path):
    first, second = (KeptStatistics(tmp_path / "kept", peaks) for _ in range(2))
    found = [torch.arange(3.0)[::2], torch.tensor(1 / 3, dtype=torch.float64)]
    assert first("name", lambda: found) is found
    assert (first.seconds, first.peak) == (0.0, {})
    read = second("name", lambda: pytest.fail("it is there"))
    assert all(torch.equal(one, other) and one.dtype == other.dtype for one, other in zip(read, found, strict=True))
    assert second.seconds > 0
    assert [file.name for file in (tmp_path / "kept").iterdir()] == ["name.safetensors"]
