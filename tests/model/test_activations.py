"""What passes see is what the model's own forward does, seen by hooks."""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack

import pytest
import torch
from conftest import LATER, TINY, VOCABULARY, tiny
from torch import nn

from methods.errors import Unsupported
from methods.model.activations import Step, collect_by_layer, enter
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.structures import Sublayer, remove_sublayers

LENGTHS = (24, 15, 7, 1, 24, 10)
FAMILIES = {family: {} for family in TINY | LATER} | {
    "sequential neox": {"use_parallel_residual": False},
    "parallel stablelm": {"use_parallel_residual": True, "qk_layernorm": True},
}


def model_of(family: str) -> Decoder:
    name = {"sequential neox": "gpt_neox", "parallel stablelm": "stablelm"}.get(family, family)
    return Decoder(tiny(name, **FAMILIES[family]))


def calibration(columns: int = 24, **options) -> Calibration:
    ids = torch.randint(3, VOCABULARY, (len(LENGTHS), 24), generator=torch.Generator().manual_seed(0))
    ids = nn.functional.pad(ids, (0, columns - 24), value=3)
    return Calibration(ids, torch.arange(columns) < torch.tensor(LENGTHS)[:, None], **options)


def steps(model: Decoder, tokens: Calibration) -> list[tuple[int, Step]]:
    found = []
    collect_by_layer(model, tokens, lambda number, seen: found.extend((number, step) for step in seen) or [])
    return found


def seen(model: Decoder, ids: torch.Tensor) -> dict[tuple[str, int], torch.Tensor]:
    """What the model's own forward gives to and takes from its parts, by name and layer, each (N, T, width)."""
    found, shape = {}, ids.shape

    def note(name, number, of_input):
        def hook(module, args, kwargs, output):
            state = (args[0] if args else kwargs["hidden_states"]) if of_input else output
            found[name, number] = (state[0] if isinstance(state, tuple) else state).reshape(*shape, -1)

        return hook

    with ExitStack() as stack, torch.no_grad():
        for number, layer in enumerate(model.layers):
            parts = [("x", layer.module, True), ("y", layer.module, False), ("attention", layer.attn, False)]
            parts += [("heads", layer.out, True), ("channels", layer.down, True)]
            parts.append(("into mlp", layer.mlp_norm if layer.family.mlp_norm else layer.inner.mlp, True))
            for name, module, of_input in parts:
                hook = note(name, number, of_input)
                stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        model.model(ids, use_cache=False)
    for number, layer in enumerate(model.layers):
        x, y = found["x", number], found["y", number]
        a = found["attention", number] if layer.parallel else found["into mlp", number] - x
        found |= {("a", number): a, ("m", number): y - x - a}
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_is_what_the_model_does(family):
    model, tokens = model_of(family), calibration(memory=1)  # one sequence to a micro-batch
    expected, rows = seen(model, tokens.ids), defaultdict(int)
    for number, step in steps(model, tokens):
        row = rows[number]
        rows[number] += len(step.x)
        assert torch.equal(step.mask, tokens.mask[row : row + len(step.x)])
        for name in ("x", "a", "m", "y", "heads", "channels"):
            wanted = expected[name, number][row : row + len(step.x)]
            atol = 1e-5 * float(expected["y", number].abs().max())
            torch.testing.assert_close(getattr(step, name), wanted, rtol=0, atol=atol)
    assert rows == dict.fromkeys(range(len(model.layers)), len(LENGTHS))


def test_steps_of_what_is_gone_are_empty():
    model = model_of("llama")
    remove_sublayers(model, [Sublayer("attention", 1), Sublayer("mlp", 2)])
    found = dict(steps(model, calibration()))
    assert found[1].heads.shape == (6, 24, 0) and not found[1].a.any()
    assert found[2].channels.shape == (6, 24, 0) and not found[2].m.any()
    last = {}
    model.layers[-1].module.register_forward_hook(lambda module, args, output: last.update(y=output))
    model.model(calibration().ids)
    torch.testing.assert_close(found[5].y, last["y"])


def test_the_last_token_is_the_last_real_one():
    (step, *_) = (step for _, step in steps(model_of("llama"), calibration()))
    rows, columns = step.last.nonzero(as_tuple=True)
    assert rows.tolist() == list(range(6))
    assert columns.tolist() == [length - 1 for length in LENGTHS]


def test_padding_further_changes_no_state():
    short, long = (steps(model_of("gemma3_text"), calibration(columns)) for columns in (24, 40))
    for (_, one), (_, other) in zip(short, long, strict=True):
        torch.testing.assert_close(one.y[one.mask], other.y[other.mask])


def test_states_that_overflow_are_refused():
    model = model_of("llama")
    model.layers[3].down.weight.data.fill_(torch.inf)
    with pytest.raises(Unsupported, match="overflow; load the model in bfloat16 or float32"):
        steps(model, calibration())


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_model(family, ids):
    model, last = model_of(family), {}
    model.layers[-1].module.register_forward_hook(lambda module, args, output: last.update(y=output))
    with torch.no_grad():
        expected = model.model(ids).logits
        assert torch.equal(model.logits(last["y"]), expected)


@pytest.mark.parametrize("gone", ["", "layer", "attention", "mlp", "attention mlp"])
@pytest.mark.parametrize("family", [*TINY, "granite", "olmo2", "parallel stablelm"])
def test_a_layer_runs_as_if_parts_were_gone(family, gone, ids):
    model, shorter = model_of(family), model_of(family)
    entry, parts = enter(model, ids), gone.split()
    layer, cut = model.layers[1], shorter.layers[1]
    for part, remove in (("attention", cut.remove_attention), ("mlp", cut.remove_mlp)):
        if part in parts:
            remove()
    with torch.no_grad():
        arguments = entry.arguments[layer.kind]
        expected = entry.x if "layer" in parts else cut(entry.x, arguments)
        found = layer.run(entry.x, arguments, set(parts))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_the_first_sequences_are_counted_in_real_tokens():
    tokens = calibration()
    assert tokens.first(46).ids.shape == (3, 24)
    assert tokens.first(45).ids.shape == (2, 24)
    assert len(tokens.first(47).ids) == len(calibration(40).first(47).ids) == 4
    assert tokens.first(5).ids.shape == (1, 5)
    assert tokens.first(10**6).ids.shape == (6, 24)


def test_a_layer_takes_all_micro_batches_before_the_next_one():
    model = model_of("llama")
    order, tokens = [], calibration(memory=1)
    for number, layer in enumerate(model.layers):
        layer.out.register_forward_pre_hook(lambda *_, number=number: order.append(number))
    assert len(collect_by_layer(model, tokens, lambda number, seen: [])) == len(
        model.layers
    )  # which looks at none of them
    assert order == [number for number in range(len(model.layers)) for _ in range(len(LENGTHS))]
