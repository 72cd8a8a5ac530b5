"""Learning-rate schedules and optimizers, with torch's arithmetic: decay, then momentum, then the learning rate."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mrcnn_jax.config import ModelConfig, OptimizerConfig
from mrcnn_jax.errors import ConfigError
from mrcnn_jax.models.efficientnet import BLOCKS

PyTree = Any
ParameterPath = tuple[str, ...]
# The modules of a backbone that each of its stages consists of, in residual networks and in EfficientNet-Lite.
STAGES = [
    {"stem"},
    *(
        {f"res{level}", *(f"block{i}" for i, block in enumerate(BLOCKS) if block.level == level)}
        for level in range(2, 6)
    ),
]


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate of a step (0-based), for a run of `steps` steps: linear warmup, then multistep or cosine.

    The warmup goes from `warmup_factor` times the first value to the value at `warmup_steps`, as in Detectron2's
    `WarmupParamScheduler`. A milestone takes effect at the step that it names.
    """
    after = _cosine(steps) if config.schedule == "cosine" else _multistep(config.milestones, config.milestone_factor)

    def schedule(step: Any) -> jax.Array:
        """() int32 -> () float32."""
        step = jnp.asarray(step)
        progress = jnp.minimum(step / max(config.warmup_steps, 1), 1.0)
        start, end = config.warmup_factor * after(jnp.asarray(0)), after(jnp.asarray(config.warmup_steps))
        warm = start * (1 - progress) + end * progress
        return config.learning_rate * jnp.where(step < config.warmup_steps, warm, after(step))

    return schedule


def make_optimizer(
    config: OptimizerConfig,
    schedule: optax.Schedule,
    params: PyTree,
    frozen: PyTree | Callable[[ParameterPath], bool] | None = None,
) -> optax.GradientTransformation:
    """SGD with momentum or AdamW; its updates are to be added to the parameters (`optax.apply_updates`).

    SGD is torch's: decay * parameter is added to the gradient, the momentum buffer gathers the sum, and the learning
    rate of the step multiplies the buffer. Parameters of norm layers (a path element contains "norm") do not decay.

    `frozen` is a pytree of bool like `params`, or a predicate of a parameter's path. Frozen parameters get zero
    updates, hold no optimizer state and do not count in the gradient norm that `clip_norm` limits.

    `config.lr_multipliers` act as torch's parameter groups with learning rates of their own: on the decay too.
    Raises ConfigError if one of them names nothing that is in `params`.
    """
    check_lr_multipliers(config, params)
    if frozen is None:
        frozen = jax.tree.map(lambda _: False, params)
    elif callable(frozen):
        frozen = _map_paths(frozen, params)
    steps = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm is not None else []
    decay = optax.add_decayed_weights(config.weight_decay, mask=_decay_mask)
    if config.name == "sgd":
        steps += [decay, optax.trace(decay=config.momentum)]
    else:
        steps += [optax.scale_by_adam(), decay]
    steps.append(optax.scale_by_learning_rate(schedule))
    if config.lr_multipliers:
        # The updates are proportional to the rate of their own step: neither momentum nor Adam's means contain it.
        steps.append(optax.stateless(lambda updates, _: _scale(updates, config.lr_multipliers)))
    labels = jax.tree.map(lambda is_frozen: "frozen" if is_frozen else "trained", frozen)
    return optax.partition({"trained": optax.chain(*steps), "frozen": optax.set_to_zero()}, labels)


def frozen_paths(config: ModelConfig) -> Callable[[ParameterPath], bool]:
    """The predicate of parameters that `backbone.frozen_stages` freezes: 1 the stem, 2 also res2, and so on."""
    frozen = set().union(*STAGES[: config.backbone.frozen_stages])
    return lambda path: len(path) > 1 and path[0] == "backbone" and path[1] in frozen


def check_lr_multipliers(config: OptimizerConfig, params: PyTree) -> None:
    """Raise ConfigError for a path of `lr_multipliers` below which there are no parameters, naming the nearest one."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    full = [tuple(str(key.key) for key in path) for path, _ in leaves]
    known = sorted({"/".join(path[:depth]) for path in full for depth in range(1, len(path) + 1)})
    for name, _ in config.lr_multipliers:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            parts = sorted({path[0] for path in full})
            hint = f"did you mean {close[0]!r}?" if close else f"the parts of the model are {', '.join(parts)}"
            raise ConfigError(f"optimizer.lr_multipliers: the model has no parameters {name!r}; {hint}")


def _scale(updates: PyTree, factors: tuple[tuple[str, float], ...]) -> PyTree:
    """`updates`, each times the factor of the longest path that it lies below."""
    longest_first = sorted(((tuple(name.split("/")), factor) for name, factor in factors), key=lambda f: -len(f[0]))

    def factor_of(path: ParameterPath) -> float:
        return next((factor for start, factor in longest_first if path[: len(start)] == start), 1.0)

    return jax.tree.map(lambda update, factor: update * factor, updates, _map_paths(factor_of, updates))


def _decay_mask(params: PyTree) -> PyTree:
    return _map_paths(lambda path: not any("norm" in element for element in path), params)


def _map_paths(function: Callable[[ParameterPath], Any], params: PyTree) -> PyTree:
    """Pytree of `function(path)` with the structure of `params` (nested dicts)."""
    return jax.tree_util.tree_map_with_path(lambda path, _: function(tuple(str(key.key) for key in path)), params)


def _cosine(steps: int) -> Callable[[jax.Array], jax.Array]:
    return lambda step: 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(step / steps, 1.0)))


def _multistep(milestones: tuple[int, ...], factor: float) -> Callable[[jax.Array], jax.Array]:
    factors = [factor**passed for passed in range(len(milestones) + 1)]

    def value(step: jax.Array) -> jax.Array:
        passed = jnp.sum(step >= jnp.asarray(milestones, jnp.int32)) if milestones else 0
        return jnp.asarray(factors, jnp.float32)[passed]

    return value
