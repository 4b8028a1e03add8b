"""Compares llama.cpp with this suite on one GGUF file: the tokens of a text, the logits, the perplexity.

An engine that leaves out an attention is fast and writes fluent nonsense, so that a file counts as exported only once
the engine computes what transformers computes with the same tensors. What the engine makes of it, an answer of its own,
a crash or no answer at all, is the outcome of a check.

Letters: M = windows, T = tokens.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor

from bench.data import texts
from bench.data.gguf import architecture_of_file, read
from bench.evaluation.scoring import nll_of_windows
from bench.export import gguf_file
from bench.inference import llama_cpp
from bench.inference.llama_cpp import EngineAnswer
from bench.stats.draws import exp_of_log
from bench.system.failures import Failure
from methods.checkpoint.save_load import Check, make_probe
from methods.checkpoint.transformers_compat import compute_logits
from methods.errors import UserError, first_line_of
from methods.model.decoder import Decoder

WINDOW, WINDOWS = 512, 4  # tokens of a window and windows of the text on which perplexities are compared
# By how much of the largest logit, and of the perplexity, an engine may differ. Below float32 it also rounds the states
# that a matrix is multiplied with, and beside quantised matrices to eight bits: of the default model, dense and pruned,
# logits differed by 0.03 to 0.10 of the largest.
EXACT, ROUNDED, EIGHT_BITS = (1e-4, 0.005), (0.1, 0.05), (0.25, 0.05)


def check_gguf(
    file: Path,
    tokenizer: Any,
    windows: Tensor | None,
    *,
    threads: int,
    minutes: float = llama_cpp.MINUTES,
    which: str = "that the run measured",
) -> Generator[Check, None, EngineAnswer | None]:
    """Yield a check each of loading a GGUF file and of computing with llama.cpp on it.

    windows  (M, T) token ids on which perplexities are compared; None for none
    minutes  without a message after which the engine is ended
    which    names the windows, behind the word "windows"

    Returns the engine's answer, whose first sequence is fixed tokens and whose others are the windows; None without
    one.
    """
    try:
        model = read(file, torch.float32)
    except (ValueError, OSError) as error:
        yield Check("loads", False, first_line_of(error))
        return None
    yield Check("loads", True, f"{architecture_of_file(file)}, {len(model.layers)} layers")
    probe = make_probe(model)
    expected = compute_logits(model, probe)[0]
    finite = bool(expected.isfinite().all())
    yield Check("logits", finite, f"finite on {probe.numel()} tokens" if finite else "not finite")
    if not finite:
        return None
    if not llama_cpp.is_installed():
        yield Check("llama.cpp", True, f"not asked, for it is not installed: {llama_cpp.INSTALL}")
        return None
    sequences = [probe[0].tolist(), *([] if windows is None else windows.tolist())]
    answer = llama_cpp.compute(file, sequences, gguf_file.SAMPLE, threads=threads, minutes=minutes)
    if isinstance(answer, Failure):
        yield Check("llama.cpp", False, f"{answer.status}, {answer.reason}")
        return None
    expected_tokens = tokenizer(gguf_file.SAMPLE)["input_ids"]
    same = answer.tokens == expected_tokens
    yield Check(
        "llama.cpp tokens",
        same,
        f"the same {len(expected_tokens)}" if same else f"{answer.tokens[:8]}, not {expected_tokens[:8]}",
    )
    bound, share = _bounds(file)
    off = float((torch.from_numpy(answer.logits) - expected).abs().max() / expected.abs().max())
    yield Check("llama.cpp logits", off <= bound, f"differ by {off:.1g} of the largest on {len(expected)} tokens")
    if windows is not None:
        ours, theirs = _perplexity(model, windows), exp_of_log(answer.nll[1:].sum() / windows[:, 1:].numel())
        count, length = windows.shape
        those = f"{count} windows of {length:,} tokens {which} ({count * (length - 1):,} scored)"
        figure = f"{theirs:.5g}, and transformers has {ours:.5g}, on the {those}"
        yield Check("llama.cpp perplexity", abs(theirs / ours - 1) <= share, figure)
    return answer


def _perplexity(model: Decoder, windows: Tensor) -> float:
    """Return the perplexity of all tokens but the first of each window, (M, T), by transformers."""
    scored = torch.ones_like(windows, dtype=torch.bool)
    scored[:, 0] = False
    nll = nll_of_windows(model.model, windows, scored, windows.shape[1])
    return exp_of_log(float(nll.sum()) / int(scored.sum()))


def _bounds(file: Path) -> tuple[float, float]:
    """Return by how much logits and perplexity may differ, by the types of the tensors in a GGUF file."""
    types = {tensor.tensor_type for tensor in gguf.GGUFReader(file).tensors}
    if types == {gguf.GGMLQuantizationType.F32}:
        return EXACT
    return EIGHT_BITS if any(kind.name.startswith("Q") for kind in types) else ROUNDED


def windows_of(tokenizer: Any, text: str, longest: int, windows: int = WINDOWS) -> Tensor:
    """Return the first windows of the evaluated half of a text, (M, T) ids, T at most `longest`. Raises UserError."""
    size = min(WINDOW, longest)
    return texts.make_evaluation_text(tokenizer, text, size, size, windows).ids


def words_of_windows(text: str) -> str:
    """Return words on which windows `windows_of` takes, to follow their number; a run draws others by default."""
    return f"that are the first of {text}"


def check_alone(file: Path, text: str, windows: int) -> Iterator[Check]:
    """Yield the checks of a GGUF file with the tokenizer that it holds, on windows of a text. Raises UserError."""
    if not file.is_file():
        raise UserError(f"there is no file {file}")
    if windows < 1:
        raise UserError(f"windows is a number of windows, at least 1; got {windows}")
    texts.check_text(text)
    try:
        tokenizer = gguf_file.read_tokenizer(file)
    except (ValueError, OSError) as error:
        yield Check("loads", False, first_line_of(error))
        return
    ids = windows_of(tokenizer, text, WINDOW, windows)
    yield from check_gguf(file, tokenizer, ids, threads=torch.get_num_threads(), which=words_of_windows(text))
