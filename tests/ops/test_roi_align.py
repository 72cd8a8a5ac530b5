"""ROIAlign against a hand case, a plain NumPy oracle, torchvision and Detectron2; its gradient; its edges."""

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

from mrcnn_jax.ops import roi_kernels
from mrcnn_jax.ops.roi_align import _axes, multilevel_roi_align, roi_align, roi_levels

F32 = np.finfo(np.float32).eps
# Bilinear weights inherit the rounding of coordinates (half an ulp of the extent for each of a few operations, on two
# axes and two cells); everything else is a few ulp of the result.
OPERATIONS = 16


def tolerance(extent: int, values: np.ndarray) -> float:
    return OPERATIONS * F32 * extent * float(np.abs(values).max(initial=1e-6))


def axis_oracle(low, high, scale, bins, sampling_ratio, aligned, extent):
    """(bins, extent) weights by looping over samples; positions in float32 in the order of the peers' C++."""
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


def oracle(feature, boxes, *, scale, output_size, sampling_ratio, aligned):
    rows, columns = output_size
    height, width, _ = feature.shape
    bins = [
        (
            axis_oracle(y0, y1, scale, rows, sampling_ratio, aligned, height),
            axis_oracle(x0, x1, scale, columns, sampling_ratio, aligned, width),
        )
        for x0, y0, x1, y1 in boxes
    ]
    return np.stack([np.einsum("iy,jx,yxc->ijc", wy, wx, feature.astype(np.float64)) for wy, wx in bins])


@functools.cache
def pooled(output_size: Any, sampling_ratio: int, aligned: bool, scale: float = 0.25) -> Any:
    """Compiled (features (B, H, W, C), boxes (R, 4), cotangent (B, R, h, w, C)) -> (result, gradient)."""

    def run(features, boxes, cotangent):
        def pool(features):
            one = functools.partial(
                roi_align, scale=scale, output_size=output_size, sampling_ratio=sampling_ratio, aligned=aligned
            )
            return jax.vmap(one, in_axes=(0, None))(features, boxes)

        result, pullback = jax.vjp(pool, features)
        return result, pullback(cotangent)[0]

    return jax.jit(run)


def nhwc(array: np.ndarray) -> np.ndarray:
    return array.transpose(0, 2, 3, 1)


# ---------------------------------------------------------------- by hand


def test_bins_of_a_ramp_are_their_centres():
    ramp = jnp.broadcast_to(jnp.arange(8.0)[None, :, None], (8, 8, 1))
    result = roi_align(
        ramp, jnp.asarray([[2.0, 1.0, 6.0, 5.0]]), scale=1.0, output_size=2, sampling_ratio=2, aligned=True
    )
    # Bins cover x in [2, 4] and [4, 6]; cell i has its centre at i + 1/2, so the means are 3 - 1/2 and 5 - 1/2.
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
            multilevel_roi_align(
                maps, jnp.zeros((1, 4)), strides=strides, output_size=2, sampling_ratio=1, aligned=True
            )


# ---------------------------------------------------------------- golden arrays


def check_golden_roi_align(arrays: dict[str, np.ndarray], inputs: dict[str, np.ndarray]) -> None:
    features, rois = nhwc(inputs["x"]), inputs["rois"]
    image, row = rois[:, 0].astype(int), np.arange(len(rois))
    for key in (k for k in arrays if k.startswith("out_")):
        aligned, sampling_ratio = key.split("_")[1:3]
        suffix = "" if arrays is not inputs else "_" + key.split("_")[3]
        expected, gradient = nhwc(arrays[key]), nhwc(arrays["gin" + key[3:]])
        cotangent = np.zeros((len(features), *expected.shape), np.float32)
        cotangent[image, row] = nhwc(arrays["ct" + suffix])
        run = pooled(expected.shape[1:3], int(sampling_ratio[1:]), aligned == "a1", float(inputs["spatial_scale"]))
        result, pulled = run(features, rois[:, 1:], cotangent)
        extent = max(features.shape[1:3])
        np.testing.assert_allclose(
            np.asarray(result)[image, row], expected, rtol=0, atol=tolerance(extent, features), err_msg=key
        )
        np.testing.assert_allclose(pulled, gradient, rtol=0, atol=tolerance(extent, gradient), err_msg=key)


def test_golden_roi_align_torchvision(golden):
    arrays = golden("tv_op_roi_align.npz")
    check_golden_roi_align(arrays, arrays)


def test_golden_roi_align_detectron2(golden):
    check_golden_roi_align(golden("d2_op_roi_align.npz"), golden("tv_op_roi_align.npz"))


