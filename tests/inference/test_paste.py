"""Pasting against torchvision and Detectron2; run lengths against pycocotools on the whole image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from mrcnn_jax.inference.paste import Region, encode_rle, paste_mask, paste_probabilities

RULES = ("detectron2", "torchvision")


def on_image(region, size):
    """Put the region in an empty image."""
    image = np.zeros(size, dtype=region.pixels.dtype)
    height, width = region.pixels.shape
    image[region.top : region.top + height, region.left : region.left + width] = region.pixels
    return image


def naive_detectron2(mask, box, size):
    """Bilinear samples of the mask at the pixel centers of the whole image, one pixel at a time, in float64."""
    image = np.zeros(size)
    side = len(mask)
    padded = np.pad(mask.astype(float), 1)
    for y, x in np.ndindex(*size):
        v = (y + 0.5 - box[1]) / (box[3] - box[1]) * side + 0.5  # + 1 for the border, - 1/2 for the pixel center
        u = (x + 0.5 - box[0]) / (box[2] - box[0]) * side + 0.5
        if 0 <= u < side + 1 and 0 <= v < side + 1:
            i, j = int(v), int(u)
            a, b = v - i, u - j
            top = (1 - b) * padded[i, j] + b * padded[i, j + 1]
            image[y, x] = (1 - a) * top + a * ((1 - b) * padded[i + 1, j] + b * padded[i + 1, j + 1])
    return image


def test_golden_detectron2_paste(golden):
    arrays = golden("d2_op_paste_masks.npz")
    size = tuple(arrays["paste_hw"].tolist())
    for mask, box, expected, soft in zip(
        arrays["paste_masks"], arrays["paste_boxes"], arrays["paste_bool"], arrays["paste_u8_soft"], strict=True
    ):
        np.testing.assert_array_equal(on_image(paste_mask(mask, box, size, "detectron2"), size), expected)
        ours = on_image(paste_probabilities(mask, box, size, "detectron2"), size) * 255
        # The reference was truncated to integers: one unit, and float32 noise of values up to 255.
        assert np.all(ours > soft - 1e-3)
        assert np.all(ours < soft + 1 + 1e-3)


def test_golden_torchvision_paste(golden):
    arrays = golden("tv_op_mask.npz")
    size = tuple(arrays["paste_hw"].tolist())
    for mask, box, expected in zip(arrays["paste_masks"], arrays["paste_boxes"], arrays["paste_out"], strict=True):
        ours = on_image(paste_probabilities(mask[0], box, size, "torchvision"), size)
        # Sample positions up to S + 2 = 30 have a float32 spacing of 2e-6; a few roundings of them move a value that
        # changes by at most 1 from one mask pixel to the next.
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


def test_detectron2_rule_is_bilinear_sampling_at_pixel_centers():
    rng = np.random.default_rng(0)
    size = (40, 50)
    for box in ([5.3, 4.1, 30.2, 33.7], [-12.0, -3.5, 20.0, 60.0], [8.2, 9.1, 9.4, 9.9]):
        mask, box = rng.random((7, 7), dtype=np.float32), np.array(box, dtype=np.float32)
        region = paste_probabilities(mask, box, size, "detectron2")
        whole = naive_detectron2(mask, box, size)
        inside = np.s_[
            region.top : region.top + region.pixels.shape[0], region.left : region.left + region.pixels.shape[1]
        ]
        np.testing.assert_allclose(region.pixels, whole[inside], rtol=0, atol=1e-5)  # float32 against float64
        whole[inside] = 0
        assert whole.max() < 0.5  # outside the region the mask is below the threshold


coordinate = st.floats(-40, 90, width=32)


@settings(max_examples=50)
@given(
    corners=st.tuples(coordinate, coordinate, coordinate, coordinate),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    side=st.sampled_from([1, 2, 28]),
    rule=st.sampled_from(RULES),
    seed=st.integers(0, 5),
)
def test_run_lengths_equal_those_of_the_whole_image(corners, size, side, rule, seed):
    x0, y0, x1, y1 = corners
    box = np.array([min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)], dtype=np.float32)
    # Values of 0, 1/2 and 1 make holes, whole columns and exact ties with the threshold.
    mask = np.random.default_rng(seed).integers(0, 3, (side, side)).astype(np.float32) / 2
    region = paste_mask(mask, box, size, rule)
    whole = on_image(region, size)
    reference = coco_mask.encode(np.asfortranarray(whole.astype(np.uint8)))
    assert encode_rle([region], size) == [{"size": list(size), "counts": reference["counts"].decode()}]


@pytest.mark.parametrize("value", [False, True])
def test_run_lengths_of_a_region_as_large_as_the_image(value):
    pixels = np.full((4, 3), value)
    reference = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
    assert encode_rle([Region(pixels, 0, 0)], (4, 3))[0]["counts"] == reference["counts"].decode()


def test_encoding_no_masks():
    assert encode_rle([], (4, 3)) == []


@pytest.mark.parametrize("box", [[30, 30, 30, 30], [70, 10, 80, 20], [-30, -30, -10, -10]])
def test_boxes_without_extent_or_outside_the_image_give_empty_masks(box):
    region = paste_mask(np.ones((28, 28), np.float32), np.array(box, np.float32), (50, 60), "detectron2")
    assert not on_image(region, (50, 60)).any()
