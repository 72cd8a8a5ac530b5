"""How one of several processes ends: the others learn why, and end too.

JAX watches that the processes live. One that is silent for too long is lost, and then JAX aborts all others, with exit
status 134 and a message that names it. What is here covers a process that still can speak: it leaves word, the others
end within seconds with the same exit status, and nobody waits in a collective operation for somebody who is gone.
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

LOST = 75  # exit status when a peer was lost: EX_TEMPFAIL, start again

_ENDED, _HEARD = "mrcnn_jax/ended/", "mrcnn_jax/heard/"  # keys of the last words, and of those who read them
_DONE = "mrcnn_jax/done"  # the key of the main process's word that all is done
_LOOK_EVERY = 1.0  # seconds
_FAREWELL = 5.0  # seconds in which the others can read the last word of the main process, who keeps the store
_LAST_DUTY = 60.0  # seconds for a save that is running
_GOODBYE = 60  # seconds between the first and the last to leave
_SIGNS = ("Gloo", "gloo", "NCCL", "UNAVAILABLE", "CoordinationService", "eartbeat")
AGAIN = "The same command in all processes continues from the last checkpoint"

_duties: list[Callable[[], None]] = []
_ending = threading.Lock()
_watch: _Watch | None = None  # of this process, if it is one of several


def is_lost(error: BaseException) -> bool:
    """Whether this is what a collective operation raises when another process is gone."""
    return isinstance(error, (RuntimeError, ValueError)) and any(sign in str(error) for sign in _SIGNS)


@contextlib.contextmanager
def expected(cluster: Cluster, timeout: float) -> Iterator[None]:
    """Within, the others are to come; after `timeout` seconds the process ends with a message. JAX would abort."""

    def give_up() -> None:
        count = "all" if cluster.count is None else f"all {cluster.count}"
        where = cluster.coordinator or "the address that JAX found"
        _say(
            f"error: not {count} processes have come in {timeout:g} s ({cluster.source}). Is the command running in"
            f" each of them, with a process_id of its own? Can all of them reach process 0 at {where}? If starting"
            " takes longer here, give --start_timeout=S"
        )
        _exit(LOST)

    timer = threading.Timer(timeout, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def finish_before_exit(duty: Callable[[], None]) -> Iterator[None]:
    """Within, `duty` (waiting for a save that is running) is done before this process ends for another's sake."""
    _duties.append(duty)
    try:
        yield
    finally:
        _duties.remove(duty)


def watch(store: Any, index: int, count: int) -> None:
    """Look, from now on, whether another process has ended; `store` is the client of the coordination service."""
    global _watch
    _watch = _Watch(store, index, count)
    _watch.start()


def is_distributed() -> bool:
    """Whether this process is one of several."""
    return _watch is not None


def is_main() -> bool:
    """Whether this process speaks for all."""
    return _watch is None or _watch.index == 0


def prefix_rank(text: str) -> str:
    """`text`, and if this process is one of several, which."""
    return text if _watch is None else f"process {_watch.index} of {_watch.count}: {text}"


def end(status: int, why: str) -> None:
    """End this process now, though the others go on: they are told `why`, and end with the same status.

    Nothing is left to `atexit`, where JAX would wait for the others. Does nothing if there are no others.
    """
    if _watch is None:
        return
    if not _ending.acquire(blocking=False):
        threading.Event().wait()  # the watch is ending us
    _do_duties()
    _watch.leave_word(status, why)
    _exit(status)


def raise_if_process_failed() -> None:
    """End as another process did, if one has left word: to be asked when it is gone, before anything is said of it."""
    if _watch is not None:
        _watch.look()


def exit_barrier() -> None:
    """Before all processes end together: wait for the main process, which may have more to do, and part."""
    if _watch is not None:
        _watch.part()


class _Watch(threading.Thread):
    """Looks for the last words of others, and has ours."""

    def __init__(self, store: Any, index: int, count: int):
        super().__init__(name="peers", daemon=True)
        self._store, self.index, self.count = store, index, count
        self._parted = threading.Event()

    def run(self) -> None:
        while not self._parted.wait(_LOOK_EVERY):
            self.look()

    def look(self) -> None:
        """End if another process has left word that it ends."""
        with contextlib.suppress(RuntimeError):  # where the store is gone, JAX ends us
            for key, word in self._store.key_value_dir_get(_ENDED):
                self._follow(int(key.removeprefix(_ENDED)), *json.loads(word))

    def _follow(self, index: int, status: int, why: str) -> None:
        """End as another did, unless the main thread is ending us already."""
        if index == self.index or not _ending.acquire(blocking=False):
            return
        again = "" if status in (1, 2) else f". {AGAIN}"
        _say(f"process {index} of {self.count} has ended ({why}), and so does process {self.index}{again}")
        _do_duties()
        self._announce_exit()
        _exit(status)

    def leave_word(self, status: int, why: str) -> None:
        """Tell the others."""
        with contextlib.suppress(RuntimeError):  # the store may be gone
            self._store.key_value_set(f"{_ENDED}{self.index}", json.dumps([status, why]))
        self._announce_exit()

    def _announce_exit(self) -> None:
        """The main process keeps the store until all others have read the word, but not for long."""
        end = time.monotonic() + _FAREWELL
        with contextlib.suppress(RuntimeError):
            self._store.key_value_set(f"{_HEARD}{self.index}", "")
            while self.index == 0:
                heard = {int(key.removeprefix(_HEARD)) for key, _ in self._store.key_value_dir_get(_HEARD)}
                silent = sorted(set(range(self.count)) - heard)
                if not silent:
                    break
                if time.monotonic() > end:
                    _say(f"lost, or stuck: no answer from process {', '.join(map(str, silent))} of {self.count}")
                    break
                time.sleep(_LOOK_EVERY / 10)

    def part(self) -> None:
        """Wait for the main process, then for the others; the thread ends."""
        if self.index == 0:
            self._store.key_value_set(_DONE, "")
        while not self._parted.is_set():
            with contextlib.suppress(RuntimeError):  # a time-out, in which Python can obey signals
                self._store.blocking_key_value_get(_DONE, 1000)
                self._parted.set()
        self.join()
        with contextlib.suppress(RuntimeError):
            self._store.wait_at_barrier("mrcnn_jax/left", 1000 * _GOODBYE)


def _do_duties() -> None:
    """In a thread of their own: they may wait for something that never comes."""
    worker = threading.Thread(target=lambda: [duty() for duty in _duties], daemon=True)
    worker.start()
    worker.join(_LAST_DUTY)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _exit(status: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    logging.shutdown()
    os._exit(status)
