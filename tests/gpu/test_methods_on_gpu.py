"""Every method and compensation decides on an emulated GPU what it decides on the CPU, and leaves the same model."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from emulated import EmulatedGpus
from places import CUDA, devices_of, model_of, spread
from tiny_methods import EXPERTS, SPECS, layers_for

import methods
from methods.model.activations import enter
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.layer_store import LayerStore, move_modules

METHODS = [card.name for card in methods.cards_of_methods() if not card.fixed and card.name not in EXPERTS]
COMPENSATED = [
    "shortgpt+replaceme",
    "llm-drop+ghost",
    "llm-drop+linearpatch",
    "shortgpt+scale",
    "flap+refit",
    "flap+blockwise",
]
SETTINGS = {  # that take other paths than the defaults
    "laco-ls": {"attention": True, "later": True, "sweeps": 2, "choose": "error"},
    "laco-published": {"norms": "last"},
    "llm-pruner": {"importance": "mix", "steps": 2},
    "slicegpt": {"slice_head": True},
    "angular": {"token": "all"},
    "sleb": {"loss": "kl"},
}
SHORT = ("evopress", "tyr", "darwinlm", "puzzle", "laco-puzzle", "llm-streamline")  # by the settings of tiny models
SEARCHES = {name: SPECS[name] for name in SHORT}
IDS = torch.randint(3, 128, (8, 24), generator=torch.Generator().manual_seed(1))
CALIBRATION = Calibration(IDS, torch.arange(24) < torch.tensor([24, 19] * 4)[:, None], memory=200_000)
FAMILIES = {  # whose layers differ from Llama's
    "gemma2": ["laco", "flap", "shortgpt+ghost"],
    "mixtral": [*EXPERTS, "llm-drop"],
    "gpt_neox": ["slicegpt", "wanda-sp", "laco-ls", "sleb", "llm-pruner", "flap+refit"],  # whose head is not tied
}
EVERY = [("llama", name, SEARCHES.get(name, {})) for name in [*METHODS, *COMPENSATED]]
EVERY += [("llama", name, settings) for name, settings in SETTINGS.items()]
EVERY += [(family, name, {}) for family, names in FAMILIES.items() for name in names]


@pytest.fixture(autouse=True)
def attention_of_the_cpu(monkeypatch):
    """Let gradients go through the attention of the CPU, whose bits those of plain products are not."""
    for user in ("model.gradients", "layer_training", "search.darwinlm"):
        monkeypatch.setattr(f"methods.{user}.make_repeatable", lambda model: nullcontext())


def pruned(name, model, settings=None):
    """Return what the method decides, and the logits of what it leaves, as on the CPU."""
    decoder = Decoder(model)
    decisions = methods.make(name, settings or {}).prune(decoder, CALIBRATION, 0.3)
    with torch.no_grad():
        return decisions, decoder.model(IDS[:2].to(decoder.embed.weight.device), use_cache=False).logits.cpu()


# A long search puts together what others here do one by one, and some have a sibling: in bfloat16 on one GPU, and at
# night everywhere. So are families beside Llama, and parameters beside the defaults.
LONG = ("tyr", "laco-puzzle", "evopress", "finercut", "llm-drop+ghost", "llm-drop+linearpatch", "shortgpt+scale")
PLAIN = EVERY[: len(METHODS) + len(COMPENSATED)]
WITHOUT_LONG = [
    pytest.param(*each, marks=[pytest.mark.nightly] if each[1] in LONG or each not in PLAIN else []) for each in EVERY
]
# Layers on two GPUs, and layers that visit one, take all that one GPU takes: that one has the rest, and at night all.
ON_ONE = [
    pytest.param(*each, torch.bfloat16, marks=[] if each[1] in LONG or each not in PLAIN else [pytest.mark.nightly])
    for each in EVERY
]
ON_ONE += [pytest.param(*each, torch.float32, marks=pytest.mark.nightly) for each in EVERY]
WHEREVER = [pytest.param(*cell.values, torch.bfloat16, marks=cell.marks) for cell in WITHOUT_LONG]
WHEREVER += [pytest.param(*cell.values, torch.float32, marks=pytest.mark.nightly) for cell in WITHOUT_LONG]


@pytest.mark.parametrize(("family", "name", "settings", "dtype"), ON_ONE)
def test_a_method_decides_on_a_gpu_what_it_decides_on_the_cpu(family, name, settings, dtype):
    expected, logits = pruned(name, model_of(family, dtype, layers_for(name)), settings)
    with EmulatedGpus():
        model = model_of(family, dtype, layers_for(name)).to("cuda")
        decided, found = pruned(name, model, settings)
        assert {parameter.device for parameter in model.parameters()} == {CUDA}
    assert decided == expected
    assert torch.equal(found, logits)


@pytest.mark.parametrize(("family", "name", "settings", "dtype"), WHEREVER)
def test_a_method_decides_wherever_layers_lie_what_it_decides_on_the_cpu(family, name, settings, dtype, tmp_path):
    """On two GPUs, and in files from where they visit one."""
    expected, logits = pruned(name, model_of(family, dtype, layers_for(name)), settings)
    with EmulatedGpus(count=2) as gpus:
        decided, found = pruned(name, spread(model_of(family, dtype, layers_for(name))), settings)
        assert all(memory.now for memory in gpus.memories)
    assert decided == expected
    assert torch.equal(found, logits)
    if name == "darwinlm":  # which says so of a model in files
        return
    with EmulatedGpus():
        decoder = Decoder(model_of(family, dtype, layers_for(name)), LayerStore(tmp_path, CUDA))
        assert devices_of(decoder) == ({torch.device("cpu")}, {CUDA})
        decided = methods.make(name, settings).prune(decoder, CALIBRATION, 0.3)
        assert devices_of(decoder) == ({torch.device("cpu")}, {CUDA})
        with torch.no_grad():
            if name == "slicegpt":  # whose residual no stand-in for a layer takes
                move_modules([decoder.model], torch.device("cpu"))
                found = decoder.model(IDS[:2], use_cache=False).logits
            else:
                entry = enter(decoder, IDS[:2])
                found = decoder.logits(entry.run(decoder.layers, entry.x)).cpu()
    assert decided == expected
    assert torch.equal(found, logits)
