"""Mask R-CNN (He et al. 2017): the network as one module, and inference as a function of its parts.

Faster R-CNN is the same model without the mask head.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from mrcnn_jax.config import ModelConfig
from mrcnn_jax.errors import ConfigError
from mrcnn_jax.models.box_head import BoxHead
from mrcnn_jax.models.efficientnet import EfficientNetLite
from mrcnn_jax.models.fpn import FPN
from mrcnn_jax.models.keypoint_head import KeypointHead
from mrcnn_jax.models.layers import rematerialized
from mrcnn_jax.models.mask_head import MaskHead
from mrcnn_jax.models.norms import NormFactory, make_norm
from mrcnn_jax.models.resnet import ResNet, Stage
from mrcnn_jax.models.rpn import RPNHead
from mrcnn_jax.ops import anchors as anchor_ops
from mrcnn_jax.ops import detections as detection_ops
from mrcnn_jax.ops import image as image_ops
from mrcnn_jax.ops import keypoints as keypoint_ops
from mrcnn_jax.ops import proposals as proposal_ops
from mrcnn_jax.ops.roi.pooling import multilevel_roi_pooling
from mrcnn_jax.structures import Detections, Proposals

FPN_STRIDES = (4, 8, 16, 32, 64)  # of P2..P6
SINGLE_STRIDES = {"c4": 16, "c5": 32, "dc5": 16}  # of the one feature map
Variables = Any  # {"params": ..., "frozen": constants of frozen batch norm, "batch_stats": ...}


def build_model(config: ModelConfig) -> MaskRCNN:
    """The network that a configuration describes.

    Raises ValueError while the number of classes is unknown, ConfigError for settings of JAX that it cannot have.
    """
    check_jax_settings()
    if config.num_classes <= 0:
        raise ValueError("model.num_classes is not set: give it, or take it from a data set's categories")
    return MaskRCNN(config)


def check_jax_settings() -> None:
    """Raise ConfigError for settings of JAX, of this process or its environment, that the networks cannot have."""
    wrong = {
        "jax_enable_x64": (jax.config.jax_enable_x64, False),  # type: ignore[attr-defined]
        "jax_numpy_dtype_promotion": (jax.config.jax_numpy_dtype_promotion, "standard"),  # type: ignore[attr-defined]
    }
    for name, (value, needed) in wrong.items():
        if value != needed:
            raise ConfigError(
                f"JAX's setting {name} is {value}, but parameters and losses are float32 here, and types are promoted:"
                f" unset {name.upper()} in the environment, or call jax.config.update({name!r}, {needed!r})"
            )


class MaskRCNN(nn.Module):
    """Backbone, features, RPN and heads; each method maps arrays to arrays and is composed by the functions below.

    Shapes: images (B, H, W, 3), H and W divisible by `size_divisibility`; features a tuple of (B, h, w, F), one for
    each level: P2..P6, or the one map of C4, C5 and DC5. `valid` bool, (B,) or in the heads (R,), marks the images or
    RoIs that count in batch statistics (default: all).
    """

    config: ModelConfig
    axis_name: str | None = None  # of the devices that "sync_bn" gathers statistics from
    remat: bool = False  # compute activations again in the backward pass instead of keeping them

    if TYPE_CHECKING:  # flax declares a union of everything that any module's `apply` may return

        def apply(self, *args: Any, **kwargs: Any) -> Any: ...

    def setup(self) -> None:
        config = self.config
        anchors_per_cell = len(config.anchors.sizes[0]) * len(config.anchors.aspect_ratios)
        self._setup_features()
        self.rpn_head = RPNHead(anchors_per_cell, config.rpn.conv_layers)
        self.box_head = BoxHead(config.num_classes, config.box, self._norm(config.box.norm))
        if config.mask is not None:
            self.mask_head = MaskHead(config.num_classes, config.mask, self._norm(config.mask.norm))
        if config.keypoint is not None:
            keypoint = config.keypoint
            self.keypoint_head = KeypointHead(keypoint.num_keypoints, keypoint.channels, keypoint.conv_layers)

    def _setup_features(self) -> None:
        config, backbone = self.config, self.config.backbone
        norm = self._norm(backbone.norm, backbone.norm_eps)
        assert norm is not None
        self.backbone: nn.Module = _backbone(config, norm, self.remat)
        if config.features == "c4":
            self.res5 = Stage(backbone, norm, 5, remat=self.remat)
        if config.features == "fpn":
            fpn = rematerialized(FPN, self.remat)
            self.fpn = fpn(config.fpn.channels, self._norm(config.fpn.norm))

    def _norm(self, kind: Any, eps: float = 1e-5) -> NormFactory | None:
        return make_norm(kind, eps, self.axis_name)

    def features(
        self, images: jax.Array, image_sizes: jax.Array, valid: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, ...]:
        """Normalize the images, zero their padding, and compute the features in the compute dtype."""
        x = normalize(self.config, images, image_sizes)
        return self.feature_maps(x, valid, train=train)

    def feature_maps(
        self, x: jax.Array, valid: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, ...]:
        """Normalized images (B, H, W, 3) -> the features that RPN and heads look at."""
        divisor = size_divisibility(self.config)
        if x.shape[1] % divisor or x.shape[2] % divisor:
            raise ValueError(f"images must be padded to multiples of {divisor}, got {x.shape[1]}x{x.shape[2]}")
        taps = self.backbone(x.astype(self.config.compute_dtype), train=train, rows=valid)
        return self.fpn(taps, train, valid) if self.config.features == "fpn" else taps[-1:]

    def rpn(self, features: Sequence[jax.Array]) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
        """Objectness logits (B, A_level) and deltas (B, A_level, 4) of each level."""
        return self.rpn_head(features)

    def roi_features(self, pooled: jax.Array, valid: jax.Array | None = None, *, train: bool = False) -> jax.Array:
        """What the heads see of pooled features (R, S, S, F): for C4 what res5 makes of them, half as large."""
        return self.res5(pooled, train=train, rows=valid) if self.config.features == "c4" else pooled

    def box(self, x: jax.Array, valid: jax.Array | None = None, *, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """RoI features (R, S, S, F) -> class logits (R, C + 1) and deltas (R, C or 1, 4)."""
        return self.box_head(x, valid, train=train)

    def mask(
        self, x: jax.Array, classes: jax.Array | None = None, valid: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        """RoI features (R, S, S, F) -> mask logits (R, 2 S, 2 S, C or 1), or (R, 2 S, 2 S) of classes (R,) only.

        Masks that compete for pixels have one more, the background's, first: see `MaskHead`.
        """
        return self.mask_head(x, classes, valid, train=train)

    def keypoints(self, x: jax.Array) -> jax.Array:
        """RoI features (R, S, S, F) -> heat maps (R, 4 S, 4 S, K), logits."""
        return self.keypoint_head(x)

    def __call__(self, images: jax.Array, image_sizes: jax.Array) -> None:
        """Touch every parameter once; for initialization only."""
        features = self.features(images, image_sizes)
        self.rpn(features)
        config, channels = self.config, features[0].shape[-1]

        def pooled(size: int) -> jax.Array:
            return self.roi_features(jnp.zeros((1, size, size, channels), features[0].dtype))

        self.box(pooled(config.box.pool_size))
        if config.mask is not None:
            self.mask(pooled(config.mask.pool_size))
        if config.keypoint is not None:
            self.keypoints(pooled(config.keypoint.pool_size))


def _backbone(config: ModelConfig, norm: NormFactory, remat: bool) -> nn.Module:
    """The bottom-up path: of C4 all stages but res5."""
    if config.backbone.name == "efficientnet_lite0":
        return EfficientNetLite(config.backbone, norm, remat)
    stages = 3 if config.features == "c4" else 4
    return ResNet(config.backbone, norm, stages, 2 if config.features == "dc5" else 1, remat)


def init_variables(model: MaskRCNN, key: jax.Array, paths: Collection[tuple[str, ...]] | None = None) -> Variables:
    """Random parameters and the initial constants of norms.

    With `paths` only those leaves, such as ("params", "mask_head", "logits", "kernel"), and the same values as without:
    fewer compile faster.
    """

    def init(*arguments: Any) -> Variables:
        variables = model.init(*arguments)
        if paths is None:
            return variables
        flat = flax.traverse_util.flatten_dict(variables)
        return flax.traverse_util.unflatten_dict({path: flat[path] for path in paths})

    # It runs once: compiling it well would take three times as long as compiling and running it does.
    compiled = jax.jit(init, compiler_options={"xla_backend_optimization_level": 0})
    return compiled(key, *_smallest_batch())


def variable_shapes(model: MaskRCNN) -> Variables:
    """What `init_variables` would return, as shapes and types."""
    return jax.eval_shape(model.init, jax.random.key(0), *_smallest_batch())


def _smallest_batch() -> tuple[np.ndarray, np.ndarray]:
    """Any image does to make the variables: their shapes do not depend on it."""
    return np.zeros((1, 64, 64, 3), np.uint8), np.full((1, 2), 64, np.int32)


def feature_strides(config: ModelConfig) -> tuple[int, ...]:
    """Pixels of the image per cell, for each level of the features."""
    return FPN_STRIDES if config.features == "fpn" else (SINGLE_STRIDES[config.features],)


def size_divisibility(config: ModelConfig) -> int:
    """What height and width of the padded image must be multiples of. Levels of a pyramid must be exact doubles."""
    return 32 if config.features == "fpn" else 1


@jax.named_scope("normalize")
def normalize(config: ModelConfig, images: jax.Array, image_sizes: jax.Array) -> jax.Array:
    """(B, H, W, 3) uint8 RGB -> float32, normalized in the model's channel order, zero in the padding."""

    def one(image: jax.Array, size: jax.Array) -> jax.Array:
        return image_ops.normalize(
            image, size, mean=config.pixel_mean, std=config.pixel_std, channel_order=config.channel_order
        )

    return jax.vmap(one)(images, image_sizes)


