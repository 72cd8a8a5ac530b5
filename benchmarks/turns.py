"""Taking turns: each side of a comparison is a process that does a piece of work whenever it is told to.

No other imports than Python's own: the peer's interpreter runs this too.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_RESET_PEAK = "5"  # proc(5): the peak of resident memory begins anew


class Task(NamedTuple):
    """A prepared piece of work."""

    run: Callable[[], object]  # returns when it is done
    facts: Mapping[str, float] = {}  # what is known of it before it runs: seconds of compilation, operations, bytes
    peak: Callable[[], float] | None = None  # MiB held at most, of a device that counts its own memory


class Side:
    """A process that answers each line of JSON with another one."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None):
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Its answer. Raises RuntimeError if it ends instead."""
        assert self._process.stdin is not None, "it is a pipe"
        assert self._process.stdout is not None, "it is a pipe"
        with contextlib.suppress(BrokenPipeError):  # it has ended, which is said below
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):  # libraries print, too
                return json.loads(line)
        self.close()
        raise RuntimeError(f"{' '.join(self._process.args)} ended with status {self._process.returncode}")

    def close(self) -> None:
        """End it: its input ends."""
        self._process.communicate()


def serve(prepare: Callable[..., Task]) -> None:
    """Answer the lines of standard input: the first says what to prepare, every other one asks for one run.

    The answer to the first are the task's facts. Those to the others: `seconds` of wall-clock time, `cpu` seconds of
    all threads, `peak` MiB held at most during the run, by the process or by the device.
    """
    task = prepare(**json.loads(sys.stdin.readline()))
    print(json.dumps(dict(task.facts)), flush=True)
    for _ in sys.stdin:
        print(json.dumps(_measured(task)), flush=True)


def _measured(task: Task) -> dict[str, float]:
    with contextlib.suppress(OSError):  # not everywhere
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    start, cpu = time.perf_counter(), time.process_time()
    task.run()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"seconds": seconds, "cpu": cpu, "peak": task.peak() if task.peak else _resident_peak()}


def _resident_peak() -> float:
    """MiB (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
