"""Which detection found which instance, and what is wrong with the others.

The kinds of error and their order are those of TIDE (Bolya et al. 2020, section 2.2), with its thresholds. A detection
that found nothing is the first of these that holds; "same class" and "other class" speak of an annotated instance, and
of the largest overlap with one.

    localization     0.1 <= overlap with the same class <= 0.5
    classification   overlap with another class >= 0.5
    duplicate        overlap with the same class >= 0.5: a better detection has it
    background       overlap with everything <= 0.1
    both             what is left: another class, and not well localized
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mrcnn_jax.evaluation.analysis.image_overlaps import FOREGROUND, ImageOverlaps
from mrcnn_jax.evaluation.analysis.results import ERRORS

BACKGROUND = 0.1  # overlap up to which a detection has to do with nothing
CORRECT = -1
_CLASSIFICATION, _LOCALIZATION, _BOTH, _DUPLICATE, _BACKGROUND = range(5)
assert ERRORS[:5] == ("classification", "localization", "both", "duplicate", "background")


class Matches(NamedTuple):
    """What became of each detection (D) of a scene, and of each instance (G)."""

    kinds: NDArray[np.int64]  # (D,): CORRECT, or the place in ERRORS
    # (D,): the instance that was found, or that would have been with the right class or place; -1 for none
    targets: NDArray[np.int64]
    found: NDArray[np.bool_]  # (G,)


def match_detections(scene: ImageOverlaps) -> Matches:
    """Every detection with the instance of its class that it overlaps most, the best first, each instance once."""
    same = scene.classes[:, None] == scene.true_classes[None]
    targets = greedy_match(scene.overlaps * same)
    kinds = np.full(len(scene.scores), CORRECT)
    for row in np.flatnonzero(targets < 0):
        kinds[row], targets[row] = _error(scene.overlaps[row], same[row])
    found = np.zeros(len(scene.truths), bool)
    found[targets[kinds == CORRECT]] = True
    return Matches(kinds, targets, found)


def greedy_match(overlaps: NDArray[np.float64]) -> NDArray[np.int64]:
    """For each row (D, G) the column of its largest value that no row above it took; -1 below FOREGROUND."""
    free = overlaps.copy()
    chosen = np.full(len(free), -1)
    if not free.size:
        return chosen
    for row, values in enumerate(free):
        column = int(values.argmax())
        if values[column] >= FOREGROUND:
            chosen[row] = column
            free[:, column] = 0
    return chosen


def _error(overlaps: NDArray[np.float64], same: NDArray[np.bool_]) -> tuple[int, int]:
    """The kind of a detection that found nothing, from its overlaps (G,); the instance that it should have found."""
    if not len(overlaps):
        return _BACKGROUND, -1
    own, other = overlaps * same, overlaps * ~same
    if BACKGROUND <= own.max() <= FOREGROUND:
        return _LOCALIZATION, int(own.argmax())
    if other.max() >= FOREGROUND:
        return _CLASSIFICATION, int(other.argmax())
    if own.max() >= FOREGROUND:
        return _DUPLICATE, -1
    return (_BACKGROUND if overlaps.max() <= BACKGROUND else _BOTH), -1


def outcomes(scene: ImageOverlaps, matches: Matches) -> list[str]:
    """`Instance.outcome` of each detection."""
    names = ["correct" if kind == CORRECT else ERRORS[kind] for kind in matches.kinds]
    return [
        "crowd" if excused and name != "correct" else name for name, excused in zip(names, scene.excused, strict=True)
    ]
