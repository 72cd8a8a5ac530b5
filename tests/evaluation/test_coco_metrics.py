"""COCO metrics: reference numbers of the COCO examples, and inputs that pycocotools alone cannot score."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import re

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mrcnn_jax.config import KeypointHeadConfig, ModelConfig
from mrcnn_jax.errors import ConfigError
from mrcnn_jax.evaluation.coco_metrics import (
    KEYPOINT_METRICS,
    METRICS,
    check_categories,
    check_keypoints,
    score,
)
from mrcnn_jax.inference.postprocess import Prediction

SIZE = (100, 120)


def evaluate(annotations, results, **options):
    return score(annotations, results, **options).metrics


def truth_file(folder, annotations, image_ids=(1, 2)):
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]} for i in image_ids],
        "categories": [{"id": 5, "name": "dog"}, {"id": 9, "name": "cat"}],
        "annotations": annotations,
    }
    path = folder / "truth.json"
    path.write_text(json.dumps(content))
    return path


def rectangle(annotation_id, image_id, category_id, box, **fields):
    """An annotation of a rectangle x0 y0 x1 y1, with neither area nor iscrowd unless they are given."""
    x0, y0, x1, y1 = box
    polygon = [[x0, y0, x1, y0, x1, y1, x0, y1]]
    record = {"id": annotation_id, "image_id": image_id, "category_id": category_id, "segmentation": polygon}
    return {**record, "bbox": [x0, y0, x1 - x0, y1 - y0], **fields}


def prediction(boxes, category_ids, scores=None):
    """Full masks in the given boxes."""
    count = len(boxes)
    return Prediction(
        image_size=SIZE,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        scores=np.linspace(0.9, 0.5, count, dtype=np.float32) if scores is None else np.array(scores, np.float32),
        labels=np.ones(count, np.int32),
        category_ids=np.array(category_ids, np.int64),
        names=("thing",) * count,
        mask_probabilities=np.ones((count, 28, 28), np.float32),
    )


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_coco_example(shared_data, iou_type):
    folder = shared_data("coco_eval_oracle")
    expected = json.loads((folder / "expected_pycocotools.json").read_text())
    results = json.loads((folder / f"instances_val2014_fake{iou_type}100_results.json").read_text())
    metrics = evaluate(folder / "instances_val2014_100.json", results, iou_types=(iou_type,))
    assert list(METRICS) == expected["order"]
    numbers = [metrics[f"{iou_type}/{name}"] for name in METRICS]
    np.testing.assert_allclose(numbers, expected["expected"][iou_type], rtol=0, atol=1e-12)


def test_coco_keypoint_example(shared_data):
    """The numbers of pycocotools, from the tests of faster_coco_eval."""
    folder = shared_data("coco_eval_oracle") / "keypoints"
    results = json.loads((folder / "dt_dataset.json").read_text())
    metrics = evaluate(folder / "gt_dataset.json", results, iou_types=("keypoints",))
    assert set(metrics) == {f"keypoints/{name}" for name in KEYPOINT_METRICS}
    expected = {
        "AP": 0.5048844884488449,
        "AP50": 0.7227722772277227,
        "AP75": 0.6336633663366337,
        "APm": 0.46633663366336636,
        "APl": 0.7504950495049505,
        "AR": 0.5181818181818182,
        "AR50": 0.7272727272727273,
        "AR75": 0.6363636363636364,
        "ARm": 0.4666666666666666,
        "ARl": 0.75,
    }
    for name, value in expected.items():
        assert metrics[f"keypoints/{name}"] == pytest.approx(value, rel=0, abs=1e-12), name


def test_perfect_predictions_score_one_and_tables_are_printed_in_order(tmp_path, capsys):
    boxes = [(10, 10, 50, 40), (60, 20, 100, 90)]
    # pycocotools would count a match with annotation id 0 as none.
    path = truth_file(tmp_path, [rectangle(0, 1, 5, boxes[0]), rectangle(1, 2, 9, boxes[1])])
    results = prediction(boxes[:1], [5]).to_coco(1) + prediction(boxes[1:], [9]).to_coco(2)
    metrics = evaluate(path, results)
    assert metrics["bbox/AP"] == pytest.approx(1)
    assert metrics["segm/AP"] == pytest.approx(1)
    assert set(metrics) == {f"{kind}/{name}" for kind in ("bbox", "segm") for name in METRICS}
    printed = capsys.readouterr().out
    assert printed.index("Boxes (bbox), 2 images") < printed.index("Masks (segm), 2 images")
    assert printed.count("Average Precision") == 12
    assert "index" not in printed  # pycocotools' progress messages are suppressed


@pytest.mark.parametrize("quiet", [False, True])
def test_notes_are_logged_unless_quiet(quiet, tmp_path, capsys, caplog):
    """In the scores they are in either case."""
    path = truth_file(tmp_path, [rectangle(1, 1, 5, (10, 10, 50, 40))])
    scores = score(path, prediction([(10, 10, 50, 40)] * 2, [5, 77]).to_coco(1), iou_types=("bbox",), quiet=quiet)
    assert len(scores.notes) == 1
    assert caplog.messages == ([] if quiet else list(scores.notes))
    assert bool(capsys.readouterr().out) != quiet


def test_results_of_other_categories_are_left_out(tmp_path, capsys):
    box = (10, 10, 50, 40)
    path = truth_file(tmp_path, [rectangle(1, 1, 5, box), rectangle(2, 1, 9, (60, 20, 100, 90))])
    results = prediction([box, box, (60, 20, 100, 90)], [5, 77, 9]).to_coco(1)
    assert evaluate(path, results)["bbox/AP"] == pytest.approx(1)
    assert "2 images, 2 detections" in capsys.readouterr().out
    # Only dogs: the cat is neither ground truth nor a false positive.
    assert evaluate(path, results[:1], category_names=("dog",))["bbox/AR100"] == pytest.approx(1)
    assert evaluate(path, results[:1])["bbox/AR100"] == pytest.approx(0.5)


def test_classes_are_matched_by_category_id(tmp_path):
    path = truth_file(tmp_path, [rectangle(1, 1, 9, (10, 10, 50, 40))])
    assert evaluate(path, prediction([(10, 10, 50, 40)], [5]).to_coco(1))["bbox/AP"] == 0


def test_no_detections_score_zero(tmp_path):
    path = truth_file(tmp_path, [rectangle(1, 1, 5, (10, 10, 50, 40))])
    metrics = evaluate(path, [])
    assert metrics["bbox/AP"] == metrics["segm/AR100"] == 0


def test_no_annotations_score_minus_one(tmp_path):
    metrics = evaluate(truth_file(tmp_path, []), prediction([(10, 10, 50, 40)], [5]).to_coco(1))
    assert metrics["bbox/AP"] == metrics["segm/AP"] == -1


def test_only_the_selected_images_count(tmp_path):
    box = (10, 10, 50, 40)
    path = truth_file(tmp_path, [rectangle(1, 1, 5, box), rectangle(2, 2, 5, box)])
    results = prediction([box], [5]).to_coco(1)
    assert evaluate(path, results, image_ids=[1])["bbox/AR100"] == pytest.approx(1)
    assert evaluate(path, results)["bbox/AR100"] == pytest.approx(0.5)


def test_mask_areas_are_counted_in_pixels_of_the_mask(tmp_path):
    # A diagonal polygon of 600 pixels (small) in a box of 1800 (medium). With areas of boxes a false positive of the
    # same outline in the other image would not count among small objects, and precision would be 1.
    box, diagonal = (10, 10, 70, 40), [[10, 10, 20, 10, 70, 40, 50, 40]]
    path = truth_file(tmp_path, [rectangle(1, 1, 5, box, segmentation=diagonal, area=600.0)])
    rle = coco_mask.merge(coco_mask.frPyObjects(diagonal, *SIZE))
    segmentation = {"size": list(SIZE), "counts": rle["counts"].decode()}
    true_positive = {**prediction([box], [5]).to_coco(1)[0], "segmentation": segmentation}
    false_positive = {**true_positive, "image_id": 2, "score": 0.99}
    assert evaluate(path, [true_positive, false_positive])["segm/APs"] == pytest.approx(0.5)


def test_annotations_without_extent_are_no_ground_truth(tmp_path):
    box = (10, 10, 50, 40)
    flat = rectangle(2, 1, 5, (60, 20, 90, 20))
    path = truth_file(tmp_path, [rectangle(1, 1, 5, box), flat])
    assert evaluate(path, prediction([box], [5]).to_coco(1))["bbox/AP"] == pytest.approx(1)


def pycocotools_alone(annotations, results, iou_type):
    """Return the twelve metrics of pycocotools for these annotations."""
    categories = [{"id": 5, "name": "dog"}, {"id": 9, "name": "cat"}]
    images = [{"id": i, "height": SIZE[0], "width": SIZE[1]} for i in (1, 2)]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"images": images, "categories": categories, "annotations": copy.deepcopy(annotations)}
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


WHOLE, ODD = [[60, 20, 100, 20, 100, 90, 60, 90]], [[60, 20, 100, 20, 100, 90, 60]]


@pytest.mark.parametrize(
    ("fields", "bbox", "segm"),
    [
        ({"segmentation": []}, True, False),
        ({"segmentation": ODD}, True, False),
        ({"segmentation": [[60, 20, 100, 90]]}, True, False),
        ({"segmentation": "lost"}, True, False),
        ({"segmentation": {"size": list(SIZE), "counts": [5]}}, True, False),
        ({"bbox": [60, 20, 0, 70]}, False, True),
        ({"bbox": [60, 20, float("nan"), 70]}, False, True),
        ({"bbox": [60, 20, 0, 70], "segmentation": []}, False, False),
    ],
)
def test_annotations_count_in_the_tables_that_can_score_them(tmp_path, fields, bbox, segm):
    """Each table equals that of pycocotools for the annotations with a usable box or mask."""
    boxes = [(10, 10, 50, 40), (60, 20, 100, 90)]
    plain = [rectangle(i, i, 5, box, area=1000 + i, iscrowd=0) for i, box in enumerate(boxes, 1)]
    path = truth_file(tmp_path, [plain[0], {**plain[1], **fields}])
    results = prediction([boxes[0], (0, 0, 20, 20)], [5, 5]).to_coco(1)
    scores = score(path, results)
    metrics = scores.metrics
    for iou_type, counts in (("bbox", bbox), ("segm", segm)):
        own = [{k: v for k, v in r.items() if k != ("bbox" if iou_type == "segm" else "segmentation")} for r in results]
        expected = pycocotools_alone(plain if counts else plain[:1], own, iou_type)
        assert [metrics[f"{iou_type}/{name}"] for name in METRICS] == pytest.approx(expected, abs=1e-12)
        assert (metrics[f"{iou_type}/AR100"] == pytest.approx(0.5)) == counts
    for counts, name, table in ((bbox, "box", "boxes"), (segm, "mask", "masks")):
        note = f"1 of 2 instances have no usable {name}: left out of the table of {table}"
        assert (note in scores.notes) != counts


def test_keypoints_with_an_unusable_box_count(tmp_path):
    """If there is an area to score them: of the file, or of a mask."""
    path = keypoint_truth(tmp_path, labeled(2, 2, 2))
    content = json.loads(path.read_text())
    dog = content["annotations"][0]
    dog["bbox"] = [10, 20, 0, 40]
    for fields, found_all in (({"area": 1600}, 1), ({"segmentation": [[10, 20, 50, 20, 50, 60, 10, 60]]}, 1), ({}, -1)):
        content["annotations"][0] = {**dog, **fields}
        path.write_text(json.dumps(content))
        metrics = evaluate(path, [found(0)], iou_types=("bbox", "keypoints"))
        assert metrics["keypoints/AR"] == found_all
        assert metrics["bbox/AR100"] == 0  # the cat is not detected


def test_crowds_are_ignored(tmp_path):
    box, crowd = (10, 10, 50, 40), (60, 20, 100, 90)
    path = truth_file(tmp_path, [rectangle(1, 1, 5, box), rectangle(2, 1, 5, crowd, iscrowd=1)])
    results = prediction([(62, 30, 90, 80), box], [5, 5]).to_coco(1)  # the better score lies in the crowd
    assert evaluate(path, results)["bbox/AP"] == pytest.approx(1)


def test_results_of_unknown_images_or_without_masks_raise(tmp_path):
    path = truth_file(tmp_path, [rectangle(1, 1, 5, (10, 10, 50, 40))])
    results = prediction([(10, 10, 50, 40)], [5]).to_coco(77)
    with pytest.raises(ValueError, match="77"):
        evaluate(path, results)
    boxes = [{k: v for k, v in record.items() if k != "segmentation"} | {"image_id": 1} for record in results]
    with pytest.raises(ValueError, match="masks"):
        evaluate(path, boxes)
    assert evaluate(path, boxes, iou_types=("bbox",))["bbox/AP"] == pytest.approx(1)
    masks = [{k: v for k, v in record.items() if k != "bbox"} | {"image_id": 1} for record in results]
    with pytest.raises(ValueError, match="results without boxes cannot be scored as boxes: leave 'bbox' out"):
        evaluate(path, masks)
    assert evaluate(path, masks, iou_types=("segm",))["segm/AP"] == pytest.approx(1)


def test_a_model_with_other_categories_raises():
    model = ModelConfig(num_classes=2, category_ids=(5, 9), category_names=("dog", "cat"))
    check_categories(model, (9, 5), ("cat", "dog"))  # the order does not matter
    with pytest.raises(ConfigError, match=r"id 9: model 'cat', data 'cow'"):
        check_categories(model, (5, 9), ("dog", "cow"))
    with pytest.raises(ConfigError, match=r"id 11: model 'none', data 'cow'"):
        check_categories(model, (5, 9, 11), ("dog", "cat", "cow"))


def test_a_model_may_have_more_categories_than_the_data():
    model = ModelConfig(num_classes=3, category_ids=(1, 5, 9), category_names=("person", "dog", "cat"))
    check_categories(model, (9,), ("cat",))
    with pytest.raises(ConfigError, match=r"id 9: model 'cat', data 'dog'"):
        check_categories(model, (9,), ("dog",))


def test_a_model_with_other_keypoints_raises():
    head = KeypointHeadConfig(num_keypoints=2, flip_map=(1, 0))
    model = ModelConfig(keypoint=head, keypoint_names=("left", "right"))
    check_keypoints(model, ("left", "right"))
    check_keypoints(model, ("Left", "RIGHT"))
    check_keypoints(model, ())  # data without keypoints: boxes and masks can be scored
    check_keypoints(ModelConfig(keypoint=head), ("top", "bottom"))  # the model has no keypoint names
    check_keypoints(ModelConfig(), ("nose",))
    for other in (("right", "left"), ("left", "right", "nose")):
        with pytest.raises(ConfigError, match=r"the model has 2 keypoints \(left, right\), the data [23] \("):
            check_keypoints(model, other)
    with pytest.raises(ConfigError, match=r"2 keypoints \(names unknown\), the data 1 \(nose\)"):
        check_keypoints(ModelConfig(keypoint=head), ("nose",))


POINTS = [[10, 20], [50, 40], [30, 60]]
BOX = [10, 20, 40, 40]


def keypoint_truth(folder, *keypoints, **category):
    """Write dogs with `keypoints` in image 1, and a cat without any; neither has area nor num_keypoints."""
    path = truth_file(folder, [])
    content = json.loads(path.read_text())
    content["categories"][0].update(keypoints=["a", "b", "c"], **category)
    for i, points in enumerate(keypoints):
        annotation = {"id": i, "image_id": 1, "category_id": 5, "bbox": BOX, "keypoints": points}
        content["annotations"].append(annotation)
    content["annotations"].append({"id": 90, "image_id": 2, "category_id": 9, "bbox": BOX})
    path.write_text(json.dumps(content))
    return path


def found(offset, *, image_id=1, score=0.9):
    """A result with the dog's keypoints, `offset` pixels too far right."""
    flat = [value for x, y in POINTS for value in (x + offset, y, 0.7)]
    return {"image_id": image_id, "category_id": 5, "bbox": BOX, "keypoints": flat, "score": score}


