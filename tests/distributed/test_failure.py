"""One of two processes is killed, stands still, or meets an error of its own: the other ends too, and says why.

Three parameters stand in place of the network.
"""

from __future__ import annotations

import json
import re
import signal
import time

import pytest
from support.launch import LINEAR, launch, write_recipe

pytestmark = pytest.mark.medium

SILENCE = 10  # seconds, of --peer_timeout, where only the silence tells
PATIENCE = 100  # seconds, of --peer_timeout, where we speak first: JAX would abort a process that has not yet ended
NOTICED = 30  # seconds, in which the process that is left must have ended, on a busy machine
AGAIN = "The same command in all processes continues from the last checkpoint"


@pytest.fixture
def start(tiny_config, tmp_path):
    """Starts both processes of a run, always the same one, with something that happens in it."""
    recipe = write_recipe(tiny_config, tmp_path / "recipe.py")
    command = ["train.py", f"--config={recipe}", f"--workdir={tmp_path / 'run'}"]
    jobs = []

    def start(prelude="", peer_timeout=PATIENCE):
        job = launch(
            command, tmp_path / f"job{len(jobs)}", processes=2, peer_timeout=peer_timeout, prelude=LINEAR + prelude
        )
        jobs.append(job)
        return job

    yield start
    for job in jobs:
        job.kill()


def at_step(number, process, action):
    """A prelude: this process does `action` as soon as it has started step `number`."""
    return f"""
import os, signal, time
from mrcnn_jax.errors import DataError
from mrcnn_jax.training.loop import TrainLoop
start_step, steps = TrainLoop._start_step, iter(range(1, 1000))
def step(self, *arguments):
    result = start_step(self, *arguments)
    if next(steps) == {number} and process == {process}:
        print("here it happens", flush=True)
        {action}
    return result
TrainLoop._start_step = step
"""


def code_of_the_other(job, process):
    """Wait for what happens to `process`; the exit code of the other one, which must come in the stated time."""
    job.wait_for("here it happens", process)
    other, end = job.processes[1 - process], time.monotonic() + NOTICED
    while other.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    return other.poll()


def steps_of(workdir):
    return [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_killed_process_ends_the_other_and_both_continue(start, tmp_path):
    # The other one waits for it meanwhile, and has the time to save.
    job = start(at_step(7, 1, "time.sleep(5); os.kill(os.getpid(), signal.SIGKILL)"))
    assert code_of_the_other(job, 1) == 75, job.output()
    assert "process 0 of 2: error: a collective operation failed, another process is gone" in job.output()
    assert AGAIN in job.output()
    assert "lost, or stuck: no answer from process 1 of 2" in job.output()
    assert job.processes[1].poll() == -signal.SIGKILL
    saved = {int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()}
    assert saved == {3, 6}

    again = start()
    said = again.succeed()
    assert "step 6 of 10" in said
    assert re.search(r"step 10, box AP -?\d\.\d{3}", said)
    assert steps_of(tmp_path / "run") == list(range(1, 11))


def test_an_error_of_one_process_ends_the_other(start):
    """Bad data on one host, for example. The other waits for it in the next step."""
    job = start(at_step(2, 1, "raise DataError('this disk is empty')"))
    assert code_of_the_other(job, 1) == 2, job.output()
    assert "process 1 of 2: error: this disk is empty" in job.output(1)
    assert "process 1 of 2 has ended (this disk is empty), and so does process 0" in job.output(0)
    assert AGAIN not in job.output(0)


@pytest.mark.slow
def test_the_word_of_the_other_comes_before_the_broken_connection(start):
    """The same where process 0 learns of it in the collective operation, and has not looked for words before."""
    job = start(
        "from mrcnn_jax import peers\npeers._Watch.run = lambda self: self._parted.wait()\n"
        + at_step(2, 1, "raise DataError('this disk is empty')")
    )
    assert code_of_the_other(job, 1) == 2, job.output()
    assert "process 1 of 2 has ended (this disk is empty), and so does process 0" in job.output(0)
    assert "another process is gone" not in job.output(0)


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_a_process_that_stands_still_is_lost(start, process):
    """No connection breaks, so that only the heartbeats say it; JAX then ends the other, in its own words."""
    job = start(at_step(4, process, "os.kill(os.getpid(), signal.SIGSTOP)"), SILENCE)
    assert code_of_the_other(job, process) == -signal.SIGABRT, job.output(1 - process)
    said = job.output(1 - process)
    assert "Terminating process because the JAX distributed service detected fatal errors" in said
    if process == 1:
        assert re.search(r"unhealthy \(stopped sending heartbeats\):\s+1\s+The tasks have crashed", said)


@pytest.mark.slow
def test_a_killed_main_process_ends_the_other(start):
    """The store went with it: either its word or ours comes first."""
    job = start(at_step(4, 0, "os.kill(os.getpid(), signal.SIGKILL)"), SILENCE)
    assert code_of_the_other(job, 0) in (75, -signal.SIGABRT)
    said = job.output(1)
    assert "another process is gone" in said or "Failed to send RPC to coordination service" in said
