"""The paper's setting on COCO 2017, for each row of its tables.

Where the paper says nothing, it is Detectron2's flavor, as in the other recipes. The paper's ablations trained the
RPN apart from the rest; here all is trained together.
"""

from __future__ import annotations

import dataclasses

from mrcnn_jax.config import Config, ModelConfig, presets
from projects.paper_tables import tables

_BACKBONES = {"R50": presets.RESNET50, "R101": presets.RESNET101, "X101": presets.RESNEXT101_64X4D}
_STEPS, _MILESTONES = 160_000, (120_000,)
_SAMPLES = 2  # in a bin and direction: the paper's four, which RoIWarp has, too


def row(table: str, name: str) -> Config:
    """The recipe of a row. Raises ConfigError for a name that is not there."""
    return config(tables.table(table).row(name), f"table{table}_{name}")


def config(row: tables.Row, name: str = "") -> Config:
    """Batches of 16 at .02, of 8 at .01 for ResNeXt; 160,000 steps of boxes and masks, 90,000 of persons."""
    # Persons: the annotations of keypoints for all rows, and images where one is labeled, whatever the heads.
    base = presets.coco(name, presets.with_keypoints(presets.detectron2()), "1x") if row.persons else _long(name)
    if row.backbone == "X101":
        base = dataclasses.replace(
            base,
            optimizer=dataclasses.replace(base.optimizer, learning_rate=0.01),
            train=dataclasses.replace(base.train, batch_size=8),
        )
    return dataclasses.replace(base, model=row.switch(_model(row)))


def _long(name: str) -> Config:
    """The paper's schedule at its one scale."""
    base = presets.coco(name, presets.detectron2(), "2x")
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, shortest_edge_train=(800,)),
        optimizer=dataclasses.replace(base.optimizer, milestones=_MILESTONES),
        train=dataclasses.replace(base.train, steps=_STEPS),
    )


def _model(row: tables.Row) -> ModelConfig:
    backbone = _BACKBONES[row.backbone]
    if row.features == "c5":  # the paper names no head for it: the pyramid's, on one map as DC5 has it
        model = dataclasses.replace(presets.detectron2(backbone, "dc5"), features="c5")
    else:
        model = presets.detectron2(backbone, row.features)
    model = dataclasses.replace(model, roi=dataclasses.replace(model.roi, sampling_ratio=_SAMPLES))
    if row.features == "c4":
        model = dataclasses.replace(
            model,
            roi=dataclasses.replace(model.roi, batch_size=64),
            rpn=dataclasses.replace(model.rpn, post_nms_top_k_test=300),
        )
    if row.persons:
        model = presets.with_keypoints(model)
    return dataclasses.replace(
        model, mask=model.mask if row.mask else None, keypoint=model.keypoint if row.keypoints else None
    )
