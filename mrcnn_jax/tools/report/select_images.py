"""Selection of the images that the report shows, deterministic for the same results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from mrcnn_jax.evaluation.analysis import ImageResult

_GROUP_SIZE = 12
_MAX_CLASSES = 16  # images of classes that no other group shows


def select_images(images: Sequence[ImageResult]) -> list[tuple[str, ImageResult]]:
    """Return (group, image): the worst and the best images, random ones, and the worst of each remaining class.

    Each image appears once. Images without instances and predictions are neither best nor worst.
    """
    rated = [image for image in images if image.instances]
    # Equally bad images are ranked by the number of errors, equally good ones by that of correct predictions.
    worst = sorted(rated, key=lambda image: (image.quality, -image.wrong - image.missed))
    best = sorted(rated, key=lambda image: (-image.quality, -image.correct))
    middle = len(rated) // 2  # of few images, none is both best and worst
    order = np.random.default_rng(0).permutation(len(images)).tolist()
    used: set[int] = set()
    selected = _first("worst", worst[: min(_GROUP_SIZE, len(rated) - middle)], _GROUP_SIZE, used)
    selected += _first("best", best[: min(_GROUP_SIZE, middle)], _GROUP_SIZE, used)
    selected += _first("random", (images[i] for i in order), _GROUP_SIZE, used)
    known = {class_id for _, image in selected for class_id in image.category_ids}
    for image in worst:
        if image.category_ids - known and len(selected) < 3 * _GROUP_SIZE + _MAX_CLASSES:
            selected += _first("classes", [image], 1, used)
            known |= image.category_ids
    return selected


def _first(group: str, images: Iterable[ImageResult], max_count: int, used: set[int]) -> list[tuple[str, ImageResult]]:
    """Return the first `max_count` images whose ids are not in `used`, and add them to `used`."""
    result: list[tuple[str, ImageResult]] = []
    for image in images:
        if len(result) < max_count and image.image_id not in used:
            used.add(image.image_id)
            result.append((group, image))
    return result
