"""COCO average precision of boxes, masks and keypoints, computed and printed by pycocotools itself (LVIS: `lvis`)."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

from mrcnn_jax.config import ModelConfig
from mrcnn_jax.config.metric_names import KEYPOINT_METRICS, METRICS
from mrcnn_jax.data.annotations import read
from mrcnn_jax.data.categories import is_coco_keypoints, keypoint_words
from mrcnn_jax.data.lvis_labels import FederatedLabels
from mrcnn_jax.data.mask_crops import annotation_area
from mrcnn_jax.errors import ConfigError, listing
from mrcnn_jax.evaluation import lvis_metrics, notes
from mrcnn_jax.inference.postprocess import categories

log = logging.getLogger(__name__)

HEADINGS = {iou_type: name.capitalize() for iou_type, name in notes.NAMES.items()}
FIELDS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}  # of a result record


@dataclass(frozen=True)
class Scores:
    """Result records held against the truth."""

    truth: COCO
    results: list[dict[str, Any]]  # the records that were scored
    metrics: dict[str, float]  # {"bbox/AP": ..., "segm/AP50": ...}; -1 stands for "no such ground truth"
    # Of each table that was asked for: accumulated, so that `eval["precision"]` (T, R, C, A, M) and `eval["recall"]`
    # (T, C, A, M) are there; what pycocotools knew of single images is not kept.
    evaluations: dict[str, COCOeval]
    keypoint_sigmas: NDArray[np.float64]  # (K,), of OKS; K is 0 without keypoints
    notes: tuple[str, ...] = ()  # what the tables leave out of the results, and limits that bound the recall


def evaluate(annotations: Path, results: Sequence[dict[str, Any]], **choices: Any) -> dict[str, float]:
    """The metrics of `score`, which takes the same arguments."""
    return score(annotations, results, **choices).metrics


def score(
    annotations: Path,
    results: Sequence[dict[str, Any]],
    *,
    iou_types: Sequence[str] = ("bbox", "segm"),
    image_ids: Sequence[int] = (),
    category_names: Sequence[str] = (),
    keypoint_sigmas: Sequence[float] = (),
    images: Path | None = None,
    quiet: bool = False,
) -> Scores:
    """Score COCO result records against a COCO annotation file; unless `quiet`, print pycocotools' tables.

    `image_ids` and `category_names` restrict the evaluation (empty: all of the file); results of other categories are
    left out, and each table leaves out results that lack its field: `Scores.notes` count them.
    `keypoint_sigmas` (K,) say how far off a keypoint may be (OKS); left empty they are COCO's for COCO's 17
    keypoints, by their names, and the mean of those for every other keypoint. `images` is their folder: LVIS gives
    addresses instead of file names, and the files are looked for there.
    The metrics are the twelve (keypoints: ten) numbers of each table, of LVIS its thirteen: see `evaluation.lvis`.
    Raises DataError for a file that cannot be used, ValueError for results of other images, of which none has what a
    table scores, or of another number of keypoints than the annotations have.
    """
    truth = ground_truth(annotations, image_ids, category_names, images)
    known = [record for record in results if record["category_id"] in truth.cats]
    others = "that are not chosen" if category_names else "that the annotations do not have"
    said = notes.left_out_categories(results, truth.cats, others)
    _check_results(truth, known, iou_types)
    sigmas, whose = _sigmas(truth, keypoint_sigmas if "keypoints" in iou_types else ())
    of_lvis = lvis_metrics.is_lvis(truth)
    results = lvis_metrics.judged(truth, known) if of_lvis else known
    metrics, evaluations = {}, {}
    for iou_type in iou_types:
        counted = with_field(results, iou_type)
        own = of_lvis and iou_type != "keypoints"
        accumulate = lvis_metrics.accumulated if own else functools.partial(_accumulated, sigmas=sigmas)
        restricted = _restricted(truth, iou_type)
        evaluations[iou_type] = accumulate(restricted, counted, iou_type)
        summarize = lvis_metrics.summarized if own else functools.partial(_summarized, iou_type=iou_type)
        with _silent() if quiet else contextlib.nullcontext():
            heading = f"\n{HEADINGS[iou_type]} ({iou_type}), {len(truth.imgs)} images, {len(counted)} detections"
            remarks = [left_out(truth, iou_type), whose if iou_type == "keypoints" else ""]
            print("\n".join(filter(None, [heading, *remarks])), flush=True)
            numbers = summarize(evaluations[iou_type])
        metrics.update({f"{iou_type}/{name}": value for name, value in numbers.items()})
        most = evaluations[iou_type].params.maxDets[-1]
        usable = with_field(known, iou_type)
        said += notes.left_out_results(known, usable, iou_type)
        said += notes.most_of_table(restricted, usable, iou_type, most, of_image=own)
    for note in said:
        log.warning("%s", note)
    return Scores(truth, results, metrics, evaluations, sigmas, tuple(said))


def with_field(results: Sequence[dict[str, Any]], iou_type: str) -> list[dict[str, Any]]:
    """The records that a table can score: those with a box, a mask or keypoints."""
    values = ((record, record.get(FIELDS[iou_type])) for record in results)
    return [record for record, value in values if value is not None and len(value)]


def _summarized(evaluation: COCOeval, iou_type: str) -> dict[str, float]:
    """Print the table; its numbers by name."""
    evaluation.summarize()
    names = KEYPOINT_METRICS if iou_type == "keypoints" else METRICS
    return {name: float(value) for name, value in zip(names, evaluation.stats, strict=True)}


def _accumulated(truth: COCO, results: Sequence[dict[str, Any]], iou_type: str, sigmas: NDArray[Any]) -> COCOeval:
    """Evaluated and accumulated; what was kept of single images is let go: much, for COCO's validation set."""
    with _silent():
        evaluation = COCOeval(truth, _detections(truth, results, iou_type), iou_type)
        if iou_type == "keypoints":
            evaluation.params.kpt_oks_sigmas = sigmas
        evaluation.evaluate()
        evaluation.accumulate()
    evaluation.cocoDt = None
    evaluation.evalImgs, evaluation.ious, evaluation._gts, evaluation._dts = [], {}, {}, {}
    return evaluation


