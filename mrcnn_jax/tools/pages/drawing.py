"""Parts of a picture as SVG, in the room that there is: the photograph below, boxes and names above."""

from __future__ import annotations

import base64
from collections.abc import Iterable

import cv2
import numpy as np

from mrcnn_jax.tools.pages.html import Html, join, tag

SIDE = 640  # units of the longer side of a picture
TEXT = 17  # height of a name, in these units; base.css says so, too
_JPEGS = ((640, 80), (640, 60), (480, 60), (320, 60), (320, 30), (160, 30))  # longer side, quality
_LONGEST_NAME = 24

Box = tuple[float, float, float, float]  # x0 y0 x1 y1, units of the picture


def fitting(pieces: Iterable[Html], room: int) -> list[Html]:
    """As many of the first pieces as there is room for."""
    found = []
    for piece in pieces:
        room -= len(piece)
        if room < 0:
            break
        found.append(piece)
    return found


def rectangle(box: Box, title: str, style: str) -> Html:
    """`title` is shown by a browser over it."""
    x0, y0, x1, y1 = box
    position = {"x": f"{x0:.1f}", "y": f"{y0:.1f}", "width": f"{x1 - x0:.1f}", "height": f"{y1 - y0:.1f}"}
    return tag("rect", tag("title", title), class_=style, **position)


def skeleton(points: np.ndarray, labeled: np.ndarray, hidden: np.ndarray, bones: Iterable[tuple[int, int]]) -> Html:
    """Lines between labeled keypoints, and the keypoints: full where visible, hollow where hidden.

    points: (K, 2), units of the picture; labeled, hidden: (K,) bool. Colors are those of the element around it.
    """
    ends = [(points[a], points[b]) for a, b in bones if labeled[a] and labeled[b]]
    lines = "".join("M{:.1f} {:.1f}L{:.1f} {:.1f}".format(*start, *end) for start, end in ends)
    dots = [
        tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=4, class_="hidden" if unseen else None)
        for (x, y), unseen in zip(points[labeled], hidden[labeled], strict=True)
    ]
    return join(tag("path", d=lines) if lines else "", dots)


def names(items: Iterable[tuple[Box, str, str]], width: float, height: float = TEXT) -> list[Html | None]:
    """The names of (box, name, style) above the boxes; None for one that would overlap one before it.

    width: of the picture; height: of a name.
    """
    taken: list[tuple[float, float, float]] = []
    placed: list[Html | None] = []
    for box, name, style in items:
        text = name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
        length = 0.6 * height * len(text)
        x, y = max(0.0, min(box[0], width - length)), max(height, box[1] - 3)
        if all(x > right or x + length < left or abs(y - line) > height for left, right, line in taken):
            taken.append((x, x + length, y))
            placed.append(tag("text", text, x=f"{x:.0f}", y=f"{y:.0f}", class_=style))
        else:
            placed.append(None)
    return placed


def thinned(bitmap: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """A bitmap (h, w) of no more pixels than the picture has units; and how many of the old ones a new one is, (2,).

    `scale`: units a pixel.
    """
    wanted = np.maximum(1, np.ceil(np.array(bitmap.shape) * min(scale, 1.0))).astype(int)
    steps = bitmap.shape / wanted
    rows, columns = (np.floor((np.arange(n) + 0.5) * step).astype(int) for n, step in zip(wanted, steps, strict=True))
    return bitmap[np.ix_(rows, columns)], steps[::-1]


def jpeg(pixels: np.ndarray, room: int) -> str:
    """(h, w, 3) uint8 RGB as a data URL of at most `room` characters, or as few as there can be."""
    for side, quality in _JPEGS:
        factor = min(1.0, side / max(pixels.shape[:2]))
        size = [max(1, round(n * factor)) for n in pixels.shape[1::-1]]
        shrunk = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) if factor < 1 else pixels
        _, encoded = cv2.imencode(".jpg", cv2.cvtColor(shrunk, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
        url = "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
        if len(url) <= room:
            break
    return url
