"""Budgets that count no parameters: how near methods come, what is refused, and what is said of them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from conftest import names_of, refused, tiny
from made_records import DENSE, PER_LAYER, measured, ok
from test_ratio_of import cell_of
from tiny_methods import EXPERTS, METHODS, SPECS, calibration

import methods
from bench.cli.main import main
from bench.plan.cell import Cell
from bench.plan.fields import parse_budget
from bench.plan.grid import budget_of_cell, quantity_of_cell
from bench.plan.kinds import value_from_plain
from bench.plan.run_spec import RunSpec
from bench.plan.trust import Trust
from bench.records.frame import removes_too_little
from bench.records.record import Record
from bench.records.run_folder import load_run
from bench.runs.inputs import sha256_of_state
from bench.runs.reproduce import prune_again
from bench.schedule.shape import Shape
from methods.budget import MET, TRIES, prune_to_budget, refuse_unmet
from methods.counted import MISSED, QUANTITIES, Budget, LatencyTable, budget_of_quantity
from methods.errors import OutOfReach, Unsupported, UserError
from methods.model.decoder import Decoder
from methods.model.sizes import kv_bytes_per_token, macs_per_token, weight_bytes
from reports.tables.views import build_view

CONTEXT = 16
TOKENS = calibration().first(72)
ASKED = [name for name in METHODS if name != "drop"]  # which takes no ratio
WHOLE = ("laco", "laco-published", "laco-ls", "drop-tail", "drop-random", "magnitude", "shortgpt", "angular")
LEAVE_KV = ("slicegpt", "minitron-width", "svd-llm", "modegpt")  # which cut what no key/value cache depends on
COARSE = {  # how far from the budget the nearest model is that a method can make of one that is so small
    ("slicegpt", "bytes"): 0.12,
    ("slicegpt", "macs"): 0.12,
    ("wanda-sp", "kv"): 0.17,
    ("obs", "kv"): 0.17,
    ("tyr", "kv"): 0.17,
    ("darwinlm", "kv"): 0.17,
    ("llm-pruner", "kv"): 0.09,
    **{
        (method, "latency"): 0.01
        for method in ("2ssp", "llm-pruner", "minitron-width", "wanda-sp", "flap", "obs", "tyr")
    },
    ("finercut", "latency"): 0.03,
    ("llm-drop", "latency"): 0.03,
    ("slicegpt", "latency"): 0.2,
    ("svd-llm", "latency"): 0.02,
    ("finercut", "macs"): 0.02,
    ("llm-drop", "macs"): 0.02,
    ("puzzle", "macs"): 0.02,
    ("laco-puzzle", "macs"): 0.01,
    ("laco-puzzle", "latency"): 0.02,
}


TABLE = LatencyTable(  # of the tiny Llama: what goes of a part takes less with it than its share, and other parts more
    {"attention": [[0, 0], [1_536, 0.8], [3_104, 1.0]], "mlp": [[0, 0], [2_304, 1.2], [4_640, 1.4]]}, 0.1
)


def asked_of(decoder: Decoder, of: str, share: float, *, whole: bool = True) -> Budget:
    table = TABLE if of == "latency" else None
    return budget_of_quantity(decoder, 1 - share, of, CONTEXT, whole=whole, table=table)


def made(method: str):
    return methods.make(method, SPECS[method])


@pytest.mark.parametrize(
    "of", [of if of in ("bytes", "kv") else pytest.param(of, marks=pytest.mark.nightly) for of in QUANTITIES]
)
def test_every_method_comes_as_near_to_a_budget_as_it_can_or_says_why_not(of):
    sizes = {"bytes": weight_bytes, "kv": kv_bytes_per_token, "macs": lambda model: macs_per_token(model, CONTEXT)}
    sizes["latency"] = TABLE.ms_of_model
    outcomes = Counter[str]()
    for method in ASKED if of != "bytes" else ("drop-tail", "flap", "blockpruner", "2ssp", "slicegpt", "wanda-sp"):
        dense = Decoder(tiny("llama"))
        before, wanted = sha256_of_state(dense.model), asked_of(dense, of, 0.6 if of != "macs" else 0.7)
        try:
            model, _, said = prune_to_budget(wanted, made(method), dense, TOKENS)
        except OutOfReach as reason:
            assert (of, method in LEAVE_KV) == ("kv", True), (method, reason)
            outcomes["out of reach"] += 1
            continue
        found = vars(said)
        assert sha256_of_state(dense.model) == before, method
        assert found["stays"] == sizes[of](model) / sizes[of](dense) == wanted.stays(model)
        misses = [abs(stays - wanted.share) for _, stays in found["tried"]]
        assert abs(found["stays"] - wanted.share) == min(misses), method
        assert len(misses) <= TRIES, method
        assert min(misses) <= COARSE.get((method, of), MISSED), method
        assert all(miss > MET for miss in misses[:-1]), (method, "went on although the budget was met")
        if method in WHOLE:
            assert (len(misses), min(misses)) == (1, pytest.approx(0, abs=1e-12)), method
        outcomes["met" if min(misses) <= MISSED else "missed"] += 1
    assert outcomes["met"] >= {"bytes": 5, "latency": 12}.get(of, 16)


@pytest.mark.parametrize("method", ["drop-tail", "flap", "blockpruner", "2ssp", "slicegpt"])
def test_a_budget_makes_the_model_that_the_ratio_it_has_found_makes(method):
    dense = Decoder(tiny("llama"))
    model, decided, said = prune_to_budget(asked_of(dense, "macs", 0.7), made(method), dense, TOKENS)
    other = Decoder(tiny("llama"))
    same = made(method).prune(other, TOKENS, said.ratio)
    assert sha256_of_state(model.model) == sha256_of_state(other.model)
    removed = [name for name in same if name.startswith("removed_")]
    assert {name: decided[name] for name in removed} == {name: same[name] for name in removed}


@pytest.mark.parametrize("of", QUANTITIES)
def test_where_all_may_stay_nothing_goes(of):
    for method in ("shortgpt", "flap", "slicegpt", "blockpruner", "minitron-width"):
        dense = Decoder(tiny("llama"))
        model, _, said = prune_to_budget(asked_of(dense, of, 1.0), made(method), dense, TOKENS)
        assert said.tried == [[0.0, 1.0]]
        assert sha256_of_state(model.model) == sha256_of_state(dense.model), method


def test_what_stays_is_what_a_forward_computes_and_a_cache_holds():
    from torch.utils.flop_counter import FlopCounterMode

    ids = torch.randint(3, 100, (1, CONTEXT))
    for of in ("macs", "kv"):
        dense = Decoder(tiny("llama"))
        model, _, said = prune_to_budget(asked_of(dense, of, 0.7), made("flap"), dense, TOKENS)
        counts = []
        for one in (model, dense):
            for config in (one.config, *(layer.attn.config for layer in one.layers)):
                config._attn_implementation = "eager"  # whose products the counter sees
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                cache = one.model(ids, use_cache=True).past_key_values
            held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
            counts.append(counter.get_total_flops() if of == "macs" else held)
        assert said.stays == pytest.approx(counts[0] / counts[1], rel=0.005)


def test_a_budget_is_rounded_to_whole_layers_as_a_ratio_is():
    dense = Decoder(tiny("llama"))
    for of in QUANTITIES:
        held = {n: 1 - n * asked_of(dense, of, 1.0).layer for n in range(6)}
        for share in (0.9, 0.7, 0.55):
            found = asked_of(dense, of, share)
            assert found.share == pytest.approx(min(held.values(), key=lambda one: abs(one - share))), (of, share)
            assert asked_of(dense, of, share, whole=False).share == pytest.approx(share)
    same = asked_of(dense, "kv", 4 / 6)
    assert same.start == budget_of_cell(cell_of("laco", 2 / 6, "layers", "layers"), dense)
    with pytest.raises(OutOfReach, match=r"kv=0\.05 is out of reach: all but one of the 6 layers hold 0\.833 of"):
        asked_of(dense, "kv", 0.05)


def test_what_cannot_be_met_is_said_from_shapes_alone():
    dense = Decoder(tiny("llama").to("meta"))
    for method in LEAVE_KV:
        with pytest.raises(OutOfReach, match="removes no key/value heads, whatever the ratio"):
            refuse_unmet(methods.make(method), dense, asked_of(dense, "kv", 0.5))
    stay = methods.make("sleb", {"keep_first": 2, "keep_last": 2})
    with pytest.raises(OutOfReach, match=r"the 2 layers that may go hold 0\.333 of the KV"):
        refuse_unmet(stay, dense, asked_of(dense, "kv", 0.5))
    for of in QUANTITIES:
        refuse_unmet(methods.make("shortgpt"), dense, asked_of(dense, of, 0.6))
        refuse_unmet(methods.make("flap"), dense, asked_of(dense, of, 0.6))
    gemma = Decoder(tiny("gemma3_text").to("meta"))
    with pytest.raises(Unsupported):
        refuse_unmet(methods.make("slicegpt"), gemma, asked_of(gemma, "bytes", 0.5))


def test_what_never_goes_far_enough_is_out_of_reach_with_how_far_it_goes():
    dense = Decoder(tiny("llama"))
    with pytest.raises(OutOfReach, match=r"removed 0\.\d+ of all parameters, 0\.\d+ of the MACs per token stay"):
        prune_to_budget(asked_of(dense, "macs", 0.3), made("minitron-width"), dense, TOKENS)
    with pytest.raises(OutOfReach, match="leaves the KV cache's bytes per token as they are"):
        prune_to_budget(asked_of(dense, "kv", 0.5), made("slicegpt"), dense, TOKENS)


def test_a_search_goes_on_from_the_removals_that_it_has_found():
    @dataclass(frozen=True)
    class Counted(methods.Pruner):
        """A greedy search that says with how many known removals each of its prunings begins."""

        inner: methods.Pruner
        known: list[int]

        def plan(self, model, ratio):
            return self.inner.plan(model, ratio)

        def prune(self, model, tokens, ratio):
            self.known.append(len(tokens.order))
            return self.inner.prune(model, tokens, ratio)

    dense, pruner = Decoder(tiny("llama")), Counted(made("finercut"), [])
    prune_to_budget(asked_of(dense, "kv", 4 / 6), pruner, dense, TOKENS)
    assert pruner.known[0] == 0
    assert all(pruner.known[1:])


def test_a_compensation_is_counted():
    dense = Decoder(tiny("llama"))
    wanted = asked_of(dense, "macs", 0.7)
    pruner = methods.make("flap+refit")
    model, decided, _ = prune_to_budget(wanted, pruner, dense, TOKENS)
    assert "compensation" in decided
    assert wanted.stays(model) == pytest.approx(wanted.share, abs=MISSED)


PAIRS = ("flap+refit", "flap+reinitialize", "shortgpt+replaceme", "shortgpt+scale", "blockpruner+ghost")


@pytest.mark.parametrize("pair", PAIRS)
def test_no_try_changes_the_dense_model_that_the_next_one_prunes(pair):
    dense = Decoder(tiny("llama"))
    before, budget = sha256_of_state(dense.model), asked_of(dense, "macs", 0.75, whole=False)
    *_, said = prune_to_budget(budget, methods.make(pair), dense, TOKENS)
    assert sha256_of_state(dense.model) == before
    if pair == "flap+reinitialize":  # whose random weights leave the widths of the method alone
        assert said.tried == prune_to_budget(budget, methods.make("flap"), dense, TOKENS)[2].tried


@pytest.mark.parametrize("method", sorted(EXPERTS))
def test_a_method_that_removes_experts_takes_budgets_or_says_why_not(method):
    dense = Decoder(tiny("mixtral"))
    for of in ("bytes", "macs"):
        refuse_unmet(methods.make(method), dense, asked_of(dense, of, 0.8))
    with pytest.raises(OutOfReach, match="removes no key/value heads, whatever the ratio"):
        refuse_unmet(methods.make(method), dense, asked_of(dense, "kv", 0.5))


def test_budgets_are_read_as_they_are_typed():
    assert parse_budget(["macs=0.8"]) == ([0.2], "macs")
    assert parse_budget(["kv=1", "0.65", "kv=0.65"]) == ([0.0, 0.35], "kv")
    assert RunSpec("laco", budget="bytes=0.8,0.6").amounts == ([0.2, 0.4], "bytes")
    assert RunSpec("laco", ratios=[0.1], ratio_of="layers").amounts == ((0.1,), "layers")


WRONG = {
    "no quantity": ("watts=0.8", "bytes, kv, macs, latency, as in macs=0.8 or macs=0.8,0.6; got 'watts=0.8'"),
    "a slip": ("mac=0.8", "did you mean macs?"),
    "no share": ("macs", "got 'macs'"),
    "no number": ("macs=most", "got 'macs=most'"),
    "none": ("macs=0", "in (0, 1]; got 0"),
    "too much": ("macs=1.2", "in (0, 1]; got 1.2"),
    "not a number": ("macs=nan", "in (0, 1]; got nan"),
    "two quantities": ("macs=0.8,kv=0.5", "budgets of one quantity; got macs and kv"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_budget_is_refused(case):
    asked, said = WRONG[case]
    with pytest.raises(UserError) as refusal:
        RunSpec("laco", budget=asked)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_budget_stands_alone(base, capsys):
    line = refused(capsys, [*base, "--methods", "drop-tail", "--budget", "kv=0.5", "--ratio", "0.2"])
    assert "--budget and --ratio both say how much goes; leave one of them out" in line
    assert "got 'watts=0.8'" in refused(capsys, [*base, "--methods", "drop-tail", "--budget", "watts=0.8"])
    with pytest.raises(UserError, match="--budget and --ratio-of both say how much goes"):
        RunSpec("laco", budget="kv=0.5", ratio_of="layers")
    with pytest.raises(UserError, match="--then counts parameters, and --budget counts kv"):
        RunSpec("laco", budget="kv=0.5", then=["laco:ratio=0.5"])


def test_what_no_model_could_be_is_refused_before_any_work(base, capsys):
    line = refused(capsys, [*base, "--methods", "minitron-width", "--budget", "kv=0.5"])
    assert "minitron-width: kv=0.5 is out of reach: it removes no key/value heads" in line
    line = refused(capsys, [*base, "--methods", "flap", "--budget", "macs=0.99"])
    assert "budget macs=0.99 is less than half a layer" in line


def test_a_budget_is_in_the_key_and_no_other_cell_has_a_word_of_it():
    cell = cell_of("shortgpt", 0.2, "macs")
    assert cell.key.startswith("shortgpt--macs-0.8--")
    assert value_from_plain(Cell, cell.plain()) == cell
    assert cell.key != cell_of("shortgpt", 0.2, "kv").key
    other = cell_of("shortgpt", 0.2, "all")
    assert {*json.loads(other.question)} == {*json.loads(cell.question)} - {"ratio_of"}
    assert other.key.startswith("shortgpt--0.2--")
    assert quantity_of_cell(other, Decoder(tiny("llama"))) is None


def test_an_estimate_is_of_about_as_many_layers_as_go():
    dense = Decoder(tiny("llama"))
    shape = Shape.of(dense)
    for of in QUANTITIES:
        wanted = asked_of(dense, of, 0.7)
        assert shape.share(1 - wanted.share, of) == pytest.approx(wanted.start, rel=0.1), of


def test_a_run_meets_records_and_makes_again_what_was_asked_for(base, tmp_path, capsys):
    asked = ["--methods", "flap,drop-tail", "--budget", "macs=0.7", "--no-checks", "--match", "exact"]
    assert main([*base, *asked]) == 0
    assert "macs=0.7" in capsys.readouterr().out
    dense, flap, tail = load_run(tmp_path / "run")
    assert dense.measured.budget is None
    for record in (flap, tail):
        found, all_of = record.measured.budget, dense.measured.macs_per_token
        assert record.measured.ratio_budget is None
        assert (found.of, found.share) == ("macs", pytest.approx(0.7))
        assert found.stays == record.measured.macs_per_token / all_of
    (table,) = build_view("main", [dense, flap, tail])
    texts = {row.method: row.cells[0].text for row in table.rows}
    assert texts.pop("dense") == "100.0 %"
    missed = {one.cell.method: abs(one.measured.budget.stays - 0.7) > MISSED for one in (flap, tail)}
    assert {method: text.endswith("*") for method, text in texts.items()} == missed
    assert missed["drop-tail"]
    run = tmp_path / "run"
    again = prune_again(flap, "cpu", Trust(run, names=names_of(run)))
    assert sha256_of_state(again.model.model) == flap.measured.pruned_sha256
    assert main([*base, *asked, "--plan"]) == 0
    assert "has a record" in capsys.readouterr().out


def of_budget(method: str, stays: float) -> Record:
    six = measured(6 * PER_LAYER, (50.0, 60.0, 70.0), [0.4] * 5, 60.0)
    found = {"of": "macs", "share": 0.789, "stays": stays, "ratio": 0.2, "tried": [[0.2, stays]]}
    return ok(method, 0.2, six | {"budget": found}, ratio_of="macs")


def test_a_missed_budget_is_marked_as_a_missed_ratio_is():
    met, missed, more = of_budget("flap", 0.793), of_budget("sleb", 0.82), of_budget("laco", 0.75)
    assert [removes_too_little(record) for record in (DENSE, met, missed, more)] == [False, False, True, False]
    (table,) = build_view("main", [DENSE, met, missed, more])
    assert table.title == "budget macs=0.8: 78.9 % of the MACs per token, in whole layers"
    assert table.name == "main-macs-0.8"
    assert [column.name for column in table.columns][:3] == ["macs_stays", "ratio", "parameters"]
    shown = {row.method: row.cells[0] for row in table.rows}
    assert {name: one.text for name, one in shown.items()} == {
        **{"dense": "100.0 %", "flap": "79.3 %"},
        **{"sleb": "82.0 %*", "laco": "75.0 %*"},
    }
    (said,) = [note for note in table.notes if "sleb" in note]
    assert said.startswith("* missed: ")
    assert "sleb [requested 80.0 %, budget 78.9 % of the MACs per token, achieved 82.0 %]" in said
    assert met.cell.title == "flap at macs=0.8"


def test_a_spec_file_may_name_a_budget(tmp_path):
    from bench.plan import run_spec

    file = tmp_path / "mine.yaml"
    file.write_text("methods: [laco]\nbudget: [macs=0.8, macs=0.6]\n", encoding="utf-8")
    assert run_spec.load_spec(str(file), {}).amounts == ([0.2, 0.4], "macs")
    with pytest.raises(UserError, match="--budget and --ratio"):
        run_spec.load_spec(str(file), {"ratio": "0.2"})
