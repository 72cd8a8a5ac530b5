"""Preprocessing of torchvision and Detectron2: sizes, pixels, padding."""

from __future__ import annotations

import re

import numpy as np
import pytest

from mrcnn_jax.config import presets
from mrcnn_jax.inference.reference_preprocessing import (
    detectron2_input,
    detectron2_size,
    resize_bilinear,
    torchvision_input,
    torchvision_size,
)

COCO = {"shortest_edge": 800, "longest_edge": 1333}
SIZES = [(480, 640), (427, 640), (640, 425), (1000, 300), (77, 150), (500, 500), (3000, 2001)]
# Values are below 4, where float32 has steps of 2.4e-7; normalization and interpolation along two axes round six times.
ROUNDING = 1.5e-6


def pixels(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("size", "torchvision", "detectron2"),
    [
        ((480, 640), (800, 1066), (800, 1067)),
        ((640, 480), (1066, 800), (1067, 800)),
        ((300, 1000), (399, 1333), (400, 1333)),
        ((800, 800), (800, 800), (800, 800)),
        ((1, 4000), (1, 1333), (1, 1333)),  # never empty
    ],
)
def test_sizes(size, torchvision, detectron2):
    assert torchvision_size(size, **COCO) == torchvision
    assert detectron2_size(size, **COCO) == detectron2


def test_golden_torchvision_input(golden):
    theirs = golden("tv_op_transform.npz")
    stated = re.search(r"tv_op_transform: min (\d+), max (\d+)", golden.file("README.md").read_text())
    model = presets.torchvision()
    for i, size in enumerate(theirs["image_sizes"].tolist()):
        image = theirs[f"img_u8_{i}"].transpose(1, 2, 0)
        edges = {"shortest_edge": int(stated[1]), "longest_edge": int(stated[2])}
        ours, (height, width) = torchvision_input(image, mean=model.pixel_mean, std=model.pixel_std, **edges)
        assert [height, width] == size
        assert ours.dtype == np.float32
        assert ours.shape == (height + -height % 32, width + -width % 32, 3)
        assert not ours[height:].any()
        assert not ours[:, width:].any()
        expected = theirs["batched"][i].transpose(1, 2, 0)
        np.testing.assert_allclose(ours[:height, :width], expected[:height, :width], rtol=0, atol=ROUNDING)


@pytest.mark.medium
@pytest.mark.parametrize("size", SIZES)
def test_interpolation_equals_torch(size):
    torch = pytest.importorskip("torch")
    image = np.random.default_rng(1).uniform(-2, 2, (*size, 3)).astype(np.float32)
    scale = min(COCO["shortest_edge"] / min(size), COCO["longest_edge"] / max(size))
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(image.transpose(2, 0, 1).copy())[None],
        scale_factor=scale,
        mode="bilinear",
        recompute_scale_factor=True,
        align_corners=False,
    )
    theirs = theirs[0].numpy().transpose(1, 2, 0)
    assert torchvision_size(size, **COCO) == theirs.shape[:2]
    # This build of torch may compute positions by a fused operation: one rounding of the last one, times a slope of
    # at most 4 from pixel to pixel, along each axis.
    position = np.finfo(np.float32).eps * max(size) / 2 * 4 * 2
    np.testing.assert_allclose(resize_bilinear(image, theirs.shape[:2]), theirs, rtol=0, atol=ROUNDING + position)


def test_channels_of_a_bgr_model():
    image = pixels(40, 50)
    statistics = {"mean": (10.0, 20.0, 30.0), "std": (1.0, 2.0, 3.0)}
    edges = {"shortest_edge": 32, "longest_edge": 64}
    swapped, _ = torchvision_input(image, channel_order="bgr", **statistics, **edges)
    expected, _ = torchvision_input(image[..., ::-1], **statistics, **edges)
    np.testing.assert_array_equal(swapped, expected)


@pytest.mark.parametrize("divisor", [1, 32])
def test_detectron2_input(divisor):
    image = pixels(96, 144)
    ours, size = detectron2_input(image, shortest_edge=67, longest_edge=200, divisor=divisor)
    assert size == (67, 101)
    assert ours.dtype == np.uint8
    assert ours.shape == ((67, 101, 3) if divisor == 1 else (96, 128, 3))
    assert not ours[67:].any()
    assert not ours[:, 101:].any()
    assert ours[:67, :101].any()


@pytest.mark.parametrize("edges", [(67, 200), (150, 400)])  # smaller, larger
def test_detectron2_resizes_with_antialiasing(edges):
    torch = pytest.importorskip("torch")
    image = pixels(96, 144)
    ours, size = detectron2_input(image, shortest_edge=edges[0], longest_edge=edges[1], divisor=1)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(image.transpose(2, 0, 1).astype(np.float64))[None],
        size=size,
        mode="bilinear",
        align_corners=False,
        antialias=True,
    )
    difference = np.abs(ours - theirs[0].numpy().transpose(1, 2, 0))
    # Pillow rounds to 8 bits after each axis: half a level for the last, at most half for the first, a little more
    # for its weights of limited precision.
    assert difference.max() < 1.1


def test_an_image_of_the_target_size_is_not_resized():
    image = pixels(128, 160)
    ours, size = detectron2_input(image, shortest_edge=128, longest_edge=200, divisor=32)
    assert size == (128, 160)
    np.testing.assert_array_equal(ours, image)
    ours, size = torchvision_input(image, shortest_edge=128, longest_edge=200, mean=(0, 0, 0), std=(255, 255, 255))
    np.testing.assert_array_equal(ours, image.astype(np.float32) / np.float32(255))
