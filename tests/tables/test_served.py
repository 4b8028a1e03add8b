"""The view served: a row for each model and type, paired with the dense one."""

from __future__ import annotations

import pytest
from made_samples import paired_perplexity
from made_served import M, W, nats, point, record

from reports.figures import pareto as figures
from reports.tables.speed import tables_of_served


def cell(table, row, column):
    names = [one.name for one in table.columns]
    (line,) = [one for one in table.rows if one.label == row]
    return line.cells[names.index(column)]


def test_a_model_is_beside_the_dense_one_on_the_same_windows():
    base, small = (
        record(points=[point(ms=20)]),
        record("laco", "q8_0", nll=nats(2, seed=1), points=[point(ms=8)], bytes=5 * 10**5),
    )
    (table,) = tables_of_served([base, small])
    one = paired_perplexity(base.measured["perplexity"]["nll"], small.measured["perplexity"]["nll"], [W - 1] * M)
    times = cell(table, "laco@q8_0", "times")
    assert (times.value, times.low, times.high) == (one.estimate, one.low, one.high)
    assert times.value == pytest.approx(2, rel=0.1)
    assert cell(table, "dense@bfloat16", "times").value == 1
    assert cell(table, "laco@q8_0", "decode_rate").value == pytest.approx(125)
    assert cell(table, "laco@q8_0", "decode").text == "2.50x ± 0.12"
    assert cell(table, "laco@q8_0", "predicted").text == "1.25x"
    assert cell(table, "laco@q8_0", "memory").text == "2.00 MiB"
    assert cell(table, "laco@q8_0", "prefill_rate").text == "-"


def test_models_of_several_ratios_are_named_with_them_and_none_is_the_best():
    half = record("laco", "q8_0", nll=nats(9, seed=2), points=[point(flags=["noisy"])])
    half.model["requested_ratio"] = 0.5
    (table,) = tables_of_served([record(), record("laco", "q8_0", nll=nats(2, seed=1)), half, record("flap")])
    names = ["dense@bfloat16", "laco at 0.2@q8_0", "laco at 0.5@q8_0", "flap at 0.2@bfloat16"]
    assert [row.label for row in table.rows] == names
    assert table.notes[0].endswith(": laco at 0.5@q8_0 [decode 128 at batch 1].")
    assert table.marks() == {"doubtful"}  # ratios and types differ, and what a budget allowed is not known here


@pytest.mark.parametrize("absent", ["windows", "perplexity_low perplexity_high"])
def test_what_a_record_need_not_say_is_not_needed(absent):
    found = record("laco", points=[point()])
    for name in absent.split():
        del found.measured["perplexity"][name]
    found.measured["memory"]["points"].append({"kind": "decode", "batch": 512, "context": 128, "failed": "no room"})
    (table,) = tables_of_served([record(), found])
    assert cell(table, "laco@bfloat16", "perplexity").value == found.measured["perplexity"]["perplexity"]
    assert cell(table, "laco@bfloat16", "times").low is not None
    assert cell(table, "laco@bfloat16", "memory").text == "2.00 MiB"


def test_the_path_of_a_text_is_not_told():
    several = [record(points=[point()]), record("laco", points=[point()])]
    for one in several:
        one.protocol["text"] = "/home/me/words.txt"
    (table,), (figure,) = tables_of_served(several), figures.figures_of_served(several)
    said = [*(one.label for one in table.columns), *table.footnotes, figure.title, figure.charts[0].y]
    assert sum("words.txt" in one for one in said) == 4
    assert not any("/home/me" in one for one in said)


def test_models_of_several_seeds_are_named_with_them():
    several = [record(points=[point()]), *(record("flap", points=[point()], nll=nats(2, seed)) for seed in (0, 1))]
    for one, seed in zip(several, (0, 0, 1), strict=True):
        one.model["seed"] = seed
    (table,), (figure,) = tables_of_served(several), figures.figures_of_served(several)
    assert [row.label for row in table.rows] == ["dense@bfloat16", "flap, seed 0@bfloat16", "flap, seed 1@bfloat16"]
    assert {"flap, seed 0", "flap, seed 1"} == {curve.label for curve in figure.charts[0].curves}
    assert "seed" not in tables_of_served(several[:2])[0].rows[1].label


def test_other_windows_are_not_paired():
    (table,) = tables_of_served([record(), record("laco", sha256="other")])
    assert cell(table, "laco@bfloat16", "times").value is None


def test_tokens_per_second_are_over_the_batch_and_the_prompt():
    one = record(points=[point("prefill", 100.0, size=128), point(ms=10.0, batch=4)])
    first, every = (
        tables_of_served([one])[0],
        tables_of_served([record(points=[point(ms=5.0), point(ms=10.0, batch=4)])])[1],
    )
    assert cell(first, "dense@bfloat16", "prefill_rate").value == pytest.approx(1280)
    assert cell(first, "dense@bfloat16", "decode_rate").value == pytest.approx(400)
    assert [row.cells[3].value for row in every.rows] == pytest.approx([200, 400])


