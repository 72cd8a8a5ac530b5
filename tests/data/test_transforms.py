"""One image: mask crops against full-frame rasters, flips as symmetries, resizing into a canvas."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_utils

from mrcnn_jax.data import transforms
from mrcnn_jax.structures import GroundTruth


def rle_of(mask: np.ndarray, *, compressed: bool = True) -> dict:
    """COCO RLE of a bitmap (h, w)."""
    if compressed:
        return mask_utils.encode(np.asfortranarray(mask, np.uint8))
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], edges, [len(flat)]])).tolist()
    return {"size": list(mask.shape), "counts": runs if flat[0] == 0 else [0, *runs]}


def empty_truth(slots: int, side: int, points: int = 0) -> GroundTruth:
    return GroundTruth(
        np.zeros((slots, 4), np.float32),
        np.zeros(slots, np.int32),
        np.zeros((slots, side, side), np.uint8),
        np.zeros((slots, 4), np.float32),
        np.zeros((slots, points, 3), np.float32),
        np.zeros(slots, bool),
    )


def annotation(box: list[float], **fields: object) -> dict:
    x, y, w, h = box
    polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
    return {"bbox": box, "category_id": 3, "iscrowd": 0, "segmentation": [polygon], **fields}


@pytest.mark.parametrize("compressed", [True, False])
def test_rle_crop_is_the_bitmap_inside_the_box(compressed: bool) -> None:
    mask = np.random.default_rng(0).random((20, 30)) > 0.5
    rle = rle_of(mask, compressed=compressed)
    box = np.array([[6.0, 4.0, 14.0, 12.0]])  # 8 x 8 pixels, each three raster pixels wide
    crop = transforms.crop_masks([rle], box, (20, 30), 24)[0]
    np.testing.assert_array_equal(crop, np.kron(mask[4:12, 6:14], np.ones((3, 3))))


def test_rle_crop_at_the_image_border() -> None:
    mask = np.zeros((20, 30), bool)
    mask[15:, 25:] = True
    crop = transforms.crop_masks([rle_of(mask)], np.array([[25.0, 15.0, 30.0, 20.0]]), (20, 30), 10)[0]
    assert crop.all()


def test_polygon_crop_equals_the_polygon_drawn_in_the_full_frame() -> None:
    # Box and raster agree in scale (1 pixel : 1 pixel), so the crop must be the full-frame raster cut out.
    star = [30.0, 8.0, 36.0, 24.0, 54.0, 24.0, 40.0, 34.0, 45.0, 52.0, 30.0, 41.0, 15.0, 52.0, 20.0, 34.0, 6.0, 24.0]
    square = [8.0, 8.0, 16.0, 8.0, 16.0, 16.0, 8.0, 16.0]
    whole = mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects([star, square], 64, 64)))
    crop = transforms.crop_masks([[star, square]], np.array([[6.0, 8.0, 54.0, 56.0]]), (64, 64), 48)[0]
    np.testing.assert_array_equal(crop, whole[8:56, 6:54])
    assert 0.2 < crop.mean() < 0.8


def test_crops_of_polygons_and_rle_keep_to_their_instances() -> None:
    left = annotation([0, 0, 10, 10], segmentation=[[0, 0, 5, 0, 5, 10, 0, 10]])
    right = np.zeros((10, 20), bool)
    right[:, 15:] = True
    boxes = np.array([[0.0, 0, 10, 10], [10, 0, 20, 10], [0, 0, 10, 10]])
    segmentations = [left["segmentation"], rle_of(right), [[5, 0, 10, 0, 10, 10, 5, 10]]]
    crops = transforms.crop_masks(segmentations, boxes, (10, 20), 8)
    half = np.zeros((8, 8), np.uint8)
    half[:, :4] = 1
    np.testing.assert_array_equal(crops, [half, half[:, ::-1], half[:, ::-1]])


def test_polygon_crops_resampled_agree_with_exact_rasters() -> None:
    """M=112 crops scaled to 28 x 28 against the polygon rasterised at 28 x 28: what the mask head is taught."""
    rng = np.random.default_rng(1)
    overlaps = []
    for _ in range(30):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 12))
        points = 50 + rng.uniform(10, 40, (12, 1)) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        box = np.array([[*points.min(0), *points.max(0)]])
        polygon = [points.ravel().tolist()]
        fine = transforms.crop_masks([polygon], box, (100, 100), 112)[0]
        exact = transforms.crop_masks([polygon], box, (100, 100), 28)[0].astype(bool)
        coarse = fine.reshape(28, 4, 28, 4).mean(axis=(1, 3)) >= 0.5
        overlaps.append((coarse & exact).sum() / (coarse | exact).sum())
    # Half a raster pixel along the outline of a figure of 28 pixels: some 2 %, as measured on real polygons.
    assert np.mean(overlaps) > 0.96


def test_truth_is_scaled_by_the_true_ratio_of_each_axis() -> None:
    truth = empty_truth(3, 8)
    transforms.fill_truth(truth, [annotation([2, 4, 6, 8])], {3: 5}, size=(20, 30), scaled=(41, 60))
    np.testing.assert_allclose(truth.boxes[0], [4, 8.2, 16, 24.6], rtol=1e-6)
    np.testing.assert_array_equal(truth.boxes, truth.mask_windows)
    assert truth.classes.tolist() == [5, 0, 0]
    assert truth.valid.tolist() == [True, False, False]
    assert truth.masks[0].all()
    assert not truth.masks[1:].any()


def test_crowds_are_left_out_and_the_largest_kept_in_order() -> None:
    boxes = [[0, 0, 3, 3], [0, 0, 9, 9], [0, 0, 1, 1], [0, 0, 5, 5], [0, 0, 3, 3]]
    annotations = [annotation(box, id=i) for i, box in enumerate(boxes)]
    annotations.insert(1, annotation([0, 0, 10, 10], iscrowd=1, id=9))
    kept = transforms.select_instances(annotations, 3)
    assert [a["id"] for a in kept] == [0, 1, 3]  # of equals the earlier one
    assert [a["id"] for a in transforms.select_instances(annotations, 8)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("horizontal", "vertical"), [(True, False), (False, True), (True, True), (False, False)])
def test_flipping_image_and_truth_agree(horizontal: bool, vertical: bool) -> None:
    """Painting the masks and flipping the picture equals flipping the truth and painting it."""
    rng = np.random.default_rng(2)
    mask = rng.random((24, 32)) > 0.5
    truth = empty_truth(4, 8)
    annotations = [annotation([4, 8, 8, 8], segmentation=rle_of(mask)), annotation([16, 0, 16, 16])]
    transforms.fill_truth(truth, annotations, {3: 1}, size=(24, 32), scaled=(24, 32))

    def paint(truth: GroundTruth) -> np.ndarray:
        picture = np.zeros((24, 32, 3), np.uint8)
        for k in range(2):
            x0, y0, x1, y1 = truth.boxes[k].astype(int)
            picture[y0:y1, x0:x1, k] = cv2.resize(truth.masks[k], (x1 - x0, y1 - y0), interpolation=cv2.INTER_NEAREST)
        return picture

    before = paint(truth)
    assert 0 < before.mean() < 1
    transforms.flip_truth(truth, (24, 32), horizontal, vertical)
    np.testing.assert_array_equal(paint(truth), transforms.flip_image(before, horizontal, vertical))
    np.testing.assert_array_equal(truth.boxes, truth.mask_windows)
    assert not truth.boxes[2:].any()  # the padding stays as it was
    expected = before[:: -1 if vertical else 1, :: -1 if horizontal else 1]
    np.testing.assert_array_equal(transforms.flip_image(before, horizontal, vertical), expected)


def test_resize_writes_into_the_canvas() -> None:
    image = np.random.default_rng(3).integers(0, 256, (20, 30, 3), np.uint8)
    canvas = np.full((64, 64, 3), 7, np.uint8)
    transforms.resize_into(image, canvas, np.array([40, 60]))
    np.testing.assert_array_equal(canvas[:40, :60], cv2.resize(image, (60, 40), interpolation=cv2.INTER_LINEAR))
    assert (canvas[40:] == 7).all()
    assert (canvas[:, 60:] == 7).all()


def test_decode_gives_rgb_or_none() -> None:
    bgr = np.full((2, 2, 3), (10, 20, 30), np.uint8)
    assert transforms.decode(cv2.imencode(".png", bgr)[1].tobytes())[0, 0].tolist() == [30, 20, 10]  # type: ignore[index]
    assert transforms.decode(b"no picture") is None


NOSE, LEFT, RIGHT, TAIL = range(4)
FLIP_MAP = (NOSE, RIGHT, LEFT, TAIL)


def truth_with_keypoints(*keypoints: list[float], size: tuple[int, int], scaled: tuple[int, int]) -> GroundTruth:
    """Instances with four keypoints each, in three slots."""
    truth = empty_truth(3, 0, points=4)
    annotations = [annotation([0, 0, size[1], size[0]], keypoints=points) for points in keypoints]
    transforms.fill_truth(truth, annotations, {3: 1}, size=size, scaled=scaled)
    return truth


def test_a_keypoint_is_the_middle_of_its_pixel_scaled_like_a_box() -> None:
    truth = truth_with_keypoints([2, 4, 2, 29, 19, 1, 0, 0, 1, 5, 5, 0], size=(20, 30), scaled=(41, 60))
    expected = [[5, 4.5 * 41 / 20, 2], [59, 19.5 * 41 / 20, 1], [1, 0.5 * 41 / 20, 1], [0, 0, 0]]
    np.testing.assert_allclose(truth.keypoints[0], expected, rtol=1e-6)
    assert not truth.keypoints[1:].any()


def test_keypoints_outside_the_image_or_without_a_position_are_not_labelled() -> None:
    nan = float("nan")
    truth = truth_with_keypoints([-1, 4, 2, 30, 4, 2, 3, 20, 2, nan, 4, 2], size=(20, 30), scaled=(20, 30))
    assert not truth.keypoints.any()


def test_an_instance_may_have_no_keypoints() -> None:
    truth = empty_truth(2, 0, points=4)
    transforms.fill_truth(truth, [annotation([0, 0, 9, 9])], {3: 1}, size=(20, 30), scaled=(20, 30))
    assert truth.valid.tolist() == [True, False]
    assert not truth.keypoints.any()


@pytest.mark.parametrize(("horizontal", "vertical"), [(True, False), (False, True), (True, True), (False, False)])
def test_flipped_keypoints_stay_on_their_pixels_and_change_sides(horizontal: bool, vertical: bool) -> None:
    """Each keypoint's pixel has a colour of its own; after the flip it is found there under its mirrored name."""
    size = (20, 30)
    pixels = [(3, 4), (29, 0), (0, 19), (11, 12)]  # x, y
    image = np.zeros((*size, 3), np.uint8)
    for colour, (x, y) in enumerate(pixels, 1):
        image[y, x] = colour
    points = [float(v) for x, y in pixels for v in (x, y, 2)]
    points[-1] = 0  # the tail is not labelled
    truth = truth_with_keypoints(points, size=size, scaled=size)
    transforms.flip_truth(truth, size, horizontal, vertical, FLIP_MAP)
    flipped = transforms.flip_image(image, horizontal, vertical)
    colours = [int(flipped[int(y), int(x), 0]) - 1 for x, y, _ in truth.keypoints[0, :TAIL]]
    assert colours == ([NOSE, RIGHT, LEFT] if horizontal != vertical else [NOSE, LEFT, RIGHT])
    assert truth.keypoints[0, :, 2].tolist() == [2, 2, 2, 0]
    assert not truth.keypoints[0, TAIL].any()
    assert not truth.keypoints[1:].any()
    transforms.flip_truth(truth, size, horizontal, vertical, FLIP_MAP)
    again = truth_with_keypoints(points, size=size, scaled=size)
    np.testing.assert_array_equal(truth.keypoints, again.keypoints)  # halves are exact


