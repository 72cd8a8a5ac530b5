"""AP of bootstrap samples, compared with pycocotools on datasets that contain copies of the images."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

from mrcnn_jax.evaluation.bootstrap import ap_deviation, resampled_ap
from mrcnn_jax.evaluation.coco_ground_truth import silence_pycocotools
from mrcnn_jax.evaluation.coco_metrics import evaluate_images

SIGMAS = Params("keypoints").kpt_oks_sigmas
IMAGES, CATEGORIES = range(10, 34, 2), (3, 5, 9)


def index(images, annotations):
    truth = COCO()
    categories = [{"id": i, "name": str(i)} for i in CATEGORIES]
    entries = [{"id": i, "height": 200, "width": 200} for i in images]
    truth.dataset = {"info": {}, "images": entries, "categories": categories, "annotations": annotations}
    with silence_pycocotools():
        truth.createIndex()
    return truth


@pytest.fixture(scope="module")
def scored():
    """Annotations, some of them crowds, and results: shifted instances, false positives, and misses."""
    random = np.random.default_rng(0)
    annotations, results = [], []
    for image_id in IMAGES[:-2]:  # the last two have no instance
        for _ in range(random.integers(1, 7)):
            box = [*random.uniform(0, 100, 2), *random.uniform(10, 90, 2)]
            points = np.concatenate([random.uniform(0, 100, (17, 2)), np.full((17, 1), 2)], axis=1)
            fields = {"image_id": image_id, "category_id": int(random.choice(CATEGORIES[:2]))}
            annotations.append(
                {
                    **fields,
                    "id": len(annotations) + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(random.random() < 0.15),
                    "keypoints": points.ravel().tolist(),
                    "num_keypoints": 17,
                }
            )
            for spread in (2, 12)[: random.integers(0, 3)]:
                found = points + np.array([*random.normal(0, spread, 2), 0])
                results.append(
                    {
                        **fields,
                        "bbox": (np.array(box) + random.normal(0, spread, 4).clip(-9)).tolist(),
                        "keypoints": found.ravel().tolist(),
                        "score": random.random(),
                    }
                )
    for image_id in IMAGES:
        box = [*random.uniform(0, 100, 2), 40.0, 40.0]
        points = random.uniform(0, 100, 51).tolist()
        record = {"image_id": image_id, "bbox": box, "keypoints": points, "score": random.random()}
        results += [{**record, "category_id": i} for i in (3, 9)]  # category 9 has no instance
    return annotations, results


def with_field(results, iou_type):
    return [{k: v for k, v in r.items() if k not in {"bbox", "keypoints"} - {iou_type}} for r in results]


def ap_of_copies(annotations, results, draw, iou_type):
    """AP by pycocotools, with a new image for each copy."""
    images, copied, found = [], [], []
    for image_id, times in zip(IMAGES, draw, strict=True):
        for _ in range(times):
            images.append(len(images) + 1)
            copied += [{**a, "image_id": images[-1]} for a in annotations if a["image_id"] == image_id]
            found += [{**r, "image_id": images[-1]} for r in results if r["image_id"] == image_id]
    truth = index(images, [{**a, "id": k} for k, a in enumerate(copied, 1)])
    with silence_pycocotools():
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(found)), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[0]


@pytest.mark.parametrize("iou_type", ["bbox", "keypoints"])
def test_resampled_ap_is_that_of_a_dataset_of_copies(scored, iou_type):
    annotations, results = scored[0], with_field(scored[1], iou_type)
    evaluation = evaluate_images(index(IMAGES, annotations), results, iou_type, SIGMAS)
    draws = np.random.default_rng(1).multinomial(len(IMAGES), np.full(len(IMAGES), 1 / len(IMAGES)), 12)
    draws[0] = 1
    expected = [ap_of_copies(annotations, results, draw, iou_type) for draw in draws]
    assert len(set(expected)) == len(draws)
    np.testing.assert_allclose(resampled_ap(evaluation, draws), expected, rtol=0, atol=1e-12)


def test_samples_without_an_instance_have_no_ap(scored):
    annotations, results = scored[0], with_field(scored[1], "bbox")
    evaluation = evaluate_images(index(IMAGES, annotations), results, "bbox", SIGMAS)
    draws = np.zeros((2, len(IMAGES)), int)
    draws[0, -1], draws[1, 0] = len(IMAGES), len(IMAGES)
    assert np.isnan(resampled_ap(evaluation, draws)).tolist() == [True, False]


def test_the_deviation_is_that_of_a_mean_if_images_are_all_or_nothing():
    """n images have one instance each, and half of these are detected perfectly, without a false positive.

    Then AP is the fraction of detected images, up to the 101 recalls, with deviation sqrt(p (1 - p) / n).
    """
    n = 100
    box = {"bbox": [5.0, 5.0, 50.0, 50.0], "category_id": 3}
    images = range(1, n + 1)
    common = {"area": 2500.0, "iscrowd": 0, "iou_types": ["bbox"]}
    annotations = [{**box, **common, "image_id": i, "id": i} for i in images]
    results = [{**box, "image_id": i, "score": 0.9} for i in images[: n // 2]]
    scores = SimpleNamespace(ground_truth=index(images, annotations), results=results, keypoint_sigmas=SIGMAS)
    # The standard error of a deviation from 2000 samples is 1 / sqrt(4000) of it: 1.6 %; six of them.
    assert ap_deviation(scores, "bbox", samples=2000) == pytest.approx(0.05, rel=0.1)
    assert ap_deviation(scores, "bbox") == ap_deviation(scores, "bbox", 200, 0)
