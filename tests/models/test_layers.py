"""Norms against torch, initial values against published formulas, gradients of ReLU and bias."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.models.layers import Conv, Dense, add_bias, relu
from mrcnn_jax.models.norms import Norm

pytestmark = pytest.mark.medium

EPS = 1e-3  # large enough to show


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="torch is the reference here; `make test` installs it")


@pytest.fixture(scope="module")
def maps():
    """Feature maps (3, 4, 5, 8) whose channels differ in mean and deviation."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 4, 5, 8)) * rng.uniform(0.5, 3, 8) + rng.uniform(-2, 2, 8)
    return x.astype(np.float32)


@functools.partial(jax.jit, static_argnames=("norm", "train", "mutable"))
def apply(norm, variables, x, *, train=False, valid=None, mutable=False):
    return norm.apply(variables, x, train=train, valid=valid, mutable=mutable)


def constants(rng, *names):
    return {name: rng.uniform(0.5, 1.5, 8).astype(np.float32) for name in names}


def nchw(torch, x):
    return torch.from_numpy(np.moveaxis(x, -1, 1).copy())


def assert_maps_equal(ours, theirs):
    """Sums of at most 60 float32 terms near 10: a dozen roundings of 6e-8 times 10."""
    np.testing.assert_allclose(np.moveaxis(np.asarray(ours), -1, 1), theirs.detach().numpy(), rtol=1e-5, atol=1e-5)


