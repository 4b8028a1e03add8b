"""Mixtures of texts: how a list of calibrations is read, and which sequences are of which text."""

from __future__ import annotations

import itertools
import random
from decimal import Decimal

import pytest
import torch
from byte_tokens import byte_tokenizer

from bench.cli.main import main
from bench.data import texts
from bench.data.mixture import rows_of_texts, shares_of_calibration, split_calibrations, texts_of_calibration
from bench.plan.protocol import Protocol
from bench.plan.run_spec import RunSpec, load_spec
from methods.errors import UserError

MIXTURE = "c4:0.5,wiki:0.3,code:0.2"


def write_text(path, start: int) -> str:
    """Write eight documents of random words, other ones for each start, and return the path."""
    documents = []
    for seed in range(start, start + 8):
        draw = random.Random(seed)
        documents.append(" ".join(f"w{draw.randrange(120)}" for _ in range(300)))
    path.write_text("\n\n".join(documents), encoding="utf-8")
    return str(path)


@pytest.fixture
def files(tmp_path):
    return write_text(tmp_path / "a.txt", 0), write_text(tmp_path / "b.txt", 20)


@pytest.mark.parametrize(
    ("given", "calibrations"),
    [
        ("c4", ["c4"]),
        ("c4, wiki,c4", ["c4", "wiki"]),
        ("c4,c4:0.5,code:0.5", ["c4", "c4:0.5,code:0.5"]),
        ("c4:.50, code:0.500,wiki", ["c4:0.5,code:0.5", "wiki"]),
        ("c4:0.5,wiki:0.5,c4:0.5,code:0.5", ["c4:0.5,wiki:0.5", "c4:0.5,code:0.5"]),
        (["c4", MIXTURE], ["c4", MIXTURE]),
        (["c4:0.5", "wiki:0.3", "code:0.2"], [MIXTURE]),
        ("hub:a/b:c:test:0.5,c4:0.5", ["hub:a/b:c:test:0.5,c4:0.5"]),
        ("hub:a/b:2.0,c4", ["hub:a/b:2.0", "c4"]),
        ("c4:0.1,wiki:0.2,code:0.7", ["c4:0.1,wiki:0.2,code:0.7"]),
    ],
)
def test_a_list_of_calibrations_is_read(given, calibrations):
    assert split_calibrations(given) == tuple(calibrations)
    assert RunSpec("laco", calibration=given).protocols() == [(Protocol(calibration=each), 0) for each in calibrations]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("c4:0.5", r"sum to 1, as in c4:0.5,wiki:0.3,code:0.2; those of c4:0.5 sum to 0.5"),
        ("c4:0.5,wiki", "those of c4:0.5 sum to 0.5"),
        ("c4:0.7,wiki:0.5", "those of c4:0.7,wiki:0.5 sum to 1.2"),
        ("c4:0.33,wiki:0.33,code:0.33", "sum to 0.99"),
        ("c4:1", "a share lies between 0 and 1, .*; got c4:1"),
        ("c4:-0.5,wiki:0.5", "a share lies between 0 and 1, .*; got c4:-0.5"),
        ("c4:0.5,c4:0.5", "a mixture names c4 twice"),
        ("c4:0.95,wiki:0.05", "has no sequence of wiki among 8; give more --calibration-sequences"),
    ],
)
def test_what_is_no_mixture_is_refused_in_one_line(given, words, tmp_path, capsys):
    with pytest.raises(UserError, match=words):
        RunSpec("laco", calibration=given, calibration_sequences=8)
    spec = tmp_path / "mine.yaml"
    spec.write_text(f"methods: laco\ncalibration-sequences: 8\ncalibration: '{given}'\n", encoding="utf-8")
    assert main(["run", "--spec", str(spec)]) == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line and "--calibration" in line


def test_a_text_of_a_mixture_that_is_missing_is_named(capsys):
    assert main(["run", "--methods", "laco", "--calibration", "c4:0.5,wikki:0.5"]) == 2
    assert "no text 'wikki'; did you mean wiki?" in capsys.readouterr().err


def test_a_file_may_have_commas_and_colons_in_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a,b.txt", "data:0.5", "plain.txt"):
        (tmp_path / name).write_text("words", encoding="utf-8")
    assert split_calibrations("a,b.txt") == ("a,b.txt",)
    assert split_calibrations("a" * 5000) == ("a" * 5000,), "which no file can be called"
    assert split_calibrations(["a,b.txt", "data:0.5", "plain.txt:0.5", "c4:0.5"]) == (
        *("a,b.txt", "data:0.5"),
        "plain.txt:0.5,c4:0.5",
    )


def test_a_spec_file_takes_a_mixture_as_one_text_or_as_a_list(tmp_path):
    spec = tmp_path / "mine.yaml"
    for value in (f"'{MIXTURE}'", "[c4:0.5, wiki:0.3, code:0.2]", f"['{MIXTURE}']"):
        spec.write_text(f"methods: laco\ncalibration: {value}\n", encoding="utf-8")
        ((protocol, _),) = load_spec(str(spec), {}).protocols()
        assert protocol.calibration == MIXTURE