def level_anchors(config: ModelConfig, image_shape: Sequence[int], level_shapes: Sequence[Any]) -> list[np.ndarray]:
    """The anchors (A_level, 4) of each level for a padded image shape; constants of the compiled program."""
    grids = [(int(shape[0]), int(shape[1])) for shape in level_shapes]
    anchors = anchor_ops.grid_anchors(
        (image_shape[0], image_shape[1]),
        grids,
        sizes=config.anchors.sizes,
        aspect_ratios=config.anchors.aspect_ratios,
        rounded=config.anchors.rounded,
        order=config.anchors.order,
        strides=feature_strides(config),
        stride=config.anchors.stride,
    )
    per_cell = len(config.anchors.sizes[0]) * len(config.anchors.aspect_ratios)
    ends = np.cumsum([h * w * per_cell for h, w in grids])
    return np.split(anchors, ends[:-1])


@jax.named_scope("proposals")
def propose(
    config: ModelConfig,
    logits: Sequence[jax.Array],
    deltas: Sequence[jax.Array],
    anchors: Sequence[np.ndarray],
    image_sizes: jax.Array,
    *,
    train: bool,
) -> Proposals:
    """RPN outputs of B images -> their proposals (B, P, ...). No gradient flows through them."""
    rpn = config.rpn

    def one(logits: Sequence[jax.Array], deltas: Sequence[jax.Array], image_size: jax.Array) -> Proposals:
        return proposal_ops.propose(
            logits,
            deltas,
            anchors,
            image_size,
            pre_nms_top_k=rpn.pre_nms_top_k_train if train else rpn.pre_nms_top_k_test,
            post_nms_top_k=rpn.post_nms_top_k_train if train else rpn.post_nms_top_k_test,
            nms_iou=rpn.nms_iou,
            min_box_size=rpn.min_box_size,
        )

    return jax.vmap(one)(list(logits), list(deltas), image_sizes)


