"""Error messages that the readers of weights files share."""

from __future__ import annotations

TRUNCATED = "it is incomplete, as after an interrupted download or copy: get the file again"


def printable(text: object) -> str:
    """Return content of a file as short ASCII text without control characters, for a message."""
    shortened = ascii(text)
    return shortened if len(shortened) <= 120 else shortened[:117] + "..."
