"""Tests of categories and their keypoints."""

from __future__ import annotations

from typing import Any

import pytest

from mrcnn_jax.config import KeypointHeadConfig
from mrcnn_jax.data.categories import Categories, KeypointSchema, infer_flip_map, inspect_categories, is_coco_keypoints
from mrcnn_jax.errors import DataError

KITE: dict[str, Any] = {"id": 20, "name": "kite", "keypoints": ["nose", "left_tip", "right_tip"], "skeleton": [[1, 3]]}
BOAT: dict[str, Any] = {"id": 3, "name": "boat"}
POSE = KeypointSchema(("nose", "left_tip", "right_tip"), ((0, 2),))


def test_keypoints_are_read_with_a_skeleton_that_counts_from_0() -> None:
    categories = inspect_categories([KITE, BOAT])[0]
    assert categories == Categories((3, 20), ("boat", "kite"), (KeypointSchema(), POSE))
    assert categories.keypoint_schema == POSE  # the boat has none, and does not differ
    assert categories.keypoint_counts() == {20: 3}


def test_categories_whose_keypoints_differ_share_none() -> None:
    other = {"id": 7, "name": "gull", "keypoints": ["beak"], "skeleton": []}
    categories = inspect_categories([KITE, BOAT, other])[0]
    assert categories.keypoint_schema == KeypointSchema()
    assert categories.select(["kite", "boat"]).keypoint_schema == POSE
    assert categories.select(["gull"]).keypoint_schema.names == ("beak",)
    assert categories.keypoint_counts() == {20: 3, 7: 1}


def test_no_category_has_keypoints() -> None:
    assert inspect_categories([BOAT])[0].keypoint_schema == KeypointSchema()
    assert Categories((3,), ("boat",)).keypoint_schema == KeypointSchema()
    assert Categories((3,), ("boat",)).keypoint_counts() == {}


@pytest.mark.parametrize("pair", [[0, 1], [3, 4]])
def test_a_skeleton_beyond_the_keypoints_is_refused(pair: list[int]) -> None:
    categories, (refusal,) = inspect_categories([BOAT, {**KITE, "skeleton": [[1, 2], pair]}])
    assert refusal.kind == "categories whose skeleton refers to keypoints that they do not have"
    assert (refusal.item, refusal.advice) == ("category 20", "write pairs of keypoint numbers, counted from 1")
    assert categories.names == ("boat",)


@pytest.mark.parametrize(
    ("entry", "kind", "culprit"),
    [
        ("kite", "entries of 'categories' that are not objects", "number 2 of 'categories' (kite)"),
        ({"id": 5}, "entries of 'categories' with missing fields", "category 5: name"),
        ({"id": "5", "name": "gull"}, "ids that are not integers", "number 2 of 'categories': id 5"),
        ({"id": True, "name": "gull"}, "ids that are not integers", "number 2 of 'categories': id true"),
        ({"id": 2**63, "name": "gull"}, "ids that are not integers", f"number 2 of 'categories': id {2**63}"),
        ({"id": 3, "name": "gull"}, "duplicate category ids", "category 3"),
        ({"id": 5, "name": None}, "categories whose name is not text", "category 5"),
        ({"id": 5, "name": ["gull"]}, "categories whose name is not text", "category 5"),
        ({**KITE, "keypoints": "nose"}, "categories with invalid keypoints or skeleton", "category 20"),
        ({**KITE, "keypoints": [1, 2, 3]}, "categories with invalid keypoints or skeleton", "category 20"),
        ({**KITE, "skeleton": [1, 2]}, "categories with invalid keypoints or skeleton", "category 20"),
        ({**KITE, "skeleton": [[1, "2"]]}, "categories with invalid keypoints or skeleton", "category 20"),
    ],
)
def test_an_entry_that_is_no_category_is_refused(entry: Any, kind: str, culprit: str) -> None:
    categories, (refusal,) = inspect_categories([BOAT, entry])
    assert (refusal.kind, refusal.item) == (kind, culprit)
    assert refusal.advice
    assert categories.names == ("boat",)


def test_a_selection_keeps_the_order_of_the_ids() -> None:
    categories = Categories((3, 8, 20), ("boat", "gull", "kite"))
    assert categories.select(["kite", "boat"]) == Categories((3, 20), ("boat", "kite"))
    assert categories.select([]) == categories
    with pytest.raises(DataError, match=r"data\.categories names bote, but the dataset has boat, gull, kite"):
        categories.select(["boat", "bote"])


def test_mirrored_exchanges_left_and_right() -> None:
    assert infer_flip_map(["nose", "left_eye", "right_eye", "tail"]) == (0, 2, 1, 3)
    assert infer_flip_map(["Right Knee", "Left Knee", "L-ear", "R-ear"]) == (1, 0, 3, 2)
    assert infer_flip_map(["left_eye", "mouth"]) == (0, 1)  # no right eye
    assert infer_flip_map(["bright", "cleft", "lr"]) == (0, 1, 2)  # words, not letters


@pytest.mark.parametrize(
    "names",
    [
        ("nose", "left_eye", "right_eye"),
        ("nose", "leftEye", "rightEye"),
        ("nose", "LeftEye", "RightEye"),
        ("Nose", "EyeLeft", "EyeRight"),
        ("NOSE", "LEFT_EYE", "RIGHT_EYE"),
        ("nose", "Eye.L", "Eye.R"),
        ("nose", "l-ear", "r-ear"),
        ("nose", "lAnkle", "rAnkle"),
        ("nose", "LAnkle", "RAnkle"),
        ("nose", "paw2Left", "paw2Right"),
        ("nose", "JOINT_7L", "JOINT_7R"),
    ],
)
def test_sides_are_read_in_any_spelling(names: tuple[str, ...]) -> None:
    assert infer_flip_map(names) == (0, 2, 1)


@pytest.mark.parametrize(
    "names",
    [("p0", "p1", "p2"), ("cleft", "bright", "nose"), ("left eye", "left ear", "tail"), ("pedal", "peral", "x")],
)
def test_names_that_do_not_say_sides(names: tuple[str, ...]) -> None:
    assert infer_flip_map(names) == tuple(range(len(names)))


def test_cocos_keypoints_are_known_by_name_and_order() -> None:
    parts = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
    published = ["nose", *(f"{side}_{part}" for part in parts for side in ("left", "right"))]
    assert is_coco_keypoints(published)
    assert is_coco_keypoints([name.replace("_", " ").title() for name in published])
    assert is_coco_keypoints(["".join(word.title() for word in name.split("_")) for name in published])
    assert infer_flip_map(published) == KeypointHeadConfig().flip_map
    assert not is_coco_keypoints(published[::-1])
    assert not is_coco_keypoints([f"p{i}" for i in range(17)])
    assert not is_coco_keypoints(published[:16])
