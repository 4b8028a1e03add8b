"""What pruning is said to need is what it takes on an emulated GPU, and what 8 billion parameters need has limits."""

from __future__ import annotations

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny
from emulated import EmulatedGpus
from emulated.tensors import Memory, _Held
from made_cells import made_cell
from pages import text
from tiny_methods import EXPERTS, METHODS, TINY
from transformers import AutoModelForCausalLM, LlamaConfig

import methods
from bench.cli.main import main
from bench.healing.teacher import DensePredictions
from bench.healing.training import Text, heal
from bench.plan.cell import Cell
from bench.plan.protocol import Recipe, protocol_for_cuda, protocol_of_profile
from bench.schedule import memory_needs
from bench.schedule.memory_needs import (
    GIB,
    PROCESS,
    Footprint,
)
from bench.schedule.pruning_memory import PruningMemory
from bench.schedule.shape import Shape
from methods.errors import UserError
from methods.model import layer_store
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder

LOW, HIGH = 0.7, 2.0  # the estimate, in peaks that were counted
RATIO = 0.3
# a shape, and sequences, tokens and memory of the calibration: of what weights, states or logits take most
WEIGHTS = {"hidden_size": 128, "intermediate_size": 352, "vocab_size": 512}, (4, 16, 2**30)
STATES = {"hidden_size": 64, "intermediate_size": 176, "vocab_size": 512}, (16, 32, 2**19)
LOGITS = {"hidden_size": 64, "intermediate_size": 176, "vocab_size": 2048}, (8, 32, 2**20)
EVERY = [name for name in METHODS if TINY[name].looks_at != "nothing"]
COMPENSATED = [
    "shortgpt+replaceme",
    "shortgpt+scale",
    "shortgpt+ghost",
    "flap+refit",
    "flap+blockwise",
    "shortgpt+reinitialize",
]
SHORT = {  # what takes long, and no more memory for it
    "tyr": {"rounds": 1, "generations": 1, "offspring": 2, "survivors": 1, "levels": 3},
    "llm-streamline": {"passes": 1},
    "evopress": {"generations": 2, "offspring": 4, "initial": 4},
    "darwinlm": {"generations": 1, "offspring": 2},
}
CASES = [(WEIGHTS, "float32", name, SHORT.get(name, {})) for name in [*EVERY, *COMPENSATED]]
CASES += [
    (WEIGHTS, "float32", "llm-pruner", {"importance": "mix"}),
    (WEIGHTS, "float32", "laco-ls", {"attention": True}),
]
CASES += [
    (STATES, "bfloat16", name, {})
    for name in ("shortgpt", "flap", "wanda-sp", "obs", "svd-llm", "llm-pruner", "shortgpt+ghost")
]
CASES += [(WEIGHTS, "float32", name, {}) for name in EXPERTS]
CASES += [(STATES, "bfloat16", "reap", {}), (LOGITS, "float32", "reap", {})]
CASES += [(LOGITS, "float32", name, {}) for name in ("slicegpt", "llm-pruner", "sleb", "finercut", "laco-ls")]
# searches over what puzzle, sleb and blockpruner, which are here too, take memory for, and obs but for one case
LONG = [
    case
    for case in CASES
    if case[2] in ("tyr", "laco-puzzle", "evopress", "finercut") or case[:3] == (WEIGHTS, "float32", "obs")
]
CASES = [pytest.param(*case, marks=pytest.mark.nightly) if case in LONG else case for case in CASES]


@pytest.mark.parametrize(("shape", "dtype", "name", "settings"), CASES, ids=str)
def test_what_pruning_needs_is_about_what_it_takes(shape, dtype, name, settings):
    options, (rows, columns, memory) = shape
    ids = torch.randint(3, 128, (rows, columns), generator=torch.Generator().manual_seed(1))
    model, number = tiny("mixtral" if name in EXPERTS else "llama", **options), getattr(torch, dtype)
    pruner = methods.make(name, settings)
    amount = PruningMemory(pruner, Shape.of(Decoder(model)), number.itemsize, RATIO, rows, columns, memory)
    with EmulatedGpus() as gpus:
        decoder = Decoder(model.to("cuda", number))
        weights = gpus.memories[0].now
        torch.cuda.reset_peak_memory_stats()
        calibration = Calibration(ids, torch.ones_like(ids, dtype=torch.bool), memory=memory)
        pruner.prune(decoder, calibration, RATIO)
        taken = gpus.memories[0].peak - weights
    assert LOW * taken <= amount.device_bytes <= HIGH * taken


