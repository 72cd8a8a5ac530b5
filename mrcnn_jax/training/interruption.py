"""SIGTERM and Ctrl-C: stop a run where it can be resumed.

Where nothing can be lost (data preparation, loading weights) a signal ends the run at once. During training and
evaluation the handler only records the signal, and the loop checks `SignalHandler.should_stop` at safe points: an
exception raised in the handler could surface in a destructor (of grain's arrays, for example), where Python drops it.

After a signal the run finishes the current step and the one queued behind it, then saves. A compilation cannot be
interrupted: during the first step of a batch shape, the signal takes effect after that step.
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

_SIGNAL_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


class SignalHandler:
    """A context manager in which SIGTERM and SIGINT raise Interrupted, or within `postponed()` are recorded.

    A second Ctrl-C always raises at once. With several processes a signal to one of them stops all, at the same call of
    `should_stop`, on which JAX's preemption service agrees; a preemption notice of the cloud does the same. Python
    allows signal handlers in the main thread only: in other threads (as in some notebooks) signals are not handled.
    """

    def __init__(self) -> None:
        self._signal: int | None = None  # the signal received
        self._postponed = False
        self._coordinated = False  # whether JAX's preemption service handles SIGTERM
        self._agreed = False  # whether all processes have agreed to stop
        self._sync_ids = itertools.count()  # one per call of `should_stop`, the same in all processes
        self._previous_handlers: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> SignalHandler:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNAL_NAMES:
                previous = signal.getsignal(number)
                if previous is not signal.SIG_IGN:  # ignored under nohup, and in a shell's background jobs
                    self._previous_handlers[number] = signal.SIG_DFL if previous is None else previous
                    signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, previous in self._previous_handlers.items():
            signal.signal(number, previous)
        if kind is None and self._signal is not None:  # the handler raised in a destructor
            raise self.error()

    @contextlib.contextmanager
    def postponed(self) -> Iterator[None]:
        """Record signals for `should_stop` instead of raising. May be nested.

        Raises Interrupted on exit if a signal was received and not handled by the caller.
        """
        if self._postponed:
            yield
            return
        self._postponed = True
        try:
            self._coordinate()
            if self._signal is not None and not self._coordinated:
                raise self.error()
            yield
            if self.should_stop():
                raise self.error()
        finally:
            self._postponed = False

    def should_stop(self) -> bool:
        """Return whether a signal was received.

        Every process must call it at the same places: before each step, and after each batch of an evaluation.
        """
        if not self._coordinated:
            return self._signal is not None
        if not self._agreed and multihost_utils.reached_preemption_sync_point(next(self._sync_ids)):
            self._agreed = True
            if self._signal is None:
                self._record(signal.SIGTERM)
        return self._agreed

    def error(self, step: int | None = None) -> Interrupted:
        """Return the exception to raise after `should_stop`; `step` is that of the state saved for it, if any."""
        error = _interrupted(signal.SIGTERM if self._signal is None else self._signal, step)
        error.on_all_processes = self._agreed
        return error

    def _coordinate(self) -> None:
        """With several processes, let JAX's preemption service handle SIGTERM and choose where all of them stop."""
        if self._coordinated or jax.process_count() == 1:
            return
        collectives.enable_preemption_sync()
        self._coordinated = True
        if self._signal is not None:
            os.kill(os.getpid(), signal.SIGTERM)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first = self._signal is None
        if not first and number == signal.SIGTERM:
            return
        if not self._postponed or not first:
            self._signal = number
            raise _interrupted(number)  # in this process alone
        self._record(number)
        if self._coordinated:  # Ctrl-C in this process: tell the others
            os.kill(os.getpid(), signal.SIGTERM)

    def _record(self, number: int) -> None:
        self._signal = number
        again = "again " if number == signal.SIGINT else ""
        name = _SIGNAL_NAMES[signal.Signals(number)]
        message = f"{name}: finishing this step, then saving ({again}Ctrl-C: stop at once)\n"
        with contextlib.suppress(OSError):
            os.write(2, message.encode())  # not `print`, which the signal may have interrupted


def _interrupted(number: int, step: int | None = None) -> Interrupted:
    if step is None:
        return Interrupted(number, "stopped; the same command continues from the last checkpoint, if there is one")
    return Interrupted(number, f"saved at step {step}; the same command continues")
