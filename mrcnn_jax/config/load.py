"""Recipes from files, dotted `name=value` overrides, and the JSON form; all checked against the types of the fields."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import json
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from mrcnn_jax.config.schema import Config, Place
from mrcnn_jax.config.values import coerce, current_name, hints, unknown_field
from mrcnn_jax.errors import ConfigError

T = TypeVar("T")
# Fields that say where data lies. What it is does not depend on them: see `data.coco.Dataset.fingerprint`.
PLACES = (
    "data.root",
    "data.cache_dir",
    *(f"data.{split}.{place}" for split in ("train", "eval") for place in ("annotations", "images")),
)


def load_config(path: str | Path, overrides: typing.Sequence[str] = ()) -> Config:
    """Run `get_config()` of a recipe file and apply dotted `name=value` overrides.

    "FILE.py:ARGUMENT" runs `get_config("ARGUMENT")`. Raises ConfigError for a missing file, a file without a
    `get_config` that returns a Config, an unknown field or a value of the wrong type; and whatever the file itself
    raises.
    """
    file, colon, argument = str(path).partition(".py:")
    path = Path(file + ".py" if colon else path).expanduser()
    if not path.is_file():
        raise ConfigError(f"no configuration file {path}; recipes are in configs/")
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


def apply_overrides(config: T, overrides: typing.Sequence[str]) -> T:
    """Return `config` with each dotted `name=value` applied, in order."""
    for override in overrides:
        name, separator, text = override.partition("=")
        if not separator:
            raise ConfigError(f"override {override!r} is not of the form name=value")
        config = _replace(config, name.split("."), text, name)
    return config


def to_json(config: Any) -> str:
    """The resolved configuration as JSON; `from_json` reads it back unchanged."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> Config:
    """Read what `to_json` wrote. Raises ConfigError for unknown fields or values of the wrong type."""
    return coerce(json.loads(text), Config, "config")


def flatten(config: Config) -> dict[str, Any]:
    """The values of all fields by their dotted names; parts that are None count as values."""
    return dict(_flattened(dataclasses.asdict(config), ""))


def _flattened(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _replace(node: Any, path: list[str], text: str, full_name: str) -> Any:
    """Copy of dataclass `node` with the field at `path` set to the parsed `text`."""
    fields = hints(type(node)) if dataclasses.is_dataclass(node) else {}
    path = [current_name(type(node), path[0]), *path[1:]]
    if path[0] not in fields:
        raise unknown_field(full_name, path[0], fields)
    if len(path) == 1:
        return dataclasses.replace(node, **{path[0]: coerce(_parse(text, fields[path[0]]), fields[path[0]], full_name)})
    child = getattr(node, path[0])
    if child is None:
        raise ConfigError(f"{full_name!r} cannot be set: {path[0]!r} is None in this recipe")
    return dataclasses.replace(node, **{path[0]: _replace(child, path[1:], text, full_name)})


def _parse(text: str, hint: Any) -> Any:
    """A Python literal, or the text itself when it is none, so that text needs no quotes: neither `weights.npz`, nor
    a folder called `1_000` where the field is a string."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False, "none": None}.get(text.lower(), text)
    return text if hint in (str, Place) and not isinstance(value, str) else value
