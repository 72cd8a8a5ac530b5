"""Models of torchvision and Detectron2 by name: configurations, parameter counts, unknown names."""

from __future__ import annotations

import dataclasses

import jax
import pytest
import yaml
from support import detectron2_config

from mrcnn_jax.config import ModelConfig, presets
from mrcnn_jax.errors import ConfigError
from mrcnn_jax.models.mask_rcnn import build_model, variable_shapes

pytestmark = pytest.mark.medium

# Fields that the reference runs changed, see the README of the golden arrays: fewer proposals, more positive RoIs.
CHANGED = {
    "rpn": (
        "batch_size",
        "pre_nms_top_k_train",
        "pre_nms_top_k_test",
        "post_nms_top_k_train",
        "post_nms_top_k_test",
    ),
    "roi": ("batch_size", "positive_fraction", "positive_iou"),
    "box": ("max_detections", "score_threshold"),
}


LVIS = "LVISv0.5-InstanceSegmentation/mask_rcnn_R_50_FPN_1x"


def count_parameters(config: ModelConfig) -> int:
    """Number of trainable and frozen parameters, without the constants of frozen batch norm and running statistics."""
    return sum(leaf.size for leaf in jax.tree.leaves(variable_shapes(build_model(config))["params"]))


def test_golden_configurations_of_detectron2(golden):
    """All fields are equal, except those in CHANGED."""
    files = sorted(golden.path.glob("d2_cfg_*.yaml"))
    if not files:
        pytest.skip(f"{golden.path} has no d2_cfg_*.yaml")
    for path in (*files, golden.file("modern/d2_cfg_mask_rcnn_R_50_FPN_LSJ.json")):
        expected = detectron2_config.read(path)
        actual = presets.detectron2_model(path.stem.removeprefix("d2_cfg_"))
        for part, names in CHANGED.items():
            changed = {name: getattr(getattr(expected, part), name) for name in names}
            actual = dataclasses.replace(actual, **{part: dataclasses.replace(getattr(actual, part), **changed)})
        assert dataclasses.asdict(actual) == dataclasses.asdict(expected), path.name


def test_fields_that_the_reference_runs_changed():
    """Have Detectron2's defaults and those of its base configurations."""
    for name, topk in {
        "mask_rcnn_R_50_FPN": (2000, 1000, 1000, 1000),
        "mask_rcnn_R_50_C4": (12_000, 6000, 2000, 1000),
        "faster_rcnn_R_101_DC5": (12_000, 6000, 2000, 1000),
        "keypoint_rcnn_R_50_FPN": (2000, 1000, 1500, 1000),
    }.items():
        model = presets.detectron2_model(name)
        rpn = model.rpn
        counts = (rpn.pre_nms_top_k_train, rpn.pre_nms_top_k_test, rpn.post_nms_top_k_train, rpn.post_nms_top_k_test)
        assert counts == topk
        assert (rpn.batch_size, rpn.positive_fraction) == (256, 0.5)
        assert (model.roi.batch_size, model.roi.positive_fraction, model.roi.positive_iou) == (512, 0.25, 0.5)
        assert (model.box.max_detections, model.box.score_threshold) == (100, 0.05)


# Counted in the reference implementations; torchvision has box deltas and a mask of the background, too.
BACKGROUND_DELTAS, BACKGROUND_MASK = 4 * (1024 + 1), 256 + 1


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("mask_rcnn_R_50_FPN", 44_343_216),
        ("mask_rcnn_R_50_C4", 35_909_612),
        ("mask_rcnn_R_50_DC5", 172_353_516),
        ("mask_rcnn_R_101_FPN", 63_283_120),
        ("mask_rcnn_X_101_32x8d_FPN", 107_427_760),
        ("keypoint_rcnn_R_50_FPN", 59_133_158),
        ("mask_rcnn_R_50_FPN_gn", 45_711_152),
    ],
)
def test_parameter_counts_of_detectron2(name, count):
    assert count_parameters(presets.detectron2_model(name)) == count


@pytest.mark.parametrize(
    ("name", "count", "background"),
    [
        ("maskrcnn_resnet50_fpn", 44_401_393, BACKGROUND_DELTAS + BACKGROUND_MASK),
        ("maskrcnn_resnet50_fpn_v2", 46_359_409, BACKGROUND_DELTAS + BACKGROUND_MASK),
        ("keypointrcnn_resnet50_fpn", 59_137_258, BACKGROUND_DELTAS),
    ],
)
def test_parameter_counts_of_torchvision(name, count, background):
    assert count_parameters(presets.torchvision_model(name)) + background == count


