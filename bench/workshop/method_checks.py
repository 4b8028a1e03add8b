"""Checks what must hold for every method, on tiny models of several families, whatever the method does.

`CHECKS` has the properties; tests/test_properties.py holds the built-in methods to several of them on every family.
A family that the method refuses is left out. An exception is wrong, with the line of the plugin that it comes through.
"""

from __future__ import annotations

import json
import os
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import methods
from bench.doctor.finding import Finding, difference_of_tensors, is_close, without_paths
from bench.doctor.pruning import build_tiny_model, compute_some_logits, make_calibration
from bench.export import engine_form, gguf_file
from bench.runs.inputs import sha256_of_state
from bench.system import failures
from bench.workshop import tiny_models
from bench.workshop.tiny_models import SPECIAL, draw_calibration, draw_tiny_model
from methods import decisions as contract
from methods.checkpoint import save_load
from methods.console import show_progress
from methods.counted import MISSED
from methods.errors import OutOfReach, Unsupported, UserError, WrongDecisions
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder, positions_behind_cache
from methods.model.layer import copy_module
from methods.model.layer_store import LayerStore
from methods.model.sizes import layer_parameters, parameters
from methods.model.structures import AXIS, HEADS, Structure, cut, rows_of_states, structures_of

FAMILIES = {  # and what each tries that the others do not
    "llama": "grouped queries, a tied head",
    "gemma2": "norms behind blocks, windows, wider heads",
    "gpt2": "transposed matrices, a table of positions",
    "phi3": "fused matrices",
    "gpt_neox": "attention and MLP beside each other",
    "mixtral": "experts",
}
RATIOS = (0.05, 0.1, 0.15, 0.3, 0.4)  # of the models that may not grow
MEMORY = 2**17  # bytes of a micro-batch, so that there are several
ROUNDING = 1e-4  # of the largest logit: how far two ways to one result are apart in float32
OTHER_TOKENS = (1, 2, 3)  # seeds of them
CACHED = 16  # tokens at once, behind which tokens come one by one

Status = Literal["ok", "wrong", "not here"]


@dataclass(frozen=True)
class Outcome:
    """Says whether a property holds of one model, and in words what was seen. where: lines that raised an exception."""

    status: Status
    words: str = ""
    where: tuple[str, ...] = ()


OK = Outcome("ok")


@dataclass(frozen=True)
class PrunedTiny:
    """Holds a tiny model of a family after a method.

    label       of the method, by which a pruner is made anew
    parameters  of the method, beside those of the label
    ratio       that was asked for
    dense       the model before
    misfit      what is wrong with the decisions; "" where they hold
    """

    label: str
    parameters: Mapping[str, Any]
    family: str
    ratio: float
    dense: Decoder
    model: Decoder
    decisions: dict[str, Any]
    misfit: str = ""

    @property
    def pruner(self) -> methods.Pruner:
        """Return a new pruner of the method."""
        return methods.make(self.label, self.parameters)

    def prune_again(
        self,
        ratio: float | None = None,
        model: Decoder | None = None,
        calibration: Calibration | None = None,
        seed: int = 0,
    ) -> tuple[Decoder, dict[str, Any]]:
        """Return another model after the method, by default an equal one at the same ratio, and the decisions.

        seed  of torch's generator, from which a method should draw nothing
        """
        model = Decoder(draw_tiny_model(self.family)) if model is None else model
        torch.manual_seed(seed)
        given = make_short_calibration() if calibration is None else calibration
        return model, self.pruner.prune(model, given, self.ratio if ratio is None else ratio)


Check = Callable[[PrunedTiny], Outcome]


def make_short_calibration(seed: int = 0) -> Calibration:
    """Return a few random tokens, which a method reads in several micro-batches."""
    return replace(draw_calibration(seed), memory=MEMORY)