def ground_truth(
    path: Path, image_ids: Sequence[int] = (), category_names: Sequence[str] = (), images: Path | None = None
) -> COCO:
    """A COCO annotation file as pycocotools wants it, without the annotations that cannot be scored.

    `iscrowd`, `area` and `num_keypoints` may be missing. Annotations are numbered anew: to pycocotools a match with
    annotation 0 is no match. `tables` of an annotation says where it counts, see `counts`; where its own box cannot be
    used, `bbox` is the extent of its mask, or else of its keypoints. `unscored` of the dataset is how many instances
    count nowhere.
    """
    content = read(path, image_ids, images, scoring=True)
    categories = content.categories.select(category_names)
    skeleton = [[first + 1, second + 1] for first, second in categories.keypoint_schema.skeleton]  # as COCO counts
    truth = COCO()
    truth.dataset = {
        "images": [
            {"id": i.id, "file_name": i.file_name, "height": i.height, "width": i.width} for i in content.images
        ],
        "categories": [
            {"id": i, "name": name, "keypoints": list(categories.keypoint_schema.names), "skeleton": skeleton}
            for i, name in zip(categories.ids, categories.names, strict=True)
        ],
        "annotations": [],
        "unscored": 0,
    }
    known, unlabeled = set(categories.ids), [0] * 3 * len(categories.keypoint_schema.names)
    for annotation in (annotation for image in content.images for annotation in image.annotations):
        if annotation["category_id"] in known:
            number = len(truth.dataset["annotations"]) + 1
            keypoints = annotation.get("keypoints") or unlabeled
            labeled = sum(visibility > 0 for visibility in keypoints[2::3])
            ours = {"id": number, "keypoints": keypoints, "num_keypoints": labeled}
            scored = {"iscrowd": 0, **annotation, **ours}
            scored["tables"] = _tables(scored)
            if scored["tables"]:
                truth.dataset["annotations"].append(scored)
            else:
                truth.dataset["unscored"] += not scored["iscrowd"]
    _add_judgments(truth.dataset, content.lvis)
    with _silent():
        truth.createIndex()
    for annotation in truth.dataset["annotations"]:
        if annotation["bbox"] is None:
            annotation["bbox"] = _extent(truth, annotation)
        if "area" not in annotation:
            image = truth.imgs[annotation["image_id"]]
            annotation["area"] = annotation_area(annotation, image["height"], image["width"])
    return truth


