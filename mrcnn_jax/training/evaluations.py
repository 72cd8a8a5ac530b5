"""Measurements during the training: the loss on held-back images, average precision, the best checkpoint so far."""

from __future__ import annotations

from typing import Any


class Evaluations:
    """What is measured between steps, and what follows from it."""

    def due(self, step: int) -> bool:
        """Whether something is to be measured after `step` steps that has not been measured yet."""
        return False

    def measure(self, step: int, state: Any) -> None:
        """Measure what is due on the state after `step` steps."""

    def exhausted(self) -> bool:
        """Whether `train.patience` has run out: the training ends here."""
        return False
