"""Ground truth for scoring: an annotation file as a `pycocotools.coco.COCO`."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mrcnn_jax.data.annotations import AnnotationFile, read
from mrcnn_jax.data.categories import Categories
from mrcnn_jax.data.lvis_labels import FederatedLabels
from mrcnn_jax.data.mask_crops import annotation_area


def load_ground_truth(
    path: Path, image_ids: Sequence[int] = (), category_names: Sequence[str] = (), images: Path | None = None
) -> COCO:
    """Load a COCO or LVIS annotation file, without the annotations that cannot be scored.

    `iscrowd`, `area` and `num_keypoints` may be missing. Annotation ids are renumbered from 1, because pycocotools
    takes a match with annotation 0 for no match. `iou_types` of an annotation lists the tables that it counts in, see
    `counts_in_table`. An unusable `bbox` is replaced by the extent of the mask, or else of the keypoints. `unscored` of
    the dataset is the number of instances that count in no table.
    """
    content = read(path, image_ids, images, scoring=True)
    categories = content.categories.select(category_names)
    annotations, unscored = _scorable_annotations(content, categories)
    image_fields = ("id", "file_name", "height", "width")
    dataset = {
        "images": [{name: getattr(image, name) for name in image_fields} for image in content.images],
        "categories": _category_entries(categories),
        "annotations": annotations,
        "unscored": unscored,
    }
    _add_federated_labels(dataset, content.lvis)
    truth = _index(dataset)
    for annotation in annotations:
        if annotation["bbox"] is None:
            annotation["bbox"] = _extent(truth, annotation)
        if "area" not in annotation:
            image = truth.imgs[annotation["image_id"]]
            annotation["area"] = annotation_area(annotation, image["height"], image["width"])
    return truth


def counts_in_table(annotation: dict[str, Any], iou_type: str) -> bool:
    """Return whether an annotation has what a table scores: a box, a mask, or an area for keypoints."""
    return iou_type in annotation["iou_types"]


def is_ignored(annotation: dict[str, Any], iou_type: str) -> bool:
    """Return whether pycocotools ignores an annotation: neither a match nor a miss counts."""
    return bool(annotation["iscrowd"]) or (iou_type == "keypoints" and not annotation["num_keypoints"])


def restrict(truth: COCO, iou_type: str) -> COCO:
    """Return the ground truth with only the annotations that count in a table."""
    counted = [annotation for annotation in truth.dataset["annotations"] if counts_in_table(annotation, iou_type)]
    if len(counted) == len(truth.dataset["annotations"]):
        return truth
    return with_annotations(truth, counted)


def with_annotations(truth: COCO, annotations: Sequence[dict[str, Any]]) -> COCO:
    """Return a `COCO` of the same images and categories with other annotations."""
    return _index({**truth.dataset, "annotations": list(annotations)})


def silence_pycocotools() -> contextlib.AbstractContextManager[Any]:
    """Suppress the progress messages that pycocotools prints."""
    return contextlib.redirect_stdout(io.StringIO())


def _index(dataset: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    with silence_pycocotools():
        coco.createIndex()
    return coco


def _scorable_annotations(content: AnnotationFile, categories: Categories) -> tuple[list[dict[str, Any]], int]:
    """Return the annotations that count in a table, and the number of instances that do not."""
    known, unlabeled = set(categories.ids), [0] * 3 * len(categories.keypoint_schema.names)
    scorable: list[dict[str, Any]] = []
    unscored = 0
    for annotation in (annotation for image in content.images for annotation in image.annotations):
        if annotation["category_id"] not in known:
            continue
        keypoints = annotation.get("keypoints") or unlabeled
        labeled = sum(visibility > 0 for visibility in keypoints[2::3])
        replaced = {"id": len(scorable) + 1, "keypoints": keypoints, "num_keypoints": labeled}
        entry = {"iscrowd": 0, **annotation, **replaced}
        entry["iou_types"] = _iou_types(entry)
        if entry["iou_types"]:
            scorable.append(entry)
        else:
            unscored += not entry["iscrowd"]
    return scorable, unscored


def _iou_types(annotation: dict[str, Any]) -> list[str]:
    """Return the tables that an annotation counts in. Keypoints need an area, which a box or a mask gives."""
    usable = {"bbox": annotation["bbox"] is not None, "segm": bool(annotation.get("segmentation"))}
    usable["keypoints"] = any(usable.values()) or (annotation["num_keypoints"] > 0 and "area" in annotation)
    return [iou_type for iou_type in usable if usable[iou_type]]


def _category_entries(categories: Categories) -> list[dict[str, Any]]:
    skeleton = [[first + 1, second + 1] for first, second in categories.keypoint_schema.skeleton]  # COCO counts from 1
    return [
        {"id": i, "name": name, "keypoints": list(categories.keypoint_schema.names), "skeleton": skeleton}
        for i, name in zip(categories.ids, categories.names, strict=True)
    ]


def _add_federated_labels(dataset: dict[str, Any], labels: FederatedLabels | None) -> None:
    """Add LVIS's fields to images and categories, under LVIS's names."""
    if labels is None:
        return
    for image in dataset["images"]:
        image["neg_category_ids"] = labels.absent[image["id"]]
        image["not_exhaustive_category_ids"] = labels.partial[image["id"]]
    for category in dataset["categories"]:
        category["frequency"] = labels.frequencies[category["id"]]


def _extent(truth: COCO, annotation: dict[str, Any]) -> list[float]:
    """Return x, y, width, height of the mask, or of the labeled keypoints if there is no mask."""
    if annotation.get("segmentation"):
        return [float(number) for number in coco_mask.toBbox(truth.annToRLE(annotation))]
    points = np.array(annotation["keypoints"], float).reshape(-1, 3)
    labeled = points[points[:, 2] > 0, :2]
    return [*labeled.min(axis=0).tolist(), *np.ptp(labeled, axis=0).tolist()]
