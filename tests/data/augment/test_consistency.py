"""Tests that image, boxes, masks and keypoints stay consistent through sequences of transformations."""

from __future__ import annotations

import cv2
import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings
from support.samples import assert_same_mask, some_annotations

from mrcnn_jax.data.augment.geometry import crop, crop_and_resize, flip
from mrcnn_jax.data.mask_crops import Raster, pixel_windows, rasterize_masks
from mrcnn_jax.data.sample import Sample, make_sample, select_instances

SIZE, POINTS = 60, 4
FLIP_MAP = (0, 2, 1, 3)
quick = settings(max_examples=30)
seeds = st.integers(0, 2**32)
part = st.floats(0, 1)
flips = st.tuples(st.just("flip"), st.booleans(), st.booleans())
crops = st.tuples(st.just("crop"), part, part, part, part)
views = st.tuples(st.just("view"), part, part, part, part, st.floats(0.5, 2), st.floats(0.5, 2))


def between(low: float, high: float, extent: int, least: int) -> tuple[float, float]:
    """A part of 0..extent, at least so long, from two numbers in 0..1."""
    start = low * (extent - least)
    return start, start + least + high * (extent - least - start)


def follow(sample: Sample, operation: tuple) -> tuple[Sample, np.ndarray]:
    """What the operation makes of the sample, and the scale (x, y) of it."""
    height, width = sample.image.shape[:2]
    if operation[0] == "flip":
        return flip(sample, operation[1], operation[2], FLIP_MAP), np.ones(2)
    left, right, top, bottom = operation[1:5]
    x0, x1 = between(left, right, width, 12)
    y0, y1 = between(top, bottom, height, 12)
    if operation[0] == "crop":
        return crop(sample, (int(x0), int(y0), int(x1), int(y1))), np.ones(2)
    size = max(round((y1 - y0) * operation[5]), 12), max(round((x1 - x0) * operation[6]), 12)
    return crop_and_resize(sample, np.array([x0, y0, x1, y1]), size), np.array(
        [size[1] / (x1 - x0), size[0] / (y1 - y0)]
    )


def scene(seed: int, count: int = 3) -> Sample:
    """Three figures of both kinds on black, each white in a color channel of its own."""
    annotations = some_annotations(np.random.default_rng(seed), count, (SIZE, SIZE), POINTS)
    sample = make_sample(np.zeros((SIZE, SIZE, 3), np.uint8), annotations, {3: 1}, (SIZE, SIZE), num_keypoints=POINTS)
    return sample._replace(classes=np.arange(1, count + 1, dtype=np.int32), image=255 * np.stack(seen(sample), axis=-1))


def seen(sample: Sample) -> list[np.ndarray]:
    """The masks as bitmaps of the whole picture."""
    height, width = sample.image.shape[:2]
    assert sample.masks is not None
    return list(rasterize_masks(sample.masks, np.tile([0, 0, width, height], (len(sample.boxes), 1))))


@quick
@given(seeds, st.lists(flips | crops | views, min_size=1, max_size=4))
def test_masks_cover_their_figures_and_boxes_enclose_them(seed: int, operations: list[tuple]) -> None:
    sample, blur = scene(seed), 1.0
    for operation in operations:
        sample, scale = follow(sample, operation)
        blur = 1 + blur * max(scale)  # every resampling smears an edge over a pixel before and after it
    kernel = np.ones((2 * int(np.ceil(blur)) + 1,) * 2, np.uint8)
    found = dict(zip(sample.classes.tolist(), zip(sample.boxes, seen(sample), strict=True), strict=True))
    for channel in range(3):
        painted = (sample.image[..., channel] > 127).astype(np.uint8)
        if channel + 1 not in found:  # nothing but a rest that is less than a pixel wide or high
            assert not cv2.erode(painted, kernel, borderValue=0).any()
            continue
        box, mask = found[channel + 1]
        assert not (cv2.erode(mask, kernel, borderValue=0) & ~cv2.dilate(painted, kernel)).any()
        assert not (cv2.erode(painted, kernel, borderValue=0) & ~mask).any()
        assert (box[2:] > box[:2]).all()
        assert (box >= 0).all()
        assert (box <= np.tile(sample.image.shape[1::-1], 2)).all()
        ys, xs = np.nonzero(mask)
        if len(ys):  # a pixel for the rounding of rasters, in each resampling
            bounds = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            np.testing.assert_allclose(box, bounds, atol=blur)


