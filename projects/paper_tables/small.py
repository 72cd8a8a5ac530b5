"""The paper's comparisons for two CPU cores: narrow networks on procedural images.

As the paper's begin with an ImageNet classifier, these begin with one of single figures, see `classifier`. Everything
that decides how long a run takes and how well it learns stands at the top of this file.
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

# Data: the procedural set. Outlines are one class, but where a table is about classes; "people" are of tables 4 to 6.
IMAGE_SIZE = 192
OUTLINES = ("circle", "triangle", "square", "star5", "cross", "crescent", "ring", "heart", "arrow", "U", "T", "zigzag")
CLASSES = ("circle", "triangle", "star5", "cross", "heart", "arrow")  # where a table is about them
DIAMETERS = (0.2, 0.6)  # of outlines, as parts of the image's side
OBJECTS = (2, 5)  # outlines in an image
TRAIN_IMAGES = 1500
EVAL_IMAGES = 100
DATA_SEED = 0  # the same data for every seed of a run
CLASSIFIER_SEED = 1  # of the figures that the classifier learns, of all classes: other pictures
CLASSIFIER_STEPS = 400
MAX_INSTANCES = 16
MASK_SIZE = 56  # side of the stored mask crops
# Photographs in COCO's layout, if small networks are asked to learn those.
PHOTOGRAPH_BUCKETS = ((192, 256), (256, 192))
PHOTOGRAPH_EDGES = (160, 176, 192)

# Training. A step of C4 costs twice as much as one of the others, and teaches more of masks: res5 has learned already.
STEPS = {"fpn": 250, "c4": 150, "c5": 300}
PERSON_STEPS = 300
BATCH_SIZE = 8
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.01
WARMUP_STEPS = 20
CLIP_NORM = 5.0
EVAL_BATCH_SIZE = 20

# Networks. A ResNeXt has no small form.
BACKBONES: dict[str, Literal["resnet18", "resnet34"]] = {"R50": "resnet18", "R101": "resnet34"}
WIDTH = 32  # of the backbone; 64 is the usual one
NORM: Literal["bn"] = "bn"  # learns: figures of whole scenes are not those of the classifier's crops
FROZEN_STAGES = 2  # stem and res2
FPN_CHANNELS = 64
# Anchors: one size a level with a pyramid, all of them on the one map without.
ANCHOR_SIZES = (24.0, 40.0, 64.0, 104.0, 160.0)
ANCHORS_SAMPLED = 128
PROPOSALS_BEFORE_NMS = 300
PROPOSALS = 100
ROIS = {"fpn": 24, "c4": 16, "c5": 24}  # sampled in an image
POSITIVE_FRACTION = 0.5
ROI_SAMPLES = 2  # of a bin, in each direction
BOX_HIDDEN = 256
MASK_CHANNELS = 64
MASK_HIDDEN = 256  # of the perceptrons of table 2e
C4_POOL_SIZE = 14
KEYPOINT_LAYERS = 4
KEYPOINT_CHANNELS = 64
MAX_DETECTIONS = 20
NMS_CANDIDATES = 1024

CLASSIFIERS = "classifiers"  # folder beside the tables
_SPLITS = SplitConfig("train.json", "train"), SplitConfig("val.json", "val")


def has(row: tables.Row) -> bool:
    """Whether a row has a small form."""
    return row.backbone in BACKBONES


def row(table: str, name: str) -> Config:
    """The recipe of a row. Raises ConfigError for a name that is not there, and a row without a small form."""
    return config(tables.table(table).row(name), f"table{table}_{name}")


def config(row: tables.Row, name: str = "") -> Config:
    """A row on the procedural set, in `runs/data`."""
    if not has(row):
        raise ConfigError(f"{row.label} has no small form; leave the row {row.name!r} out, or use the scale coco")
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
        model=row.switch(_model(row)),
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
    """Write the classifier that a recipe of this scale begins with to `file`, if it is not there; images to `root`."""
    from projects.paper_tables import classifier  # here: a recipe needs no jax

    if file.exists():
        return
    shapes = ShapesConfig("outlines", TRAIN_IMAGES, 1, IMAGE_SIZE, CLASSIFIER_SEED)
    data = dataclasses.replace(config.data, root=str(root), train=_SPLITS[0], eval=_SPLITS[1], shapes=shapes)
    file.parent.mkdir(parents=True, exist_ok=True)
    print(f"{file}: a classifier of single figures, for all rows; while another shard makes it, this waits", flush=True)
    with files.folder_lock(file.parent):
        if file.exists():  # by another shard, which was waited for
            return
        right = classifier.train(file, config.model, data, steps=CLASSIFIER_STEPS)
    print(f"{file}: {100 * right:.0f} % of the last crops were right when they came", flush=True)


def _shapes(row: tables.Row) -> ShapesConfig:
    shapes = ShapesConfig("people" if row.persons else "outlines", TRAIN_IMAGES, EVAL_IMAGES, IMAGE_SIZE, DATA_SEED)
    if row.persons:
        return shapes
    names = CLASSES if row.classes else OUTLINES
    return dataclasses.replace(shapes, outlines=names, diameters=DIAMETERS, objects=OBJECTS, one_class=not row.classes)


def on_photographs(data: DataConfig, persons: bool) -> DataConfig:
    """The settings of a small recipe, with COCO 2017's files in place of the procedural ones."""
    kind = "person_keypoints" if persons else "instances"
    return dataclasses.replace(
        data,
        shapes=None,
        train=SplitConfig(f"annotations/{kind}_train2017.json", "train2017"),
        eval=SplitConfig(f"annotations/{kind}_val2017.json", "val2017"),
        buckets=PHOTOGRAPH_BUCKETS,
        shortest_edge_train=PHOTOGRAPH_EDGES,
        shortest_edge_eval=max(PHOTOGRAPH_EDGES),
        longest_edge=max(max(bucket) for bucket in PHOTOGRAPH_BUCKETS),
        max_instances=100,
    )


def _model(row: tables.Row) -> ModelConfig:
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
        roi=RoIConfig(ROIS[row.features], POSITIVE_FRACTION, sampling_ratio=ROI_SAMPLES),
        box=box,
        mask=mask if row.mask else None,
        keypoint=KeypointHeadConfig(conv_layers=KEYPOINT_LAYERS, channels=KEYPOINT_CHANNELS) if row.keypoints else None,
    )
