"""Test-time augmentation: single images at several scales and flipped (`config.eval.scales`, `config.eval.flip`).

`view_transforms` merges the results of the views. Detections are in pixels of the reference view, the image resized to
`data.shortest_edge_eval`, so that postprocessing is the same as without augmentation.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from mrcnn_jax.config import Config, ModelConfig
from mrcnn_jax.inference import single_image, view_transforms
from mrcnn_jax.inference.detector import Detect, ImageBatch
from mrcnn_jax.models.mask_rcnn import build_model
from mrcnn_jax.structures import Detections

_MAX_IN_FLIGHT = 2  # images whose features are on the device at the same time


class Views(NamedTuple):
    """The V views of one image."""

    images: tuple[Any, ...]  # V arrays (1, H, W, 3), padded; the shape differs between scales
    sizes: Any  # (V, 2) int32, before padding
    flipped: Any  # (V,) bool


def prepare(pixels: NDArray[np.uint8], index: int, config: Config) -> ImageBatch:
    """Return a batch of one (h, w, 3) uint8 RGB image: `images` are its `Views`, `image_sizes` the reference size."""
    views: list[tuple[Any, Any, bool]] = []
    for scale in config.eval.scales or (config.data.shortest_edge_eval,):
        view = single_image.prepare(pixels, index, scale_config(config, scale))
        views.append((view.images, view.image_sizes[0], False))
        if config.eval.flip:
            views.append((_flip(view.images, view.image_sizes[0, 1]), view.image_sizes[0], True))
    images, sizes, flipped = zip(*views, strict=True)
    reference_size = single_image.network_size((pixels.shape[0], pixels.shape[1]), config)
    return ImageBatch(
        Views(images, np.array(sizes), np.array(flipped)),
        np.array([reference_size], np.int32),
        np.array([index], np.int32),
        np.array([True]),
    )


def scale_config(config: Config, shortest_edge: int) -> Config:
    """Return `config` for another `shortest_edge_eval`; longest edge and buckets (multiples of 32) in proportion."""
    data = config.data
    original = data.shortest_edge_eval

    def scale_side(side: int) -> int:
        return -(-side * shortest_edge // (32 * original)) * 32

    scaled = dataclasses.replace(
        data,
        shortest_edge_eval=shortest_edge,
        longest_edge=max(round(data.longest_edge * shortest_edge / original), 1),
        buckets=tuple((scale_side(height), scale_side(width)) for height, width in data.buckets),
    )
    return dataclasses.replace(config, data=scaled)


def _flip(padded: NDArray[Any], width: int) -> NDArray[Any]:
    """Flip the first `width` columns of an image (1, H, W, 3) horizontally; the padding stays in place."""
    result = padded.copy()
    result[:, :, :width] = padded[:, :, :width][:, :, ::-1]
    return result


def compile_detect(model: ModelConfig, variables: Any, devices: Sequence[jax.Device] = ()) -> Detect:
    """Return detection for the batches of `prepare`, with `variables` on the first of `devices`.

    Boxes are in pixels of the reference view. One device is used: each further one would compile every program again.
    There are two programs for each shape of a view, boxes and heads, and three small ones for all shapes.
    """
    return _Detect(_programs(model), jax.device_put(variables, devices[0] if devices else None))


class _Programs(NamedTuple):
    """The compiled functions of `view_transforms`, and the sum of head outputs."""

    detect_boxes: Any
    merge: Any
    run_heads: Any
    add: Any
    finish: Any


@functools.lru_cache(maxsize=8)
def _programs(config: ModelConfig) -> _Programs:
    model = build_model(config)
    return _Programs(
        detect_boxes=jax.jit(functools.partial(view_transforms.detect_boxes, model)),
        merge=jax.jit(functools.partial(view_transforms.merge, config)),
        run_heads=jax.jit(functools.partial(view_transforms.run_heads, model)),
        add=jax.jit(lambda total, more: jax.tree.map(jnp.add, total, more), donate_argnums=0),
        finish=jax.jit(functools.partial(view_transforms.finish, config), static_argnums=2),
    )


class _Detect:
    def __init__(self, programs: _Programs, variables: Any):
        self._programs, self._variables = programs, variables
        self._in_flight: deque[Detections] = deque()

    def __call__(self, views: Views, reference_size: Any) -> Detections:
        """Dispatch one image. Waits for the last image but one, which bounds the features in memory."""
        if len(self._in_flight) == _MAX_IN_FLIGHT:
            jax.block_until_ready(self._in_flight.popleft())
        result = self._dispatch(views, reference_size[0])
        self._in_flight.append(result)
        return result

    def _dispatch(self, views: Views, reference_size: Any) -> Detections:
        """Detect boxes in all views, merge them, and run the heads on the features of the views."""
        programs, variables = self._programs, self._variables
        transforms = [
            view_transforms.ViewTransform(reference_size, size, flipped)
            for size, flipped in zip(views.sizes, views.flipped, strict=True)
        ]
        outputs = [
            programs.detect_boxes(variables, image, transform)
            for image, transform in zip(views.images, transforms, strict=True)
        ]
        merged = programs.merge([detections for _, detections in outputs], reference_size)
        heads = (
            programs.run_heads(variables, features, merged, transform)
            for (features, _), transform in zip(outputs, transforms, strict=True)
        )
        result: Detections = programs.finish(merged, functools.reduce(programs.add, heads), len(transforms))
        return result
