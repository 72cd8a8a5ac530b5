"""train.py gets SIGTERM or Ctrl-C at critical moments, is restarted each time, and ends like an uninterrupted run."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from support import linear
from support.launch import LINEAR, launch, write_recipe

from mrcnn_jax.checkpoints.manager import Checkpointer
from mrcnn_jax.training.train import train

pytestmark = pytest.mark.slow

# Code that processes run before train.py: `stop` sends a signal to the process and prints the time.
STOP = """
import os, signal, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run in the background, where it is ignored
def stop(number=signal.SIGTERM, send=os.kill, to=os.getpid()):
    print(f"signal at {time.monotonic()}", flush=True)
    send(to, number)
    time.sleep(0.2)  # another thread may have received it; keep the main one, which runs Python's handler, here
"""
PREPARATION = """
from mrcnn_jax.training import train
def load_split(*_):
    threading.Timer(0.5, stop).start()
    time.sleep(300)
train.load_split = load_split
"""
COMPILATION = """
from mrcnn_jax.training.loop import TrainLoop
start_step = TrainLoop._start_step
def first_step(*arguments):
    threading.Timer(0.1, stop).start()
    time.sleep(0.5)  # as if the compilation took so long
    return start_step(*arguments)
TrainLoop._start_step = first_step
"""
STEP = """
from mrcnn_jax.training.loop import TrainLoop
start_step, steps = TrainLoop._start_step, iter(range(1, 100))
def step(*arguments):
    result = start_step(*arguments)
    if next(steps) == {number} and process == {process}:
        stop({how})
    return result
TrainLoop._start_step = step
"""
SAVE = """
from mrcnn_jax.checkpoints.manager import Checkpointer
rename, save = os.rename, Checkpointer.save
def slow_rename(source, target):
    if os.path.basename(target) == "6":  # everything is written; a checkpoint counts only after the rename
        time.sleep(2)
    rename(source, target)
def stopped_save(self, step, state):
    save(self, step, state)
    if step == 6:
        print("saved at the signal:", sorted(os.listdir(self._folder)), flush=True)
        stop()
os.rename, Checkpointer.save = slow_rename, stopped_save
"""
EVALUATION = """
from mrcnn_jax.evaluation import evaluate
checked = evaluate._checked
def stopped(batches, check):
    yield from checked((stop() or batch for batch in batches), check)
evaluate._checked = stopped
"""


SLOWLY = """
start_next = TrainLoop._start_step
def slow_step(*arguments):
    time.sleep(0.5)
    return start_next(*arguments)
TrainLoop._start_step = slow_step
"""


class Stop(NamedTuple):
    """Result of one process of the run."""

    code: int
    output: str
    seconds: float  # from the signal to the end
    saved: list[int]


@pytest.fixture(scope="module")
def whole(tiny_config, tmp_path_factory):
    """The uninterrupted run: its state and work directory. Uses a linear model."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        linear.replace_network(patch.setattr)
        return train(tiny_config, workdir), workdir


@pytest.fixture(scope="module")
def stopped_run(tiny_config, tmp_path_factory):
    """Repeat one command, stopped at another moment each time, except for the last."""
    folder = tmp_path_factory.mktemp("stops")
    recipe, workdir = write_recipe(tiny_config, folder / "recipe.py"), folder / "run"

    def run(name: str, prelude: str, *overrides: str) -> Stop:
        command = ["train.py", f"--config={recipe}", f"--workdir={workdir}", *overrides]
        with launch(command, folder / name, devices=2, prelude=LINEAR + STOP + prelude) as job:
            [code] = job.wait()
            end, output = time.monotonic(), job.output()
        sent = re.search(r"signal at ([\d.]+)", output)
        saved = sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit())
        return Stop(code, output, end - float(sent[1]) if sent else 0.0, saved)

    ctrl_c = "number=signal.SIGINT, send=os.killpg, to=os.getpgrp()"  # also to the workers, as a terminal does
    preludes = {
        "preparation": (PREPARATION,),
        "first step": (COMPILATION,),
        "step": (STEP.format(number=2, process=0, how=""),),
        "save": (SAVE,),
        "evaluation": (EVALUATION, "--config.train.evaluate_every=8"),
        "Ctrl-C": (STEP.format(number=1, process=0, how=ctrl_c), "--config.data.workers=2"),
        "report": (EVALUATION,),
        "end": ("",),
    }
    return StoppedRun({name: run(name, *arguments) for name, arguments in preludes.items()}, workdir)


