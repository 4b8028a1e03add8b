"""The text towers of models that read images are pruned as text models are, and their vision towers do not change."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import tiny
from PIL import Image
from tiny_methods import METHODS as ALL_METHODS
from tiny_methods import SPECS, calibration, logits
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    Gemma3ForCausalLM,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import methods
import methods.decisions
from bench.data import pretrained
from bench.evaluation.checks import generate_greedily
from bench.evaluation.scoring import nll_of_windows, score
from bench.export.engine_form import nemotron_form_of, write_heterogeneous
from bench.export.gguf_file import write_gguf
from bench.healing.trainable import make_trainable
from bench.inference.vllm_config import ServedConfig
from bench.plan.protocol import Recipe
from bench.workshop.tiny_models import IMAGE, VISION, make_tokenizer
from methods import checkpoint
from methods.checkpoint.pruned_config import describe
from methods.errors import Unsupported, UserError
from methods.model.decoder import Decoder, devices_of_modules
from methods.model.sizes import active_parameters, macs_per_token, parameters, parameters_without_embeddings

TEXT = {"gemma3": Gemma3ForCausalLM, "llava": LlamaForCausalLM, "qwen3_vl": Qwen3ForCausalLM}
MERGES = ("laco", "laco-published", "laco-ls", "llm-streamline", "puzzle", "laco-puzzle")  # or empty layers, refused
METHODS = {"shortgpt": 2, "laco": 2, "blockpruner": 2, "llm-pruner": 1.5, "flap+refit": 1.5}  # layers' worth that goes


def text_model(model: torch.nn.Module) -> torch.nn.Module:
    """The text model that has the weights of the tower, and nothing else."""
    config = copy.deepcopy(model.config.get_text_config())
    if config.model_type == "qwen3_vl_text":  # which no class of text models has; of text its positions are Qwen3's
        given = {name: value for name, value in config.to_dict().items() if name not in ("model_type", "layer_types")}
        config = Qwen3Config(**given | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}})
    alone = TEXT[model.config.model_type](config)
    named = {name.replace("language_model.", ""): tensor for name, tensor in model.state_dict().items()}
    alone.load_state_dict({name: tensor for name, tensor in named.items() if name in alone.state_dict()})
    return alone.eval()


def image_inputs(family: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """One image of four tokens between words."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor([[7, 8, *[IMAGE] * 4, 9, 11, 12]])
    if family == "qwen3_vl":  # 4 x 4 patches of 3 colours, 2 frames and 4 x 4 pixels, of which four make a token
        patches = torch.randn(16, 96, generator=generator)
        where = {"image_grid_thw": torch.tensor([[1, 4, 4]]), "mm_token_type_ids": (ids == IMAGE).int()}
        return {"input_ids": ids, "pixel_values": patches} | where
    return {"input_ids": ids, "pixel_values": torch.randn(1, 3, 16, 16, generator=generator)}


@torch.no_grad()
def features_of(model: torch.nn.Module, family: str) -> list[torch.Tensor]:
    """What the vision tower makes of the image, as the text tower gets it."""
    given = {name: value for name, value in image_inputs(family).items() if name in ("pixel_values", "image_grid_thw")}
    found = model.get_image_features(**given, return_dict=True)
    return [*found.pooler_output, *(each[0] for each in getattr(found, "deepstack_features", None) or ())]


