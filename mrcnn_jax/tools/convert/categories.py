"""The names that people give to the values of their masks: `--categories`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from mrcnn_jax.errors import DataError, listing

_BACKGROUND = frozenset(("background", "_background_", "bg"))


class Named(NamedTuple):
    """Names of values. The values are category ids too."""

    names: dict[int, str]
    colors: bool = False  # the values are colors, 0xRRGGBB


def parse(text: str) -> Named:
    """`cat,dog` are the names of 1 and 2. Otherwise a file: JSON as {"7": "cat"} or ["cat", "dog"], or .txt with
    lines as "7 cat", or the names alone. A value may be a color, "#ff0080": then all are, and ids count from 1.

    The name "background" of 0, which is background always, may be there. Raises DataError for what means nothing, or
    means two things.
    """
    if not text.lower().endswith((".json", ".txt")):
        return _checked(text, [(str(i), name) for i, name in enumerate(text.split(","), 1)])
    try:
        content = Path(text).read_text(encoding="utf-8-sig")
        pairs = _from_json(content) if text.lower().endswith(".json") else _from_lines(content)
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{text} cannot be read as values and names ({error}); see --help for what it may be") from None
    return _checked(text, pairs)


def _from_json(content: str) -> list[tuple[str, str]]:
    # Pairs, because a dict would keep the last of two equal values without a word.
    loaded = json.loads(content, object_pairs_hook=lambda pairs: tuple(pairs))
    if isinstance(loaded, list):
        loaded = [(str(i), name) for i, name in enumerate(loaded, 1)]
    if not isinstance(loaded, (list, tuple)) or not all(isinstance(name, str) for _, name in loaded):
        raise ValueError("it is neither a list of names nor an object from values to names")
    return list(loaded)


def _from_lines(content: str) -> list[tuple[str, str]]:
    lines = [line.strip() for line in content.splitlines() if line.strip()]
    split = [line.split(maxsplit=1) for line in lines]
    if all(len(parts) == 2 and (parts[0].startswith("#") or _is_number(parts[0])) for parts in split):
        return [(value, name) for value, name in split]
    return [(str(i), name) for i, name in enumerate(lines, 1)]


def _checked(where: str, pairs: list[tuple[str, str]]) -> Named:
    colors = any(value.startswith("#") for value, _ in pairs)
    names: dict[int, str] = {}
    for value, name in ((value.strip(), name.strip()) for value, name in pairs):
        number = _number(where, value, colors)
        if number == 0 and name.lower() in _BACKGROUND:
            continue
        if number <= 0:
            raise DataError(f"{where}: {value} is named {name!r}, but values count from 1, and 0 is background")
        if number in names or name in names.values() or not name:
            raise DataError(f"{where}: {value} and its name {name!r}: values and names must differ, and not be empty")
        names[number] = name
    if not names:
        raise DataError(f"{where}: it names nothing")
    return Named(names, colors)


def _number(where: str, value: str, color: bool) -> int:
    try:
        if not color:
            return int(value)
        if len(value) != 7 or value[0] != "#":
            raise ValueError
        return int(value[1:], 16)
    except ValueError:
        wanted = "a color, such as #ff0080" if color else "a whole number"
        raise DataError(f"{where}: {value!r} is not {wanted}") from None


def _is_number(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def one(named: Named | None, what: str) -> dict[int, str]:
    """The single category of masks that do not say any; "object" unless it was given."""
    names = list(named.names.values()) if named is not None else ["object"]
    if len(names) > 1:
        raise DataError(f"--values={what} has one category, --categories names {listing(names)}; did you mean classes?")
    return {1: names[0]}