@pytest.mark.parametrize(("name", "settings"), [("llm-streamline", {"batch": 1}), ("angular", {"token": "all"})])
def test_states_between_layers_wait_on_the_host_or_in_files_and_not_on_a_gpu(name, settings):
    options, (rows, columns, memory) = STATES
    shape = Shape.of(Decoder(tiny("llama", **options, num_hidden_layers=40)))
    amount = PruningMemory(methods.make(name, settings), shape, 2, RATIO, rows, columns, memory)
    between = 41 * 2 * rows * columns * shape.width
    on_gpu, on_cpu = (replace(amount, on_gpu=on_gpu).device_bytes for on_gpu in (True, False))
    assert on_cpu - on_gpu >= 0.5 * between
    assert on_cpu > between
    assert amount.parked >= between
    assert amount.waiting >= between
    assert replace(amount, on_gpu=False, in_folder=True).device_bytes <= on_gpu


FILED = [(STATES, "bfloat16", name) for name in ("shortgpt", "wanda-sp", "llm-pruner", "shortgpt+ghost", "flap+refit")]
FILED += [(LOGITS, "float32", name) for name in ("slicegpt", "sleb", "finercut", "laco-ls")]


@pytest.mark.parametrize(("shape", "dtype", "name"), FILED, ids=str)
def test_what_waits_in_a_folder_and_what_does_not_is_about_what_is_said(shape, dtype, name, tmp_path, monkeypatch):
    """States of an emulated GPU that are put to wait are counted apart there."""
    options, (rows, columns, memory) = shape
    ids = torch.randint(3, 128, (rows, columns), generator=torch.Generator().manual_seed(1))
    model, number, files = tiny("llama", **options), getattr(torch, dtype), Memory(2**40)
    pruner = methods.make(name)
    amount = PruningMemory(
        pruner, Shape.of(Decoder(model)), number.itemsize, RATIO, rows, columns, memory, in_folder=True
    )

    def put(x, folder):
        found = x.clone()
        found.held = _Held(files, found.inner.untyped_storage())
        return found

    monkeypatch.setattr(layer_store, "put_to_wait", put)
    with EmulatedGpus() as gpus:
        decoder = Decoder(model.to("cuda", number))
        weights = gpus.memories[0].now
        torch.cuda.reset_peak_memory_stats()
        mask = torch.ones_like(ids, dtype=torch.bool)
        pruner.prune(decoder, Calibration(ids, mask, memory=memory, offload=tmp_path), RATIO)
        taken = gpus.memories[0].peak - weights
    shares = amount.device_bytes / taken, amount.waiting / files.peak
    assert all(LOW <= share <= HIGH for share in shares), shares
    assert files.now == 0


@pytest.mark.parametrize("how", [{"kind": "lora"}, {"kind": "lora", "loss": "kl"}, {"kind": "full"}], ids=str)
def test_what_healing_needs_is_about_what_it_takes(how):
    """At a shape at which a second model on the GPU would be as much as all else together."""
    options, (rows, columns, _) = WEIGHTS
    ids = torch.randint(3, 128, (rows, columns), generator=torch.Generator().manual_seed(1))
    text, recipe = Text(ids, ids[:2], "made here", "0" * 64), Recipe(tokens=64, length=16, batch=2, points=1, **how)
    footprint = Footprint(Shape.of(Decoder(tiny("llama", **options))), 4)
    with EmulatedGpus() as gpus:
        decoder = Decoder(tiny("llama", **options).to("cuda"))
        torch.cuda.reset_peak_memory_stats()
        dense = DensePredictions(decoder, text.train) if recipe.loss == "kl" else None
        heal(decoder, text, recipe, dense=dense)
        taken = gpus.memories[0].peak - footprint.weights
    needed = footprint.stages(cell("dense", healing=recipe, ratio=None))["heal"] - footprint.weights
    assert LOW * taken <= needed <= HIGH * taken, (needed, taken)


@pytest.fixture(scope="module")
def eight_billion():
    """The shape of Llama 3 8B in bfloat16."""
    return llama(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32)


def llama(**sizes: int) -> Footprint:
    """The shape of a Llama 3 in bfloat16."""
    config = LlamaConfig(**sizes, num_key_value_heads=8, vocab_size=128256, tie_word_embeddings=False)
    with torch.device("meta"):
        return Footprint(Shape.of(Decoder(AutoModelForCausalLM.from_config(config))), 2)


