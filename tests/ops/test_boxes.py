"""Box operations: hand cases, a plain reference, torchvision and Detectron2, empty and NaN boxes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_jax.ops import boxes as box_ops

PLAIN = (1.0, 1.0, 1.0, 1.0)
WEIGHTS = {"1111": PLAIN, "10_10_5_5": (10.0, 10.0, 5.0, 5.0)}
EMPTY = np.array([[5, 5, 5, 9], [5, 5, 5, 5], [0, 0, 0, 0], [-9, 2, -9, 2]], np.float32)
F32 = np.finfo(np.float32).eps
iou = jax.jit(box_ops.iou)
encode = jax.jit(box_ops.encode, static_argnames="weights")
decode = jax.jit(box_ops.decode, static_argnames="weights")


@pytest.fixture(autouse=True)
def _strict_types():
    with jax.numpy_dtype_promotion("strict"):
        yield


def rounding_error(expected: np.ndarray) -> float:
    """Both implementations round at most eight times by half a unit of the largest value; doubled as a margin."""
    return 16 * F32 * float(np.abs(expected).max())


def random_boxes(seed: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-20, 100, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(1, 60, (count, 2))], axis=1).astype(np.float32)


def iou_reference(a: np.ndarray, b: np.ndarray) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if width * height else 0.0


def test_hand_case():
    a = jnp.array([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 22.0, 21.0]])
    b = jnp.array([[5.0, 0.0, 15.0, 10.0], [10.0, 0.0, 20.0, 10.0], [0.0, 0.0, 40.0, 40.0]])
    np.testing.assert_array_equal(box_ops.area(a), [100, 2])
    np.testing.assert_array_equal(box_ops.area(jnp.array([3.0, 3.0, 1.0, 1.0])), 0)
    np.testing.assert_allclose(iou(a, b), [[1 / 3, 0, 1 / 16], [0, 0, 2 / 1600]], rtol=1e-6)
    np.testing.assert_array_equal(
        box_ops.clip(jnp.array([[-5.0, -6.0, 70.0, 80.0]]), jnp.array([30, 40])), [[0, 0, 40, 30]]
    )


def test_large_enough_includes_the_limit_but_zero_means_not_empty():
    boxes = jnp.array([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 1.0, 5.0], [0.0, 0.0, 0.0, 5.0], [3.0, 0.0, 1.0, 5.0]])
    np.testing.assert_array_equal(box_ops.large_enough(boxes, 2.0), [True, False, False, False])
    np.testing.assert_array_equal(box_ops.large_enough(boxes, 0.0), [True, True, False, False])


def test_encode_by_hand():
    anchor, box = jnp.array([[0.0, 0.0, 10.0, 20.0]]), jnp.array([[5.0, 0.0, 25.0, 20.0]])
    expected = [10 * 1.0, 10 * 0.0, 5 * np.log(2), 0]
    np.testing.assert_allclose(encode(box, anchor, weights=WEIGHTS["10_10_5_5"])[0], expected, rtol=1e-6)


def test_decode_limits_the_scale_from_above_only():
    anchor = jnp.array([[0.0, 0.0, 16.0, 16.0]])
    wide, tall = (decode(jnp.array([[0.0, 0.0, dw, -dw]]), anchor, weights=PLAIN)[0] for dw in (50.0, -50.0))
    np.testing.assert_allclose(wide, [8 - 500, 8, 8 + 500, 8], rtol=1e-5)
    np.testing.assert_allclose(tall, [8, 8 - 500, 8, 8 + 500], rtol=1e-5)


def test_iou_equals_the_reference():
    a, b = random_boxes(0, 30), random_boxes(1, 40)
    expected = np.array([[iou_reference(x, y) for y in b.astype(float)] for x in a.astype(float)])
    # A few roundings of areas up to 7200, relative to a union of at least the larger area: about 8 epsilon.
    np.testing.assert_allclose(iou(a, b), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["tv_op_boxcoder.npz", "d2_op_box2box.npz"])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_golden_box_coder(golden, name, weights):
    arrays = golden(name)
    proposals, weight = arrays["proposals"], WEIGHTS[weights]
    encoded = encode(arrays["gt"], proposals, weights=weight)
    decoded = decode(arrays["deltas"], proposals, weights=weight)
    many = decode(arrays["deltas5"].reshape(len(proposals), -1, 4), jnp.asarray(proposals)[:, None], weights=weight)
    expected = [arrays[f"{kind}_{weights}"] for kind in ("encode", "decode", "decode5")]
    for ours, theirs in zip((encoded, decoded, many), expected, strict=True):
        np.testing.assert_allclose(ours, theirs.reshape(ours.shape), rtol=0, atol=rounding_error(theirs))


def test_golden_clamp(golden):
    np.testing.assert_allclose(box_ops.SCALE_CLAMP, golden("tv_op_boxcoder.npz")["bbox_xform_clip"], rtol=1e-12)


def test_golden_iou_and_clip(golden):
    arrays = golden("tv_op_nms.npz")
    boxes = arrays["boxes"]
    rows, columns = arrays["iou"].shape
    ours = iou(boxes[:rows], boxes[rows : rows + columns])
    np.testing.assert_allclose(ours, arrays["iou"], rtol=0, atol=rounding_error(np.ones(1)))
    np.testing.assert_array_equal(
        np.flatnonzero(box_ops.large_enough(jnp.asarray(boxes), 1.0)), arrays["remove_small_1"]
    )
    # The reference boxes were shifted by (-20, -20) before clipping, so that some are outside on every side.
    clipped = box_ops.clip(jnp.asarray(boxes) - 20.0, jnp.array([120, 150]))
    np.testing.assert_array_equal(clipped, arrays["clip_120x150"])


coordinate = st.integers(-40, 40).map(float)
side = st.integers(0, 30).map(float)
box = st.tuples(coordinate, coordinate, side, side).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


@settings(max_examples=30)
@given(st.lists(box, min_size=6, max_size=6))
def test_iou_of_integer_boxes_is_exact(boxes):
    array = np.array(boxes, np.float32)
    # Areas are small integers, exact in float32, so only the division rounds: half a unit in the last place.
    expected = np.array([[iou_reference(a, b) for b in boxes] for a in boxes])
    np.testing.assert_allclose(iou(array, array), expected, rtol=6e-8, atol=0)


@settings(max_examples=30)
@given(st.lists(box, min_size=6, max_size=6), st.lists(box, min_size=6, max_size=6))
def test_decode_inverts_encode(boxes, anchors):
    boxes, anchors = np.array(boxes, np.float32), np.array(anchors, np.float32)
    solid = (anchors[:, 2:] > anchors[:, :2]).all(axis=1)
    deltas = encode(boxes, anchors, weights=PLAIN)
    assert np.isfinite(deltas).all()
    back = decode(deltas, anchors, weights=PLAIN)
    # Coordinates up to 70; log and exp of ratios up to 30 or 1e-6 lose a few units in the last place, centers likewise.
    np.testing.assert_allclose(np.asarray(back)[solid], boxes[solid], atol=1e-4)


def test_overlaps_of_empty_and_nan_boxes_are_zero():
    strange = np.concatenate([EMPTY, np.full((1, 4), np.nan, np.float32)])
    others = np.concatenate([strange, random_boxes(0, 3)])
    np.testing.assert_array_equal(iou(strange, others), 0)
    assert np.isnan(box_ops.clip(jnp.full((1, 4), jnp.nan), jnp.array([5, 5]))).all()


def test_gradient_of_overlaps_is_finite_at_empty_boxes():
    gradients = jax.jit(jax.grad(lambda a, b: box_ops.iou(a, b).sum(), argnums=(0, 1)))(
        jnp.asarray(EMPTY), jnp.asarray(EMPTY)
    )
    assert all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("function", [encode, decode])
def test_coder_and_its_gradient_are_finite_at_empty_boxes(function):
    total = jax.value_and_grad(lambda a, b: function(a, b, weights=PLAIN).sum(), argnums=(0, 1))
    value, gradients = jax.jit(total)(EMPTY, EMPTY)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradients)


def test_no_boxes():
    none, some = np.zeros((0, 4), np.float32), random_boxes(0, 3)
    assert iou(none, some).shape == (0, 3)
    assert iou(some, none).shape == (3, 0)
    assert encode(none, none, weights=PLAIN).shape == (0, 4)


@pytest.mark.parametrize("name", ["iou", "encode", "decode", "clip"])
def test_vmap_equals_the_loop(name):
    a, b = random_boxes(2, 24).reshape(3, 8, 4), random_boxes(3, 24).reshape(3, 8, 4)
    function = {
        "iou": box_ops.iou,
        "encode": lambda x, y: box_ops.encode(x, y, weights=PLAIN),
        "decode": lambda x, y: box_ops.decode(x / 100.0, y, weights=PLAIN),
        "clip": lambda x, y: box_ops.clip(x, jnp.array([30, 40])),
    }[name]
    alone = jax.jit(function)
    expected = np.stack([alone(x, y) for x, y in zip(a, b, strict=True)])
    # Compiled code may contract a product and a sum into one rounding.
    np.testing.assert_allclose(jax.jit(jax.vmap(function))(a, b), expected, rtol=0, atol=rounding_error(expected))
