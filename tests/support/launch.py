"""Commands (train.py, eval.py) in subprocesses: one, or several of one distributed run.

with launch(["train.py", f"--config={recipe}", f"--workdir={workdir}"], tmp_path / "job", processes=2) as job:
    job.wait_for("step 3/")
    job.send(signal.SIGTERM, process=1)
    assert job.wait() == [143, 143]
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from mrcnn_jax.config import Config, to_json

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 300.0  # seconds; on a busy machine a process may take a minute to its first step
_POLL = 0.05
# A prelude of `train.py` that replaces the network by a linear model.
LINEAR = """
from support import linear
linear.replace_network()
"""
# The same with the parameters of the network.
LINEAR_GRADIENTS = """
from support import linear
linear.replace_gradients()
"""
# JAX lets only process 0 write to the compilation cache; on CPU, other processes have other entries.
_EVERY_PROCESS_CACHES = """
import types
from jax._src import compiler
compiler.distributed = types.SimpleNamespace(global_state=types.SimpleNamespace(process_id=0))
"""
_DEVICE_COUNT = re.compile(r"--xla_force_host_platform_device_count=\d+")


def write_recipe(config: Config, path: Path) -> Path:
    """Write a recipe that returns exactly `config`."""
    path.write_text(
        f"from mrcnn_jax.config import from_json\n\n\ndef get_config():\n    return from_json({to_json(config)!r})\n"
    )
    return path


class Job:
    """Running processes. Output and errors of process i are in `folder/i.txt`."""

    def __init__(self, commands: Sequence[Sequence[str]], folder: Path, environment: Mapping[str, str]):
        folder.mkdir(parents=True, exist_ok=True)
        self._files = [folder / f"{index}.txt" for index in range(len(commands))]
        self.processes: list[subprocess.Popen[bytes]] = []
        for command, path in zip(commands, self._files, strict=True):
            with path.open("wb") as output:
                process = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # so that its loader workers can be killed with it
                )
            self.processes.append(process)

    def output(self, process: int = 0) -> str:
        """Return the output of a process so far."""
        return self._files[process].read_text(errors="replace")

    def send(self, number: signal.Signals, process: int = 0) -> None:
        """Send a signal to one process, not to its loader workers."""
        self.processes[process].send_signal(number)

    def wait_for(self, text: str, process: int = 0, *, timeout: float = PATIENCE) -> None:
        """Wait until `text` is printed. Raises AssertionError if the process ends without it, or after `timeout` s."""
        end = time.monotonic() + timeout
        while True:
            ended = self.processes[process].poll() is not None  # checked before reading the last output
            if text in self.output(process):
                return
            if ended or time.monotonic() > end:
                what = "ended" if ended else f"timed out after {timeout:.0f} s"
                raise AssertionError(f"process {process} {what}: {text!r} expected\n{self._kill_and_report()}")
            time.sleep(_POLL)

    def wait(self, *, timeout: float = PATIENCE) -> list[int]:
        """Wait for the exit codes of all processes. Raises AssertionError after `timeout` seconds."""
        end = time.monotonic() + timeout
        while any(process.poll() is None for process in self.processes):
            if time.monotonic() > end:
                raise AssertionError(f"not ended after {timeout:.0f} s\n{self._kill_and_report()}")
            time.sleep(_POLL)
        return [process.returncode for process in self.processes]

    def succeed(self, *, timeout: float = PATIENCE) -> str:
        """Wait; return the output of process 0. Raises AssertionError if an exit code is not 0."""
        codes = self.wait(timeout=timeout)
        if any(codes):
            raise AssertionError(f"exit codes {codes}\n{self._kill_and_report()}")
        return self.output()

    def kill(self) -> None:
        """Kill all processes and their children."""
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _kill_and_report(self) -> str:
        codes = [process.poll() for process in self.processes]
        self.kill()
        return "\n".join(
            f"----- process {index}, exit code {code}\n{self.output(index)}" for index, code in enumerate(codes)
        )

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def launch(
    command: Sequence[str],
    folder: Path,
    *,
    processes: int = 1,
    devices: int = 1,
    peer_timeout: float = 20.0,
    prelude: str = "",
    environment: Mapping[str, str] | None = None,
) -> Job:
    """Start `command` (["train.py", ...]) in `processes` processes with `devices` virtual CPU devices each.

    Several processes get the flags of one distributed run. `prelude` is Python code that each process runs before the
    command, in which `process` is its index. `environment` adds variables. Output is written to `folder`.
    """
    commands = []
    port = free_port()
    for index in range(processes):
        arguments = list(command)
        if processes > 1:
            arguments += [f"--coordinator=localhost:{port}", f"--num_processes={processes}"]
            arguments += [f"--process_id={index}", f"--peer_timeout={peer_timeout:g}"]
        first = _EVERY_PROCESS_CACHES + prelude if processes > 1 else prelude
        commands.append([sys.executable, *(_with_prelude(first, index, arguments) if first else arguments)])
    return Job(commands, folder, {**_environment(devices), **(environment or {})})


def free_port() -> int:
    """Return an unused TCP port."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def _with_prelude(prelude: str, process: int, arguments: list[str]) -> list[str]:
    """Return arguments for Python to run `prelude` and then the command."""
    run = f"import runpy, sys\nsys.argv = {arguments!r}\nrunpy.run_path({arguments[0]!r}, run_name='__main__')\n"
    return ["-c", f"process = {process}\n{prelude}\n{run}"]


def _environment(devices: int) -> dict[str, str]:
    """Return the environment with another number of devices, and the compilation cache of the tests."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "XLA_FLAGS": _DEVICE_COUNT.sub("", os.environ.get("XLA_FLAGS", "")).strip(),
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "PYTHONUNBUFFERED": "1",
    }
