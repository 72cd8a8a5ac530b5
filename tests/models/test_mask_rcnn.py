"""The whole network: parameter counts, precision, initial values, and invariances of detections."""

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
from mrcnn_jax.inference.detect import detect
from mrcnn_jax.models.mask_rcnn import build_model, init_variables, normalize, variable_shapes
from mrcnn_jax.training.train import train

pytestmark = pytest.mark.medium


def parameters(**changes) -> int:
    """Number of parameters, without the constants of frozen batch norm."""
    model = build_model(ModelConfig(**changes))
    return sum(leaf.size for leaf in jax.tree.leaves(variable_shapes(model)["params"]))


def test_faster_rcnn_lacks_only_the_mask_head():
    """Four 3 x 3 convolutions, the transposed convolution and the last layer, all with 256 channels."""
    mask_head = 4 * (9 * 256 * 256 + 256) + (4 * 256 * 256 + 256) + (256 * 80 + 80)
    assert parameters(num_classes=80, mask=None) == parameters(num_classes=80) - mask_head


def test_build_model_requires_num_classes():
    with pytest.raises(ValueError, match=r"model\.num_classes is not set"):
        build_model(ModelConfig())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (lambda: jax.enable_x64(True), r"jax_enable_x64 is True, .* unset JAX_ENABLE_X64 in the environment"),
        (lambda: jax.numpy_dtype_promotion("strict"), r"jax_numpy_dtype_promotion is strict, .*'standard'\)"),
    ],
)
def test_unsupported_jax_settings_are_rejected(setting, message, tmp_path):
    """They are rejected before tracing; both can be set in the environment for other programs."""
    with setting(), pytest.raises(ConfigError, match=message):
        build_model(ModelConfig(num_classes=1))
    with setting(), pytest.raises(ConfigError, match=message):
        train(Config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unpadded_images_are_rejected(model, variables):
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
    # The last layers start with small weights: all classes are about equally likely, and boxes do not move.
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


def test_selected_initial_variables_equal_those_of_the_whole_model(model, variables):
    paths = [("params", "mask_head", "logits", "kernel"), ("params", "rpn_head", "deltas", "bias")]
    some = flax.traverse_util.flatten_dict(init_variables(model, jax.random.key(0), paths))
    whole = flax.traverse_util.flatten_dict(variables)
    assert list(some) == paths
    for path in paths:
        np.testing.assert_array_equal(some[path], whole[path])


def test_detections_do_not_depend_on_padding(compiled_detect, variables, padded_images):
    images, sizes = padded_images
    other = images.copy()
    rng = np.random.default_rng(9)
    for image, (height, width) in zip(other, sizes, strict=True):
        image[height:] = rng.integers(0, 256, image[height:].shape)
        image[:, width:] = rng.integers(0, 256, image[:, width:].shape)
    assert (other != images).any()
    detections = compiled_detect(variables, images, sizes)
    assert detections.valid.any(axis=1).all()
    jax.tree.map(np.testing.assert_array_equal, detections, compiled_detect(variables, other, sizes))
    assert (detections.boxes <= np.tile(sizes[:, ::-1], 2)[:, None]).all()


def test_detections_do_not_depend_on_other_images(compiled_detect, variables, padded_images):
    """A slot without an image has size 0 and arbitrary pixels."""
    images, sizes = padded_images
    detections = compiled_detect(variables, images, sizes)
    images, sizes = images.copy(), sizes.copy()
    images[1], sizes[1] = 255 - images[1], 0
    other = compiled_detect(variables, images, sizes)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[0]), detections, other)
    for field in (other.valid, other.boxes, other.scores, other.classes):
        assert not np.asarray(field)[1].any()
    assert np.isfinite(other.masks).all()


def test_faster_rcnn_detects_the_same_boxes(model_config, compiled_detect, variables, padded_images):
    faster = build_model(dataclasses.replace(model_config, mask=None))
    params = {name: value for name, value in variables["params"].items() if name != "mask_head"}
    compiled = jax.jit(functools.partial(detect, faster))  # compiled separately, as it computes no masks
    boxes_only = compiled({**variables, "params": params}, *padded_images)
    detections = compiled_detect(variables, *padded_images)
    assert detections.masks.shape == (2, 10, 8, 8)
    assert boxes_only.masks.shape == (2, 10, 0, 0)
    for name in ("boxes", "scores", "classes", "valid", "truncated"):
        np.testing.assert_array_equal(getattr(detections, name), getattr(boxes_only, name))


def test_masks_belong_to_the_detected_class(compiled_detect, variables, padded_images):
    """A bias on the masks of one class changes the masks of its detections only."""
    detections = compiled_detect(variables, *padded_images)
    classes, counts = np.unique(np.asarray(detections.classes)[detections.valid], return_counts=True)
    chosen = int(classes[np.argmin(counts)])
    changed = jax.tree.map(np.array, variables)
    changed["params"]["mask_head"]["logits"]["bias"][chosen - 1] += 20.0
    masks = np.asarray(compiled_detect(changed, *padded_images).masks)
    of_class = np.asarray(detections.classes) == chosen
    assert of_class.any()
    assert (masks[of_class] > 0.99).all()
    np.testing.assert_array_equal(masks[~of_class], np.asarray(detections.masks)[~of_class])


def test_bfloat16_is_used_for_features_only(model_config):
    """Parameters, logits, deltas, masks and all that follows are float32."""
    model = build_model(dataclasses.replace(model_config, compute_dtype="bfloat16"))
    variables = variable_shapes(model)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"float32"}
    images, sizes = jax.ShapeDtypeStruct((1, 64, 64, 3), np.uint8), jax.ShapeDtypeStruct((1, 2), np.int32)

    def run(variables, images, sizes):
        features = model.apply(variables, images, sizes, method=model.features)
        outputs = model.apply(variables, features, (64, 64), method=model.rpn)
        for method, size in ((model.box, 3), (model.mask, 4)):
            pooled = jnp.zeros((2, size, size, features[0].shape[-1]), features[0].dtype)
            outputs = (outputs, model.apply(variables, pooled, method=method))
        return features, outputs

    features, outputs = jax.eval_shape(run, variables, images, sizes)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(features)} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(outputs)} == {"float32"}
    detections = jax.eval_shape(functools.partial(detect, model), variables, images, sizes)
    assert {leaf.dtype.name for leaf in (detections.boxes, detections.scores, detections.masks)} == {"float32"}


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_normalization_uses_the_channel_order(order):
    config = ModelConfig(channel_order=order, pixel_mean=(1.0, 2.0, 3.0), pixel_std=(1.0, 2.0, 4.0))
    images = np.zeros((1, 2, 2, 3), np.uint8)
    images[..., :] = (10, 20, 40)
    x = np.asarray(normalize(config, images, np.int32([[1, 2]])))
    pixel = (9, 9, 9.25) if order == "rgb" else (39, 9, 1.75)
    np.testing.assert_allclose(x[0, 0], [pixel, pixel], rtol=1e-6)
    assert not x[0, 1].any()
