"""`mrcnn export RUN FILE.zip`: the programs, run without this package; the `Predictor` of such a file."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from flax import traverse_util

from mrcnn_jax.cli import main as mrcnn
from mrcnn_jax.config import Config, DataConfig, KeypointHeadConfig
from mrcnn_jax.errors import WeightsError
from mrcnn_jax.inference import exported, single_image
from mrcnn_jax.inference.detect import detect
from mrcnn_jax.inference.exported import ExportedModel
from mrcnn_jax.inference.postprocess import Prediction, postprocess
from mrcnn_jax.inference.predictor import Predictor, read_image
from mrcnn_jax.models.mask_rcnn import build_model, init_variables
from mrcnn_jax.structures import Detections
from mrcnn_jax.tools.export import archive, program
from mrcnn_jax.tools.export.program import exported_function
from mrcnn_jax.weights import reference_models

# Runs where only a copy of the loader is found: the package and what it needs besides jax cannot be imported.
ELSEWHERE = """
import sys
import numpy as np
for name in ("mrcnn_jax", "flax", "optax", "orbax", "etils", "cv2", "PIL", "scipy.ndimage"):
    sys.modules[name] = None
from loader import ExportedModel
model = ExportedModel(sys.argv[1])
with np.load(sys.argv[2]) as images:
    for name, image in images.items():
        np.savez(f"{name}.npz", **model.detect(image))
    batch = list(images.values())[:2]
if (2, 64, 64) in model.programs:
    batch, sizes = np.stack(batch), [(64, 64)] * 2
    np.savez("threshold.npz", **model(batch, sizes, sizes, threshold=float(sys.argv[3])))
    np.savez("limit.npz", **model(batch, sizes, sizes, limit=3))
