"""Names of models: what is accepted, what is refused in one line, and that what is loaded is what was stored."""

import errno
import json
import logging
import re
import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from byte_tokens import byte_tokenizer
from conftest import tiny
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from bench.data import assets, pretrained
from bench.plan.run_spec import RunSpec
from bench.runs.plan import plan_spec
from methods.checkpoint import save_load
from methods.errors import UserError
from methods.files import hash_file
from methods.model.decoder import Decoder

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
    assert pretrained.name_of_model(str(folder)) == "tiny-llama"


def test_weights_have_the_type_that_was_asked_for(folder):
    model, _ = pretrained.load(str(folder), CPU, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_shell_has_the_shapes_and_no_memory(folder):
    shell = pretrained.make_shell(str(folder))
    model, _ = pretrained.load(str(folder), CPU, torch.float32)
    assert {parameter.device.type for parameter in shell.parameters()} == {"meta"}
    shapes = [{name: value.shape for name, value in one.named_parameters()} for one in (shell, model)]
    assert shapes[0] == shapes[1]


def test_an_unknown_model_type_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "lama"}))
    with pytest.raises(UserError, match="no causal language model"):
        pretrained.make_shell(str(folder))


def gone(weights):
    del weights["model.layers.1.mlp.down_proj.weight"]


def cut(weights):
    weights["model.layers.1.mlp.down_proj.weight"] = torch.zeros(1, 1)


@pytest.fixture
def warned() -> Iterator[list[str]]:
    """What transformers logs meanwhile."""
    found, logger = list[str](), logging.getLogger("transformers")
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


@pytest.mark.parametrize(("change", "problem"), [(gone, "weights are missing"), (cut, "weights have other shapes")])
def test_weights_that_would_be_drawn_at_random_are_refused_and_not_called_new_ones(folder, change, problem, warned):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    pretrained.check(str(folder))  # reads no names
    with pytest.raises(UserError, match=rf"does not load: {problem}.*: model.layers.1.mlp.down_proj.weight; copy or"):
        pretrained.load(str(folder), CPU, torch.float32)
    assert warned == []


def test_weights_that_a_model_has_no_place_for_are_left_and_named(folder, warned):
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"model.mtp.weight": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    model, _ = pretrained.load(str(folder), CPU, torch.float32)
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in weights.items())
    assert ["model.mtp.weight" in report for report in warned] == [True]


def test_the_hash_is_of_the_files_that_are_loaded(folder):
    whole = pretrained.sha256_of_weights(str(folder))
    (folder / "consolidated.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    assert pretrained.sha256_of_weights(str(folder)) == whole
    tiny("llama", layers=2, vocab_size=260, seed=1).save_pretrained(folder / "parts", max_shard_size="20KB")
    parts = pretrained.sha256_of_weights(str(folder / "parts"))
    assert len(list((folder / "parts").glob("*.safetensors"))) > 1
    for file in (folder / "parts").iterdir():
        shutil.copy(file, folder)
    assert pretrained.sha256_of_weights(str(folder)) == whole  # as transformers loads it
    (folder / "model.safetensors").unlink()
    assert pretrained.sha256_of_weights(str(folder)) == parts
    model, _ = pretrained.load(str(folder), CPU, torch.float32)
    assert torch.equal(model.lm_head.weight, tiny("llama", layers=2, vocab_size=260, seed=1).lm_head.weight)


def test_the_hash_follows_the_weights_alone(folder):
    before = pretrained.sha256_of_weights(str(folder))
    (folder / "generation_config.json").write_text("{}")
    assert pretrained.sha256_of_weights(str(folder)) == before
    tiny("llama", layers=2, vocab_size=260, seed=1).save_pretrained(folder)
    assert pretrained.sha256_of_weights(str(folder)) != before


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("config.json", "no config.json"), ("*.safetensors", "no model.safetensors"), ("tokenizer*", "no tokenizer")],
)
def test_an_incomplete_folder_says_what_a_folder_holds(folder, pattern, message):
    for file in folder.glob(pattern):
        file.unlink()
    refused(folder, message, "a model folder holds config.json, safetensors")


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
    assert pretrained.sha256_of_weights("nobody/tiny") == hash_file(hub_cache / "model.safetensors")
    assert pretrained.name_of_model("nobody/tiny") == "nobody/tiny"