def _tables(annotation: dict[str, Any]) -> list[str]:
    """In which tables an annotation counts. Keypoints need an area, which a box or a mask gives."""
    found = {"bbox": annotation["bbox"] is not None, "segm": bool(annotation.get("segmentation"))}
    found["keypoints"] = any(found.values()) or (annotation["num_keypoints"] > 0 and "area" in annotation)
    return [iou_type for iou_type in found if found[iou_type]]


def counts(annotation: dict[str, Any], iou_type: str) -> bool:
    """Whether an annotation of `ground_truth` has what a table measures: a box, a mask, a place for keypoints."""
    return iou_type in annotation["tables"]


def left_out(truth: COCO, iou_type: str) -> str:
    """A line about the instances that do not count in a table; empty where all count."""
    instances = [annotation for annotation in truth.dataset["annotations"] if not annotation["iscrowd"]]
    total = len(instances) + truth.dataset["unscored"]
    if iou_type == "keypoints":
        counted = sum(annotation["num_keypoints"] > 0 for annotation in instances if counts(annotation, iou_type))
        words = "ignored, because they have no labeled keypoints"
    else:
        counted = sum(counts(annotation, iou_type) for annotation in instances)
        words = f"left out, because they have no usable {'box' if iou_type == 'bbox' else 'mask'}"
    return f"{total - counted:,} of {total:,} instances are {words}" if counted < total else ""


def _restricted(truth: COCO, iou_type: str) -> COCO:
    """The annotations that count in a table."""
    counted = [annotation for annotation in truth.dataset["annotations"] if counts(annotation, iou_type)]
    if len(counted) == len(truth.dataset["annotations"]):
        return truth
    part = COCO()
    part.dataset = {**truth.dataset, "annotations": counted}
    with _silent():
        part.createIndex()
    return part


def _add_judgments(dataset: dict[str, Any], judgments: FederatedLabels | None) -> None:
    """Put what LVIS says of images and categories into their entries, where it put them."""
    if judgments is None:
        return
    for image in dataset["images"]:
        image["neg_category_ids"] = judgments.absent[image["id"]]
        image["not_exhaustive_category_ids"] = judgments.partial[image["id"]]
    for category in dataset["categories"]:
        category["frequency"] = judgments.frequencies[category["id"]]


def _extent(truth: COCO, annotation: dict[str, Any]) -> list[float]:
    """x, y, width, height of the mask, or of the labeled keypoints where there is no mask."""
    if annotation.get("segmentation"):
        return [float(number) for number in coco_mask.toBbox(truth.annToRLE(annotation))]
    points = np.array(annotation["keypoints"], float).reshape(-1, 3)
    labeled = points[points[:, 2] > 0, :2]
    return [*labeled.min(axis=0).tolist(), *np.ptp(labeled, axis=0).tolist()]


