"""Graceful end of a prediction after Ctrl-C or SIGTERM."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType


class StopSignal:
    """Context manager that records the first SIGINT or SIGTERM in `number`; a second one has its usual effect.

    Outside of the main thread Python allows no handlers, so signals keep those of the caller.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._previous: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                previous = signal.getsignal(number)
                if previous is not signal.SIG_IGN:  # ignored under nohup and in background jobs of a shell
                    self._previous[number] = signal.SIG_DFL if previous is None else previous
                    signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self.__exit__()
        with contextlib.suppress(OSError):  # not `print`, which the signal may have interrupted
            os.write(2, b"finishing the images that have been read, then stopping (a second signal stops at once)\n")
