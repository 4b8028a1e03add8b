"""Models under load: what is sent, what follows from the answers, and what records, tables and figures have of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import refused

from bench.inference.load_client import LoadRequest, RequestTiming
from bench.plan.load import LoadLevel, LoadProtocol
from bench.serving import load
from bench.serving.load import LoadPass, RequestSource, describe_load, read_requests, summarise_level
from methods.errors import UserError

FOUR = LoadLevel(concurrency=4)


def protocol(**more):
    return LoadProtocol(**{"concurrency": (1, 4), "requests_per_turn": 40} | more)


def test_both_models_have_the_same_requests_in_a_turn_and_others_in_the_next():
    source = RequestSource(protocol(prompt_tokens="3-9", output_tokens="2-5"), 50)
    turns = [source.make_turn(FOUR, number) for number in (0, 0, 1)]
    assert turns[0] == turns[1] != turns[2]
    assert RequestSource(protocol(load_seed=1), 50).make_turn(FOUR, 0) != RequestSource(protocol(), 50).make_turn(
        FOUR, 0
    )
    assert {len(each.prompt) for each in turns[0] + turns[2]} == set(range(3, 10))
    assert {each.output_tokens for each in turns[0] + turns[2]} == set(range(2, 6))
    assert max(max(each.prompt) for each in turns[0]) < 50
    assert (source.context, source.slots) == (14, 4)
    assert {each.at for each in turns[0]} == {0.0}


def test_requests_arrive_at_random_at_the_rate_that_was_asked_for():
    """The gaps of a Poisson process are exponential: their standard deviation is their mean."""
    source = RequestSource(protocol(rate=(20.0,), requests_per_turn=4000), 50)
    arrivals = np.array([each.at for each in source.make_turn(LoadLevel(rate=20.0), 1)])
    gaps = np.diff(arrivals)
    assert arrivals[0] == 0 and gaps.min() > 0
    assert gaps.mean() == pytest.approx(1 / 20, rel=0.05) and gaps.std() == pytest.approx(1 / 20, rel=0.08)
    assert source.slots == load.MOST_SLOTS


class Words:
    """A tokenizer with a token for each word."""

    def __len__(self):
        return 9

    def __call__(self, text):
        return {"input_ids": list(range(len(text.split())))}


def test_requests_of_a_file_come_one_after_the_other_and_again(tmp_path):
    path = tmp_path / "requests.jsonl"
    lines = [{"prompt": "one two three", "output_tokens": 2}, {"prompt": [8, 0], "output_tokens": 7}, {"prompt": "x"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[:2]))
    own = read_requests(path, Words())
    assert own == (LoadRequest((0, 1, 2), 2), LoadRequest((8, 0), 7))
    source = RequestSource(protocol(requests=str(path), requests_per_turn=3), 9, own)
    assert source.make_turn(FOUR, 1) == [own[1], own[0], own[1]]
    assert source.context == 9
    told = describe_load(source.load)
    assert told.prompt_tokens is None and len(told.requests_sha256) == 64
    assert str(tmp_path) not in repr(told)
    for wrong in (
        lines[2],
        {"prompt": [9], "output_tokens": 1},
        {"prompt": [], "output_tokens": 1},
        {"prompt": [1], "output_tokens": 0},
        [1],
    ):
        path.write_text(json.dumps(lines[0]) + "\n" + json.dumps(wrong))
        with pytest.raises(UserError, match="line 2 is no request as in"):
            read_requests(path, Words())
    for words in ("", "\xff"):
        path.write_bytes(words.encode("latin-1"))
        with pytest.raises(UserError, match=r"is empty|line 1 is no request"):
            read_requests(path, Words())
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_requests(tmp_path / "none", Words())


def turn(ttft, gap, seconds, tokens=(3, 5)):
    """A turn of two requests with such times in ms."""
    timings = tuple(RequestTiming(ttft, ttft + gap * (count - 1), (gap,) * (count - 1), count) for count in tokens)
    return LoadPass([each.latency_ms for each in timings], 1e3 * seconds, timings)


def test_figures_follow_from_the_requests_by_hand():
    turns = {"dense": [turn(100, 20, 1.0)] * 6, "pruned": [turn(50, 10, 0.5)] * 5 + [turn(90, 10, 0.5)]}
    level = summarise_level(FOUR, {"ttft": 60.0, "latency": 80.0}, [turns])
    pruned = level.pruned
    assert (level.name, level.flags) == ("4 at once", ())
    assert level.dense.ttft_ms == [100, 100, 100] and level.dense.tpot_ms == [20, 20, 20]
    assert pruned.tokens_per_second == pytest.approx(16) and pruned.requests_per_second == pytest.approx(4)
    assert pruned.ttft_ms[0] == 50 and pruned.ttft_ms[2] == pytest.approx(np.percentile([50] * 10 + [90] * 2, 99))
    assert pruned.goodput == pytest.approx(5 / 3)  # of twelve those five that end after 70 ms, in three seconds
    assert level.dense.goodput == 0
    assert level.times_as_fast["tokens_per_second"] == pytest.approx((2, 1.98, 2.02))
    assert level.times_as_fast["tpot"] == pytest.approx((2, 1.98, 2.02))
    assert level.times_as_fast["ttft"][0] == pytest.approx(2) and level.times_as_fast["ttft"][1] < 1.98
    assert len(pruned.turns) == 6 and pruned.turns[5].ttft_ms == (90, 90) and pruned.turns[0].tokens == (3, 5)
    assert summarise_level(FOUR, {}, [turns]).pruned.goodput is None


def test_a_model_beside_itself_is_as_fast_and_answers_of_one_token_have_no_time_per_token():
    turns = [turn(100 + 10 * number, 20, 1.0 + 0.1 * number, (1, 1)) for number in range(6)]
    level = summarise_level(FOUR, {"tpot": 1.0}, [{"dense": turns, "pruned": turns}])
    assert set(level.times_as_fast) == {"tokens_per_second", "ttft"}
    for value, low, high in level.times_as_fast.values():
        assert value == 1 and low <= 0.99 and high >= 1.01
    assert level.pruned.tpot_ms is None and level.flags == ("noisy",)
    assert level.pruned.goodput == level.pruned.requests_per_second


def test_a_ratio_reaches_over_the_processes_that_read_the_models_anew():
    """Twice as fast in one process, three times in the other: neither interval alone would say so."""
    dense = [turn(120, 24, 1.2)] * 6
    quick, quicker = ({"dense": dense, "pruned": [turn(120 / by, 24 / by, 1.2 / by)] * 6} for by in (2, 3))
    alone, both = summarise_level(FOUR, {}, [quick]), summarise_level(FOUR, {}, [quick, quicker])
    assert alone.by_process is None and alone.flags == ()
    for name in ("tokens_per_second", "ttft", "tpot"):
        assert alone.times_as_fast[name] == pytest.approx((2, 1.98, 2.02))
        assert both.times_as_fast[name] == pytest.approx((6**0.5, 1.98, 3.03))
        assert both.by_process[name] == (pytest.approx((2, 1.98, 2.02)), pytest.approx((3, 2.97, 3.03)))
    assert both.flags == ("processes_disagree",)
    assert summarise_level(FOUR, {}, [quick, quick]).flags == ()
    assert len(both.dense.turns) == len(both.pruned.turns) == 12
    assert both.pruned.tokens_per_second == pytest.approx(12 * 8 / (6 * 0.6 + 6 * 0.4))


REFUSED = {
    ("--requests-per-turn", "4"): "a load needs --concurrency or --rate",
    ("--concurrency", "0"): "--concurrency is a list of whole numbers, each 1 or more",
    ("--rate", "0"): "--rate is a list of positive numbers; got 0",
    ("--concurrency", "2", "--batch", "4"): "--batch times a model alone, and a load times its server",
    ("--concurrency", "2", "--slo", "ttft=500"): "--slo is a list of limits for ttft, tpot, latency",
    ("--concurrency", "2", "--slo", "speed=5ms"): "--slo is a list of limits for ttft, tpot, latency",
    ("--concurrency", "2", "--prompt-tokens", "9-3"): "--prompt-tokens is a number of tokens, or a range",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_flags_that_cannot_be_are_refused_before_any_work(flags, tmp_path, capsys):
    assert REFUSED[flags] in refused(capsys, ["serve-speed", str(tmp_path), *flags])
