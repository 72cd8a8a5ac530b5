"""Networks of all recipes, and a training step and inference of a smaller version of each."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from mrcnn_jax.config import Config, load_config
from mrcnn_jax.inference.detect import detect
from mrcnn_jax.models import efficientnet, resnet
from mrcnn_jax.models.mask_rcnn import build_model, variable_shapes
from mrcnn_jax.ops.roi import kernels
from mrcnn_jax.structures import Batch, Detections, GroundTruth
from mrcnn_jax.training.optimizer import frozen_paths, make_optimizer, make_schedule
from mrcnn_jax.training.step import TrainState, create_state, make_train_step

pytestmark = pytest.mark.medium

RECIPES = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.py"))
FAST = ("keypoint_mask_rcnn_r50_fpn", "mask_rcnn_r50_c4_1x")  # all heads, and both kinds of features
SIZE, DETECTIONS, POOL = 64, 10, 4
# Number of classes, those of COCO unless the recipe has a synthetic dataset; number of parameters, equal to that in
# Detectron2's model zoo where it has the network; heads besides RPN and box head.
NETWORKS = {
    "faster_rcnn_r50_fpn_1x": (80, 41_699_936, ""),
    "keypoint_mask_rcnn_r50_fpn": (1, 61_756_135, "mask_head keypoint_head"),
    "keypoint_rcnn_r101_fpn_3x": (1, 78_073_062, "keypoint_head"),
    "keypoint_rcnn_r50_fpn_1x": (1, 59_133_158, "keypoint_head"),
    "keypoint_rcnn_r50_fpn_3x": (1, 59_133_158, "keypoint_head"),
    "light_mask_rcnn": (80, 4_278_288, "mask_head"),
    "mask_rcnn_r101_fpn_2x": (80, 63_283_120, "mask_head"),
    "mask_rcnn_r101_fpn_3x": (80, 63_283_120, "mask_head"),
    "mask_rcnn_r50_c4_1x": (80, 35_909_612, "mask_head"),
    "mask_rcnn_r50_dc5_1x": (80, 172_353_516, "mask_head"),
    "mask_rcnn_r50_fpn_1x": (80, 44_343_216, "mask_head"),
    "mask_rcnn_r50_fpn_3x": (80, 44_343_216, "mask_head"),
    "mask_rcnn_r50_fpn_gn_3x": (80, 45_711_152, "mask_head"),
    "mask_rcnn_r50_fpn_lsj": (80, 46_301_232, "mask_head"),
    "mask_rcnn_r50_fpn_syncbn_3x": (80, 45_711_152, "mask_head"),
    "mask_rcnn_r50_fpn_v2": (80, 46_301_232, "mask_head"),
    "mask_rcnn_x101_32x8d_fpn_3x": (80, 107_427_760, "mask_head"),
    "mask_rcnn_x101_64x4d_fpn_1x": (80, 102_091_696, "mask_head"),
    "nuclei": (1, 4_051_077, "mask_head"),
    "overfit": (5, 4_055_502, "mask_head"),
    "people": (1, 4_051_014, "keypoint_head"),
    "quickstart": (5, 4_055_502, "mask_head"),
}


def small(config: Config) -> Config:
    """A small version of a recipe, with the same types of layers. Recipes that differ only in sizes become equal."""
    model = config.model
    name = model.backbone.name.replace("resnet101", "resnet50")
    groups = {"groups": 4, "width_per_group": 8} if model.backbone.groups > 1 else {}
    sizes = ((8.0,), (16.0,), (32.0,), (64.0,), (128.0,)) if model.features == "fpn" else ((8.0, 16.0, 32.0),)
    proposals = {f"{when}_nms_top_k_{split}": 32 for when in ("pre", "post") for split in ("train", "test")}
    model = dataclasses.replace(
        model,
        num_classes=5 if model.keypoint is None else 1,
        pixel_mean=(120.0, 120.0, 120.0),
        pixel_std=(60.0, 60.0, 60.0),
        backbone=dataclasses.replace(model.backbone, name=name, width=8, **groups),
        fpn=dataclasses.replace(model.fpn, channels=16),
        anchors=dataclasses.replace(model.anchors, sizes=sizes),
        rpn=dataclasses.replace(model.rpn, batch_size=4096, **proposals),  # all anchors, so that every level trains
        roi=dataclasses.replace(model.roi, batch_size=16),
        box=dataclasses.replace(
            _small_head(model.box), hidden=32, nms_candidates=64, max_detections=DETECTIONS, score_threshold=0.0
        ),
        mask=_small_head(model.mask),
        keypoint=_small_head(model.keypoint),
    )
    optimizer = dataclasses.replace(
        config.optimizer, learning_rate=0.01, weight_decay=1e-4, milestones=(), warmup_steps=0
    )
    return Config(model=model, optimizer=optimizer)


def _small_head(head: Any) -> Any:
    """A head with at most one convolution, few channels and few bins."""
    if head is None:
        return None
    return dataclasses.replace(head, pool_size=POOL, conv_layers=min(head.conv_layers, 1), channels=16)


class Result(NamedTuple):
    """States and metrics of one training step, and detections with the state after it."""

    before: TrainState
    after: TrainState
    metrics: dict[str, Any]
    detections: Detections


@functools.cache
def run(config: Config) -> Result:
    """One training step on two images, then inference on them; cached by network and optimizer."""
    model = build_model(config.model)
    variables = make_variables(model)
    schedule = make_schedule(config.optimizer, 10)
    optimizer = make_optimizer(config.optimizer, schedule, variables["params"], frozen_paths(config.model))
    batch = make_batch(config.model.num_keypoints)
    step = jax.jit(make_train_step(model, config, optimizer, schedule))
    before = create_state(optimizer, variables)
    after, metrics = step(before, batch, jax.random.key(0))
    infer = jax.jit(functools.partial(detect, model))
    detections = infer({"params": after.params, **after.model_state}, batch.images, batch.image_sizes)
    return jax.tree.map(np.asarray, Result(before, after, metrics, detections))


def make_variables(model: Any) -> Any:
    """Random kernels and identity norms; faster than compiling the initialization of the networks."""
    rng = np.random.default_rng(0)

    def value(path: Any, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        if path[-1].key == "kernel":
            return (rng.standard_normal(shape.shape) / np.sqrt(np.prod(shape.shape[:-1]))).astype(np.float32)
        return np.full(shape.shape, path[-1].key in ("scale", "var"), np.float32)

    return jax.tree_util.tree_map_with_path(value, variable_shapes(model))


def make_batch(num_keypoints: int) -> Batch:
    """Two images of noise with two instances each, in three slots."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    valid = np.tile([True, True, False], (2, 1))
    corners = rng.integers(0, 24, (2, 3, 2))
    boxes = np.concatenate([corners, corners + rng.integers(16, 32, (2, 3, 2))], axis=-1).astype(np.float32)
    boxes = np.where(valid[..., None], boxes, 0)
    inside = boxes[:, :, None, :2] + rng.uniform(2, 14, (2, 3, num_keypoints, 2))
    keypoints = np.concatenate([inside, np.full((2, 3, num_keypoints, 1), 2.0)], axis=-1).astype(np.float32)
    truth = GroundTruth(boxes, valid.astype(np.int32), np.ones((2, 3, 8, 8), np.uint8), boxes, keypoints, valid)
    return Batch(images, np.int32([[SIZE, SIZE], [60, SIZE]]), np.arange(2, dtype=np.int32), np.ones(2, bool), truth)


