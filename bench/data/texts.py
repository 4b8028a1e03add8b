"""Turns a text into blocks of token ids to calibrate on and to measure perplexity on, and keeps both apart.

A text is one of bench.data.assets.TEXTS, a UTF-8 file (documents separated by blank lines), or
hub:DATASET[:CONFIG[:SPLIT]], a dataset of the hub with a column `text` (a document per row, split `test` if none is
named). A calibration is a text, or a mixture of several (bench.data.mixture). It may also read the questions of a task
(bench.data.questions), and what the dense model writes itself (bench.data.own_text).

Calibration and evaluation never share a document. One of assets.TEXTS, and any text that is named on both sides, is
halved. Repeated documents are dropped. Those at even positions are for calibration, and those at odd ones for
evaluation, but for those that hold an even one whole. They are tokenised one by one, each followed by an empty line,
and joined. Any other text is evaluated whole, as papers do it with the test split of WikiText-2
(hub:Salesforce/wikitext:wikitext-2-raw-v1:test): unchanged, rows joined by empty lines, tokenised in one piece.

Where a tokenizer itself begins a text with its BOS token, so does every sequence and window.

Two texts of different names may still be one: a copy or a part of the other, or the same dataset from another place.
A compensation would then be tested on its own calibration, so `refuse_shared` compares them. It compares the sequences
that are fitted, those of each text of a mixture, and the windows that are scored. It compares them as characters
without white space, so that tokens, line breaks and the order of documents do not matter. A passage of PASSAGE + STEP
characters, sixty words or so, is always found, one below PASSAGE never: licences and set phrases are not contamination.
Where windows are drawn and hold less than two such passages, half a window is looked for, but no less than FEWEST
characters. Of the texts that ship, none has a passage of another.

Before a data set of the hub is read, the user learns how large it is.

Letters: N = calibration sequences, T = tokens per sequence, M = windows, W = tokens per window.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import random
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.data import assets, task_loading
from bench.data.mixture import OWN, QUESTIONS, is_own_text, rows_of_texts, task_of_text, texts_of_calibration
from bench.data.task_sources import GROUPS
from methods.console import say
from methods.errors import UserError, first_line_of

if TYPE_CHECKING:
    import torch

    from methods.model.calibration import Calibration


SEPARATOR = "\n\n"
BATCH = 64  # documents that are tokenised together
LONGEST = 16  # characters per token that no text has on average
REACH = 2048  # windows at the beginning of a text among which is drawn; no more of a long text need be tokenised
LEAST_LONG = 2  # windows within documents, since one has no interval
DRAW = 0  # seed of the draw of windows, which are the same for every model and every seed of a method
SHORTEST = 200  # characters of a document that is looked for inside others
SEARCHED = 2**22  # characters of a text in which that is done; the time grows with their square


@dataclass(frozen=True)
class EvaluationText:
    """Holds windows of a text, the same for every method.

    ids     (M, W) token ids
    scored  (M, W) true where the token's log-likelihood counts; never at the first position, and once per token
    bytes   UTF-8 bytes of the scored tokens, for bits per byte
    words   pieces between white space that begin in a scored token, for word perplexity
    tokens  how many are scored
    sha256  of ids and scored
    text    the source as it was asked for
    bos     "every window" if each begins with the BOS token, else "none"
    drawn   whether the windows are drawn, from the first REACH ones and in the order of the draw; else in a row
    within  whether each window lies in one document; else the documents of the text are joined
    """

    ids: torch.Tensor
    scored: torch.Tensor
    bytes: int
    words: int
    tokens: int
    sha256: str
    text: str
    bos: str
    drawn: bool
    within: bool = False


Tokenised = tuple[list[int], list[int], list[int]]  # tokens, the UTF-8 bytes of each, and the words that begin in it


def check_calibrations(calibrations: Iterable[str], *, ask_hub: bool = True) -> None:
    """Refuse calibrations with a text that cannot be had, before any work, as `check_text` does. Raises UserError."""
    for text in dict.fromkeys(text for calibration in calibrations for text in texts_of_calibration(calibration)):
        if task := task_of_text(text):
            task_loading.refuse_unknown(GROUPS.get(task, (task,)))
        elif text in (QUESTIONS, f"{OWN}:"):
            raise UserError(f"{text} is written with a task behind it, as in {text}piqa; see `list tasks`")
        elif text != OWN:
            check_text(text, ask_hub=ask_hub)


def check_text(text: str, *, ask_hub: bool = True) -> None:
    """Refuse a text that cannot be read, before any work. Raises UserError, which lists the known ones.

    ask_hub  whether a text of the hub is looked for there
    """
    if text in assets.TEXTS:
        return
    if is_own_text(text) or task_of_text(text):
        raise UserError(f"{text} is for --calibration alone; give {', '.join(assets.TEXTS)} or a UTF-8 file")
    if text.startswith("hub:"):
        if ask_hub:
            check_hub_text(text)
    elif not _is_readable(Path(text)):
        near = difflib.get_close_matches(text, assets.TEXTS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        names = ", ".join(assets.TEXTS)
        raise UserError(f"no text {text!r}; {hint}give {names}, a UTF-8 file or hub:DATASET[:CONFIG[:SPLIT]]")


Draw = Callable[[str, int], "torch.Tensor"]  # (text, N) -> (N, T) token ids


def make_calibration(
    tokenizer: Any, calibration: str, sequences: int, length: int, seed: int, *, draw: Draw | None = None
) -> Calibration:
    """Return N = `sequences` of T = `length` tokens from the calibration documents, in an order drawn with `seed`.

    draw  returns the sequences of a text; None: `draw_sequences`

    Of a mixture each text has its own draw with the seed, as long as its share is. Raises UserError when a text is too
    short.
    """
    import torch

    from methods.model.calibration import Calibration

    draw = draw or functools.partial(draw_sequences, tokenizer, length=length, seed=seed)
    ids = torch.empty(sequences, length, dtype=torch.long)
    for text, rows in rows_of_texts(calibration, sequences).items():
        ids[rows] = draw(text, len(rows))
    mask = torch.ones_like(ids, dtype=torch.bool)
    return Calibration(ids=ids, mask=mask, source=calibration, seed=seed, sha256=_sha256(ids, mask))


def draw_sequences(tokenizer: Any, text: str, sequences: int, *, length: int, seed: int) -> torch.Tensor:
    """Return (N, T) token ids from the calibration half of a text. Raises UserError when it is too short."""
    return pack_documents(tokenizer, text, split_halves(text)[0], sequences, length=length, seed=seed)


def pack_documents(
    tokenizer: Any, text: str, documents: Iterable[str], sequences: int, *, length: int, seed: int
) -> torch.Tensor:
    """Return (N, T) token ids from documents of a text, in an order drawn with `seed`, one behind the other.

    Raises UserError when they are too short.
    """
    ordered = list(documents)
    random.Random(seed).shuffle(ordered)
    content = length - len(find_bos(tokenizer))
    tokens, _, _ = _tokenise(tokenizer, _with_separators(ordered), sequences * content)
    if len(tokens) < sequences * content:
        which = "in questions that are not scored" if text.startswith(QUESTIONS) else "(every second document)"
        raise UserError(
            f"text {text} has {len(tokens)} tokens for calibration {which}, but "
            f"{sequences} x {content} = {sequences * content} were asked for"
        )
    return cut_into_sequences(tokenizer, tokens, sequences, length)


def cut_into_sequences(tokenizer: Any, tokens: list[int], sequences: int, length: int) -> torch.Tensor:
    """Return (N, T) token ids: the tokens cut into sequences in their order, each behind the BOS token if there is one.

    There are at least N times T tokens, less those of BOS. What is left over is dropped.
    """
    import torch

    bos = find_bos(tokenizer)
    content = length - len(bos)
    block = torch.tensor(tokens[: sequences * content]).view(sequences, content)
    return torch.cat([torch.tensor(bos, dtype=torch.long).expand(sequences, -1), block], dim=1)


def is_whole(text: str, calibration: str) -> bool:
    """Say whether `text` is evaluated whole: it is none of assets.TEXTS, and no text of the calibration."""
    return text not in assets.TEXTS and not any(is_same_text(text, each) for each in texts_of_calibration(calibration))


def is_same_text(first: str, second: str) -> bool:
    """Say whether two ways of writing a text mean the same one, which is then halved."""
    return bool(_identity(first) == _identity(second))


def _identity(text: str) -> Any:
    """Return a value that is equal for two ways of writing the same text."""
    return parse_hub_text(text) if text.startswith("hub:") else Path(text).resolve()


def make_evaluation_text(
    tokenizer: Any, text: str, window: int, stride: int, windows: int, *, drawn: bool = False, whole: bool = False
) -> EvaluationText:
    """Return M = `windows` of W = `window` tokens, one every `stride` tokens, from the `whole` text or its second half.

    windows  0 for all; otherwise the first ones, or, where `drawn`, that many at random from the first REACH, always
             the same ones, so that a draw of more begins with those of a draw of fewer
    stride   below the window, every window but the first only scores its last `stride` tokens

    Tokens behind the last whole window are dropped. Raises UserError when the text is too short.
    """
    content = window - len(find_bos(tokenizer))
    stride = min(stride, content)
    drawn = drawn and windows > 0
    reach = max(REACH, windows) if drawn else windows
    enough = (reach - 1) * stride + content if windows > 0 else None
    if whole:
        tokenised = _tokenise_whole(tokenizer, text, enough)
    else:
        tokenised = _tokenise(tokenizer, _with_separators(split_halves(text)[1]), enough)
    tokens, _, _ = tokenised
    available = max(0, (len(tokens) - content) // stride + 1)
    available = min(available, reach or available)
    if available < max(1, windows):
        raise UserError(
            f"text {text} has {len(tokens)} tokens for evaluation{'' if whole else ' (every second document)'}, but "
            f"{(max(1, windows) - 1) * stride + content} are needed for {max(1, windows)} windows of {window}"
        )
    drawn = drawn and windows < available
    chosen = _choose(available, windows, drawn)
    return _cut_windows(tokenizer, text, tokenised, chosen, window, stride=stride, drawn=drawn)


def make_long_text(
    tokenizer: Any, text: str, window: int, windows: int, *, drawn: bool = False, whole: bool = False
) -> EvaluationText:
    """Return M = `windows` of W = `window` tokens, each within one document, as `make_evaluation_text` draws them.

    No two windows share a token. A text that is evaluated whole, or has too few such windows, is joined as it is there.
    Raises UserError when it is too short for that too.
    """
    content = window - len(find_bos(tokenizer))
    tokenised = ([], [], []) if whole else _tokenise_long_documents(tokenizer, split_halves(text)[1], content)
    available = len(tokenised[0]) // content
    if available < max(windows, LEAST_LONG):
        return make_evaluation_text(tokenizer, text, window, window, windows, drawn=drawn, whole=whole)
    drawn = drawn and 0 < windows < available
    chosen = _choose(available, windows, drawn)
    joined = _cut_windows(tokenizer, text, tokenised, chosen, window, stride=content, drawn=drawn)
    return replace(joined, within=True)


def _tokenise_long_documents(tokenizer: Any, documents: Iterable[str], content: int) -> Tokenised:
    """Return as `_tokenise` the windows of `content` tokens of each document; what is left behind its last one goes."""
    joined: Tokenised = ([], [], [])
    for document in documents:
        if len(document.encode()) < content:  # a token has a byte at least
            continue
        columns = _tokenise(tokenizer, [document], None)
        end = len(columns[0]) // content * content
        for whole, column in zip(joined, columns, strict=True):
            whole.extend(column[:end])
    return joined


def _cut_windows(
    tokenizer: Any, text: str, tokenised: Tokenised, chosen: list[int], window: int, *, stride: int, drawn: bool
) -> EvaluationText:
    """Return the chosen windows of a tokenised text by their numbers; a window begins every `stride` tokens."""
    import torch

    tokens, sizes, words = tokenised
    bos = find_bos(tokenizer)
    content = window - len(bos)
    block = torch.tensor(tokens).unfold(0, content, stride)[chosen]
    ids = torch.cat([torch.tensor(bos, dtype=torch.long).expand(len(chosen), -1), block], dim=1)
    scored = torch.zeros_like(ids, dtype=torch.bool)
    scored[:, window - stride :] = True
    scored[torch.tensor(chosen) == 0] = True
    scored[:, 0] = False
    counted = scored[:, len(bos) :]
    weights, word_starts = (torch.tensor(column).unfold(0, content, stride)[chosen] for column in (sizes, words))
    return EvaluationText(
        ids=ids,
        scored=scored,
        bytes=int(weights[counted].sum()),
        words=int(word_starts[counted].sum()),
        tokens=int(scored.sum()),
        sha256=_sha256(ids, scored),
        text=text,
        bos="every window" if bos else "none",
        drawn=drawn,
    )


def _choose(available: int, windows: int, drawn: bool) -> list[int]:
    every = list(range(available))
    if drawn:
        random.Random(DRAW).shuffle(every)
    return every[: windows or available]


def _sha256(ids: torch.Tensor, mask: torch.Tensor) -> str:
    return hashlib.sha256(ids.numpy().tobytes() + mask.numpy().tobytes()).hexdigest()


def find_bos(tokenizer: Any) -> list[int]:
    """Return [BOS token] if the tokenizer itself begins a text with it, else []."""
    first = tokenizer("a")["input_ids"][0]
    return [first] if first == tokenizer.bos_token_id else []


def _tokenise_whole(tokenizer: Any, text: str, enough: int | None) -> Tokenised:
    """Return the tokens of a text in one piece, or of its beginning that holds `enough`; lists as of `_tokenise`."""
    content = _content(text)
    if enough is not None and len(content) > LONGEST * enough:
        beginning = _tokenise(tokenizer, [content[: LONGEST * enough]], None)
        if len(beginning[0]) > enough:
            return beginning
    return _tokenise(tokenizer, [content], None)


def _tokenise(tokenizer: Any, documents: list[str], enough: int | None) -> Tokenised:
    """Return the token ids of joined documents, the UTF-8 bytes of each token, and the words that begin in it.

    Ends after the batch of documents in which `enough` tokens are reached; None reads all.
    """
    if not tokenizer.is_fast:
        raise UserError(
            "the tokenizer gives no character offsets; bits per byte need a fast tokenizer (tokenizer.json)"
        )
    tokens: list[int] = []
    sizes: list[int] = []
    words: list[int] = []
    for start in range(0, len(documents), BATCH):
        batch = documents[start : start + BATCH]
        encoded = tokenizer(batch, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        for document, ids, offsets in zip(batch, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            pieces = _pieces(document, [end for _, end in offsets])
            tokens += ids
            sizes += [len(piece.encode()) for piece in pieces]
            words += _count_words(pieces)
        if enough is not None and len(tokens) >= enough:
            break
    return tokens, sizes, words


def _pieces(document: str, ends: list[int]) -> list[str]:
    """Return the text from each token's end back to the one before, so that white space between them counts once."""
    pieces, previous = [], 0
    for end in [*ends[:-1], len(document)]:
        pieces.append(document[previous:end])
        previous = max(previous, end)
    return pieces


