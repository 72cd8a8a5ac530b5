"""Learning-rate schedules and optimizers.

SGD follows torch: weight decay is added to the gradient, then momentum, then the learning rate.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from mrcnn_jax.config import ModelConfig, OptimizerConfig
from mrcnn_jax.errors import ConfigError
from mrcnn_jax.models.efficientnet import BLOCKS

PyTree = Any
ParameterPath = tuple[str, ...]
# Names of the modules of each backbone stage, in ResNet (stem, res2..res5) and EfficientNet-Lite (stem, blocks).
STAGES = [
    {"stem"},
    *(
        {f"res{level}", *(f"block{i}" for i, block in enumerate(BLOCKS) if block.level == level)}
        for level in range(2, 6)
    ),
]


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Return the learning-rate schedule of a run of `steps` steps: linear warmup, then multistep or cosine decay.

    Warmup goes from `warmup_factor` times the first value to the value at `warmup_steps`, as in Detectron2's
    `WarmupParamScheduler`. A milestone takes effect at its own step, counted from 0.
    """
    decay = _cosine(steps) if config.schedule == "cosine" else _multistep(config.milestones, config.milestone_factor)

    def schedule(step: Any) -> jax.Array:
        step = jnp.asarray(step)
        progress = jnp.minimum(step / max(config.warmup_steps, 1), 1.0)
        start, end = config.warmup_factor * decay(jnp.asarray(0)), decay(jnp.asarray(config.warmup_steps))
        warmup = start * (1 - progress) + end * progress
        return config.learning_rate * jnp.where(step < config.warmup_steps, warmup, decay(step))

    return schedule


def make_optimizer(
    config: OptimizerConfig,
    schedule: optax.Schedule,
    params: PyTree,
    frozen: Callable[[ParameterPath], bool] = lambda path: False,
) -> optax.GradientTransformation:
    """Return SGD with momentum, or AdamW.

    SGD is that of torch: decay * parameter is added to the gradient, the momentum buffer accumulates the sum, and the
    learning rate of the step multiplies the buffer. Weight decay does not apply to norm layers (parameters with "norm"
    in a path element).

    Args:
        params: the parameters, or their shapes.
        frozen: predicate on parameter paths. Frozen parameters get zero updates, have no optimizer state and do not
            count in the gradient norm that `clip_norm` limits.

    `config.lr_multipliers` scale learning rate and decay, as parameter groups do in torch.
    Raises ConfigError if an entry of `lr_multipliers` matches no parameter.
    """
    check_lr_multipliers(config, params)
    transforms = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm is not None else []
    decay = optax.add_decayed_weights(config.weight_decay, mask=_decay_mask)
    if config.name == "sgd":
        transforms += [decay, optax.trace(decay=config.momentum)]
    else:
        transforms += [optax.scale_by_adam(), decay]
    transforms.append(optax.scale_by_learning_rate(schedule))
    if config.lr_multipliers:
        # Scaling the updates equals scaling the learning rate: no optimizer state contains the learning rate.
        transforms.append(optax.stateless(lambda updates, _: _scale_updates(updates, config.lr_multipliers)))
    labels = _map_paths(lambda path: "frozen" if frozen(path) else "trained", params)
    return optax.partition({"trained": optax.chain(*transforms), "frozen": optax.set_to_zero()}, labels)


def frozen_paths(config: ModelConfig) -> Callable[[ParameterPath], bool]:
    """Return a predicate for the parameters that `backbone.frozen_stages` freezes: 1 is the stem, 2 also res2, etc."""
    frozen = set().union(*STAGES[: config.backbone.frozen_stages])
    return lambda path: len(path) > 1 and path[0] == "backbone" and path[1] in frozen


def check_lr_multipliers(config: OptimizerConfig, params: PyTree) -> None:
    """Raise ConfigError if a path in `lr_multipliers` is no prefix of a parameter path; suggests the closest one."""
    paths = list(flax.traverse_util.flatten_dict(params))
    known = sorted({"/".join(path[:depth]) for path in paths for depth in range(1, len(path) + 1)})
    for name, _ in config.lr_multipliers:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            modules = sorted({path[0] for path in paths})
            hint = f"did you mean {close[0]!r}?" if close else f"the modules of the model are {', '.join(modules)}"
            raise ConfigError(f"optimizer.lr_multipliers: the model has no parameters {name!r}; {hint}")


def _scale_updates(updates: PyTree, multipliers: tuple[tuple[str, float], ...]) -> PyTree:
    """Scale each update by the multiplier with the longest matching path prefix."""
    by_prefix = [(tuple(name.split("/")), multiplier) for name, multiplier in multipliers]
    longest_first = sorted(by_prefix, key=lambda item: -len(item[0]))

    def multiplier_of(path: ParameterPath) -> float:
        return next((multiplier for prefix, multiplier in longest_first if path[: len(prefix)] == prefix), 1.0)

    return jax.tree.map(lambda update, factor: update * factor, updates, _map_paths(multiplier_of, updates))


def _decay_mask(params: PyTree) -> PyTree:
    """Return True for each parameter that weight decay applies to."""
    return _map_paths(lambda path: not any("norm" in element for element in path), params)


def _map_paths(function: Callable[[ParameterPath], Any], params: PyTree) -> PyTree:
    """Return the pytree of `function(path)` with the structure of `params` (nested dicts)."""
    return jax.tree_util.tree_map_with_path(lambda path, _: function(tuple(str(key.key) for key in path)), params)


def _cosine(steps: int) -> Callable[[jax.Array], jax.Array]:
    return lambda step: 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(step / steps, 1.0)))


def _multistep(milestones: tuple[int, ...], factor: float) -> Callable[[jax.Array], jax.Array]:
    factors = [factor**passed for passed in range(len(milestones) + 1)]

    def value(step: jax.Array) -> jax.Array:
        passed = jnp.sum(step >= jnp.asarray(milestones, jnp.int32)) if milestones else 0
        return jnp.asarray(factors, jnp.float32)[passed]

    return value
