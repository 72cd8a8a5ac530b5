"""Heat map targets and decoding: hand cases, a plain reference, torchvision and Detectron2."""

from __future__ import annotations

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from mrcnn_jax.ops.keypoints import TILE, decode, heatmap_targets

F32 = np.finfo(np.float32).eps
S, K = 8, 2  # side of random heat maps, number of keypoints


@functools.cache
def compiled_decode(score: str):
    return jax.jit(functools.partial(decode, score=score))


@functools.cache
def compiled_targets(size: int):
    return jax.jit(functools.partial(heatmap_targets, size=size))


# ---------------------------------------------------------------- targets


def test_cells_by_hand():
    """A RoI of 4 x 4 cells, each 2 pixels wide and 3 high, with its corner at (10, 20)."""
    points = {
        (10, 20): 0,  # the first cell begins at the corner
        (11.9, 22.9): 0,
        (12, 20): 1,
        (10, 23): 4,
        (18, 32): 15,  # the far corner belongs to the last cell
        (18, 20): 3,
        (10, 32): 12,
        (9.99, 25): None,
        (18.01, 25): None,
        (14, 19.99): None,
        (14, 32.01): None,
    }
    keypoints = np.float32([[(x, y, 1) for x, y in points]])
    index, valid = compiled_targets(4)(keypoints, np.float32([[10, 20, 18, 32]]))
    np.testing.assert_array_equal(valid[0], [cell is not None for cell in points.values()])
    np.testing.assert_array_equal(index[0], [cell or 0 for cell in points.values()])


def test_only_labeled_keypoints_count():
    keypoints = np.float32([[(1, 1, 0), (1, 1, 1), (1, 1, 2)]])
    _, valid = compiled_targets(4)(keypoints, np.float32([[0, 0, 2, 2]]))
    np.testing.assert_array_equal(valid, [[False, True, True]])


def test_a_roi_without_area_contains_its_far_corner_only():
    """As in the reference implementations; NaN does not become an index."""
    keypoints = np.float32([[(5, 5, 1), (4, 5, 1), (6, 6, 1)], [(5, 5, 1), (np.nan, 0, 1), (np.inf, 5, 1)]])
    index, valid = compiled_targets(4)(keypoints, np.float32([[5, 5, 5, 5], [5, 5, 5, 9]]))
    np.testing.assert_array_equal(valid, [[True, False, False], [True, False, False]])
    np.testing.assert_array_equal(index, [[15, 0, 0], [3, 0, 0]])


@pytest.mark.parametrize("reference", ["tv", "d2"])
def test_golden_heatmap_targets(golden, reference):
    arrays = golden(f"{reference}_op_keypoint.npz")
    size = golden("tv_op_keypoint.npz")["kp_logits"].shape[-1]
    index, valid = compiled_targets(size)(arrays["keypoints"], arrays["rois"])
    np.testing.assert_array_equal(index, arrays["heatmap_idx"])
    np.testing.assert_array_equal(valid, arrays["valid"] != 0)
    assert valid.any()
    assert not valid.all()


# ---------------------------------------------------------------- decoding


def keys_matrix(old: int, new: int) -> np.ndarray:
    """Bicubic weights (new, old) from the definition of Keys' kernel, in float64; the border is repeated."""
    position = (np.arange(new) + 0.5) * (old / new) - 0.5
    matrix = np.zeros((new, old))
    for offset in range(-1, 3):
        pixel = np.floor(position).astype(int) + offset
        d, a = np.abs(position - pixel), -0.75
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
        np.add.at(matrix, (np.arange(new), pixel.clip(0, old - 1)), np.where(d <= 1, near, far))
    return matrix


