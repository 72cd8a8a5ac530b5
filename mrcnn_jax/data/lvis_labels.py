"""What LVIS says beside COCO: which classes its annotators looked for in an image, and how rare a class is.

Gupta, Dollár, Girshick 2019: "LVIS: A Dataset for Large Vocabulary Instance Segmentation", section 2.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any, NamedTuple

from mrcnn_jax.data.findings import Refusal
from mrcnn_jax.data.json_entries import is_id

LISTS = _ABSENT, _PARTIAL = "neg_category_ids", "not_exhaustive_category_ids"  # of an image
FREQUENCIES = "rcf"  # rare, common, frequent: in at most 10, at most 100, in more images of the training set


class FederatedLabels(NamedTuple):
    """By image id: categories that are known not to be in it, and such that not every instance is annotated."""

    absent: dict[int, list[int]]
    partial: dict[int, list[int]]
    frequencies: dict[int, str]  # by category id: "r", "c", "f"


def federated_labels(
    images: Sequence[Any], categories: Sequence[Any], chosen: Set[int]
) -> tuple[FederatedLabels | None, list[Refusal]]:
    """What the lists of an annotation file say of the `chosen` images, by their ids, and what is wrong with it.

    None for a file that is not LVIS's.
    """
    images = [image for image in images if isinstance(image, dict) and image.get("id") in chosen]
    categories = [category for category in categories if isinstance(category, dict) and is_id(category.get("id"))]
    if not all("frequency" in category for category in categories) or not any(_ABSENT in image for image in images):
        return None, []
    advice = "write lists of category ids, as LVIS does"
    refusals = [
        Refusal(f"images whose {field} is no list of ids", f"image {image['id']}", advice, image["id"])
        for image in images
        for field in (_ABSENT, _PARTIAL)
        if not _ids(image.get(field, []))
    ]
    refusals += [
        Refusal("categories of unknown frequency", f"category {category['id']}", "write one of r, c, f")
        for category in categories
        if category["frequency"] not in list(FREQUENCIES)
    ]
    if refusals:
        return None, refusals
    absent, partial = ({image["id"]: image.get(field, []) for image in images} for field in (_ABSENT, _PARTIAL))
    return FederatedLabels(absent, partial, {category["id"]: category["frequency"] for category in categories}), []


def _ids(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_id, value))
