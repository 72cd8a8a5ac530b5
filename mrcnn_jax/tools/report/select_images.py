"""Selection of the images that the report shows, deterministic for the same results."""

from __future__ import annotations

from collections.abc import Sequence

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
    groups = {
        "worst": worst[: len(rated) - middle][:_GROUP_SIZE],
        "best": best[:middle][:_GROUP_SIZE],
        "random": [images[i] for i in np.random.default_rng(0).permutation(len(images))],
    }
    selected: dict[int, tuple[str, ImageResult]] = {}  # by image id
    for group, candidates in groups.items():
        unused = [image for image in candidates if image.image_id not in selected]
        selected |= {image.image_id: (group, image) for image in unused[:_GROUP_SIZE]}
    known = {class_id for _, image in selected.values() for class_id in image.category_ids}
    for image in worst:
        if image.category_ids - known and len(selected) < 3 * _GROUP_SIZE + _MAX_CLASSES:
            selected[image.image_id] = ("classes", image)
            known |= image.category_ids
    return list(selected.values())
