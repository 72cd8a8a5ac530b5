"""The tables of the Mask R-CNN paper: their rows as changes of a model, with the published values.

He et al., "Mask R-CNN", ICCV 2017 (arXiv 1703.06870v3). Values are average precisions in percent, under the names of
the evaluation metrics. The modules `coco` and `small` turn rows into recipes.
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
ModelChange = Callable[[ModelConfig], ModelConfig]

METRIC_KINDS = {"bbox": "box", "segm": "mask", "keypoints": "keypoint"}  # prefix of a metric -> label
_MEASURES = ("AP", "AP50", "AP75")
_KEYPOINT_MEASURES = ("AP", "AP50", "AP75", "APm", "APl")


def _unchanged(model: ModelConfig) -> ModelConfig:
    return model


@dataclass(frozen=True)
class TableRow:
    """A row of a table: a model, and its published metrics."""

    name: str
    label: str  # as in the paper
    published: Mapping[str, float]  # {"segm/AP": 27.2, ...}; without the values that the paper does not give
    features: Features = "fpn"
    backbone: BackboneName = "R50"
    change: ModelChange = _unchanged  # sets the fields that the table compares
    mask: bool = True  # whether the model has a mask head
    keypoints: bool = False  # whether the model has a keypoint head
    persons: bool = False  # trained and evaluated on persons with keypoints
    classes: bool = False  # the comparison needs more than one class


@dataclass(frozen=True)
class PaperTable:
    """A table, whose rows differ only in `varied_fields`. Rows with X101 also differ in the batch size."""

    name: str
    title: str
    setting: str  # backbone and split of the published values
    columns: tuple[str, ...]  # metrics
    rows: tuple[TableRow, ...]
    reference: str  # name of the row that the others are compared with
    varied_fields: tuple[str, ...]

    def row(self, name: str) -> TableRow:
        """Return the row of this name. Raises ConfigError if there is none."""
        for row in self.rows:
            if row.name == name:
                return row
        raise ConfigError(f"table {self.name} has no row {name!r}; it has {', '.join(row.name for row in self.rows)}")


def table(name: str) -> PaperTable:
    """Return the table of this name. Raises ConfigError if there is none."""
    if name not in TABLES:
        raise ConfigError(f"there is no table {name!r}; there are {', '.join(TABLES)}")
    return TABLES[name]


def metric_label(metric: str) -> str:
    """Return the label of a metric: "segm/AP50" -> "mask AP50"."""
    kind, _, measure = metric.partition("/")
    return f"{METRIC_KINDS[kind]} {measure}"


def _values(kind: str, *values: float) -> dict[str, float]:
    """Name published values of a kind by the columns of the paper, or the first of them."""
    measures = _KEYPOINT_MEASURES if kind == "keypoints" else _MEASURES
    return {f"{kind}/{measure}": value for measure, value in zip(measures, values, strict=False)}


def _roi(pooling: Literal["align", "warp", "pool"], reduce: Literal["average", "max"]) -> ModelChange:
    return lambda model: dataclasses.replace(model, roi=dataclasses.replace(model.roi, pooling=pooling, reduce=reduce))


def _mask(**fields: Any) -> ModelChange:
    def change(model: ModelConfig) -> ModelConfig:
        assert model.mask is not None
        return dataclasses.replace(model, mask=dataclasses.replace(model.mask, **fields))

    return change


def _c4_row(name: str, label: str, change: ModelChange, *values: float, classes: bool = False) -> TableRow:
    return TableRow(name, label, _values("segm", *values), "c4", change=change, classes=classes)


def _c5_row(name: str, label: str, change: ModelChange, masks: tuple[float, ...], boxes: tuple[float, ...]) -> TableRow:
    return TableRow(name, label, _values("segm", *masks) | _values("bbox", *boxes), "c5", change=change)


def _persons_row(name: str, label: str, published: Mapping[str, float], **fields: Any) -> TableRow:
    return TableRow(name, label, published, persons=True, **fields)


def _keypoints_row(name: str, label: str, *values: float, **fields: Any) -> TableRow:
    return _persons_row(name, label, _values("keypoints", *values), keypoints=True, **fields)


_MASKS = tuple(f"segm/{measure}" for measure in _MEASURES)
_BOXES = tuple(f"bbox/{measure}" for measure in _MEASURES)
_KEYPOINTS = tuple(f"keypoints/{measure}" for measure in _KEYPOINT_MEASURES)
_POOLING = ("model.roi.pooling", "model.roi.reduce")
_ROI_POOL, _ROI_ALIGN = _roi("pool", "max"), _roi("align", "average")

_ALL = (
    PaperTable(
        "2a",
        "Backbone architecture",
        "mask AP, minival",
        _MASKS,
        (
            TableRow("r50_c4", "ResNet-50-C4", _values("segm", 30.3, 51.2, 31.5), "c4"),
            TableRow("r101_c4", "ResNet-101-C4", _values("segm", 32.7, 54.2, 34.3), "c4", "R101"),
            TableRow("r50_fpn", "ResNet-50-FPN", _values("segm", 33.6, 55.2, 35.3)),
            TableRow("r101_fpn", "ResNet-101-FPN", _values("segm", 35.4, 57.3, 37.5), "fpn", "R101"),
            TableRow("x101_fpn", "ResNeXt-101-FPN", _values("segm", 36.7, 59.5, 38.9), "fpn", "X101"),
        ),
        "r50_c4",
        # C4 also differs in one level of anchors, res5 as the head, and fewer RoIs.
        (
            *("model.backbone.", "model.features", "model.anchors.", "model.rpn.", "model.roi.batch_size"),
            *("model.box.", "model.mask."),
        ),
    ),
    PaperTable(
        "2b",
        "Multinomial vs. independent masks",
        "ResNet-50-C4, mask AP, minival",
        _MASKS,
        (
            _c4_row("softmax", "softmax", _mask(activation="softmax"), 24.8, 44.1, 25.1, classes=True),
            _c4_row("sigmoid", "sigmoid", _mask(activation="sigmoid"), 30.3, 51.2, 31.5, classes=True),
        ),
        "softmax",
        ("model.mask.activation",),
    ),
    PaperTable(
        "2c",
        "RoIAlign",
        "ResNet-50-C4, stride 16, mask AP, minival",
        _MASKS,
        (
            _c4_row("roi_pool_max", "RoIPool, max", _ROI_POOL, 26.9, 48.8, 26.4),
            _c4_row("roi_warp_max", "RoIWarp, max", _roi("warp", "max"), 27.2, 49.2, 27.1),
            _c4_row("roi_warp_average", "RoIWarp, ave", _roi("warp", "average"), 27.1, 48.9, 27.1),
            _c4_row("roi_align_max", "RoIAlign, max", _roi("align", "max"), 30.2, 51.0, 31.8),
            _c4_row("roi_align_average", "RoIAlign, ave", _ROI_ALIGN, 30.3, 51.2, 31.5),
        ),
        "roi_pool_max",
        _POOLING,
    ),
    PaperTable(
        "2d",
        "RoIAlign with large strides",
        "ResNet-50-C5, stride 32, minival",
        _MASKS + _BOXES,
        (
            _c5_row("roi_pool", "RoIPool", _ROI_POOL, (23.6, 46.5, 21.6), (28.2, 52.7, 26.9)),
            _c5_row("roi_align", "RoIAlign", _ROI_ALIGN, (30.9, 51.8, 32.1), (34.0, 55.3, 36.4)),
        ),
        "roi_pool",
        _POOLING,
    ),
    PaperTable(
        "2e",
        "Mask branch",
        "ResNet-50-FPN, mask AP, minival",
        _MASKS,
        (
            TableRow(
                "mlp_2",
                "MLP, fc: 1024-1024-80*28^2",
                _values("segm", 31.5, 53.7, 32.8),
                change=_mask(conv_layers=0, fc_layers=2),
            ),
            TableRow(
                "mlp_3",
                "MLP, fc: 1024-1024-1024-80*28^2",
                _values("segm", 31.5, 54.0, 32.6),
                change=_mask(conv_layers=0, fc_layers=3),
            ),
            TableRow("fcn", "FCN, conv: 256-256-256-256-256-80", _values("segm", 33.6, 55.2, 35.3)),
        ),
        "mlp_2",
        ("model.mask.conv_layers", "model.mask.fc_layers"),
    ),
    PaperTable(
        "agnostic",
        "Class-specific vs. class-agnostic masks",
        "ResNet-50-C4, mask AP, minival; numbers of section 4.2's text",
        ("segm/AP",),
        (
            _c4_row("class_specific", "class-specific", _mask(class_agnostic=False), 30.3, classes=True),
            _c4_row("class_agnostic", "class-agnostic", _mask(class_agnostic=True), 29.7, classes=True),
        ),
        "class_specific",
        ("model.mask.class_agnostic",),
    ),
    PaperTable(
        "3",
        "Object detection",
        "box AP, test-dev",
        _BOXES,
        (
            TableRow(
                "faster_r101_fpn",
                "Faster R-CNN, RoIAlign, ResNet-101-FPN",
                _values("bbox", 37.3, 59.6, 40.3),
                backbone="R101",
                mask=False,
            ),
            TableRow("mask_r101_fpn", "Mask R-CNN, ResNet-101-FPN", _values("bbox", 38.2, 60.3, 41.7), backbone="R101"),
            TableRow(
                "mask_x101_fpn", "Mask R-CNN, ResNeXt-101-FPN", _values("bbox", 39.8, 62.3, 43.4), backbone="X101"
            ),
        ),
        "faster_r101_fpn",
        ("model.mask", "model.backbone."),
    ),
    PaperTable(
        "4",
        "Keypoint detection",
        "ResNet-50-FPN, keypoint AP, test-dev",
        _KEYPOINTS,
        (
            _keypoints_row("keypoint_only", "Mask R-CNN, keypoint-only", 62.7, 87.0, 68.4, 57.4, 71.1, mask=False),
            _keypoints_row("keypoint_mask", "Mask R-CNN, keypoint & mask", 63.1, 87.3, 68.7, 57.8, 71.4),
        ),
        "keypoint_only",
        ("model.mask",),
    ),
    PaperTable(
        "5",
        "Multi-task learning of box, mask and keypoint",
        "persons, ResNet-50-FPN, minival",
        ("bbox/AP", "segm/AP", "keypoints/AP"),
        (
            _persons_row("faster", "Faster R-CNN", {"bbox/AP": 52.5}, mask=False),
            _persons_row("mask_only", "Mask R-CNN, mask-only", {"bbox/AP": 53.6, "segm/AP": 45.8}),
            _persons_row(
                "keypoint_only",
                "Mask R-CNN, keypoint-only",
                {"bbox/AP": 50.7, "keypoints/AP": 64.2},
                mask=False,
                keypoints=True,
            ),
            _persons_row(
                "keypoint_mask",
                "Mask R-CNN, keypoint & mask",
                {"bbox/AP": 52.0, "segm/AP": 45.1, "keypoints/AP": 64.7},
                keypoints=True,
            ),
        ),
        "faster",
        ("model.mask", "model.keypoint"),
    ),
    PaperTable(
        "6",
        "RoIAlign vs. RoIPool for keypoints",
        "ResNet-50-FPN, keypoint-only, keypoint AP, minival",
        _KEYPOINTS,
        (
            _keypoints_row("roi_pool", "RoIPool", 59.8, 86.2, 66.7, 55.1, 67.4, mask=False, change=_ROI_POOL),
            _keypoints_row("roi_align", "RoIAlign", 64.2, 86.6, 69.7, 58.7, 73.0, mask=False, change=_ROI_ALIGN),
        ),
        "roi_pool",
        _POOLING,
    ),
)
TABLES = {paper_table.name: paper_table for paper_table in _ALL}
