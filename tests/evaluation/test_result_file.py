"""Result files of other programs: accepted forms, and errors that name record and field."""

from __future__ import annotations

import copy
import json

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mrcnn_jax.errors import DataError
from mrcnn_jax.evaluation import coco_metrics
from mrcnn_jax.evaluation.analysis.analyze import analyze
from mrcnn_jax.evaluation.coco_ground_truth import load_ground_truth
from mrcnn_jax.evaluation.result_file import check_file_names, encode_masks, plausibility_notes, read

HEIGHT, WIDTH = 40, 60
BOX = {"image_id": 1, "category_id": 3, "bbox": [5, 10, 20, 15], "score": 0.5}


@pytest.fixture
def truth():
    found = COCO()
    images = [{"id": i, "file_name": f"val/{i}.jpg", "height": HEIGHT, "width": WIDTH} for i in (1, 2)]
    found.dataset = {"images": images, "annotations": []}
    found.createIndex()
    return found


def reading(folder, content):
    path = folder / "results.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return read(path)


@pytest.mark.parametrize(
    "content",
    [
        {"annotations": [BOX, BOX], "images": []},
        {"info": {}, "predictions": [BOX, BOX]},
        json.dumps(BOX).encode() + b"\n\n" + json.dumps(BOX).encode() + b"\n",
        b"\xef\xbb\xbf" + json.dumps([BOX, BOX]).encode(),
        [BOX, {**BOX, "image_id": "1", "category_id": "3", "score": "0.5", "bbox": ["5", "10", "20", "15"]}],
        [BOX, {**BOX, "image_id": 1.0, "category_id": 3.0}],
        [BOX, {**BOX, "segmentation": [], "keypoints": None}],
        [{**BOX, "caption": "a dog", "iscrowd": 1, "area": 7, "id": 9, "segmentation": {}}, BOX],
    ],
    ids=["annotations", "object", "lines", "bom", "strings", "floats", "empty", "extra fields"],
)
def test_accepted_forms(tmp_path, content):
    assert reading(tmp_path, content) == [BOX, BOX]


def test_a_single_object_is_a_record(tmp_path):
    assert reading(tmp_path, BOX) == [BOX]


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("image_id", True, "true"),
        ("image_id", "dog.jpg", "dog.jpg"),
        ("image_id", 1.5, "1.5"),
        ("image_id", 1e17, "1e\\+17"),  # the exact integer is lost
        ("image_id", [1], "\\[1\\]"),
        ("category_id", "dog", "dog"),
        ("category_id", None, "null"),
        ("score", float("nan"), "NaN"),
        ("score", float("inf"), "Infinity"),
        ("score", "high", "high"),
        ("score", None, "null"),
        ("score", 10**400, "10*\\.\\.\\."),
        ("bbox", [5, 10, -20, 15], "\\[5, 10, -20, 15\\]"),
        ("bbox", [5, 10, 20], "\\[5, 10, 20\\]"),
        ("bbox", [5, 10, 20, float("nan")], "\\[5, 10, 20, NaN\\]"),
        ("bbox", {"x": 5}, '\\{"x": 5\\}'),
        ("bbox", [5, 10, 20, 1e300], "\\[5, 10, 20, 1e\\+300\\]"),  # its area overflows
        ("keypoints", [1, 2], "\\[1, 2\\]"),
        ("keypoints", [1, 2, None], "\\[1, 2, null\\]"),
        ("segmentation", "PPP", "PPP"),
        ("segmentation", {"counts": "PPP"}, '\\{"counts": "PPP"\\}'),
    ],
)
def test_invalid_values_raise_with_field_and_record(tmp_path, field, value, shown):
    message = rf"results\.json without a usable {field} \(1\): 1 \({shown}\), counted from 0; write "
    with pytest.raises(DataError, match=message):
        reading(tmp_path, [BOX, {**BOX, field: value}])


def test_invalid_json_raises(tmp_path):
    with pytest.raises(DataError, match=r"results\.json is not valid JSON: line 2: "):
        reading(tmp_path, json.dumps(BOX).encode() + b'\n{"image_id": 1, "cat')
    with pytest.raises(DataError, match=r"results\.json is not valid JSON: Expecting"):
        reading(tmp_path, b"no results")
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\)"):
        read(tmp_path)


def test_masks_in_all_of_cocos_forms(truth):
    """Pillow draws the polygon; NumPy counts the runs."""
    corners = [10, 5, 30, 5, 30, 25, 10, 25]
    drawing = Image.new("1", (WIDTH, HEIGHT))
    ImageDraw.Draw(drawing).rectangle((10, 5, 29, 24), fill=1)
    bitmap = np.asarray(drawing, np.uint8)
    flat = np.concatenate([[0], bitmap.ravel(order="F"), [2]])
    runs = np.diff(np.flatnonzero(np.diff(flat)), prepend=0).tolist()
    packed = coco_mask.encode(np.asfortranarray(bitmap))["counts"].decode()
    size = [HEIGHT, WIDTH]
    forms = [[corners], {"size": size, "counts": runs}, {"size": size, "counts": packed}]
    found = encode_masks(truth, [BOX, *({"image_id": 1, "segmentation": form} for form in forms)])
    assert found[0] == BOX
    assert [record["segmentation"] for record in found[1:]] == [{"size": size, "counts": packed}] * 3


