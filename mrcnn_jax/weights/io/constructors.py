"""Replacements of the classes and functions that a pickle of weights names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mrcnn_jax.errors import WeightsError
from mrcnn_jax.weights.io.deferred import DeferredValue
from mrcnn_jax.weights.io.messages import printable

_MAX_KEY = 1 << 31  # larger integers can be chosen to collide, which makes a dictionary very slow


class Constructor:
    """A name that a pickle may call, with the function that is called instead."""

    def __init__(self, name: str, build: Callable[..., Any]):
        self.name, self.build = name, build

    def __call__(self, arguments: object) -> Any:
        if type(arguments) is not tuple:
            raise WeightsError(f"it calls {self.name} with {printable(type(arguments).__name__)} instead of a tuple")
        try:
            return self.build(*arguments)
        except TypeError:
            raise WeightsError(f"it calls {self.name} with unexpected arguments") from None


AllowedGlobals = Mapping[str, Any]  # "module.name" -> a Constructor or a plain value


class PickledOrderedDict(dict[Any, Any]):
    """Replaces `collections.OrderedDict`. The attributes of torch's state dicts (`_metadata`) are dropped."""


class PickledAttributes(DeferredValue):
    """Replaces an object by the dictionary of its attributes."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    @property
    def value(self) -> Any:  # type: ignore[override]
        return self.state

    def set_state(self, state: Any) -> None:
        if type(state) is not dict:
            raise WeightsError("the attributes of an object are not a dictionary")
        self.state = state


def check_key(key: object) -> str | int:
    """Return a key of a dictionary. Raises WeightsError unless it is a short string or a small integer."""
    if type(key) is str or (type(key) is int and -_MAX_KEY <= key < _MAX_KEY):
        return key
    raise WeightsError(
        f"a dictionary has {printable(type(key).__name__)} as a key; keys must be short strings or small integers"
    )
