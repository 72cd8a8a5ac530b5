"""LVIS metrics: equality with lvis-api, and federated annotations."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mrcnn_jax.config.metric_names import LVIS_METRICS
from mrcnn_jax.errors import DataError
from mrcnn_jax.evaluation.analysis.analyze import analyze
from mrcnn_jax.evaluation.coco_metrics import score

pytestmark = pytest.mark.medium

# Printed by lvis 0.5.3 (LVISEval, with NumPy 1.23) for `random_detections` of lvis_val_100.json, in the order of
# LVIS_METRICS: AP, AP50, AP75, APs, APm, APl, APr, APc, APf, AR@300, ARs@300, ARm@300, ARl@300.
EXPECTED = {
    "bbox": [
        *(0.38744167865587764, 0.5796487296282126, 0.38468896217339393),
        *(0.47976915650324065, 0.46402188074759565, 0.41459577571071327),
        *(0.29999999999999993, 0.3812484962790191, 0.389160151297146),
        *(0.5678758225247805, 0.5605768496593214, 0.560674330055909, 0.5822291235334713),
    ],
    "segm": [
        *(0.10896697126238682, 0.29816906305066415, 0.04796882705570594),
        *(0.12303608549704143, 0.09745469797835758, 0.16534266263065228),
        *(0.1333333333333333, 0.10068062639597292, 0.11037718499774195),
        *(0.1708871859432626, 0.15491464239204453, 0.12843727909517383, 0.22427536231884063),
    ],
}


def random_detections(content):
    """Random detections: annotated boxes with jitter, and boxes of absent and of unverified classes.

    Scores are distinct, as the order of equal scores is not defined.
    """
    rng = np.random.default_rng(0)
    ids = sorted(category["id"] for category in content["categories"])
    found = []
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        for _ in range(rng.integers(1, 3)):
            jitter = rng.choice([0.02, 0.1, 0.4]) * np.array([w, h, w, h])
            found.append((annotation["image_id"], annotation["category_id"], np.array([x, y, w, h]), jitter))
    for image in content["images"]:
        side = np.array([0, 0, image["width"] / 3, image["height"] / 3])
        absent = [*image["neg_category_ids"], *image["not_exhaustive_category_ids"], *rng.choice(ids, 2)]
        found += [(image["id"], int(category_id), side, side * 0.1) for category_id in absent]
    scores = rng.permutation(len(found)) / len(found)
    return [
        {
            "image_id": image_id,
            "category_id": category_id,
            "bbox": np.maximum(box + rng.normal(size=4) * jitter, [0, 0, 2, 2]).round(2).tolist(),
            "score": float(score),
        }
        for (image_id, category_id, box, jitter), score in zip(found, scores, strict=True)
    ]


def with_masks(content, results):
    """Return the results with masks that fill the boxes."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    runs = [coco_mask.frPyObjects(np.array([r["bbox"]]), *sizes[r["image_id"]])[0] for r in results]
    return [
        {**record, "segmentation": {**rle, "counts": rle["counts"].decode()}}
        for record, rle in zip(results, runs, strict=True)
    ]


def test_random_detections_equal_lvis_api(shared_data, capsys):
    path = shared_data("coco_eval_oracle") / "lvis" / "lvis_val_100.json"
    content = json.loads(path.read_text())
    scores = score(path, with_masks(content, random_detections(content)))
    for kind, expected in EXPECTED.items():
        numbers = [scores.metrics[f"{kind}/{name}"] for name in LVIS_METRICS]
        np.testing.assert_allclose(numbers, expected, rtol=0, atol=1e-12)
    assert len(scores.metrics) == 2 * len(LVIS_METRICS)
    assert capsys.readouterr().out.count("catIds=  r] = 0.") == 2
    analysis = analyze(scores)
    for table in analysis.tables:
        aps = [row.AP for row in table.classes if row.AP >= 0]
        assert np.mean(aps) == pytest.approx(table.metrics["AP"])
        assert table.confusion.shape == (1231, 1231)


BOX, ELSEWHERE = [10, 10, 40, 40], [60, 10, 30, 80]


@pytest.fixture
def lvis_file(tmp_path):
    """An image with an acorn and cups (not exhaustively annotated), without dogs, and not verified for cats."""

    def write(**image):
        content = {
            "images": [
                {
                    "id": 1,
                    "coco_url": "http://images.cocodataset.org/val2017/000000000001.jpg",
                    "height": 100,
                    "width": 120,
                    "neg_category_ids": [3],
                    "not_exhaustive_category_ids": [2],
                    **image,
                }
            ],
            "categories": [
                {"id": 1, "name": "acorn", "frequency": "r"},
                {"id": 2, "name": "cup", "frequency": "f"},
                {"id": 3, "name": "dog", "frequency": "c"},
                {"id": 4, "name": "cat", "frequency": "f"},
            ],
            "annotations": [
                {"id": i, "image_id": 1, "category_id": i, "bbox": BOX, "area": 1600, "segmentation": []}
                for i in (1, 2)
            ],
        }
        (tmp_path / "lvis.json").write_text(json.dumps(content))
        return tmp_path / "lvis.json"

    return write


