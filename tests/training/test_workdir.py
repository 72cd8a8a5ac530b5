"""The folder of a run: the configuration that belongs to it."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from mrcnn_jax.config import Config, ConfigError, apply_overrides
from mrcnn_jax.training.workdir import claim_workdir, differing_fields, read_config


def save_one(workdir: Path) -> None:
    """A folder that looks like a complete checkpoint."""
    (workdir / "checkpoints" / "1").mkdir()


def test_other_configuration_is_refused_by_the_names_of_its_fields(tmp_path):
    config = Config()
    claim_workdir(tmp_path, config)
    save_one(tmp_path)
    other = apply_overrides(config, ["optimizer.learning_rate=0.5", "model.box.hidden=7", "train.steps=5"])
    with pytest.raises(ConfigError) as error:
        claim_workdir(tmp_path, other)
    message = str(error.value)
    assert "optimizer.learning_rate was 0.02, is 0.5" in message
    assert "model.box.hidden was 1024, is 7" in message
    assert "train.steps" not in message
    with pytest.raises(ConfigError, match=r"model\.mask\.pool_size was 14, is None"):
        claim_workdir(tmp_path, dataclasses.replace(config, model=dataclasses.replace(config.model, mask=None)))
    assert read_config(tmp_path) == config


@pytest.mark.parametrize(
    "override",
    [
        "train.steps=5",
        "train.log_every=1",
        "eval.overlays=0",
        "data.eval.images=x",
        "data.workers=2",
        "data.on_corrupt=stop",
    ],
)
def test_length_logging_and_evaluation_may_change(tmp_path, override):
    claim_workdir(tmp_path, Config())
    save_one(tmp_path)
    changed = apply_overrides(Config(), [override])
    claim_workdir(tmp_path, changed)
    assert read_config(tmp_path) == changed
    assert differing_fields(Config(), changed) == [override.partition("=")[0]]


def test_nothing_binds_before_the_first_checkpoint(tmp_path):
    claim_workdir(tmp_path, Config())
    changed = apply_overrides(Config(), ["optimizer.learning_rate=0.5"])
    claim_workdir(tmp_path, changed)
    assert read_config(tmp_path) == changed


def test_readme_is_written_at_the_beginning_and_tells_the_command(tmp_path, monkeypatch):
    workdir = tmp_path / "my run"
    monkeypatch.setattr(sys, "argv", ["train.py", "--config=a b.py", "--config.init="])
    claim_workdir(workdir, Config(name="first"))
    text = (workdir / "README.md").read_text()
    assert text.startswith("# first\n")
    assert "\npython train.py '--config=a b.py' --config.init=\n" in text
    assert f"python eval.py --workdir='{workdir}' --report" in text
    assert f"from_checkpoint('{workdir}')" in text
    claim_workdir(workdir, Config(name="second"))  # nothing was kept of the first
    assert (workdir / "README.md").read_text().startswith("# second\n")


def test_readme_of_a_run_that_goes_on_belongs_to_the_people(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ipython"])
    claim_workdir(tmp_path, Config())
    assert "It was begun with" not in (tmp_path / "README.md").read_text()
    save_one(tmp_path)
    (tmp_path / "README.md").write_text("my notes")
    claim_workdir(tmp_path, Config())
    assert (tmp_path / "README.md").read_text() == "my notes"
    (tmp_path / "README.md").unlink()  # as in runs of an earlier version
    claim_workdir(tmp_path, Config())
    assert "evaluations.jsonl" in (tmp_path / "README.md").read_text()
