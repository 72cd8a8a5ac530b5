"""RoI pooling in the model: the configured operator is used and has finite gradients."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.config import ModelConfig, RoIConfig
from mrcnn_jax.models.mask_rcnn import build_model, init_variables, pool_rois
from mrcnn_jax.ops.roi.pooling import multilevel_roi_pooling
from mrcnn_jax.structures import Batch, GroundTruth
from mrcnn_jax.training.forward import forward_losses

pytestmark = pytest.mark.medium

BOXES = np.float32([[[3, 5, 40, 33], [10, 2, 13, 60]], [[0, 0, 64, 64], [-9, 30, 20, 90]]])


@pytest.mark.parametrize(
    ("features", "pooling", "reduce"),
    [("fpn", "align", "average"), ("fpn", "warp", "max"), ("fpn", "pool", "average"), ("c4", "pool", "max")],
)
def test_pool_rois_uses_the_configured_operator(features, pooling, reduce):
    strides = (4, 8, 16, 32) if features == "fpn" else (16,)
    shapes = [64 // s for s in strides] + [1] * (features == "fpn")  # P6 is not used
    maps = [np.random.default_rng(n).standard_normal((2, n, n, 2)).astype(np.float32) for n in shapes]
    config = ModelConfig(features=features, roi=RoIConfig(sampling_ratio=2, pooling=pooling, reduce=reduce))
    operator = functools.partial(multilevel_roi_pooling, config=config.roi, strides=strides, output_size=3)
    found = jax.jit(functools.partial(pool_rois, config, size=3))(maps, boxes=BOXES).reshape(2, 2, 3, 3, 2)
    expected = jax.jit(operator)([m[0] for m in maps[: len(strides)]], BOXES[0])
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-5)


@pytest.mark.slow  # a whole network; gradients of the operators have tests of their own
def test_gradients_through_a_maximum_are_finite(model_config):
    roi = dataclasses.replace(model_config.roi, pooling="pool", reduce="max")
    backbone = dataclasses.replace(model_config.backbone, frozen_stages=4)  # less to compile
    config = dataclasses.replace(model_config, roi=roi, backbone=backbone)
    model = build_model(config)
    variables = init_variables(model, jax.random.key(0))
    boxes = np.float32([[[8, 8, 40, 30], [0, 0, 0, 0]]])
    valid = np.array([[True, False]])
    truth = GroundTruth(
        boxes, np.int32([[1, 0]]), np.ones((1, 2, 8, 8), np.uint8), boxes, np.zeros((1, 2, 0, 3), np.float32), valid
    )
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    batch = Batch(images, np.int32([[64, 64]]), np.int32([1]), np.ones(1, bool), truth)

    def loss(params, batch, keys):
        parts, _ = forward_losses(model, {**variables, "params": params}, batch, keys)
        return sum(jnp.sum(total) for total, _ in parts.values())

    step = jax.jit(jax.value_and_grad(loss))
    value, gradient = step(variables["params"], batch, jax.random.split(jax.random.key(1), 1))
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient["box_head"]))
