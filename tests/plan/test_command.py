"""The command of a cell asks for that cell again, whatever the cell is; where no command can, there is none."""

from __future__ import annotations

import functools
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import tiny

from bench.cli.main import main
from bench.data import pretrained, texts
from bench.plan import validate
from bench.plan.cell import Cell
from bench.plan.command import PROGRAM, command_of_cell
from bench.records.run_folder import read_records
from bench.runs import runner

RESULTS = Path(__file__).parents[2] / "docs" / "results"
COMMANDS = (
    "--methods dense",
    "--methods laco:C=3,T=0.7,drop-random --ratio 0.1,0.25",
    "--methods 2ssp+refit:refit.sinks=alike,refit.tokens=none --ratio 0.2 --ratio-of layers --match exact",
    "--methods flap --budget kv=0.7 --seed 3",
    "--methods flap --budget macs=0.95 --profile smoke --tasks none --texts wiki,c4 --first-windows",
    "--methods shortgpt --ratio 0.2 --profile full --window 128 --stride 64 --documents 3",
    "--methods shortgpt --ratio 0.2 --window 1024 --calibration c4:0.5,wiki:0.5 --calibration-tokens 4k",
    "--methods shortgpt --ratio 0.2 --apply-chat-template --system 'Answer in one word; no \"why\".'",
    "--methods shortgpt --ratio 0.2 --tasks codex_humaneval_gen --confirm-run-unsafe-code",
    "--methods shortgpt --ratio 0.2 --prefill none --decode 16,32 --batch 1,4 --cache static --compile",
    "--methods shortgpt --ratio 0.1 --then laco:ratio=0.3,C=2 --heal lora --heal-tokens 4096 --heal-rank 4 --seed 2",
    "--methods shortgpt --ratio 0.1 --heal full --heal-loss kl --heal-top 16 --heal-at 0,1024,4096 --heal-tokens 4096",
    "--methods shortgpt --ratio 0.1 --save-dtype bfloat16 --trust-remote-code --dtype bfloat16",
)


@pytest.fixture
def cells_of(monkeypatch, tmp_path):
    """The cells that a command asks for, of a made model of 30 layers; nothing is run."""
    shell = functools.cache(lambda: tiny("llama", layers=30, max_position_embeddings=2048))
    monkeypatch.setattr(texts, "check_text", lambda text, **_: None)
    monkeypatch.setattr(pretrained, "check", lambda name, trust: None)
    monkeypatch.setattr(validate, "room_for_predictions", lambda: 10**12)
    monkeypatch.setattr(validate, "_check_chat", lambda *_, **__: None)
    monkeypatch.setattr(pretrained, "make_shell", lambda name, trust: shell())

    def parse(words: list[str]) -> list[Cell]:
        cells: list[Cell] = []

        def run(given, folder, **_):
            cells.extend(given)
            raise KeyboardInterrupt

        monkeypatch.setattr(runner, "run", run)
        assert main(["run", *words, "--out", str(tmp_path / "run")]) == 130
        return cells

    return parse


def words_behind_the_program(command: str) -> list[str]:
    words = shlex.split(command)
    assert tuple(words[: len(PROGRAM)]) == PROGRAM
    return words[len(PROGRAM) :]


@pytest.mark.parametrize("words", COMMANDS)
def test_each_cell_of_a_command_has_one_that_asks_for_it_again(words, cells_of):
    for cell in cells_of([*shlex.split(words), "--device", "cpu"]):
        command = command_of_cell(cell)
        assert command is not None
        again = cells_of(words_behind_the_program(command))
        assert cell.question in {each.question for each in again}
        assert len(again) <= 10  # itself, the dense model, draws and parents, and no other ratio or method


def test_each_kind_of_shipped_cell_is_asked_for_again(cells_of):
    """One of those whose commands differ in numbers and names alone."""
    records = [record for run in sorted(RESULTS.iterdir()) for record in read_records(run).values()]
    commands = {command: record.cell for record in records if (command := command_of_cell(record.cell))}
    kinds = {re.sub(r"(--methods|--model|--ratio|--seed|--windows) \S+", r"\1", words): words for words in commands}
    assert len(kinds) > 20
    for command in kinds.values():
        without_inputs = replace(commands[command], inputs=None)
        again = cells_of(words_behind_the_program(command))
        assert without_inputs.question in {cell.question for cell in again}, command


def test_one_command_asks_for_every_draw_of_a_random_method(cells_of):
    cells = cells_of(["--methods", "drop-random", "--ratio", "0.2", "--seed", "0,1,2", "--device", "cpu"])
    drawn = [cell for cell in cells if cell.method == "drop-random"]
    command = command_of_cell(drawn[0], [cell.seed for cell in drawn])
    again = {cell.question for cell in cells_of(words_behind_the_program(command))}
    assert len(drawn) == 15  # five for each seed
    assert {cell.question for cell in drawn} <= again


def test_a_timed_cell_on_a_gpu_says_what_a_gpu_would_choose_otherwise(cells_of):
    *_, cell = cells_of(["--methods", "shortgpt", "--ratio", "0.2", "--device", "cpu"])
    on_gpu = words_behind_the_program(command_of_cell(replace(cell, device="cuda")))
    for flag, value in (("--prefill", "128"), ("--decode", "64"), ("--cache", "dynamic"), ("--mode", "eager")):
        assert on_gpu[on_gpu.index(flag) + 1] == value
    assert on_gpu[on_gpu.index("--device") + 1] == "cuda"
    assert "--prefill" not in words_behind_the_program(command_of_cell(cell))


def test_what_stands_on_more_than_a_record_holds_has_no_command(cells_of):
    *_, cell = cells_of(["--methods", "shortgpt", "--ratio", "0.1", "--heal", "lora", "--device", "cpu"])
    own = ("mine", "mine.yaml", "0" * 64)
    for protocol in (
        replace(cell.protocol, task_data=(own,)),
        replace(cell.protocol, task_files=(own,)),
        replace(cell.protocol, profile="of an older version"),
        replace(cell.protocol, scorer="vllm", speed_rounds=0, checks=False),
    ):
        assert command_of_cell(replace(cell, protocol=protocol)) is None
    assert command_of_cell(replace(cell, method="mine")) is None
    assert command_of_cell(replace(cell, method="shortgpt+mine")) is None
    assert command_of_cell(replace(cell, given=("of_an_older_version",), parameters={"of_an_older_version": 1})) is None
    assert command_of_cell(replace(cell, parameters=cell.parameters | {"of_an_older_version": 1})) is None
    assert command_of_cell(replace(cell, healing=replace(cell.healing, points=3))) is None
    assert command_of_cell(cell) is not None
