"""Normalization layers: frozen batch norm, batch norm on one or all devices, group norm."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax.config import HeadNormName, NormName

NormFactory = Callable[..., nn.Module]  # norm(name=...) -> module(x, train=..., rows=...)

_MOMENTUM = 0.9  # of running statistics: what is kept at each step (torch's 1 - momentum)


def make_norm(kind: HeadNormName | NormName, eps: float = 1e-5, axis_name: str | None = None) -> NormFactory | None:
    """What the networks call for their norm layers; None for "none". `axis_name`: the devices' axis, for `sync_bn`."""
    return None if kind == "none" else partial(Norm, kind, eps, axis_name)


class Norm(nn.Module):
    """A normalization layer by name.

    `frozen_bn`: batch norm whose statistics and affine constants never change (collection `frozen`, not `params`);
    `bn`: batch norm over the batch of this device when `train`, else with running statistics; `sync_bn`: the same over
    the devices of `axis_name`; `gn`: group norm with 32 groups, or with 2 channels a group where there are fewer than
    64 (Wu and He 2018), fewer where these do not divide the channels. `rows` (B,) bool says which rows of x
    (B, H, W, F) count in batch statistics (default: all).
    """

    kind: NormName
    eps: float = 1e-5
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False, rows: jax.Array | None = None) -> jax.Array:
        if self.kind == "frozen_bn":
            return self._frozen(x)
        if self.kind == "gn":
            channels = x.shape[-1]
            groups = next(n for n in range(min(32, max(channels // 2, 1)), 0, -1) if channels % n == 0)
            return nn.GroupNorm(groups, epsilon=self.eps, dtype=x.dtype, name="norm")(x)
        axis_name = self.axis_name if self.kind == "sync_bn" else None
        return BatchNorm(self.eps, axis_name, name="norm")(x, train=train, rows=rows)

    def _frozen(self, x: jax.Array) -> jax.Array:
        def constant(name: str, value: float) -> jax.Array:
            return self.variable("frozen", name, lambda: jnp.full((x.shape[-1],), value)).value

        factor = constant("scale", 1.0) * jax.lax.rsqrt(constant("var", 1.0) + self.eps)
        return _affine(x, factor, constant("bias", 0.0) - constant("mean", 0.0) * factor)


class BatchNorm(nn.Module):
    """Batch norm (Ioffe and Szegedy 2015) with torch's running statistics: the unbiased variance, momentum 0.1.

    flax's own counts every row, and averages the statistics of devices whatever the number of their rows; the rows of
    RoIs are padded, by a different number on each device. Without a row that counts it uses the running statistics.
    """

    eps: float
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, rows: jax.Array | None) -> jax.Array:
        features = x.shape[-1]
        mean = self.variable("batch_stats", "mean", jnp.zeros, (features,))
        var = self.variable("batch_stats", "var", jnp.ones, (features,))
        scale = self.param("scale", nn.initializers.ones_init(), (features,))
        bias = self.param("bias", nn.initializers.zeros_init(), (features,))
        batch_mean, batch_var = mean.value, var.value
        if train:
            batch_mean, batch_var, count = moments(x, rows, self.axis_name)
            kept = jnp.where(count > 0, _MOMENTUM, 1.0)
            unbiased = batch_var * (count / jnp.maximum(count - 1, 1))
            mean.value = kept * mean.value + (1 - kept) * jax.lax.stop_gradient(batch_mean)
            var.value = kept * var.value + (1 - kept) * jax.lax.stop_gradient(unbiased)
            # The variance of no rows, zero, would blow up what nobody looks at, layer by layer, until it is not finite.
            batch_mean = jnp.where(count > 0, batch_mean, mean.value)
            batch_var = jnp.where(count > 0, batch_var, var.value)
        factor = scale * jax.lax.rsqrt(batch_var + self.eps)
        return _affine(x, factor, bias - batch_mean * factor)


def moments(x: jax.Array, rows: jax.Array | None, axis_name: str | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean (F,), biased variance (F,) and count () of the rows of x (B, H, W, F) that `rows` (B,) marks, in float32,
    over all devices of `axis_name`. In two passes: the difference of two large sums would lose digits."""
    x = x.astype(jnp.float32)
    weight = jnp.ones((x.shape[0],)) if rows is None else rows.astype(jnp.float32)
    weight = weight[:, None, None, None]

    def total(values: jax.Array) -> jax.Array:
        summed = jnp.sum(values, axis=(0, 1, 2))
        return summed if axis_name is None else jax.lax.psum(summed, axis_name)

    count = total(weight)[0] * (x.shape[1] * x.shape[2])
    divisor = jnp.maximum(count, 1.0)
    mean = total(jnp.where(weight > 0, x, 0.0)) / divisor
    deviation = jnp.where(weight > 0, x - mean[None, None, None], 0.0)
    return mean, total(deviation * deviation) / divisor, count


def _affine(x: jax.Array, factor: jax.Array, offset: jax.Array) -> jax.Array:
    """x factor + offset in float32, rounded once to x's dtype. A factor in bfloat16 would be wrong by up to 0.4 % in
    the same direction at every pixel; and one pass over x costs the same in either type."""
    return (x.astype(jnp.float32) * factor[None, None, None] + offset[None, None, None]).astype(x.dtype)
