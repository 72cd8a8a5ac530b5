"""Train states to save and restore, different for every step."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from mrcnn_jax.config import OptimizerConfig
from mrcnn_jax.training.optimizer import make_optimizer, make_schedule
from mrcnn_jax.training.step import TrainState


def make_state(step: int, size: int = 5) -> TrainState:
    """A state with nested optimizer tuples, a frozen parameter and a second collection."""
    rng = np.random.default_rng(step)
    params = {
        "backbone": {"stem": {"kernel": rng.normal(size=(2, 3)).astype(np.float32)}},
        "head": {"kernel": rng.normal(size=size).astype(np.float32)},
    }
    config = OptimizerConfig()
    optimizer = make_optimizer(config, make_schedule(config, 10), params, lambda path: "stem" in path)
    opt_state = jax.tree.map(lambda leaf: leaf + step, optimizer.init(params))
    return TrainState(
        np.int32(step), params, {"frozen": {"mean": np.full(3, np.pi + step, np.float32)}}, opt_state, {}, np.int32(0)
    )


def assert_same(first: Any, second: Any) -> None:
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)