def labeled(*visibility):
    return [value for (x, y), v in zip(POINTS, visibility, strict=True) for value in (x, y, v)]


def test_oks_with_given_sigmas(tmp_path):
    """exp(-d^2 / (2 area (2 sigma)^2)) for keypoints that are `d` off; the area of the box, as there is no mask."""
    path = keypoint_truth(tmp_path, labeled(2, 1, 2))
    for oks, ap in ((0.76, 0.6), (0.96, 1.0), (0.49, 0.0)):  # thresholds 0.5, 0.55, ..., 0.95
        distance = np.sqrt(-2 * 1600 * 0.2**2 * np.log(oks))
        metrics = evaluate(path, [found(distance)], iou_types=("keypoints",), keypoint_sigmas=(0.1, 0.1, 0.1))
        assert metrics["keypoints/AP"] == pytest.approx(ap)


@pytest.mark.parametrize("area", [{}, {"area": 0}, {"area": 0.0}, {"area": None}])
@pytest.mark.parametrize("masked", [False, True])
def test_an_area_of_0_is_replaced(tmp_path, area, masked):
    """OKS takes the pixels of the mask, or the box: 800 or 1600; just below and above the distance of an OKS of 1/2."""
    path = keypoint_truth(tmp_path, labeled(2, 2, 2))
    content = json.loads(path.read_text())
    half = [[10, 20, 30, 20, 30, 60, 10, 60]] if masked else []
    content["annotations"][0].update(area, segmentation=half)
    path.write_text(json.dumps(content))
    for factor, ap50 in ((0.999, 1), (1.001, 0)):
        distance = np.sqrt(-2 * (800 if masked else 1600) * (2 * 0.1 * factor) ** 2 * np.log(0.5))
        metrics = evaluate(path, [found(distance)], iou_types=("keypoints",), keypoint_sigmas=(0.1, 0.1, 0.1))
        assert metrics["keypoints/AP50"] == pytest.approx(ap50)