def draw_ids() -> Tensor:
    """Return token ids on which models are compared, (3, 20)."""
    return torch.randint(SPECIAL, tiny_models.VOCABULARY, (3, 20), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def compute_logits(model: Decoder, ids: Tensor) -> Tensor:
    """Return the logits of token ids, (B, T) -> (B, T, V)."""
    logits: Tensor = model.model(ids, use_cache=False).logits
    return logits


@torch.no_grad()
def compute_cached_logits(model: Decoder, ids: Tensor) -> Tensor:
    """Return the logits of token ids, those behind the first 16 token by token with a cache, (B, T) -> (B, T, V)."""
    start = model.model(ids[:, :CACHED], use_cache=True)
    steps, cache = [start.logits], start.cache
    for t in range(CACHED, ids.shape[1]):
        places = positions_behind_cache(model.model, t, 1)
        step = model.model(ids[:, t : t + 1], cache=cache, use_cache=True, **places)
        steps.append(step.logits)
    return torch.cat(steps, 1)


def _apart(first: Tensor, second: Tensor) -> float:
    """Return the largest difference as a share of the largest logit of the second; nan for nan."""
    return float((first - second).abs().max() / second.abs().max())


def largest_step_of(dense: Decoder, decisions: Mapping[str, Any]) -> int:
    """Return the parameters of the largest thing that decisions name: a layer, a sublayer, a head, or a channel each.

    A method meets its budget to within half of it.
    """
    layer = dense.layers[0]
    steps = list[int]()
    if any(decisions.get("removed_attention", ())) or any(decisions.get("removed_mlp", ())):
        sizes = layer.sizes()
        steps.append(min(sizes["attention"], sizes["mlp"]))
    for kind in HEADS:
        if any(decisions.get(f"removed_{kind}", ())):
            steps += [structure.cost for structure in structures_of(dense, kind)[:1]]
    for kind in ("channels", "state_channels"):
        if any(decisions.get(f"removed_{kind}", ())):
            structures = structures_of(dense, kind)
            steps.append(len(structures) * structures[0].cost)
    return max(steps, default=layer_parameters(layer))


@torch.no_grad()
def silence_removed(model: Decoder, decisions: Mapping[str, Any]) -> None:
    """Zero what decisions name, in place, in the matrices that write into the residual. No expert may be among it."""
    for number, layer in enumerate(model.layers):
        whole = number in decisions.get("removed_layers", ())
        if layer.has_attention and (whole or number in decisions.get("removed_attention", ())):
            _zero(parameter for matrix in layer.writers(0) for parameter in matrix.parameters())
        if layer.has_mlp and (whole or number in decisions.get("removed_mlp", ())):
            experts = layer.experts
            for module in [layer.down] if experts is None else [experts.bank, *experts.shared]:
                _zero(module.parameters())
        for kind in AXIS:
            units = decisions.get(f"removed_{kind}", [[]] * len(model.layers))[number]
            if units and not whole:
                _silence(Structure(number, kind, layer), units)


def _silence(structure: Structure, units: Sequence[int]) -> None:
    """Zero these units: their columns of the output matrix, or what a convolution gives of channels of a state."""
    if structure.kind != "state_channels":
        structure.writer.weight[:, structure.parts[-1].index[units].flatten()] = 0
        return
    for part in rows_of_states(structure.layer):
        for name in part.names:
            getattr(part.holder, name)[part.index[units].flatten()] = 0


def _zero(matrices: Any) -> None:
    for parameter in matrices:
        parameter.zero_()


def check_plan(case: PrunedTiny) -> Outcome:
    """Check that a plan follows from shapes alone, and is plain JSON."""
    plan = case.pruner.plan(case.dense, case.ratio)
    json.dumps(plan, allow_nan=False)
    if (from_shapes := case.pruner.plan(contract.make_outline(case.dense), case.ratio)) != plan:
        return Outcome("wrong", f"without weights it plans {from_shapes!r:.60}, and with them {plan!r:.60}")
    return OK


def check_zero(case: PrunedTiny) -> Outcome:
    """Check that a ratio of 0 changes nothing."""
    if case.pruner.fixed:
        return Outcome("not here", "its parameters alone decide what goes")
    model, _ = case.prune_again(0.0)
    if sha256_of_state(model.model) != sha256_of_state(case.dense.model):
        return Outcome("wrong", f"{parameters(case.dense) - parameters(model):,} parameters went, or weights changed")
    if model.whole_config.to_dict() != case.dense.whole_config.to_dict():
        return Outcome("wrong", "the configuration changed")
    return OK


def check_budget(case: PrunedTiny) -> Outcome:
    """Check that as much goes as was asked for, to within half of what the method removes at once."""
    if case.pruner.fixed:
        return Outcome("not here", "its parameters alone decide what goes")
    total = parameters(case.dense)
    achieved = 1 - parameters(case.model) / total
    step = largest_step_of(case.dense, case.decisions) / total
    words = f"{achieved:.4f} of {case.ratio:.4f} went"
    if abs(achieved - case.ratio) > max(MISSED, step / 2) + 1 / total:
        return Outcome("wrong", f"{words}, and one step is {step:.4f}; reports mark what misses by over {MISSED}")
    return Outcome("ok", words)


def check_growth(case: PrunedTiny) -> Outcome:
    """Check that more goes where more is asked for, or as much."""
    if case.pruner.fixed:
        return Outcome("not here", "its parameters alone decide what goes")
    counts = dict[float, int]()
    for ratio in RATIOS:
        try:
            counts[ratio] = parameters(case.prune_again(ratio)[0])
        except OutOfReach:
            break
    for (low, before), (high, after) in pairwise(counts.items()):
        if after > before:
            return Outcome("wrong", f"at {high:g} {after:,} parameters are left, and at {low:g} {before:,}")
    return Outcome("ok", f"at {len(counts)} ratios up to {max(counts, default=0.0):g}")


def check_decisions(case: PrunedTiny) -> Outcome:
    """Check that decisions name what went."""
    if case.misfit:
        return Outcome("wrong", case.misfit)
    keys = sorted(key for key in case.decisions if key.startswith("removed_"))
    if not keys:
        return Outcome("not here", "no removed_ key: repairs, export and reports do not know what went")
    left_of_dense = contract.make_outline(case.dense)
    cut(left_of_dense, case.decisions)
    added = parameters(case.model) - parameters(left_of_dense)
    return Outcome("ok", f"{', '.join(keys)}{f'; {added:+,} parameters beside' if added else ''}")


def check_zeroing(case: PrunedTiny) -> Outcome:
    """Check that a model computes what the dense one does with all that decisions name set to zero."""
    if not any(key.startswith("removed_") for key in case.decisions):
        return Outcome("not here", "no removed_ key says what to set to zero")
    if any(case.decisions.get("removed_experts", ())):
        return Outcome("not here", "a router takes other experts where one is gone")
    zeroed, ids = Decoder(copy_module(case.dense.model, {})), draw_ids()
    silence_removed(zeroed, case.decisions)
    apart = _apart(compute_logits(case.model, ids), compute_logits(zeroed, ids))
    if case.pruner.only_cuts:
        return OK if apart <= ROUNDING else Outcome("wrong", f"logits are off by {apart:.1e}, and only_cuts is True")
    if apart <= ROUNDING:
        return Outcome("ok", "only_cuts = True would say so")
    return Outcome("not here", "it changes weights that stay")


def check_cache(case: PrunedTiny) -> Outcome:
    """Check that a model computes token by token with a cache what it computes of the whole text."""
    return _outcome_of_cache(case.model)


def _outcome_of_cache(model: Decoder) -> Outcome:
    apart = _apart(compute_cached_logits(model, draw_ids()), compute_logits(model, draw_ids()))
    return OK if apart <= ROUNDING else Outcome("wrong", f"logits are off by {apart:.1e}")


def check_saving(case: PrunedTiny) -> Outcome:
    """Check that a saved model is the same when it is loaded, to the last bit, and that its cache works."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = save_load.save(case.model, Path(folder) / "model")
        loaded = save_load.load(Path(folder) / "model")
        apart = _apart(compute_logits(loaded, draw_ids()), compute_logits(case.model, draw_ids()))
        if apart or parameters(loaded) != parameters(case.model):
            counts = f"{parameters(loaded):,} parameters of {parameters(case.model):,}"
            return Outcome("wrong", f"the loaded model has {counts}, and logits are off by {apart:.1e}")
        cached = _outcome_of_cache(loaded)
    if cached.status == "wrong":
        return Outcome("wrong", f"loaded again, with a cache: {cached.words}")
    return Outcome("ok", f"{manifest['loads_with']} loads it")


def check_exports(case: PrunedTiny) -> Outcome:
    """Check that each format holds the model, read back where it has a reader, or refuses it in a line."""
    tokenizer, words = tiny_models.make_tokenizer(), list[str]()
    pruned, _ = case.prune_again(model=Decoder(draw_tiny_model(case.family, vocab_size=len(tokenizer))))
    with tempfile.TemporaryDirectory() as folder:
        for name, write in WRITERS.items():
            try:
                write(pruned, tokenizer, Path(folder) / name)
            except UserError as refusal:
                words.append(f"{name} refuses it ({without_paths(str(refusal))})")
            else:
                words.append(f"{name} holds it")
    return Outcome("ok", "; ".join(words))


WRITERS: dict[str, Callable[[Decoder, Any, Path], object]] = {
    "gguf": lambda model, tokenizer, to: gguf_file.write_gguf(
        model, tokenizer, to / "model.gguf", torch.float32, "tiny"
    ),
    "nemotron-nas": lambda model, tokenizer, to: engine_form.write_nemotron(
        model, tokenizer, to, torch.float32, shard_bytes=save_load.SHARD_BYTES
    ),
    "heterogeneous": lambda model, tokenizer, to: engine_form.write_heterogeneous(
        model, tokenizer, to, torch.float32, shard_bytes=save_load.SHARD_BYTES
    ),
}


def check_repeating(case: PrunedTiny) -> Outcome:
    """Check that a second run decides the same and leaves the same weights, whatever was drawn before it.

    The calibration tokens stay as they are.
    """
    calibration = make_short_calibration()
    model, decisions = case.prune_again(calibration=calibration, seed=1)
    if not torch.equal(calibration.ids, make_short_calibration().ids):
        return Outcome("wrong", "it changes the calibration tokens, which are those of every method")
    outcome = _compare_with(case, model, decisions, "the second run")
    if outcome.status == "wrong" and _compare_with(case, *case.prune_again(), "").status == "ok":
        return Outcome("wrong", f"{outcome.words}; it draws from torch's own generator: seed one by calibration.seed")
    return outcome


def check_files(case: PrunedTiny) -> Outcome:
    """Check that a model in files, a layer at a time in memory, is pruned as the one in memory, to the last bit."""
    with tempfile.TemporaryDirectory() as folder:
        model = Decoder(draw_tiny_model(case.family), LayerStore(Path(folder)))
        model, decisions = case.prune_again(model=model)
        return _compare_with(case, model, decisions, "the model in files")


def _compare_with(case: PrunedTiny, model: Decoder, decisions: Mapping[str, Any], what: str) -> Outcome:
    """Return whether another pruned model is that of the case to the last bit."""
    for key in [*case.decisions, *decisions]:
        first, second = case.decisions.get(key), decisions.get(key)
        if first != second:
            return Outcome("wrong", f"{what} has {key} {second!r:.60}, and the first {first!r:.60}")
    if sha256_of_state(model.model) != sha256_of_state(case.model.model):
        return Outcome("wrong", f"{what} has other weights, with the same decisions")
    return OK


def check_needs(case: PrunedTiny) -> Outcome:
    """Check that a method that says it looks at nothing decides the same on other tokens."""
    if case.pruner.looks_at != "nothing":
        return Outcome("ok", f"looks_at is {case.pruner.looks_at}")
    for seed in OTHER_TOKENS:
        _, decisions = case.prune_again(calibration=replace(make_short_calibration(seed), seed=0))
        if decisions != case.decisions:
            return Outcome("wrong", "other tokens lead to other decisions, and looks_at is nothing")
    return OK


def check_bfloat16(case: PrunedTiny) -> Outcome:
    """Check that a model in bfloat16 is pruned, stays in it, and computes numbers."""
    tiny = draw_tiny_model(case.family)
    for parameter in tiny.parameters():
        parameter.data = parameter.data.bfloat16()
    model, _ = case.prune_again(model=Decoder(tiny))
    if dtypes := {str(each.dtype).removeprefix("torch.") for each in model.model.parameters()} - {"bfloat16"}:
        return Outcome("wrong", f"weights of a model in bfloat16 became {', '.join(sorted(dtypes))}")
    finite = bool(torch.isfinite(compute_logits(model, draw_ids())).all())
    return OK if finite else Outcome("wrong", "logits are no finite numbers")


def check_gpu(case: PrunedTiny) -> Outcome:
    """Check that a GPU decides as the CPU does, on the doctor's model, whose choices no rounding changes."""
    if not torch.cuda.is_available():
        return Outcome("not here", "this machine has no GPU")
    logits, decided = list[Tensor](), list[dict[str, Any]]()
    for device in ("cpu", "cuda"):
        pruner = case.pruner
        model = build_tiny_model(torch.device(device), torch.float32, mixture="experts" in pruner.alone.axes)
        torch.manual_seed(0)
        decisions = pruner.prune(model, make_calibration(), 0.3)
        decided.append({key: value for key, value in decisions.items() if key.startswith("removed_")})
        logits.append(compute_some_logits(model))
    if decided[0] != decided[1]:
        return Outcome("wrong", f"on the CPU {decided[0]!r:.80}, on the GPU {decided[1]!r:.80}")
    share = difference_of_tensors(logits[1], logits[0])
    words = f"logits off by {share:.1e} of their size"
    return Outcome("ok" if is_close(share, torch.float32) else "wrong", words)


CHECKS: dict[str, Check] = {
    "plan from shapes alone": check_plan,
    "ratio 0 changes nothing": check_zero,
    "budget met": check_budget,
    "more goes at a higher ratio": check_growth,
    "decisions name what went": check_decisions,
    "cut equals zeroing": check_zeroing,
    "cached generation equals uncached": check_cache,
    "saved and loaded again": check_saving,
    "exported": check_exports,
    "a second run is the first": check_repeating,
    "in files as in memory": check_files,
    "looks at what it says": check_needs,
    "in bfloat16": check_bfloat16,
    "on a GPU as on the CPU": check_gpu,
}
ON_ONE = ("more goes at a higher ratio", "exported", "on a GPU as on the CPU")  # which the first family alone tries


def list_labels(file: Path) -> list[str]:
    """Return the methods of a plugin that is loaded, and its compensations, each behind the method that it follows."""
    from methods.compensation.base import REGISTRY

    labels = [name for name in methods.REGISTRY if not methods.modules_of(name)[0].startswith("methods.")]
    mending = [name for name, kind in REGISTRY.items() if not kind.__module__.startswith("methods.")]
    labels += [f"{REGISTRY[name].follows}+{name}" for name in mending]
    place = str(file.resolve())
    own = [label for label in labels if place in map(os.path.realpath, methods.plugins_of(label))]
    return own or labels  # a file may register what its helpers define


def check_method(
    label: str, parameters: Mapping[str, Any], families: Sequence[str] = tuple(FAMILIES), prefix: str = ""
) -> list[Finding]:
    """Return a finding of each property of a method or `method+compensation`, and first one of the families it serves.

    parameters  of the method, beside those that it has in `tiny`
    prefix      of the names of the findings

    Raises what `methods.make` raises for an unknown method or parameter.
    """
    given = methods.tiny_parameters_of(label) | dict(parameters)
    methods.make(label, given)
    plugins = methods.plugins_of(label)
    outcomes, families_served = dict[str, dict[str, Outcome]](), dict[str, Outcome]()
    for family in show_progress(families, f"checking {label}", "family"):
        try:
            case = prune_tiny(label, given, family)
        except Unsupported as refusal:
            families_served[family] = Outcome("not here", f"refused: {refusal}")
            continue
        except (Exception, SystemExit) as error:
            families_served[family] = _outcome_of_error(error, plugins)
            continue
        is_first = all(outcome.status != "ok" for outcome in families_served.values())
        families_served[family] = OK
        for name, check in CHECKS.items():
            if is_first or name not in ON_ONE:
                outcomes.setdefault(name, {})[family] = _try_check(check, case, plugins)
    findings = [_finding_of_outcomes("families", families_served)]
    if findings[0].status == "not here":
        findings = [replace(findings[0], status="wrong")]
    findings += [_finding_of_outcomes(name, outcomes[name]) for name in CHECKS if name in outcomes]
    return [replace(finding, what=f"{prefix}{finding.what}") for finding in findings]


def prune_tiny(label: str, given: Mapping[str, Any], family: str) -> PrunedTiny:
    """Return a tiny model of a family without the parameters of two layers, or of one where two are out of reach.

    Raises Unsupported where the method refuses the family, and OutOfReach where no layer may go.
    """
    dense = Decoder(draw_tiny_model(family))
    share = layer_parameters(dense.layers[0]) / parameters(dense)
    pruner, ratio = methods.make(label, given), 2 * share
    try:
        pruner.plan(dense, ratio)
    except OutOfReach:
        ratio = share
        pruner.plan(dense, ratio)
    case = PrunedTiny(label, given, family, ratio, dense, Decoder(draw_tiny_model(family)), {})
    torch.manual_seed(0)
    try:
        decisions = contract.prune(pruner, case.model, make_short_calibration(), ratio)
    except WrongDecisions as error:
        model, decisions = case.prune_again()
        return replace(case, model=model, decisions=decisions, misfit=str(error))
    return replace(case, decisions=decisions)


def _try_check(check: Check, case: PrunedTiny, plugins: Sequence[str]) -> Outcome:
    try:
        return check(case)
    except (Exception, SystemExit) as error:
        return _outcome_of_error(error, plugins)


def _outcome_of_error(error: BaseException, plugins: Sequence[str]) -> Outcome:
    """Return the outcome of an exception: the line of the plugin, if it comes through one, and its text."""
    frames = traceback.extract_tb(error.__traceback__)
    where = tuple(f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}" for frame in frames)
    place = failures.place_in_plugin(error, plugins)
    return Outcome("wrong", without_paths(f"{place}{failures.reason_of_error(error)}"), where)


def _finding_of_outcomes(name: str, outcomes: Mapping[str, Outcome]) -> Finding:
    """Return the finding of a property over all families: what is wrong alone where something is."""
    statuses = {outcome.status for outcome in outcomes.values()}
    status: Status = "wrong" if "wrong" in statuses else "ok" if "ok" in statuses else "not here"
    families_by_words = dict[str, list[str]]()
    for family, outcome in outcomes.items():
        if outcome.status == "wrong" or status != "wrong":
            families_by_words.setdefault(outcome.words, []).append(family)
    parts = [f"{', '.join(names)}{f': {words}' if words else ''}" for words, names in families_by_words.items()]
    plain = {family: ", ".join(filter(None, [each.status, each.words])) for family, each in outcomes.items()}
    where = next((outcome.where for outcome in outcomes.values() if outcome.where), ())
    return Finding(status, name, "; ".join(parts), plain, where)
