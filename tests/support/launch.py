"""Commands of ours (train.py, eval.py) as processes of their own: one, or several that make one run.

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
# A prelude of `train.py` without a network.
LINEAR = """
from support import linear
linear.replace_network()
"""
# The same with the parameters of the network.
LINEAR_GRADIENTS = """
from support import linear
linear.replace_gradients()
"""
# JAX lets only process 0 write compiled programs to the cache; on CPU those of another process are other entries.
_EVERY_PROCESS_CACHES = """
import types
from jax._src import compiler
compiler.distributed = types.SimpleNamespace(global_state=types.SimpleNamespace(process_id=0))
"""
_DEVICE_COUNT = re.compile(r"--xla_force_host_platform_device_count=\d+")


def write_recipe(config: Config, path: Path) -> Path:
    """A recipe that gives exactly `config`."""
    path.write_text(
        f"from mrcnn_jax.config import from_json\n\n\ndef get_config():\n    return from_json({to_json(config)!r})\n"
    )
    return path


class Job:
    """Running processes; what process i prints (output and errors in one) lies in `folder/i.txt`."""

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
                    start_new_session=True,  # its loader workers are ended with it
                )
            self.processes.append(process)

    def output(self, process: int = 0) -> str:
        """What a process has said so far."""
        return self._files[process].read_text(errors="replace")

    def send(self, number: signal.Signals, process: int = 0) -> None:
        """Send a signal to one process, not to its loader workers."""
        self.processes[process].send_signal(number)

    def wait_for(self, text: str, process: int = 0, *, timeout: float = PATIENCE) -> None:
        """Wait until `text` appears. AssertionError when the process ends without it, or after `timeout` seconds."""
        end = time.monotonic() + timeout
        while True:
            ended = self.processes[process].poll() is not None  # before the look at what it said last
            if text in self.output(process):
                return
            if ended or time.monotonic() > end:
                what = "ended" if ended else f"did not come to it in {timeout:.0f} s"
                raise AssertionError(f"process {process} {what}: {text!r} expected\n{self._kill_and_tell()}")
            time.sleep(_POLL)

    def wait(self, *, timeout: float = PATIENCE) -> list[int]:
        """Exit codes of all processes. AssertionError when one is there after `timeout` seconds."""
        end = time.monotonic() + timeout
        while any(process.poll() is None for process in self.processes):
            if time.monotonic() > end:
                raise AssertionError(f"not ended after {timeout:.0f} s\n{self._kill_and_tell()}")
            time.sleep(_POLL)
        return [process.returncode for process in self.processes]

    def succeed(self, *, timeout: float = PATIENCE) -> str:
        """Wait; what the main process said. AssertionError, with what all said, if an exit code is not 0."""
        codes = self.wait(timeout=timeout)
        if any(codes):
            raise AssertionError(f"exit codes {codes}\n{self._kill_and_tell()}")
        return self.output()

    def kill(self) -> None:
        """End every process, and what it started, at once."""
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _kill_and_tell(self) -> str:
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

    Several of them get the flags that join them to one run. `prelude` is Python that each process runs before the
    command; there `process` is its number. `environment` adds variables. Their output goes to `folder`.
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
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def _with_prelude(prelude: str, process: int, arguments: list[str]) -> list[str]:
    """Arguments of Python that runs `prelude`, then the command as if it had been called with its own."""
    run = f"import runpy, sys\nsys.argv = {arguments!r}\nrunpy.run_path({arguments[0]!r}, run_name='__main__')\n"
    return ["-c", f"process = {process}\n{prelude}\n{run}"]


def _environment(devices: int) -> dict[str, str]:
    """Ours, with another number of devices than this process has, and the compiled programs of the tests."""
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
