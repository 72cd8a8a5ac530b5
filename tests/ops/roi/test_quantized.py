"""RoIPool, RoIWarp and maxima: hand cases, a loop over samples; gradients and edge cases."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.config import RoIConfig
from mrcnn_jax.ops.roi import max_pool
from mrcnn_jax.ops.roi.pooling import _axes, multilevel_roi_pooling, roi_levels
from mrcnn_jax.ops.roi.rois import RoIs

pytestmark = pytest.mark.medium

KINDS = list(itertools.product(("align", "warp", "pool"), ("average", "max")))
OTHERS = KINDS[1:]  # align with average is ROIAlign, which test_align.py tests
SCALE, BINS, RATIO = 0.25, (3, 2), 2
# As in test_align.py: rounding of coordinates, on two axes and two cells, times the extent.
OPERATIONS = 16
TOLERANCE = OPERATIONS * np.finfo(np.float32).eps * 24


def rounded(value) -> float:
    """Round to an integer, halves away from zero."""
    return float(np.sign(value) * np.floor(abs(np.float64(value)) + 0.5))


def whole_cells(low, high):
    """Start and size of the RoI in whole cells, from edges in cells."""
    start = rounded(low)
    return start, max(rounded(high) - start + 1, 1.0)


def cells_of_bins(low, high, bins, extent):
    """RoIPool: for each bin a list of one-hot weights (extent,), one for each of its cells on the map."""
    f = np.float32
    start, size = whole_cells(low, high)
    bin_size = f(size) / f(bins)
    found = []
    for b in range(bins):
        begin, end = np.floor(f(b) * bin_size) + start, np.ceil(f(b + 1) * bin_size) + start
        cells = [cell for cell in range(extent) if begin <= cell < end]
        found.append([np.eye(extent)[cell] for cell in cells])
    return found


def samples_of_bins(low, high, bins, extent, ratio):
    """ROIAlign with the half-pixel shift: for each bin a list of bilinear weights (extent,), one for each sample."""
    f = np.float32
    start = f(low) - f(0.5)
    size = f(high) - f(0.5) - start
    bin_size = f(size / f(bins))
    count = ratio or int(np.ceil(bin_size))
    found = []
    for b in range(bins):
        rows = []
        for s in range(max(count, 0)):
            at = start + f(b) * bin_size + (f(s) + f(0.5)) * bin_size / f(count)
            row = np.zeros(extent)
            if -1 <= at <= extent:
                at = min(max(at, f(0)), f(extent - 1))
                row[int(at)] += 1 - (at - int(at))
                row[min(int(at) + 1, extent - 1)] += at - int(at)
            rows.append(row)
        found.append(rows)
    return found


def along(low, high, scale, bins, extent, ratio, pooling):
    low, high = (np.nan_to_num(np.float32(edge)) * np.float32(scale) for edge in (low, high))
    if pooling == "pool":
        return cells_of_bins(low, high, bins, extent)
    if pooling == "warp":
        start, size = whole_cells(low, high)
        low, high = start, start + size
    return samples_of_bins(low, high, bins, extent, ratio)


def reference(feature, boxes, cotangent, *, scale, bins, ratio, pooling, reduce):
    """Result, and gradient of the feature map, in float64, bin by bin and sample by sample."""
    height, width, channels = feature.shape
    result, gradient = np.zeros(cotangent.shape), np.zeros(feature.shape)
    for r, (x0, y0, x1, y1) in enumerate(boxes):
        ys = along(y0, y1, scale, bins[0], height, ratio, pooling)
        xs = along(x0, x1, scale, bins[1], width, ratio, pooling)
        for i, j in np.ndindex(*bins):
            weights = [np.outer(y, x) for y in ys[i] for x in xs[j]]
            if not weights:
                continue
            values = np.stack([np.tensordot(w, feature.astype(np.float64), 2) for w in weights])
            if reduce == "average":
                result[r, i, j] = values.mean(axis=0)
                gradient += np.mean(weights, axis=0)[:, :, None] * cotangent[r, i, j]
                continue
            for c in range(channels):
                winner = int(np.argmax(values[:, c]))  # the first of equal ones
                result[r, i, j, c] = values[winner, c]
                gradient[:, :, c] += weights[winner] * cotangent[r, i, j, c]
    return result, gradient


@functools.cache
def pooled(pooling: Any, reduce: Any) -> Any:
    """Compiled (feature, boxes, cotangent) -> (result, gradient)."""

    def run(feature, boxes, cotangent):
        config = RoIConfig(sampling_ratio=RATIO, pooling=pooling, reduce=reduce)
        options = {"strides": (round(1 / SCALE),), "output_size": BINS}
        result, pullback = jax.vjp(lambda feature: multilevel_roi_pooling([feature], boxes, config, **options), feature)
        return result, pullback(cotangent)[0]

    return jax.jit(run)


def random_boxes(rng, count):
    """In a map of 9 x 12 cells of 4 pixels: inside, across the border, far out, tiny, and inverted."""
    corners = rng.uniform([-40, -40], [88, 76], (count, 2))
    sizes = rng.choice([0.5, 6.0, 30.0, 120.0], (count, 1)) * rng.uniform(-0.2, 1.0, (count, 2))
    boxes = np.concatenate([corners, corners + sizes], axis=1)
    boxes[::3] = np.round(boxes[::3] / 2) * 2  # halves of cells
    return boxes.astype(np.float32)


@pytest.mark.parametrize(("pooling", "reduce"), OTHERS)
def test_random_boxes_equal_the_loop(pooling, reduce):
    for seed in range(6):
        rng = np.random.default_rng(seed)
        feature = rng.standard_normal((9, 12, 2)).astype(np.float32) - 0.5
        boxes = random_boxes(rng, 10)
        boxes[0] = [np.nan, 1, 20, np.nan]
        cotangent = rng.standard_normal((10, *BINS, 2)).astype(np.float32)
        result, gradient = pooled(pooling, reduce)(feature, boxes, cotangent)
        expected = reference(
            feature, boxes, cotangent, scale=SCALE, bins=BINS, ratio=RATIO, pooling=pooling, reduce=reduce
        )
        largest = np.abs(feature).max()
        np.testing.assert_allclose(result, expected[0], rtol=0, atol=TOLERANCE * largest)
        np.testing.assert_allclose(gradient, expected[1], rtol=0, atol=TOLERANCE * max(1, np.abs(expected[1]).max()))
        if (pooling, reduce) == ("pool", "max"):  # values are copied
            np.testing.assert_array_equal(result, expected[0].astype(np.float32))


# ---------------------------------------------------------------- by hand

RAMP = np.arange(16, dtype=np.float32).reshape(4, 4, 1)  # 4 * row + column
one_scale = jax.jit(
    lambda feature, boxes, output_size, config: multilevel_roi_pooling(
        [feature], boxes, config, strides=(1,), output_size=output_size
    ),
    static_argnames=("output_size", "config"),
)


def by_hand(pooling, reduce, box, size: Any = 2, ratio=2, feature=RAMP):
    config = RoIConfig(sampling_ratio=ratio, pooling=pooling, reduce=reduce)
    return np.asarray(one_scale(feature, np.float32([box]), size, config))[0, :, :, 0]


def test_roi_pool_by_hand():
    # Cells 0..3 in two bins: 0 1 | 2 3.
    np.testing.assert_array_equal(by_hand("pool", "max", [0, 0, 3, 3]), [[5, 7], [13, 15]])
    np.testing.assert_array_equal(by_hand("pool", "average", [0, 0, 3, 3]), [[2.5, 4.5], [10.5, 12.5]])
    # Cells 0..2 in two bins of a cell and a half: 0 1 | 1 2; the cell in the middle is in both.
    np.testing.assert_array_equal(by_hand("pool", "max", [0, 0, 2, 2]), [[5, 6], [9, 10]])
    np.testing.assert_array_equal(by_hand("pool", "average", [0, 0, 2, 2]), [[2.5, 3.5], [6.5, 7.5]])


def test_roi_warp_by_hand():
    # The RoI is [0, 3) in x and y: bins of a cell and a half, whose samples are at 3/8, 9/8 | 15/8, 21/8. Cell centers
    # are at halves, so the columns there are 0 (clamped to the border, 3/8 - 1/2 < 0), 5/8 | 11/8, 17/8.
    means, largest = np.array([2.5, 14.0]) / 8, np.array([5, 17]) / 8
    box = [0, 0, 2, 2]
    samples = np.array([[0, 5], [11, 17]]) / 8
    means = samples.mean(axis=1)
    np.testing.assert_array_equal(by_hand("warp", "average", box), 4 * means[:, None] + means[None, :])
    np.testing.assert_array_equal(by_hand("warp", "max", box), 4 * largest[:, None] + largest[None, :])


def test_largest_sample_of_roi_align_by_hand():
    # x in [1, 2] and [2, 3], samples at quarters: 5/4, 7/4 | 9/4, 11/4, in columns 3/4, 5/4 | 7/4, 9/4.
    largest = np.array([5, 9]) / 4
    np.testing.assert_array_equal(by_hand("align", "max", [1, 1, 3, 3]), 4 * largest[:, None] + largest[None, :])


@pytest.mark.parametrize("reduce", ["average", "max"])
def test_only_roi_align_depends_on_fractions_of_cells(reduce):
    """Moving a box by 0.4 cells changes ROIAlign, and not the operators that round to cells."""
    box, moved = np.float32([1, 1, 2, 2]), np.float32([1.4, 1.4, 2.4, 2.4])
    for pooling in ("pool", "warp"):
        np.testing.assert_array_equal(by_hand(pooling, reduce, box), by_hand(pooling, reduce, moved))
    difference = by_hand("align", reduce, moved) - by_hand("align", reduce, box)
    np.testing.assert_allclose(difference, 0.4 * (4 + 1), rtol=1e-6)


def test_halves_are_rounded_away_from_zero():
    np.testing.assert_array_equal(by_hand("pool", "max", [0.5, 1.5, 0.5, 1.5], 1), [[4 * 2 + 1]])
    # -0.5 is rounded to -1, so the cells -1, 0, 1 are in three bins, and the first bin has no cell on the map.
    np.testing.assert_array_equal(by_hand("pool", "average", [-0.5, 1, 1.4, 1], (1, 3)), [[0, 4, 5]])


@pytest.mark.parametrize("reduce", ["average", "max"])
def test_bins_without_cells_are_zero_and_have_no_gradient(reduce):
    # Cells -4..1 in three bins, two of them outside of the map. All values are negative, so 0 is not their maximum.
    feature = RAMP - 20
    expected = {"average": -20 + (0 + 1) / 2, "max": -19}[reduce]
    assert by_hand("pool", reduce, [-4, 0, 1, 0], (1, 3), feature=feature).tolist() == [[0, 0, expected]]
    boxes = np.float32([[-400, -400, -300, -300], [500, 0, 520, 9], [0, 90, 9, 99]])
    feature = np.full((9, 12, 2), -1, np.float32)
    result, gradient = pooled("pool", reduce)(feature, np.tile(boxes, (4, 1))[:10], np.ones((10, *BINS, 2), np.float32))
    assert not result.any()
    assert not gradient.any()


# Samples of ROIAlign are equal up to rounding, and with jax 0.12 exactly only in optimized programs.
@pytest.mark.parametrize("pooling", [pytest.param("align", marks=pytest.mark.optimized), "warp", "pool"])
def test_the_gradient_of_a_maximum_goes_to_the_first_of_equal_values(pooling):
    feature = np.full((9, 12, 2), 3, np.float32)
    # Cells 2..7 and 1..4 of RoIPool: 3 bins of two rows, and 2 bins of two columns.
    boxes = np.tile(np.float32([[4, 8, 16, 28]]), (10, 1))
    result, gradient = pooled(pooling, "max")(feature, boxes, np.ones((10, *BINS, 2), np.float32))
    np.testing.assert_array_equal(result, 3)
    if pooling == "pool":
        expected = np.zeros_like(feature)
        expected[2:8:2, 1:5:2] = 10
    else:
        low, high = (1.0, 4.0) if pooling == "align" else (1.0, 5.0)
        x = [rows[0] for rows in samples_of_bins(low, high, 2, 12, RATIO)]
        low, high = (2.0, 7.0) if pooling == "align" else (2.0, 8.0)
        y = [rows[0] for rows in samples_of_bins(low, high, 3, 9, RATIO)]
        expected = 10 * np.einsum("iy,jx->yx", y, x)[:, :, None].repeat(2, axis=2)
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=10 * TOLERANCE)


def test_nan_is_propagated():
    feature = RAMP.copy()
    feature[0, 0] = np.nan
    found = by_hand("pool", "max", [0, 0, 3, 3], feature=feature)
    np.testing.assert_array_equal(found, [[np.nan, 7], [13, 15]])


@pytest.mark.parametrize(("pooling", "reduce"), OTHERS)
def test_invalid_boxes_give_finite_results(pooling, reduce):
    boxes = np.float32([[np.nan] * 4, [np.inf] * 4, [-np.inf, 0, np.inf, 9], [1e30, 1e30, -1e30, -1e30], [9, 9, 0, 0]])
    feature = np.random.default_rng(0).standard_normal((9, 12, 2)).astype(np.float32)
    outcome = pooled(pooling, reduce)(feature, np.tile(boxes, (2, 1)), np.ones((10, *BINS, 2), np.float32))
    assert all(np.isfinite(part).all() for part in outcome)


@pytest.mark.parametrize(("pooling", "reduce"), OTHERS)
def test_no_boxes(pooling, reduce):
    feature = np.ones((9, 12, 2), np.float32)
    empty = np.zeros((0, 4), np.float32), np.zeros((0, *BINS, 2), np.float32)
    result, gradient = pooled(pooling, reduce)(feature, *empty)
    assert result.shape == (0, *BINS, 2)
    assert not gradient.any()


@pytest.mark.parametrize("pooling", ["align", "warp"])
def test_a_maximum_needs_a_fixed_number_of_samples(pooling):
    with pytest.raises(ValueError, match="sampling_ratio is 0"):
        by_hand(pooling, "max", [0, 0, 2, 2], ratio=0)


# ---------------------------------------------------------------- levels and transformations

STRIDES = (4, 8, 16)
MAPS = [np.random.default_rng(s).standard_normal((2, 64 // s, 96 // s, 3)).astype(np.float32) for s in STRIDES]
BOXES = np.array(
    [
        [[2, 3, 30, 22], [0, 0, 96, 64], [-9, -9, 140, 150], [50, 10, 51, 60], [0, 0, 500, 500]],
        [[4, 4, 12, 12], [10, 2, 90, 8], [0, 0, 95, 63], [-300, 0, 400, 164], [30, 30, 29, 60]],
    ],
    np.float32,
)


COTANGENT = jnp.asarray(np.random.default_rng(5).standard_normal((2, 5, 2, 2, 3)), jnp.bfloat16).astype(jnp.float32)
OPTIONS: dict[str, Any] = {"strides": STRIDES, "output_size": 2}


def pyramid(pooling, reduce):
    """Function from maps, boxes and cotangent of one image to the result and the gradients of the maps."""

    def run(maps, boxes, cotangent):
        config = RoIConfig(sampling_ratio=RATIO, pooling=pooling, reduce=reduce)
        result, pullback = jax.vjp(lambda maps: multilevel_roi_pooling(maps, boxes, config, **OPTIONS), maps)
        return result, pullback(cotangent.astype(result.dtype))[0]

    return run


@functools.cache
def batched(pooling, reduce):
    """`pyramid` of a batch of images, compiled."""
    return jax.jit(jax.vmap(pyramid(pooling, reduce)))


def pyramid_reference(maps, boxes, cotangent, pooling, reduce):
    """The results of `pyramid`, from `reference` on each level."""
    levels = np.asarray(roi_levels(boxes, max_level=4)) - 2
    result, gradients = np.zeros(cotangent.shape), []
    options = {"bins": (2, 2), "ratio": RATIO, "pooling": pooling, "reduce": reduce}
    for level, feature in enumerate(maps):
        own = levels == level
        result[own], gradient = reference(feature, boxes[own], cotangent[own], scale=1 / STRIDES[level], **options)
        gradients.append(gradient)
    return result, gradients


@pytest.mark.parametrize(("pooling", "reduce"), OTHERS)
def test_boxes_are_pooled_from_their_level_and_image(pooling, reduce):
    assert set(np.asarray(roi_levels(BOXES[0], max_level=4)).tolist()) == {2, 3, 4}
    result, gradients = batched(pooling, reduce)(MAPS, BOXES, COTANGENT)
    for image in range(2):
        maps, cotangent = [m[image] for m in MAPS], np.asarray(COTANGENT[image])
        expected, parts = pyramid_reference(maps, BOXES[image], cotangent, pooling, reduce)
        np.testing.assert_allclose(result[image], expected, rtol=0, atol=4 * TOLERANCE)
        for ours, theirs in zip(gradients, parts, strict=True):
            np.testing.assert_allclose(ours[image], theirs, rtol=0, atol=4 * TOLERANCE)


def test_vmap_over_boxes_alone_shares_the_maps():
    maps = [m[0] for m in MAPS]
    result, gradients = jax.jit(jax.vmap(pyramid("pool", "max"), in_axes=(None, 0, 0)))(maps, BOXES, COTANGENT)
    for index in range(2):
        expected, parts = pyramid_reference(maps, BOXES[index], np.asarray(COTANGENT[index]), "pool", "max")
        np.testing.assert_array_equal(result[index], expected)
        for joint, single in zip(gradients, parts, strict=True):
            np.testing.assert_allclose(joint[index], single, rtol=0, atol=4 * TOLERANCE)


@pytest.mark.parametrize(("pooling", "reduce"), [("pool", "average"), ("pool", "max"), ("align", "max")])
def test_bfloat16_is_pooled_in_float32(pooling, reduce):
    narrow = [jnp.asarray(m, jnp.bfloat16) for m in MAPS]
    wide = [m.astype(jnp.float32) for m in narrow]
    run = batched(pooling, reduce)
    (result, gradients), (expected, others) = (run(maps, BOXES, COTANGENT) for maps in (narrow, wide))
    # Only the result is rounded to bfloat16, by half a unit in the last place.
    for ours, reference in zip([result, *gradients], [expected, *others], strict=True):
        assert ours.dtype == jnp.bfloat16
        half_ulp = np.ldexp(1.0, np.frexp(np.asarray(reference))[1] - 9)
        assert np.all(np.abs(ours.astype(jnp.float32) - reference) <= half_ulp + 4 * TOLERANCE)


@pytest.mark.parametrize(("pooling", "samples"), [("pool", 0), ("align", RATIO**2)])
def test_both_formulations_agree(pooling, samples):
    """The formulation for accelerators, all RoIs at once, equals the one for CPUs."""
    whole, images = samples == 0, np.repeat(np.arange(2, dtype=np.int32), 5)
    config = RoIConfig(sampling_ratio=RATIO, pooling=pooling)
    axes = functools.partial(_axes, scales=(1 / 4, 1 / 8, 1 / 16), bins=(2, 2), config=config)

    @jax.jit
    def run(maps, boxes):
        rows = max_pool._roi_samples(maps, RoIs(boxes, roi_levels(boxes, max_level=4) - 2, images), axes)
        value, winner = max_pool.forward(maps, rows, whole, jnp.uint16)
        gradients = max_pool.backward(maps, rows, winner, value, whole)
        flat, joined = (jnp.concatenate([m.reshape(-1, 3) for m in parts]) for parts in (maps, gradients))
        wide = max_pool._largest(flat, rows, whole_cells=whole, index_type=jnp.uint16)
        total = max_pool._scatter(jnp.zeros_like(flat), rows, winner, value, whole_cells=whole)
        return (value, winner, joined), (*wide, total)

    (value, winner, gradient), wide = run(tuple(MAPS), BOXES.reshape(-1, 4))
    np.testing.assert_allclose(wide[0], value, rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(wide[1], winner)
    np.testing.assert_allclose(wide[2], gradient, rtol=0, atol=4 * TOLERANCE)
