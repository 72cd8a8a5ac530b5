"""How `vmap` meets the loops over RoIs: it makes the batch longer instead of batching them.

Batched loops would run every image for as long as the slowest one, on copies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from mrcnn_jax.ops.roi.kernels import Maps, RoIs


def flatten_batch(kernel: Callable[..., Any], *, per_roi: bool) -> Callable[..., Any]:
    """The kernel, for `vmap` to call once with all images and their RoIs.

    Args:
        kernel: (maps, RoIs, *rows) -> arrays; maps (B, H_l, W_l, Ch) for each level, R RoIs in them, arrays (R, ...).
        per_roi: whether its results are (R, ...), so that many sets of RoIs can share maps; or are (B, ...).
    """

    @custom_vmap
    def run(features: Maps, rois: RoIs, *rows: jax.Array) -> Any:
        return kernel(features, rois, *rows)

    @run.def_vmap
    def _(size: int, batched: Any, features: Maps, rois: RoIs, *rows: jax.Array) -> tuple[Any, Any]:
        rows = _broadcast(size, tuple(batched[2:]), rows)
        if per_roi and not any(batched[0]):  # many sets of boxes on the same maps
            merged = features, jax.tree.map(_join, _broadcast(size, batched[1], rois))
        else:
            merged = _merge(size, batched, features, rois)
        result = run(*merged, *map(_join, rows))
        return jax.tree.map(lambda leaf: _split(size, leaf), result), jax.tree.map(lambda _: True, result)

    return run


def _broadcast(size: int, batched: Any, tree: Any) -> Any:
    """Give every leaf the axis that `vmap` maps."""
    return jax.tree.map(lambda b, x: x if b else jnp.broadcast_to(x[None], (size, *x.shape)), batched, tree)


def _join(x: jax.Array) -> jax.Array:
    """(V, B, ...) -> (V * B, ...)."""
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def _split(size: int, x: jax.Array) -> jax.Array:
    """The inverse of `_join`."""
    return x.reshape(size, x.shape[0] // size, *x.shape[1:])


def _merge(size: int, batched: Any, features: Maps, rois: RoIs) -> tuple[Maps, RoIs]:
    """Turn V batches of B images, each with R RoIs, into one batch of V * B images with V * R RoIs."""
    features = _broadcast(size, batched[0], features)
    rois = _broadcast(size, batched[1], rois)
    offsets = jnp.arange(size, dtype=jnp.int32)[:, None] * features[0].shape[1]
    rois = rois._replace(images=rois.images + offsets)
    return tuple(_join(f) for f in features), jax.tree.map(_join, rois)
