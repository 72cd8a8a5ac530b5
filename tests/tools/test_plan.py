"""Search for buckets, their costs, and the command that proposes them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shlex
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_jax.cli import main as mrcnn
from mrcnn_jax.config import Config, DataConfig, TrainConfig, apply_overrides, from_json, to_json, validate
from mrcnn_jax.data.batching import choose_buckets, scale_for
from mrcnn_jax.tools.plan import proposals, search
from mrcnn_jax.tools.plan.search import best_buckets, cost, required_shapes

pytestmark = pytest.mark.medium

EDGES = {"shortest_edge": 800, "longest_edge": 1333}


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ((480, 640), (800, 1088)),
        ((640, 480), (1088, 800)),
        ((427, 640), (800, 1216)),
        ((375, 500), (800, 1088)),
        ((500, 680), (800, 1088)),  # exactly 1088 wide
        ((100, 640), (224, 1344)),  # the longer edge decides
        ((7, 7), (800, 800)),
        ((20000, 3), (1344, 32)),
    ],
)
def test_required_shape(size: tuple[int, int], shape: tuple[int, int]) -> None:
    assert tuple(required_shapes(np.array([size]), **EDGES)[0]) == shape


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 1500), st.integers(1, 3000))
def test_required_shape_is_minimal(height: int, width: int, shortest: int, longest: int) -> None:
    size, edges = np.array([height, width]), {"shortest_edge": shortest, "longest_edge": longest}
    full = scale_for(size, (np.inf, np.inf), **edges)
    shape = required_shapes(size[None], **edges)[0]
    assert (shape % 32 == 0).all()
    assert scale_for(size, shape, **edges) == full
    for less in ((32, 0), (0, 32)):
        smaller = shape - less
        assert smaller.min() == 0 or scale_for(size, smaller, **edges) < full


@st.composite
def distributions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Up to five shapes with their numbers of images, which may be 0."""
    edge = st.integers(1, 9).map(lambda n: 32 * n)
    shapes = draw(st.lists(st.tuples(edge, edge), min_size=1, max_size=5, unique=True))
    counts = draw(st.lists(st.integers(0, 30), min_size=len(shapes), max_size=len(shapes)).filter(any))
    return np.array(shapes), np.array(counts)


def area_of(buckets: Any, shapes: np.ndarray, counts: np.ndarray) -> int:
    """Pixels of all images with padding, each in the smallest bucket that fits."""
    buckets = np.array(buckets)
    areas = np.where((buckets[:, None] >= shapes).all(axis=-1), buckets.prod(axis=1)[:, None], 10**9)
    return int(areas.min(axis=0) @ counts)


def least_area(shapes: np.ndarray, counts: np.ndarray, max_buckets: int) -> int:
    """The least area of any set of buckets, by exhaustive search."""
    corners = np.array(list(itertools.product(np.unique(shapes[:, 0]), np.unique(shapes[:, 1]))))
    areas = np.where((corners[:, None] >= shapes).all(axis=-1), corners.prod(axis=1)[:, None], 10**9)
    sets = np.array(list(itertools.combinations_with_replacement(range(len(corners)), max_buckets)))
    smallest = areas[sets].min(axis=1)
    return int((smallest @ counts)[(smallest < 10**9).all(axis=1)].min())


@settings(max_examples=25)
@given(distributions(), st.integers(1, 3))
def test_best_buckets_have_the_least_area(case: tuple[np.ndarray, np.ndarray], max_buckets: int) -> None:
    shapes, counts = case
    buckets = best_buckets(shapes, counts, max_buckets)
    assert len(set(buckets)) == len(buckets) <= max_buckets
    assert all((np.array(buckets) >= shape).all(axis=1).any() for shape in shapes)
    assert area_of(buckets, shapes, counts) == least_area(shapes, counts, max_buckets)
    assert best_buckets(shapes[::-1], counts[::-1], max_buckets) == best_buckets(
        shapes[::-1], counts[::-1], max_buckets
    )


@settings(max_examples=20)
@given(distributions(), st.integers(1, 3))
def test_many_shapes_are_searched_on_a_coarser_grid(case: tuple[np.ndarray, np.ndarray], max_buckets: int) -> None:
    shapes, counts = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "_MAX_PAIRS", 4)
        buckets = best_buckets(shapes, counts, max_buckets)
    assert len(buckets) <= max_buckets
    assert all(h % 32 == w % 32 == 0 for h, w in buckets)
    assert all((np.array(buckets) >= shape).all(axis=1).any() for shape in shapes)
    assert area_of(buckets, shapes, counts) <= area_of([shapes.max(axis=0)], shapes, counts)


