"""Tests of samples: from annotations, and to the slots of a batch with mask crops and keypoints."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from support.samples import annotation, empty_truth, resize, rle_of

from mrcnn_jax.data.sample import Sample, crop_masks, make_sample, select_instances, write_ground_truth
from mrcnn_jax.structures import GroundTruth


def sample_of(annotations: list[dict[str, Any]], size: tuple[int, int], **options: Any) -> Sample:
    return make_sample(np.zeros((*size, 3), np.uint8), annotations, {3: 1}, size, **options)


def crops_of(segmentations: list[Any], boxes: list[list[float]], size: tuple[int, int], side: int) -> np.ndarray:
    """Mask crops of instances with these `boxes`, x0 y0 x1 y1."""
    annotations = [
        annotation([x0, y0, x1 - x0, y1 - y0], segmentation=segmentation)
        for segmentation, (x0, y0, x1, y1) in zip(segmentations, boxes, strict=True)
    ]
    masks = sample_of(annotations, size).masks
    assert masks is not None
    return crop_masks(masks, np.array(boxes, np.float64), side)


@pytest.mark.parametrize("compressed", [True, False])
def test_rle_crop_is_the_bitmap_inside_the_box(compressed: bool) -> None:
    mask = np.random.default_rng(0).random((20, 30)) > 0.5
    # 8 x 8 pixels, each three raster pixels wide
    crop = crops_of([rle_of(mask, compressed=compressed)], [[6, 4, 14, 12]], (20, 30), 24)[0]
    np.testing.assert_array_equal(crop, np.kron(mask[4:12, 6:14], np.ones((3, 3))))


def test_rle_crop_at_the_image_border() -> None:
    mask = np.zeros((20, 30), bool)
    mask[15:, 25:] = True
    assert crops_of([rle_of(mask)], [[25, 15, 30, 20]], (20, 30), 10).all()


def test_polygon_crop_equals_the_polygon_drawn_in_the_full_frame() -> None:
    # Box and raster agree in scale (1 pixel : 1 pixel), so the crop must be the full-frame raster cut out.
    star = [30.0, 8.0, 36.0, 24.0, 54.0, 24.0, 40.0, 34.0, 45.0, 52.0, 30.0, 41.0, 15.0, 52.0, 20.0, 34.0, 6.0, 24.0]
    square = [8.0, 8.0, 16.0, 8.0, 16.0, 16.0, 8.0, 16.0]
    whole = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([star, square], 64, 64)))
    crop = crops_of([[star, square]], [[6, 8, 54, 56]], (64, 64), 48)[0]
    np.testing.assert_array_equal(crop, whole[8:56, 6:54])
    assert 0.2 < crop.mean() < 0.8


def test_crops_of_polygons_and_rle_keep_to_their_instances() -> None:
    right = np.zeros((10, 20), bool)
    right[:, 15:] = True
    boxes = [[0.0, 0, 10, 10], [10, 0, 20, 10], [0, 0, 10, 10]]
    segmentations = [[[0, 0, 5, 0, 5, 10, 0, 10]], rle_of(right), [[5, 0, 10, 0, 10, 10, 5, 10]]]
    crops = crops_of(segmentations, boxes, (10, 20), 8)
    half = np.zeros((8, 8), np.uint8)
    half[:, :4] = 1
    np.testing.assert_array_equal(crops, [half, half[:, ::-1], half[:, ::-1]])


def test_polygon_crops_resampled_agree_with_exact_rasters() -> None:
    """M=112 crops scaled to 28 x 28 against the polygon rasterized at 28 x 28: what the mask head is taught."""
    rng = np.random.default_rng(1)
    overlaps = []
    for _ in range(30):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 12))
        points = 50 + rng.uniform(10, 40, (12, 1)) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        box = [[*points.min(0), *points.max(0)]]
        polygon = [points.ravel().tolist()]
        fine = crops_of([polygon], box, (100, 100), 112)[0]
        exact = crops_of([polygon], box, (100, 100), 28)[0].astype(bool)
        coarse = fine.reshape(28, 4, 28, 4).mean(axis=(1, 3)) >= 0.5
        overlaps.append((coarse & exact).sum() / (coarse | exact).sum())
    # Half a raster pixel along the outline of a figure of 28 pixels: some 2 %, as measured on real polygons.
    assert np.mean(overlaps) > 0.96


def test_truth_is_scaled_by_the_true_ratio_of_each_axis() -> None:
    truth = empty_truth(3, 8)
    sample = make_sample(np.zeros((20, 30, 3), np.uint8), [annotation([2, 4, 6, 8])], {3: 5}, (20, 30))
    write_ground_truth(resize(sample, (41, 60)), truth)
    np.testing.assert_allclose(truth.boxes[0], [4, 8.2, 16, 24.6], rtol=1e-6)
    np.testing.assert_array_equal(truth.boxes, truth.mask_windows)
    assert truth.classes.tolist() == [5, 0, 0]
    assert truth.valid.tolist() == [True, False, False]
    assert truth.masks[0].all()
    assert not truth.masks[1:].any()


@pytest.mark.parametrize("nothing", [{}, {"segmentation": []}, {"segmentation": None}])
def test_an_instance_without_a_mask_has_an_empty_window(nothing: dict[str, Any]) -> None:
    bare = {**annotation([10, 2, 4, 4]), **nothing}
    if not nothing:
        del bare["segmentation"]
    raster = annotation([2, 4, 6, 8], segmentation=rle_of(np.ones((20, 30))))
    truth = empty_truth(4, 8)
    write_ground_truth(sample_of([raster, bare, annotation([0, 0, 9, 9])], (20, 30)), truth)
    assert truth.valid.tolist() == [True, True, True, False]
    assert truth.boxes[1].tolist() == [10, 2, 14, 6]
    assert truth.mask_windows.tolist() == [[2, 4, 8, 12], [0] * 4, [0, 0, 9, 9], [0] * 4]
    assert truth.masks.mean(axis=(1, 2)).tolist() == [1, 0, 1, 0]


def test_crowds_are_left_out_and_the_largest_kept_in_order() -> None:
    sides = [3, 9, 1, 5, 3]
    annotations = [annotation([i, 0, side, side]) for i, side in enumerate(sides)]  # told apart by their left edges
    annotations.insert(1, annotation([20, 0, 10, 10], iscrowd=1))
    sample = sample_of(annotations, (20, 30))
    assert sample.boxes[:, 0].tolist() == [0, 1, 2, 3, 4]
    for slots, kept in [(3, [0, 1, 3]), (5, [0, 1, 2, 3, 4]), (8, [0, 1, 2, 3, 4])]:  # of equals the earlier one
        truth = empty_truth(slots, 4)
        write_ground_truth(sample, truth)
        assert truth.boxes[truth.valid, 0].tolist() == kept
        assert truth.valid.tolist() == [True] * len(kept) + [False] * (slots - len(kept))


def truth_of(*keypoints: list[float], size: tuple[int, int], scaled: tuple[int, int]) -> GroundTruth:
    """Instances with four keypoints each, in three slots."""
    truth = empty_truth(3, 0, points=4)
    annotations = [annotation([0, 0, size[1], size[0]], keypoints=points) for points in keypoints]
    write_ground_truth(resize(sample_of(annotations, size, num_keypoints=4), scaled), truth)
    return truth


def test_a_keypoint_is_the_middle_of_its_pixel_scaled_like_a_box() -> None:
    truth = truth_of([2, 4, 2, 29, 19, 1, 0, 0, 1, 5, 5, 0], size=(20, 30), scaled=(41, 60))
    expected = [[5, 4.5 * 41 / 20, 2], [59, 19.5 * 41 / 20, 1], [1, 0.5 * 41 / 20, 1], [0, 0, 0]]
    np.testing.assert_allclose(truth.keypoints[0], expected, rtol=1e-6)
    assert not truth.keypoints[1:].any()


def test_keypoints_outside_the_image_or_without_a_position_are_not_labeled() -> None:
    nan = float("nan")
    truth = truth_of([-1, 4, 2, 30, 4, 2, 3, 20, 2, nan, 4, 2], size=(20, 30), scaled=(20, 30))
    assert not truth.keypoints.any()


def test_an_instance_may_have_no_keypoints() -> None:
    truth = empty_truth(2, 0, points=4)
    write_ground_truth(sample_of([annotation([0, 0, 9, 9])], (20, 30), num_keypoints=4), truth)
    assert truth.valid.tolist() == [True, False]
    assert not truth.keypoints.any()


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
    sample = sample_of(annotations, arrays[f"img_u8_{i}"].shape[1:], num_keypoints=keypoints.shape[1])
    write_ground_truth(resize(sample, arrays["image_sizes"][i]), truth)
    # One rounding of ours against two of theirs (the ratio and the product), of float32.
    np.testing.assert_allclose(truth.boxes, arrays[f"out_boxes{i}"], rtol=4 * np.finfo(np.float32).eps)
    expected = arrays[f"out_keypoints{i}"]
    expected[..., 2] = np.minimum(expected[..., 2], 2)  # any numbers there; COCO's end at 2
    np.testing.assert_allclose(truth.keypoints, expected, rtol=4 * np.finfo(np.float32).eps)


def test_select_keeps_the_masks_of_the_selected() -> None:
    bitmap = np.zeros((20, 30), bool)
    bitmap[2:6, 3:9] = True
    two = [[1, 1, 4, 1, 4, 4], [5, 5, 8, 5, 8, 8]]
    annotations = [
        annotation([0, 0, 9, 9], segmentation=two),
        annotation([3, 2, 6, 4], segmentation=rle_of(bitmap)),
        annotation([4, 4, 5, 5]),
    ]
    sample = sample_of(annotations, (20, 30))
    assert sample.masks is not None
    before = crop_masks(sample.masks, sample.boxes, 12)
    for keep in ([0, 2], [1], [1, 2], [], [0, 1, 2]):
        part = select_instances(sample, np.array(keep, int))
        assert part.masks is not None
        np.testing.assert_array_equal(part.boxes, sample.boxes[keep])
        np.testing.assert_array_equal(crop_masks(part.masks, part.boxes, 12), before[keep])
