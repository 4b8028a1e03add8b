"""The base class of methods, the registry that they enter, and the types of their parameters.

Every attribute has a default, so that a method states what is special about it and nothing else. Lists read the
attributes from the text of the sources (methods/cards.py), where they are literals.

The types at the end say which values a parameter may have; `methods.make` refuses all other values.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from annotated_types import Ge, Gt, Lt

if TYPE_CHECKING:
    from methods.counted import Budget
    from methods.model.calibration import Calibration
    from methods.model.decoder import Decoder


Looks = Literal["nothing", "calibration", "gradients"]
Reuses = Literal["", "removals", "statistics"]


@dataclass(frozen=True)
class Look:
    """Says how figures show a method. reports.figures.style knows the names of colours and lines."""

    line: str
    marker: str
    colour: str = ""  # of a compensation, and of the dense model; a method has that of its family


@dataclass(frozen=True)
class Holds:
    """Memory that pruning takes beside the dense weights, in multiples of sizes that every model has."""

    states: float = 0.0  # the states of all tokens that are read, in front of one layer
    all_layers: float = 0.0  # the same, in front of every layer
    layers: float = 0.0  # the weights of a layer, as copies or gradients in float32
    squares: float = 0.0  # a float64 matrix of the widest input of a layer, max(D, I) squared
    logits: float = 0.0  # the float32 logits of 128 tokens; 0: nothing is predicted
    steps: float = 0.8  # what a layer computes of a micro-batch, where tokens are read
    models: float = 0.0  # the layers that are left, as a second model that is made on the host
    copies: float = 0.0  # the same, which lies in files where the weights do
    hosted: float = 0.0  # the same, which stays on the host
    parks: Literal["", "states", "all_layers"] = ""  # which wait on a GPU's host if the calibration's memory is less


@dataclass(frozen=True)
class Pruner(ABC):
    """A pruning method. A subclass is a frozen dataclass whose fields are its parameters; it states what is special."""

    name: ClassVar[str] = ""  # set by @register

    # What it needs, and what that takes: read by --plan, by the placement of weights, by `list methods`.
    looks_at: ClassVar[Looks] = "calibration"
    cost: ClassVar[str] = "1 forward"  # in words; empty where it looks at nothing
    reuses: ClassVar[Reuses] = ""  # of a cell at another ratio: its removals, or its statistics of the dense model

    # What it cuts.
    takes_ratio: ClassVar[bool] = True  # False: the parameters alone decide, as in drop:layers=20-24
    takes_budget: ClassVar[bool] = False  # True: prune_to meets macs=0.8 by itself; else a ratio is searched for
    only_cuts: ClassVar[bool] = False  # whether its decisions name all that it changes
    axes: ClassVar[tuple[str, ...]] = ("layers",)  # of layers, heads, head widths, channels, experts, residual
    takes_first: ClassVar[bool] = False  # whether it may merge or empty the first layers too, which some families fix
    needs_mlps: ClassVar[bool] = False  # whether each layer has to have an MLP, which those of some families have not
    leaves: ClassVar[tuple[str, ...]] = ("layers",)  # shapes of its models, by the names of bench.export.write

    # What lists, figures, the doctor and the tests take from it.
    paper_ratio: ClassVar[str] = ""  # what the ratio of its paper is a share of
    paper_reads: ClassVar[str] = ""  # calibration of its authors' script, named behind it, or of its paper
    look: ClassVar[Look | None] = None  # None: one that follows from the name
    tiny: ClassVar[str] = ""  # parameters with which it prunes a model of six layers within a second: "C=3,I=1"
    revision: ClassVar[int] = 1  # raised by every change that alters a decision: earlier records are old then

    @property
    def fixed(self) -> bool:
        """Say whether these parameters alone decide what goes, so that the method takes no ratio."""
        return not self.takes_ratio

    @property
    def uneven_because(self) -> str:
        """Return why stock transformers cannot load its models: "it removes whole attentions". Empty where it can."""
        return ""

    @property
    def holds(self) -> Holds:
        """Return the memory that pruning takes beside the dense weights."""
        return {
            "nothing": Holds(),
            "calibration": Holds(states=2),
            "gradients": Holds(all_layers=1, layers=1, logits=9),
        }[self.looks_at]

    @property
    def mlp_solves(self) -> float:
        """Return how many products of float64 matrices as wide as the MLP are computed for each layer."""
        return 0.0

    @property
    def residual_solves(self) -> float:
        """Return how many products of float64 matrices as wide as the residual are computed for each layer."""
        return 0.0

    @property
    def alone(self) -> Pruner:
        """Return the method itself, without the compensation that follows it."""
        return self

    def tokens_read(self, tokens: int) -> int:
        """Return how many of `tokens` calibration tokens it holds states of at once."""
        return tokens

    def forwards(self, layers: int, removed: float, tokens: int) -> float:
        """Return how many forwards over `tokens` calibration tokens pruning costs.

        `removed` is the budget in layers, of `layers`. A backward pass counts as two forwards. The head counts where
        `holds` has logits.
        """
        return {"nothing": 0.0, "calibration": 1.0, "gradients": 3.0}[self.looks_at]

    @abstractmethod
    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return the plan for a ratio from shapes alone, such as {"layers": 8}.

        The model may be without weights, so that a request is refused before any work. Raises Unsupported for a
        model, and OutOfReach for a ratio, that the method cannot serve.
        """

    @abstractmethod
    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Remove `ratio` of all parameters, in place, and return the decisions as plain JSON.

        A ratio of 0 changes nothing. methods.decisions checks the decisions against its contract. Raises what `plan`
        raises.
        """

    def prune_to(self, model: Decoder, calibration: Calibration, budget: Budget) -> dict[str, Any]:
        """Prune to a budget of bytes, cache, MACs or milliseconds, and return the decisions.

        Only a method that sets `takes_budget` has it.
        """
        raise NotImplementedError(f"{self.name} sets takes_budget and has no prune_to")


class RandomPruner(Pruner):
    """A method that draws at random, with the fields below. Without a seed a run has one cell for each of `draws`."""

    seed: int | None
    draws: int


class WidthPruner(Pruner):
    """A method with the field below, which cuts as many heads and channels in every layer where that is set."""

    uniform: bool


REGISTRY: dict[str, type[Pruner]] = {}

P = TypeVar("P", bound=type[Pruner])


def register(name: str) -> Callable[[P], P]:
    """Return a class decorator that makes a frozen dataclass available as method `name`."""

    def add(cls: P) -> P:
        if not issubclass(cls, Pruner):
            raise TypeError(f"a method is a subclass of methods.Pruner; {cls.__name__} is none")
        if "__dataclass_fields__" not in vars(cls):
            raise TypeError(f"@register goes above @dataclass: {cls.__name__} is not a dataclass")
        registered = REGISTRY.get(name)
        if registered is not None and (registered.__module__, registered.__qualname__) != (
            cls.__module__,
            cls.__qualname__,
        ):
            raise ValueError(f"two methods are called {name!r}: {registered.__module__} and {cls.__module__}")
        cls.name = name
        REGISTRY[name] = cls
        return cls

    return add


Layers = Annotated[int, Ge(0)]  # how many layers
Whole = Annotated[int, Ge(0)]
Count = Annotated[int, Ge(1)]
Tokens = Annotated[int, Ge(2)]  # of which all but the first are predicted
Finite = Annotated[float, Gt(-math.inf), Lt(math.inf)]
Positive = Annotated[float, Gt(0), Lt(math.inf)]
Share = Annotated[float, Ge(0), Lt(1)]
