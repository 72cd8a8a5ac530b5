"""Overrides, JSON format and validation of the configuration; all recipes load."""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Annotated, get_args, get_origin

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from mrcnn_jax.config import (
    BackboneConfig,
    Config,
    DataConfig,
    MaskHeadConfig,
    ModelConfig,
    OptimizerConfig,
    ShapesConfig,
    SplitConfig,
    TrainConfig,
    apply_overrides,
    from_json,
    load_config,
    needs_initial_weights,
    to_json,
    validate,
)
from mrcnn_jax.config.values import hints
from mrcnn_jax.errors import ConfigError

RECIPES = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.py"))


def override(*overrides: str) -> Config:
    return apply_overrides(Config(), overrides)


def scratch_config() -> Config:
    """A valid recipe that trains from random weights."""
    return Config(model=ModelConfig(backbone=BackboneConfig(norm="gn", frozen_stages=0)))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_loads_and_validates(path):
    config = load_config(path)
    if needs_initial_weights(config.model):
        config = apply_overrides(config, ["init=weights.npz"])
    validate(config)
    assert from_json(to_json(config)) == config


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_short_and_documented(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 45
    assert ast.get_docstring(ast.parse(text)), "no docstring"


def test_overrides_are_typed():
    config = override(
        "model.num_classes=3",
        "optimizer.learning_rate=1",
        "model.backbone.norm=gn",
        "model.anchors.rounded=true",
        "data.buckets=((64,96),(96,64))",
        "model.category_ids=7",
        "optimizer.clip_norm=5",
    )
    assert config.model.num_classes == 3
    assert config.optimizer.learning_rate == 1.0
    assert type(config.optimizer.learning_rate) is float
    assert config.model.backbone.norm == "gn"
    assert config.model.anchors.rounded is True
    assert config.data.buckets == ((64, 96), (96, 64))
    assert config.model.category_ids == (7,)
    assert config.optimizer.clip_norm == 5.0
    assert apply_overrides(config, ["optimizer.clip_norm=None"]).optimizer.clip_norm is None


def test_lr_multipliers_are_pairs():
    text = 'optimizer.lr_multipliers=(("backbone",0.1),("backbone/res5",1))'  # as a shell passes it
    config = override(text)
    assert config.optimizer.lr_multipliers == (("backbone", 0.1), ("backbone/res5", 1.0))
    assert from_json(to_json(config)) == config
    with pytest.raises(ConfigError, match=r"optimizer\.lr_multipliers"):
        override('optimizer.lr_multipliers=(("backbone",0.1))')  # one pair, not a tuple of one


def test_last_override_applies_and_the_input_is_unchanged():
    before = Config()
    after = apply_overrides(before, ["train.steps=5", "train.steps=7"])
    assert (before.train.steps, after.train.steps) == (90_000, 7)
    assert dataclasses.replace(after, train=before.train) == before


@pytest.mark.parametrize("text", ["weights.npz", "1_000", "1e3", "None", "true", "a=b", "gs://bucket/x", "(1, 2)"])
def test_text_is_unchanged(text):
    assert override(f"init={text}").init == text


# Values just inside and just outside of the ranges, and infinite ones.
@pytest.mark.parametrize(
    ("name", "valid", "invalid", "interval"),
    [
        ("optimizer.learning_rate", ("1e-9", "7"), ("0", "-0.01", "1e999"), "(0, inf)"),
        ("optimizer.momentum", ("0", "0.999"), ("-1", "1"), "[0, 1)"),
        ("optimizer.weight_decay", ("0", "1"), ("-0.1", "1e999"), "[0, inf)"),
        ("optimizer.milestones", ("()", "(1,)"), ("(-5,)", "(0, 10)"), "[1, inf)"),
        ("optimizer.milestone_factor", ("0.1",), ("0", "-1"), "(0, inf)"),
        ("optimizer.warmup_steps", ("0",), ("-3",), "[0, inf)"),
        ("optimizer.warmup_factor", ("0", "1"), ("-1", "1.1"), "[0, 1]"),
        ("optimizer.clip_norm", ("None", "0.1"), ("0", "-1"), "(0, inf)"),
        ("optimizer.lr_multipliers", ("(('rpn',2),)",), ("(('rpn',-1),)", "(('rpn',1e999),)"), "[0, inf)"),
        ("train.steps", ("1",), ("0", "-1"), "[1, inf)"),
        ("train.batch_size", ("1",), ("0", "-4"), "[1, inf)"),
        ("train.log_every", ("1",), ("0",), "[1, inf)"),
        ("train.checkpoint_every", ("1",), ("0", "-1"), "[1, inf)"),
        ("train.keep_checkpoints", ("1",), ("0", "-1"), "[1, inf)"),
        ("train.seed", ("0", "4294967295"), ("-1", "4294967296", "20261130050000"), "[0, 4294967295]"),
        ("train.ema_decay", ("0", "0.9999"), ("1", "-0.1"), "[0, 1)"),
        ("train.max_skipped", ("0",), ("-1",), "[0, inf)"),
        ("train.validate_every", ("0",), ("-1",), "[0, inf)"),
        ("train.accumulate", ("1",), ("0",), "[1, inf)"),
        ("eval.batch_size", ("1",), ("0", "-4"), "[1, inf)"),
        ("eval.scales", ("()", "(8,)"), ("(0,)",), "[8, 65535]"),
        ("eval.overlays", ("0",), ("-1",), "[0, inf)"),
        ("eval.keypoint_sigmas", ("(0.1,)",), ("(0,)",), "(0, inf)"),
        ("data.buckets", ("((32,32),)",), ("((0,32),)",), "[1, inf)"),
        ("data.longest_edge", ("8",), ("1",), "[8, 65535]"),
        ("data.shortest_edge_eval", ("65535",), ("100000",), "[8, 65535]"),
        ("data.shortest_edge_train", ("(8,)",), ("(-1,)",), "[8, 65535]"),
        ("data.workers", ("0",), ("-1",), "[0, inf)"),
        ("data.max_instances", ("1",), ("0", "-1"), "[1, inf)"),
        ("data.mask_size", ("1",), ("0",), "[1, inf)"),
        ("data.min_keypoints", ("0",), ("-1",), "[0, inf)"),
        ("data.horizontal_flip", ("0", "1"), ("1.5", "-0.1"), "[0, 1]"),
        ("data.augment.copy_paste", ("0", "1"), ("-1e999",), "[0, 1]"),
        ("data.augment.saturation", ("0", "2"), ("-1", "1e999"), "[0, inf)"),
        ("data.augment.hue", ("0.5",), ("0.6",), "[0, 0.5]"),
        ("data.augment.crop_size", ("(0.1, 1)",), ("(0, 0.5)", "(0.7, 1.5)"), "(0, 1]"),
        ("data.augment.scale_jitter", ("(0.1, 2)",), ("(0, 2)",), "(0, inf)"),
        ("data.train.image_ids", (f"({-(2**63)}, {2**63 - 1})",), (f"({2**63},)",), "[-9223372036854775808,"),
        ("model.num_classes", ("0",), ("-1",), "[0, inf)"),
        ("model.pixel_mean", ("(0, 0, 0)",), ("(0, 0, 1e999)",), "(-inf, inf)"),
        ("model.pixel_std", ("(1, 1, 1)",), ("(1, 1, 0)",), "(0, inf)"),
        ("model.backbone.width", ("1",), ("0",), "[1, inf)"),
        ("model.backbone.frozen_stages", ("0", "5"), ("-1", "6"), "[0, 5]"),
        ("model.anchors.sizes", ("((8,),)",), ("((-8,),)",), "(0, inf)"),
        ("model.anchors.aspect_ratios", ("(0.1,)",), ("(0,)",), "(0, inf)"),
        ("model.rpn.positive_fraction", ("1",), ("0", "50"), "(0, 1]"),
        ("model.rpn.negative_iou", ("0", "1"), ("-0.1", "30"), "[0, 1]"),
        ("model.rpn.nms_iou", ("1",), ("0", "70"), "(0, 1]"),
        ("model.rpn.post_nms_top_k_test", ("1",), ("0",), "[1, inf)"),
        ("model.box.score_threshold", ("0", "0.99"), ("1", "2", "-1"), "[0, 1)"),
        ("model.box.delta_weights", ("(1, 1, 1, 1)",), ("(1, 1, 1, 0)",), "(0, inf)"),
        ("model.mask.pool_size", ("1",), ("0",), "[1, inf)"),
    ],
)
def test_numbers_have_ranges(name, valid, invalid, interval):
    for text in valid:
        override(f"{name}={text}")
    for text in invalid:
        with pytest.raises(ConfigError, match=rf"^{re.escape(name)}=.* is outside of {re.escape(interval)}"):
            override(f"{name}={text}")


def test_nan_is_in_no_range():
    with pytest.raises(ConfigError, match=r"OptimizerConfig\.weight_decay=nan is outside of \[0, inf\)"):
        OptimizerConfig(weight_decay=math.nan)
    with pytest.raises(ConfigError, match=r"ModelConfig\.pixel_mean=nan is outside"):
        ModelConfig(pixel_mean=(0, math.nan, 0))


def parts(settings: type) -> set[type]:
    """A configuration class and all those in its fields."""
    below = {t for f in hints(settings).values() for t in (f, *get_args(f)) if dataclasses.is_dataclass(t)}
    return {settings}.union(*map(parts, below))


def bare_numbers(hint: object) -> list[object]:
    """Number types without an interval in the type of a field."""
    if get_origin(hint) is Annotated:
        return []
    return [hint] if hint in (int, float) else [bare for inner in get_args(hint) for bare in bare_numbers(inner)]


def test_every_number_declares_its_range():
    fields = {f"{part.__name__}.{name}": hint for part in parts(Config) for name, hint in hints(part).items()}
    assert len(fields) > 130
    assert {"SplitConfig.image_ids", "AugmentConfig.hue", "KeypointHeadConfig.flip_map"} < fields.keys()
    assert {name: hint for name, hint in fields.items() if bare_numbers(hint)} == {}


@pytest.mark.parametrize(
    ("field", "value", "converted"),
    [
        ("data.buckets", [(64, 64)], ((64, 64),)),
        ("data.buckets", ([64, 96], [96, 64]), ((64, 96), (96, 64))),
        ("data.buckets", np.array([[64, 96]]), ((64, 96),)),
        ("data.shortest_edge_train", range(480, 600, 32), (480, 512, 544, 576)),
        ("data.categories", ["circle"], ("circle",)),
        ("data.root", Path("shapes"), "shapes"),
        ("data.root", epath.Path("gs://bucket/shapes"), "gs://bucket/shapes"),
        ("data.horizontal_flip", 1, 1.0),
        ("data.train", {"images": Path("a"), "image_ids": [np.int32(3)]}, SplitConfig(images="a", image_ids=(3,))),
        ("eval.flip", np.bool_(True), True),
        ("optimizer.milestones", np.arange(1, 4), (1, 2, 3)),
        ("optimizer.milestones", (np.int64(5),), (5,)),
        ("optimizer.lr_multipliers", [["backbone", 1]], (("backbone", 1.0),)),
        ("optimizer.learning_rate", np.float32(0.25), 0.25),
        ("optimizer.learning_rate", jnp.float32(0.25), 0.25),
        ("optimizer.clip_norm", np.float64(0.5), 0.5),
        ("train.steps", np.int64(4), 4),
        ("train.best_metric", np.str_("bbox/AP"), "bbox/AP"),
    ],
)
def test_values_are_converted(field, value, converted):
    """To the types of the fields, so that the JSON round trip is exact."""
    part, name = field.split(".")
    config = Config(**{part: dataclasses.replace(getattr(Config(), part), **{name: value})})
    stored = getattr(getattr(config, part), name)
    assert stored == converted
    assert type(stored) is type(converted)
    assert from_json(to_json(config)) == config
    assert hash(config) is not None


@pytest.mark.parametrize(
    ("settings", "fields", "message"),
    [
        (OptimizerConfig, {"learning_rate": "0.01"}, r"OptimizerConfig\.learning_rate: expected float, got '0\.01'"),
        (OptimizerConfig, {"milestones": {5, 7}}, r"OptimizerConfig\.milestones: expected int, got \{5, 7\}"),
        (OptimizerConfig, {"lr_multipliers": {"rpn": 1}}, r"OptimizerConfig\.lr_multipliers: expected 2 values"),
        (TrainConfig, {"steps": 1e3}, r"TrainConfig\.steps: expected int, got 1000\.0"),
        (TrainConfig, {"steps": np.float64(10)}, r"TrainConfig\.steps: expected int, got 10\.0"),
        (TrainConfig, {"remat": 1}, r"TrainConfig\.remat: expected bool, got 1"),
        (TrainConfig, {"seed": True}, r"TrainConfig\.seed: expected int, got True"),
        (DataConfig, {"root": b"shapes"}, r"DataConfig\.root: expected str, got b'shapes'"),
        (DataConfig, {"root": None}, r"DataConfig\.root: expected str, got None"),
        (DataConfig, {"buckets": [64, 64]}, r"DataConfig\.buckets: expected 2 values, got 1"),
        (DataConfig, {"shapes": ModelConfig()}, r"DataConfig\.shapes: expected ShapesConfig, got ModelConfig"),
        (ModelConfig, {"features": ["fpn"]}, r"ModelConfig\.features: \['fpn'\] is not one of 'fpn'"),
        (ModelConfig, {"mask": True}, r"ModelConfig\.mask: expected MaskHeadConfig, got True"),
        (ModelConfig, {"mask": {"chanels": 3}}, r"'ModelConfig\.mask\.chanels' .*did you mean 'channels'"),
    ],
)
def test_values_of_wrong_types(settings, fields, message):
    with pytest.raises(ConfigError, match=message):
        settings(**fields)


def test_tilde_is_the_home_directory_only_in_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/home/eve")
    config = override("init=~/w.pth", "data.root=~", "data.train.images=a/~/b", "name=~", "data.cache_dir=gs://b/~")
    assert (config.init, config.data.root, config.name) == ("/home/eve/w.pth", "/home/eve", "~")
    assert (config.data.train.images, config.data.cache_dir) == ("a/~/b", "gs://b/~")
    assert DataConfig(root="~/shapes").root == "/home/eve/shapes"


def test_quotes_around_text_are_optional():
    assert override("init='my weights.npz'").init == "my weights.npz"


def test_old_names_of_fields(caplog):
    """Are accepted in a recipe, an override and a saved configuration, with a warning."""
    factors = (("backbone", 0.5),)
    saved = to_json(Config(optimizer=OptimizerConfig(lr_multipliers=factors))).replace("lr_multipliers", "rate_factors")
    assert OptimizerConfig(rate_factors=factors).lr_multipliers == factors
    assert override("optimizer.rate_factors=(('backbone',0.5),)").optimizer.lr_multipliers == factors
    assert from_json(saved).optimizer.lr_multipliers == factors
    assert caplog.text.count("OptimizerConfig.rate_factors is now called lr_multipliers") == 3


def test_unknown_field_suggests_a_similar_one():
    with pytest.raises(ConfigError, match=r"'optimizer\.learning_rat'.*did you mean 'learning_rate'"):
        override("optimizer.learning_rat=1")
    with pytest.raises(ConfigError, match=r"did you mean 'optimizer'"):
        override("optimizr.learning_rate=1")


def test_unknown_field_lists_the_fields():
    with pytest.raises(ConfigError, match=r"'train\.zzz'.*steps, batch_size, seed"):
        override("train.zzz=1")
    with pytest.raises(ConfigError, match=r"'train\.steps\.more'"):
        override("train.steps.more=1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.steps=many", r"train\.steps: expected int, got 'many'"),
        ("train.steps=1.5", r"train\.steps: expected int, got 1\.5"),
        ("train.steps=True", r"train\.steps: expected int, got True"),
        ("train.steps=None", r"train\.steps: expected int, got None"),
        ("model.anchors.rounded=1", r"model\.anchors\.rounded: expected bool, got 1"),
        ("model.backbone=resnet18", r"model\.backbone: expected BackboneConfig, got 'resnet18'"),
        ("model.backbone.name=resnet19", r"model\.backbone\.name: 'resnet19' is not one of 'resnet18', 'resnet34'"),
        ("model.pixel_mean=(1,2)", r"model\.pixel_mean: expected 3 values, got 2"),
        ("data.buckets=(64,64)", r"data\.buckets: expected 2 values, got 1"),
        ("train.steps", r"'train\.steps' is not of the form name=value"),
    ],
)
def test_invalid_overrides(text, message):
    with pytest.raises(ConfigError, match=message):
        override(text)


