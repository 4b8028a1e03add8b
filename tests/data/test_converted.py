"""A GGUF file is unpacked once on a machine, and what is loaded from then on is what the file itself gives."""

import errno
import json
import threading
from unittest.mock import Mock

import gguf
import pytest
import torch
from conftest import tiny
from safetensors import SafetensorError
from tokenizers import normalizers
from transformers import AutoTokenizer, PreTrainedModel, Qwen2Config, Qwen2Tokenizer
from uneven_models import bpe, uneven

from bench.data import conversion, converted, pretrained
from bench.data import gguf as gguf_reader
from bench.export import gguf_file
from bench.runs.inputs import sha256_of_tokenizer
from methods.errors import CheckpointError, UserError
from methods.files import hash_file
from methods.model.decoder import Decoder

CPU = torch.device("cpu")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty folder for conversions."""
    monkeypatch.setattr(converted, "place_of_folders", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture(params=["llama", "deci"])
def file(request, tmp_path):
    """A GGUF file that transformers reads, or one that it does not."""
    model = Decoder(tiny("llama", layers=2, vocab_size=260)) if request.param == "llama" else uneven("llama")
    gguf_file.write_gguf(model, bpe(), tmp_path / "model.gguf", torch.float16, "tiny")
    return tmp_path / "model.gguf"


@pytest.fixture
def llama(tmp_path):
    """A GGUF file that transformers reads."""
    gguf_file.write_gguf(
        Decoder(tiny("llama", layers=2, vocab_size=260)), bpe(), tmp_path / "model.gguf", torch.float32, "tiny"
    )
    return tmp_path / "model.gguf"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_what_is_converted_is_what_the_file_gives(file, cache, dtype, ids):
    """To the last bit, and under the same hashes, so that records of the file count as before."""
    direct, words = gguf_reader.load(file, dtype)
    for _ in range(2):  # converted, and found
        model, tokenizer = pretrained.load(str(file), CPU, dtype)
        state, expected = model.state_dict(), direct.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in expected)
        with torch.no_grad():
            assert torch.equal(model(ids).logits, direct.eval()(ids).logits)
        assert type(model) is type(direct)
        assert sha256_of_tokenizer(tokenizer) == sha256_of_tokenizer(words)
    assert pretrained.sha256_of_weights(str(file)) == hash_file(file)
    assert pretrained.sha256_of_config(str(file)) is pretrained.dtype_of_weights(str(file)) is None


def test_a_file_is_read_once(file, cache, monkeypatch, capsys):
    pretrained.check(str(file))
    pretrained.make_shell(str(file))
    assert capsys.readouterr().err == "converting model.gguf to float32 safetensors, once\n"
    opened = Mock(side_effect=AssertionError("the file was opened as GGUF"))
    monkeypatch.setattr(gguf.GGUFReader, "__init__", opened)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", without_gguf("transformers.AutoConfig"))
    for read in (
        pretrained.make_shell,
        pretrained.load_tokenizer,
        pretrained.sha256_of_weights,
        pretrained.sha256_of_config,
    ):
        read(str(file))
    pretrained.load(str(file), CPU, torch.bfloat16)
    pretrained.load(str(file), CPU, torch.float32)
    assert opened.call_count == 0
    assert capsys.readouterr().err == ""


def without_gguf(kind):
    """`from_pretrained` of a class, which may not be asked for a GGUF file."""
    whole = pytest.importorskip("transformers").AutoConfig.from_pretrained

    def from_pretrained(*given, **options):
        assert "gguf_file" not in options
        return whole(*given, **options)

    return from_pretrained


def test_what_lies_beside_a_file_has_no_part_in_it(llama, cache):
    from peft import LoraConfig, get_peft_model

    expected, words = gguf_reader.load(llama, torch.float32)
    adapted = LoraConfig(r=2, target_modules=["down_proj"], init_lora_weights=False)
    get_peft_model(tiny("llama", layers=2, vocab_size=260), adapted).save_pretrained(llama.parent)
    (llama.parent / "tokenizer_config.json").write_text(json.dumps({"bos_token": "x", "chat_template": "y"}))
    model, tokenizer = pretrained.load(str(llama), CPU, torch.float32)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in expected.state_dict().items())
    assert sha256_of_tokenizer(tokenizer) == sha256_of_tokenizer(words)
    assert tokenizer.chat_template == words.chat_template


def test_another_content_and_another_reader_have_another_folder(llama, cache, monkeypatch):
    first = converted.folder_of_gguf(llama)
    gguf_file.write_gguf(
        Decoder(tiny("llama", layers=2, vocab_size=260, seed=1)), bpe(), llama.with_name("new"), torch.float32, "tiny"
    )
    llama.with_name("new").replace(llama)
    second = converted.folder_of_gguf(llama)
    monkeypatch.setattr(converted.metadata, "version", lambda _: "99")
    assert len({first, second, converted.path_of_folder(llama)}) == 3


def test_a_conversion_that_was_damaged_is_made_again(llama, cache):
    weights = converted.folder_of_gguf(llama) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    model, _ = pretrained.load(str(llama), CPU, torch.float32)
    assert weights.read_bytes() == whole
    assert torch.equal(model.lm_head.weight, gguf_reader.load(llama, torch.float32)[0].lm_head.weight)


def test_an_interrupt_leaves_nothing(llama, cache, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(gguf_reader, "save_tokenizer", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pretrained.make_shell(str(llama))
    assert list(cache.iterdir()) == []
    assert pretrained.load(str(llama), CPU, torch.float32)[0].config.num_hidden_layers == 2
    assert [path.name for path in cache.iterdir()] == [converted.path_of_folder(llama).name]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["file", "safetensors"],
)
def test_a_full_disk_is_named_with_its_folder(llama, cache, monkeypatch, error):
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", Mock(side_effect=error))
    with pytest.raises(
        UserError, match=r"no space left for .*model.gguf.* in .*; make room, or name another"
    ) as caught:
        pretrained.load(str(llama), CPU, torch.float32)
    assert str(cache) in str(caught.value)
    assert list(cache.iterdir()) == []


def test_two_conversions_at_once_both_succeed(llama, cache, monkeypatch):
    together, in_turn, write, folders = threading.Barrier(2, timeout=20), threading.Lock(), conversion.write_folder, []

    def at_once(*given):
        with in_turn:  # transformers makes no two models in the threads of one process
            write(*given)
        together.wait()

    monkeypatch.setattr(conversion, "write_folder", at_once)
    threads = [threading.Thread(target=lambda: folders.append(converted.folder_of_gguf(llama))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders == [converted.path_of_folder(llama)] * 2
    assert [path.name for path in cache.iterdir()] == [folders[0].name]


def test_a_file_that_is_no_model_is_named_and_leaves_nothing(llama, cache):
    llama.write_bytes(llama.read_bytes()[:5000])
    for read in (pretrained.make_shell, pretrained.load_tokenizer):
        with pytest.raises(UserError, match=f"^{llama} cannot be read as GGUF: .*; copy or convert it again"):
            read(str(llama))
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    ("rule", "added", "comes_back"),
    [(None, "NFC", True), (None, "another", False), (normalizers.Lowercase(), "NFC", False)],
    ids=["composed", "another rule", "a rule of its own"],
)
def test_a_class_that_transformers_insists_on_may_compose_text_and_nothing_else(
    rule, added, comes_back, tmp_path, monkeypatch
):
    monkeypatch.setitem(gguf_reader.NFC, "type", added)  # the rule that may be added; Qwen2's class adds NFC
    rules = json.loads(bpe().backend_tokenizer.to_str())["model"]
    stored = Qwen2Tokenizer(vocab=rules["vocab"], merges=[tuple(pair) for pair in rules["merges"]])
    stored.backend_tokenizer.normalizer = rule
    Qwen2Config(vocab_size=len(stored)).save_pretrained(tmp_path)  # of which transformers takes Qwen2's own class
    if not comes_back:
        with pytest.raises(CheckpointError, match="its tokenizer does not come back as it was stored"):
            gguf_reader.save_tokenizer(stored, tmp_path, tmp_path / "model.gguf")
        return
    gguf_reader.save_tokenizer(stored, tmp_path, tmp_path / "model.gguf")
    again = AutoTokenizer.from_pretrained(tmp_path)
    composed, apart = "th\u00e9", "the\u0301"
    assert again(composed).input_ids == again(apart).input_ids == stored(composed).input_ids
    assert stored(apart).input_ids != stored(composed).input_ids
