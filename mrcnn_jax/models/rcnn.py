"""Mask R-CNN (He et al. 2017): the network as one module, and inference as a function of its parts.

Faster R-CNN is the same model without the mask head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mrcnn_jax.config import ModelConfig
from mrcnn_jax.models.box_head import BoxHead
from mrcnn_jax.models.fpn import FPN
from mrcnn_jax.models.mask_head import MaskHead, select_class
from mrcnn_jax.models.resnet import ResNet
from mrcnn_jax.models.rpn import RPNHead
from mrcnn_jax.ops import anchors as anchor_ops
from mrcnn_jax.ops import detections as detection_ops
from mrcnn_jax.ops import image as image_ops
from mrcnn_jax.ops import proposals as proposal_ops
from mrcnn_jax.ops.roi_align import multilevel_roi_align
from mrcnn_jax.structures import Detections, Proposals

STRIDES = (4, 8, 16, 32, 64)  # of P2..P6
Variables = Any  # {"params": ..., "frozen": constants of frozen batch norm, "batch_stats": ...}


def build_model(config: ModelConfig) -> MaskRCNN:
    """The network that a configuration describes. Raises ValueError while the number of classes is unknown."""
    if config.num_classes <= 0:
        raise ValueError("model.num_classes is not set: give it, or take it from a data set's categories")
    return MaskRCNN(config)


class MaskRCNN(nn.Module):
    """Backbone, pyramid, RPN and heads; each method maps arrays to arrays and is composed by the functions below.

    Shapes: images (B, H, W, 3) uint8 RGB with H and W divisible by 32; features a tuple P2..P6 of (B, h, w, F).
    """

    config: ModelConfig

    if TYPE_CHECKING:  # flax declares a union of everything that any module's `apply` may return

        def apply(self, *args: Any, **kwargs: Any) -> Any: ...

    def setup(self) -> None:
        config = self.config
        anchors_per_cell = len(config.anchors.sizes[0]) * len(config.anchors.aspect_ratios)
        self.backbone = ResNet(config.backbone)
        self.fpn = FPN(config.fpn.channels)
        self.rpn_head = RPNHead(anchors_per_cell, config.rpn.conv_layers)
        self.box_head = BoxHead(config.num_classes, config.box.hidden)
        if config.mask is not None:
            self.mask_head = MaskHead(config.num_classes, config.mask.channels, config.mask.conv_layers)

    def features(self, images: jax.Array, image_sizes: jax.Array, *, train: bool = False) -> tuple[jax.Array, ...]:
        """Normalise the images, zero their padding, and compute P2..P6 in the compute dtype."""
        x = normalize(self.config, images, image_sizes)
        return self.pyramid(x, train=train)

    def pyramid(self, x: jax.Array, *, train: bool = False) -> tuple[jax.Array, ...]:
        """Normalised images (B, H, W, 3) -> P2..P6."""
        if x.shape[1] % 32 or x.shape[2] % 32:
            raise ValueError(f"images must be padded to multiples of 32, got {x.shape[1]}x{x.shape[2]}")
        return self.fpn(self.backbone(x.astype(self.config.compute_dtype), train=train))

    def rpn(self, features: Sequence[jax.Array]) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
        """Objectness logits (B, A_level) and deltas (B, A_level, 4) of each level."""
        return self.rpn_head(features)

    def box(self, roi_features: jax.Array) -> tuple[jax.Array, jax.Array]:
        """RoI features (R, S, S, F) -> class logits (R, C + 1) and deltas (R, C, 4)."""
        return self.box_head(roi_features)

    def mask(self, roi_features: jax.Array) -> jax.Array:
        """RoI features (R, S, S, F) -> mask logits (R, 2 S, 2 S, C)."""
        return self.mask_head(roi_features)

    def __call__(self, images: jax.Array, image_sizes: jax.Array) -> None:
        """Touch every parameter once; for initialisation only."""
        features = self.features(images, image_sizes)
        self.rpn(features)
        size = self.config.box.pool_size
        self.box(jnp.zeros((1, size, size, features[0].shape[-1]), features[0].dtype))
        if self.config.mask is not None:
            size = self.config.mask.pool_size
            self.mask(jnp.zeros((1, size, size, features[0].shape[-1]), features[0].dtype))


def init_variables(model: MaskRCNN, key: jax.Array) -> Variables:
    """Random parameters and the initial constants of norms."""
    # It runs once: compiling it well would take three times as long as compiling and running it does.
    init = jax.jit(model.init, compiler_options={"xla_backend_optimization_level": 0})
    return init(key, *_smallest_batch())


def variable_shapes(model: MaskRCNN) -> Variables:
    """What `init_variables` would return, as shapes and types."""
    return jax.eval_shape(model.init, jax.random.key(0), *_smallest_batch())


def _smallest_batch() -> tuple[np.ndarray, np.ndarray]:
    """Any image does to make the variables: their shapes do not depend on it."""
    return np.zeros((1, 64, 64, 3), np.uint8), np.full((1, 2), 64, np.int32)


def normalize(config: ModelConfig, images: jax.Array, image_sizes: jax.Array) -> jax.Array:
    """(B, H, W, 3) uint8 RGB -> float32, normalised in the model's channel order, zero in the padding."""

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
        strides=STRIDES,
        stride=config.anchors.stride,
    )
    per_cell = len(config.anchors.sizes[0]) * len(config.anchors.aspect_ratios)
    ends = np.cumsum([h * w * per_cell for h, w in grids])
    return np.split(anchors, ends[:-1])


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


