"""The categories of a data set, and the keypoints that their instances have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mrcnn_jax.data.errors import DataError, listing, refuse

_SIDES = {"left": "right", "right": "left", "l": "r", "r": "l"}


class Pose(NamedTuple):
    """The keypoints of a category; empty where it has none."""

    names: tuple[str, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()  # pairs of keypoints to join with a line, counted from 0


@dataclass(frozen=True)
class Categories:
    """The data set's categories in the order of their ids: class k (1..C) has id `ids[k - 1]`."""

    ids: tuple[int, ...]
    names: tuple[str, ...]
    poses: tuple[Pose, ...] = ()  # one a category, or none at all

    def class_of(self) -> dict[int, int]:
        """Contiguous class 1..C of each category id."""
        return {category_id: k + 1 for k, category_id in enumerate(self.ids)}

    @property
    def pose(self) -> Pose:
        """The keypoints that all categories share which have any; empty when there are none, or they differ."""
        distinct = {pose for pose in self.poses if pose.names}
        return distinct.pop() if len(distinct) == 1 else Pose()

    def keypoint_counts(self) -> dict[int, int]:
        """Number of keypoints of each category id that has some."""
        return {i: len(pose.names) for i, pose in zip(self.ids, self.poses, strict=False) if pose.names}

    def select(self, names: Sequence[str]) -> Categories:
        """Only the categories of these names; all of them for no names. Raises DataError for one that is not there."""
        if absent := [name for name in names if name not in self.names]:
            raise DataError(f"data.categories asks for {listing(absent)}; the data has {listing(self.names)}")
        chosen = [k for k, name in enumerate(self.names) if not names or name in names]
        poses = tuple(self.poses[k] for k in chosen) if self.poses else ()
        return Categories(tuple(self.ids[k] for k in chosen), tuple(self.names[k] for k in chosen), poses)


def read_categories(path: Path, entries: Sequence[dict[str, Any]]) -> Categories:
    """The list `categories` of a COCO JSON. Raises DataError for a skeleton that joins keypoints it does not have."""
    ordered = sorted(entries, key=lambda category: category["id"])
    poses = tuple(_pose(category) for category in ordered)
    wrong = [
        category["id"]
        for category, pose in zip(ordered, poses, strict=True)
        if any(not 0 <= end < len(pose.names) for pair in pose.skeleton for end in pair)
    ]
    if wrong:
        refuse(f"{path}: categories whose skeleton joins keypoints that they do not have", wrong, "count from 1 there")
    return Categories(tuple(c["id"] for c in ordered), tuple(str(c["name"]) for c in ordered), poses)


def mirrored(names: Sequence[str]) -> tuple[int, ...]:
    """For each keypoint, the one that has its name with left and right exchanged; itself where there is none.

    Names like left_eye, "Right Knee" and l-ear are understood.
    """
    exchanged = ["".join(_SIDES.get(word, word) for word in re.split(r"([^a-z]+)", name.lower())) for name in names]
    lower = [name.lower() for name in names]
    return tuple(lower.index(other) if other in lower else i for i, other in enumerate(exchanged))


def _pose(category: dict[str, Any]) -> Pose:
    """COCO counts the keypoints of a skeleton from 1."""
    names = tuple(str(name) for name in category.get("keypoints") or ())
    return Pose(names, tuple((int(a) - 1, int(b) - 1) for a, b in category.get("skeleton") or ()))
