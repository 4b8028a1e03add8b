"""Finds methods and compensations by name, and makes pruners from names and parameters.

`shortgpt+ghost` is a method and a compensation, see methods/compensation/base.py.

A method of this package is a file of one of FOLDERS with `@register("name")` in it. A user's own method or compensation
is in a file that --plugin names, or in an installed package with the entry-point group "prunebench.methods".
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import json
import math
import sys
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from methods.base import REGISTRY, Pruner
from methods.files import hash_file
from methods.plugin_sources import find_sources

if TYPE_CHECKING:
    from importlib import metadata

    from methods.compensation.base import Compensation


METHODS = Path(__file__).parent
FOLDERS = ("depth", "width", "search", "experts")  # in the order in which lists show their methods
ENTRY_POINTS = "prunebench.methods"
PLUGIN = "prunebench_plugin_"  # begins the name under which a file is imported

T = TypeVar("T")


@functools.cache
def find_method_modules() -> tuple[str, ...]:
    """Return the modules of this package that register methods: "dense", then folder by folder, by name."""
    return ("dense", *(module for folder in FOLDERS for module in _registering(folder, "register")))


@functools.cache
def find_compensation_modules() -> tuple[str, ...]:
    """Return the modules of this package that register compensations, by name."""
    return _registering("compensation", "register_compensation")


def _registering(folder: str, decorator: str) -> tuple[str, ...]:
    """Return the modules of a folder whose text has the decorator at the beginning of a line."""
    paths = sorted((METHODS / folder).glob("*.py"))
    return tuple(f"{folder}.{path.stem}" for path in paths if f"\n@{decorator}(" in path.read_text(encoding="utf-8"))


def load(plugins: Iterable[str] = ()) -> dict[str, type[Pruner]]:
    """Import every method: the built-in ones, those of installed packages, and those in the files `plugins`.

    Raises ValueError, with the file's name, when one cannot be imported or registers nothing.
    """
    for name in find_method_modules():
        importlib.import_module(f"methods.{name}")
    for point in _entry_points():
        _load_point(point)
    for plugin in plugins:
        _load_file(Path(plugin))
    return REGISTRY


@functools.cache
def _entry_points() -> tuple[metadata.EntryPoint, ...]:
    """Return the entry points of installed packages. This reads the files of every package."""
    from importlib import metadata

    return tuple(metadata.entry_points(group=ENTRY_POINTS))


def installed_methods() -> list[tuple[str, str]]:
    """Return (name, package) of the methods of installed packages: an entry point has the name of its method."""
    points = _entry_points()
    return [(point.name, point.dist.name if point.dist else point.module) for point in points]


def _load_point(point: metadata.EntryPoint) -> None:
    try:
        point.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too, since it would end the program without a message
        package = point.dist.name if point.dist else point.module
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"method {point.name} of the package {package} cannot be imported: {reason}") from error


def files_of_plugins() -> list[str]:
    """Return the files of the plugins that are loaded, so that another process can load them too."""
    loaded = [module for name, module in sys.modules.items() if name.startswith(PLUGIN)]
    return [module.__file__ for module in loaded if module.__file__]


def _load_file(path: Path) -> None:
    name = f"{PLUGIN}{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ValueError(f"--plugin names a Python file with @register-ed methods; {path} is none")
    if name in sys.modules:
        return
    before = _registered_names()
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        del sys.modules[name]
        raise
    except BaseException as error:  # SystemExit too, since it would end the program without a message
        del sys.modules[name]
        raise ValueError(
            f"{path} cannot be imported: {_line_in(path, error)}{type(error).__name__}: {error}"
        ) from error
    if _registered_names() == before:
        raise ValueError(f"{path} registers no method; put @register(NAME) above a frozen dataclass")


def _registered_names() -> set[str]:
    """Return the names of all methods, and of the compensations of plugins behind a plus."""
    base = sys.modules.get("methods.compensation.base")  # imported by whoever registers one
    compensations: Mapping[str, type] = {} if base is None else base.REGISTRY
    own = {f"+{name}" for name, kind in compensations.items() if not kind.__module__.startswith("methods.")}
    return {*REGISTRY, *own}


def _line_in(path: Path, error: BaseException) -> str:
    """Return the innermost line of a file that an error comes through, as "line 3: "; empty without one."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == path]
    return f"line {lines[-1]}: " if lines else ""


