"""ROIAlign: hand cases, a NumPy reference, torchvision and Detectron2; gradients and edge cases."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.config import RoIConfig
from mrcnn_jax.ops.roi import kernels
from mrcnn_jax.ops.roi.pooling import _axes, multilevel_roi_pooling, roi_align, roi_levels
from mrcnn_jax.ops.roi.rois import RoIs

pytestmark = pytest.mark.medium

F32 = np.finfo(np.float32).eps
# Bilinear weights have the rounding errors of coordinates (half an ulp of the extent for each of a few operations, on
# two axes and two cells); everything else is a few ulp of the result.
OPERATIONS = 16


def tolerance(extent: int, values: np.ndarray) -> float:
    return OPERATIONS * F32 * extent * float(np.abs(values).max(initial=1e-6))


def axis_reference(low, high, scale, bins, sampling_ratio, aligned, extent):
    """(bins, extent) weights by looping over samples; float32 positions as in the reference implementations."""
    f = np.float32
    shift = f(0.5 if aligned else 0.0)
    start = f(low) * f(scale) - shift
    size = f(high) * f(scale) - shift - start
    if not aligned:
        size = max(size, f(1))
    bin_size = f(size / f(bins))
    count = sampling_ratio or int(np.ceil(bin_size))
    weights = np.zeros((bins, extent))
    for b, s in itertools.product(range(bins), range(max(count, 0))):
        y = start + f(b) * bin_size + (f(s) + f(0.5)) * bin_size / f(count)
        if y < -1 or y > extent:
            continue
        y = min(max(y, f(0)), f(extent - 1))
        cell = int(y)
        weights[b, cell] += 1 - (y - cell)
        weights[b, min(cell + 1, extent - 1)] += y - cell
    return weights / max(count, 1)


def reference(feature, boxes, *, scale, output_size, sampling_ratio, aligned):
    rows, columns = output_size
    height, width, _ = feature.shape
    bins = [
        (
            axis_reference(y0, y1, scale, rows, sampling_ratio, aligned, height),
            axis_reference(x0, x1, scale, columns, sampling_ratio, aligned, width),
        )
        for x0, y0, x1, y1 in boxes
    ]
    return np.stack([np.einsum("iy,jx,yxc->ijc", wy, wx, feature.astype(np.float64)) for wy, wx in bins])


@functools.cache
def pooled(output_size: Any, sampling_ratio: int, aligned: bool, scale: float = 0.25) -> Any:
    """Compiled (feature (H, W, C), boxes (R, 4), cotangent (R, h, w, C)) -> (result, gradient)."""

    def run(feature, boxes, cotangent):
        def pool(feature):
            return roi_align(
                feature, boxes, scale=scale, output_size=output_size, sampling_ratio=sampling_ratio, aligned=aligned
            )

        result, pullback = jax.vjp(pool, feature)
        return result, pullback(cotangent)[0]

    return jax.jit(run)


def nhwc(array: np.ndarray) -> np.ndarray:
    return array.transpose(0, 2, 3, 1)


# ---------------------------------------------------------------- by hand


def test_bins_of_a_ramp_are_their_centers():
    ramp = jnp.broadcast_to(jnp.arange(8.0)[None, :, None], (8, 8, 1))
    result = roi_align(
        ramp, jnp.asarray([[2.0, 1.0, 6.0, 5.0]]), scale=1.0, output_size=2, sampling_ratio=2, aligned=True
    )
    # Bins cover x in [2, 4] and [4, 6]; cell i has its center at i + 1/2, so the means are 3 - 1/2 and 5 - 1/2.
    np.testing.assert_array_equal(np.asarray(result)[0, :, :, 0], [[2.5, 4.5], [2.5, 4.5]])


def test_legacy_rule_has_no_half_pixel_shift():
    ramp = jnp.broadcast_to(jnp.arange(8.0)[None, :, None], (8, 8, 1))
    result = roi_align(
        ramp, jnp.asarray([[2.0, 1.0, 6.0, 5.0]]), scale=1.0, output_size=2, sampling_ratio=2, aligned=False
    )
    np.testing.assert_array_equal(np.asarray(result)[0, :, :, 0], [[3.0, 5.0], [3.0, 5.0]])


def test_levels_by_hand():
    sides = np.array([1.0, 111.0, 113.0, 223.0, 225.0, 447.0, 449.0, 5000.0], np.float32)
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], axis=1)
    for rule in ("detectron2", "torchvision"):
        np.testing.assert_array_equal(roi_levels(boxes, level_rule=rule), [2, 2, 3, 3, 4, 4, 5, 5])


@pytest.mark.parametrize("rule", ["detectron2", "torchvision"])
def test_levels_of_impossible_boxes(rule):
    boxes = np.array([[0, 0, 0, 9], [9, 0, 0, 9], [np.nan, 0, 1, 1], [0, 0, np.inf, 1]], np.float32)
    np.testing.assert_array_equal(roi_levels(boxes, level_rule=rule), [2, 2, 2, 2])


def test_strides_must_fit_the_levels():
    maps = [jnp.zeros((4, 4, 1))] * 2
    for strides in ((4,), (4, 16)):
        with pytest.raises(ValueError, match="strides"):
            multilevel_roi_pooling(maps, jnp.zeros((1, 4)), RoIConfig(), strides=strides, output_size=2)


# ---------------------------------------------------------------- golden arrays


def check_golden_roi_align(arrays: dict[str, np.ndarray], inputs: dict[str, np.ndarray], keys: list[str]) -> None:
    features, rois = nhwc(inputs["x"]), inputs["rois"]
    extent = max(features.shape[1:3])
    for key in keys:
        aligned, sampling_ratio = key.split("_")[1:3]
        suffix = "" if arrays is not inputs else "_" + key.split("_")[3]
        expected, gradients = nhwc(arrays[key]), nhwc(arrays["gin" + key[3:]])
        run = pooled(expected.shape[1:3], int(sampling_ratio[1:]), aligned == "a1", float(inputs["spatial_scale"]))
        for image, (feature, gradient) in enumerate(zip(features, gradients, strict=True)):
            own = rois[:, 0] == image
            cotangent = np.where(own[:, None, None, None], nhwc(arrays["ct" + suffix]), 0)
            result, pulled = run(feature, rois[:, 1:], cotangent)
            np.testing.assert_allclose(
                np.asarray(result)[own], expected[own], rtol=0, atol=tolerance(extent, features), err_msg=key
            )
            np.testing.assert_allclose(pulled, gradient, rtol=0, atol=tolerance(extent, gradients), err_msg=key)


def test_golden_roi_align_torchvision(golden):
    """One case with 3 x 5 bins is enough to distinguish height and width."""
    arrays = golden("tv_op_roi_align.npz")
    keys = [key for key in arrays if key.startswith("out_") and key.endswith("_7x7")]
    check_golden_roi_align(arrays, arrays, [*keys, "out_a0_s2_3x5"])


def test_golden_roi_align_detectron2(golden):
    arrays = golden("d2_op_roi_align.npz")
    keys = [key for key in arrays if key.startswith("out_")]
    check_golden_roi_align(arrays, golden("tv_op_roi_align.npz"), keys)


def check_golden_pyramid(inputs, arrays, suffix, *, aligned, sampling_ratio, level_rule):
    maps = [nhwc(inputs[f"f{i}"]) for i in range(4)]
    expected, cotangents = nhwc(arrays["out" + suffix]), nhwc(inputs["ct"])
    options = {"output_size": expected.shape[1:3], "strides": tuple(round(1 / s) for s in inputs["scales"])}
    config = RoIConfig(sampling_ratio=sampling_ratio, aligned=aligned, level_rule=level_rule)

    @jax.jit
    def run(maps, boxes, cotangent):
        result, pullback = jax.vjp(lambda maps: multilevel_roi_pooling(maps, boxes, config, **options), maps)
        return result, pullback(cotangent)[0]

    extent, images = max(maps[0].shape[1:3]), range(len(maps[0]))
    slots, start = max(len(inputs[f"boxes{i}"]) for i in images), 0
    for image in images:
        boxes = inputs[f"boxes{image}"]
        rows = slice(start, start + len(boxes))
        start = rows.stop

        def padded(array, slots=slots):
            return np.concatenate([array, np.zeros((slots - len(array), *array.shape[1:]), array.dtype)])

        result, gradient = run([m[image] for m in maps], padded(boxes), padded(cotangents[rows]))
        np.testing.assert_allclose(result[: len(boxes)], expected[rows], rtol=0, atol=tolerance(extent, maps[0]))
        for i, part in enumerate(gradient):
            wanted = nhwc(arrays[f"g{i}{suffix}"])
            np.testing.assert_allclose(part, wanted[image], rtol=0, atol=tolerance(extent, wanted))


def test_golden_multiscale_roi_align_torchvision(golden):
    arrays = golden("tv_op_multiscale_roi_align.npz")
    check_golden_pyramid(arrays, arrays, "", aligned=False, sampling_ratio=2, level_rule="torchvision")
    levels = roi_levels(arrays["lvl_boxes"], level_rule="torchvision")
    np.testing.assert_array_equal(levels - 2, arrays["lvl_boxes_level"])


@pytest.mark.parametrize(
    ("suffix", "aligned", "sampling_ratio"),
    [
        ("_ROIAlignV2_s0", True, 0),
        ("_ROIAlignV2_s2", True, 2),
        pytest.param("_ROIAlign_s2", False, 2, marks=pytest.mark.slow),  # as torchvision's, except the rule of levels
    ],
)
def test_golden_roi_pooler_detectron2(golden, suffix, aligned, sampling_ratio):
    inputs, arrays = golden("tv_op_multiscale_roi_align.npz"), golden("d2_op_roi_pooler.npz")
    check_golden_pyramid(
        inputs, arrays, suffix, aligned=aligned, sampling_ratio=sampling_ratio, level_rule="detectron2"
    )
    levels = roi_levels(inputs["lvl_boxes"], level_rule="detectron2")
    np.testing.assert_array_equal(levels - 2, arrays["lvl_boxes_level"])


# ---------------------------------------------------------------- reference and edge cases

# These fractions are exact in float32, so rounding does not decide whether a sample is on the map.
coordinate = st.integers(-30 * 8, 120 * 8).map(lambda n: n / 8)
side = st.one_of(
    st.just(0.0), st.integers(-80, 80 * 8).map(lambda n: n / 8), st.integers(1, 99).map(lambda n: n / 1024)
)
box = st.tuples(coordinate, coordinate, side, side).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
MAP = np.random.default_rng(0).standard_normal((20, 24, 2)).astype(np.float32)  # 80 x 96 pixels at scale 1/4
ONES = np.ones((6, 4, 2, 2), np.float32)


def six(boxes: Any) -> np.ndarray:
    """Repeat boxes to six, so that all tests use one program."""
    return np.resize(np.float32(boxes), (6, 4))


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@hypothesis.settings(max_examples=25)
@hypothesis.given(boxes=st.lists(box, min_size=6, max_size=6))
def test_equals_the_reference_and_its_transpose(boxes, sampling_ratio, aligned):
    boxes = np.array(boxes, np.float32)
    options = {"output_size": (4, 2), "sampling_ratio": sampling_ratio, "aligned": aligned}
    cotangent = np.random.default_rng(1).standard_normal(ONES.shape).astype(np.float32)
    result, gradient = pooled(**options)(MAP, boxes, cotangent)
    expected = reference(MAP, boxes, scale=0.25, **options)
    np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance(24, MAP))
    assert np.isfinite(gradient).all()
    # The operator is linear: <cotangent, pool(map)> = <gradient, map>.
    left, right = np.vdot(cotangent, expected), np.vdot(np.asarray(gradient, np.float64), MAP)
    np.testing.assert_allclose(right, left, rtol=0, atol=tolerance(24, MAP) * np.abs(cotangent).sum())


@pytest.mark.parametrize("sampling_ratio", [0, 3])
def test_thin_boxes_get_all_their_samples(sampling_ratio):
    feature = np.random.default_rng(2).standard_normal((6, 336, 2)).astype(np.float32)
    boxes = np.array([[0, 4, 1344, 8], [3, 1, 1341, 2.5], [0, 0, 1344, 24]], np.float32)  # 48 samples in a bin
    options = {"output_size": (7, 7), "sampling_ratio": sampling_ratio, "aligned": True}
    cotangent = np.ones((3, 7, 7, 2), np.float32)
    result, gradient = pooled(**options)(feature, boxes, cotangent)
    np.testing.assert_allclose(
        result, reference(feature, boxes, scale=0.25, **options), rtol=0, atol=tolerance(336, feature)
    )
    # Every weight of a bin inside of the map sums to one, so the gradient of the sum is the number of bins.
    np.testing.assert_allclose(gradient.sum(axis=(0, 1)), [3 * 49] * 2, rtol=OPERATIONS * F32 * 336)


def test_adaptive_boxes_without_area_give_zero():
    boxes = six([[8, 8, 8, 30], [8, 8, 30, 8], [20, 20, 10, 10], [5, 5, 5, 5]])
    result, gradient = pooled((4, 2), 0, True)(MAP, boxes, ONES)
    assert not np.any(result)
    assert not np.any(gradient)


def test_invalid_coordinates_give_finite_results():
    boxes = six([[np.nan] * 4, [0, 0, np.inf, np.inf], [-3e38, -3e38, 3e38, 3e38], [1, 1, 9, 9]])
    for sampling_ratio, aligned in itertools.product((0, 2), (True, False)):
        result, gradient = pooled((4, 2), sampling_ratio, aligned)(MAP, boxes, ONES)
        assert np.isfinite(result).all()
        assert np.isfinite(gradient).all()
        options = {"output_size": (4, 2), "sampling_ratio": sampling_ratio, "aligned": aligned}
        expected = reference(MAP, boxes[3:4], scale=0.25, **options)
        np.testing.assert_allclose(result[3:4], expected, rtol=0, atol=tolerance(24, MAP))


def test_samples_that_coincide_on_the_border_all_count():
    """Boxes without area whose samples are all exactly at the far border (cell 20 of 20) or at -1."""
    boxes = six([[8, 82, 8, 82], [98, 8, 98, 20], [8, -2, 30, -2], [8, 82.5, 8, 82.5]])
    result, _ = pooled((4, 2), 2, True)(MAP, boxes, ONES)
    expected = reference(MAP, boxes, scale=0.25, output_size=(4, 2), sampling_ratio=2, aligned=True)
    np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance(24, MAP))
    assert np.all(expected[:3] != 0)
    assert not expected[3].any()


def test_no_boxes():
    result, gradient = pooled((4, 2), 0, True)(MAP, np.zeros((0, 4), np.float32), ONES[:0])
    assert result.shape == (0, 4, 2, 2)
    np.testing.assert_array_equal(gradient, np.zeros_like(MAP))


# ---------------------------------------------------------------- transformations

STRIDES = (4, 8)
MAPS = [np.random.default_rng(s).standard_normal((2, 64 // s, 96 // s, 3)).astype(np.float32) for s in STRIDES]
BOXES = np.array(
    [
        [[2, 3, 30, 22], [0, 0, 96, 64], [-9, -9, 140, 100], [50, 10, 51, 60], [7, 7, 7, 7]],
        [[4, 4, 12, 12], [10, 2, 90, 8], [0, 0, 95, 63], [-300, 0, 400, 64], [30, 30, 29, 60]],
    ],
    np.float32,
)


COTANGENT = jnp.asarray(np.random.default_rng(5).standard_normal((2, 5, 3, 3, 3)), jnp.bfloat16).astype(jnp.float32)


def pyramid(maps, boxes):
    return multilevel_roi_pooling(maps, boxes, RoIConfig(), strides=STRIDES, output_size=3)


def both_ways(maps, boxes, cotangent):
    """Result, and gradients of the maps."""
    result, pullback = jax.vjp(lambda maps: pyramid(maps, boxes), maps)
    return result, pullback(cotangent.astype(result.dtype))[0]


compiled = jax.jit(both_ways)


def image(index: int) -> Any:
    return [m[index] for m in MAPS], BOXES[index], COTANGENT[index]


def test_vmap_equals_the_loop():
    """Up to rounding: compiled programs may differ in the order of sums."""
    batched, gradients = jax.jit(jax.vmap(both_ways))(MAPS, BOXES, COTANGENT)
    for index in range(2):
        result, parts = compiled(*image(index))
        np.testing.assert_allclose(batched[index], result, rtol=0, atol=tolerance(24, MAPS[0]))
        for joint, single in zip(gradients, parts, strict=True):
            np.testing.assert_allclose(joint[index], single, rtol=0, atol=tolerance(24, single))


def test_a_batch_equals_vmap():
    np.testing.assert_array_equal(jax.jit(pyramid)(MAPS, BOXES), jax.jit(jax.vmap(pyramid))(MAPS, BOXES))
    with pytest.raises(ValueError, match="leading axes"):
        pyramid(MAPS, BOXES[:1])


def test_vmap_over_boxes_alone_shares_the_maps():
    maps = [m[0] for m in MAPS]

    def run(maps, cotangent):
        both, pullback = jax.vjp(lambda maps: jax.vmap(pyramid, in_axes=(None, 0))(maps, BOXES), maps)
        return both, pullback(cotangent)[0]

    both, gradient = jax.jit(run)(maps, COTANGENT)
    alone = [compiled(maps, boxes, cotangent) for boxes, cotangent in zip(BOXES, COTANGENT, strict=True)]
    for joint, (single, _) in zip(both, alone, strict=True):
        np.testing.assert_allclose(joint, single, rtol=0, atol=tolerance(24, MAPS[0]))
    for level, total in enumerate(gradient):
        expected = alone[0][1][level] + alone[1][1][level]
        np.testing.assert_allclose(total, expected, rtol=0, atol=tolerance(24, expected))


def test_vmap_twice():
    maps = [np.stack([m, m[::-1]]) for m in MAPS]
    result = jax.jit(jax.vmap(jax.vmap(pyramid)))(maps, np.stack([BOXES, BOXES[::-1]]))
    np.testing.assert_array_equal(result[0], result[1][::-1])
    np.testing.assert_allclose(result[0, 0], compiled(*image(0))[0], rtol=0, atol=tolerance(24, MAPS[0]))


def test_boxes_get_no_gradient():
    maps, boxes, _ = image(0)
    gradient = jax.jit(jax.grad(lambda boxes: jnp.sum(pyramid(maps, boxes))))(boxes)
    np.testing.assert_array_equal(gradient, np.zeros_like(boxes))


def half_ulp(values) -> np.ndarray:
    """Half a unit in the last place of bfloat16, which has eight bits of precision."""
    return np.ldexp(1.0, np.frexp(np.asarray(values))[1] - 9)


def test_bfloat16_features_are_summed_in_float32():
    maps, boxes, cotangent = image(0)
    narrow = [jnp.asarray(m, jnp.bfloat16) for m in maps]
    wide = [m.astype(jnp.float32) for m in narrow]
    (result, gradient), (expected, others) = compiled(narrow, boxes, cotangent), compiled(wide, boxes, cotangent)
    # Only the result is rounded to bfloat16.
    for ours, reference in zip([result, *gradient], [expected, *others], strict=True):
        assert ours.dtype == jnp.bfloat16
        difference = np.abs(ours.astype(jnp.float32) - reference)
        assert np.all(difference <= half_ulp(reference) + tolerance(24, reference))


@pytest.mark.parametrize("side", [1, kernels.SQUARE])
def test_both_formulations_agree(side):
    """The formulation for GPUs equals the one for CPUs, which the other tests use."""
    boxes, images = BOXES.reshape(-1, 4), np.repeat(np.arange(2, dtype=np.int32), 5)
    options = {"scales": (1 / 4, 1 / 8), "bins": (3, 3), "config": RoIConfig()}

    @jax.jit
    def run(maps, boxes):
        rois = RoIs(boxes, roi_levels(boxes, max_level=3) - 2, jnp.asarray(images))
        axes = _axes(rois, maps, **options)
        narrow = kernels._forward_cpu(maps, rois, *axes)
        given = tuple(m[..., :0] for m in maps), rois, *axes, jnp.sin(narrow)
        wide = kernels._forward_wide(maps, rois, *axes, side=side), kernels._backward_wide(*given, side=side)
        return wide, (narrow, kernels._backward_cpu(*given))

    wide, narrow = run(tuple(MAPS), boxes)
    # A weight is as wrong as the coordinate is, whatever the map.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance(24, np.asarray(b))), wide, narrow)
