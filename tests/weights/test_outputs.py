"""Correspondence of head outputs: names of classes and keypoints, and the outputs of each layer."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mrcnn_jax.config import BoxHeadConfig, KeypointHeadConfig, MaskHeadConfig, ModelConfig
from mrcnn_jax.models.mask_rcnn import build_model
from mrcnn_jax.weights import naming
from mrcnn_jax.weights.outputs import CLASS_LAYERS, layer_outputs, match_names, source_indices


def pairs(ours, theirs):
    return match_names("classes", ours, theirs, len(ours), len(theirs))[0]


def test_names_are_matched_at_any_index():
    assert pairs(("cat", "cow", "dog"), ("dog", "emu", "cat")) == {1: 3, 3: 1}
    assert pairs(("a", "b"), ("c", "d")) == {}


def test_spelling_is_ignored_unless_names_become_ambiguous():
    assert pairs(("Traffic-Light", "left_eye"), ("left eye", "traffic light")) == {1: 2, 2: 1}
    assert pairs(("cat", "CAT"), ("Cat", "cat")) == {1: 2}  # both could be Cat
    assert pairs(("cat",), ("Cat", "CAT")) == {}
    assert pairs(("c",), ("c++",)) == {}


def test_duplicate_names_are_matched_only_if_all_names_are_equal():
    """torchvision calls ten of COCO's 90 N/A."""
    assert pairs(("N/A", "bed", "N/A"), ("N/A", "bed", "N/A")) == {1: 1, 2: 2, 3: 3}
    assert pairs(("bed", "N/A"), ("N/A", "bed", "N/A")) == {1: 2}
    assert pairs(("bed", "bed"), ("sofa", "bed")) == {1: 2, 2: 2}


def test_matched_by_index_without_names():
    assert match_names("classes", (), ("a", "b"), 2, 2) == (
        {1: 1, 2: 2},
        "the model does not name its classes; both have 2: matched by index",
    )
    assert match_names("classes", ("a", "b"), (), 2, 3) == (
        {},
        "the weights do not name their classes; the weights have 3, the model has 2: none is matched",
    )


def test_description():
    _, description = match_names("classes", ("cat", "Dog", "cow", "emu"), ("cat", "ape", "dog"), 4, 3)
    assert description == (
        "classes matched by name: 1 with the same index: cat; 1 with another index: Dog as dog (3 to 2);"
        " 2 not in the weights: cow, emu; 1 not in the model: ape"
    )


def model(classes, **heads):
    return ModelConfig(num_classes=classes, **heads)


def transferred(target, source, layer, pairs):
    """The outputs of a layer, when those of the source are 100, 101, ...; 0 for outputs without a source."""
    indices = source_indices(layer_outputs(target, layer), layer_outputs(source, layer), pairs)
    values = 100 + np.arange(len(layer_outputs(source, layer)))
    return np.where(indices >= 0, values[indices], 0).tolist()


def test_rows_of_the_box_head():
    """The background is the first score; each class has four deltas."""
    ours, theirs, same = model(2), model(3), {2: 3}
    assert transferred(ours, theirs, "box_head/logits", same) == [100, 0, 103]
    assert transferred(ours, theirs, "box_head/deltas", same) == [0, 0, 0, 0, 108, 109, 110, 111]
    assert transferred(ours, theirs, "box_head/logits", {}) == [0, 0, 0]


def test_a_class_agnostic_layer_serves_each_class():
    agnostic = model(3, box=BoxHeadConfig(class_agnostic=True), mask=MaskHeadConfig(class_agnostic=True))
    assert transferred(model(2), agnostic, "box_head/deltas", {}) == [100, 101, 102, 103] * 2
    assert transferred(model(2), agnostic, "mask_head/logits", {1: 3}) == [100, 100]
    assert transferred(agnostic, agnostic, "mask_head/logits", {}) == [100]
    assert transferred(agnostic, model(3), "mask_head/logits", {1: 1, 2: 2, 3: 3}) == [0]


def test_rows_of_the_mask_head():
    """Softmax masks have the background first; a fully connected head orders its outputs by cell, then by class."""
    softmax = MaskHeadConfig(activation="softmax")
    assert transferred(model(2), model(3), "mask_head/logits", {1: 3, 2: 1}) == [102, 100]
    assert transferred(model(2, mask=softmax), model(3, mask=softmax), "mask_head/logits", {1: 3}) == [100, 103, 0]
    assert transferred(model(2), model(3, mask=softmax), "mask_head/logits", {1: 3, 2: 1}) == [0, 0]
    assert transferred(model(2, mask=softmax), model(2), "mask_head/logits", {1: 2}) == [0, 0, 0]
    fully_connected = MaskHeadConfig(fc_layers=2, pool_size=1)
    ours, theirs = model(2, mask=fully_connected), model(3, mask=fully_connected)
    assert transferred(ours, theirs, "mask_head/logits", {1: 3, 2: 1}) == [102, 100, 105, 103, 108, 106, 111, 109]


def test_keypoints():
    ours, theirs = (model(1, keypoint=KeypointHeadConfig(num_keypoints=count)) for count in (2, 17))
    assert transferred(ours, theirs, "keypoint_head/deconv", {1: 17}) == [116, 0]


@pytest.mark.medium
def test_number_of_outputs_equals_the_shape(variant):
    config = variant("keypoints")
    mask = MaskHeadConfig(pool_size=2, fc_layers=1, hidden=4, activation="softmax")
    config = dataclasses.replace(config, mask=mask, box=dataclasses.replace(config.box, class_agnostic=True))
    shapes = naming.flat_shapes(build_model(config))
    counts = {layer: len(layer_outputs(config, layer)) for layer in CLASS_LAYERS}
    assert counts == {layer: shapes[("params", *layer.split("/"), "bias")][0] for layer in CLASS_LAYERS}
