"""Average precision: the known numbers of the COCO oracle, and what pycocotools alone would stumble over."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mrcnn_jax.config import ConfigError, ModelConfig
from mrcnn_jax.evaluation.coco import METRICS, check_categories, evaluate
from mrcnn_jax.evaluation.postprocess import Prediction

SIZE = (100, 120)


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
def test_oracle_gives_the_known_numbers(shared_data, iou_type):
    folder = shared_data("coco_eval_oracle")
    expected = json.loads((folder / "expected_pycocotools.json").read_text())
    results = json.loads((folder / f"instances_val2014_fake{iou_type}100_results.json").read_text())
    metrics = evaluate(folder / "instances_val2014_100.json", results, iou_types=(iou_type,))
    assert list(METRICS) == expected["order"]
    numbers = [metrics[f"{iou_type}/{name}"] for name in METRICS]
    np.testing.assert_allclose(numbers, expected["expected"][iou_type], rtol=0, atol=1e-12)


def test_perfect_predictions_score_one_and_boxes_are_printed_before_masks(tmp_path, capsys):
    boxes = [(10, 10, 50, 40), (60, 20, 100, 90)]
    # Annotation 0 would count as unmatched if pycocotools saw its id.
    path = truth_file(tmp_path, [rectangle(0, 1, 5, boxes[0]), rectangle(1, 2, 9, boxes[1])])
    results = prediction(boxes[:1], [5]).to_coco(1) + prediction(boxes[1:], [9]).to_coco(2)
    metrics = evaluate(path, results)
    assert metrics["bbox/AP"] == pytest.approx(1)
    assert metrics["segm/AP"] == pytest.approx(1)
    assert set(metrics) == {f"{kind}/{name}" for kind in ("bbox", "segm") for name in METRICS}
    printed = capsys.readouterr().out
    assert printed.index("Boxes (bbox), 2 images") < printed.index("Masks (segm), 2 images")
    assert printed.count("Average Precision") == 12
    assert "index" not in printed  # pycocotools' own remarks are not for the user


def test_classes_are_told_apart_by_category_id(tmp_path):
    path = truth_file(tmp_path, [rectangle(1, 1, 9, (10, 10, 50, 40))])
    assert evaluate(path, prediction([(10, 10, 50, 40)], [5]).to_coco(1))["bbox/AP"] == 0


def test_no_detections_at_all_score_zero(tmp_path):
    path = truth_file(tmp_path, [rectangle(1, 1, 5, (10, 10, 50, 40))])
    metrics = evaluate(path, [])
    assert metrics["bbox/AP"] == metrics["segm/AR100"] == 0


def test_no_annotations_at_all_give_pycocotools_minus_one(tmp_path):
    metrics = evaluate(truth_file(tmp_path, []), prediction([(10, 10, 50, 40)], [5]).to_coco(1))
    assert metrics["bbox/AP"] == metrics["segm/AP"] == -1


def test_only_the_chosen_images_count(tmp_path):
    box = (10, 10, 50, 40)
    path = truth_file(tmp_path, [rectangle(1, 1, 5, box), rectangle(2, 2, 5, box)])
    results = prediction([box], [5]).to_coco(1)
    assert evaluate(path, results, image_ids=[1])["bbox/AR100"] == pytest.approx(1)
    assert evaluate(path, results)["bbox/AR100"] == pytest.approx(0.5)


def test_masks_are_sized_by_their_pixels_not_by_their_boxes(tmp_path):
    # A diagonal sliver of 600 pixels, small, in a box of 1800, medium. A false alarm of the same outline in the
    # other image is out of the small range if its area is taken from the box, and precision would come out as 1.
    box, sliver = (10, 10, 70, 40), [[10, 10, 20, 10, 70, 40, 50, 40]]
    path = truth_file(tmp_path, [rectangle(1, 1, 5, box, segmentation=sliver, area=600.0)])
    rle = coco_mask.merge(coco_mask.frPyObjects(sliver, *SIZE))
    segmentation = {"size": list(SIZE), "counts": rle["counts"].decode()}
    hit = {**prediction([box], [5]).to_coco(1)[0], "segmentation": segmentation}
    alarm = {**hit, "image_id": 2, "score": 0.99}
    assert evaluate(path, [hit, alarm])["segm/APs"] == pytest.approx(0.5)


def test_annotations_that_training_drops_are_no_ground_truth(tmp_path):
    box = (10, 10, 50, 40)
    flat = rectangle(2, 1, 5, (60, 20, 90, 20))
    path = truth_file(tmp_path, [rectangle(1, 1, 5, box), flat])
    assert evaluate(path, prediction([box], [5]).to_coco(1))["bbox/AP"] == pytest.approx(1)


def test_crowds_are_ignored(tmp_path):
    box, crowd = (10, 10, 50, 40), (60, 20, 100, 90)
    path = truth_file(tmp_path, [rectangle(1, 1, 5, box), rectangle(2, 1, 5, crowd, iscrowd=1)])
    results = prediction([(62, 30, 90, 80), box], [5, 5]).to_coco(1)  # the better score lies in the crowd
    assert evaluate(path, results)["bbox/AP"] == pytest.approx(1)


def test_results_of_unknown_images_and_masks_that_are_not_there_are_refused(tmp_path):
    path = truth_file(tmp_path, [rectangle(1, 1, 5, (10, 10, 50, 40))])
    results = prediction([(10, 10, 50, 40)], [5]).to_coco(77)
    with pytest.raises(ValueError, match="77"):
        evaluate(path, results)
    boxes = [{k: v for k, v in record.items() if k != "segmentation"} | {"image_id": 1} for record in results]
    with pytest.raises(ValueError, match="masks"):
        evaluate(path, boxes)
    assert evaluate(path, boxes, iou_types=("bbox",))["bbox/AP"] == pytest.approx(1)


def test_a_model_of_other_categories_is_refused():
    model = ModelConfig(num_classes=2, category_ids=(5, 9), category_names=("dog", "cat"))
    check_categories(model, (9, 5), ("cat", "dog"))  # the order does not matter
    with pytest.raises(ConfigError, match=r"id 9: model 'cat', data 'cow'"):
        check_categories(model, (5, 9), ("dog", "cow"))
    with pytest.raises(ConfigError, match=r"id 11: model 'none', data 'cow'"):
        check_categories(model, (5, 9, 11), ("dog", "cat", "cow"))