def _count_words(pieces: list[str]) -> list[int]:
    """Return how many words begin in each piece. A word is what is between white space."""
    counts, inside = [], False
    for piece in pieces:
        counts.append(len(piece.split()) - (inside and piece[:1].strip() != ""))
        inside = piece[-1:].strip() != "" if piece else inside
    return counts


def _with_separators(documents: list[str]) -> list[str]:
    return [document + SEPARATOR for document in documents]


def _documents(text: str) -> list[str]:
    """Return the distinct documents of a text, in its order."""
    if text.startswith("hub:"):
        documents = read_hub_documents(text)
    elif text in assets.TEXTS:
        documents = assets.read_text(text)
    else:
        documents = assets.split_paragraphs(_read(Path(text)))
    stripped = dict.fromkeys(document.strip() for document in documents)
    return [document for document in stripped if document]


def split_halves(text: str) -> tuple[list[str], list[str]]:
    """Return the documents for calibration and those for evaluation.

    A crawled page is at times part of another one. A document that holds one of the other half whole is not evaluated.
    """
    documents = _documents(text)
    even, odd = documents[0::2], documents[1::2]
    if sum(map(len, documents)) > SEARCHED:
        return even, odd
    of_even, of_odd = SEPARATOR.join(even), SEPARATOR.join(odd)
    shared = [document for document in even if len(document) >= SHORTEST and document in of_odd]
    apart = []
    for document in odd:
        is_held = len(document) >= SHORTEST and document in of_even
        if not is_held and not any(part in document for part in shared):
            apart.append(document)
    return even, apart