@pytest.fixture
def result(request, monkeypatch) -> tuple[Config, Result]:
    """A small recipe and its result, with one block in each stage of the network."""
    for name in resnet._DEPTHS:
        monkeypatch.setitem(resnet._DEPTHS, name, (1, 1, 1, 1))
    monkeypatch.setattr(efficientnet, "BLOCKS", tuple(efficientnet.BLOCKS[i] for i in (0, 1, 2, 3, 5, 11)))
    # This implementation of ROIAlign compiles in half the time; other tests compare the two.
    monkeypatch.setattr(kernels, "forward", functools.partial(kernels._forward_wide, side=1))
    monkeypatch.setattr(kernels, "backward", functools.partial(kernels._backward_wide, side=1))
    config = small(load_config(request.param))
    return config, run(config)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_network_of_a_recipe(path):
    """Heads, number of parameters, and channels that depend on the number of classes."""
    num_classes, count, heads = NETWORKS[path.stem]
    model = dataclasses.replace(load_config(path).model, num_classes=num_classes)
    params = variable_shapes(build_model(model))["params"]
    assert {name for name in params if name.endswith("_head")} == {"rpn_head", "box_head", *heads.split()}
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
    widths = {"box_head": num_classes + 1, "mask_head": num_classes}
    for head in widths.keys() & params.keys():
        assert params[head]["logits"]["bias"].shape == (widths[head],)
    assert params["box_head"]["deltas"]["bias"].shape == (4 * num_classes,)


@pytest.mark.parametrize(
    "result",
    [path if path.stem in FAST else pytest.param(path, marks=pytest.mark.slow) for path in RECIPES],
    ids=lambda path: path.stem,
    indirect=True,
)
def test_training_step_and_inference_of_a_recipe(result):
    config, (before, after, metrics, detections) = result
    check_losses(config, metrics)
    check_updates(config, before, after)
    check_detections(config, detections)


def check_losses(config: Config, metrics: dict[str, Any]) -> None:
    expected = {"loss", "loss_rpn_class", "loss_rpn_box", "loss_class", "loss_box"}
    expected |= {"loss_mask"} if config.model.mask else set()
    expected |= {"loss_keypoint"} if config.model.keypoint else set()
    assert {name for name in metrics if name.startswith("loss")} == expected
    assert metrics["finite"]
    assert metrics["num_positive_rois"] > 0
    assert all(metrics[name] > 0 for name in expected)


def check_updates(config: Config, before: TrainState, after: TrainState) -> None:
    """Check that the step changed all parameters except the frozen ones."""
    frozen = frozen_paths(config.model)

    def check(path: Any, old: np.ndarray, new: np.ndarray) -> None:
        names = tuple(key.key for key in path)
        assert np.isfinite(new).all(), names
        assert (new != old).any() != frozen(names), names

    jax.tree_util.tree_map_with_path(check, before.params, after.params)


def check_detections(config: Config, detections: Detections) -> None:
    model = config.model
    assert detections.valid.any(axis=1).all()
    assert (detections.boxes >= 0).all()
    assert (detections.boxes <= SIZE).all()
    assert ((detections.scores > 0) & (detections.classes > 0))[detections.valid].all()
    assert (detections.classes <= model.num_classes).all()
    assert detections.masks.shape == (2, DETECTIONS, model.mask_size, model.mask_size)
    assert detections.keypoints.shape == (2, DETECTIONS, model.num_keypoints, 3)
    assert np.isfinite(detections.masks).all()
    assert np.isfinite(detections.keypoints).all()