def test_optional_part_can_be_removed_and_added():
    faster = override("model.mask=None")
    assert faster.model.mask is None
    with pytest.raises(ConfigError, match=r"'model\.mask\.channels' cannot be set: 'mask' is None"):
        apply_overrides(faster, ["model.mask.channels=64"])
    assert apply_overrides(faster, ["model.mask={'channels': 64}"]).model.mask == MaskHeadConfig(channels=64)
    assert override("data.shapes={}").data.shapes == ShapesConfig()
    assert override("model.mask.channels=64").model.mask == MaskHeadConfig(channels=64)


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        override("model.mask=None", "optimizer.clip_norm=0.5", "model.category_names=('cat', 'dog')"),
        Config(data=DataConfig(root="data", shapes=ShapesConfig(seed=3), buckets=((32, 64),))),
    ],
)
def test_json_round_trip(config):
    assert from_json(to_json(config)) == config


def test_json_is_checked():
    tree = json.loads(to_json(Config()))
    tree["train"]["step"] = tree["train"].pop("steps")
    with pytest.raises(ConfigError, match=r"config\.train\.step.*did you mean 'steps'"):
        from_json(json.dumps(tree))
    with pytest.raises(ConfigError, match=r"config\.train\.steps: expected int, got 'x'"):
        from_json('{"train": {"steps": "x"}}')
    with pytest.raises(ConfigError, match="expected Config"):
        from_json("[]")


