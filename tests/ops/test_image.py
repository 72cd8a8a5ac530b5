"""Normalization and resizing: hand cases, torch, torchvision's transform."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.inference.reference_preprocessing import resize_bilinear
from mrcnn_jax.ops.image import bicubic_weights, normalize, upsample_bilinear_2x

F32 = np.finfo(np.float32).eps
weights_of = jax.jit(bicubic_weights, static_argnums=1)
normalized = jax.jit(normalize, static_argnames=("mean", "std", "channel_order"))
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def test_padding_is_zero_after_normalization():
    image = np.full((4, 6, 3), 200, np.uint8)
    clean = image.copy()
    clean[3:], clean[:, 4:] = 0, 0
    run = functools.partial(normalized, image_size=np.int32([3, 4]), mean=MEAN, std=STD)
    result = run(image)
    np.testing.assert_array_equal(result, run(clean))
    np.testing.assert_array_equal(result[3:], np.zeros((1, 6, 3)))
    np.testing.assert_array_equal(result[:, 4:], np.zeros((4, 2, 3)))
    np.testing.assert_allclose(result[2, 3], (200 - np.float32(MEAN)) / np.float32(STD), rtol=4 * F32)


def test_bgr_reverses_channels_and_uses_means_in_that_order():
    image = np.uint8([[[10, 20, 30]]])
    result = normalized(image, np.int32([1, 1]), mean=(1, 2, 3), std=(1, 1, 2), channel_order="bgr")
    np.testing.assert_array_equal(result, [[[29.0, 18.0, 3.5]]])


def test_normalize_under_vmap_with_different_sizes():
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3)).astype(np.uint8)
    sizes = np.int32([[5, 2], [3, 4]])
    one = lambda image, size: normalized(image, size, mean=MEAN, std=STD)  # noqa: E731
    batched = jax.vmap(one)(images, sizes)
    for i in range(2):
        np.testing.assert_array_equal(batched[i], one(images[i], sizes[i]))


@pytest.mark.parametrize("sides", [(13, 9), (4, 31), (1, 40), (1, 1), (7, 5), (7, 12)], ids=str)
def test_bicubic_weights_resize_as_torch(sides):
    """Also for sizes that are not static; pixels outside of the output have no NaN."""
    torch = pytest.importorskip("torch")
    image = np.random.default_rng(1).random((7, 12)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(image[None, None]), size=sides, mode="bicubic", align_corners=False
    )[0, 0].numpy()
    pixels = np.arange(64, dtype=np.int32)
    rows, columns = (
        np.asarray(weights_of(pixels, old, np.int32(new))) for old, new in zip(image.shape, sides, strict=True)
    )
    assert np.isfinite(rows).all()
    assert np.isfinite(columns).all()
    result = rows[: sides[0]] @ image @ columns[: sides[1]].T
    # Positions up to 12 with half an ulp each; the slope of the cubic and the sum of its absolute weights are below 2.
    np.testing.assert_allclose(result, expected, rtol=0, atol=4 * 12 * F32)


@pytest.mark.medium
@pytest.mark.parametrize("shape", [(2, 3, 5, 2), (1, 1, 4, 1)], ids=str)
def test_upsample_bilinear_2x_and_its_gradient_equal_torch(shape):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    images = rng.random(shape).astype(np.float32)
    doubled, pull = jax.vjp(jax.jit(upsample_bilinear_2x), images)
    theirs = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).requires_grad_()
    expected = torch.nn.functional.interpolate(theirs, scale_factor=2, mode="bilinear", align_corners=False)
    # Two weighted means of two neighbors: at most four roundings of numbers below 1.
    np.testing.assert_allclose(doubled, expected.detach().permute(0, 2, 3, 1), rtol=0, atol=4 * F32)
    cotangent = rng.random(doubled.shape).astype(np.float32)
    expected.backward(torch.from_numpy(cotangent.transpose(0, 3, 1, 2).copy()))
    # At most 16 terms whose weights sum to 4.
    np.testing.assert_allclose(pull(jnp.asarray(cotangent))[0], theirs.grad.permute(0, 2, 3, 1), atol=16 * F32)


def test_golden_transform_torchvision(golden):
    arrays = golden("tv_op_transform.npz")
    mean, std = 255 * np.float64([0.485, 0.456, 0.406]), 255 * np.float64([0.229, 0.224, 0.225])
    for i, size in enumerate(arrays["image_sizes"]):
        height, width = (int(n) for n in size)
        image = arrays[f"img_u8_{i}"].transpose(1, 2, 0)
        normal = normalized(image, np.int32(image.shape[:2]), mean=tuple(mean), std=tuple(std))
        expected = arrays["batched"][i].transpose(1, 2, 0)
        result = np.zeros_like(expected)
        result[:height, :width] = resize_bilinear(np.asarray(normal), (height, width))
        # Both round a position three times by half a unit, on two axes: six units, doubled as a margin, times the
        # largest step between neighbors (5 deviations).
        np.testing.assert_allclose(result, expected, rtol=0, atol=12 * F32 * max(image.shape) * 5)
