"""Perplexity by position: the ranges of long windows are of one forward, and each has its own samples."""

from __future__ import annotations

import math
import random

import pytest
import torch
from byte_tokens import byte_tokenizer
from conftest import WORDS, refused

from bench.cli.main import main
from bench.data import texts
from bench.evaluation import scoring
from bench.plan.protocol import name_of_samples, ranges_of_window, split_range
from bench.records.frame import rows_of_records
from bench.records.run_folder import load_run, samples
from bench.regression.results import results_of_run
from bench.runs import store
from methods.errors import UserError

LONG = 1024


@pytest.fixture(scope="module")
def long_file(tmp_path_factory):
    """Eight documents of 1,100 words, each with a short one behind it."""
    draw, path = random.Random(3), tmp_path_factory.mktemp("texts") / "long.txt"
    documents = [" ".join(draw.choices(WORDS, k=count)) for _ in range(8) for count in (1100, 1100, 40, 40)]
    path.write_text("\n\n".join(documents), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("length", "ranges"),
    [
        (2048, [(0, 512), (512, 1024), (1024, 2048)]),
        (1500, [(0, 512), (512, 1024), (1024, 1500)]),
        (8192, [(0, 512), (512, 1024), (1024, 2048), (2048, 4096), (4096, 8192)]),
        (513, [(0, 512), (512, 513)]),
    ],
)
def test_ranges_double_and_hold_every_position_once(length, ranges):
    assert ranges_of_window(length) == ranges


def test_a_range_is_known_by_its_name():
    assert split_range("hub:a/b:c:512-1024") == ("hub:a/b:c", "512-1024")
    assert split_range("hub:a/b:c") == ("hub:a/b:c", "")
    assert name_of_samples("folder/mine.txt:0-512") == "positions-mine-0-512"
    assert name_of_samples("folder/mine.txt") == "perplexity-mine"


def test_long_windows_lie_within_documents_and_share_no_token(tmp_path):
    path = tmp_path / "text.txt"
    documents = [f"{number}" * length for number, length in enumerate((9, 70, 9, 100, 9, 31, 9, 64))]
    path.write_text("\n\n".join(documents), encoding="utf-8")
    for bos, kept in (
        (False, ["1" * 32] * 2 + ["3" * 32] * 3 + ["7" * 32] * 2),
        (True, ["1" * 31] * 2 + ["3" * 31] * 3),
    ):
        tokenizer = byte_tokenizer(bos)
        text = texts.make_long_text(tokenizer, str(path), 32, 0)
        decoded = [tokenizer.decode(ids, skip_special_tokens=True) for ids in text.ids]
        assert decoded[: len(kept)] == kept
        assert text.within
        assert text.ids.shape[1] == 32
        assert not text.scored[:, 0].any()
        assert text.scored[:, 1:].all()
    drawn = texts.make_long_text(byte_tokenizer(), str(path), 32, 3, drawn=True)
    assert drawn.drawn
    assert len({tuple(ids.tolist()) for ids in drawn.ids}) == 2  # a draw, and not the first three
    joined = texts.make_long_text(byte_tokenizer(), str(path), 64, 4)
    assert not joined.within  # three documents have a window of 64, and four are wanted
    assert joined.sha256 == texts.make_evaluation_text(byte_tokenizer(), str(path), 64, 64, 4).sha256
    with pytest.raises(UserError, match="4 windows of 128"):
        texts.make_long_text(byte_tokenizer(), str(path), 128, 4)


def test_the_score_of_a_range_is_of_its_tokens_alone(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("a\n\n" + "b" * 30 + "\n\n" + "c" + "\n\n" + "d" * 10, encoding="utf-8")
    text = texts.make_long_text(byte_tokenizer(), str(path), 10, 0)
    nll = torch.arange(40.0, dtype=torch.float64).view(4, 10)
    score, sums, counts = scoring.score_range(nll, text, 4, 7)
    assert counts.tolist() == [3] * 4
    assert sums.tolist() == [15.0, 45.0, 75.0, 105.0]
    assert (score.tokens, score.windows, score.window, score.within) == (12, 4, 10, True)
    assert score.perplexity == pytest.approx(math.exp(240 / 12))
    assert score.perplexity_low < score.perplexity < score.perplexity_high
    first, _, counts = scoring.score_range(nll, text, 0, 4)
    assert counts.tolist() == [3] * 4  # nothing predicts the first
    assert first.sha256 != score.sha256


def test_a_run_measures_all_ranges_by_one_forward_of_each_window(base, long_file, tmp_path, monkeypatch):
    forwards, nll_of_windows = [], scoring.nll_of_windows

    def count(model, ids, *more):
        forwards.append(tuple(ids.shape))
        nll = nll_of_windows(model, ids, *more)
        if ids.shape[1] == LONG:
            measured.append(nll.sum(1).tolist())
        return nll

    measured: list[list[float]] = []
    monkeypatch.setattr(scoring, "nll_of_windows", count)
    monkeypatch.setattr(store, "remove_pieces", lambda *_: None)
    command = [*base, "--methods", "drop-tail", "--ratio", "0.3", "--no-isolate", "--texts", long_file]
    command += ["--calibration", long_file, "--windows", "4", "--positions", str(LONG)]
    assert main(command) == 0
    assert forwards.count((4, LONG)) == 2  # of two cells
    records = load_run(tmp_path / "run")
    assert len(records) == 2
    names = [f"{long_file}:0-512", f"{long_file}:512-1024"]
    for record, sums in zip(records, measured, strict=True):
        assert list(record.measured.positions) == names
        first, last = record.measured.positions.values()
        assert (first.tokens, last.tokens, first.windows, first.within) == (4 * 511, 4 * 512, 4, True)
        whole = first.nll_per_token * first.tokens + last.nll_per_token * last.tokens
        assert whole == pytest.approx(sum(sums))
        (row,) = rows_of_records([record])
        assert row[f"position_perplexity_{names[1]}"] == last.perplexity
        assert row[f"position_perplexity_{names[1]}_low"] == last.perplexity_low
    rows = samples(tmp_path / "run", "positions-long-512-1024")
    assert rows["nll"].sum() == pytest.approx(
        sum(r.measured.positions[names[1]].nll_per_token * 4 * 512 for r in records)
    )
    assert "long.txt:512-1024" in next(iter(results_of_run(tmp_path / "run").values())).texts
    for path in (tmp_path / "run/cells").glob("*.json"):
        path.unlink()
    assert main(command) == 0
    assert len(forwards) == 4  # the pieces have them


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--positions", "512"], "--positions is 0 for none, or more than 512"),
        (["--positions", "1024", "--texts", "none"], "--positions is of the windows of --texts"),
        (["--positions", "4096"], "--positions 4096 is more than the 2048 tokens that the model takes"),
        (["--positions", "2048"], "8192 are needed for 4 windows of 2048"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(base, capsys, flags, reason):
    assert reason in refused(capsys, [*base, "--methods", "drop-tail", "--ratio", "0.3", *flags])
