"""The whole R50-FPN Mask R-CNN against torchvision: detections, losses and the gradient of every parameter.

Weights come from the recipe beside the arrays, sizes from the arrays, settings from the README beside them.
Tolerances: torchvision's own float32 run differs from its float64 run by 2e-6 in features, 3e-5 in class logits and
mask probabilities, 5e-7 in losses, and 6e-4 in the worst gradient norm (`tv_f32_vs_f64_maskrcnn.json`); two float32
programs may differ by twice that.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax import presets
from mrcnn_jax.config import ModelConfig
from mrcnn_jax.evaluation.postprocess import postprocess
from mrcnn_jax.models.rcnn import build_model, detect_normalized
from mrcnn_jax.structures import Batch, GroundTruth
from mrcnn_jax.training.step import losses_from_features
from mrcnn_jax.weights.torchvision import export_state, import_state

LOSS_NAMES = {
    "loss_class": "loss/loss_classifier",
    "loss_box": "loss/loss_box_reg",
    "loss_mask": "loss/loss_mask",
    "loss_rpn_class": "loss/loss_objectness",
    "loss_rpn_box": "loss/loss_rpn_box_reg",
}
TAKE_ALL = 10**6


def torchvision_config(num_classes: int, readme: str) -> ModelConfig:
    """torchvision's flavour with the top-k values and thresholds that the README beside the arrays states."""

    def stated(name: str) -> float:
        found = re.search(rf"{re.escape(name)} ([\d.]+)", readme)
        assert found, f"README.md beside the arrays does not state {name!r}"
        return float(found[1].rstrip("."))

    base = presets.torchvision()
    return replace(
        base,
        num_classes=num_classes,
        rpn=replace(
            base.rpn,
            batch_size=TAKE_ALL,
            pre_nms_top_k_train=int(stated("rpn_pre")),
            post_nms_top_k_train=int(stated("rpn_post")),
            pre_nms_top_k_test=int(stated("rpn_pre_nms_top_n")),
            post_nms_top_k_test=int(stated("rpn_post_nms_top_n")),
        ),
        roi=replace(base.roi, batch_size=TAKE_ALL, positive_iou=stated("box fg/bg IoU thresholds")),
        box=replace(
            base.box,
            score_threshold=stated("box_score_thresh"),
            nms_iou=stated("box_nms"),
            max_detections=int(stated("box_detections_per_img")),
        ),
    )


@pytest.fixture(scope="module")
def network(golden):
    """Model, configuration and variables, made once for all tests of this file."""
    shapes = json.loads(golden.file("tv_keys_maskrcnn.json").read_text())
    state = golden.recipe().state(shapes)
    num_classes = len(state["roi_heads.box_predictor.cls_score.bias"]) - 1
    config = torchvision_config(num_classes, golden.file("README.md").read_text())
    model = build_model(config)
    return model, config, import_state(model, state)


def max_relative(ours, theirs):
    """Largest difference over the largest value: the measure of the float32-against-float64 tables."""
    return np.max(np.abs(np.asarray(ours) - theirs)) / np.max(np.abs(theirs))


def test_golden_features_and_rpn(golden, network):
    model, _, variables = network
    theirs = golden("tv_model_maskrcnn_eval.npz")

    @jax.jit
    def run(variables, images):
        features = model.apply(variables, images, method=model.pyramid)
        return features, model.apply(variables, features, method=model.rpn)

    features, (logits, deltas) = run(variables, theirs["batched"].transpose(0, 2, 3, 1))
    for name, level in zip(("fpn_0", "fpn_1", "fpn_2", "fpn_3", "fpn_pool"), features, strict=True):
        level = np.asarray(level).transpose(0, 3, 1, 2)
        assert level.shape == tuple(theirs[f"{name}/shape"])
        part = level[:, :8, ::2, ::2] if level.shape[2] > 8 else level[:, :16]
        assert max_relative(part, theirs[f"{name}/slice"]) < 6e-6
        assert max_relative(level.mean((0, 2, 3)), theirs[f"{name}/chan_mean"]) < 6e-6
    assert max_relative(np.concatenate(logits, axis=1), theirs["rpn_objectness"]) < 6e-6
    assert max_relative(np.concatenate(deltas, axis=1), theirs["rpn_deltas"]) < 6e-6


def test_golden_detections(golden, network):
    model, config, variables = network
    theirs = golden("tv_model_maskrcnn_eval.npz")
    inputs = golden("tv_model_inputs.npz")
    sizes = theirs["image_sizes"].astype(np.int32)
    images = theirs["batched"].transpose(0, 2, 3, 1)
    found = jax.jit(lambda v, x, s: detect_normalized(model, v, x, s))(variables, images, sizes)
    found = jax.tree.map(np.asarray, found)
    assert not found.truncated.any()
    originals = [inputs[f"img_u8_{i}"].shape[1:] for i in range(len(sizes))]
    for i, size in enumerate(sizes):
        one = jax.tree.map(lambda field, i=i: field[i], found)
        prediction = postprocess(one, size, originals[i], config)
        valid = found.valid[i]
        order = assert_same_detections(
            (found.boxes[i][valid], found.scores[i][valid], found.classes[i][valid]),
            (theirs[f"net_det{i}_boxes"], theirs[f"net_det{i}_scores"], theirs[f"net_det{i}_labels"]),
            max(sizes[i]),
        )
        assert max_relative(found.masks[i][valid][order], theirs[f"net_det{i}_masks"][:, 0]) < 1e-4
        assert_same_detections(
            (prediction.boxes, prediction.scores, prediction.labels),
            (theirs[f"det{i}_boxes"], theirs[f"det{i}_scores"], theirs[f"det{i}_labels"]),
            max(originals[i]),
        )
        pasted = np.unpackbits(theirs[f"det{i}_masks_ge_half_packed"], axis=1)
        pasted = pasted[:, : originals[i][0] * originals[i][1]].reshape(-1, *originals[i]).astype(bool)
        different = (prediction.masks[order] != pasted).mean((1, 2))
        assert different.max() <= 0.001