@pytest.mark.parametrize("pattern", ["model.safetensors", "tokenizer*", "config.json"])
def test_a_half_cached_hub_model_is_not_cached(hub_cache, pattern):
    for file in hub_cache.glob(pattern):
        file.unlink()
    refused("nobody/tiny", "not in the hub's cache")


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    """A hub that can be reached, has the tiny model under any name, and answers with what is set."""
    import huggingface_hub

    folder = folder.rename(tmp_path / "on the hub")
    files = sorted(file.name for file in folder.iterdir())
    answer = SimpleNamespace(folder=folder, files=files, config={}, error=None, full=None, lfs=True)

    def model_info(self, name, timeout, files_metadata=False):
        if answer.error:
            raise answer.error
        siblings = [SimpleNamespace(rfilename=file, lfs=None) for file in answer.files]
        for file in siblings if files_metadata and answer.lfs else ():
            file.lfs = SimpleNamespace(sha256=hash_file(folder / file.rfilename))
        return SimpleNamespace(siblings=siblings, config=answer.config)

    def snapshot_download(name, allow_patterns, ignore_patterns, local_files_only):
        here = tmp_path / "downloaded"
        if local_files_only and not here.is_dir():
            raise LocalEntryNotFoundError("not here")
        if not local_files_only:
            if answer.full:
                raise answer.full
            here.mkdir(exist_ok=True)
            wanted = [file for file in answer.files if any(fnmatch(file, pattern) for pattern in allow_patterns)]
            for file in wanted:
                if not any(fnmatch(file, pattern) for pattern in ignore_patterns):
                    shutil.copy(folder / file, here)
        return str(here)

    monkeypatch.setattr(assets, "is_hub_reachable", lambda: True)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return answer


def test_a_hub_model_is_looked_up_without_downloading_it(hub, tmp_path):
    pretrained.check("nobody/else")
    files = hub.files
    for lacks in ("model.safetensors", "config.json", "tokenizer"):
        hub.files = [file for file in files if not file.startswith(lacks)]
        refused("nobody/else", f"nobody/else on the hub has no {lacks}")
    hub.files, hub.config = files, {"auto_map": {}}
    refused("nobody/else", "its own code")
    assert not (tmp_path / "downloaded").exists()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (HfHubHTTPError("404\n\nRepository Not Found", response=Mock()), "Repository Not Found"),
        (HFValidationError("Cannot have -- or .. in repo_id"), "Cannot have -- or .. in repo_id"),
        (Exception("timed out"), "timed out"),  # whatever the HTTP client raises
    ],
)
def test_a_model_that_the_hub_does_not_give_is_one_line(hub, error, reason):
    hub.error = error
    refused("nobody/else", f"the hub does not give 'nobody/else': {reason}; otherwise give")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            GatedRepoError("401 Client Error.\n\nAccess is restricted. Please log in.", response=Mock()),
            "Access is restricted. Please log in; accept its terms on its page of the hub and set HF_TOKEN, or give",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; give a folder"),
        (LocalEntryNotFoundError("the connection is lost"), "the connection is lost; give a folder"),
    ],
)
@pytest.mark.parametrize(
    "wanting",
    [pretrained.make_shell, pretrained.load_tokenizer, pretrained.sha256_of_weights],
    ids=lambda one: one.__name__,
)
def test_a_download_that_fails_is_one_line_with_the_reason(hub, wanting, error, reason):
    hub.full = error
    pretrained.check("nobody/else")
    with pytest.raises(UserError) as caught:
        wanting("nobody/else")
    assert str(caught.value).startswith(f"nobody/else cannot be downloaded from the hub: {reason}")


