"""Findings about a dataset and their messages, which `mrcnn check` and training share.

A refusal stops training: the annotation file and the images do not fit together, or a file cannot be read. A problem
concerns a single annotation (the published COCO files have some): it is corrected or dropped, and reported.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mrcnn_jax.errors import DataError, format_list


class Refusal(NamedTuple):
    """One reason why training does not start.

    Refusals with the same `kind` (a headline) and `advice` (what to do) share a line; `item` names the file or entry.
    """

    kind: str
    item: str
    advice: str
    image_id: int | None = None
    annotation_id: int | None = None


class Problem(NamedTuple):
    """One annotation that is corrected or dropped; `kind` says why, and what happens to it."""

    kind: str
    annotation_id: int
    image_id: int


def raise_refusals(path: Path, refusals: Sequence[Refusal]) -> None:
    """Raise DataError with a line for each kind of refusal, if there are any."""
    if refusals:
        raise DataError("\n".join(describe_refusals(path, refusals)))


def describe_refusals(path: Path, refusals: Sequence[Refusal], max_count: int | None = 20) -> list[str]:
    """Return a line for each kind, in order of appearance: file, kind, count, the first `max_count` items, advice."""
    items: dict[tuple[str, str], list[str]] = defaultdict(list)
    for refusal in refusals:
        items[refusal.kind, refusal.advice].append(refusal.item)
    return [
        f"{path}: {kind} ({len(group)}): {format_list(group, max_count)}; {advice}"
        for (kind, advice), group in items.items()
    ]


def describe_problems(problems: Sequence[Problem], max_count: int | None = 20) -> list[str]:
    """Return a line for each kind, in order of appearance: kind, count, the first `max_count` annotation ids."""
    items: dict[str, list[str]] = defaultdict(list)
    for problem in problems:
        items[problem.kind].append(f"{problem.annotation_id} (image {problem.image_id})")
    return [f"{kind} in {_annotations(len(ids))}: {format_list(ids, max_count)}" for kind, ids in items.items()]


def no_instances_message(
    path: Path, categories: Sequence[str], instances: int, crowds: int, problems: Sequence[Problem]
) -> str:
    """Return why a file with these counts has nothing to train on, or an empty string if it has instances."""
    if instances:
        return ""
    if not categories:
        return f"{path}: no categories, so there is nothing to train on; add the classes to 'categories'"
    reasons = _reasons(problems)
    if crowds:
        reasons.insert(0, f"iscrowd=1 in {_annotations(crowds)}")
        advice = "set iscrowd to 0 for single objects (some tools write 1 for every RLE mask)"
    elif reasons:
        advice = "correct the annotations"
    else:
        return (
            f"{path}: no annotation of {format_list(categories)}, so there is nothing to train on; annotate the images"
        )
    return f"{path}: no instance is left to train on: {', '.join(reasons)}; {advice}"


def no_masks_message(path: Path, problems: Sequence[Problem]) -> str:
    """Return the error message for a model with masks and a file in which no instance has one."""
    reasons = f": {', '.join(_reasons(problems))}" if problems else ""
    advice = "set model.mask=None to train on boxes alone, or add segmentations"
    return f"{path}: no instance has a mask to train on{reasons}; {advice}"


def _reasons(problems: Sequence[Problem]) -> list[str]:
    counts = Counter(problem.kind for problem in problems)
    return [f"{kind} in {_annotations(count)}" for kind, count in counts.items()]


def _annotations(count: int) -> str:
    return f"{count} annotation{'' if count == 1 else 's'}"