def refuse(cells: list[Cell], *limits: object, **where: object) -> None:
    memory_needs.refuse_misfits(memory_needs.find_misfits(cells, *limits, **where))


def cell(method: str, **changes: object) -> Cell:
    found = made_cell(
        method,
        RATIO,
        replace(protocol_of_profile("full"), speed_rounds=0),
        model="8b",
        match="total",
        device="cuda:0",
        dtype="bfloat16",
    )
    return replace(found, **changes)


TIMED, UNTIMED = {"protocol": protocol_of_profile("full")}, replace(protocol_of_profile("full"), speed_rounds=0)
TIMED_ON_GPU = {"protocol": protocol_for_cuda(protocol_of_profile("full"), (), None)}
HEALED = {"healing": Recipe(kind="lora", loss="kl")}


@pytest.mark.parametrize(
    ("method", "changes", "most"),
    [
        ("llm-pruner", {}, 18),
        ("slicegpt", {}, 22),
        ("laco-ls", {}, 22),
        ("obs", {}, 24),
        ("flap+refit", {}, 22),
        ("wanda-sp+refit", {}, 22),
        ("shortened-llama-taylor", {"parameters": {"tokens": 1280}}, 18),
        ("laco", HEALED, 22),
        ("laco", TIMED_ON_GPU, 22),
    ],
)
def test_a_card_of_24_gib_prunes_times_and_heals_8_billion_parameters(eight_billion, method, changes, most):
    needed = eight_billion.needs(cell(method, **changes)).device
    assert eight_billion.weights < needed <= most * GIB


