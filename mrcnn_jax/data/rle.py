"""Decoding of COCO's run-length encoded masks, with validation: pycocotools writes out of bounds for invalid input.

An RLE is `{"size": [height, width], "counts": runs}`: lengths of alternating runs of 0 and 1 in column-major order,
beginning with 0. The counts are a list of numbers, or pycocotools' compressed string: differences to the run before
the last, in groups of five bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask


def run_lengths(rle: Mapping[str, Any]) -> np.ndarray:
    """Return the lengths of the runs, int64. Raises ValueError if they are invalid or do not sum to the image size."""
    counts = rle["counts"]
    if isinstance(counts, (str, bytes)):
        lengths = _decompress(counts.encode("ascii") if isinstance(counts, str) else counts)
    else:
        lengths = np.asarray(counts)
        if lengths.ndim != 1 or (lengths.size and lengths.dtype.kind not in "iu"):
            raise ValueError("its counts are not integers")
    height, width = rle["size"]
    pixels = height * width
    if np.any(lengths < 0) or np.any(lengths > pixels) or lengths.sum() != pixels:  # the sum alone could overflow
        raise ValueError(f"its runs do not sum to {height} x {width} pixels")
    return lengths.astype(np.int64)


def bounding_box(rle: Mapping[str, Any]) -> list[float]:
    """Return x, y, width and height of the mask, all 0 if it is empty. Raises ValueError as `run_lengths`."""
    if not run_lengths(rle)[1::2].any():
        return [0.0] * 4
    encoded = coco_mask.frPyObjects(rle, *rle["size"]) if isinstance(rle["counts"], list) else rle
    box: list[float] = coco_mask.toBbox(encoded).tolist()
    return box


def crop(lengths: np.ndarray, height: int, window: tuple[int, int, int, int]) -> np.ndarray:
    """Return the bitmap (y1 - y0, x1 - x0) uint8 of `window` (x0, y0, x1, y1), in an image of this height.

    Decodes only the columns of the window.
    """
    x0, y0, x1, y1 = window
    start, stop = x0 * height, x1 * height
    ends = np.cumsum(lengths)
    first, last = np.searchsorted(ends, start, side="right"), np.searchsorted(ends, stop, side="left")
    edges = np.concatenate([[start], np.minimum(ends[first : last + 1], stop)])
    parity = (np.arange(first, first + len(edges) - 1) % 2).astype(np.uint8)
    columns = np.repeat(parity, np.diff(edges)).reshape(x1 - x0, height)
    return columns[:, y0:y1].T


def _decompress(compressed: bytes) -> np.ndarray:
    """Return the runs of a compressed string; each byte has five bits of a number and a continuation bit."""
    groups = np.frombuffer(compressed, np.uint8).astype(np.int64) - 48
    if np.any((groups < 0) | (groups > 63)) or (len(groups) and groups[-1] & 32):
        raise ValueError("its counts are not a compressed list of runs")
    lasts = np.flatnonzero(groups & 32 == 0)
    starts = np.concatenate([[0], lasts[:-1] + 1]) if len(lasts) else lasts
    if np.any(lasts - starts > 10):
        raise ValueError("its counts are not a compressed list of runs")
    position = np.arange(len(groups)) - np.repeat(starts, lasts - starts + 1)
    values = np.add.reduceat((groups & 31) << (5 * position), starts) if len(starts) else starts
    values -= np.where(groups[lasts] & 16, 1 << (5 * (lasts - starts + 1)), 0)
    # From the fourth run on, each is stored as the difference to the previous run of the same value.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
