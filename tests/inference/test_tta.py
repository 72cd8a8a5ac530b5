"""Test-time augmentation: views, equality with plain inference for one view, flipped images, evaluation."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
from support import tiny

from mrcnn_jax.config import Config, DataConfig, EvalConfig, KeypointHeadConfig, ShapesConfig, SplitConfig
from mrcnn_jax.config.checks import validate
from mrcnn_jax.data import image_files
from mrcnn_jax.data.dataset import load_split
from mrcnn_jax.distributed import collectives
from mrcnn_jax.errors import ConfigError
from mrcnn_jax.evaluation.evaluate import evaluate_model
from mrcnn_jax.inference import detector, single_image, tta
from mrcnn_jax.inference.predictor import Predictor
from mrcnn_jax.models.mask_rcnn import build_model, variable_shapes
from mrcnn_jax.structures import Detections

pytestmark = pytest.mark.medium

DATA = DataConfig(buckets=((64, 96), (96, 64)), shortest_edge_eval=64, longest_edge=96)


def config(model, data=DATA, **settings):
    return Config(model=model, data=data, eval=EvalConfig(**settings))


def random_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model():
    """The tiny model with three keypoints and no score threshold."""
    base = tiny.model()
    return dataclasses.replace(
        base,
        num_classes=3,
        box=dataclasses.replace(base.box, score_threshold=0.0),
        keypoint=KeypointHeadConfig(num_keypoints=3, flip_map=(0, 2, 1), pool_size=4, conv_layers=1, channels=8),
    )


@pytest.fixture(scope="module")
def variables(model):
    """Random variables, large enough that the scores of boxes differ."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if leaf.ndim == 1:
            return np.full(leaf.shape, path[-1].key == "scale", np.float32)
        return rng.normal(0, 1 / np.sqrt(np.prod(leaf.shape[:-1])), leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, variable_shapes(build_model(model)))


def test_one_view_is_plain_inference(model, variables):
    image = random_image(50, 80)
    single = single_image.prepare(image, 0, config(model))
    plain = detector.compile_detect(model, variables)(single.images, single.image_sizes)
    views = tta.prepare(image, 0, config(model, scales=(64,)))
    found = tta.compile_detect(model, variables)(views.images, views.image_sizes)
    assert plain.valid.sum() == 10
    assert plain.masks.shape == (1, 10, 8, 8)
    assert plain.keypoints.shape == (1, 10, 3, 3)
    for name in ("boxes", "scores", "classes", "valid", "truncated"):
        np.testing.assert_array_equal(getattr(found, name), getattr(plain, name), err_msg=name)
    # The heads are in a program of their own, which rounds their sums of 72 products near 1 in another order. Half as
    # many units reach a logit, a quarter of which reaches a sigmoid; a softmax has the errors of two logits.
    error = 36 * np.finfo(np.float32).eps
    np.testing.assert_allclose(found.masks, plain.masks, rtol=0, atol=error / 4)
    np.testing.assert_allclose(found.keypoints[..., 2], plain.keypoints[..., 2], rtol=2 * error)
    np.testing.assert_array_equal(found.keypoints[..., :2], plain.keypoints[..., :2])


def test_a_flipped_image_gives_flipped_results(model, variables):
    """A single view is not flip-equivariant: the network's strides begin at the left."""
    images = [random_image(64, 96), np.ascontiguousarray(random_image(64, 96)[:, ::-1])]
    one, two = Predictor(config(model, flip=True), variables)(images)
    assert len(one) == len(two) == 10
    np.testing.assert_array_equal(one.scores, two.scores)
    np.testing.assert_array_equal(one.labels, two.labels)
    x0, y0, x1, y1 = two.boxes.T
    np.testing.assert_allclose(np.stack([96 - x1, y0, 96 - x0, y1], axis=1), one.boxes, atol=1e-4)
    np.testing.assert_allclose(two.mask_probabilities[..., ::-1], one.mask_probabilities, atol=1e-5)
    back = two.keypoints[:, [0, 2, 1]]
    np.testing.assert_allclose([96, 0] + [-1, 1] * back[..., :2], one.keypoints[..., :2], atol=1e-3)
    # The logarithm of a score is a difference of heights, of some hundreds in a random network.
    np.testing.assert_allclose(np.log(back[..., 2]), np.log(one.keypoints[..., 2]), atol=1e-3)
    plain, flipped = Predictor(config(model, scales=(64,)), variables)(images)
    assert not np.array_equal(plain.scores, flipped.scores)


def test_two_programs_per_shape(model, variables):
    """Flipped or not, with or without padding."""
    detect = tta.compile_detect(model, variables)
    for size in [(64, 96), (50, 80)]:
        views = tta.prepare(random_image(*size), 0, config(model, flip=True))
        detect(views.images, views.image_sizes)
    programs = tta._programs(model)
    assert (programs.detect_boxes._cache_size(), programs.run_heads._cache_size()) == (1, 1)


def test_at_most_two_images_are_in_flight(monkeypatch):
    waited = []
    monkeypatch.setattr(jax, "block_until_ready", waited.append)
    detect = tta._Detect(None, {})
    monkeypatch.setattr(detect, "_dispatch", lambda views, reference_size: views)
    for image in range(4):
        assert detect(image, np.array([[64, 96]])) == image
        assert waited == list(range(image - 1))


