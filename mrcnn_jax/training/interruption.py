"""SIGTERM and Ctrl-C: a run ends at a point from which it can go on."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


class Stopped(KeyboardInterrupt):
    """A signal ended the run; everything that was done is saved."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_status = 128 + number


class Interruptions:
    """While open, SIGTERM and SIGINT raise `Stopped`; within `postponed()` they wait for the caller to ask."""

    def __enter__(self) -> Interruptions:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @contextlib.contextmanager
    def postponed(self) -> Iterator[None]:
        yield

    def reached(self) -> bool:
        """Whether to stop here."""
        return False

    def stopped(self) -> Stopped:
        """The exception to raise when `reached`."""
        return Stopped(signal.SIGTERM)
