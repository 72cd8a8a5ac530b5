"""Exponential moving average of the weights: what gets evaluated when `train.ema_decay` is set."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

CONSTANTS = "frozen"  # the collection that never changes


def init_ema(params: Any, model_state: dict[str, Any], decay: float) -> dict[str, Any]:
    """The average before the first step: parameters and running statistics themselves; {} with a decay of 0."""
    if decay == 0:
        return {}
    copied: dict[str, Any] = jax.tree.map(jnp.array, _averaged(params, model_state))  # the state is donated: no aliases
    return copied


def update_ema(
    average: dict[str, Any], params: Any, model_state: dict[str, Any], decay: float, step: jax.Array
) -> dict[str, Any]:
    """The average after step `step` (counted from 0). Early on it forgets faster, as in TensorFlow's
    `ExponentialMovingAverage`: the decay is at most (1 + step) / (10 + step)."""
    if not average:
        return {}
    kept = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    updated: dict[str, Any] = jax.tree.map(
        lambda old, new: old + (1 - kept) * (new - old), average, _averaged(params, model_state)
    )
    return updated


def ema_variables(params: Any, model_state: dict[str, Any], average: dict[str, Any]) -> dict[str, Any]:
    """The variables to evaluate: the averaged ones where there are any."""
    if not average:
        return {"params": params, **model_state}
    return {"params": average["params"], **model_state, **average["model_state"]}


def _averaged(params: Any, model_state: dict[str, Any]) -> dict[str, Any]:
    """What an average is taken of."""
    return {
        "params": params,
        "model_state": {name: value for name, value in model_state.items() if name != CONSTANTS},
    }