@pytest.mark.parametrize(
    ("resize", "dtype"), [("bucket", np.uint8), ("torchvision", np.float32), ("detectron2", np.uint8)]
)
def test_views_of_an_image(model, resize, dtype):
    image = random_image(50, 80)
    views, reference_size, indices, valid = tta.prepare(
        image, 7, config(model, scales=(48, 96), flip=True, resize=resize)
    )
    assert views.sizes.tolist() == [[45, 72], [45, 72], [90, 144], [90, 144]]
    assert views.flipped.tolist() == [False, True] * 2
    assert [padded.shape[1:3] for padded in views.images] == [(64, 96)] * 2 + [(96, 160)] * 2
    assert {padded.dtype for padded in views.images} == {np.dtype(dtype)}
    for plain, flipped, (height, width) in zip(views.images[::2], views.images[1::2], views.sizes[::2], strict=True):
        np.testing.assert_array_equal(flipped[0, :height, :width], plain[0, :height, :width][:, ::-1])
        assert not flipped[0, height:].any()
        assert not flipped[0, :, width:].any()
    assert reference_size.tolist() == [[60, 96]]
    assert (indices.tolist(), valid.tolist()) == ([7], [True])


@pytest.mark.parametrize("resize", ["bucket", "torchvision", "detectron2"])
@pytest.mark.parametrize("size", [(50, 80), (37, 51), (300, 100), (61, 97)])
def test_the_reference_size_is_that_of_plain_inference(model, resize, size):
    settings = config(model, flip=True, resize=resize)
    single = single_image.prepare(random_image(*size), 0, settings)
    assert tta.prepare(random_image(*size), 0, settings).image_sizes.tolist() == single.image_sizes.tolist()


def test_buckets_and_edges_are_scaled():
    default = Config()
    assert tta.scale_config(default, 800) == dataclasses.replace(
        default, data=dataclasses.replace(default.data, shortest_edge_eval=800)
    )
    half, larger = (tta.scale_config(default, scale).data for scale in (400, 1200))
    assert (half.shortest_edge_eval, half.longest_edge) == (400, 666)
    assert half.buckets == ((416, 544), (544, 416), (416, 672), (672, 416))
    assert (larger.shortest_edge_eval, larger.longest_edge) == (1200, 2000)
    assert larger.buckets == ((1216, 1632), (1632, 1216), (1216, 2016), (2016, 1216))


def test_scales_are_checked():
    base = Config(init="weights.npz")
    validate(dataclasses.replace(base, eval=EvalConfig(scales=(640, 800))))
    with pytest.raises(ConfigError, match=r"eval\.scales=\("):
        validate(dataclasses.replace(base, eval=EvalConfig(scales=(64, 96, 64))))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A configuration whose evaluation split has five images of 48 x 48."""
    root = tmp_path_factory.mktemp("shapes")
    data = dataclasses.replace(
        DATA,
        root=str(root / "data"),
        train=SplitConfig("train.json", "train"),
        eval=SplitConfig("val.json", "val"),
        shapes=ShapesConfig(train_images=1, eval_images=5, image_size=48),
        cache_dir=str(root / "cache"),
    )
    categories = load_split(data, "eval").categories
    model = dataclasses.replace(
        tiny.model(),
        mask=None,
        num_classes=len(categories.ids),
        category_ids=categories.ids,
        category_names=categories.names,
    )
    return config(model, data, scales=(64, 96), flip=True, batch_size=3, overlays=0)


def ground_truth_detector(dataset):
    """Detection that returns the first object of each image; images are recognized by their first view."""
    pixels = {}
    for index in range(len(dataset)):
        content, annotations = dataset.record(index)
        view = tta.prepare(image_files.decode(content), index, config(tiny.model(), scales=(64,)))
        pixels[view.images.images[0].tobytes()] = np.array(annotations[0]["bbox"], np.float32)

    def detect(views, reference_size):
        assert len(views.images) == 4
        assert reference_size.tolist() == [[64, 64]]
        x, y, width, height = pixels[views.images[0].tobytes()] * (64 / 48)
        return Detections(
            boxes=np.array([[[x, y, x + width, y + height]]]),
            scores=np.ones((1, 1), np.float32),
            classes=np.ones((1, 1), np.int32),
            masks=np.zeros((1, 1, 0, 0), np.float32),
            keypoints=np.zeros((1, 1, 0, 3), np.float32),
            valid=np.ones((1, 1), bool),
            truncated=np.zeros(1, bool),
        )

    return detect


@pytest.mark.parametrize("count", [1, 2])
def test_evaluation_detects_in_all_views_of_every_image_once(shapes, tmp_path, monkeypatch, count):
    """Simulates the processes one after the other, the main process last. batch_size=3 has no effect here."""
    dataset = load_split(shapes.data, "eval")
    monkeypatch.setattr(tta, "compile_detect", lambda *_: ground_truth_detector(dataset))
    monkeypatch.setattr(jax, "process_count", lambda: count)
    monkeypatch.setattr(collectives, "check_same", lambda *_: None)  # there is only one real process
    monkeypatch.setattr(collectives, "broadcast_object", lambda content: content)
    shares = []
    for index in reversed(range(count)):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        monkeypatch.setattr(
            collectives, "run_on_main", (lambda function: b"{}") if index else (lambda function: function())
        )
        gather = (lambda content: shares.append(content) or []) if index else (lambda content: [*shares, content])
        monkeypatch.setattr(collectives, "gather", gather)
        evaluate_model(shapes, {}, tmp_path)
    results = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    assert [record["image_id"] for record in results] == dataset.ids.tolist()
    expected = [dataset.record(i)[1][0]["bbox"] for i in range(5)]
    np.testing.assert_allclose([record["bbox"] for record in results], expected, rtol=1e-5, atol=1e-4)
