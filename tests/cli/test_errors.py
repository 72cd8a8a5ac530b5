"""`train.py`: overrides, exit statuses, and error messages in one line."""

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
    """A function that runs train.py with additional arguments and returns its exit status."""
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


def test_profile_flag(command, monkeypatch):
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
def test_invalid_arguments(command, capsys, argument, message):
    assert command(argument) == 2
    assert message in capsys.readouterr().err


def test_nonfinite_loss(command, monkeypatch, capsys):
    def train(*_, **__):
        raise nonfinite_loss_error(12, [397133], {"loss": float("nan"), "skipped": 1}, "run/failures/step_12.npz")

    monkeypatch.setattr(train_module, "train", train)
    assert command() == 1
    assert "step 12 (loss nan), images [397133]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "message"),
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
        (OSError(errno.ENOSPC, "No space left on device"), 74, "No space left on device; free disk space, then run"),
    ],
)
def test_exit_status_and_message(command, monkeypatch, capsys, error, status, message):
    def train(*_, **__):
        raise error

    monkeypatch.setattr(train_module, "train", train)
    assert command() == status
    assert message in capsys.readouterr().err


def test_unexpected_error_is_raised(command, monkeypatch):
    def train(*_, **__):
        raise ValueError("Gloo")  # with several processes: another process was lost

    monkeypatch.setattr(train_module, "train", train)
    with pytest.raises(ValueError, match="Gloo"):
        command()


def test_exit_callbacks():
    done = []
    with failure.finish_before_exit(lambda: done.append("saved")):
        failure._run_exit_callbacks()
    failure._run_exit_callbacks()
    assert done == ["saved"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_exit_status_on_full_disk(tmp_path):
    """Neither the failing print nor unflushed buffers change it."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, str(ROOT / "eval.py"), f"--workdir={tmp_path}"], cwd=ROOT, stdout=full, stderr=full
        )
    assert done.returncode == 2


def test_closed_event_loop_is_not_reported(monkeypatch):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda error: reported.append(str(error.exc_value)))
    assert common.run(lambda: None) == 0
    for text in ("Event loop is closed", "the loop is open"):
        sys.unraisablehook(SimpleNamespace(exc_value=RuntimeError(text)))
    assert reported == ["the loop is open"]
