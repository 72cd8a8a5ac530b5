"""A batch worked on in parts makes the step that it makes in one piece, on one device and on two."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytest

from mrcnn_jax.config import BackboneConfig, Config, ConfigError, KeypointHeadConfig, ModelConfig, TrainConfig, validate
from mrcnn_jax.models.rcnn import build_model, init_variables
from mrcnn_jax.structures import Batch, GroundTruth
from mrcnn_jax.training import gradients, parallel
from mrcnn_jax.training.forward import draw_rois, forward_losses
from mrcnn_jax.training.step import TrainState, create_state, make_train_step

IMAGES, SLOTS, SIZE = 4, 5, 64
KEY = jax.random.key(7)
# Gradients and losses are sums of some thousand float32 terms in another order: about a hundred roundings of 6e-8,
# relative to the largest value of an array (small gradients are differences of large ones). An array that is zero but
# for rounding, such as the gradient of a heat map's bias, which its softmax does not feel, counts as one of this size.
ROUNDING, SMALLEST = 1e-5, 1e-2
# Each step is compiled without optimisation, which takes longer than all its runs here.
QUICKLY = {"xla_backend_optimization_level": 0}


class Setup(NamedTuple):
    """A model with its state before the first step."""

    config: Config
    state: TrainState

    def step(self, parts: int, axis_name: str | None = None) -> Any:
        config = dataclasses.replace(self.config, train=TrainConfig(batch_size=IMAGES, accumulate=parts))
        return make_train_step(build_model(config.model), config, OPTIMIZER, lambda step: 0.1, axis_name=axis_name)


OPTIMIZER = optax.sgd(0.1, momentum=0.9)  # after one step the momentum is the gradient


@pytest.fixture(scope="module")
def setup(tiny_model_config) -> Setup:
    return make_setup(tiny_model_config, "gn")


@pytest.fixture(scope="module")
def whole(setup) -> Any:
    """(state, metrics) after a step with the batch in one piece."""
    return one_step(setup, parts=1)


def make_setup(tiny: ModelConfig, norm: Any, *, fixed: bool = False) -> Setup:
    keypoint = KeypointHeadConfig(
        num_keypoints=2,
        flip_map=(1, 0),
        pool_size=4,
        channels=8,
        conv_layers=1,
        normalizer="fixed" if fixed else "visible",
    )
    model = dataclasses.replace(
        tiny,
        num_classes=5,
        # Nothing of the backbone learns but res5: less to compile.
        backbone=dataclasses.replace(tiny.backbone, frozen_stages=4, norm=norm),
        rpn=dataclasses.replace(tiny.rpn, normalizer="batch_size" if fixed else "sampled"),
        keypoint=keypoint,
    )
    variables = init_variables(build_model(model), jax.random.key(0))
    return Setup(Config(model=model), jax.device_get(create_state(OPTIMIZER, variables)))


def make_batch() -> Batch:
    """Four images whose counts differ as much as they can: no objects, one, five, and a slot without an image."""
    rng = np.random.default_rng(3)
    images = rng.integers(0, 100, (IMAGES, SIZE, SIZE, 3), dtype=np.uint8)
    corners = rng.integers(0, 30, (IMAGES, SLOTS, 2))
    boxes = np.concatenate([corners, corners + rng.integers(16, 32, (IMAGES, SLOTS, 2))], axis=-1).astype(np.float32)
    valid = np.arange(SLOTS) < np.array([0, 1, 5, 3])[:, None]
    for image, its_boxes, its_valid in zip(images, boxes.astype(int), valid, strict=True):
        for x0, y0, x1, y1 in its_boxes[its_valid]:
            image[y0:y1, x0:x1] += 100
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    keypoints = np.full((IMAGES, SLOTS, 2, 3), 2, np.float32)
    keypoints[..., :2] = centres[:, :, None] + rng.uniform(-6, 6, (IMAGES, SLOTS, 2, 2))
    classes = np.where(valid, rng.integers(1, 6, valid.shape), 0).astype(np.int32)
    masks = rng.integers(0, 2, (IMAGES, SLOTS, 8, 8), dtype=np.uint8)
    truth = GroundTruth(boxes, classes, masks, boxes, keypoints, valid)
    sizes = np.full((IMAGES, 2), SIZE, np.int32)
    return Batch(images, sizes, np.arange(20, 20 + IMAGES, dtype=np.int32), np.arange(IMAGES) < 3, truth)


def one_step(setup: Setup, parts: int) -> Any:
    return jax.device_get(jax.jit(setup.step(parts), compiler_options=QUICKLY)(setup.state, make_batch(), KEY))


def test_counts_of_the_images_differ(whole):
    """Otherwise a mean of the parts' means would pass."""
    _, metrics = whole
    assert int(metrics["num_rois"]) == 48  # of three images
    assert 0 < int(metrics["num_positive_rois"]) < 12
    assert metrics["loss_keypoint"] > 0
    assert metrics["loss_mask"] > 0


def test_parts_make_the_step_of_the_whole(setup, whole):
    assert_equal_steps(one_step(setup, parts=2), whole)