def found(category_id, box=BOX, score=0.9):
    return {"image_id": 1, "category_id": category_id, "bbox": box, "score": score}


def test_only_verified_classes_count(lvis_file):
    results = [found(1), found(4), found(2, ELSEWHERE), found(2, score=0.8)]
    scores = score(lvis_file(), results, iou_types=("bbox",))
    assert [record["category_id"] for record in scores.results] == [1, 2, 2]
    # The better cup matches no annotation, and is ignored.
    assert [scores.metrics[f"bbox/{name}"] for name in ("AP", "APr", "APc", "APf")] == pytest.approx([1, 1, -1, 1])
    analysis = analyze(scores)
    (image,) = analysis.images
    assert image.file_name == "val2017/000000000001.jpg"
    assert sorted(i.outcome for i in image.instances if i.predicted) == ["correct", "correct", "crowd"]
    assert image.quality == 1
    wrong = score(lvis_file(), [found(1, ELSEWHERE), *results[:1]], iou_types=("bbox",))
    assert wrong.metrics["bbox/APr"] == pytest.approx(0.5)


def test_at_most_300_detections_of_an_image_count(lvis_file):
    others = [found(4, ELSEWHERE, 0.95)] * 299
    for score_of_acorn, ap in ((0.99, 1), (0.9, 1), (0.8, 0)):  # the 300th is the better of acorn and cup
        results = [*others, found(2, BOX, 0.85), found(1, BOX, score_of_acorn)]
        scores = score(lvis_file(), results, iou_types=("bbox",))
        assert scores.metrics["bbox/APr"] == pytest.approx(ap)
        (image,) = analyze(scores).images
        assert [(i.category_id, i.outcome) for i in image.instances if i.predicted] == [(1 if ap else 2, "correct")]
        counted = "the table of boxes counts the 300 best results of each image: 1 of 1 images have more"
        assert scores.notes == (counted,)


def test_no_detections(lvis_file):
    assert score(lvis_file(), [], iou_types=("bbox",)).metrics["bbox/AP"] == 0


@pytest.mark.parametrize(("images", "categories"), [(2**53, 1), (2**62, 1), (1, 2**53), (2**62, 2**62)])
def test_ids_beyond_the_integers_of_floats(tmp_path, images, categories):
    """One of two classes is found in one of two images; the scores are those of small ids."""
    lists = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    size = {"height": 100, "width": 100}
    content = {
        "images": [{"id": images + i, "file_name": f"{i}.png", **size, **lists} for i in range(2)],
        "categories": [{"id": categories + k, "name": name, "frequency": "f"} for k, name in enumerate("ab")],
        "annotations": [
            {"id": 1 + 2 * i + k, "image_id": images + i, "category_id": categories + k, "bbox": BOX, "area": 1600}
            for i in range(2)
            for k in range(2)
        ],
    }
    (tmp_path / "lvis.json").write_text(json.dumps(content))
    results = [{"image_id": images, "category_id": categories, "bbox": BOX, "score": 0.9}]
    scores = score(tmp_path / "lvis.json", results, iou_types=("bbox",))
    # Precision 1 up to a recall of 1/2, which are 51 of 101 recalls, for one class of two.
    assert scores.metrics["bbox/AP"] == pytest.approx(51 / 101 / 2)
    assert scores.metrics["bbox/AR300"] == pytest.approx(1 / 4)
    assert [(row.category_id, row.AR) for row in analyze(scores).tables[0].classes] == [
        (categories, pytest.approx(0.5)),
        (categories + 1, 0),
    ]


def test_an_invalid_list_raises_with_its_name(lvis_file):
    with pytest.raises(DataError, match=r"lvis\.json: .* neg_category_ids is not a list of ids \(1\): image 1"):
        score(lvis_file(neg_category_ids="3"), [], iou_types=("bbox",))


def test_without_lvis_fields_metrics_are_cocos(lvis_file):
    path = lvis_file()
    content = json.loads(path.read_text())
    del content["images"][0]["neg_category_ids"]
    path.write_text(json.dumps(content))
    assert "bbox/APr" not in score(path, [found(1)], iou_types=("bbox",)).metrics
