"""Masks pasted into their image and run-length encoded, computed only on the pixels that the box covers.

Both reference implementations interpolate bilinearly, which is separable: rows are interpolated first, then columns.
`encode_rle` moves the runs of the covered region to their place in the image and gives exactly what pycocotools encodes
from the full bitmap. Matrix products are avoided: BLAS threads compete with the postprocessing threads, which made this
up to fifty times slower on a busy machine.

Letters: S side of a predicted mask, H x W the image, h x w the region that a box covers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mrcnn_jax.config import PasteRule


class Region(NamedTuple):
    """A mask cropped to the pixels that its box covers."""

    pixels: NDArray[Any]  # (h, w)
    top: int  # first row in the image
    left: int  # first column in the image


def paste_probabilities(
    mask: NDArray[np.float32], box: NDArray[np.float32], image_size: tuple[int, int], rule: PasteRule
) -> Region:
    """Resample a mask (S, S) of probabilities over its box (4,) in an image of (height, width).

    "detectron2" samples the mask at pixel centers (layers/mask_ops.py, the CPU path); "torchvision" stretches it, with
    a border of zeros, over the box in whole pixels (roi_heads.py, `paste_masks_in_image`, padding 1). The region is
    clipped to the image and may be empty.
    """
    positions = _detectron2_positions if rule == "detectron2" else _torchvision_positions
    left, columns = positions(box[0], box[2], mask.shape[1], image_size[1])
    top, rows = positions(box[1], box[3], mask.shape[0], image_size[0])
    bordered = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), dtype=np.float32)
    bordered[1:-1, 1:-1] = mask
    # Computed transposed, so that the result is stored in column-major order, as COCO's run lengths are counted.
    return Region(_interpolate(np.ascontiguousarray(_interpolate(bordered, rows).T), columns).T, top, left)


def paste_mask(
    mask: NDArray[np.float32], box: NDArray[np.float32], image_size: tuple[int, int], rule: PasteRule
) -> Region:
    """Return a bool region: `paste_probabilities` of at least 1/2."""
    region = paste_probabilities(mask, box, image_size, rule)
    return region._replace(pixels=region.pixels >= 0.5)


def encode_rle(regions: Sequence[Region], image_size: tuple[int, int]) -> list[dict[str, Any]]:
    """Return COCO's compressed run lengths of bool regions, each in an otherwise empty image of (height, width).

    Each is `{"size": [height, width], "counts": str}`, ready for JSON and for pycocotools.
    """
    from pycocotools import mask as coco_mask  # here: drawing and pasting work without pycocotools

    height, width = image_size
    if not regions:
        return []
    runs = [{"size": [height, width], "counts": _counts(region, height, height * width)} for region in regions]
    encoded = coco_mask.frPyObjects(runs, height, width)
    return [{"size": [height, width], "counts": rle["counts"].decode("ascii")} for rle in encoded]


def _counts(region: Region, height: int, total: int) -> NDArray[np.int64]:
    """Return alternating run lengths of zeros and ones, in column-major order, of an image of `total` pixels."""
    starts, stops = _runs(region, height)
    if not len(starts):
        return np.array([total])
    # Runs touch where a region is as high as the image and the mask continues in the next column: merge them.
    apart = np.flatnonzero(starts[1:] != stops[:-1])
    edges = np.empty((len(apart) + 1, 2), dtype=np.int64)
    edges[0, 0], edges[1:, 0] = starts[0], starts[apart + 1]
    edges[-1, 1], edges[:-1, 1] = stops[-1], stops[apart]
    counts = np.diff(edges.ravel(), prepend=0, append=total)
    return counts if counts[-1] else counts[:-1]


def _runs(region: Region, height: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return start and stop of every run of ones within a column, in column-major pixel indices of the image."""
    rows, columns = region.pixels.shape
    # A zero above each column keeps runs from crossing columns, so that changes come in pairs.
    padded = np.zeros(columns * (rows + 1) + 1, dtype=bool)
    padded[:-1].reshape(columns, rows + 1)[:, 1:] = region.pixels.T
    changes = np.flatnonzero(padded[1:] != padded[:-1])
    first, last = changes[0::2], changes[1::2] - 1
    origin = region.left * height + region.top
    starts = origin + first // (rows + 1) * height + first % (rows + 1)
    return starts, origin + last // (rows + 1) * height + last % (rows + 1) + 1


def _detectron2_positions(low: np.float32, high: np.float32, size: int, limit: int) -> tuple[int, NDArray[Any]]:
    """Return the first pixel along one axis, and the sampling position of every pixel in mask cells (cell k at k).

    The arithmetic follows the normalized coordinates of `grid_sample` in the same order, to round alike. A box without
    extent gets no pixels.
    """
    start = max(int(np.floor(low)) - 1, 0)
    if not high > low:
        return start, np.zeros(0, dtype=np.float32)
    stop = min(int(np.ceil(high)) + 1, limit)
    centers = np.arange(start, stop, dtype=np.float32) + np.float32(0.5)
    with np.errstate(over="ignore"):  # samples of a box far thinner than a pixel are infinitely far away
        normalized = (centers - low) / (high - low) * 2 - 1
    return start, ((normalized + 1) * size - 1) / 2


def _torchvision_positions(low: np.float32, high: np.float32, size: int, limit: int) -> tuple[int, NDArray[Any]]:
    """As `_detectron2_positions`, for a mask with a border of one zero stretched over a box in whole pixels."""
    center = (high + low) * np.float32(0.5)
    half = (high - low) * np.float32(0.5) * np.float32((size + 2) / size)
    first, last = int(center - half), int(center + half)  # truncated towards zero, as torch's int64
    length = max(last - first + 1, 1)
    start, stop = max(first, 0), min(last + 1, limit)
    pixels = np.arange(start - first, max(stop, start) - first, dtype=np.float32)
    source = (pixels + np.float32(0.5)) * (np.float32(size + 2) / np.float32(length)) - np.float32(0.5)
    return start, np.clip(source, 0, size + 1) - 1


def _interpolate(bordered: NDArray[np.float32], source: NDArray[Any]) -> NDArray[np.float32]:
    """Interpolate rows linearly at positions (n,) of a mask (S + 2, m) with a border of zeros; returns (n, m)."""
    last = len(bordered) - 1
    position = np.clip(source + 1, 0, last)  # in the bordered mask; positions outside fall on the border
    lower = position.astype(np.intp)
    weight = (position - lower.astype(np.float32))[:, None]
    steps = np.zeros_like(bordered)
    np.subtract(bordered[1:], bordered[:-1], out=steps[:-1])
    rows: NDArray[np.float32] = steps.take(lower, axis=0)  # in place from here on: memory traffic dominates
    rows *= weight
    rows += bordered.take(lower, axis=0)
    return rows
