"""TIDE errors: the gain in AP50 if all errors of one kind were fixed (Bolya et al. 2020, section 2.3).

Fixing errors and computing AP equals TIDE's implementation (tidecv 1.0.1), whose classes with detections but without
annotations have an AP of 0. COCO leaves them out, so `TideErrors.ap` may be below the table's AP50. Two things differ:
detections inside crowds are not in `TideErrors.counts`, as they cost nothing; and of more than 100 detections of an
image those counted by pycocotools are used, the best 100 of each class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mrcnn_jax.evaluation.analysis.image_overlaps import ImageOverlaps
from mrcnn_jax.evaluation.analysis.match_detections import CORRECT, Matches
from mrcnn_jax.evaluation.analysis.results import ERRORS, SPECIAL_ERRORS, TideErrors

# Kinds that are fixed by turning the detection into a match; detections of other kinds are removed.
_CORRECTABLE = (ERRORS.index("classification"), ERRORS.index("localization"))
_RECALLS = np.arange(101) / 100


class _AllDetections(NamedTuple):
    """The detections (D) of all images, and the number of annotated instances of each class (C)."""

    scores: NDArray[np.float64]  # (D,)
    classes: NDArray[np.int64]  # (D,)
    kinds: NDArray[np.int64]  # (D,)
    counted: NDArray[np.bool_]  # (D,), not ignored
    # (D,): class of the instance matched once the error is fixed; -1 if another detection has or would match it
    fixed_classes: NDArray[np.int64]
    positives: NDArray[np.int64]  # (C,)
    unmatched: NDArray[np.int64]  # (C,) positives without a match
    missed: NDArray[np.int64]  # (C,) positives that no fixed detection would match either


def tide_errors(images: Sequence[tuple[ImageOverlaps, Matches]], classes: int) -> TideErrors:
    """Return the errors of all images, with C = `classes`."""
    detections = _concatenate(images, classes)
    ap = _ap_with_positives(detections, detections.positives)
    detections = _correct_last(detections)
    correct = detections.kinds == CORRECT
    gains = {name: max(_ap_without(detections, kind) - ap, 0.0) for kind, name in enumerate(ERRORS[:5])}
    gains["missed"] = max(_ap_with_positives(detections, detections.positives - detections.missed) - ap, 0.0)
    gains[SPECIAL_ERRORS[0]] = (
        _mean_ap(detections.classes, correct * 1.0, correct, detections.counted, detections.positives) - ap
    )
    gains[SPECIAL_ERRORS[1]] = _ap_with_positives(detections, detections.positives - detections.unmatched) - ap
    counts = {
        name: int(np.sum(detections.counted & (detections.kinds == kind))) for kind, name in enumerate(ERRORS[:5])
    }
    return TideErrors(ap, gains, {**counts, "missed": int(detections.missed.sum())})


def _concatenate(images: Sequence[tuple[ImageOverlaps, Matches]], classes: int) -> _AllDetections:
    def concatenated(parts: list[NDArray], dtype: type) -> NDArray:  # type: ignore[type-arg]
        return np.concatenate([np.zeros(0, dtype), *parts])

    instances = concatenated([overlaps.instance_classes for overlaps, _ in images], np.int64)
    matched = concatenated([matches.matched for _, matches in images], np.bool_)
    matchable = concatenated([_matchable(matches) for _, matches in images], np.bool_)
    return _AllDetections(
        scores=concatenated([overlaps.scores for overlaps, _ in images], np.float64),
        classes=concatenated([overlaps.classes for overlaps, _ in images], np.int64),
        kinds=concatenated([matches.kinds for _, matches in images], np.int64),
        counted=concatenated(
            [~overlaps.ignored_if_unmatched | (matches.kinds == CORRECT) for overlaps, matches in images], np.bool_
        ),
        fixed_classes=concatenated([_fixed_classes(overlaps, matches) for overlaps, matches in images], np.int64),
        positives=np.bincount(instances, minlength=classes),
        unmatched=np.bincount(instances[~matched], minlength=classes),
        missed=np.bincount(instances[~matched & ~matchable], minlength=classes),
    )


def _correct_last(detections: _AllDetections) -> _AllDetections:
    """Sort correct detections behind others with the same score, as tidecv does once any error is fixed."""
    order = np.argsort(detections.kinds == CORRECT, kind="stable")
    return detections._replace(
        scores=detections.scores[order],
        classes=detections.classes[order],
        kinds=detections.kinds[order],
        counted=detections.counted[order],
        fixed_classes=detections.fixed_classes[order],
    )


def _fixed_classes(overlaps: ImageOverlaps, matches: Matches) -> NDArray[np.int64]:
    """Return `_AllDetections.fixed_classes` of an image; of detections with the same target the best matches it."""
    classes = np.full(len(overlaps.scores), -1)
    taken = matches.matched.copy()
    for row in np.flatnonzero(np.isin(matches.kinds, _CORRECTABLE)):
        target = matches.targets[row]
        if not taken[target]:
            taken[target] = True
            classes[row] = overlaps.instance_classes[target]
    return classes


def _matchable(matches: Matches) -> NDArray[np.bool_]:
    """Return which instances (G,) fixed detections would match."""
    matchable = np.zeros(len(matches.matched), bool)
    matchable[matches.targets[np.isin(matches.kinds, _CORRECTABLE)]] = True
    return matchable


def _ap_without(detections: _AllDetections, kind: int) -> float:
    """Return AP50 without errors of one kind."""
    of_kind = detections.kinds == kind
    fixed = of_kind & (detections.fixed_classes >= 0)
    return _mean_ap(
        np.where(fixed, detections.fixed_classes, detections.classes),
        detections.scores,
        fixed | (detections.kinds == CORRECT),
        np.where(of_kind, fixed, detections.counted),
        detections.positives,
    )


def _ap_with_positives(detections: _AllDetections, positives: NDArray[np.int64]) -> float:
    """Return AP50 if the classes had `positives` (C,) annotated instances."""
    return _mean_ap(detections.classes, detections.scores, detections.kinds == CORRECT, detections.counted, positives)


def _mean_ap(
    classes: NDArray[np.int64],
    scores: NDArray[np.float64],
    correct: NDArray[np.bool_],
    counted: NDArray[np.bool_],
    positives: NDArray[np.int64],
) -> float:
    """Return the mean AP of the classes that are annotated or detected; -1 if there are none."""
    rows = np.flatnonzero(counted)
    rows = rows[np.argsort(-scores[rows], kind="stable")]
    rows = rows[np.argsort(classes[rows], kind="stable")]
    bounds = np.searchsorted(classes[rows], np.arange(len(positives) + 1))
    aps = [
        _ap(correct[rows[start:stop]], count)
        for start, stop, count in zip(bounds[:-1], bounds[1:], positives, strict=True)
        if stop > start or count
    ]
    return float(np.mean(aps)) if aps else -1.0


def _ap(correct: NDArray[np.bool_], positives: int) -> float:
    """Return the mean over 101 recalls of the best precision at that recall or more; detections best first."""
    if not positives or not len(correct):
        return 0.0
    true_positives = np.cumsum(correct)
    precision = np.maximum.accumulate((true_positives / np.arange(1, len(correct) + 1))[::-1])[::-1]
    indices = np.searchsorted(true_positives / positives, _RECALLS)
    return float(np.append(precision, 0.0)[indices].mean())
