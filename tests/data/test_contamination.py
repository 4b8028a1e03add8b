"""What is fitted is not what is measured: texts under two names, halves of one text, and the texts that ship."""

from __future__ import annotations

import random
import re

import pytest
from byte_tokens import byte_tokenizer

from bench.cli.main import main
from bench.data import assets
from bench.data import texts as text_data
from bench.data.texts import PASSAGE, STEP, _find_passages, refuse_shared
from methods.errors import UserError
from methods.model.calibration import Calibration

WORDS = 300  # of a document; longer than a passage


def document(seed: int, words: int = WORDS) -> str:
    draw = random.Random(seed)
    return " ".join(f"w{draw.randrange(120)}" for _ in range(words))


def written(path, documents: list[str]) -> str:
    path.write_text("\n\n".join(documents), encoding="utf-8")
    return str(path)


def blocks(calibration: str, text: str, windows: int = 0) -> tuple[Calibration, list[text_data.EvaluationText]]:
    """2,000 characters of `calibration`, and the windows of `text`, a token per character."""
    tokenizer, whole = byte_tokenizer(bos=True), text_data.is_whole(text, calibration)
    block = text_data.make_calibration(tokenizer, calibration, 4, 501, 0)
    return block, [text_data.make_evaluation_text(tokenizer, text, 101, 101, windows, whole=whole)]


def refuse(calibration: str, text: str, windows: int = 0) -> None:
    block, texts = blocks(calibration, text, windows)
    refuse_shared(byte_tokenizer(bos=True), block.ids, block.source, texts, "calibrated on")


def test_a_copy_is_refused_however_it_is_broken_into_lines(tmp_path):
    documents = [document(seed) for seed in range(8)]
    one = written(tmp_path / "one.txt", documents)
    copy = written(tmp_path / "copy.txt", documents[::-1])
    with pytest.raises(UserError, match=r"one\.txt, which is calibrated on, is in part the text .*copy\.txt") as caught:
        refuse(one, copy)
    assert "\n" not in str(caught.value)
    other = written(tmp_path / "other.txt", [re.sub(r" (?=w\d5 )", "\n", text) for text in documents])
    with pytest.raises(UserError, match="give another text, or one name for both"):
        refuse(one, other)


class ReadOnce(str):
    """A text that nothing may search."""

    def __contains__(self, _passage: object) -> bool:
        raise AssertionError("a search for each passage reads the whole text each time")


def test_passages_are_found_as_by_a_search_for_each():
    draw = random.Random(5)
    for size in (1, 3, 6, 40):
        text, other = ("".join(draw.choice("ab") for _ in range(count)) for count in (300, 500))
        passages = [other[start : start + size] for start in range(0, len(other) - size + 1, 2)]
        assert _find_passages(passages, ReadOnce(text), size) == {one for one in passages if one in text}
    assert _find_passages(["abc"], ReadOnce("ab"), 3) == set()


def test_a_passage_of_another_text_is_found_wherever_it_stands(tmp_path):
    """Every position of it, against the grid of passages that are looked for."""
    characters = PASSAGE + STEP
    passage = document(99, words=characters).replace(" ", "")[:characters]
    text = written(tmp_path / "text.txt", [document(1), passage, document(2)])
    for shift in range(0, STEP, 7):
        mine = written(tmp_path / "mine.txt", ["x" * (700 + shift) + passage + "y" * 3000])
        with pytest.raises(UserError, match="calibrated on"):
            refuse(mine, text)
    mine = written(tmp_path / "mine.txt", ["x" * 700 + passage[: PASSAGE - 1] + "y" * 3000])
    refuse(mine, text)


@pytest.mark.parametrize(("window", "found"), [(301, True), (101, False)])
def test_a_copy_is_found_in_drawn_windows_that_are_shorter_than_a_passage(window, found, tmp_path):
    """But for windows of so few characters that set phrases would be found."""
    one, copy = (written(tmp_path / f"{name}.txt", [document(seed) for seed in range(8)]) for name in ("one", "copy"))
    tokenizer = byte_tokenizer(bos=True)
    block = text_data.make_calibration(tokenizer, one, 4, 901, 0)
    text = text_data.make_evaluation_text(tokenizer, copy, window, window, 6, whole=True, drawn=True)
    assert len(text.ids) == 6 and window < 2 * PASSAGE
    if found:
        with pytest.raises(UserError, match=r"one\.txt, which is calibrated on, is in part the text"):
            refuse_shared(tokenizer, block.ids, block.source, [text], "calibrated on")
    else:
        refuse_shared(tokenizer, block.ids, block.source, [text], "calibrated on")


def test_what_is_not_used_is_no_leak(tmp_path):
    """The passage stands behind the windows that are evaluated."""
    shared = [document(seed) for seed in range(4)]
    mine = written(tmp_path / "mine.txt", shared)
    text = written(tmp_path / "text.txt", [document(50), document(51), *shared])
    refuse(mine, text, windows=5)
    with pytest.raises(UserError, match="calibrated on"):
        refuse(mine, text)


