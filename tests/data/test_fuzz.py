"""Fuzz tests: any COCO JSON and images give valid batches or a DataError, never another error, a crash or a hang.

A small dataset with every kind of annotation is damaged at random places: values of other types, extreme numbers,
missing fields, entries twice, run lengths and image files with other bytes, text that ends early. Then it goes the
whole way, from `load_split` with its checks through augmentation to padded batches, and into COCOeval's ground truth.
Most examples keep the records in memory; a few go through files. A crash or hang of native code ends the test process,
with the input left in `fuzz.json` of the test's folder, which the report names.
"""

from __future__ import annotations

import contextlib
import copy
import faulthandler
import io
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck
from PIL import Image
from pycocotools import mask as coco_mask

from mrcnn_jax.config import (
    AugmentConfig,
    Config,
    DataConfig,
    KeypointHeadConfig,
    ModelConfig,
    SplitConfig,
    TrainConfig,
)
from mrcnn_jax.data import annotations, image_files, load_split, records, segmentation_checks, train_batches
from mrcnn_jax.data.batching import BatchPlan
from mrcnn_jax.data.findings import raise_refusals
from mrcnn_jax.data.loader import Loader
from mrcnn_jax.data.pipeline import _assign_buckets
from mrcnn_jax.errors import DataError
from mrcnn_jax.evaluation.coco_ground_truth import load_ground_truth
from mrcnn_jax.structures import Batch

pytestmark = pytest.mark.medium

SIZES = ((40, 56), (30, 64), (33, 20))  # height, width
NAMES = ("0.jpg", "1.png", "2.png")
HANGING = 120  # seconds for one example, after which the process is ended


def make_images() -> dict[str, bytes]:
    """A JPEG, a PNG and a gray PNG file of noise."""
    rng = np.random.default_rng(0)
    files = {}
    for name, (height, width) in zip(NAMES, SIZES, strict=True):
        shape = (height, width) if name == "2.png" else (height, width, 3)
        content = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(content, "JPEG" if name == "0.jpg" else "PNG")
        files[name] = content.getvalue()
    return files


def make_json() -> dict[str, Any]:
    """Polygons, run lengths of both kinds, a crowd and keypoints."""
    bitmap = np.zeros(SIZES[0], np.uint8, order="F")
    bitmap[5:20, 8:30] = 1
    packed = coco_mask.encode(bitmap)["counts"].decode()
    height = SIZES[1][0]
    plain = [5 * height + 4, 10, height - 10, 12, height - 12, 10, (64 - 8) * height + height - 14]
    masks = [
        [[10.5, 4, 30, 6.25, 25, 30]],
        {"size": list(SIZES[0]), "counts": packed},
        [[2, 2, 12, 2, 12, 12, 2, 12], [20, 20, 35, 22, 30, 38, 22, 36]],
        {"size": list(SIZES[1]), "counts": plain},
        [[4, 5, 18, 5, 18, 25, 4, 25]],
        [[0, 0, 20, 0, 20, 33, 0, 33]],
    ]
    boxes = [[10.5, 4, 19.5, 26], [8, 5, 22, 15], [2, 2, 33, 36], [5, 4, 4, 13], [4, 5, 14, 20], [0, 0, 20, 33]]
    return {
        "images": [
            {"id": 7 - i, "file_name": name, "height": size[0], "width": size[1]}
            for i, (name, size) in enumerate(zip(NAMES, SIZES, strict=True))
        ],
        "annotations": [
            {
                "id": i + 1,
                "image_id": (7, 7, 7, 6, 6, 5)[i],
                "category_id": 3 if i % 2 else 9,
                "bbox": boxes[i],
                "area": boxes[i][2] * boxes[i][3],
                "iscrowd": int(i == 3),
                "segmentation": masks[i],
                "keypoints": [12, 8, 2, 15.5, 9, 1, 0, 0, 0],
            }
            for i in range(6)
        ],
        "categories": [
            {"id": i, "name": f"kind {i}", "keypoints": ["nose", "left", "right"], "skeleton": [[1, 2], [1, 3]]}
            for i in (9, 3)
        ],
    }


