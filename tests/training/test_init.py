"""Initial weights of a run: other heads, a classifier, another run; resuming without the weight file."""

from __future__ import annotations

import dataclasses
import logging
import shutil

import jax
import numpy as np
import pytest
from support import linear
from support.published import publish

from mrcnn_jax.checkpoints.manager import load_variables
from mrcnn_jax.checkpoints.workdir import read_config
from mrcnn_jax.cli import main as mrcnn
from mrcnn_jax.config import Config, presets
from mrcnn_jax.errors import ConfigError, DownloadError
from mrcnn_jax.models.mask_rcnn import build_model, variable_shapes
from mrcnn_jax.training import init as init_module
from mrcnn_jax.training.init import initial_variables, resolve_init
from mrcnn_jax.training.train import train
from mrcnn_jax.weights import detectron2_names, hub, torchvision_names
from mrcnn_jax.weights.io import weight_files
from mrcnn_jax.weights.preprocessing import TORCHVISION, preprocessing_of
from mrcnn_jax.weights.transfer import import_weights

pytestmark = pytest.mark.medium


def random_variables(model):
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: np.float32(0.05) * rng.standard_normal(leaf.shape, np.float32), variable_shapes(build_model(model))
    )
    variables["frozen"] = jax.tree.map(lambda leaf: np.abs(leaf) + 1, variables["frozen"])
    return variables


@pytest.fixture(scope="module", autouse=True)
def linear_gradients():
    """Train with the gradients of a linear model: only the initial weights matter."""
    with pytest.MonkeyPatch.context() as patch:
        linear.replace_gradients(patch.setattr)
        yield


@pytest.fixture(scope="module")
def recipe(tiny_config) -> Config:
    """The tiny recipe with two steps, frozen stem and res2, which needs `init`, and another normalization of pixels."""
    backbone = dataclasses.replace(tiny_config.model.backbone, norm="frozen_bn", frozen_stages=2)
    train = dataclasses.replace(tiny_config.train, steps=2)
    model = dataclasses.replace(tiny_config.model, backbone=backbone, channel_order="bgr", pixel_std=(1.0, 1.0, 1.0))
    return dataclasses.replace(tiny_config, model=model, train=train)


@pytest.fixture(scope="module")
def coco_model(recipe):
    """Variables of the same network with 90 classes."""
    return random_variables(dataclasses.replace(recipe.model, num_classes=90))


@pytest.fixture(scope="module")
def fine_tuned(recipe, coco_model, linear_gradients, tmp_path_factory):
    """A run initialized from a torchvision state dict of 90 classes, since deleted: config, workdir."""
    folder = tmp_path_factory.mktemp("fine_tuned")
    file = folder / "coco.safetensors"
    weight_files.write(file, torchvision_names.export_state(coco_model))
    config = dataclasses.replace(recipe, init=str(file))
    train(config, folder / "run")
    file.unlink()
    return config, folder / "run"


def test_fine_tuning_from_a_head_of_90_classes(fine_tuned, coco_model):
    """Frozen layers equal those of the file, others have changed, the head has the classes of the data."""
    config, variables = load_variables(fine_tuned[1])
    assert config.model.num_classes == 5
    assert preprocessing_of(config.model) == TORCHVISION
    params, theirs = variables["params"], coco_model["params"]
    jax.tree.map(np.testing.assert_array_equal, variables["frozen"], coco_model["frozen"])
    jax.tree.map(np.testing.assert_array_equal, params["backbone"]["stem"], theirs["backbone"]["stem"])
    moved = np.abs(params["box_head"]["fc2"]["kernel"] - theirs["box_head"]["fc2"]["kernel"])
    assert 0 < moved.max() < 0.01
    assert params["box_head"]["logits"]["kernel"].shape[-1] == 6


def test_resuming_needs_no_weight_file(fine_tuned):
    """The recipe as given, without the preprocessing of the weights, still belongs to the same run."""
    config, workdir = fine_tuned
    assert preprocessing_of(config.model) != TORCHVISION
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=3))
    resolved, variables = resolve_init(longer, workdir, jax.random.key(0))
    assert variables is None
    assert preprocessing_of(resolved.model) == TORCHVISION
    assert int(train(longer, workdir).step) == 3
    assert preprocessing_of(read_config(workdir).model) == TORCHVISION


def test_training_from_a_classifier(recipe, coco_model, tmp_path):
    state = torchvision_names.export_state(coco_model)
    prefix = "backbone.body."
    network = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    weight_files.write(tmp_path / "resnet.npz", {**network, "fc.bias": np.zeros(1000, np.float32)})
    train(dataclasses.replace(recipe, init=str(tmp_path / "resnet.npz")), tmp_path / "run")
    config, variables = load_variables(tmp_path / "run")
    assert preprocessing_of(config.model) == TORCHVISION
    jax.tree.map(np.testing.assert_array_equal, variables["frozen"], coco_model["frozen"])


def test_init_from_a_release_folder_equals_that_from_the_run(fine_tuned, recipe, tmp_path, monkeypatch):
    folder = tmp_path / "release"
    assert mrcnn(["export", str(fine_tuned[1]), str(folder)]) == 0
    monkeypatch.setattr(hub, "fetch", lambda *name: {("hf://owner/name", None): folder}[name])
    model = dataclasses.replace(recipe.model, num_classes=2)
    (expected_config, expected), *others = (
        initial_variables(dataclasses.replace(recipe, init=str(init), model=model), jax.random.key(0))
        for init in (fine_tuned[1], folder, "hf://owner/name")
    )
    for config, variables in others:
        assert config.model == expected_config.model
        jax.tree.map(np.testing.assert_array_equal, variables, expected)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"init: .*release has no model\.safetensors"):
        initial_variables(dataclasses.replace(recipe, init=str(folder)), jax.random.key(0))


