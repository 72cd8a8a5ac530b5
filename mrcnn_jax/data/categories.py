"""The categories of a data set, and the keypoints that their instances have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mrcnn_jax.data.findings import Refusal
from mrcnn_jax.data.json_entries import Entry, validate_entries
from mrcnn_jax.errors import DataError, listing

# In the order of COCO, which the default of model.keypoint.flip_map and COCO's sigmas of OKS go by.
COCO_KEYPOINTS = (
    "nose",
    *(f"{side}_{part}" for part in ("eye", "ear", "shoulder", "elbow", "wrist") for side in ("left", "right")),
    *(f"{side}_{part}" for part in ("hip", "knee", "ankle") for side in ("left", "right")),
)
_SIDES = {"left": "right", "right": "left", "l": "r", "r": "l"}


class KeypointSchema(NamedTuple):
    """The keypoints of a category; empty where it has none."""

    names: tuple[str, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()  # pairs of keypoints to join with a line, counted from 0


@dataclass(frozen=True)
class Categories:
    """The data set's categories in the order of their ids: class k (1..C) has id `ids[k - 1]`."""

    ids: tuple[int, ...]
    names: tuple[str, ...]
    poses: tuple[KeypointSchema, ...] = ()  # one a category, or none at all

    def class_of(self) -> dict[int, int]:
        """Contiguous class 1..C of each category id."""
        return {category_id: k + 1 for k, category_id in enumerate(self.ids)}

    @property
    def pose(self) -> KeypointSchema:
        """The keypoints that all categories share which have any; empty when there are none, or they differ."""
        distinct = {pose for pose in self.poses if pose.names}
        return distinct.pop() if len(distinct) == 1 else KeypointSchema()

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


def inspect_categories(entries: Sequence[Any]) -> tuple[Categories, list[Refusal]]:
    """The list `categories` of a COCO JSON: those that can be used, and why the others cannot."""
    found, refusals = validate_entries("categories", entries, ("id",), ("name",))
    ids, names, poses = [], [], []
    for category in sorted(found, key=lambda category: category["id"]):
        name, pose = category["name"], _pose(category)
        if not isinstance(name, (str, int, float)) or not str(name):
            kind, advice = "categories whose name is no text", "give each a name"
        elif pose is None:
            kind, advice = "categories whose keypoints or skeleton are no lists", "write names, and pairs of numbers"
        elif any(not 0 <= end < len(pose.names) for pair in pose.skeleton for end in pair):
            kind, advice = "categories whose skeleton joins keypoints that they do not have", "count from 1 there"
        else:
            ids.append(category["id"])
            names.append(str(name))
            poses.append(pose)
            continue
        refusals.append(Refusal(kind, f"category {category['id']}", advice))
    return Categories(tuple(ids), tuple(names), tuple(poses)), refusals


def mirrored(names: Sequence[str]) -> tuple[int, ...]:
    """For each keypoint, the one that has its name with left and right exchanged; itself where there is none.

    Names like left_eye, "Right Knee", l-ear, leftEye, EyeL and LHip are understood.
    """
    words = [keypoint_words(name) for name in names]
    exchanged = [tuple(_SIDES.get(word, word) for word in name) for name in words]
    return tuple(words.index(other) if other in words else i for i, other in enumerate(exchanged))


def keypoint_words(name: str) -> tuple[str, ...]:
    """The words and numbers of a name in lower case, however they are joined: leftEye and "Left eye" have the same."""
    return tuple(word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|\d+", name))


def are_cocos(names: Sequence[str]) -> bool:
    """Whether these are COCO's 17 keypoints in COCO's order, in whatever spelling."""
    return [keypoint_words(name) for name in names] == [keypoint_words(name) for name in COCO_KEYPOINTS]


def _pose(category: Entry) -> KeypointSchema | None:
    """Its keypoints; None if they are not written as COCO writes them, the skeleton counting from 1."""
    names, skeleton = category.get("keypoints") or [], category.get("skeleton") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    if not isinstance(skeleton, list) or not all(_is_pair(pair) for pair in skeleton):
        return None
    return KeypointSchema(tuple(names), tuple((a - 1, b - 1) for a, b in skeleton))


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(type(end) is int for end in pair)
