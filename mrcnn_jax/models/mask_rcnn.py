"""The Mask R-CNN network (He et al. 2017) as one Flax module: backbone, feature pyramid, RPN, RoI pooling and heads."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

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
from mrcnn_jax.models.layers import maybe_remat
from mrcnn_jax.models.mask_head import MaskHead
from mrcnn_jax.models.norms import make_norm
from mrcnn_jax.models.resnet import ResNet, ResNetStage
from mrcnn_jax.models.rpn import RPNHead
from mrcnn_jax.ops import image as image_ops
from mrcnn_jax.ops import proposals as proposal_ops
from mrcnn_jax.ops.anchors import grid_anchors
from mrcnn_jax.ops.roi.pooling import multilevel_roi_pooling
from mrcnn_jax.structures import Proposals

Variables = Any  # {"params": ..., "frozen": constants of frozen batch norm, "batch_stats": running statistics}
FPN_STRIDES = (4, 8, 16, 32, 64)  # of P2..P6
SINGLE_LEVEL_STRIDES = {"c4": 16, "c5": 32, "dc5": 16}


class RPNOutputs(NamedTuple):
    """Predictions of the RPN for B images, with an entry for each level."""

    logits: tuple[jax.Array, ...]  # (B, A_level)
    deltas: tuple[jax.Array, ...]  # (B, A_level, 4)
    anchors: tuple[np.ndarray, ...]  # (A_level, 4), constants of the compiled program


class MaskRCNN(nn.Module):
    """Mask R-CNN; Faster R-CNN without `config.mask`.

    Each method is one part of the network, from arrays to arrays. Training and inference call the same parts in the
    same order: `features`, `rpn`, `propose`, `roi_features`, then the heads.

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
        config, backbone = self.config, self.config.backbone

        def norm(kind: Any, eps: float = 1e-5) -> Any:
            return make_norm(kind, eps, self.axis_name)

        backbone_norm = norm(backbone.norm, backbone.norm_eps)
        if backbone.name == "efficientnet_lite0":
            self.backbone: nn.Module = EfficientNetLite(backbone, backbone_norm, self.remat)
        else:
            num_stages = 3 if config.features == "c4" else 4  # with C4, res5 is part of the heads
            dilation = 2 if config.features == "dc5" else 1
            self.backbone = ResNet(backbone, backbone_norm, num_stages, dilation, self.remat)
        if config.features == "c4":
            self.res5 = ResNetStage(backbone, backbone_norm, 5, remat=self.remat)
        if config.features == "fpn":
            self.fpn = maybe_remat(FPN, self.remat)(config.fpn.channels, norm(config.fpn.norm))
        anchors_per_cell = len(config.anchors.sizes[0]) * len(config.anchors.aspect_ratios)
        self.rpn_head = RPNHead(anchors_per_cell, config.rpn.conv_layers)
        self.box_head = BoxHead(config.num_classes, config.box, norm(config.box.norm))
        if config.mask is not None:
            self.mask_head = MaskHead(config.num_classes, config.mask, norm(config.mask.norm))
        if config.keypoint is not None:
            keypoint = config.keypoint
            self.keypoint_head = KeypointHead(keypoint.num_keypoints, keypoint.channels, keypoint.conv_layers)

    def features(
        self, images: jax.Array, image_sizes: jax.Array, valid: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, ...]:
        """Compute features, in the compute dtype, of images with sizes (B, 2).

        Images are uint8 RGB; or float32, already normalized, in the model's channel order, zero in the padding. Raises
        ValueError if H or W is not a multiple of `size_divisibility`.
        """
        config, divisor = self.config, size_divisibility(self.config)
        if images.shape[1] % divisor or images.shape[2] % divisor:
            height, width = images.shape[1:3]
            raise ValueError(f"images must be padded to multiples of {divisor}, got {height}x{width}")
        x = normalize(config, images, image_sizes) if images.dtype == jnp.uint8 else images
        stages = self.backbone(x.astype(config.compute_dtype), train=train, valid=valid)
        return self.fpn(stages, train, valid) if config.features == "fpn" else stages[-1:]

    def rpn(self, features: Sequence[jax.Array], image_shape: tuple[int, int]) -> RPNOutputs:
        """Predict objectness logits and box deltas of all anchors. `image_shape`: (H, W) of the padded images."""
        grids = [(level.shape[1], level.shape[2]) for level in features]
        anchors = grid_anchors(self.config.anchors, image_shape, grids, feature_strides(self.config))
        return RPNOutputs(*self.rpn_head(features), anchors)

    def roi_features(
        self,
        features: Sequence[jax.Array],
        boxes: jax.Array,
        size: int,
        valid: jax.Array | None = None,
        *,
        train: bool = False,
    ) -> jax.Array:
        """Pool RoIs with boxes (B, R, 4), in pixels of the image, to the input of a head (B * R, S, S, F).

        S is `size`; with C4 the pooled features pass res5, which halves S.
        """
        return self._head_input(pool_rois(self.config, features, boxes, size), valid, train=train)

    def _head_input(self, pooled: jax.Array, valid: jax.Array | None = None, *, train: bool = False) -> jax.Array:
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
        config, features = self.config, self.features(images, image_sizes)
        self.rpn_head(features)

        def head_input(size: int) -> jax.Array:
            return self._head_input(jnp.zeros((1, size, size, features[0].shape[-1]), features[0].dtype))

        self.box(head_input(config.box.pool_size))
        if config.mask is not None:
            self.mask(head_input(config.mask.pool_size))
        if config.keypoint is not None:
            self.keypoints(head_input(config.keypoint.pool_size))


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


def size_divisibility(config: ModelConfig) -> int:
    """Return the number that height and width of padded images must be multiples of.

    With a pyramid each level must be exactly twice as large as the next.
    """
    return 32 if config.features == "fpn" else 1


def feature_strides(config: ModelConfig) -> tuple[int, ...]:
    """Return the stride of each feature level in pixels of the image."""
    return FPN_STRIDES if config.features == "fpn" else (SINGLE_LEVEL_STRIDES[config.features],)


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


@jax.named_scope("proposals")
def propose(config: ModelConfig, outputs: RPNOutputs, image_sizes: jax.Array, *, train: bool) -> Proposals:
    """Return the proposals (B, P, ...) of B images of sizes (B, 2). No gradient flows through them."""

    def propose_in_image(logits: Sequence[jax.Array], deltas: Sequence[jax.Array], image_size: jax.Array) -> Proposals:
        return proposal_ops.propose(logits, deltas, outputs.anchors, image_size, config.rpn, train=train)

    return jax.vmap(propose_in_image)(outputs.logits, outputs.deltas, image_sizes)


@jax.named_scope("roi_align")
def pool_rois(config: ModelConfig, features: Sequence[jax.Array], boxes: jax.Array, size: int) -> jax.Array:
    """Pool features of boxes (B, R, 4), in pixels of the image, to (B * R, size, size, F).

    `config.roi.pooling` and `config.roi.reduce` select ROIAlign or an alternative. With a pyramid each box is pooled
    from one of P2..P5. Boxes get no gradient.
    """
    maps = tuple(features[: max(len(features) - 1, 1)])
    strides = feature_strides(config)[: len(maps)]
    # As a batch, not mapped: `vmap` would trace the operator for one image first.
    pooled = multilevel_roi_pooling(maps, boxes, config.roi, strides=strides, output_size=size)
    return pooled.reshape(-1, *pooled.shape[2:])