def _check_results(truth: COCO, results: Sequence[dict[str, Any]], iou_types: Sequence[str]) -> None:
    strangers = sorted({record["image_id"] for record in results} - truth.imgs.keys())
    if strangers:
        raise ValueError(f"results for images that the annotations do not have: ids {strangers[:20]}")
    for iou_type in iou_types:
        if results and not with_field(results, iou_type):
            what = notes.NAMES[iou_type]
            raise ValueError(f"results without {what} cannot be scored as {what}: leave {iou_type!r} out of iou_types")
    if "keypoints" in iou_types:
        count = _keypoint_count(truth)
        wrong = [r["image_id"] for r in with_field(results, "keypoints") if len(r["keypoints"]) != 3 * count]
        if not count or wrong:
            where = f" (images {listing(list(dict.fromkeys(wrong)))})" if wrong else ""
            raise ValueError(
                f"the annotations have {count} keypoints, and not every result has x, y, score for as many{where}:"
                " leave 'keypoints' out of iou_types"
            )


def _keypoint_count(truth: COCO) -> int:
    """K that the categories share."""
    return max((len(category["keypoints"]) for category in truth.cats.values()), default=0)


def _sigmas(truth: COCO, given: Sequence[float]) -> tuple[NDArray[np.float64], str]:
    """Standard deviations (K,) of OKS, relative to the root of the instance's area, and a line if they are guesses."""
    coco, count = Params("keypoints").kpt_oks_sigmas, _keypoint_count(truth)
    if len(given) not in (0, count):
        raise ValueError(f"{len(given)} keypoint_sigmas for {count} keypoints")
    if given:
        return np.array(given), ""
    if any(is_coco_keypoints(category["keypoints"]) for category in truth.cats.values()):
        return coco, ""
    words = f"the keypoints are not COCO's: OKS takes the mean of COCO's sigmas, {coco.mean():.3f}, for each of them"
    return np.full(count, coco.mean()), words


def check_categories(model: ModelConfig, ids: Sequence[int], names: Sequence[str]) -> None:
    """Raise ConfigError unless the model knows every category of the data, by id and name; it may know others."""
    ours, theirs = dict(zip(*categories(model), strict=True)), dict(zip(ids, names, strict=True))
    differing = sorted(i for i in theirs if ours.get(i) != theirs[i])
    if not differing:
        return
    lines = [f"  id {i}: model {ours.get(i, 'none')!r}, data {theirs[i]!r}" for i in differing[:10]]
    more = [f"  and {len(differing) - 10} more"] if len(differing) > 10 else []
    what = "the model's categories differ from those of the data, so its scores would mean nothing:"
    raise ConfigError("\n".join([what, *lines, *more]))


def check_keypoints(model: ModelConfig, names: Sequence[str]) -> None:
    """Raise ConfigError unless a model with keypoints has those of the data, in their order; data may have none.

    How the words of a name are joined does not matter.
    """
    if (
        model.keypoint is None
        or not names
        or [*map(keypoint_words, names)] == [*map(keypoint_words, model.keypoint_names)]
    ):
        return
    if model.keypoint_names or len(names) != model.num_keypoints:
        ours = ", ".join(model.keypoint_names) or "names unknown"
        raise ConfigError(
            f"the model has {model.num_keypoints} keypoints ({ours}), the data {len(names)} ({', '.join(names)}):"
            " set model.keypoint.num_keypoints and .flip_map to train on them, or model.keypoint=None"
        )


def _detections(truth: COCO, results: Sequence[dict[str, Any]], iou_type: str) -> COCO:
    """Result records as a COCO object; pycocotools' own `loadRes` fails on an empty list."""
    if not results:
        empty = COCO()
        empty.dataset = {**truth.dataset, "annotations": []}
        with _silent():
            empty.createIndex()
        return empty
    # With several in a record, loadRes takes every area from the box, and the tables by size come out wrong.
    others = set(FIELDS.values()) - {FIELDS[iou_type]}
    with _silent():
        return truth.loadRes([{k: v for k, v in record.items() if k not in others} for record in results])


def _silent() -> contextlib.AbstractContextManager[Any]:
    """pycocotools tells of each of its steps; only its tables are worth printing."""
    return contextlib.redirect_stdout(io.StringIO())