@pytest.mark.parametrize("i", [0, 1, 2])
def test_golden_torchvision_resizes_boxes_and_keypoints_alike(golden: Any, i: int) -> None:
    """torchvision takes coordinates as they are; ours are the pixels whose middles they would be."""
    arrays = golden("tv_op_transform.npz")
    boxes, keypoints = arrays[f"boxes{i}"].astype(float), arrays[f"keypoints{i}"].astype(float)
    truth = empty_truth(len(boxes), 0, points=keypoints.shape[1])
    annotations = [
        annotation([*box[:2], *(box[2:] - box[:2])], keypoints=(points - [0.5, 0.5, 0]).ravel().tolist())
        for box, points in zip(boxes, keypoints, strict=True)
    ]
    size = arrays[f"img_u8_{i}"].shape[1:]
    transforms.fill_truth(truth, annotations, {3: 1}, size=size, scaled=arrays["image_sizes"][i])
    # One rounding of ours against two of theirs (the ratio and the product), of float32.
    np.testing.assert_allclose(truth.boxes, arrays[f"out_boxes{i}"], rtol=4 * np.finfo(np.float32).eps)
    np.testing.assert_allclose(truth.keypoints, arrays[f"out_keypoints{i}"], rtol=4 * np.finfo(np.float32).eps)
