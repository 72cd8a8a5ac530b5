"""Worker processes that load a round of batches on request, so that loaders can alternate.

Imports only the standard library, because the interpreter of torchvision also runs it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.interleave import Worker

_WARM_UP = 6  # batches: more than any loader prefetches during a pause
_TICKS = os.sysconf("SC_CLK_TCK")


class Round(NamedTuple):
    """Speed of one round."""

    rate: float  # images per second of wall-clock time
    cpu: float  # seconds of CPU time per image, over all processes and threads


class LoaderWorker:
    """A worker process that loads rounds of batches."""

    def __init__(self, command: Sequence[str]):
        self._worker = Worker(command)
        self._worker.request({})  # returns after the first batch

    def round(self) -> Round:
        """Load a round. CPU time is measured before and after while the worker is idle, with its prefetch full."""
        before = self._idle_cpu_seconds()
        report = self._worker.request({})
        cpu = self._idle_cpu_seconds() - before
        return Round(report["images"] / report["seconds"], cpu / report["all"])

    def close(self) -> None:
        """Stop the worker."""
        self._worker.close()

    def _idle_cpu_seconds(self) -> float:
        """Wait until CPU time hardly increases, and return its seconds."""
        now, before = _cpu_seconds(self._worker.pid), -1.0
        while now - before > 0.02:
            time.sleep(0.4)
            now, before = _cpu_seconds(self._worker.pid), now
        return now


def serve(batches: Iterator[object], batch_size: int, images: int) -> None:
    """Load a round for every line of standard input after the first, and print a line of JSON.

    The first batches of a round are not timed, because some have been prefetched. `images` were loaded in `seconds`;
    `all` includes those that were not timed.
    """
    next(batches)
    sys.stdin.readline()
    print(json.dumps({}), flush=True)
    count = -(-images // batch_size)
    for _ in sys.stdin:
        for _ in range(_WARM_UP):
            next(batches)
        start = time.perf_counter()
        for _ in range(count):
            next(batches)
        seconds = time.perf_counter() - start
        report = {"images": count * batch_size, "seconds": seconds, "all": (count + _WARM_UP) * batch_size}
        print(json.dumps(report), flush=True)


def set_cores(cores: int) -> None:
    """Restrict this process and its children to the first available cores (Linux)."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def _cpu_seconds(root: int) -> float:
    """Return the CPU time of a process and its running descendants (Linux)."""
    children: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()  # after the name, which may contain anything
        except OSError:  # the process has ended
            continue
        pid = int(path.parent.name)
        children.setdefault(int(fields[1]), []).append(pid)
        ticks[pid] = int(fields[11]) + int(fields[12])
    pending, total = [root], 0
    while pending:
        pid = pending.pop()
        total += ticks.get(pid, 0)
        pending += children.get(pid, [])
    return total / _TICKS