def _content(text: str) -> str:
    """Return the content of a text: a file's, or the rows of a dataset with an empty line between them."""
    return SEPARATOR.join(read_hub_documents(text)) if text.startswith("hub:") else _read(Path(text))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _is_readable(path: Path) -> bool:
    """Say whether a path is that of a file. Raises UserError where the system denies access to it."""
    try:
        if path.is_file():
            path.open("rb").close()
            return True
    except OSError as error:
        raise _unreadable(path, error) from error
    return False


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"text {path} cannot be read: {first_line_of(error)}; give a UTF-8 file that can")


PASSAGE = 256  # characters
FEWEST = 96  # of a passage in short windows
STEP = 64  # from passage to passage


def refuse_shared(tokenizer: Any, ids: torch.Tensor, source: str, texts: Iterable[EvaluationText], fitted: str) -> None:
    """Raise UserError where a passage of ids (N, T), the sequences of `source`, is evaluated in another text.

    source  a text or a mixture. Of a mixture the sequences of each text are compared with all texts but this one
    fitted  what is done to it: "calibrated on", "trained on"
    """
    evaluated = list(texts)
    for text, rows in rows_of_texts(source, len(ids)).items():
        foreign = [each for each in evaluated if not is_same_text(text, each.text)]
        bare = text_without_spaces(tokenizer, ids[rows]) if foreign else ""
        for each in foreign:
            _refuse_shared_passages(tokenizer, bare, text, each, fitted)


