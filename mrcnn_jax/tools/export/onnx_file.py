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
from jax.extend import core

from mrcnn_jax import __version__
from mrcnn_jax.config import ModelConfig
from mrcnn_jax.errors import ConfigError
from mrcnn_jax.inference.postprocess import categories
from mrcnn_jax.runtime import files
from mrcnn_jax.tools.export.onnx_jaxpr import simplify
from mrcnn_jax.tools.export.program import exported_function, flat_weights, input_shapes

OPSET = 18
_INSTALL = (
    "an ONNX file needs jax2onnx in an environment of its own ({error}): benchmarks/onnx_env.sh makes one, as does"
    " pip install 'jax2onnx==0.17.*' onnx onnxruntime in an environment with mrcnn_jax"
)


def write_onnx(
    path: str | os.PathLike[str], config: ModelConfig, variables: Any, shape: tuple[int, int], batch_size: int = 1
) -> None:
    """Write `exported_function(config)` with its weights as an ONNX file for images (batch_size, *shape, 3).

    Inputs and outputs have the names of `input_shapes` and of the function's arrays. The network computes in float32,
    because ONNX Runtime has no convolutions of bfloat16 on CPUs.

    Raises ConfigError if jax2onnx is not installed, or for a pooling without an ONNX operator.
    """
    if (config.roi.pooling, config.roi.reduce) != ("align", "average"):
        raise ConfigError(
            f"model.roi.pooling={config.roi.pooling}, model.roi.reduce={config.roi.reduce}: ONNX has no such operator;"
            " only models with align and average can be written as ONNX files"
        )
    config = dataclasses.replace(config, compute_dtype="float32")
    function = functools.partial(exported_function(config), flat_weights(variables))
    model = convert(function, input_shapes((batch_size, *shape)), config)
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
