"""The tree of typed settings: one dataclass for each part of the network, the data, and the run."""

from __future__ import annotations

import os.path
from dataclasses import dataclass, field
from typing import Annotated, Literal

from mrcnn_jax.config.values import Settings

# Types of fields, with the interval that their values must be in; what depends on several fields: `check`.
Whole = Annotated[int, "[0, inf)"]
Count = Annotated[int, "[1, inf)"]
Edge = Annotated[int, "[8, 65535]"]  # pixels
Seed = Annotated[int, "[0, 4294967295]"]  # of jax.random.key, which drops what is above 32 bits
Id = Annotated[int, "[-9223372036854775808, 9223372036854775808)"]
Finite = Annotated[float, "(-inf, inf)"]
NotNegative = Annotated[float, "[0, inf)"]
Positive = Annotated[float, "(0, inf)"]
Fraction = Annotated[float, "[0, 1]"]
Share = Annotated[float, "(0, 1]"]
Place = Annotated[str, os.path.expanduser]  # of a file or folder: "~" is the home directory

NormName = Literal["frozen_bn", "bn", "sync_bn", "gn"]
HeadNormName = Literal["none", "bn", "sync_bn", "gn"]


@dataclass(frozen=True)
class BackboneConfig(Settings):
    """Residual network (He et al. 2016, Xie et al. 2017) or EfficientNet-Lite (Tan and Le 2019), the bottom-up path."""

    name: Literal["resnet18", "resnet34", "resnet50", "resnet101", "efficientnet_lite0"] = "resnet50"
    width: Count = 64  # channels of the stem; the stages have 1, 2, 4, 8 times as many (bottlenecks: four times that)
    groups: Count = 1  # of the 3 x 3 convolutions; ResNeXt-101-32x8d has 32 groups of 8 channels in res2
    width_per_group: Count = 64  # channels of a group in res2 where width is 64
    norm: NormName = "frozen_bn"
    norm_eps: NotNegative = 1e-5
    stride_in_1x1: bool = False  # True: the MSRA/Detectron2 placement, False: torchvision's
    frozen_stages: Annotated[int, "[0, 5]"] = 2  # 0: everything trains; 1: the stem is frozen; 2: stem and res2; ...


@dataclass(frozen=True)
class FPNConfig(Settings):
    """Feature pyramid (Lin et al. 2017), P2..P6."""

    channels: Count = 256
    norm: HeadNormName = "none"


@dataclass(frozen=True)
class AnchorConfig(Settings):
    """Anchors of each level: of P2..P6 with a pyramid, of the one feature map without."""

    sizes: tuple[tuple[Positive, ...], ...] = ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))
    aspect_ratios: tuple[Positive, ...] = (0.5, 1.0, 2.0)  # height / width
    rounded: bool = False  # torchvision rounds the corners of its base anchors to integers
    order: Literal["size_major", "ratio_major"] = "size_major"  # Detectron2's order, torchvision's order
    stride: Literal["nominal", "image_over_grid"] = "nominal"  # torchvision divides image by grid, in integers


@dataclass(frozen=True)
class RPNConfig(Settings):
    """Region proposal network: head, targets, losses, proposals."""

    conv_layers: Whole = 1
    positive_iou: Share = 0.7
    negative_iou: Fraction = 0.3
    batch_size: Count = 256  # anchors sampled in an image
    positive_fraction: Share = 0.5
    smooth_l1_beta: NotNegative = 0.0  # 0 is the L1 loss (Detectron2); torchvision has 1/9
    normalizer: Literal["batch_size", "sampled"] = "batch_size"  # divide by batch_size * images, or by what was drawn
    pre_nms_top_k_train: Count = 2000  # for each level
    pre_nms_top_k_test: Count = 1000
    post_nms_top_k_train: Count = 1000  # all levels together
    post_nms_top_k_test: Count = 1000
    nms_iou: Share = 0.7
    min_box_size: NotNegative = 0.0  # boxes with a shorter side are not proposed; 0 drops only the empty ones