@jax.named_scope("roi_align")
def pool_rois(config: ModelConfig, features: Sequence[jax.Array], boxes: jax.Array, size: int) -> jax.Array:
    """Features of (B, R, 4) boxes, pixels of the image -> (B * R, size, size, F).

    By ROIAlign, or what `config.roi.pooling` and `config.roi.reduce` put in its place. With a pyramid each box is
    pooled from one of P2..P5.
    """
    levels = max(len(features) - 1, 1)

    def one(features: Sequence[jax.Array], boxes: jax.Array) -> jax.Array:
        return multilevel_roi_pooling(
            features,
            boxes,
            strides=feature_strides(config)[:levels],
            output_size=size,
            sampling_ratio=config.roi.sampling_ratio,
            aligned=config.roi.aligned,
            level_rule=config.roi.level_rule,
            pooling=config.roi.pooling,
            reduce=config.roi.reduce,
        )

    pooled = jax.vmap(one)(list(features[:levels]), jax.lax.stop_gradient(boxes))
    return pooled.reshape(-1, *pooled.shape[2:])


def detect(model: MaskRCNN, variables: Variables, images: jax.Array, image_sizes: jax.Array) -> Detections:
    """Inference on a batch in one shape -> Detections with leading B. Arguments as of `detect_boxes`.

    Masks and keypoints are computed for the final detections only (He et al. 2017, section 3.1, "Inference").
    """
    features, found = detect_boxes(model, variables, images, image_sizes)
    masks = mask_probabilities(model, variables, features, found.boxes, found.classes)
    heatmaps = keypoint_heatmaps(model, variables, features, found.boxes)
    keypoints = decode_keypoints(model.config, heatmaps, found.boxes, found.valid)
    return found._replace(masks=masks, keypoints=keypoints)


