"""Token blocks: every token once, no document on both sides, the same block every time."""

import math
import re
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from byte_tokens import byte_tokenizer
from pages import text as read_page

from bench.data import assets, pretrained, texts
from bench.data import texts as hub_texts
from methods.errors import UserError

DOCUMENTS = [f"document {number:02d} says: {chr(ord('a') + number) * 20}" for number in range(20)]


@pytest.fixture
def file(tmp_path):
    """A text of 20 documents of 38 bytes, each with a letter of its own."""
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(DOCUMENTS) + "\n", encoding="utf-8")
    return str(path)


def test_calibration_and_evaluation_share_no_document(file):
    tokenizer = byte_tokenizer()
    seen = texts.make_calibration(tokenizer, file, sequences=10, length=40, seed=0)
    held_out = texts.make_evaluation_text(tokenizer, file, window=40, stride=40, windows=0)
    calibration, evaluation = tokenizer.decode(seen.ids.flatten()), tokenizer.decode(held_out.ids.flatten())
    assert [document in calibration for document in DOCUMENTS] == [True, False] * 10
    assert [document in evaluation for document in DOCUMENTS] == [False, True] * 10


def test_another_text_is_evaluated_whole_and_as_it_stands(file):
    """Every document, every white space, in one piece; a text on both sides is halved."""
    tokenizer = byte_tokenizer()
    everything = texts.make_evaluation_text(tokenizer, file, window=40, stride=40, windows=0, whole=True)
    content = "\n\n".join(DOCUMENTS) + "\n"
    assert tokenizer.decode(everything.ids.flatten()) == content[: everything.ids.numel()]
    assert len(content) - everything.ids.numel() < 40
    with pytest.raises(UserError, match=r"has 799 tokens for evaluation, but 1200 are needed"):
        texts.make_evaluation_text(tokenizer, file, 40, 40, 30, whole=True)


def test_the_beginning_of_a_whole_text_is_enough_for_the_first_windows(file, monkeypatch):
    tokenizer, read = byte_tokenizer(), []
    tokenise = texts._tokenise
    monkeypatch.setattr(texts, "_tokenise", lambda *args: read.append(len(args[1][0])) or tokenise(*args))
    first = texts.make_evaluation_text(tokenizer, file, window=20, stride=20, windows=2, whole=True)
    assert read == [16 * 40]
    assert torch.equal(first.ids, texts.make_evaluation_text(tokenizer, file, 20, 20, 0, whole=True).ids[:2])
    monkeypatch.setattr(texts, "LONGEST", 1)  # too little: it is read again, whole
    read.clear()
    again = texts.make_evaluation_text(tokenizer, file, window=20, stride=20, windows=2, whole=True)
    assert again.sha256 == first.sha256


def test_which_texts_are_whole(tmp_path):
    mine, other = str(tmp_path / "a.txt"), str(tmp_path / "b.txt")
    assert texts.is_whole(mine, "c4")
    assert texts.is_whole(mine, other)
    assert not texts.is_whole(mine, str(tmp_path / "folder" / ".." / "a.txt"))
    assert not texts.is_whole("wiki", "c4")
    assert texts.is_whole("hub:a/b:c", "wiki")
    assert texts.is_whole("hub:a/b:c", "hub:a/b:c:train")
    assert not texts.is_whole("hub:a/b:c", "hub:a/b:c:test")


def test_words_are_those_of_the_scored_text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("  one two\nthree\u00a0four—five  six\n\n\nseven 東京 eight", encoding="utf-8")
    content = path.read_text(encoding="utf-8")
    for window in (4, 7, len(content.encode())):
        block = texts.make_evaluation_text(byte_tokenizer(bos=True), str(path), window + 1, window + 1, 0, whole=True)
        scored = content.encode()[: block.tokens].decode(errors="ignore")
        assert block.words == len(scored.split())


