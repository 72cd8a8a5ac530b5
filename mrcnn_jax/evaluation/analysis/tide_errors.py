"""TIDE errors: the gain in AP50 if all errors of one kind were fixed (Bolya et al. 2020, section 2.3).

Fixing errors and computing AP equals TIDE's implementation (tidecv 1.0.1), whose classes with detections but without
annotations have an AP of 0. COCO leaves them out, so `TideErrors.ap` may be below the table's AP50. Two things differ:
detections inside crowds are not in `TideErrors.counts`, as they cost nothing; and of more than 100 detections of an
image those counted by pycocotools are used, the best 100 of each class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mrcnn_jax.evaluation.analysis import ERRORS, SPECIAL_ERRORS, TideErrors
from mrcnn_jax.evaluation.analysis.match_detections import CORRECT, Matches

# Kinds that are fixed by turning the detection into a match; detections of other kinds are removed.
_CORRECTABLE = (ERRORS.index("classification"), ERRORS.index("localization"))
_RECALLS = np.arange(101) / 100


class _Detections(NamedTuple):
    """The detections (D) of all images."""

    scores: NDArray[np.float64]  # (D,)
    classes: NDArray[np.int64]  # (D,)
    kinds: NDArray[np.int64]  # (D,)
    counted: NDArray[np.bool_]  # (D,), not ignored
    # (D,): class of the instance matched once the error is fixed; -1 if another detection has or would match it
    fixed_classes: NDArray[np.int64]


def tide_errors(images: Sequence[Matches], classes: int) -> TideErrors:
    """Return the errors of all images, of C = `classes`."""

    def joined(of_image: Callable[[Matches], NDArray[Any]], dtype: type) -> NDArray[Any]:
        return np.concatenate([np.zeros(0, dtype), *map(of_image, images)])

    detections = _Detections(
        scores=joined(lambda image: image.scores, np.float64),
        classes=joined(lambda image: image.classes, np.int64),
        kinds=joined(lambda image: image.kinds, np.int64),
        counted=joined(lambda image: ~image.ignored_if_unmatched | (image.kinds == CORRECT), np.bool_),
        fixed_classes=joined(_fixed_classes, np.int64),
    )
    instances = joined(lambda image: image.instance_classes, np.int64)
    unmatched = ~joined(lambda image: _are_targets(image, (CORRECT,)), np.bool_)
    missed = unmatched & ~joined(lambda image: _are_targets(image, _CORRECTABLE), np.bool_)
    positives = np.bincount(instances, minlength=classes)  # (C,)
    ap = _mean_ap(detections, positives)
    # Correct detections behind others with the same score, as tidecv sorts them once any error is fixed.
    order = np.argsort(detections.kinds == CORRECT, kind="stable")
    detections = _Detections._make(values[order] for values in detections)
    without = {name: _mean_ap(_fix(detections, kind), positives) for kind, name in enumerate(ERRORS[:5])}
    gains = {name: max(fixed - ap, 0.0) for name, fixed in without.items()}
    found, matched = (positives - np.bincount(instances[lost], minlength=classes) for lost in (missed, unmatched))
    gains["missed"] = max(_mean_ap(detections, found) - ap, 0.0)
    gains[SPECIAL_ERRORS[0]] = _mean_ap(detections._replace(scores=(detections.kinds == CORRECT) * 1.0), positives) - ap
    gains[SPECIAL_ERRORS[1]] = _mean_ap(detections, matched) - ap
    counts = {
        name: int(np.sum(detections.counted & (detections.kinds == kind))) for kind, name in enumerate(ERRORS[:5])
    }
    return TideErrors(ap, gains, {**counts, "missed": int(missed.sum())})


def _are_targets(image: Matches, kinds: Sequence[int]) -> NDArray[np.bool_]:
    """Return which instances (G,) detections of these kinds match, or would match."""
    targets = np.zeros(len(image.instance_classes), bool)
    targets[image.targets[np.isin(image.kinds, kinds)]] = True
    return targets


def _fixed_classes(image: Matches) -> NDArray[np.int64]:
    """Return `_Detections.fixed_classes` of an image; of detections with the same target the best matches it."""
    classes = np.full(len(image.scores), -1)
    rows = np.flatnonzero(np.isin(image.kinds, _CORRECTABLE))
    targets, first = np.unique(image.targets[rows], return_index=True)
    free = ~_are_targets(image, (CORRECT,))[targets]
    classes[rows[first[free]]] = image.instance_classes[targets[free]]
    return classes


def _fix(detections: _Detections, kind: int) -> _Detections:
    """Return the detections without errors of one kind."""
    of_kind = detections.kinds == kind
    fixed = of_kind & (detections.fixed_classes >= 0)
    return detections._replace(
        classes=np.where(fixed, detections.fixed_classes, detections.classes),
        kinds=np.where(fixed, CORRECT, detections.kinds),
        counted=np.where(of_kind, fixed, detections.counted),
    )


def _mean_ap(detections: _Detections, positives: NDArray[np.int64]) -> float:
    """Return the mean AP50 of the classes that are annotated or detected; -1 if there are none.

    positives: (C,) annotated instances of each class.
    """
    rows = np.flatnonzero(detections.counted)
    rows = rows[np.lexsort((-detections.scores[rows], detections.classes[rows]))]
    bounds = np.searchsorted(detections.classes[rows], np.arange(len(positives) + 1))
    correct = detections.kinds[rows] == CORRECT
    aps = [
        _ap(correct[start:stop], count)
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