def check_golden_pyramid(inputs, arrays, suffix, *, aligned, sampling_ratio, level_rule):
    maps = [nhwc(inputs[f"f{i}"]) for i in range(4)]
    expected, cotangent = nhwc(arrays["out" + suffix]), nhwc(inputs["ct"])

    @jax.jit
    def run(maps):
        def pool(maps):
            parts = [
                multilevel_roi_align(
                    [m[i] for m in maps],
                    inputs[f"boxes{i}"],
                    strides=tuple(round(1 / s) for s in inputs["scales"]),
                    output_size=expected.shape[1:3],
                    sampling_ratio=sampling_ratio,
                    aligned=aligned,
                    level_rule=level_rule,
                )
                for i in range(len(maps[0]))
            ]
            return jnp.concatenate(parts)

        result, pullback = jax.vjp(pool, maps)
        return result, pullback(cotangent)[0]

    result, gradient = run(maps)
    extent = max(maps[0].shape[1:3])
    np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance(extent, maps[0]))
    for i, part in enumerate(gradient):
        wanted = nhwc(arrays[f"g{i}{suffix}"])
        np.testing.assert_allclose(part, wanted, rtol=0, atol=tolerance(extent, wanted))


def test_golden_multiscale_roi_align_torchvision(golden):
    arrays = golden("tv_op_multiscale_roi_align.npz")
    check_golden_pyramid(arrays, arrays, "", aligned=False, sampling_ratio=2, level_rule="torchvision")
    levels = roi_levels(arrays["lvl_boxes"], level_rule="torchvision")
    np.testing.assert_array_equal(levels - 2, arrays["lvl_boxes_level"])


@pytest.mark.parametrize(
    ("suffix", "aligned", "sampling_ratio"),
    [("_ROIAlignV2_s0", True, 0), ("_ROIAlignV2_s2", True, 2), ("_ROIAlign_s2", False, 2)],
)
def test_golden_roi_pooler_detectron2(golden, suffix, aligned, sampling_ratio):
    inputs, arrays = golden("tv_op_multiscale_roi_align.npz"), golden("d2_op_roi_pooler.npz")
    check_golden_pyramid(
        inputs, arrays, suffix, aligned=aligned, sampling_ratio=sampling_ratio, level_rule="detectron2"
    )
    levels = roi_levels(inputs["lvl_boxes"], level_rule="detectron2")
    np.testing.assert_array_equal(levels - 2, arrays["lvl_boxes_level"])


# ---------------------------------------------------------------- oracle and edges

# Such fractions are exact in float32, so whether a sample hits the border of the map does not hang on rounding.
coordinate = st.integers(-30 * 8, 120 * 8).map(lambda n: n / 8)
side = st.one_of(
    st.just(0.0), st.integers(-80, 80 * 8).map(lambda n: n / 8), st.integers(1, 99).map(lambda n: n / 1024)
)
box = st.tuples(coordinate, coordinate, side, side).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
MAP = np.random.default_rng(0).standard_normal((1, 20, 24, 2)).astype(np.float32)  # 80 x 96 pixels at scale 1/4


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@hypothesis.settings(max_examples=40)
@hypothesis.given(boxes=st.lists(box, min_size=6, max_size=6))
def test_equals_the_oracle_and_its_transpose(boxes, sampling_ratio, aligned):
    boxes = np.array(boxes, np.float32)
    options = {"output_size": (4, 2), "sampling_ratio": sampling_ratio, "aligned": aligned}
    cotangent = np.random.default_rng(1).standard_normal((1, 6, 4, 2, 2)).astype(np.float32)
    result, gradient = pooled(**options)(MAP, boxes, cotangent)
    expected = oracle(MAP[0], boxes, scale=0.25, **options)
    np.testing.assert_allclose(result[0], expected, rtol=0, atol=tolerance(24, MAP))
    assert np.isfinite(gradient).all()
    # The operator is linear: <cotangent, pool(map)> = <gradient, map>.
    left, right = np.vdot(cotangent[0], expected), np.vdot(np.asarray(gradient, np.float64), MAP)
    np.testing.assert_allclose(right, left, rtol=0, atol=tolerance(24, MAP) * np.abs(cotangent).sum())


