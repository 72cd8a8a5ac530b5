"""The whole network: parameter counts, precision, initial values, and what must not influence detections."""

from __future__ import annotations

import dataclasses
import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.config import Config, ModelConfig
from mrcnn_jax.errors import ConfigError
from mrcnn_jax.models.mask_rcnn import build_model, detect, init_variables, normalize, variable_shapes
from mrcnn_jax.training.train import train

pytestmark = pytest.mark.medium


def parameters(**changes) -> int:
    """Number of trainable and frozen parameters; the constants of frozen batch norm are none."""
    model = build_model(ModelConfig(**changes))
    return sum(leaf.size for leaf in jax.tree.leaves(variable_shapes(model)["params"]))


def test_faster_rcnn_lacks_only_the_mask_head():
    """Four 3 x 3 convolutions, the deconvolution and the last layer, all on 256 channels."""
    mask_head = 4 * (9 * 256 * 256 + 256) + (4 * 256 * 256 + 256) + (256 * 80 + 80)
    assert parameters(num_classes=80, mask=None) == parameters(num_classes=80) - mask_head


def test_unknown_classes_are_refused():
    with pytest.raises(ValueError, match=r"model\.num_classes is not set"):
        build_model(ModelConfig())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (lambda: jax.enable_x64(True), r"jax_enable_x64 is True, .* unset JAX_ENABLE_X64 in the environment"),
        (lambda: jax.numpy_dtype_promotion("strict"), r"jax_numpy_dtype_promotion is strict, .*'standard'\)"),
    ],
)
def test_settings_of_jax_that_the_network_cannot_have(setting, message, tmp_path):
    """At once, not out of a trace: both come with the environment of other programs."""
    with setting(), pytest.raises(ConfigError, match=message):
        build_model(ModelConfig(num_classes=1))
    with setting(), pytest.raises(ConfigError, match=message):
        train(Config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_images_must_be_padded(model, variables):
    images = jax.ShapeDtypeStruct((1, 64, 100, 3), np.uint8)
    with pytest.raises(ValueError, match=r"multiples of 32, got 64x100"):
        jax.eval_shape(functools.partial(detect, model), variables, images, jax.ShapeDtypeStruct((1, 2), np.int32))


def test_initial_variables(model, variables):
    shapes = variable_shapes(model)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), variables) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), shapes
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))
    params = variables["params"]
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    # the last layers begin near "nothing is known": each class is as likely as any other, no box moves
    for head, layer, spread in (
        ("rpn_head", "objectness", 0.01),
        ("rpn_head", "deltas", 0.01),
        ("box_head", "logits", 0.01),
        ("box_head", "deltas", 0.001),
        ("mask_head", "logits", 0.001),
    ):
        kernel = np.asarray(params[head][layer]["kernel"])
        assert 0.5 * spread < kernel.std() < 1.5 * spread
        assert not params[head][layer]["bias"].any()


def test_some_initial_variables_are_those_of_all(model, variables):
    paths = [("params", "mask_head", "logits", "kernel"), ("params", "rpn_head", "deltas", "bias")]
    some = flax.traverse_util.flatten_dict(init_variables(model, jax.random.key(0), paths))
    whole = flax.traverse_util.flatten_dict(variables)
    assert list(some) == paths
    for path in paths:
        np.testing.assert_array_equal(some[path], whole[path])


def test_detections_do_not_depend_on_the_padding(compiled_detect, variables, pictures):
    images, sizes = pictures
    other = images.copy()
    rng = np.random.default_rng(9)
    for image, (height, width) in zip(other, sizes, strict=True):
        image[height:] = rng.integers(0, 256, image[height:].shape)
        image[:, width:] = rng.integers(0, 256, image[:, width:].shape)
    assert (other != images).any()
    found = compiled_detect(variables, images, sizes)
    assert found.valid.any(axis=1).all()
    jax.tree.map(np.testing.assert_array_equal, found, compiled_detect(variables, other, sizes))
    assert (found.boxes <= np.tile(sizes[:, ::-1], 2)[:, None]).all()