def test_other_texts_and_halves_of_one_text_pass(tmp_path):
    text = written(tmp_path / "text.txt", [document(seed) for seed in range(12)])
    other = written(tmp_path / "other.txt", [document(seed) for seed in range(20, 32)])
    refuse(other, text)
    refuse(text, text)
    (tmp_path / "folder").mkdir()
    refuse(text, str(tmp_path / "folder" / ".." / "text.txt"))


def test_a_document_that_holds_one_of_the_other_half_is_not_evaluated(tmp_path):
    documents = [document(seed) for seed in range(8)]
    documents[3] = f"before {documents[6]} behind"
    documents[5] = documents[2][20 : 20 + 2 * text_data.SHORTEST].strip()
    text = written(tmp_path / "text.txt", documents)
    even, odd = text_data.split_halves(text)
    assert even == documents[0::2]
    assert odd == [documents[1], documents[7]]
    documents[3], documents[5] = (
        f"before {documents[6][: text_data.SHORTEST]}",
        documents[2][: text_data.SHORTEST - 10].strip(),
    )
    assert text_data.split_halves(written(tmp_path / "text.txt", documents))[1] == documents[1::2]


@pytest.fixture
def asked(model_folder, tmp_path):
    """A run of one compensated cell, with the texts to be named."""
    return [
        *(
            "run",
            "--model",
            str(model_folder),
            "--profile",
            "smoke",
            "--tasks",
            "none",
            "--no-checks",
            "--device",
            "cpu",
        ),
        *("--window", "64", "--windows", "8", "--calibration-sequences", "8", "--calibration-length", "64"),
        *("--speed-rounds", "0", "--threads", "1", "--methods", "drop+ghost:layers=2", "--out", str(tmp_path / "run")),
    ]


def test_a_compensation_fitted_to_the_evaluation_text_is_refused(asked, tmp_path, capsys):
    documents = [document(seed) for seed in range(8)]
    text, copy = written(tmp_path / "text.txt", documents), written(tmp_path / "copy.txt", documents)
    assert main([*asked, "--calibration", copy, "--texts", text]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "copy.txt, which is calibrated on, is in part the text" in said[0]
    assert list((tmp_path / "run").glob("cells/*")) == []
    assert main([*asked, "--calibration", text, "--texts", text]) == 0


def test_healing_on_the_evaluation_text_is_refused(asked, tmp_path, capsys):
    """A copy under another name: a text of the same name is refused before it is read."""
    documents = [document(seed) for seed in range(8)]
    text, copy = written(tmp_path / "text.txt", documents), written(tmp_path / "copy.txt", documents)
    other = written(tmp_path / "other.txt", [document(seed) for seed in range(20, 32)])
    little = ["--heal", "lora", "--heal-tokens", "512", "--heal-length", "64", "--heal-batch", "1"]
    heal = [*asked, "--calibration", other, "--texts", text, *little, "--heal-text"]
    assert main([*heal, copy]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "copy.txt, which is trained on, is in part the text" in said[0]
    assert list((tmp_path / "run").glob("cells/*")) == []
    assert main([*heal, other]) == 0


def test_a_merge_is_not_judged_on_the_text_that_it_is_made_on(model_folder, tmp_path, capsys):
    documents = [document(seed) for seed in range(8)]
    text, copy = written(tmp_path / "text.txt", documents), written(tmp_path / "copy.txt", documents)
    small = ["--sequences", "8", "--length", "64", "--window", "64", "--windows", "8", "--merge", "2"]
    place = ["--device", "cpu", "--threads", "1", "--out", str(tmp_path / "out")]
    assert main(["similarity", str(model_folder), *small, *place, "--text", copy, "--held-out", text]) == 2
    assert "copy.txt, which is" in capsys.readouterr().err


@pytest.fixture(scope="module")
def shipped():
    """The default tokenizer, and all windows of every text that ships."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(assets.fetch_model("smollm2-135m"))
    return tokenizer, [text_data.make_evaluation_text(tokenizer, text, 512, 512, 0) for text in assets.TEXTS]


@pytest.mark.default_model
@pytest.mark.parametrize("calibration", assets.TEXTS)
def test_the_texts_that_ship_share_no_passage(calibration, shipped):
    """All of the calibration half with all of the evaluation half of the other text; of the same, no document."""
    tokenizer, texts = shipped
    sequences = {"technical": 76, "stories": 121, "code": 147}.get(calibration, 160)
    block = text_data.make_calibration(tokenizer, calibration, sequences, 256, 0)
    refuse_shared(tokenizer, block.ids, block.source, texts, "calibrated on")
    even, odd = text_data.split_halves(calibration)
    evaluated = text_data.SEPARATOR.join(odd)
    assert not [one for one in even if len(one) >= text_data.SHORTEST and one in evaluated]
    assert (
        len(odd)
        == {"wiki": 1174, "c4": 55, "code": 27, "technical": 6, "multilingual": 57, "stories": 158}[calibration]
    )
