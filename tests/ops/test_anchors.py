"""Anchors: hand cases, a loop over cells, torchvision and Detectron2."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from mrcnn_jax.config import AnchorConfig
from mrcnn_jax.ops.anchors import cell_anchors, grid_anchors

STRIDES = (4, 8, 16, 32, 64)
SIZES = ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))
ALL_SIZES = (tuple(size for (size,) in SIZES),)
RATIOS = (0.5, 1.0, 2.0)
DETECTRON2 = AnchorConfig(SIZES, RATIOS, rounded=False, order="size_major")
TORCHVISION = AnchorConfig(SIZES, RATIOS, rounded=True, order="ratio_major", stride="image_over_grid")

ONE_ANCHOR = {"sizes": ((2.0,),), "aspect_ratios": (1.0,)}


def grids(shape: tuple[int, int], strides: tuple[int, ...] = STRIDES) -> list[tuple[int, int]]:
    return [(-(-shape[0] // stride), -(-shape[1] // stride)) for stride in strides]


def image_shapes(arrays: dict, prefix: str) -> list[tuple[str, tuple[int, int]]]:
    """Keys `<prefix><H>x<W>` and their shapes."""
    matches = [re.fullmatch(re.escape(prefix) + r"(\d+)x(\d+)", key) for key in arrays]
    return [(m.group(0), (int(m.group(1)), int(m.group(2)))) for m in matches if m]


def test_hand_case():
    cell = cell_anchors(replace(DETECTRON2, aspect_ratios=(1.0, 4.0)), (16.0,))
    np.testing.assert_array_equal(cell, [[-8, -8, 8, 8], [-4, -16, 4, 16]])
    (grid,) = grid_anchors(replace(DETECTRON2, **ONE_ANCHOR), (8, 12), [(2, 3)], (4,))
    centers = (grid[:, :2] + grid[:, 2:]) / 2
    np.testing.assert_array_equal(centers, [[0, 0], [4, 0], [8, 0], [0, 4], [4, 4], [8, 4]])
    assert grid.dtype == np.float32


def test_order_of_sizes_and_ratios():
    config = replace(DETECTRON2, aspect_ratios=(1.0, 4.0))
    by_size = cell_anchors(config, (8.0, 16.0))
    by_ratio = cell_anchors(replace(config, order="ratio_major"), (8.0, 16.0))
    np.testing.assert_array_equal(by_size[:, 3], [4, 8, 8, 16])
    np.testing.assert_array_equal(by_ratio, by_size[[0, 2, 1, 3]])


def test_image_over_grid_stride_is_an_integer_in_each_direction():
    (grid,) = grid_anchors(replace(TORCHVISION, **ONE_ANCHOR), (128, 160), [(2, 3)], (64,))
    np.testing.assert_array_equal(grid[[1, 3], :2] + 1, [[53, 0], [0, 64]])


def test_grid_equals_a_loop_over_cells():
    shape = (64, 96)
    expected = [
        [x * stride - w / 2, y * stride - h / 2, x * stride + w / 2, y * stride + h / 2]
        for (rows, columns), stride, (size,) in zip(grids(shape), STRIDES, SIZES, strict=True)
        for y in range(rows)
        for x in range(columns)
        for w, h in [(size / ratio**0.5, size * ratio**0.5) for ratio in RATIOS]
    ]
    ours = grid_anchors(DETECTRON2, shape, grids(shape), STRIDES)
    np.testing.assert_allclose(np.concatenate(ours), expected, rtol=1e-6, atol=1e-5)  # float32 coordinates up to 460


def test_levels_without_cells_have_no_anchors():
    (ours,) = grid_anchors(replace(DETECTRON2, sizes=((8.0,),)), (0, 0), [(0, 3)], (4,))
    assert ours.shape == (0, 4)


def test_number_of_levels_must_match():
    with pytest.raises(ValueError, match="argument"):
        grid_anchors(DETECTRON2, (8, 8), [(2, 2)], STRIDES)


def test_golden_torchvision(golden):
    arrays = golden("tv_op_anchors.npz")
    for level, sizes in enumerate(SIZES):
        np.testing.assert_array_equal(cell_anchors(TORCHVISION, sizes), arrays[f"cell_{level}"])
    shapes = image_shapes(arrays, "anchors_")
    assert shapes
    for key, shape in shapes:
        grid = [tuple(g) for g in arrays[key.replace("anchors", "grid")].tolist()]
        ours = grid_anchors(TORCHVISION, shape, grid, STRIDES)
        np.testing.assert_array_equal(np.concatenate(ours), arrays[key])


def test_golden_detectron2(golden):
    arrays = golden("d2_op_anchors.npz")
    cells = np.stack([cell_anchors(DETECTRON2, sizes) for sizes in SIZES])
    np.testing.assert_array_equal(cells, arrays["cell_off0.0"])
    shapes = image_shapes(arrays, "anchors_off0.0_")
    assert shapes
    for key, shape in shapes:
        ours = grid_anchors(DETECTRON2, shape, grids(shape), STRIDES)
        np.testing.assert_array_equal(np.concatenate(ours), arrays[key])


@pytest.mark.parametrize(("name", "flavor"), [("tv_op_anchors.npz", TORCHVISION), ("d2_op_anchors.npz", DETECTRON2)])
def test_golden_c4(golden, name, flavor):
    arrays = golden(name)
    config = replace(flavor, sizes=ALL_SIZES, stride="nominal")
    np.testing.assert_array_equal(cell_anchors(config, ALL_SIZES[0]), arrays["c4_cell"])
    for key, shape in image_shapes(arrays, "c4_anchors_"):
        (ours,) = grid_anchors(config, shape, grids(shape, (16,)), (16,))
        np.testing.assert_array_equal(ours, arrays[key])