def test_unlabeled_keypoints_do_not_count(tmp_path):
    wrong = found(0)
    wrong["keypoints"][0] = 500
    # With all keypoints OKS is 2/3, above four of the ten thresholds.
    for points, recall in ((labeled(2, 2, 2), 0.4), (labeled(0, 2, 2), 1.0)):
        metrics = evaluate(keypoint_truth(tmp_path, points), [wrong], iou_types=("keypoints",))
        assert metrics["keypoints/AR"] == pytest.approx(recall)


def test_instances_without_labeled_keypoints_are_ignored(tmp_path):
    for points in ([], labeled(0, 0, 0)):
        path = keypoint_truth(tmp_path, labeled(2, 2, 2), points)
        scores = score(path, [found(0)], iou_types=("keypoints",))
        assert scores.metrics["keypoints/AR"] == pytest.approx(1)
        # The instance without keypoints, and the cat.
        assert "2 of 3 instances have no labeled keypoints: ignored in the table of keypoints" in scores.notes


def test_default_sigmas_of_other_keypoints_are_the_mean_of_cocos(tmp_path):
    # The mean of COCO's table is 1.138 / 17: OKS just above and just below 0.5.
    path = keypoint_truth(tmp_path, labeled(2, 2, 2))
    for sigma, ap50 in ((1.138 / 17 * 0.999, 1), (1.138 / 17 * 1.001, 0)):
        distance = np.sqrt(-2 * 1600 * (2 * sigma) ** 2 * np.log(0.5))
        assert evaluate(path, [found(distance)], iou_types=("keypoints",))["keypoints/AP50"] == pytest.approx(ap50)


