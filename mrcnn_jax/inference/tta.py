"""Test-time augmentation: each image alone, in several sizes and mirrored (`config.eval.scales`, `flip`).

How what is found is put together: `models.views`. The frame of the boxes is the picture at `data.shortest_edge_eval`,
so that afterwards nothing differs from an image that was seen once.
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
from mrcnn_jax.inference.detector import Detect, Images
from mrcnn_jax.models import mask_rcnn
from mrcnn_jax.structures import Detections

_IN_FLIGHT = 2  # images whose features are on the device together


class Views(NamedTuple):
    """One image in V views."""

    canvases: tuple[Any, ...]  # V arrays (1, H, W, 3), padded, each scale in a shape of its own
    sizes: Any  # (V, 2) int32, of the pictures in them
    mirrored: Any  # (V,) bool


def prepare(pixels: NDArray[np.uint8], index: int, config: Config) -> Images:
    """A batch of one: all views of an (h, w, 3) uint8 RGB image, as `images`; `image_sizes` is that of the frame."""
    found: list[tuple[Any, Any, bool]] = []
    for scale in config.eval.scales or (config.data.shortest_edge_eval,):
        view = single_image.prepare(pixels, index, at_scale(config, scale))
        found.append((view.images, view.image_sizes[0], False))
        if config.eval.flip:
            found.append((_mirror(view.images, view.image_sizes[0, 1]), view.image_sizes[0], True))
    canvases, sizes, mirrored = zip(*found, strict=True)
    frame = single_image.network_size((pixels.shape[0], pixels.shape[1]), config)
    return Images(
        Views(canvases, np.array(sizes), np.array(mirrored)),
        np.array([frame], np.int32),
        np.array([index], np.int32),
        np.array([True]),
    )


def at_scale(config: Config, shortest_edge: int) -> Config:
    """The same with images of another size: the longest edge and the buckets (to multiples of 32) in proportion."""
    data = config.data
    usual = data.shortest_edge_eval

    def padded(side: int) -> int:
        return -(-side * shortest_edge // (32 * usual)) * 32

    changed = dataclasses.replace(
        data,
        shortest_edge_eval=shortest_edge,
        longest_edge=max(round(data.longest_edge * shortest_edge / usual), 1),
        buckets=tuple((padded(height), padded(width)) for height, width in data.buckets),
    )
    return dataclasses.replace(config, data=changed)


def _mirror(canvas: NDArray, width: int) -> NDArray:
    """The mirror image, left-right, of the picture of that width in a canvas (1, H, W, 3); the padding stays."""
    result = canvas.copy()
    result[:, :, :width] = canvas[:, :, :width][:, :, ::-1]
    return result


def compile_detect(model: ModelConfig, variables: Any, devices: Sequence[jax.Device] = ()) -> Detect:
    """Detection in what `prepare` made, with the variables on the device; boxes are in pixels of the frame.

    Of `devices` (default: that of JAX) the first does it all: every program would be compiled again for each other one.
    There are two for each shape of a view, mirrored or not: the boxes and, when all are known, the heads. Three small
    ones serve all shapes.
    """
    return _Detect(_programs(model), jax.device_put(variables, devices[0] if devices else None))


class _Programs(NamedTuple):
    """What is compiled: the functions of `models.views`, and the sum of what heads said."""

    find: Any
    merge: Any
    ask: Any
    add: Any
    finish: Any


@functools.lru_cache(maxsize=8)
def _programs(config: ModelConfig) -> _Programs:
    model = mask_rcnn.build_model(config)
    return _Programs(
        find=jax.jit(functools.partial(view_transforms.detect_boxes, model)),
        merge=jax.jit(functools.partial(view_transforms.merge, config)),
        ask=jax.jit(functools.partial(view_transforms.run_heads, model)),
        add=jax.jit(lambda total, more: jax.tree.map(jnp.add, total, more), donate_argnums=0),
        finish=jax.jit(functools.partial(view_transforms.finish, config), static_argnums=2),
    )


class _Detect:
    def __init__(self, programs: _Programs, variables: Any):
        self._programs, self._variables = programs, variables
        self._running: deque[Detections] = deque()

    def __call__(self, image: Views, frame: Any) -> Detections:
        """Dispatches; waits only for the image before the previous one, so that features do not pile up."""
        if len(self._running) == _IN_FLIGHT:
            jax.block_until_ready(self._running.popleft())
        result = self._dispatch(image, frame[0])
        self._running.append(result)
        return result

    def _dispatch(self, image: Views, frame: Any) -> Detections:
        """The features of a view wait on the device for the heads, so that the backbone runs once for each view."""
        run, variables = self._programs, self._variables
        poses = [
            view_transforms.ViewTransform(frame, *place) for place in zip(image.sizes, image.mirrored, strict=True)
        ]
        looks = [run.find(variables, canvas, pose) for canvas, pose in zip(image.canvases, poses, strict=True)]
        merged = run.merge([found for _, found in looks], frame)
        total: view_transforms.Heads | None = None
        for (features, _), pose in zip(looks, poses, strict=True):
            heads = run.ask(variables, features, merged, pose)
            total = heads if total is None else run.add(total, heads)
        return run.finish(merged, total, len(poses))