@torch.no_grad()
def logits_with_image(model: torch.nn.Module, family: str, seed: int = 0) -> torch.Tensor:
    return model(**image_inputs(family, seed), use_cache=False).logits


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", VISION)
def test_a_pruned_tower_is_the_same_cut_of_the_text_model_alone(family, method, ids):
    tower = Decoder(tiny(family))
    alone = Decoder(text_model(tower.model))
    if family == "qwen3_vl" and method == "laco":
        pytest.skip("test_layers_behind_which_images_enter_stay_where_they_are has the refusal")
    alone.__class__ = type("TextModel", (Decoder,), {"fixed_layers": tower.fixed_layers})
    goes = METHODS[method] * sum(part.numel() for part in tower.layers[0].module.parameters())
    pruner = methods.make(method, SPECS.get(method, {}))
    for model in (tower, alone):
        pruner.prune(model, calibration(), goes / parameters(model))
    assert [layer.number for layer in tower.layers] == [layer.number for layer in alone.layers]
    assert parameters(tower) - sum(part.numel() for each in tower.vision for part in each.parameters()) == (
        parameters(alone)
    )
    expected = logits(alone, ids)
    torch.testing.assert_close(logits(tower, ids), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("family", VISION)
def test_text_is_scored_and_counted_as_of_the_text_model_alone(family, ids):
    model = tiny(family)
    alone = text_model(model)
    scored = torch.arange(ids.shape[1]).expand(ids.shape) > 0
    questions = sorted((tuple(row), 12) for row in ids.tolist())
    for width in (60, 7):  # whole windows, and pieces through a cache
        torch.testing.assert_close(
            *(nll_of_windows(one, ids, scored, width) for one in (model, alone)), rtol=1e-5, atol=0
        )
        torch.testing.assert_close(*(score(one, questions, width)[0] for one in (model, alone)), rtol=1e-5, atol=0)
    both = Decoder(model), Decoder(alone)
    for count in (parameters_without_embeddings, active_parameters, lambda one: macs_per_token(one, 20)):
        assert count(both[0]) == count(both[1])
    assert active_parameters(both[0]) == parameters(both[1]) < parameters(both[0])


@pytest.mark.parametrize("family", VISION)
def test_nothing_pruned_reads_an_image_as_the_dense_model_does(family):
    dense, model = tiny(family), Decoder(tiny(family))
    methods.make("flap+refit").prune(model, calibration(), 0.0)
    assert torch.equal(logits_with_image(model.model, family), logits_with_image(dense, family))
    assert not torch.allclose(logits_with_image(dense, family), logits_with_image(dense, family, 1), atol=1e-3)


@pytest.mark.parametrize("method", ["shortgpt", "flap", "blockpruner"])
@pytest.mark.parametrize("family", VISION)
def test_a_pruned_model_reads_images_and_its_vision_tower_is_as_it_was(family, method, tmp_path):
    dense, model = tiny(family), Decoder(tiny(family))
    methods.make(method, SPECS.get(method, {})).prune(model, calibration(), 0.2)
    expected = logits_with_image(model.model, family)
    assert expected.isfinite().all()
    assert not torch.equal(expected, logits_with_image(dense, family))
    manifest = checkpoint.save(model, tmp_path / "model")
    kinds = [lambda folder: checkpoint.load(folder).model]
    if method == "shortgpt":
        assert manifest["loads_with"] == "transformers"
        kinds.append(AutoModelForImageTextToText.from_pretrained)
    for load in kinds:
        again = load(tmp_path / "model")
        assert torch.equal(logits_with_image(again, family), expected)
        assert again.config.text_config.num_hidden_layers == len(model.layers)
        assert again.config.text_config is again.model.language_model.config
        before = dict(dense.named_parameters())
        tower = [name for name in before if ".language_model." not in name and not name.startswith("lm_head")]
        assert tower
        assert all(torch.equal(dict(again.named_parameters())[name], before[name]) for name in tower)
        assert all(map(torch.equal, features_of(again, family), features_of(dense, family)))


@pytest.mark.parametrize("family", VISION)
def test_a_folder_is_a_model_to_run_and_its_tower_lies_on_several_devices(family, tmp_path, ids):
    dense = tiny(family)
    dense.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    pretrained.check(str(tmp_path))
    shell = Decoder(pretrained.make_shell(str(tmp_path)))
    model, _ = pretrained.load(str(tmp_path), torch.device("cpu"), torch.float32)
    assert torch.equal(logits_with_image(model, family), logits_with_image(dense, family))
    assert parameters(shell) == parameters(Decoder(model))
    places = devices_of_modules(shell, [torch.device("cpu"), torch.device("cpu")])
    assert all(any(f"{name}.".startswith(f"{part}.") for part in places) for name, _ in model.named_parameters())


def test_a_saved_folder_makes_the_pixels_that_the_dense_models_does(tmp_path):
    """A folder that was saved once more, as `export` does, has the files too, and one of a text model has none."""
    dense, image = tmp_path / "dense", Image.effect_mandelbrot((40, 24), (-2, -1, 1, 1), 50).convert("RGB")
    tiny("llava").save_pretrained(dense)
    make_tokenizer().save_pretrained(dense)
    size = {"height": 16, "width": 16}
    processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=size, image_mean=[0.2, 0.4, 0.6])
    processor.save_pretrained(dense)
    expected = AutoImageProcessor.from_pretrained(dense)(image, return_tensors="pt").pixel_values
    assert expected.shape == (1, 3, 16, 16)
    assert expected.std() > 0
    model, tokenizer = pretrained.load(str(dense), torch.device("cpu"), torch.float32)
    saved, again = tmp_path / "saved", tmp_path / "again"
    checkpoint.save(Decoder(model), saved, tokenizer=tokenizer)
    checkpoint.save(checkpoint.load(saved), again, tokenizer=pretrained.load_tokenizer(str(saved)))
    for folder in (saved, again):
        pixels = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt").pixel_values
        assert torch.equal(pixels, expected)
    checkpoint.save(Decoder(tiny("llama")), tmp_path / "text", tokenizer=tokenizer)
    assert not (tmp_path / "text" / "preprocessor_config.json").exists()


