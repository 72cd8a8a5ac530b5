"""Average precision as LVIS takes it: https://github.com/lvis-dataset/lvis-api, to the number.

An image counts for the classes that its annotators looked for: those annotated in it, and those known to be absent.
Detections of others are left out, and so are false alarms of classes not all of whose instances are annotated. The 300
best detections of an image count. Means over the rare, common and frequent classes are given, too.
faster-coco-eval does it: pycocotools goes through every class in every image, which takes hours for 1203 of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from pycocotools.coco import COCO

from mrcnn_jax.config.metric_names import LVIS_METRICS
from mrcnn_jax.data.lvis_labels import IMAGE_FIELDS

MOST = 300  # detections of an image
# Where LVIS_METRICS stand among the numbers of faster-coco-eval.
_PLACES = (0, 1, 2, 3, 4, 5, 14, 15, 16, 6, 9, 10, 11)
_OF_ALL = ("image_id", "category_id", "score")


def is_lvis(truth: COCO) -> bool:
    """Whether the annotations say how rare their categories are, see `data.lvis`."""
    return bool(truth.cats) and all("frequency" in category for category in truth.cats.values())


def judged(truth: COCO, results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records that count, of the 300 best of each image."""
    of_image = defaultdict(list)
    for record in results:
        of_image[record["image_id"]].append(record)
    kept = []
    for image_id, records in of_image.items():
        looked_for = {annotation["category_id"] for annotation in truth.imgToAnns[image_id]}
        looked_for |= set(truth.imgs[image_id]["neg_category_ids"])
        best = sorted(records, key=lambda record: -record["score"])[:MOST]
        kept += [record for record in best if record["category_id"] in looked_for]
    return kept


def accumulated(truth: COCO, results: Sequence[dict[str, Any]], iou_type: str) -> Any:
    """The evaluation of boxes ("bbox") or masks ("segm"), with the fields that pycocotools' own has."""
    import faster_coco_eval  # here: only LVIS needs it

    fields = {*_OF_ALL, "bbox" if iou_type == "bbox" else "segmentation"}
    # It keeps ids as floats, in which two of more than 53 bits may be one: it is given small ones, in the same order.
    image = {image_id: k for k, image_id in enumerate(sorted(truth.imgs), 1)}
    category = {category_id: k for k, category_id in enumerate(sorted(truth.cats), 1)}

    def renumbered(record: dict[str, Any]) -> dict[str, Any]:
        return {**record, "image_id": image[record["image_id"]], "category_id": category[record["category_id"]]}

    def renumbered_image(entry: dict[str, Any]) -> dict[str, Any]:
        lists = {name: [category[i] for i in entry[name] if i in category] for name in IMAGE_FIELDS}
        return {**entry, "id": image[entry["id"]], **lists}

    known = faster_coco_eval.COCO(
        {
            "images": [renumbered_image(entry) for entry in truth.dataset["images"]],
            "categories": [{**entry, "id": category[entry["id"]]} for entry in truth.dataset["categories"]],
            "annotations": [renumbered(annotation) for annotation in truth.dataset["annotations"]],
        }
    )
    found = known.loadRes([renumbered({k: v for k, v in record.items() if k in fields}) for record in results])
    evaluation = faster_coco_eval.COCOeval_faster(known, found, iou_type, lvis_style=True, print_function=_silent)
    evaluation.params.maxDets = [MOST]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.params.catIds = sorted(truth.cats)
    evaluation.cocoGt = evaluation.cocoDt = None  # only the numbers are wanted from here on
    evaluation.gt_dataset.clean()
    evaluation.dt_dataset.clean()
    evaluation.ious = {}
    return evaluation


def summarized(evaluation: Any) -> dict[str, float]:
    """Print the table; its numbers by the names of LVIS_METRICS."""
    evaluation.print_function = print
    evaluation.summarize()
    return {name: float(evaluation.all_stats[place]) for name, place in zip(LVIS_METRICS, _PLACES, strict=True)}


def _silent(*words: Any) -> None:
    pass
