"""The table of published weights: names, sizes, and the tensors of every model in it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest

from mrcnn_jax.config import BackboneConfig, ModelConfig, presets
from mrcnn_jax.errors import ConfigError
from mrcnn_jax.models.mask_rcnn import build_model
from mrcnn_jax.models.norms import make_norm
from mrcnn_jax.models.resnet import ResNet
from mrcnn_jax.weights import detectron2_names, torchvision_names, zoo
from mrcnn_jax.weights.naming import architecture_of, flat_shapes

Shapes = dict[str, list[int]]

DETECTORS = [entry for entry in zoo.ENTRIES if entry.is_detector]
# Group norm has no statistics, as batch norm that Detectron (2018) fused.
RESNET50, FUSED50 = BackboneConfig("resnet50", norm="bn"), BackboneConfig("resnet50", norm="gn")
BACKBONES = {
    "resnet18": replace(RESNET50, name="resnet18"),
    "resnet34": replace(RESNET50, name="resnet34"),
    "resnet50": RESNET50,
    "resnet101": replace(RESNET50, name="resnet101"),
    "resnext101_32x8d": replace(RESNET50, name="resnet101", groups=32, width_per_group=8),
    "resnext101_64x4d": replace(RESNET50, name="resnet101", groups=64, width_per_group=4),
    "R-50": RESNET50,
    "torchvision": RESNET50,
    "R-101": replace(RESNET50, name="resnet101"),
    "X-101-32x8d": replace(RESNET50, name="resnet101", groups=32, width_per_group=8),
    "Detectron": FUSED50,
    "R-50-GN": FUSED50,
    "R-101-GN": replace(FUSED50, name="resnet101"),
    "X-101-64x4d": replace(FUSED50, name="resnet101", groups=64, width_per_group=4),
}


def preset(entry: zoo.ZooEntry) -> ModelConfig:
    find = presets.torchvision_model if entry.source == "torchvision" else presets.detectron2_model
    return find(entry.name)


def shapes_of(model: ModelConfig) -> dict[tuple[str, ...], tuple[int, ...]]:
    """The shapes of all variables, computed once for models that differ only in other fields."""
    fields = {"backbone": replace(model.backbone, stride_in_1x1=False, frozen_stages=2)}
    for part, same in {
        "rpn": {"smooth_l1_beta": 0.0},
        "roi": {"aligned": True, "sampling_ratio": 0},
        "box": {"smooth_l1_beta": 0.0, "score_threshold": 0.05, "max_detections": 100},
    }.items():
        fields[part] = replace(getattr(model, part), **same)
    return _shapes(replace(model, category_ids=(), category_names=(), pixel_std=(1.0, 1.0, 1.0), **fields))


@cache
def _shapes(model: ModelConfig) -> dict[tuple[str, ...], tuple[int, ...]]:
    return flat_shapes(build_model(model))


@pytest.fixture(scope="module")
def published(golden) -> Callable[[zoo.ZooEntry, int], Shapes]:
    """published(entry, classes): names and shapes of the tensors of a published model.

    They are those of the key lists of torchvision and Detectron2, with fewer heads, more blocks or other classes.
    """

    def read(file: str) -> Shapes:
        return json.loads(golden.file(file).read_text())

    def torchvision(name: str) -> Shapes:
        shapes = read(f"tv_keys_{name.replace('faster', 'mask').replace('_resnet50_fpn', '').split('/')[0]}.json")
        return {key: shape for key, shape in shapes.items() if not (name.startswith("faster") and ".mask_" in key)}

    def detectron2(name: str, classes: int) -> Shapes:
        if "LSJ" in name or "syncbn" in name:
            shapes = read("modern/d2_keys_mask_rcnn_R_50_FPN_LSJ.json")
        else:
            like = "keypoint_rcnn_R_50_FPN" if name.startswith("keypoint") else "mask_rcnn_R_50_"
            like += (
                "" if name.startswith("keypoint") else re.search("C4|DC5|FPN", name)[0] + "_gn" * name.endswith("gn")
            )
            shapes = read(f"d2_keys_{like}.json")
        if "syncbn" in name:  # one convolution in the RPN
            shapes = {key.replace(".conv.conv0.", ".conv."): shape for key, shape in shapes.items()}
            shapes = {key: shape for key, shape in shapes.items() if ".conv.conv1." not in key}
        if name.startswith("faster"):
            shapes = {key: shape for key, shape in shapes.items() if ".mask_head." not in key}
        if "R_101" in name:  # 23 blocks in res4 instead of 6
            last = {key: shape for key, shape in shapes.items() if ".res4.5." in key}
            shapes |= {key.replace(".5.", f".{i}."): shape for i in range(6, 23) for key, shape in last.items()}
        if "X_101" in name:
            wide = read("d2_keys_mask_rcnn_X_101_32x8d_FPN.json").items()
            shapes |= {key: shape for key, shape in wide if ".bottom_up." in key}
        outputs = {".cls_score.": classes + 1, ".bbox_pred.": 4 * classes, ".mask_head.predictor.": classes}
        for layer, count in outputs.items():
            shapes |= {key: [count, *shape[1:]] for key, shape in shapes.items() if layer in key}
        return shapes

    def find(entry: zoo.ZooEntry, classes: int) -> Shapes:
        name = entry.name.split("/")[-1]
        shapes = torchvision(entry.name) if entry.source == "torchvision" else detectron2(name, classes)
        return {key: shape for key, shape in shapes.items() if not key.endswith("num_batches_tracked")}

    return find


@pytest.mark.medium
@pytest.mark.parametrize("entry", DETECTORS, ids=lambda entry: entry.name)
def test_preset_has_the_published_tensors(published, entry):
    """Their names and the number of values, and so the size of the file."""
    model = preset(entry)
    assert (model.mask is not None, model.keypoint is not None) == (
        entry.mask_ap is not None,
        entry.keypoint_ap is not None,
    )
    shapes, theirs = shapes_of(model), published(entry, model.num_classes)
    naming = torchvision_names.DETECTION if entry.source == "torchvision" else detectron2_names.DETECTION
    assert set(naming.names(shapes, architecture_of(shapes)).values()) == set(theirs)
    background = 0
    if entry.source == "torchvision":  # has deltas and a mask of the background
        background = 4 * (1024 + 1) + (256 + 1) * (model.mask is not None)
    count = sum(map(math.prod, theirs.values()))
    assert sum(map(math.prod, shapes.values())) + background == count
    assert entry.megabytes == pytest.approx(4e-6 * count, rel=0.01)


@pytest.mark.medium
@pytest.mark.parametrize("entry", [entry for entry in zoo.ENTRIES if not entry.is_detector], ids=lambda e: e.name)
def test_size_of_classifiers(entry):
    config = BACKBONES.get(entry.name) or BACKBONES[entry.name.split("/")[0]]
    assert entry.megabytes == pytest.approx(4e-6 * classifier_size(config), rel=0.01)


@cache
def classifier_size(config: BackboneConfig) -> int:
    """The number of parameters and statistics, with those of the layer for 1000 classes."""
    network = ResNet(config, make_norm(config.norm))
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    outputs, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), images)
    return sum(leaf.size for leaf in jax.tree.leaves(variables)) + 1000 * (outputs[-1].shape[-1] + 1)


def test_names_and_addresses_are_unique():
    names = [entry.name for entry in zoo.ENTRIES] + [name for names in zoo.OUT_OF_SCOPE.values() for name in names]
    assert len(set(names)) == len(names)
    assert len({entry.url for entry in zoo.ENTRIES}) == len(zoo.ENTRIES)


@pytest.mark.parametrize("entry", zoo.ENTRIES, ids=lambda entry: entry.name)
def test_addresses_contain_the_hash(entry):
    assert entry.source in zoo.LICENSES
    file = entry.url.rpartition("/")[2]
    if entry.source == "torchvision":
        assert re.fullmatch(rf"\w+-{entry.hash_prefix}\.pth", file)
        assert re.fullmatch("[0-9a-f]{8}", entry.hash_prefix)
    elif entry.is_detector:
        assert f"/{entry.name}/" in entry.url
        assert re.fullmatch("[0-9a-f]{6}", entry.hash_prefix)
        assert file == f"model_final_{entry.hash_prefix}.pkl"
    else:
        assert entry.hash_prefix == ""


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("R-50", "R-50"),  # rather than torchvision/R-50 and Detectron/R-50
        ("keypointrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn"),
        ("COCO_LEGACY", "keypointrcnn_resnet50_fpn/COCO_LEGACY"),
        ("resnet18", "resnet18/IMAGENET1K_V1"),
        ("mask_rcnn_R_50_FPN_3x", "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x"),
        ("keypoint_rcnn_R_101_FPN", "COCO-Keypoints/keypoint_rcnn_R_101_FPN_3x"),
        ("Cityscapes/mask_rcnn_R_50_FPN.yaml", "Cityscapes/mask_rcnn_R_50_FPN"),
    ],
)
def test_find(text, name):
    assert zoo.find(text).name == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mask_rcnn_R_50_FPN_1x", "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x, LVISv0.5-"),
        ("mask_rcnn_R_50_FPN", r"_1x, COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x, LVIS.*, Cityscapes/"),
        ("resnet50", "give one of resnet50/IMAGENET1K_V1, resnet50/IMAGENET1K_V2$"),
        ("maskrcnn_resnet50", "^there are no .*'maskrcnn_resnet50'; the nearest names are maskrcnn_resnet50_fpn, "),
        ("mask_rcnn_R_50", "nearest names are .*mask_rcnn_R_50_C4"),
        ("yolov8", "^there are no published weights 'yolov8'; `mrcnn weights list` shows all names$"),
        ("mask_rcnn_vitdet_b", "mask_rcnn_vitdet_b needs a vision transformer, which mrcnn_jax does not have"),
        ("Misc/mask_rcnn_R_50_FPN_3x_dconv_c3-c5", "needs deformable convolutions"),
    ],
)
def test_messages_for_other_names(text, message):
    with pytest.raises(ConfigError, match=message):
        zoo.find(text)
