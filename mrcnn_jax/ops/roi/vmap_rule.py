"""The `vmap` rule of RoI pooling: fold the mapped axis into the batch of images.

If `vmap` batched the loops over RoIs instead, every image would take as long as the slowest one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from mrcnn_jax.ops.roi.rois import FeatureMaps, RoIs


def flatten_batch(kernel: Callable[..., Any], *, per_roi: bool) -> Callable[..., Any]:
    """Wrap a kernel so that `vmap` calls it once, with all images and all RoIs as one batch.

    Args:
        kernel: function of maps (B, H_l, W_l, Ch) of each level, R RoIs in them, and arrays (R, ...).
        per_roi: whether results are (R, ...), so that several sets of RoIs can share maps, or (B, ...).
    """

    @custom_vmap
    def run(features: FeatureMaps, rois: RoIs, *arrays: jax.Array) -> Any:
        return kernel(features, rois, *arrays)

    @run.def_vmap
    def _(size: int, batched: Any, features: FeatureMaps, rois: RoIs, *arrays: jax.Array) -> tuple[Any, Any]:
        arrays = _broadcast(size, tuple(batched[2:]), arrays)
        if per_roi and not any(batched[0]):  # several sets of RoIs on the same maps
            merged = features, jax.tree.map(_join, _broadcast(size, batched[1], rois))
        else:
            merged = _merge(size, batched, features, rois)
        result = run(*merged, *map(_join, arrays))
        return jax.tree.map(lambda leaf: _split(size, leaf), result), jax.tree.map(lambda _: True, result)

    return run


def _broadcast(size: int, batched: Any, tree: Any) -> Any:
    """Add the mapped axis to leaves that do not have it."""
    return jax.tree.map(lambda b, x: x if b else jnp.broadcast_to(x[None], (size, *x.shape)), batched, tree)


def _join(x: jax.Array) -> jax.Array:
    """(V, B, ...) -> (V * B, ...)."""
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def _split(size: int, x: jax.Array) -> jax.Array:
    """The inverse of `_join`."""
    return x.reshape(size, x.shape[0] // size, *x.shape[1:])


def _merge(size: int, batched: Any, features: FeatureMaps, rois: RoIs) -> tuple[FeatureMaps, RoIs]:
    """Merge V batches of B images, each with R RoIs, into one batch of V * B images with V * R RoIs."""
    features = _broadcast(size, batched[0], features)
    rois = _broadcast(size, batched[1], rois)
    offsets = jnp.arange(size, dtype=jnp.int32)[:, None] * features[0].shape[1]
    rois = rois._replace(images=rois.images + offsets)
    return tuple(_join(f) for f in features), jax.tree.map(_join, rois)
