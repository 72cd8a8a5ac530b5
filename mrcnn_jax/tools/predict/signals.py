"""Ctrl-C and SIGTERM while predicting: what has been read is finished and written, then the command ends."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType


class Stopping:
    """While open, the first signal is noted in `number`; the next one is as always: it ends everything at once.

    Outside the main thread Python allows no handlers: signals then are the caller's.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                before = signal.getsignal(number)
                if before is not signal.SIG_IGN:  # nohup, or a shell's background job: leave it so
                    self._before[number] = signal.SIG_DFL if before is None else before
                    signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self.__exit__()
        with contextlib.suppress(OSError):  # `print` may be what the signal interrupted
            os.write(2, b"finishing what has been read, then stopping (again: at once)\n")
