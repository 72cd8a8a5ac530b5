"""train.py: overrides reach the run, and what the user can mend is said in one line."""

from __future__ import annotations

import errno
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from mrcnn_jax.cli import common
from mrcnn_jax.distributed import failure
from mrcnn_jax.errors import CheckpointError, Interrupted
from mrcnn_jax.training import train as train_module
from mrcnn_jax.training.loop import nonfinite_loss_error

pytestmark = pytest.mark.medium

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text("from mrcnn_jax.config import Config\ndef get_config():\n    return Config()\n")
    return path


@pytest.fixture
def command(monkeypatch, recipe):
    """Run train.py with arguments after the recipe and the workdir; its exit status."""
    cache = jax.config.jax_compilation_cache_dir
    assert cache is not None  # so that the command leaves the tests' cache alone

    def run(*arguments: str, workdir: tuple[str, ...] = ("--workdir=runs/x",)) -> int:
        monkeypatch.setattr(sys, "argv", ["train.py", f"--config={recipe}", *workdir, *arguments])
        with pytest.raises(SystemExit) as exit:
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
        return exit.value.code

    return run


def test_overrides_reach_the_run(command, monkeypatch):
    calls = []
    monkeypatch.setattr(train_module, "train", lambda *arguments, **options: calls.append((*arguments, options)))
    assert command("--config.optimizer.learning_rate=0.5", "--config.train.steps=7") == 0
    [(config, workdir, options)] = calls
    assert (config.optimizer.learning_rate, config.train.steps, workdir) == (0.5, 7, "runs/x")
    assert options == {"profile": False}


def test_the_workdir_is_named_after_the_recipe(command, monkeypatch):
    calls = []
    monkeypatch.setattr(train_module, "train", lambda *arguments, **options: calls.append((*arguments, options)))
    assert command("--config.name=mine", workdir=()) == 0
    assert calls[0][1] == "runs/mine"


def test_a_recording_can_be_asked_for(command, monkeypatch):
    calls = []
    monkeypatch.setattr(train_module, "train", lambda *_, **options: calls.append(options))
    assert command("--profile") == 0
    assert calls == [{"profile": True}]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.optimizer.learning_rat=0.5", "did you mean 'learning_rate'"),
        ("--config.train.steps=many", "train.steps: expected int"),
        ("--steps=7", "unknown argument --steps=7"),
    ],
)
def test_mistakes_are_named(command, capsys, argument, message):
    assert command(argument) == 2
    assert message in capsys.readouterr().err


def test_bad_loss_is_an_error_of_the_command(command, monkeypatch, capsys):
    def train(*_, **__):
        raise nonfinite_loss_error(12, [397133], {"loss": float("nan"), "skipped": 1}, "run/failures/step_12.npz")

    monkeypatch.setattr(train_module, "train", train)
    assert command() == 1
    said = capsys.readouterr().err
    assert "step 12 (loss nan), images [397133]" in said


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (
            Interrupted(signal.SIGTERM, "saved at step 7; the same command continues"),
            143,
            "SIGTERM: saved at step 7; the same command continues\n",
        ),
        (
            Interrupted(signal.SIGINT, "saved at step 7; the same command continues"),
            130,
            "Ctrl-C: saved at step 7; the same command continues\n",
        ),
        (KeyboardInterrupt(), 130, "Ctrl-C: interrupted\n"),
        (CheckpointError(3, None, "run", "No space left on device"), 74, "error: checkpoint 3 could not be written"),
        (OSError(errno.ENOSPC, "No space left on device"), 74, "No space left on device; make room, then the same"),
    ],
)
def test_the_exit_status_says_what_to_do(command, monkeypatch, capsys, error, status, said):
    def train(*_, **__):
        raise error

    monkeypatch.setattr(train_module, "train", train)
    assert command() == status
    assert said in capsys.readouterr().err


def test_what_nobody_foresaw_keeps_its_traceback(command, monkeypatch):
    def train(*_, **__):
        raise ValueError("Gloo")  # a lost peer, if there were one

    monkeypatch.setattr(train_module, "train", train)
    with pytest.raises(ValueError, match="Gloo"):
        command()


def test_a_running_save_is_finished_first():
    done = []
    with failure.finish_before_exit(lambda: done.append("saved")):
        failure._do_duties()
    failure._do_duties()
    assert done == ["saved"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_status_is_kept_where_the_message_cannot_be_written(tmp_path):
    """A log on the disk that is full: neither the failing print nor what is left in buffers changes the status."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, str(ROOT / "eval.py"), f"--workdir={tmp_path}"], cwd=ROOT, stdout=full, stderr=full
        )
    assert done.returncode == 2


def test_closed_loop_of_a_failed_save_is_not_told(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: told.append(str(what.exc_value)))
    assert common.run(lambda: None) == 0
    for text in ("Event loop is closed", "the loop is open"):
        sys.unraisablehook(SimpleNamespace(exc_value=RuntimeError(text)))
    assert told == ["the loop is open"]
