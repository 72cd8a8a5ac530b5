"""A model as an ONNX file, by jax2onnx, which needs an environment of its own: `benchmarks/onnx_env.sh`."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.extend import core

from mrcnn_jax import __version__
from mrcnn_jax.config import ModelConfig
from mrcnn_jax.errors import ConfigError
from mrcnn_jax.inference.detect import detect
from mrcnn_jax.inference.postprocess import categories
from mrcnn_jax.models.mask_rcnn import build_model
from mrcnn_jax.runtime import files
from mrcnn_jax.tools.export.onnx_jaxpr import simplify

OPSET = 18
_INSTALL = (
    "an ONNX file needs jax2onnx in an environment of its own ({error}): benchmarks/onnx_env.sh makes one, as does"
    " pip install 'jax2onnx==0.17.*' onnx onnxruntime in an environment with mrcnn_jax"
)
INPUTS = ("images", "image_sizes", "original_sizes", "score_threshold", "max_detections")


def exported_function(config: ModelConfig) -> Callable[..., dict[str, jax.Array]]:
    """Placeholder for that of `program`."""
    model, category_ids = build_model(config), (0, *categories(config)[0])

    def run(
        weights: Any, images: Any, image_sizes: Any, original_sizes: Any, score_threshold: Any, max_detections: Any
    ) -> dict[str, jax.Array]:
        found = detect(model, traverse_util.unflatten_dict(weights, sep="/"), images, image_sizes)
        scale = original_sizes.astype(jnp.float32) / image_sizes.astype(jnp.float32)
        scale, extent = (jnp.tile(pair[:, None, ::-1], 2) for pair in (scale, original_sizes.astype(jnp.float32)))
        boxes = jnp.clip(found.boxes * scale, 0, extent)
        has_area = jnp.all(boxes[..., 2:] > boxes[..., :2], axis=-1)
        valid = found.valid & has_area & (found.scores >= score_threshold)
        valid &= jnp.cumsum(valid, axis=1) <= max_detections
        arrays = {
            "boxes": boxes,
            "scores": found.scores,
            "category_ids": jnp.take(jnp.asarray(category_ids, jnp.int32), found.classes),
        }
        if config.mask is not None:
            arrays["masks"] = found.masks
        if config.keypoint is not None:
            arrays["keypoints"] = found.keypoints * jnp.insert(scale[..., None, :2], 2, 1.0, axis=-1)
        return {"valid": valid, **{name: _zero_padding(array, valid) for name, array in arrays.items()}}

    return run


def _zero_padding(array: jax.Array, valid: jax.Array) -> jax.Array:
    return jnp.where(valid.reshape(*valid.shape, *[1] * (array.ndim - valid.ndim)), array, jnp.zeros_like(array))


def write_onnx(
    path: str | os.PathLike[str], config: ModelConfig, variables: Any, shape: tuple[int, int], batch_size: int = 1
) -> None:
    """Write `exported_function(config)` with its weights as an ONNX file for images (batch_size, *shape, 3).

    Its inputs are `INPUTS`, its outputs the names of the function's arrays. The network computes in float32, because
    ONNX Runtime has no convolutions of bfloat16 on CPUs.

    Raises ConfigError if jax2onnx is not installed, or for a pooling without an ONNX operator.
    """
    if (config.roi.pooling, config.roi.reduce) != ("align", "average"):
        raise ConfigError(
            f"model.roi.pooling={config.roi.pooling}, model.roi.reduce={config.roi.reduce}: ONNX has no such operator;"
            " only models with align and average can be written as ONNX files"
        )
    config = dataclasses.replace(config, compute_dtype="float32")
    weights = {name: np.asarray(array) for name, array in traverse_util.flatten_dict(variables, sep="/").items()}
    sizes = jax.ShapeDtypeStruct((batch_size, 2), jnp.int32)
    inputs = (
        jax.ShapeDtypeStruct((batch_size, *shape, 3), jnp.uint8),
        sizes,
        sizes,
        jax.ShapeDtypeStruct((), jnp.float32),
        jax.ShapeDtypeStruct((), jnp.int32),
    )
    model = convert(
        functools.partial(exported_function(config), weights), dict(zip(INPUTS, inputs, strict=True)), config
    )
    ids, names = categories(config)
    properties = {"mrcnn_jax": __version__, "category_ids": json.dumps(ids), "category_names": json.dumps(names)}
    for key, value in properties.items():
        model.metadata_props.add(key=key, value=value)
    files.write_bytes(path, model.SerializeToString())


def convert(
    function: Callable[..., dict[str, jax.Array]], inputs: dict[str, jax.ShapeDtypeStruct], config: ModelConfig
) -> Any:
    """Return an `onnx.ModelProto` of a function of named inputs that returns named arrays.

    Raises ConfigError if jax2onnx is not installed.
    """
    try:
        import jax2onnx
        import onnx_ir
        from jax2onnx.converter import output_binding

        from mrcnn_jax.tools.export.onnx_operators import is_connected, onnx_operators
    except ImportError as error:
        raise ConfigError(_INSTALL.format(error=error)) from None
    specs = list(inputs.values())
    with onnx_operators(config.num_classes):
        # Functions of their own, because JAX keeps the traces of `function`, which other calls must not find.
        outputs = sorted(jax.eval_shape(lambda *arrays: function(*arrays), *specs))
        simplified = simplify(lambda *arrays: jax.tree.leaves(function(*arrays)), specs)
    logging.getLogger("onnx_ir.serde").setLevel(logging.ERROR)  # warns of types that are not stored, in each file
    with mock.patch.object(output_binding, "_value_is_graph_connected", is_connected):
        model = jax2onnx.to_onnx(
            core.jaxpr_as_fun(simplified),
            specs,
            opset=OPSET,
            input_names=list(inputs),
            output_names=outputs,
            return_mode="ir",
        )
    onnx_ir.passes.common.RemoveUnusedNodesPass()(model)  # and constants, of which ONNX Runtime would warn
    return onnx_ir.to_proto(model)
