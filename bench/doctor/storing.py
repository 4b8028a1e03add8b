"""Checks saving, loading again, and generating with a cache, on pruned models of every form."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from bench.doctor import answers, tiny_model
from bench.doctor.finding import Finding, judged, raised
from bench.doctor.numbers import DTYPES, apart, is_close, named
from bench.evaluation import checks
from methods.checkpoint import save_load
from methods.model.decoder import Decoder

FORMS = {  # a method that leaves a model of each form
    "dense": "whole",
    "drop": "layers gone",
    "2ssp": "attentions gone, fewer channels",
    "flap": "layers of unlike widths",
    "slicegpt": "a narrower residual",
    "shortgpt+ghost": "maps of the residual",
}
GIVEN = {"drop": {"layers": "0+4-5"}}  # the first layer too, from which a cache takes its length
PROMPTS = (24, 9)  # tokens of each; the shorter one is padded
STEPS = 12


def check(device: torch.device) -> Iterator[Finding]:
    """Save, load and generate in each dtype."""
    for name, form in FORMS.items():
        what = f"save and generate, {name}"
        try:
            yield one(what, name, form, device)
        except Exception as error:
            yield raised(what, error)


def one(what: str, name: str, form: str, device: torch.device) -> Finding:
    """Prune by one method, save the model, load it again, and generate with what has been loaded."""
    wrong, off = list[str](), dict[str, float]()
    for dtype in DTYPES:
        model, _ = answers.pruned(name, device, dtype, parameters=GIVEN.get(name))
        with tempfile.TemporaryDirectory() as folder:
            save_load.save(model, Path(folder) / "model")
            loaded = save_load.load(Path(folder) / "model", device=device)
        off[named(dtype)] = share = apart(answers.some_logits(loaded), answers.some_logits(model))
        if not is_close(share, dtype):
            wrong.append(f"in {named(dtype)} the loaded model's logits are off by {share:.2g} of their size")
        for which, one_of_them in {"": model, "loaded again, ": loaded}.items():
            wrong += [f"in {named(dtype)}, {which}{text}" for text in generation(one_of_them, dtype)]
    figure = ", ".join(f"{share:.1e} in {dtype}" for dtype, share in off.items())
    return judged(what, wrong, f"{form}: reloaded logits off by {figure}; cached tokens are the uncached", **off)


@torch.no_grad()
def generation(model: Decoder, dtype: torch.dtype) -> Iterator[str]:
    """Say where a token that was generated with the cache is not the most likely one of a forward without it.

    Tokens as likely as the most likely one but for rounding are right.
    """
    prompts = [tiny_model.tokens(f"prompt {length}", 1, length)[0].tolist() for length in PROMPTS]
    new = checks.greedy(model.model, prompts, STEPS)
    for prompt, chosen in zip(prompts, new.tolist(), strict=True):
        ids = torch.tensor([[*prompt, *chosen[:-1]]], device=model.embed.weight.device)
        logits = model.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :].float().cpu()
        short = logits.amax(-1) - logits[range(STEPS), chosen]
        off = (short / logits.std()).tolist()
        missed = [step for step, share in enumerate(off) if not is_close(share, dtype)]
        if missed:
            yield (
                f"token {missed[0] + 1} behind {len(prompt)} tokens, generated with a cache, is not what the model "
                "without a cache finds the most likely"
            )