@dataclass(frozen=True)
class RoIConfig(Settings):
    """Sampling of RoIs for training, and how features are pooled from them."""

    batch_size: Count = 512  # RoIs sampled in an image
    positive_fraction: Share = 0.25
    positive_iou: Share = 0.5
    # How a bin is made of cells: bilinear samples in the RoI (ROIAlign), bilinear samples in the RoI rounded to whole
    # cells (RoIWarp), or the cells themselves of the rounded RoI (RoIPool). The paper's tables 2c, 2d and 6.
    pooling: Literal["align", "warp", "pool"] = "align"
    reduce: Literal["average", "max"] = "average"  # of a bin's samples or cells
    aligned: bool = True  # ROIAlign with the half-pixel shift (Detectron2) or without (torchvision)
    sampling_ratio: Whole = 0  # samples in a bin and direction; 0: adaptive, as many as the bin has pixels
    level_rule: Literal["detectron2", "torchvision"] = "detectron2"  # where the epsilon of the level formula stands


@dataclass(frozen=True)
class BoxHeadConfig(Settings):
    """Convolutions, fully connected layers, then classes and boxes; losses and final detections.

    With `model.features="c4"` res5 takes the place of the layers, and `pool_size` is its input.
    """

    pool_size: Count = 7
    conv_layers: Whole = 0
    channels: Count = 256  # of the convolutions
    norm: HeadNormName = "none"  # after each convolution
    fc_layers: Whole = 2
    hidden: Count = 1024
    class_agnostic: bool = False  # one box for all classes
    delta_weights: tuple[Positive, Positive, Positive, Positive] = (10.0, 10.0, 5.0, 5.0)
    smooth_l1_beta: NotNegative = 0.0
    score_threshold: Annotated[float, "[0, 1)"] = 0.05
    nms_iou: Share = 0.5
    max_detections: Count = 100
    nms_candidates: Count = 4096  # (proposal, class) pairs that enter class-wise NMS, best scores first
    min_box_size: NotNegative = 0.0


@dataclass(frozen=True)
class MaskHeadConfig(Settings):
    """Mask head: fully convolutional, or, with `fc_layers`, a multi-layer perceptron (the paper's table 2e)."""

    pool_size: Count = 14
    conv_layers: Whole = 4
    channels: Count = 256
    norm: HeadNormName = "none"
    fc_layers: Whole = 0  # fully connected layers in place of the convolutions; the paper's perceptrons have 2 and 3
    hidden: Count = 1024  # their width
    # One mask for each class, on its own; or classes and background compete for each pixel (the paper's table 2b).
    activation: Literal["sigmoid", "softmax"] = "sigmoid"
    class_agnostic: bool = False  # one mask for all classes
    target: Literal["binary", "soft"] = "binary"  # mask targets thresholded at 1/2 (Detectron2) or not (torchvision)
    target_sampling_ratio: Whole = 0  # samples in a cell and direction when targets are resampled; 0: adaptive
    paste: Literal["detectron2", "torchvision"] = "detectron2"  # how a mask is laid on the image


@dataclass(frozen=True)
class KeypointHeadConfig(Settings):
    """Keypoint head (He et al. 2017, section 5): a one-hot heat map for each of K keypoints."""

    num_keypoints: Count = 17
    pool_size: Count = 14
    conv_layers: Whole = 8
    channels: Count = 512
    normalizer: Literal["visible", "fixed"] = "visible"  # divide by visible keypoints, or by the most that could be
    score: Literal["probability", "logit"] = "probability"  # what a keypoint's score is: Detectron2's, torchvision's
    flip_map: tuple[Whole, ...] = (
        0,
        2,
        1,
        4,
        3,
        6,
        5,
        8,
        7,
        10,
        9,
        12,
        11,
        14,
        13,
        16,
        15,
    )  # index in a mirrored image


