"""Checks a spec before any work, and makes its cells."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

import methods
from bench.data import pretrained, programs, task_loading, task_sources, texts
from bench.data.assets import folder_of_cache, room_for_predictions
from bench.data.chat import check_template
from bench.data.needle import CONTEXTS
from bench.plan import grid
from bench.plan.cell import Cell, LatencyParts, LatencyTable
from bench.plan.fields import MethodChoice
from bench.plan.named import find_own_tasks, refuse_file
from bench.plan.protocol import Protocol, Recipe, protocol_for_cuda, refuse_recipe
from bench.plan.run_spec import RunSpec
from bench.system import environment
from methods.checkpoint import save_load
from methods.errors import CheckpointError, UserError
from methods.files import WRITING
from methods.model.decoder import Decoder


@dataclass(frozen=True)
class Target:
    """Holds a model without weights, the device that it runs on, and its dtype."""

    decoder: Decoder
    device: torch.device
    dtype: torch.dtype


def prepare_target(spec: RunSpec, model: str, read: Iterable[str], *, is_here: bool = True) -> Target:
    """Return one of the models of a run with its device, and set the number of torch's threads.

    read     texts that have to be there
    is_here  whether cells run on this machine, so that its devices are known

    Raises UserError for a text of `read` that cannot be had, and for a model, device, dtype or number of threads that
    cannot be used.
    """
    for text in dict.fromkeys(read):
        texts.check_text(text)
    device = pretrained.resolve_device(spec.device) if is_here else _device_by_name(spec)
    dtype = pretrained.resolve_dtype(spec.dtype, device, is_here=is_here)
    pretrained.check(model, spec.trust_remote_code)
    if spec.fixed_threads is not None and is_here:
        set_threads(spec.fixed_threads)
    try:
        return Target(Decoder(pretrained.make_shell(model, spec.trust_remote_code)), device, dtype)
    except methods.Unsupported as error:
        raise UserError(str(error)) from None


def prepare_target_without_cells(spec: RunSpec, model: str, read: Iterable[str]) -> Target:
    """Return the target of a command without cells, as `prepare_target`. Raises UserError for --threads auto."""
    if spec.threads == "auto":
        raise UserError("--threads auto is looked at before each stage of a cell, and here are no cells; give a number")
    return prepare_target(spec, model, read)


def read_latency_table(spec: RunSpec, model: str, target: Target, *, is_here: bool = True) -> LatencyTable:
    """Return the table of a run whose budgets are of latency. Raises UserError where there is none for this target.

    is_here  whether cells run on this machine, so that its processor and its threads must be the table's
    """
    command, file = f"`python -m bench latency-table {model} --out FILE` measures one", spec.latency_table
    if file is None:
        raise UserError(f"--budget latency is told by a table of this machine: --latency-table FILE; {command}")
    try:
        if file.exists() and not file.is_file():
            raise ValueError("it is no file, and might never end")
        table = json.loads(file.read_text(encoding="utf-8"))
        about, parts = table["about"], [table["parts"][part] for part in ("attention", "mlp")]
        rise = all(a[0] < b[0] and a[1] <= b[1] for points in parts for a, b in pairwise(points))
        sound = rise and table["rest"] >= 0 and all(len(each) > 1 and each[0] == [0, 0] for each in parts)
        has = {name: about[name] for name in ("weights_sha256", "dtype", "device", "threads")}
        has["device"] = torch.device(has["device"]).type
        has["processor"] = about["environment"].get("gpu" if has["device"] == "cuda" else "cpu")
    except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
        raise UserError(
            f"--latency-table {file} is no table of latencies ({type(error).__name__}); {command}"
        ) from None
    expected: dict[str, str | int | None] = {
        "weights_sha256": pretrained.sha256_of_weights(model),
        "dtype": str(target.dtype).removeprefix("torch."),
        "device": target.device.type,
    }
    if is_here:
        expected |= {"processor": environment.name_of_processor(target.device), "threads": torch.get_num_threads()}
    if differing := [name for name in expected if has[name] != expected[name]]:
        name = differing[0]
        raise UserError(f"--latency-table {file} has {name} {has[name]}, and this run {expected[name]}; {command}")
    if not sound:
        raise UserError(f"--latency-table {file} has figures that do not rise from nothing; {command}")
    attention, mlp = map(_to_floats, parts)
    return LatencyTable(LatencyParts(attention, mlp), float(table["rest"]), about)


def _to_floats(points: Sequence[Sequence[float]]) -> list[list[float]]:
    return [[float(size), float(ms)] for size, ms in points]


def _device_by_name(spec: RunSpec) -> torch.device:
    """Return the device of other machines by its name alone, since it cannot be looked for."""
    if spec.device not in ("cpu", "cuda"):
        raise UserError(f"cells run on other machines; say --device cuda or --device cpu, not {spec.device}")
    return torch.device(spec.device)


def cells_of_spec(spec: RunSpec, *, is_here: bool = True) -> list[Cell]:
    """Return the cells of a run. Raises UserError, in one line, for the first thing that is unsound.

    is_here  whether they run on this machine, so that its devices and cores are known
    """
    choices, stages, protocols = grid.choices_of_spec(spec), grid.stages_of_spec(spec), spec.protocols()
    try:
        methods.load(spec.plugins)
        choices = [_prepare_choice(choice, spec) for choice in choices]
        stages = [stage._replace(choice=_prepare_choice(stage.choice, spec)) for stage in stages]
    except ValueError as error:
        raise UserError(str(error)) from None
    _check_search_minutes(spec, [*choices, *(stage.choice for stage in stages)])
    first, (tasks, local, files) = protocols[0][0], check_tasks_of_spec(spec)
    if is_here:
        check_cores(first.pin)
        programs.refuse_open_guard(tasks)
    healed_on = [spec.healing.text] if spec.healing else []
    texts.check_calibrations((protocol.calibration for protocol, _ in protocols))
    read = [*first.texts, *healed_on]
    every, (ratios, of) = list[Cell](), spec.amounts
    for model in spec.models:
        target = prepare_target(spec, model, read, is_here=is_here)
        if spec.healing:
            _check_healing(spec.healing, [protocol for protocol, _ in protocols], target, spec.gpus_per_cell)
            _check_teacher(spec.healing, model, target, trust=spec.trust_remote_code)
            _check_room(spec.healing, is_here=is_here)
        if first.save_dtype or stages:  # which go on from a model that the run has kept
            try:
                save_load.refuse_own_code(target.decoder)
            except CheckpointError as error:
                raise UserError(f"{'--save-models' if first.save_dtype else '--then'}: {error}") from None
        _check_chat(first, model, trust=spec.trust_remote_code)
        for protocol in {protocol for protocol, _ in protocols}:
            refuse_longer(replace(protocol, tasks=tasks), target.decoder.config)
        for protocol, seed in protocols:
            common = {
                "model": model,
                "match": spec.match,
                "ratio_of": of,
                "device": str(target.device),
                "dtype": str(target.dtype).removeprefix("torch."),
                "trust_remote_code": spec.trust_remote_code,
                "protocol": replace(
                    _protocol_on_target(target, protocol, spec.protocol),
                    tasks=tasks,
                    task_data=local,
                    task_files=files,
                ),
                "seed": seed,
                "latency": read_latency_table(spec, model, target, is_here=is_here) if of == "latency" else None,
            }
            further = [_stage_cells(stage, target.decoder, common) for stage in stages]
            pruned = grid.cells_of_grid(choices, ratios, target.decoder, common)
            every += grid.add_chains(pruned, spec.healing, further, target.decoder)
    if grid.is_sweep(spec):
        grid.refuse_more_than(spec.max_cells, len(every), at_least=False)
    return every


def check_tasks_of_spec(spec: RunSpec) -> tuple[tuple[str, ...], Any, Any]:
    """Return the tasks of a run, the files of their documents, and those of their definitions.

    Raises UserError for a task that cannot be evaluated, and for code that the user does not let run.
    """
    local, (names, files) = task_sources.parse_task_data(spec.task_data), find_own_tasks(spec)
    programs.refuse_unconfirmed(task_loading.split_groups(names, local), is_confirmed=spec.confirm_run_unsafe_code)
    return task_loading.check_tasks(names, local, spec.protocols()[0][0].fewshot, files), local, files


def _check_chat(protocol: Protocol, model: str, *, trust: bool) -> None:
    """Refuse a model whose tokenizer cannot make the chat of a protocol."""
    if protocol.chat:
        check_template(pretrained.load_tokenizer(model, trust), model, protocol.chat)


def refuse_longer(protocol: Protocol, config: Any, *, is_calibrated: bool = True) -> None:
    """Refuse sequences that are longer than a model takes, since it was not made for such positions.

    config         of the model
    is_calibrated  whether the calibration of the protocol is read

    An answer that a task lets it write has to leave room for the prompt. Raises UserError.
    """
    most = getattr(config, "max_position_embeddings", None)
    if most is None:
        return
    window = protocol.window if protocol.texts else 0  # without texts nothing is cut into windows
    lengths = {"--window": window, "--positions": protocol.positions}
    lengths |= {f"--tasks {task}: a context of": CONTEXTS[task] for task in protocol.tasks if task in CONTEXTS}
    lengths |= {"--calibration-length": protocol.calibration_length} if is_calibrated else {}
    for flag, length in lengths.items():
        if length > most:
            raise UserError(f"{flag} {length} is more than the {most} tokens that the model takes")
    for task in protocol.tasks:
        if (tokens := task_loading.most_tokens_of_answer(task)) >= most:
            room = f"of the {most} tokens that the model takes none is left for the prompt"
            raise UserError(f"--tasks {task}: a written answer has up to {tokens} tokens, and {room}")


def _protocol_on_target(target: Target, protocol: Protocol, given: Collection[str]) -> Protocol:
    """Return the protocol with a GPU's defaults on one, and refuse captured steps elsewhere."""
    if target.device.type == "cuda":
        return protocol_for_cuda(protocol, given, getattr(target.decoder.config, "max_position_embeddings", None))
    if protocol.mode == "graph":
        raise UserError(f"--mode graph needs a CUDA device, and cells run on {target.device}; leave it out")
    return protocol


