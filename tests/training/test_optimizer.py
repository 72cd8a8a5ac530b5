"""Optimizers and schedules against torch.optim and hand-computed values."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mrcnn_jax.config import BackboneConfig, ModelConfig, OptimizerConfig
from mrcnn_jax.errors import ConfigError
from mrcnn_jax.training.optimizer import frozen_paths, make_optimizer, make_schedule

# One float32 rounding in each of a step's few operations: 25 steps stay within some 100 units in the last place.
CLOSE = {"rtol": 1e-5, "atol": 1e-7}
STEPS = 25


def tree(seed: int) -> dict:
    """Parameters (or gradients) of a stem, a stage with a norm, and a head."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    return {
        "backbone": {
            "stem": {"conv": {"kernel": draw(3, 2)}},
            "res2": {"conv1": {"kernel": draw(2, 2)}, "norm1": {"norm": {"scale": draw(2), "bias": draw(2)}}},
        },
        "box_head": {"classes": {"kernel": draw(4, 3), "bias": draw(3)}},
    }


def is_norm(path) -> bool:
    return any("norm" in key.key for key in path)


def run_jax(config: OptimizerConfig, *, frozen=lambda path: False, gradient_scale: float = 1.0):
    params = tree(0)
    optimizer = make_optimizer(config, make_schedule(config, STEPS), params, frozen)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for index in range(STEPS):
        gradients = jax.tree.map(lambda g: gradient_scale * g, tree(index + 1))
        params, state = step(params, state, gradients)
    return params, state


def run_torch(
    config: OptimizerConfig, *, trained=lambda path: True, factor=lambda path: 1.0, gradient_scale: float = 1.0
):
    """The same run with torch.optim, with one parameter group per parameter."""
    torch = pytest.importorskip("torch")
    schedule = make_schedule(config, STEPS)
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree(0))
    params = [torch.nn.Parameter(torch.tensor(leaf)) for _, leaf in leaves]
    used = [(path, param) for (path, _), param in zip(leaves, params, strict=True) if trained(path)]
    groups = [
        {"params": [param], "weight_decay": 0.0 if is_norm(path) else config.weight_decay, "factor": factor(path)}
        for path, param in used
    ]
    if config.name == "sgd":
        optimizer = torch.optim.SGD(groups, lr=1.0, momentum=config.momentum)
    else:
        optimizer = torch.optim.AdamW(groups, lr=1.0)
    for index in range(STEPS):
        gradients = jax.tree.leaves(tree(index + 1))
        for param, gradient in zip(params, gradients, strict=True):
            param.grad = torch.tensor(gradient) * gradient_scale
        if config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_([param for _, param in used], config.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = float(schedule(index)) * group["factor"]
        optimizer.step()
    return jax.tree_util.tree_unflatten(structure, [param.detach().numpy() for param in params])


SGD = OptimizerConfig(learning_rate=0.05, milestones=(12, 20), warmup_steps=5, warmup_factor=0.1, weight_decay=0.01)
ADAMW = OptimizerConfig(
    name="adamw", learning_rate=0.02, schedule="cosine", milestones=(), warmup_steps=5, weight_decay=0.1
)


@pytest.mark.medium
@pytest.mark.parametrize("config", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_equals_torch(config):
    jax.tree.map(
        lambda ours, torchs: np.testing.assert_allclose(ours, torchs, **CLOSE), run_jax(config)[0], run_torch(config)
    )


def test_clipping_equals_torch_and_ignores_frozen_gradients():
    config = OptimizerConfig(**{**SGD.__dict__, "clip_norm": 1.0})
    ours, _ = run_jax(config, frozen=lambda path: "stem" in path, gradient_scale=10.0)
    torchs = run_torch(config, trained=lambda path: not any(k.key == "stem" for k in path), gradient_scale=10.0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), ours, torchs)


# The longest matching path counts, in any order.
FACTORS = (("backbone", 0.1), ("backbone/res2/conv1", 0.5), ("backbone/res2", 3.0), ("box_head/classes/bias", 0.25))


def multiplier_of(path) -> float:
    name = "/".join(key.key for key in path)
    if name.startswith("backbone/res2"):
        return 0.5 if name == "backbone/res2/conv1/kernel" else 3.0
    return 0.1 if name.startswith("backbone") else 0.25 if name == "box_head/classes/bias" else 1.0


@pytest.mark.medium
@pytest.mark.parametrize("clip_norm", [None, 1.0], ids=["free", "clipped"])
@pytest.mark.parametrize("config", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_lr_multipliers_equal_torchs_parameter_groups(config, clip_norm):
    """Also with frozen parameters, and with clipping, whose norm does not depend on the multipliers."""
    config = dataclasses.replace(config, lr_multipliers=FACTORS, clip_norm=clip_norm)
    ours, _ = run_jax(config, frozen=lambda path: "stem" in path)
    torchs = run_torch(config, trained=lambda path: path[1].key != "stem", factor=multiplier_of)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), ours, torchs)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_lr_multipliers_scale_the_first_update(name):
    """Without torch: one step from the same state, with weight decay."""
    config = OptimizerConfig(name=name, learning_rate=1.0, milestones=(), warmup_steps=0, weight_decay=0.5)

    def updates(config):
        optimizer = make_optimizer(config, make_schedule(config, 1), tree(0))
        return optimizer.update(tree(1), optimizer.init(tree(0)), tree(0))[0]

    expected = jax.tree_util.tree_map_with_path(lambda path, u: u * np.float32(multiplier_of(path)), updates(config))
    jax.tree.map(np.testing.assert_array_equal, updates(dataclasses.replace(config, lr_multipliers=FACTORS)), expected)


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("backbon", "did you mean 'backbone'"),
        ("backbone/", "did you mean 'backbone'"),
        ("backbone/res3", "did you mean 'backbone/res2'"),
        ("roi", "the modules of the model are backbone, box_head"),
    ],
)
def test_lr_multipliers_that_match_nothing_are_rejected(path, hint):
    config = OptimizerConfig(lr_multipliers=(("backbone", 0.1), (path, 0.5)))
    with pytest.raises(ConfigError, match=f"optimizer.lr_multipliers: the model has no parameters '{path}'; {hint}"):
        make_optimizer(config, make_schedule(config, 90_000), tree(0))


