"""The training loop, with a linear model in place of the network."""

from __future__ import annotations

import dataclasses
import re
from typing import NamedTuple

import jax
import numpy as np
import pytest
from support import linear

from mrcnn_jax.checkpoints.manager import Checkpointer
from mrcnn_jax.config import Config, KeypointHeadConfig, ModelConfig, TrainConfig
from mrcnn_jax.data.categories import Categories, KeypointSchema
from mrcnn_jax.errors import ConfigError, NonFiniteLossError
from mrcnn_jax.training import parallel
from mrcnn_jax.training.loop import nonfinite_loss_error
from mrcnn_jax.training.step import TrainState
from mrcnn_jax.training.train import with_categories

pytestmark = pytest.mark.medium


class Recorder:
    def __init__(self):
        self.losses = {}

    def advance(self, step):
        pass

    def write(self, step, metrics):
        self.losses[step] = metrics.get("loss")

    def close(self):
        pass


class Outcome(NamedTuple):
    state: TrainState
    losses: dict[int, float]


def fit(workdir, *, steps=8, every=3, poisoned=(), max_skipped=0, train_step=None) -> Outcome:
    config = TrainConfig(steps=steps, batch_size=4, checkpoint_every=every, max_skipped=max_skipped)
    recorder = Recorder()
    state = linear.fit(workdir, config, recorder, train_step=train_step, poisoned=poisoned)
    return Outcome(state, recorder.losses)


def saved_steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def test_every_step_is_logged_and_saved_on_time(tmp_path):
    train_step = parallel.CompiledTrainStep(linear.make_step(), jax.local_devices()[:2])
    outcome = fit(tmp_path, train_step=train_step)
    assert int(outcome.state.step) == 8
    assert sorted(outcome.losses) == list(range(1, 9))
    assert saved_steps(tmp_path) == [3, 6, 8]
    assert train_step.traces == 2  # two shapes of images, eight steps


def test_resumed_run_equals_an_uninterrupted_one(tmp_path):
    whole = fit(tmp_path / "whole", steps=8)
    fit(tmp_path / "parts", steps=5)
    parts = fit(tmp_path / "parts", steps=8)
    assert sorted(parts.losses) == [6, 7, 8]
    assert {step: whole.losses[step] for step in parts.losses} == parts.losses
    jax.tree.map(np.testing.assert_array_equal, whole.state, parts.state)


# A bad step right before a checkpoint, right after one, and at the end of the run.
@pytest.mark.parametrize(("bad", "saved"), [(6, [3]), (4, [3]), (8, [3, 6])])
def test_nonfinite_loss_stops_the_run_and_is_not_saved(tmp_path, bad, saved):
    with pytest.raises(NonFiniteLossError) as error:
        fit(tmp_path, poisoned=(bad - 1,))
    assert error.value.step == bad
    assert error.value.image_ids == [f"image {4 * (bad - 1) + slot}" for slot in range(4)]
    assert re.search(rf"step {bad} \(.*\bloss inf\b", str(error.value))
    assert f"image {4 * (bad - 1)}" in str(error.value)
    assert saved_steps(tmp_path) == saved
    with Checkpointer(tmp_path, keep=10) as checkpointer:
        assert np.isfinite(checkpointer.restore_latest(linear.start()).params["weight"])


def test_nonfinite_steps_are_skipped_up_to_a_limit(tmp_path, caplog):
    poisoned = (1, 5)
    first = fit(tmp_path, steps=4, poisoned=poisoned, max_skipped=1)
    assert "step 2 is skipped" in caplog.text
    assert "skipped so far: 1, train.max_skipped=1" in caplog.text
    assert sorted(step for step, loss in first.losses.items() if loss is None) == [2]
    with pytest.raises(NonFiniteLossError, match=r"skipped before it, as train\.max_skipped allows: 1") as error:
        fit(tmp_path, poisoned=poisoned, max_skipped=1)
    assert error.value.step == 6
    assert "train.max_skipped=2 it skips the step" in str(error.value)
    with pytest.raises(ConfigError, match=r"train\.max_skipped=0, but the run has skipped 1"):
        fit(tmp_path, poisoned=poisoned, max_skipped=0)
    assert int(fit(tmp_path, poisoned=poisoned, max_skipped=2).state.skipped) == 2


def test_error_without_a_file_does_not_suggest_replay():
    error = nonfinite_loss_error(3, [7], {"loss": np.inf, "skipped": 1}, "")
    assert "replay" not in str(error)
    assert "replay 'a b.npz'" in str(nonfinite_loss_error(3, [7], {"loss": np.inf, "skipped": 1}, "a b.npz"))


def test_implicit_transfer_in_the_loop_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "place_batch", lambda batch, devices: jax.tree.map(lambda x: x[None], batch))
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        fit(tmp_path)


CATEGORIES = Categories(ids=(3, 8), names=("circle", "square"))


def test_categories_come_from_the_data():
    model = with_categories(Config(), CATEGORIES).model
    assert (model.num_classes, model.category_ids, model.category_names) == (2, (3, 8), ("circle", "square"))
    assert with_categories(Config(model=model), CATEGORIES).model == model


@pytest.mark.parametrize("model", [ModelConfig(num_classes=3), ModelConfig(num_classes=2, category_ids=(3, 9))])
def test_other_categories_are_rejected(model):
    with pytest.raises(ConfigError, match=r"model\.num_classes=.*2 categories of the data, \(3, 8\)"):
        with_categories(Config(model=model), CATEGORIES)


def test_keypoint_names_and_skeleton_come_from_the_data():
    pose = KeypointSchema(("head", "left_hand", "right_hand"), ((0, 1), (0, 2)))
    categories = dataclasses.replace(CATEGORIES, keypoint_schemas=(KeypointSchema(), pose))
    model = ModelConfig(keypoint=KeypointHeadConfig(num_keypoints=3, flip_map=(0, 2, 1)))
    filled = with_categories(Config(model=model), categories).model
    assert (filled.keypoint_names, filled.skeleton) == pose
    assert with_categories(Config(model=filled), categories).model == filled
    assert with_categories(Config(), categories).model.keypoint_names == ()
    with pytest.raises(ConfigError, match=r"the model has 17 keypoints .*, the data 3 \(head, left_hand, right_hand\)"):
        with_categories(Config(model=ModelConfig(keypoint=KeypointHeadConfig())), categories)