def detect_boxes(
    model: MaskRCNN, variables: Variables, images: jax.Array, image_sizes: jax.Array
) -> tuple[tuple[jax.Array, ...], Detections]:
    """The features of a batch, and its detections without masks (B, D, 0, 0) and keypoints (B, D, 0, 3).

    images: (B, H, W, 3), uint8 RGB; or float32 that is normalized and padded with zeros already, in the model's channel
    order. image_sizes: (B, 2).
    """
    config = model.config
    x = normalize(config, images, image_sizes) if images.dtype == jnp.uint8 else images
    features = model.apply(variables, x, method=model.feature_maps)
    logits, deltas = model.apply(variables, features, method=model.rpn)
    anchors = level_anchors(config, x.shape[1:3], [level.shape[1:3] for level in features])
    proposals = propose(config, logits, deltas, anchors, image_sizes, train=False)
    seen = _roi_head_inputs(model, variables, features, proposals.boxes, config.box.pool_size)
    class_logits, box_deltas = model.apply(variables, seen, method=model.box)
    boxes, scores, classes, valid, truncated = _final_boxes(config, class_logits, box_deltas, proposals, image_sizes)
    masks, keypoints = jnp.zeros((*valid.shape, 0, 0)), jnp.zeros((*valid.shape, 0, 3))
    return features, Detections(boxes, scores, classes, masks, keypoints, valid, truncated)


@jax.named_scope("detections")
def _final_boxes(
    config: ModelConfig, class_logits: jax.Array, box_deltas: jax.Array, proposals: Proposals, image_sizes: jax.Array
) -> tuple[jax.Array, ...]:
    batch, count = proposals.valid.shape

    def one(class_logits: jax.Array, box_deltas: jax.Array, proposals: Proposals, image_size: jax.Array) -> Any:
        return detection_ops.detect(
            class_logits,
            box_deltas,
            proposals,
            image_size,
            delta_weights=config.box.delta_weights,
            score_threshold=config.box.score_threshold,
            nms_iou=config.box.nms_iou,
            max_detections=config.box.max_detections,
            nms_candidates=config.box.nms_candidates,
            min_box_size=config.box.min_box_size,
        )

    class_logits = class_logits.reshape(batch, count, -1)
    box_deltas = box_deltas.reshape(batch, count, -1, 4)
    return jax.vmap(one)(class_logits, box_deltas, proposals, image_sizes)


def mask_probabilities(
    model: MaskRCNN, variables: Variables, features: Sequence[jax.Array], boxes: jax.Array, classes: jax.Array
) -> jax.Array:
    """Masks (B, D, S, S) of boxes (B, D, 4) of `classes` (B, D); (B, D, 0, 0) for a model without masks."""
    if model.config.mask is None:
        return jnp.zeros((*classes.shape, 0, 0))
    seen = _roi_head_inputs(model, variables, features, boxes, model.config.mask.pool_size)
    masks = jax.nn.sigmoid(model.apply(variables, seen, classes.reshape(-1), method=model.mask))
    return masks.reshape(*classes.shape, *masks.shape[1:])


def keypoint_heatmaps(
    model: MaskRCNN, variables: Variables, features: Sequence[jax.Array], boxes: jax.Array
) -> jax.Array:
    """Heat maps (B, D, S, S, K) in boxes (B, D, 4), logits; (B, D, 0, 0, 0) for a model without keypoints."""
    if model.config.keypoint is None:
        return jnp.zeros((*boxes.shape[:2], 0, 0, 0))
    seen = _roi_head_inputs(model, variables, features, boxes, model.config.keypoint.pool_size)
    logits = model.apply(variables, seen, method=model.keypoints)
    return logits.reshape(*boxes.shape[:2], *logits.shape[1:])


@jax.named_scope("keypoints")
def decode_keypoints(config: ModelConfig, heatmaps: jax.Array, boxes: jax.Array, valid: jax.Array) -> jax.Array:
    """Keypoints (B, D, K, 3) that heat maps show in boxes (B, D, 4); (B, D, 0, 3) for a model without keypoints."""
    if config.keypoint is None:
        return jnp.zeros((*valid.shape, 0, 3))
    logits = heatmaps.reshape(-1, *heatmaps.shape[2:])
    found = keypoint_ops.decode(logits, boxes.reshape(-1, 4), valid.reshape(-1), score=config.keypoint.score)
    return found.reshape(*valid.shape, *found.shape[1:])


def _roi_head_inputs(
    model: MaskRCNN, variables: Variables, features: Sequence[jax.Array], boxes: jax.Array, size: int
) -> jax.Array:
    """What a head sees of boxes (B, R, 4) that are pooled to `size`: (B * R, S, S, F)."""
    return model.apply(variables, pool_rois(model.config, features, boxes, size), method=model.roi_features)
