"""Every command refuses an output path that cannot be written before its work, with the same message."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import pytest

from mrcnn_jax.checkpoints import manager
from mrcnn_jax.cli import check, common, convert, report
from mrcnn_jax.cli import main as mrcnn
from mrcnn_jax.config import Config
from mrcnn_jax.errors import ConfigError
from mrcnn_jax.evaluation import evaluate as evaluation
from mrcnn_jax.runtime import files
from mrcnn_jax.training import train as training
from projects.paper_tables import run as ablations

LONG = 300 * "x"


@pytest.mark.parametrize("below", ["", "new/deep/"])
def test_writable_paths(tmp_path: Path, below: str) -> None:
    for path in (tmp_path, tmp_path / below / "new"):
        files.check_output(path, "--output", folder=True)
    (tmp_path / "old.json").touch()
    for name in (f"{below}new.json", "old.json", 200 * "x"):
        files.check_output(tmp_path / name, "--output")
    files.check_output("/dev/null", "--output")
    files.check_output("gs://bucket/run", "--workdir", folder=True)
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]  # nothing was created


def test_cache_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MRCNN_JAX_CACHE", str(tmp_path))
    assert files.cache_root() == tmp_path
    monkeypatch.delenv("MRCNN_JAX_CACHE")
    assert files.cache_root() == Path.home() / ".cache" / "mrcnn_jax"


@pytest.mark.parametrize(
    ("name", "folder", "reason"),
    [
        ("there", False, "{0}/there is a folder: name a file in it"),
        ("file", True, "{0}/file is a file, not a folder"),
        ("file/below", False, "{0}/file is a file, not a folder"),
        ("file/below/deep", True, "{0}/file is a file, not a folder"),
        ("absent/a.html", False, "there is no folder {0}/absent: create it"),
        (LONG, False, "File name too long"),
        (f"absent/{LONG}", True, "a name in it is too long"),
        (250 * "x", False, "a name in it is too long"),  # with the suffix of temporary files
    ],
)
def test_unwritable_paths(tmp_path: Path, name: str, folder: bool, reason: str) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as refused:
        files.check_output(tmp_path / name, "--output", folder=folder, parents=folder)
    path, text = tmp_path / name, reason.format(tmp_path)
    assert str(refused.value) == f"--output={path} cannot be written to: {text}; give another --output"


@pytest.mark.parametrize("name", ["file", "new", "there", "absent/new"])
def test_permissions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "there").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # because root can write everywhere
    with pytest.raises(ConfigError, match="no permission to write to"):
        files.check_output(tmp_path / name, "--output", folder=name == "there")


def never(*_: object, **__: object) -> None:
    raise AssertionError("the work was not refused")


def test_commands_refuse_before_their_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.touch()
    folder.mkdir()
    there = str(folder)
    monkeypatch.setattr(check.sources, "find_files", never)
    monkeypatch.setattr(convert, "_read", never)
    monkeypatch.setattr(report.result_file, "read", never)
    monkeypatch.setattr(manager, "load_variables", never)
    (folder / "a.json").mkdir()
    assert mrcnn(["check", there, f"--output={there}"]) == 2
    assert mrcnn(["convert", "cityscapes", there, f"--output={folder / 'a.json'}"]) == 2
    assert mrcnn(["report", "results.json", "truth.json", f"--images={there}", f"--output={there}"]) == 2
    (folder / "a.npz").mkdir()
    assert mrcnn(["weights", "export", there, str(folder / "a.npz"), "--format=torchvision"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4
    assert all("cannot be written to: " in line and "is a folder: name a file in it; give" in line for line in errors)


def test_training_and_evaluation_refuse_before_they_read_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for module in (training, evaluation):
        monkeypatch.setattr(module, "load_split", never)
    monkeypatch.setattr(training, "validate", lambda config: None)
    for work in (lambda at: training.train(Config(), at), lambda at: evaluation.evaluate_model(Config(), {}, at)):
        with pytest.raises(ConfigError, match=r"--workdir=.*file.* cannot be written to: .*is a file, not a folder"):
            work(tmp_path / "file")


def test_tables_refuse_before_they_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for name in ("pretrain", "run"):
        monkeypatch.setattr(ablations, name, never)
    monkeypatch.setattr("mrcnn_jax.runtime.compilation_cache.enable", never)
    monkeypatch.setattr(sys, "argv", ["paper_tables", "2a", f"--workdir={tmp_path / 'file'}"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("projects.paper_tables", run_name="__main__")
    assert stop.value.code == 2
    assert "cannot be written to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argument", "message"),
    [("--output={0}/file", "is a file, not a folder"), ("--threshold=50", "scores are from 0 to 1; 50 % is 0.5")],
)
def test_prediction_refuses_before_it_loads_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argument: str, message: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(common, "model_source", lambda *_: common.ModelSource("run", never))
    monkeypatch.setattr("mrcnn_jax.runtime.compilation_cache.enable", lambda: None)
    assert mrcnn(["predict", "a.jpg", "--model=run", f"--output={tmp_path / 'out'}", argument.format(tmp_path)]) == 2
    assert message in capsys.readouterr().err
