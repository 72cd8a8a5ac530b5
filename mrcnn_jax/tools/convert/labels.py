"""Label images: a whole number for each pixel, read as it was stored, and its regions as COCO segmentations.

Regions are written as run lengths, which give back every pixel. Polygons would not: they go through the pixels' corners
or centers, and lose holes and thin parts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from mrcnn_jax.tools.convert.files import Rejected

SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
MOST_REGIONS = 10_000  # of one image: more are a photograph's values
_FORMATS = ("PNG", "TIFF", "BMP")
_NUMBERS = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")  # Pillow's modes with one whole number for each pixel
_COLORS = ("LA", "PA", "RGB", "RGBA")


def read(path: Path, size: tuple[int, int], *, colors: bool | None = None) -> np.ndarray:
    """The values (h, w) int32 of a label image of `size` (height, width).

    Gray pictures give their numbers (8, 16 or 32 bits), palette pictures the index. Color pictures with equal channels
    are gray ones. Other colors are the number 0xRRGGBB. colors: True reads all pictures as colors, False refuses
    those that are. Raises Rejected for other formats, other sizes, and what cannot be read.
    """
    try:
        with Image.open(path) as image:
            kind, pages = image.format, getattr(image, "n_frames", 1)
            deep = image.mode in ("RGB", "RGBA") and any("16" in str(tile[3]) for tile in image.tile)
            image.load()
    except Exception as error:  # decoders of broken files fail in many ways
        raise Rejected("masks that cannot be read", f"{path} ({error})", "replace them") from None
    if kind not in _FORMATS:
        advice = "save masks as PNG: lossy formats such as JPEG change the values of pixels"
        raise Rejected("masks in a format that is not for numbers", f"{path} ({kind})", advice)
    if pages > 1 or deep or image.mode not in (*_NUMBERS, *_COLORS):
        what = f"{pages} pages" if pages > 1 else "colors of 16 bits" if deep else f"mode {image.mode}"
        raise Rejected("masks without one whole number for each pixel", f"{path} ({what})", "save one channel as PNG")
    if image.size != size[::-1]:
        sizes = f"{image.height}x{image.width}, the image {size[0]}x{size[1]}"
        advice = "save the mask in the size of its image as it is seen, after any EXIF rotation"
        raise Rejected("masks whose size (height x width) is not the image's", f"{path} is {sizes}", advice)
    if image.mode in _NUMBERS and not colors:
        return np.asarray(image).astype(np.int32)
    red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")).astype(np.int32), -1, 0)
    if not colors and np.array_equal(red, green) and np.array_equal(red, blue):
        return red
    if colors is False:
        advice = """name the colors in a file for --categories, as {"#ff0080": "cat"}, or save one channel"""
        raise Rejected("masks with colors in place of numbers", path, advice)
    return red << 16 | green << 8 | blue


def present(values: np.ndarray) -> list[int]:
    """The different values of (h, w), in increasing order."""
    flat = values.ravel()  # values come in runs, of which there are far fewer than pixels to sort
    return np.unique(flat[np.flatnonzero(np.diff(flat, prepend=flat[0] - 1))]).tolist()


def encode(path: Path, values: np.ndarray) -> dict[int, dict[str, Any]]:
    """`segmentation`, `bbox` and `area` of the region of each value of (h, w) but 0, by value, in increasing order.

    Raises Rejected, naming `path`, for more regions than label images have.
    """
    height, width = values.shape
    flat = np.ascontiguousarray(values.T).ravel()  # column by column, as COCO's run lengths go
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    edges = np.stack([starts, np.append(starts[1:], flat.size)], axis=1)
    order = np.argsort(flat[starts], kind="stable")
    edges, owners = edges[order], flat[starts][order]
    firsts = np.flatnonzero(np.diff(owners, prepend=owners[0] - 1))
    if len(firsts) > MOST_REGIONS + 1:
        advice = f"no more than {MOST_REGIONS:,} are taken: is it a photograph, or was it resized with smoothing?"
        raise Rejected("masks with too many regions", f"{path} has {len(firsts):,}", advice)
    runs = {int(owners[first]): part for first, part in zip(firsts, np.split(edges, firsts[1:]), strict=True)}
    runs.pop(0, None)
    if not runs:
        return {}
    counts = [np.diff(part.ravel(), prepend=0, append=flat.size) for part in runs.values()]
    plain = [{"size": [height, width], "counts": c if c[-1] else c[:-1]} for c in counts]
    encoded = coco_mask.frPyObjects(plain, height, width)
    # Not pycocotools' area, which fails for a list of more than 255 with NumPy 2.
    areas = [int(np.diff(part).sum()) for part in runs.values()]
    described = zip(runs, encoded, coco_mask.toBbox(encoded).tolist(), areas, strict=True)
    return {
        value: {
            "segmentation": {"size": [height, width], "counts": rle["counts"].decode("ascii")},
            "bbox": bbox,
            "area": area,
        }
        for value, rle, bbox, area in described
    }


def components(inside: np.ndarray) -> np.ndarray:
    """Number the connected parts (pixels touch at sides and corners) of a bool picture (h, w) from 1; int32."""
    return cv2.connectedComponents(inside.astype(np.uint8), connectivity=8, ltype=cv2.CV_32S)[1]
