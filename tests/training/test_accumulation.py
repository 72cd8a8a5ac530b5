"""Gradient accumulation: micro-batches give the step of the whole batch. Several devices: `test_devices.py`."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import numpy as np
import pytest
from support import programs
from support.programs import IMAGES, make_config, make_state, make_step

from mrcnn_jax.config import BackboneConfig, Config, ModelConfig, TrainConfig, validate
from mrcnn_jax.errors import ConfigError
from mrcnn_jax.models.mask_rcnn import build_model
from mrcnn_jax.structures import Batch
from mrcnn_jax.training import gradients, parallel
from mrcnn_jax.training.forward import sample_batch_rois
from mrcnn_jax.training.step import TrainState

pytestmark = pytest.mark.medium

KEY = jax.random.key(7)
# Gradients and losses are sums of some thousand float32 terms in another order: about a hundred roundings of 6e-8,
# relative to the largest value of an array (small gradients are differences of large ones). An array that is zero but
# for rounding, such as the gradient of a heat map's bias, which its softmax does not feel, counts as one of this size.
ROUNDING, SMALLEST = 1e-5, 1e-2


@pytest.fixture(scope="module")
def whole() -> Any:
    """(state, metrics) after a step without accumulation."""
    program = programs.one_device()
    return jax.device_get(program.step(program.state, make_batch(), KEY))


def make_batch() -> Batch:
    """Four images whose counts differ as much as they can: no objects, one, five, and a slot without an image."""
    return programs.make_batch((0, 1, 5), seed=3)


def one_step(config: Config, state: TrainState, accumulate: int) -> Any:
    return jax.device_get(jax.jit(make_step(config, accumulate))(state, make_batch(), KEY))


def test_counts_of_the_images_differ(whole):
    """Otherwise a mean of the means of micro-batches would pass."""
    _, metrics = whole
    assert int(metrics["num_rois"]) == 48  # of three images
    assert 0 < int(metrics["num_positive_rois"]) < 12
    assert metrics["loss_keypoint"] > 0
    assert metrics["loss_mask"] > 0


def test_scan_over_micro_batches_equals_the_whole_batch(whole, monkeypatch):
    """As on accelerators, where the scan is not unrolled; with one image per micro-batch."""
    monkeypatch.setattr(gradients, "_scan", jax.lax.scan)
    assert_equal_steps(one_step(make_config(), programs.one_device().state, accumulate=4), whole)


@pytest.mark.slow
def test_fixed_normalizers_count_images():
    """So that those of micro-batches add up to that of the batch."""
    config, batch = make_config(fixed=True), make_batch()
    state, model = make_state(config), build_model(config.model)
    variables, keys = {"params": state.params, **state.model_state}, jax.random.split(KEY, IMAGES)
    _, counts = jax.jit(functools.partial(sample_batch_rois, model))(variables, batch, keys)
    assert counts["loss_rpn_class"] == counts["loss_rpn_box"] == 3 * config.model.rpn.batch_size
    keypoints, roi = config.model.keypoint, config.model.roi
    assert counts["loss_keypoint"] == 3 * keypoints.num_keypoints * roi.batch_size * roi.positive_fraction


def assert_equal_steps(actual: Any, expected: Any) -> None:
    """States and metrics, each array relative to its largest value."""

    def check(path: Any, ours: Any, other: Any) -> None:
        assert np.abs(ours - other).max() <= ROUNDING * max(np.abs(other).max(), SMALLEST), jax.tree_util.keystr(path)

    actual, expected = (
        jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(x)) for x in (actual, expected)
    )
    jax.tree_util.tree_map_with_path(check, actual, expected)


def test_heads_are_not_part_of_the_first_pass():
    """The program that samples RoIs has no weights of the heads, not even as unused arguments."""
    config, start = make_config(), programs.one_device().state
    model, params, inputs = build_model(config.model), start.params, (make_batch(), jax.random.split(KEY, IMAGES))

    def sample(params, inputs):
        variables = {"params": params, **start.model_state}
        split = gradients._split(inputs, 2)
        return gradients._scan(lambda _, x: (None, sample_batch_rois(model, variables, *x)), None, split)

    text = jax.jit(sample).lower(params, inputs).as_text()
    main = text[text.index("@main(") : text.index("->", text.index("@main("))]
    argument_shapes = {tuple(map(int, shape.split("x"))) for shape in re.findall(r"tensor<([0-9x]+)xf32>", main)}
    heads = {
        leaf.shape for name in ("box_head", "mask_head", "keypoint_head") for leaf in jax.tree.leaves(params[name])
    }
    rest = {leaf.shape for name in ("backbone", "fpn", "rpn_head") for leaf in jax.tree.leaves(params[name])}
    own = {shape for shape in heads - rest if len(shape) > 1}
    assert len(own) >= 5
    assert not own & argument_shapes
    assert {leaf.shape for leaf in jax.tree.leaves(params["rpn_head"]) if leaf.ndim > 1} <= argument_shapes


def test_indivisible_batches_are_rejected():
    scratch = ModelConfig(backbone=BackboneConfig(norm="gn", frozen_stages=0))
    config = Config(model=scratch, train=TrainConfig(batch_size=8, accumulate=3))
    with pytest.raises(ConfigError, match=r"train\.accumulate=3.*train\.batch_size=8"):
        validate(config)
    with pytest.raises(ConfigError, match=r"train\.accumulate=4.* 2 images.*batch_size=8 on 4 devices.*divisor of 2"):
        parallel.check_divisible(8, 4, accumulate=4)
    parallel.check_divisible(16, 4, accumulate=4)
