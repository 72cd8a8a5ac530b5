"""Random choices for the augmentation of one image, and their deterministic application."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mrcnn_jax.config import AugmentConfig, DataConfig
from mrcnn_jax.data.augment import color_jitter, geometry
from mrcnn_jax.data.batching import scale_for, scaled_size
from mrcnn_jax.data.sample import Sample, Size

_WORD_RANGE = 2**32  # NumPy's seeds are words of 32 bits


class Choices(NamedTuple):
    """The parameters of the augmentation of one image."""

    window: tuple[int, int, int, int]  # x0 y0 x1 y1, the part of the original image that is used
    scaled: tuple[int, int]  # height and width to which it is resized
    flips: tuple[bool, bool] = (False, False)  # left-right, top-bottom
    factors: color_jitter.JitterFactors = color_jitter.JitterFactors()
    partner: float | None = None  # in [0, 1), the image to paste instances from, as a fraction of the dataset; or None


def image_generator(seed: int, epoch: int, *image_ids: int) -> np.random.Generator:
    """Return the random generator of an image in an epoch, the same in every process and slot of a batch.

    With a second id, of its partner for copy-paste, it is the generator for the partner. Ids are integers of 64 bits,
    also negative ones; each becomes two words, so that different ids give different seeds.
    """
    words = [
        word for image_id in image_ids for word in (image_id % _WORD_RANGE, (image_id // _WORD_RANGE) % _WORD_RANGE)
    ]
    return np.random.default_rng([seed, epoch, *words])


def draw_choices(data: DataConfig, rng: np.random.Generator, size: Size, bucket: Sequence[int]) -> Choices:
    """Draw the choices for a training image of `size` (height, width) in `bucket`.

    Always draws the same numbers from `rng`: switching one augmentation on or off does not change the others.
    """
    augment = data.augment
    left_right, top_bottom, edge, crops, jitter, pastes, partner = rng.random(7)
    colors, crop_extent, crop_place, jitter_place = rng.random(4), rng.random(2), rng.random(2), rng.random(2)
    window = geometry.full_window(size)
    if crops < augment.crop:
        low, high = augment.crop_size
        window = _crop_window(window, np.asarray(size) * (low + crop_extent * (high - low)), crop_place)
    if augment.scale_jitter is None:
        shortest = data.shortest_edge_train[int(edge * len(data.shortest_edge_train))]
        scale = float(scale_for(_window_size(window), bucket, shortest_edge=shortest, longest_edge=data.longest_edge))
    else:
        low, high = augment.scale_jitter
        scale = (low + jitter * (high - low)) * float((np.asarray(bucket) / _window_size(window)).min())
        window = _crop_window(window, np.asarray(bucket) / scale, jitter_place)  # crops what exceeds the bucket
    x0, y0, x1, y1 = window.tolist()
    height, width = scaled_size(_window_size(window), scale, bucket).tolist()
    return Choices(
        window=(x0, y0, x1, y1),
        scaled=(height, width),
        flips=(bool(left_right < data.horizontal_flip), bool(top_bottom < data.vertical_flip)),
        factors=_jitter_factors(augment, colors),
        partner=float(partner) if pastes < augment.copy_paste else None,
    )


def draw_pasted_instances(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw which of `count` instances are pasted, each with probability 1/2: indices (k,)."""
    return np.flatnonzero(rng.random(count) < 0.5)


def deterministic_choices(data: DataConfig, size: Size, bucket: Sequence[int]) -> Choices:
    """Return the choices for evaluation: the whole image, resized."""
    scale = scale_for(np.asarray(size), bucket, shortest_edge=data.shortest_edge_eval, longest_edge=data.longest_edge)
    height, width = scaled_size(np.asarray(size), scale, bucket).tolist()
    return Choices(window=(0, 0, int(size[1]), int(size[0])), scaled=(height, width))


def decode_reduction(choices: Choices) -> int:
    """Return the largest of 1, 2, 4, 8 by which the image can be reduced in decoding without upscaling afterwards."""
    x0, y0, x1, y1 = choices.window
    downscale = min((y1 - y0) / choices.scaled[0], (x1 - x0) / choices.scaled[1])
    return max(factor for factor in (1, 2, 4, 8) if factor <= max(downscale, 1))


def apply_choices(
    choices: Choices, sample: Sample, *, reduction: int, flip_map: Sequence[int] = (), out: np.ndarray | None = None
) -> Sample:
    """Apply color jitter, flips, crop and resize to a sample that was decoded at 1 / `reduction`.

    The image is written to `out` if given; see `geometry.flip` for `flip_map`.
    """
    height, width = sample.image.shape[:2]
    x0, y0, x1, y1 = np.array(choices.window) / reduction
    if choices.flips[0]:
        x0, x1 = width - x1, width - x0
    if choices.flips[1]:
        y0, y1 = height - y1, height - y0
    sample = sample._replace(image=color_jitter.jitter(sample.image, choices.factors))
    sample = geometry.flip(sample, *choices.flips, flip_map)
    return geometry.crop_and_resize(sample, np.array([x0, y0, x1, y1]), choices.scaled, out)


def _jitter_factors(augment: AugmentConfig, uniform: np.ndarray) -> color_jitter.JitterFactors:
    """Map four numbers in [0, 1) to factors in [max(0, 1 - strength), 1 + strength); hue in [-strength, strength)."""
    strengths = np.array([augment.brightness, augment.contrast, augment.saturation])
    low = np.maximum(1 - strengths, 0)
    brightness, contrast, saturation = (low + uniform[:3] * (1 + strengths - low)).tolist()
    return color_jitter.JitterFactors(brightness, contrast, saturation, hue=float(2 * uniform[3] - 1) * augment.hue)


def _window_size(window: np.ndarray) -> np.ndarray:
    """Return height and width."""
    return window[[3, 2]] - window[[1, 0]]


def _crop_window(window: np.ndarray, size: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Return a part of `window` of at most `size` (height, width) in whole pixels, at a `position` (2,) in [0, 1)."""
    full_size = _window_size(window)
    size = np.clip(np.floor(size + 0.5), 1, full_size).astype(int)
    start = window[[1, 0]] + np.floor(position * (full_size - size + 1)).astype(int)
    return np.concatenate([start[::-1], start[::-1] + size[::-1]])