def make(name: str, given: Mapping[str, Any] | None = None) -> Pruner:
    """Return the pruner of method `name`, such as `shortgpt` or `shortgpt+ghost`, with the given parameters.

    Values have their own types or are text. A parameter of a compensation has its name in front, as `ghost.ridge`.
    `shortgpt+none` is `shortgpt`. Raises ValueError for an unknown name or parameter and for an unsound value; the
    message says what would be right.
    """
    method, plus, mending = name.partition("+")
    given = dict(given or {})
    if not plus or mending == "none":
        return _make_object("method", load(), method, given, "")
    from methods.compensation.base import CompensatedPruner

    prefix = f"{mending}."
    ours = {key: value for key, value in given.items() if key.startswith(prefix)}
    theirs = {key: value for key, value in given.items() if key not in ours}
    pruner = _make_object("method", load(), method, theirs, "")
    compensation = _make_object("compensation", _load_compensations(), mending, ours, prefix)
    return CompensatedPruner(pruner, compensation)


def parameters_of_pruner(pruner: Pruner) -> dict[str, Any]:
    """Return every parameter by the name that `make` takes, as plain JSON values."""
    from methods.compensation.base import CompensatedPruner

    if not isinstance(pruner, CompensatedPruner):
        return dataclasses.asdict(pruner)
    compensation = pruner.compensation
    ours = dataclasses.asdict(compensation)
    return parameters_of_pruner(pruner.pruner) | {f"{compensation.name}.{key}": value for key, value in ours.items()}


def tiny_parameters_of(name: str) -> dict[str, str]:
    """Return the parameters, as text and by the names that `make` takes, with which a method serves a tiny model."""
    prefixes = ("", f"{name.partition('+')[2]}.")
    parameters = dict[str, str]()
    for prefix, kind in zip(prefixes, _classes(name), strict=False):
        pairs = [pair.partition("=") for pair in getattr(kind, "tiny", "").split(",") if pair]
        parameters |= {prefix + key: value for key, _, value in pairs}
    return parameters