def assert_decodes_to_highest_pixel(maps: np.ndarray, boxes: np.ndarray) -> None:
    """Assert that decoded points are pixel centers of the resized maps, and that no pixel is higher."""
    size = maps.shape[1]
    found = np.asarray(compiled_decode("logit")(maps, boxes, np.ones(len(boxes), bool)), np.float64)
    for heatmap, box, points in zip(maps, boxes, found, strict=True):
        width, height = np.maximum(box[2:] - box[:2], 1)
        columns, rows = int(np.ceil(width)), int(np.ceil(height))
        resized = np.einsum("ys,stk,xt->kyx", keys_matrix(size, rows), heatmap, keys_matrix(size, columns))
        cells = (points[:, :2] - box[:2]) / [width, height] * [columns, rows] - 0.5
        whole = np.rint(cells).astype(int)
        np.testing.assert_allclose(cells, whole, atol=F32 * 4 * max(np.abs(box).max(), 1))
        # Half an ulp of a position up to S, times the slope, up to twice the range; then a few roundings of the sum.
        tolerance = F32 * (size + 8) * 2 * np.ptp(heatmap) + 8 * F32 * np.abs(heatmap).max()
        peaks = resized.max(axis=(1, 2))
        np.testing.assert_allclose(resized[np.arange(len(peaks)), whole[:, 1], whole[:, 0]], peaks, atol=tolerance)
        np.testing.assert_allclose(points[:, 2], peaks, atol=tolerance)


@pytest.mark.medium
@hypothesis.settings(max_examples=20)
@hypothesis.given(
    st.integers(0, 1000),
    st.lists(st.tuples(*[st.floats(0.0, 5.0 * TILE, width=32)] * 2), min_size=3, max_size=3),
    st.booleans(),
)
def test_the_highest_pixel_is_found(seed, sides, peaked):
    """Boxes from empty to several tiles, more tiles than in one step; smooth noise or a narrow peak."""
    rng = np.random.default_rng(seed)
    maps = rng.standard_normal((3, S, S, K)).astype(np.float32)
    if peaked:
        maps[:, rng.integers(S), rng.integers(S)] += 20
    corner = (300 * rng.random((3, 2))).astype(np.float32)
    assert_decodes_to_highest_pixel(maps, np.concatenate([corner, corner + np.float32(sides)], axis=1))


def test_the_first_of_equal_pixels_is_taken():
    """In row-major order of the whole map, not of its tiles. A map is not changed by resizing it to its own size."""
    side = 2 * TILE + 5
    ties = {
        (10, 5): [(10, 5), (10, TILE + 9), (11, 0)],  # two tiles side by side, and a later row in the first of them
        (9, 2 * TILE + 1): [(10, 0), (9, 2 * TILE + 1), (TILE + 1, 3)],
        (0, 0): [(row, column) for row in range(side) for column in range(side)],
    }
    maps = np.zeros((1, side, side, len(ties)), np.float32)
    for channel, cells in enumerate(ties.values()):
        maps[0, *np.transpose(cells), channel] = 1
    found = np.asarray(compiled_decode("logit")(maps, np.float32([[0, 0, side, side]]), np.ones(1, bool)))[0]
    np.testing.assert_array_equal(found, [(column + 0.5, row + 0.5, 1) for row, column in ties])


def test_points_and_targets_agree():
    """A map with its maximum in the target cell is decoded to the keypoint, up to half a cell and half a pixel."""
    rng = np.random.default_rng(0)
    boxes = np.float32([[5, 7, 25, 167], [100, 90, 400, 130], [1, 2, 9, 10.5]])
    span = boxes[:, None, 2:] - boxes[:, None, :2]
    points = boxes[:, None, :2] + rng.random((3, K, 2)) * span
    index, valid = compiled_targets(S)(np.concatenate([points, np.ones((3, K, 1))], axis=2).astype(np.float32), boxes)
    assert valid.all()
    maps = 10 * (np.arange(S * S)[:, None] == np.asarray(index)[:, None]).reshape(3, S, S, K)
    found = np.asarray(compiled_decode("probability")(maps.astype(np.float32), boxes, np.ones(3, bool)))
    # Half a cell to the center of the cell, and from there at most half a pixel.
    assert np.all(np.abs(found[..., :2] - points) <= 0.5 * span / S + 0.5)


def test_scores_by_hand():
    """One of 64 cells is log 9 above the others; the box has the size of the map."""
    maps = np.zeros((1, S, S, K), np.float32)
    maps[0, 3, 4] = np.log(9)
    box, valid = np.float32([[0, 0, S, S]]), np.ones(1, bool)
    for score, expected in (("logit", np.log(9) + 7), ("probability", 9 / 72)):
        keypoints = compiled_decode(score)(maps + 7, box, valid)[0]
        np.testing.assert_allclose(keypoints, [[4.5, 3.5, expected]] * K, rtol=1e-6)