def test_a_teacher_lies_in_memory_alone_and_its_head_is_kept(eight_billion, monkeypatch):
    small = llama(hidden_size=512, intermediate_size=1024, num_hidden_layers=2, num_attention_heads=8)
    monkeypatch.setattr(memory_needs, "shape_of", lambda model, trust: {"large": eight_billion.shape}[model])
    taught, alone = (cell("laco", healing=Recipe(loss="kl", teacher=teacher)) for teacher in ("large", None))
    assert 1.0 < small.stages(taught)["heal"] / eight_billion.weights < 1.1
    assert small.stages(alone)["heal"] < 0.2 * eight_billion.weights
    heads = [footprint.bytes_each * footprint.shape.head for footprint in (eight_billion, small)]
    assert small.stages(taught)["prune"] - small.stages(alone)["prune"] == heads[0] - heads[1]
    widths = [2 * (100_000 // 256) * 256 * footprint.shape.width for footprint in (eight_billion, small)]
    assert small._parked(taught) - small._parked(alone) == widths[0] - widths[1]


def test_a_ratio_of_the_decoder_leaves_more_than_one_of_all(eight_billion):
    of_all, of_decoder = (eight_billion.stages(cell("laco", ratio_of=of))["perplexity"] for of in ("all", "decoder"))
    assert of_decoder - of_all == pytest.approx(0.3 * 2 * (eight_billion.shape.parameters - eight_billion.shape.inner))


def test_tasks_are_scored_in_whole_batches_however_few_the_windows(eight_billion):
    few = {"windows": 1, "window": 64, "stride": 64, "batch_tokens": 4096}
    asked = {
        tasks: cell("dense", protocol=protocol_of_profile("quick", tasks=tasks, **few)) for tasks in ((), ("piqa",))
    }
    rows = [eight_billion.stages(one)["perplexity"] - eight_billion.weights for one in asked.values()]
    assert rows[1] > 10 * rows[0]
    whole = cell("dense", protocol=protocol_of_profile("quick", tasks=(), **few | {"windows": 64}))
    assert eight_billion.stages(whole)["perplexity"] - eight_billion.weights == rows[1]


def test_the_matrices_of_all_levels_of_tyr_wait_on_the_host(eight_billion):
    """Nine levels of the output matrices of 32 layers, as wide at the mean as the ratio leaves them."""
    matrices = 9 * 32 * 0.7 * (14336 + 4096) * 4096 * 2
    tyr, obs = (eight_billion.needs(cell(name, ratio_of="all")) for name in ("tyr", "obs"))
    assert tyr.host - obs.host == pytest.approx(matrices, rel=0.25)  # more of the decoder goes than of all parameters
    assert tyr.host - obs.host < matrices
    on_cpu = eight_billion.needs(cell("tyr", ratio_of="all", device="cpu"))
    assert on_cpu.host > eight_billion.weights + tyr.host - obs.host


def test_a_checkpoint_of_full_training_is_on_the_host_while_it_is_written(eight_billion):
    full, lora = (eight_billion.needs(cell("laco", healing=Recipe(kind=kind))).host for kind in ("full", "lora"))
    left = eight_billion.stages(cell("laco"))["perplexity"] - eight_billion._scoring(cell("laco"))
    assert full - lora == pytest.approx(12 * left / 2)
    on_cpu = cell("laco", healing=Recipe(kind="full"), device="cpu")  # from whose memory it is written
    assert eight_billion.needs(on_cpu).host == eight_billion.process + eight_billion.stages(on_cpu)["heal"]


def test_what_needs_more_than_24_gib_says_so(eight_billion):
    assert eight_billion.needs(cell("laco", healing=Recipe(kind="full"))).device > 80 * GIB
    assert eight_billion.needs(cell("laco-ls", parameters={"attention": True})).device > 24 * GIB
    assert eight_billion.stages(cell("laco", **HEALED))["heal"] > eight_billion.stages(cell("laco"))["prune"]


@pytest.mark.parametrize(("memory", "code"), [(2**17, 2), (2**33, 0)])
def test_a_run_is_refused_before_any_work_where_the_gpu_is_too_small(base, tmp_path, memory, code, capsys):
    run = [*base, "--methods", "drop-tail", "--ratio", "0.3", "--device", "cuda", "--no-isolate", "--speed-rounds", "0"]
    with EmulatedGpus(memory=memory):
        assert main(run) == code
    said = capsys.readouterr().err
    refusal = "needs about 0.0 GiB, or 0.0 GiB with layers that visit the GPU, and the GPU has 0.0 GiB; leave it out"
    assert (refusal in said) == (code == 2)
    assert len(said.strip().splitlines()) == 1 or not code
    assert len(list(tmp_path.glob("**/cells/*.json"))) == (0 if code else 2)


ON_CPU = {"device": "cpu"}


@pytest.mark.parametrize(
    ("method", "most"),
    [("dense", 3), ("shortgpt", 3), ("flap", 5), ("llm-pruner", 4), ("shortgpt+replaceme", 5), ("laco-ls", 9)],
)
def test_8_billion_parameters_are_pruned_in_little_memory_where_their_weights_lie_in_files(eight_billion, method, most):
    asked = cell(method, **ON_CPU)
    whole, in_files = (replace(eight_billion, process=PROCESS).place(asked, room) for room in (64 * GIB, 10 * GIB))
    assert (whole.in_files, in_files.in_files) == (False, True)
    assert whole.host > eight_billion.weights
    assert PROCESS < in_files.host <= most * GIB


@pytest.mark.parametrize(
    ("method", "most"),
    [("dense", 5), ("shortgpt", 6), ("flap", 7), ("slicegpt", 8), ("llm-pruner", 7), ("laco-ls", 11)],
)
def test_8_billion_parameters_are_pruned_on_a_small_gpu_that_their_layers_visit(eight_billion, method, most):
    asked = cell(method)
    whole, visiting = (eight_billion.place(asked, 64 * GIB, card=card) for card in (40 * GIB, 12 * GIB))
    assert (whole.in_files, visiting.in_files) == (False, True)
    assert whole == eight_billion.place(asked, 64 * GIB)  # where nothing is known of the GPU
    assert whole.device >= eight_billion.weights
    assert visiting.device <= most * GIB
    assert visiting.host < GIB  # of layers that are brought up, one after the other


def test_the_table_of_layers_that_visit_is_what_the_formula_says(eight_billion):
    sizes = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
    footprints = eight_billion, llama(**sizes)
    rows = [line.split("|") for line in text("docs/guides/large-models.md").splitlines() if line.count("|") == 6]
    rows = [[each.strip(" `") for each in row[1:-1]] for row in rows[2:]]
    assert len(rows) == 7
    for method, *figures in rows:
        protocol = replace(protocol_of_profile("quick"), speed_rounds=0)
        asked = cell(method, ratio=None if method == "dense" else 0.2, ratio_of="layers", protocol=protocol)
        needs = [one for each in footprints for one in (each.needs(asked), each.place(asked, 64 * GIB, card=10 * GIB))]
        assert figures == [f"{one.device / GIB:.1f}" for one in needs]


def test_what_the_layers_of_a_cell_cannot_visit_is_refused_with_the_reason(eight_billion, monkeypatch, capsys):
    monkeypatch.setattr(memory_needs, "footprint_of", lambda *_, **__: eight_billion)
    with EmulatedGpus(count=2, memory=12 * GIB):
        refuse([cell("shortgpt")])
        assert capsys.readouterr().err == ""
        with pytest.raises(
            UserError,
            match=r"has 12\.0 GiB; it is timed, for which the pruned model alone takes 14\.7 GiB; leave that out",
        ):
            refuse([cell("shortgpt"), cell("shortgpt", **TIMED, ratio=0.1)])
        with pytest.raises(UserError, match=r"or \d+\.\d GiB with layers that visit the GPU, and it may take 2\.0 GiB"):
            refuse([cell("laco-ls")], device_memory=2)
        with pytest.raises(UserError, match=r"and 2 GPUs have 24\.0 GiB; leave it out"):
            refuse([cell("laco", device="cuda", healing=Recipe(kind="full"))], gpus=2)


@pytest.mark.parametrize(
    ("cards", "run", "there"),
    [
        ((24, 80), (2, 1, "cuda"), 104),
        ((80, 24), (1, 1, "cuda"), 80),
        ((80, 24), (1, 1, "cuda:1"), 24),
        ((80, 24), (1, 2, "cuda"), 24),
        ((80, 24, 24, 24), (2, 2, "cuda"), 48),
        ((80,), (1, 4, "cuda"), 80),  # of instances that a process sees one of
    ],
)
def test_a_cell_has_the_memory_of_its_own_gpus(eight_billion, monkeypatch, cards, run, there):
    """All of them are there for a model that is spread; of slots with unlike ones the least counts."""
    monkeypatch.setattr(memory_needs, "footprint_of", lambda *_, **__: replace(eight_billion, bytes_each=20))
    gpus, slots, device = run
    asked = cell("shortgpt", device=device, healing=Recipe())  # of which no layers visit a GPU
    with EmulatedGpus(count=len(cards)) as made:
        for memory, size in zip(made.memories, cards, strict=True):
            memory.size = size * GIB
        with pytest.raises(UserError, match=rf"(the GPU has|{gpus} GPUs have) {there}\.0 GiB"):
            refuse([asked], gpus, slots=slots)


@pytest.mark.parametrize("share", [0.5, 1.01, 1.1, 2.0, 6.0])
def test_states_that_wait_while_a_cell_in_files_is_scored_take_half_of_what_is_left(eight_billion, share):
    """So that they are no reason to refuse a cell; what there is beyond STATES is for pages of the files."""
    asked, footprint = cell("dense", **ON_CPU), replace(eight_billion, process=PROCESS)
    least = footprint.place(asked, 0).host
    room = round(share * least)
    states = footprint.room_for_states(asked, room)
    assert states == min(memory_needs.STATES, max(0, room - least) // 2)
    assert footprint.place(asked, room).host == least + states
    few = cell("dense", **ON_CPU, protocol=replace(asked.protocol, tasks=(), windows=1))
    assert footprint.place(few, 9 * GIB).host <= least + 2 * few.protocol.window * 4096 * len(few.protocol.texts)


@pytest.mark.parametrize(
    ("room", "how"),
    [(55, (False, False)), (31, (True, False)), (16, (True, True)), (12, (False, False))],
    ids=["all in memory", "pruned in files", "timed alone", "too large"],
)
def test_a_cell_that_is_timed_has_the_dense_model_beside_it_while_there_is_room(eight_billion, room, how):
    """15 GiB a model: three of them in memory, two beside files, and the pruned one, of 10.5 GiB, alone."""
    footprint, asked = replace(eight_billion, process=PROCESS), cell("shortgpt", **ON_CPU, **TIMED)
    found = footprint.place(asked, room * GIB)
    assert (found.in_files, found.alone) == how
    assert (found.host <= room * GIB) == (room != 12)
    models = {55: 3, 31: 1 + 0.7, 16: 0.7, 12: 3}[room] * footprint.weights
    assert 0 <= found.host - models - 2 * PROCESS < 2 * GIB
    dense = footprint.place(cell("dense", ratio=None, **ON_CPU, **TIMED), room * GIB)
    assert (dense.in_files, dense.alone) == (room < 55, room < 32)


def test_a_cell_that_is_timed_and_has_no_room_to_be_pruned_in_files_is_refused_for_that(eight_billion, monkeypatch):
    """And not for what timing takes, which is less."""
    monkeypatch.setattr(memory_needs, "footprint_of", lambda *_, **__: replace(eight_billion, process=PROCESS))
    asked = cell("laco-ls", **ON_CPU, **TIMED, ratio=0.9)
    pruned, timed = (
        eight_billion.place(replace(asked, protocol=one), 0).host for one in (UNTIMED, protocol_of_profile("full"))
    )
    assert timed == pruned > 5 * GIB
    with pytest.raises(
        UserError, match=r"or \d\.\d GiB with its weights in files, and may take 3\.0 GiB; leave it out"
    ):
        refuse([asked], memory=3)


def test_on_a_gpu_a_cell_that_is_timed_has_the_dense_model_beside_it_where_one_fits_at_a_time(eight_billion):
    asked = cell("laco-ls", **TIMED)
    whole, visiting, alone, none = (eight_billion.place(asked, 0, card=card * GIB) for card in (24, 18, 13, 11))
    assert [(one.in_files, one.alone) for one in (whole, visiting, alone, none)] == [
        *((False, False), (True, False), (True, True), (False, False))
    ]
    assert visiting.device <= 18 * GIB
    assert 0.8 * eight_billion.weights > alone.device >= 0.7 * eight_billion.weights
    assert none == whole  # which is refused


def test_that_the_dense_model_is_not_timed_is_said_once_and_before_any_work(eight_billion, monkeypatch, capsys):
    monkeypatch.setattr(memory_needs, "footprint_of", lambda *_, **__: replace(eight_billion, process=PROCESS))
    cells = [cell(name, **ON_CPU, **TIMED) for name in ("dense", "shortgpt", "laco")]
    refuse(cells, memory=16)
    assert capsys.readouterr().err.strip() == memory_needs.ALONE
    refuse(cells, memory=55)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("changes", [TIMED, HEALED, {"model": "8b.gguf"}], ids=["timed", "healed", "gguf"])
def test_a_cell_that_wants_its_model_in_memory_is_refused_with_the_reason(eight_billion, changes, monkeypatch):
    monkeypatch.setattr(memory_needs, "footprint_of", lambda *_, **__: eight_billion)
    asked = cell("laco", **(ON_CPU | changes))
    assert not eight_billion.place(asked, 8 * GIB).in_files
    with pytest.raises(
        UserError, match=r"needs about \d+\.\d GiB, and may take 8\.0 GiB: it (is timed|is healed|comes from)"
    ):
        refuse([cell("shortgpt", **ON_CPU), asked], memory=8)


def test_what_surely_fits_not_even_with_its_weights_in_files_is_refused(eight_billion, monkeypatch, capsys):
    monkeypatch.setattr(memory_needs, "footprint_of", lambda *_, **__: eight_billion)
    asked = cell("laco-ls", **ON_CPU)
    needed = eight_billion.place(asked, GIB).host / GIB
    refuse([asked], memory=needed + 0.1)
    assert capsys.readouterr().err == ""
    refuse([asked], memory=0.8 * needed)
    assert "it may run out of memory" in capsys.readouterr().err
    with pytest.raises(UserError, match="with its weights in files"):
        refuse([asked], memory=0.4 * needed)


def test_states_that_alone_are_too_large_are_refused_with_the_option_that_puts_them_into_files(
    eight_billion, tmp_path, monkeypatch
):
    def footprint(cell, *, offload=False):
        return replace(eight_billion, offload=offload)

    monkeypatch.setattr(memory_needs, "footprint_of", footprint)
    many = replace(protocol_of_profile("full"), speed_rounds=0, calibration_sequences=512, calibration_length=2048)
    asked = cell("shortgpt+ghost", **ON_CPU, protocol=many)
    whole, offloaded = (footprint(asked, offload=each).place(asked, 8 * GIB) for each in (False, True))
    assert whole.host > 60 * GIB
    assert offloaded.host < 8 * GIB
    assert offloaded.offloaded == 9 * 2 * 512 * 2048 * 4096
    with pytest.raises(UserError, match=r"8\.0 GiB; give --offload DIR, where 72\.0 GiB of states can wait, or"):
        refuse([asked], memory=8)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**40))
    refuse([asked], memory=8, offload=tmp_path)


@pytest.mark.parametrize("changes", [{}, TIMED], ids=["in files", "timed"])
def test_a_cell_whose_process_alone_takes_more_is_refused_although_its_weights_would_fit(
    eight_billion, changes, monkeypatch
):
    monkeypatch.setattr(memory_needs, "footprint_of", lambda *_, **__: replace(eight_billion, process=30 * GIB))
    assert eight_billion.weights < 20 * GIB
    with pytest.raises(UserError, match=r"and may take 20\.0 GiB; leave it out, or give less calibration"):
        refuse([cell("shortgpt", **(ON_CPU | changes))], memory=20)
