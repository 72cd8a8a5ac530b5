"""Release folders: what was written is read back to the bit; unusable files are refused by name."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from mrcnn_jax.config import Config, DataConfig, SplitConfig
from mrcnn_jax.errors import ConfigError, WeightsError
from mrcnn_jax.weights import release
from mrcnn_jax.weights.io import weight_files

pytestmark = pytest.mark.medium  # traces a network


@pytest.fixture(scope="module")
def config(variant):
    """A network whose variables are in all three collections."""
    return Config(name="small", model=variant("v2"))


@pytest.fixture(scope="module")
def variables(config, random_variables):
    return random_variables(config.model)


@pytest.fixture
def folder(config, variables, tmp_path):
    release.write(tmp_path / "release", config, variables, "a card\n")
    return tmp_path / "release"


@pytest.mark.parametrize("name", ["gn", "frozen", "v2", "keypoints", "c4"])
def test_variables_are_read_back_to_the_bit(name, variant, random_variables, tmp_path):
    config = Config(model=variant(name))
    variables = random_variables(config.model)
    release.write(tmp_path / "release", config, variables, "")
    back, read = release.read(tmp_path / "release")
    assert back == config
    jax.tree.map(np.testing.assert_array_equal, read, variables)


def test_paths_of_the_author_are_not_written(config):
    inside = SplitConfig("annotations/train.json", "train")
    data = DataConfig(
        root="/home/me/data",
        cache_dir="/scratch/me",
        train=inside,
        eval=SplitConfig("/home/me/val.json", "../me/val"),
    )
    config = release.without_local_paths(dataclasses.replace(config, init="/home/me/R-50.pkl", data=data))
    assert (config.init, config.data.root, config.data.cache_dir) == ("", "", "")
    assert config.data.train == inside
    assert config.data.eval == SplitConfig("val.json", "val")


def test_everybody_may_read_the_files(folder):
    assert {path.name: path.stat().st_mode & 0o044 for path in folder.iterdir()} == dict.fromkeys(
        ["README.md", "config.json", "model.safetensors"], 0o044
    )


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_file(name, folder):
    (folder / name).unlink()
    with pytest.raises(WeightsError, match=f"release has no {name}: "):
        release.read(folder)
    assert release.is_release(folder)


def change_config(folder, change):
    content = json.loads((folder / "config.json").read_text())
    change(content)
    (folder / "config.json").write_text(json.dumps(content))


def test_field_of_another_version(folder):
    change_config(folder, lambda content: content["model"].update(thirdHead=1))
    with pytest.raises(WeightsError, match=r"config\.json: unknown .* 'config\.model\.thirdHead' .* version"):
        release.read(folder)


def test_damaged_configuration(folder):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text[: len(text) // 2])
    with pytest.raises(WeightsError, match=r"config\.json is damaged .* get it again"):
        release.read(folder)


def test_model_without_classes(folder):
    change_config(folder, lambda content: content["model"].update(num_classes=0))
    with pytest.raises(WeightsError, match=r"config\.json: model\.num_classes is not set"):
        release.read(folder)


def test_weights_of_another_model(folder):
    change_config(folder, lambda content: content["model"]["box"].update(hidden=48))
    with pytest.raises(WeightsError, match=r"model\.safetensors: .* do not fit[\s\S]*box_head/fc1/kernel"):
        release.read(folder)


def test_damaged_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match=r"model\.safetensors: it is damaged"):
        release.read(folder)


def test_weights_of_another_format(folder):
    with (folder / "model.safetensors").open("wb") as file:
        np.savez(file, a=np.zeros(1))
    with pytest.raises(WeightsError, match=r"model\.safetensors: .*do not fit"):
        release.read(folder)


def test_weights_that_are_not_finite(folder, config, variables, tmp_path):
    state = dict(weight_files.read(folder / "model.safetensors"))
    state["box_head/logits/bias"] = np.full_like(state["box_head/logits/bias"], np.nan)
    weight_files.write(folder / "model.safetensors", state)
    with pytest.raises(WeightsError, match=r"model\.safetensors: [\s\S]*box_head/logits/bias contains NaN"):
        release.read(folder)
    bad = jax.tree.map(np.copy, variables)
    bad["params"]["box_head"]["logits"]["bias"][0] = np.inf
    with pytest.raises(WeightsError, match=r"the model to export: [\s\S]*box_head/logits/bias contains NaN or inf"):
        release.write(tmp_path / "bad", config, bad, "")
    assert not (tmp_path / "bad").exists()


def test_earlier_release_is_replaced(folder, config, variables):
    other = jax.tree.map(np.negative, variables)
    release.write(folder, config, other, "another card\n")
    jax.tree.map(np.testing.assert_array_equal, release.read(folder)[1], other)
    assert (folder / "README.md").read_text() == "another card\n"
    assert [path.name for path in folder.parent.iterdir()] == ["release"]


def test_other_folders_are_not_replaced(folder, config, variables):
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"release contains other files \(notes\.txt\): give a new folder"):
        release.write(folder, config, variables, "")
    (folder / "notes.txt").unlink()
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"is not an earlier export \(it has no model\.safetensors\)"):
        release.write(folder, config, variables, "")
    assert (folder / "README.md").read_text() == "a card\n"


def test_interrupted_export_leaves_nothing(folder, config, variables, monkeypatch):
    """The disk is full when the configuration is written: the earlier release is unchanged."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(release.files, "write_text", fail)
    for name in ("release", "new"):
        with pytest.raises(OSError, match="No space"):
            release.write(folder.parent / name, config, jax.tree.map(np.zeros_like, variables), "new")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["release"]