@pytest.mark.parametrize("named", ["coco", "camel case", "numbers"])
def test_cocos_sigmas_are_for_cocos_keypoints(tmp_path, named):
    """Only the nose is labeled, off by an OKS of 0.5 with COCO's sigma (0.026) or the mean sigma (1.138 / 17)."""
    parts = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
    names = ["nose", *(f"{side}_{part}" for part in parts for side in ("left", "right"))]
    if named == "camel case":
        names = [re.sub("_(.)", lambda found: found[1].upper(), name) for name in names]
    if named == "numbers":
        names = [f"p{i}" for i in range(17)]
    content = json.loads(truth_file(tmp_path, []).read_text())
    content["categories"][0].update(keypoints=names)
    points = [10, 20, 2] + [0, 0, 0] * 16
    content["annotations"] = [
        {"id": 1, "image_id": 1, "category_id": 5, "bbox": BOX, "area": 1600, "keypoints": points}
    ]
    (tmp_path / "truth.json").write_text(json.dumps(content))
    sigma = 1.138 / 17 if named == "numbers" else 0.026
    for factor, ap50 in ((0.999, 1), (1.001, 0)):
        off = np.sqrt(-2 * 1600 * (2 * sigma * factor) ** 2 * np.log(0.5))
        result = {"image_id": 1, "category_id": 5, "bbox": BOX, "score": 0.9, "keypoints": [10 + off, 20, 1] + [0] * 48}
        scores = score(tmp_path / "truth.json", [result], iou_types=("keypoints",))
        assert scores.metrics["keypoints/AP50"] == pytest.approx(ap50)
        assert any("the keypoints are not COCO's" in note for note in scores.notes) == (named == "numbers")


