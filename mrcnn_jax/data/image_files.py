"""Encoded image files: their pixels as a viewer shows them."""

from __future__ import annotations

import cv2
import numpy as np

_REDUCED = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def decode(content: bytes, reduction: int = 1) -> np.ndarray | None:
    """Pixels (h, w, 3) uint8 RGB of an encoded file, EXIF rotation applied; None if it cannot be decoded.

    reduction: 1, 2, 4 or 8; height and width are the file's divided by it, rounded up. A JPEG file is decoded to that
    size, without the finer coefficients of its blocks, which is what takes the time.
    """
    bgr = cv2.imdecode(np.frombuffer(content, np.uint8), _REDUCED[reduction])
    return None if bgr is None else cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
