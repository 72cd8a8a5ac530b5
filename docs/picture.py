"""Draw the documents' pictures of what is found: `python docs/picture.py quickstart people`, after those recipes' runs.

The first held-back pictures are drawn, not chosen ones.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

from mrcnn_jax import Predictor, read_image, visualize
from mrcnn_jax.data.dataset import load_split

PICTURES = 4
GAP = 16  # pixels, of white


def draw(name: str) -> None:
    """Write docs/pictures/NAME.jpg of the run runs/NAME."""
    predict = Predictor.from_checkpoint(f"runs/{name}")
    held_back = load_split(predict.config.data, "eval")
    paths = [held_back.image_path(index) for index in range(PICTURES)]
    drawn = [visualize.draw(read_image(path), found) for path, found in zip(paths, predict(paths), strict=True)]
    gap = np.full((len(drawn[0]), GAP, 3), 255, np.uint8)
    row = np.concatenate([part for picture in drawn for part in (gap, picture)][1:], axis=1)
    smaller = cv2.resize(row, None, fx=0.75, fy=0.75, interpolation=cv2.INTER_AREA)
    file = Path(__file__).parent / "pictures" / f"{name}.jpg"
    cv2.imwrite(str(file), smaller[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])


if __name__ == "__main__":
    for name in sys.argv[1:]:
        draw(name)