JSON, IMAGES = make_json(), make_images()

numbers = st.one_of(
    st.sampled_from(
        [0, -1, 1, 0.5, -0.0, 1e-300, 1e-9, 1e9, -1e9, 1e300, -1e300, 1e308, 2**31, 2**63, -(2**63), 2**64]
    ),
    st.sampled_from([float("inf"), float("-inf"), float("nan"), 10**400, 65536, 178_956_970]),
    st.floats(-100, 200),
    st.integers(-10, 100),
)
junk = st.one_of(
    numbers,
    st.sampled_from([None, True, False, "", "7", "a", "../x", "\0", "\ud800", "0.jpg", [], {}, [[]], [{}], "x" * 5000]),
    st.sampled_from([{"size": [40, 56]}, {"counts": []}, {"size": [40, 56], "counts": [2240]}, [None] * 8, [[0] * 6]]),
    st.recursive(numbers | st.text(max_size=3), lambda inner: st.lists(inner, max_size=4), max_leaves=6),
)


def slots(tree: Any) -> list[tuple[Any, Any]]:
    """Every place of a value in it: the list or object, and the index or the key."""
    found, waiting = [], [tree]
    while waiting:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        found += [(node, key) for key in keys]
        waiting += [node[key] for key in keys]
    return found


@st.composite
def damaged_text(draw: st.DrawFn) -> bytes:
    """The JSON with one to three of its values changed, sometimes with its text changed too."""
    content = copy.deepcopy(JSON)
    # Most of what is outside the shapes ends in a refusal, and would hide what the shapes can do.
    shapes = [(a, key) for a in content["annotations"] for key in ("bbox", "segmentation", "keypoints", "area")]
    inside = draw(st.integers(0, 3)) > 0
    for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
        if inside:
            annotation, key = draw(st.sampled_from(shapes))
            places = [(annotation, key), *slots(annotation.get(key))]
        else:
            places = slots(content)
        places = [(parent, key) for parent, key in places if isinstance(parent, list) or key in parent]
        if places:
            damage(draw, *draw(st.sampled_from(places)), content)
    text = json.dumps(content).encode()
    kind = 3 if inside else draw(st.integers(0, 9))
    if kind == 0:
        return text[: draw(st.integers(0, len(text)))]
    if kind == 1:
        place = draw(st.integers(0, len(text)))
        return text[:place] + draw(st.binary(min_size=1, max_size=4)) + text[place + 1 :]
    if kind == 2:
        return text.replace(b"[", b"[" * draw(st.sampled_from([2, 500, 100_000])), 1)
    return text


def damage(draw: st.DrawFn, parent: Any, key: Any, content: Any) -> None:
    """Change one value, in place."""
    value, kind = parent[key], draw(st.integers(0, 7))
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(value))
    elif kind == 2:  # a value of some other place
        other, place = draw(st.sampled_from(slots(content)))
        parent[key] = copy.deepcopy(other[place])
    elif kind == 3 and isinstance(value, str) and value:
        place = draw(st.integers(0, len(value) - 1))
        parent[key] = value[:place] + draw(st.text(max_size=2)) + value[place + 1 :]
    elif kind == 4 and isinstance(value, (int, float)) and not abs(value) > 1e300:  # whole numbers may be longer
        parent[key] = value * draw(st.sampled_from([-1, 0.01, 3, 1e3, 1e200, float("nan")]))
    elif kind == 5 and isinstance(value, list):
        value.append(copy.deepcopy(draw(junk)))
    else:
        parent[key] = copy.deepcopy(draw(junk))  # hypothesis gives the same object again


