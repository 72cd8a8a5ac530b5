"""Detections in bfloat16 against float32, with whole networks of the reference implementations.

The weights are random: hundreds of anchors have nearly the same score, and rounding decides which of them are proposed.
Even rounding the parameters alone, and computing in float32, keeps only 33 or 34 of 40 detections. Hence both networks
use the same proposals here; `test_learning.py` compares trained networks from the image on. Detectron2's R50-FPN is not
tested: 37 of 40 detections agree, and two of the others fall out of the best twenty.
"""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
from support import detectron2_config
from support.golden_models import run_once, share_found
from support.torchvision_settings import NAMES, configured

from mrcnn_jax.config import presets
from mrcnn_jax.inference.detect import boxes_of_proposals
from mrcnn_jax.models.mask_rcnn import build_model, propose
from mrcnn_jax.weights import detectron2_names, torchvision_names
from mrcnn_jax.weights.naming import import_state

pytestmark = pytest.mark.optimized  # convolutions in bfloat16 are many times slower without


def detect_boxes(config, variables, images, sizes, proposals=None):
    """Boxes, scores, classes and validity of detections, and the proposals, which are computed if not given."""
    model = build_model(config)
    features = model.apply(variables, images, sizes, method=model.features)
    if proposals is None:
        outputs = model.apply(variables, features, images.shape[1:3], method=model.rpn)
        proposals = propose(config, outputs, sizes, train=False)
    found = boxes_of_proposals(model, variables, features, proposals, sizes)
    return (found.boxes, found.scores, found.classes, found.valid), proposals


def torchvision_case(golden, name):
    state = golden.recipe().state(json.loads(golden.file(f"tv_keys_{name}.json").read_text()))
    num_classes = len(state["roi_heads.box_predictor.cls_score.bias"]) - 1
    base = replace(presets.torchvision_model(NAMES[name]), num_classes=num_classes)
    config = configured(base, golden.file("README.md").read_text())
    return (
        config,
        import_state(torchvision_names.DETECTION, build_model(config), state),
        golden(f"tv_model_{name}_eval.npz"),
    )


def detectron2_case(golden, name):
    config = detectron2_config.read(golden.file(f"d2_cfg_{name}.yaml"))
    state = golden.recipe().state(json.loads(golden.file(f"d2_keys_{name}.json").read_text()))
    return (
        config,
        import_state(detectron2_names.DETECTION, build_model(config), state),
        golden(f"d2_model_{name}_eval.npz"),
    )


@pytest.mark.parametrize(
    ("load", "name"),
    [
        (torchvision_case, "maskrcnn"),
        (torchvision_case, "keypointrcnn"),
        (detectron2_case, "mask_rcnn_R_50_C4"),
    ],
)
def test_bfloat16_detects_the_same_boxes_as_float32(golden, load, name):
    config, variables, theirs = load(golden, name)
    images, sizes = theirs["batched"].transpose(0, 2, 3, 1), theirs["image_sizes"].astype(np.int32)
    wide, proposals = run_once(functools.partial(detect_boxes, config), variables, images, sizes)
    narrow_config = replace(config, compute_dtype="bfloat16")
    narrow, _ = run_once(functools.partial(detect_boxes, narrow_config), variables, images, sizes, proposals)
    found, count = share_found(wide, narrow)
    assert count > 20
    assert found >= 0.95 * count, f"{found} of {count}"
    assert not np.array_equal(wide[1], narrow[1]), "computed in float32"
