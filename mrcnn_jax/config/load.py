"""Loading of recipes, dotted `name=value` overrides, and the JSON format of configurations."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import json
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from mrcnn_jax.config.field_types import FilePath
from mrcnn_jax.config.schema import Config
from mrcnn_jax.config.values import coerce, current_name, hints, unknown_field
from mrcnn_jax.errors import ConfigError

T = TypeVar("T")
_PACKAGE = Path(__file__).parents[1]
# Fields with the location of the data. Its content is identified by `data.dataset.Dataset.fingerprint`.
PATH_FIELDS = (
    "data.root",
    "data.cache_dir",
    *(f"data.{split}.{path}" for split in ("train", "eval") for path in ("annotations", "images")),
)


def recipes() -> dict[str, Path]:
    """Return the files of the recipes that come with the package, by name."""
    folders = (_PACKAGE / "configs", _PACKAGE.with_name("configs"))  # of a wheel; of a clone
    files = next((sorted(folder.glob("*.py")) for folder in folders if folder.is_dir()), [])
    return {file.stem: file for file in files}


def load_config(path: str | Path, overrides: typing.Sequence[str] = ()) -> Config:
    """Return the configuration of a recipe, with overrides applied.

    path: the name of a recipe that comes with the package, such as "quickstart"; or a Python file, whose
    `get_config()` is called; "FILE.py:ARGUMENT" calls `get_config("ARGUMENT")`.
    overrides: dotted `name=value`, such as "optimizer.learning_rate=0.01".

    Raises ConfigError for an unknown name, a missing file, a file without a `get_config` that returns a Config, an
    unknown field or a value of the wrong type. Errors in the file itself are not caught.
    """
    file, colon, argument = str(path).partition(".py:")
    path = recipe_file(file + ".py" if colon else str(path))
    spec = importlib.util.spec_from_file_location(f"mrcnn_jax_recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{path} has no function get_config()")
    config = module.get_config(argument) if colon else module.get_config()
    if not isinstance(config, Config):
        raise ConfigError(f"{path}: get_config() must return a Config, got {type(config).__name__}")
    return apply_overrides(config, overrides)


def recipe_file(text: str) -> Path:
    """Return the file of a recipe that is given by its path or its name. Raises ConfigError if there is none."""
    path, known = Path(text).expanduser(), recipes()
    if path.is_file():
        return path
    if text in known:
        return known[text]
    near = difflib.get_close_matches(path.stem, known, n=3) or sorted(known)
    raise ConfigError(f"no configuration file {path}; recipes of mrcnn_jax are given by name: {', '.join(near)}")


def apply_overrides(config: T, overrides: typing.Sequence[str]) -> T:
    """Return `config` with each dotted `name=value` applied, in order."""
    for override in overrides:
        name, separator, text = override.partition("=")
        if not separator:
            raise ConfigError(f"override {override!r} is not of the form name=value")
        config = _replace(config, name.split("."), text, name)
    return config


def to_json(config: Any) -> str:
    """Return the resolved configuration as JSON, for `from_json`."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> Config:
    """Parse the output of `to_json`. Raises ConfigError for unknown fields or values of the wrong type."""
    config: Config = coerce(json.loads(text), Config, "config")
    return config


def flatten(config: Config) -> dict[str, Any]:
    """Return the values of all fields by dotted name; an optional part that is None is one value."""
    return dict(_flatten(dataclasses.asdict(config), ""))


def _flatten(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _replace(node: Any, path: list[str], text: str, full_name: str) -> Any:
    """Copy of the dataclass `node` with the field at `path` set to the parsed `text`."""
    fields = hints(type(node)) if dataclasses.is_dataclass(node) else {}
    name, *rest = current_name(type(node), path[0]), *path[1:]
    if name not in fields:
        raise unknown_field(full_name, name, fields)
    if not rest:
        return dataclasses.replace(node, **{name: coerce(_parse(text, fields[name]), fields[name], full_name)})
    child = getattr(node, name)
    if child is None:
        raise ConfigError(f"{full_name!r} cannot be set: {name!r} is None in this recipe")
    return dataclasses.replace(node, **{name: _replace(child, rest, text, full_name)})


def _parse(text: str, hint: Any) -> Any:
    """Parse a Python literal; anything else, and any value of a string field, is text and needs no quotes."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False, "none": None}.get(text.lower(), text)
    return text if hint in (str, FilePath) and not isinstance(value, str) else value
