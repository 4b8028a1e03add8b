"""Lets the dense model write a text to calibrate on, and keeps it: `self`, and `self:piqa` behind a task's questions.

RAC (arXiv 2509.12464) calibrates on prompts and on what the dense model writes behind them, since a pruned model reads
what it has written itself. The questions count as part of the text, as they do there. Without questions the model
begins with its BOS token, or with its end-of-text token where it has none; that first token is no part of the text.

Documents are sampled at temperature 1, from all tokens, until the model ends them or they have LONGEST tokens. They
are kept as token ids, one behind the other, since to write and read them as characters would make other tokens of some.
Behind each stands the token that ends it, or an empty line where the model has not ended it. Where the questions are
used up, the model begins again with the first.

A text is written once for each model, seed and list of questions, in batches of BATCH documents that have a seed each.
So a larger number of tokens begins with a smaller one, whatever was asked for before. Another processor samples other
tokens, and so the kept ones are read wherever there are any:

    <cache>/own-text/<hash of weights, seed and questions>/00000.safetensors    the tokens of a batch, with their sha256
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.data import assets, pretrained
from bench.data.texts import SEPARATOR, find_bos
from bench.system import memory
from methods.console import make_bar, say
from methods.errors import UserError, first_line_of
from methods.files import write_atomically

if TYPE_CHECKING:
    import torch

BATCH = 32  # documents that are sampled together; another number samples other documents
LONGEST = 256  # tokens of a document behind its question
REVISION = 1  # raised by every change after which other tokens are sampled

Prompts = Sequence[tuple[list[int], list[int]]]  # tokens that are no part of the text, and those of a question


@dataclass(frozen=True)
class Author:
    """Names the dense model that writes, and how it is loaded; its text is that of `seed`."""

    model: str
    device: torch.device
    dtype: torch.dtype
    trust_remote_code: bool
    seed: int


def write_tokens(author: Author, tokenizer: Any, questions: Sequence[str], count: int) -> list[int]:
    """Return the first `count` tokens of the text that a model writes, behind questions where there are any.

    What is kept is read, and the rest is sampled and kept. Raises UserError where the model cannot write.
    """
    prompts = _prompts_of_questions(tokenizer, questions)
    folder = _folder(author, prompts)
    tokens, number = _read_kept(folder, count)
    say(f"{pretrained.name_of_model(author.model)} writes {count:,} tokens, once; they are kept in {folder}")
    try:
        with (
            make_bar(count, "writing a text", "token", done=len(tokens)) as bar,
            closing(_sample_batches(author, tokenizer, prompts, number)) as batches,
        ):
            while len(tokens) < count:
                batch = next(batches)
                _keep_batch(folder, number, batch)
                tokens += batch
                number += 1
                bar.update(len(batch))
    finally:  # the model refers to itself
        gc.collect()
        memory.give_back([author.device])
    return tokens[:count]


def read_tokens(author: Author, tokenizer: Any, questions: Sequence[str], count: int) -> list[int]:
    """Return the first tokens of the text as far as they are kept, `count` at most."""
    tokens, _ = _read_kept(_folder(author, _prompts_of_questions(tokenizer, questions)), count)
    return tokens[:count]


def _read_kept(folder: Path, count: int) -> tuple[list[int], int]:
    """Return the kept tokens, of as many batches as hold `count` where there are as many, and the number of batches."""
    tokens, number = list[int](), 0
    while len(tokens) < count and (batch := _read_batch(folder, number)):
        tokens += batch
        number += 1
    return tokens, number


def _prompts_of_questions(tokenizer: Any, questions: Sequence[str]) -> Prompts:
    """Return the first tokens of a document, and those of its question, for each question; without any, one without."""
    if questions:
        bos = find_bos(tokenizer)
        return [(bos, ids) for ids in tokenizer(list(questions), add_special_tokens=False)["input_ids"]]
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise UserError("--calibration self begins with a BOS or an end-of-text token, and the tokenizer has neither")
    return [([start], [])]


def _folder(author: Author, prompts: Prompts) -> Path:
    """Return the folder in which a text is kept."""
    weights = pretrained.sha256_of_weights(author.model)
    text = json.dumps([REVISION, BATCH, LONGEST, weights, author.seed, prompts])
    return assets.folder_of_cache() / "own-text" / hashlib.sha256(text.encode()).hexdigest()[:16]


def _sample_batches(author: Author, tokenizer: Any, prompts: Prompts, number: int) -> Generator[list[int]]:
    """Yield the tokens of one batch of documents after the other, from batch `number` on. The model is loaded once."""
    import torch

    try:
        model, _ = pretrained.load(author.model, author.device, author.dtype, author.trust_remote_code)
        while True:
            chosen = [prompts[(number * BATCH + at) % len(prompts)] for at in range(BATCH)]
            with torch.random.fork_rng([author.device] if author.device.type == "cuda" else []):
                torch.manual_seed(author.seed * 1_000_003 + number)
                documents = _sample(model, tokenizer, chosen)
            yield [token for document in documents for token in document]
            number += 1
    except RuntimeError as error:  # no memory is left, or likelihoods are not finite
        reason = first_line_of(error)
        raise UserError(f"{author.model} cannot write a text ({reason}); give another --calibration") from error


def _sample(model: Any, tokenizer: Any, prompts: Prompts) -> list[list[int]]:
    """Return a document for each prompt: the question, and what the model writes with the token that ends it."""
    import torch
    from transformers import GenerationConfig

    from methods.model.decoder import clear_positions

    most = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2 * LONGEST
    read = [(first + question)[-(most // 2) :] for first, question in prompts]  # of a long question the end
    longest = max(map(len, read))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in read])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in read])
    ends = _tokens_that_end(model, tokenizer)
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=min(LONGEST, most - longest),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        pad_token_id=0,
        eos_token_id=ends or None,
    )
    before, model.generation_config = model.generation_config, config  # a model's own may sample otherwise
    try:
        with torch.no_grad():
            rows = model.generate(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))
    finally:
        model.generation_config = before
        clear_positions(model)
    documents, gap = [], tokenizer(SEPARATOR, add_special_tokens=False)["input_ids"]
    for (_, question), row in zip(prompts, rows[:, longest:].tolist(), strict=True):
        end = next((at + 1 for at, token in enumerate(row) if token in ends), None)
        documents.append([*question, *row[:end], *(gap if end is None else ())])
    return documents


def _tokens_that_end(model: Any, tokenizer: Any) -> list[int]:
    """Return the tokens with which a model ends a text; none where it does not say."""
    ends = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:05}.safetensors"


def _sha256(tokens: torch.Tensor) -> str:
    return hashlib.sha256(tokens.numpy().tobytes()).hexdigest()


def _read_batch(folder: Path, number: int) -> list[int]:
    """Return the tokens of a kept batch; none where it is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(_file(folder, number), "pt") as stored:
            tokens = stored.get_tensor("tokens")
            is_whole = _sha256(tokens) == (stored.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return []
    kept: list[int] = tokens.tolist() if is_whole else []
    return kept


def _keep_batch(folder: Path, number: int, batch: Sequence[int]) -> None:
    """Write the tokens of a batch. Raises Unwritable where the cache takes no files."""
    import torch
    from safetensors.torch import save

    tokens = torch.tensor(batch)
    write_atomically(_file(folder, number), save({"tokens": tokens}, {"sha256": _sha256(tokens)}))