def test_json_with_missing_fields():
    assert from_json('{"train": {"steps": 3}}') == override("train.steps=3")


def test_missing_file_and_missing_function(tmp_path):
    with pytest.raises(ConfigError, match="no configuration file"):
        load_config(tmp_path / "none.py")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ConfigError, match="has no function get_config"):
        load_config(tmp_path / "empty.py")
    (tmp_path / "config.txt").write_text("")
    with pytest.raises(ConfigError, match="is not a Python file"):
        load_config(tmp_path / "config.txt")


def test_recipe_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("people", ["train.steps=2"]).train.steps == 2
    assert load_config("people").name == "people"
    with pytest.raises(ConfigError, match=r"recipes of mrcnn_jax are given by name: quickstart$"):
        load_config("configs/quikstart.py")
    (tmp_path / "people").write_text("")  # a file of this name is meant
    with pytest.raises(ConfigError, match="is not a Python file"):
        load_config("people")


def test_load_config_applies_overrides(tmp_path):
    (tmp_path / "own.py").write_text(
        "from mrcnn_jax.config import Config\n\ndef get_config():\n    return Config('own')\n"
    )
    assert load_config(str(tmp_path / "own.py"), ["train.steps=2"]) == override("name=own", "train.steps=2")


@pytest.mark.parametrize("backbone", [BackboneConfig(norm="gn"), BackboneConfig(norm="frozen_bn", frozen_stages=0)])
def test_frozen_layers_need_initial_weights(backbone):
    config = Config(model=ModelConfig(backbone=backbone))
    with pytest.raises(ConfigError, match="init is empty"):
        validate(config)
    validate(dataclasses.replace(config, init="weights.npz"))