@pytest.mark.parametrize(
    ("mask", "boxes"),
    [
        ("maskrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn"),
        ("maskrcnn_resnet50_fpn_v2", "fasterrcnn_resnet50_fpn_v2"),
        ("mask_rcnn_R_101_C4", "faster_rcnn_R_101_C4"),
        ("mask_rcnn_X_101_32x8d_FPN", "faster_rcnn_X_101_32x8d_FPN"),
    ],
)
def test_faster_rcnn_differs_only_in_the_mask_head(mask, boxes):
    find = presets.torchvision_model if "resnet50" in mask else presets.detectron2_model
    assert find(mask).mask is not None
    assert find(boxes) == dataclasses.replace(find(mask), mask=None)


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x.yaml", "mask_rcnn_X_101_32x8d_FPN"),
        ("configs/COCO-Detection/faster_rcnn_R_50_DC5_1x", "faster_rcnn_R_50_DC5"),
        ("COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml", "keypoint_rcnn_R_50_FPN"),
        ("Misc/mask_rcnn_R_50_FPN_3x_gn.yaml", "mask_rcnn_R_50_FPN_gn"),
        ("new_baselines/mask_rcnn_R_101_FPN_200ep_LSJ", "mask_rcnn_R_101_FPN_LSJ"),
        ("mask_rcnn_R_50_FPN_1x_cls_agnostic", "mask_rcnn_R_50_FPN_cls_agnostic"),
    ],
)
def test_names_of_the_model_zoo(name, short):
    assert presets.detectron2_model(name) == presets.detectron2_model(short)


@pytest.mark.parametrize(
    ("name", "base", "first", "last", "box"),
    [
        ("Cityscapes/mask_rcnn_R_50_FPN", "mask_rcnn_R_50_FPN", (24, "person"), (33, "bicycle"), {}),
        ("PascalVOC-Detection/faster_rcnn_R_50_C4", "faster_rcnn_R_50_C4", (1, "aeroplane"), (20, "tvmonitor"), {}),
        *(
            (
                f"LVISv0.5-InstanceSegmentation/mask_rcnn_{backbone}_FPN_1x.yaml",
                f"mask_rcnn_{backbone}_FPN",
                *((1, "acorn"), (1230, "zucchini")),
                {"score_threshold": 0.0001, "max_detections": 300},
            )
            for backbone in ("R_50", "R_101", "X_101_32x8d")
        ),
    ],
)
def test_other_datasets_of_the_model_zoo(name, base, first, last, box):
    """The COCO model with the categories and thresholds of the configuration in Detectron2's folder."""
    model, base = presets.detectron2_model(name), presets.detectron2_model(base)
    categories = list(zip(model.category_ids, model.category_names, strict=True))
    assert (categories[0], categories[-1]) == (first, last)
    assert len({*model.category_ids}) == len({*model.category_names}) == model.num_classes
    assert model.num_classes == {"C": 8, "P": 20, "L": 1230}[name[0]]
    same = {name: getattr(model, name) for name in ("num_classes", "category_ids", "category_names")}
    assert model == dataclasses.replace(base, box=dataclasses.replace(base.box, **box), **same)


def test_categories_of_lvis_are_spelled_as_in_its_files():
    """Numbers and names from Detectron2's lvis_v0_5_categories.py, with the errors that later versions correct."""
    names = dict(enumerate(presets.detectron2_model(LVIS).category_names, 1))
    assert names[24] == "trash_can"
    assert names[46] == "Band_Aid"
    assert names[669] == "speaker_(stero_equipment)"
    assert names[708] == "monitor_(computer_equipment) computer_monitor"
    assert names[1217] == "blinder_(for_horses)"


@pytest.mark.parametrize(
    "name", ["mask_rcnn_R_50_FPN_noaug_1x", "faster_rcnn_R_50_FPN_noaug_1x", "keypoint_rcnn_R_50_FPN_1x"]
)
def test_comparisons_with_detectron(name):
    """Fields in configs/Detectron1-Comparisons: smooth L1 losses, and ROIAlign without shift with two samples."""
    model = presets.detectron2_model(f"Detectron1-Comparisons/{name}")
    assert (model.roi.aligned, model.roi.sampling_ratio) == (False, 2)
    assert (model.rpn.smooth_l1_beta, model.box.smooth_l1_beta) == (0.1111, 1.0)
    base = presets.detectron2_model(name.replace("_noaug", ""))
    assert (model.mask, model.keypoint, model.num_classes) == (base.mask, base.keypoint, base.num_classes)
    assert model.rpn.post_nms_top_k_train == (1500 if "keypoint" in name else 1000)