def test_what_describes_a_hub_model_comes_without_its_weights(hub, tmp_path, capsys):
    """Its shape, tokenizer and hash, as a plan needs them; where the hub does not say the hash, a line says why."""
    whole = pretrained.sha256_of_weights(str(hub.folder))
    assert sum(one.numel() for one in pretrained.make_shell("nobody/else").parameters())
    assert pretrained.load_tokenizer("nobody/else")("text")["input_ids"]
    assert pretrained.sha256_of_config("nobody/else") == pretrained.sha256_of_config(str(hub.folder))
    assert pretrained.sha256_of_weights("nobody/else", download=False) == whole
    assert not list((tmp_path / "downloaded").glob("*.safetensors"))
    assert capsys.readouterr().err == ""
    hub.lfs = False
    assert pretrained.sha256_of_weights("nobody/else", download=False) == whole
    assert capsys.readouterr().err == (
        "downloading the weights of nobody/else from the hub; their hash is part of each result\n"
    )
    assert pretrained.load("nobody/else", CPU, torch.float32)[0].config.num_hidden_layers == 2


def test_a_plan_of_a_hub_model_downloads_no_weights(hub, text_file, tmp_path):
    protocol = {"texts": (str(text_file),), "calibration": str(text_file), "tasks": (), "window": 32, "windows": 4}
    protocol |= {"speed_rounds": 0, "calibration_sequences": 2, "calibration_length": 16}
    shared = {"ratios": [0.3], "out": str(tmp_path / "run"), "device": "cpu", "protocol": protocol}
    spec = RunSpec("shortgpt", model="nobody/else", **shared)
    assert [one.cell.method for one in plan_spec(spec).cells] == ["dense", "shortgpt"]
    assert not list((tmp_path / "downloaded").glob("*.safetensors"))


def test_the_hub_says_the_hash_of_a_model_in_parts(hub):
    tiny("llama", layers=2, vocab_size=260, seed=1).save_pretrained(hub.folder, max_shard_size="20KB")
    (hub.folder / "model.safetensors").rename(hub.folder / "consolidated.safetensors")
    hub.files = sorted(file.name for file in hub.folder.iterdir())
    said = pretrained.sha256_of_weights("nobody/else", download=False)
    assert said == pretrained.sha256_of_weights("nobody/else") == pretrained.sha256_of_weights(str(hub.folder))


def with_an_adapter(folder):
    """Put an adapter of PEFT beside the weights, one that changes every logit."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        tiny("llama", layers=2, vocab_size=260),
        LoraConfig(r=2, target_modules=["down_proj"], init_lora_weights=False),
    )
    model.save_pretrained(folder)


def with_other_weights(folder):
    """Have config.json name another file of weights, which transformers loads in place of the usual one."""
    tiny("llama", layers=2, vocab_size=260, seed=1).save_pretrained(folder / "other")
    shutil.copy(folder / "other" / "model.safetensors", folder / "other.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"text_config": {"transformers_weights": "other"}}))


def with_another_configuration(folder):
    """Have config.json name another configuration, for versions of transformers from 4 on."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.4.0.0.json").write_text(json.dumps(config | {"rms_norm_eps": 1.0}))
    (folder / "config.json").write_text(json.dumps(config | {"configuration_files": ["config.4.0.0.json"]}))


def with_a_distributed_shard(folder):
    """Put a shard of a distributed checkpoint beside the weights, which transformers loads in place of them."""
    shutil.copy(folder / "model.safetensors", folder / "shard-00001-model-00001-of-00001.safetensors")


ADDITIONS = {
    with_an_adapter: ("holds an adapter (adapter_config.json)", "merge it into them"),
    with_other_weights: ("transformers_weights", "put it in place of the usual file"),
    with_another_configuration: ("configuration_files", "put it in place of the usual file"),
    with_a_distributed_shard: ("holds shard-00001-model-00001-of-00001.safetensors", "or remove the shards"),
}


@pytest.mark.parametrize(("add", "words"), ADDITIONS.items(), ids=lambda one: getattr(one, "__name__", ""))
def test_what_transformers_would_load_beside_the_hashed_files_is_refused(folder, add, words):
    """Wherever the folder is read, since a file may come between two cells of a run."""
    add(folder)
    refused(folder, *words)
    for read in (
        pretrained.make_shell,
        pretrained.load_tokenizer,
        pretrained.sha256_of_weights,
        pretrained.sha256_of_config,
    ):
        with pytest.raises(UserError, match=re.escape(words[0])):
            read(str(folder))
    with pytest.raises(UserError, match=re.escape(words[0])):
        pretrained.load(str(folder), CPU, torch.float32)


