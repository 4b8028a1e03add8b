"""Figures that papers have printed, as data: reports/published/*.yaml, or a file of the same form.

description: one line, for those who choose
source: authors, year, title, where the figures stand
notes: [why they cannot be compared with figures measured here, ...]
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
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PUBLISHED = Path(__file__).with_name("published")
KEYS = ("method", "ratio", "layers", "prune_seconds", "tasks", "average", "perplexity")


@dataclass(frozen=True)
class Printed:
    """One row of a paper's table. Shares are in [0, 1], also those of `tasks` and `average`.

    average  (the tasks that it is over, its value), where one was printed
    """

    methods: tuple[str, ...]
    ratio: float | None = None
    layers: int | None = None
    prune_seconds: float | None = None
    tasks: dict[str, float] = field(default_factory=dict)
    average: tuple[tuple[str, ...], float] | None = None
    perplexity: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Paper:
    """What one source has printed.

    name    of the file
    models  (the paper's name, names on the hub, rows)
    """

    name: str
    source: str
    notes: tuple[str, ...]
    models: tuple[tuple[str, tuple[str, ...], tuple[Printed, ...]], ...]


def known() -> list[str]:
    """The names of what comes with the suite."""
    return sorted(path.stem for path in PUBLISHED.glob("*.yaml"))


def read(name: str) -> list[Paper]:
    """The papers of a name of `known`, of "published", which is all of them, or of a file.

    Raises ValueError, in one line, for a name that there is not and for a file of another form.
    """
    if name == "published":
        return [_paper(PUBLISHED / f"{one}.yaml") for one in known()]
    if name in known():
        return [_paper(PUBLISHED / f"{name}.yaml")]
    if Path(name).is_file():
        return [_paper(Path(name))]
    raise ValueError(f"nothing published is called {name!r}; give published, {', '.join(known())}, or a YAML file")


def _paper(path: Path) -> Paper:
    import yaml

    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    try:
        models = tuple(
            (str(model), tuple(map(str, entry["names"])), tuple(map(_row, entry["rows"])))
            for model, entry in plain["models"].items()
        )
        return Paper(path.stem, str(plain["source"]), tuple(map(str, plain.get("notes", ()))), models)
    except KeyError as error:
        raise ValueError(f"{path} has no {error.args[0]}, which published figures need") from None
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is no table of published figures: {error}") from None


def _row(plain: Mapping[str, Any]) -> Printed:
    if unknown := [key for key in plain if key not in KEYS]:
        raise ValueError(f"a row has no {unknown[0]}; it has {', '.join(KEYS)}")
    method, average = plain["method"], plain.get("average")
    return Printed(
        tuple(method) if isinstance(method, list) else (str(method),),
        _number(plain, "ratio"),
        None if plain.get("layers") is None else int(plain["layers"]),
        _number(plain, "prune_seconds"),
        {str(name): float(value) / 100 for name, value in plain.get("tasks", {}).items()},
        None if average is None else (tuple(map(str, average["of"])), float(average["value"]) / 100),
        {str(name): float(value) for name, value in plain.get("perplexity", {}).items()},
    )


def _number(plain: Mapping[str, Any], name: str) -> float | None:
    return None if plain.get(name) is None else float(plain[name])
