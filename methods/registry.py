"""Finds methods and compensations by name, makes them of what was typed, and lists what there is.

`shortgpt+ghost` is a method and a compensation, see methods/compensation/base.py.

To add a method, write its file and put the file's name into BUILT_IN. A method of one's own needs neither: it is found
in a file named with --plugin, or through the entry-point group "prunebench.methods" of an installed package.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from methods.base import REGISTRY, Pruner

if TYPE_CHECKING:
    from methods.compensation.base import Compensation

BUILT_IN = (  # modules of this package, in the order in which lists show their methods
    "dense",
    "depth.laco",
    "depth.laco_ls",
    "width.slicegpt",
    "width.llm_pruner",
    "depth.layer_drop",
    "depth.magnitude",
    "depth.shortgpt",
    "depth.angular",
    "depth.shortened_llama",
    "depth.sleb",
    "depth.blockpruner",
    "depth.finercut",
    "depth.llm_drop",
    "width.flap",
    "width.wanda_sp",
    "width.two_ssp",
    "width.minitron_width",
)
COMPENSATIONS = (
    "compensation.scale",
    "compensation.linear_patch",
    "compensation.ghost",
    "compensation.replaceme",
    "compensation.refit",
    "compensation.reinitialize",
)
ENTRY_POINTS = "prunebench.methods"
PLUGIN = "prunebench_plugin_"  # begins the name under which a file is imported


def load(plugins: Iterable[str] = ()) -> dict[str, type[Pruner]]:
    """Import every method: the built-in ones, those of installed packages, and those in the files `plugins`.

    Raises ValueError, with the file's name, when one cannot be imported or registers nothing.
    """
    for name in BUILT_IN:
        importlib.import_module(f"methods.{name}")
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        _load_point(point)
    for plugin in plugins:
        _load_file(Path(plugin))
    return REGISTRY


def _load_point(point: importlib.metadata.EntryPoint) -> None:
    try:
        point.load()
    except Exception as error:
        package = point.dist.name if point.dist else point.module
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"method {point.name} of the package {package} cannot be imported: {reason}") from error


def plugins() -> list[str]:
    """The files of the plugins that are loaded, so that another process can load them too."""
    loaded = [module for name, module in sys.modules.items() if name.startswith(PLUGIN)]
    return [module.__file__ for module in loaded if module.__file__]


def _load_file(path: Path) -> None:
    name = f"{PLUGIN}{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ValueError(f"--plugin names a Python file with @register-ed methods; {path} is none")
    if name in sys.modules:
        return
    before = set(REGISTRY)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    if set(REGISTRY) == before:
        raise ValueError(f"{path} registers no method; put @register(NAME) above a frozen dataclass")


def make(name: str, given: Mapping[str, Any] | None = None) -> Pruner:
    """Method `name`, such as `shortgpt` or `shortgpt+ghost`, with what is `given` of `parameters`.

    Values have their own types or are text; those of a compensation are called `ghost.ridge`. `shortgpt+none` is
    `shortgpt`. Raises ValueError for an unknown name or parameter and for an unsound value, with what would be right.
    """
    method, plus, mending = name.partition("+")
    if not plus or mending == "none":
        return _made("method", load(), method, given or {}, "")
    from methods.compensation.base import CompensatedPruner

    prefix = f"{mending}."
    ours = {key: value for key, value in (given or {}).items() if key.startswith(prefix)}
    theirs = {key: value for key, value in (given or {}).items() if key not in ours}
    pruner = _made("method", load(), method, theirs, "")
    mend = _made("compensation", _load_compensations(), mending, ours, prefix)
    return CompensatedPruner(pruner, mend)  # type: ignore[return-value]  # its name follows from its parts


def hyperparameters(pruner: Pruner) -> dict[str, Any]:
    """Every parameter by the name that `make` takes, plain JSON values."""
    from methods.compensation.base import CompensatedPruner

    if not isinstance(pruner, CompensatedPruner):
        return dataclasses.asdict(pruner)  # type: ignore[call-overload]  # a Pruner is a dataclass
    mend = pruner.compensation
    ours = dataclasses.asdict(mend)  # type: ignore[call-overload]
    return hyperparameters(pruner.pruner) | {f"{mend.name}.{key}": value for key, value in ours.items()}


def modules(name: str) -> list[str]:
    """The modules that `make(name)` takes its classes from: the method's, and the compensation's."""
    method, _, mending = name.partition("+")
    compensations = _load_compensations() if mending else {}
    classes = [load()[method], *([compensations[mending]] if mending in compensations else [])]
    return [cls.__module__ for cls in classes]


def _load_compensations() -> dict[str, type[Compensation]]:
    for name in COMPENSATIONS:
        importlib.import_module(f"methods.{name}")
    from methods.compensation.base import REGISTRY as known

    return known


T = TypeVar("T")


def _made(what: str, known: Mapping[str, type[T]], name: str, given: Mapping[str, Any], prefix: str) -> T:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"no {what} is called {name!r}; {hint}known: {', '.join(sorted(known))}")
    fields = {prefix + field.name: _kind(field.type) for field in dataclasses.fields(known[name])}  # type: ignore[arg-type]
    values = {}
    for parameter, value in given.items():
        if parameter not in fields:
            near = difflib.get_close_matches(parameter, fields, n=1)
            hint, has = f"; did you mean {near[0]}?" if near else "", ", ".join(fields) if fields else "none"
            raise ValueError(f"{name} has no parameter {parameter}; it has: {has}{hint}")
        where = parameter if prefix else f"{name}:{parameter}"
        values[parameter.removeprefix(prefix)] = _typed(where, fields[parameter], value)
    try:
        return known[name](**values)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _kind(annotation: Any) -> str:
    """'int', 'int | None': a type as it is written, whether or not the file has postponed its annotations."""
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _typed(where: str, kind: str, value: Any) -> Any:
    """`value` as one of the types in `kind`, such as "int | None"."""
    kinds = [piece.strip() for piece in kind.split("|")]
    if value is None or (isinstance(value, str) and value.lower() == "none"):
        if "None" in kinds:
            return None
    elif "bool" in kinds:
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if str(value).lower() in words:
            return words[str(value).lower()]
    else:
        for piece, convert in (("int", int), ("float", float), ("str", str)):
            try:
                if piece in kinds and not (piece == "int" and isinstance(value, float)):
                    return convert(value)
            except ValueError:
                continue
    raise ValueError(f"{where} is {' or '.join(kinds)}; got {value!r}")


SAID = ("fixed", "needs", "cost", "without")  # constants of a class that its card shows


@dataclass(frozen=True)
class Card:
    """What `list methods` says of a method. The last four are constants of its class.

    parameters  name, default, meaning
    fixed       whether the parameters alone decide what goes, so that no ratio is asked for
    needs       what it looks at: nothing, calibration, or calibration and gradients
    cost        in forwards over the tokens that it reads
    without     the families it cannot serve
    """

    name: str
    summary: str
    parameters: tuple[tuple[str, str, str], ...]
    fixed: bool = False
    needs: str = ""
    cost: str = ""
    without: tuple[str, ...] = ()


def catalogue() -> list[Card]:
    """The built-in methods, read from their source, so that a list costs no import of torch."""
    cards: list[Card] = []
    for name in BUILT_IN:
        cards += _cards(_source(name))
    return cards


def compensations() -> list[Card]:
    """The compensations, in the same way."""
    cards: list[Card] = []
    for name in COMPENSATIONS:
        cards += _cards(_source(name), "compensation")
    return cards


def _source(name: str) -> str:
    return Path(__file__).parent.joinpath(*name.split(".")).with_suffix(".py").read_text(encoding="utf-8")


def installed() -> list[tuple[str, str]]:
    """(name, package) of the entry points of installed packages, which are named after their methods."""
    points = importlib.metadata.entry_points(group=ENTRY_POINTS)
    return [(point.name, point.dist.name if point.dist else point.module) for point in points]


def _cards(source: str, decorator_name: str = "register") -> list[Card]:
    lines = source.splitlines()
    fields: dict[str, dict[str, tuple[str, str, str]]] = {}
    constants: dict[str, dict[str, Any]] = {}
    cards = []
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef):
            continue
        bases = [ast.unparse(base) for base in node.bases]
        own = {name: entry for base in bases for name, entry in fields.get(base, {}).items()}
        said = {name: value for base in bases for name, value in constants.get(base, {}).items()}
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.value is not None:
                comment = lines[item.lineno - 1].rpartition("#")[2] if "#" in lines[item.lineno - 1] else ""
                meaning = comment.strip() or own.get(item.target.id, ("", "", ""))[2]
                own[item.target.id] = (item.target.id, ast.unparse(item.value), meaning)
            elif isinstance(item, ast.Assign) and ast.unparse(item.targets[0]) in SAID:
                said[ast.unparse(item.targets[0])] = ast.literal_eval(item.value)
        fields[node.name], constants[node.name] = own, said
        for decorator in node.decorator_list:
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == decorator_name:
                summary = (ast.get_docstring(node) or "").partition("\n")[0]
                cards.append(Card(ast.literal_eval(decorator.args[0]), summary, tuple(own.values()), **said))
    return cards
