"""Evaluation of a dataset, from files to metrics, with the ground truth as detections."""

from __future__ import annotations

import dataclasses
import functools
import json
import threading

import cv2
import jax
import numpy as np
import pytest
from etils import epath
from support import linear, tiny

from mrcnn_jax.config import (
    BackboneConfig,
    Config,
    DataConfig,
    EvalConfig,
    KeypointHeadConfig,
    ModelConfig,
    ShapesConfig,
    SplitConfig,
)
from mrcnn_jax.data.dataset import load_split
from mrcnn_jax.distributed import collectives
from mrcnn_jax.errors import ConfigError
from mrcnn_jax.evaluation import evaluate
from mrcnn_jax.evaluation.coco_metrics import METRICS
from mrcnn_jax.evaluation.evaluate import evaluate_model
from mrcnn_jax.inference import detector, devices
from mrcnn_jax.models.mask_rcnn import build_model, init_variables
from mrcnn_jax.structures import Detections
from mrcnn_jax.tools.report.write import try_write

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes")
    data = DataConfig(
        root=str(root / "data"),
        train=SplitConfig("train.json", "train"),
        eval=SplitConfig("val.json", "val"),
        shapes=ShapesConfig(train_images=1, eval_images=7, image_size=96),
        cache_dir=str(root / "cache"),
        buckets=((128, 128),),
        shortest_edge_eval=120,
        longest_edge=128,
    )
    config = Config(data=data, eval=EvalConfig(batch_size=3, overlays=2))
    categories = load_split(data, "eval").categories
    model = dataclasses.replace(
        config.model,
        num_classes=len(categories.ids),
        category_ids=categories.ids,
        category_names=categories.names,
        backbone=BackboneConfig("resnet18", norm="gn", frozen_stages=0),
    )
    return dataclasses.replace(config, model=model)


def use_ground_truth(monkeypatch):
    """Make the network return the ground truth of each batch."""
    batches = []
    detected = iter(batches)

    def spy(original):
        def wrapped(detect, source, finish, profile):
            def recorded():
                for batch in source:
                    batches.append(batch)
                    yield batch

            return original(detect, recorded(), finish, profile)

        return wrapped

    def detect(images, image_sizes):
        truth = next(detected).ground_truth
        return Detections(
            boxes=truth.boxes,
            scores=np.full(truth.valid.shape, 0.9, np.float32),
            classes=truth.classes,
            masks=truth.masks.astype(np.float32),
            keypoints=truth.keypoints,
            valid=truth.valid,
            truncated=np.zeros(len(images), bool),
        )

    monkeypatch.setattr(detector, "detect_batches", spy(detector.detect_batches))
    monkeypatch.setattr(detector, "compile_detect", lambda *_: detect)


def use_altered_ground_truth(monkeypatch, change):
    """Make the network return the ground truth, altered by `change`."""
    use_ground_truth(monkeypatch)
    complete = detector.compile_detect(None, {})
    monkeypatch.setattr(detector, "compile_detect", lambda *_: lambda *given: change(complete(*given)))


def test_perfect_detections_score_nearly_one_and_all_files_are_written(config, tmp_path, monkeypatch, capsys):
    use_ground_truth(monkeypatch)
    outdated = tmp_path / "evaluation" / "overlays" / "outdated.png"
    outdated.parent.mkdir(parents=True)
    outdated.touch()
    metrics = evaluate_model(config, {}, tmp_path)
    assert metrics["bbox/AP"] > 0.99
    # Pasting crops of 112 pixels onto figures of 12 to 48 pixels, most of whose pixels are edges, is not exact.
    assert metrics["segm/AP"] > 0.9
    assert json.loads((tmp_path / "evaluation" / "metrics.json").read_text()) == metrics
    results = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    assert {record["category_id"] for record in results} <= set(config.model.category_ids)
    classes = json.loads((tmp_path / "evaluation" / "classes.json").read_text())
    assert [row["name"] for row in classes["segm"]] == list(config.model.category_names)
    assert np.mean([row["AP50"] for row in classes["segm"] if row["instances"]]) == pytest.approx(metrics["segm/AP50"])
    overlays = sorted((tmp_path / "evaluation" / "overlays").iterdir())
    assert len(overlays) == 2
    dataset = load_split(config.data, "eval")
    index = dataset.ids.tolist().index(int(overlays[0].stem))
    original = cv2.imread(str(dataset.image_path(index)), cv2.IMREAD_COLOR)
    drawn = cv2.imread(str(overlays[0]), cv2.IMREAD_COLOR)
    assert drawn.shape == (28 + 576, 576 + 5 + 576, 3)
    for side in (drawn[28:, :576], drawn[28:, -576:]):  # ground truth and prediction, each below its title
        shrunk = cv2.resize(side, (96, 96), interpolation=cv2.INTER_AREA)
        for channel in range(3):  # most of the image is background, which is not drawn on
            assert np.median(np.abs(original[:, :, channel].astype(int) - shrunk[:, :, channel])) < 8
    assert "7/7 images evaluated" in capsys.readouterr().out


