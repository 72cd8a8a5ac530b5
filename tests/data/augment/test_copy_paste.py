"""Tests of copy-paste against the painter's algorithm: later instances hide earlier ones, to the pixel."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from support.samples import annotation, empty_truth, resize, rle_of, some_annotations

from mrcnn_jax.data.augment.copy_paste import paste
from mrcnn_jax.data.augment.geometry import crop, flip
from mrcnn_jax.data.mask_crops import has_mask, pixel_windows, rasterize_masks
from mrcnn_jax.data.sample import Sample, make_sample, select_instances, write_ground_truth

SIZE, POINTS = 48, 3
FLIP_MAP = (0, 2, 1)
seeds = st.integers(0, 2**32)


def noise(rng: np.random.Generator, count: int, size: tuple[int, int], first: int) -> Sample:
    """Instances with classes from `first` on, before noise."""
    annotations = some_annotations(rng, count, size, POINTS)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    sample = make_sample(image, annotations, {3: 1}, size, num_keypoints=POINTS)
    return sample._replace(classes=np.arange(first, first + count, dtype=np.int32))


def seen(sample: Sample) -> dict[int, np.ndarray]:
    """Of each class, which pixels of the picture its mask has inside its box."""
    assert sample.masks is not None
    windows = pixel_windows(sample.boxes)
    found = {}
    for number, (x0, y0, x1, y1), bitmap in zip(
        sample.classes, windows, rasterize_masks(sample.masks, windows), strict=True
    ):
        found[int(number)] = np.zeros(sample.image.shape[:2], bool)
        found[int(number)][y0:y1, x0:x1] = bitmap > 0
    return found


@pytest.mark.medium
@settings(max_examples=60)
@given(seeds, st.integers(0, 6), st.integers(0, 6), st.tuples(st.booleans(), st.booleans()), st.integers(0, 2**6))
def test_pasting_is_the_painters_algorithm(
    seed: int, below: int, above: int, flips: tuple[bool, bool], choice: int
) -> None:
    rng = np.random.default_rng(seed)
    size = (SIZE, SIZE + int(rng.integers(0, 20)))
    sample = flip(noise(rng, below, size, first=1), *flips, FLIP_MAP)
    other = noise(rng, above, (int(rng.integers(24, 70)), int(rng.integers(24, 70))), first=101)
    before = [array.copy() for array in (sample.image, sample.boxes, sample.keypoints, other.image)]
    chosen = np.flatnonzero([choice >> i & 1 for i in range(above)])
    result = paste(sample, other, chosen)

    # Painted pixel by pixel: first the instances below, in their order, then those pasted.
    height, width = np.minimum(sample.image.shape[:2], other.image.shape[:2])
    pasted = seen(crop(select_instances(other, chosen), (0, 0, width, height)))
    pasted = {
        number: np.pad(mask, [(0, sample.image.shape[0] - height), (0, sample.image.shape[1] - width)])
        for number, mask in pasted.items()
        if mask.any()
    }
    cover = np.any([*pasted.values(), np.zeros(sample.image.shape[:2], bool)], axis=0)
    expected = sample.image.copy()
    for y, x in np.argwhere(cover):
        expected[y, x] = other.image[y, x]
    np.testing.assert_array_equal(result.image, expected)

    visible = {number: mask & ~cover for number, mask in seen(sample).items()}
    visible = {number: mask for number, mask in visible.items() if mask.any()} | pasted
    found = seen(result)
    assert list(found) == list(visible)  # in this order; without those of which nothing is left
    for number, mask in visible.items():
        np.testing.assert_array_equal(found[number], mask)
    for number, box in zip(result.classes.tolist(), result.boxes, strict=True):
        ys, xs = np.nonzero(visible[number])
        if number < 100 and np.any(visible[number] != seen(sample)[number]):
            bounds = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            np.testing.assert_array_equal(pixel_windows(box), bounds)  # of what is left
        elif number < 100:
            np.testing.assert_array_equal(box, sample.boxes[number - 1])
    check_keypoints(sample, result, cover)
    for array, copy in zip((sample.image, sample.boxes, sample.keypoints, other.image), before, strict=True):
        np.testing.assert_array_equal(array, copy)


def check_keypoints(before: Sample, after: Sample, cover: np.ndarray) -> None:
    """Those of the instances below stay where they are, and are not visible (1) under `cover`."""
    for number, keypoints in zip(after.classes, after.keypoints, strict=True):
        if number > 100:
            continue
        for (x, y, visibility), old in zip(keypoints, before.keypoints[number - 1], strict=True):
            assert (x, y) == tuple(old[:2])
            hidden = old[2] > 0 and cover[int(y), int(x)]
            assert visibility == (1 if hidden else old[2])


def blank(size: tuple[int, int], annotations: list[dict[str, Any]], gray: int, points: int = 0) -> Sample:
    image = np.full((*size, 3), gray, np.uint8)
    return make_sample(image, annotations, {3: 1}, size, num_keypoints=points)


def test_a_worked_case() -> None:
    """A square over the right half of one rectangle, over all of another, and beside a third."""
    bitmap = np.zeros((20, 30), bool)
    bitmap[2:8, 2:12] = True
    below = [
        annotation([2, 2, 10, 6], segmentation=rle_of(bitmap), keypoints=[3, 3, 2, 9, 3, 2, 11, 7, 0]),
        annotation([8, 3, 3, 3]),
        annotation([20, 10, 5, 5], keypoints=[20, 10, 2, 0, 0, 0, 0, 0, 0]),
    ]
    sample = blank((20, 30), below, 10, points=3)
    other = blank((20, 30), [annotation([0, 0, 2, 2]), annotation([7, 1, 6, 8])], 200, points=3)
    result = paste(sample, other, np.array([1]))
    assert (result.image[1:9, 7:13] == 200).all()
    assert (result.image == 200).sum() == 8 * 6 * 3
    np.testing.assert_array_equal(result.boxes, [[2, 2, 7, 8], [20, 10, 25, 15], [7, 1, 13, 9]])
    assert result.keypoints[0].tolist() == [[3.5, 3.5, 2], [9.5, 3.5, 1], [0, 0, 0]]
    assert result.keypoints[1, 0].tolist() == [20.5, 10.5, 2]
    truth = empty_truth(4, 12, points=3)
    write_ground_truth(result, truth)
    assert truth.valid.sum() == 3
    assert truth.masks[:3].all()  # each fills what is left of it


def test_a_hole_stays_in_the_mask_that_is_written() -> None:
    sample = blank((16, 16), [annotation([0, 0, 16, 16])], 10)
    other = blank((16, 16), [annotation([4, 4, 8, 4])], 200)
    result = paste(sample, other, np.array([0]))
    truth = empty_truth(2, 16)
    write_ground_truth(result, truth)
    expected = np.ones((16, 16), np.uint8)
    expected[4:8, 4:12] = 0
    np.testing.assert_array_equal(truth.masks[0], expected)
    assert result.boxes[0].tolist() == [0, 0, 16, 16]
    again = paste(result, blank((16, 16), [annotation([0, 0, 16, 4])], 90), np.array([0]))
    write_ground_truth(flip(again, True, True), truth := empty_truth(3, 12))
    expected = np.ones((12, 16), np.uint8)
    expected[:4, 4:12] = 0
    rows = np.floor((np.arange(12) + 0.5) * 12 / 12).astype(int)
    columns = np.floor((np.arange(12) + 0.5) * 16 / 12).astype(int)
    np.testing.assert_array_equal(truth.masks[0], expected[::-1, ::-1][rows][:, columns])


def test_instances_smaller_than_a_pixel() -> None:
    """Without a pixel nothing can be pasted; and such an instance is hidden with the pixel that it is in."""
    speck = annotation([5.1, 5.1, 0.2, 0.2])
    sample, other = blank((16, 16), [speck, annotation([9, 9, 4, 4])], 10), blank((16, 16), [speck], 200)
    assert paste(sample, other, np.array([0])) is sample
    larger = blank((16, 16), [speck, annotation([4, 4, 4, 4]), annotation([9, 9, 1, 1])], 200)
    beside = paste(sample, larger, np.array([0, 2]))
    np.testing.assert_allclose(beside.boxes, [[5.1, 5.1, 5.3, 5.3], [9, 9, 13, 13], [9, 9, 10, 10]])
    over = paste(sample, larger, np.array([0, 1]))
    np.testing.assert_array_equal(over.boxes, [[9, 9, 13, 13], [4, 4, 8, 8]])


def test_a_speck_on_two_pixels_is_hidden_with_both() -> None:
    """It covers the middle of no pixel, so its raster has none."""
    speck = annotation([5.9, 5.1, 0.2, 0.2])
    sample = blank((16, 16), [speck], 10)
    for width, expected in [(6, 2), (7, 1)]:
        other = blank((16, 16), [annotation([0, 0, width, 16])], 200)
        assert len(paste(sample, other, np.array([0])).boxes) == expected


@pytest.mark.parametrize("size", [(10, 40), (40, 10)])
def test_image_of_another_size_is_cropped_at_the_edges(size: tuple[int, int]) -> None:
    sample = blank((20, 20), [], 10)
    height, width = size
    other = blank(size, [annotation([0, 0, width, height]), annotation([width - 2, height - 2, 2, 2])], 200)
    result = paste(sample, other, np.array([0, 1]))
    height, width = min(height, 20), min(width, 20)
    assert (result.image[:height, :width] == 200).all()
    assert (result.image == 200).sum() == height * width * 3
    np.testing.assert_array_equal(result.boxes, [[0, 0, width, height]])


def test_pasted_masks_follow_later_changes() -> None:
    sample = blank((20, 20), [annotation([0, 0, 20, 10])], 10)
    other = blank((20, 20), [annotation([10, 0, 10, 20])], 200)
    result = resize(paste(sample, other, np.array([0])), (40, 60))
    np.testing.assert_array_equal(result.boxes, [[0, 0, 30, 20], [30, 0, 60, 40]])
    result = flip(result, True, False)
    below = seen(result._replace(classes=np.array([1, 2])))[1]
    assert below[:20, 30:].all()
    assert below.sum() == 20 * 30


def test_instances_without_masks_cannot_be_pasted() -> None:
    sample = blank((20, 20), [annotation([0, 0, 20, 10])], 10)
    boxes = sample._replace(masks=None)
    for pair in ((sample, boxes), (boxes, sample)):
        with pytest.raises(ValueError, match="copy-paste needs samples with masks"):
            paste(*pair, np.array([0]))


def test_instances_without_masks_among_others() -> None:
    """They are not pasted, keep their boxes where a part is hidden, and are gone where all of them is."""
    bare = [annotation([2, 2, 10, 10], segmentation=[]), annotation([20, 20, 4, 4], segmentation=[])]
    sample = blank((40, 40), [*bare, annotation([0, 30, 5, 5])], 50)
    other = blank((40, 40), [annotation([18, 18, 8, 8]), annotation([0, 0, 6, 6]), *bare], 90)
    result = paste(sample, other, np.arange(4))
    assert result.boxes.tolist() == [[2, 2, 12, 12], [0, 30, 5, 35], [18, 18, 26, 26], [0, 0, 6, 6]]
    assert result.masks is not None
    assert has_mask(result.masks).tolist() == [False, True, True, True]
    assert (result.image[2:6, 2:6] == 90).all()  # by the square in the corner
    assert (result.image[7:12, 7:12] == 50).all()
