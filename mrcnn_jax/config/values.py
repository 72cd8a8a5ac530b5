"""Values of settings: coerced to the declared type of their field, and checked against its interval."""

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


# Fields of earlier versions, which recipes, overrides and saved configurations may still use.
RENAMED = {"OptimizerConfig": {"rate_factors": "lr_multipliers"}}


class _Renaming(type):
    """Accepts the earlier names of fields as keyword arguments."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **{current_name(cls, name): value for name, value in kwargs.items()})


def current_name(settings: Any, name: str) -> str:
    """The name that a field has today; a line in the log says so where it is another."""
    renamed = RENAMED.get(settings.__name__, {}).get(name, name)
    if renamed != name:
        log.warning("%s.%s is called %s now", settings.__name__, name, renamed)
    return renamed


@dataclasses.dataclass(frozen=True)
class Settings(metaclass=_Renaming):
    """A part of the configuration. Raises ConfigError for a value that is not of the declared type, or out of range."""

    def __post_init__(self) -> None:
        for name, hint in hints(type(self)).items():
            object.__setattr__(self, name, coerce(getattr(self, name), hint, f"{type(self).__name__}.{name}"))


# The declared types of the fields of a dataclass, with their annotations.
hints: Callable[[Any], dict[str, Any]] = functools.cache(functools.partial(typing.get_type_hints, include_extras=True))


def coerce(value: Any, hint: Any, name: str) -> Any:
    """Return `value` in the type `hint`.

    Integers become floats, lists and ranges tuples, dicts dataclasses, paths strings, and numbers and arrays of NumPy
    those of Python. `Annotated` adds an interval, such as "(0, 1]", or a function that has the last word.
    Raises ConfigError for any other value, by its `name`.
    """
    if hasattr(value, "tolist"):  # a number or an array of NumPy or JAX
        value = value.tolist()
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        value, rule = coerce(value, arguments[0], name), arguments[1]
        return rule(value) if callable(rule) else _inside(value, rule, name)
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
        value = {current_name(hint, key): item for key, item in value.items()}
        for key in value.keys() - hints(hint).keys():
            raise unknown_field(f"{name}.{key}", key, hints(hint))
        return typing.cast(Any, hint)(**{k: coerce(v, hints(hint)[k], f"{name}.{k}") for k, v in value.items()})
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


def _inside(value: Any, interval: str, name: str) -> Any:
    """`value`, which must be in an interval such as "[0, 1)"; a number that is NaN is in none."""
    low, high = map(float, interval[1:-1].split(","))
    above = low < value or (value == low and interval[0] == "[")
    below = value < high or (value == high and interval[-1] == "]")
    if not (above and below):
        raise ConfigError(f"{name}={value!r} is outside of {interval}")
    return value


def unknown_field(full_name: str, name: str, fields: Iterable[str]) -> ConfigError:
    """The error for a field that does not exist, with the nearest that does."""
    close = difflib.get_close_matches(name, fields, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"fields here: {', '.join(fields) or 'none'}"
    return ConfigError(f"unknown configuration field {full_name!r} (no {name!r}); {hint}")
