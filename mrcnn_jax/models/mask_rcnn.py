"""Mask R-CNN: build the network, initialize its variables, detect objects.

The network itself is in `network`. Training uses the steps between its parts as well: anchors, proposals, RoI pooling.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from mrcnn_jax.config import ModelConfig
from mrcnn_jax.errors import ConfigError
from mrcnn_jax.models.network import MaskRCNN, Variables, normalize
from mrcnn_jax.ops import anchors as anchor_ops
from mrcnn_jax.ops import detections as detection_ops
from mrcnn_jax.ops import keypoints as keypoint_ops
from mrcnn_jax.ops import proposals as proposal_ops
from mrcnn_jax.ops.roi.pooling import multilevel_roi_pooling
from mrcnn_jax.structures import Detections, Proposals

FPN_STRIDES = (4, 8, 16, 32, 64)  # of P2..P6
SINGLE_LEVEL_STRIDES = {"c4": 16, "c5": 32, "dc5": 16}


def build_model(config: ModelConfig) -> MaskRCNN:
    """Build the network that a configuration describes.

    Raises ValueError if `config.num_classes` is not set, ConfigError if JAX has settings that do not work with it.
    """
    check_jax_settings()
    if config.num_classes <= 0:
        raise ValueError("model.num_classes is not set: set it, or take it from the categories of a dataset")
    return MaskRCNN(config)


def check_jax_settings() -> None:
    """Raise ConfigError if JAX is configured, in this process or its environment, in a way that the model rejects."""
    settings = {
        "jax_enable_x64": (jax.config.jax_enable_x64, False),  # type: ignore[attr-defined]
        "jax_numpy_dtype_promotion": (jax.config.jax_numpy_dtype_promotion, "standard"),  # type: ignore[attr-defined]
    }
    for name, (value, required) in settings.items():
        if value != required:
            raise ConfigError(
                f"the JAX setting {name} is {value}, but the model needs {required!r}: unset {name.upper()} in the"
                f" environment, or call jax.config.update({name!r}, {required!r})"
            )


def init_variables(model: MaskRCNN, key: jax.Array, paths: Collection[tuple[str, ...]] | None = None) -> Variables:
    """Return random parameters and the initial constants of norms.

    With `paths` return only these leaves, such as ("params", "mask_head", "logits", "kernel"), with the same values
    as without it. Fewer leaves compile faster.
    """

    def init(*arguments: Any) -> Variables:
        variables = model.init(*arguments)
        if paths is None:
            return variables
        flat = flax.traverse_util.flatten_dict(variables)
        return flax.traverse_util.unflatten_dict({path: flat[path] for path in paths})

    # The program runs once. With optimization, compiling it would take three times as long as this does in all.
    compiled = jax.jit(init, compiler_options={"xla_backend_optimization_level": 0})
    return compiled(key, *_example_inputs())


def variable_shapes(model: MaskRCNN) -> Variables:
    """Return the variables of `init_variables` as shapes and dtypes."""
    return jax.eval_shape(model.init, jax.random.key(0), *_example_inputs())


def _example_inputs() -> tuple[np.ndarray, np.ndarray]:
    """Images and sizes for initialization; the variables do not depend on their shape."""
    return np.zeros((1, 64, 64, 3), np.uint8), np.full((1, 2), 64, np.int32)


def feature_strides(config: ModelConfig) -> tuple[int, ...]:
    """Return the stride of each feature level in pixels of the image."""
    return FPN_STRIDES if config.features == "fpn" else (SINGLE_LEVEL_STRIDES[config.features],)


def level_anchors(config: ModelConfig, image_shape: Sequence[int], level_shapes: Sequence[Any]) -> list[np.ndarray]:
    """Return the anchors (A_level, 4) of each level for a padded image; constants of the compiled program.

    image_shape: (H, W) of the padded image. level_shapes: (h, w) of each level.
    """
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
    """Return the proposals (B, P, ...) of B images from RPN outputs. No gradient flows through them.

    logits: (B, A_level), deltas: (B, A_level, 4), anchors: (A_level, 4) for each level. image_sizes: (B, 2).
    """
    rpn = config.rpn

    def propose_in_image(logits: Sequence[jax.Array], deltas: Sequence[jax.Array], image_size: jax.Array) -> Proposals:
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

    return jax.vmap(propose_in_image)(list(logits), list(deltas), image_sizes)


@jax.named_scope("roi_align")
def pool_rois(config: ModelConfig, features: Sequence[jax.Array], boxes: jax.Array, size: int) -> jax.Array:
    """Pool features of boxes (B, R, 4), in pixels of the image, to (B * R, size, size, F).

    `config.roi.pooling` and `config.roi.reduce` select ROIAlign or an alternative. With a pyramid each box is pooled
    from one of P2..P5. Boxes get no gradient.
    """
    num_levels = max(len(features) - 1, 1)

    def pool_image(features: Sequence[jax.Array], boxes: jax.Array) -> jax.Array:
        return multilevel_roi_pooling(
            features,
            boxes,
            strides=feature_strides(config)[:num_levels],
            output_size=size,
            sampling_ratio=config.roi.sampling_ratio,
            aligned=config.roi.aligned,
            level_rule=config.roi.level_rule,
            pooling=config.roi.pooling,
            reduce=config.roi.reduce,
        )

    pooled = jax.vmap(pool_image)(list(features[:num_levels]), jax.lax.stop_gradient(boxes))
    return pooled.reshape(-1, *pooled.shape[2:])


def detect(model: MaskRCNN, variables: Variables, images: jax.Array, image_sizes: jax.Array) -> Detections:
    """Detect objects in a batch of images of one shape. Arguments as in `detect_boxes`.

    Masks and keypoints are computed for the final boxes only (He et al. 2017, section 3.1, "Inference").

    Returns:
        Detections (B, D, ...), in pixels of the padded images.
    """
    features, detections = detect_boxes(model, variables, images, image_sizes)
    masks = mask_probabilities(model, variables, features, detections.boxes, detections.classes)
    heatmaps = keypoint_heatmaps(model, variables, features, detections.boxes)
    keypoints = decode_keypoints(model.config, heatmaps, detections.boxes, detections.valid)
    return detections._replace(masks=masks, keypoints=keypoints)


def detect_boxes(
    model: MaskRCNN, variables: Variables, images: jax.Array, image_sizes: jax.Array
) -> tuple[tuple[jax.Array, ...], Detections]:
    """Return the features of a batch and its detections without masks and keypoints.

    Args:
        model: the network.
        variables: its variables.
        images: (B, H, W, 3) uint8 RGB; or float32, already normalized, in the model's channel order, zero in the
            padding.
        image_sizes: (B, 2) height and width of each image inside the padding.

    Returns:
        Features as in `MaskRCNN`, and detections with empty masks (B, D, 0, 0) and keypoints (B, D, 0, 3).
    """
    config = model.config
    x = normalize(config, images, image_sizes) if images.dtype == jnp.uint8 else images
    features = model.apply(variables, x, method=model.feature_maps)
    logits, deltas = model.apply(variables, features, method=model.rpn)
    anchors = level_anchors(config, x.shape[1:3], [level.shape[1:3] for level in features])
    proposals = propose(config, logits, deltas, anchors, image_sizes, train=False)
    roi_features = _roi_head_inputs(model, variables, features, proposals.boxes, config.box.pool_size)
    class_logits, box_deltas = model.apply(variables, roi_features, method=model.box)
    boxes, scores, classes, valid, truncated = _decode_boxes(config, class_logits, box_deltas, proposals, image_sizes)
    masks, keypoints = jnp.zeros((*valid.shape, 0, 0)), jnp.zeros((*valid.shape, 0, 3))
    return features, Detections(boxes, scores, classes, masks, keypoints, valid, truncated)


@jax.named_scope("detections")
def _decode_boxes(
    config: ModelConfig, class_logits: jax.Array, box_deltas: jax.Array, proposals: Proposals, image_sizes: jax.Array
) -> tuple[jax.Array, ...]:
    """Box head outputs (B * P, ...) -> boxes, scores, classes and validity (B, D, ...), and truncation flags (B,)."""
    batch, count = proposals.valid.shape

    def detect_in_image(
        class_logits: jax.Array, box_deltas: jax.Array, proposals: Proposals, image_size: jax.Array
    ) -> Any:
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
    return jax.vmap(detect_in_image)(class_logits, box_deltas, proposals, image_sizes)


def mask_probabilities(
    model: MaskRCNN, variables: Variables, features: Sequence[jax.Array], boxes: jax.Array, classes: jax.Array
) -> jax.Array:
    """Return masks (B, D, S, S) of boxes (B, D, 4) and classes (B, D); (B, D, 0, 0) without a mask head."""
    if model.config.mask is None:
        return jnp.zeros((*classes.shape, 0, 0))
    roi_features = _roi_head_inputs(model, variables, features, boxes, model.config.mask.pool_size)
    masks = jax.nn.sigmoid(model.apply(variables, roi_features, classes.reshape(-1), method=model.mask))
    return masks.reshape(*classes.shape, *masks.shape[1:])


def keypoint_heatmaps(
    model: MaskRCNN, variables: Variables, features: Sequence[jax.Array], boxes: jax.Array
) -> jax.Array:
    """Return heat map logits (B, D, S, S, K) of boxes (B, D, 4); (B, D, 0, 0, 0) without a keypoint head."""
    if model.config.keypoint is None:
        return jnp.zeros((*boxes.shape[:2], 0, 0, 0))
    roi_features = _roi_head_inputs(model, variables, features, boxes, model.config.keypoint.pool_size)
    logits = model.apply(variables, roi_features, method=model.keypoints)
    return logits.reshape(*boxes.shape[:2], *logits.shape[1:])


@jax.named_scope("keypoints")
def decode_keypoints(config: ModelConfig, heatmaps: jax.Array, boxes: jax.Array, valid: jax.Array) -> jax.Array:
    """Decode heat maps in boxes (B, D, 4) to keypoints (B, D, K, 3); (B, D, 0, 3) without a keypoint head."""
    if config.keypoint is None:
        return jnp.zeros((*valid.shape, 0, 3))
    logits = heatmaps.reshape(-1, *heatmaps.shape[2:])
    keypoints = keypoint_ops.decode(logits, boxes.reshape(-1, 4), valid.reshape(-1), score=config.keypoint.score)
    return keypoints.reshape(*valid.shape, *keypoints.shape[1:])


def _roi_head_inputs(
    model: MaskRCNN, variables: Variables, features: Sequence[jax.Array], boxes: jax.Array, size: int
) -> jax.Array:
    """Return head inputs (B * R, S, S, F) for boxes (B, R, 4) pooled to `size`."""
    return model.apply(variables, pool_rois(model.config, features, boxes, size), method=model.roi_features)
