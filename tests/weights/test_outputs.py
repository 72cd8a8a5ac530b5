"""Which class or keypoint an output is of, and where other weights have the same one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mrcnn_jax.config import BoxHeadConfig, KeypointHeadConfig, MaskHeadConfig, ModelConfig
from mrcnn_jax.models.mask_rcnn import build_model
from mrcnn_jax.weights import naming
from mrcnn_jax.weights.outputs import CLASS_LAYERS, matched, outputs, source_of


def pairs(ours, theirs):
    return matched("classes", ours, theirs, len(ours), len(theirs)).pairs


def test_names_are_matched_wherever_they_are():
    assert pairs(("cat", "cow", "dog"), ("dog", "emu", "cat")) == {1: 3, 3: 1}
    assert pairs(("a", "b"), ("c", "d")) == {}


def test_spelling_makes_no_difference_where_it_is_not_needed():
    assert pairs(("Traffic-Light", "left_eye"), ("left eye", "traffic light")) == {1: 2, 2: 1}
    assert pairs(("cat", "CAT"), ("Cat", "cat")) == {1: 2}  # both could be Cat
    assert pairs(("cat",), ("Cat", "CAT")) == {}
    assert pairs(("c",), ("c++",)) == {}


def test_names_that_occur_twice_are_only_matched_as_a_whole():
    """torchvision calls ten of COCO's 90 N/A."""
    assert pairs(("N/A", "bed", "N/A"), ("N/A", "bed", "N/A")) == {1: 1, 2: 2, 3: 3}
    assert pairs(("bed", "N/A"), ("N/A", "bed", "N/A")) == {1: 2}
    assert pairs(("bed", "bed"), ("sofa", "bed")) == {1: 2, 2: 2}


def test_position_decides_where_a_side_has_no_names():
    assert matched("classes", (), ("a", "b"), 2, 2) == (
        {1: 1, 2: 2},
        "the model does not name its classes; there are 2: each keeps its place",
    )
    assert matched("classes", ("a", "b"), (), 2, 3) == (
        {},
        "the weights do not name their classes; there are 3, not 2: all begin anew",
    )


def test_all_that_happens_is_described():
    found = matched("classes", ("cat", "Dog", "cow", "emu"), ("cat", "ape", "dog"), 4, 3)
    assert found.description == (
        "classes by name: 1 keep their place: cat; 1 come from another place: Dog as dog (3 to 2);"
        " 2 begin anew: cow, emu; 1 of the weights are left out: ape"
    )


def model(classes, **heads):
    return ModelConfig(num_classes=classes, **heads)


def moved(ours, theirs, layer, same):
    """What the outputs of a layer begin with, when those of the other weights are 100, 101, ..."""
    places = source_of(outputs(ours, layer), outputs(theirs, layer), same)
    values = 100 + np.arange(len(outputs(theirs, layer)))
    return np.where(places >= 0, values[places], 0).tolist()


def test_rows_of_the_box_head():
    """Background first among the scores; four deltas for each class."""
    ours, theirs, same = model(2), model(3), {2: 3}
    assert moved(ours, theirs, "box_head/logits", same) == [100, 0, 103]
    assert moved(ours, theirs, "box_head/deltas", same) == [0, 0, 0, 0, 108, 109, 110, 111]
    assert moved(ours, theirs, "box_head/logits", {}) == [0, 0, 0]


def test_a_class_agnostic_layer_serves_each_class():
    agnostic = model(3, box=BoxHeadConfig(class_agnostic=True), mask=MaskHeadConfig(class_agnostic=True))
    assert moved(model(2), agnostic, "box_head/deltas", {}) == [100, 101, 102, 103] * 2
    assert moved(model(2), agnostic, "mask_head/logits", {1: 3}) == [100, 100]
    assert moved(agnostic, agnostic, "mask_head/logits", {}) == [100]
    assert moved(agnostic, model(3), "mask_head/logits", {1: 1, 2: 2, 3: 3}) == [0]


def test_rows_of_the_mask_head():
    """Competing masks have the background first; a perceptron has all masks of one cell, then those of the next."""
    competing = MaskHeadConfig(activation="softmax")
    assert moved(model(2), model(3), "mask_head/logits", {1: 3, 2: 1}) == [102, 100]
    assert moved(model(2, mask=competing), model(3, mask=competing), "mask_head/logits", {1: 3}) == [100, 103, 0]
    assert moved(model(2), model(3, mask=competing), "mask_head/logits", {1: 3, 2: 1}) == [0, 0]
    assert moved(model(2, mask=competing), model(2), "mask_head/logits", {1: 2}) == [0, 0, 0]
    perceptron = MaskHeadConfig(fc_layers=2, pool_size=1)
    ours, theirs = model(2, mask=perceptron), model(3, mask=perceptron)
    assert moved(ours, theirs, "mask_head/logits", {1: 3, 2: 1}) == [102, 100, 105, 103, 108, 106, 111, 109]


def test_keypoints_are_matched_too():
    ours, theirs = (model(1, keypoint=KeypointHeadConfig(num_keypoints=count)) for count in (2, 17))
    assert moved(ours, theirs, "keypoint_head/deconv", {1: 17}) == [116, 0]


@pytest.mark.medium
def test_layers_have_as_many_outputs(variant):
    config = variant("keypoints")
    mask = MaskHeadConfig(pool_size=2, fc_layers=1, hidden=4, activation="softmax")
    config = dataclasses.replace(config, mask=mask, box=dataclasses.replace(config.box, class_agnostic=True))
    shapes = naming.template(build_model(config))
    counts = {layer: len(outputs(config, layer)) for layer in CLASS_LAYERS}
    assert counts == {layer: shapes[("params", *layer.split("/"), "bias")][0] for layer in CLASS_LAYERS}