def find_changed_parameters(name: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of method `name` that differ from their defaults; all of a method that is not known."""
    defaults = _defaults(name)
    return {
        parameter: value
        for parameter, value in parameters.items()
        if parameter not in defaults or json.dumps(value) != defaults[parameter]
    }


def _defaults(name: str) -> dict[str, str]:
    """Return the defaults of a method's parameters as JSON, by the names that `make` takes."""
    method, _, compensation = name.partition("+")
    load()
    defaults = _defaults_of(REGISTRY[method], "") if method in REGISTRY else {}
    compensations = _load_compensations() if compensation else {}
    return (
        {**defaults, **_defaults_of(compensations[compensation], f"{compensation}.")}
        if compensation in compensations
        else defaults
    )


@functools.cache
def _defaults_of(kind: type, prefix: str) -> dict[str, str]:
    fields = dataclasses.fields(kind)
    return {
        prefix + field.name: json.dumps(field.default) for field in fields if field.default is not dataclasses.MISSING
    }


def revision_of_method(name: str) -> str:
    """Return the revision of a method: "1", or "1+1" with a compensation.

    The sha256 of each file of `sources_of_method` follows.
    """
    numbers = "+".join(str(getattr(cls, "revision", 1)) for cls in _classes(name))
    return ", ".join([numbers, *map(hash_file, sources_of_method(name))])


def sources_of_method(name: str) -> list[Path]:
    """Return the files outside this package that a method and its compensation consist of, with what these import."""
    sources = [source for plugin in plugins_of(name) for source in find_sources(Path(plugin))]
    return list(dict.fromkeys(sources))


def plugins_of(name: str) -> list[str]:
    """Return the files of plugins or installed packages that define a method and its compensation."""
    modules = dict.fromkeys(module for module in modules_of(name) if not module.startswith("methods."))
    files = [getattr(sys.modules.get(module), "__file__", None) for module in modules]
    return [file for file in files if file]


def place_of_prune(name: str) -> str:
    """Return where a plugin's method begins to prune, as 'mine.py:14 in prune: '; "" for a method of this package."""
    code = getattr(inspect.unwrap(_classes(name)[0].prune), "__code__", None)  # type: ignore[attr-defined]
    if code is None or code.co_filename not in plugins_of(name):
        return ""
    return f"{Path(code.co_filename).name}:{code.co_firstlineno} in prune: "


def modules_of(name: str) -> list[str]:
    """Return the modules that define the classes of `make(name)`: the method's, and the compensation's."""
    return [cls.__module__ for cls in _classes(name)]


def _classes(name: str) -> list[type]:
    """Return the class of a method, and behind it that of its compensation."""
    method, _, compensation = name.partition("+")
    compensations = _load_compensations() if compensation else {}
    return [load()[method], *([compensations[compensation]] if compensation in compensations else [])]


def _load_compensations() -> dict[str, type[Compensation]]:
    for name in find_compensation_modules():
        importlib.import_module(f"methods.{name}")
    from methods.compensation.base import REGISTRY

    return REGISTRY


def _make_object(
    what: str, class_by_name: Mapping[str, type[T]], name: str, given: Mapping[str, Any], prefix: str
) -> T:
    """Return an object of the class `class_by_name[name]`; the names of its parameters have `prefix` in front."""
    if name not in class_by_name:
        hint = f"{_near(name, class_by_name)}? " if _near(name, class_by_name) else ""
        raise ValueError(f"no {what} is called {name!r}; {hint}known: {', '.join(sorted(class_by_name))}")
    try:
        hints = get_type_hints(class_by_name[name], include_extras=True)
    except NameError as error:
        raise ValueError(f"{name}: {error}; the types of its parameters are imported at run time") from None
    fields = {prefix + field.name: hints[field.name] for field in dataclasses.fields(class_by_name[name])}  # type: ignore[arg-type]
    values = {}
    for parameter, value in given.items():
        if parameter not in fields:
            hint, has = _near(parameter, fields), ", ".join(fields) if fields else "none"
            raise ValueError(f"{name} has no parameter {parameter}; it has: {has}{f'; {hint}?' if hint else ''}")
        where = parameter if prefix else f"{name}:{parameter}"
        values[parameter.removeprefix(prefix)] = _valid(where, fields[parameter], value)
    try:
        return class_by_name[name](**values)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{name}: {kind}{error}") from None


def _near(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]}" if near else ""


def _valid(where: str, hint: Any, value: Any) -> Any:
    """Return `value`, which may be text, as the type `hint` of the parameter `where`. Raises ValueError."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    none = isinstance(value, str) and value.lower() == "none"
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(coerce_numbers_to_str=True))
        return adapter.validate_python(None if none else value)
    except ValidationError:
        raise ValueError(f"{where} is {_words_of_type(hint)}; got {value!r}") from None


def _words_of_type(hint: Any) -> str:
    """Return a type in words: `int, at least 2`, `all or last`, `float or None`."""
    if hint is type(None):
        return "None"
    if get_origin(hint) is Annotated:
        bounds = {"ge": "at least", "gt": "more than", "lt": "less than", "le": "at most"}
        limits = [(words, getattr(limit, name, None)) for limit in hint.__metadata__ for name, words in bounds.items()]
        in_force = [(words, bound) for words, bound in limits if bound is not None]
        phrases = [f"{words} {bound:g}" for words, bound in in_force if math.isfinite(bound)]
        phrases += ["finite"] if len(phrases) < len(in_force) else []
        return ", ".join(filter(None, [_words_of_type(hint.__origin__), " and ".join(phrases)]))
    if get_args(hint):
        words = list(map(str if get_origin(hint) is Literal else _words_of_type, get_args(hint)))
        return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
    return str(getattr(hint, "__name__", hint))