@dataclass(frozen=True)
class ModelConfig(Settings):
    """The network. `num_classes`, ids, names and skeleton come from the data when they are left empty."""

    num_classes: Whole = 0  # foreground classes C; 0: taken from the data
    category_ids: tuple[Id, ...] = ()  # category_ids[k - 1] is the data set's id of class k
    category_names: tuple[str, ...] = ()
    keypoint_names: tuple[str, ...] = ()  # of the K keypoints
    skeleton: tuple[tuple[Whole, Whole], ...] = ()  # pairs of keypoints, counted from 0, that pictures join with a line
    channel_order: Literal["rgb", "bgr"] = "rgb"
    pixel_mean: tuple[Finite, Finite, Finite] = (123.675, 116.28, 103.53)  # in channel_order, on the scale 0..255
    pixel_std: tuple[Positive, Positive, Positive] = (58.395, 57.12, 57.375)
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    # Pyramid; res4, with res5 as the head; res5, at stride 32; res5 dilated to stride 16.
    features: Literal["fpn", "c4", "c5", "dc5"] = "fpn"
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    fpn: FPNConfig = field(default_factory=FPNConfig)
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    rpn: RPNConfig = field(default_factory=RPNConfig)
    roi: RoIConfig = field(default_factory=RoIConfig)
    box: BoxHeadConfig = field(default_factory=BoxHeadConfig)
    mask: MaskHeadConfig | None = field(default_factory=MaskHeadConfig)  # None: Faster R-CNN
    keypoint: KeypointHeadConfig | None = None

    @property
    def mask_size(self) -> int:
        """Side S of the predicted masks; 0 without a mask head. C4's res5 halves what was pooled."""
        if self.mask is None:
            return 0
        return self.mask.pool_size if self.features == "c4" else 2 * self.mask.pool_size

    @property
    def num_keypoints(self) -> int:
        """K; 0 without a keypoint head."""
        return self.keypoint.num_keypoints if self.keypoint is not None else 0


@dataclass(frozen=True)
class SplitConfig(Settings):
    """One split of a COCO-style data set; paths are relative to `data.root`."""

    annotations: Place = "annotations/instances_train2017.json"
    images: Place = "train2017"
    image_ids: tuple[Id, ...] = ()  # only these images; empty: all


@dataclass(frozen=True)
class ShapesConfig(Settings):
    """A procedural data set: when set, it is written to `data.root` as COCO JSON + PNG if it is not there yet."""

    # Five simple figures; many classes that differ in their outline only; stick figures with COCO's 17 keypoints.
    kind: Literal["simple", "outlines", "people"] = "simple"

    train_images: Count = 400
    eval_images: Count = 100
    image_size: Annotated[int, "[16, inf)"] = 128
    seed: Seed = 0
    # Of the kind "outlines":
    outlines: tuple[str, ...] = ()  # which of them there are; empty: all
    diameters: tuple[Fraction, Fraction] = (0.0, 0.6)  # as parts of the image's side; at least some 12 pixels
    objects: tuple[Whole, Count] = (4, 10)  # how many are tried in an image, both included
    one_class: bool = False  # all are called "figure"


@dataclass(frozen=True)
class AugmentConfig(Settings):
    """What else is done to training images, beside `data.horizontal_flip` and `data.shortest_edge_train`."""

    # Large-scale jitter (Ghiasi et al. 2021: 0.1, 2.0): relative to what fills the bucket, in place of shortest_edge.
    scale_jitter: tuple[Positive, Positive] | None = None
    crop: Fraction = 0.0  # probability of using a part of the image only
    crop_size: tuple[Share, Share] = (0.5, 1.0)  # its height and width, drawn apart, as parts of the image's
    brightness: NotNegative = 0.0  # factors between 1 - b and 1 + b, as in torchvision's ColorJitter
    contrast: NotNegative = 0.0
    saturation: NotNegative = 0.0
    hue: Annotated[float, "[0, 0.5]"] = 0.0  # at most 0.5
    copy_paste: Fraction = 0.0  # probability of pasting instances of another image (Ghiasi et al. 2021)


@dataclass(frozen=True)
class DataConfig(Settings):
    """Where images come from, and the fixed shapes that they are padded to."""

    root: Place = ""
    train: SplitConfig = field(default_factory=SplitConfig)
    eval: SplitConfig = field(default_factory=lambda: SplitConfig("annotations/instances_val2017.json", "val2017"))
    shapes: ShapesConfig | None = None
    # Of images of more than 8 bits, float or integer: the stored values that become 0 and 255, as `data.check` measures
    # them; None: by their type, which floats do not have.
    value_range: tuple[Finite, Finite] | None = None
    categories: tuple[str, ...] = ()  # names of the only categories to use, in both splits; empty: all
    min_keypoints: Whole = 0  # train on images with at least so many labeled keypoints (Detectron2: 1, torchvision 10)
    cache_dir: Place = ""  # prepared records; empty: ~/.cache/mrcnn_jax/datasets
    buckets: tuple[tuple[Count, Count], ...] = ((800, 1088), (1088, 800), (800, 1344), (1344, 800))  # height, width
    shortest_edge_train: tuple[Edge, ...] = (640, 672, 704, 736, 768, 800)  # one is drawn for each image
    shortest_edge_eval: Edge = 800
    longest_edge: Edge = 1333
    horizontal_flip: Fraction = 0.5  # probability
    vertical_flip: Fraction = 0.0
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    # What fills the last batch of a bucket in an epoch: images of it once more; nothing; or these images are left out.
    remainder: Literal["repeat", "pad", "drop"] = "repeat"
    on_corrupt: Literal["skip", "stop"] = "skip"  # an image that cannot be decoded: leave its slot empty, or stop
    max_instances: Count = 100  # ground-truth slots N
    mask_size: Count = 112  # side M of the mask crops
    workers: Whole = 0  # worker processes; 0: threads of this process


