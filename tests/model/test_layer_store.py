"""Models whose weights lie in files are pruned to the last bit as those in memory, and their files are only read."""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

import pytest
import torch
from conftest import VOCABULARY, tiny
from tiny_methods import EXPERTS, SPECS, layers_for

import methods
from bench.data import pretrained
from bench.runs.inputs import sha256_of_state
from methods.files import hash_file
from methods.model import layer_store
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder, make_twin
from methods.model.gradients import collect_gradients
from methods.model.layer_store import LayerStore

RATIO = 0.3
EVERY = [card.name for card in methods.cards_of_methods() if not card.fixed and card.name not in EXPERTS]
EVERY.remove("darwinlm")  # which refuses such a model (tests/search/test_darwinlm.py)
MENDED = ["scale", "linearpatch", "ghost", "replaceme"]
MENDED = [
    *(f"shortgpt+{name}" for name in MENDED),
    "llm-drop+replaceme",
    "flap+refit",
    "flap+blockwise",
    "laco+reinitialize",
]
# transposed matrices and tied tables; norms behind blocks; parallel blocks with biases
OTHERS = {"gpt2": ["slicegpt", "flap", "shortgpt+replaceme"], "gemma2": ["laco-ls", "shortgpt+replaceme"]}
OTHERS |= {"mixtral": ["reap", "expert-random", "shortgpt"], "phi": ["slicegpt", "llm-pruner", "flap+refit"]}
# Those that walk through the layers as another one does, at night.
AS_ANOTHER = ("angular", "magnitude", "wanda-sp", "finercut", "shortened-llama")
CASES = [
    pytest.param("llama", name, marks=[pytest.mark.nightly] if name in AS_ANOTHER else []) for name in [*EVERY, *MENDED]
]
CASES += [(family, name) for family, names in OTHERS.items() for name in names]


@pytest.fixture
def calibration():
    ids = torch.randint(3, VOCABULARY, (8, 32), generator=torch.Generator().manual_seed(1))
    return Calibration(ids, torch.ones_like(ids, dtype=torch.bool), memory=2**17)  # several micro-batches


def in_memory(model: torch.nn.Module) -> list[str]:
    """The weights of a model that lie in no file."""
    files = layer_store._mapped_files()
    return [name for name, one in model.named_parameters() if not layer_store._lies_in(files, one)]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_every_method_does_the_same_to_a_model_in_files(family, name, calibration, tmp_path):
    pruner, models = methods.make(name, SPECS.get(name)), [tiny(family, layers=layers_for(name)) for _ in range(2)]
    one, other = Decoder(models[0]), Decoder(models[1], LayerStore(tmp_path))
    decided = pruner.prune(one, calibration, RATIO)
    assert pruner.prune(other, calibration, RATIO) == decided
    assert sha256_of_state(other.model) == sha256_of_state(one.model)
    assert in_memory(other.model) == []
    assert len(in_memory(one.model)) > 0
    assert list(tmp_path.iterdir()) == []  # its files have lost their names


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])  # a scaled embedding; transposed matrices
def test_a_model_is_loaded_into_files_as_into_memory(family, stored, tmp_path, monkeypatch):
    folder, place = tmp_path / "model", tmp_path / "store"
    place.mkdir()
    tiny(family).to(stored).save_pretrained(folder)
    monkeypatch.setattr(pretrained, "load_tokenizer", lambda *_: None)
    before = {file: hash_file(file) for file in folder.iterdir()}
    whole, _ = pretrained.load(str(folder), torch.device("cpu"), torch.float32)
    model, _ = pretrained.load(str(folder), torch.device("cpu"), torch.float32, store=LayerStore(place))
    assert in_memory(model) == []
    assert model.dtype == model.config.dtype == torch.float32
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    ids = torch.arange(3, 23)[None]
    assert torch.equal(model(ids).logits, whole(ids).logits)
    assert sha256_of_state(model) == sha256_of_state(Decoder(whole).model)
    with torch.no_grad():
        next(model.parameters()).zero_()
    assert {file: hash_file(file) for file in folder.iterdir()} == before


def test_a_parameter_stays_the_object_it_is_with_its_values(tmp_path):
    model = Decoder(tiny("llama"), LayerStore(tmp_path))
    weight = model.layers[2].down.weight
    weight.data = torch.randn(3, 5, 7).transpose(0, 2)
    values = weight.detach().clone()
    for layer in model.sweep():
        assert (in_memory(layer.module) != []) == (layer.module is model.stack[2])
    assert in_memory(model.model) == []
    kept = make_twin(model)
    assert model.layers[2].down.weight is weight is kept.layers[2].down.weight
    assert torch.equal(weight, values)


def test_a_settled_layer_is_not_written_again(tmp_path, monkeypatch):
    model, written = Decoder(tiny("llama"), LayerStore(tmp_path)), list[int]()
    moved = LayerStore._move
    monkeypatch.setattr(LayerStore, "_move", lambda store, new: written.append(len(new)) or moved(store, new))
    model.settle_all()
    assert written == []
    layer = model.layers[1]
    layer.out.weight = torch.nn.Parameter(layer.out.weight.detach() * 2)
    model.settle_all()
    assert written == [1]


def test_a_disk_that_takes_no_more_leaves_the_weights_and_no_file(tmp_path, monkeypatch):
    model = tiny("llama")
    values = sha256_of_state(model)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "from_file", full)
    with pytest.raises(OSError, match="No space left"):
        Decoder(model, LayerStore(tmp_path))
    assert sha256_of_state(model) == values
    assert list(tmp_path.iterdir()) == []


def test_a_store_needs_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        Decoder(tiny("llama"), LayerStore(Path(tmp_path / "nowhere")))


def test_the_next_layer_is_read_ahead_while_one_is_used(calibration, tmp_path, monkeypatch):
    """Forwards and, for gradients, back; once for all micro-batches."""
    model, seen = Decoder(tiny("llama"), LayerStore(tmp_path)), list[tuple[str, int]]()
    number = {id(one): place for place, module in enumerate(model.stack) for one in module.parameters()}
    monkeypatch.setattr(layer_store, "read_tensor_ahead", lambda one: seen.append(("read", number[id(one)])))
    for place, module in enumerate(model.stack):
        module.register_forward_pre_hook(lambda *_, place=place: seen.append(("run", place)))
    collect_gradients(model, calibration, set(model.model.parameters()), lambda *_: [])
    there = [one for place in range(5) for one in (("read", place + 1), ("run", place))]
    back = [one for place in range(5, 0, -1) for one in (("read", place - 1), ("run", place))]
    assert [one for one, _ in groupby(seen)] == [*there, ("run", 5), *back, ("run", 0)]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is read ahead")
def test_what_lies_in_a_file_can_be_read_ahead(tmp_path):
    model = Decoder(tiny("llama"), LayerStore(tmp_path))
    model.settle_all()
    assert layer_store.read_tensor_ahead(model.layers[0].down.weight)
    assert not layer_store.read_tensor_ahead(torch.empty(1, device="meta"))  # the system refuses what is mapped nowhere