def _prepare_choice(choice: MethodChoice, spec: RunSpec) -> MethodChoice:
    """Return a method with the values of --search-minutes and --uniform, where it has such a parameter.

    Minutes that --methods gives the method stay. Raises ValueError for an unknown method or parameter, and where the
    method never cuts alike in all layers.
    """
    pruner = methods.make(choice.method, choice.given)
    if spec.search_minutes is not None and "minutes" in methods.parameters_of_pruner(pruner):
        choice = choice._replace(given={"minutes": spec.search_minutes} | choice.given)
    if not spec.uniform:
        return choice
    if reason := pruner.uneven_because:
        raise ValueError(f"--uniform: {choice.method} has no variant that stock transformers loads, since {reason}")
    if isinstance(pruner.alone, methods.WidthPruner):
        choice = choice._replace(given=choice.given | {"uniform": True})
        methods.make(choice.method, choice.given)  # refuses parameters that uniform leaves no place for
    return choice


def _check_search_minutes(spec: RunSpec, choices: Iterable[MethodChoice]) -> None:
    """Refuse minutes of a search where no method has such a parameter."""
    if spec.search_minutes is not None and not any("minutes" in choice.given for choice in choices):
        having = [card.name for card in methods.cards_of_methods() for name, *_ in card.parameters if name == "minutes"]
        raise UserError(f"--search-minutes ends a search, and --methods names none of {', '.join(having)}")


