"""What a ratio is a share of: counts against formulas, one budget for all methods, keys, and what is said of both."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from conftest import refused, tiny
from made_cells import made_cell
from made_records import DENSE, PER_LAYER, measured, ok

import methods
from bench.plan.cell import Cell
from bench.plan.grid import budget_of_cell
from bench.plan.kinds import value_from_plain
from bench.plan.protocol import protocol_of_profile
from bench.records import comparability
from methods import cards
from methods.counted import COUNTED, count_quantity, share_of_all
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.sizes import sizes_of
from reports.tables.views import build_view

WORDS = 4096  # so that embeddings outweigh the layers, as in small models with large vocabularies


def decoder_of(family: str) -> Decoder:
    return Decoder(tiny(family, vocab_size=WORDS))


def cell_of(method: str, ratio: float | None, of: str, match: str = "exact") -> Cell:
    pruner = methods.make(method)
    parameters = methods.parameters_of_pruner(pruner)
    return made_cell(method, ratio, protocol_of_profile("quick"), parameters=parameters, match=match, ratio_of=of)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "gpt_neox"])
def test_what_is_counted_is_what_the_names_of_the_parameters_say(family):
    decoder = decoder_of(family)
    sizes_of = {name: parameter.numel() for name, parameter in decoder.model.named_parameters()}
    layers = sum(size for name, size in sizes_of.items() if ".layers." in name or ".h." in name)
    tables = ("embed_tokens", "wte", "wpe", "lm_head", "embed_in", "embed_out")
    outside = sum(size for name, size in sizes_of.items() if any(table in name for table in tables))
    assert count_quantity(decoder, "layers") == layers
    assert count_quantity(decoder, "decoder") == sum(sizes_of.values()) - outside
    assert count_quantity(decoder, "all") == sum(sizes_of.values())
    assert layers < outside


@pytest.mark.parametrize("method", ["flap", "wanda-sp", "drop-tail"])
@pytest.mark.parametrize("of", COUNTED)
def test_every_method_removes_the_share_that_was_asked_for(method, of):
    decoder = decoder_of("llama")
    dense = {name: count_quantity(decoder, name) for name in COUNTED}
    before = sizes_of(decoder, 8)
    ratio = 0.5 if of != "all" else 0.5 * dense["layers"] / dense["all"]
    share = budget_of_cell(cell_of(method, ratio, of), decoder)
    assert share * dense["all"] == pytest.approx(ratio * dense[of])
    ids = torch.randint(0, WORDS, (4, 16), generator=torch.Generator().manual_seed(0))
    methods.make(method).prune(decoder, Calibration(ids, torch.ones_like(ids, dtype=torch.bool)), share)
    gone = before.parameters - count_quantity(decoder, "all")
    assert gone == pytest.approx(ratio * dense[of], abs=0.02 * dense["layers"])


def test_one_kind_of_share_gives_one_budget_to_all_methods_in_whole_layers():
    decoder = decoder_of("llama")
    each = count_quantity(decoder, "layers") / len(decoder.layers)
    for ratio, of, layers in ((0.5, "layers", 3), (0.34, "layers", 2), (0.34, "decoder", 2), (0.05, "all", 1)):
        budgets = {
            budget_of_cell(cell_of(method, ratio, of, "layers"), decoder) for method in ("flap", "shortgpt", "slicegpt")
        }
        (found,) = budgets
        assert found * count_quantity(decoder, "all") == pytest.approx(layers * each), (ratio, of)


def test_all_is_what_it_has_always_been_to_the_bit():
    assert share_of_all(decoder_of("llama"), 0.1 + 0.2, "all") == 0.1 + 0.2
    with pytest.raises(ValueError, match="all, decoder, layers; got 'heads'"):
        count_quantity(decoder_of("llama"), "heads")


def test_only_another_share_is_in_the_key():
    cell = cell_of("shortgpt", 0.2, "all")
    assert "ratio_of" not in json.loads(cell.question)
    other = replace(cell, ratio_of="decoder")
    assert other.key != cell.key
    assert other.question != cell.question
    assert other.plain()["ratio_of"] == "decoder"
    assert value_from_plain(Cell, other.plain()) == other


def test_the_dense_model_has_one_cell_whatever_is_counted(base, monkeypatch):
    from bench.cli.main import main
    from bench.runs import runner

    seen: list[Cell] = []

    def run(cells, folder, **_):
        seen.extend(cells)
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run", run)
    for of in ("all", "decoder"):
        assert main([*base, "--methods", "shortgpt", "--ratio", "0.5", "--ratio-of", of]) == 130
    dense, pruned, same, other = seen
    assert dense == same
    assert (pruned.ratio_of, other.ratio_of) == ("all", "decoder")


def test_a_share_that_is_out_of_reach_is_named_both_ways(base, capsys):
    line = refused(capsys, [*base, "--methods", "drop-tail", "--ratio", "0.95", "--ratio-of", "layers"])
    assert "0.95 of the layers is 0." in line
    assert "all but one of the 6 layers" in line
    assert "--ratio-of" in refused(capsys, [*base, "--methods", "drop-tail", "--ratio", "0.3", "--ratio-of", "heads"])


def test_tables_and_names_say_what_was_asked_for():
    six = measured(6 * PER_LAYER, (50.0, 60.0, 70.0), [0.4] * 5, 60.0)
    asked_of_all = ok("shortgpt", 0.2, dict(six), budget=6)
    of_decoder = ok("flap", 0.2, dict(six), budget=6, ratio_of="decoder")
    plain, other = build_view("main", [DENSE, asked_of_all, of_decoder])
    assert [plain.title[:9], other.title[:24]] == ["ratio 0.2", "ratio 0.2 of the decoder"]
    assert [plain.name, other.name] == ["main-0.2", "main-0.2-of-the-decoder"]
    assert [column.name for column in plain.columns][:2] == ["ratio", "parameters"]
    assert [column.name for column in other.columns][:3] == ["ratio", "ratio_without_embeddings", "parameters"]
    assert [cell.text for cell in other.rows[-1].cells[:2]] == ["15.8 %", "20.0 %"]
    assert [row.method for row in other.rows] == ["dense", "flap"]
    assert of_decoder.cell.title == "flap at 0.2 of the decoder"
    assert comparability.identity_of_cell(of_decoder) != comparability.identity_of_cell(
        ok("flap", 0.2, dict(six), budget=6)
    )


def test_both_shares_are_shown_where_embeddings_are_a_third_of_the_layers_or_more():
    wide = measured(6 * PER_LAYER, (50.0, 60.0, 70.0), [0.4] * 5, 60.0)
    wide |= {"ratio": wide["ratio_without_embeddings"] * 0.74}
    (table,) = build_view("main", [DENSE, ok("shortgpt", 0.2, wide)])
    assert "ratio_without_embeddings" in [column.name for column in table.columns]
    (table,) = build_view(
        "main", [DENSE, ok("shortgpt", 0.2, wide | {"ratio": wide["ratio_without_embeddings"] * 0.76})]
    )
    assert "ratio_without_embeddings" not in [column.name for column in table.columns]


def test_every_method_with_a_paper_says_what_that_counts(capsys):
    from bench.cli.main import main

    without = {card.module.rpartition(".")[2] for card in methods.cards_of_methods() if not card.paper_ratio}
    assert without.isdisjoint(cards.read_comparisons())
    assert main(["list", "methods"]) == 0
    assert "its paper's ratio is of layers, by their number" in capsys.readouterr().out
