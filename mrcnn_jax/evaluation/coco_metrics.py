"""COCO metrics of boxes, masks and keypoints, computed and printed by pycocotools (LVIS: see `lvis_metrics`)."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

from mrcnn_jax.config import ModelConfig
from mrcnn_jax.config.metric_names import KEYPOINT_METRICS, METRICS
from mrcnn_jax.data.categories import is_coco_keypoints, keypoint_words
from mrcnn_jax.errors import ConfigError, format_list
from mrcnn_jax.evaluation import lvis_metrics, notes
from mrcnn_jax.evaluation.coco_ground_truth import load_ground_truth, restrict, silence_pycocotools, with_annotations
from mrcnn_jax.inference.postprocess import categories

log = logging.getLogger(__name__)

HEADINGS = {iou_type: name.capitalize() for iou_type, name in notes.NAMES.items()}
FIELDS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}  # of a result record


@dataclass(frozen=True)
class Scores:
    """Result records scored against the ground truth."""

    ground_truth: COCO
    results: list[dict[str, Any]]  # the records that were scored
    metrics: dict[str, float]  # {"bbox/AP": ..., "segm/AP50": ...}; -1: no such ground truth
    # By iou_type, accumulated: `eval["precision"]` (T, R, C, A, M) and `eval["recall"]` (T, C, A, M) are available,
    # what pycocotools stores of single images is not.
    evaluations: dict[str, COCOeval]
    keypoint_sigmas: NDArray[np.float64]  # (K,), of OKS; K is 0 without keypoints
    notes: tuple[str, ...] = ()  # on annotations and results that are left out, and on limits of the recall


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
    """Score COCO result records against a COCO or LVIS annotation file.

    Unless `quiet`, prints pycocotools' tables and logs the notes (`Scores.notes`) on what is left out: results of other
    categories, and in each table the annotations and results without what it scores.
    iou_types: the tables, of "bbox", "segm", "keypoints". Each has twelve metrics (keypoints ten, LVIS thirteen).
    image_ids, category_names: restrict the evaluation (empty: all of the file).
    keypoint_sigmas: (K,) standard deviations of OKS; by default COCO's for COCO's 17 keypoints, identified by their
    names, and the mean of COCO's for any other keypoint.
    images: folder of the images. LVIS has URLs instead of file names, and the files are looked up there.
    Raises DataError for an unusable file, and ValueError for results of other images, for a table without any result
    that it can score, and for another number of keypoints than the annotations have.
    """
    truth = load_ground_truth(annotations, image_ids, category_names, images)
    known = [record for record in results if record["category_id"] in truth.cats]
    _check_results(truth, known, iou_types)
    sigmas, sigma_notes = _sigmas(truth, keypoint_sigmas if "keypoints" in iou_types else ())
    others = "that are not chosen" if category_names else "that the annotations do not have"
    remarks = notes.unknown_categories(results, truth.cats, others)
    if "keypoints" in iou_types:
        remarks += sigma_notes
    is_lvis = lvis_metrics.is_lvis(truth)
    scored = lvis_metrics.filter_results(truth, known) if is_lvis else known
    metrics, evaluations = {}, {}
    for iou_type in iou_types:
        lvis_table = is_lvis and iou_type != "keypoints"
        evaluation, values = _score_table(truth, scored, iou_type, sigmas, lvis=lvis_table, quiet=quiet)
        evaluations[iou_type] = evaluation
        metrics.update({f"{iou_type}/{name}": value for name, value in values.items()})
        limit, counted = evaluation.params.maxDets[-1], with_field(known, iou_type)
        remarks += notes.unscored(truth, known, counted, iou_type)
        remarks += notes.table_limit(truth, counted, iou_type, limit, per_image=lvis_table)
    if not quiet:
        for remark in remarks:
            log.warning("%s", remark)
    return Scores(truth, scored, metrics, evaluations, sigmas, tuple(remarks))


def with_field(records: Sequence[dict[str, Any]], iou_type: str) -> list[dict[str, Any]]:
    """Return the records that a table can score: those with a box, a mask or keypoints."""
    values = ((record, record.get(FIELDS[iou_type])) for record in records)
    return [record for record, value in values if value is not None and len(value)]


def _score_table(
    truth: COCO,
    results: Sequence[dict[str, Any]],
    iou_type: str,
    sigmas: NDArray[np.float64],
    *,
    lvis: bool,
    quiet: bool,
) -> tuple[COCOeval, dict[str, float]]:
    """Compute and print one table; returns the accumulated evaluation and the metrics by name."""
    results, restricted = with_field(results, iou_type), restrict(truth, iou_type)
    if lvis:
        evaluation = lvis_metrics.accumulate(restricted, results, iou_type)
    else:
        evaluation = _accumulate(restricted, results, iou_type, sigmas)
    with silence_pycocotools() if quiet else contextlib.nullcontext():
        heading = f"{HEADINGS[iou_type]} ({iou_type}), {len(truth.imgs)} images, {len(results)} detections"
        print(f"\n{heading}", flush=True)
        if lvis:
            return evaluation, lvis_metrics.summarize(evaluation)
        evaluation.summarize()
    names = KEYPOINT_METRICS if iou_type == "keypoints" else METRICS
    return evaluation, dict(zip(names, evaluation.stats.tolist(), strict=True))


def _accumulate(truth: COCO, results: Sequence[dict[str, Any]], iou_type: str, sigmas: NDArray[np.float64]) -> COCOeval:
    """Return an accumulated evaluation, without what it stores of single images (large for COCO's validation set)."""
    evaluation = evaluate_images(truth, results, iou_type, sigmas)
    with silence_pycocotools():
        evaluation.accumulate()
    evaluation.cocoDt = None
    evaluation.evalImgs, evaluation.ious, evaluation._gts, evaluation._dts = [], {}, {}, {}
    return evaluation


def evaluate_images(
    truth: COCO, results: Sequence[dict[str, Any]], iou_type: str, sigmas: NDArray[np.float64]
) -> COCOeval:
    """Return an evaluation with the matches of each image, `evalImgs`, which is not accumulated."""
    with silence_pycocotools():
        evaluation = COCOeval(truth, _detections(truth, results, iou_type), iou_type)
        if iou_type == "keypoints":
            evaluation.params.kpt_oks_sigmas = sigmas
        evaluation.evaluate()
    return evaluation


def _detections(truth: COCO, results: Sequence[dict[str, Any]], iou_type: str) -> COCO:
    """Return result records as a `COCO`; pycocotools' own `loadRes` fails on an empty list."""
    if not results:
        return with_annotations(truth, [])
    # Of records with several fields loadRes takes the area from the box, which is wrong for the metrics by size.
    others = set(FIELDS.values()) - {FIELDS[iou_type]}
    with silence_pycocotools():
        return truth.loadRes([{k: v for k, v in record.items() if k not in others} for record in results])


def _check_results(truth: COCO, results: Sequence[dict[str, Any]], iou_types: Sequence[str]) -> None:
    """Raise ValueError for results of unknown images, or that a table cannot score."""
    unknown = sorted({record["image_id"] for record in results} - truth.imgs.keys())
    if unknown:
        raise ValueError(f"results for images that the annotations do not have: ids {unknown[:20]}")
    for iou_type in iou_types:
        if results and not with_field(results, iou_type):
            name = notes.NAMES[iou_type]
            raise ValueError(f"results without {name} cannot be scored as {name}: leave {iou_type!r} out of iou_types")
    if "keypoints" in iou_types:
        count = _keypoint_count(truth)
        wrong = [r["image_id"] for r in with_field(results, "keypoints") if len(r["keypoints"]) != 3 * count]
        if not count or wrong:
            where = f" (images {format_list(list(dict.fromkeys(wrong)))})" if wrong else ""
            raise ValueError(
                f"the annotations have {count} keypoints, and not every result has x, y, score for as many{where}:"
                " leave 'keypoints' out of iou_types"
            )


def _keypoint_count(truth: COCO) -> int:
    """Return K, which all categories with keypoints share."""
    return max((len(category["keypoints"]) for category in truth.cats.values()), default=0)


def _sigmas(truth: COCO, given: Sequence[float]) -> tuple[NDArray[np.float64], list[str]]:
    """Return OKS sigmas (K,), relative to the square root of the instance's area, and a note if they are guesses."""
    coco, count = Params("keypoints").kpt_oks_sigmas, _keypoint_count(truth)
    if len(given) not in (0, count):
        raise ValueError(f"{len(given)} keypoint_sigmas for {count} keypoints")
    if given:
        return np.array(given), []
    if any(is_coco_keypoints(category["keypoints"]) for category in truth.cats.values()):
        return coco, []
    note = f"the keypoints are not COCO's: OKS uses the mean of COCO's sigmas, {coco.mean():.3f}, for each of them"
    return np.full(count, coco.mean()), [note]


def check_categories(model: ModelConfig, ids: Sequence[int], names: Sequence[str]) -> None:
    """Raise ConfigError unless the model has every category of the data, by id and name; it may have others."""
    model_names, data_names = dict(zip(*categories(model), strict=True)), dict(zip(ids, names, strict=True))
    differing = sorted(i for i in data_names if model_names.get(i) != data_names[i])
    if not differing:
        return
    lines = [f"  id {i}: model {model_names.get(i, 'none')!r}, data {data_names[i]!r}" for i in differing[:10]]
    more = [f"  and {len(differing) - 10} more"] if len(differing) > 10 else []
    heading = "the model's categories differ from those of the data, so its scores would mean nothing:"
    raise ConfigError("\n".join([heading, *lines, *more]))


def check_keypoints(model: ModelConfig, names: Sequence[str]) -> None:
    """Raise ConfigError if both model and data have keypoints, and these differ in names or order.

    Names are compared word by word, however the words are joined.
    """
    same = [*map(keypoint_words, names)] == [*map(keypoint_words, model.keypoint_names)]
    if model.keypoint is None or not names or same:
        return
    if model.keypoint_names or len(names) != model.num_keypoints:
        known = ", ".join(model.keypoint_names) or "names unknown"
        raise ConfigError(
            f"the model has {model.num_keypoints} keypoints ({known}), the data {len(names)} ({', '.join(names)}):"
            " set model.keypoint.num_keypoints and .flip_map to train on them, or model.keypoint=None"
        )