def test_training_from_random_weights_is_valid():
    validate(scratch_config())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data.buckets=((800,1088),(800,1100))", r"data\.buckets: 800x1100 is not divisible by 32"),
        ("data.shapes={'objects': (5, 4)}", r"data\.shapes\.objects=\(5, 4\): give the lower bound first"),
        ("data.buckets=()", r"data\.buckets is empty"),
        ("data.buckets=((64,96),(96,64),(64,96))", r"data\.buckets contains 64x96 twice"),
        ("data.shortest_edge_train=()", r"data\.shortest_edge_train is empty; give at least one"),
        ("optimizer.lr_multipliers=(('backbone',0),)", r"factor 0\.0 of 'backbone' must be positive.*frozen_stages"),
        ("optimizer.lr_multipliers=(('rpn',0.1),('rpn',1))", r"lr_multipliers contains 'rpn' twice"),
        ("optimizer.milestones=(20,10)", r"optimizer\.milestones must be increasing, got \(20, 10\)"),
        ("train.accumulate=3", r"train\.accumulate=3 does not divide train\.batch_size=16"),
        ("model.rpn.positive_iou=0.2", r"negative_iou=0\.3 must not exceed model\.rpn\.positive_iou=0\.2"),
        ("model.rpn.pre_nms_top_k_train=199", r"post_nms_top_k_train=1000 exceeds 5 \* .*_train=199, the maximum"),
        ("model.rpn.post_nms_top_k_test=5001", r"post_nms_top_k_test=5001 exceeds 5 \* .*_test=1000, the maximum"),
        ("model.rpn.batch_size=1", r"rpn\.batch_size=1 \* model\.rpn\.positive_fraction=0\.5 is less than one"),
        ("model.roi.batch_size=3", r"roi\.batch_size=3 \* model\.roi\.positive_fraction=0\.25 is less than one"),
        ("model.box.nms_candidates=99", r"model\.box\.max_detections=100 exceeds model\.box\.nms_candidates=99"),
        ("model.anchors.sizes=((8,),(16,))", r"model\.anchors\.sizes.*got 2"),
        ("model.anchors.sizes=((8,),(16,),(32,),(64,),(8,16))", r"model\.anchors\.sizes.*the same number"),
        ("model.anchors.sizes=((),(),(),(),())", r"model\.anchors\.sizes and .*aspect_ratios need at least one value"),
        ("model.anchors.aspect_ratios=()", r"model\.anchors\.sizes and .*aspect_ratios need at least one value"),
        ("model.category_ids=(1,2)", r"model\.num_classes is 0, but model\.category_ids has 2"),
        ("model.keypoint={'num_keypoints': 4}", r"model\.keypoint\.flip_map=.*each of the 4 keypoints"),
        ("model.keypoint={'num_keypoints': 3, 'flip_map': (1, 2, 0)}", r"model\.keypoint\.flip_map=\(1, 2, 0\)"),
    ],
)
def test_contradictions(text, message):
    config = dataclasses.replace(apply_overrides(scratch_config(), [text]), init="weights.npz")
    with pytest.raises(ConfigError, match=message):
        validate(config)


