"""Feature pyramid and heads: shapes, order of outputs, and the anchor and class that each output belongs to."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.config import BoxHeadConfig, MaskHeadConfig
from mrcnn_jax.models.box_head import BoxHead
from mrcnn_jax.models.fpn import FPN
from mrcnn_jax.models.mask_head import MaskHead
from mrcnn_jax.models.rpn import RPNHead

pytestmark = pytest.mark.medium


def random_variables(module, *inputs):
    """Normally distributed parameters of a module, including biases."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes)


def test_pyramid_adds_upper_levels():
    """With identity convolutions each level is its input plus all upper levels, upsampled; P6 is a subset of P5."""
    rng = np.random.default_rng(0)
    stages = [rng.standard_normal((1, 32 >> i, 48 >> i, 1)).astype(np.float32) for i in range(4)]
    fpn = FPN(1)
    shapes = jax.eval_shape(fpn.init, jax.random.key(0), stages)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)["params"]
    for level in range(2, 6):
        params[f"lateral{level}"]["kernel"][0, 0] = 1
        params[f"output{level}"]["kernel"][1, 1] = 1
    p2, p3, p4, p5, p6 = jax.jit(fpn.apply)({"params": params}, stages)
    expected = stages[3]
    np.testing.assert_array_equal(p5, expected)
    for stage, level in zip(stages[2::-1], (p4, p3, p2), strict=True):
        expected = stage + expected.repeat(2, axis=1).repeat(2, axis=2)
        np.testing.assert_allclose(level, expected, rtol=1e-6)
    np.testing.assert_array_equal(p6, np.asarray(p5)[:, ::2, ::2])
    assert p6.shape == (1, 2, 3, 1)


def test_rpn_orders_row_column_anchor():
    """Logits and deltas of a cell are consecutive, and depend on the features around that cell."""
    head = RPNHead(anchors_per_cell=3)
    levels = [np.zeros((1, 4, 6, 2), np.float32), np.zeros((1, 2, 3, 2), np.float32)]
    variables = random_variables(head, levels)
    apply = jax.jit(head.apply)
    still = apply(variables, levels)
    assert [part.shape for part in still[0]] == [(1, 72), (1, 18)]
    assert [part.shape for part in still[1]] == [(1, 72, 4), (1, 18, 4)]
    levels[0][0, 3, 5] = 1  # the last cell, which changes the outputs of its 3 x 3 neighborhood
    moved = apply(variables, levels)
    near = np.zeros((4, 6), bool)
    near[2:, 4:] = True
    for before, after in zip(still, moved, strict=True):
        different = (np.asarray(before[0]) != np.asarray(after[0])).reshape(4, 6, -1).any(axis=-1)
        assert not different[~near].any()
        assert different[3, 5]
        np.testing.assert_array_equal(before[1], after[1])
    # Deltas: coordinate fastest, then anchor. With a zero convolution only the bias remains.
    quiet = {**variables["params"], "conv1": jax.tree.map(np.zeros_like, variables["params"]["conv1"])}
    _, deltas = apply({"params": quiet}, levels)
    np.testing.assert_array_equal(deltas[0][0, :3].reshape(-1), quiet["deltas"]["bias"])


def test_rpn_depth():
    head = RPNHead(anchors_per_cell=1, conv_layers=2)
    params = jax.eval_shape(head.init, jax.random.key(0), [jnp.zeros((1, 2, 2, 4))])["params"]
    assert set(params) == {"conv1", "conv2", "objectness", "deltas"}


def test_rpn_outputs_are_not_rounded_to_bfloat16():
    features = (np.random.default_rng(1).standard_normal((1, 16, 16, 8)).astype(jnp.bfloat16),)
    head = RPNHead(3)
    (logits,), (deltas,) = jax.jit(head.apply)(random_variables(head, features), features)
    for values in (logits, deltas):
        assert len(np.unique(values)) == values.size
        assert np.mean(values != np.asarray(values).astype(jnp.bfloat16).astype(np.float32)) > 0.9


def test_box_head_orders_deltas_by_class():
    head = BoxHead(3, BoxHeadConfig(hidden=5))
    x = np.random.default_rng(0).standard_normal((2, 7, 7, 4)).astype(np.float32)
    variables = random_variables(head, x)
    apply = jax.jit(head.apply)
    logits, deltas = apply(variables, x)
    assert logits.shape == (2, 4)
    assert deltas.shape == (2, 3, 4)
    variables["params"]["deltas"]["bias"][4:8] += 1
    difference = apply(variables, x)[1] - deltas
    # rounding of numbers near 1e3
    np.testing.assert_allclose(difference, np.float32([0, 1, 0])[None, :, None] * np.ones((2, 3, 4)), atol=1e-3)