def _check_healing(recipe: Recipe, protocols: Iterable[Protocol], target: Target, gpus: int) -> None:
    """Refuse a recipe that this model or this machine cannot follow, of a cell that has so many GPUs.

    It is a text that is measured on, a dtype that cannot be trained in, sequences longer than the model's, more likely
    tokens than there are, and more processes than GPUs.
    """
    refuse_recipe(recipe, target.dtype, dense=True)  # which is loaded where the loss needs it
    for protocol in protocols:
        if recipe.at and not protocol.texts and not recipe.answers:
            raise UserError("--heal-at measures the texts of --texts, and there are none; name a text")
        if recipe.answers and not protocol.tasks:
            raise UserError("--heal-answers measures the tasks of --tasks, and there are none; name a task")
        for text in protocol.texts:
            if texts.is_whole(text, protocol.calibration) and not texts.is_whole(text, recipe.text):
                raise UserError(
                    f"--heal-text {recipe.text} would be trained on and measured on, since --texts takes all of it; "
                    "with --calibration of the same text every second document is for each"
                )
    if target.device.type == "cuda" and recipe.processes > gpus:
        raise UserError(
            f"--heal-processes {recipe.processes} needs a GPU for each, and a cell has {gpus}; "
            f"give --gpus-per-cell {recipe.processes}"
        )
    if recipe.length > (most := getattr(target.decoder.config, "max_position_embeddings", recipe.length)):
        raise UserError(f"--heal-length {recipe.length} is more than the {most} tokens that the model takes")
    if recipe.top >= (size := target.decoder.embed.num_embeddings):
        raise UserError(f"--heal-top {recipe.top} leaves none of the model's {size} tokens; leave it out, to keep all")