C4 = (
    "model.features=c4",
    "model.anchors.sizes=((32, 64, 128),)",
    "model.box.pool_size=14",
    "model.box.fc_layers=0",
    "model.mask.conv_layers=0",
)


@pytest.mark.parametrize(
    "changes",
    [
        C4,
        (*C4, "model.mask=None", "model.box.pool_size=8"),
        ("model.features=dc5", "model.anchors.sizes=((32, 64, 128),)", "model.keypoint={}"),
        ("model.features=c5", "model.anchors.sizes=((32, 64, 128),)", "model.keypoint={}"),
        ("model.mask.fc_layers=2", "model.mask.conv_layers=0", "model.mask.activation=softmax"),
        ("model.backbone.groups=64", "model.backbone.width_per_group=4"),
        ("model.backbone.groups=4", "model.backbone.width=16", "model.backbone.width_per_group=8"),
        ("model.box.norm=gn", "model.box.conv_layers=1", "model.mask.norm=bn"),
        ("model.num_classes=2", "model.category_ids=(3, 7)", "model.category_names=('cat', 'dog')"),
        ("model.backbone.name=efficientnet_lite0",),
        ("model.roi.reduce=max", "model.roi.sampling_ratio=2"),
        ("model.roi.reduce=max", "model.roi.pooling=pool"),
        ("model.roi.pooling=warp",),
    ],
)
def test_every_kind_of_network_is_valid(changes):
    validate(apply_overrides(scratch_config(), changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ("model.backbone.name=resnet34", "model.backbone.groups=32"),
            r"resnet34 does not support groups\. Use resnet50",
        ),
        (
            ("model.backbone.name=resnet18", "model.backbone.width_per_group=4"),
            r"width_per_group=4: .* not support groups",
        ),
        (
            ("model.backbone.name=efficientnet_lite0", "model.backbone.groups=2"),
            r"efficientnet_lite0 does not support groups",
        ),
        (("model.backbone.width=8", "model.backbone.width_per_group=4"), r"must be a multiple of 64"),
        ((*C4, "model.keypoint={}"), r"model\.keypoint does not support model\.features=c4: set"),
        (
            (*C4, "model.backbone.frozen_stages=5", "init=x"),
            r"frozen_stages: .*res5 is part of the heads; freeze at most 4",
        ),
        ((*C4, "model.box.fc_layers=2"), r"model\.box: .*set model\.box\.conv_layers=0 and model\.box\.fc_layers=0"),
        ((*C4, "model.box.conv_layers=1"), r"model\.box: .*set model\.box\.conv_layers=0"),
        ((*C4, "model.box.pool_size=7"), r"model\.box\.pool_size=7 must be even"),
        ((*C4, "model.mask.pool_size=12"), r"model\.mask\.pool_size=12, model\.box\.pool_size=14.*set both to 14"),
        ((*C4, "model.backbone.name=efficientnet_lite0"), r"model\.features=c4 needs a residual network; set .*=fpn"),
        (("model.features=dc5",), r"model\.anchors\.sizes needs one tuple for the one feature map, got 5"),
        (("model.box.norm=gn",), r"model\.box\.norm=gn needs .*model\.box\.conv_layers=0"),
        (("model.mask.fc_layers=2",), r"model\.mask\.fc_layers=2, conv_layers=4: .*set model\.mask\.conv_layers=0"),
        (
            ("model.mask.norm=bn", "model.mask.conv_layers=0"),
            r"model\.mask\.norm=bn needs .*model\.mask\.conv_layers=0",
        ),
        (("model.roi.reduce=max",), r"model\.roi\.reduce=max .*pooling=align .*model\.roi\.sampling_ratio=0: set"),
        (("model.roi.reduce=max", "model.roi.pooling=warp"), r"reduce=max .*pooling=warp .*sampling_ratio=0: set"),
        (("optimizer.schedule=cosine", "train.steps=1000"), r"warmup_steps=1000 must be less than train\.steps=1000"),
        (("model.num_classes=1", "model.category_names=('a', 'b')"), r"is 1, but model\.category_names has 2 entries"),
    ],
)
def test_contradictions_of_networks(changes, message):
    config = apply_overrides(scratch_config(), changes)
    with pytest.raises(ConfigError, match=message):
        validate(config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model.keypoint_names=('eye',)", r"model\.keypoint_names has 1 entries, but .*num_keypoints is 17"),
        ("eval.keypoint_sigmas=(0.1, 0.2)", r"eval\.keypoint_sigmas has 2 entries"),
        ("model.skeleton=((0, 16), (1, 17))", r"model\.skeleton=.* outside of 0\.\.16"),
    ],
)
def test_keypoint_lists_have_one_entry_per_keypoint(text, message):
    with_head = apply_overrides(scratch_config(), ["model.keypoint={}"])
    validate(with_head)
    with pytest.raises(ConfigError, match=message):
        validate(apply_overrides(with_head, [text]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data.augment.crop_size=(0.7, 0.5)", r"data\.augment\.crop_size=\(0\.7, 0\.5\): give the lower bound first"),
        ("data.augment.scale_jitter=(2.0, 0.1)", r"data\.augment\.scale_jitter=.*: give the lower bound first"),
        ("data.value_range=(1, 0)", r"data\.value_range=\(1\.0, 0\.0\): give \(low, high\)"),
        ("data.value_range=(0, 1e999)", r"data\.value_range"),
    ],
)
def test_invalid_augmentation(text, message):
    with pytest.raises(ConfigError, match=message):
        validate(apply_overrides(scratch_config(), [text]))


