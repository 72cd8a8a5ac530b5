"""Parts of an annotated image as SVG of limited size: photograph, boxes, skeletons, names."""

from __future__ import annotations

import base64
from collections.abc import Iterable

import cv2
import numpy as np

from mrcnn_jax.tools.pages.html import Html, join, tag

LONGER_SIDE = 640  # units of the longer side of an image
TEXT_HEIGHT = 17  # of a name, in these units; as in base.css
_JPEG_SETTINGS = ((640, 80), (640, 60), (480, 60), (320, 60), (320, 30), (160, 30))  # longer side, quality
_MAX_NAME = 24  # characters

Box = tuple[float, float, float, float]  # x0 y0 x1 y1, units of the SVG


def within_budget(parts: Iterable[Html], byte_budget: int) -> list[Html]:
    """Return the first parts whose total length is at most `byte_budget`."""
    kept = []
    for part in parts:
        byte_budget -= len(part)
        if byte_budget < 0:
            break
        kept.append(part)
    return kept


def rectangle(box: Box, title: str, style: str) -> Html:
    """Return a box of class `style`. Browsers show `title` while the pointer is over it."""
    x0, y0, x1, y1 = box
    position = {"x": f"{x0:.1f}", "y": f"{y0:.1f}", "width": f"{x1 - x0:.1f}", "height": f"{y1 - y0:.1f}"}
    return tag("rect", tag("title", title), class_=style, **position)


def skeleton(points: np.ndarray, labeled: np.ndarray, hidden: np.ndarray, edges: Iterable[tuple[int, int]]) -> Html:
    """Return the labeled keypoints, filled where visible, hollow where hidden, and the lines between them.

    points: (K, 2), units of the SVG; labeled, hidden: (K,) bool; edges: pairs of keypoint indices. The color is that of
    the parent element.
    """
    ends = [(points[a], points[b]) for a, b in edges if labeled[a] and labeled[b]]
    lines = "".join("M{:.1f} {:.1f}L{:.1f} {:.1f}".format(*start, *end) for start, end in ends)
    dots = [
        tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=4, class_="hidden" if is_hidden else None)
        for (x, y), is_hidden in zip(points[labeled], hidden[labeled], strict=True)
    ]
    return join(tag("path", d=lines) if lines else "", dots)


def place_names(items: Iterable[tuple[Box, str, str]], width: float, height: float = TEXT_HEIGHT) -> list[Html | None]:
    """Return the names of (box, name, class) above their boxes; None for one that would overlap an earlier one.

    width: of the image; height: of the text.
    """
    occupied: list[tuple[float, float, float]] = []  # left, right, baseline
    placed: list[Html | None] = []
    for box, name, style in items:
        text = name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…"
        length = 0.6 * height * len(text)
        x, y = max(0.0, min(box[0], width - length)), max(height, box[1] - 3)
        if all(x > right or x + length < left or abs(y - line) > height for left, right, line in occupied):
            occupied.append((x, x + length, y))
            placed.append(tag("text", text, x=f"{x:.0f}", y=f"{y:.0f}", class_=style))
        else:
            placed.append(None)
    return placed


def downsample(bitmap: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Return a bitmap (h, w) with at most one pixel per unit of the SVG, and its pixel size (2,) x y in old pixels.

    scale: units per pixel of the given bitmap.
    """
    size = np.maximum(1, np.ceil(np.array(bitmap.shape) * min(scale, 1.0))).astype(int)
    steps = bitmap.shape / size
    rows, columns = (np.floor((np.arange(n) + 0.5) * step).astype(int) for n, step in zip(size, steps, strict=True))
    return bitmap[np.ix_(rows, columns)], steps[::-1]


def jpeg_url(pixels: np.ndarray, byte_budget: int) -> str:
    """Return (h, w, 3) uint8 RGB as a data URL, of the best quality within `byte_budget`, else of the lowest."""
    for side, quality in _JPEG_SETTINGS:
        factor = min(1.0, side / max(pixels.shape[:2]))
        size = [max(1, round(n * factor)) for n in pixels.shape[1::-1]]
        resized = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) if factor < 1 else pixels
        _, encoded = cv2.imencode(".jpg", cv2.cvtColor(resized, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
        url = "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
        if len(url) <= byte_budget:
            break
    return url