def test_invalid_keypoint_results_raise(tmp_path):
    path = keypoint_truth(tmp_path, labeled(2, 2, 2))
    short = {**found(0), "keypoints": [1, 2, 3]}
    none = {key: value for key, value in found(0).items() if key != "keypoints"}
    with pytest.raises(ValueError, match=r"the annotations have 3 keypoints, and not every result .* \(images 1\)"):
        evaluate(path, [found(0), short], iou_types=("keypoints",))
    with pytest.raises(ValueError, match=r"results without keypoints cannot be scored as keypoints"):
        evaluate(path, [none], iou_types=("keypoints",))
    with pytest.raises(ValueError, match=r"2 keypoint_sigmas for 3 keypoints"):
        evaluate(path, [found(0)], iou_types=("keypoints",), keypoint_sigmas=(0.1, 0.1))
    with pytest.raises(ValueError, match=r"the annotations have 0 keypoints"):
        evaluate(truth_file(tmp_path, []), [found(0)], iou_types=("keypoints",))


def test_each_table_counts_the_results_that_it_can_score(tmp_path):
    """A result without keypoints counts for boxes only, and is no false positive for keypoints."""
    path = keypoint_truth(tmp_path, labeled(2, 2, 2))
    box = {key: value for key, value in found(0).items() if key != "keypoints"}
    point = {key: value for key, value in found(0).items() if key != "bbox"}
    scores = score(path, [{**box, "score": 0.95, "image_id": 2}, point], iou_types=("bbox", "keypoints"))
    assert scores.metrics["keypoints/AP"] == pytest.approx(1)
    assert scores.metrics["bbox/AP"] == 0
    assert [note for note in scores.notes if "results" in note] == [
        "1 of 2 results have no boxes: left out of the table of boxes",
        "1 of 2 results have no keypoints: left out of the table of keypoints",
    ]


