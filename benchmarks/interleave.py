"""Worker processes that run a task on request, so that the sides of a comparison can alternate.

Imports only the standard library, because the interpreter of torchvision also runs it.
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

_RESET_PEAK = "5"  # proc(5): resets the peak of resident memory


class Task(NamedTuple):
    """A prepared measurement."""

    run: Callable[[], object]  # blocks until it is done
    facts: Mapping[str, float] = {}  # known before the first run: seconds of compilation, FLOP, bytes
    peak: Callable[[], float] | None = None  # peak memory of the device in MiB, if it counts it


class Worker:
    """A process that answers each line of JSON with a line of JSON."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None):
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)

    @property
    def pid(self) -> int:
        return self._process.pid

    def request(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to `message`. Raises RuntimeError if the process exits instead."""
        assert self._process.stdin is not None, "it is a pipe"
        assert self._process.stdout is not None, "it is a pipe"
        with contextlib.suppress(BrokenPipeError):  # the process has exited, which is reported below
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):  # libraries may print other lines
                return json.loads(line)
        self.close()
        raise RuntimeError(f"{' '.join(self._process.args)} exited with status {self._process.returncode}")

    def close(self) -> None:
        """Close the input of the process and wait for its end."""
        self._process.communicate()


def serve(prepare: Callable[..., Task]) -> None:
    """Answer the lines of standard input: the first has the arguments of `prepare`, each other one requests a run.

    The answer to the first line is the task's facts. The others are `seconds` of wall-clock time, `cpu` seconds of all
    threads, and the `peak` memory in MiB of the device or of the process during the run.
    """
    task = prepare(**json.loads(sys.stdin.readline()))
    print(json.dumps(dict(task.facts)), flush=True)
    for _ in sys.stdin:
        print(json.dumps(_measure(task)), flush=True)


def _measure(task: Task) -> dict[str, float]:
    with contextlib.suppress(OSError):  # Linux only
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    start, cpu = time.perf_counter(), time.process_time()
    task.run()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"seconds": seconds, "cpu": cpu, "peak": task.peak() if task.peak else _resident_peak()}


def _resident_peak() -> float:
    """Return the peak resident memory of this process in MiB (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
