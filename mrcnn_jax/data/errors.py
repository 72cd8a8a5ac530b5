"""What is said of data that cannot be used: the file, the culprits by name, and what to do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

_NAMED = 20  # culprits that a message lists one by one; the rest are counted
_LONGEST = 80  # characters of a value that a message shows


class DataError(ValueError):
    """Data that cannot be trained on; the message names the file and the id and says what to do."""


def refuse(what: str, culprits: Sequence[Any], advice: str) -> None:
    """Raise DataError: `what`, the culprits by name and what to do."""
    raise DataError(f"{what} ({len(culprits)}): {listing(culprits)}; {advice}")


def listing(culprits: Sequence[Any], most: int | None = _NAMED) -> str:
    """The first `most` by name, then how many more; all of them for None."""
    named = [str(culprit) for culprit in culprits[:most]]
    if len(culprits) > len(named):
        named.append(f"and {len(culprits) - len(named)} more")
    return ", ".join(named)


def described(error: BaseException) -> str:
    """An exception on one line: its type and its message."""
    return ": ".join(filter(None, [type(error).__name__, " ".join(str(error).split())]))


def shown(value: object) -> str:
    """A value out of somebody's file as a message can show it: short, printable, on one line; lists by their type."""
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"
    text = value if isinstance(value, str) else json.dumps(value)
    if not text.isprintable():
        text = ascii(text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
