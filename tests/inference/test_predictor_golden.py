"""`Predictor` against torchvision and Detectron2, from uint8 images and state dicts with their names.

The reference arrays are of batches, whose images share one padded shape. So every image is tested in that shape, and
through the Predictor only those whose own padded shape it is.
"""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from support import detectron2_config
from support.golden_models import LOGITS, assert_same_detections, assert_same_keypoints, assert_same_pasted
from support.torchvision_settings import NAMES, configured, stated

from mrcnn_jax.inference import detector, reference_preprocessing
from mrcnn_jax.inference.postprocess import postprocess
from mrcnn_jax.inference.predictor import Predictor
from mrcnn_jax.weights import reference_models

pytestmark = pytest.mark.medium


def slow(*names):
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


def load(golden, origin, name, file_name):
    """Configuration and variables from generated weights, loaded through the public function."""
    state = golden.recipe().state(json.loads(golden.file(file_name).read_text()))
    return reference_models.load(state, origin, name)


@pytest.fixture(scope="module", params=slow("maskrcnn", "maskrcnn_v2", "keypointrcnn"))
def torchvision_case(request, golden):
    """torchvision's arrays, and our configuration and variables with the settings of that run."""
    theirs, inputs = golden(f"tv_model_{request.param}_eval.npz"), golden("tv_model_inputs.npz")
    readme = golden.file("README.md").read_text()
    config, variables = load(golden, "torchvision", NAMES[request.param], f"tv_keys_{request.param}.json")
    edges = {"shortest_edge_eval": int(stated(readme, "min_size")), "longest_edge": int(stated(readme, "max_size"))}
    return SimpleNamespace(
        config=replace(config, model=configured(config.model, readme), data=replace(config.data, **edges)),
        variables=variables,
        theirs=theirs,
        images=[inputs[f"img_u8_{i}"].transpose(1, 2, 0) for i in range(len(theirs["image_sizes"]))],
    )


@pytest.fixture(scope="module", params=["mask_rcnn_R_50_FPN", *slow("mask_rcnn_R_50_C4", "keypoint_rcnn_R_50_FPN")])
def detectron2_case(request, golden):
    """The same for Detectron2, whose images were not resized."""
    theirs, inputs = golden(f"d2_model_{request.param}_eval.npz"), golden("d2_model_inputs.npz")
    settings = detectron2_config.read(golden.file(f"d2_cfg_{request.param}.yaml"))
    config, variables = load(golden, "detectron2", request.param, f"d2_keys_{request.param}.json")
    return SimpleNamespace(
        config=replace(config, model=replace(config.model, rpn=settings.rpn, box=settings.box)),
        variables=variables,
        theirs=theirs,
        images=[inputs[f"img_u8_bgr{i}"].transpose(1, 2, 0)[..., ::-1] for i in range(len(theirs["image_sizes"]))],
    )


def padded(array, shape):
    """Pad an image to the larger shape of a batch."""
    return np.pad(array, [(0, new - old) for new, old in zip(shape, array.shape, strict=False)] + [(0, 0)])


def detections_in_batch_shape(config, variables, images, shape, sizes):
    """Yield the detections of each image, NumPy, in the padded shape of the reference batch, and its size."""
    detect = detector.compile_detect(config.model, variables)
    for image, expected in zip(images, sizes.tolist(), strict=True):
        array, size = reference_preprocessing.network_input(image, config)
        assert list(size) == expected
        found = detect(padded(array, shape)[None], np.array([size], np.int32))
        yield jax.tree.map(lambda field: np.asarray(field)[0], found), size


def assert_same_prediction(prediction, theirs, i):
    """Boxes, scores, labels, masks and keypoints in the coordinates of the original image. `theirs` counts from 1."""
    classes = theirs[f"det{i}_labels"]
    order = assert_same_detections(
        (prediction.boxes, prediction.scores, prediction.labels),
        (theirs[f"det{i}_boxes"], theirs[f"det{i}_scores"], classes),
    )
    packed = theirs.get(f"det{i}_masks_ge_half_packed", theirs.get(f"det{i}_masks_packed"))
    if packed is not None:
        assert_same_pasted(prediction.masks[order], packed)
    if f"det{i}_keypoints" in theirs:
        expected = np.array(theirs[f"det{i}_keypoints"])
        if f"det{i}_keypoints_scores" in theirs:  # torchvision's third column is always 1
            expected[..., 2] = theirs[f"det{i}_keypoints_scores"]
        sides = theirs[f"net_det{i}_boxes"][:, 2:] - theirs[f"net_det{i}_boxes"][:, :2]
        ratio = np.divide(prediction.image_size[::-1], theirs["image_sizes"][i][::-1]).max()
        cell = ratio * (sides / np.ceil(sides)).max(1)
        assert_same_keypoints(prediction.keypoints[order], expected, LOGITS * np.abs(expected[..., 2]).max(), cell)


def own_shape(image, config, shape):
    return reference_preprocessing.network_input(image, config)[0].shape[:2] == tuple(shape)


def test_golden_torchvision_from_uint8(torchvision_case):
    case, shape = torchvision_case, torchvision_case.theirs["batched"].shape[2:]
    runs = detections_in_batch_shape(case.config, case.variables, case.images, shape, case.theirs["image_sizes"])
    for i, (found, size) in enumerate(runs):
        prediction = postprocess(found, size, case.images[i].shape[:2], case.config.model)
        assert_same_prediction(prediction, case.theirs, i)


def test_golden_torchvision_predictor(torchvision_case):
    case, shape = torchvision_case, torchvision_case.theirs["batched"].shape[2:]
    chosen = [i for i, image in enumerate(case.images) if own_shape(image, case.config, shape)]
    if not chosen:
        pytest.skip("no image alone has the shape of this batch")
    found = Predictor(case.config, case.variables)([case.images[i] for i in chosen])
    for i, prediction in zip(chosen, found, strict=True):
        assert_same_prediction(prediction, case.theirs, i)


def unresized(config, image):
    """Return `config` with edges that do not resize `image`."""
    edges = {"shortest_edge_eval": min(image.shape[:2]), "longest_edge": max(image.shape[:2])}
    return replace(config, data=replace(config.data, **edges))


def from_one(theirs, i):
    """Return `theirs` with labels counted from 1."""
    return {**theirs, f"det{i}_labels": theirs[f"det{i}_labels"] + 1}


def test_golden_detectron2_from_uint8(detectron2_case):
    case, shape = detectron2_case, detectron2_case.theirs["batched"].shape[2:]
    for i, image in enumerate(case.images):
        config, sizes = unresized(case.config, image), case.theirs["image_sizes"][i : i + 1]
        [(found, size)] = detections_in_batch_shape(config, case.variables, [image], shape, sizes)
        prediction = postprocess(found, size, tuple(case.theirs["out_hw"][i].tolist()), config.model)
        assert_same_prediction(prediction, from_one(case.theirs, i), i)


def test_golden_detectron2_predictor(detectron2_case):
    case, shape = detectron2_case, detectron2_case.theirs["batched"].shape[2:]
    tried = 0
    for i, image in enumerate(case.images):
        config = unresized(case.config, image)
        if own_shape(image, config, shape) and case.theirs["out_hw"][i].tolist() == list(image.shape[:2]):
            [prediction] = Predictor(config, case.variables)([image])
            assert_same_prediction(prediction, from_one(case.theirs, i), i)
            tried += 1
    if not tried:
        pytest.skip("no image alone has the shape of this batch")
