"""Whole networks against Detectron2: intermediate maps, detections, losses and the gradient of every parameter."""

from __future__ import annotations

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from support import detectron2_config
from support.golden_models import (
    BATCH_LOSSES,
    FEATURES,
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

from mrcnn_jax import targets
from mrcnn_jax.inference.postprocess import postprocess
from mrcnn_jax.models.mask_rcnn import build_model, normalize
from mrcnn_jax.weights import detectron2_names, naming

# test_predictor_golden.py has a faster test, of one network from image to detections.
pytestmark = pytest.mark.slow

LSJ = "modern/mask_rcnn_R_50_FPN_LSJ"
MODELS = [
    "mask_rcnn_R_50_C4",
    "keypoint_rcnn_R_50_FPN",
    "mask_rcnn_R_50_FPN",
    "mask_rcnn_R_50_FPN_gn",
    "mask_rcnn_R_50_FPN_cls_agnostic",
    LSJ,
    "mask_rcnn_R_50_DC5",
    "mask_rcnn_R_101_FPN",
    "mask_rcnn_X_101_32x8d_FPN",
]
# Networks that differ from R_50_FPN in their backbone, or in the map that the heads read; both are compared.
OTHER_BACKBONES = ("mask_rcnn_R_101_FPN", "mask_rcnn_X_101_32x8d_FPN", "mask_rcnn_R_50_DC5")
LOSS_NAMES = {
    "loss_class": "loss/loss_cls",
    "loss_box": "loss/loss_box_reg",
    "loss_mask": "loss/loss_mask",
    "loss_keypoint": "loss/loss_keypoint",
    "loss_rpn_class": "loss/loss_rpn_cls",
    "loss_rpn_box": "loss/loss_rpn_loc",
}


@pytest.fixture(scope="module", params=MODELS)
def case(request, golden):
    """A network and the arrays that Detectron2 computed with it."""
    *folder, name = request.param.split("/")
    arrays = type(golden)(golden.path.joinpath(*folder))
    evaluation = arrays(f"d2_model_{name}_eval.npz")
    config = detectron2_config.read(arrays.file(f"d2_cfg_{name}.{'json' if folder else 'yaml'}"))
    state = golden.recipe().state(json.loads(arrays.file(f"d2_keys_{name}.json").read_text()))
    model = build_model(config)
    network = Network(model, config, naming.import_state(detectron2_names.DETECTION, model, state))
    inputs = golden("d2_model_inputs.npz")
    return SimpleNamespace(name=name, network=network, evaluation=evaluation, inputs=inputs, arrays=arrays)


@pytest.fixture(scope="module")
def run(case):
    theirs = case.evaluation
    proposals = [theirs[f"proposals{i}"] for i in range(len(theirs["image_sizes"]))]
    return trace(case.network, theirs["batched"].transpose(0, 2, 3, 1), theirs["image_sizes"], proposals)


def test_golden_normalization(case):
    """The network inputs of Detectron2, which reads BGR files, equal ours from the same images in RGB."""
    theirs, sizes = case.evaluation["batched"].transpose(0, 2, 3, 1), case.evaluation["image_sizes"]
    padded = np.zeros(theirs.shape, np.uint8)
    for i, (height, width) in enumerate(sizes):
        padded[i, :height, :width] = case.inputs[f"img_u8_bgr{i}"].transpose(1, 2, 0)[..., ::-1]
    ours = normalize(case.network.config, jnp.asarray(padded), jnp.asarray(sizes))
    # Pixels up to 255, less their mean: half a unit in the last place of 255 each way, over the deviation.
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=2e-5)


def test_golden_maps_and_rpn(case, run):
    theirs = case.evaluation
    last = 1 + len(run.stem_and_stages)
    for number, stage in enumerate(run.stem_and_stages, start=2):
        if f"body_res{number}/shape" in theirs:
            assert_same_map(stage, theirs, f"body_res{number}")
    assert f"body_res{last}/shape" in theirs
    if len(run.features) > 1:
        for level, features in enumerate(run.features, start=2):
            assert_same_map(features, theirs, f"fpn_p{level}")
    assert max_relative(run.logits, theirs["rpn_objectness"]) < RPN
    assert max_relative(run.deltas, theirs["rpn_deltas"]) < RPN


