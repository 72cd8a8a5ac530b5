"""ROIAlign and NMS as ONNX operators: JAX primitives without an implementation, and their conversion.

ONNX defines both as our `ops` do. As generic operators, ROIAlign takes loops of gathers, and NMS all pairs of boxes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import onnx_ir as ir
from jax.extend import core
from jax.interpreters import batching
from jax2onnx.plugins.plugin_system import PrimitiveLeafPlugin, register_primitive

from mrcnn_jax.config import RoIConfig
from mrcnn_jax.ops import nms
from mrcnn_jax.ops.roi import pooling
from mrcnn_jax.ops.roi.rois import FeatureMaps

BOOL, INT64 = ir.DataType.BOOL, ir.DataType.INT64

roi_align_p = core.Primitive("onnx_roi_align")
nms_p = core.Primitive("onnx_nms")


@contextmanager
def onnx_operators(num_classes: int) -> Iterator[None]:
    """Trace ROIAlign and NMS as ONNX operators. num_classes: upper limit of the groups in NMS."""
    suppress = functools.partial(_nms_of_stacks, num_groups=num_classes)
    with mock.patch.object(pooling, "_pool", _pool), mock.patch.object(nms, "_nms_of_stacks", suppress):
        yield


def _pool(
    features: FeatureMaps,
    boxes: jax.Array,
    levels: jax.Array,
    scales: tuple[float, ...],
    output_size: pooling.Size,
    config: RoIConfig,
) -> jax.Array:
    """`pooling._pool`, for averages of exact samples."""
    batch, count = levels.shape
    images = jnp.repeat(np.arange(batch, dtype=np.int32), count)
    pooled = roi_align_p.bind(
        boxes.reshape(-1, 4),
        levels.reshape(-1),
        images,
        *features,
        scales=scales,
        size=output_size,
        sampling_ratio=config.sampling_ratio,
        aligned=config.aligned,
    )
    return pooled.reshape(batch, count, *pooled.shape[1:])


@roi_align_p.def_abstract_eval
def _(boxes: Any, levels: Any, images: Any, *maps: Any, size: int, **_: Any) -> Any:
    return jax.core.ShapedArray((boxes.shape[0], size, size, maps[0].shape[-1]), maps[0].dtype)


def _nms_of_stacks(stacks: list[nms.Boxes], iou_threshold: float, *, num_groups: int) -> list[jax.Array]:
    """`nms._nms_of_stacks`."""
    return [nms_p.bind(*stack, iou_threshold=iou_threshold, num_groups=num_groups) for stack in stacks]


@nms_p.def_abstract_eval
def _(boxes: Any, groups: Any, valid: Any, **_: Any) -> Any:
    return jax.core.ShapedArray(valid.shape, valid.dtype)


def _batch_nms(inputs: Any, axes: Any, **params: Any) -> tuple[jax.Array, int]:
    size = next(x.shape[axis] for x, axis in zip(inputs, axes, strict=True) if axis is not None)
    moved = [batching.bdim_at_front(x, axis, size) for x, axis in zip(inputs, axes, strict=True)]
    return nms_p.bind(*moved, **params), 0


batching.primitive_batchers[nms_p] = _batch_nms


def is_connected(context: Any, value: ir.Value) -> bool:
    """Whether a value is part of a graph. jax2onnx's own test searches all nodes, after each equation."""
    return value.producer() is not None or value.is_graph_input() or value.name in context.builder.graph.initializers


class _Graph:
    """Adds nodes to the graph that jax2onnx builds."""

    def __init__(self, context: Any):
        self._context, self._builder = context, context.builder

    def constant(self, values: Any, dtype: type = np.int64) -> Any:
        return self._builder.add_initializer_from_array(self._context.fresh_name("constant"), np.asarray(values, dtype))

    def __call__(
        self, kind: str, *inputs: Any, shape: tuple[int | None, ...], dtype: Any = None, **attributes: Any
    ) -> Any:
        """Add a node and return its output, by default of the dtype of the first input."""
        output = getattr(self._builder, kind)(*inputs, _outputs=[self._context.fresh_name(kind)], **attributes)
        output.type = ir.TensorType(inputs[0].type.dtype if dtype is None else dtype)
        output.shape = ir.Shape(shape)
        return output


