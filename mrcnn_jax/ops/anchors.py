"""Anchors of the region proposal network (Ren et al. 2015).

They are NumPy arrays: image shapes are static, so anchors are constants of a compiled program.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mrcnn_jax.config import AnchorOrder, StrideRule


def cell_anchors(
    sizes: Sequence[float], aspect_ratios: Sequence[float], *, rounded: bool, order: AnchorOrder
) -> np.ndarray:
    """Anchors (A, 4) float32 of one cell, centered at 0, one for each pair of size and aspect ratio.

    Args:
        sizes: square roots of the areas, in pixels.
        aspect_ratios: height / width.
        rounded: round corners to integers. torchvision does, Detectron2 does not.
        order: "size_major" varies the ratio fastest (Detectron2), "ratio_major" the size (torchvision).
    """
    pairs = [(size, ratio) for size in sizes for ratio in aspect_ratios]
    if order == "ratio_major":
        pairs = [(size, ratio) for ratio in aspect_ratios for size in sizes]
    size, ratio = np.asarray(pairs, np.float64).reshape(-1, 2).T
    width = np.sqrt(size**2 / ratio)
    corner = np.stack([width, ratio * width], axis=-1) / 2.0
    cell = np.concatenate([-corner, corner], axis=-1)
    return (np.round(cell) if rounded else cell).astype(np.float32)


def grid_anchors(
    image_shape: tuple[int, int],
    grid_shapes: Sequence[tuple[int, int]],
    *,
    sizes: Sequence[Sequence[float]],
    aspect_ratios: Sequence[float],
    rounded: bool,
    order: AnchorOrder,
    strides: Sequence[int] = (4, 8, 16, 32, 64),
    stride: StrideRule = "nominal",
    offset: float = 0.0,
) -> np.ndarray:
    """Anchors (A, 4) float32 of all levels of a padded image, in the order level, y, x, anchor of the cell.

    Args:
        image_shape: (H, W) of the padded image.
        grid_shapes: (h, w) of each level.
        sizes: anchor sizes of each level.
        aspect_ratios: see `cell_anchors`, as are rounded and order.
        rounded: see `cell_anchors`.
        order: see `cell_anchors`.
        strides: nominal stride of each level in pixels.
        stride: "nominal" uses `strides`; "image_over_grid" divides the image size by the grid size in integers, as
            torchvision does (128 x 160 over 2 x 3 gives 64 and 53).
        offset: position of the first center, in strides.
    """
    levels = []
    for level, ((rows, columns), level_sizes) in enumerate(zip(grid_shapes, sizes, strict=True)):
        steps = (strides[level],) * 2 if stride == "nominal" else (image_shape[0] // rows, image_shape[1] // columns)
        y = ((np.arange(rows) + offset) * steps[0]).astype(np.float32)
        x = ((np.arange(columns) + offset) * steps[1]).astype(np.float32)
        centers = np.stack(np.broadcast_arrays(x[None, :], y[:, None]), axis=-1)
        cell = cell_anchors(level_sizes, aspect_ratios, rounded=rounded, order=order)
        levels.append((np.tile(centers, 2)[:, :, None] + cell).reshape(-1, 4))
    return np.concatenate(levels)
