"""Keypoints from annotations to heatmaps and back to result records have no offset, flipped or not."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from support.samples import resize

from mrcnn_jax.config import KeypointHeadConfig, ModelConfig
from mrcnn_jax.data.augment.geometry import flip
from mrcnn_jax.data.sample import make_sample, write_ground_truth
from mrcnn_jax.inference.postprocess import postprocess
from mrcnn_jax.ops import keypoints as keypoint_ops
from mrcnn_jax.structures import Detections, GroundTruth

PEOPLE, POINTS, SIDE = 150, 8, 56
SIZE, SCALED = (240, 300), (453, 566)  # height and width
FLIP_MAP = (1, 0, 3, 2, 5, 4, 7, 6)


def annotations(rng):
    """Instances with labeled keypoints on pixels within their boxes."""
    corners = rng.uniform(0, [SIZE[1] - 130, SIZE[0] - 130], (PEOPLE, 2))
    sides = rng.uniform(30, 130, (PEOPLE, 2))
    low, high = np.ceil(corners)[:, None], np.floor(corners + sides)[:, None]
    pixels = np.floor(rng.uniform(low, high, (PEOPLE, POINTS, 2)))
    return [
        {
            "bbox": [*corner, *side],
            "category_id": 1,
            "keypoints": [value for x, y in points for value in (int(x), int(y), 2)],
        }
        for corner, side, points in zip(corners, sides, pixels, strict=True)
    ]


@jax.jit
def encode_and_decode(keypoints, boxes, valid):
    """Encode targets as one-hot heatmaps and decode them; returns also which keypoints have a target."""
    index, targeted = keypoint_ops.heatmap_targets(keypoints, boxes, size=SIDE)
    heatmaps = 10 * jax.nn.one_hot(index, SIDE * SIDE).reshape(PEOPLE, POINTS, SIDE, SIDE).transpose(0, 2, 3, 1)
    return keypoint_ops.decode(heatmaps, boxes, valid, score="logit"), targeted


@pytest.mark.medium
@pytest.mark.parametrize("flipped", [False, True])
def test_keypoints_are_decoded_without_an_offset(flipped):
    given = annotations(np.random.default_rng(0))
    truth = GroundTruth(
        boxes=np.zeros((PEOPLE, 4), np.float32),
        classes=np.zeros(PEOPLE, np.int32),
        masks=np.zeros((PEOPLE, 0, 0), np.uint8),
        mask_windows=np.zeros((PEOPLE, 4), np.float32),
        keypoints=np.zeros((PEOPLE, POINTS, 3), np.float32),
        valid=np.zeros(PEOPLE, bool),
    )
    image = np.zeros((*SIZE, 3), np.uint8)
    sample = make_sample(image, given, {1: 1}, SIZE, masks=False, num_keypoints=POINTS)
    sample = resize(flip(sample, flipped, False, FLIP_MAP), SCALED)
    write_ground_truth(sample, truth)
    decoded, targeted = encode_and_decode(truth.keypoints, truth.boxes, truth.valid)
    assert targeted.all()
    found = flip(sample._replace(boxes=truth.boxes, keypoints=np.asarray(decoded)), flipped, False, FLIP_MAP)
    head = KeypointHeadConfig(num_keypoints=POINTS, flip_map=FLIP_MAP)
    detections = Detections(
        boxes=found.boxes,
        scores=np.ones(PEOPLE, np.float32),
        classes=truth.classes,
        masks=np.zeros((PEOPLE, 0, 0), np.float32),
        keypoints=found.keypoints,
        valid=truth.valid,
        truncated=np.array(False),
    )
    model = ModelConfig(num_classes=1, mask=None, keypoint=head)
    records = postprocess(detections, np.array(SCALED), SIZE, model).to_coco(1)
    shape = (PEOPLE, POINTS, 3)
    expected = np.reshape([annotation["keypoints"] for annotation in given], shape)[..., :2]
    error = np.reshape([record["keypoints"] for record in records], shape)[..., :2] - expected
    # A cell is up to 130 / 56 pixels wide, and keypoint and prediction are in the same cell.
    assert np.abs(error).max() < 130 / SIDE
    offset, noise = error.mean(axis=(0, 1)), error.std(axis=(0, 1)) / np.sqrt(PEOPLE * POINTS)
    assert (noise < 0.025).all()  # so that an offset of half a pixel would be twenty times that
    assert (np.abs(offset) < 4 * noise).all()
