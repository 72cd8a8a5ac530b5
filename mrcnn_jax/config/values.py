"""Conversion of configuration values to the types of their fields, with checks of their ranges."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import logging
import os
import types
import typing
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

from mrcnn_jax.errors import ConfigError

log = logging.getLogger(__name__)


# Renamed fields by class: old names remain valid in recipes, overrides and saved configurations.
RENAMED = {"OptimizerConfig": {"rate_factors": "lr_multipliers"}}


class _AcceptsOldNames(type):
    """Metaclass that accepts the old names of renamed fields as keyword arguments."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **{current_name(cls, name): value for name, value in kwargs.items()})


def current_name(settings: Any, name: str) -> str:
    """Return the current name of a field, and log a warning if `name` is an old one."""
    renamed = RENAMED.get(settings.__name__, {}).get(name, name)
    if renamed != name:
        log.warning("%s.%s is now called %s", settings.__name__, name, renamed)
    return renamed


@dataclasses.dataclass(frozen=True)
class Settings(metaclass=_AcceptsOldNames):
    """Base class of configuration dataclasses. Raises ConfigError for a value of the wrong type or out of range."""

    def __post_init__(self) -> None:
        for name, hint in hints(type(self)).items():
            object.__setattr__(self, name, coerce(getattr(self, name), hint, f"{type(self).__name__}.{name}"))


# Types of the fields of a dataclass, including annotations.
hints: Callable[[Any], dict[str, Any]] = functools.cache(functools.partial(typing.get_type_hints, include_extras=True))


def coerce(value: Any, hint: Any, name: str) -> Any:
    """Convert `value` to the type `hint`.

    Converts int to float, list and range to tuple, dict to dataclass, PathLike to str, and NumPy numbers and arrays to
    Python values. `Annotated[type, rule]` adds an interval such as "(0, 1]", or a function that is applied to the
    converted value. Raises ConfigError with the field `name` for any other value.
    """
    if hasattr(value, "tolist"):  # a number or an array of NumPy or JAX
        value = value.tolist()
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        value, rule = coerce(value, arguments[0], name), arguments[1]
        return rule(value) if callable(rule) else _check_interval(value, rule, name)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return coerce(value, next(a for a in arguments if a is not type(None)), name)
    if origin is Literal:
        if value in arguments:
            return value
        raise ConfigError(f"{name}: {value!r} is not one of {', '.join(map(repr, arguments))}")
    if origin is tuple:
        return _coerce_tuple(value, arguments, name)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _coerce_dataclass(value, hint, name)
    if hint is float and type(value) is int:
        return float(value)
    if hint is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value) is hint:
        return value
    raise ConfigError(f"{name}: expected {getattr(hint, '__name__', hint)}, got {value!r}")


def _coerce_tuple(value: Any, arguments: tuple[Any, ...], name: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple, range)):
        value = (value,)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(coerce(item, arguments[0], name) for item in value)
    if len(value) != len(arguments):
        raise ConfigError(f"{name}: expected {len(arguments)} values, got {len(value)}")
    return tuple(coerce(item, argument, name) for item, argument in zip(value, arguments, strict=True))


def _coerce_dataclass(value: dict[str, Any], hint: Any, name: str) -> Any:
    fields = hints(hint)
    value = {current_name(hint, key): item for key, item in value.items()}
    for key in value.keys() - fields.keys():
        raise unknown_field(f"{name}.{key}", key, fields)
    return hint(**{key: coerce(item, fields[key], f"{name}.{key}") for key, item in value.items()})


def _check_interval(value: Any, interval: str, name: str) -> Any:
    """Return `value` if it is in an interval such as "[0, 1)"; NaN is in none. Raises ConfigError otherwise."""
    low, high = map(float, interval[1:-1].split(","))
    above = low < value or (value == low and interval[0] == "[")
    below = value < high or (value == high and interval[-1] == "]")
    if not (above and below):
        raise ConfigError(f"{name}={value!r} is outside of {interval}")
    return value


def unknown_field(full_name: str, name: str, fields: Iterable[str]) -> ConfigError:
    """Return the error for an unknown field, with the most similar known field or a list of all."""
    close = difflib.get_close_matches(name, fields, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"fields: {', '.join(fields) or 'none'}"
    return ConfigError(f"unknown configuration field {full_name!r} (no {name!r}); {hint}")
