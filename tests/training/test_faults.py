"""Files and processes that disappear during training: messages, exit status, resuming.

Runs train.py in this process, with a linear model in place of the network.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import runpy
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import linear
from support.launch import ROOT, write_recipe

from mrcnn_jax.data import load_split, train_batches
from mrcnn_jax.training import train
from mrcnn_jax.training.evaluations import PeriodicEvaluator
from mrcnn_jax.training.logs.metrics_log import MetricsLog

pytestmark = pytest.mark.medium

STEPS = 20


def stop():
    os.kill(os.getpid(), signal.SIGTERM)


class Training:
    """A run in `folder`, with its data."""

    def __init__(self, config, folder, capfd, monkeypatch):
        self.folder, self.workdir, self._capfd, self._monkeypatch = folder, folder / "run", capfd, monkeypatch
        data = replace(config.data, root=str(folder / "shapes"), cache_dir=str(folder / "cache"))
        self.config = replace(config, data=data, train=replace(config.train, steps=STEPS))

    def __call__(self, *, at_step_5=lambda: None, workers=0) -> tuple[int, str]:
        """Run train.py, calling `at_step_5` when the loss of step 5 is known; return exit status and output."""
        recipe = write_recipe(self.config, self.folder / "recipe.py")
        arguments = [f"--config={recipe}", f"--workdir={self.workdir}", f"--config.data.workers={workers}"]
        self._monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        log_step = MetricsLog.step

        def step(log, number, metrics):
            log_step(log, number, metrics)
            if number == 5:
                at_step_5()

        with self._monkeypatch.context() as patch:
            patch.setattr(MetricsLog, "step", step)
            with pytest.raises(SystemExit) as ended:
                runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
        said = self._capfd.readouterr()
        assert "Traceback" not in said.err
        return ended.value.code, said.out + said.err

    def pixels(self) -> dict[int, int]:
        """Return the sum of the pixels of each step."""
        lines = [json.loads(line) for line in (self.workdir / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
        return {line["step"]: line["pixels"] for line in lines}

    def records(self, split: str) -> Path:
        """The prepared records of a split."""
        (part,) = (self.folder / "cache").glob(f"{split}-*/**/*.array_record*")
        return part


@pytest.fixture
def training(tiny_config, tmp_path, capfd, monkeypatch):
    linear.replace_network(monkeypatch.setattr)
    monkeypatch.setattr(PeriodicEvaluator, "evaluate_final", lambda *_: {"bbox/AP": 0.5})
    return Training(tiny_config, tmp_path, capfd, monkeypatch)


@pytest.fixture(scope="module")
def undisturbed(tiny_config):
    """The sum of the pixels of each step of an undisturbed run."""
    with train_batches(load_split(tiny_config.data, "train"), tiny_config) as batches:
        pixels = {step: int(next(batches).images.sum(dtype=np.int64)) for step in range(1, STEPS + 1)}
    assert len(set(pixels.values())) == STEPS
    return pixels


def test_killed_loader_worker(training, undisturbed):
    def kill():
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    status, said = training(at_step_5=kill, workers=2)
    assert status == 2
    assert "error: worker process " in said
    assert "exit code -9: it was killed" in said
    status, said = training(workers=2)
    assert status == 0
    assert 0 < int(re.search(rf": step (\d+) of {STEPS}", said)[1]) < STEPS
    assert training.pixels() == undisturbed


def test_records_deleted_during_training(training, undisturbed):
    """An open file stays readable until it is closed."""
    status, _ = training(at_step_5=lambda: shutil.rmtree(training.folder / "cache"))
    assert status == 0
    assert training.pixels() == undisturbed


def test_records_deleted_before_a_worker_opens_them(training, undisturbed):
    """Worker processes open the records at their start, here after the folder was deleted."""
    opened = train.train_batches

    def delete_first(*arguments, **named):
        shutil.rmtree(training.folder / "cache")
        return opened(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "train_batches", delete_first)
        status, said = training(workers=1)
    assert status == 2
    assert "the prepared records were removed" in said
    assert "start again" in said
    status, said = training()
    assert status == 0
    assert "16/16 images prepared" in said
    assert training.pixels() == undisturbed


def test_records_truncated_during_training(training, undisturbed):
    status, said = training(at_step_5=lambda: os.truncate(training.records("train"), 0))
    assert status == 2
    assert "this file of prepared records is missing or truncated; start again" in said
    assert "stays empty" not in said  # no message about single images
    status, said = training()
    assert status == 0
    assert "16/16 images prepared" in said
    assert training.pixels() == undisturbed


@pytest.mark.parametrize("cut", [False, True])
def test_records_deleted_or_truncated_between_runs(training, undisturbed, cut):
    assert training(at_step_5=stop)[0] == 143
    if cut:
        os.truncate(training.records("train"), 9)
    else:
        shutil.rmtree(training.folder / "cache")
    status, said = training()
    assert status == 0
    assert "16/16 images prepared" in said
    assert training.pixels() == undisturbed


def test_data_deleted_during_training_and_between_runs(training):
    """Training needs only the records; the next run checks the files that they were made from."""
    training()
    shutil.rmtree(training.workdir)
    training.config = replace(
        training.config, data=replace(training.config.data, shapes=None)
    )  # as if it were not procedural
    status, _ = training(at_step_5=lambda: shutil.rmtree(training.folder / "shapes" / "train"))
    assert status == 0
    shutil.rmtree(training.workdir)
    status, said = training()
    assert status == 2
    assert f"error: {training.folder / 'shapes' / 'train.json'}" in said
    assert "000001.png" in said
    shutil.rmtree(training.folder / "shapes")
    status, said = training()
    assert status == 2
    assert str(training.folder / "shapes") in said


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_unusable_workdir(training, place):
    (training.folder / "file").write_text("not a folder")
    training.workdir = training.folder / place
    status, said = training()
    assert status == 2
    assert "cannot be written to" in said
    assert "give another --workdir" in said
    assert (training.folder / "file").read_text() == "not a folder"


def test_damaged_metrics_file(training, undisturbed):
    """After a power failure, a file may end in any bytes."""
    assert training(at_step_5=stop)[0] == 143
    with (training.workdir / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 6, "loss": 0.\xff\xfe\n12\n\0\0\0{"st')
    assert training()[0] == 0
    assert training.pixels() == undisturbed


def test_training_without_writable_tensorboard_files(training):
    training.workdir.mkdir()
    (training.workdir / "tensorboard").write_text("not a folder")
    status, said = training()
    assert status == 0
    assert "no TensorBoard files: " in said
    assert len(training.pixels()) == STEPS
