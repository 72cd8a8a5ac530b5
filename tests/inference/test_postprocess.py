"""Postprocessing: from network coordinates to predictions in the original image."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mrcnn_jax.config import KeypointHeadConfig, MaskHeadConfig, ModelConfig
from mrcnn_jax.inference.paste import paste_probabilities
from mrcnn_jax.inference.postprocess import categories, postprocess
from mrcnn_jax.structures import Detections

MODEL = ModelConfig(num_classes=2, category_ids=(7, 3), category_names=("dog", "cat"))


def detections(boxes, *, padding=0, seed=0):
    """Detections with the given boxes and random masks, and `padding` slots of garbage."""
    rng = np.random.default_rng(seed)
    count = len(boxes)
    valid = np.arange(count + padding) < count
    garbage = np.full((padding, 4), np.nan)
    return Detections(
        boxes=np.concatenate([np.reshape(boxes, (-1, 4)), garbage]).astype(np.float32),
        scores=np.linspace(0.9, 0.1, count + padding, dtype=np.float32),
        classes=np.where(valid, np.arange(count + padding) % 2 + 1, 99).astype(np.int32),
        masks=rng.random((count + padding, 28, 28), dtype=np.float32),
        keypoints=np.zeros((count + padding, 0, 3), np.float32),
        valid=valid,
        truncated=np.array(False),
    )


def test_boxes_are_scaled_by_each_axis_and_clipped():
    found = postprocess(detections([[10, 20, 50, 60], [-4, -4, 200, 200]]), np.array([80, 100]), (160, 300), MODEL)
    np.testing.assert_array_equal(found.boxes, [[30, 40, 150, 120], [0, 0, 300, 160]])
    assert found.boxes.dtype == np.float32


def test_class_indices_map_to_category_ids():
    found = postprocess(detections([[0, 0, 9, 9], [1, 1, 9, 9], [2, 2, 9, 9]]), np.array([10, 10]), (10, 10), MODEL)
    assert found.labels.tolist() == [1, 2, 1]
    assert found.category_ids.tolist() == [7, 3, 7]
    assert found.names == ("dog", "cat", "dog")


def test_a_model_without_categories_has_ids_from_one():
    assert categories(ModelConfig(num_classes=2)) == ((1, 2), ("class 1", "class 2"))


def test_padding_and_boxes_without_area_are_dropped():
    boxes = [[2, 2, 8, 8], [5, 5, 5, 9], [12, 2, 15, 8]]  # the second is empty, the third is beyond the image
    found = postprocess(detections(boxes, padding=4), np.array([10, 10]), (10, 10), MODEL)
    assert len(found) == 1
    assert found.masks.shape == (1, 10, 10)
    alone = postprocess(detections(boxes), np.array([10, 10]), (10, 10), MODEL)
    np.testing.assert_array_equal(found.masks, alone.masks)


def test_no_detections():
    found = postprocess(detections([], padding=3), np.array([10, 10]), (20, 30), MODEL)
    assert found.boxes.shape == (0, 4)
    assert found.masks.shape == (0, 20, 30)
    assert found.to_coco(1) == []
    assert len(found.to_supervision()) == 0


def test_coco_records_hold_the_same_boxes_and_masks():
    found = postprocess(detections([[3, 4, 40, 30], [-5, 10, 70, 45]]), np.array([50, 60]), (100, 90), MODEL)
    records = json.loads(json.dumps(found.to_coco(np.int64(12))))
    assert [record["category_id"] for record in records] == [7, 3]
    assert {record["image_id"] for record in records} == {12}
    for record, box, score, mask in zip(records, found.boxes, found.scores, found.masks, strict=True):
        assert record["bbox"] == [box[0], box[1], box[2] - box[0], box[3] - box[1]]
        assert record["score"] == score
        np.testing.assert_array_equal(coco_mask.decode(record["segmentation"]), mask)


def test_to_supervision():
    found = postprocess(detections([[3, 4, 40, 30]]), np.array([50, 60]), (50, 60), MODEL)
    theirs = found.to_supervision()
    np.testing.assert_array_equal(theirs.xyxy, found.boxes)
    np.testing.assert_array_equal(theirs.mask, found.masks)
    assert theirs.class_id.tolist() == [1]
    assert theirs.data["class_name"].tolist() == ["dog"]


def test_a_model_without_masks():
    model = ModelConfig(num_classes=2, mask=None)
    boxes = detections([[3, 4, 40, 30]])._replace(masks=np.zeros((1, 0, 0), np.float32))
    found = postprocess(boxes, np.array([50, 60]), (50, 60), model)
    assert found.masks is None
    assert "segmentation" not in found.to_coco(1)[0]
    assert found.to_supervision().mask is None


def test_selections_of_instances():
    found = postprocess(detections([[0, 0, 9, 9], [1, 1, 8, 9], [2, 2, 9, 8]]), np.array([10, 10]), (10, 10), MODEL)
    last = found[found.labels == 2]
    assert len(last) == 1
    assert last.names == ("cat",)
    np.testing.assert_array_equal(last.masks[0], found.masks[1])
    assert len(found[:2]) == 2
    assert [instance.names for instance in found] == [("dog",), ("cat",), ("dog",)]


def test_repr_lists_instances():
    found = postprocess(detections([[0, 0, 9, 9]] * 8), np.array([10, 10]), (10, 20), MODEL)
    assert repr(found[:2]) == "Prediction(10x20: dog 0.90, cat 0.79)"
    assert repr(found).endswith("cat 0.33, 2 more)")
    assert repr(found[:0]) == "Prediction(10x20: nothing found)"
    assert (found == found[:2]) is False  # does not compare arrays


PEOPLE = ModelConfig(
    num_classes=1,
    mask=None,
    keypoint=KeypointHeadConfig(num_keypoints=2, score="logit", flip_map=(1, 0)),
    keypoint_names=("left", "right"),
    skeleton=((0, 1),),
)


def people(keypoints):
    """Detections of people with these keypoints, in boxes of the whole image."""
    count = len(keypoints)
    given = detections([[0, 0, 100, 80]] * count, padding=1)
    points = np.concatenate([np.reshape(keypoints, (count, 2, 3)), np.full((1, 2, 3), np.nan)])
    return given._replace(keypoints=points.astype(np.float32), classes=np.ones(count + 1, np.int32))


def test_keypoints_are_scaled_by_each_axis_and_not_clipped():
    found = postprocess(people([[[10, 20, 0.5], [-3, 79, 7]]]), np.array([80, 100]), (160, 300), PEOPLE)
    np.testing.assert_array_equal(found.keypoints, [[[30, 40, 0.5], [-9, 158, 7]]])
    assert found.keypoints.dtype == np.float32
    assert (found.keypoint_score, found.keypoint_names, found.skeleton) == ("logit", ("left", "right"), ((0, 1),))


def test_coco_keypoints_are_pixel_indices():
    found = postprocess(people([[[10.5, 20.5, 0.25], [0, 79, 7]]]), np.array([80, 100]), (80, 100), PEOPLE)
    (record,) = json.loads(json.dumps(found.to_coco(3)))
    assert record["keypoints"] == [10, 20, 0.25, -0.5, 78.5, 7]
    (record,) = found.to_coco(3, keypoint_offset=0)
    assert record["keypoints"] == [10.5, 20.5, 0.25, 0, 79, 7]


def test_keypoints_stay_with_their_instances():
    found = postprocess(
        people([[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [1, 1, 1]]]), np.array([80, 100]), (80, 100), PEOPLE
    )
    assert found[1].keypoints.tolist() == [[[7, 8, 9], [1, 1, 1]]]
    theirs = found[::-1].to_supervision()
    assert theirs.data["keypoints"][:, 0, 0].tolist() == [7, 1]
    assert theirs[theirs.confidence > 0.7].data["keypoints"][:, 0, 0].tolist() == [1]


def test_a_model_without_keypoints():
    found = postprocess(detections([[0, 0, 9, 9]]), np.array([10, 10]), (10, 10), MODEL)
    assert found.keypoints is None
    assert found[0].keypoints is None
    assert "keypoints" not in found.to_coco(1)[0]
    assert "keypoints" not in found.to_supervision().data


def compare_keypoints(arrays, i, network_size, size, scores):
    """Compare our postprocessing of the reference's network keypoints with its final keypoints."""
    points = np.concatenate([arrays[f"net_det{i}_keypoints"][..., :2], scores[..., None]], axis=-1)
    count = len(points)
    model = ModelConfig(num_classes=100, mask=None, keypoint=KeypointHeadConfig(num_keypoints=points.shape[1]))
    given = Detections(
        arrays[f"net_det{i}_boxes"],
        arrays[f"net_det{i}_scores"],
        np.ones(count, np.int32),
        np.zeros((count, 0, 0), np.float32),
        points,
        np.ones(count, bool),
        np.array(False),
    )
    found = postprocess(given, network_size, size, model)
    # As for the boxes below: two roundings on either side of a coordinate below 512.
    blur = 4 * np.spacing(np.float32(512))
    np.testing.assert_allclose(found.keypoints[..., :2], arrays[f"det{i}_keypoints"][..., :2], rtol=0, atol=blur)
    np.testing.assert_array_equal(found.keypoints[..., 2], scores)


