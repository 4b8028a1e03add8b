"""Names of models: what is accepted, what is refused in one line, and that what is loaded is what was stored."""

import json
import shutil

import pytest
import torch
from byte_tokens import byte_tokenizer
from conftest import tiny

from bench.data import assets, pretrained
from methods.errors import UserError
from methods.files import sha256

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path):
    """A tiny model with a tokenizer in Hugging Face layout."""
    path = tmp_path / "tiny-llama"
    tiny("llama", layers=2, vocab_size=260).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def refused(name, *words):
    """The model is refused in one line that has all the words."""
    with pytest.raises(UserError) as caught:
        pretrained.check(str(name))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


def test_a_folder_is_loaded_as_it_was_stored(folder):
    pretrained.check(str(folder))
    model, tokenizer = pretrained.load(str(folder), CPU, torch.float32)
    expected = tiny("llama", layers=2, vocab_size=260).state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert tokenizer.decode(tokenizer("text")["input_ids"]) == "text"
    assert pretrained.display_name(str(folder)) == "tiny-llama"


def test_weights_have_the_type_that_was_asked_for(folder):
    model, _ = pretrained.load(str(folder), CPU, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_shell_has_the_shapes_and_no_memory(folder):
    shell = pretrained.shell(str(folder))
    model, _ = pretrained.load(str(folder), CPU, torch.float32)
    assert {parameter.device.type for parameter in shell.parameters()} == {"meta"}
    shapes = [{name: value.shape for name, value in one.named_parameters()} for one in (shell, model)]
    assert shapes[0] == shapes[1]


def test_an_unknown_model_type_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "lama"}))
    with pytest.raises(UserError, match="no causal language model"):
        pretrained.shell(str(folder))


def test_the_hash_follows_the_weights_alone(folder):
    before = pretrained.weights_sha256(str(folder))
    (folder / "generation_config.json").write_text("{}")
    assert pretrained.weights_sha256(str(folder)) == before
    tiny("llama", layers=2, vocab_size=260, seed=1).save_pretrained(folder)
    assert pretrained.weights_sha256(str(folder)) != before
    one = pretrained.weights_sha256(str(folder))
    tiny("llama", layers=2, vocab_size=260, seed=1).save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert pretrained.weights_sha256(str(folder)) != one


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("config.json", "no config.json"), ("*.safetensors", "no *.safetensors"), ("tokenizer*", "no tokenizer")],
)
def test_an_incomplete_folder_says_what_a_folder_holds(folder, pattern, message):
    for file in folder.glob(pattern):
        file.unlink()
    refused(folder, message, "a model folder holds config.json, *.safetensors")


def test_weights_that_are_cut_short_or_missing_are_told_before_any_work(folder):
    tiny("llama", layers=2, vocab_size=260, seed=1).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    pretrained.check(str(folder))
    shard = sorted(folder.glob("*.safetensors"))[1]
    whole = shard.read_bytes()
    for cut in (whole[:-1], whole[:50], whole[:4], b""):
        shard.write_bytes(cut)
        refused(folder, f"{shard.name} is cut short or damaged", "copy or download it again")
    shard.unlink()
    refused(folder, f"has no {shard.name}, which its index names")


def test_pickled_weights_are_not_read(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, "other weight files are not read")


def test_code_of_a_model_needs_a_word(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "code.Model"}}))
    refused(folder, "its own code", "--trust-remote-code")
    pretrained.check(str(folder), trust_remote_code=True)


def test_what_is_no_model_gets_the_choices(tmp_path):
    choices = ("smollm2-135m", "a folder with config.json", ".gguf", "ORG/MODEL")
    refused(tmp_path / "missing", *choices)
    refused(tmp_path / "missing.gguf", *choices)
    refused("./missing", *choices)
    (tmp_path / "notes.txt").write_text("")
    refused(tmp_path / "notes.txt", *choices)


def test_out_of_reach_of_the_hub_a_near_name_is_suggested():
    refused("smollm-135m", "out of reach", "did you mean smollm2-135m?")
    assert "did you mean" not in refused("meta-llama/Llama-2-7b-hf", "not in the hub's cache", "out of reach")


