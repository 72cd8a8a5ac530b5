"""Anchors: hand cases, a loop over cells, torchvision and Detectron2."""

from __future__ import annotations

import re

import numpy as np
import pytest

from mrcnn_jax.ops import anchors as anchor_ops

SIZES = ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))
ALL_SIZES = (tuple(size for (size,) in SIZES),)
RATIOS = (0.5, 1.0, 2.0)
TORCHVISION = {"rounded": True, "order": "ratio_major"}
DETECTRON2 = {"rounded": False, "order": "size_major"}


def grids(shape: tuple[int, int], strides: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(-(-shape[0] // stride), -(-shape[1] // stride)) for stride in strides]


def image_shapes(arrays: dict, prefix: str) -> list[tuple[str, tuple[int, int]]]:
    """Keys `<prefix><H>x<W>` and their shapes."""
    matches = [re.fullmatch(re.escape(prefix) + r"(\d+)x(\d+)", key) for key in arrays]
    return [(m.group(0), (int(m.group(1)), int(m.group(2)))) for m in matches if m]


def test_hand_case():
    cell = anchor_ops.cell_anchors((16.0,), (1.0, 4.0), rounded=False, order="size_major")
    np.testing.assert_array_equal(cell, [[-8, -8, 8, 8], [-4, -16, 4, 16]])
    grid = anchor_ops.grid_anchors((8, 12), [(2, 3)], sizes=((2.0,),), aspect_ratios=(1.0,), strides=(4,), **DETECTRON2)
    centers = (grid[:, :2] + grid[:, 2:]) / 2
    np.testing.assert_array_equal(centers, [[0, 0], [4, 0], [8, 0], [0, 4], [4, 4], [8, 4]])
    assert grid.dtype == np.float32


def test_order_of_sizes_and_ratios():
    by_size = anchor_ops.cell_anchors((8.0, 16.0), (1.0, 4.0), rounded=False, order="size_major")
    by_ratio = anchor_ops.cell_anchors((8.0, 16.0), (1.0, 4.0), rounded=False, order="ratio_major")
    np.testing.assert_array_equal(by_size[:, 3], [4, 8, 8, 16])
    np.testing.assert_array_equal(by_ratio, by_size[[0, 2, 1, 3]])


def test_image_over_grid_stride_is_an_integer_in_each_direction():
    grid = anchor_ops.grid_anchors(
        (128, 160), [(2, 3)], sizes=((2.0,),), aspect_ratios=(1.0,), stride="image_over_grid", **TORCHVISION
    )
    np.testing.assert_array_equal(grid[[1, 3], :2] + 1, [[53, 0], [0, 64]])


def test_grid_equals_a_loop_over_cells():
    shape, strides = (64, 96), (4, 8, 16, 32, 64)
    expected = [
        [x * stride - w / 2, y * stride - h / 2, x * stride + w / 2, y * stride + h / 2]
        for (rows, columns), stride, (size,) in zip(grids(shape, strides), strides, SIZES, strict=True)
        for y in range(rows)
        for x in range(columns)
        for w, h in [(size / ratio**0.5, size * ratio**0.5) for ratio in RATIOS]
    ]
    ours = anchor_ops.grid_anchors(shape, grids(shape, strides), sizes=SIZES, aspect_ratios=RATIOS, **DETECTRON2)
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-5)  # float32 coordinates up to 460


def test_levels_without_cells_have_no_anchors():
    ours = anchor_ops.grid_anchors((0, 0), [(0, 3)], sizes=((8.0,),), aspect_ratios=RATIOS, **DETECTRON2)
    assert ours.shape == (0, 4)


def test_number_of_levels_must_match():
    with pytest.raises(ValueError, match="argument 2"):
        anchor_ops.grid_anchors((8, 8), [(2, 2)], sizes=SIZES, aspect_ratios=RATIOS, **DETECTRON2)


def test_golden_torchvision(golden):
    arrays = golden("tv_op_anchors.npz")
    for level, sizes in enumerate(SIZES):
        np.testing.assert_array_equal(anchor_ops.cell_anchors(sizes, RATIOS, **TORCHVISION), arrays[f"cell_{level}"])
    shapes = image_shapes(arrays, "anchors_")
    assert shapes
    for key, shape in shapes:
        grid = [tuple(g) for g in arrays[key.replace("anchors", "grid")].tolist()]
        ours = anchor_ops.grid_anchors(
            shape, grid, sizes=SIZES, aspect_ratios=RATIOS, stride="image_over_grid", **TORCHVISION
        )
        np.testing.assert_array_equal(ours, arrays[key])


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_golden_detectron2(golden, offset):
    arrays = golden("d2_op_anchors.npz")
    cells = np.stack([anchor_ops.cell_anchors(sizes, RATIOS, **DETECTRON2) for sizes in SIZES])
    np.testing.assert_array_equal(cells, arrays[f"cell_off{offset}"])
    shapes = image_shapes(arrays, f"anchors_off{offset}_")
    assert shapes
    for key, shape in shapes:
        ours = anchor_ops.grid_anchors(
            shape, grids(shape, (4, 8, 16, 32, 64)), sizes=SIZES, aspect_ratios=RATIOS, offset=offset, **DETECTRON2
        )
        np.testing.assert_array_equal(ours, arrays[key])


@pytest.mark.parametrize(("name", "flavor"), [("tv_op_anchors.npz", TORCHVISION), ("d2_op_anchors.npz", DETECTRON2)])
def test_golden_c4(golden, name, flavor):
    arrays = golden(name)
    np.testing.assert_array_equal(anchor_ops.cell_anchors(ALL_SIZES[0], RATIOS, **flavor), arrays["c4_cell"])
    for key, shape in image_shapes(arrays, "c4_anchors_"):
        ours = anchor_ops.grid_anchors(
            shape, grids(shape, (16,)), sizes=ALL_SIZES, aspect_ratios=RATIOS, strides=(16,), **flavor
        )
        np.testing.assert_array_equal(ours, arrays[key])
