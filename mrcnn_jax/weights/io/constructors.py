"""What stands for the names in a pickle, and for the containers that they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mrcnn_jax.errors import WeightsError
from mrcnn_jax.weights.io.deferred import DeferredValue
from mrcnn_jax.weights.io.messages import printable

_MAX_KEY = 1 << 31  # larger integers can be chosen so that dictionaries of them take for ever


class Constructor:
    """A name that a pickle may call, and the function of ours that answers."""

    def __init__(self, name: str, build: Callable[..., Any]):
        self.name, self.build = name, build

    def __call__(self, arguments: object) -> Any:
        if type(arguments) is not tuple:
            raise WeightsError(f"it calls {self.name} in a way that no pickler does")
        try:
            return self.build(*arguments)
        except TypeError:
            raise WeightsError(f"it calls {self.name} with arguments that no pickler gives it") from None


AllowedGlobals = Mapping[str, Any]  # "module.name" -> a Constructor or a plain value


class PickledOrderedDict(dict[Any, Any]):
    """Stands for `collections.OrderedDict`; the state that torch gives to its state dicts (`_metadata`) is dropped."""


class PickledAttributes(DeferredValue):
    """Stands for an object whose state is a dictionary of plain values, and becomes that dictionary."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    @property
    def value(self) -> Any:  # type: ignore[override]
        return self.state

    def set_state(self, state: Any) -> None:
        if type(state) is not dict:
            raise WeightsError("the attributes of an object in it are no dictionary")
        self.state = state


def check_key(key: object) -> str | int:
    """A key of a dictionary: a short string or a small integer."""
    if type(key) is str or (type(key) is int and -_MAX_KEY <= key < _MAX_KEY):
        return key
    raise WeightsError(f"a dictionary in it has {printable(type(key).__name__)} as a key; weights have names")
