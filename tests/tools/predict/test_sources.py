"""Inputs of a prediction: files, folders, patterns, cameras, and the names of their results."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from mrcnn_jax.tools.predict.sources import MediaSource, find_sources, result_names


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.JPG", "a.png", "notes.txt", "7", "clip.MOV", "street/x.webp", "street/deep/y.tif", "a[1].png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    for hidden in (".cache/z.png", "street/.thumb.png", "found/a.png"):
        Path(hidden).parent.mkdir(exist_ok=True)
        Path(hidden).touch()


def kinds_and_paths(*inputs):
    sources, messages = find_sources(inputs, Path("found"))
    assert not messages
    return [(source.kind, source.path) for source in sources]


def test_folder_is_searched_recursively_in_sorted_order(tree):
    sources, _ = find_sources(["."], Path("found"))
    assert [source.name for source in sources] == ["a", "a[1]", "b", "clip", "street/deep/y", "street/x"]
    assert [source.kind for source in sources] == ["image"] * 3 + ["video"] + ["image"] * 2
    assert [source.name for source in find_sources(["street"], Path("found"))[0]] == ["deep/y", "x"]


def test_glob_patterns(tree):
    assert kinds_and_paths("*.png") == [("image", "a.png"), ("image", "a[1].png")]
    assert kinds_and_paths("**/*.tif") == [("image", "street/deep/y.tif")]
    assert kinds_and_paths("str*") == [("image", "street/deep/y.tif"), ("image", "street/x.webp")]
    assert kinds_and_paths("a[1].png") == [("image", "a[1].png")]  # an existing file is not a pattern


def test_given_files_are_images_or_videos(tree):
    assert kinds_and_paths("notes.txt", "b.JPG", "clip.MOV", "absent.png") == [
        ("image", "notes.txt"),
        ("image", "b.JPG"),
        ("video", "clip.MOV"),
        ("image", "absent.png"),
    ]


def test_files_of_folders_are_recognized_by_suffix_or_content(tree, caplog):
    heads = {
        "photo": b"\xff\xd8\xff\xe0",
        "scan.dat": b"II*\0",
        "film.bin": bytes(4) + b"ftypisom",
        "old": b"RIFF1234AVI ",
        "x.heic2": bytes(4) + b"ftypheic",
        "g.pnm2": b"P5\n3 4\n",
        "b.map": b"BM" + bytes(12) + b"\x28\0\0\0",
        "notes.txt": b"BMW and PS5",
        "labels.json": b"{}",
    }
    Path("mixed").mkdir()
    for name, head in heads.items():
        Path("mixed", name).write_bytes(head)
    Path("mixed", "u.JFIF").touch()
    Path("mixed", "v.3GP").touch()
    os.mkfifo("mixed/pipe.jpg")
    with caplog.at_level(logging.INFO):
        kinds = {Path(path).name: kind for kind, path in kinds_and_paths("mixed")}
    images = dict.fromkeys(("photo", "scan.dat", "x.heic2", "g.pnm2", "b.map", "u.JFIF"), "image")
    assert kinds == {**images, **dict.fromkeys(("film.bin", "old", "v.3GP"), "video")}
    assert caplog.messages == ["mixed: skipped 3 files, neither images nor videos: labels.json, notes.txt, pipe.jpg"]
    assert kinds_and_paths("mixed/film.bin") == [("video", "mixed/film.bin")]


def test_linked_folders_are_searched(tree):
    Path("in").mkdir()
    Path("in/linked").symlink_to("../street")
    Path("in/round").symlink_to("..")
    assert [path for _, path in kinds_and_paths("in")] == ["in/linked/deep/y.tif", "in/linked/x.webp"]


@pytest.mark.parametrize("address", ["rtsp://192.0.2.1/stream", "https://example.org/a.jpg?size=[1]"])
def test_urls_are_refused(tree, address):
    sources, (message,) = find_sources([address], Path("found"))
    assert not sources
    assert message.startswith(f"{address}: URLs are not supported; save it to a file first")


def test_pipes_are_not_opened(tree):
    os.mkfifo("pipe")
    sources, (message,) = find_sources(["pipe"], Path("found"))
    assert not sources
    assert message == "pipe: it is a device or a pipe, not a file; give a camera by its number"


def test_number_is_a_camera_unless_a_file_has_that_name(tree):
    assert kinds_and_paths("0", "7") == [("camera", "0"), ("image", "7")]
    assert find_sources(["0"], Path("found"))[0][0].name == "camera-0"


def test_inputs_without_images_are_reported(tree):
    Path("empty").mkdir()
    sources, messages = find_sources(["empty", "a.png", "*.gif"], Path("found"))
    assert len(sources) == 1
    assert [message.split(":")[0] for message in messages] == ["empty", "*.gif"]


def test_names_of_results_are_unique():
    given = ["a", "a", "A", "x/a", "b.mask", "b", "results", "c", "c.mask"]
    chosen = result_names([MediaSource("image", "", name) for name in given], reserved=["results"])
    assert chosen == ["a", "a-2", "A-3", "x/a", "b.mask", "b-2", "results-2", "c", "c.mask-2"]
    assert result_names([MediaSource("image", "", name) for name in ("a", "a-2", "a")]) == ["a", "a-2", "a-3"]