class StoppedRun(NamedTuple):
    stops: dict[str, Stop]
    workdir: Path


# The checkpoints after the end. Up to two steps are done after a signal: the current one and the one queued behind it.
# Two checkpoints are kept.
@pytest.mark.parametrize(
    ("name", "code", "message", "saved"),
    [
        ("preparation", 143, "SIGTERM: stopped", []),
        ("first step", 143, "SIGTERM: saved at step 1", [1]),
        ("step", 143, "SIGTERM: saved at step 3", [1, 3]),
        ("save", 143, "SIGTERM: saved at step 7", [6, 7]),
        ("evaluation", 143, "SIGTERM: stopped", [7, 8]),
        ("Ctrl-C", 130, "Ctrl-C: saved at step 9", [8, 9]),
        ("report", 143, "SIGTERM: stopped", [9, 10]),
    ],
)
def test_a_signal_during(name, code, message, saved, stopped_run):
    stop = stopped_run.stops[name]
    print(f"{name}: {stop.seconds:.1f} s from the signal to the end")
    assert stop.code == code, stop.output
    assert f"\n{message}; the same command continues" in stop.output
    assert stop.saved == saved
    assert "Traceback" not in stop.output
    assert "DataError" not in stop.output
    assert ("finishing this step, then saving" in stop.output) == (name != "preparation")


def test_incomplete_checkpoint_does_not_count(stopped_run):
    there = re.search(r"saved at the signal: (.*)", stopped_run.stops["save"].output)
    assert re.fullmatch(r"\['1', '3', '6\.orbax-checkpoint-tmp[^']*'\]", there[1])


def test_stopped_run_ends_like_an_uninterrupted_one(stopped_run, whole):
    expected, workdir = whole
    assert stopped_run.stops["end"].code == 0, stopped_run.stops["end"].output
    template = jax.eval_shape(lambda: expected)
    with Checkpointer(stopped_run.workdir, keep=2) as checkpointer:
        state = checkpointer.restore_latest(template)
    jax.tree.map(np.testing.assert_array_equal, state, jax.device_get(expected))
    assert losses(stopped_run.workdir) == losses(workdir)


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 11))
    return [line["loss"] for line in lines]


def test_a_signal_to_one_of_two_processes_stops_both_at_the_same_step(tiny_config, whole, tmp_path):
    recipe, workdir = write_recipe(tiny_config, tmp_path / "recipe.py"), tmp_path / "run"
    command = ["train.py", f"--config={recipe}", f"--workdir={workdir}"]
    # Slow steps, as real ones are: the processes agree in the background.
    prelude = LINEAR + STOP + STEP.format(number=3, process=1, how="") + SLOWLY
    with launch(command, tmp_path / "stopped", processes=2, prelude=prelude) as job:
        assert job.wait() == [143, 143], job.output(0) + job.output(1)
        stopped = re.search(r"SIGTERM: saved at step (\d+); the same command continues", job.output())
    saved = int(stopped[1])
    assert 3 <= saved <= 5
    assert str(saved) in [path.name for path in (workdir / "checkpoints").iterdir()]

    with launch(command, tmp_path / "end", processes=2, prelude=LINEAR) as job:
        assert f": step {saved} of 10" in job.succeed()
    np.testing.assert_allclose(losses(workdir), losses(whole[1]), rtol=1e-5)
