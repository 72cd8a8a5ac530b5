"""Wording that the readers of weight files share."""

from __future__ import annotations

TRUNCATED = "it ends too early, as an interrupted download or copy does: get the file again"


def printable(text: object) -> str:
    """`text` out of a file as a message may show it: short, and with nothing that a terminal would obey."""
    shortened = ascii(text)
    return shortened if len(shortened) <= 120 else shortened[:117] + "..."