@quick
@given(seeds, st.lists(flips | crops | views, min_size=1, max_size=4))
def test_keypoints_stay_on_their_image_content(seed: int, operations: list[tuple]) -> None:
    """The picture says where each of its pixels was: four gray levels a pixel, which no resampling bends."""
    ramp = (4 * np.arange(SIZE) + 2).astype(np.uint8)  # 4 (x + 1/2), at the middle of pixel x
    image = np.stack(np.broadcast_arrays(ramp, ramp[:, None], np.uint8(0)), axis=-1)
    start = scene(seed)._replace(image=image)
    sample, error = start, 0.0
    names = list(range(POINTS))
    for operation in operations:
        sample, _ = follow(sample, operation)
        error += 0.5 / 4 + 0.01  # gray levels are rounded; fixed point of OpenCV
        if operation[0] == "flip" and operation[1] != operation[2]:
            names = [names[i] for i in FLIP_MAP]
    height, width = sample.image.shape[:2]
    for name, keypoints in zip(names, sample.keypoints.transpose(1, 0, 2), strict=True):
        for (x, y, visibility), number in zip(keypoints, sample.classes, strict=True):
            if not visibility:
                assert x == y == 0
                continue
            # Between the middles of pixels; at the rim the picture says nothing new.
            column, row = np.clip(x - 0.5, 0, width - 1), np.clip(y - 0.5, 0, height - 1)
            said = cv2.getRectSubPix(sample.image[..., :2].astype(np.float32)[..., [0, 1, 1]], (1, 1), (column, row))
            was = said[0, 0, :2] / 4
            true = start.keypoints[number - 1, name, :2]
            rim = (np.array([x, y]) < 1) | (np.array([x, y]) > (width - 1, height - 1))
            assert (np.abs(was - true) < np.where(rim, 2.0, error)).all()


@quick
@given(seeds, crops, st.booleans(), st.booleans())
def test_keypoints_are_lost_only_outside_the_image(seed: int, operation: tuple, left_right: bool, up: bool) -> None:
    before = flip(scene(seed), left_right, up, FLIP_MAP)
    after, _ = follow(before, operation)
    x0, x1 = map(int, between(operation[1], operation[2], SIZE, 12))
    y0, y1 = map(int, between(operation[3], operation[4], SIZE, 12))
    keypoints = before.keypoints[after.classes - 1]
    inside = np.all((keypoints[..., :2] >= (x0, y0)) & (keypoints[..., :2] <= (x1, y1)), axis=-1)
    np.testing.assert_array_equal(after.keypoints[..., 2], np.where(inside, keypoints[..., 2], 0))
    np.testing.assert_array_equal(after.keypoints[inside][:, :2], keypoints[inside][:, :2] - (x0, y0))


@quick
@given(seeds)
def test_flips_are_their_own_inverse_to_the_bit(seed: int) -> None:
    sample = scene(seed)
    assert sample.masks is not None
    # Coordinates that a float holds with and without the width: eighths. Others come back rounded once.
    eighths = [m if isinstance(m, Raster) else [np.round(p * 8) / 8 for p in m] for m in sample.masks]
    sample = sample._replace(boxes=np.round(sample.boxes * 8) / 8, masks=eighths)
    for horizontal, vertical in [(True, False), (False, True), (True, True)]:
        once = flip(sample, horizontal, vertical, FLIP_MAP)
        assert_same(flip(once, horizontal, vertical, FLIP_MAP), sample)
    both = flip(flip(sample, True, False, FLIP_MAP), False, True, FLIP_MAP)
    assert_same(both, flip(sample, True, True, FLIP_MAP))