@register_primitive(jaxpr_primitive=roi_align_p.name)
class RoiAlignPlugin(PrimitiveLeafPlugin):
    """Each level pools its own RoIs, a number that depends on the data; their results are put in order again."""

    def lower(self, ctx: Any, eqn: Any) -> None:
        node = _Graph(ctx)
        boxes, levels, images, *maps = (ctx.get_value_for_var(variable) for variable in eqn.invars)
        count, size, _, channels = eqn.outvars[0].aval.shape
        params = eqn.params
        attributes = {
            "mode": "avg",
            "output_height": size,
            "output_width": size,
            "sampling_ratio": params["sampling_ratio"],
            "coordinate_transformation_mode": "half_pixel" if params["aligned"] else "output_half_pixel",
        }
        images = node("Cast", images, shape=(count,), dtype=INT64, to=int(INT64))
        indices, pooled = [], []
        for level, features in enumerate(maps):
            batch, height, width, _ = eqn.invars[3 + level].aval.shape
            own = node("Equal", levels, node.constant(level, np.int32), shape=(count,), dtype=BOOL)
            own = node("NonZero", own, shape=(1, None), dtype=INT64)
            index = node("Reshape", own, node.constant([-1]), shape=(None,))
            nchw = node("Transpose", features, shape=(batch, channels, height, width), perm=[0, 3, 1, 2])
            rois = node("Gather", boxes, index, shape=(None, 4)), node("Gather", images, index, shape=(None,))
            scale = params["scales"][level]
            shape = (None, channels, size, size)
            pooled.append(node("RoiAlign", nchw, *rois, shape=shape, spatial_scale=scale, **attributes))
            indices.append(index)
        order = node("Concat", *indices, shape=(count,), axis=0)
        positions = node.constant(np.arange(count))
        inverse = node("ScatterElements", positions, order, positions, shape=(count,))
        result = node("Concat", *pooled, shape=(count, channels, size, size), axis=0)
        result = node("Gather", result, inverse, shape=(count, channels, size, size))
        result = node("Transpose", result, shape=(count, size, size, channels), perm=[0, 2, 3, 1])
        ctx.bind_value_for_var(eqn.outvars[0], result)


@register_primitive(jaxpr_primitive=nms_p.name)
class NmsPlugin(PrimitiveLeafPlugin):
    """Sorted boxes get descending scores, and each group is a class of its own."""

    def lower(self, ctx: Any, eqn: Any) -> None:
        node = _Graph(ctx)
        boxes, groups, valid = (ctx.get_value_for_var(variable) for variable in eqn.invars)
        shape, num_groups = eqn.outvars[0].aval.shape, eqn.params["num_groups"]
        count = shape[-1]
        sets = int(np.prod(shape[:-1]))
        boxes = node("Reshape", boxes, node.constant([sets, count, 4]), shape=(sets, count, 4))
        single = (sets, 1, count)
        groups, valid = (node("Reshape", array, node.constant(single), shape=single) for array in (groups, valid))
        classes = node.constant(np.arange(num_groups)[:, None], np.int32)
        every = (sets, num_groups, count)
        member = node("Equal", groups, classes, shape=every, dtype=BOOL)
        member = node("And", member, valid, shape=every)
        scores = node.constant(np.arange(count, 0, -1), np.float32), node.constant(0, np.float32)
        scores = node("Where", member, *scores, shape=every, dtype=ir.DataType.FLOAT)
        limits = node.constant([count]), node.constant([eqn.params["iou_threshold"]], np.float32)
        threshold = node.constant([0.5], np.float32)
        kept = node("NonMaxSuppression", boxes, scores, *limits, threshold, shape=(None, 3), dtype=INT64)
        # Columns: set, class, box. The product with (count, 0, 1) is the index of the box among those of all sets.
        index = node("MatMul", kept, node.constant([count, 0, 1]), shape=(None,))
        kept = node("Equal", index, index, shape=(None,), dtype=BOOL)
        nothing = node.constant(np.zeros(sets * count), np.bool_)
        result = node("ScatterElements", nothing, index, kept, shape=(sets * count,))
        ctx.bind_value_for_var(eqn.outvars[0], node("Reshape", result, node.constant(shape), shape=shape))
