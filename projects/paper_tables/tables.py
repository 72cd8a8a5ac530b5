"""The paper's tables as data: what varies from row to row, and what was published.

He et al., "Mask R-CNN", ICCV 2017 (arXiv 1703.06870v3). Numbers are average precisions of 100, named as evaluations
name theirs. How a row becomes a recipe is a matter of the scale: `coco`, `small`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mrcnn_jax.config import ModelConfig
from mrcnn_jax.errors import ConfigError

BackboneName = Literal["R50", "R101", "X101"]
Features = Literal["fpn", "c4", "c5"]
Switch = Callable[[ModelConfig], ModelConfig]

KINDS = {"bbox": "box", "segm": "mask", "keypoints": "keypoint"}  # what metrics are of, in words
_SIZES = ("AP", "AP50", "AP75")


def _same(model: ModelConfig) -> ModelConfig:
    return model


@dataclass(frozen=True)
class Row:
    """A row of a table: a network, and what the paper says that it reaches."""

    name: str
    label: str  # as the paper prints it
    published: Mapping[str, float]  # {"segm/AP": 27.2, ...}; a number that the paper does not give is not there
    features: Features = "fpn"
    backbone: BackboneName = "R50"
    switch: Switch = _same  # what the table is about, made of the model of its scale
    mask: bool = True  # whether there is such a head
    keypoints: bool = False
    persons: bool = False  # trained and evaluated on the persons with keypoints
    classes: bool = False  # the comparison needs more than one class


@dataclass(frozen=True)
class Table:
    """A table: rows that differ in the fields `switches` only, and where X101 is a row, in what its memory asks for."""

    name: str
    title: str
    setting: str  # backbone and split of the published numbers
    columns: tuple[str, ...]  # metrics
    rows: tuple[Row, ...]
    reference: str  # the row that the others are compared with
    switches: tuple[str, ...]

    def row(self, name: str) -> Row:
        """The row of this name. Raises ConfigError."""
        for row in self.rows:
            if row.name == name:
                return row
        raise ConfigError(f"table {self.name} has no row {name!r}; it has {', '.join(row.name for row in self.rows)}")


def table(name: str) -> Table:
    """The table of this name. Raises ConfigError."""
    if name not in TABLES:
        raise ConfigError(f"there is no table {name!r}; there are {', '.join(TABLES)}")
    return TABLES[name]


def words(metric: str) -> str:
    """Such as "mask AP50"."""
    kind, _, measure = metric.partition("/")
    return f"{KINDS[kind]} {measure}"


def published(row: Row) -> str:
    """What the paper says of a row, in words: "mask AP 27.2, AP50 49.2, AP75 27.1"."""
    texts: dict[str, list[str]] = {}
    for metric, value in row.published.items():
        kind, _, measure = metric.partition("/")
        texts.setdefault(kind, []).append(f"{measure} {value}")
    return "; ".join(f"{KINDS[kind]} {', '.join(measures)}" for kind, measures in texts.items())


def _numbers(kind: str, *values: float, measures: tuple[str, ...] = _SIZES) -> dict[str, float]:
    return {f"{kind}/{measure}": value for measure, value in zip(measures, values, strict=True)}


def _roi(pooling: Literal["align", "warp", "pool"], reduce: Literal["average", "max"]) -> Switch:
    return lambda model: dataclasses.replace(model, roi=dataclasses.replace(model.roi, pooling=pooling, reduce=reduce))


def _mask(**fields: Any) -> Switch:
    def switch(model: ModelConfig) -> ModelConfig:
        assert model.mask is not None
        return dataclasses.replace(model, mask=dataclasses.replace(model.mask, **fields))

    return switch


def _row_2c(name: str, label: str, switch: Switch, *values: float) -> Row:
    return Row(name, label, _numbers("segm", *values), "c4", switch=switch)


def _row_2d(name: str, label: str, switch: Switch, masks: tuple[float, ...], boxes: tuple[float, ...]) -> Row:
    return Row(name, label, _numbers("segm", *masks) | _numbers("bbox", *boxes), "c5", switch=switch)


def _persons(name: str, label: str, published: Mapping[str, float], **more: Any) -> Row:
    return Row(name, label, published, persons=True, **more)


_POSE = ("AP", "AP50", "AP75", "APm", "APl")
_MASKS, _BOXES = tuple(f"segm/{size}" for size in _SIZES), tuple(f"bbox/{size}" for size in _SIZES)
_KEYPOINTS = tuple(f"keypoints/{measure}" for measure in _POSE)
_POOLING = ("model.roi.pooling", "model.roi.reduce")
_ROI_POOL, _ROI_ALIGN = _roi("pool", "max"), _roi("align", "average")

_ALL = (
    Table(
        "2a",
        "Backbone architecture",
        "mask AP, minival",
        _MASKS,
        (
            Row("r50_c4", "ResNet-50-C4", _numbers("segm", 30.3, 51.2, 31.5), "c4"),
            Row("r101_c4", "ResNet-101-C4", _numbers("segm", 32.7, 54.2, 34.3), "c4", "R101"),
            Row("r50_fpn", "ResNet-50-FPN", _numbers("segm", 33.6, 55.2, 35.3)),
            Row("r101_fpn", "ResNet-101-FPN", _numbers("segm", 35.4, 57.3, 37.5), "fpn", "R101"),
            Row("x101_fpn", "ResNeXt-101-FPN", _numbers("segm", 36.7, 59.5, 38.9), "fpn", "X101"),
        ),
        "r50_c4",
        # C4 is another network behind the backbone, too: one level of anchors, res5 as the head, fewer RoIs.
        (
            *("model.backbone.", "model.features", "model.anchors.", "model.rpn.", "model.roi.batch_size"),
            *("model.box.", "model.mask."),
        ),
    ),
    Table(
        "2b",
        "Multinomial vs. independent masks",
        "ResNet-50-C4, mask AP, minival",
        _MASKS,
        (
            Row(
                "softmax",
                "softmax",
                _numbers("segm", 24.8, 44.1, 25.1),
                "c4",
                switch=_mask(activation="softmax"),
                classes=True,
            ),
            Row(
                "sigmoid",
                "sigmoid",
                _numbers("segm", 30.3, 51.2, 31.5),
                "c4",
                switch=_mask(activation="sigmoid"),
                classes=True,
            ),
        ),
        "softmax",
        ("model.mask.activation",),
    ),
    Table(
        "2c",
        "RoIAlign",
        "ResNet-50-C4, stride 16, mask AP, minival",
        _MASKS,
        (
            _row_2c("roi_pool_max", "RoIPool, max", _ROI_POOL, 26.9, 48.8, 26.4),
            _row_2c("roi_warp_max", "RoIWarp, max", _roi("warp", "max"), 27.2, 49.2, 27.1),
            _row_2c("roi_warp_average", "RoIWarp, ave", _roi("warp", "average"), 27.1, 48.9, 27.1),
            _row_2c("roi_align_max", "RoIAlign, max", _roi("align", "max"), 30.2, 51.0, 31.8),
            _row_2c("roi_align_average", "RoIAlign, ave", _ROI_ALIGN, 30.3, 51.2, 31.5),
        ),
        "roi_pool_max",
        _POOLING,
    ),
    Table(
        "2d",
        "RoIAlign with large strides",
        "ResNet-50-C5, stride 32, minival",
        _MASKS + _BOXES,
        (
            _row_2d("roi_pool", "RoIPool", _ROI_POOL, (23.6, 46.5, 21.6), (28.2, 52.7, 26.9)),
            _row_2d("roi_align", "RoIAlign", _ROI_ALIGN, (30.9, 51.8, 32.1), (34.0, 55.3, 36.4)),
        ),
        "roi_pool",
        _POOLING,
    ),
    Table(
        "2e",
        "Mask branch",
        "ResNet-50-FPN, mask AP, minival",
        _MASKS,
        (
            Row(
                "mlp_2",
                "MLP, fc: 1024-1024-80*28^2",
                _numbers("segm", 31.5, 53.7, 32.8),
                switch=_mask(conv_layers=0, fc_layers=2),
            ),
            Row(
                "mlp_3",
                "MLP, fc: 1024-1024-1024-80*28^2",
                _numbers("segm", 31.5, 54.0, 32.6),
                switch=_mask(conv_layers=0, fc_layers=3),
            ),
            Row("fcn", "FCN, conv: 256-256-256-256-256-80", _numbers("segm", 33.6, 55.2, 35.3)),
        ),
        "mlp_2",
        ("model.mask.conv_layers", "model.mask.fc_layers"),
    ),
    Table(
        "agnostic",
        "Class-specific vs. class-agnostic masks",
        "ResNet-50-C4, mask AP, minival; numbers of section 4.2's text",
        ("segm/AP",),
        (
            Row(
                "class_specific",
                "class-specific",
                {"segm/AP": 30.3},
                "c4",
                switch=_mask(class_agnostic=False),
                classes=True,
            ),
            Row(
                "class_agnostic",
                "class-agnostic",
                {"segm/AP": 29.7},
                "c4",
                switch=_mask(class_agnostic=True),
                classes=True,
            ),
        ),
        "class_specific",
        ("model.mask.class_agnostic",),
    ),
    Table(
        "3",
        "Object detection",
        "box AP, test-dev",
        _BOXES,
        (
            Row(
                "faster_r101_fpn",
                "Faster R-CNN, RoIAlign, ResNet-101-FPN",
                _numbers("bbox", 37.3, 59.6, 40.3),
                backbone="R101",
                mask=False,
            ),
            Row(
                "mask_r101_fpn",
                "Mask R-CNN, ResNet-101-FPN",
                _numbers("bbox", 38.2, 60.3, 41.7),
                backbone="R101",
            ),
            Row(
                "mask_x101_fpn",
                "Mask R-CNN, ResNeXt-101-FPN",
                _numbers("bbox", 39.8, 62.3, 43.4),
                backbone="X101",
            ),
        ),
        "faster_r101_fpn",
        ("model.mask", "model.backbone."),
    ),
    Table(
        "4",
        "Keypoint detection",
        "ResNet-50-FPN, keypoint AP, test-dev",
        _KEYPOINTS,
        (
            _persons(
                "keypoint_only",
                "Mask R-CNN, keypoint-only",
                _numbers("keypoints", 62.7, 87.0, 68.4, 57.4, 71.1, measures=_POSE),
                mask=False,
                keypoints=True,
            ),
            _persons(
                "keypoint_mask",
                "Mask R-CNN, keypoint & mask",
                _numbers("keypoints", 63.1, 87.3, 68.7, 57.8, 71.4, measures=_POSE),
                keypoints=True,
            ),
        ),
        "keypoint_only",
        ("model.mask",),
    ),
    Table(
        "5",
        "Multi-task learning of box, mask and keypoint",
        "persons, ResNet-50-FPN, minival",
        ("bbox/AP", "segm/AP", "keypoints/AP"),
        (
            _persons("faster", "Faster R-CNN", {"bbox/AP": 52.5}, mask=False),
            _persons("mask_only", "Mask R-CNN, mask-only", {"bbox/AP": 53.6, "segm/AP": 45.8}),
            _persons(
                "keypoint_only",
                "Mask R-CNN, keypoint-only",
                {"bbox/AP": 50.7, "keypoints/AP": 64.2},
                mask=False,
                keypoints=True,
            ),
            _persons(
                "keypoint_mask",
                "Mask R-CNN, keypoint & mask",
                {"bbox/AP": 52.0, "segm/AP": 45.1, "keypoints/AP": 64.7},
                keypoints=True,
            ),
        ),
        "faster",
        ("model.mask", "model.keypoint"),
    ),
    Table(
        "6",
        "RoIAlign vs. RoIPool for keypoints",
        "ResNet-50-FPN, keypoint-only, keypoint AP, minival",
        _KEYPOINTS,
        (
            _persons(
                "roi_pool",
                "RoIPool",
                _numbers("keypoints", 59.8, 86.2, 66.7, 55.1, 67.4, measures=_POSE),
                mask=False,
                keypoints=True,
                switch=_ROI_POOL,
            ),
            _persons(
                "roi_align",
                "RoIAlign",
                _numbers("keypoints", 64.2, 86.6, 69.7, 58.7, 73.0, measures=_POSE),
                mask=False,
                keypoints=True,
                switch=_ROI_ALIGN,
            ),
        ),
        "roi_pool",
        _POOLING,
    ),
)
TABLES = {each.name: each for each in _ALL}
