"""Tests of the validation of single annotations: what is refused, dropped, corrected and unchanged."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from mrcnn_jax.data import annotation_checks, segmentation_checks
from mrcnn_jax.data.categories import Categories, KeypointSchema
from mrcnn_jax.data.findings import Problem

HEIGHT, WIDTH = 40, 60
CATEGORIES = Categories(
    (3, 20), ("boat", "kite"), (KeypointSchema(), KeypointSchema(("nose", "left_tip", "right_tip")))
)
BOX = [4, 6, 20, 10]
POLYGON = [4, 6, 24, 6, 24, 16, 4, 16]
NAN, INF = math.nan, math.inf


def annotated(**fields: Any) -> dict[str, Any]:
    return {"id": 500, "image_id": 98, "category_id": 20, "bbox": BOX, "segmentation": [POLYGON], **fields}


def validate(
    *annotations: dict[str, Any], masks: bool = True
) -> tuple[list[dict[str, Any]], annotation_checks.AnnotationValidator]:
    validator = annotation_checks.AnnotationValidator(CATEGORIES, masks=masks)
    return validator.validate(annotations, HEIGHT, WIDTH), validator


def encoded(mask: np.ndarray) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def filled(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH))
    mask[y0:y1, x0:x1] = 1
    return mask


def counted(mask: np.ndarray) -> dict[str, Any]:
    """An RLE as annotation tools write it, a list of numbers."""
    flat = np.concatenate([[0], mask.ravel(order="F"), [2]])
    ends = np.flatnonzero(np.diff(flat))  # a picture that begins with 1 has a run of no zeros before
    return {"size": list(mask.shape), "counts": np.diff(ends, prepend=0).tolist()}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"category_id": 3},
        {"iscrowd": 0},
        {"iscrowd": False, "area": 3},
        {"iscrowd": 1, "segmentation": counted(filled(4, 6, 24, 16))},
        {"segmentation": encoded(filled(4, 6, 24, 16))},
        {"segmentation": [POLYGON, [30, 30, 35, 30, 35, 35]], "area": 0.25},
        {"segmentation": [POLYGON, [70, 30, 75, 30, 75, 35]]},  # a part outside does no harm
        {"segmentation": [[4, 6, 24, 16, 24, 6, 4, 16]]},  # crosses itself
        {"bbox": [4.5, 6.25, 0.02, 0.5], "segmentation": [[4, 6, 5, 6, 5, 7, 4, 7]]},
        {"bbox": [-0.9, -1, 61.8, 42], "segmentation": [[-0.9, -1, 61, -1, 61, 41, -0.9, 41]]},  # by a pixel at most
        {"keypoints": [1, 2, 2, 0, 0, 0, 13.5, 5.5, 1], "num_keypoints": "three"},
        {"keypoints": []},
        {"keypoints": None},
        {"attributes": {"occluded": True}, "score": NAN, "ignore": "yes"},
    ],
)
def test_valid_annotation_is_unchanged(fields: dict[str, Any]) -> None:
    annotation = annotated(**fields)
    kept, validator = validate(annotation)
    assert kept == [annotation]
    assert kept[0] is annotation
    assert not validator.problems + validator.refusals


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        *[
            (annotation_checks.INVALID_BOX, {"bbox": bbox})
            for bbox in (
                [NAN, 1, 5, 5],
                [1, 1, INF, 5],
                [-INF, 1, INF, 5],
                [1, 1, 5],
                [1, 1, 5, 5, 5],
                [],
                ["1", "1", "5", "5"],
                [1, 1, "5", 5],
                [1, None, 5, 5],
                [[1], [1], [5], [5]],
                [10**400, 1, 5, 5],
                {"x": 1, "y": 1, "w": 5, "h": 5},
                "1155",
                7,
                None,
                True,
            )
        ],
        *[
            (annotation_checks.EMPTY_BOX, {"bbox": bbox})
            for bbox in ([1, 1, 5, 0], [1, 1, 0, 5], [1, 1, -5, 5], [9, 9, 5, -1])
        ],
        *[
            (annotation_checks.BOX_OUTSIDE_IMAGE, {"bbox": bbox})
            for bbox in ([60, 1, 5, 5], [1, 40, 5, 5], [-9, 1, 5, 5], [1, -5, 5, 5], [1e300, 1, 5, 5], [1e17, 1, 1, 1])
        ],
        *[
            (annotation_checks.THIN_BOX, {"bbox": bbox})
            for bbox in ([4, 6, 0.009, 5], [4, 6, 5, 1e-9], [59.999, 6, 5, 5], [-5, 6, 5.001, 5])
        ],
    ],
)
def test_annotation_without_a_usable_box_is_dropped(kind: str, fields: dict[str, Any]) -> None:
    whole = annotated(id=501)
    kept, validator = validate(annotated(**fields), whole)
    assert kept == [whole]
    assert validator.problems == [Problem(kind, 500, 98)]
    assert not validator.refusals


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        *[(annotation_checks.MISSING_SEGMENTATION, {"segmentation": nothing}) for nothing in ([], {}, None, "", 0)],
        *[
            (segmentation_checks.INVALID_SEGMENTATION, {"segmentation": other})
            for other in ("polygon", 7, True, POLYGON, ["a"], [None], [{"size": [40, 60]}])
        ],
        *[
            (segmentation_checks.INVALID_RLE, {"segmentation": rle})
            for rle in (
                {"counts": [2400]},
                {"size": [40, 60]},
                {"size": "40x60", "counts": [2400]},
                {"size": [40.0, 60.0], "counts": [2400]},
                {"size": [40], "counts": [2400]},
                {"size": [True, True], "counts": [1]},
                {"size": [40, 60], "counts": None},
                {"size": [40, 60], "counts": {}},
                {"size": [40, 60], "counts": [2399]},
                {"size": [40, 60], "counts": [2500, -100]},
                {"size": [40, 60], "counts": [2000.0, 400.0]},
                {"size": [40, 60], "counts": ["2000", "400"]},
                {"size": [40, 60], "counts": [[2000, 400]]},
                {"size": [40, 60], "counts": [[2000], 400]},
                {"size": [40, 60], "counts": [2**63, 2**63, 2400]},
                {"size": [40, 60], "counts": [10**30]},
                {"size": [40, 60], "counts": "not counts"},
                {"size": [40, 60], "counts": "\ud800"},
                {"size": [40, 60], "counts": ""},
            )
        ],
        *[
            (segmentation_checks.SHORT_POLYGON, {"segmentation": [points]})
            for points in ([], [4, 6], [4, 6, 24, 16], [1] * 5)
        ],
        (segmentation_checks.ODD_POLYGON, {"segmentation": [[*POLYGON, 4]]}),
        *[
            (segmentation_checks.INVALID_POLYGON, {"segmentation": [[4, 6, 24, 6, other, 16]]})
            for other in (NAN, INF, -INF, "24", None, [24], {}, 10**400)
        ],
        *[
            (segmentation_checks.FAR_POLYGON, {"segmentation": [[4, 6, far, 6, 24, 16]]})
            for far in (121, -61, 1e9, -1e300, 10**30)
        ],
        (segmentation_checks.MASK_OUTSIDE_IMAGE, {"segmentation": [[70, 6, 90, 6, 90, 16]]}),
        (segmentation_checks.MASK_OUTSIDE_IMAGE, {"segmentation": [[4, -9, 24, -9, 24, -1]]}),
        (segmentation_checks.MASK_OUTSIDE_IMAGE, {"segmentation": [[4, 6, 24, 16, 4, 6]]}),
        (segmentation_checks.MASK_OUTSIDE_IMAGE, {"segmentation": [[4, 6, 4.01, 6, 4.01, 6.01]]}),
        (
            segmentation_checks.MASK_OUTSIDE_IMAGE,
            {"segmentation": [POLYGON + POLYGON]},
        ),  # around twice is around nothing
        (segmentation_checks.MASK_OUTSIDE_IMAGE, {"segmentation": encoded(filled(0, 0, 0, 0))}),
        (segmentation_checks.MASK_OUTSIDE_IMAGE, {"segmentation": {"size": [40, 60], "counts": [2400]}}),
        (segmentation_checks.MASK_OUTSIDE_IMAGE, {"segmentation": {"size": [40, 60], "counts": [2400]}, "iscrowd": 1}),
        (segmentation_checks.MASK_OUTSIDE_BOX, {"segmentation": [[40, 20, 50, 20, 50, 30, 40, 30]]}),
        (segmentation_checks.MASK_OUTSIDE_BOX, {"segmentation": encoded(filled(40, 20, 50, 30))}),
        (segmentation_checks.MASK_OUTSIDE_BOX, {"segmentation": counted(filled(24, 0, 60, 40))}),
    ],
)
def test_unusable_mask_is_dropped_and_the_box_stays(kind: str, fields: dict[str, Any]) -> None:
    whole = annotated(id=501)
    annotation = annotated(**fields)
    kept, validator = validate(annotation, whole)
    assert [{**kept[0], "segmentation": kept[0]["segmentation"] or []}, whole] == [
        {**annotation, "segmentation": []},
        whole,
    ]
    assert validator.problems == [Problem(kind, 500, 98)]
    assert not validator.refusals


@pytest.mark.parametrize(
    ("kind", "fields", "changed"),
    [
        (segmentation_checks.SHORT_POLYGON, {"segmentation": [[1, 2], POLYGON, []]}, {"segmentation": [POLYGON]}),
        (segmentation_checks.ODD_POLYGON, {"segmentation": [POLYGON, [1] * 7]}, {"segmentation": [POLYGON]}),
        (segmentation_checks.INVALID_POLYGON, {"segmentation": [POLYGON, [NAN] * 6]}, {"segmentation": [POLYGON]}),
        (segmentation_checks.FAR_POLYGON, {"segmentation": [POLYGON, [1e9] * 6]}, {"segmentation": [POLYGON]}),
        (segmentation_checks.INVALID_SEGMENTATION, {"segmentation": [POLYGON, 7]}, {"segmentation": [POLYGON]}),
        (annotation_checks.CLIPPED_BOX, {"bbox": [-2, 6, 26, 10]}, {"bbox": [0, 6, 24, 10]}),
        (annotation_checks.CLIPPED_BOX, {"bbox": [4, 6, 70.5, 36.5]}, {"bbox": [4, 6, 56, 34]}),
        (annotation_checks.CLIPPED_BOX, {"bbox": [4, -1.5, 20, 20]}, {"bbox": [4, 0, 20, 18.5]}),
        *[
            (annotation_checks.INVALID_KEYPOINTS, {"keypoints": points}, {"keypoints": []})
            for points in (
                [NAN] * 9,
                [1, 2, "2"] * 3,
                "nose",
                {"nose": 1},
                7,
                [None] * 9,
                [[1, 2, 2]] * 3,
                [INF, -INF, 1],
            )
        ],
        *[
            (annotation_checks.WRONG_KEYPOINT_COUNT, {"keypoints": points, "category_id": category}, {"keypoints": []})
            for points, category in (([1, 2, 2], 20), ([1] * 10, 20), ([1, 2, 2], 3))
        ],
    ],
)
def test_invalid_parts_of_an_annotation_are_corrected(
    kind: str, fields: dict[str, Any], changed: dict[str, Any]
) -> None:
    annotation = annotated(**fields)
    before = dict(annotation)
    kept, validator = validate(annotation)
    assert kept == [{**annotation, **changed}]
    assert annotation == before
    assert validator.problems == [Problem(kind, 500, 98)]
    assert not validator.refusals


@pytest.mark.parametrize("area", [NAN, INF, -1, "12", [], True, pytest.param(10**400, id="huge")])
def test_an_area_that_is_no_number_is_dropped(area: Any) -> None:
    kept, validator = validate(annotated(area=area, iscrowd=1))
    assert kept == [annotated(iscrowd=1)]
    assert validator.problems == [Problem(annotation_checks.INVALID_AREA, 500, 98)]


@pytest.mark.parametrize("scoring", [False, True])
def test_an_area_of_0_is_taken_as_missing(scoring: bool) -> None:
    validator = annotation_checks.AnnotationValidator(CATEGORIES, masks=True, scoring=scoring)
    assert validator.validate([annotated(area=0), annotated(area=0.0, id=501)], HEIGHT, WIDTH) == [
        annotated(),
        annotated(id=501),
    ]
    assert [problem.kind for problem in validator.problems] == [annotation_checks.ZERO_AREA] * 2


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        ({"area": None}, {}),
        ({"iscrowd": None}, {}),
        ({"area": None, "iscrowd": 1}, {"iscrowd": 1}),
        ({"area": 5, "iscrowd": None}, {"area": 5}),
        ({"area": None, "iscrowd": None}, {}),
    ],
)
def test_a_field_without_a_value_is_a_field_that_is_missing(fields: dict[str, Any], left: dict[str, Any]) -> None:
    kept, validator = validate(annotated(**fields))
    assert kept == [annotated(**left)]
    assert not validator.problems


def test_several_problems_of_one_annotation_are_reported_once() -> None:
    _, validator = validate(
        annotated(bbox=[-5, 6, 29, 10], segmentation=[[1], [1, 2], POLYGON, [NAN] * 6], keypoints=[1])
    )
    kinds = [problem.kind for problem in validator.problems]
    assert kinds == [
        annotation_checks.CLIPPED_BOX,
        segmentation_checks.SHORT_POLYGON,
        segmentation_checks.INVALID_POLYGON,
        annotation_checks.WRONG_KEYPOINT_COUNT,
    ]


def test_boxes_suffice_in_datasets_without_masks() -> None:
    annotation = annotated(segmentation=[])
    kept, validator = validate(annotation, masks=False)
    assert kept == [annotation]
    assert not validator.problems


@pytest.mark.parametrize(
    ("fields", "kind", "culprit", "advice"),
    [
        (
            {"category_id": 7},
            "unknown category ids",
            "annotation 500 (image 98) has category_id 7",
            "add the category to 'categories', or correct category_id",
        ),
        *[
            (
                {"iscrowd": crowd},
                "iscrowd that is neither 0 nor 1",
                f"annotation 500 (image 98) has iscrowd {text}",
                "write the number 1 for a group of objects that share a mask, else 0, without quotes",
            )
            for crowd, text in (
                *((2, "2"), (-1, "-1"), ("1", '"1"'), ("0", '"0"'), ("", '""')),
                *(("yes", '"yes"'), ([], "a list"), (NAN, "NaN")),
            )
        ],
        *[
            (
                {"segmentation": {"size": size, "counts": counts}, "iscrowd": crowd},
                "RLE whose size (height x width) differs from its image",
                f"annotation 500 (image 98) has an RLE of {size[0]}x{size[1]}, not 40x60",
                "encode the masks again, or correct height and width of the image",
            )
            for size, counts, crowd in (
                ([60, 40], [2400], 0),
                ([40, 61], "not counts", 1),
                ([0, 0], [], 0),
                ([-40, -60], [2400], 0),
                ([10**30, 1], [], 0),
            )
        ],
    ],
)
def test_inconsistent_annotation_is_refused(fields: dict[str, Any], kind: str, culprit: str, advice: str) -> None:
    kept, validator = validate(annotated(**fields))
    assert not kept
    assert not validator.problems
    assert validator.refusals == [(kind, culprit, advice, 98, 500)]


def test_annotations_of_refused_categories_are_not_reported() -> None:
    validator = annotation_checks.AnnotationValidator(CATEGORIES, masks=True, refused={7})
    assert not validator.validate([annotated(category_id=7)], HEIGHT, WIDTH)
    assert not validator.refusals
    assert not validator.validate([annotated(category_id=8)], HEIGHT, WIDTH)
    assert len(validator.refusals) == 1


COORDINATE = st.one_of(st.integers(-12, 72), st.floats(-12, 72, width=32), st.sampled_from([4, 4.25, 24]))


@pytest.mark.medium
@settings(max_examples=100)
@given(
    st.lists(st.lists(COORDINATE, min_size=6, max_size=16).filter(lambda p: len(p) % 2 == 0), min_size=1, max_size=3)
)
def test_a_polygon_is_kept_if_pycocotools_draws_a_pixel_of_it(polygons: list[list[float]]) -> None:
    """The quick test never says that there is a pixel where there is none."""
    whole = [0, 0, WIDTH, HEIGHT]
    (kept,), validator = validate(annotated(bbox=whole, segmentation=polygons))
    drawn = coco_mask.area(coco_mask.merge(coco_mask.frPyObjects(polygons, HEIGHT, WIDTH))) > 0
    assert kept["segmentation"] == (polygons if drawn else [])
    assert validator.problems == ([] if drawn else [Problem(segmentation_checks.MASK_OUTSIDE_IMAGE, 500, 98)])


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(0, 50), st.integers(0, 30), st.integers(1, 9), st.integers(1, 9))
def test_an_rle_is_kept_if_it_has_a_pixel_in_its_box(seed: int, x: int, y: int, width: int, height: int) -> None:
    mask = np.random.default_rng(seed).random((HEIGHT, WIDTH)) < 0.01
    seen = mask[y : y + height, x : x + width].any()
    for rle in (encoded(mask), counted(mask)):
        (kept,), validator = validate(annotated(bbox=[x, y, width, height], segmentation=rle))
        assert kept["segmentation"] == (rle if seen else [])
        assert seen or validator.problems[0].kind in (
            segmentation_checks.MASK_OUTSIDE_BOX,
            segmentation_checks.MASK_OUTSIDE_IMAGE,
        )


@pytest.mark.parametrize(
    "fields",
    [
        {"bbox": [70, 6, 20, 10]},
        {"bbox": [4, 6, 0.001, 10]},
        {"bbox": [-20, 6, 60, 10]},
        {"segmentation": [[70, 6, 90, 6, 90, 16, 70, 16]]},
        {"segmentation": [[30, 20, 50, 20, 50, 30, 30, 30]]},
        {"segmentation": encoded(np.zeros((HEIGHT, WIDTH)))},
    ],
)
def test_scorable_annotation_is_unchanged_for_evaluation(fields: dict[str, Any]) -> None:
    annotation = annotated(**fields)
    _, validator = validate(annotation)
    assert validator.problems  # of training
    scoring = annotation_checks.AnnotationValidator(CATEGORIES, masks=True, scoring=True)
    assert scoring.validate([annotation], HEIGHT, WIDTH) == [annotation]
    assert not scoring.problems


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        ({"bbox": [4, 6, NAN, 10]}, {"bbox": None}),
        ({"bbox": [4, 6, 0, 10]}, {"bbox": None}),
        ({"segmentation": [[1e9] * 6]}, {"segmentation": []}),
    ],
)
def test_unscorable_parts_are_removed_for_evaluation(fields: dict[str, Any], left: dict[str, Any]) -> None:
    scoring = annotation_checks.AnnotationValidator(CATEGORIES, masks=True, scoring=True)
    assert scoring.validate([annotated(**fields)], HEIGHT, WIDTH) == [annotated(**left)]
    assert len(scoring.problems) == 1


@pytest.mark.parametrize(
    ("points", "kinds"),
    [
        ([59.5, 39.5, 2, -0.5, -0.5, 1, 0, 0, 0], []),
        ([60, 39, 2, 5, 5, 2, 0, 0, 0], [annotation_checks.KEYPOINTS_OUTSIDE_IMAGE]),
        ([5, -1, 1, 5, 5, 2, 0, 0, 0], [annotation_checks.KEYPOINTS_OUTSIDE_IMAGE]),
        ([5, 5, 1, 5, 5, 2, 900, 900, 0], []),  # not labeled: where it is means nothing
    ],
)
def test_labeled_keypoints_outside_the_image_are_named_and_their_instance_stays(
    points: list[float], kinds: list[str]
) -> None:
    kept, validator = validate(annotated(keypoints=points))
    assert [problem.kind for problem in validator.problems] == kinds
    assert kept == [annotated(keypoints=points)]