@dataclass(frozen=True)
class OptimizerConfig(Settings):
    """SGD with momentum or AdamW, warmup, then a multistep or cosine schedule. Norms and biases as in Detectron2."""

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Positive = 0.02
    momentum: Annotated[float, "[0, 1)"] = 0.9
    weight_decay: NotNegative = 1e-4  # never on norms
    schedule: Literal["multistep", "cosine"] = "multistep"
    milestones: tuple[Count, ...] = (60_000, 80_000)
    milestone_factor: Positive = 0.1
    warmup_steps: Whole = 1000
    warmup_factor: Fraction = 0.001
    clip_norm: Positive | None = None  # global gradient norm
    # Learning rates of parts, as (path, factor): (("backbone", 0.1), ("backbone/res5", 0.5)). The longest path decides.
    lr_multipliers: tuple[tuple[str, NotNegative], ...] = ()


@dataclass(frozen=True)
class TrainConfig(Settings):
    """Length of the run, what it keeps, how often it speaks and looks at itself, and how it spares memory."""

    steps: Count = 90_000
    batch_size: Count = 16  # images in a global batch, over all devices
    seed: Seed = 0
    log_every: Count = 20
    checkpoint_every: Count = 5000
    keep_checkpoints: Count = 3
    accumulate: Count = 1  # parts that a device's share of a batch is worked on in; `bn` sees the statistics of a part
    remat: bool = False  # compute activations again in the backward pass instead of keeping them
    ema_decay: Annotated[float, "[0, 1)"] = (
        0.0  # of a moving average of the weights, which is what gets evaluated; 0: none
    )
    max_skipped: Whole = 0  # steps with a loss or gradient that is not finite which are left out before the run stops
    validate_every: Whole = 0  # steps between computations of the loss on data.eval; 0: never
    evaluate_every: Whole = 0  # steps between evaluations; 0: at the end only
    best_metric: str = ""  # "bbox/AP", "segm/AP", ..., "validation/loss": what the kept best checkpoint is best in
    patience: Whole = 0  # measurements of best_metric without a better one that end the training; 0: any number


@dataclass(frozen=True)
class EvalConfig(Settings):
    """Evaluation after training and in eval.py, and how images are made ready for inference."""

    batch_size: Count = 8  # of the images of one bucket
    # Into `data.buckets`; or each image alone, resized and padded exactly as the peer does it: one compile a shape.
    resize: Literal["bucket", "torchvision", "detectron2"] = "bucket"
    # Test-time augmentation: what is found at each of these shortest edges (empty: data.shortest_edge_eval alone), and
    # in the mirror images of them, is put together. Each image is then alone, whatever batch_size.
    scales: tuple[Edge, ...] = ()
    flip: bool = False
    overlays: Whole = 8  # pictures with predictions drawn, written to the workdir
    keypoint_sigmas: tuple[Positive, ...] = ()  # of OKS, one a keypoint; empty: COCO's for COCO's 17, else their mean

    @property
    def augmented(self) -> bool:
        """Whether several views of an image are looked at."""
        return self.flip or bool(self.scales)

    @property
    def alone(self) -> bool:
        """Whether each image is a batch of its own."""
        return self.augmented or self.resize != "bucket"


@dataclass(frozen=True)
class Config(Settings):
    """A whole recipe."""

    name: str = "mask_rcnn"
    init: Place = ""  # file with the initial weights; needed where layers are frozen
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