@pytest.mark.parametrize("family", VISION)
def test_formats_of_text_alone_refuse_a_vision_tower(family, tmp_path):
    model, tokenizer = Decoder(tiny(family)), make_tokenizer()
    with pytest.raises(UserError, match=f"GGUF is written for .*; this model is a {family}$"):
        write_gguf(model, tokenizer, tmp_path / "model.gguf", torch.float32, "name")
    with pytest.raises(UserError, match=f"nemotron-nas is written for .*; this model is a {family}$"):
        nemotron_form_of(model)
    with pytest.raises(UserError, match=f"a {family} has a vision tower, and per_layer_config is of text alone$"):
        write_heterogeneous(model, tokenizer, tmp_path / "model", torch.float32, shard_bytes=10**9)
    with pytest.raises(ValueError, match=f"models of text alone, and this {family} has a vision tower$"):
        ServedConfig.from_dict(describe(model).to_dict())


def test_a_tower_of_another_kind_is_refused():
    with pytest.raises(Unsupported, match="the text tower of this llava is a gemma2, and may be one of llama, mistral"):
        Decoder(tiny("llava", model_type="gemma2"))


def test_a_cap_of_logits_that_the_whole_model_does_not_apply_is_not_applied(ids):
    model = Decoder(tiny("gemma3", final_logit_softcapping=1.0))
    with torch.no_grad():
        states = model.model.model(ids).last_hidden_state
        model.final_norm = torch.nn.Identity()
        plain = model.model.lm_head(states)
        assert torch.equal(model.logits(states), plain)
        assert float(plain.abs().max()) > 1.0


@pytest.mark.parametrize("kind", ["full", "norms", "lora"])
def test_healing_trains_no_weight_that_reads_images(kind):
    model = Decoder(tiny("gemma3"))
    with make_trainable(model, Recipe(kind, tokens=256)) as trained:
        assert trained
        assert all(".language_model." in name for name in trained)


def prune_by(method: str, model: Decoder, ratio: float) -> None:
    given = {"layers": "2-3"} if method == "drop" else SPECS[method]
    methods.decisions.prune(methods.make(method, given), model, calibration(), ratio)


@pytest.mark.parametrize("method", [name for name in ALL_METHODS if "layers" in methods.make(name, SPECS[name]).axes])
def test_layers_behind_which_images_enter_stay_where_they_are(method):
    """Qwen3-VL adds states of the image behind its first layers, here two, whichever these are."""
    model = Decoder(tiny("qwen3_vl"))
    assert model.fixed_layers == 2
    if method in MERGES:
        with pytest.raises(Unsupported, match="the first 2 layers of this qwen3_vl stay where they are"):
            methods.make(method, SPECS[method]).plan(model, 0.3)
        return
    prune_by(method, model, 0.3)
    assert parameters(model) < parameters(Decoder(tiny("qwen3_vl")))
    assert [layer.number for layer in model.layers[:2]] == [0, 1]
    assert all(layer.has_attention and layer.has_mlp for layer in model.layers[:2])
    assert logits_with_image(model.model, "qwen3_vl").isfinite().all()


def test_a_first_layer_does_not_go_whoever_asks():
    model = Decoder(tiny("qwen3_vl"))
    with pytest.raises(Unsupported, match="the first 2 layers"):
        model.set_layers(model.layers[1:])
    with pytest.raises(Unsupported, match="the first 2 layers"):
        methods.make("drop", {"layers": "1-2"}).plan(model, 0.3)
    methods.make("laco", {"C": "3", "I": "1", "L": "2"}).prune(model, calibration(), 0.15)
    assert [layer.number for layer in model.layers[:2]] == [0, 1]


def test_positions_that_a_prompt_left_behind_move_no_later_text(ids):
    """Qwen3-VL keeps them for each prompt of the last batch, and takes them for those of any text with a cache."""
    model = tiny("qwen3_vl")
    scored = torch.arange(ids.shape[1]).expand(ids.shape) > 0
    before = nll_of_windows(model, ids, scored, 7)
    generate_greedily(model, ids[:2, :5].tolist(), 3)
    assert torch.equal(nll_of_windows(model, ids, scored, 7), before)


@pytest.mark.parametrize("family", TEXT)
def test_a_model_in_another_dtype_says_so_of_each_part(family):
    """A part's configuration names the dtype in which its own class would be built."""
    model = Decoder(tiny(family))
    model.cast(torch.bfloat16)
    assert {parameter.dtype for parameter in model.model.parameters()} == {torch.bfloat16}
    parts = [getattr(model.whole_config, name) for name in model.whole_config.sub_configs]
    assert {config.dtype for config in (model.whole_config, *parts)} == {torch.bfloat16}
