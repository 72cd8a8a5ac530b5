"""TIDE errors: equality with tidecv."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mrcnn_jax.evaluation.analysis import ERRORS, SPECIAL_ERRORS
from mrcnn_jax.evaluation.analysis.analyze import analyze
from mrcnn_jax.evaluation.coco_metrics import score

# Printed by tidecv 1.0.1 (TIDE().evaluate(...), fix_main_errors, fix_special_errors; COCO's thresholds) of the same
# files: AP50, gains in the order Cls, Loc, Both, Dupe, Bkg, Miss, FalsePos, FalseNeg, and the counts of the first six.
TIDE = {
    "bbox": (
        64.20498881733425,
        [
            22.2460397441685,
            0.22789102370710168,
            0,
            0.018972971237033676,
            0,
            8.523573787723365,
            6.821587524510463,
            17.684978535217184,
        ],
        [83, 1, 0, 1, 0, 97],
    ),
    "segm": (
        51.80081155512982,
        [
            16.186000852974452,
            11.600722789458686,
            1.0128509521506288,
            0,
            0.2681107488310275,
            7.778639338018046,
            8.660366141587232,
            23.74583810883663,
        ],
        [76, 82, 7, 0, 4, 109],
    ),
}


def random_detections(annotations):
    """Random detections: shifted, of wrong classes, duplicates, in crowds, or missing."""
    rng = np.random.default_rng(0)
    categories = sorted({annotation["category_id"] for annotation in annotations})[:12]
    detections = []
    for annotation in annotations:
        x, y, w, h = annotation["bbox"]
        for _ in range(rng.integers(0, 4)):
            jitter = rng.choice([0.02, 0.15, 0.6]) * np.array([w, h, w, h])
            box = np.array([x, y, w, h]) + rng.normal(size=4) * jitter
            if annotation["iscrowd"]:
                box = np.array([x + w * rng.uniform(0, 0.7), y + h * rng.uniform(0, 0.7), w / 4, h / 4])
            wrong = rng.random() < 0.25
            detections.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": int(rng.choice(categories)) if wrong else annotation["category_id"],
                    "bbox": [round(float(value), 2) for value in np.maximum(box, [0, 0, 2, 2])],
                    "score": round(float(rng.random()), 2),
                }
            )
    return detections


# The same for boxes of `random_detections`, with equal scores and crowds. tidecv also counts detections in crowds (of
# Loc, Both, Dupe and Bkg); they are subtracted here.
RANDOM = (
    31.166982131299612,
    [
        8.153305106084929,
        10.877807827592171,
        0.8379895942070803,
        1.3011746786383611,
        2.9204955945984707,
        17.09202688798314,
        16.329481800807912,
        33.639002965878596,
    ],
    [186, 233 - 32, 95 - 3, 148 - 14, 180 - 24, 276],
)


def compare(scores, ap, gains, counts):
    (table,) = analyze(scores).tables
    assert table.errors.ap * 100 == pytest.approx(ap, abs=1e-9)
    names = [*ERRORS, *SPECIAL_ERRORS]
    np.testing.assert_allclose([table.errors.gains[name] * 100 for name in names], gains, rtol=0, atol=1e-9)
    assert [table.errors.counts[name] for name in ERRORS] == counts


@pytest.mark.medium
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_coco_example_equals_tidecv(shared_data, iou_type):
    folder = shared_data("coco_eval_oracle")
    results = json.loads((folder / f"instances_val2014_fake{iou_type}100_results.json").read_text())
    compare(score(folder / "instances_val2014_100.json", results, iou_types=(iou_type,)), *TIDE[iou_type])


@pytest.mark.medium
def test_random_detections_equal_tidecv(shared_data):
    path = shared_data("coco_eval_oracle") / "instances_val2014_100.json"
    results = random_detections(json.loads(path.read_text())["annotations"])
    compare(score(path, results, iou_types=("bbox",)), *RANDOM)
