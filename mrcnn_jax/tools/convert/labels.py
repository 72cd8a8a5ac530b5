"""Label images, which have an integer for each pixel, and their regions as COCO segmentations.

Segmentations are run-length encoded, because polygons would lose holes and thin parts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from mrcnn_jax.tools.convert.files import ConversionError

Region = dict[str, Any]  # `segmentation`, `bbox` and `area` of an annotation
SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
MAX_REGIONS = 10_000  # per image: photographs have more
_FORMATS = ("PNG", "TIFF", "BMP")
_INTEGER_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")  # of Pillow
_COLOR_MODES = ("LA", "PA", "RGB", "RGBA")


def read(path: Path, size: tuple[int, int], *, colors: bool | None = None) -> np.ndarray:
    """Return the values (h, w) int32 of a label image of `size` (height, width).

    Values are those of gray images (8, 16 or 32 bits) or the indices of a palette. Color images with equal channels
    count as gray; other colors become 0xRRGGBB. colors: True reads all images as colors, False refuses colors.
    Raises ConversionError for other formats and sizes, and for unreadable files.
    """
    try:
        with Image.open(path) as image:
            kind, pages = image.format, getattr(image, "n_frames", 1)
            is_16_bit_color = image.mode in ("RGB", "RGBA") and any("16" in str(tile[3]) for tile in image.tile)
            image.load()
    except Exception as error:  # decoders of broken files fail in many ways
        raise ConversionError("masks that cannot be read", f"{path} ({error})", "replace them") from None
    if kind not in _FORMATS:
        advice = "save masks as PNG: lossy formats such as JPEG change the values of pixels"
        raise ConversionError("masks in an unsuitable format", f"{path} ({kind})", advice)
    if pages > 1 or is_16_bit_color or image.mode not in (*_INTEGER_MODES, *_COLOR_MODES):
        found = f"{pages} pages" if pages > 1 else "16-bit colors" if is_16_bit_color else f"mode {image.mode}"
        advice = "save one channel as PNG"
        raise ConversionError("masks without one integer for each pixel", f"{path} ({found})", advice)
    if image.size != size[::-1]:
        sizes = f"{image.height}x{image.width}, the image {size[0]}x{size[1]}"
        advice = "save the mask in the size of its image after EXIF rotation"
        raise ConversionError("masks whose size (height x width) is not the image's", f"{path} is {sizes}", advice)
    if image.mode in _INTEGER_MODES and not colors:
        return np.asarray(image).astype(np.int32)
    red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")).astype(np.int32), -1, 0)
    if not colors and np.array_equal(red, green) and np.array_equal(red, blue):
        return red
    if colors is False:
        advice = """name the colors in a file for --categories, as {"#ff0080": "cat"}, or save one channel"""
        raise ConversionError("masks with colors in place of integers", path, advice)
    return red << 16 | green << 8 | blue


def unique_values(values: np.ndarray) -> list[int]:
    """Return the unique values of (h, w) in increasing order."""
    flat = values.ravel()  # sort one value per run, which is faster than all pixels
    return np.unique(flat[np.flatnonzero(np.diff(flat, prepend=flat[0] - 1))]).tolist()


def encode_regions(path: Path, values: np.ndarray) -> dict[int, Region]:
    """Return the region of each value of (h, w) except 0, in increasing order of the values.

    Raises ConversionError, which names `path`, for more than `MAX_REGIONS` values.
    """
    height, width = values.shape
    flat = np.ascontiguousarray(values.T).ravel()  # by columns, like COCO's run lengths
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    edges = np.stack([starts, np.append(starts[1:], flat.size)], axis=1)
    order = np.argsort(flat[starts], kind="stable")
    unique, firsts = np.unique(flat[starts][order], return_index=True)
    if len(unique) > MAX_REGIONS + 1:
        advice = f"the maximum is {MAX_REGIONS:,}: is it a photograph, or was it resized with interpolation?"
        raise ConversionError("masks with too many regions", f"{path} has {len(unique):,}", advice)
    runs = dict(zip(unique.tolist(), np.split(edges[order], firsts[1:]), strict=True))
    runs.pop(0, None)
    if not runs:
        return {}
    counts = [np.diff(part.ravel(), prepend=0, append=flat.size) for part in runs.values()]
    uncompressed = [{"size": [height, width], "counts": c if c[-1] else c[:-1]} for c in counts]
    encoded = coco_mask.frPyObjects(uncompressed, height, width)
    # pycocotools' area fails for a list of more than 255 with NumPy 2.
    areas = [int(np.diff(part).sum()) for part in runs.values()]
    masks = [{"size": [height, width], "counts": rle["counts"].decode("ascii")} for rle in encoded]
    regions = zip(runs, masks, coco_mask.toBbox(encoded).tolist(), areas, strict=True)
    return {value: {"segmentation": mask, "bbox": bbox, "area": area} for value, mask, bbox, area in regions}


def connected_components(inside: np.ndarray) -> np.ndarray:
    """Return the 8-connected components of a bool image (h, w), numbered from 1; int32."""
    return cv2.connectedComponents(inside.astype(np.uint8), connectivity=8, ltype=cv2.CV_32S)[1]