def test_a_name_that_is_no_mixture_is_one_text():
    assert shares_of_calibration("c4") == (("c4", 1),)
    assert texts_of_calibration("hub:a/b:0.5") == ("hub:a/b:0.5",)
    assert shares_of_calibration(MIXTURE) == (
        ("c4", Decimal("0.5")),
        ("wiki", Decimal("0.3")),
        ("code", Decimal("0.2")),
    )


def test_sequences_are_dealt_by_share_and_more_of_them_begin_with_fewer():
    every = rows_of_texts(MIXTURE, 64)
    shares = {each.text: float(each.share) for each in shares_of_calibration(MIXTURE)}
    for sequences in range(5, 64):
        rows = rows_of_texts(MIXTURE, sequences)
        assert sorted(itertools.chain(*rows.values())) == list(range(sequences))
        for text, numbers in every.items():
            assert rows[text] == [number for number in numbers if number < sequences]
        assert all(abs(len(rows[text]) - sequences * shares[text]) < 1 for text in rows)
    assert [len(rows) for rows in rows_of_texts(MIXTURE, 10).values()] == [5, 3, 2]
    assert rows_of_texts("c4:0.5,wiki:0.5", 4) == {"c4": [0, 2], "wiki": [1, 3]}


def test_a_mixture_has_each_text_s_own_draw(files):
    one, other = files
    mixture = f"{one}:0.75,{other}:0.25"
    tokenizer = byte_tokenizer(bos=True)
    block = texts.make_calibration(tokenizer, mixture, 8, 33, 3)
    rows = rows_of_texts(mixture, 8)
    assert {text: len(rows[text]) for text in files} == {one: 6, other: 2}
    for text in files:
        alone = texts.make_calibration(tokenizer, text, len(rows[text]), 33, 3)
        assert torch.equal(block.ids[rows[text]], alone.ids)
    fewer = texts.make_calibration(tokenizer, mixture, 5, 33, 3)
    assert torch.equal(block.ids[:5], fewer.ids)
    assert block.source == mixture
    assert len({block.sha256, fewer.sha256, texts.make_calibration(tokenizer, mixture, 8, 33, 4).sha256}) == 3


def test_a_text_that_is_too_short_for_its_share_is_named(files):
    one, other = files
    with pytest.raises(UserError, match=r"text .*b\.txt has \d+ tokens for calibration .* 8 x 1000 = 8000 were asked"):
        texts.make_calibration(byte_tokenizer(), f"{one}:0.2,{other}:0.8", 10, 1000, 0)


def test_a_text_on_both_sides_is_halved_and_any_other_is_whole(files):
    one, other = files
    assert not texts.is_whole(one, f"{one}:0.5,c4:0.5")
    assert not texts.is_whole("wiki", f"{one}:0.5,c4:0.5")
    assert texts.is_whole(other, f"{one}:0.5,c4:0.5")


def test_each_text_of_a_mixture_is_looked_for_in_what_is_evaluated(files, tmp_path):
    """But in itself: its other half is evaluated. A copy of one of them is refused, by the name of that one."""
    one, other = files
    mixture, tokenizer = f"{one}:0.5,{other}:0.5", byte_tokenizer()
    block = texts.make_calibration(tokenizer, mixture, 8, 500, 0)
    halves = [texts.make_evaluation_text(tokenizer, text, 100, 100, 0) for text in files]
    texts.refuse_shared(tokenizer, block.ids, mixture, halves, "calibrated on")
    copy = write_text(tmp_path / "copy.txt", 20)
    whole = texts.make_evaluation_text(tokenizer, copy, 100, 100, 0, whole=True)
    with pytest.raises(UserError, match=r"b\.txt, which is calibrated on, is in part the text .*copy\.txt"):
        texts.refuse_shared(tokenizer, block.ids, mixture, [*halves, whole], "calibrated on")


def test_a_mixture_is_run_and_its_cell_is_made_again(files, model_folder, tmp_path, capsys):
    """A record with a mixture names its texts, each of which the user's flags have to allow."""
    one, other = files
    small = ["--window", "64", "--windows", "2", "--calibration-sequences", "8", "--calibration-length", "32"]
    command = ["run", "--model", str(model_folder), "--methods", "shortgpt", "--ratio", "0.3", "--profile", "smoke"]
    command += [*small, "--tasks", "none", "--no-checks", "--speed-rounds", "0", "--threads", "1", "--device", "cpu"]
    out = tmp_path / "run"
    assert main([*command, "--texts", one, "--calibration", f"{one}:0.5,{other}:0.5", "--out", str(out)]) == 0
    assert f"8 sequences of 32 tokens of {one}:0.5,{other}:0.5, seed 0" in (out / "report.md").read_text()
    export = ["export", str(out), "shortgpt", "--to", str(tmp_path / "model"), "--trust", str(model_folder)]
    assert main([*export, "--trust", one]) == 2
    assert (
        f"names a text, which it cannot allow itself; look at it, then add --trust {other}" in capsys.readouterr().err
    )
    assert main([*export, "--trust", one, "--trust", other]) == 0
    card = (tmp_path / "model/README.md").read_text(encoding="utf-8")
    assert "a.txt:0.5,b.txt:0.5" in card and str(tmp_path) not in card
