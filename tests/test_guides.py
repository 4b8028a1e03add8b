"""The guides say what the program takes: its commands, profiles, groups of tasks, and methods that it refuses."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Iterator

import pytest
from pages import DOCS, ROOT, tables, text

import methods
from bench.cli.main import _parse, main
from bench.data import skills, task_sources
from bench.plan.fields import options_of_class
from bench.plan.protocol import PROFILES, SimilarityProtocol, protocol_of_profile
from bench.workshop import method_checks, new_method
from methods.errors import UserError

PAGES = ("README.md", "CONTRIBUTING.md", *sorted(str(path.relative_to(ROOT)) for path in DOCS.rglob("*.md")))
FENCED = re.compile(r"^```(?:sh|\{ \.sh[^}]*\})\n(.*?)^```", re.DOTALL | re.MULTILINE)
PROGRAM = ["python", "-m", "bench"]


def words_of(line: str) -> Iterator[list[str]]:
    """Yield the words behind each `python -m bench` of a line of a shell, without what a shell takes for itself."""
    found = shlex.shlex(line, posix=True, punctuation_chars=True)
    found.whitespace_split = True
    words = list(found)
    for at in (at for at in range(len(words)) if words[at : at + 3] == PROGRAM):
        command = words[at + 3 :]
        ends = [number for number, word in enumerate(command) if set(word) <= set("();<>|&")]
        yield command[: ends[0] if ends else None]


def commands() -> dict[str, list[str]]:
    """Return the words of every command of the suite in a fence of a page, by the page and what is written there."""
    found = {}
    for page in PAGES:
        for fence in FENCED.findall(text(page)):
            for line in fence.replace("\\\n", "").replace(".venv/bin/python", "python").splitlines():
                found |= {f"{page}: {shlex.join(words)}": words for words in words_of(line)}
    return found


def test_every_command_of_a_page_is_one_that_the_program_takes():
    found, wrong = commands(), []
    assert len(found) > 100
    assert {words[0] for words in found.values()} >= {"run", "speed", "report", "gate", "serve-speed", "latency-table"}
    for written, words in found.items():
        try:
            _parse(words)
        except UserError as error:
            wrong.append(f"{written}: {error}")
    assert wrong == []


def test_a_flag_that_begins_a_value_of_its_own_is_no_command_of_a_page():
    with pytest.raises(UserError, match="--engine-args: expected one argument"):
        _parse(["serve-speed", "run", "--engine-args", "--enforce-eager"])
    assert _parse(["serve-speed", "run", "--engine-args=--enforce-eager"])


ADD_METHOD = "docs/guides/add-method.md"


def test_code_of_the_guide_to_methods_is_that_of_the_files_that_new_method_writes(tmp_path):
    written = ""
    for kind in new_method.KINDS:
        path, _ = new_method.write_method("mine", kind, tmp_path / kind)
        written += path.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text(ADD_METHOD), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    assert [block for block in blocks if without_indents(block) not in without_indents(written)] == []


def without_indents(code: str) -> str:
    return "\n".join(line.strip() for line in code.splitlines())


def test_the_commands_of_the_guide_to_methods_run_from_the_first_to_the_last(base, tmp_path, monkeypatch, capsys):
    """On a tiny model, with few families and properties; those of all are tested where the files are."""
    monkeypatch.chdir(tmp_path)
    few = ("budget met", "decisions name what went")
    monkeypatch.setattr(method_checks, "CHECKS", {name: method_checks.CHECKS[name] for name in few})
    monkeypatch.setattr(method_checks.check_method, "__defaults__", (("llama",), ""))
    (fence,) = FENCED.findall(text(ADD_METHOD))
    lines = [line.partition("  #")[0].split() for line in fence.splitlines()]
    assert [line[2] for line in lines] == ["bench", "bench", "pytest", "bench"]
    for line in lines:
        if line[2] == "bench":
            arguments = [*base, *line[4:], "--no-isolate"] if line[3] == "run" else line[3:]
            arguments = ["0.3" if word == "0.1" else word for word in arguments]  # a tenth is no layer of six
            assert main(arguments) == 0
        else:
            tests = [each for name, each in runpy.run_path(line[3]).items() if name.startswith("test_")]
            assert len(tests) == 2
            for each in tests:
                each()
    table = capsys.readouterr().out
    assert re.search(r"^mine +", table, re.MULTILINE)


def test_the_table_of_profiles_says_what_each_is_calibrated_on():
    (table,) = (table for table in tables(text("docs/reference/inputs.md")) if table[0][0] == "profile")
    said = {row[0].partition("`")[0]: row[-1] for row in table[1:]}
    found = {name: protocol_of_profile(name) for name in PROFILES}
    assert said == {
        name: f"{one.calibration_sequences} × {one.calibration_length} tokens of `{one.calibration}".removesuffix("`")
        for name, one in found.items()
    }


def test_methods_that_read_less_of_the_calibration_do_by_default():
    (table,) = (table for table in tables(text("docs/reference/inputs.md")) if table[0][-1] == "reads by default")
    cards = {card.name: {name: default for name, default, _ in card.parameters} for card in methods.cards_of_methods()}
    assert cards["blockpruner"]["tokens"] == cards["finercut"]["tokens"]
    assert {name: reads for name, reads in table[1:]} == {
        "laco": f"{cards['laco']['tokens']} tokens of each of {cards['laco']['sentences']} sequences",
        "blockpruner`, `finercut": f"{cards['blockpruner']['tokens']} tokens in all",
        "llm-pruner": f"{cards['llm-pruner']['tokens']} tokens of each of {cards['llm-pruner']['sequences']} sequences",
        "shortened-llama": f"{int(cards['shortened-llama']['tokens']):,} tokens in all",
        "sleb": f"{int(cards['sleb']['tokens']):,} tokens in all",
    }


def test_groups_of_tasks_are_offline_where_the_guide_says_so():
    offline = {name for name, members in task_sources.GROUPS.items() if set(members) <= set(task_sources.OFFLINE)}
    assert offline == {"quick", "commonsense", "mmlu", "skills", "written", "programs", "needle", *skills.SKILLS}
    from_hub = set(task_sources.GROUPS["laco"]) - set(task_sources.OFFLINE) - set(task_sources.GROUPS["cmmlu"])
    assert from_hub == {"race", "wsc"}
    guide = text("docs/reference/inputs.md")
    assert "The groups `quick`, `commonsense` and `mmlu` are offline;" in guide
    assert "so do `race`, `wsc` and `cmmlu` of the group `laco`" in guide


def test_the_guide_names_the_methods_that_have_no_uniform_variant():
    guide = text("docs/reference/formats.md")
    (said,) = re.findall(r"load with transformers anyway\. (.*?) have no such variant", guide, re.DOTALL)
    excepted = dict(re.findall(r"`([\w-]+)` \(except `([\w=]+)`\)", said))
    needed = {"drop": {"layers": "3"}}
    made = {card.name: methods.make(card.name, needed.get(card.name, {})) for card in methods.cards_of_methods()}
    uneven = {name for name, method in made.items() if method.uneven_because}
    assert set(re.findall(r"`([\w-]+)`", said)) == uneven
    assert set(excepted) == {"evopress", "llm-drop"}
    for name, given in excepted.items():
        assert not methods.make(name, dict([given.split("=")])).uneven_because


def test_help_names_the_default_of_what_similarity_looks_at_and_of_the_profile(capsys):
    for option in options_of_class(SimilarityProtocol):
        default = ",".join(map(str, option.default)) if isinstance(option.default, tuple) else str(option.default)
        assert f"by default {default}" in option.help
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    assert f"{', '.join(PROFILES)}; by default quick" in " ".join(capsys.readouterr().out.split())


def test_names_of_tasks_stand_apart_from_what_is_said_of_them(capsys):
    for more in ([], ["--verbose"]):
        assert main(["list", "tasks", *more]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if not line.endswith(".")]
        names = [line.split("  ")[0] for line in lines]
        assert set(task_sources.HUB if more else ["race", "mmlu", "cmmlu"]) <= set(names)
        assert len({len(line) - len(line.split("  ", 1)[1].lstrip()) for line in lines if "  " in line}) == 1
