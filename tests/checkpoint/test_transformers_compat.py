"""Saved models in other processes: with this project, without it, and where it is not even installed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import torch
from byte_tokens import byte_tokenizer
from conftest import ALIKE, TINY, tiny
from safetensors.torch import load_file, save_file
from tiny_methods import SPECS, calibration, logits, pruned
from transformers import AutoModelForCausalLM

import methods
from methods.checkpoint import save_load
from methods.model.decoder import Decoder

# Loads every folder below argv[1] as argv[2] says and writes its logits and greedy tokens beside it. "both" loads it by
# the Auto classes, which importing methods.checkpoint is to teach, and then by this project. Refuses those in argv[3:].
CHILD = """
import sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import torch
from safetensors.torch import save_file
root, how = Path(sys.argv[1]), sys.argv[2]
if how == "both":
    from methods import checkpoint
elif how == "absent":
    try:
        import methods
        sys.exit("methods can be imported here")
    except ModuleNotFoundError:
        pass
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
ids = torch.randint(3, 128, (3, 20), generator=torch.Generator().manual_seed(1))
for folder in sorted(path for path in root.iterdir() if path.is_dir()):
    model = AutoModelForCausalLM.from_pretrained(folder)
    if how in ("stock", "absent"):
        assert AutoTokenizer.from_pretrained(folder)("a text")["input_ids"], folder
    with torch.no_grad():
        found = {"logits": model(ids).logits}
        for name, cache in (("greedy", True), ("uncached", False)):
            mask = torch.ones_like(ids)
            found[name] = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, use_cache=cache)
        if how == "both":
            assert torch.equal(checkpoint.load(folder).model(ids).logits, found["logits"]), folder
    save_file(found, root / f"{folder.name}.out.safetensors")
for folder in sys.argv[3:]:
    try:
        AutoModelForCausalLM.from_pretrained(folder)
    except ValueError as error:
        assert "`prunebench`" in str(error), error
    else:
        sys.exit(f"{folder} was loaded")
