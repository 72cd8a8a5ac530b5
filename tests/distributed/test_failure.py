"""One of two processes is killed, hangs or fails: the other reports it and exits, too.

A model with three parameters replaces the network.
"""

from __future__ import annotations

import json
import re
import signal
import time

import pytest
from support.launch import LINEAR, launch, write_recipe

pytestmark = pytest.mark.medium

SHORT_TIMEOUT = 10  # seconds, for --peer_timeout where only missing heartbeats reveal the failure
LONG_TIMEOUT = 100  # seconds, for --peer_timeout where this project reacts before JAX, which would abort
EXIT_TIMEOUT = 30  # seconds in which the other process must have exited, on a busy machine
RESUME_HINT = "Run the same command in all processes to continue from the last checkpoint"


@pytest.fixture
def start(tiny_config, tmp_path):
    """A function that starts two processes, always of the same run."""
    recipe = write_recipe(tiny_config, tmp_path / "recipe.py")
    command = ["train.py", f"--config={recipe}", f"--workdir={tmp_path / 'run'}"]
    jobs = []

    def start(prelude="", peer_timeout=LONG_TIMEOUT):
        job = launch(
            command, tmp_path / f"job{len(jobs)}", processes=2, peer_timeout=peer_timeout, prelude=LINEAR + prelude
        )
        jobs.append(job)
        return job

    yield start
    for job in jobs:
        job.kill()


def at_step(number, process, action):
    """A prelude: `process` performs `action` after it has started step `number`."""
    return f"""
import os, signal, time
from mrcnn_jax.errors import DataError
from mrcnn_jax.training.loop import TrainLoop
start_step, steps = TrainLoop._start_step, iter(range(1, 1000))
def step(self, *arguments):
    result = start_step(self, *arguments)
    if next(steps) == {number} and process == {process}:
        print("failure injected", flush=True)
        {action}
    return result
TrainLoop._start_step = step
"""


def exit_code_of_other(job, process):
    """Wait for the failure of `process`; return the exit code of the other, None if it does not exit in time."""
    job.wait_for("failure injected", process)
    other, end = job.processes[1 - process], time.monotonic() + EXIT_TIMEOUT
    while other.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    return other.poll()


def logged_steps(workdir):
    return [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_killed_process_ends_the_other_and_both_resume(start, tmp_path):
    # Meanwhile the other process waits for it, and has time to save.
    job = start(at_step(7, 1, "time.sleep(5); os.kill(os.getpid(), signal.SIGKILL)"))
    assert exit_code_of_other(job, 1) == 75, job.output()
    assert "process 0 of 2: error: a collective operation failed because another process has exited" in job.output()
    assert RESUME_HINT in job.output()
    assert "no answer from process 1 of 2: lost, or not responding" in job.output()
    assert job.processes[1].poll() == -signal.SIGKILL
    saved = {int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()}
    assert saved == {3, 6}

    output = start().succeed()
    assert "step 6 of 10" in output
    assert re.search(r"step 10, box AP -?\d\.\d{3}", output)
    assert logged_steps(tmp_path / "run") == list(range(1, 11))


def test_error_in_one_process_ends_the_other(start):
    """Such as bad data on one host. The other process waits for it in the next step."""
    job = start(at_step(2, 1, "raise DataError('this disk is empty')"))
    assert exit_code_of_other(job, 1) == 2, job.output()
    assert "process 1 of 2: error: this disk is empty" in job.output(1)
    assert "process 1 of 2 failed (this disk is empty); process 0 exits, too" in job.output(0)
    assert RESUME_HINT not in job.output(0)


@pytest.mark.slow
def test_reason_is_reported_instead_of_the_broken_connection(start):
    """The collective of process 0 fails before its monitor has read the reason."""
    job = start(
        "from mrcnn_jax.distributed import failure\n"
        "failure._ProcessMonitor.run = lambda self: self._stopped.wait()\n"
        + at_step(2, 1, "raise DataError('this disk is empty')")
    )
    assert exit_code_of_other(job, 1) == 2, job.output()
    assert "process 1 of 2 failed (this disk is empty); process 0 exits, too" in job.output(0)
    assert "another process has exited" not in job.output(0)


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_hanging_process_is_lost(start, process):
    """No connection breaks; JAX misses the heartbeats and aborts the other process with its own message."""
    job = start(at_step(4, process, "os.kill(os.getpid(), signal.SIGSTOP)"), SHORT_TIMEOUT)
    assert exit_code_of_other(job, process) == -signal.SIGABRT, job.output(1 - process)
    output = job.output(1 - process)
    assert "Terminating process because the JAX distributed service detected fatal errors" in output
    if process == 1:
        assert re.search(r"unhealthy \(stopped sending heartbeats\):\s+1\s+The tasks have crashed", output)


@pytest.mark.slow
def test_killed_main_process_ends_the_other(start):
    """The message store is gone, too: either JAX or this project reports the failure first."""
    job = start(at_step(4, 0, "os.kill(os.getpid(), signal.SIGKILL)"), SHORT_TIMEOUT)
    assert exit_code_of_other(job, 0) in (75, -signal.SIGABRT)
    output = job.output(1)
    assert "another process has exited" in output or "Failed to send RPC to coordination service" in output