def _refuse_shared_passages(tokenizer: Any, bare: str, source: str, text: EvaluationText, fitted: str) -> None:
    """Raise UserError where a passage of `bare`, what is read of the text `source`, is evaluated in another text."""
    held_out = text_without_spaces(tokenizer, text.ids[_once(text.scored)])
    half = len(held_out) // len(text.ids) // 2  # drawn windows do not stand behind each other
    size = min(PASSAGE, max(FEWEST, half)) if text.drawn else PASSAGE
    passages = [bare[start : start + size] for start in range(0, len(bare) - size + 1, min(STEP, size // 2))]
    contained = _find_passages(passages, held_out, size)
    count = sum(passage in contained for passage in passages)
    if count:
        raise UserError(
            f"{source}, which is {fitted}, is in part the text {text.text}, which is evaluated: {count} of "
            f"{len(passages)} passages stand there; give another text, or one name for both, which is then halved"
        )


def _find_passages(passages: Iterable[str], held_out: str, size: int) -> set[str]:
    """Return those of the passages, of `size` characters each, that stand in a text. The text is read once for all."""
    return set(passages).intersection(held_out[start : start + size] for start in range(len(held_out) - size + 1))


def _once(scored: torch.Tensor) -> torch.Tensor:
    """Return (M, W), true once for each token: where it is scored, and where a window begins with a new one."""
    once = scored.clone()
    once[:, 0] |= scored[:, 1:2].any(1)
    return once


def text_without_spaces(tokenizer: Any, ids: torch.Tensor) -> str:
    """Return the text of tokens, without white space and special tokens."""
    return "".join(tokenizer.decode(ids.flatten(), skip_special_tokens=True).split())


TIMES_IN_MEMORY = 2  # times its bytes that a text takes of the memory, as rows and as documents
FILE = "give a file with as much of it as is read"


def parse_hub_text(text: str) -> tuple[str, str | None, str]:
    """Return (dataset, config, split) of 'hub:DATASET[:CONFIG[:SPLIT]]'. Raises UserError for anything else."""
    dataset, config, split, *rest = [*text.removeprefix("hub:").split(":"), "", ""]
    if not dataset or any(rest):
        raise UserError(f"a hub text is written hub:DATASET[:CONFIG[:SPLIT]]; got {text!r}")
    return dataset, config or None, split or "test"


def check_hub_text(text: str) -> None:
    """Refuse a text, before any work, that the hub does not give, or for which disk or memory have no room.

    Its size is known only where the data set's page on the hub states it.
    """
    from bench.system.memory import free_bytes_of_host

    parse_hub_text(text)
    if not assets.is_hub_reachable():
        read_hub_documents(text)
        return
    on_disk, in_memory, folder = _sizes(text)
    for what, takes, free in (
        ("disk", on_disk, shutil.disk_usage(folder).free),
        ("memory", in_memory, free_bytes_of_host()),
    ):
        if takes > free:
            raise UserError(
                f"{text} takes {takes / 1e9:,.1f} GB of the {what}, of which {free / 1e9:,.1f} are free; {FILE}"
            )


@functools.cache
def _sizes(text: str) -> tuple[int, int, Path]:
    """Return the bytes still to be written to the disk, the bytes to be held in memory, and the folder on the disk.

    The first are of all splits, as they are fetched and as they are kept.
    """
    import datasets

    dataset, config, split = parse_hub_text(text)
    builder = _ask_hub(text, lambda: datasets.load_dataset_builder(dataset, config))
    info, kept = builder.info, Path(builder.cache_dir)
    folder = next(path for path in (kept, *kept.parents) if path.exists())
    on_disk = 0 if folder == kept else (info.download_size or 0) + (info.dataset_size or 0)
    in_memory = TIMES_IN_MEMORY * info.splits[split].num_bytes if split in (info.splits or {}) else 0
    if on_disk:
        say(f"{text} is fetched whole, and takes {on_disk / 1e6:,.1f} MB of the disk")
    return on_disk, in_memory, folder


def read_hub_documents(text: str) -> list[str]:
    """Return the rows of the data set's column `text`."""
    import datasets

    dataset, config, split = parse_hub_text(text)
    rows = _ask_hub(text, lambda: datasets.load_dataset(dataset, config, split=split))
    if "text" not in rows.column_names:
        raise UserError(f"{text} has no column text; it has {', '.join(rows.column_names)}")
    documents = list(rows["text"])
    if (
        wrong := next((number for number, document in enumerate(documents) if not isinstance(document, str)), None)
    ) is not None:
        raise UserError(f"{text} has rows without a text, of which row {wrong} is the first")
    return documents


def _ask_hub(text: str, question: Callable[[], Any]) -> Any:
    """Return the hub's answer, or that of its cache. Raises UserError for every error of a data set's loader."""
    reachable = assets.is_hub_reachable()
    try:
        return question()
    except Exception as error:
        where = (
            "the hub is out of reach and its cache has no such data" if not reachable else "the hub does not give it"
        )
        raise UserError(f"cannot read {text}: {where} ({first_line_of(error)})") from error