@pytest.mark.parametrize(
    "mask",
    [
        {"size": [HEIGHT, WIDTH], "counts": "PPPPPPPP0000"},  # runs that do not fill the image
        {"size": [HEIGHT, WIDTH], "counts": [5, 10]},
        {"size": [HEIGHT, WIDTH], "counts": 7},
        {"size": [WIDTH, HEIGHT], "counts": [HEIGHT * WIDTH]},
        {"size": [40.0, 60.0], "counts": [HEIGHT * WIDTH]},
        [[1, 2, 3, 4]],
        [[1, 2, 30, 4, 5, 1e9]],  # pycocotools would write out of bounds
        [[1, 2, 30, 4, 5, 30], [1, 2, 3]],
    ],
)
def test_invalid_masks_raise(truth, mask):
    records = [{"image_id": 77, "segmentation": 7}, {"image_id": 2, "segmentation": mask}]
    with pytest.raises(ValueError, match=r"nor polygons \(1\): 1 \(image 2\), counted from 0; write them with"):
        encode_masks(truth, records)


def test_image_ids_of_other_files_raise(truth, tmp_path):
    """Such as ids that number the predicted images from 1. Folder and suffix of a file may differ."""
    records = reading(tmp_path, [BOX, {**BOX, "file_name": "1.png"}, {**BOX, "file_name": "C:\\photos\\1.jpg"}])
    check_file_names(truth, records)
    records = reading(tmp_path, [{**BOX, "file_name": "photos/2.jpg"}, {**BOX, "image_id": 77, "file_name": "2.jpg"}])
    with pytest.raises(
        ValueError, match=r"other files \(1\): 1 \(photos/2.jpg, annotated val/1.jpg\); write the image ids"
    ):
        check_file_names(truth, records)


def test_plausibility_notes(truth):
    other = {**BOX, "bbox": [1, 1, 5, 5]}
    assert plausibility_notes(truth, [BOX, other]) == []
    assert plausibility_notes(truth, [BOX, other, BOX]) == [
        "1 of 3 results are duplicates of another one: they count as false positives"
    ]
    (percent,) = plausibility_notes(truth, [BOX, {**other, "score": 97.5}])
    assert percent.startswith("scores are 0.5 to 97.5: ")
    (corners,) = plausibility_notes(truth, [{**BOX, "bbox": [30, 10, 50, 25]}, {**BOX, "bbox": [2, 3, 9, 8]}])
    assert corners.startswith("1 of 2 boxes extend beyond their images and all look like x0, y0, x1, y1: ")
    (fractions,) = plausibility_notes(truth, [{**BOX, "bbox": [0.1, 0.2, 0.5, 0.8]}])
    assert fractions.startswith("all boxes are within one pixel and look like fractions of the image's size: ")


NUMBERS = st.one_of(
    st.integers(-3, 70),
    st.floats(-5, 70),
    st.sampled_from([float("nan"), float("inf"), 1e300, 5e-324, -0.0, 2**31, 2**53 + 1, 2**64, 10**400, True]),
)
VALUES = st.recursive(
    st.one_of(NUMBERS, st.none(), st.sampled_from(["1", "3", "0.5", "PPYo1", "0", "nan", "", "\ud800", "a.jpg"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=6),
        st.lists(NUMBERS, min_size=4, max_size=9),
        st.fixed_dictionaries({"size": st.just([HEIGHT, WIDTH]), "counts": inner}),
    ),
    max_leaves=8,
)
DAMAGES = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.sampled_from(["image_id", "category_id", "score", "bbox", "segmentation", "keypoints", "file_name", "id"]),
        VALUES,
    ),
    max_size=3,
)


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    """An annotation file with a person in each of two images, and results with boxes, masks and keypoints of both."""
    points = [10, 15, 2, 20, 20, 2, 12, 24, 1]
    one = {**BOX, "segmentation": [[5, 10, 25, 10, 25, 25, 5, 25]], "keypoints": points}
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": HEIGHT, "width": WIDTH} for i in (1, 2)],
        "categories": [{"id": 3, "name": "person", "keypoints": ["a", "b", "c"]}],
        "annotations": [{**one, "image_id": i, "id": i} for i in (1, 2)],
    }
    path = tmp_path_factory.mktemp("annotated") / "truth.json"
    path.write_text(json.dumps(content))
    return path, [{**one, "image_id": i, "score": score} for i in (1, 2) for score in (0.9, 0.5, 0.2)]


@pytest.mark.medium
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(DAMAGES)
def test_damaged_records_are_scored_or_raise_value_error(annotated, damages):
    """No other error is raised, and all metrics are valid."""
    path, records = annotated
    records = copy.deepcopy(records)
    for place, field, value in damages:
        records[place][field] = value
    results = path.with_name("results.json")
    results.write_text(json.dumps(records))
    try:
        found = read(results)
        truth = load_ground_truth(path)
        check_file_names(truth, found)
        found = encode_masks(truth, found)
        plausibility_notes(truth, found)
        scores = coco_metrics.score(path, found, iou_types=("bbox", "segm", "keypoints"), quiet=True)
    except ValueError:  # DataError is one
        return
    assert all(value == -1 or 0 <= value <= 1 for value in scores.metrics.values())
    analysis = analyze(scores)
    for image in analysis.images:
        assert image.correct + image.missed == 1