def test_loop_of_parts_makes_the_step_of_the_whole(setup, whole, monkeypatch):
    """As on accelerators, where the parts are a loop in the compiled program; here each of them is one image."""
    monkeypatch.setattr(gradients, "_loop", jax.lax.scan)
    assert_equal_steps(one_step(setup, parts=4), whole)


@pytest.mark.slow
def test_counts_known_beforehand(tiny_model_config):
    setup = make_setup(tiny_model_config, "gn", fixed=True)
    assert_equal_steps(one_step(setup, parts=2), one_step(setup, parts=1))


@pytest.mark.slow
def test_parts_on_two_devices_make_the_step_of_the_whole(setup, whole):
    devices = jax.local_devices()[:2]
    step = parallel.compile_train_step(setup.step(2, parallel.AXIS_NAME), devices)
    state, key = parallel.replicate((setup.state, KEY), devices)
    with without_optimization():
        found = step(state, parallel.place_batch(make_batch(), devices), key)
    assert_equal_steps(found, whole)


@contextlib.contextmanager
def without_optimization() -> Iterator[None]:
    """For `pmap`, which takes no options of the compiler."""
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


def assert_equal_steps(actual: Any, expected: Any) -> None:
    """States and metrics, each array relative to its largest value."""

    def check(path: Any, ours: Any, other: Any) -> None:
        assert np.abs(ours - other).max() <= ROUNDING * max(np.abs(other).max(), SMALLEST), jax.tree_util.keystr(path)

    actual, expected = (
        jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(x)) for x in (actual, expected)
    )
    jax.tree_util.tree_map_with_path(check, actual, expected)


@pytest.mark.slow
def test_statistics_go_from_part_to_part(tiny_model_config):
    """Batch norm sees batches of the parts' size: after two parts it has its running statistics from two batches."""
    setup = make_setup(tiny_model_config, "bn")
    batch = make_batch()._replace(valid=np.ones(IMAGES, bool))
    state, _ = jax.jit(setup.step(2), compiler_options=QUICKLY)(setup.state, batch, KEY)

    model = build_model(setup.config.model)
    variables = {"params": setup.state.params, **setup.state.model_state}
    keys = jax.random.split(KEY, IMAGES // 2)  # statistics of the backbone know no noise

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def after(statistics, half):
        return forward_losses(model, setup.config.model, {**variables, **statistics}, half, keys)[1][0]

    statistics = {}
    for half in (slice(0, 2), slice(2, 4)):
        statistics = after(statistics, jax.tree.map(lambda x, half=half: x[half], batch))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), state.model_state, statistics)
    assert np.abs(statistics["batch_stats"]["backbone"]["res5"]["block0"]["norm1"]["norm"]["mean"]).max() > 1e-3


def test_heads_are_not_part_of_the_first_pass(tiny_model_config):
    """The program that draws RoIs and counts holds no weights of the heads, not even as unused arguments."""
    setup = make_setup(tiny_model_config, "sync_bn")
    model, params, batch = build_model(setup.config.model), setup.state.params, make_batch()
    keys = jax.random.split(KEY, IMAGES)

    def shapes(function) -> set[tuple[int, ...]]:
        def part(params, batch, keys):
            return function(model, setup.config.model, {"params": params, **setup.state.model_state}, batch, keys)

        def in_a_loop(params, batch, keys):
            return gradients._loop(lambda _, x: (None, part(params, *x)), None, gradients._cut((batch, keys), 2))

        text = jax.jit(in_a_loop).lower(params, batch, keys).as_text()
        main = text[text.index("@main(") : text.index("->", text.index("@main("))]
        return {tuple(map(int, shape.split("x"))) for shape in re.findall(r"tensor<([0-9x]+)xf32>", main)}

    heads = {
        leaf.shape for name in ("box_head", "mask_head", "keypoint_head") for leaf in jax.tree.leaves(params[name])
    }
    rest = {leaf.shape for name in ("backbone", "fpn", "rpn_head") for leaf in jax.tree.leaves(params[name])}
    own = {shape for shape in heads - rest if len(shape) > 1}
    assert len(own) >= 5
    assert own <= shapes(forward_losses)
    drawing = shapes(draw_rois)
    assert not own & drawing
    assert params["rpn_head"]["conv1"]["kernel"].shape in drawing


def test_batches_that_cannot_be_cut():
    scratch = ModelConfig(backbone=BackboneConfig(norm="gn", frozen_stages=0))
    config = Config(model=scratch, train=TrainConfig(batch_size=8, accumulate=3))
    with pytest.raises(ConfigError, match=r"train\.accumulate=3.*train\.batch_size=8"):
        validate(config)
    with pytest.raises(ConfigError, match=r"train\.accumulate=0"):
        validate(dataclasses.replace(config, train=TrainConfig(accumulate=0)))
    with pytest.raises(ConfigError, match=r"train\.accumulate=4.*8 images.*4 devices.*divisor of 2"):
        parallel.check_divisible(8, 4, parts=4)
    parallel.check_divisible(16, 4, parts=4)