@pytest.mark.parametrize("sampling_ratio", [0, 1, 3])
def test_thin_boxes_get_all_their_samples(sampling_ratio):
    feature = np.random.default_rng(2).standard_normal((1, 6, 336, 2)).astype(np.float32)
    boxes = np.array([[0, 4, 1344, 8], [3, 1, 1341, 2.5], [0, 0, 1344, 24]], np.float32)  # 48 samples in a bin
    options = {"output_size": (7, 7), "sampling_ratio": sampling_ratio, "aligned": True}
    cotangent = np.ones((1, 3, 7, 7, 2), np.float32)
    result, gradient = pooled(**options)(feature, boxes, cotangent)
    np.testing.assert_allclose(
        result[0], oracle(feature[0], boxes, scale=0.25, **options), rtol=0, atol=tolerance(336, feature)
    )
    # Every weight of a bin inside of the map sums to one, so the gradient of the sum is the number of bins.
    np.testing.assert_allclose(gradient.sum(axis=(0, 1, 2)), [3 * 49] * 2, rtol=OPERATIONS * F32 * 336)


def test_adaptive_boxes_without_area_give_zero():
    boxes = np.array([[8, 8, 8, 30], [8, 8, 30, 8], [20, 20, 10, 10], [5, 5, 5, 5]], np.float32)
    result, gradient = pooled((4, 2), 0, True)(MAP, boxes, np.ones((1, 4, 4, 2, 2), np.float32))
    assert not np.any(result)
    assert not np.any(gradient)


def test_impossible_coordinates_stay_finite():
    boxes = np.array([[np.nan] * 4, [0, 0, np.inf, np.inf], [-3e38, -3e38, 3e38, 3e38], [1, 1, 9, 9]], np.float32)
    for sampling_ratio, aligned in itertools.product((0, 2), (True, False)):
        result, gradient = pooled((4, 2), sampling_ratio, aligned)(MAP, boxes, np.ones((1, 4, 4, 2, 2), np.float32))
        assert np.isfinite(result).all()
        assert np.isfinite(gradient).all()
        options = {"output_size": (4, 2), "sampling_ratio": sampling_ratio, "aligned": aligned}
        expected = oracle(MAP[0], boxes[3:], scale=0.25, **options)
        np.testing.assert_allclose(result[0, 3:], expected, rtol=0, atol=tolerance(24, MAP))


def test_samples_that_coincide_on_the_border_all_count():
    """A box without size whose fixed samples all lie exactly at the far border (cell 20 of 20) or at -1."""
    boxes = np.array([[8, 82, 8, 82], [98, 8, 98, 20], [8, -2, 30, -2], [8, 82.5, 8, 82.5]], np.float32)
    result, _ = pooled((4, 2), 2, True)(MAP, boxes, np.ones((1, 4, 4, 2, 2), np.float32))
    expected = oracle(MAP[0], boxes, scale=0.25, output_size=(4, 2), sampling_ratio=2, aligned=True)
    np.testing.assert_allclose(result[0], expected, rtol=0, atol=tolerance(24, MAP))
    assert np.all(expected[:3] != 0)
    assert not expected[3].any()


def test_no_boxes():
    result, gradient = pooled((4, 2), 0, True)(MAP, np.zeros((0, 4), np.float32), np.zeros((1, 0, 4, 2, 2), np.float32))
    assert result.shape == (1, 0, 4, 2, 2)
    np.testing.assert_array_equal(gradient, np.zeros_like(MAP))


# ---------------------------------------------------------------- transformations

