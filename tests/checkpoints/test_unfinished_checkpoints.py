"""Saves that fail: the process is killed at any moment, the disk is full, the folder is not writable."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoint_states import assert_same, make_state
from support.launch import launch, write_recipe

from mrcnn_jax.checkpoints.manager import Checkpointer, load_variables, save_best
from mrcnn_jax.checkpoints.workdir import prepare_workdir
from mrcnn_jax.cli import common
from mrcnn_jax.config import Config
from mrcnn_jax.errors import CheckpointError, ConfigError

pytestmark = pytest.mark.medium

ROOT = Path(__file__).resolve().parents[2]


class Snapshots:
    """Copies a folder before every file operation of Python in it, and repeatedly in a thread.

    A copy equals what SIGKILL would have left at that moment, unless the folder changed during copying.
    """

    def __init__(self, folder: Path, to: Path):
        self.folder, self.to, self.taken = folder, to, 0
        self._done, self._lock = threading.Event(), threading.Lock()
        self._copying = threading.local()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Snapshots:
        sys.addaudithook(self._hook)  # cannot be removed; does nothing after exit
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._done.is_set() or getattr(self._copying, "now", False) or event not in OPERATIONS:
            return
        if any(isinstance(name, (str, os.PathLike)) and str(self.folder) in str(name) for name in arguments):
            self._take()

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self._take()

    def _take(self) -> None:
        with self._lock:
            self._copying.now = True
            target = self.to / str(self.taken)
            try:
                before = listing(self.folder)
                shutil.copytree(self.folder, target)
                if listing(self.folder) == before:
                    self.taken += 1
                    return
            except (shutil.Error, OSError):
                pass  # a file was removed during copying
            finally:
                self._copying.now = False
            shutil.rmtree(target, ignore_errors=True)


OPERATIONS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree", "os.link", "os.truncate"}


def listing(folder: Path) -> list[tuple[str, int]]:
    return sorted(
        (root + "/" + name, os.path.getsize(root + "/" + name)) for root, _, n in os.walk(folder) for name in n
    )


def test_killed_at_any_moment_of_a_save(tmp_path):
    """At any moment while checkpoint 3 is written and 1 removed, the exact state of 2 or 3 is restored."""
    workdir = tmp_path / "run"
    prepare_workdir(workdir, Config())
    with Checkpointer(workdir, keep=2) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, make_state(step, 50_000))
        checkpointer.wait()
        with Snapshots(workdir, tmp_path / "copies") as snapshots:
            checkpointer.save(3, make_state(3, 50_000))
            checkpointer.wait()
    distinct = {
        str(listing(tmp_path / "copies" / str(n))).replace(f"copies/{n}", ""): n for n in range(snapshots.taken)
    }
    numbers = list(distinct.values())
    assert len(numbers) >= 15
    numbers = numbers[:: -(-len(numbers) // 30)]
    found = [latest_of(tmp_path / "copies" / str(number)) for number in numbers]
    assert found == sorted(found)
    assert set(found) == {2, 3}


def latest_of(workdir: Path) -> int:
    """The step that a run resumes from; its state is compared exactly."""
    _, variables = load_variables(workdir)
    with Checkpointer(workdir, keep=2) as checkpointer:
        state = checkpointer.restore_latest(make_state(0, 50_000))
        step = int(state.step)
        assert_same(state, make_state(step, 50_000))
        np.testing.assert_array_equal(variables["params"]["head"]["kernel"], state.params["head"]["kernel"])
        assert not (workdir / "corrupt").exists()
        checkpointer.save(4, make_state(4, 50_000))  # despite unfinished checkpoints
        checkpointer.wait()
        assert int(checkpointer.restore_latest(make_state(0, 50_000)).step) == 4
    return step


def test_full_disk(tmp_path):
    """In a process with a limit of the file size: the error, and the remaining checkpoints."""
    script = f"""
        import resource, sys
        sys.path.insert(0, {str(ROOT / "tests")!r})
        from support.checkpoint_states import assert_same, make_state
        from mrcnn_jax.checkpoints.manager import Checkpointer
        from mrcnn_jax.checkpoints.storage import CheckpointError

        def limit(size):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

        def expect(function, *arguments):
            try:
                function(*arguments)
            except CheckpointError as error:
                message = str(error)
                assert message.startswith("checkpoint 2 could not be written to " + sys.argv[1]), message
                assert "File too large. The last complete one is of step 1. Free disk space" in message, message
                assert (error.step, error.last, error.exit_status) == (2, 1, 74)
                return
            raise AssertionError("no error")

        template = make_state(0, 500_000)
        for report in ("wait", "save", "end"):
            checkpointer = Checkpointer(sys.argv[1], keep=2)
            checkpointer.save(1, make_state(1, 500_000))
            checkpointer.wait()
            limit(1 << 20)
            checkpointer.save(2, make_state(2, 500_000))
            if report == "wait":
                expect(checkpointer.wait)
            elif report == "save":
                expect(checkpointer.save, 3, make_state(3, 500_000))
            else:
                expect(checkpointer.__exit__, None, None, None)
            checkpointer.__exit__(RuntimeError, None, None)
            limit(resource.RLIM_INFINITY)
            with Checkpointer(sys.argv[1], keep=2) as checkpointer:
                assert_same(checkpointer.restore_latest(template), make_state(1, 500_000))
        with Checkpointer(sys.argv[1], keep=2) as checkpointer:
            checkpointer.save(2, make_state(2, 500_000))
            checkpointer.wait()
            assert_same(checkpointer.restore_latest(template), make_state(2, 500_000))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]


