"""What a reader of the tables has to know: results that are left out, and limits that bound the recall."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from pycocotools.coco import COCO

from mrcnn_jax.errors import listing

Record = dict[str, Any]
NAMES = {"bbox": "boxes", "segm": "masks", "keypoints": "keypoints"}  # of what a table scores


def left_out_categories(results: Sequence[Record], known: Collection[int], why: str) -> list[str]:
    """A note on the results whose category is not `known`; `why` describes those categories."""
    ids = [record["category_id"] for record in results if record["category_id"] not in known]
    if not ids:
        return []
    return [f"{len(ids)} of {len(results)} results are of categories {why}: left out (ids {listing(sorted(set(ids)))})"]


def left_out_results(results: Sequence[Record], counted: Sequence[Record], iou_type: str) -> list[str]:
    """A note on the results that have nothing that the table scores."""
    missing, name = len(results) - len(counted), NAMES[iou_type]
    return [f"{missing} of {len(results)} results have no {name}: left out of the table of {name}"] if missing else []


def most_of_table(truth: COCO, results: Sequence[Record], iou_type: str, most: int, *, of_image: bool) -> list[str]:
    """A note on the `most` results that a table counts of each category in an image; or of an image, as LVIS does."""

    def place(record: Record) -> tuple[int, ...]:
        return (record["image_id"],) if of_image else (record["image_id"], record["category_id"])

    cut = {found[0] for found, count in Counter(map(place, results)).items() if count > most}
    objects = Counter(place(annotation) for annotation in truth.dataset["annotations"] if _counts(annotation, iou_type))
    bound = recall_bound(objects.values(), most)
    if not cut and not bound:
        return []
    each = "image" if of_image else "category in an image"
    return [
        f"the table of {NAMES[iou_type]} counts the {most} best results of each {each}:"
        f" {len(cut)} of {len(truth.imgs)} images have more{bound and '; '}{bound}"
    ]


def most_of_model(truth: COCO, reached: int, most: int) -> list[str]:
    """A note on the `most` detections that a model finds in an image: `reached` images have so many."""
    objects = Counter(entry["image_id"] for entry in truth.dataset["annotations"] if not entry["iscrowd"])
    bound = recall_bound(objects.values(), most)
    if not reached and not bound:
        return []
    effect = f"{bound}: raise it" if bound else "no image has more objects"
    return [f"{reached} of {len(truth.imgs)} images have model.box.max_detections={most} detections; {effect}"]


def recall_bound(objects: Iterable[int], most: int) -> str:
    """How many objects can be found if `most` are found at each place; empty if all can. objects: at each place."""
    counts = list(objects)
    total, findable = sum(counts), sum(min(count, most) for count in counts)
    if findable == total:
        return ""
    return f"at most {findable:,} of {total:,} objects can be found, a recall of {int(1000 * findable / total) / 1000}"


def _counts(annotation: Record, iou_type: str) -> bool:
    """Whether a table wants an annotation to be found."""
    needed = {"segm": annotation.get("segmentation"), "keypoints": annotation["num_keypoints"]}
    return not annotation["iscrowd"] and bool(needed.get(iou_type, True))
