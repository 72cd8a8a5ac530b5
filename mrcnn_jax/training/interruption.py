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
import math
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import jax

from mrcnn_jax.distributed import collectives
from mrcnn_jax.distributed.message_store import MessageStore
from mrcnn_jax.errors import Interrupted, ProcessLostError

_SIGNAL_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}
_agreement_ids = itertools.count()  # equal in all processes


class SignalHandler:
    """A context manager in which SIGTERM and SIGINT raise Interrupted, or within `postponed()` are recorded.

    A second Ctrl-C always raises at once. With several processes a signal to one of them stops all, at the same call of
    `should_stop`. Python allows signal handlers in the main thread only: in other threads (as in some notebooks)
    signals are not handled.
    """

    def __init__(self) -> None:
        self._signal: int | None = None  # the signal received
        self._postponed = False
        self._agreement: StopAgreement | None = None  # of several processes
        self._agreed = False  # whether all processes stop now
        self._previous_handlers: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> SignalHandler:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNAL_NAMES:
                previous = signal.getsignal(number)
                if previous is not signal.SIG_IGN:  # ignored under nohup, and in a shell's background jobs
                    self._previous_handlers[number] = signal.SIG_DFL if previous is None else previous
                    signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
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
            if self._agreement is None and jax.process_count() > 1:
                self._agreement = StopAgreement(collectives.connect(), jax.process_index(), jax.process_count())
            if self._signal is not None:
                if self._agreement is None:
                    raise self.error()
                self._agreement.request()
            yield
            self.check()
        finally:
            self._postponed = False

    def should_stop(self) -> bool:
        """Return whether a signal was received.

        Every process must call it at the same places: before each step, and after each batch of an evaluation.
        """
        if self._agreement is None:
            return self._signal is not None
        if not self._agreed and self._agreement.is_reached():
            self._agreed = True
            if self._signal is None:
                self._record(signal.SIGTERM)
        return self._agreed

    def check(self) -> None:
        """Raise Interrupted if `should_stop`; every process must call it at the same places, too."""
        if self.should_stop():
            raise self.error()

    def error(self, step: int | None = None) -> Interrupted:
        """Return the exception to raise after `should_stop`; `step` is that of the state saved for it, if any."""
        error = _interrupted(signal.SIGTERM if self._signal is None else self._signal, step)
        error.on_all_processes = self._agreed
        return error

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first = self._signal is None
        if not first and number == signal.SIGTERM:
            return
        if not self._postponed or not first:
            self._signal = number
            raise _interrupted(number)  # in this process alone
        self._record(number)
        if self._agreement is not None:
            self._agreement.request()

    def _record(self, number: int) -> None:
        self._signal = number
        again = "again " if number == signal.SIGINT else ""
        name = _SIGNAL_NAMES[signal.Signals(number)]
        message = f"{name}: finishing this step, then saving ({again}Ctrl-C: stop at once)\n"
        with contextlib.suppress(OSError):
            os.write(2, message.encode())  # not `print`, which the signal may have interrupted


class StopAgreement:
    """Lets several processes stop at the same call of `is_reached`, the first one that none of them has made yet.

    They agree in the background: each process waits for a request of any, then publishes the number of its calls, and
    makes no other call until it knows the numbers of all. JAX's preemption service does the same, but would handle
    SIGTERM from the start of the program, with a handler that Python cannot call.
    """

    def __init__(self, store: MessageStore, index: int, count: int):
        self._store, self._request = store, f"stop/{next(_agreement_ids)}"
        self._keys = [f"{self._request}/{process}" for process in range(count)]
        self._own_key = self._keys[index]
        self._lock = threading.Lock()
        self._calls, self._last_call = 0, math.inf
        threading.Thread(target=self._agree, daemon=True).start()

    def request(self) -> None:
        """Ask all processes to stop. Does not wait, so that a signal handler may call it."""
        threading.Thread(target=self._publish_request, daemon=True).start()

    def is_reached(self) -> bool:
        """Return whether this call is the one at which all processes stop, or a later one."""
        with self._lock:
            self._calls += 1
            return self._calls >= self._last_call

    def _publish_request(self) -> None:
        with contextlib.suppress(ProcessLostError):  # then JAX ends this process
            self._store.put(self._request, None)

    def _agree(self) -> None:
        with contextlib.suppress(ProcessLostError):
            self._store.get([self._request])
            with self._lock:
                self._store.put(self._own_key, self._calls)
                self._last_call = 1 + max(self._store.get(self._keys))


def _interrupted(number: int, step: int | None = None) -> Interrupted:
    if step is None:
        return Interrupted(number, "stopped; the same command continues from the last checkpoint, if there is one")
    return Interrupted(number, f"saved at step {step}; the same command continues")
