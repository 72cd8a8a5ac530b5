"""Whole networks against torchvision: intermediate maps, detections, losses and the gradient of every parameter."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from scipy.special import expit
from support.golden_models import (
    BATCH_LOSSES,
    LOGITS,
    LOSSES,
    PROBABILITIES,
    RPN,
    Network,
    assert_same_box_head,
    assert_same_detections,
    assert_same_gradients,
    assert_same_keypoints,
    assert_same_map,
    assert_same_pasted,
    assert_same_proposals,
    losses_and_gradients,
    make_batch,
    max_relative,
    padded_truth,
    trace,
)
from support.torchvision_settings import NAMES, configured

from mrcnn_jax.config import presets
from mrcnn_jax.inference.postprocess import postprocess
from mrcnn_jax.models.mask_rcnn import build_model
from mrcnn_jax.weights import naming, torchvision_names

pytestmark = pytest.mark.medium

MODELS = ["maskrcnn", *(pytest.param(name, marks=pytest.mark.slow) for name in ("maskrcnn_v2", "keypointrcnn"))]
LOSS_NAMES = {
    "loss_class": "loss/loss_classifier",
    "loss_box": "loss/loss_box_reg",
    "loss_mask": "loss/loss_mask",
    "loss_keypoint": "loss/loss_keypoint",
    "loss_rpn_class": "loss/loss_objectness",
    "loss_rpn_box": "loss/loss_rpn_box_reg",
}


@pytest.fixture(scope="module", params=MODELS)
def case(request, golden):
    """A network and the arrays that torchvision computed with it."""
    name = request.param
    evaluation = golden(f"tv_model_{name}_eval.npz")
    state = golden.recipe().state(json.loads(golden.file(f"tv_keys_{name}.json").read_text()))
    num_classes = len(state["roi_heads.box_predictor.cls_score.bias"]) - 1
    base = presets.torchvision_model(NAMES[name])
    config = replace(configured(base, golden.file("README.md").read_text()), num_classes=num_classes)
    model = build_model(config)
    network = Network(model, config, naming.import_state(torchvision_names.DETECTION, model, state))
    return SimpleNamespace(name=name, network=network, evaluation=evaluation, inputs=golden("tv_model_inputs.npz"))


@pytest.fixture(scope="module")
def run(case):
    theirs = case.evaluation
    images, sizes = theirs["batched"].transpose(0, 2, 3, 1), theirs["image_sizes"]
    return trace(case.network, images, sizes.astype(np.int32), [theirs[f"proposals{i}"] for i in range(len(sizes))])


def test_golden_maps_and_rpn(case, run):
    theirs = case.evaluation
    for number, stage in enumerate(run.stem_and_stages):
        assert_same_map(stage, theirs, f"body{number}")
    for name, level in zip(("fpn_0", "fpn_1", "fpn_2", "fpn_3", "fpn_pool"), run.features, strict=True):
        assert_same_map(level, theirs, name)
    assert max_relative(run.logits, theirs["rpn_objectness"]) < RPN
    assert max_relative(run.deltas, theirs["rpn_deltas"]) < RPN


def test_golden_proposals_and_box_head(case, run):
    theirs = case.evaluation
    counts = [len(theirs[f"proposals{i}"]) for i in range(len(theirs["image_sizes"]))]
    ends = np.cumsum(counts)[:-1]
    logits = theirs["class_logits"]
    deltas = theirs["box_regression"].reshape(len(logits), -1, 4)[:, 1:]  # without those of the background
    for i, (own_logits, own_deltas) in enumerate(zip(np.split(logits, ends), np.split(deltas, ends), strict=True)):
        valid, boxes = run.proposals.valid[i], run.proposals.boxes[i]
        # torchvision returns the sigmoid of logits, whose slope is at most 1/4.
        probabilities = expit(run.proposals.scores[i][valid])
        bound = RPN * np.abs(theirs["rpn_objectness"]).max() / 4 + np.finfo(np.float32).eps
        names = f"proposals{i}", f"proposal_scores{i}"
        assert_same_proposals(boxes[valid], probabilities, *(theirs[name] for name in names), bound)
        assert_same_box_head(run, i, own_logits, own_deltas)


def test_golden_detections(case, run):
    theirs, found = case.evaluation, run.detections
    assert not found.truncated.any()
    for i, size in enumerate(theirs["image_sizes"]):
        original = case.inputs[f"img_u8_{i}"].shape[1:]
        valid = found.valid[i]
        order = assert_same_detections(
            (found.boxes[i][valid], found.scores[i][valid], found.classes[i][valid]),
            (theirs[f"net_det{i}_boxes"], theirs[f"net_det{i}_scores"], theirs[f"net_det{i}_labels"]),
        )
        one = jax.tree.map(lambda field, i=i: field[i], found)
        prediction = postprocess(one, size, original, case.network.config)
        assert_same_detections(
            (prediction.boxes, prediction.scores, prediction.labels),
            (theirs[f"det{i}_boxes"], theirs[f"det{i}_scores"], theirs[f"det{i}_labels"]),
        )
        if case.network.config.mask is not None:
            assert max_relative(found.masks[i][valid][order], theirs[f"net_det{i}_masks"][:, 0]) < PROBABILITIES
            assert_same_pasted(prediction.masks[order], theirs[f"det{i}_masks_ge_half_packed"])
        else:
            assert_same_keypoint_sets(theirs, i, found.keypoints[i][valid][order], prediction.keypoints[order], size)


def assert_same_keypoint_sets(theirs, i, in_network, in_original, size):
    """Compare keypoints in network and original coordinates; a score is the logit of a peak, near 10."""
    sides = theirs[f"net_det{i}_boxes"][:, 2:] - theirs[f"net_det{i}_boxes"][:, :2]
    cells = (sides / np.ceil(sides)).max(1)
    for ours, name in ((in_network, f"net_det{i}"), (in_original, f"det{i}")):
        expected = np.array(theirs[f"{name}_keypoints"])
        expected[..., 2] = theirs[f"{name}_keypoints_scores"]  # the third column is always 1
        assert_same_keypoints(ours, expected, LOGITS * np.abs(expected[..., 2]).max(), cells)


@pytest.fixture(scope="module")
def train_batch(case):
    """Ground truth like that of torchvision's transform: scaled boxes, bitmaps resized to the nearest pixel."""
    inputs, sizes = case.inputs, case.evaluation["image_sizes"]
    shape = case.evaluation["batched"].shape[2:]
    slots = max(len(inputs[f"gt_labels{i}"]) for i in range(len(sizes)))
    truths = []
    for i, size in enumerate(sizes):
        masks = inputs[f"gt_masks_{i}"]
        ratio = np.asarray(size, np.float32) / np.asarray(masks.shape[1:], np.float32)
        rows, columns = (np.arange(new) * old // new for new, old in zip(size, masks.shape[1:], strict=True))
        masks = masks[:, rows][:, :, columns]
        # torchvision clamps samples to the unpadded bitmap; in a padded one, repeating its border is equivalent.
        masks = np.pad(masks, [(0, 0), *((0, s - m) for s, m in zip(shape, size, strict=True))], mode="edge")
        keypoints = inputs[f"gt_keypoints{i}"] * np.append(ratio[::-1], 1).astype(np.float32)
        boxes, classes = inputs[f"gt_boxes{i}"] * ratio[[1, 0, 1, 0]], inputs[f"gt_labels{i}"]
        if case.network.config.keypoint is not None:
            classes = np.ones_like(classes)  # all are persons
        truths.append(padded_truth(boxes, classes, keypoints, slots, masks, shape))
    return make_batch(shape, sizes, truths)


def assert_same_training(case, theirs, run, bound=LOSSES):
    gradients, parts, rois, _ = run
    assert np.sum(rois.classes > 0) == theirs["num_pos"].sum()
    assert len(parts) == sum(name.startswith("loss/") for name in theirs)
    for ours, value in parts.items():
        np.testing.assert_allclose(value, theirs[LOSS_NAMES[ours]], rtol=bound, err_msg=ours)
    assert_same_gradients(torchvision_names.export_state({"params": gradients}), theirs)


def test_golden_training(case, golden, train_batch):
    images = case.evaluation["batched"].transpose(0, 2, 3, 1)
    theirs = golden(f"tv_model_{case.name}_train.npz")
    run = losses_and_gradients(case.network, images, train_batch, positives=theirs["num_pos"].max())
    of_batch = case.network.config.backbone.norm == "bn"
    assert_same_training(case, theirs, run, BATCH_LOSSES if of_batch else LOSSES)


def test_golden_training_with_running_statistics(case, golden, train_batch):
    if case.network.config.backbone.norm != "bn":
        pytest.skip("batch norm is frozen and has no running statistics")
    images = case.evaluation["batched"].transpose(0, 2, 3, 1)
    theirs = golden(f"tv_model_{case.name}_train_bneval.npz")
    positives = theirs["num_pos"].max()
    run = losses_and_gradients(case.network, images, train_batch, positives=positives, batch_statistics=False)
    assert_same_training(case, theirs, run)