def _check_teacher(recipe: Recipe, model: str, target: Target, *, trust: bool) -> None:
    """Refuse a teacher that cannot be had, or whose tokens are not the model's, by number, text and count."""
    if recipe.teacher is None:
        return
    pretrained.check(recipe.teacher, trust)
    try:
        teacher = Decoder(pretrained.make_shell(recipe.teacher, trust))
    except methods.Unsupported as error:
        raise UserError(f"--heal-teacher {recipe.teacher}: {error}") from None
    sizes = [each.embed.num_embeddings for each in (teacher, target.decoder)]
    own, learnt = (pretrained.load_tokenizer(name, trust).get_vocab() for name in (model, recipe.teacher))
    if own != learnt or sizes[0] != sizes[1]:
        differing = sum(own.get(token) != number for token, number in learnt.items()) or "none"
        raise UserError(
            f"--heal-teacher {recipe.teacher} has another vocabulary than {model}: {sizes[0]} tokens beside "
            f"{sizes[1]}, of which {differing} differ; name a model of the same tokenizer"
        )
    if recipe.length > (most := getattr(teacher.config, "max_position_embeddings", recipe.length)):
        raise UserError(f"--heal-length {recipe.length} is more than the {most} tokens that --heal-teacher takes")


def _check_room(recipe: Recipe, *, is_here: bool) -> None:
    """Refuse predictions of the dense model for which the disk of this machine has no room, if cells run on it."""
    if is_here and recipe.bytes_of_top > (room := room_for_predictions()):
        raise UserError(
            f"--heal-top {recipe.top} takes {recipe.bytes_of_top / 1e6:,.0f} MB for {recipe.tokens:,} tokens, and "
            f"{room / 1e6:,.0f} MB are free in {folder_of_cache()}; name another folder in PRUNEBENCH_CACHE"
        )


def _stage_cells(stage: grid.NextStage, decoder: Decoder, common: dict[str, Any]) -> list[Cell]:
    """Return a stage of --then as cells that start from the dense model: several where the method draws at random."""
    name, given, _ = stage.choice
    if name == "dense" or methods.make(name, given).fixed:
        raise UserError(f"--then {name}: it takes no ratio, and so cannot go on to one")
    return [
        cell for cell in grid.cells_of_grid([stage.choice], [stage.ratio], decoder, common) if cell.method != "dense"
    ]


def check_cores(pin: Iterable[int]) -> None:
    """Refuse cores, by their numbers, that this process may not use."""
    if pin and not hasattr(os, "sched_getaffinity"):
        raise UserError("--pin: this system does not let a program choose its cores")
    for core in pin:
        if core not in (allowed := os.sched_getaffinity(0)):
            raise UserError(f"--pin: core {core} cannot be used; there are {','.join(map(str, sorted(allowed)))}")


def set_threads(threads: int) -> None:
    """Let torch use this many threads of the CPU. Raises UserError for more than the machine has cores."""
    if not 1 <= threads <= (os.cpu_count() or 1):
        raise UserError(f"--threads lies between 1 and {os.cpu_count()}, the machine's cores; got {threads}")
    torch.set_num_threads(threads)


def check_folder(folder: Path) -> None:
    """Make a folder for results. Raises UserError where it cannot be made or written to."""
    refuse_file(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=WRITING):
            pass
    except OSError as error:
        raise UserError(f"{folder} cannot hold results: {error.strerror}; name another with --out") from None
