"""Exponential moving average of the weights, which is evaluated if `train.ema_decay` is set."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

CONSTANTS = "frozen"  # the collection of constants, which has no average


def init_ema(params: Any, model_state: dict[str, Any], decay: float) -> dict[str, Any]:
    """Return the average before the first step, a copy of parameters and running statistics; {} if `decay` is 0."""
    if decay == 0:
        return {}
    ema: dict[str, Any] = jax.tree.map(jnp.array, _averaged_trees(params, model_state))  # copied for donation
    return ema


def update_ema(
    ema: dict[str, Any], params: Any, model_state: dict[str, Any], decay: float, step: jax.Array
) -> dict[str, Any]:
    """Return the average after step `step` (counted from 0).

    The decay is at most (1 + step) / (10 + step), as in TensorFlow's `ExponentialMovingAverage`.
    """
    if not ema:
        return {}
    decay_now = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    updated: dict[str, Any] = jax.tree.map(
        lambda old, new: old + (1 - decay_now) * (new - old), ema, _averaged_trees(params, model_state)
    )
    return updated


def ema_variables(params: Any, model_state: dict[str, Any], ema: dict[str, Any]) -> dict[str, Any]:
    """Return the variables to evaluate: averaged if there is an average."""
    if not ema:
        return {"params": params, **model_state}
    return {"params": ema["params"], **model_state, **ema["model_state"]}


def _averaged_trees(params: Any, model_state: dict[str, Any]) -> dict[str, Any]:
    return {
        "params": params,
        "model_state": {name: value for name, value in model_state.items() if name != CONSTANTS},
    }
