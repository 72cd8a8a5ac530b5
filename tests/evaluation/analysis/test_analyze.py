"""Analysis: outcomes of detections and instances in an image of 100 x 200, for boxes, masks and keypoints."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mrcnn_jax.evaluation.analysis.analyze import analyze
from mrcnn_jax.evaluation.coco_metrics import score

SIZE = (100, 200)
DOG, CAT = 5, 9
HERE, THERE = (10, 10, 50, 50), (100, 10, 140, 50)  # x0 y0 x1 y1


def moved(box, iou):
    """Move `box` to the right, to an IoU of `iou` with it."""
    width = (box[2] - box[0]) * (1 - iou) / (1 + iou)
    return (box[0] + width, box[1], box[2] + width, box[3])


def annotation(category_id, box, **fields):
    x0, y0, x1, y1 = box
    outline = [[x0, y0, x1, y0, x1, y1, x0, y1]]
    return {"category_id": category_id, "bbox": [x0, y0, x1 - x0, y1 - y0], "segmentation": outline, **fields}


def detection(category_id, box, score=0.9, image_id=1, **fields):
    x0, y0, x1, y1 = box
    mask = np.zeros(SIZE, np.uint8, order="F")
    mask[round(y0) : round(y1), round(x0) : round(x1)] = 1
    runs = coco_mask.encode(mask)
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "segmentation": {**runs, "counts": runs["counts"].decode()},
        "score": score,
        **fields,
    }


@pytest.fixture
def analyzed(tmp_path):
    """A function that analyzes detections in image 1 with the given annotations; image 2 is empty."""

    def run(annotations, detections, iou_types=("bbox",), threshold=0.5, **category):
        content = {
            "images": [{"id": i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]} for i in (1, 2)],
            "categories": [{"id": DOG, "name": "dog", **category}, {"id": CAT, "name": "cat"}],
            "annotations": [{"id": i, "image_id": 1, **entry} for i, entry in enumerate(annotations)],
        }
        (tmp_path / "truth.json").write_text(json.dumps(content))
        return analyze(score(tmp_path / "truth.json", detections, iou_types=iou_types), threshold=threshold)

    return run


def outcomes(analysis, *, predicted):
    return [i.outcome for i in analysis.images[0].instances if i.predicted is predicted]


@pytest.mark.parametrize(
    ("found", "outcome", "missed"),
    [
        (detection(DOG, moved(HERE, 0.6)), "correct", 0),
        (detection(DOG, moved(HERE, 0.4)), "localization", 0),
        (detection(CAT, moved(HERE, 0.6)), "classification", 0),
        (detection(CAT, moved(HERE, 0.4)), "both", 1),
        (detection(CAT, moved(HERE, 0.05)), "background", 1),
        (detection(DOG, moved(HERE, 0.05)), "background", 1),
        (detection(DOG, THERE), "background", 1),
    ],
)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_one_detection_of_one_dog(analyzed, found, outcome, missed, iou_type):
    analysis = analyzed([annotation(DOG, HERE)], [found], (iou_type,))
    assert outcomes(analysis, predicted=True) == [outcome]
    assert outcomes(analysis, predicted=False) == ["found" if outcome == "correct" else "missed"]
    counts = analysis.tables[0].errors.counts
    assert counts.pop("missed") == missed
    assert {name for name, count in counts.items() if count} == {outcome} - {"correct"}
    gains = analysis.tables[0].errors.gains
    if outcome in ("localization", "classification"):
        # Fixed, the detection matches the dog, and the class cat does not count.
        assert gains[outcome] == pytest.approx(1)
    if outcome == "correct":
        assert not any(gains.values())


def test_the_worse_of_two_detections_is_a_duplicate(analyzed):
    found = [detection(DOG, HERE, 0.6), detection(DOG, moved(HERE, 0.7), 0.8)]
    analysis = analyzed([annotation(DOG, HERE), annotation(DOG, THERE)], found)
    assert outcomes(analysis, predicted=True) == ["correct", "duplicate"]
    assert [i.score for i in analysis.images[0].instances if i.predicted] == [0.8, 0.6]
    assert outcomes(analysis, predicted=False) == ["found", "missed"]
    errors = analysis.tables[0].errors
    assert errors.ap == pytest.approx(51 / 101)
    assert errors.gains["missed"] == pytest.approx(1 - 51 / 101)
    assert errors.gains["duplicate"] == 0  # its score is below that of every correct detection


def test_detections_in_crowds_are_no_errors_and_crowds_are_not_missed(analyzed):
    crowd = annotation(DOG, (100, 10, 180, 90), iscrowd=1)
    inside = (105, 15, 125, 35)
    analysis = analyzed([annotation(DOG, HERE), crowd], [detection(DOG, inside), detection(CAT, inside, 0.8)])
    assert outcomes(analysis, predicted=True) == ["crowd", "background"]  # a crowd of dogs does not cover a cat
    assert outcomes(analysis, predicted=False) == ["missed", "crowd"]
    image, table = analysis.images[0], analysis.tables[0]
    assert (image.correct, image.wrong, image.missed) == (0, 1, 1)
    assert table.errors.counts["background"] == 1
    assert table.histogram.sum() == 1
    np.testing.assert_array_equal(table.confusion, [[0, 0, 1], [0, 0, 0], [0, 1, 0]])


def test_confusion_counts_the_best_overlap_above_the_threshold(analyzed):
    truths = [annotation(DOG, HERE), annotation(CAT, THERE), annotation(CAT, (10, 60, 50, 90))]
    found = [
        detection(CAT, HERE, 0.9),  # a dog detected as a cat
        detection(DOG, HERE, 0.8),  # the dog is matched already
        detection(CAT, THERE, 0.7),
        detection(DOG, (60, 60, 90, 90), 0.6),  # background
        detection(CAT, (10, 60, 50, 90), 0.4),  # below the threshold
    ]
    np.testing.assert_array_equal(analyzed(truths, found).tables[0].confusion, [[0, 1, 0], [0, 1, 1], [2, 0, 0]])
    everything = analyzed(truths, found, threshold=0.0).tables[0]
    np.testing.assert_array_equal(everything.confusion, [[0, 1, 0], [0, 2, 0], [2, 0, 0]])
    # Within their class the dog (0.8) and both cats are matched, whatever the threshold.
    true, false = everything.histogram
    assert (true[[8, 14, 16]].tolist(), true.sum()) == ([1, 1, 1], 3)
    assert (false[[12, 18]].tolist(), false.sum()) == ([1, 1], 2)


def test_image_results(analyzed):
    truths = [annotation(DOG, HERE), annotation(CAT, THERE)]
    found = [detection(DOG, HERE, 0.9), detection(DOG, THERE, 0.8), detection(CAT, THERE, 0.3)]
    one, empty = analyzed(truths, found).images
    assert (one.correct, one.wrong, one.missed) == (1, 1, 1)
    assert one.quality == pytest.approx(1 / 2)
    assert one.category_ids == {DOG, CAT}
    assert (one.file_name, one.height, one.width) == ("1.png", *SIZE)
    np.testing.assert_array_equal(one.instances[0].box, HERE)
    assert [instance.segmentation["size"] for instance in one.instances] == [list(SIZE)] * 4
    assert (empty.quality, empty.category_ids, empty.instances) == (1, frozenset(), ())
    assert analyzed(truths, found, threshold=0.2).images[0].quality == pytest.approx(4 / 5)


def test_class_scores_average_to_the_metrics(analyzed):
    truths = [annotation(DOG, HERE), annotation(CAT, (10, 10, 30, 30)), annotation(CAT, THERE, iscrowd=1)]
    found = [detection(DOG, moved(HERE, 0.76)), detection(CAT, (10, 10, 30, 30))]
    analysis = analyzed(truths, found, ("bbox", "segm"))
    assert [(c.name, c.instances) for c in analysis.categories] == [("dog", 1), ("cat", 1)]
    for table in analysis.tables:
        dog, cat = table.classes
        numbers = [dog.AP, dog.AP50, dog.AP75, dog.AR]
        assert numbers == pytest.approx([0.6, 1, 1, 0.6])
        assert [dog.APs, dog.APm, dog.APl] == pytest.approx([-1, 0.6, -1])
        assert [cat.AP, cat.APs, cat.APm] == pytest.approx([1, 1, -1])
        assert table.metrics["AP"] == pytest.approx((dog.AP + cat.AP) / 2)
        assert table.precision.shape == (10, 101, 2)
        np.testing.assert_allclose(table.precision.mean(axis=(0, 1)), [dog.AP, cat.AP])
        np.testing.assert_allclose(table.thresholds, np.arange(0.5, 1, 0.05))


def test_keypoints_are_matched_by_oks(analyzed):
    points = [20, 20, 2, 40, 40, 2, 0, 0, 0]
    off = [26, 20, 1, 46, 40, 1, 0, 0, 1]  # exp(-36 / (2 * 1600 * (2 * 0.067)^2)) = 0.53
    far = [20, 95, 1, 20, 95, 1, 0, 0, 1]
    dog = annotation(DOG, HERE, keypoints=points, num_keypoints=2)
    unlabeled = annotation(DOG, THERE)  # ignored by the table
    found = [
        detection(DOG, HERE, 0.9, keypoints=off),
        detection(DOG, HERE, 0.8, keypoints=far),
        detection(DOG, THERE, 0.7, keypoints=[120, 30, 1] * 3),
    ]
    analysis = analyzed([dog, unlabeled], found, ("keypoints",), keypoints=["a", "b", "c"])
    assert outcomes(analysis, predicted=True) == ["correct", "background", "crowd"]
    assert outcomes(analysis, predicted=False) == ["found", "crowd"]
    (table,) = analysis.tables
    assert table.errors is None
    assert table.classes[0].instances == 1
    assert [table.classes[0].AP50, table.classes[0].AP75, table.classes[0].APs] == pytest.approx([1, 0, -1])
    assert analysis.images[0].instances[0].keypoints.shape == (3, 3)


def test_oks_equals_pycocotools(shared_data):
    """Fourteen people, some without labeled keypoints."""
    from pycocotools.cocoeval import COCOeval

    from mrcnn_jax.evaluation.analysis.match_detections import object_keypoint_similarity
    from mrcnn_jax.evaluation.coco_ground_truth import load_ground_truth

    folder = shared_data("coco_eval_oracle") / "keypoints"
    truth = load_ground_truth(folder / "gt_dataset.json")
    found = json.loads((folder / "dt_dataset.json").read_text())
    evaluation = COCOeval(truth, truth.loadRes(found), "keypoints")
    evaluation._prepare()
    (image_id,) = truth.imgs
    expected = evaluation.computeOks(image_id, 1)
    best = sorted(evaluation._dts[image_id, 1], key=lambda record: -record["score"])[: len(expected)]
    sigmas = evaluation.params.kpt_oks_sigmas
    ours = np.stack([object_keypoint_similarity(best, entry, sigmas) for entry in evaluation._gts[image_id, 1]], axis=1)
    assert any(not entry["num_keypoints"] for entry in evaluation._gts[image_id, 1])
    np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=0)


def test_only_the_detections_that_pycocotools_counts_are_analyzed(analyzed):
    """The 100 best of each class and image: the dog ranks behind 120 false positives, the cat does not."""
    false_positives = [detection(DOG, (150, 60, 153, 63), 0.95 - 0.001 * i) for i in range(120)]
    found = [*false_positives, detection(DOG, HERE, 0.7), detection(CAT, THERE, 0.7)]
    analysis = analyzed([annotation(DOG, HERE), annotation(CAT, THERE)], found, ("bbox", "segm"))
    (image, _) = analysis.images
    assert (image.correct, image.wrong, image.missed) == (1, 100, 1)
    for table in analysis.tables:
        assert [row.AP50 for row in table.classes] == pytest.approx([0, 1])
        assert table.errors.ap == pytest.approx(table.metrics["AP50"]) == pytest.approx(0.5)
        np.testing.assert_array_equal(table.confusion, [[0, 0, 1], [0, 1, 0], [100, 0, 0]])
        np.testing.assert_array_equal(table.histogram.sum(axis=1), [1, 100])


def test_scores_outside_of_0_to_1_are_in_the_outer_bins(analyzed):
    found = [detection(DOG, HERE, score) for score in (1e300, 2.5, -4)]
    true, false = analyzed([annotation(DOG, HERE)], found).tables[0].histogram
    assert (true[19], true.sum()) == (1, 1)
    assert (false[0], false[19], false.sum()) == (1, 1, 2)


def test_twenty_detections_of_an_image_count_for_keypoints(analyzed):
    """As in pycocotools: behind 20 false positives a dog is missed by keypoints, and found by its box."""
    points = [20, 20, 2, 40, 45, 2, 0, 0, 0]
    dog = annotation(DOG, HERE, keypoints=points, num_keypoints=2)
    false_positives = [detection(DOG, THERE, 0.9, keypoints=[180, 90, 1] * 3) for _ in range(20)]
    analysis = analyzed(
        [dog],
        [*false_positives, detection(DOG, HERE, 0.7, keypoints=points)],
        ("bbox", "keypoints"),
        keypoints=["a", "b", "c"],
    )
    boxes, keypoints = analysis.tables
    assert keypoints.histogram.sum(axis=1).tolist() == [0, 20]
    assert keypoints.metrics["AP50"] == 0
    assert boxes.histogram.sum(axis=1).tolist() == [1, 20]
    assert boxes.metrics["AP50"] == pytest.approx(1 / 21)


def test_results_without_boxes_have_those_of_their_keypoints(analyzed):
    """The extent of all keypoints, as in pycocotools."""
    points = [20, 20, 2, 40, 45, 2, 20, 20, 1]
    dog = annotation(DOG, HERE, keypoints=points, num_keypoints=3)
    found = {"image_id": 1, "category_id": DOG, "score": 0.9, "keypoints": points}
    (image, _) = analyzed([dog], [found], ("keypoints",), keypoints=["a", "b", "c"]).images
    np.testing.assert_array_equal(image.instances[1].box, [20, 20, 40, 45])
    assert image.instances[1].outcome == "correct"


def test_no_detections(analyzed):
    analysis = analyzed([annotation(DOG, HERE)], [], ("bbox", "segm"))
    assert analysis.images[0].quality == 0
    assert analysis.tables[1].errors.ap == 0
    assert analysis.tables[1].errors.counts["missed"] == 1
    np.testing.assert_array_equal(analysis.tables[0].confusion[0], [0, 0, 1])


def test_no_annotations(analyzed):
    analysis = analyzed([], [detection(DOG, HERE)])
    assert analysis.images[0].quality == 0
    assert analysis.tables[0].errors.counts["background"] == 1
    assert analysis.tables[0].classes[0].AP == -1


def test_each_table_counts_the_instances_that_it_can_score(analyzed):
    """A dog without a mask, and a cat whose box has no width."""
    dog, cat = annotation(DOG, HERE, segmentation=[]), annotation(CAT, THERE)
    cat["bbox"] = [THERE[0], THERE[1], 0, 40]
    analysis = analyzed([dog, cat], [detection(DOG, HERE), detection(CAT, THERE)], ("bbox", "segm"))
    boxes, masks = analysis.tables
    assert [row.instances for row in boxes.classes] == [1, 0]
    assert [row.instances for row in masks.classes] == [0, 1]
    assert analysis.notes == (
        "1 of 2 instances have no usable box: left out of the table of boxes",
        "1 of 2 instances have no usable mask: left out of the table of masks",
    )
    assert outcomes(analysis, predicted=True) == ["background", "correct"]  # by masks
    assert (boxes.metrics["AR100"], masks.metrics["AR100"]) == (1, 1)
    (truth,) = (one for one in analysis.images[0].instances if not one.predicted)
    assert truth.box.tolist() == list(THERE)  # the extent of the mask
