"""Labels of LVIS that COCO does not have: annotated categories of each image, and frequencies of categories.

Gupta, Dollár, Girshick 2019: "LVIS: A Dataset for Large Vocabulary Instance Segmentation", section 2.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any, NamedTuple

from mrcnn_jax.data.findings import Refusal
from mrcnn_jax.data.json_entries import is_id

IMAGE_FIELDS = _NEGATIVE, _NOT_EXHAUSTIVE = "neg_category_ids", "not_exhaustive_category_ids"  # of an image
FREQUENCIES = "rcf"  # rare, common, frequent: in at most 10, at most 100, in more images of the training dataset


class FederatedLabels(NamedTuple):
    """LVIS labels by image id and category id."""

    absent: dict[int, list[int]]  # by image id: ids of categories verified to be absent
    partial: dict[int, list[int]]  # by image id: ids of categories of which not every instance is annotated
    frequencies: dict[int, str]  # by category id: "r", "c", "f"


def federated_labels(
    images: Sequence[Any], categories: Sequence[Any], image_ids: Set[int]
) -> tuple[FederatedLabels | None, list[Refusal]]:
    """Return the LVIS labels of these images, and refusals of invalid ones; None for a file that is not LVIS."""
    images = [image for image in images if isinstance(image, dict) and image.get("id") in image_ids]
    categories = [category for category in categories if isinstance(category, dict) and is_id(category.get("id"))]
    if not all("frequency" in category for category in categories) or not any(_NEGATIVE in image for image in images):
        return None, []
    advice = "write a list of category ids"
    refusals = [
        Refusal(f"images whose {field} is not a list of ids", f"image {image['id']}", advice, image["id"])
        for image in images
        for field in (_NEGATIVE, _NOT_EXHAUSTIVE)
        if not _is_id_list(image.get(field, []))
    ]
    refusals += [
        Refusal("categories with unknown frequency", f"category {category['id']}", 'write "r", "c" or "f"')
        for category in categories
        if category["frequency"] not in list(FREQUENCIES)
    ]
    if refusals:
        return None, refusals
    absent, partial = (
        {image["id"]: image.get(field, []) for image in images} for field in (_NEGATIVE, _NOT_EXHAUSTIVE)
    )
    return FederatedLabels(absent, partial, {category["id"]: category["frequency"] for category in categories}), []


def _is_id_list(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_id, value))