def test_init_from_another_run(fine_tuned, recipe, caplog):
    caplog.set_level(logging.INFO, logger="mrcnn_jax")
    other = dataclasses.replace(recipe, init=str(fine_tuned[1]), model=dataclasses.replace(recipe.model, num_classes=2))
    config, variables = initial_variables(other, jax.random.key(0))
    assert preprocessing_of(config.model) == TORCHVISION
    kept = load_variables(fine_tuned[1])[1]
    jax.tree.map(np.testing.assert_array_equal, variables["params"]["fpn"], kept["params"]["fpn"])
    assert variables["params"]["box_head"]["logits"]["bias"].shape == (3,)
    assert f"{fine_tuned[1]}: initializing from the newest checkpoint" in caplog.messages


def test_use_of_averaged_weights_is_logged(fine_tuned, recipe, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="mrcnn_jax")
    run, variables = load_variables(fine_tuned[1])
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, ema_decay=0.9))
    monkeypatch.setattr(init_module, "load_variables", lambda workdir: (run, variables))
    config = dataclasses.replace(recipe, init=str(fine_tuned[1]), model=run.model)
    initial_variables(config, jax.random.key(0))
    expected = f"{fine_tuned[1]}: initializing from the newest checkpoint, the averaged weights (train.ema_decay)"
    assert expected in caplog.messages


@pytest.mark.parametrize("name", ["torchvision", "detectron2"])
def test_exported_weights_can_be_imported(fine_tuned, tmp_path, capsys, name):
    config, variables = load_variables(fine_tuned[1])
    file = tmp_path / "exported.npz"
    mrcnn(["weights", "export", str(fine_tuned[1]), str(file), f"--format={name}"])
    assert f"with {name} names. Input: rgb pixels" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, import_weights(file, config.model)[1], variables)


def test_unusable_initial_weights_are_named(recipe, coco_model, tmp_path):
    def initialize(init):
        model = dataclasses.replace(recipe.model, num_classes=3)
        return initial_variables(dataclasses.replace(recipe, init=str(init), model=model), jax.random.key(0))

    with pytest.raises(ConfigError, match=r"init: .*nowhere\.npz"):
        initialize("nowhere.npz")
    (tmp_path / "zeros.pth").write_bytes(bytes(4096))
    with pytest.raises(ConfigError, match=r"init: .*zeros\.pth: it is filled with zeros"):
        initialize(tmp_path / "zeros.pth")
    state = detectron2_names.export_state(coco_model)
    del state["backbone.bottom_up.res3.0.conv1.weight"]
    weight_files.write(tmp_path / "incomplete.npz", state)
    with pytest.raises(ConfigError, match=r"do not fit the model:\n  missing: backbone\.bottom_up\.res3\.0\.conv1"):
        initialize(tmp_path / "incomplete.npz")


def test_published_weights_are_downloaded_once(recipe, coco_model, download_server, monkeypatch, tmp_path):
    """A resumed run needs neither the server nor the file."""
    weight_files.write(tmp_path / "coco.npz", torchvision_names.export_state(coco_model))
    publish(download_server, monkeypatch.setattr, "maskrcnn_resnet50_fpn", (tmp_path / "coco.npz").read_bytes())
    config = dataclasses.replace(recipe, init="zoo:maskrcnn_resnet50_fpn")
    train(config, tmp_path / "run")
    resolved, variables = load_variables(tmp_path / "run")
    assert resolved.init == "zoo:maskrcnn_resnet50_fpn"
    assert preprocessing_of(resolved.model) == TORCHVISION
    jax.tree.map(np.testing.assert_array_equal, variables["frozen"], coco_model["frozen"])
    initial_variables(resolved, jax.random.key(0))
    assert len(download_server.requests) == 1
    shutil.rmtree(tmp_path / "caches")
    monkeypatch.setenv("MRCNN_JAX_OFFLINE", "1")
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=3))
    assert int(train(longer, tmp_path / "run").step) == 3
    with pytest.raises(DownloadError, match="MRCNN_JAX_OFFLINE"):
        train(config, tmp_path / "other")
    with pytest.raises(ConfigError, match="no published weights 'maskrcnn'"):
        initial_variables(dataclasses.replace(config, init="zoo:maskrcnn"), jax.random.key(0))


@pytest.mark.parametrize(
    ("name", "stated"), [("scratch_mask_rcnn_R_50_FPN_9x_gn", presets.RESNEXT_STD), ("R-50", None)]
)
def test_presets_of_published_detectors_complete_their_files(monkeypatch, name, stated):
    """Their files state neither pixel statistics nor class names."""
    references = []
    monkeypatch.setattr("mrcnn_jax.weights.zoo_files.fetch", lambda entry: entry.name)
    monkeypatch.setattr(
        "mrcnn_jax.weights.transfer.init_from_file",
        lambda model, source, key, label, reference: (references.append(reference), (model, {}))[1],
    )
    initial_variables(Config(init=f"zoo:{name}"), jax.random.key(0))
    (reference,) = references
    assert (reference and reference.pixel_std) == stated
