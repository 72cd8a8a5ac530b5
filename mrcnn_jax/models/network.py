"""The Mask R-CNN network (He et al. 2017) as one Flax module: backbone, feature pyramid, RPN and heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax.config import ModelConfig
from mrcnn_jax.models.box_head import BoxHead
from mrcnn_jax.models.efficientnet import EfficientNetLite
from mrcnn_jax.models.fpn import FPN
from mrcnn_jax.models.keypoint_head import KeypointHead
from mrcnn_jax.models.layers import maybe_remat
from mrcnn_jax.models.mask_head import MaskHead
from mrcnn_jax.models.norms import NormFactory, make_norm
from mrcnn_jax.models.resnet import ResNet, ResNetStage
from mrcnn_jax.models.rpn import RPNHead
from mrcnn_jax.ops import image as image_ops

Variables = Any  # {"params": ..., "frozen": constants of frozen batch norm, "batch_stats": running statistics}


class MaskRCNN(nn.Module):
    """Mask R-CNN; Faster R-CNN without `config.mask`.

    Each method is one part of the network, from arrays to arrays. Training and inference compose them with the
    functions of `mask_rcnn`: proposals, RoI pooling, detections.

    Shapes: images (B, H, W, 3), H and W divisible by `size_divisibility`; features a tuple of (B, h, w, F), one for
    each level: P2..P6, or the single map of C4, C5 and DC5. `valid` bool, (B,) or in the heads (R,), marks the images
    or RoIs that enter batch statistics (default: all).

    Attributes:
        config: settings of the model.
        axis_name: name of the mapped axis over which "sync_bn" computes statistics.
        remat: recompute activations in the backward pass instead of storing them.
    """

    config: ModelConfig
    axis_name: str | None = None
    remat: bool = False

    if TYPE_CHECKING:  # Flax annotates the result as a union of everything that any module's `apply` may return

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
        self.backbone: nn.Module = _make_backbone(config, norm, self.remat)
        if config.features == "c4":
            self.res5 = ResNetStage(backbone, norm, 5, remat=self.remat)
        if config.features == "fpn":
            fpn = maybe_remat(FPN, self.remat)
            self.fpn = fpn(config.fpn.channels, self._norm(config.fpn.norm))

    def _norm(self, kind: Any, eps: float = 1e-5) -> NormFactory | None:
        return make_norm(kind, eps, self.axis_name)

    def features(
        self, images: jax.Array, image_sizes: jax.Array, valid: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, ...]:
        """Compute features of uint8 RGB images (B, H, W, 3) with sizes (B, 2); their padding is zeroed."""
        x = normalize(self.config, images, image_sizes)
        return self.feature_maps(x, valid, train=train)

    def feature_maps(
        self, x: jax.Array, valid: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, ...]:
        """Compute features, in the compute dtype, of normalized images (B, H, W, 3).

        Raises ValueError if H or W is not a multiple of `size_divisibility`.
        """
        divisor = size_divisibility(self.config)
        if x.shape[1] % divisor or x.shape[2] % divisor:
            raise ValueError(f"images must be padded to multiples of {divisor}, got {x.shape[1]}x{x.shape[2]}")
        stages = self.backbone(x.astype(self.config.compute_dtype), train=train, valid=valid)
        return self.fpn(stages, train, valid) if self.config.features == "fpn" else stages[-1:]

    def rpn(self, features: Sequence[jax.Array]) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
        """Return objectness logits (B, A_level) and deltas (B, A_level, 4) of each level."""
        return self.rpn_head(features)

    def roi_features(self, pooled: jax.Array, valid: jax.Array | None = None, *, train: bool = False) -> jax.Array:
        """Return the input of the heads for pooled features (R, S, S, F).

        With C4 it is the output of res5, (R, S / 2, S / 2, F'), else the pooled features themselves.
        """
        return self.res5(pooled, train=train, valid=valid) if self.config.features == "c4" else pooled

    def box(self, x: jax.Array, valid: jax.Array | None = None, *, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """RoI features (R, S, S, F) -> class logits (R, C + 1) and deltas (R, C or 1, 4)."""
        return self.box_head(x, valid, train=train)

    def mask(
        self, x: jax.Array, classes: jax.Array | None = None, valid: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        """RoI features (R, S, S, F) -> mask logits (R, 2 S, 2 S, C or 1), or (R, 2 S, 2 S) of `classes` (R,) only.

        Softmax masks have one more channel, the background, which comes first: see `MaskHead`.
        """
        return self.mask_head(x, classes, valid, train=train)

    def keypoints(self, x: jax.Array) -> jax.Array:
        """RoI features (R, S, S, F) -> logits of heat maps (R, 4 S, 4 S, K)."""
        return self.keypoint_head(x)

    def __call__(self, images: jax.Array, image_sizes: jax.Array) -> None:
        """Call every submodule once, for initialization only."""
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


def _make_backbone(config: ModelConfig, norm: NormFactory, remat: bool) -> nn.Module:
    if config.backbone.name == "efficientnet_lite0":
        return EfficientNetLite(config.backbone, norm, remat)
    num_stages = 3 if config.features == "c4" else 4  # with C4, res5 is part of the heads
    return ResNet(config.backbone, norm, num_stages, 2 if config.features == "dc5" else 1, remat)


def size_divisibility(config: ModelConfig) -> int:
    """Return the number that height and width of padded images must be multiples of.

    With a pyramid each level must be exactly twice as large as the next.
    """
    return 32 if config.features == "fpn" else 1


@jax.named_scope("normalize")
def normalize(config: ModelConfig, images: jax.Array, image_sizes: jax.Array) -> jax.Array:
    """Normalize uint8 RGB images (B, H, W, 3) of sizes (B, 2).

    Returns float32 in the model's channel order, zero in the padding.
    """

    def normalize_image(image: jax.Array, size: jax.Array) -> jax.Array:
        return image_ops.normalize(
            image, size, mean=config.pixel_mean, std=config.pixel_std, channel_order=config.channel_order
        )

    return jax.vmap(normalize_image)(images, image_sizes)