@pytest.mark.parametrize("config", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_frozen_parameters_do_not_change_and_have_no_state(config):
    params, state = run_jax(config, frozen=lambda path: path[0] == "backbone")
    jax.tree.map(np.testing.assert_array_equal, params["backbone"], tree(0)["backbone"])
    assert not np.array_equal(params["box_head"]["classes"]["kernel"], tree(0)["box_head"]["classes"]["kernel"])
    copies = 1 if config.name == "sgd" else 2
    head_size = sum(leaf.size for leaf in jax.tree.leaves(params["box_head"]))
    held = [leaf.size for leaf in jax.tree.leaves(state) if np.ndim(leaf) > 0]
    assert sum(held) == copies * head_size


def test_norms_have_no_weight_decay():
    config = OptimizerConfig(learning_rate=1.0, milestones=(), warmup_steps=0, weight_decay=0.5, momentum=0.0)
    params = tree(0)
    optimizer = make_optimizer(config, make_schedule(config, 1), params)
    updates, _ = optimizer.update(jax.tree.map(np.zeros_like, params), optimizer.init(params), params)

    def check(path, update, param):
        np.testing.assert_array_equal(update, 0 * param if is_norm(path) else -0.5 * param)

    jax.tree_util.tree_map_with_path(check, updates, params)


def test_multistep_values():
    config = OptimizerConfig(
        learning_rate=0.02, milestones=(100, 160), milestone_factor=0.1, warmup_steps=50, warmup_factor=0.001
    )
    schedule = make_schedule(config, 200)
    # Detectron2: lr * (factor * (1 - t / warmup) + t / warmup), and a milestone counts from its own step on.
    expected = {0: 0.02e-3, 25: 0.02 * 0.5005, 49: 0.02 * (0.001 * 0.02 + 0.98), 50: 0.02, 99: 0.02}
    expected |= {100: 0.002, 159: 0.002, 160: 0.0002, 199: 0.0002}
    for step, value in expected.items():
        assert float(schedule(step)) == pytest.approx(value, rel=1e-6), step


def test_multistep_equals_torch_beyond_warmup():
    torch = pytest.importorskip("torch")
    config = OptimizerConfig(learning_rate=0.1, milestones=(3, 7, 8), milestone_factor=0.3, warmup_steps=0)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    reference = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 7, 8], 0.3)
    ours = jax.jit(make_schedule(config, 10))
    for step in range(10):
        assert float(ours(jnp.asarray(step, jnp.int32))) == pytest.approx(reference.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        reference.step()


def test_cosine_values():
    config = OptimizerConfig(learning_rate=0.4, schedule="cosine", milestones=(), warmup_steps=20, warmup_factor=0.5)
    schedule = make_schedule(config, 100)

    def cosine(step: int) -> float:
        return 0.4 * 0.5 * (1 + math.cos(math.pi * step / 100))

    for step, value in {0: 0.2, 10: (0.2 + cosine(20)) / 2, 20: cosine(20), 50: 0.2, 99: cosine(99)}.items():
        # 1 + cos cancels near the end: its absolute error is one rounding of 1
        assert float(schedule(step)) == pytest.approx(value, rel=1e-6, abs=0.4 * 6e-8), step
    assert float(schedule(100)) == 0.0


def test_no_warmup_and_no_milestones():
    schedule = make_schedule(OptimizerConfig(learning_rate=0.3, milestones=(), warmup_steps=0), 10)
    assert {float(schedule(step)) for step in (0, 5, 9)} == {float(np.float32(0.3))}


@pytest.mark.parametrize(("stages", "names"), [(0, set()), (1, {"stem"}), (3, {"stem", "res2", "res3"})])
def test_frozen_paths(stages, names):
    frozen = frozen_paths(ModelConfig(backbone=BackboneConfig(frozen_stages=stages)))
    every = ("stem", "res2", "res3", "res4", "res5")
    assert {name for name in every if frozen(("backbone", name, "conv", "kernel"))} == names
    assert not frozen(("fpn", "stem", "kernel"))


@pytest.mark.parametrize(("stages", "blocks"), [(0, 0), (1, 0), (2, 3), (3, 5), (4, 11), (5, 16)])
def test_frozen_blocks_of_efficientnet(stages, blocks):
    """C2..C5 are the outputs of blocks 2, 4, 10 and 15 (strides 4, 8, 16, 32)."""
    frozen = frozen_paths(ModelConfig(backbone=BackboneConfig("efficientnet_lite0", frozen_stages=stages)))
    assert [frozen(("backbone", f"block{i}", "project", "kernel")) for i in range(16)] == [
        i < blocks for i in range(16)
    ]
    assert frozen(("backbone", "stem", "conv", "kernel")) == (stages > 0)
