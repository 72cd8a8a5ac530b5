"""The one error of everything that reads or writes weights."""

from __future__ import annotations

TRUNCATED = "it ends too early, as an interrupted download or copy does: get the file again"


class WeightsError(ValueError):
    """A file, or the tensors in it, that cannot be used as weights. The message names the file and says what to do."""


def shown(text: object) -> str:
    """`text` out of a file as a message may show it: short, and with nothing that a terminal would obey."""
    shortened = ascii(text)
    return shortened if len(shortened) <= 120 else shortened[:117] + "..."
