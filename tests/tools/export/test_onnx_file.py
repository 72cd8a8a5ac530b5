"""ONNX files: detections of ONNX Runtime equal those of JAX, and each part of the conversion alone.

Most need jax2onnx and ONNX Runtime, in the environment of `benchmarks/onnx_env.sh`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import sys
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from mrcnn_jax.config import KeypointHeadConfig, RoIConfig
from mrcnn_jax.errors import ConfigError
from mrcnn_jax.models.mask_rcnn import build_model, init_variables
from mrcnn_jax.ops.nms import nms_sorted
from mrcnn_jax.ops.roi.pooling import multilevel_roi_pooling
from mrcnn_jax.tools.export import onnx_file
from mrcnn_jax.tools.export.onnx_jaxpr import simplify
from mrcnn_jax.tools.export.program import exported_function, input_shapes

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("jax2onnx", "onnxruntime")),
    reason="needs jax2onnx and onnxruntime (benchmarks/onnx_env.sh)",
)


def run(content, *arrays):
    """Run a file, or its content, and return its outputs by name."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    session = onnxruntime.InferenceSession(content)
    inputs = [value.name for value in session.get_inputs()]
    outputs = [value.name for value in session.get_outputs()]
    return dict(zip(outputs, session.run(None, dict(zip(inputs, arrays, strict=True))), strict=True))


def run_both(function, config, *arrays):
    """Return the results of a function of arrays, converted and compiled by JAX afterwards."""
    specs = {f"x{i}": jax.ShapeDtypeStruct(array.shape, array.dtype) for i, array in enumerate(arrays)}

    def named(*inputs):
        return {"y": function(*inputs)}

    model = onnx_file.convert(named, specs, config)
    return run(model.SerializeToString(), *arrays)["y"], np.asarray(jax.jit(named)(*arrays)["y"])


def primitives(closed):
    return {equation.primitive.name for equation in closed.jaxpr.eqns}


def test_default_formulation_of_platforms():
    def choose(x):
        return jax.lax.platform_dependent(x, cpu=jnp.sin, tpu=jnp.tan, default=jnp.cos)

    def function(x):
        return jax.jit(jax.vmap(choose))(x)

    simplified = simplify(function, [jax.ShapeDtypeStruct((3,), jnp.float32)])
    assert primitives(simplified) == {"cos"}


def test_constants_are_computed_but_not_enlarged():
    scale = np.arange(4, dtype=np.float32)

    def function(x):
        return x * (jnp.sqrt(scale) + 1)[None, None] + jnp.zeros((512, 512, 4))

    simplified = simplify(function, [jax.ShapeDtypeStruct((512, 512, 4), jnp.float32)])
    assert "sqrt" not in primitives(simplified)
    assert max(np.size(constant) for constant in simplified.consts) == 4


def test_pointwise_products_become_convolutions():
    kernel = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    x = np.random.default_rng(1).normal(size=(2, 4, 6, 3)).astype(np.float32)
    simplified = simplify(lambda x: x @ kernel, [jax.ShapeDtypeStruct(x.shape, x.dtype)])
    assert "dot_general" not in primitives(simplified)
    (result,) = jax.extend.core.jaxpr_as_fun(simplified)(x)
    np.testing.assert_allclose(result, x @ kernel, atol=1e-5)  # sums of 3 products of order 1


def test_missing_converter(tiny_model_config, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(ConfigError, match=r"^an ONNX file needs jax2onnx.*onnx_env\.sh.*jax2onnx==0\.17") as error:
        onnx_file.convert(lambda x: {"y": x}, {"x": jax.ShapeDtypeStruct((1,), jnp.float32)}, tiny_model_config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("roi", [RoIConfig(pooling="warp"), RoIConfig(reduce="max", sampling_ratio=2)])
def test_other_poolings_are_refused(tiny_model_config, tmp_path, roi):
    config = dataclasses.replace(num_classes(tiny_model_config), roi=roi)
    with pytest.raises(ConfigError, match=rf"^model\.roi\.pooling={roi.pooling}, .*reduce={roi.reduce}: .* align"):
        onnx_file.write_onnx(tmp_path / "tiny.onnx", config, {}, (64, 64))
    assert not list(tmp_path.iterdir())


@needs_onnx
@pytest.mark.medium
@pytest.mark.parametrize(
    "settings",
    [{"aligned": True}, {"sampling_ratio": 2}, {"sampling_ratio": 2, "aligned": False}],
    ids=str,
)
def test_roi_align_operator(tiny_model_config, settings):
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(2, 16 >> i, 24 >> i, 5)).astype(np.float32) for i in range(3)]
    corners = rng.uniform(-20, 80, (2, 40, 2))  # some outside of the image, and of any size
    boxes = np.concatenate([corners, corners + rng.uniform(0, 300, (2, 40, 2))], axis=-1).astype(np.float32)
    boxes[1, 3] = 0
    pool = functools.partial(
        multilevel_roi_pooling,
        config=RoIConfig(**settings),
        strides=(4, 8, 16),
        output_size=3,
    )
    theirs, ours = run_both(lambda boxes, *maps: pool(maps, boxes), num_classes(tiny_model_config), boxes, *features)
    assert np.ptp(ours) > 1
    np.testing.assert_allclose(theirs, ours, atol=2e-5)  # means of values of order 1