"""


@pytest.fixture(scope="module")
def exported_file(finished_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("programs") / "model.zip"
    assert mrcnn(["export", str(finished_run.workdir), str(path), "--batch-size=2"]) == 0
    return path


@pytest.fixture(scope="module")
def images(finished_run):
    files = sorted((Path(finished_run.config.data.root) / "val").iterdir())
    return [read_image(path) for path in files]


def run_elsewhere(path: Path, images: list[np.ndarray], folder: Path, threshold: float = 0.0) -> None:
    shutil.copy(exported.__file__, folder / "loader.py")
    np.savez(folder / "images.npz", **{str(i): image for i, image in enumerate(images)})
    command = [sys.executable, "-c", ELSEWHERE, str(path), "images.npz", str(threshold)]
    subprocess.run(command, cwd=folder, check=True)


def check_equal(found, prediction, atol: float = 1e-5) -> None:
    """Compare the arrays of a program with a `Prediction`. atol: in pixels, and in scores and probabilities."""
    assert len(found["scores"]) == len(prediction)
    for name, expected in (
        ("boxes", prediction.boxes),
        ("scores", prediction.scores),
        ("category_ids", prediction.category_ids),
        ("masks", prediction.mask_probabilities),
        ("keypoints", prediction.keypoints),
    ):
        if expected is not None:
            np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=atol, err_msg=name)


@pytest.mark.medium
def test_programs_run_without_the_package(exported_file, finished_run, images, tmp_path):
    predictions = Predictor.from_checkpoint(finished_run.workdir)(images)
    threshold = 0.999 * float(predictions[0].scores[4])
    run_elsewhere(exported_file, images, tmp_path, threshold)
    for index, prediction in enumerate(predictions):
        with np.load(tmp_path / f"{index}.npz") as found:
            check_equal(found, prediction)
    first = predictions[:2]
    check_batch(tmp_path / "threshold.npz", [one[one.scores >= threshold] for one in first])
    check_batch(tmp_path / "limit.npz", [one[:3] for one in first])
    assert len(predictions[0]) > 5


def check_batch(path: Path, expected: list[Prediction]) -> None:
    with np.load(path) as found:
        for slot, prediction in enumerate(expected):
            valid = found["valid"][slot]
            check_equal({name: found[name][slot][valid] for name in found}, prediction)
            assert not found["boxes"][slot][~valid].any()


@pytest.mark.slow
def test_whole_network(golden, tmp_path):
    """R50-FPN with generated weights in the first default bucket."""
    state = golden.recipe().state(json.loads(golden.file("d2_keys_mask_rcnn_R_50_FPN.json").read_text()))
    config, variables = reference_models.load(state, "detectron2", "mask_rcnn_R_50_FPN", exact=False)
    data = dataclasses.replace(config.data, buckets=config.data.buckets[:1])
    config = dataclasses.replace(config, data=data)
    archive.write(tmp_path / "r50.zip", config, variables)
    pixels = golden("d2_model_inputs.npz")["img_u8_bgr0"].transpose(1, 2, 0)
    images = [exported.resize(pixels, (900, bucket[1] + 50)) for bucket in data.buckets]
    run_elsewhere(tmp_path / "r50.zip", images, tmp_path)
    for index, prediction in enumerate(Predictor(config, variables)(images)):
        assert len(prediction) > 20
        with np.load(tmp_path / f"{index}.npz") as found:
            # Without the optimizations that users have, XLA rounds the two programs differently.
            check_equal(found, prediction, atol=1e-3)


@pytest.mark.medium
def test_predictor_of_a_file(exported_file, finished_run, images):
    """Three images: a batch of two and one left over."""
    predict = Predictor.from_export(exported_file)
    assert predict.config.eval.batch_size == 2
    for ours, expected in zip(
        predict(images[:3]), Predictor.from_checkpoint(finished_run.workdir)(images[:3]), strict=True
    ):
        check_equal(dataclasses.asdict(ours) | {"masks": ours.mask_probabilities}, expected)


@pytest.mark.medium
def test_file(exported_file, finished_run, tmp_path):
    again = tmp_path / "again.zip"
    assert mrcnn(["export", str(finished_run.workdir), str(again), "--batch-size=2"]) == 0
    assert again.read_bytes() == exported_file.read_bytes()
    with zipfile.ZipFile(again) as content:
        manifest = json.loads(content.read("manifest.json"))
        programs = [content.read(name) for name in manifest["programs"]]
        members = {name: content.read(name) for name in content.namelist()}
    assert [jax.export.deserialize(bytearray(program)).platforms for program in programs] == [
        ("cpu", "cuda", "tpu")
    ] * 2
    names = [category["name"] for category in manifest["categories"]]
    assert names == ["circle", "square", "triangle", "star", "cross"]
    for place in (Path(finished_run.config.data.root).parent, Path(__file__).parents[3]):
        assert not [name for name, data in members.items() if str(place).encode() in data]


@pytest.mark.medium
def test_pasted_masks_and_keypoints(tiny_model_config):
    """The function against `detect` and `postprocess`, of an image that was resized by different factors per axis."""
    config = dataclasses.replace(
        tiny_model_config,
        num_classes=3,
        category_ids=(5, 1, 9),
        keypoint=KeypointHeadConfig(num_keypoints=2, pool_size=4, conv_layers=1, channels=8),
    )
    model = build_model(config)
    variables = init_variables(model, jax.random.key(0))
    function = exported_function(config, "frames")
    weights = traverse_util.flatten_dict(variables, sep="/")
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    sizes, original = np.array([[64, 50]], np.int32), np.array([[96, 120]], np.int32)
    found, expected = jax.device_get(
        jax.jit(lambda *arguments: (function(*arguments, 0.0, 6), detect(model, variables, *arguments[1:3])))(
            weights, images, sizes, original
        )
    )
    one = Detections(*(field[0] for field in expected))
    prediction = postprocess(one, sizes[0], tuple(original[0]), config)[:6]
    assert len(prediction) == found["valid"].sum() == 6
    bits = program._pasted(config, "bits", expected.masks, expected.boxes, (64, 64))
    np.testing.assert_array_equal(np.packbits(found["masks"], axis=-1)[found["valid"]], bits[found["valid"]])
    frames = found.pop("masks")[found["valid"]]
    check_equal(
        {name: array[0][found["valid"][0]] for name, array in found.items()},
        dataclasses.replace(prediction, mask_probabilities=None),
    )
    in_frame = postprocess(one, np.array([64, 64]), (64, 64), config)[:6]
    assert in_frame.masks.any()
    assert np.mean(frames != in_frame.masks) < 1e-3  # the sides of boxes round differently


@hypothesis.given(height=st.integers(1, 400), width=st.integers(1, 400), seed=st.integers(0, 9))
@hypothesis.settings(max_examples=50)
def test_loader_resizes_as_the_predictor(height, width, seed):
    data = DataConfig(buckets=((64, 96), (96, 64), (64, 128)), shortest_edge_eval=64, longest_edge=120)
    model = ExportedModel.__new__(ExportedModel)
    model.manifest = {"resize": {"shortest_edge": 64, "longest_edge": 120}}
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    inputs = []
    model.programs = {
        (1, *bucket): lambda _, *arguments: inputs.append(arguments) or {"valid": np.zeros(1, bool)}
        for bucket in data.buckets
    }
    model.weights = {}
    model.detect(image)
    padded, size, original, *_ = inputs[0]
    expected = single_image.prepare(image, 0, Config(data=data))
    assert padded.shape == expected.images.shape
    np.testing.assert_array_equal(size, expected.image_sizes)
    np.testing.assert_array_equal(original, [[height, width]])
    np.testing.assert_array_equal(padded, expected.images)


def rewrite(path: Path, target: Path, **replaced) -> Path:
    """Copy a file with other fields in its manifest, or other members."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as copy:
        for name in source.namelist():
            data = source.read(name)
            if name == "manifest.json":
                data = json.dumps(json.loads(data) | replaced.get("manifest", {})).encode()
            copy.writestr(name, replaced.get(name, data))
    return target


