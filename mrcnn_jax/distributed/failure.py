"""Joint exit of several processes: when one fails, the others report the reason and exit, too.

JAX detects a process that stops sending heartbeats, and then aborts all others with exit status 134 and a message that
names it. This module handles a process that fails but can still communicate: it publishes the reason in the key-value
store, and the others exit within seconds with the same status, instead of waiting in a collective for a process that
has exited.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from mrcnn_jax.distributed.cluster import Cluster

EXIT_PROCESS_LOST = 75  # exit status when another process was lost; EX_TEMPFAIL of sysexits.h: try again
RESUME_HINT = "Run the same command in all processes to continue from the last checkpoint"

# Keys in the key-value store.
_FAILED = "mrcnn_jax/failed/"  # with the index of a process: its exit status and the reason
_ACKNOWLEDGED = "mrcnn_jax/acknowledged/"  # with the index of a process that has read the reason
_DONE = "mrcnn_jax/done"  # set by process 0 when all its work is done
_BARRIER = "mrcnn_jax/exit"

_POLL_SECONDS = 1.0
_ACKNOWLEDGE_TIMEOUT = 5.0  # seconds; the store ends with process 0, so that it waits for the others to read the reason
_CALLBACKS_TIMEOUT = 60.0  # seconds for a save in progress
_BARRIER_TIMEOUT = 60  # seconds between the first and the last process to exit
# Parts of the messages of collectives that fail because another process has exited.
_FAILURE_MARKERS = ("Gloo", "gloo", "NCCL", "UNAVAILABLE", "CoordinationService", "eartbeat")

_exit_callbacks: list[Callable[[], None]] = []
_exit_lock = threading.Lock()  # held by the thread that ends this process
_monitor: _ProcessMonitor | None = None  # None: this process runs alone


def is_collective_failure(error: BaseException) -> bool:
    """Whether a collective raised `error` because another process has exited."""
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


def start_monitor(store: Any, index: int, count: int) -> None:
    """Start to watch for failures of the other processes.

    store: client of the coordination service.
    index, count: index of this process, and number of processes.
    """
    global _monitor
    _monitor = _ProcessMonitor(store, index, count)
    _monitor.start()


def is_distributed() -> bool:
    """Whether this process is one of several."""
    return _monitor is not None


def is_main() -> bool:
    """True on process 0."""
    return _monitor is None or _monitor.index == 0


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
    """Wait until process 0 is done and all others are here. Call before all processes exit together."""
    if _monitor is not None:
        _monitor.stop()


class _ProcessMonitor(threading.Thread):
    """Thread that exits this process when another one publishes a failure."""

    def __init__(self, store: Any, index: int, count: int):
        super().__init__(name="process monitor", daemon=True)
        self._store, self.index, self.count = store, index, count
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(_POLL_SECONDS):
            self.check()

    def check(self) -> None:
        """Exit if another process has published a failure."""
        with contextlib.suppress(RuntimeError):  # if the store is gone, JAX ends this process
            for key, value in self._store.key_value_dir_get(_FAILED):
                self._exit_as(int(key.removeprefix(_FAILED)), *json.loads(value))

    def _exit_as(self, index: int, status: int, reason: str) -> None:
        """Exit with the status of process `index`, unless the main thread is ending this process."""
        if index == self.index or not _exit_lock.acquire(blocking=False):
            return
        hint = "" if status in (1, 2) else f". {RESUME_HINT}"
        _print_error(f"process {index} of {self.count} failed ({reason}); process {self.index} exits, too{hint}")
        _run_exit_callbacks()
        self._acknowledge()
        _exit(status)

    def publish_failure(self, status: int, reason: str) -> None:
        """Make the other processes exit with `status` and `reason`."""
        with contextlib.suppress(RuntimeError):  # the store may be gone
            self._store.key_value_set(f"{_FAILED}{self.index}", json.dumps([status, reason]))
        self._acknowledge()

    def _acknowledge(self) -> None:
        """Confirm that this process exits; process 0, which holds the store, waits for the others to do so."""
        end = time.monotonic() + _ACKNOWLEDGE_TIMEOUT
        with contextlib.suppress(RuntimeError):
            self._store.key_value_set(f"{_ACKNOWLEDGED}{self.index}", "")
            while self.index == 0:
                entries = self._store.key_value_dir_get(_ACKNOWLEDGED)
                missing = sorted(set(range(self.count)) - {int(key.removeprefix(_ACKNOWLEDGED)) for key, _ in entries})
                if not missing:
                    break
                if time.monotonic() > end:
                    indices = ", ".join(map(str, missing))
                    _print_error(f"no answer from process {indices} of {self.count}: lost, or not responding")
                    break
                time.sleep(_POLL_SECONDS / 10)

    def stop(self) -> None:
        """Wait for process 0, then for all others; end the thread."""
        if self.index == 0:
            self._store.key_value_set(_DONE, "")
        while not self._stopped.is_set():
            with contextlib.suppress(RuntimeError):  # a timeout, at which Python handles signals
                self._store.blocking_key_value_get(_DONE, 1000)
                self._stopped.set()
        self.join()
        with contextlib.suppress(RuntimeError):
            self._store.wait_at_barrier(_BARRIER, 1000 * _BARRIER_TIMEOUT)


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
