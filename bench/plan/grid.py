"""Makes the cells of a run: multiplies lists of settings, and adds what follows a pruned cell.

Lists. Every method is measured with every combination of its parameters, and under every calibration and seed.

    --set laco.C=2,3 --set laco.T=0.45,0.65    four sets of parameters for each laco that --methods names
    --calibration c4,wiki --seed 0,1,2         six ways to look at text; every method is measured under each

Chains. Behind a pruned cell come the same cell healed, and cells that go on from it.

    a cell -> itself, itself healed, and behind each of the two the stages of --then, each behind the one before

A chained cell has a ratio of the dense model, as any cell has. It starts from the model of its parent, as that was
measured (bench.runs.store). A pruned cell is pruned further. A healed cell is pruned further and then healed by the
same recipe, and the next stage goes on from there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.plan.cell import Cell, seed_of_first_draw, words_of_amount
from bench.plan.fields import MethodChoice, hint_of_similar_name, parse_methods, parse_ratios, split_repeated
from bench.system import failures
from methods.errors import OutOfReach, UserError

if TYPE_CHECKING:
    from bench.plan.protocol import Recipe
    from bench.plan.run_spec import RunSpec
    from methods.base import Pruner
    from methods.counted import Budget
    from methods.model.decoder import Decoder


FORM = "--then is written METHOD:ratio=R[,NAME=VALUE], as in laco:ratio=0.5"


class NextStage(NamedTuple):
    """Holds a stage of --then: a method with its given parameters, and the ratio of the dense model in total."""

    choice: MethodChoice
    ratio: float


def parse_settings(given: Sequence[str] | Mapping[str, Any]) -> dict[str, dict[str, list[str]]]:
    """Return {method: {parameter: its values}} as --set gives them; of a parameter that is set twice the last counts.

    ['laco.C=2,3', 'laco.T=0.7'] -> {'laco': {'C': ['2', '3'], 'T': ['0.7']}}
    """
    settings: dict[str, dict[str, list[str]]] = {}
    for text in split_repeated(given):
        name_text, equals, right = text.partition("=")
        method, dot, name = name_text.partition(".")
        values = [value.strip() for value in right.split(",")] if "," in right else [right]
        if not (equals and dot and all(values)):
            raise UserError(f"--set is written METHOD.NAME=VALUE, as in laco.T=0.7 or laco.C=2,3,4; got {text!r}")
        settings.setdefault(method, {})[name] = list(dict.fromkeys(values))
    return settings


def choices_of_spec(spec: RunSpec) -> list[MethodChoice]:
    """Return the methods of a run, each with every combination of the values that --set gives its parameters.

    A method keeps the values that --methods gives it. Raises UserError where --set speaks of a method that neither
    --methods nor --then names, and where there are more combinations than --max-cells.
    """
    settings, choices = parse_settings(spec.settings), spec.method_choices()
    names = [*(choice.method for choice in choices), *(stage.choice.method for stage in _parse_then(spec))]
    for method, given in settings.items():
        if method not in names:
            where = f"--set {method}.{next(iter(given))}"
            raise UserError(
                f"{where} speaks of {method}, which --methods does not name{hint_of_similar_name(method, names)}"
            )
    swept = [_open_parameters(choice, settings) for choice in choices]
    count = sum(math.prod(map(len, values.values())) for values in swept)
    if count > len(choices):
        refuse_more_than(spec.max_cells, count, at_least=True)
    return [
        choice._replace(given=choice.given | dict(zip(values, combination, strict=True)))
        for choice, values in zip(choices, swept, strict=True)
        for combination in itertools.product(*values.values())
    ]


def is_sweep(spec: RunSpec) -> bool:
    """Say whether anything but methods and ratios has several values."""
    several = [values for given in parse_settings(spec.settings).values() for values in given.values()]
    return len(spec.protocols()) > 1 or any(len(values) > 1 for values in several)


def _open_parameters(choice: MethodChoice, settings: dict[str, dict[str, list[str]]]) -> dict[str, list[str]]:
    """Return the values that --set gives those parameters of a method that --methods leaves open."""
    return {name: values for name, values in settings.get(choice.method, {}).items() if name not in choice.given}


def stages_of_spec(spec: RunSpec) -> list[NextStage]:
    """Return the stages of --then, with the values of --set for parameters that they leave open.

    Raises UserError for several values, since they would multiply along a chain.
    """
    stages = []
    for choice, ratio in _parse_then(spec):
        values = _open_parameters(choice, parse_settings(spec.settings))
        for name, several in values.items():
            if len(several) > 1:
                raise UserError(
                    f"--set {choice.method}.{name} sweeps, and --then {choice.method} takes one value; say which, as "
                    f"in --then {choice.method}:ratio={ratio:g},{name}={several[0]}"
                )
        given = {name: value for name, (value,) in values.items()} | choice.given
        stages.append(NextStage(choice._replace(given=given), ratio))
    return stages


def _parse_then(spec: RunSpec) -> list[NextStage]:
    """Return the stages of --then: 'laco:ratio=0.5,C=3' -> [(('laco', {'C': '3'}), 0.5)]."""
    stages = []
    for text in spec.then:
        choices = parse_methods(text)
        if len(choices) != 1 or "ratio" not in choices[0].given:
            raise UserError(f"{FORM}; got {text!r}")
        (method, given, _) = choices[0]
        (ratio,) = parse_ratios(given.pop("ratio"))
        stages.append(NextStage(MethodChoice(method, given, not spec.record_out_of_reach), ratio))
    return stages


def refuse_more_than(most: int, count: int, *, at_least: bool) -> None:
    """Raise UserError where a sweep has more cells than `most`, the value of --max-cells."""
    if count > most:
        more = " or more" if at_least else ""
        raise UserError(f"the sweep multiplies to {count:,}{more} cells, and --max-cells allows {most:,}")


def cells_of_grid(
    choices: Sequence[MethodChoice], ratios: Sequence[float], decoder: Decoder, common: dict[str, Any]
) -> list[Cell]:
    """Return the cells: the dense model, then each method at each ratio, then the methods that need no ratio.

    decoder  the model without weights. A ratio that a method cannot reach is so refused here and not hours later. A
             method that was not named itself keeps its cell, and being out of reach is its outcome
    common   the fields of Cell that all cells share
    """
    import methods

    cells, fixed = [_cell(MethodChoice("dense", {}), None, common)], list[Cell]()
    for choice in choices:
        pruner = methods.make(choice.method, choice.given)
        if choice.method == "dense" or (not choice.by_name and not _has_what_it_removes(decoder, choice.method)):
            continue
        if not pruner.fixed and not ratios:
            raise UserError(
                f"{choice.method} needs a ratio: the share of parameters to remove, as in --ratio 0.3; or a budget: "
                "what may stay, as in --budget macs=0.8"
            )
        for ratio in [None] if pruner.fixed else ratios:
            cell = _cell(choice, ratio, common)
            _refuse_unless_reachable(pruner, cell, decoder, by_name=choice.by_name)
            (fixed if pruner.fixed else cells).extend(_draws(pruner, cell))
    order = {ratio: index for index, ratio in enumerate([None, *ratios])}
    cells.sort(key=lambda cell: order[cell.ratio])
    return list({cell.key: cell for cell in cells + fixed}.values())


def _has_what_it_removes(decoder: Decoder, method: str) -> bool:
    """Return False where a method removes experts, with any compensation, and the model has none; else True."""
    import methods

    return "experts" not in methods.load()[method.partition("+")[0]].axes or not decoder.family.never("experts")


def _draws(pruner: Pruner, cell: Cell) -> list[Cell]:
    """Return the cell; for a method that draws at random without a seed a cell for each draw, all of one label."""
    from methods.base import RandomPruner

    method = pruner.alone
    if not isinstance(method, RandomPruner) or method.draws == 1 or method.seed is not None:
        return [cell]
    first = seed_of_first_draw(cell.seed)
    return [replace(cell, parameters=cell.parameters | {"seed": first + draw}) for draw in range(method.draws)]


def _cell(choice: MethodChoice, ratio: float | None, common: dict[str, Any]) -> Cell:
    import methods

    parameters = methods.parameters_of_pruner(methods.make(choice.method, choice.given))
    given = tuple(choice.given)
    counted = common if ratio is not None else common | {"ratio_of": "all"}
    return Cell(method=choice.method, parameters=parameters, given=given, ratio=ratio, **counted)


def _refuse_unless_reachable(pruner: Pruner, cell: Cell, decoder: Decoder, *, by_name: bool) -> None:
    """Raise UserError for a ratio that the method cannot reach; an unsupported model is an outcome, and passes."""
    import methods
    from methods.budget import refuse_unmet
    from methods.counted import COUNTED, share_of_all

    try:
        ratio = budget_of_cell(cell, decoder)
        if quantity := quantity_of_cell(cell, decoder):
            refuse_unmet(pruner, decoder, quantity)
        else:
            pruner.plan(decoder, ratio)
    except methods.OutOfReach as error:
        if by_name:
            if cell.ratio_of not in COUNTED[1:] or cell.ratio is None:
                raise UserError(f"{cell.label}: {error}") from None
            share = share_of_all(decoder, cell.ratio, cell.ratio_of)
            amount = f"{cell.ratio:g} of the {cell.ratio_of} is {share:.3g} of all parameters"
            raise UserError(f"{cell.label}: {amount}, and {error}") from None
        return
    except methods.Unsupported:
        return
    except Exception as error:
        if not (place := failures.place_in_plugin(error, methods.plugins_of(cell.method))):
            raise
        raise UserError(f"{cell.label} cannot be planned: {place}{failures.reason_of_error(error)}") from error
    if cell.ratio and not ratio:
        raise UserError(
            f"{words_of_amount(cell.ratio, cell.ratio_of)} is less than half a layer of this model, so that "
            "nothing would go; "
            "ask for more, or say --match exact"
        )


def budget_of_cell(cell: Cell, decoder: Decoder) -> float:
    """Return the share of all parameters that the cell has to remove.

    It is the requested ratio, rounded to whole layers unless it is matched exactly. For a budget of another quantity it
    is the share that goes where all layers lose alike.
    """
    from methods.budget import round_to_layers
    from methods.counted import share_of_all

    if cell.ratio is None:
        return 0.0
    if budget := quantity_of_cell(cell, decoder):
        return budget.start
    ratio = share_of_all(decoder, cell.ratio, cell.ratio_of)
    return round_to_layers(decoder, ratio) if cell.match == "layers" else ratio


def quantity_of_cell(cell: Cell, decoder: Decoder) -> Budget | None:
    """Return the budget of a cell whose budget counts no parameters; None for any other. `decoder` is the dense model.

    Raises OutOfReach where no method could meet it.
    """
    from methods.counted import QUANTITIES, LatencyTable, budget_of_quantity

    if cell.ratio is None or cell.ratio_of not in QUANTITIES:
        return None
    whole, context = cell.match == "layers", cell.protocol.macs_context
    table = LatencyTable(vars(cell.latency.parts), cell.latency.rest) if cell.latency else None
    return budget_of_quantity(decoder, cell.ratio, cell.ratio_of, context, whole=whole, table=table)


def add_chains(
    cells: Sequence[Cell],
    recipe: Recipe | None,
    stages: Sequence[list[Cell]],
    decoder: Decoder,
) -> list[Cell]:
    """Return the cells, each followed by its healed and chained cells, every parent in front of its children.

    stages   of --then, one behind the other, each as a cell that starts from the dense model; several cells where the
             method draws at random
    decoder  the dense model without weights

    Raises UserError where there is nothing to heal or to go on from, and where a stage would remove nothing.
    """
    for flag, is_given in (("--heal", recipe is not None), ("--then", bool(stages))):
        if is_given and all(cell.method == "dense" for cell in cells):
            raise UserError(f"{flag} is for pruned models, and --methods names none")
    all_cells = []
    for cell in cells:
        if cell.method == "dense":
            all_cells.append(cell)
            continue
        for start in (cell, *([replace(cell, healing=recipe)] if recipe else [])):
            all_cells += [start, *_further(start, stages, decoder)]
    return all_cells


def _further(parent: Cell, stages: Sequence[list[Cell]], decoder: Decoder) -> Iterator[Cell]:
    """Yield the cells behind `parent`, of these stages."""
    for cell in _same_draw(parent, stages[0]) if stages else ():
        _refuse_unless_above(parent, cell, decoder)
        last = replace(cell, earlier=(*parent.earlier, parent.stage))
        yield last
        if parent.healing:
            last = replace(last, healing=parent.healing)
            yield last
        yield from _further(last, stages[1:], decoder)


def _same_draw(parent: Cell, stage: list[Cell]) -> list[Cell]:
    """Return the draw of the parent's seed, where the parent is a draw itself; else all draws."""
    same = [cell for cell in stage if parent.is_draw and cell.parameters.get("seed") == parent.parameters["seed"]]
    return same or stage


def _refuse_unless_above(parent: Cell, cell: Cell, decoder: Decoder) -> None:
    """Raise UserError where the budgets, as far as they are known before any work, leave nothing to remove.

    One that is out of reach is the outcome of its cell, and not refused here.
    """
    if parent.ratio is None:
        return
    try:
        is_above = budget_of_cell(cell, decoder) > budget_of_cell(parent, decoder)
    except OutOfReach:
        return
    if not is_above:
        rounded = "" if cell.ratio is None or cell.ratio <= parent.ratio else ", and both round to the same layers"
        raise UserError(
            f"--then {cell.method}:ratio={cell.ratio:g} would remove nothing behind {parent.label} at {parent.ratio:g}"
            f"{rounded}; its ratio counts of the dense model in total, so give a higher one"
        )


def key_of_parent(cell: Cell, keys: Mapping[str, str]) -> str:
    """Return the key of a chained cell's parent among `keys`, {question: key}. Raises UserError where it is missing."""
    parent = cell.parent
    if (key := keys.get(parent.question)) is None:
        raise UserError(f"{cell.label} goes on from {parent.label}, which is no cell in front of it")
    return key
