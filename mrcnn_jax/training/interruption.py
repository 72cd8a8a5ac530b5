"""SIGTERM and Ctrl-C: a run ends at a point from which it can go on.

Where nothing can be lost (data preparation, reading weights) a signal ends the run at once. While it trains or
evaluates, the signal is only noted, and the loop asks at safe points, `Interruptions.reached`: an exception raised
right in the handler may come up in a destructor, of grain's arrays for example, where Python drops it.

What an answer waits for: the step that runs and the one queued behind it, then the save. A compilation cannot be
interrupted: a signal during the first step of a shape is answered when that is compiled and done.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils

from mrcnn_jax.distributed import collectives
from mrcnn_jax.errors import Interrupted

_SPOKEN = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


class Interruptions:
    """While open, SIGTERM and SIGINT raise Interrupted; within `postponed()` they wait for the caller to ask.

    A second Ctrl-C always raises at once. With several processes a signal to one of them stops all, at the same call of
    `reached`: JAX's preemption service agrees on it, and so does the cloud's notice. Outside the main thread (a
    notebook may run us in another) Python allows no handlers: signals then are the caller's.
    """

    def __init__(self) -> None:
        self._number: int | None = None  # of the signal that came
        self._postponed = self._together = self._agreed = False
        self._ticks = itertools.count()  # calls of `reached`, the same in all processes
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> Interruptions:
        if threading.current_thread() is threading.main_thread():
            for number in _SPOKEN:
                before = signal.getsignal(number)
                if before is not signal.SIG_IGN:  # nohup, or a shell's background job: leave it so
                    self._before[number] = signal.SIG_DFL if before is None else before
                    signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        if kind is None and self._number is not None:  # raised by the handler, but into a destructor
            raise self.interrupted()

    @contextlib.contextmanager
    def postponed(self) -> Iterator[None]:
        """Within, signals are noted; whoever asks `reached` at safe points answers them. Raises Interrupted on leaving
        when nobody did. May be nested."""
        if self._postponed:
            yield
            return
        self._postponed = True
        try:
            self._agree_with_others()
            if self._number is not None and not self._together:
                raise self.interrupted()
            yield
            if self.reached():
                raise self.interrupted()
        finally:
            self._postponed = False

    def reached(self) -> bool:
        """Whether to stop here. Every process must ask in the same places: before each step, after each batch of an
        evaluation."""
        if not self._together:
            return self._number is not None
        if not self._agreed and multihost_utils.reached_preemption_sync_point(next(self._ticks)):
            self._agreed = True
            if self._number is None:
                self._note(signal.SIGTERM)
        return self._agreed

    def interrupted(self, step: int | None = None) -> Interrupted:
        """The exception to raise when `reached`; `step` is that of the state that is saved now, if one had to be."""
        stopped = _interrupted(signal.SIGTERM if self._number is None else self._number, step)
        stopped.on_all_processes = self._agreed
        return stopped

    def _agree_with_others(self) -> None:
        """From now on JAX hears SIGTERM (its handler replaces ours) and chooses where all processes stop."""
        if self._together or jax.process_count() == 1:
            return
        collectives.enable_preemption_sync()
        self._together = True
        if self._number is not None:
            os.kill(os.getpid(), signal.SIGTERM)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first = self._number is None
        if not first and number == signal.SIGTERM:
            return
        if not self._postponed or not first:
            self._number = number
            raise _interrupted(number)  # in this process alone
        self._note(number)
        if self._together:  # Ctrl-C in one of the processes
            os.kill(os.getpid(), signal.SIGTERM)

    def _note(self, number: int) -> None:
        self._number = number
        again = "again " if number == signal.SIGINT else ""
        said = f"{_SPOKEN[signal.Signals(number)]}: finishing this step, then saving ({again}Ctrl-C: stop at once)\n"
        with contextlib.suppress(OSError):
            os.write(2, said.encode())  # `print` may be what the signal interrupted


def _interrupted(number: int, step: int | None = None) -> Interrupted:
    what = "stopped; the same command continues from the last checkpoint, if there is one"
    return Interrupted(number, what if step is None else f"saved at step {step}; the same command continues")