def assert_same(found: Sample, expected: Sample) -> None:
    for name in ("image", "boxes", "classes", "keypoints"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    assert found.masks is not None
    assert expected.masks is not None
    for a, b in zip(found.masks, expected.masks, strict=True):
        assert type(a) is type(b)
        for one, other in zip(a, b, strict=True):  # polygons, or bitmap and window
            np.testing.assert_array_equal(one, other)


@quick
@given(seeds, crops)
def test_crop_pasted_back_equals_the_original(seed: int, operation: tuple) -> None:
    before = scene(seed)
    after, _ = follow(before, operation)
    x0, _ = map(int, between(operation[1], operation[2], SIZE, 12))
    y0, _ = map(int, between(operation[3], operation[4], SIZE, 12))
    height, width = after.image.shape[:2]
    np.testing.assert_array_equal(after.image, before.image[y0 : y0 + height, x0 : x0 + width])
    assert before.masks is not None
    assert after.masks is not None
    whole = [mask[y0 : y0 + height, x0 : x0 + width] for mask in seen(before)]
    for i in np.setdiff1d(before.classes, after.classes) - 1:
        rest = np.clip(before.boxes[i], [x0, y0, x0, y0], [x0 + width, y0 + height] * 2)
        if np.min(rest[2:] - rest[:2]) < 1:  # less than a pixel of it is left out
            continue
        left = np.zeros((SIZE, SIZE), np.uint8)
        left[y0 : y0 + height, x0 : x0 + width] = whole[i]
        assert_same_mask(np.zeros_like(left), left, before.masks, i, reach=0.3)
    for i, (number, box, mask) in enumerate(zip(after.classes, after.boxes, seen(after), strict=True)):
        assert_same_mask(mask, whole[number - 1], after.masks, i, reach=0.3)
        ys, xs = np.nonzero(mask)
        bounds = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        x, y = np.array([x0, y0])
        uncut = before.boxes[number - 1] - [x, y, x, y]
        if (uncut >= 0).all() and (uncut <= (width, height, width, height)).all():
            np.testing.assert_array_equal(box, uncut)  # an instance that is seen whole keeps the box that it was given
        else:
            np.testing.assert_array_equal(pixel_windows(box), bounds)


@quick
@given(seeds, views, views)
def test_crop_of_a_crop_equals_one_crop(seed: int, first: tuple, second: tuple) -> None:
    """The geometry of it; pixels are smeared twice."""
    start = scene(seed)
    halfway, _ = follow(start, first)
    twice, _ = follow(halfway, second)
    x0, x1 = between(first[1], first[2], SIZE, 12)
    y0, y1 = between(first[3], first[4], SIZE, 12)
    height, width = halfway.image.shape[:2]
    u0, u1 = between(second[1], second[2], width, 12)
    v0, v1 = between(second[3], second[4], height, 12)
    ratio_x, ratio_y = (x1 - x0) / width, (y1 - y0) / height
    window = np.array([x0 + u0 * ratio_x, y0 + v0 * ratio_y, x0 + u1 * ratio_x, y0 + v1 * ratio_y])
    once = crop_and_resize(start, window, twice.image.shape[:2])
    assert once.masks is not None
    assert twice.masks is not None
    common = np.isin(once.classes, twice.classes)  # what the first view left less than a pixel of is gone for good
    assert set(twice.classes) <= set(once.classes)
    np.testing.assert_allclose(twice.keypoints, once.keypoints[common], atol=1e-9)
    once = select_instances(once, np.flatnonzero(common))
    for i, (a, b) in enumerate(zip(seen(twice), seen(once), strict=True)):
        assert_same_mask(a, b, twice.masks, i)
