"""Rematerialization: same gradients, losses and statistics.

XLA:CPU removes the barriers that keep it from merging the two computations, which undoes rematerialization. These tests
keep the barriers, as on GPU and TPU.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.config import BackboneConfig, Config, FPNConfig, ModelConfig, TrainConfig
from mrcnn_jax.models import efficientnet, resnet
from mrcnn_jax.models.mask_rcnn import MaskRCNN, build_model, variable_shapes
from mrcnn_jax.models.norms import make_norm
from mrcnn_jax.models.resnet import ResNet
from mrcnn_jax.ops.roi import kernels
from mrcnn_jax.training import step as training_step

pytestmark = pytest.mark.medium

# LLVM contracts multiplications and additions in the two programs differently, and so does XLA without its fusion
# emitters, as the other tests are compiled; batch norms of few values amplify it.
OPTIONS = {"xla_disable_hlo_passes": "cse_barrier_expander", "xla_backend_optimization_level": 0}
BACKBONES = {
    "basic": BackboneConfig("resnet18", width=8, norm="bn", frozen_stages=0),
    "bottleneck": BackboneConfig("resnet50", width=8, norm="sync_bn", frozen_stages=2),
    "inverted": BackboneConfig("efficientnet_lite0", width=16, norm="bn", frozen_stages=3),
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Use few blocks per stage, and the ROIAlign formulation that compiles faster: compilation dominates."""
    for name in resnet._DEPTHS:
        monkeypatch.setitem(resnet._DEPTHS, name, (1, 2, 1, 1))
    monkeypatch.setattr(efficientnet, "BLOCKS", tuple(efficientnet.BLOCKS[i] for i in (0, 1, 3, 4, 5, 11)))
    monkeypatch.setattr(kernels, "forward", kernels._forward_wide)
    monkeypatch.setattr(kernels, "backward", kernels._backward_wide)


def configure(model: ModelConfig, backbone: str) -> ModelConfig:
    """The tiny model with this backbone, and its norm in the FPN."""
    chosen = BACKBONES[backbone]
    norm = "none" if chosen.norm == "frozen_bn" else chosen.norm
    return dataclasses.replace(model, num_classes=3, backbone=chosen, fpn=FPNConfig(16, norm))


@pytest.mark.optimized
@pytest.mark.parametrize("backbone", ["bottleneck", "inverted"])
def test_feature_gradients_and_statistics(backbone, tiny_model_config):
    """The heads are not rematerialized."""
    model = build_model(configure(tiny_model_config, backbone)).clone(axis_name="shares")
    variables = make_variables(model)
    params = variables.pop("params")

    def learn(model: MaskRCNN, params: Any, images: Any) -> Any:
        def loss(params: Any) -> Any:
            features, statistics = model.apply(
                {"params": params, **variables},
                images,
                None,
                train=True,
                method=model.features,
                mutable=["batch_stats"],
            )
            return sum(jnp.sum(jnp.square(feature)) for feature in features), statistics

        return jax.value_and_grad(loss, has_aux=True)(params)

    images = np.random.default_rng(1).standard_normal((2, 1, 64, 64, 3)).astype(np.float32)
    compare(lambda remat: functools.partial(learn, model.clone(remat=remat)), (params, images))


def compare(learn: Callable[[bool], Any], arguments: tuple[Any, Any]) -> None:
    """Assert that `learn(True)` equals `learn(False)` up to rounding, over a mapped axis of size two."""
    found = []
    for remat in (False, True):
        function = jax.jit(jax.vmap(learn(remat), (None, 0), axis_name="shares"), compiler_options=OPTIONS)
        compiled = function.lower(*arguments).compile()
        assert ("opt-barrier" in compiled.as_text()) >= remat, "the second computation was shared with the first"
        found.append(jax.tree.map(np.asarray, compiled(*arguments)))
    jax.tree.map(assert_close, *found)


def assert_close(first: np.ndarray, second: np.ndarray) -> None:
    """Not exactly: XLA fuses the programs differently, so sums round differently (observed: 2e-6 of the largest)."""
    np.testing.assert_allclose(first, second, rtol=0, atol=2e-5 * np.abs(first).max(initial=0))


def make_variables(model: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)

    def value(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if path[-1].key == "kernel":
            return (rng.standard_normal(leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))).astype(np.float32)
        return np.full(leaf.shape, path[-1].key in ("scale", "var"), np.float32)

    return dict(jax.tree_util.tree_map_with_path(value, variable_shapes(model)))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_variables_have_the_same_names_and_shapes(backbone, tiny_model_config):
    model = build_model(configure(tiny_model_config, backbone))
    assert variable_shapes(model) == variable_shapes(model.clone(remat=True))


@pytest.mark.parametrize(("frozen_stages", "blocks"), [(0, 5), (2, 4), (3, 2), (5, 0)])
def test_frozen_blocks_are_not_rematerialized(frozen_stages, blocks):
    """There is one barrier per rematerialized block."""
    config = dataclasses.replace(BACKBONES["bottleneck"], norm="gn", frozen_stages=frozen_stages)
    model = ResNet(config, make_norm("gn"), remat=True)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)

    def total(params: Any, images: Any) -> jax.Array:
        return sum(jnp.sum(tap**2) for tap in model.apply(params, images, train=True))

    text = jax.jit(jax.grad(total)).lower(params, images).as_text()
    assert text.count("stablehlo.optimization_barrier") == blocks


@pytest.mark.parametrize("remat", [False, True])
def test_setting_reaches_the_model(remat, tiny_model_config, monkeypatch):
    seen = []
    monkeypatch.setattr(training_step, "make_gradient_function", lambda model, *_: seen.append(model.remat))
    config = Config(model=configure(tiny_model_config, "basic"), train=TrainConfig(remat=remat))
    training_step.make_train_step(build_model(config.model), config, None, None)
    assert seen == [remat]
