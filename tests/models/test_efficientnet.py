"""EfficientNet-Lite0: shapes, parameter count, frozen stages."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.config import BackboneConfig
from mrcnn_jax.models import efficientnet
from mrcnn_jax.models.efficientnet import BLOCKS, EfficientNetLite
from mrcnn_jax.models.norms import make_norm

pytestmark = pytest.mark.medium

# The model of the PyTorch package has 4,652,008 parameters. A backbone lacks the 320 * 1280 + 2 * 1280 of the last
# convolution and norm, and the 1280 * 1000 + 1000 of the fully connected layer.
PARAMETERS = 4_652_008 - 412_160 - 1_281_000


def network(**settings):
    config = BackboneConfig("efficientnet_lite0", **{"norm": "bn", "norm_eps": 1e-3, "frozen_stages": 0, **settings})
    return EfficientNetLite(config, make_norm(config.norm, config.norm_eps))


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_shapes_and_parameter_count(norm):
    images = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
    outputs, variables = jax.eval_shape(network(norm=norm).init_with_output, jax.random.key(0), images)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == PARAMETERS
    assert [output.shape for output in outputs] == [(2, 16, 24, 24), (2, 8, 12, 40), (2, 4, 6, 112), (2, 2, 3, 320)]


FEW_BLOCKS = tuple(BLOCKS[index] for index in (1, 2, 3, 5, 11))  # of every level, one with a residual


@pytest.mark.parametrize("stages", [0, 1, 3, 5])
def test_frozen_stages_have_no_gradient_and_keep_their_statistics(monkeypatch, stages):
    monkeypatch.setattr(efficientnet, "BLOCKS", FEW_BLOCKS)
    module = network(width=8, frozen_stages=stages)
    images = np.random.default_rng(0).standard_normal((2, 64, 64, 3), np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda leaf: rng.normal(leaf.ndim == 1, 0.1, leaf.shape).astype(np.float32), shapes)

    def loss(params):
        outputs, changed = module.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return sum(jnp.sum(output**2) for output in outputs), changed["batch_stats"]

    gradients, statistics = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    frozen = {"stem"} if stages else set()
    frozen |= {f"block{index}" for index, block in enumerate(FEW_BLOCKS) if block.level <= stages}
    for name, tree in gradients.items():
        has_gradient = any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(tree))
        changed = jax.tree.map(
            lambda new, old: np.any(np.asarray(new) != old), statistics[name], variables["batch_stats"][name]
        )
        assert (has_gradient, any(jax.tree.leaves(changed))) == (name not in frozen, name not in frozen), name
