"""`mrcnn verify` without networks: chosen images, stored results, exit statuses, unusable data and arguments."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest

from mrcnn_jax.cli import main
from mrcnn_jax.config import EvalConfig, ModelConfig
from mrcnn_jax.evaluation import coco_metrics, evaluate
from mrcnn_jax.evaluation.bootstrap import ap_deviation
from mrcnn_jax.tools.verify import measure
from mrcnn_jax.weights import zoo
from mrcnn_jax.weights.zoo import ZooEntry

IDS = range(94, 101)


def results(ids):
    """Every kite, and the boats of images with even ids, at one score each; no false positives."""
    kites = [{"image_id": i, "category_id": 20, "bbox": [10.5, 2.5, 15, 24], "score": 0.9} for i in ids]
    return kites + [{**r, "category_id": 3, "bbox": [4, 6, 20, 10]} for r in kites if r["image_id"] % 2 == 0]


@pytest.fixture
def verify(coco_folder, tmp_path, monkeypatch, capsys):
    """Run the command on seven images with fake networks; returns exit status, output and evaluated names and ids."""
    coco_folder.save()
    weights = tmp_path / "weights"
    weights.write_bytes(b"some weights")
    entries = [
        ZooEntry("one", "torchvision", "http://a/1.pth", "", 1.0, "COCO", 75.7),
        ZooEntry("small/two", "detectron2", "http://a/2.pkl", "", 1.0, "COCO", 75.7),
        ZooEntry("backbone", "torchvision", "http://a/3.pth", "", 1.0, "ImageNet"),
        ZooEntry("masks", "detectron2", "http://a/4.pkl", "", 1.0, "COCO", None, 40.0),
        ZooEntry("streets", "detectron2", "http://a/5.pkl", "", 1.0, "Cityscapes", 40.0),
        ZooEntry("many", "detectron2", "http://a/6.pkl", "", 1.0, "LVIS v0.5", 40.0),
    ]
    calls = []

    def fake_evaluation(config, variables, workdir, *, dataset, report, quiet):
        calls.append((config.name, dataset.ids.tolist()))
        if len(calls) == state.interrupt_at:
            raise KeyboardInterrupt
        scored = coco_metrics.score(
            dataset.annotations_path,
            results(dataset.ids.tolist()),
            iou_types=("bbox",),
            image_ids=dataset.ids.tolist(),
            quiet=True,
        )
        workdir.mkdir(parents=True, exist_ok=True)
        report(scored, dataset.images_path)

    def run(*arguments, data=coco_folder.root):
        calls.clear()
        options = [
            f"--data={data}",
            f"--config.data.cache_dir={tmp_path / 'cache'}",
            "--config.data.eval.annotations=coco.json",
            "--config.data.eval.images=images",
        ]
        try:
            status = main(["verify", f"--output={tmp_path / 'verify'}", *options, *arguments])
        except SystemExit as error:  # a usage message
            status = error.code
        printed = capsys.readouterr()
        return status, printed.out + printed.err, list(calls)

    def load(source, origin, name, recipe):
        model = ModelConfig(num_classes=2, category_ids=(3, 20), category_names=("boat", "kite"), mask=None)
        return dataclasses.replace(recipe, name=name, model=model, eval=EvalConfig(resize=origin)), {}

    state = SimpleNamespace(run=run, weights=weights, output=tmp_path / "verify", interrupt_at=0)
    monkeypatch.setattr(zoo, "ENTRIES", tuple(entries))
    monkeypatch.setattr(measure.zoo_files, "fetch", lambda entry: weights)
    monkeypatch.setattr(measure.reference_models, "load", load)
    monkeypatch.setattr(measure, "evaluate_model", fake_evaluation)
    return state


def reports(verify):
    return json.loads((verify.output / "report.json").read_text())


def test_all_images(verify):
    """Kites: AP 1. Boats: recall 4/7 at precision 1, so 58 of 101 recalls, 0 to 0.57; mean 78.71."""
    status, output, calls = verify.run("one")
    assert calls == [("one", [100, 99, 98, 97, 96, 95, 94])]
    assert "| one | boxes | 75.7 | 78.71 | +3.00 | 0.10 | **fail** |" in output
    assert status == 1
    assert reports(verify)[0]["measured"]["bbox"] == pytest.approx(100 * (1 + 58 / 101) / 2)
    assert (verify.output / "report.md").read_text() in output


@pytest.mark.parametrize(("published", "passes"), [(78.8, True), (78.6, True), (78.9, False), (78.5, False)])
def test_the_tolerance_for_all_images(published, passes, verify, monkeypatch):
    """78.71 is rounded to 78.7, and may differ by 0.1 from the published AP."""
    monkeypatch.setattr(zoo, "ENTRIES", (zoo.ENTRIES[0]._replace(box_ap=published),))
    assert verify.run("one")[0] == (0 if passes else 1)


def test_some_images_have_a_larger_tolerance(verify, monkeypatch, coco_folder):
    """Five of seven, evenly spaced by id. AP of boats: 61 of 101 recalls, 0 to 0.6."""
    status, output, calls = verify.run("one", "--limit=5")
    assert (status, calls) == (0, [("one", [99, 98, 96, 95, 94])])
    [report] = reports(verify)
    assert report["images"] == 5
    ap = report["measured"]["bbox"]
    assert ap == pytest.approx(100 * (1 + 61 / 101) / 2)
    scores = coco_metrics.score(
        coco_folder.root / "coco.json", results(calls[0][1]), iou_types=("bbox",), image_ids=calls[0][1], quiet=True
    )
    tolerance = 1.5 * 100 * ap_deviation(scores, "bbox", samples=200)
    assert 5 < tolerance < 20
    assert f"| 75.7 | {ap:.2f} | {ap - 75.7:+.2f} | {tolerance:.2f} | pass |" in output
    for published, expected in [(ap + tolerance - 0.01, 0), (ap + tolerance + 0.01, 1), (ap - tolerance - 0.01, 1)]:
        monkeypatch.setattr(zoo, "ENTRIES", (zoo.ENTRIES[0]._replace(box_ap=published),))
        assert verify.run("one", "--limit=5")[0] == expected


def test_a_limit_above_the_number_of_images_means_all(verify):
    assert verify.run("one", "--limit=7")[1].count("| 0.10 | **fail** |") == 1
    assert not reports(verify)[0]["deviations"]


def test_results_are_used_again_unless_something_changed(verify, monkeypatch, coco_folder):
    arguments = ["one"]

    def evaluated():
        _, output, calls = verify.run(*arguments)
        assert "78.71 | +3.00" in output or "--limit=5" in arguments
        return bool(calls)

    assert evaluated()
    assert not evaluated()
    verify.weights.write_bytes(b"other weights")
    assert evaluated()
    arguments.append("--config.model.box.nms_iou=0.4")
    assert evaluated()
    assert not evaluated()
    arguments.append("--limit=5")
    assert evaluated()
    coco_folder.content["annotations"][0]["bbox"] = [4, 6, 20, 10.0001]
    coco_folder.save()
    assert evaluated()
    assert not evaluated()
    monkeypatch.setattr(measure.mrcnn_jax, "__version__", "77")
    assert evaluated()
    (verify.output / "one" / "report.json").write_text("[{}]")
    assert evaluated()


def test_an_interrupted_command_continues(verify, monkeypatch):
    """--all: the models of COCO, without the backbone and those of other data."""
    monkeypatch.setattr(zoo, "ENTRIES", tuple(entry for entry in zoo.ENTRIES if entry.name != "masks"))
    verify.interrupt_at = 2
    status, _, calls = verify.run("--all")
    assert (status, [name for name, _ in calls]) == (130, ["one", "small/two"])
    verify.interrupt_at = 0
    status, output, calls = verify.run("--all")
    assert (status, [name for name, _ in calls]) == (1, ["small/two"])
    assert [report["name"] for report in reports(verify)] == ["one", "small/two"]
    assert " --all`" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["backbone"], "backbone has no published AP: it is a backbone"),
        (["streets"], "the published AP of streets is by the rules of Cityscapes"),
        (["many", "--limit=3"], "many is scored by LVIS's rules: omit --limit"),
        (["masks"], "coco.json has no masks, for which masks has an AP"),
        (["one", "--limit=0"], "--limit=0: give a number of images from 1"),
        (["on"], "there are no published weights 'on'; the nearest names are one"),
        (["one", "--config.data.eval.images=nothing"], "has no nothing: `mrcnn convert coco2017 DIR --split=val`"),
        ([], "give NAME..., or --all"),
        (["one", "--all"], "give NAME..., or --all"),
        (["one", "--output=/dev/null"], "--output=/dev/null cannot be written to: /dev/null is a file"),
    ],
)
def test_unusable_arguments_are_one_line(arguments, message, verify, coco_folder):
    for annotation in coco_folder.content["annotations"]:
        del annotation["segmentation"]
    coco_folder.save()
    status, output, calls = verify.run(*arguments)
    assert status == 2
    assert message in output.splitlines()[-1]
    assert not calls


def test_missing_data_is_found_before_the_weights_are_fetched(verify, monkeypatch, tmp_path):
    monkeypatch.setattr(measure.zoo_files, "fetch", lambda entry: pytest.fail("fetched"))
    status, output, _ = verify.run("one", data=tmp_path / "missing")
    assert status == 2
    assert f"{tmp_path / 'missing'} has no coco.json" in output


def test_data_of_other_categories_is_refused(verify, monkeypatch, coco_folder):
    monkeypatch.setattr(measure, "evaluate_model", evaluate.evaluate_model)
    coco_folder.content["categories"] = [{"id": 20, "name": "cat"}, {"id": 3, "name": "boat"}]
    coco_folder.save()
    status, output, _ = verify.run("one")
    assert status == 2
    assert "the model's categories differ from those of the data" in output
    assert "id 20: model 'kite', data 'cat'" in output