def with_data(batch_size: int = 4, **data: Any) -> Config:
    return Config(data=DataConfig(**data), train=TrainConfig(batch_size=batch_size))


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), min_size=1, max_size=40),
    st.sampled_from([(800, 1333), (320, 448), (352, 352), (70, 300)]),
)
def test_proposals_shrink_nothing_and_pad_less_with_more_buckets(
    sizes: list[tuple[int, int]], edges: tuple[int, int]
) -> None:
    config = with_data(shortest_edge_train=(edges[0] // 2, edges[0]), longest_edge=edges[1])
    images = np.array(sizes)
    found = proposals.propose_buckets(config, images, np.zeros((0, 2), int))
    costs = [cost(images, buckets, config) for buckets in found]
    assert all(row.shrunk == 0 and row.images.sum() == len(images) for row in costs)
    assert all(row.images.all() for row in costs)  # no bucket without an image
    assert all(a.pixels >= b.pixels for a, b in itertools.pairwise(costs))
    shapes = required_shapes(images, shortest_edge=edges[0], longest_edge=edges[1])
    for row in costs:  # choose_buckets agrees with the search
        assert row.pixels * len(images) == pytest.approx(area_of(row.buckets, shapes, np.ones(len(images), int)))


SIZES = np.array([(480, 640)] * 6 + [(640, 480)] * 3 + [(427, 640)])  # scaled: 800x1067, 1067x800, 800x1199


def test_cost_worked_by_hand() -> None:
    row = cost(SIZES, ((800, 1088), (1088, 800), (800, 1344)), with_data(shortest_edge_train=(400, 800)))
    landscape, wide = 800 * 1088, 800 * 1344
    assert row.images.tolist() == [6, 3, 1]
    assert row.remainder.tolist() == [2, 1, 3]
    assert row.pixels == pytest.approx((9 * landscape + wide) / 10)
    assert row.epoch == pytest.approx((12 * landscape + 4 * wide) / 10)
    covered = 9 * 800 * 1067 + 800 * 1199
    assert row.padding == pytest.approx(1 - covered / (9 * landscape + wide))
    half_size = 9 * 400 * 533 + 400 * 600
    assert row.training_padding == pytest.approx(1 - (covered + half_size) / 2 / (9 * landscape + wide))
    assert row.shrunk == 0


def test_dropped_images_have_no_cost() -> None:
    row = cost(SIZES, ((1088, 1344),), with_data(remainder="drop"))
    assert (row.images.tolist(), row.remainder.tolist()) == ([10], [2])
    assert row.epoch == row.pixels == 1088 * 1344


def test_shrunk_images_are_counted() -> None:
    assert cost(SIZES, ((800, 1088),), with_data()).shrunk == 4
    assert cost(SIZES, ((800, 1088), (1088, 800)), with_data()).shrunk == 1


def test_coco_is_planned_in_seconds() -> None:
    rng = np.random.default_rng(0)
    ratios = np.exp(rng.normal(0, 0.35, 118_287))  # as varied as COCO's
    sizes = np.stack([500 * np.sqrt(ratios), 500 / np.sqrt(ratios)], axis=1).astype(int)
    start = time.process_time()
    found = proposals.propose_buckets(with_data(), sizes, np.zeros((0, 2), int))
    rows = [cost(sizes, buckets, with_data()) for buckets in found]
    assert time.process_time() - start < 20  # measured: 2
    assert [len(row.buckets) for row in rows] == [1, 2, 3, 4, 5, 6]


def adopt(printed: str, *overrides: str) -> Config:
    """The configuration with the printed override, as train.py would read and store it."""
    line = next(line for line in printed.splitlines() if "--config.data.buckets=" in line)
    (argument,) = [word for word in shlex.split(line) if word.startswith("--config.")]
    config = apply_overrides(Config(init="weights.npz"), [*overrides, argument.removeprefix("--config.")])
    validate(config)
    assert from_json(to_json(config)) == config
    return config


def test_command_on_a_json(coco_folder: Any, capsys: pytest.CaptureFixture[str]) -> None:
    edges = ("data.shortest_edge_train=(48,64)", "data.longest_edge=90")
    json_path = str(coco_folder.save())
    assert mrcnn(["plan", json_path, "--buckets=3", *(f"--config.{edge}" for edge in edges)]) == 0
    printed = capsys.readouterr().out
    assert "Training images: 7." in printed
    # Scaled: 60x90 90x60 64x85 85x64 64x64 42x90 64x64
    assert adopt(printed, *edges).data.buckets == ((64, 64), (64, 96), (96, 64))
    assert "best 2" in printed


def test_one_bucket_is_a_tuple_of_buckets(coco_folder: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert mrcnn(["plan", str(coco_folder.save()), "--buckets=1"]) == 0
    assert adopt(capsys.readouterr().out).data.buckets == ((1216, 1344),)


def test_several_files(coco_folder: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(coco_folder.save())
    assert mrcnn(["plan", path, path]) == 0
    assert "Training images: 14." in capsys.readouterr().out


@pytest.fixture
def recipe(coco_folder: Any, tmp_path: Path) -> Path:
    """A recipe that trains on the landscape images and evaluates on a tall one."""
    config = coco_folder.config()
    train = dataclasses.replace(config.data.train, image_ids=(100, 98))
    data = dataclasses.replace(config.data, train=train, eval=dataclasses.replace(config.data.eval, image_ids=(99,)))
    path = tmp_path / "recipe.py"
    path.write_text(
        "from mrcnn_jax.config import from_json\n\n\ndef get_config():\n"
        f"    return from_json({to_json(dataclasses.replace(config, data=data))!r})\n"
    )
    return path


def test_command_on_a_recipe_includes_evaluation_images(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mrcnn(["plan", str(recipe)]) == 0
    printed = capsys.readouterr().out
    assert "Training images: 2. Further images for evaluation: 1." in printed
    assert adopt(printed).data.buckets == ((64, 96), (96, 64))
    assert mrcnn(["plan", str(recipe), "--config.eval.resize=detectron2"]) == 0
    assert adopt(capsys.readouterr().out).data.buckets == ((64, 96),)


def test_note_on_small_buckets(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(recipe), "--config.train.batch_size=3"]
    assert mrcnn(["plan", *arguments]) == 0
    assert "A bucket has 2 images, fewer than the batch size 3: its remainder" in capsys.readouterr().out
    assert mrcnn(["plan", *arguments, "--config.data.remainder=drop"]) == 0
    assert "data.remainder=drop refuses that" in capsys.readouterr().out


def test_min_keypoints(coco_folder: Any, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco_folder.add_keypoints()
    for annotation in coco_folder.content["annotations"]:
        if annotation["image_id"] != 100:
            annotation.pop("keypoints", None)
    coco_folder.save()
    assert mrcnn(["plan", str(recipe), "--config.data.min_keypoints=2"]) == 0
    assert "Training images: 1. Further images for evaluation: 1." in capsys.readouterr().out
    assert mrcnn(["plan", str(recipe), "--config.data.min_keypoints=3"]) == 2
    assert "no image has the data.min_keypoints=3 labeled keypoints" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.data.augment.scale_jitter=(0.1,2)"], "nothing to plan"),
        (["--config.data.bucket=1"], "did you mean 'buckets'"),
        (["--config.data.buckets=((100,100),)"], "not divisible by 32"),
        (["--config.data.eval.annotations=none.json"], "none.json"),
        (["other.json"], "give it without"),
    ],
)
def test_error_messages(recipe: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert mrcnn(["plan", str(recipe), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_unknown_argument(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        mrcnn(["plan", str(recipe), "--config=other.py"])
    assert ended.value.code == 2
    assert "unknown argument --config=other.py" in capsys.readouterr().err


def test_invalid_json_is_refused(coco_folder: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = coco_folder.save()
    path.write_text(json.dumps({"images": []}))
    assert mrcnn(["plan", str(path)]) == 2
    assert str(path) in capsys.readouterr().err


def test_note_on_cropping(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mrcnn(["plan", str(recipe), "--config.data.augment.crop=0.5"]) == 0
    assert "With data.augment.crop," in capsys.readouterr().out


def test_costs_agree_with_the_buckets_of_training(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The numbers of images per bucket are those of `choose_buckets`."""
    config, sizes, _ = proposals.load_sizes([recipe], [])
    assert mrcnn(["plan", str(recipe)]) == 0
    buckets = adopt(capsys.readouterr().out).data.buckets
    assigned = choose_buckets(sizes, buckets, shortest_edge=64, longest_edge=90)
    assert np.bincount(assigned, minlength=2).tolist() == cost(sizes, buckets, config).images.tolist() == [2, 0]