def test_quiet_prints_no_tables(config, tmp_path, monkeypatch, capsys):
    use_ground_truth(monkeypatch)
    expected = evaluate_model(config, {}, tmp_path)
    assert "Boxes (bbox)" in capsys.readouterr().out
    use_ground_truth(monkeypatch)
    assert evaluate_model(config, {}, tmp_path, quiet=True) == expected
    printed = capsys.readouterr().out
    assert "7/7 images evaluated" in printed
    assert "Average Precision" not in printed
    assert "Boxes" not in printed


def report_to(folder):
    """The `report` of the command line: writes evaluation/report.html."""
    return functools.partial(try_write, output=epath.Path(folder) / "evaluation" / "report.html", title="shapes")


def test_report(config, tmp_path, monkeypatch):
    use_ground_truth(monkeypatch)
    evaluate_model(config, {}, tmp_path)
    assert not (tmp_path / "evaluation" / "report.html").exists()
    use_ground_truth(monkeypatch)
    evaluate_model(config, {}, tmp_path, report=report_to(tmp_path))
    page = (tmp_path / "evaluation" / "report.html").read_text()
    assert all(name in page for name in config.model.category_names)
    assert page.count("data:image/jpeg;base64,") == 7  # every image, with its detections


def test_no_detections(config, tmp_path, monkeypatch):
    monkeypatch.setattr(detector, "compile_detect", lambda *_: linear.detect_nothing)
    metrics = evaluate_model(config, {}, tmp_path)
    assert metrics["bbox/AP"] == metrics["segm/AP"] == 0


def test_a_model_with_other_categories_raises(config, tmp_path):
    names = ("dog", *config.model.category_names[1:])
    model = dataclasses.replace(config.model, category_names=names)
    with pytest.raises(ConfigError, match="'dog'"):
        evaluate_model(dataclasses.replace(config, model=model), {}, tmp_path)


def test_truncated_candidates_are_logged(config, tmp_path, monkeypatch, caplog):
    use_altered_ground_truth(
        monkeypatch, lambda detections: detections._replace(truncated=np.ones(len(detections.boxes), bool))
    )
    evaluate_model(config, {}, tmp_path)
    assert "7 images had more candidates than model.box.nms_candidates=4096" in caplog.text


def test_reaching_max_detections_is_noted(config, tmp_path, monkeypatch, caplog):
    """max_detections is 1."""
    box = dataclasses.replace(config.model.box, max_detections=1)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, box=box))
    use_ground_truth(monkeypatch)
    evaluate_model(config, {}, tmp_path, report=report_to(tmp_path))
    content = json.loads((tmp_path.parent / config.data.root / "val.json").read_text())
    objects = [entry["image_id"] for entry in content["annotations"] if not entry["iscrowd"]]
    assert len(set(objects)) == 7 < len(objects)
    bound = f"at most 7 of {len(objects)} objects can be found, a recall of {int(7000 / len(objects)) / 1000}"
    note = f"7 of 7 images have model.box.max_detections=1 detections; {bound}: raise it"
    assert note in caplog.messages
    assert f"<p class='note'>{note}.</p>".replace("'", '"') in (tmp_path / "evaluation" / "report.html").read_text()