@st.composite
def damaged_images(draw: st.DrawFn) -> dict[str, bytes]:
    """The files, one of them cut off or with another byte, but most of the time as they are."""
    files = dict(IMAGES)
    kind, name = draw(st.integers(0, 19)), draw(st.sampled_from(NAMES))
    place = draw(st.integers(0, len(files[name]) - 1))
    if kind == 0:
        files[name] = files[name][:place]
    elif kind == 1:
        files[name] = files[name][:place] + draw(st.binary(min_size=1, max_size=3)) + files[name][place + 1 :]
    return files


class InMemory:
    """Stands in for the files of prepared records."""

    def __init__(self, images: dict[str, bytes]):
        self._images, self._entries = images, []

    def prepare(self, path: Path, folder: Path, image_ids: Any, cache: Path) -> tuple[Path, records.RecordIndex]:
        """As `records.open_prepared`, with the same checks; nothing is written."""
        content = annotations.inspect(path, image_ids, folder)
        for image in content.images:
            if image.file_name not in self._images:
                raise DataError(f"{image.file_name} is not there")
        refusals = [image_files.check_image(self._images[image.file_name], image).refusal for image in content.images]
        raise_refusals(path, [*content.refusals, *filter(None, refusals)])
        self._entries = content.images
        return Path(), records._make_index(content, "", ("", ""), [], {})

    def reader(self, folder: Path) -> InMemory:
        return self

    def __getitem__(self, index: int) -> tuple[bytes, list[dict[str, Any]]]:
        entry = self._entries[index]
        return self._images[entry.file_name], json.loads(json.dumps(entry.annotations))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """`load_split` uses this instead of files."""
        with (
            mock.patch.object(records, "open_prepared", self.prepare),
            mock.patch.object(records, "RecordReader", self.reader),
        ):
            yield


def make_config(root: Path, keypoints: bool, augmented: bool) -> Config:
    split = SplitConfig("fuzz.json", "images")
    strong = AugmentConfig(
        scale_jitter=(0.1, 2.0), crop=0.5, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1, copy_paste=0.5
    )
    data = DataConfig(
        root=str(root),
        train=split,
        eval=split,
        cache_dir=str(root / "cache"),
        buckets=((64, 64), (64, 96)),
        shortest_edge_train=(48, 64),
        longest_edge=90,
        max_instances=3,
        mask_size=16,
        vertical_flip=0.5,
        augment=strong if augmented else AugmentConfig(),
    )
    head = KeypointHeadConfig(num_keypoints=3, flip_map=(0, 2, 1)) if keypoints else None
    return Config(data=data, model=ModelConfig(keypoint=head), train=TrainConfig(batch_size=2))


def check_batch(batch: Batch, classes: int) -> None:
    """Everything valid is finite, inside its picture, and of a class that there is; the rest is zero."""
    truth = batch.ground_truth
    for slot in range(len(batch.valid)):
        height, width = batch.image_sizes[slot]
        valid = truth.valid[slot]
        assert batch.valid[slot] or not valid.any()
        boxes, keypoints = truth.boxes[slot][valid], truth.keypoints[slot][valid]
        assert (boxes[:, :2] >= 0).all()  # NaN is not
        assert (boxes[:, 2:] <= (width, height)).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert np.isfinite(keypoints).all()
        assert (keypoints[..., :2] >= 0).all()
        assert (keypoints[..., :2] <= (width, height)).all()
        assert np.isin(truth.classes[slot][valid], np.arange(1, classes + 1)).all()
        assert np.isin(truth.masks[slot], (0, 1)).all()
        assert not any(field[slot][~valid].any() for field in truth)