@pytest.fixture
def hub_cache(folder, tmp_path, monkeypatch):
    """The tiny model as nobody/tiny in a hub cache."""
    from huggingface_hub import constants

    root = tmp_path / "hub" / "models--nobody--tiny"
    commit = "0" * 40
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    (root / "snapshots").mkdir()
    folder.rename(root / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return root / "snapshots" / commit


def test_a_cached_hub_model_needs_no_network(hub_cache):
    pretrained.check("nobody/tiny")
    model, _ = pretrained.load("nobody/tiny", CPU, torch.float32)
    assert model.config.num_hidden_layers == 2
    assert pretrained.weights_sha256("nobody/tiny") == sha256(hub_cache / "model.safetensors")
    assert pretrained.display_name("nobody/tiny") == "nobody/tiny"


def test_a_half_cached_hub_model_is_not_cached(hub_cache):
    (hub_cache / "model.safetensors").unlink()
    refused("nobody/tiny", "not in the hub's cache")


@pytest.fixture
def hub(monkeypatch):
    """A hub that can be reached and answers with what is set."""
    from types import SimpleNamespace

    import huggingface_hub

    answer = SimpleNamespace(files=["model.safetensors"], config={}, error=None)

    def model_info(self, name, timeout):
        if answer.error:
            raise answer.error
        return SimpleNamespace(
            siblings=[SimpleNamespace(rfilename=file) for file in answer.files], config=answer.config
        )

    monkeypatch.setattr(assets, "hub_is_reachable", lambda: True)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    return answer


def test_a_hub_model_is_looked_up_without_downloading_it(hub):
    pretrained.check("nobody/else")
    hub.files = ["pytorch_model.bin"]
    refused("nobody/else", "has no *.safetensors")
    hub.files, hub.config = ["a.safetensors"], {"auto_map": {}}
    refused("nobody/else", "its own code")


def test_a_model_that_the_hub_does_not_give_is_one_line(hub):
    from unittest.mock import Mock

    from huggingface_hub.errors import HfHubHTTPError

    hub.error = HfHubHTTPError("404\n\nRepository Not Found", response=Mock())
    refused("nobody/else", "the hub does not give 'nobody/else': Repository Not Found")


def test_devices_and_types():
    assert pretrained.resolve_device("cpu") == CPU
    assert pretrained.resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pretrained.resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert pretrained.resolve_dtype("float16", CPU) == torch.float16
    for other in (
        "gpu",
        "meta",
        "mps",
        "cpu:0",
        "cuda:",
        "cuda:007",
        "cuda:300",
        "",
    ):  # the last would be another key for the same device
        with pytest.raises(UserError, match=f"device is auto, cpu, cuda or cuda:N; got '{other}'"):
            pretrained.resolve_device(other)
    with pytest.raises(UserError, match="dtype is auto, float32, bfloat16, float16; got 'int8'"):
        pretrained.resolve_dtype("int8", CPU)


@pytest.mark.parametrize(
    ("processor", "here", "dtype"),
    [
        ({"amx_bf16": True, "avx512_bf16": False}, True, torch.bfloat16),
        ({"avx512_bf16": True}, True, torch.bfloat16),
        ({"architecture": "aarch64", "bf16": True}, True, torch.bfloat16),
        ({"avx512_bf16": False, "avx512_f": True, "amx_tile": False}, True, torch.float32),
        ({"amx_bf16": True}, False, torch.float32),  # of other machines nothing is known
    ],
)
def test_numbers_on_a_cpu_are_bfloat16_where_it_multiplies_them(monkeypatch, processor, here, dtype):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: processor, raising=False)
    assert pretrained.resolve_dtype("auto", CPU, here=here) == dtype
    assert pretrained.resolve_dtype("float32", CPU, here=here) == torch.float32


def test_a_torch_that_does_not_know_the_processor_computes_in_float32(monkeypatch):
    monkeypatch.delattr("torch.cpu.get_capabilities", raising=False)
    assert pretrained.resolve_dtype("auto", CPU) == torch.float32


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="device cuda was asked for, but torch sees 0 GPUs"):
        pretrained.resolve_device("cuda")


@pytest.mark.default_model
def test_the_default_model_is_what_it_says():
    pretrained.check("smollm2-135m")
    model, tokenizer = pretrained.load("smollm2-135m", CPU, torch.float32)
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert pretrained.display_name("smollm2-135m") == "SmolLM2-135M-Instruct"
    shell = pretrained.shell("smollm2-135m")
    assert sum(parameter.numel() for parameter in shell.parameters()) == 134_515_008
    assert not hasattr(model.config, "quantization_config")
    prompt = tokenizer("The Eiffel Tower is located in the city of", return_tensors="pt")
    ids = model.generate(**prompt, max_new_tokens=4, do_sample=False)
    assert tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :]) == " Paris, France."
    assert model.float() is model


def test_code_that_comes_with_a_model_is_hashed_where_it_may_run(model_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    plain, trusted = (pretrained.config_sha256(str(folder), trust) for trust in (False, True))
    assert plain == trusted  # there is none
    (folder / "modeling_mine.py").write_text("A = 1\n")
    first = pretrained.config_sha256(str(folder), True)
    (folder / "modeling_mine.py").write_text("A = 2\n")
    assert len({plain, first, pretrained.config_sha256(str(folder), True)}) == 3
    assert pretrained.config_sha256(str(folder)) == plain
