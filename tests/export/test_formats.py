"""What `list formats` says is what `export` does."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import tiny
from tiny_methods import EXPERTS, METHODS, calibration, pruned

import methods
from bench.cli.main import main
from bench.export import engine_form, formats, gguf_file
from methods.checkpoint import save_load
from methods.errors import UserError
from methods.model.decoder import Decoder
from methods.model.inserted import maps_of

HEADS, CHANNELS = "heads, in each layer others", "channels, in each layer others"
GUIDE = Path(__file__).parents[2] / "docs" / "reference" / "formats.md"


def rows_of(method):
    return [held for shape, held in formats.SHAPES.items() if method in formats.makers_of(shape)]


def has(model):
    """Which rows of the table a model belongs to."""
    layers = model.layers
    groups = {layer.kv_heads for layer in layers if layer.has_attention}
    widths = {layer.down.in_features for layer in layers if layer.has_mlp}
    found = set()
    if any(not layer.has_attention for layer in layers):
        found.add("attentions")
    if any(not layer.has_mlp for layer in layers):
        found.add("MLPs")
    if len(groups) > 1:
        found.add(HEADS)
    elif len(widths) > 1:
        found.add(CHANNELS)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_a_format_holds_the_models_of_a_method_as_the_table_says(method):
    """A model may be of an easier shape than others of its method, as when a search has removed whole layers alone."""
    model, _ = pruned(method, "llama", 0.3)
    rows = rows_of(method)
    hard, shapes = {shape.removed for shape in rows}, has(model)
    if HEADS in hard and HEADS not in shapes:
        shapes, hard = shapes - {CHANNELS}, set()
    assert shapes <= hard
    form = save_load.form_of(model, save_load.make_probe(model))
    assert form.reason is None or {shape.hf for shape in rows} == {"prunebench"}
    for held, ask in (
        ({shape.gguf.partition(",")[0] for shape in rows}, gguf_file.contents_of),
        ({shape.nemotron_nas for shape in rows}, engine_form.nemotron_form_of),
    ):
        if "no" in held and (shapes or method in ("slicegpt", "svd-llm")):
            with pytest.raises(UserError) as caught:
                ask(model)
            assert "\n" not in str(caught.value)
        else:
            answer = ask(model)
            assert getattr(answer, "architecture", None) != "deci" or held == {"deci"}


@pytest.mark.parametrize("method", EXPERTS)
def test_hf_alone_holds_a_mixture_and_as_stock(method):
    (row,) = rows_of(method)
    model = Decoder(tiny("mixtral", layers=2))
    methods.make(method).prune(model, calibration(), 0.3)
    assert save_load.form_of(model, save_load.make_probe(model)).reason is None
    assert (row.hf, row.gguf, row.nemotron_nas) == ("stock", "no", "no")
    for ask in (gguf_file.contents_of, engine_form.nemotron_form_of):
        with pytest.raises(UserError, match="this model is a mixtral"):
            ask(model)


@pytest.mark.parametrize("repair", ["ghost", "linearpatch"])
def test_no_format_but_hf_holds_a_map(repair):
    (row,) = rows_of(f"+{repair}")
    model, _ = pruned(f"shortgpt+{repair}", "llama", 0.3)
    assert any(maps_of(model))
    assert (row.hf, row.gguf, row.nemotron_nas) == ("prunebench", "no", "no")
    for ask in (gguf_file.contents_of, engine_form.nemotron_form_of):
        with pytest.raises(UserError, match="a linear map of the residual stands"):
            ask(model)


def test_every_method_is_in_the_table():
    named = {name for shape in formats.SHAPES for name in formats.makers_of(shape)}
    assert named - {"+ghost", "+linearpatch"} == set(METHODS) | set(EXPERTS)


def test_the_guide_repeats_the_table(capsys):
    heading, *rows = formats.table_of_formats()
    lines = [f"| {' | '.join(row)} |" for row in (heading, ("---",) * len(heading), *rows)]
    assert "\n".join(lines) in GUIDE.read_text(encoding="utf-8")
    assert main(["list", "formats"]) == 0
    printed = capsys.readouterr().out
    assert all(cell in printed for row in (heading, *rows) for cell in row if cell != "by")