@pytest.mark.parametrize("add", [with_an_adapter, with_a_distributed_shard])
def test_what_transformers_would_load_beside_the_hashed_files_of_a_saved_model_is_refused(add, tmp_path):
    model = Decoder(tiny("llama", layers=2, vocab_size=260))
    save_load.save(model, tmp_path / "saved", tokenizer=byte_tokenizer())
    add(tmp_path / "saved")
    for read in (pretrained.check, save_load.load):
        with pytest.raises(UserError, match=re.escape(ADDITIONS[add][0])):
            read(str(tmp_path / "saved"))


def test_an_adapter_on_the_hub_is_refused_before_it_is_downloaded(hub, tmp_path):
    with_an_adapter(hub.folder)
    hub.files = sorted(file.name for file in hub.folder.iterdir())
    refused("nobody/else", "nobody/else on the hub holds an adapter", "merge it into them")
    assert not (tmp_path / "downloaded").exists()


@pytest.mark.parametrize("elsewhere", ["../parts/{}", "/etc/{}", "parts/{}", "..\\parts\\{}", "C:{}", "..", ""])
def test_weights_lie_in_the_folder_that_names_them(folder, elsewhere):
    """An index may name files of its own folder alone, or records would stand on weights that lie anywhere."""
    tiny("llama", layers=2, vocab_size=260, seed=1).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    pretrained.check(str(folder))
    shutil.copytree(folder, folder.with_name("parts"))
    index = folder / "model.safetensors.index.json"
    plain = json.loads(index.read_text())
    plain["weight_map"] = {name: elsewhere.format(file) for name, file in plain["weight_map"].items()}
    index.write_text(json.dumps(plain))
    refused(folder, f"{index} names", "may name files of its own folder alone")
    with pytest.raises(UserError, match="files of its own folder alone"):
        pretrained.sha256_of_weights(str(folder))


def test_a_saved_model_is_loaded_from_the_files_of_its_manifest(tmp_path):
    """An index that names others, which the manifest does not cover, is refused."""
    for seed, name in enumerate(("saved", "other")):
        model = Decoder(tiny("llama", layers=2, vocab_size=260, seed=seed))
        save_load.save(model, tmp_path / name, tokenizer=byte_tokenizer(), shard_bytes=20_000)
    index = tmp_path / "saved" / "model.safetensors.index.json"
    plain = json.loads(index.read_text())
    for elsewhere in ("../other/{}", "else.safetensors"):
        weights = {name: elsewhere.format(file) for name, file in plain["weight_map"].items()}
        index.write_text(json.dumps(plain | {"weight_map": weights}))
        for read in (save_load.load, pretrained.check):
            with pytest.raises(UserError, match=r"which its index names|index.json names "):
                read(str(tmp_path / "saved"))


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
    assert pretrained.resolve_dtype("auto", CPU, is_here=here) == dtype
    assert pretrained.resolve_dtype("float32", CPU, is_here=here) == torch.float32


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
    assert pretrained.name_of_model("smollm2-135m") == "SmolLM2-135M-Instruct"
    shell = pretrained.make_shell("smollm2-135m")
    assert sum(parameter.numel() for parameter in shell.parameters()) == 134_515_008
    assert not hasattr(model.config, "quantization_config")
    prompt = tokenizer("The Eiffel Tower is located in the city of", return_tensors="pt")
    ids = model.generate(**prompt, max_new_tokens=4, do_sample=False)
    assert tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :]) == " Paris, France."
    assert model.float() is model


def test_code_that_comes_with_a_model_is_hashed_where_it_may_run(model_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    plain, trusted = (pretrained.sha256_of_config(str(folder), trust) for trust in (False, True))
    assert plain == trusted  # there is none
    (folder / "modeling_mine.py").write_text("A = 1\n")
    first = pretrained.sha256_of_config(str(folder), True)
    (folder / "modeling_mine.py").write_text("A = 2\n")
    assert len({plain, first, pretrained.sha256_of_config(str(folder), True)}) == 3
    assert pretrained.sha256_of_config(str(folder)) == plain
