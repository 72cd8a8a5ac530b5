"""What happens to one training image: drawn at random first, then carried out without chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mrcnn_jax.config import DataConfig
from mrcnn_jax.data.augment import colour, geometry
from mrcnn_jax.data.batching import scale_for, scaled_size
from mrcnn_jax.data.sample import Sample

_IDS = 2**64 - 1


class Choices(NamedTuple):
    """Everything that chance decides about one image (of evaluation: nothing is left to chance)."""

    window: tuple[int, int, int, int]  # x0 y0 x1 y1, the part of the original that is used
    scaled: tuple[int, int]  # height and width that it gets
    flips: tuple[bool, bool] = (False, False)  # left-right, top-bottom
    factors: colour.Factors = colour.Factors()
    partner: float | None = None  # in [0, 1): which image to paste instances from; None: do not


def generator(seed: int, epoch: int, image_id: int, *more: int) -> np.random.Generator:
    """The one source of chance for an image in an epoch: the same in any process and at any place of a batch."""
    return np.random.default_rng([seed, epoch, *(number & _IDS for number in (image_id, *more))])


def draw(data: DataConfig, rng: np.random.Generator, size: Sequence[int], bucket: Sequence[int]) -> Choices:
    """Draw for an image of `size` (height, width) that goes to `bucket`. Always draws the same numbers, in this order,
    so that switching one augmentation on or off does not change what the others do."""
    augment = data.augment
    flips, shortest = rng.random(2), int(rng.choice(data.shortest_edge_train))
    crop_chance, jitter, colours, paste_chance, partner = rng.random(), rng.random(), rng.random(4), *rng.random(2)
    crop_parts, crop_place, canvas_place = rng.random(2), rng.random(2), rng.random(2)
    window = np.array([0, 0, size[1], size[0]])
    if crop_chance < augment.crop:
        low, high = augment.crop_size
        window = _inner(window, np.asarray(size) * (low + crop_parts * (high - low)), crop_place)
    extent = window[[3, 2]] - window[[1, 0]]
    if augment.scale_jitter is None:
        scale = float(scale_for(extent, bucket, shortest_edge=shortest, longest_edge=data.longest_edge))
    else:
        low, high = augment.scale_jitter
        scale = (low + jitter * (high - low)) * float((np.asarray(bucket) / extent).min())
        window = _inner(window, np.asarray(bucket) / scale, canvas_place)
    height, width = scaled_size(window[[3, 2]] - window[[1, 0]], scale, bucket)
    return Choices(
        window=(int(window[0]), int(window[1]), int(window[2]), int(window[3])),
        scaled=(int(height), int(width)),
        flips=(bool(flips[0] < data.horizontal_flip), bool(flips[1] < data.vertical_flip)),
        factors=colour.factors(colours, augment),
        partner=float(partner) if paste_chance < augment.copy_paste else None,
    )


def without_chance(data: DataConfig, size: Sequence[int], bucket: Sequence[int]) -> Choices:
    """What evaluation does with an image: the whole of it, scaled."""
    scale = scale_for(np.asarray(size), bucket, shortest_edge=data.shortest_edge_eval, longest_edge=data.longest_edge)
    height, width = scaled_size(np.asarray(size), scale, bucket)
    return Choices((0, 0, int(size[1]), int(size[0])), (int(height), int(width)))


def reduction(choices: Choices) -> int:
    """The largest of 1, 2, 4, 8 by which a decoder may reduce the image: it stays as large as it is needed."""
    x0, y0, x1, y1 = choices.window
    room = min((y1 - y0) / choices.scaled[0], (x1 - x0) / choices.scaled[1])
    return max(factor for factor in (1, 2, 4, 8) if factor <= max(room, 1))


def apply(
    choices: Choices, sample: Sample, *, reduced: int, flip_map: Sequence[int] = (), out: np.ndarray | None = None
) -> Sample:
    """Colours, flips, crop and scale of a sample that was decoded at 1 / `reduced`; the image goes to `out`."""
    height, width = sample.image.shape[:2]
    x0, y0, x1, y1 = np.array(choices.window) / reduced
    if choices.flips[0]:
        x0, x1 = width - x1, width - x0
    if choices.flips[1]:
        y0, y1 = height - y1, height - y0
    sample = sample._replace(image=colour.jitter(sample.image, choices.factors))
    sample = geometry.flip(sample, *choices.flips, flip_map)
    return geometry.view(sample, np.array([x0, y0, x1, y1]), choices.scaled, out)


def _inner(window: np.ndarray, extent: np.ndarray, place: np.ndarray) -> np.ndarray:
    """A part of `window` of (at most) `extent` height and width, in whole pixels, at a `place` (2,) in [0, 1)."""
    room = window[[3, 2]] - window[[1, 0]]
    extent = np.clip(np.floor(np.asarray(extent) + 0.5), 1, room).astype(int)
    start = window[[1, 0]] + np.floor(place * (room - extent + 1)).astype(int)
    return np.concatenate([start[::-1], start[::-1] + extent[::-1]])