def test_failing_overlays_and_reports_are_logged(config, tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise cv2.error("a picture\nwithout pixels")

    use_ground_truth(monkeypatch)
    expected = evaluate_model(config, {}, tmp_path, report=report_to(tmp_path))
    folder = tmp_path / "evaluation"
    assert len(list((folder / "overlays").iterdir())) == 2
    caplog.clear()
    use_ground_truth(monkeypatch)
    monkeypatch.setattr("mrcnn_jax.visualize.compare", fail)
    monkeypatch.setattr("mrcnn_jax.tools.report.write.render", fail)
    assert evaluate_model(config, {}, tmp_path, report=report_to(tmp_path)) == expected
    ids = load_split(config.data, "eval").ids
    failures = [f"image {ids[index]} has no overlay: error: a picture without pixels" for index in (0, 6)]
    assert sorted(caplog.messages) == sorted([*failures, "no report written: error: a picture without pixels"])
    assert not list((folder / "overlays").iterdir())
    assert not (folder / "report.html").exists()  # the outdated one is deleted
    assert json.loads((folder / "metrics.json").read_text()) == expected


def evaluate_with(count, config, folder, monkeypatch):
    """Evaluate with `count` processes, simulated one after the other; returns metrics, records and overlays."""
    monkeypatch.setattr(jax, "process_count", lambda: count)
    monkeypatch.setattr(collectives, "check_same", lambda *_: None)  # there is only one real process
    monkeypatch.setattr(collectives, "broadcast_object", lambda content: content)
    shares = []
    monkeypatch.setattr(collectives, "gather", lambda content: [*shares, content][::-1])
    for index in reversed(range(count)):  # the main process last, which gathers the parts of the others
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        if index > 0:
            monkeypatch.setattr(collectives, "run_on_main", lambda function: b"{}")
            with monkeypatch.context() as patch:
                patch.setattr(collectives, "gather", lambda content: shares.append(content) or [])
                use_ground_truth(patch)
                evaluate_model(config, {}, folder)
    monkeypatch.setattr(collectives, "run_on_main", lambda function: function())
    use_ground_truth(monkeypatch)
    metrics = evaluate_model(config, {}, folder)
    overlays = {path.name: path.read_bytes() for path in (folder / "evaluation" / "overlays").iterdir()}
    return metrics, (folder / "evaluation" / "results.json").read_text(), overlays


def test_several_processes_give_the_results_of_one(config, tmp_path, monkeypatch, capsys):
    """Seven images in batches of four: two processes have 2 + 2 and 2 + 1 of them, four have 1 + 1, ..., 1 + 0."""
    config = dataclasses.replace(config, eval=EvalConfig(batch_size=4, overlays=3))
    one = evaluate_with(1, config, tmp_path / "1", monkeypatch)
    assert one[0]["bbox/AP"] > 0.99
    assert len(one[2]) == 3
    ids = [record["image_id"] for record in json.loads(one[1])]
    assert ids == sorted(ids)
    for count in (2, 4):
        assert evaluate_with(count, config, tmp_path / str(count), monkeypatch) == one
    printed = capsys.readouterr().out
    assert "4/4 images evaluated by process 0 of 2" in printed
    assert printed.count("Boxes (bbox)") == 3  # only the main process prints


def test_a_batch_that_does_not_divide_over_processes_raises(config, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    # There is only one real process.
    monkeypatch.setattr(evaluate, "check_workdir", lambda *_: None)
    monkeypatch.setattr(collectives, "check_same", lambda *_: None)
    with pytest.raises(ConfigError, match=r"eval\.batch_size=3 does not divide over 2 processes: give a multiple of 2"):
        evaluate_model(config, {}, tmp_path)


def test_two_devices_give_the_results_of_one(config, tmp_path):
    """Seven images, two at a time on each device; the tiny network has random weights and no score threshold."""
    small = tiny.model()
    names = ("num_classes", "category_ids", "category_names")
    model = dataclasses.replace(
        small,
        **{name: getattr(config.model, name) for name in names},
        box=dataclasses.replace(small.box, max_detections=5, score_threshold=0.0),
    )
    data = dataclasses.replace(config.data, buckets=((64, 64),), shortest_edge_eval=64, longest_edge=64)
    variables = init_variables(build_model(model), jax.random.key(0))
    found = {}
    for count in (1, 2):
        config = dataclasses.replace(config, model=model, data=data, eval=EvalConfig(batch_size=2 * count, overlays=0))
        evaluate_model(config, variables, tmp_path, devices=jax.local_devices()[:count])
        found[count] = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    assert len(found[1]) == 7 * 5
    assert found[1] == found[2]


def test_largest_divisor():
    assert [len(devices.largest_divisor(range(4), images)) for images in (1, 2, 3, 4, 6, 8)] == [1, 2, 3, 4, 3, 4]


def test_check_can_end_the_evaluation(config, tmp_path, monkeypatch):
    """`check` is called before each of the three batches; its exception propagates, and nothing is scored."""
    use_ground_truth(monkeypatch)
    calls = []
    evaluate_model(config, {}, tmp_path / "whole", check=lambda: calls.append(1))
    assert len(calls) == 3

    def stop():
        if len(calls) == 5:
            raise KeyboardInterrupt
        calls.append(1)

    with pytest.raises(KeyboardInterrupt):
        evaluate_model(config, {}, tmp_path / "part", check=stop)
    assert len(calls) == 5
    assert not (tmp_path / "part" / "evaluation" / "results.json").exists()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("map_on_threads")]


@pytest.fixture
def kites(tmp_path):
    """Two images of a boat and a kite with three keypoints, and a model of kites."""
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 60, "width": 100} for i in (1, 2)],
        "categories": [
            {"id": 3, "name": "boat"},
            {"id": 20, "name": "kite", "keypoints": ["nose", "left_tip", "right_tip"], "skeleton": [[1, 2], [1, 3]]},
        ],
        "annotations": [],
    }
    for image_id in (1, 2):
        cv2.imwrite(str(tmp_path / f"{image_id}.png"), np.zeros((60, 100, 3), np.uint8))
        kite = {"category_id": 20, "bbox": [30, 10, 60, 40], "keypoints": [40, 20, 2, 80, 15, 1, 0, 0, 0]}
        for fields in ({"category_id": 3, "bbox": [5, 5, 50, 50]}, kite):
            content["annotations"].append({"id": len(content["annotations"]), "image_id": image_id, **fields})
    (tmp_path / "coco.json").write_text(json.dumps(content))
    data = DataConfig(
        root=str(tmp_path),
        eval=SplitConfig("coco.json", "."),
        cache_dir=str(tmp_path / "cache"),
        buckets=((128, 160),),
        shortest_edge_eval=90,
        longest_edge=160,
        categories=("kite",),
    )
    model = ModelConfig(
        num_classes=1,
        category_ids=(20,),
        category_names=("kite",),
        mask=None,
        keypoint=KeypointHeadConfig(num_keypoints=3, flip_map=(0, 2, 1)),
    )
    return Config(model=model, data=data, eval=EvalConfig(batch_size=2, overlays=1))


