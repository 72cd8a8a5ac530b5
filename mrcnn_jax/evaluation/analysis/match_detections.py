"""Matching of detections with annotated instances, and the kind of error of each unmatched detection.

Kinds, their order and thresholds are TIDE's (Bolya et al. 2020, section 2.2). An unmatched detection has the first kind
whose condition holds; overlaps are the largest with an instance of the same or of another class.

    localization     0.1 <= overlap with the same class <= 0.5
    classification   overlap with another class >= 0.5
    duplicate        overlap with the same class >= 0.5, matched by a detection with a better score
    background       overlap with every class <= 0.1
    both             otherwise: another class, and poorly localized
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mrcnn_jax.evaluation.analysis.image_overlaps import FOREGROUND, ImageOverlaps
from mrcnn_jax.evaluation.analysis.results import ERRORS

BACKGROUND = 0.1  # greatest overlap of a detection on background
CORRECT = -1
_CLASSIFICATION, _LOCALIZATION, _BOTH, _DUPLICATE, _BACKGROUND = range(5)
assert ERRORS[:5] == ("classification", "localization", "both", "duplicate", "background")


class Matches(NamedTuple):
    """Outcomes of the detections (D) and the instances (G) of an image."""

    kinds: NDArray[np.int64]  # (D,): CORRECT, or an index into ERRORS
    # (D,): the matched instance, or the one that would match with the right class or location; -1 for none
    targets: NDArray[np.int64]
    matched: NDArray[np.bool_]  # (G,)


def match_detections(overlaps: ImageOverlaps) -> Matches:
    """Match each detection, best score first, with the free instance of its class with the largest overlap."""
    same = overlaps.classes[:, None] == overlaps.instance_classes[None]
    targets = greedy_match(overlaps.overlaps * same)
    kinds = np.full(len(overlaps.scores), CORRECT)
    for row in np.flatnonzero(targets < 0):
        kinds[row], targets[row] = _error(overlaps.overlaps[row], same[row])
    matched = np.zeros(len(overlaps.instances), bool)
    matched[targets[kinds == CORRECT]] = True
    return Matches(kinds, targets, matched)


def greedy_match(overlaps: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return for each row of (D, G) the free column with the largest overlap of at least FOREGROUND, or -1."""
    free = overlaps.copy()
    columns = np.full(len(free), -1)
    if not free.size:
        return columns
    for row, values in enumerate(free):
        column = int(values.argmax())
        if values[column] >= FOREGROUND:
            columns[row] = column
            free[:, column] = 0
    return columns


def _error(overlaps: NDArray[np.float64], same: NDArray[np.bool_]) -> tuple[int, int]:
    """Return the kind of error of a detection with overlaps (G,), and the instance that it would match, or -1."""
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


def outcomes(overlaps: ImageOverlaps, matches: Matches) -> list[str]:
    """Return `Instance.outcome` of each detection."""
    names = ["correct" if kind == CORRECT else ERRORS[kind] for kind in matches.kinds]
    return [
        "crowd" if ignored and name != "correct" else name
        for name, ignored in zip(names, overlaps.ignored_if_unmatched, strict=True)
    ]
