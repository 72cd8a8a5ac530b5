"""Draw the README's picture: `python docs/picture.py`, after `make quickstart`.

The first held-back pictures, not chosen ones; in each pair the truth on the left, what was found on the right.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from mrcnn_jax import Predictor, visualize
from mrcnn_jax.data.coco import load_split
from mrcnn_jax.evaluation import truth

PAIRS = 3
GAP = 24  # pixels, of white


def main() -> None:
    """Write docs/pictures/quickstart.png."""
    predict = Predictor.from_checkpoint("runs/quickstart")
    held_back = load_split(predict.config.data, "eval")
    found = predict([held_back.image_path(index) for index in range(PAIRS)])
    pairs = []
    for index, prediction in enumerate(found):
        picture, true = truth.read(held_back, index, predict.config.model)
        pairs.append(visualize.compare(picture, true, prediction))
    gap = np.full((len(pairs[0]), GAP, 3), 255, np.uint8)
    row = np.concatenate([part for pair in pairs for part in (gap, pair)][1:], axis=1)
    smaller = cv2.resize(row, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(Path(__file__).parent / "pictures" / "quickstart.png"), smaller[:, :, ::-1])


if __name__ == "__main__":
    main()
