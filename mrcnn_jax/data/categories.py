"""The categories of a dataset and their keypoints."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mrcnn_jax.data.findings import Refusal
from mrcnn_jax.data.json_entries import Entry, validate_entries
from mrcnn_jax.errors import DataError, format_list
from mrcnn_jax.weights.coco_categories import PERSON_KEYPOINTS

_OPPOSITES = {"left": "right", "right": "left", "l": "r", "r": "l"}


class KeypointSchema(NamedTuple):
    """The keypoints of a category; empty for categories without keypoints."""

    names: tuple[str, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()  # pairs of keypoint indices from 0, joined by a line


@dataclass(frozen=True)
class Categories:
    """The categories of a dataset, sorted by id: class index k (1..C) has the category id `ids[k - 1]`."""

    ids: tuple[int, ...]
    names: tuple[str, ...]
    keypoint_schemas: tuple[KeypointSchema, ...] = ()  # one for each category, or none at all

    def class_of(self) -> dict[int, int]:
        """Return the class index 1..C of each category id."""
        return {category_id: k + 1 for k, category_id in enumerate(self.ids)}

    @property
    def keypoint_schema(self) -> KeypointSchema:
        """The keypoints shared by all categories with keypoints; empty if there are none or they differ."""
        distinct = {schema for schema in self.keypoint_schemas if schema.names}
        return distinct.pop() if len(distinct) == 1 else KeypointSchema()

    def keypoint_counts(self) -> dict[int, int]:
        """Return the number of keypoints of each category id with keypoints."""
        return {
            i: len(schema.names) for i, schema in zip(self.ids, self.keypoint_schemas, strict=False) if schema.names
        }

    def select(self, names: Sequence[str]) -> Categories:
        """Return the categories with these names; all if `names` is empty. Raises DataError for unknown names."""
        if unknown := [name for name in names if name not in self.names]:
            raise DataError(
                f"data.categories names {format_list(unknown)}, but the dataset has {format_list(self.names)}; correct"
                " data.categories"
            )
        selected = [k for k, name in enumerate(self.names) if not names or name in names]
        schemas = tuple(self.keypoint_schemas[k] for k in selected) if self.keypoint_schemas else ()
        return Categories(tuple(self.ids[k] for k in selected), tuple(self.names[k] for k in selected), schemas)


def inspect_categories(entries: Sequence[Any]) -> tuple[Categories, list[Refusal]]:
    """Return the valid entries of the list `categories` of a COCO JSON, and refusals of the others."""
    valid, refusals = validate_entries("categories", entries, ("id",), ("name",))
    ids, names, schemas = [], [], []
    for category in sorted(valid, key=lambda category: category["id"]):
        name, schema = category["name"], _keypoint_schema(category)
        if not isinstance(name, (str, int, float)) or not str(name):
            kind, advice = "categories whose name is not text", "give each category a name"
        elif schema is None:
            kind = "categories with invalid keypoints or skeleton"
            advice = "write keypoints as a list of names, and skeleton as a list of pairs of integers"
        elif any(not 0 <= end < len(schema.names) for pair in schema.skeleton for end in pair):
            kind = "categories whose skeleton refers to keypoints that they do not have"
            advice = "write pairs of keypoint numbers, counted from 1"
        else:
            ids.append(category["id"])
            names.append(str(name))
            schemas.append(schema)
            continue
        refusals.append(Refusal(kind, f"category {category['id']}", advice))
    return Categories(tuple(ids), tuple(names), tuple(schemas)), refusals


def infer_flip_map(names: Sequence[str]) -> tuple[int, ...]:
    """Return, for each keypoint, the index of its opposite: the name with left and right exchanged, else itself.

    Understands names such as left_eye, "Right Knee", l-ear, leftEye, EyeL and LHip.
    """
    words = [keypoint_words(name) for name in names]
    opposites = [tuple(_OPPOSITES.get(word, word) for word in name) for name in words]
    return tuple(words.index(other) if other in words else i for i, other in enumerate(opposites))


def keypoint_words(name: str) -> tuple[str, ...]:
    """Return the words and numbers of a name in lower case: leftEye and "Left eye" give ("left", "eye")."""
    return tuple(word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|\d+", name))


def is_coco_keypoints(names: Sequence[str]) -> bool:
    """Whether these are COCO's 17 keypoints in COCO's order, in any spelling."""
    return [keypoint_words(name) for name in names] == [keypoint_words(name) for name in PERSON_KEYPOINTS]


def _keypoint_schema(category: Entry) -> KeypointSchema | None:
    """Return the keypoints of a category; None if they are not in COCO's format, with a skeleton counted from 1."""
    names, skeleton = category.get("keypoints") or [], category.get("skeleton") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    if not isinstance(skeleton, list) or not all(_is_pair(pair) for pair in skeleton):
        return None
    return KeypointSchema(tuple(names), tuple((a - 1, b - 1) for a, b in skeleton))


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(type(end) is int for end in pair)