@needs_onnx
@pytest.mark.medium
def test_nms_operator(tiny_model_config):
    """Groups, invalid and empty boxes, in each of two images."""
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 20, (2, 300, 2))
    boxes = np.concatenate([corners, corners + rng.integers(0, 12, (2, 300, 2))], axis=-1).astype(np.float32)
    groups = rng.integers(0, 3, (2, 300)).astype(np.int32)
    valid = rng.random((2, 300)) < 0.8

    def keep(*boxes):
        return nms_sorted([boxes], iou_threshold=0.5)[0]

    theirs, ours = run_both(jax.vmap(keep), num_classes(tiny_model_config), boxes, groups, valid)
    assert 20 < ours.sum() < valid.sum() - 20
    np.testing.assert_array_equal(theirs, ours)


def num_classes(config):
    return dataclasses.replace(config, num_classes=3)


@pytest.fixture(scope="module")
def exported(tiny_model_config, tmp_path_factory):
    """Configuration, weights and ONNX file of a model with masks and keypoints, for two images of 64 x 96 pixels."""
    config = dataclasses.replace(
        tiny_model_config,
        num_classes=2,
        category_ids=(3, 7),
        category_names=("ä", "b"),
        keypoint=KeypointHeadConfig(num_keypoints=2, channels=8, conv_layers=1),
    )
    variables = init_variables(build_model(config), jax.random.key(0))
    path = tmp_path_factory.mktemp("onnx") / "tiny.onnx"
    onnx_file.write_onnx(path, config, variables, (64, 96), batch_size=2)
    return config, traverse_util.flatten_dict(variables, sep="/"), path


@needs_onnx
@pytest.mark.medium
def test_detections_equal_those_of_jax(exported):
    config, weights, path = exported
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), np.uint8)
    sizes, originals = np.array([[64, 96], [50, 70]], np.int32), np.array([[128, 192], [25, 35]], np.int32)
    function = jax.jit(exported_function(config))
    no_threshold, no_limit = np.array(0, np.float32), np.array(100, np.int32)
    scores = function(weights, images, sizes, originals, no_threshold, no_limit)["scores"]
    between = np.array(scores[0, 3:5].mean())  # a score itself may be on either side after rounding
    for threshold, limit, count in [(no_threshold, no_limit, 10), (between, no_limit, 4), (between, np.int32(2), 2)]:
        arguments = images, sizes, originals, threshold, np.array(limit)
        ours, theirs = function(weights, *arguments), run(path, *arguments)
        assert ours["valid"][0].sum() == count
        assert theirs.keys() == ours.keys() == {"boxes", "scores", "category_ids", "valid", "masks", "keypoints"}
        for name, array in ours.items():
            assert theirs[name].dtype == array.dtype
            # Rounding in boxes of up to 192 pixels; scores and masks are in 0..1.
            np.testing.assert_allclose(theirs[name], array, atol=1e-3 if name in ("boxes", "keypoints") else 1e-5)


@needs_onnx
@pytest.mark.medium
def test_file_says_what_it_is(exported):
    import onnx

    config, _, path = exported
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", onnx_file.OPSET)]
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(properties["category_ids"]) == list(config.category_ids)
    assert json.loads(properties["category_names"]) == list(config.category_names)
    assert [value.name for value in model.graph.input] == list(input_shapes((1, 64, 64)))
    operators = Counter(node.op_type for node in model.graph.node)
    assert operators["Loop"] == 1  # decodes keypoints
    assert operators["RoiAlign"] == 3 * 4  # heads and levels
    assert operators["NonMaxSuppression"]
    used = {name for node in model.graph.node for name in node.input}
    assert len(model.graph.initializer) <= len(used)
