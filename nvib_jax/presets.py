"""A configuration from a file and back: presets, which are Python, and JSON.

The presets of this library are the files of `configs/`. A wheel has them inside the package, so
that their names are enough anywhere: `nvib train quickstart`.
"""

import dataclasses
import difflib
import importlib.util
import json
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nvib_jax.checks import check_choice
from nvib_jax.config import Config
from nvib_jax.fields import check_value, may_be_infinite, short
from nvib_jax.models.build import FAMILIES, family_of

_USUAL = "nvae"  # the family of a model that JSON names none for


def preset_folder() -> Path:
    """Where the library's presets are: in the package, or in a checkout beside it."""
    package = Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def preset_names() -> list[str]:
    """The names of the library's presets, sorted.

    >>> "quickstart" in preset_names()
    True
    """
    return sorted(path.stem for path in preset_folder().glob("*.py"))


def load_preset(path: str | Path) -> Config:
    """Run a preset file's `config()`, read a run's `config.json`, or take a preset of the library.

    Args:
      path: a file, or a name of `preset_names`; a file of that name in this folder goes first.

    Raises:
      FileNotFoundError: no such file; names the presets beside it, or the library's.
      ValueError: the file does not define `config() -> Config`, or names a field that is not there.
    """
    path = Path(path)
    if not path.is_file() and str(path) in preset_names():
        path = preset_folder() / f"{path}.py"
    if not path.is_file():
        raise FileNotFoundError(f"config {path} does not exist; {_nearest(path)}")
    if path.suffix == ".json":
        try:
            return from_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    config = call_file(path, "config")
    if not isinstance(config, Config):
        raise ValueError(f"config() of {path} gives {type(config).__name__}; wanted Config")
    return config


def _nearest(path: Path) -> str:
    """What to name instead of a file that does not exist."""
    there = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
    if near := difflib.get_close_matches(path.name, there, n=1):
        return f"did you mean {path.parent / near[0]}?"
    names = preset_names()
    if near := difflib.get_close_matches(path.stem, names, n=1):
        return f"did you mean {near[0]}, a preset of the library?"
    beside = f"{path.parent} has {', '.join(there)}, and " if there else ""
    return f"{beside}the library's presets are {', '.join(names)}"


def changed(config: Config, sections: Mapping[str, Mapping[str, Any]]) -> Config:
    """The config with other values, given by section and field.

    Raises:
      ValueError: a section or field that is not there, the nearest one named.

    >>> changed(Config(), {"train": {"steps": 100}, "model": {"kind": "VTV"}}).train.steps
    100
    """
    new = {}
    for name, values in sections.items():
        _check_known("config", [name], config)
        part = getattr(config, name)
        _check_known(name, values, part)
        new[name] = dataclasses.replace(part, **values)
    return dataclasses.replace(config, **new)


def _check_known(where: str, names: Iterable[str], part: Any) -> None:
    """Refuse a name that is no field of a dataclass."""
    known = sorted(f.name for f in dataclasses.fields(part))
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"{where} has no field '{name}'{hint}")


def call_file(path: Path, function: str) -> Any:
    """What a function of a Python file returns.

    Raises:
      ValueError: no Python file, or whatever its code raises, named.
    """
    spec = importlib.util.spec_from_file_location(f"nvib_preset_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"config {path} is no Python file; wanted one that defines {function}()")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return getattr(module, function)()
    except Exception as error:  # whatever a preset's own code may raise
        raise ValueError(
            f"config {path}: {type(error).__name__}: {_with_nearest_field(str(error))}"
        ) from error


def _with_nearest_field(message: str) -> str:
    """Name the nearest field where Python says only which keyword it did not expect."""
    words = message.split("'")
    if "unexpected keyword" not in message or len(words) < 2:
        return message
    known = sorted({f.name for part in sections() for f in dataclasses.fields(part)})
    near = difflib.get_close_matches(words[1], known, n=1)
    return message + (f"; did you mean '{near[0]}'?" if near else "")


def sections() -> list[type]:
    """`Config`, every dataclass inside it, and the configs of all families of models."""
    found: list[type] = []
    todo: list[Any] = [Config, *(kind for kind, _ in FAMILIES.values())]
    while todo:
        part = todo.pop()
        found.append(part)
        todo += [t for t in typing.get_type_hints(part).values() if dataclasses.is_dataclass(t)]
    return found


def to_json(config: Config) -> str:
    """The config as JSON, every field; "family" says which model it is, if not an NVAE."""
    values = dataclasses.asdict(config)
    family = family_of(config.model)
    if family != _USUAL:  # left out for an NVAE, because version 0.1.0 knew nothing else
        values["model"] = {"family": family, **values["model"]}
    return json.dumps(values, indent=2)


def from_json(text: str) -> Config:
    """The inverse of `to_json`.

    Raises:
      ValueError: no JSON object, a field that this version does not have, the nearest one named,
        or a value that a field cannot have.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise ValueError(f"config is no JSON object: {reason}") from error
    kinds: dict[str, Any] = {}
    if isinstance(values, dict) and isinstance(values.get("model"), dict):
        model = dict(values["model"])
        family = model.pop("family", _USUAL)
        check_choice("config.model.family", family, tuple(FAMILIES))
        values, kinds = {**values, "model": model}, {"model": FAMILIES[family][0]}
    return _build(Config, values, "config", kinds)


def _build(
    cls: type, values: dict[str, Any], where: str, kinds: dict[str, Any] | None = None
) -> Any:
    """A dataclass from JSON values; `kinds` has the types of fields whose annotation is a base."""
    if not isinstance(values, dict):
        raise ValueError(f"{where} is {short(values)}; wanted a JSON object")
    hints = typing.get_type_hints(cls) | (kinds or {})
    known = {f.name: f for f in dataclasses.fields(cls)}
    _check_known(where, values, cls)
    built = {}
    for name, value in values.items():
        kind = hints[name]
        if dataclasses.is_dataclass(kind):
            value = _build(kind, value, f"{where}.{name}")  # type: ignore[arg-type]
        else:
            if typing.get_origin(kind) is tuple and isinstance(value, list):
                value = tuple(value)
            elif kind is int and isinstance(value, float) and value.is_integer():
                value = int(value)  # because JSON has one kind of number, 60.0 is 60
            check_value(value, kind, f"{where}.{name}", may_be_infinite(known[name]))
        built[name] = value
    return cls(**built)
