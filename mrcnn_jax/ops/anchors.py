"""Anchors of the region proposal network (Ren et al. 2015).

They are NumPy arrays: image shapes are static, so anchors are constants of a compiled program.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mrcnn_jax.config import AnchorConfig


def grid_anchors(
    config: AnchorConfig, image_shape: tuple[int, int], grid_shapes: Sequence[tuple[int, int]], strides: Sequence[int]
) -> tuple[np.ndarray, ...]:
    """Anchors (A, 4) float32 of each level of a padded image, in the order y, x, anchor of the cell.

    Args:
        config: sizes of each level, aspect ratios and conventions. `config.stride` "nominal" uses `strides`;
            "image_over_grid" divides the image size by the grid size in integers, as torchvision does (128 x 160 over
            2 x 3 gives 64 and 53).
        image_shape: (H, W) of the padded image.
        grid_shapes: (h, w) of each level.
        strides: nominal stride of each level in pixels.
    """
    levels = []
    for (rows, columns), sizes, stride in zip(grid_shapes, config.sizes, strides, strict=True):
        nominal = config.stride == "nominal"
        steps = (stride, stride) if nominal else (image_shape[0] // rows, image_shape[1] // columns)
        y = (np.arange(rows) * steps[0]).astype(np.float32)
        x = (np.arange(columns) * steps[1]).astype(np.float32)
        centers = np.stack(np.broadcast_arrays(x[None, :], y[:, None]), axis=-1)
        levels.append((np.tile(centers, 2)[:, :, None] + cell_anchors(config, sizes)).reshape(-1, 4))
    return tuple(levels)


def cell_anchors(config: AnchorConfig, sizes: Sequence[float]) -> np.ndarray:
    """Anchors (A, 4) float32 of one cell, centered at 0, one for each pair of size and aspect ratio.

    `sizes` are the square roots of the areas, in pixels. `config.order` "size_major" varies the ratio fastest
    (Detectron2), "ratio_major" the size (torchvision). `config.rounded` rounds corners to integers (torchvision).
    """
    pairs = [(size, ratio) for size in sizes for ratio in config.aspect_ratios]
    if config.order == "ratio_major":
        pairs = [(size, ratio) for ratio in config.aspect_ratios for size in sizes]
    size, ratio = np.asarray(pairs, np.float64).reshape(-1, 2).T
    width = np.sqrt(size**2 / ratio)
    corner = np.stack([width, ratio * width], axis=-1) / 2.0
    cell = np.concatenate([-corner, corner], axis=-1)
    return (np.round(cell) if config.rounded else cell).astype(np.float32)
