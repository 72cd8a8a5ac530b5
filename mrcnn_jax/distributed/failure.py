"""Joint exit of several processes: when one fails, the others report the reason and exit, too.

JAX detects a process that stops sending heartbeats, and then aborts all others with exit status 134 and a message that
names it. This module handles a process that fails but can still communicate: it publishes the reason in the message
store, and the others exit at once with the same status, instead of waiting in a collective for a process that has
exited.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from mrcnn_jax.distributed.cluster import Cluster
from mrcnn_jax.distributed.message_store import MessageStore
from mrcnn_jax.errors import ProcessLostError

EXIT_PROCESS_LOST = 75  # exit status when another process was lost; EX_TEMPFAIL of sysexits.h: try again
RESUME_HINT = "Run the same command in all processes to continue from the last checkpoint"

# Keys in the message store.
_FAILED = "failed"  # index of the process that failed first, its exit status and the reason
_ACKNOWLEDGED = "acknowledged/"  # with the index of a process that has read the reason
_DONE = "done"  # set by process 0 when all its work is done

_RETRY_SECONDS = 1.0
_ACKNOWLEDGE_TIMEOUT = 5.0  # seconds; the store ends with process 0, so that it waits for the others to read the reason
_CALLBACKS_TIMEOUT = 60.0  # seconds for a save in progress
# Parts of the messages of collectives that fail because another process has exited.
_FAILURE_MARKERS = ("Gloo", "gloo", "NCCL", "UNAVAILABLE", "CoordinationService", "eartbeat")

_exit_callbacks: list[Callable[[], None]] = []
_exit_lock = threading.Lock()  # held by the thread that ends this process
_monitor: _ProcessMonitor | None = None  # None: this process runs alone


def is_collective_failure(error: BaseException) -> bool:
    """Whether a collective raised `error` because another process has exited."""
    if isinstance(error, ProcessLostError):
        return True
    return isinstance(error, (RuntimeError, ValueError)) and any(text in str(error) for text in _FAILURE_MARKERS)


@contextlib.contextmanager
def startup_timeout(cluster: Cluster, timeout: float) -> Iterator[None]:
    """Exit with a message if the body takes longer than `timeout` seconds, because processes are missing."""

    def give_up() -> None:
        number = "" if cluster.num_processes is None else f" {cluster.num_processes}"
        address = cluster.coordinator or "the address that JAX detected"
        _print_error(
            f"error: not all{number} processes started within {timeout:g} s ({cluster.source}). Does the command run in"
            f" each of them, with a different --process_id? Can all of them reach process 0 at {address}? If they need"
            " more time to start, give --start_timeout=S"
        )
        _exit(EXIT_PROCESS_LOST)

    timer = threading.Timer(timeout, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def finish_before_exit(callback: Callable[[], None]) -> Iterator[None]:
    """In the body, an exit because of a failure calls `callback` first, to wait for a save in progress."""
    _exit_callbacks.append(callback)
    try:
        yield
    finally:
        _exit_callbacks.remove(callback)


def start_monitor(store: MessageStore, index: int, count: int) -> None:
    """Start to watch for failures of the other processes. index, count: of this process, and of all processes."""
    global _monitor
    _monitor = _ProcessMonitor(store, index, count)
    _monitor.start()


def is_distributed() -> bool:
    """Whether this process is one of several."""
    return _monitor is not None


def prefix_rank(text: str) -> str:
    """Prefix `text` with the index of this process, if it is one of several."""
    return text if _monitor is None else f"process {_monitor.index} of {_monitor.count}: {text}"


def exit_all_processes(status: int, reason: str) -> None:
    """Exit this process now and let all others exit with the same status and `reason`.

    Skips `atexit`, where JAX would wait for the others. Does nothing in a process that runs alone.
    """
    if _monitor is None:
        return
    if not _exit_lock.acquire(blocking=False):
        threading.Event().wait()  # the monitor thread is ending this process
    _run_exit_callbacks()
    _monitor.publish_failure(status, reason)
    _exit(status)


def exit_if_process_failed() -> None:
    """Exit with the status of another process if one has published a failure.

    Call before reporting the error of a collective, which may be a consequence of that failure.
    """
    if _monitor is not None:
        _monitor.check()


def exit_barrier() -> None:
    """Wait until process 0 is done. Call before all processes exit together; JAX then waits for all of them."""
    if _monitor is not None:
        _monitor.stop()


class _ProcessMonitor(threading.Thread):
    """Thread that exits this process when another one publishes a failure."""

    def __init__(self, store: MessageStore, index: int, count: int):
        super().__init__(name="process monitor", daemon=True)
        self._store, self.index, self.count = store, index, count
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._exit_if_published(self._store.wait([_FAILED]))
            except ProcessLostError:  # then JAX ends this process
                self._stopped.wait(_RETRY_SECONDS)

    def check(self) -> None:
        """Exit if another process has published a failure."""
        with contextlib.suppress(ProcessLostError):
            self._exit_if_published(self._store.wait([_FAILED], timeout=0))

    def _exit_if_published(self, failures: dict[str, Any]) -> None:
        """Exit with the status of the process that failed, unless the main thread is ending this process."""
        if self._stopped.is_set() or not failures:
            return
        index, status, reason = failures[_FAILED]
        if index == self.index or not _exit_lock.acquire(blocking=False):
            self._stopped.set()
            return
        hint = "" if status in (1, 2) else f". {RESUME_HINT}"
        _print_error(f"process {index} of {self.count} failed ({reason}); process {self.index} exits, too{hint}")
        _run_exit_callbacks()
        self._acknowledge()
        _exit(status)

    def publish_failure(self, status: int, reason: str) -> None:
        """Make the other processes exit with `status` and `reason`."""
        with contextlib.suppress(ProcessLostError):
            self._store.put(_FAILED, (self.index, status, reason))
        self._acknowledge()

    def _acknowledge(self) -> None:
        """Confirm that this process exits; process 0, which holds the store, waits for the others to do so."""
        keys = [f"{_ACKNOWLEDGED}{index}" for index in range(self.count)]
        with contextlib.suppress(ProcessLostError):
            self._store.put(keys[self.index], None)
        if self.index == 0:
            found = self._store.wait(keys, _ACKNOWLEDGE_TIMEOUT)
            if missing := [str(index) for index, key in enumerate(keys) if key not in found]:
                _print_error(f"no answer from process {', '.join(missing)} of {self.count}: lost, or not responding")

    def stop(self) -> None:
        """Wait for process 0; end the thread."""
        if self.index == 0:
            self._store.put(_DONE, None)
        self._store.get([_DONE])
        self._stopped.set()


def _run_exit_callbacks() -> None:
    """Run the exit callbacks in a thread, because they may hang."""
    worker = threading.Thread(target=lambda: [callback() for callback in _exit_callbacks], daemon=True)
    worker.start()
    worker.join(_CALLBACKS_TIMEOUT)


def _print_error(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _exit(status: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    logging.shutdown()
    os._exit(status)
