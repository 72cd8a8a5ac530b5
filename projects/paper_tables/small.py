"""Small recipes of the tables, for two CPU cores: narrow networks on procedural images.

The networks are pretrained on single objects, see `classifier`. All settings that determine training time and accuracy
are at the top of this file.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from mrcnn_jax.config import (
    AnchorConfig,
    BackboneConfig,
    BoxHeadConfig,
    Config,
    DataConfig,
    EvalConfig,
    FPNConfig,
    KeypointHeadConfig,
    MaskHeadConfig,
    ModelConfig,
    OptimizerConfig,
    RoIConfig,
    RPNConfig,
    ShapesConfig,
    SplitConfig,
    TrainConfig,
)
from mrcnn_jax.errors import ConfigError
from mrcnn_jax.runtime import files
from projects.paper_tables import tables

# Data: procedural images. Outlines have one class, except in tables that compare classes; tables 4 to 6 use "people".
IMAGE_SIZE = 192
OUTLINES = ("circle", "triangle", "square", "star5", "cross", "crescent", "ring", "heart", "arrow", "U", "T", "zigzag")
CLASSES = ("circle", "triangle", "star5", "cross", "heart", "arrow")  # in tables that compare classes
DIAMETERS = (0.2, 0.6)  # of outlines, relative to the side of the image
OBJECTS = (2, 5)  # outlines per image
TRAIN_IMAGES = 1500
EVAL_IMAGES = 100
DATA_SEED = 0  # the same data for every training seed
CLASSIFIER_SEED = 1  # of the images for pretraining, which have all classes
CLASSIFIER_STEPS = 400
MAX_INSTANCES = 16
MASK_SIZE = 56  # side of the stored mask crops
# COCO images, for --scale=small with --data=DIR.
COCO_BUCKETS = ((192, 256), (256, 192))
COCO_EDGES = (160, 176, 192)

# Training. A step of C4 costs twice as much as others, but masks need fewer steps: res5, their head, is pretrained.
STEPS = {"fpn": 250, "c4": 150, "c5": 300}
PERSON_STEPS = 300
BATCH_SIZE = 8
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.01
WARMUP_STEPS = 20
CLIP_NORM = 5.0
EVAL_BATCH_SIZE = 20

# Networks. There is no small ResNeXt.
BACKBONES: dict[str, Literal["resnet18", "resnet34"]] = {"R50": "resnet18", "R101": "resnet34"}
WIDTH = 32  # of the backbone; 64 is standard
NORM: Literal["bn"] = "bn"  # trainable: whole scenes have other statistics than the crops of pretraining
FROZEN_STAGES = 2  # stem and res2
FPN_CHANNELS = 64
# Anchor sizes: one per level with FPN, all on the single level without.
ANCHOR_SIZES = (24.0, 40.0, 64.0, 104.0, 160.0)
ANCHORS_SAMPLED = 128
PROPOSALS_BEFORE_NMS = 300
PROPOSALS = 100
ROIS = {"fpn": 24, "c4": 16, "c5": 24}  # sampled per image
POSITIVE_FRACTION = 0.5
SAMPLING_RATIO = 2  # samples per bin and direction
BOX_HIDDEN = 256
MASK_CHANNELS = 64
MASK_HIDDEN = 256  # of the MLP masks of table 2e
C4_POOL_SIZE = 14
KEYPOINT_LAYERS = 4
KEYPOINT_CHANNELS = 64
MAX_DETECTIONS = 20
NMS_CANDIDATES = 1024

CLASSIFIERS = "classifiers"  # folder next to those of the tables
_SPLITS = SplitConfig("train.json", "train"), SplitConfig("val.json", "val")


def is_available(row: tables.TableRow) -> bool:
    """Return whether a row has a small recipe."""
    return row.backbone in BACKBONES


def row(table: str, name: str) -> Config:
    """Return the recipe of a row. Raises ConfigError if the table or row does not exist or has no small recipe."""
    return config(tables.table(table).row(name), f"table{table}_{name}")


def config(row: tables.TableRow, name: str = "") -> Config:
    """Return the recipe of a row on procedural images in `runs/data`. Raises ConfigError if it has no small recipe."""
    if not is_available(row):
        raise ConfigError(f"{row.label} has no small recipe; choose other rows than {row.name!r}, or use --scale=coco")
    kind: Literal["people", "outlines"] = "people" if row.persons else "outlines"
    data = DataConfig(
        root=f"runs/data/{kind}{'_classes' if row.classes else ''}",
        train=_SPLITS[0],
        eval=_SPLITS[1],
        shapes=_shapes(row),
        min_keypoints=1 if row.persons else 0,
        buckets=((IMAGE_SIZE, IMAGE_SIZE),),
        shortest_edge_train=(IMAGE_SIZE,),
        shortest_edge_eval=IMAGE_SIZE,
        longest_edge=IMAGE_SIZE,
        max_instances=MAX_INSTANCES,
        mask_size=MASK_SIZE,
    )
    return Config(
        name,
        init=f"runs/{CLASSIFIERS}/{BACKBONES[row.backbone]}.npz",
        model=row.change(_model(row)),
        data=data,
        optimizer=OptimizerConfig(
            "adamw",
            LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            schedule="cosine",
            warmup_steps=WARMUP_STEPS,
            clip_norm=CLIP_NORM,
        ),
        train=TrainConfig(
            steps=PERSON_STEPS if row.persons else STEPS[row.features],
            batch_size=BATCH_SIZE,
            checkpoint_every=50,
            keep_checkpoints=1,
        ),
        eval=EvalConfig(batch_size=EVAL_BATCH_SIZE),
    )


def pretrain(file: Path, config: Config, root: Path) -> None:
    """Pretrain the backbone of a recipe and write it to `file`, unless it exists. Images are written to `root`."""
    from projects.paper_tables import classifier  # imports jax, which recipes do not need

    if file.exists():
        return
    shapes = ShapesConfig("outlines", TRAIN_IMAGES, 1, IMAGE_SIZE, CLASSIFIER_SEED)
    data = dataclasses.replace(config.data, root=str(root), train=_SPLITS[0], eval=_SPLITS[1], shapes=shapes)
    file.parent.mkdir(parents=True, exist_ok=True)
    print(f"{file}: pretraining a classifier for all rows, or waiting for another shard that does", flush=True)
    with files.folder_lock(file.parent):
        if file.exists():  # another shard has written it
            return
        accuracy = classifier.train(file, config.model, data, steps=CLASSIFIER_STEPS)
    print(f"{file}: training accuracy {100 * accuracy:.0f} %", flush=True)


def _shapes(row: tables.TableRow) -> ShapesConfig:
    shapes = ShapesConfig("people" if row.persons else "outlines", TRAIN_IMAGES, EVAL_IMAGES, IMAGE_SIZE, DATA_SEED)
    if row.persons:
        return shapes
    names = CLASSES if row.classes else OUTLINES
    return dataclasses.replace(shapes, outlines=names, diameters=DIAMETERS, objects=OBJECTS, one_class=not row.classes)


def with_coco_images(data: DataConfig, persons: bool) -> DataConfig:
    """Replace the procedural images of a small recipe by COCO 2017."""
    kind = "person_keypoints" if persons else "instances"
    return dataclasses.replace(
        data,
        shapes=None,
        train=SplitConfig(f"annotations/{kind}_train2017.json", "train2017"),
        eval=SplitConfig(f"annotations/{kind}_val2017.json", "val2017"),
        buckets=COCO_BUCKETS,
        shortest_edge_train=COCO_EDGES,
        shortest_edge_eval=max(COCO_EDGES),
        longest_edge=max(max(bucket) for bucket in COCO_BUCKETS),
        max_instances=100,
    )


def _model(row: tables.TableRow) -> ModelConfig:
    c4 = row.features == "c4"
    mask = MaskHeadConfig(channels=MASK_CHANNELS, hidden=MASK_HIDDEN)
    if c4:
        mask = dataclasses.replace(mask, pool_size=C4_POOL_SIZE, conv_layers=0)
    box = BoxHeadConfig(hidden=BOX_HIDDEN, max_detections=MAX_DETECTIONS, nms_candidates=NMS_CANDIDATES)
    if c4:
        box = dataclasses.replace(box, pool_size=C4_POOL_SIZE, fc_layers=0)
    return ModelConfig(
        features=row.features,
        backbone=BackboneConfig(BACKBONES[row.backbone], width=WIDTH, norm=NORM, frozen_stages=FROZEN_STAGES),
        fpn=FPNConfig(FPN_CHANNELS),
        anchors=AnchorConfig(tuple((size,) for size in ANCHOR_SIZES) if row.features == "fpn" else (ANCHOR_SIZES,)),
        rpn=RPNConfig(
            batch_size=ANCHORS_SAMPLED,
            pre_nms_top_k_train=PROPOSALS_BEFORE_NMS,
            post_nms_top_k_train=PROPOSALS,
            pre_nms_top_k_test=PROPOSALS_BEFORE_NMS,
            post_nms_top_k_test=PROPOSALS,
        ),
        roi=RoIConfig(ROIS[row.features], POSITIVE_FRACTION, sampling_ratio=SAMPLING_RATIO),
        box=box,
        mask=mask if row.mask else None,
        keypoint=KeypointHeadConfig(conv_layers=KEYPOINT_LAYERS, channels=KEYPOINT_CHANNELS) if row.keypoints else None,
    )