def test_detections_do_not_depend_on_the_other_images(compiled_detect, variables, pictures):
    """A slot without an image may hold anything, at any size."""
    images, sizes = pictures
    found = compiled_detect(variables, images, sizes)
    images, sizes = images.copy(), sizes.copy()
    images[1], sizes[1] = 255 - images[1], 0
    other = compiled_detect(variables, images, sizes)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[0]), found, other)
    for field in (other.valid, other.boxes, other.scores, other.classes):
        assert not np.asarray(field)[1].any()
    assert np.isfinite(other.masks).all()


def test_faster_rcnn_finds_the_same_boxes(model_config, compiled_detect, variables, pictures):
    faster = build_model(dataclasses.replace(model_config, mask=None))
    params = {name: value for name, value in variables["params"].items() if name != "mask_head"}
    compiled = jax.jit(functools.partial(detect, faster))  # a program of its own: what it leaves out is what is tested
    boxes_only = compiled({**variables, "params": params}, *pictures)
    found = compiled_detect(variables, *pictures)
    assert found.masks.shape == (2, 10, 8, 8)
    assert boxes_only.masks.shape == (2, 10, 0, 0)
    for name in ("boxes", "scores", "classes", "valid", "truncated"):
        np.testing.assert_array_equal(getattr(found, name), getattr(boxes_only, name))


def test_masks_are_probabilities_of_the_detected_class(compiled_detect, variables, pictures):
    """A bias on one class's masks shows where that class was found, and nowhere else."""
    found = compiled_detect(variables, *pictures)
    classes, counts = np.unique(np.asarray(found.classes)[found.valid], return_counts=True)
    chosen = int(classes[np.argmin(counts)])
    changed = jax.tree.map(np.array, variables)
    changed["params"]["mask_head"]["logits"]["bias"][chosen - 1] += 20.0
    masks = np.asarray(compiled_detect(changed, *pictures).masks)
    mine = np.asarray(found.classes) == chosen
    assert mine.any()
    assert (masks[mine] > 0.99).all()
    np.testing.assert_array_equal(masks[~mine], np.asarray(found.masks)[~mine])


def test_bfloat16_computes_features_and_nothing_else(model_config):
    """Parameters, logits, deltas, masks and everything after them are float32."""
    model = build_model(dataclasses.replace(model_config, compute_dtype="bfloat16"))
    variables = variable_shapes(model)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"float32"}
    images, sizes = jax.ShapeDtypeStruct((1, 64, 64, 3), np.uint8), jax.ShapeDtypeStruct((1, 2), np.int32)

    def run(variables, images, sizes):
        features = model.apply(variables, images, sizes, method=model.features)
        outputs = model.apply(variables, features, method=model.rpn)
        for method, size in ((model.box, 3), (model.mask, 4)):
            pooled = jnp.zeros((2, size, size, features[0].shape[-1]), features[0].dtype)
            outputs = (outputs, model.apply(variables, pooled, method=method))
        return features, outputs

    features, outputs = jax.eval_shape(run, variables, images, sizes)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(features)} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(outputs)} == {"float32"}
    found = jax.eval_shape(functools.partial(detect, model), variables, images, sizes)
    assert {leaf.dtype.name for leaf in (found.boxes, found.scores, found.masks)} == {"float32"}


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_pixels_are_normalized_in_the_channel_order(order):
    config = ModelConfig(channel_order=order, pixel_mean=(1.0, 2.0, 3.0), pixel_std=(1.0, 2.0, 4.0))
    images = np.zeros((1, 2, 2, 3), np.uint8)
    images[..., :] = (10, 20, 40)
    x = np.asarray(normalize(config, images, np.int32([[1, 2]])))
    pixel = (9, 9, 9.25) if order == "rgb" else (39, 9, 1.75)
    np.testing.assert_allclose(x[0, 0], [pixel, pixel], rtol=1e-6)
    assert not x[0, 1].any()