@pytest.mark.parametrize(
    ("name", "base", "stride_in_1x1", "std"),
    [
        ("scratch_mask_rcnn_R_50_FPN_3x_gn", "mask_rcnn_R_50_FPN_gn", False, (1.0, 1.0, 1.0)),
        ("scratch_mask_rcnn_R_50_FPN_9x_gn", "mask_rcnn_R_50_FPN_gn", False, (57.375, 57.12, 58.395)),
        ("scratch_mask_rcnn_R_50_FPN_9x_syncbn", "mask_rcnn_R_50_FPN_syncbn", False, (57.375, 57.12, 58.395)),
        ("mask_rcnn_R_50_FPN_400ep_LSJ", "mask_rcnn_R_50_FPN_syncbn", True, (1.0, 1.0, 1.0)),
    ],
)
def test_models_from_random_weights(name, base, stride_in_1x1, std):
    """Fields in configs/Misc/scratch_*.yaml and configs/new_baselines."""
    model, base = presets.detectron2_model(name), presets.detectron2_model(base)
    expected = dataclasses.replace(base.backbone, frozen_stages=0, stride_in_1x1=stride_in_1x1)
    assert (model.backbone, model.pixel_std) == (expected, std)
    assert (model.fpn, model.box, model.mask) == (base.fpn, base.box, base.mask)
    assert model.rpn.conv_layers == (2 if "LSJ" in name else 1)


def test_image_sizes_of_published_models():
    """MIN_SIZE_TEST and MAX_SIZE_TEST of configs/Cityscapes; Detectron2's default elsewhere."""
    for name, sizes in {"Cityscapes/mask_rcnn_R_50_FPN": (1024, 2048), LVIS: (800, 1333)}.items():
        config = presets.published(name, presets.detectron2_model(name))
        assert (config.data.shortest_edge_eval, config.data.longest_edge) == sizes
        assert config.model.num_classes in (8, 1230)


@pytest.mark.parametrize(
    ("find", "name", "known"),
    [
        (presets.torchvision_model, "maskrcnn_resnet101_fpn", "fasterrcnn_resnet50_fpn_v2"),
        (presets.torchvision_model, "mask_rcnn_R_50_FPN", "keypointrcnn_resnet50_fpn"),
        (presets.detectron2_model, "retinanet_R_50_FPN_1x", "mask_rcnn_R_50_DC5"),
        (presets.detectron2_model, "keypoint_rcnn_R_50_C4", "keypoint_rcnn_R_101_FPN"),
        (presets.detectron2_model, "mask_rcnn_R_50_FPN_9x", "mask_rcnn_R_50_FPN_syncbn"),
        (presets.detectron2_model, "LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x", "mask_rcnn_R_50_FPN_LSJ"),
        (presets.detectron2_model, "PascalVOC-Detection/mask_rcnn_R_50_FPN", "Cityscapes/mask_rcnn_R_50_FPN"),
    ],
)
def test_unknown_names(find, name, known):
    with pytest.raises(ConfigError, match=rf"unknown \w+ model '{name}'; .*\b{known}\b"):
        find(name)


def test_classes_are_those_of_the_published_weights():
    assert presets.torchvision_model("maskrcnn_resnet50_fpn").num_classes == 90
    assert presets.detectron2_model("faster_rcnn_R_101_FPN").num_classes == 80
    for model in (
        presets.torchvision_model("keypointrcnn_resnet50_fpn"),
        presets.detectron2_model("keypoint_rcnn_X_101_32x8d_FPN"),
    ):
        assert (model.num_classes, model.num_keypoints, model.mask) == (1, 17, None)


def test_golden_schedules_of_detectron2(golden):
    """`presets.coco` has the schedule and the data settings of the model zoo's configurations."""
    for path in sorted(golden.path.glob("d2_cfg_*.yaml")):
        expected = yaml.safe_load(path.read_text())
        solver, sizes = expected["SOLVER"], expected["INPUT"]
        schedule = {90_000: "1x", 270_000: "3x"}[solver["MAX_ITER"]]
        actual = presets.coco("any", presets.detectron2_model(path.stem.removeprefix("d2_cfg_")), schedule)
        assert (actual.train.steps, actual.train.batch_size) == (solver["MAX_ITER"], solver["IMS_PER_BATCH"])
        assert dataclasses.asdict(actual.optimizer) == {
            "name": "sgd",
            "learning_rate": solver["BASE_LR"],
            "momentum": solver["MOMENTUM"],
            "weight_decay": solver["WEIGHT_DECAY"],
            "schedule": "multistep",
            "milestones": tuple(solver["STEPS"]),
            "milestone_factor": solver["GAMMA"],
            "warmup_steps": solver["WARMUP_ITERS"],
            "warmup_factor": solver["WARMUP_FACTOR"],
            "clip_norm": None,
            "lr_multipliers": (),
        }
        assert actual.data.shortest_edge_train == tuple(sizes["MIN_SIZE_TRAIN"])
        assert (actual.data.shortest_edge_eval, actual.data.longest_edge) == (sizes["MIN_SIZE_TEST"], 1333)
        persons = expected["DATASETS"]["TRAIN"] == ["keypoints_coco_2017_train"]
        assert ("person_keypoints" in actual.data.train.annotations) == persons
        least = expected["MODEL"]["ROI_KEYPOINT_HEAD"]["MIN_KEYPOINTS_PER_IMAGE"]
        assert actual.data.min_keypoints == (least if persons else 0)
