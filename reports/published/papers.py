"""Printed figures of papers as data: reports/published/*.yaml, or a file of the same form.

description: one line, for those who choose
source: authors, year, title, where the figures stand
notes: [what a reader has to know beside the protocol, ...]
protocol: {window: 2048, bos: none, ...}   how it was measured (PublishedProtocol); what is not known is left out
models:
  Llama-2-7B:
    names: [meta-llama/Llama-2-7b-hf]      of the hub; a folder is taken for the model if it is called alike
    rows:
      - method: dense                      or several that may be meant: [laco, laco-published]
        ratio: 0.271                       share of all parameters removed; none for the dense model
        layers: 23
        prune_seconds: 15
        tasks: {hellaswag: 71.26}          in %; a group such as mmlu is the mean of the tasks mmlu_*
        average: {of: [piqa, boolq], value: 54.8}
        perplexity: {wikitext: 4.46}       of the text whose name holds that word
        order: [27, 25, 26]                layers of the dense model, from 0, the first that goes first
        protocol: {calibration: alpaca}    what is otherwise in this row
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError

from methods.errors import UserError

PUBLISHED = Path(__file__).parent
Percent = Annotated[float, AfterValidator(lambda percent: percent / 100)]


class PublishedProtocol(BaseModel, frozen=True, extra="forbid"):
    """How figures were measured; a setting that is not known is None.

    window       tokens of a window of perplexity; windows do not overlap
    windows      how many windows; 0 for all of the text
    bos          whether each window begins with BOS: "none" or "every window"
    dtype        the dtype of the weights while they were measured
    calibration  the text that methods look at, by a word of its name, with the sequences and their tokens
    lm_eval      the version of lm-eval that measured the tasks
    fewshot      examples before a question
    metric       acc, acc_norm, or "acc_norm or acc", which is acc_norm for a task that has it
    counts       what the paper's ratio is a share of, in words; the rows' `ratio` is of all parameters
    """

    window: int | None = None
    windows: int | None = None
    bos: Literal["none", "every window"] | None = None
    dtype: str | None = None
    calibration: str | None = None
    calibration_sequences: int | None = None
    calibration_length: int | None = None
    lm_eval: str | None = None
    fewshot: int | None = None
    metric: Literal["acc", "acc_norm", "acc_norm or acc"] | None = None
    counts: str | None = None

    def with_own(self, row: PublishedProtocol) -> PublishedProtocol:
        """Return the protocol with the settings that a row has of its own."""
        return self.model_copy(update=row.model_dump(exclude_unset=True))


class Average(BaseModel, frozen=True):
    """A printed average, and its tasks."""

    of: tuple[str, ...]
    value: Percent


class Printed(BaseModel, frozen=True, extra="forbid"):
    """One row of a paper's table. All shares are in [0, 1]; papers give `tasks` and `average` in %."""

    methods: Annotated[
        tuple[str, ...], BeforeValidator(lambda value: value if isinstance(value, list | tuple) else [value])
    ] = Field(alias="method")
    ratio: float | None = None
    layers: int | None = None
    prune_seconds: float | None = None
    tasks: dict[str, Percent] = {}
    average: Average | None = None
    perplexity: dict[str, float] = {}
    order: tuple[int, ...] = ()
    protocol: PublishedProtocol = PublishedProtocol()


class PublishedModel(BaseModel, frozen=True):
    """The printed rows of one model, and its names on the hub."""

    names: tuple[str, ...]
    rows: tuple[Printed, ...]


class Paper(BaseModel, frozen=True):
    """The figures of one source: the name of its file, and models by the names that the source gives them."""

    name: str
    source: str
    notes: tuple[str, ...] = ()
    protocol: PublishedProtocol = PublishedProtocol()
    models: dict[str, PublishedModel]


def list_published() -> list[str]:
    """Return the names of the papers whose figures come with the suite."""
    return sorted(path.stem for path in PUBLISHED.glob("*.yaml"))


def read_published(name: str) -> list[Paper]:
    """Return the paper with a name of `list_published`, all of them for "published", or the paper of a file.

    Raises UserError for an unknown name and for a file of another form.
    """
    if name == "published":
        return [_paper(PUBLISHED / f"{stem}.yaml") for stem in list_published()]
    if name in list_published():
        return [_paper(PUBLISHED / f"{name}.yaml")]
    if Path(name).is_file():
        return [_paper(Path(name))]
    raise UserError(
        f"nothing published is called {name!r}; give published, {', '.join(list_published())}, or a YAML file"
    )


def _paper(path: Path) -> Paper:
    import yaml

    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Paper.model_validate({"name": path.stem, **plain})
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first, row = error.errors()[0], ", ".join(field.alias or name for name, field in Printed.model_fields.items())
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{path} is no table of published figures: {where}: {first['msg']}; it has source and models, a model has "
            f"names and rows, a row {row}"
        ) from None
    except TypeError:
        raise UserError(f"{path} is no table of published figures: it has no source and no models") from None
