"""What is said of data that cannot be used: the file, the culprits by name, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_NAMED = 20  # culprits that a message lists one by one; the rest are counted


class DataError(ValueError):
    """Data that cannot be trained on; the message names the file and the id and says what to do."""


def refuse(what: str, culprits: Sequence[Any], advice: str) -> None:
    """Raise DataError: `what`, the culprits by name and what to do."""
    raise DataError(f"{what} ({len(culprits)}): {listing(culprits)}; {advice}")


def listing(culprits: Sequence[Any], most: int | None = _NAMED) -> str:
    """The first few by name, then how many more."""
    named = [str(culprit) for culprit in culprits[:_NAMED]]
    if len(culprits) > len(named):
        named.append(f"and {len(culprits) - len(named)} more")
    return ", ".join(named)