def pool_rois(config: ModelConfig, features: Sequence[jax.Array], boxes: jax.Array, size: int) -> jax.Array:
    """ROIAlign of (B, R, 4) boxes on P2..P5 -> (B * R, size, size, F). Each box is pooled from one level."""

    def one(features: Sequence[jax.Array], boxes: jax.Array) -> jax.Array:
        return multilevel_roi_align(
            features,
            boxes,
            strides=STRIDES[:4],
            output_size=size,
            sampling_ratio=config.roi.sampling_ratio,
            aligned=config.roi.aligned,
            level_rule=config.roi.level_rule,
        )

    pooled = jax.vmap(one)(list(features[:4]), jax.lax.stop_gradient(boxes))
    return pooled.reshape(-1, *pooled.shape[2:])


def detect(model: MaskRCNN, variables: Variables, images: jax.Array, image_sizes: jax.Array) -> Detections:
    """Inference on a batch in one bucket shape: (B, H, W, 3) uint8 RGB, (B, 2) -> Detections with leading B.

    The mask head sees the final detections only (He et al. 2017, section 3.1, "Inference").
    """
    return detect_normalized(model, variables, normalize(model.config, images, image_sizes), image_sizes)


def detect_normalized(model: MaskRCNN, variables: Variables, x: jax.Array, image_sizes: jax.Array) -> Detections:
    """`detect` for images that are normalised and padded already, (B, H, W, 3) float32."""
    config = model.config
    features = model.apply(variables, x, method=model.pyramid)
    logits, deltas = model.apply(variables, features, method=model.rpn)
    anchors = level_anchors(config, x.shape[1:3], [level.shape[1:3] for level in features])
    proposals = propose(config, logits, deltas, anchors, image_sizes, train=False)
    pooled = pool_rois(config, features, proposals.boxes, config.box.pool_size)
    class_logits, box_deltas = model.apply(variables, pooled, method=model.box)
    boxes, scores, classes, valid, truncated = _final_boxes(config, class_logits, box_deltas, proposals, image_sizes)
    masks = _masks_of(model, variables, features, boxes, classes)
    return Detections(boxes, scores, classes, masks, valid, truncated)


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


def _masks_of(
    model: MaskRCNN, variables: Variables, features: Sequence[jax.Array], boxes: jax.Array, classes: jax.Array
) -> jax.Array:
    """Mask probabilities (B, D, S, S) of the detected classes; (B, D, 0, 0) for a model without masks."""
    if model.config.mask is None:
        return jnp.zeros((*classes.shape, 0, 0))
    pooled = pool_rois(model.config, features, boxes, model.config.mask.pool_size)
    logits = model.apply(variables, pooled, method=model.mask)
    masks = jax.nn.sigmoid(select_class(logits, classes.reshape(-1)))
    return masks.reshape(*classes.shape, *masks.shape[1:])