def test_large_logits_have_finite_probabilities():
    """If the resized map misses the peak, the exponential of a naive difference would overflow."""
    maps = np.zeros((1, S, S, K), np.float32)
    maps[0, 3, 4] = 1e4
    found = compiled_decode("probability")(maps, np.float32([[0, 0, 3, 3]]), np.ones(1, bool))
    assert np.isfinite(found).all()
    assert not found[..., 2].any()


def test_invalid_slots_are_zero_and_have_no_effect():
    rng = np.random.default_rng(2)
    maps, valid = rng.standard_normal((4, S, S, K)).astype(np.float32), np.bool_([True, False, True, False])
    boxes = np.float32([[0, 0, 90, 30], [0, 0, 10, 10], [5, 5, 20, 140], [0, 0, 1, 1]])
    clean = compiled_decode("probability")(maps, boxes, valid)
    maps[~valid], boxes[1], boxes[3] = np.nan, np.nan, [-np.inf, 0, 1e30, np.inf]
    dirty = compiled_decode("probability")(maps, boxes, valid)
    np.testing.assert_array_equal(clean, dirty)
    assert not dirty[~valid].any()
    assert clean[valid].all()
    assert not compiled_decode("probability")(maps, boxes, np.zeros(4, bool)).any()


GOLDEN_MAPS = {
    "decode_maps": ("decode_xy", "decode_scores"),
    "kp_logits": ("decode_xy_from_kp_logits", "decode_scores_from_kp_logits"),
}


def assert_points_close(found: np.ndarray, boxes: np.ndarray, points: np.ndarray) -> None:
    """Assert the same pixels: both round a center at most four times by half a unit; doubled as a margin."""
    np.testing.assert_allclose(found[..., :2], points[..., :2], rtol=0, atol=8 * F32 * np.abs(boxes).max())


def height_error(heatmaps: np.ndarray) -> float:
    """Largest difference between two float32 implementations of a resized map.

    Along each axis both round a position up to S three times by half a unit: 3 units together. The slope of the
    interpolation is at most 1.5 times the range of the map, and the other axis multiplies by weights whose absolute
    values sum to 1.375. The four weights of a position, cubic polynomials with terms up to 15, have errors of 12 units
    together.
    """
    position = 3 * heatmaps.shape[1] * 1.5 * np.ptp(heatmaps)
    weights = 2 * 12 * np.abs(heatmaps).max()
    return float(F32 * 2 * 1.375 * (position + weights))


@pytest.mark.parametrize("maps", GOLDEN_MAPS)
def test_golden_decode_torchvision(golden, maps):
    arrays = golden("tv_op_keypoint.npz")
    points, scores = (arrays[name] for name in GOLDEN_MAPS[maps])
    heatmaps, boxes = arrays[maps].transpose(0, 2, 3, 1), arrays["rois"]
    found = np.asarray(compiled_decode("logit")(heatmaps, boxes, np.ones(len(boxes), bool)))
    assert_points_close(found, boxes, points)
    np.testing.assert_allclose(found[..., 2], scores, rtol=0, atol=height_error(heatmaps))


def test_golden_decode_detectron2(golden):
    """Detectron2's array has x, y, logit and probability, decoded from torchvision's maps."""
    arrays = golden("tv_op_keypoint.npz")
    heatmaps, boxes = arrays["decode_maps"].transpose(0, 2, 3, 1), arrays["rois"]
    theirs = golden("d2_op_keypoint.npz")["decoded_from_tv_decode_maps"]
    found = np.asarray(compiled_decode("probability")(heatmaps, boxes, np.ones(len(boxes), bool)))
    assert_points_close(found, boxes, theirs[..., :2])
    # The relative error of an exponential is the absolute error of its argument. Both sum S * S of them.
    rtol = height_error(heatmaps) + F32 * heatmaps.shape[1] ** 2
    np.testing.assert_allclose(found[..., 2], theirs[..., 3], rtol=rtol)
