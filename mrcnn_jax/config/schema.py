"""Dataclasses of the configuration: data, optimizer, training, evaluation, and the whole recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from mrcnn_jax.config.field_types import (
    EdgeLength,
    FilePath,
    FiniteFloat,
    Fraction,
    Int64,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
    Seed,
)
from mrcnn_jax.config.model_schema import ModelConfig
from mrcnn_jax.config.values import Settings


@dataclass(frozen=True)
class SplitConfig(Settings):
    """One split of a COCO-style dataset; paths are relative to `data.root`."""

    annotations: FilePath = "annotations/instances_train2017.json"
    images: FilePath = "train2017"
    image_ids: tuple[Int64, ...] = ()  # subset of the images to use; empty: all


@dataclass(frozen=True)
class ShapesConfig(Settings):
    """A synthetic dataset, written to `data.root` as COCO JSON and PNG files if it does not exist."""

    # Five simple shapes; many classes that differ only in their outline; stick figures with COCO's 17 keypoints.
    kind: Literal["simple", "outlines", "people"] = "simple"

    train_images: PositiveInt = 400
    eval_images: PositiveInt = 100
    image_size: Annotated[int, "[16, inf)"] = 128
    seed: Seed = 0
    # For the kind "outlines":
    outlines: tuple[str, ...] = ()  # subset of the outlines to use; empty: all
    diameters: tuple[Fraction, Fraction] = (0.0, 0.6)  # bounds, as fractions of the image side; at least some 12 pixels
    objects: tuple[NonNegativeInt, PositiveInt] = (4, 10)  # bounds of the number of shapes to try per image
    one_class: bool = False  # use the class "figure" for all


@dataclass(frozen=True)
class AugmentConfig(Settings):
    """Augmentation of training images besides `data.horizontal_flip` and `data.shortest_edge_train`."""

    # Large-scale jitter (Ghiasi et al. 2021: 0.1, 2.0) instead of shortest_edge_train: bounds of the scale, relative
    # to the image scaled to fill the bucket.
    scale_jitter: tuple[PositiveFloat, PositiveFloat] | None = None
    crop: Fraction = 0.0  # probability of a random crop
    # Bounds of its height and of its width, as fractions of the image.
    crop_size: tuple[PositiveFraction, PositiveFraction] = (0.5, 1.0)
    brightness: NonNegativeFloat = 0.0  # factors in [1 - b, 1 + b], as in torchvision's ColorJitter
    contrast: NonNegativeFloat = 0.0
    saturation: NonNegativeFloat = 0.0
    hue: Annotated[float, "[0, 0.5]"] = 0.0
    copy_paste: Fraction = 0.0  # probability of pasting instances of another image (Ghiasi et al. 2021)


@dataclass(frozen=True)
class DataConfig(Settings):
    """Datasets, image sizes, augmentation and loading."""

    root: FilePath = ""
    train: SplitConfig = field(default_factory=SplitConfig)
    eval: SplitConfig = field(default_factory=lambda: SplitConfig("annotations/instances_val2017.json", "val2017"))
    shapes: ShapesConfig | None = None
    # For images with more than 8 bits or floats: the pixel values that map to 0 and 255; `mrcnn check` measures them.
    # None: the range of the integer type; floats need a value.
    value_range: tuple[FiniteFloat, FiniteFloat] | None = None
    categories: tuple[str, ...] = ()  # names of the categories to use, in both splits; empty: all
    min_keypoints: NonNegativeInt = 0  # minimum labeled keypoints of a training image (Detectron2: 1, torchvision: 10)
    cache_dir: FilePath = ""  # prepared records; empty: ~/.cache/mrcnn_jax/datasets
    # Padded image sizes (height, width).
    buckets: tuple[tuple[PositiveInt, PositiveInt], ...] = ((800, 1088), (1088, 800), (800, 1344), (1344, 800))
    shortest_edge_train: tuple[EdgeLength, ...] = (640, 672, 704, 736, 768, 800)  # one is sampled for each image
    shortest_edge_eval: EdgeLength = 800
    longest_edge: EdgeLength = 1333
    horizontal_flip: Fraction = 0.5  # probability
    vertical_flip: Fraction = 0.0  # probability
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    # Last, incomplete batch of a bucket in an epoch: filled by repeating images; padded with empty slots; or dropped.
    remainder: Literal["repeat", "pad", "drop"] = "repeat"
    on_corrupt: Literal["skip", "stop"] = "skip"  # for an image that cannot be decoded: leave its slot empty, or stop
    max_instances: PositiveInt = 100  # ground-truth slots N
    mask_size: PositiveInt = 112  # side M of the mask crops
    workers: NonNegativeInt = 0  # worker processes; 0: threads of this process


@dataclass(frozen=True)
class OptimizerConfig(Settings):
    """SGD with momentum or AdamW, with warmup and a multistep or cosine schedule; norms and biases as in Detectron2."""

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: PositiveFloat = 0.02
    momentum: Annotated[float, "[0, 1)"] = 0.9
    weight_decay: NonNegativeFloat = 1e-4  # not applied to norms
    schedule: Literal["multistep", "cosine"] = "multistep"
    milestones: tuple[PositiveInt, ...] = (60_000, 80_000)  # steps
    milestone_factor: PositiveFloat = 0.1
    warmup_steps: NonNegativeInt = 1000
    warmup_factor: Fraction = 0.001
    clip_norm: PositiveFloat | None = None  # maximum global gradient norm
    # (path, factor) of learning rates, such as (("backbone", 0.1), ("backbone/res5", 0.5)); the longest path applies.
    lr_multipliers: tuple[tuple[str, NonNegativeFloat], ...] = ()


@dataclass(frozen=True)
class TrainConfig(Settings):
    """Run length, checkpoint, logging and evaluation intervals, memory options."""

    steps: PositiveInt = 90_000
    batch_size: PositiveInt = 16  # global batch size: images over all devices
    seed: Seed = 0
    log_every: PositiveInt = 20  # steps
    checkpoint_every: PositiveInt = 5000  # steps
    keep_checkpoints: PositiveInt = 3
    accumulate: PositiveInt = 1  # gradient accumulation steps per device; `bn` uses the statistics of each part
    remat: bool = False  # recompute activations in the backward pass to save memory
    ema_decay: Annotated[float, "[0, 1)"] = 0.0  # moving average of the weights, used for evaluation; 0: none
    max_skipped: NonNegativeInt = 0  # steps with non-finite loss or gradient to skip before the run stops
    validate_every: NonNegativeInt = 0  # steps between computations of the loss on data.eval; 0: never
    evaluate_every: NonNegativeInt = 0  # steps between evaluations; 0: only at the end
    best_metric: str = ""  # metric that selects the best checkpoint: "bbox/AP", "segm/AP", ..., "validation/loss"
    patience: NonNegativeInt = 0  # stop after so many measurements of best_metric without improvement; 0: never


@dataclass(frozen=True)
class EvalConfig(Settings):
    """Evaluation after training and by `mrcnn eval`, and preprocessing for inference."""

    batch_size: PositiveInt = 8  # images of one bucket
    # Pad to `data.buckets`; or resize and pad each image exactly as the reference implementation: one compilation for
    # each shape.
    resize: Literal["bucket", "torchvision", "detectron2"] = "bucket"
    # Test-time augmentation: shortest edges whose detections are merged; empty: only data.shortest_edge_eval. The batch
    # size is then 1.
    scales: tuple[EdgeLength, ...] = ()
    flip: bool = False  # test-time augmentation with mirrored images
    overlays: NonNegativeInt = 8  # images to draw with their detections, written to the work directory
    keypoint_sigmas: tuple[PositiveFloat, ...] = ()  # of OKS, per keypoint; empty: COCO's 17, or their mean

    @property
    def augmented(self) -> bool:
        """Whether test-time augmentation is on."""
        return self.flip or bool(self.scales)

    @property
    def single_image(self) -> bool:
        """Whether each batch has one image."""
        return self.augmented or self.resize != "bucket"


@dataclass(frozen=True)
class Config(Settings):
    """A recipe: model, data, optimizer, training and evaluation."""

    name: str = "mask_rcnn"
    init: FilePath = ""  # initial weights: file, zoo:NAME, hf://NAME, run or export; required if layers are frozen
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
