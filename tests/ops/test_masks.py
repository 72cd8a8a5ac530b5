"""Mask targets and pasting: hand cases, plain references, torchvision and Detectron2."""

from __future__ import annotations

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.ops.masks import crop_targets, paste
from mrcnn_jax.ops.roi.pooling import roi_align

F32 = np.finfo(np.float32).eps


@functools.cache
def compiled_crop(size: int, binary: bool, aligned: bool):
    return jax.jit(functools.partial(crop_targets, size=size, binary=binary, aligned=aligned, sampling_ratio=0))


def whole_windows(masks: np.ndarray) -> np.ndarray:
    """Windows of bitmaps that cover the whole image."""
    return np.tile(np.float32([0, 0, masks.shape[2], masks.shape[1]]), (len(masks), 1))


def polygons(arrays) -> list[list[np.ndarray]]:
    """Polygons (n, 2) of each instance."""
    parts = np.split(arrays["poly_flat"].reshape(-1, 2), np.cumsum(arrays["poly_len"] // 2)[:-1])
    ends = np.cumsum(arrays["poly_count"])
    return [parts[end - count : end] for count, end in zip(arrays["poly_count"], ends, strict=True)]


def inside(points: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """Whether points (..., 2) are inside a polygon, by crossing number."""
    x, y = points[..., 0, None], points[..., 1, None]
    (x0, y0), (x1, y1) = polygon.T, np.roll(polygon, -1, axis=0).T
    with np.errstate(divide="ignore", invalid="ignore"):
        crosses = ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return crosses.sum(axis=-1) % 2 == 1


def raster(instance: list[np.ndarray], window: np.ndarray, size: int) -> np.ndarray:
    """Rasterize an instance in a window: (size, size) bool, True for pixel centers inside."""
    steps = (np.arange(size) + 0.5) / size
    x = window[0] + steps * (window[2] - window[0])
    y = window[1] + steps * (window[3] - window[1])
    points = np.stack(np.meshgrid(x, y), axis=-1)
    return np.any([inside(points, p) for p in instance], axis=0)


def tolerance(masks: np.ndarray) -> float:
    """Of a bilinear sample of a bitmap: both round a position five times by half a unit, on two axes."""
    return 2 * 10 * F32 * max(masks.shape[1:])  # doubled as a margin


# ---------------------------------------------------------------- targets


def test_cropping_a_raster_to_its_window_is_the_identity():
    mask = (np.random.default_rng(0).random((2, 8, 8)) < 0.5).astype(np.uint8)
    windows = np.float32([[3, 5, 19, 45], [0, 0, 1, 1]])
    result = compiled_crop(8, False, True)(mask, windows, windows, np.int32([0, 1]))
    np.testing.assert_allclose(result, mask, atol=64 * F32)  # coordinates up to 45, scaled by 8 / 16


def test_half_of_the_window_is_half_of_the_mask():
    mask = np.zeros((1, 4, 4), np.uint8)
    mask[0, :, 2:] = 1
    window, rois = np.float32([[10, 10, 18, 18]]), np.float32([[14, 10, 18, 18], [10, 10, 14, 18], [18, 10, 26, 18]])
    result = compiled_crop(2, True, True)(mask, window, rois, np.zeros(3, np.int32))
    np.testing.assert_array_equal(result[:2], [np.ones((2, 2)), np.zeros((2, 2))])
    np.testing.assert_array_equal(result[2, :, 1], [0, 0])  # zero outside of the window


def test_binary_threshold_includes_one_half():
    mask = np.uint8([[[1, 0]]])
    result = compiled_crop(1, True, True)(mask, whole_windows(mask), np.float32([[0, 0, 2, 1]]), np.int32([0]))
    np.testing.assert_array_equal(result, [[[1.0]]])


def test_golden_project_masks_on_boxes_torchvision(golden):
    arrays = golden("tv_op_mask.npz")
    for i in range(2):
        masks, expected = arrays[f"gt_masks{i}"], arrays[f"mask_targets{i}"]
        result = compiled_crop(expected.shape[1], False, False)(
            masks, whole_windows(masks), arrays[f"proposals{i}"], arrays[f"matched_idx{i}"].astype(np.int32)
        )
        np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance(masks))


@pytest.mark.parametrize("kind", ["tight", "jitter"])
def test_golden_bitmask_crop_and_resize_detectron2(golden, kind):
    arrays = golden("d2_op_mask_targets.npz")
    masks = arrays["polygons_to_bitmask_128x160"].astype(np.uint8)
    expected = arrays[f"bitmask_crop_resize28_{kind}"]
    inputs = masks, whole_windows(masks), arrays[f"boxes_{kind}"], np.arange(len(masks), dtype=np.int32)
    result, soft = (np.asarray(compiled_crop(expected.shape[1], binary, True)(*inputs)) for binary in (True, False))
    undecided = np.abs(soft - 0.5) <= tolerance(masks)  # rounding decides
    np.testing.assert_array_equal(result != 0, np.where(undecided, result != 0, expected))
    assert undecided.mean() < 0.01


@pytest.mark.parametrize("kind", ["tight", "jitter"])
@pytest.mark.parametrize("size", [14, 28])
def test_golden_crops_approximate_polygon_targets_detectron2(golden, kind, size):
    """Training resamples a raster of the box, Detectron2 rasterizes polygons in the RoI. They differ at the outline."""
    arrays = golden("d2_op_mask_targets.npz")
    windows = arrays["polygon_bbox"]
    crops = np.stack([raster(p, w, 112) for p, w in zip(polygons(arrays), windows, strict=True)]).astype(np.uint8)
    matches = np.arange(len(crops), dtype=np.int32)
    result = compiled_crop(size, True, True)(crops, windows, arrays[f"boxes_{kind}"], matches)
    result, expected = np.asarray(result, bool), arrays[f"target{size}_{kind}"]
    outline = np.zeros_like(expected)
    for axis in (1, 2):
        change = np.diff(expected, axis=axis) != 0
        pad = [(0, 0)] * 3
        for side in ((0, 1), (1, 0)):
            pad[axis] = side
            outline |= np.pad(change, pad)
    edge = np.zeros_like(expected)
    edge[:, [0, -1], :] = edge[:, :, [0, -1]] = True
    assert not np.any((result != expected) & ~outline & ~edge)
    # At the outline the crop must be better than chance.
    assert (result != expected).sum() < 0.5 * outline.sum()


@pytest.mark.medium
def test_crops_equal_roi_align_of_the_raster():
    rng = np.random.default_rng(3)
    masks = (rng.random((3, 10, 14)) < 0.5).astype(np.uint8)
    rois = np.float32([[-3, 2, 9, 30], [1, 1, 4, 2], [5, 5, 5, 8], [0, 0, 14, 10]])
    matches = np.int32([2, 0, 1, 1])
    result = compiled_crop(5, False, False)(masks, whole_windows(masks), rois, matches)
    align = jax.jit(functools.partial(roi_align, scale=1.0, output_size=5, sampling_ratio=0, aligned=False))
    for roi, match, target in zip(rois, matches, result, strict=True):
        expected = align(masks[match, :, :, None].astype(np.float32), roi[None])
        np.testing.assert_allclose(target, expected[0, :, :, 0], rtol=0, atol=4 * F32 * 14)


@hypothesis.settings(max_examples=20)
@hypothesis.given(
    st.lists(st.lists(st.floats(-50, 150, width=32), min_size=4, max_size=4), min_size=4, max_size=4), st.data()
)
def test_targets_are_finite_and_within_the_unit_interval(rois, data):
    side = st.sampled_from([0.0, -3.0, 2.0**-20, 0.5, 60.0])
    windows = np.float32([[10, 10, 10 + data.draw(side), 10 + data.draw(side)]] * 2)
    masks = np.ones((2, 6, 6), np.uint8)
    result = np.asarray(compiled_crop(4, False, True)(masks, windows, np.float32(rois), np.int32([0, 1, 0, 1])))
    assert np.isfinite(result).all()
    assert result.min() >= -16 * F32
    assert result.max() <= 1 + 4096 * F32  # windows of 2^-20 put the RoI at raster coordinates of millions


def test_targets_under_vmap_and_without_rois():
    rng = np.random.default_rng(4)
    masks = (rng.random((2, 3, 6, 6)) < 0.5).astype(np.uint8)
    windows = np.sort(rng.uniform(0, 50, (2, 3, 2, 2)), axis=2).reshape(2, 3, 4).astype(np.float32)
    rois = np.sort(rng.uniform(0, 50, (2, 70, 2, 2)), axis=2).reshape(2, 70, 4).astype(np.float32)  # more than a block
    matches = rng.integers(0, 3, (2, 70)).astype(np.int32)
    run = compiled_crop(4, False, True)
    batched = jax.jit(jax.vmap(run))(masks, windows, rois, matches)
    for i in range(2):
        np.testing.assert_allclose(batched[i], run(masks[i], windows[i], rois[i], matches[i]), rtol=0, atol=4 * F32)
    assert run(masks[0], windows[0], rois[0, :0], matches[0, :0]).shape == (0, 4, 4)


# ---------------------------------------------------------------- pasting


@functools.cache
def compiled_paste(shape: tuple[int, int], rule: str):
    return jax.jit(lambda masks, boxes: paste(masks, boxes, shape, rule=rule))


def test_a_mask_of_the_size_of_its_box_is_pasted_unchanged():
    mask = np.random.default_rng(0).random((1, 4, 4)).astype(np.float32)
    result = np.asarray(compiled_paste((9, 8), "detectron2")(mask, np.float32([[2, 3, 6, 7]])))
    expected = np.zeros((1, 9, 8), np.float32)
    expected[0, 3:7, 2:6] = mask[0]
    np.testing.assert_array_equal(result, expected)


def test_golden_paste_masks_detectron2(golden):
    arrays = golden("d2_op_paste_masks.npz")
    shape = tuple(int(n) for n in arrays["paste_hw"])
    masks, boxes = arrays["paste_masks"], arrays["paste_boxes"]
    result = np.asarray(compiled_paste(shape, "detectron2")(masks, boxes))
    # Both round coordinates six times by half a unit, on two axes, and scale them to cells of the mask; doubled as a
    # margin.
    sides = np.maximum((boxes[:, 2:] - boxes[:, :2]).min(axis=1), 2.0**-10)
    cells = masks.shape[1] * np.maximum(np.abs(boxes).max(axis=1), max(shape)) / sides
    slack = np.minimum(2 * 12 * F32 * cells, 0.01)[:, None, None]
    np.testing.assert_array_equal(
        result >= 0.5, np.where(np.abs(result - 0.5) <= slack, result >= 0.5, arrays["paste_bool"])
    )
    # Truncated to multiples of 1/255: a value near a multiple may be on either side.
    soft = arrays["paste_u8_soft"] / 255
    assert np.all((result >= soft - slack) & (result < soft + 1 / 255 + slack))


def test_golden_paste_masks_torchvision(golden):
    arrays = golden("tv_op_mask.npz")
    shape = tuple(int(n) for n in arrays["paste_hw"])
    result = compiled_paste(shape, "torchvision")(arrays["paste_masks"][:, 0], arrays["paste_boxes"])
    # Both round a position in the padded mask three times by half a unit, on two axes; doubled as a margin.
    atol = 12 * F32 * (arrays["paste_masks"].shape[-1] + 2)
    np.testing.assert_allclose(result, arrays["paste_out"], rtol=0, atol=atol)


@pytest.mark.parametrize("rule", ["detectron2", "torchvision"])
@hypothesis.settings(max_examples=20)
@hypothesis.given(st.lists(st.lists(st.floats(-40, 60, width=32), min_size=4, max_size=4), min_size=3, max_size=3))
def test_pasted_values_are_finite_and_inside(rule, boxes):
    boxes = np.float32(boxes)
    result = np.asarray(compiled_paste((20, 24), rule)(np.ones((3, 5, 5), np.float32), boxes))
    assert np.isfinite(result).all()
    assert result.min() >= 0
    assert result.max() <= 1 + 16 * F32
    if rule == "detectron2":
        flat = (boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1])
        assert not result[flat].any()


def test_paste_vmap_and_empty():
    rng = np.random.default_rng(5)
    masks, boxes = rng.random((2, 3, 4, 4)).astype(np.float32), rng.uniform(0, 10, (2, 3, 4)).astype(np.float32)
    boxes[..., 2:] += boxes[..., :2]
    run = compiled_paste((12, 10), "detectron2")
    batched = jax.vmap(run)(masks, boxes)
    for i in range(2):
        np.testing.assert_allclose(batched[i], run(masks[i], boxes[i]), rtol=0, atol=4 * F32)
    assert run(jnp.zeros((0, 4, 4)), jnp.zeros((0, 4))).shape == (0, 12, 10)
