"""The folder of a run: the configuration that belongs to it."""

from __future__ import annotations

import dataclasses
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