@pytest.mark.slow
def test_command_exits_with_74_and_resumes_when_there_is_space(finished_run, tmp_path):
    """From step 5 on, the limit of the file size is smaller than the parameters."""
    recipe, workdir = write_recipe(finished_run.config, tmp_path / "recipe.py"), tmp_path / "run"
    prelude = f"""
import os, resource, time
from mrcnn_jax.training.logs.metrics_log import MetricsLog
log_step = MetricsLog.step
def step(self, number, metrics):
    log_step(self, number, metrics)
    if number == 5:
        while not os.path.exists({str(workdir / "checkpoints" / "3")!r}):
            time.sleep(0.1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
MetricsLog.step = step
"""
    train = ["train.py", f"--config={recipe}", f"--workdir={workdir}"]
    with launch(train, tmp_path / "first", devices=2, prelude=prelude) as job:
        assert job.wait() == [74]
        said = job.output()  # other lines may be from the failed save
    assert f"error: checkpoint 6 could not be written to {workdir}/checkpoints: File too large." in said
    assert "The last complete one is of step 3. Free disk space" in said
    assert "then run the same command to continue" in said
    with launch(train, tmp_path / "second", devices=2) as job:
        assert "step 3 of 10" in job.succeed()
    _, variables = load_variables(workdir)
    assert_same(variables["params"], load_variables(finished_run.workdir)[1]["params"])


def test_disk_space_is_checked_before_writing(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        checkpointer.save(1, make_state(1, 1_000_000))
        checkpointer.wait()
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=3_000_000))
        with pytest.raises(CheckpointError, match=r"needs 8\.0 MB, but only 3\.0 MB are free\. The last .* step 1"):
            checkpointer.save(2, make_state(2, 1_000_000))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]


def test_error_of_a_save_does_not_hide_the_error_of_the_run(tmp_path, monkeypatch, caplog):
    checkpointer = Checkpointer(tmp_path, keep=2)
    monkeypatch.setattr(checkpointer._manager, "wait_until_finished", fail_once())
    checkpointer.__exit__(ZeroDivisionError, None, None)
    assert "No space left on device. There is no complete one yet" in caplog.text


def fail_once():
    errors = [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))]

    def wait() -> None:
        if errors:
            raise errors.pop()

    return wait


def test_folders_that_are_not_writable(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/run.* cannot be written to"):
        prepare_workdir(tmp_path / "file" / "run", Config())
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ConfigError, match=r"run/checkpoints cannot be written to \(it is read-only"):
        prepare_workdir(tmp_path / "run", Config())
    with pytest.raises(ConfigError, match="use another --workdir"):
        Checkpointer(tmp_path / "run", keep=1)


@pytest.mark.parametrize(("number", "status"), [(errno.EROFS, 2), (errno.EACCES, 2), (errno.ENOSPC, 74)])
def test_errors_while_a_workdir_is_prepared(tmp_path, monkeypatch, capsys, number, status):
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("mrcnn_jax.runtime.files.write_text", refuse)
    assert common.run(lambda: prepare_workdir(tmp_path / "run", Config())) == status
    assert os.strerror(number) in capsys.readouterr().err


def test_previous_best_is_kept_until_the_new_one_is_complete(tmp_path, monkeypatch):
    prepare_workdir(tmp_path, Config())
    save_best(tmp_path, 4, {"params": make_state(4).params, **make_state(4).model_state})

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("orbax.checkpoint.CheckpointManager.save", fail)
        with pytest.raises(CheckpointError, match=r"checkpoint 6 could not be written to .*best: No space left"):
            save_best(tmp_path, 6, {"params": make_state(6).params})
    _, variables = load_variables(tmp_path, "best")
    assert_same(variables, {"params": make_state(4).params, **make_state(4).model_state})
