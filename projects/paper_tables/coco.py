"""Recipes of the tables in the paper's setting, on COCO 2017.

What the paper does not state follows Detectron2, as in the other recipes. The paper trained the RPN separately for its
ablations; here RPN and heads are trained jointly.
"""

from __future__ import annotations

import dataclasses

from mrcnn_jax.config import Config, ModelConfig, presets
from projects.paper_tables import tables

_BACKBONES = {"R50": presets.RESNET50, "R101": presets.RESNET101, "X101": presets.RESNEXT101_64X4D}
_STEPS, _MILESTONES = 160_000, (120_000,)
_SAMPLING_RATIO = 2  # samples per bin and direction: four per bin, as in the paper, for RoIAlign and RoIWarp


def row(table: str, name: str) -> Config:
    """Return the recipe of a row. Raises ConfigError if the table or the row does not exist."""
    return config(tables.table(table).row(name), f"table{table}_{name}")


def config(row: tables.TableRow, name: str = "") -> Config:
    """Return the recipe of a row.

    Batches of 16 images at a learning rate of 0.02 (ResNeXt: 8 at 0.01); 160,000 steps, or 90,000 for persons.
    """
    # All rows on persons use the keypoint annotations and images with a labeled keypoint, whatever their heads.
    base = presets.coco(name, presets.with_keypoints(presets.detectron2()), "1x") if row.persons else _base(name)
    if row.backbone == "X101":
        base = dataclasses.replace(
            base,
            optimizer=dataclasses.replace(base.optimizer, learning_rate=0.01),
            train=dataclasses.replace(base.train, batch_size=8),
        )
    return dataclasses.replace(base, model=row.change(_model(row)))


def _base(name: str) -> Config:
    """Return a recipe with the schedule and the single image scale of the paper."""
    base = presets.coco(name, presets.detectron2(), "2x")
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, shortest_edge_train=(800,)),
        optimizer=dataclasses.replace(base.optimizer, milestones=_MILESTONES),
        train=dataclasses.replace(base.train, steps=_STEPS),
    )


def _model(row: tables.TableRow) -> ModelConfig:
    backbone = _BACKBONES[row.backbone]
    if row.features == "c5":  # the paper does not state the head: use that of FPN on one feature map, as DC5 does
        model = dataclasses.replace(presets.detectron2(backbone, "dc5"), features="c5")
    else:
        model = presets.detectron2(backbone, row.features)
    model = dataclasses.replace(model, roi=dataclasses.replace(model.roi, sampling_ratio=_SAMPLING_RATIO))
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
