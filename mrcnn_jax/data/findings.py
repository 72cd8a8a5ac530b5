"""What is found wrong with a data set, and how it is said: the same words from the check command and from training.

Two severities. A refusal means that the JSON and the images do not belong together, or that a file cannot be read:
training does not start. A problem is a slip of annotation (the published COCO has some): what is wrong is left out of
the training data, counted and named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mrcnn_jax.errors import DataError, listing


class Refusal(NamedTuple):
    """One reason why training does not start. `kind` reads as a headline, `culprit` names the file or the entry."""

    kind: str
    culprit: str
    advice: str
    image_id: int | None = None
    annotation_id: int | None = None


class Problem(NamedTuple):
    """One thing that is left out of the training data. `kind` says what: an instance, or a part of one."""

    kind: str
    annotation_id: int
    image_id: int


def raise_refusals(path: Path, refusals: Sequence[Refusal]) -> None:
    """Raise DataError with a line for each kind of refusal; do nothing when there is none."""
    if refusals:
        raise DataError("\n".join(describe_refusals(path, refusals)))


def describe_refusals(path: Path, refusals: Sequence[Refusal], most: int | None = 20) -> list[str]:
    """A line for each kind, in the order of appearance: the file, how many, the first `most` by name, what to do."""
    lines = []
    for kind, advice in dict.fromkeys((refusal.kind, refusal.advice) for refusal in refusals):
        culprits = [r.culprit for r in refusals if (r.kind, r.advice) == (kind, advice)]
        lines.append(f"{path}: {kind} ({len(culprits)}): {listing(culprits, most)}; {advice}")
    return lines


def describe_problems(problems: Sequence[Problem], most: int | None = 20) -> list[str]:
    """A line for each kind, in the order of appearance: how many, and the first `most` annotations by id."""
    lines = []
    for kind in dict.fromkeys(problem.kind for problem in problems):
        named = [f"{p.annotation_id} (image {p.image_id})" for p in problems if p.kind == kind]
        lines.append(f"dropped {len(named)}, {kind}: annotation {listing(named, most)}")
    return lines


def nothing_to_learn(
    path: Path, categories: Sequence[str], instances: int, crowds: int, problems: Sequence[Problem]
) -> str:
    """Why nothing can be learned from a file with so many usable instances and crowds; empty where something can."""
    if instances:
        return ""
    if not categories:
        return f"{path}: no categories; there is nothing to learn: name the classes in 'categories'"
    reasons = _reasons(problems)
    if crowds:
        reasons.insert(0, f"iscrowd=1 ({crowds})" if reasons else f"all {crowds} have iscrowd=1")
        advice = "set iscrowd to 0 for single objects: some tools write 1 with every run-length mask"
    elif reasons:
        advice = "correct the annotations"
    else:
        return f"{path}: no instance to learn from: nothing is annotated as {listing(categories)}; annotate the images"
    return f"{path}: no instance is left to train on: {', '.join(reasons)}; {advice}"


def no_masks(path: Path, problems: Sequence[Problem]) -> str:
    """The message for a model with masks about a file in which no instance has one."""
    reasons = f": {', '.join(_reasons(problems))}" if problems else ""
    advice = "set model.mask=None to train boxes alone, or give the instances segmentations"
    return f"{path}: no instance has a mask to learn from{reasons}; {advice}"


def _reasons(problems: Sequence[Problem]) -> list[str]:
    """Each kind of problem, with the number of annotations that have it."""
    return [f"{kind} ({count})" for kind, count in Counter(problem.kind for problem in problems).items()]