known = {name.partition(".")[0] for name in sys.modules} & {"methods", "bench", "reports"}
sys.exit(f"imported {known}" if how in ("stock", "absent") and known else 0)
"""


def child(
    root: Path, how: str, python: str = sys.executable, refused: Path | None = None
) -> dict[str, dict[str, torch.Tensor]]:
    """{folder: what the process made of it}; it starts outside the project, so that nothing is found by accident.

    refused  a folder that it is to refuse
    """
    command = [python, "-c", CHILD, str(root), how, *([] if refused is None else [str(refused)])]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {file.name.removesuffix(".out.safetensors"): load_file(file) for file in root.glob("*.out.safetensors")}


def greedy(model: Decoder, ids: torch.Tensor) -> torch.Tensor:
    return model.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)


def compare(found: dict[str, dict[str, torch.Tensor]], models: dict[str, Decoder], ids: torch.Tensor) -> None:
    assert found.keys() == models.keys()
    for name, model in models.items():
        expected = logits(model, ids)
        if "gpt2" in name:  # the stock class multiplies by transposed matrices, which sums in another order
            atol = 1e-5 * float(expected.abs().max())
            torch.testing.assert_close(
                found[name]["logits"], expected, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
            )
        else:
            assert torch.equal(found[name]["logits"], expected), name
        assert torch.equal(found[name]["greedy"], greedy(model, ids)), name
        assert torch.equal(found[name]["uncached"], found[name]["greedy"]), name


@pytest.fixture(scope="module")
def families(pytestconfig):
    """Those that differ in structure; all of them in a nightly run."""
    return [family for family in TINY if family not in ALIKE or pytestconfig.getoption("--nightly")]


# What stock transformers loads: fewer layers, and narrower ones, of every family. What merges layers or drops the last
# ones has the shapes of the first.
STOCK = {"drop": 0.0, "minitron-width": 0.2}
LIKE_DROP = {"laco-llama": 0.3, "drop-tail-llama": 0.3, "laco-gpt2": 0.3}


@pytest.fixture(scope="module")
def stock(families, tmp_path_factory):
    """(folder of folders, {name: model}) of everything that says that it loads with transformers alone."""
    root, models = tmp_path_factory.mktemp("stock"), {}
    ratios = {f"{method}-{family}": ratio for family in families for method, ratio in STOCK.items()} | LIKE_DROP
    for name, ratio in ratios.items():
        method, _, family = name.rpartition("-")
        models[name] = Decoder(tiny(family, vocab_size=260))
        methods.make(method, SPECS[method]).prune(models[name], calibration(), ratio)
        manifest = save_load.save(models[name], root / name, tokenizer=byte_tokenizer())
        assert manifest["loads_with"] == "transformers", manifest["reason"]
    return root, models


def test_stock_transformers_loads_what_is_said_to_be_stock_and_refuses_the_rest(stock, ids, tmp_path):
    """Without this project it makes no other model of a folder that is not said to be stock."""
    root, models = stock
    model, _ = pruned("llm-pruner", "llama", 0.3)
    save_load.save(model, tmp_path / "uneven", tokenizer=byte_tokenizer())
    compare(child(root, "stock", refused=tmp_path / "uneven"), models, ids)
    config = json.loads((tmp_path / "uneven" / "config.json").read_text())
    assert "auto_map" not in json.dumps(config)


@pytest.mark.other_environment
def test_an_environment_without_this_project_loads_it_too(stock, ids, tmp_path):
    """An environment of its own with the packages of this one, but not with what makes this checkout importable.

    Its transformers is the same, so that the models of two families are enough.
    """
    root = tmp_path / "models"
    models = {name: model for name, model in stock[1].items() if name.endswith(("llama", "gpt2"))}
    for name in models:
        shutil.copytree(stock[0] / name, root / name)
    venv.create(tmp_path / "environment", with_pip=False)
    (packages,) = (tmp_path / "environment").glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = str(tmp_path / "environment" / "bin" / "python")
    compare(child(root, "absent", python), models, ids)
    plain = subprocess.run([python, "-c", "import methods"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError" in plain.stderr


UNEVEN = ("slicegpt", "flap", "blockpruner", "laco")


@pytest.fixture(scope="module")
def uneven(families, tmp_path_factory):
    """Models of every family with layers of several widths, and in turn with what else makes a model uneven."""
    root, models = tmp_path_factory.mktemp("uneven"), {}
    for number, family in enumerate(families):
        for method in ("llm-pruner", UNEVEN[number % len(UNEVEN)]):
            model, _ = pruned(method, family, 0.3)
            save_load.save(model, root / f"{method}-{family}")
            models[f"{method}-{family}"] = model
    return root, models


def test_a_fresh_process_loads_every_kind(uneven, ids):
    root, models = uneven
    compare(child(root, "both"), models, ids)


def test_a_reason_of_numbering_is_a_true_one(tmp_path, ids):
    """A GPT-2 that scales by the layer's number is another model when stock transformers numbers its layers anew."""
    model = Decoder(tiny("gpt2", scale_attn_by_inverse_layer_idx=True))
    methods.make("drop", {"layers": "0-2"}).prune(model, calibration(), 0.0)
    model.config.save_pretrained(tmp_path)
    stored = {name: tensor for name, tensor in model.model.state_dict().items() if name != "lm_head.weight"}
    transposed = ("attn.c_attn.weight", "c_proj.weight", "c_fc.weight")
    stored = {name: t.T.contiguous() if name.endswith(transposed) else t for name, t in stored.items()}
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    naive = Decoder(AutoModelForCausalLM.from_pretrained(tmp_path))
    off = (logits(naive, ids) - logits(model, ids)).abs().max()
    assert off > 1e-3 * logits(model, ids).abs().max()
