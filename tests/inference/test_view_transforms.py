"""Transforms between views, on a network that returns the image inside each box, and merging of detections."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import jax.scipy.ndimage as ndimage
import numpy as np
import pytest

from mrcnn_jax.config import BoxHeadConfig, KeypointHeadConfig, ModelConfig
from mrcnn_jax.inference import detect, view_transforms
from mrcnn_jax.models.mask_rcnn import build_model
from mrcnn_jax.ops import boxes as box_ops
from mrcnn_jax.structures import Detections

pytestmark = pytest.mark.medium

REFERENCE_SIZE = (60, 100)  # height, width
SIDE = 16  # of masks and heatmaps
BOX = (13.0, 8.0, 61.0, 44.0)
MODEL = ModelConfig(
    num_classes=3,
    box=BoxHeadConfig(max_detections=3),
    keypoint=KeypointHeadConfig(num_keypoints=3, flip_map=(0, 2, 1)),
)
VIEWS = [(REFERENCE_SIZE, False), (REFERENCE_SIZE, True), ((120, 200), False), ((120, 200), True), ((45, 80), True)]


def draw(size):
    """Draw a smooth blob off the center of BOX, in an image (1, H, W, 1) of `size`."""
    height, width = size
    y, x = np.mgrid[:height, :width] + 0.5
    x, y = x * REFERENCE_SIZE[1] / width, y * REFERENCE_SIZE[0] / height
    return np.exp(-((x - 28) ** 2) / 150 - ((y - 30) ** 2) / 80).astype(np.float32)[None, :, :, None]


def crop_boxes(features, boxes):
    """Resample the image inside boxes (1, D, 4) to (1, D, SIDE, SIDE)."""
    x0, y0, x1, y1 = (boxes[0, :, i, None] for i in range(4))
    cells = (jnp.arange(SIDE) + 0.5)[None] / SIDE
    columns, rows = x0 + cells * (x1 - x0) - 0.5, y0 + cells * (y1 - y0) - 0.5
    shape = (len(boxes[0]), SIDE, SIDE)
    places = [jnp.broadcast_to(rows[:, :, None], shape), jnp.broadcast_to(columns[:, None, :], shape)]
    return ndimage.map_coordinates(features[0][0, :, :, 0], places, order=1, mode="nearest")[None]


@pytest.fixture
def drawing_network(monkeypatch):
    """Heads whose mask is the image inside the box.

    The heatmap of the first keypoint is the same; those of the other two, which a flip exchanges, are its left and its
    right half.
    """

    def heatmaps(model, variables, features, boxes):
        cropped = crop_boxes(features, boxes)
        left = jnp.arange(SIDE) < SIDE // 2
        return jnp.stack([cropped, jnp.where(left, cropped, 0.0), jnp.where(left, 0.0, cropped)], axis=-1)

    monkeypatch.setattr(
        detect, "mask_probabilities", lambda model, variables, features, boxes, _: crop_boxes(features, boxes)
    )
    monkeypatch.setattr(detect, "keypoint_heatmaps", heatmaps)


def detections(boxes, scores, classes, valid=None, *, truncated=False):
    count = len(boxes)
    return Detections(
        jnp.asarray(boxes, jnp.float32).reshape(1, count, 4),
        jnp.asarray(scores, jnp.float32)[None],
        jnp.asarray(classes, jnp.int32)[None],
        jnp.zeros((1, count, 0, 0)),
        jnp.zeros((1, count, 0, 3)),
        jnp.ones((1, count), bool) if valid is None else jnp.asarray(valid)[None],
        jnp.array([truncated]),
    )


def transform(size, flipped):
    return view_transforms.ViewTransform(np.array(REFERENCE_SIZE), np.array(size), np.array(flipped))


def run_heads_on(size, flipped):
    image = draw(size)
    features = (jnp.asarray(image[:, :, ::-1] if flipped else image),)
    merged = detections([BOX], [0.9], [1])
    return view_transforms.run_heads(build_model(MODEL), {}, features, merged, transform(size, flipped))


@pytest.mark.parametrize(("size", "flipped"), VIEWS)
def test_masks_and_keypoints_of_all_views_agree(drawing_network, size, flipped):
    masks, heatmaps = run_heads_on(REFERENCE_SIZE, flipped=False)
    assert abs(masks - masks[..., ::-1]).max() > 0.5  # so that a missing flip fails
    assert abs(heatmaps[..., 1] - heatmaps[..., 2]).max() > 0.5
    tolerance = 1e-6 if size == REFERENCE_SIZE else 0.02  # interpolation of another image size
    for found, expected in zip(run_heads_on(size, flipped), (masks, heatmaps), strict=True):
        np.testing.assert_allclose(found, expected, atol=tolerance)


@pytest.mark.parametrize(("size", "flipped"), VIEWS)
def test_boxes_are_transformed_to_the_reference_view(monkeypatch, size, flipped):
    """The network returns BOX in pixels of the view."""
    box = jnp.asarray(BOX) * np.tile(np.divide(size, REFERENCE_SIZE)[::-1], 2)
    box = box_ops.mirror(box, size[1]) if flipped else box

    def find(model, variables, image, image_sizes):
        assert image_sizes.tolist() == [list(size)]
        return ("features",), detections([box], [0.5], [2])

    monkeypatch.setattr(detect, "detect_boxes", find)
    features, found = view_transforms.detect_boxes(
        build_model(MODEL), {}, jnp.zeros((1, 128, 224, 3)), transform(size, flipped)
    )
    assert features == ("features",)
    np.testing.assert_allclose(found.boxes[0, 0], BOX, rtol=1e-5)


def test_detections_of_all_views_are_merged():
    """NMS is class-wise and keeps at most `max_detections`."""
    one = detections(
        [[10, 10, 50, 50], [60, 10, 100.01, 40], [0, 0, 60, 60]], [0.8, 0.6, 0.95], [1, 2, 1], [True, True, False]
    )
    two = detections([[11, 10, 51, 50], [10, 10, 50, 50], [70, 50, 90, 60]], [0.9, 0.7, 0.5], [1, 3, 2], truncated=True)
    merged = jax.jit(functools.partial(view_transforms.merge, MODEL))([one, two], np.array(REFERENCE_SIZE))
    np.testing.assert_allclose(merged.scores[0], [0.9, 0.7, 0.6])
    assert merged.classes.tolist() == [[1, 3, 2]]
    assert merged.boxes[0].tolist() == [[11, 10, 51, 50], [10, 10, 50, 50], [60, 10, 100, 40]]
    assert merged.valid.all()
    assert merged.truncated.tolist() == [True]


def test_mean_heatmaps_are_decoded_in_the_reference_view():
    """Two views with a keypoint one cell left and right of the center, and with masks 0 and 1."""
    maps = np.zeros((2, 1, 1, SIDE, SIDE, 3), np.float32)
    maps[0, ..., 7, 6, :] = maps[1, ..., 7, 8, :] = 9
    maps[:, ..., 7, 7, :] = 8
    masks = np.stack([np.zeros((1, 1, SIDE, SIDE), np.float32), np.ones((1, 1, SIDE, SIDE), np.float32)])
    merged = detections([[10, 20, 26, 36]], [0.9], [1])
    found = jax.jit(functools.partial(view_transforms.finish, MODEL, views=2))(merged, (masks.sum(0), maps.sum(0)))
    np.testing.assert_array_equal(found.masks, 0.5)
    np.testing.assert_allclose(found.keypoints[0, 0, :, :2], [[17.5, 27.5]] * 3)
    weights = np.exp([8, 4.5, 4.5, *[0] * (SIDE**2 - 3)])
    np.testing.assert_allclose(found.keypoints[0, 0, :, 2], weights[0] / weights.sum(), rtol=1e-5)


def test_models_without_masks_and_keypoints():
    model = dataclasses.replace(MODEL, mask=None, keypoint=None)
    merged = detections([BOX], [0.9], [1])
    heads = view_transforms.run_heads(
        build_model(model), {}, (jnp.asarray(draw(REFERENCE_SIZE)),), merged, transform(REFERENCE_SIZE, True)
    )
    found = view_transforms.finish(model, merged, heads, 2)
    assert found.masks.shape == (1, 1, 0, 0)
    assert found.keypoints.shape == (1, 1, 0, 3)