STRIDES = (4, 8, 16)
MAPS = [np.random.default_rng(s).standard_normal((2, 64 // s, 96 // s, 3)).astype(np.float32) for s in STRIDES]
BOXES = np.array(
    [
        [[2, 3, 30, 22], [0, 0, 96, 64], [-9, -9, 140, 100], [50, 10, 51, 60], [7, 7, 7, 7]],
        [[4, 4, 12, 12], [10, 2, 90, 8], [0, 0, 95, 63], [-300, 0, 400, 64], [30, 30, 29, 60]],
    ],
    np.float32,
)


def pyramid(maps, boxes):
    return multilevel_roi_align(maps, boxes, strides=STRIDES, output_size=3, sampling_ratio=0, aligned=True)


def loss(maps, boxes):
    return jnp.sum(jnp.sin(pyramid(maps, boxes).astype(jnp.float32)))


compiled = jax.jit(pyramid)
compiled_gradient = jax.jit(jax.grad(loss))


def test_jit_equals_eager():
    for image in range(2):
        maps = [m[image] for m in MAPS]
        np.testing.assert_allclose(
            pyramid(maps, BOXES[image]), compiled(maps, BOXES[image]), rtol=0, atol=tolerance(24, MAPS[0])
        )


def test_vmap_equals_the_loop():
    batched, gradients = jax.jit(jax.vmap(pyramid))(MAPS, BOXES), jax.jit(jax.vmap(jax.grad(loss)))(MAPS, BOXES)
    for image in range(2):
        maps = [m[image] for m in MAPS]
        np.testing.assert_array_equal(batched[image], compiled(maps, BOXES[image]))
        for joint, single in zip(gradients, compiled_gradient(maps, BOXES[image]), strict=True):
            # Not to the bit: a compiled sum of products may round differently in another program.
            np.testing.assert_allclose(joint[image], single, rtol=0, atol=tolerance(24, single))


def test_vmap_over_boxes_alone_shares_the_maps():
    maps = [m[0] for m in MAPS]
    run = jax.vmap(pyramid, in_axes=(None, 0))
    both = jax.jit(run)(maps, BOXES)
    gradient = jax.jit(jax.grad(lambda maps: jnp.sum(jnp.sin(run(maps, BOXES)))))(maps)
    parts = [compiled_gradient(maps, boxes) for boxes in BOXES]
    for image in range(2):
        np.testing.assert_array_equal(both[image], compiled(maps, BOXES[image]))
    for level, total in enumerate(gradient):
        expected = parts[0][level] + parts[1][level]
        np.testing.assert_allclose(total, expected, rtol=0, atol=tolerance(24, expected))


def test_vmap_twice():
    maps = [np.stack([m, m[::-1]]) for m in MAPS]
    result = jax.jit(jax.vmap(jax.vmap(pyramid)))(maps, np.stack([BOXES, BOXES[::-1]]))
    np.testing.assert_array_equal(result[0], result[1][::-1])
    np.testing.assert_array_equal(result[0, 0], compiled([m[0] for m in MAPS], BOXES[0]))


def test_boxes_get_no_gradient():
    gradient = jax.jit(jax.grad(loss, argnums=1))([m[0] for m in MAPS], BOXES[0])
    np.testing.assert_array_equal(gradient, np.zeros_like(BOXES[0]))


def test_bfloat16_features_are_summed_in_float32():
    maps = [jnp.asarray(m[0], jnp.bfloat16) for m in MAPS]
    wide = [m.astype(jnp.float32) for m in maps]
    result, expected = compiled(maps, BOXES[0]), compiled(wide, BOXES[0])
    assert result.dtype == jnp.bfloat16
    # The only rounding is that of the result: it is the float32 result, to the bit.
    np.testing.assert_array_equal(result, expected.astype(jnp.bfloat16))
    gradient = compiled_gradient(maps, BOXES[0])
    assert {g.dtype for g in gradient} == {jnp.dtype(jnp.bfloat16)}
    # Rounding (half of 2^-8) moves the pooled values, hence their cosines, which are rounded themselves; the transpose
    # adds these errors up with the weights of the cell; its result is rounded once more.
    half = 2.0**-9
    error = half * (float(jnp.max(jnp.abs(expected))) + 1.0)
    weights = jax.grad(lambda maps: jnp.sum(pyramid(maps, BOXES[0])))(wide)
    for part, reference, weight in zip(gradient, compiled_gradient(wide, BOXES[0]), weights, strict=True):
        difference = jnp.abs(part.astype(jnp.float32) - reference)
        assert np.all(difference <= error * weight + half * (jnp.abs(reference) + error * weight) + 1e-6)


@pytest.mark.parametrize("side", [1, roi_kernels.SQUARE])
def test_both_formulations_agree(side):
    """The formulation that the platform of the tests does not choose is tested by the one that it does."""
    maps = tuple(jnp.asarray(m) for m in MAPS)
    boxes = jnp.asarray(BOXES.reshape(-1, 4))
    levels = roi_levels(boxes, max_level=4) - 2
    rois = roi_kernels.RoIs(boxes, levels, jnp.repeat(jnp.arange(2, dtype=jnp.int32), 5))
    for sampling_ratio in (0, 2):
        axes = _axes(
            rois, maps, scales=(1 / 4, 1 / 8, 1 / 16), bins=(3, 3), sampling_ratio=sampling_ratio, aligned=True
        )
        wide = jax.jit(functools.partial(roi_kernels._forward_wide, side=side))(maps, rois, *axes)
        narrow = jax.jit(roi_kernels._forward_cpu)(maps, rois, *axes)
        np.testing.assert_allclose(wide, narrow, rtol=0, atol=tolerance(24, MAPS[0]))
        cotangent = jnp.sin(narrow)
        like = tuple(m[..., :0] for m in maps)
        for a, b in zip(
            jax.jit(functools.partial(roi_kernels._backward_wide, side=side))(like, rois, *axes, cotangent),
            jax.jit(roi_kernels._backward_cpu)(like, rois, *axes, cotangent),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance(24, np.asarray(b)))
