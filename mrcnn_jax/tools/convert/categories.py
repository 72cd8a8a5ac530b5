"""Category names of mask values, from the command line or a file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

from mrcnn_jax.errors import DataError, format_list

_NUMBER, _COLOR = r"[+-]?\d+", r"#[0-9a-fA-F]{6}"
_BACKGROUND = frozenset(("background", "_background_", "bg"))


class CategoryNames(NamedTuple):
    """Names of mask values, which are also the category ids unless they are colors."""

    names: dict[int, str]
    colors: bool = False  # the values are colors, 0xRRGGBB


def parse(text: str) -> CategoryNames:
    """Parse `--categories`: names of 1, 2, ... separated by commas, or a .json or .txt file.

    JSON is {"7": "cat"} or ["cat", "dog"]; a text file has lines like "7 cat", or names only. If a value is a color
    such as "#ff0080", all must be, and category ids count from 1. Value 0 is background and may only be named so.
    Raises DataError for files that cannot be read, and for invalid or repeated values and names.
    """
    if not text.lower().endswith((".json", ".txt")):
        return _validate(text, [(str(i), name) for i, name in enumerate(text.split(","), 1)])
    try:
        content = Path(text).read_text(encoding="utf-8-sig")
        pairs = _from_json(content) if text.lower().endswith(".json") else _from_lines(content)
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{text} cannot be read as values and names ({error}); see --help for its format") from None
    return _validate(text, pairs)


def _from_json(content: str) -> list[tuple[str, str]]:
    # As pairs, because a dict would silently drop repeated values.
    loaded = json.loads(content, object_pairs_hook=lambda pairs: tuple(pairs))
    if isinstance(loaded, list):
        loaded = [(str(i), name) for i, name in enumerate(loaded, 1)]
    if not isinstance(loaded, (list, tuple)) or not all(isinstance(name, str) for _, name in loaded):
        raise ValueError("it is neither a list of names nor an object from values to names")
    return list(loaded)


def _from_lines(content: str) -> list[tuple[str, str]]:
    lines = [line.strip() for line in content.splitlines() if line.strip()]
    matches = [re.fullmatch(r"(#\S*|-?\d+)\s+(.+)", line) for line in lines]
    if all(matches):
        return [(match[1], match[2]) for match in matches if match]
    return [(str(i), name) for i, name in enumerate(lines, 1)]


def _validate(where: str, pairs: list[tuple[str, str]]) -> CategoryNames:
    colors = any(value.startswith("#") for value, _ in pairs)
    pattern, expected = (_COLOR, "a color, such as #ff0080") if colors else (_NUMBER, "a whole number")
    names: dict[int, str] = {}
    for value, name in ((value.strip(), name.strip()) for value, name in pairs):
        if not re.fullmatch(pattern, value):
            raise DataError(f"{where}: {value!r} is not {expected}")
        number = int(value.removeprefix("#"), 16 if colors else 10)
        if number == 0 and name.lower() in _BACKGROUND:
            continue
        if number <= 0:
            raise DataError(f"{where}: {value} is named {name!r}, but values count from 1, and 0 is background")
        if number in names or name in names.values() or not name:
            raise DataError(f"{where}: {value} and its name {name!r}: values and names must be unique and not empty")
        names[number] = name
    if not names:
        raise DataError(f"{where}: no names")
    return CategoryNames(names, colors)


def single_category(named: CategoryNames | None, values: str) -> dict[int, str]:
    """Return the category of masks without classes, with id 1; "object" by default.

    Raises DataError if there are several names.
    """
    names = list(named.names.values()) if named is not None else ["object"]
    if len(names) > 1:
        raise DataError(
            f"--values={values} has one category, --categories names {format_list(names)}; did you mean classes?"
        )
    return {1: names[0]}
