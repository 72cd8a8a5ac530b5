"""What happens to one training image: drawn at random first, then carried out without chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mrcnn_jax.config import AugmentConfig, DataConfig
from mrcnn_jax.data.augment import color_jitter, geometry
from mrcnn_jax.data.batching import scale_for, scaled_size
from mrcnn_jax.data.sample import Sample, Size

_WORD = 2**32  # NumPy seeds a generator with words of 32 bits


class Choices(NamedTuple):
    """Everything that chance decides about one image (of evaluation: nothing is left to chance)."""

    window: tuple[int, int, int, int]  # x0 y0 x1 y1, the part of the original that is used
    scaled: tuple[int, int]  # height and width that it gets
    flips: tuple[bool, bool] = (False, False)  # left-right, top-bottom
    factors: color_jitter.Factors = color_jitter.Factors()
    partner: float | None = None  # in [0, 1): which image to paste instances from; None: do not


def generator(seed: int, epoch: int, *image_ids: int) -> np.random.Generator:
    """The one source of chance for an image in an epoch: the same in any process and at any place of a batch.

    With a second id, that of its partner for copy-paste, it is the source for the partner's part. Ids are whole numbers
    of 64 bits, negative ones too. Each is two words, so that no two lists of ids are the same words.
    """
    words = [word for image_id in image_ids for word in (image_id % _WORD, (image_id // _WORD) % _WORD)]
    return np.random.default_rng([seed, epoch, *words])


def draw(data: DataConfig, rng: np.random.Generator, size: Size, bucket: Sequence[int]) -> Choices:
    """Draw for an image of `size` (height, width) that goes to `bucket`.

    Always takes the same numbers from `rng`, whatever the settings are: what one augmentation does is the same with
    another one switched on or off.
    """
    augment = data.augment
    left_right, top_bottom, edge, crops, jitter, pastes, partner = rng.random(7)
    colors, crop_extent, crop_place, jitter_place = rng.random(4), rng.random(2), rng.random(2), rng.random(2)
    window = geometry.whole(size)
    if crops < augment.crop:
        low, high = augment.crop_size
        window = _part(window, np.asarray(size) * (low + crop_extent * (high - low)), crop_place)
    if augment.scale_jitter is None:
        shortest = data.shortest_edge_train[int(edge * len(data.shortest_edge_train))]
        scale = float(scale_for(_extent(window), bucket, shortest_edge=shortest, longest_edge=data.longest_edge))
    else:
        low, high = augment.scale_jitter
        scale = (low + jitter * (high - low)) * float((np.asarray(bucket) / _extent(window)).min())
        window = _part(window, np.asarray(bucket) / scale, jitter_place)  # what is larger than the bucket is cut off
    x0, y0, x1, y1 = window.tolist()
    height, width = scaled_size(_extent(window), scale, bucket).tolist()
    return Choices(
        window=(x0, y0, x1, y1),
        scaled=(height, width),
        flips=(bool(left_right < data.horizontal_flip), bool(top_bottom < data.vertical_flip)),
        factors=_factors(augment, colors),
        partner=float(partner) if pastes < augment.copy_paste else None,
    )


def draw_some(rng: np.random.Generator, count: int) -> np.ndarray:
    """Which of `count` instances are pasted, indices (k,): each with probability 1/2."""
    return np.flatnonzero(rng.random(count) < 0.5)


def deterministic_choices(data: DataConfig, size: Size, bucket: Sequence[int]) -> Choices:
    """What evaluation does with an image: the whole of it, scaled."""
    scale = scale_for(np.asarray(size), bucket, shortest_edge=data.shortest_edge_eval, longest_edge=data.longest_edge)
    height, width = scaled_size(np.asarray(size), scale, bucket).tolist()
    return Choices(window=(0, 0, int(size[1]), int(size[0])), scaled=(height, width))


def reduction(choices: Choices) -> int:
    """The largest of 1, 2, 4, 8 by which a decoder may reduce the image: it stays as large as it is needed."""
    x0, y0, x1, y1 = choices.window
    room = min((y1 - y0) / choices.scaled[0], (x1 - x0) / choices.scaled[1])
    return max(factor for factor in (1, 2, 4, 8) if factor <= max(room, 1))


def apply(
    choices: Choices, sample: Sample, *, reduced: int, flip_map: Sequence[int] = (), out: np.ndarray | None = None
) -> Sample:
    """Colors, flips, crop and scale of a sample that was decoded at 1 / `reduced`; its image is `out` where given."""
    height, width = sample.image.shape[:2]
    x0, y0, x1, y1 = np.array(choices.window) / reduced
    if choices.flips[0]:
        x0, x1 = width - x1, width - x0
    if choices.flips[1]:
        y0, y1 = height - y1, height - y0
    sample = sample._replace(image=color_jitter.jitter(sample.image, choices.factors))
    sample = geometry.flip(sample, *choices.flips, flip_map)
    return geometry.view(sample, np.array([x0, y0, x1, y1]), choices.scaled, out)


def _factors(augment: AugmentConfig, chance: np.ndarray) -> color_jitter.Factors:
    """Factors from four numbers in [0, 1): from 1 - strength, at least 0, to 1 + strength; the hue from -strength."""
    strengths = np.array([augment.brightness, augment.contrast, augment.saturation])
    low = np.maximum(1 - strengths, 0)
    brightness, contrast, saturation = (low + chance[:3] * (1 + strengths - low)).tolist()
    return color_jitter.Factors(brightness, contrast, saturation, hue=float(2 * chance[3] - 1) * augment.hue)


def _extent(window: np.ndarray) -> np.ndarray:
    """Height and width."""
    return window[[3, 2]] - window[[1, 0]]


def _part(window: np.ndarray, extent: np.ndarray, place: np.ndarray) -> np.ndarray:
    """A part of `window` of (at most) `extent` height and width, in whole pixels, at a `place` (2,) in [0, 1)."""
    room = _extent(window)
    extent = np.clip(np.floor(extent + 0.5), 1, room).astype(int)
    start = window[[1, 0]] + np.floor(place * (room - extent + 1)).astype(int)
    return np.concatenate([start[::-1], start[::-1] + extent[::-1]])
