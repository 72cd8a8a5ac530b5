"""Residual networks: shapes, published parameter counts, place of the stride, frozen stages."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.config import BackboneConfig
from mrcnn_jax.models.norms import make_norm
from mrcnn_jax.models.resnet import BottleneckBlock, ResNet

pytestmark = pytest.mark.medium

# torchvision's published counts, 11,689,512 and so on, without the classifier of 1000 classes.
PARAMETERS = {
    "resnet18": 11_689_512 - 513_000,
    "resnet34": 21_797_672 - 513_000,
    "resnet50": 25_557_032 - 2_049_000,
    "resnet101": 44_549_160 - 2_049_000,
}


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", PARAMETERS)
def test_shapes_and_parameter_counts(name):
    network = ResNet(BackboneConfig(name, frozen_stages=0), make_norm("bn"))
    images = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
    outputs, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), images)
    assert count(variables["params"]) == PARAMETERS[name]
    width = 64 if name in ("resnet18", "resnet34") else 256
    assert [output.shape for output in outputs] == [
        (2, 64 // stride, 96 // stride, width * factor) for stride, factor in ((4, 1), (8, 2), (16, 4), (32, 8))
    ]


def test_width_scales_every_stage():
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    network = ResNet(BackboneConfig("resnet50", width=8), make_norm("gn"))
    outputs, _ = jax.eval_shape(network.init_with_output, jax.random.key(0), images)
    assert [output.shape[-1] for output in outputs] == [32, 64, 128, 256]


@pytest.mark.parametrize("stride_in_1x1", [False, True])
def test_place_of_the_stride(stride_in_1x1):
    """A strided 1 x 1 convolution ignores odd rows and columns, a strided 3 x 3 convolution does not."""
    config = BackboneConfig("resnet50", stride_in_1x1=stride_in_1x1)
    block = BottleneckBlock(config, make_norm("frozen_bn"), 2, 2)
    x = np.ones((1, 8, 8, 4), np.float32)

    def total(x):
        y, _ = block.init_with_output(jax.random.key(1), x)
        assert y.shape == (1, 4, 4, 8)
        return y.sum()

    has_gradient = np.asarray(jax.jit(jax.grad(total))(x)).any(axis=(0, 3))
    assert has_gradient[::2, ::2].any()
    assert has_gradient[1::2].any() != stride_in_1x1
    assert has_gradient[:, 1::2].any() != stride_in_1x1


@pytest.fixture(scope="module")
def frozen_step():
    """Gradients and updated statistics of a small ResNet-18 whose stem, res2 and res3 are frozen."""
    network = ResNet(BackboneConfig("resnet18", width=4, frozen_stages=3), make_norm("bn"))
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, 64, 64, 3)).astype(np.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: rng.uniform(0.1, 1, leaf.shape).astype(np.float32), shapes)

    def loss(params):
        outputs, updated = network.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return sum(jnp.sum(output) for output in outputs), updated["batch_stats"]

    gradients, statistics = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    return gradients, variables["batch_stats"], statistics


def changed(tree) -> set[bool]:
    """Whether each array of a tree has non-zero elements."""
    return {bool(np.asarray(leaf).any()) for leaf in jax.tree.leaves(tree)}


@pytest.mark.parametrize(("stage", "frozen"), [("stem", 1), ("res2", 1), ("res3", 1), ("res4", 0), ("res5", 0)])
def test_frozen_stages_have_no_gradient_and_keep_their_statistics(frozen_step, stage, frozen):
    gradients, before, after = frozen_step
    assert changed(gradients[stage]) == {not frozen}
    assert changed(jax.tree.map(jnp.subtract, after[stage], before[stage])) == {not frozen}
