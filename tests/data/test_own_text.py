"""Text that the dense model writes: the same for the same seed, kept, and of more tokens a continuation of fewer."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from bench.cli.main import main
from bench.data import own_text, pretrained
from bench.data.own_text import Author, read_tokens, write_tokens
from bench.records.run_folder import load_run
from bench.runs.calibration import OwnTexts
from methods.errors import UserError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(own_text, "BATCH", 4)
    monkeypatch.setattr(own_text, "LONGEST", 12)
    return tmp_path / "cache/own-text"


@pytest.fixture
def author(model_folder):
    return Author(str(model_folder), torch.device("cpu"), torch.float32, trust_remote_code=False, seed=3)


@pytest.fixture
def tokenizer(model_folder):
    return pretrained.load_tokenizer(str(model_folder))


def test_more_tokens_go_on_from_fewer_and_what_is_kept_is_read(cache, author, tokenizer, monkeypatch, capsys):
    fewer = write_tokens(author, tokenizer, (), 20)
    assert len(fewer) == 20 and len(set(fewer)) > 4
    assert "writes 20 tokens, once; they are kept in" in capsys.readouterr().err
    more = write_tokens(author, tokenizer, (), 150)
    assert more[:20] == fewer
    files = sorted(cache.rglob("*.safetensors"))
    assert len(files) > 1
    shutil.rmtree(cache)
    assert write_tokens(author, tokenizer, (), 150) == more, "written at once it is the same text"
    monkeypatch.setattr(pretrained, "load", lambda *_, **__: pytest.fail("no model is loaded for what is kept"))
    assert write_tokens(author, tokenizer, (), 150) == more
    assert read_tokens(author, tokenizer, (), 10**6)[:150] == more


def test_the_rest_behind_what_is_kept_is_as_if_written_at_once(cache, author, tokenizer):
    every = write_tokens(author, tokenizer, (), 120)
    for file in sorted(cache.rglob("*.safetensors"))[1:]:
        file.unlink()
    assert write_tokens(author, tokenizer, (), 120) == every
    first = min(cache.rglob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-8] + b"\1" * 8)
    assert read_tokens(author, tokenizer, (), 120) == [], "a file with another sha256 counts as missing"
    assert write_tokens(author, tokenizer, (), 120) == every


def test_another_seed_writes_another_text_and_torch_draws_on_as_before(cache, author, tokenizer):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    one, other = (write_tokens(replace(author, seed=seed), tokenizer, (), 40) for seed in (0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert one != other


def test_questions_are_a_part_of_the_text_and_begin_again_when_they_are_used_up(cache, author, tokenizer):
    """Each of the documents is a question with at most LONGEST tokens behind it."""
    words = [word for word in tokenizer.get_vocab() if not word.startswith("<")][:9]
    questions = [" ".join(words[:3]), " ".join(words[3:5]), " ".join(words[5:9])]
    ids = [tokenizer(question)["input_ids"] for question in questions]
    tokens = write_tokens(author, tokenizer, questions, 80)
    batch = own_text._read_batch(min(cache.rglob("*.safetensors")).parent, 0)
    assert tokens[: len(batch)] == batch
    position = 0
    for question in (*ids, ids[0]):
        assert batch[position : position + len(question)] == question
        end = position + len(question) + own_text.LONGEST
        written = batch[position + len(question) : end]
        if tokenizer.eos_token_id in written:
            written = written[: written.index(tokenizer.eos_token_id) + 1]
        position += len(question) + len(written)
    assert position == len(batch)


def test_a_prompt_is_continued_with_the_model_s_own_likelihoods(cache, author, tokenizer):
    """Of many documents that begin alike, the first tokens are as frequent as the model has them likely."""
    model, _ = pretrained.load(author.model, author.device, author.dtype)
    with torch.no_grad():
        likely = model(input_ids=torch.tensor([[tokenizer.bos_token_id]])).logits[0, -1].softmax(-1)
    torch.manual_seed(0)
    documents = [own_text._sample(model, tokenizer, [([tokenizer.bos_token_id], [])] * 200) for _ in range(10)]
    firsts = torch.tensor([document[0] for batch in documents for document in batch])
    shares = torch.bincount(firsts, minlength=len(likely)) / len(firsts)
    assert (shares - likely).abs().max() < 4 * (likely * (1 - likely) / len(firsts)).sqrt().max()
    assert all(len(document) <= own_text.LONGEST for batch in documents for document in batch)


def test_an_empty_line_stands_behind_a_document_that_the_model_has_not_ended(cache, author, tokenizer, monkeypatch):
    model, _ = pretrained.load(author.model, author.device, author.dtype)
    gap = tokenizer.convert_tokens_to_ids(["<unk>"])
    rows = torch.tensor([[0, 7, tokenizer.eos_token_id, 0], [0, 7, 8, 9]])
    monkeypatch.setattr(model, "generate", lambda **_: rows)
    prompts = [([tokenizer.bos_token_id], [])] * 2

    class Gapped(type(tokenizer)):
        def __call__(self, text, **_):
            return {"input_ids": gap} if text == "\n\n" else super().__call__(text)

    monkeypatch.setattr(tokenizer, "__class__", Gapped)
    assert own_text._sample(model, tokenizer, prompts) == [[7, tokenizer.eos_token_id], [7, 8, 9, *gap]]


def test_a_tokenizer_without_a_beginning_or_an_end_is_refused(author):
    class Bare:
        bos_token_id = eos_token_id = None

    with pytest.raises(UserError, match="begins with a BOS or an end-of-text token, and the tokenizer has neither"):
        write_tokens(author, Bare(), (), 5)


@pytest.fixture
def command(cache, model_folder, text_file, tmp_path):
    command = ["run", "--model", str(model_folder), "--methods", "shortgpt", "--ratio", "0.3", "--profile", "smoke"]
    command += ["--window", "64", "--windows", "2", "--calibration-sequences", "4", "--calibration-length", "16"]
    command += ["--texts", str(text_file), "--tasks", "none", "--no-checks", "--speed-rounds", "0", "--threads", "1"]
    return [*command, "--device", "cpu", "--calibration", "self,self:0.5,c4:0.5", "--out", str(tmp_path / "run")]


@pytest.mark.default_model
def test_a_run_calibrates_on_what_its_model_writes_and_a_plan_writes_nothing(command, cache, tmp_path, monkeypatch):
    real = cache.parent.parent / "real"
    monkeypatch.setattr("bench.data.assets.fetch_text", lambda name: real)
    real.write_text("\n".join(f"{'known words ' * 40}{number}" for number in range(40)), encoding="utf-8")
    assert main([*command, "--plan"]) == 0
    assert not cache.exists() and not (tmp_path / "run").exists()
    assert main(command) == 0
    records = {record.cell.protocol.calibration: record for record in load_run(tmp_path / "run") if record.cell.ratio}
    assert records.keys() == {"self", "self:0.5,c4:0.5"}
    blocks = [record.decisions["calibration"] for record in records.values()]
    assert len({block["sha256"] for block in blocks}) == 2
    export = ["export", str(tmp_path / "run"), records["self"].cell.key, "--to", str(tmp_path / "model")]
    assert main([*export, "--trust", command[2]]) == 0


def test_a_model_that_lies_in_memory_layer_by_layer_writes_no_text(command, capsys, cache, monkeypatch):
    monkeypatch.setattr("bench.runs.calibration.room_of", lambda memory: 1000)
    assert main(command) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "prunebench: --calibration self is written by the whole model in memory, and " in lines[0]
    assert not cache.exists()


def test_what_is_kept_needs_no_room(cache, author, tokenizer, monkeypatch):
    tokens = write_tokens(author, tokenizer, (), 30)
    cell = SimpleNamespace(model=author.model, device="cpu:0", dtype="float32", trust_remote_code=False, seed=3)
    assert OwnTexts(memory=1e-9).draw(cell, tokenizer, "self", 30) == tokens
    assert OwnTexts(may_write=False).draw(cell, tokenizer, "self", 500)[-1] == 0


def test_a_cache_that_takes_no_files_is_one_line(cache, author, tokenizer):
    if os.geteuid() == 0:
        cache.parent.write_text("no folder", encoding="utf-8")
    else:
        cache.parent.mkdir(mode=0o500)
    with pytest.raises(UserError) as caught:
        write_tokens(author, tokenizer, (), 5)
    assert "\n" not in str(caught.value)