@pytest.mark.parametrize("i", [0, 1])
def test_golden_torchvision_keypoints_in_the_original_image(golden, i):
    arrays, inputs = golden("tv_model_keypointrcnn_eval.npz"), golden("tv_model_inputs.npz")
    size = inputs[f"img_u8_{i}"].shape[1:]
    compare_keypoints(arrays, i, arrays["image_sizes"][i], size, arrays[f"det{i}_keypoints_scores"])


@pytest.mark.parametrize("i", [0, 1])
def test_golden_detectron2_keypoints_in_the_original_image(golden, i):
    arrays = golden("d2_model_keypoint_rcnn_R_50_FPN_eval.npz")
    size = tuple(arrays["out_hw"][i].tolist())
    compare_keypoints(arrays, i, arrays["image_sizes"][i], size, arrays[f"det{i}_keypoints"][..., 2])


def compare_with_reference(arrays, i, mask_size, rule, first_label, packed_name):
    """Compare our postprocessing of the reference's network detections with its final detections."""
    network = {name: arrays[f"net_det{i}_{name}"] for name in ("boxes", "scores", "labels", "masks")}
    size = tuple(arrays[f"det{i}_masks_shape"][-2:].tolist())
    count = len(network["scores"])
    model = ModelConfig(num_classes=100, mask=MaskHeadConfig(paste=rule))
    given = Detections(
        network["boxes"],
        network["scores"],
        network["labels"] + 1 - first_label,
        network["masks"][:, 0],
        np.zeros((count, 0, 3), np.float32),
        np.ones(count, bool),
        np.array(False),
    )
    found = postprocess(given, mask_size, size, model)
    # Either side rounds a coordinate below 512 twice (float32 spacing 3e-5): the ratio, and the product with it.
    blur = 4 * np.spacing(np.float32(512))
    np.testing.assert_allclose(found.boxes, arrays[f"det{i}_boxes"], rtol=0, atol=blur)
    expected = np.unpackbits(arrays[f"det{i}_{packed_name}"], axis=1)[:, : size[0] * size[1]].reshape(-1, *size)
    for ours, theirs, mask, box in zip(found.masks, expected, found.mask_probabilities, found.boxes, strict=True):
        soft = paste_probabilities(mask, box, size, rule)
        # `blur` in mask pixels; values of neighboring mask pixels differ by at most 1.
        noise = blur * len(mask) / (box[2:] - box[:2]).min()
        undecided = np.zeros(size, bool)
        near = np.abs(soft.pixels - 0.5) < noise
        undecided[soft.top : soft.top + near.shape[0], soft.left : soft.left + near.shape[1]] = near
        np.testing.assert_array_equal(ours[~undecided], theirs[~undecided])
        assert undecided.sum() < 0.01 * ours.sum() + 5  # the comparison covers nearly all pixels


@pytest.mark.parametrize("i", [0, 1])
def test_golden_torchvision_detections_in_the_original_image(golden, i):
    arrays = golden("tv_model_maskrcnn_eval.npz")
    compare_with_reference(arrays, i, arrays["image_sizes"][i], "torchvision", 1, "masks_ge_half_packed")


@pytest.mark.parametrize("i", [0, 1])
def test_golden_detectron2_detections_in_the_original_image(golden, i):
    arrays = golden("d2_model_mask_rcnn_R_50_FPN_eval.npz")
    compare_with_reference(arrays, i, arrays["image_sizes"][i], "detectron2", 0, "masks_packed")