def test_keypoints_of_the_selected_categories_are_scored(kites, tmp_path, monkeypatch, capsys):
    use_ground_truth(monkeypatch)
    metrics = evaluate_model(kites, {}, tmp_path)
    assert len(metrics) == 12 + 10
    assert metrics["bbox/AP"] == pytest.approx(1)
    assert metrics["keypoints/AP"] == pytest.approx(1)
    results = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    assert [record["category_id"] for record in results] == [20, 20]
    for record in results:  # pixel indices, as in the annotations
        np.testing.assert_allclose(record["keypoints"][:6], [40, 20, 2, 80, 15, 1], atol=1e-4)
    assert "Keypoints (keypoints), 2 images, 2 detections" in capsys.readouterr().out


def test_sigmas_come_from_the_configuration(kites, tmp_path, monkeypatch):
    offset = np.array([6, 0, 0])
    use_altered_ground_truth(
        monkeypatch, lambda detections: detections._replace(keypoints=detections.keypoints + offset)
    )
    for sigma, expected in ((0.01, 0), (1.0, 1)):
        config = dataclasses.replace(kites, eval=EvalConfig(batch_size=2, keypoint_sigmas=(sigma,) * 3))
        assert evaluate_model(config, {}, tmp_path)["keypoints/AP"] == pytest.approx(expected)


def test_data_without_keypoints_has_the_table_of_boxes_only(kites, tmp_path, monkeypatch):
    path = tmp_path / "coco.json"
    content = json.loads(path.read_text())
    for entry in content["categories"] + content["annotations"]:
        entry.pop("keypoints", None)
        entry.pop("skeleton", None)
    path.write_text(json.dumps(content))
    points = np.zeros((2, kites.data.max_instances, 3, 3), np.float32)
    use_altered_ground_truth(monkeypatch, lambda detections: detections._replace(keypoints=points))
    assert set(evaluate_model(kites, {}, tmp_path)) == {f"bbox/{name}" for name in METRICS}


def test_a_model_with_other_keypoints_raises(kites, tmp_path):
    model = dataclasses.replace(kites.model, keypoint=KeypointHeadConfig())
    with pytest.raises(ConfigError, match=r"17 keypoints .*, the data 3 \(nose, left_tip, right_tip\)"):
        evaluate_model(dataclasses.replace(kites, model=model), {}, tmp_path)


def test_ground_truth_keypoints_score_one(shared_data, tmp_path, monkeypatch):
    """No step from annotations to result records moves a keypoint."""
    data = DataConfig(
        root=str(shared_data("coco_by")),
        eval=SplitConfig("person_keypoints.json", "images"),
        cache_dir=str(tmp_path / "cache"),
    )
    model = ModelConfig(
        num_classes=1, category_ids=(1,), category_names=("person",), mask=None, keypoint=KeypointHeadConfig()
    )

    def guess(detections):
        """Predict the box center for unlabeled keypoints, as half of the people have none."""
        boxes, keypoints = detections.boxes[:, :, None], detections.keypoints
        middle = np.concatenate([(boxes[..., :2] + boxes[..., 2:]) / 2, np.ones_like(boxes[..., :1])], axis=-1)
        return detections._replace(keypoints=np.where(keypoints[..., 2:] > 0, keypoints, middle))

    use_altered_ground_truth(monkeypatch, guess)
    metrics = evaluate_model(Config(model=model, data=data), {}, tmp_path)
    for name in ("bbox/AP", "keypoints/AP", "keypoints/APm", "keypoints/APl"):
        assert metrics[name] == pytest.approx(1), name