def test_a_repeated_document_counts_once(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("first\n\nfirst\n\nsecond\n\n\n  \nsecond\n\nfirst", encoding="utf-8")
    assert texts._documents(str(path)) == ["first", "second"]


@pytest.mark.default_model
@pytest.mark.parametrize("text", assets.TEXTS)
def test_the_sides_of_the_known_texts_are_disjoint_and_alike_in_size(text):
    calibration, evaluation = texts.split_halves(text)
    assert not set(calibration) & set(evaluation)
    assert 0.67 < sum(map(len, calibration)) / sum(map(len, evaluation)) < 1.5
    assert not any("<doc " in document or "</doc>" in document for document in (*calibration, *evaluation))


@pytest.mark.default_model
def test_the_known_texts_begin_as_they_should():
    assert texts._documents("wiki")[0].startswith("2007 European Parliament election in Romania\n\nRomania elected")
    assert texts._documents("c4")[0].startswith("Restore from larger disk to smaller disk | MacRumors Forums")
    assert texts._documents("stories")[1].startswith("Once upon a time, there was a little car named Beep.")
    counts = {"wiki": 2349, "c4": 113, "code": 56, "technical": 13, "multilingual": 117, "stories": 317}
    assert {text: len(texts._documents(text)) for text in assets.TEXTS} == counts
    for text, count in counts.items():
        assert f"{count:,} " in assets.TEXTS[text].description


@pytest.mark.default_model
def test_what_is_said_of_the_pages_of_c4():
    """Menus and lists have fewer than two ends of sentences in 100 words; C4 keeps lines that end as sentences do."""
    pages = list(dict.fromkeys(page for page in assets.read_text("c4") if page.strip()))
    ends = [100 * len(re.findall(r"[.!?][\"')\]]?(?=\s|$)", page)) / len(page.split()) for page in pages]
    lists = [page for page, share in zip(pages, ends, strict=True) if share < 2]
    words = [sum(len(page.split()) for page in each) for each in (lists, pages)]
    guide = read_page("docs/reference/inputs.md")
    assert (len(pages), len(lists)) == (113, 7)
    assert "of 113 web pages. Seven of them are menus and lists, one in Chinese" in guide
    assert f"with {100 * words[0] / words[1]:.0f} % of the words" in guide
    assert "113 web pages, seven of them menus and lists" in assets.TEXTS["c4"].description


@pytest.mark.default_model
def test_what_is_said_of_the_tokens_for_calibration():
    tokenizer = pretrained.load_tokenizer("smollm2-135m")
    for text, offer in assets.TEXTS.items():
        documents = texts._with_separators(texts.split_halves(text)[0])
        count = len(texts._tokenise(tokenizer, documents, None)[0])
        assert offer.description.endswith(f", {count:,} tokens for calibration")


@pytest.mark.default_model
@pytest.mark.parametrize("text", assets.FIRST_LINES)
def test_documents_without_a_mark_between_them_are_whole_paragraphs(text):
    """Each begins behind a blank line, or in `multilingual` with a line that is a text of its own."""
    lines = assets.fetch_text(text).read_text(encoding="utf-8").split("\n")
    for first in assets.FIRST_LINES[text][1:]:
        assert lines[first - 1].strip()
        assert text == "multilingual" or not lines[first - 2].strip() or lines[first - 1].startswith("module j")
    beginnings = {
        "code": ("class PromptFormat:", "To understand this example, you should"),
        "technical": ("Philosophy of mind is a branch", "VBScript ("),
        "multilingual": ("Het zonnestelsel is het planetenstelsel", "Die Sonnestelsel bestaan"),
    }
    for beginning in beginnings[text]:
        assert any(document.startswith(beginning) for document in texts._documents(text))


def test_calibration_is_the_same_for_the_same_seed(file):
    one, two, other = (texts.make_calibration(byte_tokenizer(), file, 4, 32, seed) for seed in (0, 0, 1))
    assert one.ids.shape == (4, 32)
    assert one.ids.dtype == torch.long
    assert one.mask.all()
    assert torch.equal(one.ids, two.ids)
    assert one.sha256 == two.sha256 != other.sha256
    assert (one.source, one.seed) == (file, 0)


@pytest.mark.parametrize(("bos", "policy"), [(False, "none"), (True, "every window")])
def test_bos_begins_every_sequence_if_the_tokenizer_adds_it(file, bos, policy):
    block = texts.make_calibration(byte_tokenizer(bos), file, 4, 32, 0)
    held_out = texts.make_evaluation_text(byte_tokenizer(bos), file, 32, 32, 4)
    assert held_out.bos == policy
    for ids in (block.ids, held_out.ids):
        assert (ids == 1).sum() == 4 * bos
        assert ((ids[:, 0] == 1) == bos).all()


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("stride", [8, 20, 31, 32])
def test_every_token_is_scored_once(file, bos, stride):
    tokenizer = byte_tokenizer(bos)
    block = texts.make_evaluation_text(tokenizer, file, window=32, stride=stride, windows=0)
    text = "".join(document + "\n\n" for document in DOCUMENTS[1::2])
    expected = tokenizer(text, add_special_tokens=False)["input_ids"]
    scored = block.ids[block.scored].tolist()
    assert not block.scored[:, 0].any()
    assert block.tokens == len(scored) == block.scored.sum()
    if bos or stride < 32:
        start = 0 if bos else 1  # without BOS nothing predicts the very first token
        assert scored == expected[start : start + len(scored)]
        assert len(expected) - len(scored) < 32
    else:
        assert scored == [token for position, token in enumerate(expected[: block.ids.numel()]) if position % 32]


def test_strides_give_each_scored_token_the_longest_context(file):
    block = texts.make_evaluation_text(byte_tokenizer(), file, window=32, stride=8, windows=3)
    assert block.scored[0].tolist() == [False] + [True] * 31
    assert block.scored[1].tolist() == block.scored[2].tolist() == [False] * 24 + [True] * 8
    assert torch.equal(block.ids[0, 8:], block.ids[1, :-8])


def test_bytes_are_those_of_the_scored_text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("left out\n\nnaïve café — déjà vu, 東京", encoding="utf-8")
    block = texts.make_evaluation_text(byte_tokenizer(bos=True), str(path), window=8, stride=8, windows=0)
    tokens = len(("naïve café — déjà vu, 東京" + texts.SEPARATOR).encode()) // 7 * 7
    assert block.tokens == tokens
    assert block.bytes == pytest.approx(tokens, abs=2)  # a window may end inside a character


@pytest.mark.default_model
def test_bytes_of_real_tokens_are_those_of_the_decoded_text():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(assets.fetch_model("smollm2-135m"))
    block = texts.make_evaluation_text(tokenizer, "wiki", window=512, stride=512, windows=8)
    decoded = sum(len(tokenizer.decode(ids[1:]).encode()) for ids in block.ids)
    assert block.tokens == 8 * 511
    assert block.bytes == pytest.approx(decoded, abs=8)
    assert block.bos == "none"


def test_windows_are_the_first_ones_or_a_draw(file, monkeypatch):
    everything, first = (texts.make_evaluation_text(byte_tokenizer(), file, 32, 32, windows) for windows in (0, 3))
    fewer, more = (
        texts.make_evaluation_text(byte_tokenizer(), file, 32, 32, windows, drawn=True) for windows in (3, 6)
    )
    rows = [tuple(row) for row in everything.ids.tolist()]
    assert torch.equal(first.ids, everything.ids[:3])
    assert (first.drawn, everything.drawn, more.drawn) == (False, False, True)
    positions = [rows.index(tuple(row)) for row in more.ids.tolist()]
    assert len(set(positions)) == 6
    assert positions != sorted(positions)  # so that the first of them are a draw too
    chosen = texts._choose(1000, 100, drawn=True)
    assert np.mean(chosen) == pytest.approx(499.5, abs=3 * 1000 / math.sqrt(12 * 100))
    assert abs(np.corrcoef(chosen[:-1], chosen[1:])[0, 1]) < 0.3  # neighbours of a draw are none of the text
    assert torch.equal(fewer.ids, more.ids[:3])
    assert fewer.tokens == 3 * 32 - 3  # the first of each window is not scored
    monkeypatch.setattr(texts, "REACH", 6)
    near = texts.make_evaluation_text(byte_tokenizer(), file, 32, 32, 3, drawn=True)
    assert {rows.index(tuple(row)) for row in near.ids.tolist()} < set(range(6))


@pytest.mark.parametrize("windows", [0, 12])
def test_a_draw_of_all_windows_is_the_text_in_its_order(file, windows):
    everything = texts.make_evaluation_text(byte_tokenizer(), file, 32, 32, 0)
    assert len(everything.ids) == 12
    drawn = texts.make_evaluation_text(byte_tokenizer(), file, 32, 32, windows, drawn=True)
    assert (drawn.sha256, drawn.drawn) == (everything.sha256, False)


def test_a_text_that_is_too_short_says_how_many_tokens_it_has(file):
    with pytest.raises(UserError, match=r"has 400 tokens for calibration .* 20 x 40 = 800 were asked for"):
        texts.make_calibration(byte_tokenizer(), file, 20, 40, 0)
    with pytest.raises(UserError, match=r"has 400 tokens for evaluation .* 480 are needed for 15 windows of 32"):
        texts.make_evaluation_text(byte_tokenizer(), file, 32, 32, 15)
    with pytest.raises(UserError, match="512 are needed for 1 windows"):
        texts.make_evaluation_text(byte_tokenizer(), file, 512, 512, 0)


def test_a_tokenizer_without_offsets_is_refused(file):
    class Slow:
        is_fast = False
        bos_token_id = None

        def __call__(self, text):
            return {"input_ids": [5]}

    with pytest.raises(UserError, match="fast tokenizer"):
        texts.make_evaluation_text(Slow(), file, 8, 8, 1)


def test_check_names_what_is_known(file):
    for text in (*assets.TEXTS, file):
        texts.check_text(text)
    with pytest.raises(
        UserError, match=r"no text 'wikki'; did you mean wiki\? give wiki, c4, code, .* a UTF-8 file or hub:"
    ):
        texts.check_text("wikki")
    with pytest.raises(UserError, match="no text"):
        texts.check_text("nowhere.txt")


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not UTF-8 text"):
        texts.make_calibration(byte_tokenizer(), str(path), 1, 8, 0)


def test_a_file_that_cannot_be_read_is_refused_when_it_is_asked_for_and_when_it_is_used(tmp_path, monkeypatch):
    """One whose name is too long for the system, one that goes before it is used, and one that it does not open."""
    with pytest.raises(UserError, match="cannot be read: File name too long"):
        texts.check_text("x" * 5000)
    with pytest.raises(UserError, match=r"gone\.txt cannot be read: No such file or directory"):
        texts.split_halves(str(tmp_path / "gone.txt"))
    file = tmp_path / "text.txt"
    file.write_text("text")
    texts.check_text(str(file))
    monkeypatch.setattr(Path, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        texts.check_text(str(file))


@pytest.mark.parametrize("text", ["hub:", "hub:a:b:c:d"])
def test_a_hub_text_has_three_parts_at_most(text):
    with pytest.raises(UserError, match="is written hub:DATASET"):
        texts.check_text(text)


@pytest.mark.parametrize(
    ("text", "parts"),
    [("hub:a/b", ("a/b", None, "test")), ("hub:a/b:c", ("a/b", "c", "test")), ("hub:a/b::d", ("a/b", None, "d"))],
)
def test_parts_of_a_hub_text(text, parts):
    assert hub_texts.parse_hub_text(text) == parts


def test_a_hub_text_out_of_reach_is_one_line():
    with pytest.raises(UserError, match="hub is out of reach and its cache has no such data") as caught:
        texts.check_text("hub:nobody/nothing")
    assert "\n" not in str(caught.value)


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """A dataset of two rows in the place of what the hub would give."""
    import datasets

    rows = datasets.Dataset.from_dict({"text": ["one", "", "two"], "number": [1, 2, 3]})
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, split: asked.append((*names, split)) or rows)
    return asked


def test_a_whole_hub_text_is_its_rows_joined(dataset):
    assert texts._content("hub:a/b:c:test") == "one\n\n\n\ntwo"


def test_rows_of_a_hub_text_are_its_documents(dataset):
    assert texts._documents("hub:a/b:c:train") == ["one", "two"]
    assert dataset == [("a/b", "c", "train")]


def test_a_hub_text_without_text_names_its_columns(dataset, monkeypatch):
    import datasets

    rows = datasets.Dataset.from_dict({"sentence": ["one"]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, split: rows)
    with pytest.raises(UserError, match="has no column text; it has sentence"):
        texts._documents("hub:a/b")


@pytest.fixture
def sized(tmp_path, monkeypatch):
    """A data set of the hub that takes 7 MB as fetched and 20 as kept, of which the split `test` is 5."""
    import datasets

    splits = {"test": SimpleNamespace(num_bytes=5 * 10**6)}
    info = SimpleNamespace(download_size=7 * 10**6, dataset_size=20 * 10**6, splits=splits)
    builder = SimpleNamespace(info=info, cache_dir=str(tmp_path / "kept" / "here"))
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda dataset, config: builder)
    monkeypatch.setattr(assets, "is_hub_reachable", lambda: True)
    room = SimpleNamespace(builder=builder, disk=10**9, memory=10**9)
    monkeypatch.setattr(hub_texts.shutil, "disk_usage", lambda folder: SimpleNamespace(free=room.disk))
    monkeypatch.setattr("bench.system.memory.free_bytes_of_host", lambda: room.memory)
    hub_texts._sizes.cache_clear()
    yield room
    hub_texts._sizes.cache_clear()


def test_how_large_a_hub_text_is_stands_before_any_work_and_is_said_once(sized, capsys):
    for _ in range(2):
        texts.check_text("hub:a/b")
    assert capsys.readouterr().err.count("hub:a/b is fetched whole, and takes 27.0 MB of the disk") == 1


@pytest.mark.parametrize(
    ("text", "room", "words"),
    [
        ("hub:a/b", {"disk": 26 * 10**6}, "takes 0.0 GB of the disk, of which 0.0 are free; give a file"),
        ("hub:a/b", {"memory": 9 * 10**6}, "of the memory"),
        ("hub:a/b:c:train", {"memory": 9 * 10**6}, None),  # of whose size nothing is said
        ("hub:a/b", {"disk": 27 * 10**6, "memory": 10**7}, None),
    ],
)
def test_a_hub_text_for_which_there_is_no_room_is_refused(sized, text, room, words):
    vars(sized).update(room)
    with pytest.raises(UserError, match=words) if words else nullcontext():
        texts.check_text(text)


def test_a_hub_text_that_is_kept_already_takes_no_more_of_the_disk(sized, tmp_path, capsys):
    (tmp_path / "kept" / "here").mkdir(parents=True)
    sized.disk = 0
    texts.check_text("hub:a/b")
    assert capsys.readouterr().err == ""


def test_a_hub_that_does_not_say_how_large_a_text_is_refuses_nothing(sized):
    sized.builder.info = SimpleNamespace(download_size=None, dataset_size=None, splits=None)
    sized.disk = sized.memory = 0
    texts.check_text("hub:a/b")


def test_a_data_set_that_the_hub_has_not_is_refused_before_any_work(sized, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_: 1 / 0)
    with pytest.raises(UserError, match=r"cannot read hub:a/b: the hub does not give it \(division by zero"):
        texts.check_text("hub:a/b")