def go_the_whole_way(root: Path, content: bytes, images: dict[str, bytes], keypoints: bool, augmented: bool) -> str:
    """From the JSON to batches; what came of it. Raises what must not be raised."""
    (root / "fuzz.json").write_bytes(content)
    config = make_config(root, keypoints, augmented)
    faulthandler.dump_traceback_later(HANGING, exit=True)
    try:
        with InMemory(images).in_place():
            dataset = load_split(config.data, "train")
            plan = BatchPlan(0, _assign_buckets(dataset, config, 64), config.data.buckets, 2)
            loader = Loader(dataset, config, plan, slice(0, 2), training=True)
            truth = load_ground_truth(root / "fuzz.json")
    except DataError:
        faulthandler.cancel_dump_traceback_later()
        return "refused"
    # What is not refused by now has to work.
    for step in range(plan.batches_per_epoch):
        check_batch(loader(step), len(dataset.categories.ids))
    for annotation in truth.dataset["annotations"]:
        if annotation.get("segmentation"):
            truth.annToMask(annotation)
    faulthandler.cancel_dump_traceback_later()
    return "loaded"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fuzz")
    (root / "images").mkdir()
    for name, content in IMAGES.items():
        (root / "images" / name).write_bytes(content)
    return root


def fuzz(root: Path, seed: int, examples: int) -> Counter[str]:
    """Let hypothesis make examples; how often each outcome was seen."""
    outcomes: Counter[str] = Counter()

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @hypothesis.given(damaged_text(), damaged_images(), st.booleans(), st.booleans())
    def run(content: bytes, images: dict[str, bytes], keypoints: bool, augmented: bool) -> None:
        outcomes[go_the_whole_way(root, content, images, keypoints, augmented)] += 1

    run()
    return outcomes


def test_undamaged_data_are_loaded(root):
    for keypoints in (False, True):
        assert go_the_whole_way(root, json.dumps(JSON).encode(), IMAGES, keypoints, True) == "loaded"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("keypoints", [12, 8, 1e300, 15.5, 9, 1, 0, 0, 0]),
        ("keypoints", [10**400, -(10**400), 2, 15, 9, 1, 0, 0, 0]),
        ("bbox", [-(10**400), 4, 10**400 + 30, 26]),
        ("segmentation", [[10**400, -(10**400), 30, 6, 25, 30]]),
    ],
)
def test_numbers_that_no_float_can_hold(root, key, value):
    content = copy.deepcopy(JSON)
    content["annotations"][0][key] = value
    assert go_the_whole_way(root, json.dumps(content).encode(), IMAGES, True, False) == "loaded"


def test_a_polygon_that_would_fill_the_memory_is_not_drawn(tmp_path):
    content = copy.deepcopy(JSON)
    content["images"][0].update(height=1, width=annotations.MAX_PIXELS)
    across = [0, 0, annotations.MAX_PIXELS, 0, annotations.MAX_PIXELS, 1, 0, 1]
    content["annotations"][0].update(bbox=[0, 0, annotations.MAX_PIXELS, 1], segmentation=[across])
    (tmp_path / "fuzz.json").write_text(json.dumps(content))
    kinds = {problem.kind for problem in annotations.inspect(tmp_path / "fuzz.json").problems}
    assert segmentation_checks.LONG_POLYGON in kinds


def test_damaged_data_are_loaded_or_refused(root):
    outcomes = fuzz(root, 0, 150)
    assert min(outcomes["loaded"], outcomes["refused"]) > 25  # neither is the only one that is tried


@pytest.mark.slow
def test_damaged_data_are_loaded_or_refused_for_some_time(root):
    end, seed = time.monotonic() + 20, 0
    while time.monotonic() < end:
        seed += 1  # named where it fails; the same ones in every run, as many as the machine can do
        fuzz(root, seed, 500)


@hypothesis.settings(max_examples=10, deadline=None, database=None, derandomize=True)
@hypothesis.given(damaged_text(), damaged_images())
def test_damaged_data_are_loaded_from_files_or_refused(tmp_path_factory, content, images):
    """With prepared records and the threads that read them."""
    root = tmp_path_factory.mktemp("files")
    (root / "images").mkdir()
    for name, image in images.items():
        (root / "images" / name).write_bytes(image)
    (root / "fuzz.json").write_bytes(content)
    config = make_config(root, keypoints=True, augmented=True)
    try:
        dataset = load_split(config.data, "train")
        batches = train_batches(dataset, config)
    except DataError:
        return
    with batches:
        for _ in range(3):
            check_batch(next(batches), len(dataset.categories.ids))