def test_valid_augmentation():
    validate(
        apply_overrides(
            scratch_config(),
            [
                "data.augment.scale_jitter=(0.1, 2.0)",
                "data.augment.crop=1.0",
                "data.augment.crop_size=(1.0, 1.0)",
                "data.augment.brightness=2.0",
                "data.augment.hue=0.5",
                "data.augment.copy_paste=1.0",
                "data.horizontal_flip=0.0",
            ],
        )
    )


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["train.patience=3"], r"train\.patience=3 needs train\.best_metric"),
        (["train.best_metric=bbox/AP"], "best_metric=bbox/AP is not measured"),
        (
            ["train.evaluate_every=5", "train.best_metric=validation/loss"],
            "set train.validate_every for validation/loss",
        ),
        (["train.evaluate_every=5", "train.best_metric=bbox/mAP"], "bbox/mAP is not measured.*bbox/AP, bbox/AP50"),
        (["train.evaluate_every=5", "train.best_metric=keypoints/AP"], "keypoints/AP is not measured"),
        (["train.evaluate_every=5", "train.best_metric=segm/AP", "model.mask=None"], "segm/AP is not measured"),
    ],
)
def test_best_metric_must_be_measured(texts, message):
    with pytest.raises(ConfigError, match=message):
        validate(apply_overrides(scratch_config(), texts))


def test_patience_with_a_measured_metric():
    texts = ["train.evaluate_every=5", "train.best_metric=segm/AP75", "train.patience=3"]
    validate(apply_overrides(scratch_config(), texts))
    validate(apply_overrides(scratch_config(), ["train.validate_every=5", "train.best_metric=validation/loss"]))
