"""Tests of mask rasterization: equal to that in the whole image, for any polygon, and fast for many."""

from __future__ import annotations

import time

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from support.samples import assert_same_mask, full_frame, some_masks, star

from mrcnn_jax.data import mask_crops as masks_module
from mrcnn_jax.data.mask_crops import (
    Masks,
    crop_masks,
    pixel_windows,
    rasterize_masks,
    read_masks,
    visible_boxes,
)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32))
def test_bitmaps_are_cut_out_of_the_full_frame(seed: int) -> None:
    rng = np.random.default_rng(seed)
    segmentations, boxes = some_masks(rng, 4, (40, 40))
    masks, windows = read_masks(segmentations, boxes, 40), pixel_windows(boxes)
    whole = [full_frame(segmentation, 40, 40) for segmentation in segmentations]
    visible = visible_boxes(masks, boxes)
    for i, ((x0, y0, x1, y1), bitmap) in enumerate(zip(windows, rasterize_masks(masks, windows), strict=True)):
        found = np.zeros((40, 40), np.uint8)
        found[y0:y1, x0:x1] = bitmap
        assert_same_mask(found, whole[i], masks, i)
        rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
        if len(rows):
            bounds = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            np.testing.assert_array_equal(pixel_windows(visible[i]), bounds)
        else:
            assert not visible[i].any()


def test_an_instance_without_outline_or_an_empty_window_has_no_pixels() -> None:
    masks: Masks = [[], [np.array([[0.0, 0], [9, 0], [9, 9]])], []]
    empty, cut, filled = rasterize_masks(masks, np.array([[0, 0, 4, 3], [5, 5, 5, 9], [0, 0, 2, 2]])[[0, 1, 2]])
    assert (empty.shape, cut.shape, filled.shape) == ((3, 4), (4, 0), (2, 2))
    assert not empty.any()
    assert not filled.any()  # of instance 2


@pytest.mark.parametrize("far", [200.0, 1e4, 1e9])
def test_polygons_can_reach_far_outside(far: float) -> None:
    """Half planes, a corner and frames, whose far ends do not matter; pycocotools would write beyond its memory."""
    polygons = [
        [10, -far, far, -far, far, far, 10, far],  # x > 10
        [-far, -far, far, -far, far, 12, -far, 12],  # y < 12
        [-far, -far, far, -far, far, far, -far, far],  # everything
        [far, far, 2 * far, far, 2 * far, 2 * far],  # nothing
        [16, 16, 16 + far, 16, 16 + far, 16 + far, 16, 16 + far],  # a corner
        [-far, -far, far, far, far, -far],  # above the diagonal
    ]
    y, x = np.mgrid[:32, :32]
    expected = [x >= 10, y < 12, x >= 0, x < 0, (x >= 16) & (y >= 16), x > y]
    masks = read_masks([[polygon] for polygon in polygons], np.zeros((6, 4)), 32)
    found = list(rasterize_masks(masks, np.tile([0, 0, 32, 32], (6, 1))))
    crops = crop_masks(masks, np.tile([0.0, 0, 32, 32], (6, 1)), 32)
    for bitmap, crop, mask in zip(found, crops, expected, strict=True):
        np.testing.assert_array_equal(bitmap, crop)
        differ = bitmap.astype(bool) != mask
        assert not (differ & (x != y)).any()  # pixels that the diagonal cuts in two are nobody's


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_clipping_polygons_does_not_change_the_raster(seed: int) -> None:
    """Stars twenty times as large as the picture, against pycocotools on a frame that holds all of them."""
    rng = np.random.default_rng(seed)
    polygon = star(rng, -200, 220)
    size, shift = 20, 500
    frame = full_frame([(np.array(polygon) + shift).tolist()], 2 * shift + size, 2 * shift + size)
    expected = frame[shift : shift + size, shift : shift + size]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks_module, "_MAX_DISTANCE", size)
        masks = read_masks([[polygon]], np.zeros((1, 4)), size)
        found = next(rasterize_masks(masks, np.array([[0, 0, size, size]])))
    assert_same_mask(found, expected, masks, 0)


@pytest.mark.medium
def test_ten_thousand_instances_take_time_in_proportion() -> None:
    """Ten times the instances may take about ten times as long (a hundred times if each looked at all others)."""
    rng = np.random.default_rng(0)

    def seconds(count: int) -> float:
        corners = rng.integers(0, 600, (count, 2))
        boxes = np.concatenate([corners, corners + rng.integers(4, 20, (count, 2))], axis=1).astype(np.float64)
        x0, y0, x1, y1 = boxes.T
        polygons = np.stack([x0, y0, x1, y0, x1, y1, x0, y1], axis=1)[:, None].tolist()
        runs = {"size": [640, 640], "counts": [0, 640 * 640]}
        segmentations = [runs if i % 2 else polygons[i] for i in range(count)]
        start = time.process_time()
        masks = read_masks(segmentations, boxes, 640)
        found = visible_boxes(masks[::2], boxes[::2])
        found2 = visible_boxes(masks, boxes)
        duration = time.process_time() - start
        np.testing.assert_array_equal(found, boxes[::2])
        np.testing.assert_array_equal(found2, boxes)
        return duration

    seconds(100)
    assert seconds(10_000) < 30 * min(seconds(1000) for _ in range(3))
