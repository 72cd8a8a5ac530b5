"""The work directory of a run: recorded configuration and data, damaged files, and README.md."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from mrcnn_jax.checkpoints.manager import load_variables
from mrcnn_jax.checkpoints.workdir import differing_fields, prepare_workdir, read_config
from mrcnn_jax.config import Config, apply_overrides
from mrcnn_jax.errors import ConfigError


def save_one(workdir: Path) -> None:
    """Create a folder that counts as a complete checkpoint."""
    (workdir / "checkpoints" / "1").mkdir()


def test_other_configuration_is_refused_and_fields_are_named(tmp_path):
    config = Config()
    prepare_workdir(tmp_path, config)
    save_one(tmp_path)
    other = apply_overrides(config, ["optimizer.learning_rate=0.5", "model.box.hidden=7", "train.steps=5"])
    with pytest.raises(ConfigError) as error:
        prepare_workdir(tmp_path, other)
    message = str(error.value)
    assert "optimizer.learning_rate was 0.02, is 0.5" in message
    assert "model.box.hidden was 1024, is 7" in message
    assert "train.steps" not in message
    with pytest.raises(ConfigError, match=r"model\.mask\.pool_size was 14, is None"):
        prepare_workdir(tmp_path, dataclasses.replace(config, model=dataclasses.replace(config.model, mask=None)))
    assert read_config(tmp_path) == config


@pytest.mark.parametrize(
    "override",
    [
        "train.steps=5",
        "train.log_every=1",
        "eval.overlays=0",
        "data.eval.images=x",
        "data.root=/elsewhere",
        "data.cache_dir=/elsewhere",
        "data.train.annotations=moved.json",
        "data.train.images=moved",
        "data.workers=2",
        "data.on_corrupt=stop",
    ],
)
def test_length_logging_and_evaluation_may_change(tmp_path, override):
    prepare_workdir(tmp_path, Config())
    save_one(tmp_path)
    changed = apply_overrides(Config(), [override])
    prepare_workdir(tmp_path, changed)
    assert read_config(tmp_path) == changed
    assert differing_fields(Config(), changed) == [override.partition("=")[0]]


CONTENT = {"images": 3, "SHA-256 of the annotation file": "0123", "SHA-256 of the image files": "4567"}


def test_other_training_data_is_refused_and_paths_may_change(tmp_path):
    prepare_workdir(tmp_path, Config(), CONTENT)
    save_one(tmp_path)
    prepare_workdir(tmp_path, apply_overrides(Config(), ["data.root=/elsewhere"]), CONTENT)
    with pytest.raises(ConfigError) as error:
        prepare_workdir(tmp_path, Config(), {**CONTENT, "images": 2, "SHA-256 of the annotation file": "89ab"})
    message = str(error.value)
    assert "other training data: images was 3, is 2; " in message
    assert 'annotation file was "0123", is "89ab"' in message
    assert "image files" not in message
    assert f"init={tmp_path}" in message
    prepare_workdir(tmp_path, Config(), CONTENT)  # the record is unchanged


def test_data_may_change_before_the_first_checkpoint(tmp_path):
    """And in runs of earlier versions, which have no data.json."""
    prepare_workdir(tmp_path, Config(), CONTENT)
    prepare_workdir(tmp_path, Config(), {**CONTENT, "images": 2})
    save_one(tmp_path)
    with pytest.raises(ConfigError, match="images was 2, is 3"):
        prepare_workdir(tmp_path, Config(), CONTENT)
    (tmp_path / "data.json").unlink()
    prepare_workdir(tmp_path, Config(), CONTENT)
    with pytest.raises(ConfigError, match="images was 3, is 2"):
        prepare_workdir(tmp_path, Config(), {**CONTENT, "images": 2})


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b'{"name": "a', b"\xff\xfe", b"[]", b'"a"'])
@pytest.mark.parametrize("name", ["config.json", "data.json"])
def test_damaged_files_are_named_with_advice(tmp_path, name, content):
    prepare_workdir(tmp_path, Config(), CONTENT)
    save_one(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{tmp_path / name} is damaged \(.*\)\. Replace it"):
        prepare_workdir(tmp_path, Config(), CONTENT)
    assert (tmp_path / name).read_bytes() == content
    if name == "config.json":
        with pytest.raises(ConfigError, match="is damaged"):
            load_variables(tmp_path)


def test_invalid_fields_are_named_with_the_file(tmp_path):
    """As of another version, or after manual changes."""
    for text in ('{"train": {"stepz": 3}}', '{"train": {"steps": 0}}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ConfigError, match=rf"^{tmp_path}/config\.json: .*config\.train\.step"):
            read_config(tmp_path)


def test_checkpoints_without_a_configuration_are_refused(tmp_path):
    prepare_workdir(tmp_path, Config())
    save_one(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"config\.json is missing, but there are checkpoints"):
        prepare_workdir(tmp_path, Config())


def test_configuration_may_change_before_the_first_checkpoint(tmp_path):
    prepare_workdir(tmp_path, Config())
    changed = apply_overrides(Config(), ["optimizer.learning_rate=0.5"])
    prepare_workdir(tmp_path, changed)
    assert read_config(tmp_path) == changed


@pytest.mark.parametrize(
    ("start", "command"), [(["train.py"], "python train.py"), (["bin/mrcnn", "train"], "mrcnn train")]
)
def test_readme_is_written_at_the_start_with_the_command(start, command, tmp_path, monkeypatch):
    workdir = tmp_path / "my run"
    monkeypatch.setattr(sys, "argv", [*start, "--config=a b.py", "--config.init="])
    prepare_workdir(workdir, Config(name="first"))
    text = (workdir / "README.md").read_text()
    assert text.startswith("# first\n")
    assert f"\n{command} '--config=a b.py' --config.init=\n" in text
    assert f"mrcnn eval --workdir='{workdir}' --report" in text
    assert f"from_checkpoint('{workdir}')" in text
    prepare_workdir(workdir, Config(name="second"))  # there was no checkpoint
    assert (workdir / "README.md").read_text().startswith("# second\n")


def test_readme_of_a_resumed_run_is_not_overwritten(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ipython"])
    prepare_workdir(tmp_path, Config())
    assert "It was started with" not in (tmp_path / "README.md").read_text()
    save_one(tmp_path)
    (tmp_path / "README.md").write_text("my notes")
    prepare_workdir(tmp_path, Config())
    assert (tmp_path / "README.md").read_text() == "my notes"
    (tmp_path / "README.md").unlink()  # as in runs of an earlier version
    prepare_workdir(tmp_path, Config())
    assert "evaluations.jsonl" in (tmp_path / "README.md").read_text()
