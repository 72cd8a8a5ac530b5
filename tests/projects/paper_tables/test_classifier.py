"""Pretraining of the small backbones: crops, weight file, resuming."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest

from mrcnn_jax.config import DataConfig, ShapesConfig, SplitConfig
from mrcnn_jax.models.layers import Dense
from mrcnn_jax.training.init import initial_variables
from projects.paper_tables import classifier, small

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    folder = tmp_path_factory.mktemp("outlines")
    chosen = ShapesConfig("outlines", 12, 1, 64, 0, ("circle", "bar"), (0.3, 0.6))
    splits = SplitConfig("train.json", "train"), SplitConfig("val.json", "val")
    return DataConfig(str(folder / "data"), *splits, shapes=chosen, cache_dir=str(folder / "cache"))


def test_crop_is_centered_on_the_object() -> None:
    """A box of 20 x 10 pixels fills 1 / MARGIN of the crop's width; outside of the image it is gray."""
    image = np.full((40, 40, 3), 50, np.uint8)
    image[4:14, 10:30] = 200
    crop = classifier._crop(image, [10, 4, 20, 10])
    bright = crop[:, :, 0] > 125
    side = classifier.SIZE / classifier.MARGIN
    assert bright.any(0).sum() == pytest.approx(side, abs=1.5)
    assert bright.any(1).sum() == pytest.approx(side / 2, abs=1.5)
    rows, columns = np.nonzero(bright)
    assert rows.mean() == pytest.approx(classifier.SIZE / 2 - 0.5, abs=0.6)
    assert columns.mean() == pytest.approx(classifier.SIZE / 2 - 0.5, abs=0.6)
    assert tuple(crop[0, 0]) == (124, 116, 104)  # above the image


def test_every_object_is_a_crop(data: DataConfig) -> None:
    crops = classifier.load_crops(data)
    assert crops.images.shape == (len(crops.classes), classifier.SIZE, classifier.SIZE, 3)
    assert len(crops.classes) > 24
    assert set(crops.classes) == {0, 1}


def test_weight_file_initializes_a_detector(data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backbone of the detector equals the one in the file, and its statistics have been updated."""
    monkeypatch.setattr(classifier, "BATCH_SIZE", 16)
    recipe = small.row("2e", "fcn")
    model = dataclasses.replace(recipe.model, backbone=dataclasses.replace(recipe.model.backbone, width=8))
    file = tmp_path / "classifiers" / "resnet18.npz"
    accuracy = classifier.train(file, model, data, steps=4)
    assert 0 <= accuracy <= 1
    config = dataclasses.replace(recipe, model=dataclasses.replace(model, num_classes=1), init=str(file))
    _, variables = initial_variables(config, jax.random.key(0))
    with np.load(file) as arrays:
        kernel = arrays["layer4.1.conv2.weight"].transpose(2, 3, 1, 0)
        mean = arrays["bn1.running_mean"]
    np.testing.assert_array_equal(variables["params"]["backbone"]["res5"]["block1"]["conv2"]["kernel"], kernel)
    np.testing.assert_array_equal(variables["batch_stats"]["backbone"]["stem"]["norm"]["norm"]["mean"], mean)
    assert np.abs(mean).max() > 0


def test_pretraining_resumes_after_an_interruption(
    data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The batches after the last saved one equal those of an uninterrupted pretraining."""
    seen: list[np.ndarray] = []
    limit = 3

    def make_step(*_: object) -> object:
        def step(state: tuple, images: np.ndarray, classes: np.ndarray) -> tuple[tuple, float]:
            if len(seen) == limit:
                raise KeyboardInterrupt
            seen.append(images)
            variables, moments = state
            count = variables["params"]["logits"]["bias"] + 1  # number of batches so far
            params = {**variables["params"], "logits": {**variables["params"]["logits"], "bias": count}}
            return ({**variables, "params": params}, moments), float(count[0])

        return step

    class Small(classifier.Classifier):
        """A classifier without a backbone, which would be compiled and not used."""

        @nn.compact
        def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
            return Dense(self.classes, name="logits")(x.mean((1, 2)))

    monkeypatch.setattr(classifier, "Classifier", Small)
    monkeypatch.setattr(classifier, "_save", lambda file, _: file.touch())
    monkeypatch.setattr(classifier, "_make_step", make_step)
    monkeypatch.setattr(classifier, "BATCH_SIZE", 4)
    monkeypatch.setattr(classifier, "SAVE_EVERY", 2)
    file, model = tmp_path / "classifiers" / "resnet18.npz", small.row("2e", "fcn").model
    with pytest.raises(KeyboardInterrupt, match="resumes at batch 2 of the classifier"):
        classifier.train(file, model, data, steps=5)
    limit = 10
    assert classifier.train(file, model, data, steps=5) == 5  # the count of the last batch
    assert "resuming at batch 2" in capsys.readouterr().out
    np.testing.assert_array_equal(seen[2], seen[3])  # batch 3, before and after
    assert [path.name for path in file.parent.iterdir()] == ["resnet18.npz"]


def test_progress_with_other_settings_is_ignored(tmp_path: Path) -> None:
    state = ({"params": {"w": np.ones(2)}}, ())
    classifier._ClassifierProgress(tmp_path / "a.npz", "one").save(state, [0.5])
    start = ({"params": {"w": np.zeros(2)}}, ())
    restored, accuracies = classifier._ClassifierProgress(tmp_path / "a.npz", "one").resume(start)
    assert accuracies == [0.5]
    np.testing.assert_array_equal(restored[0]["params"]["w"], np.ones(2))
    assert classifier._ClassifierProgress(tmp_path / "a.npz", "another").resume(start) == (start, [])


def test_pretraining_runs_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def train(file: Path, *_: object, **__: object) -> float:
        calls.append(file)
        file.touch()
        return 0.5

    monkeypatch.setattr(classifier, "train", train)
    for _ in range(2):
        small.pretrain(tmp_path / "resnet18.npz", small.row("2e", "fcn"), tmp_path / "data")
    assert calls == [tmp_path / "resnet18.npz"]
    assert "training accuracy 50 %" in capsys.readouterr().out