def test_results_of_unknown_categories_are_noted(tmp_path, caplog):
    path = truth_file(tmp_path, [rectangle(1, 1, 5, (10, 10, 50, 40))])
    results = prediction([(10, 10, 50, 40)] * 4, [5, 0, 77, 0]).to_coco(1)
    scores = score(path, results)
    note = "3 of 4 results are of categories that the annotations do not have: left out (ids 0, 77)"
    assert scores.notes == (note,)
    assert caplog.messages == [note]
    scores = score(path, results[:1] + prediction([(60, 20, 100, 90)], [9]).to_coco(1), category_names=("dog",))
    assert scores.notes == ("1 of 2 results are of categories that are not chosen: left out (ids 9)",)


@pytest.mark.parametrize(
    ("iou_type", "scored", "limit", "recall", "shown"),
    [("bbox", "boxes", 100, "AR100", 0.952), ("keypoints", "keypoints", 20, "AR", 0.8)],
)
def test_notes_give_the_bound_on_recall(tmp_path, iou_type, scored, limit, recall, shown):
    """All objects are detected, 5 more than pycocotools counts: its recall is the bound in the note."""
    count = limit + 5
    path = keypoint_truth(tmp_path)
    content = json.loads(path.read_text())
    results = []
    for i in range(count):
        points = [value for x, y in POINTS for value in (x + 3 * i, y, 2)]
        shared = {"image_id": 1, "category_id": 5, "bbox": [3 * i, 20, 2, 40], "keypoints": points}
        content["annotations"].append({"id": 100 + i, **shared})
        results.append({**shared, "score": 0.9})
    content["annotations"].append({"id": 99, "image_id": 2, "category_id": 5, "bbox": BOX, "iscrowd": 1})
    path.write_text(json.dumps(content))
    sigmas = (0.001,) * 3  # so that neighbors are not similar
    scores = score(path, results, iou_types=(iou_type,), keypoint_sigmas=sigmas, category_names=("dog",))
    assert scores.metrics[f"{iou_type}/{recall}"] == pytest.approx(limit / (limit + 5))
    assert scores.notes[-1] == (
        f"the table of {scored} counts the {limit} best results of each category in an image: 1 of 2 images have more;"
        f" at most {limit} of {limit + 5} objects can be found, a recall of {shown}"
    )


def test_no_keypoint_results_score_zero(tmp_path):
    path = keypoint_truth(tmp_path, labeled(2, 2, 2))
    assert evaluate(path, [], iou_types=("bbox", "keypoints"))["keypoints/AP"] == 0


def test_all_tables_of_the_same_records(tmp_path, capsys):
    path = keypoint_truth(tmp_path, labeled(2, 2, 2))
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    path.write_text(json.dumps(content))
    corners = [BOX[0], BOX[1], BOX[0] + BOX[2], BOX[1] + BOX[3]]
    dog = {**prediction([corners], [5]).to_coco(1)[0], "keypoints": found(0)["keypoints"]}
    cat = {**prediction([corners], [9]).to_coco(2)[0], "keypoints": found(0)["keypoints"]}
    metrics = evaluate(path, [dog, cat], iou_types=("bbox", "segm", "keypoints"))
    assert len(metrics) == 12 + 12 + 10
    for kind in ("bbox", "segm", "keypoints"):  # the cat has no annotated keypoints
        assert metrics[f"{kind}/AP"] == pytest.approx(1)
    assert "Keypoints (keypoints), 2 images, 2 detections" in capsys.readouterr().out
