"""How loaders take turns: each is a process that makes a round of batches whenever it is asked for one.

No other imports than Python's own: the peer's interpreter runs this too.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.turns import Side

_WARM_UP = 6  # batches: more than any side has ready after a pause
_TICKS = os.sysconf("SC_CLK_TCK")


class Round(NamedTuple):
    """What one round took."""

    rate: float  # images a second of wall-clock time
    cpu: float  # seconds of CPU time an image, of all processes and threads together


class Loader:
    """A process that makes rounds."""

    def __init__(self, command: Sequence[str]):
        self._side = Side(command)
        self._side.ask({})  # answered when the first batch is there

    def round(self) -> Round:
        """Make a round. CPU time is read when the side has filled up what it reads ahead, before and after."""
        before = self._cpu_at_rest()
        report = self._side.ask({})
        cpu = self._cpu_at_rest() - before
        return Round(report["images"] / report["seconds"], cpu / report["all"])

    def close(self) -> None:
        """End it."""
        self._side.close()

    def _cpu_at_rest(self) -> float:
        """Seconds of CPU time so far, once they have all but stopped growing."""
        now, before = _cpu_seconds(self._side.pid), -1.0
        while now - before > 0.02:
            time.sleep(0.4)
            now, before = _cpu_seconds(self._side.pid), now
        return now


def serve(batches: Iterator[object], batch_size: int, images: int) -> None:
    """Make a round for every line of the standard input but the first, and print what it took as a line of JSON.

    A round begins with batches that are not timed, because some are ready at once after a pause. `images` are those
    that were timed, in `seconds`; `all` were made.
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


def run_on(cores: int) -> None:
    """Keep this process, and those it starts, on the first cores that it may use (Linux)."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def _cpu_seconds(root: int) -> float:
    """CPU time of a process and of all that it started and that still run (Linux)."""
    children: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()  # the name before it may hold anything
        except OSError:  # it ended meanwhile
            continue
        pid = int(path.parent.name)
        children.setdefault(int(fields[1]), []).append(pid)
        ticks[pid] = int(fields[11]) + int(fields[12])
    family, total = [root], 0
    while family:
        pid = family.pop()
        total += ticks.get(pid, 0)
        family += children.get(pid, [])
    return total / _TICKS