def test_golden_proposals_and_box_head(case, run):
    theirs = case.evaluation
    counts = [len(theirs[f"proposals{i}"]) for i in range(len(theirs["image_sizes"]))]
    ends = np.cumsum(counts)[:-1]
    logits = np.roll(theirs["class_logits"], 1, axis=1)  # Detectron2 has the background last
    deltas = theirs["box_regression"].reshape(len(logits), -1, 4)
    for i, (own_logits, own_deltas) in enumerate(zip(np.split(logits, ends), np.split(deltas, ends), strict=True)):
        valid, boxes, scores = run.proposals.valid[i], run.proposals.boxes[i], run.proposals.scores[i]
        bound = RPN * np.abs(theirs["rpn_objectness"]).max()
        names = f"proposals{i}", f"proposal_logits{i}"
        assert_same_proposals(boxes[valid], scores[valid], *(theirs[name] for name in names), bound)
        assert_same_box_head(run, i, own_logits, own_deltas)


def test_golden_detections(case, run):
    theirs, found = case.evaluation, run.detections
    assert not found.truncated.any()
    for i, (size, original) in enumerate(zip(theirs["image_sizes"], theirs["out_hw"], strict=True)):
        valid = found.valid[i]
        order = assert_same_detections(
            (found.boxes[i][valid], found.scores[i][valid], found.classes[i][valid] - 1),
            (theirs[f"net_det{i}_boxes"], theirs[f"net_det{i}_scores"], theirs[f"net_det{i}_labels"]),
        )
        one = jax.tree.map(lambda field, i=i: field[i], found)
        prediction = postprocess(one, size, tuple(map(int, original)), case.network.config)
        assert_same_detections(
            (prediction.boxes, prediction.scores, prediction.labels - 1),
            (theirs[f"det{i}_boxes"], theirs[f"det{i}_scores"], theirs[f"det{i}_labels"]),
        )
        if case.network.config.mask is not None:
            assert max_relative(found.masks[i][valid][order], theirs[f"net_det{i}_masks"][:, 0]) < PROBABILITIES
            assert_same_pasted(prediction.masks[order], theirs[f"det{i}_masks_packed"])
        else:
            sides = theirs[f"net_det{i}_boxes"][:, 2:] - theirs[f"net_det{i}_boxes"][:, :2]
            keypoints = found.keypoints[i][valid][order]
            # A probability is at most 1; logits near 10 with 6e-5 of error move it by as much.
            assert_same_keypoints(keypoints, theirs[f"net_det{i}_keypoints"], 1e-4, (sides / np.ceil(sides)).max(1))
            scale = np.asarray(original) / size
            moved = theirs[f"det{i}_keypoints"]
            cells = (sides / np.ceil(sides)).max(1) * scale.max()
            assert_same_keypoints(prediction.keypoints[order], moved, 1e-4, cells)


# Networks and their training arrays. Heads and losses of the other backbones are those of R_50_FPN.
TRAINED = [(name, "train") for name in MODELS if name not in OTHER_BACKBONES] + [(LSJ, "train_bneval")]


