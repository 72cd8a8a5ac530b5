"""Normalization layers: frozen batch norm, batch norm on one or all devices, group norm."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax.config import HeadNormName, NormName

NormFactory = Callable[..., nn.Module]  # norm(name=...) -> module(x, train=..., valid=...)

_MOMENTUM = 0.9  # weight of the old running statistics in each update (torch's 1 - momentum)


def make_norm(kind: HeadNormName | NormName, eps: float = 1e-5, axis_name: str | None = None) -> NormFactory | None:
    """Return a constructor of norm layers; None for "none". `axis_name`: the axis of devices, for "sync_bn"."""
    return None if kind == "none" else partial(Norm, kind, eps, axis_name)


class Norm(nn.Module):
    """Normalization layer of a given kind.

    - "frozen_bn": batch norm whose statistics, scale and bias are constants (collection `frozen`, not `params`).
    - "bn": batch norm over the batch of this device if `train`, else with running statistics.
    - "sync_bn": batch norm over the devices of `axis_name`.
    - "gn": group norm (Wu and He 2018) with 32 groups, or groups of 2 channels if there are fewer than 64; fewer
      groups if these do not divide the channels.

    `valid` (B,) bool marks the examples of x (B, H, W, F) that enter batch statistics (default: all).
    """

    kind: NormName
    eps: float = 1e-5
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False, valid: jax.Array | None = None) -> jax.Array:
        if self.kind == "frozen_bn":
            return self._frozen(x)
        if self.kind == "gn":
            channels = x.shape[-1]
            groups = next(n for n in range(min(32, max(channels // 2, 1)), 0, -1) if channels % n == 0)
            return nn.GroupNorm(groups, epsilon=self.eps, dtype=x.dtype, name="norm")(x)
        axis_name = self.axis_name if self.kind == "sync_bn" else None
        return BatchNorm(self.eps, axis_name, name="norm")(x, train=train, valid=valid)

    def _frozen(self, x: jax.Array) -> jax.Array:
        def constant(name: str, value: float) -> jax.Array:
            return self.variable("frozen", name, lambda: jnp.full((x.shape[-1],), value)).value

        scale = constant("scale", 1.0) * jax.lax.rsqrt(constant("var", 1.0) + self.eps)
        return _scale_and_shift(x, scale, constant("bias", 0.0) - constant("mean", 0.0) * scale)


class BatchNorm(nn.Module):
    """Batch norm (Ioffe and Szegedy 2015) with torch's running statistics: unbiased variance, momentum 0.1.

    Unlike Flax's, it leaves out padded examples, and weights devices by their number of valid examples. If no example
    is valid it uses the running statistics.
    """

    eps: float
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, valid: jax.Array | None) -> jax.Array:
        features = x.shape[-1]
        mean = self.variable("batch_stats", "mean", jnp.zeros, (features,))
        var = self.variable("batch_stats", "var", jnp.ones, (features,))
        scale = self.param("scale", nn.initializers.ones_init(), (features,))
        bias = self.param("bias", nn.initializers.zeros_init(), (features,))
        batch_mean, batch_var = mean.value, var.value
        if train:
            batch_mean, batch_var, count = batch_moments(x, valid, self.axis_name)
            momentum = jnp.where(count > 0, _MOMENTUM, 1.0)
            unbiased = batch_var * (count / jnp.maximum(count - 1, 1))
            mean.value = momentum * mean.value + (1 - momentum) * jax.lax.stop_gradient(batch_mean)
            var.value = momentum * var.value + (1 - momentum) * jax.lax.stop_gradient(unbiased)
            # Without valid examples the variance is zero, and would scale up padding layer by layer until it overflows.
            batch_mean = jnp.where(count > 0, batch_mean, mean.value)
            batch_var = jnp.where(count > 0, batch_var, var.value)
        factor = scale * jax.lax.rsqrt(batch_var + self.eps)
        return _scale_and_shift(x, factor, bias - batch_mean * factor)


def batch_moments(
    x: jax.Array, valid: jax.Array | None, axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean (F,), biased variance (F,) and number of pixels () of valid examples of x (B, H, W, F), in float32.

    Computed over all devices of `axis_name`, in two passes: the difference of two large sums would lose precision.
    """
    x = x.astype(jnp.float32)
    weight = jnp.ones((x.shape[0],)) if valid is None else valid.astype(jnp.float32)
    weight = weight[:, None, None, None]

    def total(values: jax.Array) -> jax.Array:
        local = jnp.sum(values, axis=(0, 1, 2))
        return local if axis_name is None else jax.lax.psum(local, axis_name)

    count = total(weight)[0] * (x.shape[1] * x.shape[2])
    divisor = jnp.maximum(count, 1.0)
    mean = total(jnp.where(weight > 0, x, 0.0)) / divisor
    deviation = jnp.where(weight > 0, x - mean[None, None, None], 0.0)
    return mean, total(deviation * deviation) / divisor, count


def _scale_and_shift(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    """Return x * scale + shift, computed in float32 and rounded once to the dtype of x.

    A bfloat16 scale would be wrong by up to 0.4 % in the same direction at every pixel, and would not be faster.
    """
    return (x.astype(jnp.float32) * scale[None, None, None] + shift[None, None, None]).astype(x.dtype)