def test_mask_head_doubles_the_side():
    head = MaskHead(3, MaskHeadConfig(channels=6, conv_layers=2))
    x = np.random.default_rng(0).standard_normal((2, 5, 5, 4)).astype(np.float32)
    variables = random_variables(head, x)
    logits = jax.eval_shape(head.apply, variables, x)
    assert logits.shape == (2, 10, 10, 3)
    assert set(variables["params"]) == {"conv1", "conv2", "deconv", "logits"}


def test_mask_head_as_a_perceptron():
    """Fully connected layers on the whole RoI, against NumPy."""
    head = MaskHead(3, MaskHeadConfig(conv_layers=0, fc_layers=2, hidden=7))
    x = np.random.default_rng(0).standard_normal((2, 3, 3, 4)).astype(np.float32)
    variables = random_variables(head, x)
    layers = jax.tree.map(np.float64, variables["params"])
    assert set(layers) == {"fc1", "fc2", "logits"}
    expected = x.reshape(2, -1)
    for name in ("fc1", "fc2"):
        expected = np.maximum(expected @ layers[name]["kernel"] + layers[name]["bias"], 0)
    expected = (expected @ layers["logits"]["kernel"] + layers["logits"]["bias"]).reshape(2, 6, 6, 3)
    np.testing.assert_allclose(
        jax.jit(head.apply)(variables, x), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max()
    )


@pytest.mark.parametrize("layers", [{"conv_layers": 1}, {"conv_layers": 0, "fc_layers": 1, "hidden": 6}])
@pytest.mark.parametrize("class_agnostic", [False, True])
def test_softmax_masks(class_agnostic, layers):
    """The sigmoid of the log-odds of a class is its softmax over all classes and the background."""
    config = MaskHeadConfig(channels=6, activation="softmax", class_agnostic=class_agnostic, **layers)
    head = MaskHead(4, config)
    x = 0.3 * np.random.default_rng(0).standard_normal((3, 5, 5, 4)).astype(np.float32)
    variables = random_variables(head, x)
    apply = jax.jit(head.apply)
    logits = np.float64(apply(variables, x))
    assert logits.shape == (3, 10, 10, 2 if class_agnostic else 5)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    softmax = powers / powers.sum(-1, keepdims=True)
    odds = apply(variables, x, np.int32([4, 1, 0]))
    columns = [1, 1] if class_agnostic else [4, 1]
    np.testing.assert_allclose(jax.nn.sigmoid(odds[0]), softmax[0, ..., columns[0]], atol=1e-5)
    np.testing.assert_allclose(jax.nn.sigmoid(odds[1]), softmax[1, ..., columns[1]], atol=1e-5)
    assert not odds[2].any()


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("layers", [{"conv_layers": 1}, {"conv_layers": 0, "fc_layers": 1, "hidden": 6}])
def test_mask_head_computes_selected_classes(class_agnostic, layers):
    head = MaskHead(4, MaskHeadConfig(channels=6, class_agnostic=class_agnostic, **layers))
    x = np.random.default_rng(0).standard_normal((3, 5, 5, 4)).astype(np.float32)
    variables, classes = random_variables(head, x), np.int32([4, 1, 0])

    def selected(variables, x):
        return head.apply(variables, x, classes)

    def expected_logits(variables, x):
        logits = head.apply(variables, x)
        assert logits.shape[-1] == (1 if class_agnostic else 4)
        columns = np.minimum(classes, logits.shape[-1]) - 1
        return jnp.stack([logits[0, ..., columns[0]], logits[1, ..., columns[1]], jnp.zeros((10, 10))])

    cotangent = np.random.default_rng(1).standard_normal((3, 10, 10)).astype(np.float32)
    both = (result_and_gradients(f, variables, x, cotangent) for f in (selected, expected_logits))
    for ours, expected in zip(*both, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def result_and_gradients(function, variables, x, cotangent):
    """The result of a function and all gradients, as a list."""

    @jax.jit
    def run(variables, x):
        result, pull = jax.vjp(function, variables, x)
        return result, pull(cotangent)

    return jax.tree.leaves(run(variables, x))
