"""What each kind of error costs: AP50 with those errors mended, less AP50 as it is (Bolya et al. 2020, section 2.3).

How errors are mended, and how AP is taken, is as in TIDE's own program (tidecv 1.0.1), to the number. So classes of
which nothing is annotated but something was detected count with an AP of 0, where COCO leaves them out: `Errors.ap` may
be below the table's AP50. Two things differ: what lies in a crowd is not among `Errors.counts`, since it costs nothing;
and of more than 100 detections of an image those that pycocotools counts are taken, the best 100 of each class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mrcnn_jax.evaluation.analysis.image_overlaps import ImageOverlaps
from mrcnn_jax.evaluation.analysis.match_detections import CORRECT, Matches
from mrcnn_jax.evaluation.analysis.results import ERRORS, SPECIAL_ERRORS, TideErrors

_MENDED = (ERRORS.index("classification"), ERRORS.index("localization"))  # by hitting; the others by not being there
_RECALLS = np.arange(101) / 100


class _Found(NamedTuple):
    """The detections (D) of all images, and how often each class (C) is annotated."""

    scores: NDArray[np.float64]  # (D,)
    classes: NDArray[np.int64]  # (D,)
    kinds: NDArray[np.int64]  # (D,)
    counted: NDArray[np.bool_]  # (D,), not excused
    # (D,): class of the instance that it hits once it is mended; -1 for one that another detection has or would get
    mended: NDArray[np.int64]
    positives: NDArray[np.int64]  # (C,)
    unfound: NDArray[np.int64]  # (C,), of these: not found
    missed: NDArray[np.int64]  # (C,), of these: that no mended detection would find


def tide_errors(scenes: Sequence[tuple[ImageOverlaps, Matches]], classes: int) -> TideErrors:
    """The errors of all images, of so many classes (C)."""
    found = _gather(scenes, classes)
    ap = _remaining(found, found.positives)
    found = _wrong_first(found)
    correct = found.kinds == CORRECT
    gains = {name: max(_without(found, kind) - ap, 0.0) for kind, name in enumerate(ERRORS[:5])}
    gains["missed"] = max(_remaining(found, found.positives - found.missed) - ap, 0.0)
    gains[SPECIAL_ERRORS[0]] = _mean_ap(found.classes, correct * 1.0, correct, found.counted, found.positives) - ap
    gains[SPECIAL_ERRORS[1]] = _remaining(found, found.positives - found.unfound) - ap
    counts = {name: int(np.sum(found.counted & (found.kinds == kind))) for kind, name in enumerate(ERRORS[:5])}
    return TideErrors(ap, gains, {**counts, "missed": int(found.missed.sum())})


def _gather(scenes: Sequence[tuple[ImageOverlaps, Matches]], classes: int) -> _Found:
    def together(parts: list[NDArray], kind: type) -> NDArray:  # type: ignore[type-arg]
        return np.concatenate([np.zeros(0, kind), *parts])

    truths = together([scene.true_classes for scene, _ in scenes], np.int64)
    found = together([matches.found for _, matches in scenes], np.bool_)
    claimed = together([_claimed(matches) for _, matches in scenes], np.bool_)
    return _Found(
        scores=together([scene.scores for scene, _ in scenes], np.float64),
        classes=together([scene.classes for scene, _ in scenes], np.int64),
        kinds=together([matches.kinds for _, matches in scenes], np.int64),
        counted=together([~scene.excused | (matches.kinds == CORRECT) for scene, matches in scenes], np.bool_),
        mended=together([_mended(scene, matches) for scene, matches in scenes], np.int64),
        positives=np.bincount(truths, minlength=classes),
        unfound=np.bincount(truths[~found], minlength=classes),
        missed=np.bincount(truths[~found & ~claimed], minlength=classes),
    )


def _wrong_first(found: _Found) -> _Found:
    """Of detections with the same score those that hit come last, as in tidecv once anything is mended."""
    order = np.argsort(found.kinds == CORRECT, kind="stable")
    return found._replace(
        scores=found.scores[order],
        classes=found.classes[order],
        kinds=found.kinds[order],
        counted=found.counted[order],
        mended=found.mended[order],
    )


def _mended(scene: ImageOverlaps, matches: Matches) -> NDArray[np.int64]:
    """Of the detections that would hit the same instance if they were mended, the best does."""
    classes = np.full(len(scene.scores), -1)
    taken = matches.found.copy()
    for row in np.flatnonzero(np.isin(matches.kinds, _MENDED)):
        target = matches.targets[row]
        if not taken[target]:
            taken[target] = True
            classes[row] = scene.true_classes[target]
    return classes


def _claimed(matches: Matches) -> NDArray[np.bool_]:
    """(G,): which instances mended detections would find."""
    claimed = np.zeros(len(matches.found), bool)
    claimed[matches.targets[np.isin(matches.kinds, _MENDED)]] = True
    return claimed


def _without(found: _Found, kind: int) -> float:
    """AP50 if there were no errors of one kind."""
    of_kind = found.kinds == kind
    hits = of_kind & (found.mended >= 0)
    return _mean_ap(
        np.where(hits, found.mended, found.classes),
        found.scores,
        hits | (found.kinds == CORRECT),
        np.where(of_kind, hits, found.counted),
        found.positives,
    )


def _remaining(found: _Found, positives: NDArray[np.int64]) -> float:
    """AP50 if only so many instances (C,) were annotated."""
    return _mean_ap(found.classes, found.scores, found.kinds == CORRECT, found.counted, positives)


def _mean_ap(
    classes: NDArray[np.int64],
    scores: NDArray[np.float64],
    correct: NDArray[np.bool_],
    counted: NDArray[np.bool_],
    positives: NDArray[np.int64],
) -> float:
    """The mean AP of the classes that are annotated or detected; -1 if there are none."""
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
    """The mean over 101 recalls of the best precision at that recall or more; detections best first."""
    if not positives or not len(correct):
        return 0.0
    hits = np.cumsum(correct)
    precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    places = np.searchsorted(hits / positives, _RECALLS)
    return float(np.append(precision, 0.0)[places].mean())
