"""Notes on metric tables: annotations and results that are left out, and limits that bound the recall."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from pycocotools.coco import COCO

from mrcnn_jax.errors import format_list
from mrcnn_jax.evaluation.coco_ground_truth import counts_in_table, is_ignored

Record = dict[str, Any]
NAMES = {"bbox": "boxes", "segm": "masks", "keypoints": "keypoints"}  # of what a table scores


def unknown_categories(results: Sequence[Record], known: Collection[int], description: str) -> list[str]:
    """Note the results whose category is not `known`; `description` says which categories those are."""
    ids = [record["category_id"] for record in results if record["category_id"] not in known]
    if not ids:
        return []
    unknown = format_list(sorted(set(ids)))
    return [f"{len(ids)} of {len(results)} results are of categories {description}: left out (ids {unknown})"]


def unscored(truth: COCO, results: Sequence[Record], counted: Sequence[Record], iou_type: str) -> list[str]:
    """Note the annotated instances that do not count in a table, and the results other than those `counted` in it."""
    notes, name = [], NAMES[iou_type]
    instances = [annotation for annotation in truth.dataset["annotations"] if not annotation["iscrowd"]]
    total = len(instances) + truth.dataset["unscored"]
    scored = sum(counts_in_table(entry, iou_type) and not is_ignored(entry, iou_type) for entry in instances)
    if scored < total:
        missing = {"bbox": "usable box", "segm": "usable mask", "keypoints": "labeled keypoints"}[iou_type]
        effect = "ignored in" if iou_type == "keypoints" else "left out of"
        notes = [f"{total - scored:,} of {total:,} instances have no {missing}: {effect} the table of {name}"]
    if without := len(results) - len(counted):
        notes += [f"{without} of {len(results)} results have no {name}: left out of the table of {name}"]
    return notes


def table_limit(truth: COCO, results: Sequence[Record], iou_type: str, limit: int, *, per_image: bool) -> list[str]:
    """Note the effect of the `limit` of results that a table counts per image and category, or per image (LVIS)."""

    def key(record: Record) -> tuple[int, ...]:
        return (record["image_id"],) if per_image else (record["image_id"], record["category_id"])

    exceeded = {group[0] for group, count in Counter(map(key, results)).items() if count > limit}
    annotations = [entry for entry in truth.dataset["annotations"] if counts_in_table(entry, iou_type)]
    objects = Counter(key(entry) for entry in annotations if not is_ignored(entry, iou_type))
    bound = recall_bound(objects.values(), limit)
    if not exceeded and not bound:
        return []
    group = "image" if per_image else "category in an image"
    return [
        f"the table of {NAMES[iou_type]} counts the {limit} best results of each {group}:"
        f" {len(exceeded)} of {len(truth.imgs)} images have more{bound and '; '}{bound}"
    ]


def model_limit(truth: COCO, full: int, limit: int) -> list[str]:
    """Note the effect of `max_detections`, the `limit` of detections of a model, which `full` images have reached."""
    objects = Counter(entry["image_id"] for entry in truth.dataset["annotations"] if not entry["iscrowd"])
    bound = recall_bound(objects.values(), limit)
    if not full and not bound:
        return []
    effect = f"{bound}: raise it" if bound else "no image has more objects"
    return [f"{full} of {len(truth.imgs)} images have model.box.max_detections={limit} detections; {effect}"]


def recall_bound(counts: Iterable[int], limit: int) -> str:
    """Describe the greatest possible recall if of each of `counts` objects `limit` can be found; empty if it is 1."""
    counts = list(counts)
    total, findable = sum(counts), sum(min(count, limit) for count in counts)
    if findable == total:
        return ""
    return f"at most {findable:,} of {total:,} objects can be found, a recall of {int(1000 * findable / total) / 1000}"