@pytest.mark.medium
def test_files_that_cannot_be_used(exported_file, tmp_path):
    other = io.BytesIO()
    np.savez(other, kernel=np.zeros(3))
    for replaced, message in (
        ({"manifest": {"format": 2}}, "bad.zip has format 2; this program reads format 1"),
        ({"manifest": {"jax": "99.1.0"}}, f"bad.zip was written by jax 99.1.0; this is {jax.__version__}: update jax"),
        ({"weights.npz": other.getvalue()}, "bad.zip: weights.npz is of another model"),
        ({"manifest.json": b"{"}, "bad.zip: Expecting"),
        ({"manifest": {"config": {"colour": 1}}}, "bad.zip: .*colour"),
        ({"manifest": {"masks": "bits"}}, "bad.zip has pasted masks: export it with --masks=boxes"),
    ):
        with pytest.raises(WeightsError, match=message):
            Predictor.from_export(rewrite(exported_file, tmp_path / "bad.zip", **replaced))
    (tmp_path / "cut.zip").write_bytes(exported_file.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match=r"cut\.zip is damaged, or no file of `mrcnn export`"):
        Predictor.from_export(tmp_path / "cut.zip")
    with pytest.raises(WeightsError, match=r"none\.zip does not exist"):
        Predictor.from_export(tmp_path / "none.zip")


def test_command_line(capsys):
    for arguments, message in (
        (["a.onx"], "TARGET=a.onx: give FILE.zip, FILE.onnx, or DIR without an ending"),
        (["folder", "--batch-size=2"], "--batch-size is for FILE.zip and FILE.onnx, not for folder"),
        (["a.onnx", "--masks=bits"], "--masks is for FILE.zip, not for a.onnx"),
        (["a.zip", "--batch-size=0"], "--batch-size=0 must be at least 1"),
    ):
        with pytest.raises(SystemExit):
            mrcnn(["export", "run", *arguments])
        assert message in capsys.readouterr().err