def test_group_norm_equals_torch(torch, maps):
    values = constants(np.random.default_rng(1), "scale", "bias")
    ours = apply(Norm("gn", EPS), {"params": {"norm": values}}, maps, train=True)
    groups = 4  # of two channels
    weight, bias = (torch.from_numpy(values[name]) for name in ("scale", "bias"))
    assert_maps_equal(ours, torch.nn.functional.group_norm(nchw(torch, maps), groups, weight, bias, EPS))
    alone = apply(Norm("gn", EPS), {"params": {"norm": values}}, maps[:1])
    np.testing.assert_allclose(ours[:1], alone, rtol=1e-5, atol=1e-5)  # another program; bounds of assert_maps_equal


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (64, 32), (16, 8)])
def test_number_of_groups(channels, groups):
    """A channel far from the others changes only its own group."""
    x = np.random.default_rng(0).standard_normal((1, 2, 2, channels)).astype(np.float32)
    moved = x.copy()
    moved[..., 0] += 100
    norm = Norm("gn")
    variables = norm.init(jax.random.key(0), x)
    before, after = (np.asarray(apply(norm, variables, maps)) for maps in (x, moved))
    different = (before != after).any(axis=(0, 1, 2))
    assert different[: channels // groups].all()
    assert not different[channels // groups :].any()


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_equals_torch(torch, maps, train):
    values = constants(np.random.default_rng(2), "scale", "bias", "mean", "var")
    variables = {
        "params": {"norm": {name: values[name] for name in ("scale", "bias")}},
        "batch_stats": {"norm": {name: values[name] for name in ("mean", "var")}},
    }
    ours, updated = apply(Norm("bn", EPS), variables, maps, train=train, mutable="batch_stats")
    mean, var, weight, bias = (torch.from_numpy(values[name].copy()) for name in ("mean", "var", "scale", "bias"))
    theirs = torch.nn.functional.batch_norm(nchw(torch, maps), mean, var, weight, bias, train, 0.1, EPS)
    assert_maps_equal(ours, theirs)
    statistics = updated["batch_stats"]["norm"]
    np.testing.assert_allclose(statistics["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(statistics["var"], var, rtol=1e-5)


def test_batch_norm_leaves_out_invalid_examples(maps):
    """They change neither statistics nor other results; without valid examples the statistics stay the same."""
    norm = Norm("bn", EPS)
    variables = norm.init(jax.random.key(0), maps)
    valid = np.array([True, False, True])
    ours, updated = apply(norm, variables, maps, train=True, valid=valid, mutable="batch_stats")
    dirty = np.where(valid[:, None, None, None], maps, np.float32(np.nan))
    again, _ = apply(norm, variables, dirty, train=True, valid=valid, mutable="batch_stats")
    alone, expected = apply(norm, variables, maps[valid], train=True, mutable="batch_stats")
    np.testing.assert_array_equal(again[valid], ours[valid])
    np.testing.assert_allclose(ours[valid], alone, rtol=1e-5, atol=1e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), updated, expected)
    _, unmoved = apply(norm, variables, maps, train=True, valid=np.zeros(3, bool), mutable="batch_stats")
    jax.tree.map(np.testing.assert_array_equal, unmoved["batch_stats"], variables["batch_stats"])


def test_synchronized_batch_norm_equals_one_device(maps):
    """Outputs, statistics and gradients under pmap, with different numbers of valid examples on two devices."""
    x = np.concatenate([maps, maps[:1] * 2])
    valid = np.array([True, True, True, False])
    weights = np.random.default_rng(5).standard_normal(x.shape).astype(np.float32) * valid[:, None, None, None]
    one, many = Norm("sync_bn", EPS), Norm("sync_bn", EPS, "devices")
    variables = one.init(jax.random.key(0), x)

    def loss(norm, params, x, valid, weights):
        y, updated = norm.apply({**variables, "params": params}, x, train=True, valid=valid, mutable=["batch_stats"])
        return jnp.sum(y * weights), updated["batch_stats"]

    def gradients(norm):
        return jax.value_and_grad(functools.partial(loss, norm), argnums=(0, 1), has_aux=True)

    (total, statistics), (d_params, d_x) = jax.jit(gradients(one))(variables["params"], x, valid, weights)
    shared = [leaf.reshape(2, 2, *leaf.shape[1:]) for leaf in (x, valid, weights)]
    mapped = jax.pmap(gradients(many), axis_name="devices", in_axes=(None, 0, 0, 0))
    (totals, each), (d_each, d_halves) = mapped(variables["params"], *shared)
    # Sums of 60 float32 terms near 10 in another order.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-4)
    close(np.sum(totals), total)
    close(np.asarray(d_halves).reshape(d_x.shape), d_x)
    jax.tree.map(lambda ours, theirs: close(np.sum(ours, axis=0), theirs), d_each, d_params)
    for device in range(2):
        jax.tree.map(lambda ours, theirs, device=device: close(ours[device], theirs), each, statistics)


def test_frozen_batch_norm_equals_batch_norm_in_evaluation(torch, maps):
    values = constants(np.random.default_rng(3), "scale", "bias", "mean", "var")
    ours, updated = apply(Norm("frozen_bn", EPS), {"frozen": values}, maps, train=True, mutable="frozen")
    mean, var, weight, bias = (torch.from_numpy(values[name]) for name in ("mean", "var", "scale", "bias"))
    theirs = torch.nn.functional.batch_norm(nchw(torch, maps), mean, var, weight, bias, False, 0.1, EPS)
    assert_maps_equal(ours, theirs)
    jax.tree.map(np.testing.assert_array_equal, updated["frozen"], values)


@pytest.mark.parametrize(("kind", "collection"), [("frozen_bn", "frozen"), ("bn", "params")])
def test_batch_norm_of_bfloat16_is_rounded_once(maps, kind, collection):
    """Constants are float32: the result equals that in float32 on the same numbers, rounded."""
    narrow = maps.astype(jnp.bfloat16)
    norm = Norm(kind, EPS)
    variables = norm.init(jax.random.key(0), narrow)
    variables = jax.tree.map(
        lambda leaf: np.asarray(leaf) + np.linspace(0.1, 0.7, leaf.size, dtype=np.float32), variables
    )
    assert collection in variables
    wide = apply(norm, variables, narrow.astype(jnp.float32))
    np.testing.assert_array_equal(apply(norm, variables, narrow), wide.astype(jnp.bfloat16))


def test_frozen_batch_norm_has_no_parameters():
    variables = Norm("frozen_bn").init(jax.random.key(0), jnp.ones((1, 2, 2, 8)))
    assert set(variables) == {"frozen"}


@pytest.mark.parametrize(
    ("layer", "shape", "spread", "bound"),
    [
        # He et al. 2015 in fan-out form: normal with variance 2 / (64 * 3 * 3)
        (Conv(64, 3), (1, 8, 8, 32), np.sqrt(2 / (64 * 9)), np.inf),
        # Caffe2's Xavier fill: uniform within sqrt(3 / fan_in), whose variance is 1 / fan_in
        (Dense(128), (1, 256), np.sqrt(1 / 256), np.sqrt(3 / 256)),
    ],
)
def test_initial_values(layer, shape, spread, bound):
    params = layer.init(jax.random.key(0), jnp.ones(shape))["params"]
    kernel = np.asarray(params["kernel"])
    assert not params["bias"].any()
    # Four standard errors of the mean of n values, spread / sqrt(n); that of the deviation is smaller.
    tolerance = 4 * spread / np.sqrt(kernel.size)
    assert abs(kernel.mean()) < tolerance
    assert abs(kernel.std() - spread) < tolerance
    assert 0.99 * min(bound, 2 * spread) < np.abs(kernel).max() <= bound


def test_relu_and_its_gradient():
    x = jnp.float32([-2, -0.0, 0, 3, jnp.nan, jnp.inf])
    result, pull = jax.vjp(relu, x)
    np.testing.assert_array_equal(result, np.float32([0, 0, 0, 3, np.nan, np.inf]))
    np.testing.assert_array_equal(result, relu(x))  # without differentiation
    np.testing.assert_array_equal(pull(jnp.full(6, 5.0))[0], [0, 0, 0, 5, 5, 5])  # as in torch


def test_gradient_of_a_bias_is_summed_in_float32():
    """A bfloat16 sum of ones stops at 256, where 1 is half a unit in the last place."""
    _, pull = jax.vjp(add_bias, jnp.zeros((4096, 1), jnp.bfloat16), jnp.zeros(1))
    maps, bias = pull(jnp.ones((4096, 1), jnp.bfloat16))
    assert (maps.dtype, bias.dtype) == (jnp.bfloat16, jnp.float32)
    assert bias == 4096