@pytest.fixture(scope="module")
def training_run(case, request):
    """Losses and gradients, with mask targets rasterized from polygons like Detectron2's.

    "train_bneval" has running statistics in batch norms.
    """
    of_batch = request.param == "train"
    theirs = case.arrays(f"d2_model_{case.name}_{request.param}.npz")
    images, sizes = case.evaluation["batched"].transpose(0, 2, 3, 1), case.evaluation["image_sizes"]
    polygons = [polygons_of(case.inputs, i) for i in range(len(sizes))]
    slots = max(map(len, polygons))
    truths = []
    for i in range(len(sizes)):
        classes = case.inputs[f"gt_classes{i}"] + 1
        if case.network.config.keypoint is not None:
            classes = np.ones_like(classes)  # all are persons
        truth = padded_truth(case.inputs[f"gt_boxes{i}"], classes, case.inputs[f"gt_keypoints{i}"], slots)
        # Mask windows, which are not used otherwise unless they are empty, hold the index of the image.
        truths.append(truth._replace(mask_windows=np.tile(np.float32([i, i, i + 1, i + 1]), (slots, 1))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets, "mask_targets", exact_mask_targets(polygons))
        num_classes = case.network.config.num_classes
        positives = max(np.sum(theirs[f"sampled_classes{i}"] < num_classes) for i in range(len(sizes)))
        batch = make_batch(images.shape[1:3], sizes, truths)
        run = losses_and_gradients(case.network, images, batch, positives=int(positives), batch_statistics=of_batch)
    return theirs, *run


def polygons_of(inputs, i) -> list[list[np.ndarray]]:
    """The polygons of each instance of image i."""
    parts = np.split(inputs[f"poly_flat{i}"], np.cumsum(inputs[f"poly_len{i}"])[:-1])
    ends = np.cumsum(inputs[f"poly_count{i}"])
    return [list(parts[start:end]) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def exact_mask_targets(polygons):
    """A replacement of `targets.mask_targets` that rasterizes the polygons in each RoI, on the host.

    Training resamples a raster of the instance instead, which differs at the outline.
    """

    def rasterize(rois, truth, config, size):
        shape = jax.ShapeDtypeStruct((*rois.matches.shape, size, size), np.float32)

        def on_host(boxes, classes, matches, image):
            goals = np.zeros(shape.shape, np.float32)
            for row in np.flatnonzero(np.asarray(classes) > 0):
                instance = polygons[int(image)][int(matches[row])]
                goals[row] = rasterized(instance, np.asarray(boxes[row]), size)
            return goals

        image = truth.mask_windows[0, 0]
        return jax.pure_callback(
            on_host, shape, rois.boxes, rois.classes, rois.matches, image, vmap_method="sequential"
        )

    return rasterize


def rasterized(instance, box, size) -> np.ndarray:
    low, sides = box[:2], np.maximum(box[2:] - box[:2], 0.1)
    moved = [((p.reshape(-1, 2) - low) * (size / sides)).ravel().tolist() for p in instance]
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(moved, size, size)))


@pytest.mark.parametrize(("case", "training_run"), TRAINED, indirect=True)
def test_golden_losses(case, training_run):
    theirs, _, parts, rois, _ = training_run
    classes = np.concatenate([theirs[f"sampled_classes{i}"] for i in range(len(case.evaluation["image_sizes"]))])
    assert np.sum(rois.valid) == len(classes)
    assert np.sum(rois.classes > 0) == np.sum(classes < case.network.config.num_classes)
    assert len(parts) == sum(name.startswith("loss/") for name in theirs)
    bound = BATCH_LOSSES if "bn_names" in theirs else LOSSES
    for ours, value in parts.items():
        np.testing.assert_allclose(value, theirs[LOSS_NAMES[ours]], rtol=bound, err_msg=ours)


@pytest.mark.parametrize(("case", "training_run"), TRAINED, indirect=True)
def test_golden_gradients_and_running_statistics(case, training_run):
    """The arrays of networks with statistics of the batch have the running ones after one step."""
    theirs, gradients, _, _, statistics = training_run
    assert_same_gradients(detectron2_names.export_state({"params": gradients}), theirs)
    if "bn_names" not in theirs:
        return
    variables = {**case.network.variables, **jax.tree.map(np.asarray, statistics)}
    state = detectron2_names.export_state(variables)
    for name, total, first in zip(*(theirs[key] for key in ("bn_names", "bn_sum", "bn_first8")), strict=True):
        np.testing.assert_allclose(state[name].sum(dtype=np.float64), total, rtol=FEATURES, atol=1e-5, err_msg=name)
        assert max_relative(state[name][:8], first) < FEATURES, name
