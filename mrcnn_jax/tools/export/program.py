"""The function that exported programs compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from mrcnn_jax.config import ModelConfig
from mrcnn_jax.inference.detect import detect
from mrcnn_jax.inference.postprocess import categories
from mrcnn_jax.models.mask_rcnn import build_model
from mrcnn_jax.ops.masks import paste

MaskFormat = Literal["boxes", "frames", "bits"]


def flat_weights(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the variables as the `weights` of `exported_function`."""
    return {path: np.asarray(leaf) for path, leaf in traverse_util.flatten_dict(variables, sep="/").items()}


def input_shapes(shape: tuple[int, int, int]) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the arguments of `exported_function` after the weights, by name, for images of `shape` (B, H, W)."""
    sizes = jax.ShapeDtypeStruct((shape[0], 2), np.int32)
    return {
        "images": jax.ShapeDtypeStruct((*shape, 3), np.uint8),
        "image_sizes": sizes,
        "original_sizes": sizes,
        "score_threshold": jax.ShapeDtypeStruct((), np.float32),
        "max_detections": jax.ShapeDtypeStruct((), np.int32),
    }


def exported_function(config: ModelConfig, mask_format: MaskFormat = "boxes") -> Callable[..., dict[str, jax.Array]]:
    """Return the function `(weights, images, image_sizes, original_sizes, score_threshold, max_detections) -> arrays`.

    weights: the variables, by paths such as "params/box/fc1/kernel".
    images: (B, H, W, 3) uint8 RGB, resized, padded at the bottom and on the right.
    image_sizes, original_sizes: (B, 2) int32, height and width without padding, and before the image was resized.
    score_threshold, max_detections: () float32 and int32; of D slots, those of lower scores and of higher ranks are
      not valid.

    It returns, for every image with the best score first, and zero where not valid:

    - `boxes` (B, D, 4) float32, in pixels of the original image.
    - `scores` (B, D) float32; `category_ids` (B, D) int32; `valid` (B, D) bool.
    - `masks`, of a model with a mask head: for `mask_format` "boxes" (B, D, S, S) float32, probabilities within the
      box; for "frames" (B, D, H, W) bool, in the padded image; for "bits" (B, D, H, W / 8) uint8, these bits packed as
      by `numpy.packbits`.
    - `keypoints`, of a model with a keypoint head: (B, D, K, 3) float32, x, y in the original image, and a score.
    """
    model = build_model(config)
    category_ids = (0, *categories(config)[0])

    def run(
        weights: Any, images: Any, image_sizes: Any, original_sizes: Any, score_threshold: Any, max_detections: Any
    ) -> dict[str, jax.Array]:
        found = detect(model, traverse_util.unflatten_dict(weights, sep="/"), images, image_sizes)
        scale = original_sizes.astype(jnp.float32) / image_sizes.astype(jnp.float32)
        scale, extent = (jnp.tile(pair[:, None, ::-1], 2) for pair in (scale, original_sizes.astype(jnp.float32)))
        boxes = jnp.clip(found.boxes * scale, 0, extent)
        has_area = jnp.all(boxes[..., 2:] > boxes[..., :2], axis=-1)
        valid = found.valid & has_area & (found.scores >= score_threshold)
        valid &= jnp.cumsum(valid, axis=1) <= max_detections
        arrays = {
            "boxes": boxes,
            "scores": found.scores,
            "category_ids": jnp.take(jnp.asarray(category_ids, jnp.int32), found.classes),
        }
        if config.mask is not None:
            arrays["masks"] = _pasted(config, mask_format, found.masks, found.boxes, images.shape[1:3])
        if config.keypoint is not None:
            arrays["keypoints"] = found.keypoints * jnp.insert(scale[..., None, :2], 2, 1.0, axis=-1)
        return {"valid": valid, **{name: _zero_padding(array, valid) for name, array in arrays.items()}}

    return run


def _zero_padding(array: jax.Array, valid: jax.Array) -> jax.Array:
    return jnp.where(valid.reshape(*valid.shape, *[1] * (array.ndim - valid.ndim)), array, jnp.zeros_like(array))


def _pasted(
    config: ModelConfig, mask_format: MaskFormat, masks: jax.Array, boxes: jax.Array, shape: tuple[int, int]
) -> jax.Array:
    """Return masks (B, D, S, S) of boxes (B, D, 4) in the mask format."""
    if mask_format == "boxes":
        return masks
    assert config.mask is not None
    rule = config.mask.paste

    def one(pair: tuple[jax.Array, jax.Array]) -> jax.Array:  # in turn, because all rasters in float32 take gigabytes
        frame = paste(pair[0][None], pair[1][None], shape, rule=rule)[0] >= 0.5
        return frame if mask_format == "frames" else jnp.packbits(frame, axis=-1)

    flat = jax.lax.map(one, (masks.reshape(-1, *masks.shape[2:]), boxes.reshape(-1, 4)))
    return flat.reshape(*boxes.shape[:2], *flat.shape[1:])