def assert_same_detections(ours, theirs, side):
    """The same set, in the same order except among scores that differ by less than 1e-4. Returns our matching order."""
    boxes, scores, labels = (np.asarray(field) for field in ours)
    assert len(scores) == len(theirs[1])
    tolerance = max(1e-3, 4e-6 * side)
    order = []
    for box, score, label in zip(*theirs, strict=True):
        same = (np.abs(boxes - box).max(1) <= tolerance) & (np.abs(scores - score) <= 1e-4) & (labels == label)
        candidates = [i for i in np.flatnonzero(same) if i not in order]
        assert candidates, f"no detection of class {label} at {box} with score {score}"
        order.append(candidates[0])
    assert np.all(np.abs(scores[order] - scores) <= 1e-4)
    return order


@pytest.fixture(scope="module")
def training_run(golden, network):
    """Our losses and gradients on the batch that torchvision's were computed on."""
    model, config, variables = network
    images = golden("tv_model_maskrcnn_eval.npz")["batched"].transpose(0, 2, 3, 1)
    batch = training_batch(golden, images)
    keys = jax.random.split(jax.random.key(0), len(images))

    def loss(params, variables, images):
        variables = {**variables, "params": params}
        features = model.apply(variables, images, train=True, method=model.pyramid)
        parts, counts = losses_from_features(model, config, variables, features, batch, keys)
        parts = {name: total / jnp.maximum(count, 1) for name, (total, count) in parts.items()}
        return sum(parts.values()), (parts, counts)

    gradients, (parts, counts) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"], variables, images)
    return gradients, parts, counts


def training_batch(golden, images):
    """Ground truth as torchvision's transform makes it: boxes scaled, whole bitmaps resized to the nearest pixel."""
    inputs = golden("tv_model_inputs.npz")
    sizes = golden("tv_model_maskrcnn_eval.npz")["image_sizes"]
    slots = max(len(inputs[f"gt_labels{i}"]) for i in range(len(sizes)))
    shape = images.shape[1:3]
    truths = []
    for i, size in enumerate(sizes):
        boxes, labels, masks = inputs[f"gt_boxes{i}"], inputs[f"gt_labels{i}"], inputs[f"gt_masks_{i}"]
        ratio = np.asarray(size, np.float32) / np.asarray(masks.shape[1:], np.float32)
        rows, columns = (np.arange(new) * old // new for new, old in zip(size, masks.shape[1:], strict=True))
        masks = masks[:, rows][:, :, columns]
        # torchvision clamps samples to the unpadded bitmap; repeating its border says the same in a padded one.
        masks = np.pad(masks, [(0, 0), *((0, s - m) for s, m in zip(shape, size, strict=True))], mode="edge")
        empty = slots - len(labels)
        truths.append(
            GroundTruth(
                boxes=np.pad(boxes * ratio[[1, 0, 1, 0]], [(0, empty), (0, 0)]).astype(np.float32),
                classes=np.pad(labels, (0, empty)).astype(np.int32),
                masks=np.pad(masks, [(0, empty), (0, 0), (0, 0)]).astype(np.uint8),
                mask_windows=np.tile(np.float32([0, 0, shape[1], shape[0]]), (slots, 1)),
                valid=np.arange(slots) < len(labels),
            )
        )
    return Batch(
        images=np.zeros((len(sizes), *shape, 3), np.uint8),
        image_sizes=sizes.astype(np.int32),
        indices=np.arange(len(sizes), dtype=np.int32),
        valid=np.ones(len(sizes), bool),
        ground_truth=jax.tree.map(lambda *fields: np.stack(fields), *truths),
    )


def test_golden_losses(golden, training_run):
    _, parts, counts = training_run
    theirs = golden("tv_model_maskrcnn_train.npz")
    assert int(counts["num_positive_rois"]) == theirs["num_pos"].sum()
    for ours, name in LOSS_NAMES.items():
        np.testing.assert_allclose(parts[ours], theirs[name], rtol=1e-5, err_msg=name)


def test_golden_gradients(golden, training_run):
    gradients, _, _ = training_run
    theirs = golden("tv_model_maskrcnn_train.npz")
    ours = export_state({"params": gradients})
    assert set(theirs["grad_names"]) | set(theirs["no_grad_names"]) == set(ours)
    for name in theirs["no_grad_names"]:
        assert not ours[name].any(), f"{name} is frozen"
    for name, norm, total, first in zip(
        *(theirs[key] for key in ("grad_names", "grad_norm", "grad_sum", "grad_first8")), strict=True
    ):
        np.testing.assert_allclose(np.linalg.norm(ours[name]), norm, rtol=2e-3, atol=1e-7, err_msg=name)
        # Single entries are measured against their root mean square, whose noise here is 2e-3 at worst, and the sum
        # against the norm, 1.4e-2 at worst, for rounding errors of neighbours are alike.
        entry = norm / np.sqrt(ours[name].size)
        np.testing.assert_allclose(ours[name].ravel()[:8], first[: ours[name].size], atol=2e-2 * entry, err_msg=name)
        np.testing.assert_allclose(ours[name].sum(dtype=np.float64), total, atol=0.1 * norm, err_msg=name)