def test_what_is_not_served_and_what_is_in_doubt_is_said():
    refused = record("slicegpt", status="unsupported", error="GGUF holds no such layers")
    doubtful = record("laco", points=[point(flags=["noisy"])])
    lost = record("flap", points=[{"kind": "decode", "batch": 1, "context": 128, "failed": "llama_decode answers 1"}])
    (table,) = tables_of_served([record(points=[point()]), refused, doubtful, lost])
    (line,) = [row for row in table.rows if row.label == "slicegpt@bfloat16"]
    assert line.failure == "unsupported"
    failed, untimed, noisy = table.notes
    assert failed.endswith(": slicegpt@bfloat16 [unsupported: GGUF holds no such layers].")
    assert cell(table, "laco@bfloat16", "decode").text.endswith("!")
    assert noisy.startswith("! noisy: ")
    assert noisy.endswith(": laco@bfloat16 [decode 128 at batch 1].")
    assert cell(table, "flap@bfloat16", "decode").text == "failed"
    assert untimed.endswith(": flap@bfloat16 [decode 128 at batch 1: llama_decode answers 1].")


def test_models_served_otherwise_stand_in_tables_of_their_own():
    other = record("laco")
    other.protocol["windows"] = M + 1
    assert len(tables_of_served([record(), other])) == 2


@pytest.mark.parametrize(
    ("here", "there", "tables"),
    [
        ({"cpu": "Xeon"}, {"cpu": "Xeon"}, 1),
        ({"cpu": "Xeon"}, {"cpu": "Epyc"}, 2),
        ({"gpu": "H100", "gpus": 1, "cpu": "Xeon"}, {"gpu": "H100", "gpus": 1, "cpu": "Epyc"}, 1),
        ({"gpu": "H100", "gpus": 1}, {"gpu": "H200", "gpus": 1}, 2),
        ({"gpu": "H100", "gpus": 1}, {"gpu": "H100", "gpus": 2}, 2),
        ({"gpu": "H100", "gpus": 1}, {}, 2),
    ],
)
def test_models_served_on_other_machines_stand_in_tables_of_their_own(here, there, tables):
    one, other = record(), record("laco")
    one.environment.update(here)
    other.environment.update(there)
    assert len(tables_of_served([one, other])) == tables


def test_the_sentences_are_those_of_the_engine():
    (own,) = tables_of_served([record(points=[point()])])
    other = record(points=[point()])
    other.protocol["engine"] = "vllm"
    other.environment.update(gpu="NVIDIA H100", gpus=2)
    (their,) = tables_of_served([other])
    assert own.conditions == ("llama.cpp 1", "2 threads")
    assert their.conditions == ("vllm 1", "2 x NVIDIA H100")
    for words in ("weights: of the file, with the vocabulary", "memory: what the"):
        assert words in " ".join(own.footnotes)
        assert words not in " ".join(their.footnotes)
    assert "weights: of the safetensors files" in " ".join(their.footnotes)
    assert all("both in one process and in turns" in " ".join(table.footnotes) for table in (own, their))


def test_cells_of_two_dtypes_are_beside_the_dense_ones_of_their_own():
    """Each in one type of weights, so that nothing else tells them apart."""
    several = [record(label, "q8_0") for label in ("dense", "laco") * 2]
    for one, dtype in zip(several, ("bfloat16", "bfloat16", "float32", "float32"), strict=True):
        one.model["dtype"] = dtype
    found = tables_of_served(several)
    assert [[row.label for row in table.rows] for table in found] == [["dense@q8_0", "laco@q8_0"]] * 2
    assert [table.conditions[-1] for table in found] == ["cells in bfloat16", "cells in float32"]


def test_what_changes_no_figure_makes_no_table_of_its_own():
    other = record("laco")
    other.protocol.update(silence=1200, engine_python="/elsewhere/python")
    assert len(tables_of_served([record(), other])) == 1


def test_the_figure_has_the_front_of_size_and_of_speed():
    dense = [
        record(points=[point(speedup=1.0)], bytes=10**6),
        record(kind="q8_0", points=[point(speedup=1.6)], bytes=5 * 10**5, nll=nats(1.01)),
    ]
    pruned = [
        record("laco", points=[point(speedup=1.25)], bytes=8 * 10**5, nll=nats(2)),
        record("laco", "q8_0", points=[point(speedup=2.2)], bytes=4 * 10**5, nll=nats(2.1)),
    ]
    (figure,) = figures.figures_of_served([*dense, *pruned])
    size, speed = figure.charts
    assert [x for x, _ in size.front[::2]] == [0.4, 0.5, 1.0]  # laco in bfloat16 is larger and worse than dense@q8_0
    assert speed.x.startswith("times as fast as the dense model")
    assert [x for x, _ in speed.front] == [1.0, 1.0, 1.6, 1.6, 2.2]
    assert {curve.label for curve in size.curves} == {"dense", "laco"}
    assert "against size and speed at 0.2: a line" in figure.title
    assert "laco in q8_0" in figure.description
    assert figures.figures_of_served(pruned) == []  # without the dense model there is nothing to compare with
    figure.draw()
