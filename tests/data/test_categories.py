"""Categories and their keypoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mrcnn_jax.data import DataError
from mrcnn_jax.data.categories import Categories, Pose, mirrored, read_categories

KITE: dict[str, Any] = {"id": 20, "name": "kite", "keypoints": ["nose", "left_tip", "right_tip"], "skeleton": [[1, 3]]}
BOAT: dict[str, Any] = {"id": 3, "name": "boat"}
POSE = Pose(("nose", "left_tip", "right_tip"), ((0, 2),))


def test_keypoints_are_read_with_a_skeleton_that_counts_from_0() -> None:
    categories = read_categories(Path("coco.json"), [KITE, BOAT])
    assert categories == Categories((3, 20), ("boat", "kite"), (Pose(), POSE))
    assert categories.pose == POSE  # the boat has none, and does not differ
    assert categories.keypoint_counts() == {20: 3}


def test_categories_whose_keypoints_differ_share_none() -> None:
    other = {"id": 7, "name": "gull", "keypoints": ["beak"], "skeleton": []}
    categories = read_categories(Path("coco.json"), [KITE, BOAT, other])
    assert categories.pose == Pose()
    assert categories.select(["kite", "boat"]).pose == POSE
    assert categories.select(["gull"]).pose.names == ("beak",)
    assert categories.keypoint_counts() == {20: 3, 7: 1}


def test_no_category_has_keypoints() -> None:
    assert read_categories(Path("coco.json"), [BOAT]).pose == Pose()
    assert Categories((3,), ("boat",)).pose == Pose()
    assert Categories((3,), ("boat",)).keypoint_counts() == {}


@pytest.mark.parametrize("pair", [[0, 1], [3, 4]])
def test_a_skeleton_beyond_the_keypoints_is_refused(pair: list[int]) -> None:
    with pytest.raises(DataError, match=r"coco\.json: categories whose skeleton .*\(1\): 20; count from 1"):
        read_categories(Path("coco.json"), [BOAT, {**KITE, "skeleton": [[1, 2], pair]}])


def test_a_selection_keeps_the_order_of_the_ids() -> None:
    categories = Categories((3, 8, 20), ("boat", "gull", "kite"))
    assert categories.select(["kite", "boat"]) == Categories((3, 20), ("boat", "kite"))
    assert categories.select([]) == categories
    with pytest.raises(DataError, match=r"data\.categories asks for bote; the data has boat, gull, kite"):
        categories.select(["boat", "bote"])


def test_mirrored_exchanges_left_and_right() -> None:
    assert mirrored(["nose", "left_eye", "right_eye", "tail"]) == (0, 2, 1, 3)
    assert mirrored(["Right Knee", "Left Knee", "L-ear", "R-ear"]) == (1, 0, 3, 2)
    assert mirrored(["left_eye", "mouth"]) == (0, 1)  # no right eye
    assert mirrored(["bright", "cleft", "lr"]) == (0, 1, 2)  # words, not letters
