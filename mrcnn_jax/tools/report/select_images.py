"""Which images a person should look at: the same for the same results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from mrcnn_jax.evaluation.analysis import ImageResult

_MOST = 12  # pictures of a group
_CLASSES = 16  # pictures for classes that no other group shows

GROUPS = {"worst": "Worst", "best": "Best", "random": "At random", "classes": "More classes"}


def choose(images: Sequence[ImageResult]) -> list[tuple[str, ImageResult]]:
    """(group, image): the worst and the best ones, some at random, and for each class that is not there yet its worst.

    Each image once. An image with nothing in it, annotated or predicted, is neither good nor bad.
    """
    judged = [image for image in images if image.instances]
    # Of images that are equally bad, the one with the most errors; of those that are equally good, the fullest one.
    worst = sorted(judged, key=lambda image: (image.quality, -image.wrong - image.missed))
    best = sorted(judged, key=lambda image: (-image.quality, -image.correct))
    middle = len(judged) // 2  # of a few images, none is both among the best and among the worst
    order = np.random.default_rng(0).permutation(len(images)).tolist()
    shown: set[int] = set()
    chosen = _first("worst", worst[: min(_MOST, len(judged) - middle)], _MOST, shown)
    chosen += _first("best", best[: min(_MOST, middle)], _MOST, shown)
    chosen += _first("random", (images[i] for i in order), _MOST, shown)
    known = {class_id for _, image in chosen for class_id in image.category_ids}
    for image in worst:
        if image.category_ids - known and len(chosen) < 3 * _MOST + _CLASSES:
            chosen += _first("classes", [image], 1, shown)
            known |= image.category_ids
    return chosen


def _first(group: str, images: Iterable[ImageResult], most: int, shown: set[int]) -> list[tuple[str, ImageResult]]:
    """The first `most` images that are not shown yet, which they are from now on."""
    found: list[tuple[str, ImageResult]] = []
    for image in images:
        if len(found) < most and image.image_id not in shown:
            shown.add(image.image_id)
            found.append((group, image))
    return found
