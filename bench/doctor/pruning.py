"""Checks every method: what it removes from the doctor's model, and what the pruned model then says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

import methods
from bench.doctor import answers
from bench.doctor.answers import Answer
from bench.doctor.finding import Finding, judged, raised
from bench.doctor.numbers import DTYPES, apart, is_close, named
from methods import progress
from methods.model.spread import Place


def check(device: torch.device) -> Iterator[Finding]:
    """Run all methods, those of installed packages too, which have no stored answers."""
    stored = answers.read()
    ours = answers.cases()
    names = [*ours, *(name for name in methods.load() if name not in ours)]
    for name in progress.over(names, "methods", "method"):
        if name in stored:
            yield one(name, device, stored[name])
        else:
            yield Finding("not here", name, "no answers are stored for it")


def one(name: str, device: Place, want: Answer) -> Finding:
    """Run one method in each dtype."""
    wrong, off = list[str](), dict[str, float]()
    try:
        for dtype in DTYPES:
            got = answers.answer(name, device, dtype)
            wrong += [f"in {named(dtype)} {text}" for text in _differences(got, want)]
            if want.logits is not None and got.parameters == want.parameters:
                off[named(dtype)] = share = apart(torch.tensor(got.logits), torch.tensor(want.logits))
                if not is_close(share, dtype):
                    wrong.append(f"in {named(dtype)} the logits are off by {share:.2g} of their size")
    except Exception as error:
        return raised(name, error)
    figure = ", ".join(f"{share:.1e} in {dtype}" for dtype, share in off.items())
    return judged(name, wrong, f"logits off by {figure}" if off else "decisions alone", **off)


def _differences(got: Answer, want: Answer) -> Iterator[str]:
    """Say which decisions are not those that are stored."""
    for name in got.decided | want.decided:
        if got.decided.get(name) != want.decided.get(name):
            yield f"{name} is {_short(got.decided, name)} and should be {_short(want.decided, name)}"
    if got.parameters != want.parameters:
        yield f"{got.parameters:,} parameters are left and should be {want.parameters:,}"


def _short(decided: Mapping[str, Any], name: str) -> str:
    text = str(decided.get(name))
    return text if len(text) <= 40 else f"{text[:40]}..."
